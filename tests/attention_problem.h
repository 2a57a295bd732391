/* tests/attention_problem.h - attention problems on the host: random operands, the table of
 * shapes, and E4M3 from its definition. Shared by the CPU and the GPU test. */
#ifndef FP8_TESTS_ATTENTION_PROBLEM_H
#define FP8_TESTS_ATTENTION_PROBLEM_H
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"

/* ---- E4M3 from its definition ---------------------------------------------------------------- */

static inline double e4m3_value(int code) {
    const int e = (code >> 3) & 15, m = code & 7;
    const double magnitude = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    if ((code & 127) == 127) return NAN;
    return code & 128 ? -magnitude : magnitude;
}

/* The nearest code, ties to the even one; magnitudes beyond 448 saturate. */
static inline uint8_t e4m3_code(double x) {
    static double value[127]; /* of the codes without a sign, rising */
    const double magnitude = fabs(x);
    int best = 0;

    for (int c = 0; value[126] == 0 && c < 127; c++) value[c] = e4m3_value(c);
    for (int step = 64; step > 0; step /= 2) /* the last code not above */
        if (best + step < 127 && value[best + step] <= magnitude) best += step;
    if (best < 126) {
        const double down = magnitude - value[best], up = value[best + 1] - magnitude;
        if (up < down || (up == down && best % 2)) best++;
    }
    return (uint8_t)(signbit(x) ? best | 128 : best);
}

/* ---- one problem ----------------------------------------------------------------------------- */

enum { MAX_SEQS = 8 };

typedef struct problem {
    const char *name;
    int32_t heads, kv_heads, d_qk, d_v;
    int32_t num_seqs, s_q[MAX_SEQS], s_kv[MAX_SEQS];
    fp8_attention_mask mask;
    int64_t window;   /* keys a query sees, itself included; 0: no bound */
    fp8_dtype dtype, q_dtype, kv_dtype; /* dtype: of O */
    int quantize_p, gap; /* gap: elements a token's row is longer than packed */
} problem;

/* Short names for the tables. */
#define F32 FP8_DTYPE_F32
#define BF16 FP8_DTYPE_BF16
#define E4M3 FP8_DTYPE_E4M3
#define NONE FP8_MASK_NONE
#define CAUSAL FP8_MASK_CAUSAL_BOTTOM_RIGHT

typedef struct operand {
    void *data;
    float *value; /* [rows, stride], what `data` means, without the descale */
    int64_t rows, stride;
} operand;

typedef struct buffers {
    operand q, k, v;
    void *o;
    int64_t o_stride, total_q, total_kv, max_q, max_kv;
    int32_t q_starts[MAX_SEQS + 1], kv_starts[MAX_SEQS + 1];
    float q_descale, k_descale, v_descale;
} buffers;

static inline void *zeroed(int64_t count, size_t size) { /* exact size: ASan sees strays */
    void *p = calloc(count > 0 ? (size_t)count : 1, size);
    if (!p) abort();
    return p;
}

/* Codes of normals times 16, from a table of 64 K draws: long sequences take 33 million. */
static inline void fill_codes(operand *x, int64_t n, uint64_t *seed) {
    enum { TABLE = 1 << 16 };
    static uint8_t table[TABLE];
    static float value[256];
    static int made;
    uint64_t table_seed = 1; /* not the caller's: what comes out hangs on the arguments alone */

    for (int i = 0; i < TABLE && !made; i++)
        table[i] = e4m3_code((double)check_normal(&table_seed) * 16.0);
    for (int i = 0; i < 256 && !made; i++) value[i] = (float)e4m3_value(i);
    made = 1;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t code = table[check_random(seed) >> 24 & (TABLE - 1)];
        ((uint8_t *)x->data)[i] = code;
        x->value[i] = value[code];
    }
}

static inline void fill(operand *x, fp8_dtype dtype, int64_t rows, int64_t stride, uint64_t *seed) {
    const int64_t n = rows * stride;
    x->rows = rows;
    x->stride = stride;
    x->data = zeroed(n, fp8_dtype_size(dtype));
    x->value = zeroed(n, sizeof(float));
    if (dtype == FP8_DTYPE_E4M3) fill_codes(x, n, seed);
    for (int64_t i = 0; i < n && dtype != FP8_DTYPE_E4M3; i++) {
        float f = check_normal(seed);
        if (dtype == FP8_DTYPE_BF16) {
            f = fp8_round_bf16(f);
            ((uint16_t *)x->data)[i] = fp8_f32_to_bf16(f);
        } else {
            ((float *)x->data)[i] = f;
        }
        x->value[i] = f;
    }
}

static inline void buffers_init(buffers *b, const problem *p, uint64_t seed) {
    memset(b, 0, sizeof *b);
    for (int s = 0; s < p->num_seqs; s++) {
        b->q_starts[s + 1] = b->q_starts[s] + p->s_q[s];
        b->kv_starts[s + 1] = b->kv_starts[s] + p->s_kv[s];
        if (p->s_q[s] > b->max_q) b->max_q = p->s_q[s];
        if (p->s_kv[s] > b->max_kv) b->max_kv = p->s_kv[s];
    }
    b->total_q = b->q_starts[p->num_seqs];
    b->total_kv = b->kv_starts[p->num_seqs];
    fill(&b->q, p->q_dtype, b->total_q, p->heads * p->d_qk + p->gap, &seed);
    fill(&b->k, p->kv_dtype, b->total_kv, p->kv_heads * p->d_qk + p->gap, &seed);
    fill(&b->v, p->kv_dtype, b->total_kv, p->kv_heads * p->d_v + p->gap, &seed);
    b->o_stride = p->heads * p->d_v + p->gap;
    b->o = zeroed(b->total_q * b->o_stride, fp8_dtype_size(p->dtype));
    b->q_descale = p->q_dtype == FP8_DTYPE_E4M3 ? 0.0625f : 1.0f;
    b->k_descale = p->kv_dtype == FP8_DTYPE_E4M3 ? 0.07f : 1.0f;
    b->v_descale = p->kv_dtype == FP8_DTYPE_E4M3 ? 0.055f : 1.0f;
}

static inline void buffers_free(buffers *b) {
    operand *all[] = {&b->q, &b->k, &b->v};
    for (int i = 0; i < 3; i++) {
        free(all[i]->data);
        free(all[i]->value);
    }
    free(b->o);
}

/* Rows of a token `row` elements apart, sequences of `tokens` one after the other. */
static inline fp8_strides rows_of(int64_t row, int64_t d, int64_t tokens) {
    return (fp8_strides){tokens * row, row, d};
}

static inline fp8_attention_options options_of(const problem *p, const buffers *b) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = p->heads;
    o.num_kv_heads = p->kv_heads;
    o.d_qk = p->d_qk;
    o.d_v = p->d_v;
    o.num_seqs = p->num_seqs;
    o.max_q = b->max_q;
    o.max_kv = b->max_kv;
    o.has_strides = 1;
    o.q = rows_of(b->q.stride, p->d_qk, b->max_q);
    o.k = rows_of(b->k.stride, p->d_qk, b->max_kv);
    o.v = rows_of(b->v.stride, p->d_v, b->max_kv);
    o.o = rows_of(b->o_stride, p->d_v, b->max_q);
    o.mask = p->mask;
    o.window_left = p->window - 1;
    o.q_dtype = p->q_dtype;
    o.kv_dtype = p->kv_dtype;
    o.o_dtype = p->dtype;
    o.quantize_p = p->quantize_p;
    return o;
}

static inline fp8_attention_io io_of(const buffers *b) {
    const fp8_attention_io io = {.o = b->o,
                                 .q = b->q.data,
                                 .k = b->k.data,
                                 .v = b->v.data,
                                 .q_starts = b->q_starts,
                                 .kv_starts = b->kv_starts,
                                 .total_q = b->total_q,
                                 .total_kv = b->total_kv,
                                 .q_descale = &b->q_descale,
                                 .k_descale = &b->k_descale,
                                 .v_descale = &b->v_descale};
    return io;
}

static const problem shapes[] = {
    {"one token", 1, 1, 8, 8, 1, {1}, {1}, NONE, 0, F32, F32, F32, 0, 0},
    {"nothing", 2, 1, 8, 8, 2, {0, 0}, {0, 0}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"no keys", 2, 1, 8, 8, 2, {3, 2}, {0, 5}, NONE, 0, F32, F32, F32, 0, 0},
    {"d 20", 2, 2, 20, 20, 1, {65}, {65}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"d 33 to 7", 3, 1, 33, 7, 2, {5, 70}, {70, 5}, NONE, 0, F32, F32, F32, 0, 3},
    {"d 64", 6, 6, 64, 64, 2, {63, 64}, {63, 64}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"d 128 grouped", 8, 2, 128, 128, 2, {65, 2}, {65, 130}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"d 256 one KV head", 5, 1, 256, 256, 1, {40}, {200}, CAUSAL, 0, F32, F32, F32, 0, 5},
    {"d 192 to 128", 2, 2, 192, 128, 1, {17}, {33}, NONE, 0, F32, F32, F32, 0, 0},
    {"more queries than keys", 2, 1, 16, 16, 1, {200}, {65}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"decode", 8, 2, 64, 64, 3, {1, 1, 1}, {200, 1, 64}, CAUSAL, 0, F32, F32, F32, 0, 0},
    {"decode window", 8, 2, 64, 64, 2, {1, 2}, {200, 65}, CAUSAL, 7, F32, F32, F32, 0, 0},
    {"window 1", 2, 2, 16, 16, 1, {65}, {65}, CAUSAL, 1, F32, F32, F32, 0, 0},
    {"window 7", 4, 2, 16, 24, 2, {200, 3}, {200, 90}, CAUSAL, 7, F32, F32, F32, 0, 0},
    {"window 64 cross", 4, 2, 32, 32, 1, {65}, {200}, CAUSAL, 64, F32, F32, F32, 0, 0},
    {"window 1000", 4, 2, 16, 16, 1, {200}, {200}, CAUSAL, 1000, F32, F32, F32, 0, 0},
    {"ragged", 4, 2, 24, 24, 8, {0, 1, 2, 63, 64, 65, 0, 7}, {0, 1, 2, 63, 64, 65, 9, 128},
     CAUSAL, 0, F32, F32, F32, 0, 1},
    {"bf16", 4, 2, 64, 64, 2, {65, 3}, {65, 100}, CAUSAL, 0, BF16, BF16, BF16, 0, 2},
    {"bf16, kv codes", 4, 2, 64, 64, 2, {65, 3}, {65, 100}, CAUSAL, 0, BF16, BF16, E4M3, 0, 0},
    {"all codes", 4, 4, 32, 48, 2, {65, 3}, {65, 100}, NONE, 0, BF16, E4M3, E4M3, 0, 7},
    {"f32, codes", 4, 2, 64, 64, 2, {65, 3}, {65, 100}, CAUSAL, 0, F32, E4M3, E4M3, 0, 0},
    {"p codes", 4, 2, 64, 64, 2, {65, 130}, {65, 200}, CAUSAL, 0, F32, E4M3, E4M3, 1, 0},
    {"p codes, window", 2, 1, 24, 24, 1, {130}, {200}, CAUSAL, 70, F32, F32, F32, 1, 0},
    {"p codes, bf16", 2, 1, 128, 128, 1, {30}, {500}, NONE, 0, BF16, BF16, E4M3, 1, 0},
};
#endif
