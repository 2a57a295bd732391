/* One path for every device: quantize the input if the layer says so, then a matrix product with
 * the descales applied at its store. What the device's product cannot take is converted when the
 * layer is made, never in the forward:
 *
 *   operand    weights as kept                        input of the product
 *   DENSE      the compute type (CPU: as given        x itself
 *              where that is exact)
 *   DENSE      FP8: CPU the codes, CUDA their values  x itself
 *   STATIC,    FP8 codes, CUDA: [out, in]             E4M3 codes
 *   DYNAMIC    else their values in BF16 (exact)      the codes' values in BF16 */
#include "quant/linear.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/cast_cpu.h"
#include "quant/cuda_ops.h"

enum { ALIGN_BYTES = 256, CONVERT_GRAIN = 64 * 1024 };

struct fp8_linear {
    fp8_device *device;
    char name[256];
    int64_t in, out;
    fp8_dtype compute, operand; /* operand: type of the product's A */
    fp8_input_scaling input;
    float input_descale;
    float *input_pair; /* place of the device: descale, scale; STATIC only */
    void *weight;      /* place of the device */
    int borrowed;      /* weight is the caller's */
    fp8_dtype weight_dtype;
    int weight_is_kn;
    float *weight_descale; /* place of the device; NULL = 1 */
    int64_t num_weight_descales;
    void *bias; /* place of the device; NULL = none */
    fp8_dtype bias_dtype;
};

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_weight(const fp8_linear_spec *s) {
    const int kn = s->layout == FP8_WEIGHT_IN_OUT;
    const int64_t rows = kn ? s->in : s->out, cols = kn ? s->out : s->in;
    const fp8_tensor *w = &s->weight;
    char shape[128];

    if (s->in < 1 || s->out < 1)
        return FP8_FAIL(FP8_EINVAL, "%s: in=%lld out=%lld", s->name, (long long)s->in,
                        (long long)s->out);
    if (w->ndim != 2 || w->shape[0] != rows || w->shape[1] != cols || !w->data ||
        w->place != FP8_PLACE_CPU)
        return FP8_FAIL(FP8_EINVAL, "%s: weight %s%s, expected [%lld, %lld] in host memory",
                        s->name, fp8_shape_text(shape, sizeof shape, w->shape, w->ndim),
                        w->data ? "" : " without data", (long long)rows, (long long)cols);
    if (!is_fp8(w->dtype) && !is_real(w->dtype))
        return FP8_FAIL(FP8_EINVAL, "%s: weight of %s", s->name, fp8_dtype_name(w->dtype));
    return FP8_OK;
}

static fp8_status check_spec(const fp8_device *d, const fp8_linear_spec *s) {
    const int quantized = is_fp8(s->weight.dtype);
    const int64_t count = s->num_weight_descales;

    if (count != 0 && (!quantized || !s->weight_descale || (count != 1 && count != s->out)))
        return FP8_FAIL(FP8_EINVAL, "%s: %lld weight descales for %s, expected 0, 1 or %lld of FP8",
                        s->name, (long long)count, fp8_dtype_name(s->weight.dtype),
                        (long long)s->out);
    if (s->input != FP8_INPUT_DENSE && !quantized)
        return FP8_FAIL(FP8_EINVAL, "%s: a quantized input with %s weights", s->name,
                        fp8_dtype_name(s->weight.dtype));
    if (s->input == FP8_INPUT_STATIC && !(s->input_descale > 0 && isfinite(s->input_descale)))
        return FP8_FAIL(FP8_EINVAL, "%s: input descale %g", s->name, (double)s->input_descale);
    if (s->compute != FP8_DTYPE_BF16 && s->compute != FP8_DTYPE_F32)
        return FP8_FAIL(FP8_EINVAL, "%s: computes in %s, expected BF16 or F32", s->name,
                        fp8_dtype_name(s->compute));
    if (s->bias.data && (s->bias.ndim != 1 || s->bias.shape[0] != s->out ||
                         !is_real(s->bias.dtype) || s->bias.place != FP8_PLACE_CPU))
        return FP8_FAIL(FP8_EINVAL, "%s: bias must be F32, BF16 or F16 [%lld] in host memory",
                        s->name, (long long)s->out);
    if (s->borrow_weight && fp8_device_place(d) != FP8_PLACE_CPU)
        return FP8_FAIL(FP8_EINVAL, "%s: only the CPU can borrow weights", s->name);
    return FP8_OK;
}

/* ---- making ---------------------------------------------------------------------------------- */

typedef struct convert_job {
    const fp8_simd *s;
    char *out;
    const char *in;
    fp8_dtype to, from;
} convert_job;

static fp8_status convert_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const convert_job *j = ctx;
    const int64_t in_size = (int64_t)fp8_dtype_size(j->from);
    const int64_t out_size = (int64_t)fp8_dtype_size(j->to);
    _Alignas(64) float buf[1024];

    (void)worker;
    for (int64_t i = begin; i < end; i += 1024) {
        const int64_t n = end - i < 1024 ? end - i : 1024;
        j->s->widen(buf, j->in + i * in_size, j->from, n);
        j->s->narrow(j->out + i * out_size, j->to, buf, n);
    }
    return FP8_OK;
}

/* *out = a new buffer in the place of the device with n elements of `in` (host) as type `to`. */
static fp8_status place_converted(fp8_device *d, void **out, fp8_dtype to, const void *in,
                                  fp8_dtype from, int64_t n) {
    const size_t bytes = (size_t)n * fp8_dtype_size(to);
    convert_job job = {fp8_simd_best(), NULL, in, to, from};
    void *host = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_alloc(d, out, bytes));
    if (to == from) {
        FP8_TRY(fp8_device_upload(d, *out, in, bytes));
        goto done;
    }
    if (fp8_device_place(d) == FP8_PLACE_CPU) job.out = *out;
    else {
        FP8_TRY(fp8_device_alloc_host(d, &host, bytes));
        job.out = host;
    }
    FP8_TRY(fp8_parallel_for(fp8_device_pool(d), n, CONVERT_GRAIN, convert_piece, &job));
    if (host) FP8_TRY(fp8_device_upload(d, *out, host, bytes));
done:
    fp8_device_free_host(d, host);
    return st;
}

/* *out = codes [out, in] in the place of the device from codes [in, out] on the host. */
static fp8_status place_transposed(fp8_device *d, void **out, const fp8_linear_spec *s) {
    const size_t bytes = (size_t)(s->in * s->out);
    void *host = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_alloc_host(d, &host, bytes));
    FP8_TRY(fp8_cpu_transpose_codes(fp8_device_pool(d), host, s->weight.data, s->in, s->out));
    FP8_TRY(fp8_device_alloc(d, out, bytes));
    FP8_TRY(fp8_device_upload(d, *out, host, bytes));
done:
    fp8_device_free_host(d, host);
    return st;
}

/* Can the device multiply E4M3 codes by these weights as [out, in] codes? */
static int multiplies_codes(const fp8_device *d, const fp8_linear_spec *s) {
    const int kn = s->layout == FP8_WEIGHT_IN_OUT && fp8_device_place(d) == FP8_PLACE_CPU;
    const fp8_gemm g = {.m = 16, .n = s->out, .k = s->in, .lda = s->in,
                        .ldb = kn ? s->out : s->in, .ldd = s->out, .a_dtype = FP8_DTYPE_E4M3,
                        .b_dtype = s->weight.dtype, .d_dtype = s->compute, .b_is_kn = kn,
                        .alpha = 1};
    return fp8_gemm_supported(d, &g);
}

/* The table at the top of this file. */
static void choose_types(fp8_linear *l, const fp8_linear_spec *s) {
    const int on_cpu = fp8_device_place(l->device) == FP8_PLACE_CPU;
    const fp8_dtype given = s->weight.dtype;

    l->weight_is_kn = s->layout == FP8_WEIGHT_IN_OUT;
    if (s->input == FP8_INPUT_DENSE) {
        const int exact = is_fp8(given) || s->compute == FP8_DTYPE_F32;
        l->operand = s->compute;
        l->weight_dtype = on_cpu && exact ? given : s->compute;
    } else if (multiplies_codes(l->device, s)) {
        l->operand = FP8_DTYPE_E4M3;
        l->weight_dtype = given;
        if (!on_cpu) l->weight_is_kn = 0;
    } else {
        l->operand = l->weight_dtype = FP8_DTYPE_BF16;
    }
}

static fp8_status place_weight(fp8_linear *l, const fp8_linear_spec *s) {
    if (s->borrow_weight && l->weight_dtype == s->weight.dtype) {
        l->weight = s->weight.data;
        l->borrowed = 1;
        return FP8_OK;
    }
    if (s->layout == FP8_WEIGHT_IN_OUT && !l->weight_is_kn)
        return place_transposed(l->device, &l->weight, s);
    return place_converted(l->device, &l->weight, l->weight_dtype, s->weight.data,
                           s->weight.dtype, s->in * s->out);
}

fp8_status fp8_linear_create(fp8_linear **out, fp8_device *d, const fp8_linear_spec *spec) {
    fp8_linear_spec s = *spec;
    fp8_linear *l = NULL;
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s.name) s.name = "linear";
    FP8_TRY(check_weight(&s));
    FP8_TRY(check_spec(d, &s));
    FP8_TRY(fp8_shape_bytes(&bytes, FP8_DTYPE_F32, s.weight.shape, 2));
    l = calloc(1, sizeof *l);
    if (!l) {
        st = FP8_FAIL(FP8_ENOMEM, "%s", s.name);
        goto done;
    }
    snprintf(l->name, sizeof l->name, "%s", s.name);
    l->device = d;
    l->in = s.in;
    l->out = s.out;
    l->compute = s.compute;
    l->input = s.input;
    choose_types(l, &s);
    FP8_TRY(place_weight(l, &s));
    if (s.num_weight_descales > 0) {
        l->num_weight_descales = s.num_weight_descales;
        FP8_TRY(place_converted(d, (void **)&l->weight_descale, FP8_DTYPE_F32, s.weight_descale,
                                FP8_DTYPE_F32, s.num_weight_descales));
    }
    if (s.bias.data) {
        const int exact = fp8_device_place(d) == FP8_PLACE_CPU && s.compute == FP8_DTYPE_F32;
        l->bias_dtype = exact ? s.bias.dtype : s.compute;
        FP8_TRY(place_converted(d, &l->bias, l->bias_dtype, s.bias.data, s.bias.dtype, s.out));
    }
    if (s.input == FP8_INPUT_STATIC) {
        const float pair[2] = {s.input_descale, 1.0f / s.input_descale};
        l->input_descale = s.input_descale;
        FP8_TRY(place_converted(d, (void **)&l->input_pair, FP8_DTYPE_F32, pair, FP8_DTYPE_F32,
                                2));
    }
    *out = l;
    l = NULL;
done:
    fp8_linear_destroy(l);
    return st;
}

void fp8_linear_destroy(fp8_linear *l) {
    if (!l) return;
    if (!l->borrowed) fp8_device_free(l->device, l->weight);
    fp8_device_free(l->device, l->weight_descale);
    fp8_device_free(l->device, l->bias);
    fp8_device_free(l->device, l->input_pair);
    free(l);
}

int64_t fp8_linear_in(const fp8_linear *l) { return l->in; }
int64_t fp8_linear_out(const fp8_linear *l) { return l->out; }
fp8_input_scaling fp8_linear_input_scaling(const fp8_linear *l) { return l->input; }
float fp8_linear_input_descale(const fp8_linear *l) { return l->input_descale; }

/* ---- running --------------------------------------------------------------------------------- */

/* Byte offsets into the workspace of a forward over `tokens`. */
typedef struct linear_layout {
    size_t codes, descale, values, product, bytes;
} linear_layout;

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at = (begin + bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return begin;
}

static fp8_gemm product_of(const fp8_linear *l, int64_t tokens) {
    return (fp8_gemm){.m = tokens,
                      .n = l->out,
                      .k = l->in,
                      .b = l->weight,
                      .lda = l->in,
                      .ldb = l->weight_is_kn ? l->out : l->in,
                      .ldd = l->out,
                      .a_dtype = l->operand,
                      .b_dtype = l->weight_dtype,
                      .d_dtype = l->compute,
                      .b_is_kn = l->weight_is_kn,
                      .alpha = 1,
                      .b_descale = l->weight_descale,
                      .a_descale_count = l->input == FP8_INPUT_DYNAMIC ? tokens : 1,
                      .b_descale_count = l->num_weight_descales,
                      .bias = l->bias,
                      .bias_dtype = l->bias_dtype};
}

static linear_layout layout_of(const fp8_linear *l, int64_t tokens) {
    const size_t elements = (size_t)tokens * (size_t)l->in;
    const int quantizes = l->input != FP8_INPUT_DENSE;
    const int by_value = quantizes && l->operand == FP8_DTYPE_BF16;
    fp8_gemm g = product_of(l, tokens);
    linear_layout w = {0};
    size_t at = 0;

    if (quantizes) { /* whether x comes as codes is not known here: room for both */
        static const float one = 1;
        g.a_descale = &one; /* only its presence counts */
        w.codes = claim(&at, elements);
        w.descale = claim(&at, (size_t)tokens * sizeof(float));
    }
    if (by_value) w.values = claim(&at, 2 * elements);
    w.product = claim(&at, fp8_gemm_workspace_size(l->device, &g));
    w.bytes = at;
    return w;
}

size_t fp8_linear_workspace_size(const fp8_linear *l, int64_t max_tokens) {
    return max_tokens > 0 ? layout_of(l, max_tokens).bytes : 0;
}

static fp8_status check_input(const fp8_linear *l, const fp8_tensor *x) {
    char shape[128];
    if (x->ndim == 2 && x->shape[0] >= 0 && x->shape[1] == l->in &&
        x->place == fp8_device_place(l->device))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: input %s, expected [tokens, %lld] in the place of the device",
                    l->name, fp8_shape_text(shape, sizeof shape, x->shape, x->ndim),
                    (long long)l->in);
}

static fp8_status check_forward(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                                const float *x_descale) {
    const int codes = x->dtype == FP8_DTYPE_E4M3 && l->input != FP8_INPUT_DENSE;
    char shape[128];
    fp8_status st = FP8_OK;

    FP8_TRY(check_input(l, x));
    if (y->ndim != 2 || y->shape[0] != x->shape[0] || y->shape[1] != l->out ||
        y->dtype != l->compute || y->place != x->place)
        st = FP8_FAIL(FP8_EINVAL, "%s: output %s %s, expected %s [%lld, %lld] beside the input",
                      l->name, fp8_dtype_name(y->dtype),
                      fp8_shape_text(shape, sizeof shape, y->shape, y->ndim),
                      fp8_dtype_name(l->compute), (long long)x->shape[0], (long long)l->out);
    else if (!codes && x->dtype != l->compute)
        st = FP8_FAIL(FP8_EINVAL, "%s: input of %s, expected %s%s", l->name,
                      fp8_dtype_name(x->dtype), fp8_dtype_name(l->compute),
                      l->input == FP8_INPUT_DENSE ? "" : " or F8_E4M3");
    else if (codes && !x_descale)
        st = FP8_FAIL(FP8_EINVAL, "%s: codes without their descale", l->name);
done:
    return st;
}

/* codes = the quantized x; *used = the layer's constant descale, or `descale`, filled in. */
static fp8_status quantize_input(const fp8_linear *l, uint8_t *codes, float *descale,
                                 const float **used, const fp8_tensor *x) {
    const int64_t tokens = x->shape[0];

    if (l->input == FP8_INPUT_STATIC) {
        *used = l->input_pair;
        return fp8_quantize(l->device, codes, FP8_DTYPE_E4M3, x->data, x->dtype, tokens * l->in,
                            l->input_pair + 1);
    }
    *used = descale;
    return fp8_quantize_groups(l->device, codes, FP8_DTYPE_E4M3, descale, x->data, x->dtype,
                               tokens, l->in, 0);
}

fp8_status fp8_linear_sink(const fp8_linear *l, fp8_sink *out, const float **x_descale,
                           uint8_t *codes, float *descales) {
    const int own = l->input == FP8_INPUT_DYNAMIC;

    if (l->input == FP8_INPUT_DENSE)
        return FP8_FAIL(FP8_EINVAL, "%s: a sink for an input that is not quantized", l->name);
    *out = (fp8_sink){.codes = codes,
                      .code = FP8_DTYPE_E4M3,
                      .scaling = own ? FP8_SINK_TOKEN : FP8_SINK_STATIC,
                      .scale = own ? NULL : l->input_pair + 1,
                      .descale = descales};
    *x_descale = own ? descales : l->input_pair;
    return FP8_OK;
}

fp8_status fp8_linear_quantize_input(const fp8_linear *l, uint8_t *codes, float *descale,
                                     const fp8_tensor *x) {
    const float *used = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(check_input(l, x));
    if (l->input == FP8_INPUT_DENSE || x->dtype != l->compute) {
        st = FP8_FAIL(FP8_EINVAL, "%s: input of %s to quantize, expected %s", l->name,
                      fp8_dtype_name(x->dtype),
                      l->input == FP8_INPUT_DENSE ? "none" : fp8_dtype_name(l->compute));
        goto done;
    }
    FP8_TRY(quantize_input(l, codes, descale, &used, x));
    if (used != descale)
        FP8_TRY(fp8_device_copy(l->device, descale, used, sizeof *descale));
done:
    return st;
}

/* Makes x into what the product takes: fills in g's A and its descale, using the workspace. */
static fp8_status prepare_input(const fp8_linear *l, fp8_gemm *g, const fp8_tensor *x,
                                const float *x_descale, char *base, const linear_layout *at) {
    const int given = x->dtype == FP8_DTYPE_E4M3;
    fp8_status st = FP8_OK;

    g->a = x->data;
    if (l->input == FP8_INPUT_DENSE) goto done;
    g->a_descale = x_descale;
    if (!given) {
        float *const descale = (float *)(void *)(base + at->descale);
        FP8_TRY(quantize_input(l, (uint8_t *)base + at->codes, descale, &g->a_descale, x));
        g->a = base + at->codes;
    }
    if (l->operand == FP8_DTYPE_E4M3) goto done;
    FP8_TRY(fp8_dequantize(l->device, base + at->values, l->operand, g->a, FP8_DTYPE_E4M3,
                           x->shape[0] * l->in, NULL));
    g->a = base + at->values;
done:
    return st;
}

fp8_status fp8_linear_forward(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                              const float *x_descale, fp8_accumulate accumulate, void *workspace,
                              size_t workspace_bytes) {
    char *const base = workspace;
    fp8_status st = FP8_OK;
    linear_layout at;
    fp8_gemm g;

    FP8_TRY(check_forward(l, y, x, x_descale));
    if (x->shape[0] == 0) goto done;
    at = layout_of(l, x->shape[0]);
    if (workspace_bytes < at.bytes) {
        st = FP8_FAIL(FP8_EINVAL, "%s: workspace of %zu bytes, expected %zu for %lld tokens",
                      l->name, workspace_bytes, at.bytes, (long long)x->shape[0]);
        goto done;
    }
    g = product_of(l, x->shape[0]);
    g.d = y->data;
    g.accumulate = accumulate;
    FP8_TRY(prepare_input(l, &g, x, x_descale, base, &at));
    FP8_TRY(fp8_gemm_run(l->device, &g, base + at.product, workspace_bytes - at.product));
done:
    return st;
}
