/* The fused backend (cuDNN) against the oracle, in FP8, BF16 and F16: every option that it says it
 * serves, NaN wherever nothing may be read; what it must refuse; plans of one configuration; replay
 * of a CUDA graph with changed lengths and scales. A run that does not end within seconds fails the
 * test. `gpu_fused FIRST [LAST]`: those cases alone, printing each.
 * ctest: slow, as cuDNN compiles each configuration. */
#include <cuda_runtime_api.h>
#include <time.h>

#include "attention_cell.h"
#include "core/graph.h"

#define BSHD FP8_LAYOUT_BSHD_BSHD_BSHD
#define SBHD FP8_LAYOUT_SBHD_SBHD_SBHD
#define BHSD FP8_LAYOUT_BHSD_BHSD_BHSD
#define THD FP8_LAYOUT_THD_THD_THD
#define CAUSAL FP8_MASK_CAUSAL
#define CAUSAL_BR FP8_MASK_CAUSAL_BOTTOM_RIGHT

typedef struct fused_case {
    const char *name;
    int32_t heads, kv_heads, d_qk, d_v, num_seqs;
    cell_lengths lengths[4];
    fp8_attention_layout layout;
    fp8_attention_mask mask;
    int64_t left, right; /* of the window, plus one; 0 = none */
    fp8_attention_bias bias;
    fp8_attention_bias_shape bias_shape;
    fp8_dtype bias_dtype;
    float softcap;
    fp8_attention_sink sink;
    int apart, lse, amax; /* apart: lengths are given (padding, gaps) */
    int64_t pad;          /* strides with room, plus one; 0 = the layout's */
} fused_case;

#define SIZES(h, kv, dqk, dv) .heads = h, .kv_heads = kv, .d_qk = dqk, .d_v = dv
#define ONE(n, q, k) .num_seqs = n, .lengths = {{q, k}, {q, k}, {q, k}, {q, k}}
#define MANY(...) .num_seqs = 4, .apart = 1, .lengths = {__VA_ARGS__}

static const fused_case cases[] = {
    {"plain", SIZES(4, 4, 128, 128), ONE(2, 256, 256), .layout = BSHD, .lse = 1, .amax = 1},
    {"d 64", SIZES(4, 4, 64, 64), ONE(2, 256, 256), .layout = BSHD, .lse = 1, .amax = 1},
    {"d 256", SIZES(4, 4, 256, 256), ONE(1, 256, 256), .layout = BSHD, .lse = 1, .amax = 1},
    {"d 16", SIZES(4, 4, 16, 16), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 80", SIZES(4, 4, 80, 80), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 96", SIZES(4, 4, 96, 96), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 144", SIZES(4, 4, 144, 144), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 192 to 128", SIZES(4, 4, 192, 128), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 128 to 64", SIZES(4, 4, 128, 64), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"d 64 to 128", SIZES(4, 4, 64, 128), ONE(1, 256, 256), .layout = BSHD, .lse = 1},
    {"odd", SIZES(3, 3, 128, 128), ONE(3, 77, 131), .layout = BSHD, .lse = 1, .amax = 1},
    {"odd long", SIZES(3, 3, 128, 128), ONE(1, 1023, 1025), .layout = BSHD, .lse = 1},
    {"grouped", SIZES(8, 2, 128, 128), ONE(2, 130, 300), .layout = BSHD, .lse = 1},
    {"one KV head", SIZES(8, 1, 64, 64), ONE(2, 130, 300), .layout = BSHD, .lse = 1},
    {"two queries", SIZES(4, 2, 128, 128), ONE(2, 2, 300), .layout = BSHD, .lse = 1},
    {"one query", SIZES(4, 2, 128, 128), ONE(2, 1, 300), .layout = BSHD, .lse = 1},
    {"one key", SIZES(4, 2, 128, 128), ONE(2, 70, 1), .layout = BSHD, .lse = 1},
    {"strided", SIZES(4, 2, 64, 64), ONE(2, 130, 130), .layout = BSHD, .lse = 1, .pad = 17},
    {"sbhd", SIZES(4, 2, 128, 128), ONE(3, 130, 200), .layout = SBHD, .lse = 1},
    {"bhsd", SIZES(4, 2, 128, 128), ONE(3, 130, 200), .layout = BHSD, .lse = 1},
    {"sb3hd", SIZES(4, 4, 128, 128), ONE(3, 130, 130), .layout = FP8_LAYOUT_SB3HD},
    {"sbh3d", SIZES(4, 4, 128, 128), ONE(3, 130, 130), .layout = FP8_LAYOUT_SBH3D},
    {"bs3hd", SIZES(4, 4, 64, 64), ONE(3, 130, 130), .layout = FP8_LAYOUT_BS3HD},
    {"bshd_bs2hd", SIZES(4, 2, 64, 64), ONE(3, 130, 70), .layout = FP8_LAYOUT_BSHD_BS2HD},
    {"causal", SIZES(4, 2, 128, 128), ONE(2, 300, 300), .layout = BSHD, .mask = CAUSAL, .lse = 1,
     .amax = 1},
    {"causal, more keys", SIZES(4, 2, 128, 128), ONE(2, 130, 300), .layout = BSHD, .mask = CAUSAL,
     .lse = 1},
    {"causal, fewer keys", SIZES(4, 2, 128, 128), ONE(2, 300, 130), .layout = BSHD, .mask = CAUSAL,
     .lse = 1},
    {"bottom-right", SIZES(4, 2, 128, 128), ONE(2, 130, 300), .layout = BSHD, .mask = CAUSAL_BR,
     .lse = 1},
    {"bottom-right d 64", SIZES(4, 2, 64, 64), ONE(2, 257, 1000), .layout = BSHD,
     .mask = CAUSAL_BR, .lse = 1},
    {"bottom-right d 256", SIZES(4, 2, 256, 256), ONE(2, 257, 1000), .layout = BSHD,
     .mask = CAUSAL_BR, .lse = 1},
    {"softcap", SIZES(4, 4, 128, 128), ONE(2, 200, 200), .layout = BSHD, .softcap = 5, .lse = 1},
    {"softcap causal", SIZES(4, 4, 128, 128), ONE(2, 200, 200), .layout = BSHD, .softcap = 5,
     .mask = CAUSAL, .lse = 1},
    {"softcap bottom-right", SIZES(4, 4, 64, 64), ONE(2, 200, 300), .layout = BSHD, .softcap = 5,
     .mask = CAUSAL_BR, .lse = 1},
    {"sink", SIZES(4, 4, 128, 128), ONE(2, 200, 200), .layout = BSHD, .sink = FP8_SINK_LEARNABLE,
     .lse = 1},
    {"sink one, causal", SIZES(4, 2, 64, 64), ONE(2, 200, 200), .layout = BSHD, .mask = CAUSAL,
     .sink = FP8_SINK_OFF_BY_ONE, .lse = 1},
    {"sink, bottom-right, window", SIZES(4, 2, 64, 64), ONE(2, 200, 400), .layout = BSHD,
     .mask = CAUSAL_BR, .left = 101, .sink = FP8_SINK_LEARNABLE, .lse = 1},
    {"sink, one query", SIZES(4, 2, 64, 64), ONE(2, 1, 400), .layout = BSHD,
     .sink = FP8_SINK_LEARNABLE, .lse = 1},
    {"alibi causal", SIZES(4, 4, 128, 128), ONE(2, 200, 200), .layout = BSHD, .mask = CAUSAL,
     .bias = FP8_BIAS_ALIBI, .lse = 1},
    {"alibi", SIZES(6, 6, 64, 64), ONE(2, 200, 300), .layout = BSHD, .bias = FP8_BIAS_ALIBI},
    {"alibi bottom-right", SIZES(6, 6, 64, 64), ONE(2, 200, 300), .layout = BSHD,
     .mask = CAUSAL_BR, .bias = FP8_BIAS_ALIBI},
    {"bias F32 11SS", SIZES(4, 4, 128, 128), ONE(2, 200, 256), .layout = BSHD,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_11SS, .bias_dtype = FP8_DTYPE_F32,
     .lse = 1},
    {"bias BF16 1HSS", SIZES(4, 4, 128, 128), ONE(2, 200, 256), .layout = BSHD,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_1HSS, .bias_dtype = FP8_DTYPE_BF16,
     .lse = 1},
    {"bias F16 B1SS", SIZES(4, 4, 128, 128), ONE(2, 200, 256), .layout = BSHD,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_B1SS, .bias_dtype = FP8_DTYPE_F16,
     .lse = 1},
    {"bias BF16 BHSS odd", SIZES(4, 2, 64, 64), ONE(2, 77, 131), .layout = BSHD,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_BHSS, .bias_dtype = FP8_DTYPE_BF16,
     .lse = 1},
    {"bias F32 BHSS odd", SIZES(4, 2, 64, 64), ONE(2, 77, 131), .layout = BSHD,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_BHSS, .bias_dtype = FP8_DTYPE_F32,
     .lse = 1},
    {"bias causal", SIZES(4, 2, 128, 128), ONE(2, 256, 256), .layout = BSHD, .mask = CAUSAL,
     .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_1HSS, .bias_dtype = FP8_DTYPE_BF16,
     .lse = 1},
    {"bias bottom-right", SIZES(4, 2, 128, 128), ONE(2, 256, 384), .layout = BSHD,
     .mask = CAUSAL_BR, .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_1HSS,
     .bias_dtype = FP8_DTYPE_BF16, .lse = 1},
    {"window 100 causal", SIZES(4, 2, 128, 128), ONE(2, 400, 400), .layout = BSHD, .mask = CAUSAL,
     .left = 101, .lse = 1},
    {"window 0 causal", SIZES(4, 2, 128, 128), ONE(2, 200, 200), .layout = BSHD, .mask = CAUSAL,
     .left = 1, .lse = 1},
    {"window 128 causal d 64", SIZES(4, 2, 64, 64), ONE(2, 700, 700), .layout = BSHD,
     .mask = CAUSAL, .left = 129, .lse = 1},
    {"window bottom-right", SIZES(4, 2, 128, 128), ONE(2, 200, 600), .layout = BSHD,
     .mask = CAUSAL_BR, .left = 101, .lse = 1},
    {"window causal, more keys", SIZES(4, 2, 128, 128), ONE(2, 200, 600), .layout = BSHD,
     .mask = CAUSAL, .left = 101, .lse = 1},
    {"window left alone", SIZES(4, 2, 128, 128), ONE(2, 400, 400), .layout = BSHD, .left = 101,
     .lse = 1},
    {"window left alone, long", SIZES(2, 2, 128, 128), ONE(1, 1300, 1300), .layout = BSHD,
     .left = 101, .lse = 1},
    {"window both sides", SIZES(4, 2, 128, 128), ONE(2, 400, 400), .layout = BSHD, .left = 101,
     .right = 31, .lse = 1},
    {"window both sides, cross", SIZES(4, 2, 128, 128), ONE(2, 400, 700), .layout = BSHD,
     .left = 101, .right = 31, .lse = 1},
    {"window right alone", SIZES(4, 2, 128, 128), ONE(2, 400, 400), .layout = BSHD, .right = 31,
     .lse = 1},
    {"padding", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = BSHD, .lse = 1},
    {"padding d 64 amax", SIZES(4, 4, 64, 64), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = BSHD, .lse = 1, .amax = 1},
    {"padding d 256", SIZES(4, 2, 256, 256), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = SBHD, .lse = 1},
    {"padding causal", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = BSHD, .mask = CAUSAL, .lse = 1},
    {"padding bottom-right", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 130}, {100, 256}, {1, 300}), .layout = BSHD, .mask = CAUSAL_BR,
     .lse = 1},
    {"padding alibi causal", SIZES(4, 4, 128, 128),
     MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}), .layout = BSHD,
     .mask = CAUSAL, .bias = FP8_BIAS_ALIBI, .lse = 1},
    {"padding softcap", SIZES(4, 4, 128, 128), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = BSHD, .softcap = 5, .lse = 1},
    {"padding sink", SIZES(4, 4, 64, 64), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = BSHD, .sink = FP8_SINK_LEARNABLE, .lse = 1},
    {"padding bias", SIZES(4, 4, 128, 128), MANY({304, 304}, {77, 130}, {256, 100}, {1, 300}),
     .layout = BSHD, .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_1HSS,
     .bias_dtype = FP8_DTYPE_BF16, .lse = 1},
    {"padding window causal", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 130}, {100, 100}, {1, 300}), .layout = BSHD, .mask = CAUSAL, .left = 51,
     .lse = 1},
    {"padding window bottom-right", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 130}, {100, 256}, {1, 300}), .layout = BSHD, .mask = CAUSAL_BR,
     .left = 51, .lse = 1},
    {"padding window both", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 130}, {100, 256}, {1, 300}), .layout = BSHD, .left = 51, .right = 11,
     .lse = 1},
    {"thd", SIZES(4, 2, 128, 128), ONE(3, 130, 200), .layout = THD, .lse = 1},
    {"thd gaps", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = THD, .lse = 1, .amax = 1},
    {"thd d 64", SIZES(4, 2, 64, 64), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = THD, .lse = 1},
    {"thd d 256", SIZES(4, 2, 256, 256), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = THD, .lse = 1},
    {"thd causal", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = THD, .mask = CAUSAL, .lse = 1},
    {"thd bottom-right", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {100, 256}, {1, 300}),
     .layout = THD, .mask = CAUSAL_BR, .lse = 1},
    {"thd bottom-right window", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 130}, {100, 256}, {1, 300}), .layout = THD, .mask = CAUSAL_BR,
     .left = 51, .lse = 1},
    {"t3hd causal", SIZES(4, 4, 128, 128), MANY({300, 300}, {77, 77}, {100, 100}, {1, 1}),
     .layout = FP8_LAYOUT_T3HD, .mask = CAUSAL, .lse = 1},
    {"thd_t2hd", SIZES(4, 2, 64, 64), MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}),
     .layout = FP8_LAYOUT_THD_T2HD, .lse = 1},
    {"thd one query", SIZES(4, 2, 128, 128), MANY({1, 300}, {1, 130}, {1, 1}, {1, 70}),
     .layout = THD, .lse = 1},
    {"thd softcap", SIZES(4, 4, 128, 128), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = THD, .softcap = 5, .lse = 1},
    {"thd alibi", SIZES(4, 4, 128, 128), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = THD, .mask = CAUSAL, .bias = FP8_BIAS_ALIBI, .lse = 1},
    {"thd sink", SIZES(4, 4, 64, 64), MANY({300, 300}, {77, 130}, {256, 100}, {1, 300}),
     .layout = THD, .mask = CAUSAL, .sink = FP8_SINK_LEARNABLE, .lse = 1},
    {"thd bias", SIZES(4, 4, 128, 128), MANY({304, 304}, {77, 130}, {256, 100}, {1, 300}),
     .layout = THD, .bias = FP8_BIAS_POST_SCALE, .bias_shape = FP8_BIAS_BHSS,
     .bias_dtype = FP8_DTYPE_BF16, .lse = 1},
    /* queries that see no key, sequences without queries or keys */
    {"bottom-right, more queries", SIZES(4, 2, 128, 128), ONE(2, 300, 130), .layout = BSHD,
     .mask = CAUSAL_BR, .lse = 1},
    {"bottom-right, padding, more queries", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 30}, {300, 1}, {1, 300}), .layout = BSHD, .mask = CAUSAL_BR, .lse = 1},
    {"thd bottom-right, more queries", SIZES(4, 2, 128, 128),
     MANY({300, 300}, {77, 30}, {300, 1}, {1, 300}), .layout = THD, .mask = CAUSAL_BR, .lse = 1},
    {"window causal, fewer keys", SIZES(4, 2, 128, 128), ONE(2, 600, 200), .layout = BSHD,
     .mask = CAUSAL, .left = 101, .lse = 1},
    {"padding window causal, fewer keys", SIZES(4, 2, 128, 128),
     MANY({600, 600}, {77, 130}, {600, 100}, {1, 300}), .layout = BSHD, .mask = CAUSAL, .left = 51,
     .lse = 1},
    {"empty sequences", SIZES(4, 2, 128, 128), MANY({300, 300}, {0, 130}, {256, 0}, {0, 0}),
     .layout = BSHD, .lse = 1, .amax = 1},
    {"empty sequences causal", SIZES(4, 2, 128, 128), MANY({300, 0}, {0, 130}, {256, 300}, {0, 0}),
     .layout = BSHD, .mask = CAUSAL, .lse = 1, .amax = 1},
    {"thd empty", SIZES(4, 2, 128, 128), MANY({300, 300}, {0, 130}, {256, 0}, {0, 0}),
     .layout = THD, .lse = 1, .amax = 1},
    {"thd empty causal", SIZES(4, 2, 64, 64), MANY({0, 0}, {0, 130}, {256, 0}, {200, 200}),
     .layout = THD, .mask = CAUSAL, .lse = 1, .amax = 1},
    {"no keys at all but one", SIZES(4, 2, 128, 128), MANY({300, 0}, {20, 0}, {256, 0}, {0, 9}),
     .layout = BSHD, .lse = 1, .amax = 1},
    {"thd no keys at all but one", SIZES(4, 2, 64, 64), MANY({300, 0}, {20, 0}, {256, 0}, {0, 9}),
     .layout = THD, .lse = 1, .amax = 1},
    {"thd no work, far apart", SIZES(4, 2, 128, 128), MANY({2, 0}, {0, 130}, {0, 0}, {0, 70}),
     .layout = THD, .lse = 1, .amax = 1},
    {"thd empty bottom-right", SIZES(4, 2, 128, 128), MANY({300, 300}, {0, 130}, {256, 0}, {0, 0}),
     .layout = THD, .mask = CAUSAL_BR, .lse = 1},
    {"bhsd padding", SIZES(4, 2, 128, 128), MANY({300, 300}, {77, 130}, {256, 0}, {1, 300}),
     .layout = BHSD, .lse = 1},
    {"sbhd padding causal", SIZES(4, 2, 64, 64), MANY({300, 300}, {77, 130}, {256, 0}, {1, 300}),
     .layout = SBHD, .mask = CAUSAL, .lse = 1},
    {"bs3hd padding", SIZES(4, 4, 64, 64), MANY({300, 300}, {77, 77}, {256, 0}, {1, 1}),
     .layout = FP8_LAYOUT_BS3HD, .lse = 1},
    {"sb3hd padding causal", SIZES(4, 4, 128, 128), MANY({300, 300}, {77, 77}, {256, 200}, {1, 1}),
     .layout = FP8_LAYOUT_SB3HD, .mask = CAUSAL, .lse = 1},
    {"strided padding", SIZES(4, 2, 64, 64), MANY({300, 300}, {77, 130}, {256, 0}, {1, 300}),
     .layout = BSHD, .lse = 1, .pad = 17},
};
enum { NUM_CASES = sizeof cases / sizeof *cases };

/* ---- a case ---------------------------------------------------------------------------------- */

static void init_cell(cell *c, const fused_case *x, fp8_dtype dtype, uint64_t seed) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    const int fp8 = dtype == FP8_DTYPE_E4M3;
    o.num_heads = x->heads;
    o.num_kv_heads = x->kv_heads;
    o.d_qk = x->d_qk;
    o.d_v = x->d_v;
    o.layout = x->layout;
    o.mask = x->mask;
    o.window_left = x->left - 1;
    o.window_right = x->right - 1;
    o.bias = x->bias;
    o.bias_shape = x->bias_shape;
    o.bias_dtype = x->bias == FP8_BIAS_POST_SCALE ? x->bias_dtype : FP8_DTYPE_F32;
    o.softcap = x->softcap;
    o.sink = x->sink;
    o.q_dtype = o.kv_dtype = o.o_dtype = dtype;
    o.quantize_p = fp8;
    o.precision = FP8_ATTENTION_FAST;
    o.want_lse = x->lse;
    o.want_amax = x->amax && fp8;
    o.backend = FP8_BACKEND_FUSED;
    cell_init(c, &o, x->lengths, x->num_seqs, x->apart, x->pad - 1, seed);
}

/* The device's work ends within seconds. Nothing can be done with the device otherwise. */
static void wait_or_die(fp8_device *d) {
    enum { SECONDS = 5 };
    struct timespec a, b;
    cudaError_t e;
    (void)clock_gettime(CLOCK_MONOTONIC, &a);
    while ((e = cudaStreamQuery(fp8_device_stream(d))) == cudaErrorNotReady) {
        (void)clock_gettime(CLOCK_MONOTONIC, &b);
        if (b.tv_sec - a.tv_sec <= SECONDS) continue;
        fprintf(stderr, "[%s] does not end\n", check_case);
        _exit(1);
    }
    if (e == cudaSuccess) return;
    fprintf(stderr, "[%s] %s\n", check_case, cudaGetErrorString(e));
    _exit(1);
}

/* A planned cell in device memory. */
typedef struct placed {
    fp8_attention_plan *plan;
    void *dev[NUM_MEM], *workspace;
    size_t bytes;
    fp8_attention_io io;
} placed;

static fp8_status place(placed *p, const cell *c, fp8_device *d) {
    fp8_status st;
    memset(p, 0, sizeof *p);
    FP8_TRY(fp8_attention_plan_create(&p->plan, d, &c->o));
    p->bytes = fp8_attention_workspace_size(p->plan);
    FP8_TRY(cell_upload(c, d, p->dev));
    FP8_TRY(fp8_device_alloc(d, &p->workspace, p->bytes));
    FP8_TRY(fp8_device_fill(d, p->workspace, 0xff, p->bytes)); /* NaN: nothing stale may help */
    p->io = cell_io(c, p->dev);
done:
    return st;
}

static void remove_placed(placed *p, fp8_device *d) {
    for (int i = 0; i < NUM_MEM; i++) fp8_device_free(d, p->dev[i]);
    fp8_device_free(d, p->workspace);
    fp8_attention_plan_destroy(p->plan);
}

static fp8_status run_cell(cell *c, fp8_device *d) {
    placed p;
    fp8_status st;
    FP8_TRY(place(&p, c, d));
    FP8_TRY(fp8_attention_run(p.plan, &p.io, p.workspace, p.bytes));
    wait_or_die(d);
    FP8_TRY(cell_download(c, d, p.dev));
done:
    remove_placed(&p, d);
    return st;
}

/* ---- verdicts -------------------------------------------------------------------------------- */

typedef struct verdict {
    double squares, reference, lse; /* of errors and of O; largest |error| of the LSE */
    int64_t wrong;  /* rows not blank that should be, NaN in O, LSE infinite or not */
    int64_t strays; /* elements around the rows that lost their bytes */
} verdict;

static void judge_row(verdict *v, const cell *c, const double *want, int64_t at, int blank) {
    const float *scale = c->host[MEM_O_SCALE];
    const double unit = scale ? 1 / (double)*scale : 1;
    for (int64_t e = 0; e < c->o.d_v; e++) {
        const double got = (double)element_get(c->host[MEM_O], c->o.o_dtype, at + e) * unit;
        if (isnan(got) || (blank && got != 0)) v->wrong++;
        else v->squares += (got - want[e]) * (got - want[e]);
        v->reference += want[e] * want[e];
    }
}

static void judge_lse(verdict *v, const cell *c, double want, int64_t at) {
    const double got = (double)((const float *)c->host[MEM_LSE])[at];
    if (got == want) return;
    if (isinf(want) || isnan(got) || isinf(got)) v->wrong++;
    else if (fabs(got - want) > v->lse) v->lse = fabs(got - want);
}

static int64_t strays(const void *memory, const uint8_t *marks, int64_t n, size_t size) {
    const uint8_t *p = memory;
    int64_t count = 0;
    for (int64_t i = 0; i < n * (int64_t)size; i++) count += !marks[i / (int64_t)size] &&
                                                             p[i] != 0xff;
    return count;
}

static verdict judge(const cell *c, const double *want_o, const double *want_lse) {
    const fp8_attention_options *o = &c->o;
    const size_t size = fp8_dtype_size(o->o_dtype);
    const int64_t n = (int64_t)(c->bytes[MEM_O] / size);
    const int64_t rows = c->packed ? c->total_q : o->num_seqs * o->max_q;
    const int64_t lse_n = rows * o->num_heads;
    uint8_t *marks = calloc((size_t)n + 1, 1), *lse_marks = calloc((size_t)lse_n + 1, 1);
    verdict v = {0};

    for (int64_t s = 0; s < o->num_seqs; s++)
        for (int64_t i = 0; i < (c->packed ? c->length[s].q : o->max_q) * o->num_heads; i++) {
            const int64_t h = i % o->num_heads, token = c->q_begin[s] + i / o->num_heads;
            const int64_t row = (c->packed ? 0 : s * o->max_q) + token;
            const int64_t at = cell_at(o->o, s, token, h);
            const int64_t l = c->packed ? h * c->total_q + token
                                        : (s * o->num_heads + h) * o->max_q + token;
            memset(marks + at, 1, (size_t)o->d_v);
            lse_marks[l] = 1;
            judge_row(&v, c, want_o + (row * o->num_heads + h) * o->d_v, at,
                      want_lse[l] == -INFINITY);
            if (o->want_lse) judge_lse(&v, c, want_lse[l], l);
        }
    v.strays = strays(c->host[MEM_O], marks, n, size);
    if (o->want_lse) v.strays += strays(c->host[MEM_LSE], lse_marks, lse_n, sizeof(float));
    free(marks);
    free(lse_marks);
    return v;
}

/* P and O in E4M3 cost 2.4 to 2.7e-2 each, their root sum of squares 3.7e-2; P and O in BF16 each
 * 2^-9 / sqrt(3), in F16 an eighth of that. FP8 scores keep 13 bits of sums. */
static double bound_of(fp8_dtype dtype) {
    return dtype == FP8_DTYPE_E4M3 ? 4e-2 : dtype == FP8_DTYPE_BF16 ? 3e-3 : 4e-4;
}

static void check_verdict(const cell *c, const verdict *v, const double amax[2], int talk) {
    const double err = sqrt(v->squares / (v->reference > 0 ? v->reference : 1));
    const float *got = c->host[MEM_AMAX];
    CHECK(err <= bound_of(c->o.o_dtype));
    CHECK(v->lse <= (c->o.q_dtype == FP8_DTYPE_E4M3 ? 8e-3 : 1e-4));
    CHECK(v->wrong == 0);
    CHECK(v->strays == 0);
    for (int i = 0; c->o.want_amax && i < 2; i++)
        CHECK(fabs((double)got[i] - amax[i]) <= 2e-2 * amax[i]);
    if (talk)
        fprintf(stderr, "%-44s O %.2e  LSE %.2e  wrong %lld  strays %lld\n", check_case, err,
                v->lse, (long long)v->wrong, (long long)v->strays);
}

/* What the oracle says; P is not rounded in it: where cuDNN rounds depends on its tiles. */
static void check_against_oracle(cell *c, int talk) {
    const int64_t rows = c->packed ? c->total_q : c->o.num_seqs * c->o.max_q;
    double *want = malloc((size_t)(rows * c->o.num_heads * c->o.d_v + 1) * sizeof *want);
    double *lse = malloc((size_t)(rows * c->o.num_heads + 1) * sizeof *lse), amax[2] = {0};
    const fp8_attention_io io = cell_io(c, c->host);
    fp8_attention_options o = c->o;
    verdict v;

    o.quantize_p = 0;
    CHECK_STATUS(fp8_attention_reference(want, lse, amax, &o, &io), FP8_OK);
    v = judge(c, want, lse);
    check_verdict(c, &v, amax, talk);
    free(want);
    free(lse);
}

static int test_case(fp8_device *gpu, const fused_case *x, fp8_dtype dtype, int talk) {
    fp8_attention_plan *plan = NULL;
    fp8_status st;
    void *kept;
    cell c;

    init_cell(&c, x, dtype, (uint64_t)(x - cases) + 100);
    st = fp8_attention_plan_create(&plan, gpu, &c.o);
    fp8_attention_plan_destroy(plan);
    if (st != FP8_OK) {
        CHECK_STATUS(st, FP8_EUNSUPPORTED);
        CHECK(strstr(fp8_last_message(), "fused: cuDNN "));
        if (talk) fprintf(stderr, "%s: %s\n", check_case, fp8_last_message());
        cell_free(&c);
        return 0;
    }
    cell_poison(&c);
    CHECK_STATUS(run_cell(&c, gpu), FP8_OK);
    check_against_oracle(&c, talk);
    kept = malloc(c.bytes[MEM_O]);
    memcpy(kept, c.host[MEM_O], c.bytes[MEM_O]);
    cell_poison(&c);
    CHECK_STATUS(run_cell(&c, gpu), FP8_OK);
    CHECK(memcmp(kept, c.host[MEM_O], c.bytes[MEM_O]) == 0);
    free(kept);
    cell_free(&c);
    return 1;
}

static const fp8_dtype types[] = {FP8_DTYPE_E4M3, FP8_DTYPE_BF16, FP8_DTYPE_F16};
enum { NUM_TYPES = sizeof types / sizeof *types };

/* Case i of 3 * NUM_CASES: type by type, a seventh of the cases in F16. Compiling takes a while. */
static void test_cases(fp8_device *gpu, int first, int last, int talk) {
    const int whole = first == 0 && last == NUM_TYPES * NUM_CASES;
    int served[NUM_TYPES] = {0};
    for (int i = first; i < last; i++) {
        const fused_case *x = &cases[i % NUM_CASES];
        char name[96];
        if (i / NUM_CASES == 2 && i % 7) continue;
        snprintf(name, sizeof name, "%s, %s", x->name, fp8_dtype_name(types[i / NUM_CASES]));
        check_case = name;
        served[i / NUM_CASES] += test_case(gpu, x, types[i / NUM_CASES], talk);
    }
    check_case = "cases";
    for (int t = 0; t < NUM_TYPES && whole; t++)
        fprintf(stderr, "%s: served %d of %d\n", fp8_dtype_name(types[t]), served[t], NUM_CASES);
    if (whole) CHECK(served[0] >= 60 && served[1] >= NUM_CASES - 4 && served[2] > 10);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static fp8_attention_options small_fp8(void) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = o.num_kv_heads = 2;
    o.d_qk = o.d_v = 64;
    o.num_seqs = 2;
    o.max_q = o.max_kv = 64;
    o.layout = BSHD;
    o.q_dtype = o.kv_dtype = o.o_dtype = FP8_DTYPE_E4M3;
    o.quantize_p = 1;
    o.precision = FP8_ATTENTION_FAST;
    o.backend = FP8_BACKEND_FUSED;
    return o;
}

static void refuse(fp8_device *gpu, fp8_attention_options o, const char *words) {
    fp8_attention_plan *plan = NULL;
    check_case = words;
    CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), words));
    fp8_attention_plan_destroy(plan);
}

#define REFUSE(words, ...)                                                                         \
    do {                                                                                           \
        fp8_attention_options o = small_fp8();                                                     \
        __VA_ARGS__;                                                                               \
        refuse(gpu, o, words);                                                                     \
    } while (0)

static void test_refusals(fp8_device *gpu) {
    REFUSE("cuDNN writes E4M3 alone", o.o_dtype = FP8_DTYPE_BF16);
    REFUSE("expected precision fast", o.precision = FP8_ATTENTION_EXACT);
    REFUSE("quantize_p is not set", o.quantize_p = 0);
    REFUSE("expected one a tensor", o.granularity = FP8_DESCALE_HEAD);
    REFUSE("one query in FP8", o.max_q = 1);
    REFUSE("a bias in FP8", o.bias = FP8_BIAS_ALIBI);
    REFUSE("softcap in FP8", o.softcap = 3.0f);
    REFUSE("a sink in FP8", o.sink = FP8_SINK_OFF_BY_ONE);
    REFUSE("expected multiples of 16", o.d_qk = o.d_v = 72);
    REFUSE("an arbitrary mask", o.mask = FP8_MASK_ARBITRARY);
    REFUSE("may hang", o.padding = 1, o.window_left = 3);
    REFUSE("may hang", o.padding = 1, o.mask = CAUSAL_BR);
    REFUSE("may hang", o.max_kv = 32, o.mask = CAUSAL_BR);
    REFUSE("may hang", o.max_kv = 32, o.mask = CAUSAL, o.window_left = 3);
    REFUSE("expected one type", o.kv_dtype = FP8_DTYPE_BF16);
    REFUSE("expected one type",
           o.q_dtype = o.kv_dtype = FP8_DTYPE_F16, o.o_dtype = FP8_DTYPE_BF16, o.quantize_p = 0);
    REFUSE("ALiBi from the bottom-right corner",
           o.q_dtype = o.kv_dtype = o.o_dtype = FP8_DTYPE_BF16, o.quantize_p = 0,
           o.bias = FP8_BIAS_ALIBI, o.max_kv = 32, o.want_lse = 1);
}

/* ---- plans and graphs ------------------------------------------------------------------------ */

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The second plan of a configuration compiles nothing, though the first is gone. */
static void test_plan_cache(fp8_device *gpu) {
    fp8_attention_options o = small_fp8();
    double took[2];
    check_case = "plans of one configuration";
    o.max_q = o.max_kv = 80;
    for (int i = 0; i < 2; i++) {
        fp8_attention_plan *plan = NULL;
        const double begin = seconds();
        CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_OK);
        fp8_attention_plan_destroy(plan);
        took[i] = seconds() - begin;
    }
    fprintf(stderr, "a plan takes %.1f ms, one more of its kind %.3f ms\n", took[0] * 1e3,
            took[1] * 1e3);
    CHECK(took[1] < 0.2 * took[0]);
}

/* Captured once, replayed with other lengths and scales: the bytes of a plain run with them. */
static void test_graph(fp8_device *gpu, fp8_dtype dtype) {
    static const fused_case from = {"replay", SIZES(4, 2, 128, 128),
                                    MANY({300, 300}, {77, 130}, {256, 1}, {1, 300}), .layout = THD,
                                    .lse = 1};
    const int32_t lengths[] = {120, 100, 0, 33};
    const float descale = 0.11f;
    fp8_graph *graph = NULL;
    placed p;
    void *kept;
    cell c;

    check_case = "replay";
    init_cell(&c, &from, dtype, 7);
    CHECK_STATUS(place(&p, &c, gpu), FP8_OK);
    CHECK_STATUS(fp8_attention_run(p.plan, &p.io, p.workspace, p.bytes), FP8_OK); /* warm */
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    CHECK_STATUS(fp8_attention_run(p.plan, &p.io, p.workspace, p.bytes), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);

    memcpy(c.host[MEM_KV_LENGTHS], lengths, sizeof lengths);
    CHECK_STATUS(fp8_device_upload(gpu, p.dev[MEM_KV_LENGTHS], lengths, sizeof lengths), FP8_OK);
    if (dtype == FP8_DTYPE_E4M3) {
        memcpy(c.host[MEM_V_DESCALE], &descale, sizeof descale);
        CHECK_STATUS(fp8_device_upload(gpu, p.dev[MEM_V_DESCALE], &descale, sizeof descale),
                     FP8_OK);
    }
    CHECK_STATUS(fp8_device_fill(gpu, p.dev[MEM_O], 0xff, c.bytes[MEM_O]), FP8_OK);
    CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    wait_or_die(gpu);
    cell_poison(&c);
    CHECK_STATUS(cell_download(&c, gpu, p.dev), FP8_OK);
    kept = malloc(c.bytes[MEM_O]);
    memcpy(kept, c.host[MEM_O], c.bytes[MEM_O]);
    cell_poison(&c);
    CHECK_STATUS(run_cell(&c, gpu), FP8_OK);
    CHECK(memcmp(kept, c.host[MEM_O], c.bytes[MEM_O]) == 0);
    free(kept);
    fp8_graph_destroy(graph);
    remove_placed(&p, gpu);
    cell_free(&c);
}

/* gpu_fused [FIRST [END]]: the cases from FIRST to before END; all without. */
int main(int argc, char **argv) {
    const int all = NUM_TYPES * NUM_CASES;
    const int end = argc > 2 && atoi(argv[2]) < all ? atoi(argv[2]) : all;
    fp8_device *gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    if (argc == 1 || atoi(argv[1]) == 0) {
        test_refusals(gpu);
        test_plan_cache(gpu);
        test_graph(gpu, FP8_DTYPE_E4M3);
        test_graph(gpu, FP8_DTYPE_BF16);
    }
    test_cases(gpu, argc > 1 ? atoi(argv[1]) : 0, end, argc > 1);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
