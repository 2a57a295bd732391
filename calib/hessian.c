#include "calib/hessian.h"

#include <math.h>
#include <stdlib.h>

#include "calib/real.h"
#include "quant/cast.h"
#include "quant/gemm.h"
#include "quant/recipe.h"

/* Inputs with a static scale are turned and quantized on the device in one pass; their codes are
 * exact in BF16, and so are the products; the descale comes in at the end. Those with a scale a
 * token, or a token and 128 columns, are quantized on the host; a BF16 keeps them to 2^-9. */
struct fp8_hessian {
    fp8_device *d;
    fp8_dtype type;
    int64_t most_cols, most_tokens;
    int64_t cols;
    fp8_scheme scheme;
    float descale;
    float *scale;      /* device [1] */
    float *sums[2];    /* device [cols, cols]: H, C */
    uint8_t *codes;    /* device [cols, tokens] */
    void *turned;      /* device [cols, tokens] BF16 */
    void *host;        /* [tokens, cols] of `type` */
    uint16_t *values;  /* host [cols, tokens] BF16 */
    void *workspace;
    size_t workspace_bytes;
};

/* D [cols, cols] += turned B: B is `turned` again, or x [tokens, cols]. */
static fp8_gemm product(const fp8_hessian *h, const void *x, int64_t tokens) {
    return (fp8_gemm){
        .m = h->cols, .n = h->cols, .k = tokens, .a = h->turned, .lda = tokens,
        .a_dtype = FP8_DTYPE_BF16, .b = x ? x : h->turned, .ldb = x ? h->cols : tokens,
        .b_dtype = x ? h->type : FP8_DTYPE_BF16, .b_is_kn = x != NULL, .d = h->sums[x != NULL],
        .ldd = h->cols, .d_dtype = FP8_DTYPE_F32, .alpha = 1, .residual = h->sums[x != NULL],
        .residual_dtype = FP8_DTYPE_F32, .ldr = h->cols};
}

static fp8_status allocate(fp8_hessian *h) {
    const size_t cols = (size_t)h->most_cols, all = cols * (size_t)h->most_tokens;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_alloc(h->d, (void **)&h->scale, sizeof *h->scale));
    for (int i = 0; i < 2; i++)
        FP8_TRY(fp8_device_alloc(h->d, (void **)&h->sums[i], cols * cols * sizeof(float)));
    FP8_TRY(fp8_device_alloc(h->d, (void **)&h->codes, all));
    FP8_TRY(fp8_device_alloc(h->d, &h->turned, 2 * all));
    h->cols = h->most_cols;
    for (int i = 0; i < 2; i++) {
        const fp8_gemm g = product(h, i ? h->turned : NULL, h->most_tokens);
        const size_t bytes = fp8_gemm_workspace_size(h->d, &g);
        if (bytes > h->workspace_bytes) h->workspace_bytes = bytes;
    }
    FP8_TRY(fp8_device_alloc(h->d, &h->workspace, h->workspace_bytes));
done:
    return st;
}

fp8_status fp8_hessian_create(fp8_hessian **out, fp8_device *d, fp8_dtype type, int64_t cols,
                              int64_t tokens) {
    fp8_hessian *h = calloc(1, sizeof *h);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!h) return FP8_FAIL(FP8_ENOMEM, "products of %lld inputs", (long long)cols);
    h->d = d;
    h->type = type;
    h->most_cols = cols;
    h->most_tokens = tokens;
    FP8_TRY(allocate(h));
    *out = h;
    h = NULL;
done:
    fp8_hessian_destroy(h);
    return st;
}

void fp8_hessian_destroy(fp8_hessian *h) {
    if (!h) return;
    fp8_device_free(h->d, h->scale);
    fp8_device_free(h->d, h->sums[0]);
    fp8_device_free(h->d, h->sums[1]);
    fp8_device_free(h->d, h->codes);
    fp8_device_free(h->d, h->turned);
    fp8_device_free(h->d, h->workspace);
    free(h->host);
    free(h->values);
    free(h);
}

fp8_status fp8_hessian_begin(fp8_hessian *h, int64_t cols, fp8_scheme scheme, float descale) {
    const float scale = 1.0f / descale;
    const size_t bytes = (size_t)(cols * cols) * sizeof(float);
    fp8_status st = FP8_OK;

    if (cols < 1 || cols > h->most_cols)
        return FP8_FAIL(FP8_EINVAL, "products of %lld inputs, room for %lld", (long long)cols,
                        (long long)h->most_cols);
    h->cols = cols;
    h->scheme = scheme;
    h->descale = scheme == FP8_SCHEME_TENSOR ? descale : 1;
    FP8_TRY(fp8_device_upload(h->d, h->scale, &scale, sizeof scale));
    for (int i = 0; i < 2; i++) FP8_TRY(fp8_device_fill(h->d, h->sums[i], 0, bytes));
done:
    return st;
}

/* ---- on the host ----------------------------------------------------------------------------- */

static float value_at(const fp8_hessian *h, int64_t i) { return fp8_real_at(h->host, h->type, i); }

typedef struct turn_job {
    const fp8_hessian *h;
    int64_t tokens;
} turn_job;

/* A token's values from `begin` to `end` by the scale of their own amax, as the runtime does. */
static void turn_group(const turn_job *j, int64_t token, int64_t begin, int64_t end) {
    const fp8_recipe plain = {FP8_AMAX_MAX, 0, 1};
    const fp8_hessian *h = j->h;
    float amax = 0, scale = 1, descale = 1;

    for (int64_t c = begin; c < end; c++) {
        const float a = fabsf(value_at(h, token * h->cols + c));
        if (isfinite(a) && a > amax) amax = a;
    }
    fp8_recipe_scale(&plain, FP8_DTYPE_E4M3, amax, &scale, &descale);
    for (int64_t c = begin; c < end; c++) {
        float x = value_at(h, token * h->cols + c);
        if (h->scheme != FP8_SCHEME_NONE)
            x = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, x * scale)) * descale;
        h->values[c * j->tokens + token] = fp8_f32_to_bf16(x);
    }
}

static fp8_status turn_tokens(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const turn_job *j = ctx;
    const int64_t cols = j->h->cols;
    const int64_t step = j->h->scheme == FP8_SCHEME_BLOCK ? FP8_DIALECT_BLOCK : cols;

    (void)worker;
    for (int64_t t = begin; t < end; t++)
        for (int64_t c = 0; c < cols; c += step)
            turn_group(j, t, c, c + step < cols ? c + step : cols);
    return FP8_OK;
}

static fp8_status turn_on_host(fp8_hessian *h, const void *q, int64_t tokens) {
    enum { GRAIN = 32 };
    const size_t most = (size_t)h->most_cols * (size_t)h->most_tokens;
    turn_job j = {h, tokens};
    fp8_status st = FP8_OK;

    if (!h->host) h->host = malloc(most * fp8_dtype_size(h->type));
    if (!h->values) h->values = malloc(most * sizeof *h->values);
    if (!h->host || !h->values) return FP8_FAIL(FP8_ENOMEM, "%zu inputs", most);
    FP8_TRY(fp8_device_download(h->d, h->host, q,
                                (size_t)(tokens * h->cols) * fp8_dtype_size(h->type)));
    FP8_TRY(fp8_parallel_for(fp8_device_pool(h->d), tokens, GRAIN, turn_tokens, &j));
    FP8_TRY(fp8_device_upload(h->d, h->turned, h->values,
                              (size_t)(tokens * h->cols) * sizeof *h->values));
done:
    return st;
}

/* ---- sums ------------------------------------------------------------------------------------ */

fp8_status fp8_hessian_add(fp8_hessian *h, const void *x, const void *q, int64_t tokens) {
    fp8_status st = FP8_OK;

    if (tokens > h->most_tokens)
        return FP8_FAIL(FP8_EINVAL, "products over %lld tokens, room for %lld", (long long)tokens,
                        (long long)h->most_tokens);
    if (h->scheme == FP8_SCHEME_TENSOR) {
        FP8_TRY(fp8_quantize_transposed(h->d, h->codes, NULL, FP8_DTYPE_E4M3, q, h->type, tokens,
                                        h->cols, h->scale));
        FP8_TRY(fp8_dequantize(h->d, h->turned, FP8_DTYPE_BF16, h->codes, FP8_DTYPE_E4M3,
                               tokens * h->cols, NULL));
    } else {
        FP8_TRY(turn_on_host(h, q, tokens));
    }
    for (int i = 0; i < (x ? 2 : 1); i++) {
        const fp8_gemm g = product(h, i ? x : NULL, tokens);
        FP8_TRY(fp8_gemm_run(h->d, &g, h->workspace, h->workspace_bytes));
    }
done:
    return st;
}

void fp8_hessian_sums(const fp8_hessian *h, const float **hessian, const float **cross,
                      double *factor) {
    *hessian = h->sums[0];
    *cross = h->sums[1];
    *factor = (double)h->descale;
}

fp8_status fp8_hessian_read(fp8_hessian *h, double *hessian, double *cross) {
    const int64_t n = h->cols;
    const double descale = (double)h->descale;
    float *sums = malloc((size_t)(n * n) * sizeof *sums);
    fp8_status st = FP8_OK;

    if (!sums) return FP8_FAIL(FP8_ENOMEM, "products of %lld inputs", (long long)n);
    FP8_TRY(fp8_device_download(h->d, sums, h->sums[0], (size_t)(n * n) * sizeof *sums));
    for (int64_t i = 0; i < n; i++) /* of the two halves one is taken: symmetric to the bit */
        for (int64_t k = 0; k <= i; k++)
            hessian[i * n + k] = hessian[k * n + i] = (double)sums[i * n + k] * descale * descale;
    if (!cross) goto done;
    FP8_TRY(fp8_device_download(h->d, sums, h->sums[1], (size_t)(n * n) * sizeof *sums));
    for (int64_t i = 0; i < n * n; i++) cross[i] = (double)sums[i] * descale;
done:
    free(sums);
    return st;
}
