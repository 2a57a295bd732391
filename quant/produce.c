/* The calls of produce.h: arguments are checked, defaults filled in, and the CPU or the CUDA half
 * does the work. */
#include "quant/produce.h"

#include "quant/produce_impl.h"

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_F32 || t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_sizes(const char *what, fp8_dtype dtype, int64_t rows, int64_t cols) {
    if (!is_real(dtype))
        return FP8_FAIL(FP8_EINVAL, "%s: %s, expected F32, BF16 or F16", what,
                        fp8_dtype_name(dtype));
    if (rows < 0 || cols < 0 || rows > INT32_MAX || cols > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: [%lld, %lld], expected sizes from 0 to 2^31-1", what,
                        (long long)rows, (long long)cols);
    return FP8_OK;
}

/* An operand of rows: there, and its stride (0 becomes cols) no less than a row. */
static fp8_status check_rows(const char *what, const char *name, const void *x, int64_t *stride,
                             int64_t rows, int64_t cols) {
    if (*stride == 0) *stride = cols;
    if (*stride < cols || (*stride && rows > INT64_MAX / 8 / *stride))
        return FP8_FAIL(FP8_EINVAL, "%s: rows of %s %lld apart, expected at least %lld", what, name,
                        (long long)*stride, (long long)cols);
    if (!x && rows * cols > 0) return FP8_FAIL(FP8_EINVAL, "%s: %s is NULL", what, name);
    return FP8_OK;
}

static fp8_status check_sink(const char *what, fp8_sink *s, int64_t rows, int64_t cols) {
    const int own_scale = s->scaling != FP8_SINK_STATIC;
    fp8_status st = FP8_OK;

    if (s->codes && !is_fp8(s->code)) {
        st = FP8_FAIL(FP8_EINVAL, "%s: codes of %s, expected F8_E4M3 or F8_E5M2", what,
                      fp8_dtype_name(s->code));
        goto done;
    }
    if (s->codes && (s->scaling < FP8_SINK_STATIC || s->scaling > FP8_SINK_GROUP ||
                     (own_scale && !s->descale))) {
        st = FP8_FAIL(FP8_EINVAL, "%s: scaling %d %s", what, (int)s->scaling,
                      own_scale && !s->descale ? "without descale" : "is none");
        goto done;
    }
    if (s->descale_row_stride == 0 && s->descale_group_stride == 0) {
        s->descale_row_stride = (cols + FP8_SINK_GROUP_COLS - 1) / FP8_SINK_GROUP_COLS;
        s->descale_group_stride = 1;
    }
    if (s->codes) FP8_TRY(check_rows(what, "codes", s->codes, &s->codes_stride, rows, cols));
    if (s->dense) FP8_TRY(check_rows(what, "dense", s->dense, &s->dense_stride, rows, cols));
done:
    return st;
}

/* ---- rows ------------------------------------------------------------------------------------ */

fp8_status fp8_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm,
                            fp8_launch launch) {
    static const char what[] = "produce_norm";
    fp8_sink s = *out;
    fp8_norm n = *norm;
    fp8_status st = FP8_OK;

    FP8_TRY(check_sizes(what, n.dtype, n.rows, n.cols));
    FP8_TRY(check_sink(what, &s, n.rows, n.cols));
    FP8_TRY(check_rows(what, "x", n.x, &n.x_stride, n.rows, n.cols));
    if (n.kind != FP8_NORM_LAYER) n.bias = NULL;
    if (n.residual)
        FP8_TRY(check_rows(what, "residual", n.residual, &n.residual_stride, n.rows, n.cols));
    if (n.from ? n.h != NULL : n.residual != NULL)
        FP8_TRY(check_rows(what, "h", n.h, &n.h_stride, n.rows, n.cols));
    else n.h = NULL;
    if (!n.from || n.multiplier == 0.0f) n.multiplier = 1.0f;
    if (n.kind < FP8_NORM_RMS || n.kind > FP8_NORM_LAYER || (!n.weight && n.cols > 0)) {
        st = FP8_FAIL(FP8_EINVAL, "%s: kind %d, weight %p", what, (int)n.kind, n.weight);
        goto done;
    }
    if (n.rows == 0 || n.cols == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_produce_norm(d, &s, &n, launch));
    else st = fp8_cpu_produce_norm(d, &s, &n);
done:
    (void)launch;
    return st;
}

fp8_status fp8_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                           fp8_launch launch) {
    static const char what[] = "produce_act";
    fp8_sink s = *out;
    fp8_act a = *act;
    fp8_status st = FP8_OK;

    FP8_TRY(check_sizes(what, a.dtype, a.rows, a.cols));
    FP8_TRY(check_sink(what, &s, a.rows, a.cols));
    FP8_TRY(check_rows(what, "x", a.x, &a.x_stride, a.rows, a.cols));
    if (a.up) FP8_TRY(check_rows(what, "up", a.up, &a.up_stride, a.rows, a.cols));
    if (a.act < FP8_ACT_SILU || a.act > FP8_ACT_RELU) {
        st = FP8_FAIL(FP8_EINVAL, "%s: activation %d", what, (int)a.act);
        goto done;
    }
    if (a.rows == 0 || a.cols == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_produce_act(d, &s, &a, launch));
    else st = fp8_cpu_produce_act(d, &s, &a);
done:
    (void)launch;
    return st;
}

fp8_status fp8_produce_cast(fp8_device *d, const fp8_sink *out, const void *x, fp8_dtype dtype,
                            int64_t rows, int64_t cols, int64_t x_stride, fp8_launch launch) {
    static const char what[] = "produce_cast";
    fp8_sink s = *out;
    fp8_status st = FP8_OK;

    FP8_TRY(check_sizes(what, dtype, rows, cols));
    FP8_TRY(check_sink(what, &s, rows, cols));
    FP8_TRY(check_rows(what, "x", x, &x_stride, rows, cols));
    if (rows == 0 || cols == 0) goto done;
    if (FP8_ON_CUDA(d))
        st = FP8_CUDA_CALL(fp8_cuda_produce_cast(d, &s, x, dtype, rows, cols, x_stride, launch));
    else st = fp8_cpu_produce_cast(d, &s, x, dtype, rows, cols, x_stride);
done:
    (void)launch;
    return st;
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Fills in the strides of a packed layout where all of them are 0. */
static void default_strides(int64_t heads, int64_t dim, int64_t *token, int64_t *head) {
    if (*token != 0 || *head != 0) return;
    *token = heads * dim;
    *head = dim;
}

static fp8_status check_heads(const char *what, const char *part, fp8_heads *h, const fp8_qkv *q) {
    const int codes_packed = h->codes_dim_stride == 0;

    if (h->heads < 0 || h->heads > INT32_MAX / FP8_HEAD_DIM_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: %s: %lld heads", what, part, (long long)h->heads);
    if (h->heads == 0) return FP8_OK;
    if (!h->x && q->tokens > 0) return FP8_FAIL(FP8_EINVAL, "%s: %s: x is NULL", what, part);
    if (h->scale_stride < 0 || h->scale_stride > 1)
        return FP8_FAIL(FP8_EINVAL, "%s: %s: scale stride %lld, expected 0 or 1", what, part,
                        (long long)h->scale_stride);
    if (h->codes && !is_fp8(q->code))
        return FP8_FAIL(FP8_EINVAL, "%s: %s: codes of %s, expected F8_E4M3 or F8_E5M2", what, part,
                        fp8_dtype_name(q->code));
    default_strides(h->heads, q->dim, &h->x_token_stride, &h->x_head_stride);
    default_strides(h->heads, q->dim, &h->dense_token_stride, &h->dense_head_stride);
    if (codes_packed) default_strides(h->heads, q->dim, &h->codes_token_stride,
                                      &h->codes_head_stride);
    if (codes_packed) h->codes_dim_stride = 1;
    return FP8_OK;
}

static fp8_status check_rotation(const char *what, const fp8_qkv *q) {
    const int rotates = q->rotary_dim > 0 && (q->q.heads > 0 || q->k.heads > 0);

    if (q->dim < 1 || q->dim > FP8_HEAD_DIM_MAX || q->rotary_dim < 0 || q->rotary_dim > q->dim ||
        q->rotary_dim % 2)
        return FP8_FAIL(FP8_EINVAL, "%s: heads of %lld, %lld of them turning, expected 1 to %d and "
                        "an even part", what, (long long)q->dim, (long long)q->rotary_dim,
                        FP8_HEAD_DIM_MAX);
    if (rotates && q->tokens > 0 && (!q->cos || !q->sin || !q->positions))
        return FP8_FAIL(FP8_EINVAL, "%s: a rotation without its tables or positions", what);
    if (q->norm != FP8_NORM_RMS && q->norm != FP8_NORM_RMS_PLUS)
        return FP8_FAIL(FP8_EINVAL, "%s: norm %d, expected RMS or RMS_PLUS", what, (int)q->norm);
    return FP8_OK;
}

fp8_status fp8_produce_qkv(fp8_device *d, const fp8_qkv *qkv, fp8_launch launch) {
    static const char what[] = "produce_qkv";
    fp8_qkv q = *qkv;
    fp8_status st = FP8_OK;

    FP8_TRY(check_sizes(what, q.dtype, q.tokens, q.dim));
    FP8_TRY(check_rotation(what, &q));
    FP8_TRY(check_heads(what, "q", &q.q, &q));
    FP8_TRY(check_heads(what, "k", &q.k, &q));
    FP8_TRY(check_heads(what, "v", &q.v, &q));
    if (q.tokens == 0 || q.q.heads + q.k.heads + q.v.heads == 0) goto done;
    if (FP8_ON_CUDA(d)) st = FP8_CUDA_CALL(fp8_cuda_produce_qkv(d, &q, launch));
    else st = fp8_cpu_produce_qkv(d, &q);
done:
    (void)launch;
    return st;
}
