/* tests/decode_cases.h - the table of cases of attention over pages, for CPU and GPU. */
#ifndef FP8_TESTS_DECODE_CASES_H
#define FP8_TESTS_DECODE_CASES_H
#include "decode_problem.h"

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define E4M3 FP8_DTYPE_E4M3
#define F32 FP8_DTYPE_F32
/* heads, KV heads, d_qk, d_v, page size, types of Q, KV, O; then any field. */
#define OPT(h, kv, dq, dv, page, q, kvt, ot, ...)                                                  \
    {                                                                                              \
        .num_heads = h, .num_kv_heads = kv, .d_qk = dq, .d_v = dv, .page_size = page,              \
        .q_dtype = q, .kv_dtype = kvt, .o_dtype = ot, .want_lse = 1, \
        __VA_ARGS__                                                                 \
    }
#define WINDOW(left) .mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT, .window_left = left
#define CAUSAL WINDOW(-1)
#define EDGES                                                                                      \
    9, {                                                                                           \
        {1, 0}, {1, 1}, {1, 63}, {1, 64}, {1, 65}, {0, 40}, {1, 127}, {1, 128}, {1, 129}           \
    }

static const decode_case decode_cases[] = {
    {"one key", OPT(1, 1, 64, 64, 64, BF16, E4M3, BF16, CAUSAL), IN_ORDER, 1, {{1, 1}}},
    {"no keys", OPT(4, 1, 64, 64, 64, BF16, E4M3, BF16, CAUSAL), IN_ORDER, 2, {{1, 0}, {3, 0}}},
    {"edges, page 64", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"edges, page 128", OPT(8, 2, 128, 128, 128, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER,
     EDGES},
    {"codes of Q", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"codes of Q, P too", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL, .quantize_p = 1),
     RANDOM_ORDER, 3, {{1, 700}, {2, 513}, {1, 64}}},
    {"P in codes", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL, .quantize_p = 1),
     RANDOM_ORDER, 3, {{1, 700}, {2, 513}, {1, 64}}},
    {"pages of BF16", OPT(8, 2, 128, 128, 64, BF16, BF16, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"pages of F16", OPT(8, 2, 64, 64, 128, F16, F16, F16, CAUSAL), RANDOM_ORDER, EDGES},
    {"F16, codes", OPT(8, 2, 128, 128, 64, F16, E4M3, F16, CAUSAL), RANDOM_ORDER, EDGES},
    {"O in codes", OPT(8, 2, 128, 128, 64, BF16, E4M3, E4M3, CAUSAL), RANDOM_ORDER, EDGES},
    {"descales a head", OPT(8, 4, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL,
     .granularity = FP8_DESCALE_HEAD), RANDOM_ORDER, EDGES},
    {"d 256", OPT(16, 16, 256, 256, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"d 256, codes of Q", OPT(4, 2, 256, 256, 128, E4M3, E4M3, BF16, CAUSAL), RANDOM_ORDER,
     EDGES},
    {"d 192 to 128", OPT(4, 2, 192, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"group of 16", OPT(16, 1, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"group of 5", OPT(10, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, EDGES},
    {"shared pages", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), SHARED_ORDER, 4,
     {{1, 300}, {2, 301}, {1, 200}, {4, 65}}},
    {"speculative", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, 8,
     {{8, 200}, {8, 8}, {7, 64}, {5, 3}, {2, 129}, {1, 400}, {8, 65}, {0, 0}}},
    {"speculative, group of 8, codes", OPT(16, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL),
     RANDOM_ORDER, 4, {{8, 200}, {3, 90}, {8, 1000}, {1, 1}}},
    {"not causal", OPT(8, 2, 64, 64, 64, BF16, E4M3, BF16, .mask = FP8_MASK_NONE,
     .window_left = -1), RANDOM_ORDER, 3, {{4, 100}, {1, 64}, {8, 3}}},
    {"window", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, WINDOW(70)), RANDOM_ORDER, 4,
     {{1, 500}, {4, 130}, {1, 20}, {2, 71}}},
    {"window 0", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, WINDOW(0)), RANDOM_ORDER, 3,
     {{1, 129}, {4, 130}, {1, 1}}},
    {"softcap", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL, .softcap = 3.0f),
     RANDOM_ORDER, EDGES},
    {"sink", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL, .sink = FP8_SINK_LEARNABLE),
     RANDOM_ORDER, EDGES},
    {"sink, off by one", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL,
     .sink = FP8_SINK_OFF_BY_ONE), RANDOM_ORDER, EDGES},
    {"ALiBi", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL, .alibi = 1), RANDOM_ORDER,
     EDGES},
    {"everything", OPT(12, 2, 128, 128, 128, E4M3, E4M3, E4M3, WINDOW(300), .softcap = 5.0f,
     .sink = FP8_SINK_LEARNABLE, .alibi = 1, .scale = 0.1f, .granularity = FP8_DESCALE_HEAD),
     SHARED_ORDER, 5, {{2, 500}, {8, 600}, {1, 1}, {3, 300}, {1, 0}}},
    {"split", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL, .split_keys = 128),
     RANDOM_ORDER, 6, {{1, 1000}, {1, 128}, {2, 129}, {8, 640}, {1, 0}, {1, 1}}},
    {"fast", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL, .quantize_p = 1,
     .precision = FP8_ATTENTION_FAST), RANDOM_ORDER, 2, {{1, 1000}, {1, 128}}},
    {"gaps between tokens", OPT(4, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL, .q_token = 320,
     .o_token = 272), RANDOM_ORDER, EDGES},
    {"chunk", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, 2,
     {{100, 300}, {70, 70}}},
    {"chunks and decoding", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL), RANDOM_ORDER, 7,
     {{1, 300}, {70, 200}, {9, 9}, {8, 8}, {1, 1}, {33, 133}, {0, 50}}},
    {"chunks and decoding, codes", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL,
     .quantize_p = 1), RANDOM_ORDER, 6,
     {{1, 300}, {70, 200}, {9, 9}, {8, 8}, {1, 1}, {33, 133}}},
};
enum { NUM_DECODE_CASES = sizeof decode_cases / sizeof *decode_cases };
#endif
