/* Making a Linear. What the device's product cannot take is converted here, never in the forward:
 *
 *   input      weights as kept                        input of the product
 *   DENSE      the compute type (CPU: as given        x itself
 *              where that is exact)
 *   DENSE      FP8: CPU the codes, CUDA their values  x itself
 *   others     FP8 codes, CUDA: [out, in]             codes
 *              else their values in BF16 (exact)      the codes' values in BF16 */
#include "quant/linear.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/cast_cpu.h"
#include "quant/cuda_ops.h"
#include "quant/linear_impl.h"

enum { CONVERT_GRAIN = 64 * 1024 };

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16;
}

/* Are dense weights quantized when the layer is made? */
static int quantizes_weight(const fp8_linear_spec *s) {
    return !is_fp8(s->weight.dtype) && s->weight_scaling != FP8_WEIGHT_AS_GIVEN;
}

static int has_fp8_weight(const fp8_linear_spec *s) {
    return is_fp8(s->weight.dtype) || quantizes_weight(s);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_weight(const fp8_device *d, const fp8_linear_spec *s) {
    const int kn = s->layout == FP8_WEIGHT_IN_OUT;
    const int64_t rows = kn ? s->in : s->out, cols = kn ? s->out : s->in;
    const fp8_tensor *w = &s->weight;
    char shape[128];

    if (s->in < 1 || s->out < 1)
        return FP8_FAIL(FP8_EINVAL, "%s: in=%lld out=%lld", s->name, (long long)s->in,
                        (long long)s->out);
    if (w->ndim != 2 || w->shape[0] != rows || w->shape[1] != cols || !w->data)
        return FP8_FAIL(FP8_EINVAL, "%s: weight %s%s, expected [%lld, %lld]", s->name,
                        fp8_shape_text(shape, sizeof shape, w->shape, w->ndim),
                        w->data ? "" : " without data", (long long)rows, (long long)cols);
    if (!is_fp8(w->dtype) && !is_real(w->dtype))
        return FP8_FAIL(FP8_EINVAL, "%s: weight of %s", s->name, fp8_dtype_name(w->dtype));
    if (w->place != FP8_PLACE_CPU && w->place != fp8_device_place(d))
        return FP8_FAIL(FP8_EINVAL, "%s: weight in CUDA memory for a layer on the CPU", s->name);
    if (kn && (w->place != FP8_PLACE_CPU || quantizes_weight(s) ||
               s->weight_scaling == FP8_WEIGHT_BLOCKS))
        return FP8_FAIL(FP8_EINVAL, "%s: weights [in, out] must be in host memory, are not "
                        "quantized here and have no blocks", s->name);
    return FP8_OK;
}

static fp8_status check_descales(const fp8_linear_spec *s) {
    const int64_t count = s->num_weight_descales;
    const int64_t blocks = fp8_blocks_of(s->out) * fp8_blocks_of(s->in);

    if (s->weight_scaling == FP8_WEIGHT_BLOCKS && is_fp8(s->weight.dtype)) {
        if (count == blocks && s->weight_descale) return FP8_OK;
        return FP8_FAIL(FP8_EINVAL, "%s: %lld block descales%s, expected %lld", s->name,
                        (long long)count, s->weight_descale ? "" : " that are NULL",
                        (long long)blocks);
    }
    if (is_fp8(s->weight.dtype) && s->weight_scaling != FP8_WEIGHT_AS_GIVEN)
        return FP8_FAIL(FP8_EINVAL, "%s: weights of %s are not quantized again", s->name,
                        fp8_dtype_name(s->weight.dtype));
    if (count != 0 && (!is_fp8(s->weight.dtype) || !s->weight_descale ||
                       (count != 1 && count != s->out)))
        return FP8_FAIL(FP8_EINVAL, "%s: %lld weight descales for %s, expected 0, 1 or %lld of FP8",
                        s->name, (long long)count, fp8_dtype_name(s->weight.dtype),
                        (long long)s->out);
    return FP8_OK;
}

static fp8_status check_input(const fp8_linear_spec *s) {
    const int blocks = s->weight_scaling == FP8_WEIGHT_BLOCKS;

    if (s->input != FP8_INPUT_DENSE && !has_fp8_weight(s))
        return FP8_FAIL(FP8_EINVAL, "%s: a quantized input with %s weights", s->name,
                        fp8_dtype_name(s->weight.dtype));
    if (blocks != (s->input == FP8_INPUT_GROUPS))
        return FP8_FAIL(FP8_EINVAL, "%s: weights in blocks and inputs in groups go together",
                        s->name);
    if (s->input == FP8_INPUT_STATIC && !(s->input_descale > 0 && isfinite(s->input_descale)))
        return FP8_FAIL(FP8_EINVAL, "%s: input descale %g", s->name, (double)s->input_descale);
    if (s->input == FP8_INPUT_DELAYED && (!s->delayed_scale || !s->delayed_descale))
        return FP8_FAIL(FP8_EINVAL, "%s: delayed scaling without scale and descale", s->name);
    return FP8_OK;
}

static fp8_status check_spec(const fp8_device *d, const fp8_linear_spec *s) {
    fp8_status st;

    FP8_TRY(check_weight(d, s));
    FP8_TRY(check_descales(s));
    FP8_TRY(check_input(s));
    if (s->compute != FP8_DTYPE_BF16 && s->compute != FP8_DTYPE_F32)
        st = FP8_FAIL(FP8_EINVAL, "%s: computes in %s, expected BF16 or F32", s->name,
                      fp8_dtype_name(s->compute));
    else if (s->bias.data && (s->bias.ndim != 1 || s->bias.shape[0] != s->out ||
                              !is_real(s->bias.dtype) || s->bias.place != FP8_PLACE_CPU))
        st = FP8_FAIL(FP8_EINVAL, "%s: bias must be F32, BF16 or F16 [%lld] in host memory",
                      s->name, (long long)s->out);
    else if (s->borrow_weight &&
             (s->weight.place != fp8_device_place(d) || quantizes_weight(s)))
        st = FP8_FAIL(FP8_EINVAL, "%s: only weights in the place of the device, and used as they "
                      "are, can be borrowed", s->name);
done:
    return st;
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

/* *out = a copy in the place of the device of n bytes that lie in `place`. */
static fp8_status place_copy(fp8_device *d, void **out, const void *in, fp8_place place,
                             size_t bytes) {
    fp8_status st;
    FP8_TRY(fp8_device_alloc(d, out, bytes));
    FP8_TRY((place == FP8_PLACE_CPU ? fp8_device_upload : fp8_device_copy)(d, *out, in, bytes));
done:
    return st;
}

/* A product of the layer's kind, pointers aside. */
static fp8_gemm example(const fp8_linear_spec *s, int kn) {
    _Alignas(16) static const float any[4] = {1}; /* only that it is there, on 16 bytes, counts */
    const int blocks = s->weight_scaling == FP8_WEIGHT_BLOCKS;
    return (fp8_gemm){.m = 16, .n = s->out, .k = s->in, .lda = s->in,
                      .ldb = kn ? s->out : s->in, .ldd = s->out, .a_dtype = FP8_DTYPE_E4M3,
                      .b_dtype = quantizes_weight(s) ? FP8_DTYPE_E4M3 : s->weight.dtype,
                      .d_dtype = s->compute, .b_is_kn = kn, .alpha = 1,
                      .scaling = blocks ? FP8_GEMM_BLOCKS : FP8_GEMM_ROWS,
                      .a_descale = blocks ? any : NULL, .b_descale = blocks ? any : NULL,
                      .a_descale_ld = 16, .b_descale_ld = fp8_up_to_4(fp8_blocks_of(s->in))};
}

/* Can the device multiply E4M3 codes by these weights as [out, in] codes? */
static int multiplies_codes(const fp8_device *d, const fp8_linear_spec *s) {
    const int kn = s->layout == FP8_WEIGHT_IN_OUT && fp8_device_place(d) == FP8_PLACE_CPU;
    const fp8_gemm g = example(s, kn);
    return fp8_gemm_supported(d, &g);
}

/* The table at the top of this file. */
static fp8_status choose_types(fp8_linear *l, const fp8_linear_spec *s) {
    const int on_cpu = fp8_device_place(l->device) == FP8_PLACE_CPU;
    const fp8_dtype given = quantizes_weight(s) ? FP8_DTYPE_E4M3 : s->weight.dtype;

    l->weight_is_kn = s->layout == FP8_WEIGHT_IN_OUT;
    if (s->input == FP8_INPUT_DENSE) {
        const int exact = is_fp8(given) || s->compute == FP8_DTYPE_F32;
        l->operand = s->compute;
        l->weight_dtype = on_cpu && exact ? given : s->compute;
    } else if (multiplies_codes(l->device, s)) {
        l->operand = FP8_DTYPE_E4M3;
        l->weight_dtype = given;
        if (!on_cpu) l->weight_is_kn = 0;
    } else if (s->weight_scaling == FP8_WEIGHT_BLOCKS) {
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: 128 x 128 blocks of [%lld, %lld] on %s: they need "
                        "Hopper, cuBLAS 12.9, and sizes that are multiples of 16", l->name,
                        (long long)s->out, (long long)s->in, fp8_device_name(l->device));
    } else {
        l->operand = l->weight_dtype = FP8_DTYPE_BF16;
    }
    return FP8_OK;
}

static fp8_status place_weight(fp8_linear *l, const fp8_linear_spec *s) {
    const size_t bytes = (size_t)(s->in * s->out) * fp8_dtype_size(l->weight_dtype);
    const int as_kept = l->weight_dtype == s->weight.dtype &&
                        l->weight_is_kn == (s->layout == FP8_WEIGHT_IN_OUT);

    if (s->weight.place != FP8_PLACE_CPU && !as_kept)
        return FP8_FAIL(FP8_EINVAL, "%s: weights in device memory are %s, expected %s as the "
                        "product takes them", s->name, fp8_dtype_name(s->weight.dtype),
                        fp8_dtype_name(l->weight_dtype));
    if (s->borrow_weight && s->weight.place != FP8_PLACE_CPU && (uintptr_t)s->weight.data % 16)
        return FP8_FAIL(FP8_EINVAL, "%s: borrowed weights must lie on 16 bytes", s->name);
    if (s->borrow_weight && as_kept) {
        l->weight = s->weight.data;
        l->borrowed = 1;
        return FP8_OK;
    }
    if (s->weight.place != FP8_PLACE_CPU)
        return place_copy(l->device, &l->weight, s->weight.data, s->weight.place, bytes);
    if (s->layout == FP8_WEIGHT_IN_OUT && !l->weight_is_kn)
        return place_transposed(l->device, &l->weight, s);
    return place_converted(l->device, &l->weight, l->weight_dtype, s->weight.data,
                           s->weight.dtype, s->in * s->out);
}

/* Rows of block descales, padded as the product wants them. */
static fp8_status place_blocks(fp8_linear *l, const fp8_linear_spec *s) {
    const int64_t rows = fp8_blocks_of(s->out), cols = fp8_blocks_of(s->in);
    const int64_t ld = fp8_up_to_4(cols);
    void *p = NULL;
    fp8_status st;

    FP8_TRY(fp8_device_alloc(l->device, &p, (size_t)(rows * ld) * sizeof(float)));
    l->weight_descale = p;
    FP8_TRY(fp8_device_fill(l->device, p, 0, (size_t)(rows * ld) * sizeof(float)));
    for (int64_t r = 0; r < rows; r++)
        FP8_TRY((s->weight.place == FP8_PLACE_CPU ? fp8_device_upload : fp8_device_copy)(
            l->device, l->weight_descale + r * ld, s->weight_descale + r * cols,
            (size_t)cols * sizeof(float)));
done:
    return st;
}

static fp8_status place_descales(fp8_linear *l, const fp8_linear_spec *s) {
    void *p = NULL;
    fp8_status st;

    if (l->in_blocks) return place_blocks(l, s);
    if (s->num_weight_descales == 0) return FP8_OK;
    l->num_weight_descales = s->num_weight_descales;
    st = place_copy(l->device, &p, s->weight_descale, s->weight.place,
                    (size_t)s->num_weight_descales * sizeof(float));
    l->weight_descale = p;
    return st;
}

/* Codes and descales from dense weights; their values where the product cannot take codes. */
static fp8_status quantize_weight(fp8_linear *l, const fp8_linear_spec *s) {
    const size_t bytes = (size_t)(s->in * s->out) * fp8_dtype_size(s->weight.dtype);
    const int upload = s->weight.place != fp8_device_place(l->device);
    void *dense = NULL, *codes = NULL;
    fp8_status st = FP8_OK;

    if (upload) FP8_TRY(place_copy(l->device, &dense, s->weight.data, FP8_PLACE_CPU, bytes));
    st = fp8_linear_quantize_weight(l->device, &codes, &l->weight_descale,
                                    dense ? dense : s->weight.data, s->weight.dtype, s->out, s->in,
                                    s->weight_scaling);
    l->weight = codes;
    FP8_TRY(st);
    if (!l->in_blocks)
        l->num_weight_descales = s->weight_scaling == FP8_WEIGHT_CHANNEL ? s->out : 1;
    if (is_fp8(l->weight_dtype)) goto done;
    l->weight = NULL;
    st = fp8_device_alloc(l->device, &l->weight,
                          (size_t)(s->in * s->out) * fp8_dtype_size(l->weight_dtype));
    if (st == FP8_OK)
        st = fp8_dequantize(l->device, l->weight, l->weight_dtype, codes, FP8_DTYPE_E4M3,
                            s->in * s->out, NULL);
    if (st == FP8_OK) st = fp8_device_sync(l->device);
    fp8_device_free(l->device, codes);
done:
    fp8_device_free(l->device, dense);
    return st;
}

static fp8_status place_input_pair(fp8_linear *l, const fp8_linear_spec *s) {
    float pair[2 * FP8_PAIR_STEP] = {1, 1};
    void *p = NULL;
    fp8_status st;

    if (s->input != FP8_INPUT_STATIC && s->input != FP8_INPUT_CURRENT) return FP8_OK;
    if (s->input == FP8_INPUT_STATIC) {
        pair[0] = s->input_descale;
        pair[FP8_PAIR_STEP] = 1.0f / s->input_descale;
    }
    st = place_copy(l->device, &p, pair, FP8_PLACE_CPU, sizeof pair);
    l->input_pair = p;
    return st;
}

static void take_spec(fp8_linear *l, fp8_device *d, const fp8_linear_spec *s) {
    snprintf(l->name, sizeof l->name, "%s", s->name);
    l->device = d;
    l->in = s->in;
    l->out = s->out;
    l->compute = s->compute;
    l->input = s->input;
    l->input_descale = s->input_descale;
    l->delayed_scale = s->delayed_scale;
    l->delayed_descale = s->delayed_descale;
    l->delayed_amax = s->delayed_amax;
    l->in_blocks = s->weight_scaling == FP8_WEIGHT_BLOCKS;
    l->bias_dtype = s->compute;
}

fp8_status fp8_linear_create(fp8_linear **out, fp8_device *d, const fp8_linear_spec *spec) {
    fp8_linear_spec s = *spec;
    fp8_linear *l = NULL;
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s.name) s.name = "linear";
    FP8_TRY(check_spec(d, &s));
    FP8_TRY(fp8_shape_bytes(&bytes, FP8_DTYPE_F32, s.weight.shape, 2));
    l = calloc(1, sizeof *l);
    if (!l) {
        st = FP8_FAIL(FP8_ENOMEM, "%s", s.name);
        goto done;
    }
    take_spec(l, d, &s);
    FP8_TRY(choose_types(l, &s));
    if (quantizes_weight(&s)) FP8_TRY(quantize_weight(l, &s));
    else {
        FP8_TRY(place_weight(l, &s));
        FP8_TRY(place_descales(l, &s));
    }
    if (s.bias.data)
        FP8_TRY(place_converted(d, &l->bias, l->bias_dtype, s.bias.data, s.bias.dtype, s.out));
    FP8_TRY(place_input_pair(l, &s));
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
fp8_dtype fp8_linear_compute(const fp8_linear *l) { return l->compute; }
fp8_input_scaling fp8_linear_input_scaling(const fp8_linear *l) { return l->input; }
const void *fp8_linear_dense_weight(const fp8_linear *l, fp8_dtype dtype) {
    return !l->weight_is_kn && is_real(dtype) && l->weight_dtype == dtype ? l->weight : NULL;
}

float fp8_linear_input_descale(const fp8_linear *l) { return l->input_descale; }
