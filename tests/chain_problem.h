/* tests/chain_problem.h - chains of Linears over random codes, for test_chain.c and gpu_chain.c:
 * the same data on any device, and the formula of quant/chain.h in double. */
#ifndef FP8_TESTS_CHAIN_PROBLEM_H
#define FP8_TESTS_CHAIN_PROBLEM_H
#include <string.h>

#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { CHAIN_TOKENS = 130, NO_NORM = -1, LARGE_TOKEN = 5 };

typedef struct chain_part {
    int64_t out;
    fp8_gemm_activation activation;
    int adds, norm; /* an fp8_norm_kind, or NO_NORM */
    int bias, channels; /* channels: a descale an output */
} chain_part;

typedef struct chain_case {
    const char *name;
    int64_t in;
    int32_t count;
    chain_part parts[FP8_CHAIN_MAX_STEPS];
    int tight; /* scales by which half of all codes saturate */
} chain_case;

#define ACT_NO FP8_GEMM_IDENTITY
#define RMS FP8_NORM_RMS
#define PLUS FP8_NORM_RMS_PLUS
#define LAYER FP8_NORM_LAYER
static const chain_case chain_cases[] = {
    {"llama", 128, 4,
     {{144, ACT_NO, 1, RMS, 0, 0}, {320, FP8_GEMM_SWIGLU, 0, NO_NORM, 0, 0},
      {144, ACT_NO, 1, RMS, 0, 0}, {208, ACT_NO, 0, NO_NORM, 0, 0}}, 0},
    {"gemma, channels", 256, 4,
     {{272, ACT_NO, 1, PLUS, 0, 1}, {544, FP8_GEMM_GEGLU_TANH, 0, NO_NORM, 0, 1},
      {272, ACT_NO, 1, PLUS, 0, 1}, {400, ACT_NO, 0, NO_NORM, 0, 1}}, 0},
    {"gpt2", 144, 4,
     {{144, ACT_NO, 1, LAYER, 1, 0}, {576, FP8_GEMM_GELU_TANH, 0, NO_NORM, 1, 0},
      {144, ACT_NO, 1, LAYER, 1, 0}, {432, ACT_NO, 0, NO_NORM, 1, 0}}, 0},
    {"the last adds", 512, 3,
     {{128, ACT_NO, 1, RMS, 0, 0}, {288, FP8_GEMM_SWIGLU, 0, NO_NORM, 1, 0},
      {128, ACT_NO, 1, NO_NORM, 0, 1}}, 0},
    {"saturated", 128, 4,
     {{256, ACT_NO, 1, RMS, 0, 0}, {512, FP8_GEMM_SWIGLU, 0, NO_NORM, 0, 0},
      {256, ACT_NO, 1, RMS, 0, 0}, {384, ACT_NO, 0, NO_NORM, 0, 0}}, 1},
    {"one Linear", 144, 1, {{272, ACT_NO, 0, NO_NORM, 1, 1}}, 0},
    {"one that adds", 128, 1, {{144, ACT_NO, 1, NO_NORM, 0, 0}}, 0},
    {"codes of sums", 128, 2,
     {{160, ACT_NO, 0, NO_NORM, 1, 0}, {144, ACT_NO, 0, NO_NORM, 0, 0}}, 0},
    {"a norm and no more", 128, 2,
     {{144, ACT_NO, 1, LAYER, 0, 1}, {16, ACT_NO, 0, NO_NORM, 0, 0}}, 0},
};

/* ---- numbers on the host --------------------------------------------------------------------- */

typedef struct chain_numbers {
    uint8_t *weight;
    float *descale, input_descale;
    uint16_t *bias, *norm_weight, *norm_bias;
    int64_t in;
} chain_numbers;

typedef struct chain_data {
    const chain_case *c;
    chain_numbers parts[FP8_CHAIN_MAX_STEPS];
    int64_t stream, last; /* columns of h (0: none adds) and of y (0: the last adds) */
    uint8_t *x;           /* [CHAIN_TOKENS, in] */
    uint16_t *h;          /* [CHAIN_TOKENS, stream] */
} chain_data;

static inline int64_t chain_width(const chain_part *p) {
    return fp8_gemm_is_gated(p->activation) ? p->out / 2 : p->out;
}

/* Codes of normal values, deviation 16, eight of each random number. */
static inline void chain_fill_codes(uint8_t *codes, int64_t n, uint64_t *seed) {
    static uint8_t table[256];
    uint64_t bits = 0;

    for (int i = 0; !table[0] && i < 256; i++) {
        uint64_t own = (uint64_t)i;
        table[i] = fp8_from_f32(FP8_DTYPE_E4M3, 16 * check_normal(&own));
    }
    for (int64_t i = 0; i < n; i++) {
        if (i % 8 == 0) bits = check_random(seed);
        codes[i] = table[bits >> (i % 8 * 8) & 255];
    }
}

static inline uint16_t *chain_reals(int64_t n, float mean, float deviation, uint64_t *seed) {
    uint16_t *x = malloc((size_t)n * 2 + 2);
    for (int64_t i = 0; i < n; i++) x[i] = fp8_f32_to_bf16(mean + deviation * check_normal(seed));
    return x;
}

/* Token 1 is all zeros, 2 has a NaN, 5 is as large as codes are; 4 to 7 repeat in its signs. */
static inline void chain_make_hostile(chain_data *t) {
    const int64_t in = t->c->in;

    memset(t->x + in, 0, (size_t)in);
    memset(t->h + t->stream, 0, (size_t)t->stream * 2);
    t->x[2 * in + in / 3] = 0x7f;
    for (int64_t i = 0; i < in; i++) t->x[LARGE_TOKEN * in + i] = i % 3 ? 0x7e : 0xfe;
    memset(t->x + 7 * in, 0x80, (size_t)in); /* -0 */
}

static inline chain_data chain_prepare(const chain_case *c, uint64_t seed) {
    chain_data t = {.c = c};
    int64_t in = c->in;

    for (int32_t i = 0; i < c->count; i++) {
        const chain_part *p = &c->parts[i];
        chain_numbers *n = &t.parts[i];
        n->in = in;
        n->weight = malloc((size_t)(p->out * in));
        chain_fill_codes(n->weight, p->out * in, &seed);
        n->descale = malloc((size_t)p->out * sizeof *n->descale);
        for (int64_t j = 0; j < p->out; j++)
            n->descale[j] = (p->channels ? 0.5f + (float)check_uniform(&seed) : 1.0f) /
                            (16 * sqrtf((float)in));
        n->input_descale = i == 0 ? 0.0625f : c->tight ? 0.0017f : 0.013f;
        n->bias = p->bias ? chain_reals(p->out, 0, 0.3f, &seed) : NULL;
        if (p->norm != NO_NORM) {
            n->norm_weight = chain_reals(p->out, p->norm == PLUS ? 0 : 1, 0.2f, &seed);
            if (p->norm == LAYER) n->norm_bias = chain_reals(p->out, 0, 0.2f, &seed);
        }
        if (p->adds) t.stream = p->out;
        in = chain_width(p);
    }
    if (!c->parts[c->count - 1].adds) t.last = in;
    t.x = malloc((size_t)(CHAIN_TOKENS * c->in));
    chain_fill_codes(t.x, CHAIN_TOKENS * c->in, &seed);
    t.h = chain_reals(CHAIN_TOKENS * t.stream, 0.1f, 1.5f, &seed);
    chain_make_hostile(&t);
    return t;
}

static inline void chain_drop(chain_data *t) {
    for (int32_t i = 0; i < t->c->count; i++) {
        chain_numbers *n = &t->parts[i];
        void *all[] = {n->weight, n->descale, n->bias, n->norm_weight, n->norm_bias};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
    }
    free(t->x);
    free(t->h);
}

/* ---- the same on a device -------------------------------------------------------------------- */

typedef struct chain_on {
    fp8_device *d;
    const chain_data *t;
    fp8_linear *linears[FP8_CHAIN_MAX_STEPS];
    void *norms[2 * FP8_CHAIN_MAX_STEPS], *x, *h, *y, *workspace;
    size_t bytes; /* of the workspace, for CHAIN_TOKENS */
    fp8_chain_step steps[FP8_CHAIN_MAX_STEPS];
    fp8_chain *chain;
} chain_on;

static inline void *chain_upload(fp8_device *d, const void *host, size_t bytes) {
    void *p = NULL;
    if (!host) return NULL;
    CHECK_STATUS(fp8_device_alloc(d, &p, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, p, host, bytes), FP8_OK);
    return p;
}

static inline fp8_linear *chain_linear(fp8_device *d, const chain_part *p, chain_numbers *n) {
    fp8_linear_spec s = {.name = "part", .in = n->in, .out = p->out,
                         .weight = fp8_tensor_view(n->weight, FP8_DTYPE_E4M3, FP8_PLACE_CPU,
                                                   p->out, n->in),
                         .weight_descale = n->descale,
                         .num_weight_descales = p->channels ? p->out : 1,
                         .input = FP8_INPUT_STATIC, .input_descale = n->input_descale,
                         .compute = FP8_DTYPE_BF16};
    fp8_linear *l = NULL;

    if (n->bias) {
        s.bias = fp8_tensor_view(n->bias, FP8_DTYPE_BF16, FP8_PLACE_CPU, p->out, 1);
        s.bias.ndim = 1;
    }
    CHECK_STATUS(fp8_linear_create(&l, d, &s), FP8_OK);
    return l;
}

static inline chain_on chain_open(fp8_device *d, chain_data *t) {
    chain_on o = {.d = d, .t = t};

    for (int32_t i = 0; i < t->c->count; i++) {
        const chain_part *p = &t->c->parts[i];
        chain_numbers *n = &t->parts[i];
        o.linears[i] = chain_linear(d, p, n);
        o.norms[2 * i] = chain_upload(d, n->norm_weight, (size_t)p->out * 2);
        o.norms[2 * i + 1] = chain_upload(d, n->norm_bias, (size_t)p->out * 2);
        o.steps[i] = (fp8_chain_step){.linear = o.linears[i], .activation = p->activation,
                                      .adds = p->adds, .norm_weight = o.norms[2 * i],
                                      .norm_bias = o.norms[2 * i + 1], .eps = 1e-5f};
        if (p->norm != NO_NORM) o.steps[i].norm = (fp8_norm_kind)p->norm;
    }
    CHECK_STATUS(fp8_chain_create(&o.chain, d, o.steps, t->c->count), FP8_OK);
    if (!o.chain) return o;
    o.bytes = fp8_chain_workspace_size(o.chain, CHAIN_TOKENS);
    CHECK_STATUS(fp8_device_alloc(d, &o.workspace, o.bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(d, o.workspace, 0x7f, o.bytes), FP8_OK);
    o.x = chain_upload(d, t->x, (size_t)(CHAIN_TOKENS * t->c->in));
    o.h = chain_upload(d, t->h, (size_t)(CHAIN_TOKENS * t->stream) * 2 + 2);
    CHECK_STATUS(fp8_device_alloc(d, &o.y, (size_t)(CHAIN_TOKENS * t->last) * 2 + 2), FP8_OK);
    return o;
}

static inline void chain_close(chain_on *o) {
    void *all[] = {o->x, o->h, o->y, o->workspace};
    fp8_chain_destroy(o->chain);
    for (int i = 0; i < FP8_CHAIN_MAX_STEPS; i++) fp8_linear_destroy(o->linears[i]);
    for (int i = 0; i < 2 * FP8_CHAIN_MAX_STEPS; i++) fp8_device_free(o->d, o->norms[i]);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(o->d, all[i]);
}

/* Tokens `first` and on at o->x, over the residual stream at h, which it changes, into y. */
static inline fp8_status chain_go(const chain_on *o, int64_t first, int64_t tokens, void *h,
                                  void *y) {
    const fp8_place place = fp8_device_place(o->d);
    const fp8_tensor x = fp8_tensor_view((char *)o->x + first * o->t->c->in, FP8_DTYPE_E4M3, place,
                                         tokens, o->t->c->in);
    const fp8_tensor stream = fp8_tensor_view(h, FP8_DTYPE_BF16, place, tokens, o->t->stream);
    const fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_BF16, place, tokens, o->t->last);
    const fp8_chain_call call = {.x = &x, .h = o->t->stream ? &stream : NULL,
                                 .y = o->t->last ? &out : NULL, .workspace = o->workspace,
                                 .workspace_bytes = o->bytes};
    return fp8_chain_run(o->chain, &call);
}

/* What a run leaves, all CHAIN_TOKENS rows of it: those beyond its tokens as they were. */
typedef struct chain_result {
    uint16_t *h, *y;
} chain_result;

static inline void chain_result_drop(chain_result *r) {
    free(r->h);
    free(r->y);
}

/* A run from the data's residual stream; y is full of 0x5a before. */
static inline chain_result chain_run_on(const chain_on *o, int64_t first, int64_t tokens) {
    const size_t h_bytes = (size_t)(CHAIN_TOKENS * o->t->stream) * 2;
    const size_t y_bytes = (size_t)(CHAIN_TOKENS * o->t->last) * 2;
    const chain_result r = {malloc(h_bytes + 2), malloc(y_bytes + 2)};
    uint16_t *const h = o->h;

    CHECK_STATUS(fp8_device_upload(o->d, o->h, o->t->h, h_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(o->d, o->y, 0x5a, y_bytes), FP8_OK);
    CHECK_STATUS(chain_go(o, first, tokens, h + first * o->t->stream, o->y), FP8_OK);
    CHECK_STATUS(fp8_device_download(o->d, r.h, o->h, h_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(o->d, r.y, o->y, y_bytes), FP8_OK);
    return r;
}

/* ---- the formula in double ------------------------------------------------------------------- */

static inline double chain_dot(const float *x, const float *w, int64_t n) {
    double lanes[8] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) lanes[k] += (double)x[i + k] * (double)w[i + k];
    for (; i < n; i++) lanes[0] += (double)x[i] * (double)w[i];
    for (int k = 0; k < 8; k++) sum += lanes[k];
    return sum;
}

static inline double chain_gelu(double v) {
    return v / 2 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
}

/* v [out] = act(x W^T + b) of one token's values x. */
static inline void chain_product(double *v, const float *x, const chain_part *p,
                                 const chain_numbers *n) {
    const int64_t half = p->out / 2;
    float *w = malloc((size_t)n->in * sizeof *w);

    for (int64_t j = 0; j < p->out; j++) {
        for (int64_t k = 0; k < n->in; k++)
            w[k] = fp8_to_f32(FP8_DTYPE_E4M3, n->weight[j * n->in + k]);
        v[j] = chain_dot(x, w, n->in) * (double)n->input_descale *
               (double)n->descale[p->channels ? j : 0];
        if (n->bias) v[j] += (double)fp8_bf16_to_f32(n->bias[j]);
        if (p->activation == FP8_GEMM_GELU_TANH) v[j] = chain_gelu(v[j]);
    }
    for (int64_t j = 0; fp8_gemm_is_gated(p->activation) && j < half; j++)
        v[j] = (p->activation == FP8_GEMM_SWIGLU ? v[j] / (1 + exp(-v[j])) : chain_gelu(v[j])) *
               v[j + half];
    free(w);
}

/* v = norm of h, one token. */
static inline void chain_norm(double *v, const uint16_t *h, const chain_part *p,
                              const chain_numbers *n) {
    double mean = 0, square = 0;

    for (int64_t j = 0; p->norm == LAYER && j < p->out; j++)
        mean += (double)fp8_bf16_to_f32(h[j]) / (double)p->out;
    for (int64_t j = 0; j < p->out; j++)
        square += pow((double)fp8_bf16_to_f32(h[j]) - mean, 2) / (double)p->out;
    for (int64_t j = 0; j < p->out; j++) {
        const double w = (double)fp8_bf16_to_f32(n->norm_weight[j]);
        v[j] = ((double)fp8_bf16_to_f32(h[j]) - mean) / sqrt(square + (double)1e-5f);
        v[j] *= p->norm == PLUS ? 1 + w : w;
        if (n->norm_bias) v[j] += (double)fp8_bf16_to_f32(n->norm_bias[j]);
    }
}

/* Token t: h [stream] io, y [last] out. */
static inline void chain_oracle(const chain_data *t, int64_t token, uint16_t *h, uint16_t *y) {
    const chain_case *c = t->c;
    float *x = malloc(65536 * sizeof *x);
    double *v = malloc(65536 * sizeof *v);

    for (int64_t k = 0; k < c->in; k++) x[k] = fp8_to_f32(FP8_DTYPE_E4M3, t->x[token * c->in + k]);
    for (int32_t i = 0; i < c->count; i++) {
        const chain_part *p = &c->parts[i];
        chain_product(v, x, p, &t->parts[i]);
        for (int64_t j = 0; p->adds && j < p->out; j++)
            h[j] = fp8_f32_to_bf16((float)((double)fp8_bf16_to_f32(h[j]) + v[j]));
        if (i == c->count - 1) break;
        if (p->norm != NO_NORM) chain_norm(v, h, p, &t->parts[i]);
        for (int64_t j = 0; j < chain_width(p); j++) {
            const double scale = (double)(1.0f / t->parts[i + 1].input_descale);
            x[j] = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, (float)(v[j] * scale)));
        }
    }
    for (int64_t j = 0; j < t->last; j++) y[j] = fp8_f32_to_bf16((float)v[j]);
    free(x);
    free(v);
}

/* ---- how far two runs may be apart ----------------------------------------------------------- */

/* Sums are apart by e of their size. Where they are quantized a code differs with a probability of
 * e over a step, by one step, which is a rms of 0.09 of the value: then codes, and all that is made
 * of them, are apart by sqrt(e / 0.09) * 0.09. Three times that, for the short rows here, and the
 * rounding of what is stored, of which a last bit may differ. */
static inline double chain_bound(double e, int32_t quantized) {
    for (int32_t i = 0; i < quantized; i++) e = sqrt(0.09 * e);
    return 3 * e + 0x1p-9;
}

/* A row of `n`: NaN at the same places, else near as a whole and each (8 deviations). */
static inline void chain_compare(const char *what, int64_t token, const uint16_t *got,
                                 const uint16_t *want, int64_t n, double bound) {
    double square = 0, error = 0, most = 0;
    int wrong = 0;

    for (int64_t i = 0; i < n; i++) {
        const double a = (double)fp8_bf16_to_f32(got[i]), b = (double)fp8_bf16_to_f32(want[i]);
        if (isnan(a) || isnan(b)) wrong |= isnan(a) != isnan(b);
        else {
            square += b * b;
            error += (a - b) * (a - b);
            most = fmax(most, fabs(a - b) - 0x1p-7 * fabs(b));
        }
    }
    wrong |= sqrt(error) > bound * sqrt(square);
    wrong |= most > 8 * bound * sqrt(square / (double)(n > 0 ? n : 1));
    if (!wrong) return;
    if (++check_failures < 10)
        fprintf(stderr, "[%s] %s of token %lld: relative error %.3g, expected at most %.3g; an "
                "element is %.3g off in rows of rms %.3g\n", check_case, what, (long long)token,
                sqrt(error / fmax(square, 1e-30)), bound, most, sqrt(square / (double)n));
}

/* Sums done before h is what it is at the end, and before y. */
static inline int32_t chain_quantized(const chain_case *c, int of_h) {
    int32_t last = c->count - 1;
    while (of_h && last > 0 && !c->parts[last].adds) last--;
    return last;
}

static inline void chain_compare_rows(const chain_data *t, int64_t token, const uint16_t *got_h,
                                      const uint16_t *want_h, const uint16_t *got_y,
                                      const uint16_t *want_y, double e) {
    chain_compare("h", token, got_h, want_h, t->stream, chain_bound(e, chain_quantized(t->c, 1)));
    chain_compare("y", token, got_y, want_y, t->last, chain_bound(e, chain_quantized(t->c, 0)));
}
#endif
