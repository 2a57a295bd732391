/* What a decode plan's options and a run's operands must be, whatever backend serves them. */
#include "attention/decode_impl.h"

/* ---- options --------------------------------------------------------------------------------- */

fp8_attention_options decode_as_attention(const fp8_decode_options *o) {
    const int32_t kv = o->num_kv_heads;
    fp8_attention_options a = FP8_ATTENTION_OPTIONS;

    a.num_heads = o->num_heads;
    a.num_kv_heads = kv;
    a.d_qk = o->d_qk;
    a.d_v = o->d_v;
    a.num_seqs = o->num_seqs;
    a.max_q = o->max_q;
    a.max_kv = o->max_kv;
    a.has_strides = 1;
    a.q = (fp8_strides){0, o->q_token, o->d_qk};
    a.k = (fp8_strides){0, (int64_t)kv * o->d_qk, o->d_qk};
    a.v = (fp8_strides){0, (int64_t)kv * o->d_v, o->d_v};
    a.o = (fp8_strides){0, o->o_token, o->d_v};
    a.mask = o->mask;
    a.window_left = o->window_left;
    a.bias = o->alibi ? FP8_BIAS_ALIBI : FP8_BIAS_NONE;
    a.softcap = o->softcap;
    a.sink = o->sink;
    a.scale = o->scale;
    a.q_dtype = o->q_dtype;
    a.kv_dtype = o->kv_dtype;
    a.o_dtype = o->o_dtype;
    a.granularity = o->granularity;
    a.quantize_p = o->quantize_p && o->kv_dtype == FP8_DTYPE_E4M3;
    a.precision = o->precision;
    a.want_lse = o->want_lse;
    return a;
}

static fp8_status check_own(const fp8_decode_options *o) {
    if (o->page_size != 64 && o->page_size != 128)
        return FP8_FAIL(FP8_EINVAL, "decode: %d tokens a page, expected 64 or 128", o->page_size);
    if (o->mask != FP8_MASK_NONE && o->mask != FP8_MASK_CAUSAL_BOTTOM_RIGHT)
        return FP8_FAIL(FP8_EINVAL, "decode: mask %d, expected none or causal bottom-right",
                        (int)o->mask);
    if (o->granularity != FP8_DESCALE_TENSOR && o->granularity != FP8_DESCALE_HEAD)
        return FP8_FAIL(FP8_EINVAL, "decode: descales of granularity %d, expected one a tensor or "
                                    "one a head", (int)o->granularity);
    if (o->kv_dtype != FP8_DTYPE_E4M3 && o->kv_dtype != o->q_dtype)
        return FP8_FAIL(FP8_EINVAL, "decode: q_dtype %s with pages of %s, expected pages of "
                                    "F8_E4M3 or of the type of q",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (o->total_q < 0 || o->total_q > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "decode: total_q %lld, expected 0 to 2^31 - 1",
                        (long long)o->total_q);
    if (o->max_chunks < 0)
        return FP8_FAIL(FP8_EINVAL, "decode: max_chunks %lld, expected 0 or more",
                        (long long)o->max_chunks);
    if (o->split_keys < 0 || o->split_keys % o->page_size)
        return FP8_FAIL(FP8_EINVAL, "decode: split_keys %lld, expected a multiple of %d",
                        (long long)o->split_keys, o->page_size);
    if ((int)o->backend < 0 || o->backend > FP8_DECODE_CPU)
        return FP8_FAIL(FP8_EINVAL, "decode: backend %d is not known", (int)o->backend);
    return FP8_OK;
}

/* Elements from token to token. */
static fp8_status resolve_row(int64_t *token, const char *name, int64_t heads, int64_t d) {
    if (*token == 0) *token = heads * d;
    if (*token < heads * d)
        return FP8_FAIL(FP8_EINVAL, "decode: tokens of %s are %lld elements apart, expected at "
                                    "least %lld", name, (long long)*token, (long long)(heads * d));
    return FP8_OK;
}

fp8_status decode_resolve_options(fp8_decode_options *out, const fp8_decode_options *options) {
    fp8_attention_options a;
    fp8_decode_options o = *options;
    fp8_status st;

    FP8_TRY(check_own(&o));
    FP8_TRY(resolve_row(&o.q_token, "q", o.num_heads, o.d_qk));
    FP8_TRY(resolve_row(&o.o_token, "o", o.num_heads, o.d_v));
    a = decode_as_attention(&o);
    FP8_TRY(attention_resolve_options(&a, &a));
    o.scale = a.scale;
    o.window_left = a.window_left;
    if (o.total_q == 0) o.total_q = o.num_seqs * o.max_q;
    if (o.total_q > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "decode: %lld sequences of up to %lld rows, and total_q is not "
                                    "given", (long long)o.num_seqs, (long long)o.max_q);
    *out = o;
done:
    return st;
}

/* ---- operands of a run ----------------------------------------------------------------------- */

static fp8_status check_pages(const fp8_decode_options *o, const fp8_kv_pages *p) {
    if (p->dtype != o->kv_dtype || p->num_kv_heads != o->num_kv_heads || p->d_qk != o->d_qk ||
        p->d_v != o->d_v || p->page_size != o->page_size)
        return FP8_FAIL(FP8_EINVAL,
                        "decode: pages of %s, %d heads, d %d and %d, %d tokens; the plan has %s, "
                        "%d, %d and %d, %d",
                        fp8_dtype_name(p->dtype), p->num_kv_heads, p->d_qk, p->d_v, p->page_size,
                        fp8_dtype_name(o->kv_dtype), o->num_kv_heads, o->d_qk, o->d_v,
                        o->page_size);
    if (p->dtype == FP8_DTYPE_E4M3 && p->granularity != o->granularity)
        return FP8_FAIL(FP8_EINVAL, "decode: descales of granularity %d, the plan has %d",
                        (int)p->granularity, (int)o->granularity);
    return FP8_OK;
}

static fp8_status check_batch(const fp8_decode_options *o, const fp8_kv_batch *b) {
    if (b->num_seqs > o->num_seqs || b->max_q > o->max_q || b->max_kv > o->max_kv ||
        b->total_q > o->total_q)
        return FP8_FAIL(FP8_EINVAL,
                        "decode: %lld sequences, max_q %lld, max_kv %lld, total_q %lld; the plan "
                        "has %lld, %lld, %lld, %lld",
                        (long long)b->num_seqs, (long long)b->max_q, (long long)b->max_kv,
                        (long long)b->total_q, (long long)o->num_seqs, (long long)o->max_q,
                        (long long)o->max_kv, (long long)o->total_q);
    return FP8_OK;
}

/* One that the options ask for. */
static fp8_status check_wanted(int wanted, const void *x, const char *name) {
    if (!wanted || x) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "decode: the options ask for %s and it is NULL", name);
}

fp8_status decode_resolve_io(fp8_decode_io *out, const fp8_decode_options *o,
                             const fp8_decode_io *io) {
    const int rows = io->batch.total_q > 0;
    fp8_decode_io x = *io;
    fp8_status st;

    FP8_TRY(kv_pages_resolve(&x.pages, &io->pages));
    FP8_TRY(check_pages(o, &x.pages));
    FP8_TRY(kv_batch_check(&x.batch, o->page_size));
    FP8_TRY(check_batch(o, &x.batch));
    FP8_TRY(check_wanted(rows, x.o, "o"));
    FP8_TRY(check_wanted(rows, x.q, "q"));
    FP8_TRY(check_wanted(o->q_dtype == FP8_DTYPE_E4M3, x.q_descale, "q_descale"));
    FP8_TRY(check_wanted(o->o_dtype == FP8_DTYPE_E4M3, x.o_scale, "o_scale"));
    FP8_TRY(check_wanted(o->sink == FP8_SINK_LEARNABLE, x.sink, "sink"));
    FP8_TRY(check_wanted(o->want_lse && rows, x.lse, "lse"));
    *out = x;
done:
    return st;
}
