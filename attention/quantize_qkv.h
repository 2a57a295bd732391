/* attention/quantize_qkv.h - private: Q, K and V of any layout as E4M3 codes: what quantize asks
 * for (FP8_QUANTIZE_GIVEN, FP8_QUANTIZE_CURRENT).
 *
 *   code = e4m3(x * (1 / descale)), in F32
 *   descale: given, or amax / 448 of the finite values of this call's sequences (1 where that amax
 *   is 0); one a tensor, KV head or (sequence, KV head), as the options say
 *
 * Options and io are resolved ones (attention_impl.h). Tensors that are E4M3 already are passed
 * over: their codes and descales stay those of io. Nothing allocates or waits; the same input gives
 * the same bytes; lengths and starts are read on the device. */
#ifndef FP8_ATTENTION_QUANTIZE_QKV_H
#define FP8_ATTENTION_QUANTIZE_QKV_H
#include "attention/attention_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Descales of one tensor: 1, num_kv_heads or num_seqs * num_kv_heads. */
int64_t attention_descale_count(const fp8_attention_options *o);

/* descales: out, device F32 [3][attention_descale_count]: those of Q, K, V. Those of tensors that
 * are E4M3 already are not written. A few operations on the stream. FP8_ECUDA. */
fp8_status attention_current_descales(float *descales, const fp8_attention_options *o,
                                      const fp8_attention_io *io, fp8_stream stream);

/* Where codes go, and by which descales: io's, or those that attention_current_descales made.
 * Token i of sequence s, head h lies at attention_offset(strides, s, begin + i, h), as in x: the
 * strides of a packed copy in the same token order are {max * heads * d or 0, heads * d, d}. */
typedef struct attention_codes {
    uint8_t *q, *k, *v; /* out, device; 8-byte aligned and strides multiples of 8 are fastest.
                         * NULL: not this tensor */
    fp8_strides q_strides, k_strides, v_strides; /* elements */
    const float *q_descale, *k_descale, *v_descale;
} attention_codes;

/* One kernel. Only tokens of sequences are written. FP8_ECUDA. */
fp8_status attention_quantize_qkv(const attention_codes *codes, const fp8_attention_options *o,
                                  const fp8_attention_io *io, fp8_stream stream);

#ifdef __cplusplus
}
#endif
#endif
