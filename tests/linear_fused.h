/* tests/linear_fused.h - fp8_linear_apply with every scaling and what is fused, on any device,
 * against the definition in double: each operand quantized by the scalar oracle, dequantized, and
 * multiplied. The same table for the CPU and CUDA. */
#ifndef FP8_TESTS_LINEAR_FUSED_H
#define FP8_TESTS_LINEAR_FUSED_H
#include <string.h>

#include "core/half.h"
#include "formats/safetensors.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { MAX_IN = 288, MAX_OUT = 272, MAX_TOKENS = 66 };

typedef struct linear_case {
    const char *name;
    int64_t in, out;
    fp8_dtype weight; /* BF16: quantized by the layer as `scaling` says; E4M3: given so */
    fp8_weight_scaling scaling;
    fp8_input_scaling input;
    fp8_dtype compute, y;
    int bias, gelu, residual, amax;
} linear_case;

#define B16 FP8_DTYPE_BF16
#define B32 FP8_DTYPE_F32
#define W8 FP8_DTYPE_E4M3
#define TENSOR FP8_WEIGHT_TENSOR
#define CHANNEL FP8_WEIGHT_CHANNEL
#define BLOCK FP8_WEIGHT_BLOCKS
#define STATIC FP8_INPUT_STATIC
#define TOKEN FP8_INPUT_DYNAMIC
#define CURRENT FP8_INPUT_CURRENT
#define DELAYED FP8_INPUT_DELAYED
#define GROUPS FP8_INPUT_GROUPS
static const linear_case linear_cases[] = {
    {"bf16 tensor, static", 256, 128, B16, TENSOR, STATIC, B16, B16, 1, 0, 0, 0},
    {"bf16 tensor, current", 256, 128, B16, TENSOR, CURRENT, B16, B16, 0, 0, 0, 0},
    {"bf16 tensor, delayed", 256, 128, B16, TENSOR, DELAYED, B16, B16, 1, 0, 1, 0},
    {"bf16 channel, token", 256, 128, B16, CHANNEL, TOKEN, B16, B16, 1, 0, 1, 0},
    {"bf16 channel, token, f32", 272, 144, B16, CHANNEL, TOKEN, B16, B32, 0, 0, 0, 0},
    {"bf16 blocks", 256, 256, B16, BLOCK, GROUPS, B16, B16, 1, 0, 0, 0},
    {"bf16 blocks, odd sizes", 272, 144, B16, BLOCK, GROUPS, B16, B16, 0, 0, 1, 0},
    {"fp8 blocks", 272, 272, W8, BLOCK, GROUPS, B16, B16, 1, 0, 0, 0},
    {"fp8 blocks, f32", 272, 272, W8, BLOCK, GROUPS, B32, B32, 1, 0, 0, 0},
    {"fp8 blocks, small", 64, 48, W8, BLOCK, GROUPS, B16, B16, 0, 0, 0, 0},
    {"fp8 static, gelu, codes", 256, 256, W8, TENSOR, STATIC, B16, W8, 1, 1, 0, 1},
    {"fp8 static, codes", 256, 256, W8, TENSOR, STATIC, B16, W8, 0, 0, 0, 0},
    {"fp8 token, gelu, codes", 256, 256, W8, CHANNEL, TOKEN, B16, W8, 1, 1, 0, 1},
    {"fp8 static, gelu", 256, 256, W8, TENSOR, STATIC, B16, B16, 1, 1, 0, 0},
    {"fp8 current, residual", 256, 256, W8, TENSOR, CURRENT, B32, B32, 1, 0, 1, 0},
    {"fp8 blocks, gelu, codes", 256, 256, W8, BLOCK, GROUPS, B16, W8, 1, 1, 0, 1},
    {"weights only", 67, 45, B16, CHANNEL, FP8_INPUT_DENSE, B16, B16, 1, 0, 1, 0},
    {"odd sizes, token", 67, 45, B16, CHANNEL, TOKEN, B16, B16, 1, 0, 1, 0},
    {"odd sizes, current", 67, 45, B16, TENSOR, CURRENT, B16, B16, 0, 1, 0, 0},
};

/* Everything of a case on the host: as given, and as the product sees it. */
typedef struct linear_data {
    float w[MAX_OUT * MAX_IN], x[MAX_TOKENS * MAX_IN];
    float bias[MAX_OUT], residual[MAX_TOKENS * MAX_OUT];
    float w_seen[MAX_OUT * MAX_IN], x_seen[MAX_TOKENS * MAX_IN];
    _Alignas(16) uint8_t w_raw[4 * MAX_OUT * MAX_IN];
    float descale[MAX_OUT];
    double want[MAX_TOKENS * MAX_OUT];
} linear_data;

static inline float linear_code(float v, float scale) {
    return fp8_to_f32(W8, fp8_from_f32(W8, v * scale));
}

/* seen[r, c] = the value after a trip through E4M3, for parts of rows_of x cols_of elements. With
 * `codes`, also the codes and the descales [parts]. */
static inline void linear_round(float *seen, uint8_t *codes, float *descales, const float *v,
                                int64_t rows, int64_t cols, int64_t part_rows, int64_t part_cols) {
    int64_t part = 0;
    for (int64_t r0 = 0; r0 < rows; r0 += part_rows)
        for (int64_t c0 = 0; c0 < cols; c0 += part_cols, part++) {
            float amax = 0, scale = 1, descale = 1;
            for (int64_t r = r0; r < rows && r < r0 + part_rows; r++)
                for (int64_t c = c0; c < cols && c < c0 + part_cols; c++)
                    amax = fmaxf(amax, fabsf(v[r * cols + c]));
            if (amax > 0) scale = 448.0f / amax, descale = amax / 448.0f;
            if (descales) descales[part] = descale;
            for (int64_t r = r0; r < rows && r < r0 + part_rows; r++)
                for (int64_t c = c0; c < cols && c < c0 + part_cols; c++) {
                    const int64_t i = r * cols + c;
                    if (codes) codes[i] = fp8_from_f32(W8, v[i] * scale);
                    seen[i] = linear_code(v[i], scale) * descale;
                }
        }
}

static const float linear_static = 0.011f; /* descale; some values saturate */

static inline void linear_see_x(linear_data *t, const linear_case *c, int64_t tokens) {
    const int64_t n = tokens * c->in;
    if (c->input == FP8_INPUT_DENSE) memcpy(t->x_seen, t->x, (size_t)n * sizeof(float));
    else if (c->input == STATIC || c->input == DELAYED)
        for (int64_t i = 0; i < n; i++)
            t->x_seen[i] = linear_code(t->x[i], 1.0f / linear_static) * linear_static;
    else
        linear_round(t->x_seen, NULL, NULL, t->x, tokens, c->in,
                     c->input == CURRENT ? tokens : 1, c->input == GROUPS ? 128 : c->in);
}

static const uint16_t *linear_source; /* BF16 weights to take instead of random ones; NULL */

static inline float linear_weight(int64_t i, int64_t row, uint64_t *seed) {
    uint16_t code;
    if (!linear_source) return fp8_round_bf16(check_normal(seed) * 0.05f * (float)(1 + row % 7));
    memcpy(&code, (const char *)linear_source + 2 * i, sizeof code);
    return fp8_bf16_to_f32(code);
}

static inline void linear_prepare(linear_data *t, const linear_case *c) {
    uint64_t seed = 5;
    uint8_t *codes = c->weight == W8 ? t->w_raw : NULL;
    const int64_t rows = c->scaling == TENSOR ? c->out : c->scaling == BLOCK ? 128 : 1;

    for (int64_t i = 0; i < c->out * c->in; i++) {
        t->w[i] = linear_weight(i, i / c->in, &seed);
        ((uint16_t *)(void *)t->w_raw)[c->weight == W8 ? 0 : i] = fp8_f32_to_bf16(t->w[i]);
    }
    for (int64_t i = 0; i < MAX_TOKENS * c->in; i++)
        t->x[i] = fp8_round_bf16(check_normal(&seed) * (i / c->in == 3 ? 0.0f : 1.7f));
    for (int64_t i = 0; i < c->out; i++) t->bias[i] = fp8_round_bf16(check_normal(&seed));
    for (int64_t i = 0; i < MAX_TOKENS * c->out; i++)
        t->residual[i] = fp8_round_bf16(check_normal(&seed));
    linear_round(t->w_seen, codes, t->descale, t->w, c->out, c->in, rows,
                 c->scaling == BLOCK ? 128 : c->in);
}

static inline double linear_value(const linear_data *t, const linear_case *c, int64_t i,
                                  int64_t j) {
    double v = 0;
    for (int64_t k = 0; k < c->in; k++)
        v += (double)t->x_seen[i * c->in + k] * (double)t->w_seen[j * c->in + k];
    if (c->bias) v += (double)t->bias[j];
    if (c->gelu) v = v / 2 * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    return v + (c->residual ? (double)t->residual[i * c->out + j] : 0);
}

static inline fp8_linear_spec linear_spec_of(linear_data *t, const linear_case *c) {
    const int64_t blocks = (c->out + 127) / 128 * ((c->in + 127) / 128);
    fp8_linear_spec s = {.name = c->name, .in = c->in, .out = c->out,
                         .weight = fp8_tensor_view(t->w_raw, c->weight, FP8_PLACE_CPU, c->out,
                                                   c->in),
                         .weight_scaling = c->weight == B16 || c->scaling == BLOCK
                                               ? c->scaling : FP8_WEIGHT_AS_GIVEN,
                         .input = c->input, .input_descale = linear_static,
                         .compute = c->compute};
    if (c->weight == W8) {
        s.weight_descale = t->descale;
        s.num_weight_descales = c->scaling == TENSOR ? 1 : c->scaling == BLOCK ? blocks : c->out;
    }
    if (c->bias) s.bias = fp8_tensor_view(t->bias, FP8_DTYPE_F32, FP8_PLACE_CPU, c->out, -1);
    return s;
}

static inline void *linear_place(fp8_device *d, fp8_dtype t, const float *v, int64_t n) {
    void *out = NULL, *raw = malloc((size_t)n * 4 + 4);
    const size_t bytes = (size_t)n * fp8_dtype_size(t);
    for (int64_t i = 0; i < n; i++) {
        if (t == B16) ((uint16_t *)raw)[i] = fp8_f32_to_bf16(v[i]);
        else ((float *)raw)[i] = v[i];
    }
    CHECK_STATUS(fp8_device_alloc(d, &out, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, out, raw, bytes), FP8_OK);
    free(raw);
    return out;
}

/* sum_k |x w|, of t's product i, j. */
static inline double linear_magnitude(const linear_data *t, const linear_case *c, int64_t i,
                                      int64_t j) {
    double v = 0;
    for (int64_t k = 0; k < c->in; k++)
        v += fabs((double)t->x_seen[i * c->in + k] * (double)t->w_seen[j * c->in + k]);
    return v;
}

/* How far a code may be off for what is not the product's rounding: a GPU's tanh is within 2^-11,
 * so x / 2 (1 + tanh) within 2^-9 up to |x| = 8 (beyond, that is less than a step); sums of FP8
 * tensor cores within 2^-10 of the magnitude of what is added, which cancels where a sum is near 0
 * (a model that truncates to 13 bits of the largest addend: 2^-10.9 at most over these cases), and
 * GELU's slope is at most 1.13. */
static inline double linear_room(const linear_data *t, const linear_case *c, int64_t at,
                                 int tensor_cores) {
    const double tanh_room = c->gelu ? 0x1p-9 : 0;
    if (!tensor_cores) return tanh_room;
    return tanh_room + (c->gelu ? 1.13 : 1) * 0x1p-10 *
                           linear_magnitude(t, c, at / c->out, at % c->out);
}

/* got against t's want: E4M3 within a step and mostly equal, others in relative L2. */
static inline void linear_check(const linear_data *t, const linear_case *c, const void *raw,
                                int64_t n, float y_scale, int tensor_cores) {
    const double bound = c->y == B32 ? 1e-3 : 4e-3;
    const double *want = t->want;
    double error = 0, reference = 0, off = 0;

    for (int64_t i = 0; i < n; i++) {
        const double got = c->y == W8    ? (double)fp8_to_f32(W8, ((const uint8_t *)raw)[i])
                           : c->y == B16 ? (double)fp8_bf16_to_f32(((const uint16_t *)raw)[i])
                                         : (double)((const float *)raw)[i];
        if (c->y == W8) {
            const double near = (double)linear_code((float)want[i], y_scale);
            off += got != near;
            if (got == near || fabs(got - near) <= 0.13 * fabs(near) + 0x1p-9 +
                                       (double)y_scale * linear_room(t, c, i, tensor_cores))
                continue;
            if (++check_failures < 10)
                fprintf(stderr, "[%s] element %lld: got code %g, want %g (%g)\n", check_case,
                        (long long)i, got, near, want[i] * (double)y_scale);
            continue;
        }
        error += (got - want[i]) * (got - want[i]);
        reference += want[i] * want[i];
    }
    if (off <= 0.08 * (double)n + 1 && !(sqrt(error / fmax(reference, 1e-30)) > bound)) return;
    fprintf(stderr, "[%s] relative error %.3g, expected at most %.3g; %g of %lld codes differ\n",
            check_case, sqrt(error / reference), bound, off, (long long)n);
    check_failures++;
}

/* Against the numbers as they were before any quantizing. A value v of a group with descale g moves
 * by at most e(v) = max(2^-4 |v|, 2^-10 g), half a step of E4M3; g is at most amax / 448 of it all.
 * So y moves by at most sum |x| e(w) + |w| e(x) + e(x) e(w); then the sum (2^-10 of its
 * magnitude, of FP8 accumulation) and the BF16 store (2^-8). */
static inline void linear_check_unquantized(const linear_data *t, const linear_case *c,
                                            const uint16_t *raw, int64_t tokens) {
    float w_amax = 0, x_amax = 0;

    for (int64_t i = 0; i < c->in * c->out; i++) w_amax = fmaxf(w_amax, fabsf(t->w[i]));
    for (int64_t i = 0; i < c->in * tokens; i++) x_amax = fmaxf(x_amax, fabsf(t->x[i]));
    for (int64_t n = 0; n < tokens * c->out; n++) {
        const float *x = t->x + n / c->out * c->in, *w = t->w + n % c->out * c->in;
        const double got = (double)fp8_bf16_to_f32(raw[n]);
        double want = 0, moved = 0, magnitude = 0;
        for (int64_t k = 0; k < c->in; k++) {
            const double ex = fmax(fabs((double)x[k]) / 16, (double)x_amax / 448 / 1024);
            const double ew = fmax(fabs((double)w[k]) / 16, (double)w_amax / 448 / 1024);
            want += (double)x[k] * (double)w[k];
            magnitude += fabs((double)x[k] * (double)w[k]);
            moved += fabs((double)x[k]) * ew + fabs((double)w[k]) * ex + ex * ew;
        }
        moved += magnitude / 1024;
        if (fabs(got - want) <= moved + (fabs(want) + moved) / 256) continue;
        if (++check_failures < 10)
            fprintf(stderr, "[%s] element %lld: got %g, want %g +- %g\n", check_case, (long long)n,
                    got, want, moved);
    }
}

/* Buffers of a case on the device. */
typedef struct linear_buffers {
    void *x, *y, *residual, *workspace, *codes, *descales, *scales;
} linear_buffers;

static inline void linear_free(fp8_device *d, linear_buffers *b) {
    void *all[] = {b->x, b->y, b->residual, b->workspace, b->codes, b->descales, b->scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(d, all[i]);
}

static inline void linear_run_case(fp8_device *d, const linear_case *c, linear_data *t,
                                   const fp8_linear *l, linear_buffers *b, int64_t tokens,
                                   int ahead) {
    const fp8_place place = fp8_device_place(d);
    const float y_scale = 30, *scales = b->scales;
    fp8_tensor x = fp8_tensor_view(b->x, c->compute, place, tokens, c->in);
    fp8_tensor y = fp8_tensor_view(b->y, c->y, place, tokens, c->out);
    fp8_tensor residual = fp8_tensor_view(b->residual, c->compute, place, tokens, c->out);
    fp8_linear_call call = {.activation = c->gelu ? FP8_GEMM_GELU_TANH : FP8_GEMM_IDENTITY,
                            .residual = c->residual ? &residual : NULL,
                            .y_scale = c->y == W8 ? scales + 2 : NULL,
                            .y_amax = c->amax ? (float *)b->scales + 3 : NULL};
    const size_t bytes = fp8_linear_apply_workspace_size(l, MAX_TOKENS, c->y, &call);
    _Alignas(16) static uint8_t raw[4 * MAX_TOKENS * MAX_OUT];
    float amax = 0, got_amax = 0;

    fp8_device_free(d, b->workspace);
    b->workspace = NULL;
    CHECK_STATUS(fp8_device_alloc(d, &b->workspace, bytes), FP8_OK);
    if (ahead) {
        CHECK_STATUS(fp8_linear_quantize_input(l, b->codes, b->descales, &x), FP8_OK);
        x.data = b->codes, x.dtype = W8;
        call.x_descale = b->descales;
    }
    CHECK_STATUS(fp8_linear_apply(l, &y, &x, &call, b->workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(d, raw, b->y, (size_t)(tokens * c->out) *
                                                       fp8_dtype_size(c->y)), FP8_OK);
    linear_see_x(t, c, tokens);
    for (int64_t i = 0; i < tokens * c->out; i++) {
        t->want[i] = linear_value(t, c, i / c->out, i % c->out);
        amax = fmaxf(amax, fabsf((float)t->want[i]));
    }
    linear_check(t, c, raw, tokens * c->out, y_scale, place == FP8_PLACE_CUDA);
    if (linear_source && c->input != STATIC) linear_check_unquantized(t, c, (uint16_t *)(void *)raw,
                                                                      tokens);
    if (!c->amax) return;
    CHECK_STATUS(fp8_device_download(d, &got_amax, (float *)b->scales + 3, 4), FP8_OK);
    CHECK(fabsf(got_amax - amax) <= 2e-3f * amax);
}

static inline void linear_test(fp8_device *d, const linear_case *c) {
    static const int64_t tokens[] = {1, 4, 17, 64, MAX_TOKENS};
    static linear_data t;
    const float scales[4] = {1.0f / linear_static, linear_static, 30, 1e30f};
    linear_buffers b = {0};
    fp8_linear_spec spec;
    fp8_linear *l = NULL;
    void *slot = NULL;

    check_case = c->name;
    linear_prepare(&t, c);
    spec = linear_spec_of(&t, c);
    CHECK_STATUS(fp8_device_alloc(d, &slot, sizeof(fp8_amax_slot)), FP8_OK);
    CHECK_STATUS(fp8_device_fill(d, slot, 0, sizeof(fp8_amax_slot)), FP8_OK);
    b.x = linear_place(d, c->compute, t.x, MAX_TOKENS * c->in);
    b.residual = linear_place(d, c->compute, t.residual, MAX_TOKENS * c->out);
    b.scales = linear_place(d, B32, scales, 4);
    CHECK_STATUS(fp8_device_alloc(d, &b.y, sizeof(float) * MAX_TOKENS * MAX_OUT), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &b.codes, MAX_TOKENS * MAX_IN), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &b.descales, sizeof(float) * 4 * MAX_TOKENS), FP8_OK);
    spec.delayed_scale = b.scales;
    spec.delayed_descale = (float *)b.scales + 1;
    spec.delayed_amax = slot;
    CHECK_STATUS(fp8_linear_create(&l, d, &spec), FP8_OK);
    for (size_t i = 0; l && i < sizeof tokens / sizeof *tokens; i++) {
        const int can = c->input != FP8_INPUT_DENSE && c->input != CURRENT;
        CHECK(fp8_linear_num_descales(l, tokens[i]) <= 4 * MAX_TOKENS);
        for (int ahead = 0; ahead <= can; ahead++)
            linear_run_case(d, c, &t, l, &b, tokens[i], ahead);
    }
    if (c->input == DELAYED) {
        fp8_amax_slot got;
        float amax = 0;
        for (int64_t i = 0; i < MAX_TOKENS * c->in; i++) amax = fmaxf(amax, fabsf(t.x[i]));
        CHECK_STATUS(fp8_device_download(d, &got, slot, sizeof got), FP8_OK);
        CHECK(got.amax == amax && got.nonfinite == 0);
    }
    fp8_linear_destroy(l);
    fp8_device_free(d, slot);
    linear_free(d, &b);
}

/* Every Linear of a fixture's first layers, as every scaling has it. */
static inline void linear_test_fixture(fp8_device *d, const char *path, int blocks) {
    static const linear_case kinds[] = {
        {"fixture, static", 0, 0, B16, TENSOR, STATIC, B16, B16, 0, 0, 0, 0},
        {"fixture, current", 0, 0, B16, TENSOR, CURRENT, B16, B16, 0, 0, 0, 0},
        {"fixture, token", 0, 0, B16, CHANNEL, TOKEN, B16, B16, 0, 0, 0, 0},
        {"fixture, blocks", 0, 0, B16, BLOCK, GROUPS, B16, B16, 0, 0, 0, 0}};
    fp8_safetensors *file = NULL;
    int tested = 0;

    CHECK_STATUS(fp8_safetensors_open(&file, path), FP8_OK);
    if (!file) return;
    for (int64_t i = 0; i < fp8_safetensors_count(file); i++) {
        const fp8_st_entry *e = fp8_safetensors_at(file, i);
        if (!strstr(e->name, "_proj.weight") || e->tensor.dtype != B16 ||
            e->tensor.shape[0] > MAX_OUT || e->tensor.shape[1] > MAX_IN)
            continue;
        linear_source = e->tensor.data;
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            linear_case c = kinds[k];
            c.out = e->tensor.shape[0], c.in = e->tensor.shape[1];
            if (c.scaling != BLOCK || blocks) linear_test(d, &c);
        }
        tested++;
    }
    linear_source = NULL;
    check_case = "fixture";
    CHECK(tested > 0);
    fp8_safetensors_close(file);
}
#endif
