/* An attention in words, for people who ask why. */
#include "attention/explain.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "attention/attention_impl.h"

static const char *const mask_names[] = {"none", "causal, top-left", "causal, bottom-right",
                                         "arbitrary"};
static const char *const shape_names[] = {"11ss", "1hss", "b1ss", "bhss"};
static const char *const bias_names[] = {"none", "pre-scale", "post-scale", "ALiBi"};
static const char *const sink_names[] = {"none", "off by one", "learnable"};
static const char *const granularity_names[] = {"per tensor", "per KV head",
                                                "per sequence and KV head"};
static const char *const quantize_names[] = {"", ", quantized to F8_E4M3 by given descales",
                                             ", quantized to F8_E4M3 by this call's amax"};

typedef struct text_out {
    char *text;
    size_t bytes, used;
} text_out;

static void put(text_out *out, const char *fmt, ...) FP8_PRINTF(2, 3);
static void put(text_out *out, const char *fmt, ...) {
    va_list ap;
    int n;
    va_start(ap, fmt);
    n = vsnprintf(out->text + out->used, out->bytes - out->used, fmt, ap);
    va_end(ap);
    if (n > 0) out->used += (size_t)n;
    if (out->used >= out->bytes) out->used = out->bytes - 1; /* cut, and ended */
}

static void put_strides(text_out *out, const char *name, fp8_strides x) {
    put(out, " %s %lld %lld %lld", name, (long long)x.batch, (long long)x.token,
        (long long)x.head);
}

static void put_shape(text_out *out, const fp8_attention_options *o) {
    const int packed = fp8_attention_layout_is_packed(o->layout);
    put(out, "shape: %lld sequences, up to %lld queries and %lld keys, %d heads over %d KV heads",
        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv, o->num_heads,
        o->num_kv_heads);
    put(out, ", d %d", o->d_qk);
    if (o->d_v != o->d_qk) put(out, " (values %d)", o->d_v);
    put(out, "\nlayout: %s%s;", fp8_attention_layout_name(o->layout),
        packed ? ", packed" : o->padding ? ", padded, with lengths" : "");
    put_strides(out, "strides (batch, token, head) q", o->q);
    put_strides(out, "k", o->k);
    put_strides(out, "v", o->v);
    put_strides(out, "o", o->o);
}

static void put_bound(text_out *out, int64_t keys) {
    if (keys < 0) put(out, "no bound");
    else put(out, "%lld", (long long)keys);
}

static void put_formula(text_out *out, const fp8_attention_options *o) {
    put(out, "\nmask: %s", mask_names[o->mask]);
    if (o->mask == FP8_MASK_ARBITRARY) put(out, ", %s", shape_names[o->mask_shape]);
    put(out, "\nwindow: left ");
    put_bound(out, o->window_left);
    put(out, ", right ");
    put_bound(out, o->window_right);
    put(out, "\nbias: %s", bias_names[o->bias]);
    if (o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE)
        put(out, ", %s, %s", shape_names[o->bias_shape], fp8_dtype_name(o->bias_dtype));
    put(out, "\nscale: %g\nsoftcap: ", (double)o->scale);
    if (o->softcap > 0.0f) put(out, "%g", (double)o->softcap);
    else put(out, "none");
    put(out, "\nsink: %s", sink_names[o->sink]);
}

/* The type in which the two products meet their operands, as far as the options fix it. */
static void put_precision(text_out *out, const fp8_attention_options *o) {
    const int quantized = o->quantize != FP8_QUANTIZE_NOT;
    const int q_codes = o->q_dtype == FP8_DTYPE_E4M3 || quantized;
    const int kv_codes = o->kv_dtype == FP8_DTYPE_E4M3 || quantized;

    put(out, "\nin: Q %s, K and V %s%s", fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype),
        quantize_names[o->quantize]);
    if (o->hadamard)
        put(out, ", Q and K rotated in blocks of %d", attention_hadamard_block(o->d_qk));
    if (q_codes || kv_codes) put(out, "; descales %s", granularity_names[o->granularity]);
    put(out, "\nout: O %s%s%s", fp8_dtype_name(o->o_dtype), o->want_lse ? ", LSE" : "",
        o->want_amax ? ", amax of P and O" : "");
    put(out, "\nprecision: Q K^T of %s by %s, softmax F32, P %s by V %s, ",
        fp8_dtype_name(q_codes ? FP8_DTYPE_E4M3 : o->q_dtype),
        fp8_dtype_name(kv_codes ? FP8_DTYPE_E4M3 : o->kv_dtype),
        o->quantize_p ? "F8_E4M3" : "not rounded to FP8",
        fp8_dtype_name(kv_codes ? FP8_DTYPE_E4M3 : o->kv_dtype));
    if (!q_codes && !kv_codes) put(out, "sums in F32");
    else if (o->precision == FP8_ATTENTION_FAST) put(out, "sums as the tensor cores keep them");
    else if (o->promote_keys > 0) put(out, "sums promoted to F32 every %d keys", o->promote_keys);
    else put(out, "sums promoted to F32");
}

fp8_status fp8_attention_describe(char *text, size_t bytes, const fp8_attention_options *options) {
    text_out out = {text, bytes, 0};
    fp8_attention_options o;
    fp8_status st;

    if (!text || bytes == 0 || !options)
        return FP8_FAIL(FP8_EINVAL, "attention: describe: text=%p of %zu bytes, options=%p",
                        (void *)text, bytes, (const void *)options);
    FP8_TRY(attention_resolve_options(&o, options));
    put_shape(&out, &o);
    put_formula(&out, &o);
    put_precision(&out, &o);
done:
    return st;
}

const char *fp8_attention_libraries(void) {
#if FP8_CUDA
    static _Thread_local char text[128];
    attention_cuda_libraries(text, sizeof text);
    return text;
#else
    return "a build without CUDA";
#endif
}
