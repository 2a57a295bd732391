/* attention/qkv_descales.h - private: the descales of FP8_QUANTIZE_CURRENT, from Q, K and V of any
 * layout.
 *
 *   descale = amax / 448 of the finite values of this call's sequences (attention_descale_of): one
 *   a tensor, KV head or (sequence, KV head), as the options say
 *
 * Options and io are resolved ones (attention_impl.h). Nothing allocates or waits; the same input
 * gives the same bytes; lengths and starts are read on the device. */
#ifndef FP8_ATTENTION_QKV_DESCALES_H
#define FP8_ATTENTION_QKV_DESCALES_H
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

#ifdef __cplusplus
}
#endif
#endif
