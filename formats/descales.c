#include "formats/descales.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"

static int64_t blocks_of(int64_t n) { return (n + FP8_DIALECT_BLOCK - 1) / FP8_DIALECT_BLOCK; }

fp8_status fp8_descale_shape(int64_t *shape, int32_t *ndim, int64_t *count, fp8_dialect dialect,
                             fp8_scheme scheme, int64_t rows, int64_t cols, int in_out) {
    const fp8_dialect_row *row = fp8_dialect_get(dialect);

    shape[0] = shape[1] = 1;
    *ndim = row->one_ndim;
    *count = 1;
    if (scheme != FP8_SCHEME_DYNAMIC && scheme != FP8_SCHEME_BLOCK && scheme != FP8_SCHEME_MX)
        return FP8_OK;
    if (in_out && (scheme != FP8_SCHEME_DYNAMIC || row->channel_ndim != 2))
        return FP8_FAIL(FP8_EUNSUPPORTED, "dialect %s cannot say how weights kept [in, out] are "
                        "scaled by %s", row->name, fp8_scheme_name(scheme));
    if (scheme == FP8_SCHEME_MX && cols % FP8_DIALECT_MX)
        return FP8_FAIL(FP8_EUNSUPPORTED, "scheme mxfp8 takes a multiple of %d columns, found %lld",
                        FP8_DIALECT_MX, (long long)cols);
    *ndim = scheme != FP8_SCHEME_DYNAMIC ? 2 : row->channel_ndim;
    if (scheme == FP8_SCHEME_BLOCK) {
        shape[0] = blocks_of(rows);
        shape[1] = blocks_of(cols);
    } else if (scheme == FP8_SCHEME_MX) {
        shape[0] = rows;
        shape[1] = cols / FP8_DIALECT_MX;
    } else {
        shape[in_out] = in_out ? cols : rows;
    }
    *count = shape[0] * shape[1];
    return FP8_OK;
}

int fp8_descale_dtype(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_E8M0;
}

float fp8_descale_at(const fp8_tensor *t, int64_t i) {
    const unsigned char *p = (const unsigned char *)t->data + (size_t)i * fp8_dtype_size(t->dtype);
    uint16_t half;
    float f;

    if (t->dtype == FP8_DTYPE_E8M0 || t->dtype == FP8_DTYPE_U8)
        return *p == 0xff ? NAN : ldexpf(1.0f, *p - 127);
    if (t->dtype == FP8_DTYPE_F32) {
        memcpy(&f, p, sizeof f);
        return f;
    }
    memcpy(&half, p, sizeof half);
    return t->dtype == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
}

static fp8_status find(const fp8_st_entry **out, const fp8_checkpoint *c, const char *name) {
    const fp8_st_entry *e = fp8_checkpoint_find(c, name);

    *out = e;
    if (!e) return FP8_FAIL(FP8_ENOTFOUND, "%s: no tensor '%s'", fp8_checkpoint_path(c), name);
    if (fp8_descale_dtype(e->tensor.dtype)) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "'%s': expected BF16, F16 or F32, found %s", name,
                    fp8_dtype_name(e->tensor.dtype));
}

static fp8_status copy(float **out, int64_t *count, const fp8_st_entry *e) {
    const int64_t n = fp8_tensor_count(&e->tensor);

    *out = malloc((size_t)(n ? n : 1) * sizeof **out);
    if (!*out) return FP8_FAIL(FP8_ENOMEM, "'%s'", e->name);
    for (int64_t i = 0; i < n; i++) {
        (*out)[i] = fp8_descale_at(&e->tensor, i);
        if (isfinite((*out)[i]) && (*out)[i] > 0.0f) continue;
        return FP8_FAIL(FP8_EDATA, "'%s': descale %lld is %g, expected finite and positive",
                        e->name, (long long)i, (double)(*out)[i]);
    }
    *count = n;
    return FP8_OK;
}

static fp8_status give(fp8_status st, float **out) {
    if (st == FP8_OK) return st;
    free(*out);
    *out = NULL;
    return st;
}

fp8_status fp8_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                             const char *name, int64_t channels) {
    const fp8_st_entry *e = NULL;
    const fp8_status st = find(&e, c, name);
    char shape[160];
    int64_t n;
    int in_a_row = 1;

    *out = NULL;
    if (st != FP8_OK) return st;
    n = fp8_tensor_count(&e->tensor);
    for (int32_t i = 0; i < e->tensor.ndim; i++)
        in_a_row &= e->tensor.shape[i] == 1 || e->tensor.shape[i] == n;
    if (!in_a_row || (n != 1 && n != channels)) {
        fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim);
        return FP8_FAIL(FP8_EFORMAT, "'%s': expected shape [], [1], [%lld, 1] or, beside [in, out] "
                        "weights, [1, %lld], found %s", name, (long long)channels,
                        (long long)channels, shape);
    }
    return give(copy(out, count, e), out);
}

static fp8_status check_shape(const fp8_st_entry *e, int64_t rows, int64_t cols) {
    char shape[160];

    if (e->tensor.ndim == 2 && e->tensor.shape[0] == rows && e->tensor.shape[1] == cols)
        return FP8_OK;
    fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim);
    return FP8_FAIL(FP8_EFORMAT, "'%s': expected shape [%lld, %lld], found %s", e->name,
                    (long long)rows, (long long)cols, shape);
}

fp8_status fp8_block_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                                   const char *name, int64_t rows, int64_t cols) {
    const fp8_st_entry *e = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(find(&e, c, name));
    FP8_TRY(check_shape(e, blocks_of(rows), blocks_of(cols)));
    st = give(copy(out, count, e), out);
done:
    return st;
}

fp8_status fp8_mx_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                                const char *name, int64_t rows, int64_t cols) {
    const fp8_st_entry *e = fp8_checkpoint_find(c, name);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!e) return FP8_FAIL(FP8_ENOTFOUND, "%s: no tensor '%s'", fp8_checkpoint_path(c), name);
    if (e->tensor.dtype != FP8_DTYPE_U8 && e->tensor.dtype != FP8_DTYPE_E8M0)
        return FP8_FAIL(FP8_EFORMAT, "'%s': expected U8 exponents, found %s", name,
                        fp8_dtype_name(e->tensor.dtype));
    FP8_TRY(check_shape(e, rows, cols / FP8_DIALECT_MX));
    st = give(copy(out, count, e), out);
done:
    return st;
}

fp8_status fp8_weight_descales_load(float **out, int64_t *count, const fp8_checkpoint *c,
                                    const char *name, fp8_scheme scheme, int64_t rows,
                                    int64_t cols, int in_out) {
    if (scheme == FP8_SCHEME_BLOCK) return fp8_block_descales_load(out, count, c, name, rows, cols);
    if (scheme == FP8_SCHEME_MX) return fp8_mx_descales_load(out, count, c, name, rows, cols);
    return fp8_descales_load(out, count, c, name,
                             scheme != FP8_SCHEME_DYNAMIC ? 1 : in_out ? cols : rows);
}

fp8_dtype fp8_weight_descale_dtype(fp8_scheme scheme, int bf16) {
    return scheme == FP8_SCHEME_MX ? FP8_DTYPE_U8 : bf16 ? FP8_DTYPE_BF16 : FP8_DTYPE_F32;
}

void fp8_descales_pack(void *out, fp8_dtype to, const float *x, int64_t n) {
    unsigned char *p = out;

    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = fp8_f32_bits(x[i]);
        const uint16_t half = fp8_f32_to_bf16(x[i]);
        if (to == FP8_DTYPE_U8) p[i] = (unsigned char)(bits >> 23);
        else if (to == FP8_DTYPE_BF16) memcpy(p + 2 * i, &half, sizeof half);
        else memcpy(p + 4 * i, &bits, sizeof bits);
    }
}
