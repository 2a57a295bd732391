/* attention/decode_gathered.h - private: keys and values out of their pages, for the backend that
 * then runs an fp8_attention plan over them. */
#ifndef FP8_ATTENTION_DECODE_GATHERED_H
#define FP8_ATTENTION_DECODE_GATHERED_H
#include "attention/decode_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the keys go: sequence s has rows s * room .. of k [num_seqs * room, num_kv_heads, d_qk] and
 * v [.., d_v], in `dtype`: that of the pages, or a real type, descaled. The four arrays [num_seqs]
 * are starts and lengths for fp8_attention_run; sequences that are another part's have none. */
typedef struct gathered_keys {
    void *k, *v;
    int32_t *q_starts, *q_lengths, *kv_starts, *kv_lengths;
    int64_t room, q_least, q_most;
    fp8_dtype dtype;
} gathered_keys;

/* Two launches. Asynchronous. */
fp8_status gather_keys(fp8_device *d, const gathered_keys *to, const fp8_kv_pages *pages,
                       const fp8_kv_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
