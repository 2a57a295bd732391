/* What a plan's options and a run's operands must be, whatever backend serves them: one line for
 * each that makes no sense, and the defaults filled in. */
#include <math.h>
#include <string.h>

#include "attention/attention_impl.h"

/* No diagonal is further than this from any key: lengths are below 2^31. */
#define NO_WINDOW ((int64_t)1 << 32)

/* ---- options --------------------------------------------------------------------------------- */

static fp8_status check_sizes(const fp8_attention_options *o) {
    const int64_t d = (int64_t)o->d_qk + o->d_v;
    fp8_status st = FP8_OK;
    int64_t count;

    if (o->num_heads <= 0 || o->num_kv_heads <= 0 || o->num_heads % o->num_kv_heads)
        return FP8_FAIL(FP8_EINVAL, "attention: %d heads over %d KV heads, expected a multiple",
                        o->num_heads, o->num_kv_heads);
    if (o->d_qk <= 0 || o->d_v <= 0)
        return FP8_FAIL(FP8_EINVAL, "attention: head sizes d_qk %d, d_v %d, expected positive ones",
                        o->d_qk, o->d_v);
    if (o->num_seqs < 0 || o->max_q < 0 || o->max_kv < 0)
        return FP8_FAIL(FP8_EINVAL, "attention: num_seqs %lld, max_q %lld, max_kv %lld",
                        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv);
    if (o->num_seqs > INT32_MAX || o->max_q > INT32_MAX || o->max_kv > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL,
                        "attention: num_seqs %lld, max_q %lld, max_kv %lld, expected below 2^31 as "
                        "starts are 32-bit",
                        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv);
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){o->num_seqs, o->max_q, o->num_heads, d}, 4));
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){o->num_seqs, o->max_kv, o->num_kv_heads, d}, 4));
done:
    return st;
}

static int is_float(fp8_dtype t) {
    return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_F32;
}

static fp8_status check_types(const fp8_attention_options *o) {
    const int q_codes = o->q_dtype == FP8_DTYPE_E4M3, kv_codes = o->kv_dtype == FP8_DTYPE_E4M3;

    if (!q_codes && !is_float(o->q_dtype))
        return FP8_FAIL(FP8_EINVAL, "attention: q_dtype %s, expected F8_E4M3, BF16, F16 or F32",
                        fp8_dtype_name(o->q_dtype));
    if (!kv_codes && !is_float(o->kv_dtype))
        return FP8_FAIL(FP8_EINVAL, "attention: kv_dtype %s, expected F8_E4M3, BF16, F16 or F32",
                        fp8_dtype_name(o->kv_dtype));
    if (o->o_dtype != FP8_DTYPE_E4M3 && !is_float(o->o_dtype))
        return FP8_FAIL(FP8_EINVAL, "attention: o_dtype %s, expected BF16, F16, F32 or F8_E4M3",
                        fp8_dtype_name(o->o_dtype));
    if (!q_codes && !kv_codes && o->q_dtype != o->kv_dtype)
        return FP8_FAIL(FP8_EINVAL, "attention: q_dtype %s, kv_dtype %s, expected one type",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype));
    if (o->hadamard && (o->quantize == FP8_QUANTIZE_NOT || q_codes || kv_codes))
        return FP8_FAIL(FP8_EINVAL,
                        "attention: hadamard rotates Q and K before they are quantized; q_dtype "
                        "%s, kv_dtype %s, quantize %d",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype),
                        (int)o->quantize);
    if (o->quantize != FP8_QUANTIZE_NOT && q_codes && kv_codes)
        return FP8_FAIL(FP8_EINVAL, "attention: quantize is set, but Q, K and V are E4M3 already");
    return FP8_OK;
}

/* Values outside an enum, by the field's name. */
static fp8_status check_enums(const fp8_attention_options *o) {
    const struct {
        const char *name;
        int64_t value, count;
    } fields[] = {
        {"backend", o->backend, FP8_BACKEND_CPU + 1},
        {"layout", o->layout, FP8_NUM_LAYOUTS},
        {"mask", o->mask, FP8_MASK_ARBITRARY + 1},
        {"mask_shape", o->mask_shape, FP8_BIAS_BHSS + 1},
        {"bias", o->bias, FP8_BIAS_ALIBI + 1},
        {"bias_shape", o->bias_shape, FP8_BIAS_BHSS + 1},
        {"sink", o->sink, FP8_SINK_LEARNABLE + 1},
        {"granularity", o->granularity, FP8_DESCALE_BATCH_HEAD + 1},
        {"quantize", o->quantize, FP8_QUANTIZE_CURRENT + 1},
        {"precision", o->precision, FP8_ATTENTION_FAST + 1},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < 0 || fields[i].value >= fields[i].count)
            return FP8_FAIL(FP8_EINVAL, "attention: %s %lld is not known", fields[i].name,
                            (long long)fields[i].value);
    return FP8_OK;
}

static fp8_status check_formula(const fp8_attention_options *o) {
    const int has_bias = o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE;

    if (o->window_left < -1 || o->window_right < -1)
        return FP8_FAIL(FP8_EINVAL, "attention: window %lld, %lld, expected -1 or more",
                        (long long)o->window_left, (long long)o->window_right);
    if (!isfinite(o->scale))
        return FP8_FAIL(FP8_EINVAL, "attention: scale %g, expected a finite one",
                        (double)o->scale);
    if (!isfinite(o->softcap) || o->softcap < 0.0f)
        return FP8_FAIL(FP8_EINVAL, "attention: softcap %g, expected 0 or a positive one",
                        (double)o->softcap);
    if (has_bias && !is_float(o->bias_dtype))
        return FP8_FAIL(FP8_EINVAL, "attention: bias_dtype %s, expected F32, BF16 or F16",
                        fp8_dtype_name(o->bias_dtype));
    if (o->promote_keys < 0)
        return FP8_FAIL(FP8_EINVAL, "attention: promote_keys %d, expected 0 or more",
                        o->promote_keys);
    return FP8_OK;
}

/* That an element of a bias or mask has an offset. */
static fp8_status check_planes(const fp8_attention_options *o) {
    int64_t count;
    if (o->mask != FP8_MASK_ARBITRARY && o->bias == FP8_BIAS_NONE) return FP8_OK;
    return fp8_shape_count(&count, (int64_t[]){o->num_seqs, o->num_heads, o->max_q, o->max_kv}, 4);
}

/* ---- strides --------------------------------------------------------------------------------- */

typedef struct extent {
    int64_t size, stride;
} extent;

/* That no two elements of a tensor [batch, tokens, heads, d] share a place, and that the last one's
 * offset fits: from the smallest stride up, each steps over all that lies within. */
static fp8_status check_strides(const char *name, fp8_strides x, int64_t batch, int64_t tokens,
                                int64_t heads, int64_t d) {
    extent all[3] = {{heads, x.head}, {tokens, x.token}, {batch, x.batch}};
    int64_t within = d;

    if (batch == 0 || tokens == 0) return FP8_OK;
    for (int i = 1; i < 3; i++) /* sorted by stride */
        for (int k = i; k > 0 && all[k].stride < all[k - 1].stride; k--) {
            const extent swapped = all[k];
            all[k] = all[k - 1];
            all[k - 1] = swapped;
        }
    for (int i = 0; i < 3; i++) {
        int64_t reach;
        if (all[i].size <= 1) continue;
        if (all[i].stride < within)
            return FP8_FAIL(FP8_EINVAL,
                            "attention: strides of %s (batch %lld, token %lld, head %lld) put two "
                            "of its elements in one place",
                            name, (long long)x.batch, (long long)x.token, (long long)x.head);
        if (__builtin_mul_overflow(all[i].stride, all[i].size - 1, &reach) ||
            __builtin_add_overflow(reach, within, &within))
            return FP8_FAIL(FP8_EOVERFLOW,
                            "attention: strides of %s (batch %lld, token %lld, head %lld) reach "
                            "beyond 2^63",
                            name, (long long)x.batch, (long long)x.token, (long long)x.head);
    }
    return FP8_OK;
}

/* Of the four tensors; `packed`: q_tokens and kv_tokens are totals, else of each sequence. */
static fp8_status check_all_strides(const fp8_attention_options *o, int packed, int64_t q_tokens,
                                    int64_t kv_tokens) {
    const int64_t batch = packed ? 1 : o->num_seqs;
    fp8_status st;
    FP8_TRY(check_strides("q", o->q, batch, q_tokens, o->num_heads, o->d_qk));
    FP8_TRY(check_strides("k", o->k, batch, kv_tokens, o->num_kv_heads, o->d_qk));
    FP8_TRY(check_strides("v", o->v, batch, kv_tokens, o->num_kv_heads, o->d_v));
    FP8_TRY(check_strides("o", o->o, batch, q_tokens, o->num_heads, o->d_v));
done:
    return st;
}

static fp8_status resolve_strides(fp8_attention_options *o) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    fp8_layout_strides x;
    fp8_status st;

    if (!o->has_strides) {
        FP8_TRY(fp8_attention_layout_strides(&x, o->layout, o->num_seqs, o->max_q, o->max_kv,
                                             o->num_heads, o->num_kv_heads, o->d_qk, o->d_v));
        o->q = x.q;
        o->k = x.k;
        o->v = x.v;
        o->o = x.o;
        o->has_strides = 1;
    }
    if (packed) o->q.batch = o->k.batch = o->v.batch = o->o.batch = 0;
    FP8_TRY(check_all_strides(o, packed, packed ? 1 : o->max_q, packed ? 1 : o->max_kv));
done:
    return st;
}

fp8_status attention_resolve_options(fp8_attention_options *out,
                                     const fp8_attention_options *options) {
    fp8_attention_options o = *options;
    fp8_status st;

    FP8_TRY(check_sizes(&o));
    FP8_TRY(check_enums(&o));
    FP8_TRY(check_types(&o));
    FP8_TRY(check_formula(&o));
    FP8_TRY(check_planes(&o));
    if (o.scale == 0.0f) o.scale = 1.0f / sqrtf((float)o.d_qk);
    if (o.window_left >= NO_WINDOW) o.window_left = -1;
    if (o.window_right >= NO_WINDOW) o.window_right = -1;
    FP8_TRY(resolve_strides(&o));
    *out = o;
done:
    return st;
}

/* ---- operands of a run ----------------------------------------------------------------------- */

static fp8_status check_descales(const fp8_attention_options *o, const fp8_attention_io *io) {
    const int given = o->quantize == FP8_QUANTIZE_GIVEN;
    if ((o->q_dtype == FP8_DTYPE_E4M3 || given) && !io->q_descale)
        return FP8_FAIL(FP8_EINVAL, "attention: Q is %s and q_descale is NULL",
                        given ? "to be quantized" : "E4M3");
    if ((o->kv_dtype == FP8_DTYPE_E4M3 || given) && (!io->k_descale || !io->v_descale))
        return FP8_FAIL(FP8_EINVAL, "attention: K, V are %s and k_descale=%p v_descale=%p",
                        given ? "to be quantized" : "E4M3", (const void *)io->k_descale,
                        (const void *)io->v_descale);
    return FP8_OK;
}

static fp8_status check_lengths(const fp8_attention_options *o, const fp8_attention_io *io) {
    if (fp8_attention_layout_is_packed(o->layout)) {
        if (!io->q_starts || !io->kv_starts)
            return FP8_FAIL(FP8_EINVAL, "attention: q_starts=%p kv_starts=%p",
                            (const void *)io->q_starts, (const void *)io->kv_starts);
        if (io->total_q < 0 || io->total_kv < 0)
            return FP8_FAIL(FP8_EINVAL, "attention: total_q %lld, total_kv %lld",
                            (long long)io->total_q, (long long)io->total_kv);
        return check_all_strides(o, 1, io->total_q, io->total_kv);
    }
    if (!o->padding && (io->q_lengths || io->kv_lengths))
        return FP8_FAIL(FP8_EINVAL, "attention: q_lengths=%p kv_lengths=%p, but the plan was made "
                                    "without padding",
                        (const void *)io->q_lengths, (const void *)io->kv_lengths);
    return FP8_OK;
}

/* One that the options ask for. */
static fp8_status check_wanted(int wanted, const void *x, const char *name) {
    if (!wanted || x) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "attention: the options ask for %s and it is NULL", name);
}

fp8_status attention_resolve_io(fp8_attention_io *out, const fp8_attention_options *o,
                                const fp8_attention_io *io) {
    const int has_bias = o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE;
    fp8_attention_io x = *io;
    int rows, keys;
    fp8_status st;

    FP8_TRY(check_lengths(o, io));
    if (!fp8_attention_layout_is_packed(o->layout)) {
        x.q_starts = x.kv_starts = NULL;
        x.total_q = o->num_seqs * o->max_q;
        x.total_kv = o->num_seqs * o->max_kv;
    }
    rows = x.total_q > 0;
    keys = x.total_kv > 0;
    FP8_TRY(check_wanted(rows, x.o, "o"));
    FP8_TRY(check_wanted(rows, x.q, "q"));
    FP8_TRY(check_wanted(keys, x.k, "k"));
    FP8_TRY(check_wanted(keys, x.v, "v"));
    FP8_TRY(check_descales(o, io));
    FP8_TRY(check_wanted(o->o_dtype == FP8_DTYPE_E4M3, x.o_scale, "o_scale"));
    FP8_TRY(check_wanted(o->mask == FP8_MASK_ARBITRARY && rows && keys, x.mask, "mask"));
    FP8_TRY(check_wanted(has_bias && rows && keys, x.bias, "bias"));
    FP8_TRY(check_wanted(o->sink == FP8_SINK_LEARNABLE, x.sink, "sink"));
    FP8_TRY(check_wanted(o->want_lse && rows, x.lse, "lse"));
    FP8_TRY(check_wanted(o->want_amax, x.amax_s, "amax_s"));
    FP8_TRY(check_wanted(o->want_amax, x.amax_o, "amax_o"));
    *out = x;
done:
    return st;
}
