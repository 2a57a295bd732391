/* What an append's operands must be. */
#include "attention/append.h"

#include <stdlib.h>

#include "attention/append_impl.h"

static int is_real(fp8_dtype t) {
    return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_F32;
}

/* Strides filled in: no two elements in one place. */
static fp8_status check_heads(fp8_append_heads *h, const char *name, int64_t heads, int64_t d) {
    if (h->token_stride == 0 && h->head_stride == 0) {
        h->token_stride = heads * d;
        h->head_stride = d;
    }
    if (h->head_stride < d || h->token_stride < d)
        return FP8_FAIL(FP8_EINVAL, "append: strides of %s (token %lld, head %lld), a head has "
                                    "%lld", name, (long long)h->token_stride,
                        (long long)h->head_stride, (long long)d);
    return FP8_OK;
}

static fp8_status check_types(const fp8_kv_append *a, const fp8_kv_pages *p) {
    if (!is_real(a->dtype))
        return FP8_FAIL(FP8_EINVAL, "append: dtype %s, expected BF16, F16 or F32",
                        fp8_dtype_name(a->dtype));
    if (a->k.x && p->dtype != FP8_DTYPE_E4M3 && p->dtype != a->dtype)
        return FP8_FAIL(FP8_EINVAL, "append: x in %s for pages of %s, expected F8_E4M3 or the same",
                        fp8_dtype_name(a->dtype), fp8_dtype_name(p->dtype));
    if (a->q.x && a->q_dtype != FP8_DTYPE_E4M3 && a->q_dtype != a->dtype)
        return FP8_FAIL(FP8_EINVAL, "append: q_dtype %s from %s, expected F8_E4M3 or the same",
                        fp8_dtype_name(a->q_dtype), fp8_dtype_name(a->dtype));
    return FP8_OK;
}

static fp8_status check_formula(const fp8_kv_append *a, int32_t d_qk) {
    const int normed = a->q.norm_weight || a->k.norm_weight;

    if (normed && a->norm != FP8_NORM_RMS && a->norm != FP8_NORM_RMS_PLUS)
        return FP8_FAIL(FP8_EINVAL, "append: norm %d, expected RMS or RMS_PLUS", (int)a->norm);
    if (a->v.norm_weight) return FP8_FAIL(FP8_EINVAL, "append: a norm weight of V");
    if (a->rotary_dim < 0 || a->rotary_dim % 2 || a->rotary_dim > d_qk)
        return FP8_FAIL(FP8_EINVAL, "append: rotary_dim %d, expected an even one up to %d",
                        a->rotary_dim, d_qk);
    if (a->rope != FP8_ROPE_HALVES && a->rope != FP8_ROPE_INTERLEAVED)
        return FP8_FAIL(FP8_EINVAL, "append: RoPE form %d is not known", (int)a->rope);
    if (a->rotary_dim > 0 && (!a->cos || !a->sin || a->num_positions < 1))
        return FP8_FAIL(FP8_EINVAL, "append: cos=%p sin=%p of %lld positions", (const void *)a->cos,
                        (const void *)a->sin, (long long)a->num_positions);
    return FP8_OK;
}

static fp8_status check_parts(fp8_kv_append *a, const fp8_kv_pages *p) {
    fp8_status st = FP8_OK;

    if (!a->k.x != !a->v.x)
        return FP8_FAIL(FP8_EINVAL, "append: k=%p v=%p, expected both or none", a->k.x, a->v.x);
    if (a->k.x) {
        FP8_TRY(check_heads(&a->k, "k", p->num_kv_heads, p->d_qk));
        FP8_TRY(check_heads(&a->v, "v", p->num_kv_heads, p->d_v));
    }
    if (!a->q.x) goto done;
    if (a->num_heads <= 0 || a->num_heads % p->num_kv_heads)
        return FP8_FAIL(FP8_EINVAL, "append: %d heads over %d KV heads, expected a multiple",
                        a->num_heads, p->num_kv_heads);
    if (!a->q_out || (a->q_dtype == FP8_DTYPE_E4M3 && !a->q_descale))
        return FP8_FAIL(FP8_EINVAL, "append: q_out=%p q_descale=%p for Q in %s", a->q_out,
                        (const void *)a->q_descale, fp8_dtype_name(a->q_dtype));
    FP8_TRY(check_heads(&a->q, "q", a->num_heads, p->d_qk));
done:
    return st;
}

fp8_status append_resolve(fp8_kv_append *out, const fp8_kv_pages *pages,
                          const fp8_kv_append *append) {
    fp8_kv_append a = *append;
    fp8_status st;

    FP8_TRY(check_types(&a, pages));
    FP8_TRY(check_formula(&a, pages->d_qk));
    FP8_TRY(check_parts(&a, pages));
    *out = a;
done:
    return st;
}

static int is_aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

static int heads_fit(const fp8_append_heads *h, int64_t d) {
    const int64_t vector = 8; /* of 16-bit elements */
    return !h->x || (is_aligned(h->x) && is_aligned(h->norm_weight) &&
                     h->token_stride % vector == 0 && h->head_stride % vector == 0 &&
                     d % APPEND_UNIT == 0 && d <= APPEND_MAX_UNITS * APPEND_UNIT);
}

int append_fits_units(const fp8_kv_pages *p, const fp8_kv_append *a) {
    return a->dtype != FP8_DTYPE_F32 && heads_fit(&a->q, p->d_qk) && heads_fit(&a->k, p->d_qk) &&
           heads_fit(&a->v, p->d_v) && a->rotary_dim % APPEND_UNIT == 0 && is_aligned(a->cos) &&
           is_aligned(a->sin) && is_aligned(a->q_out) && is_aligned(p->k) && is_aligned(p->v) &&
           p->k_page % APPEND_UNIT == 0 && p->v_page % APPEND_UNIT == 0;
}

fp8_status fp8_kv_append_run(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *batch,
                             const fp8_kv_append *append, fp8_launch launch) {
    const char *sync = getenv("FP8_SYNC");
    fp8_kv_append a;
    fp8_kv_pages p;
    fp8_status st;

    if (!d || !pages || !batch || !append)
        return FP8_FAIL(FP8_EINVAL, "append: device=%p pages=%p batch=%p append=%p", (void *)d,
                        (const void *)pages, (const void *)batch, (const void *)append);
    FP8_TRY(kv_pages_resolve(&p, pages));
    FP8_TRY(kv_batch_check(batch, p.page_size));
    FP8_TRY(append_resolve(&a, &p, append));
    if (batch->num_seqs == 0 || batch->total_q == 0 || (!a.q.x && !a.k.x)) goto done;
    if (fp8_device_place(d) == FP8_PLACE_CPU) {
        (void)launch;
        FP8_TRY(append_run_cpu(d, &p, batch, &a));
    } else {
#if FP8_CUDA
        FP8_TRY(append_run_cuda(d, &p, batch, &a, launch));
#endif
    }
    if (sync && *sync == '1') FP8_TRY(kv_batch_report(d, &p, batch));
done:
    return st;
}
