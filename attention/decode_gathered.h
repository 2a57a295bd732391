/* attention/decode_gathered.h - private: keys and values out of their pages, for the backend that
 * then runs an fp8_attention plan over them. */
#ifndef FP8_ATTENTION_DECODE_GATHERED_H
#define FP8_ATTENTION_DECODE_GATHERED_H
#include "attention/decode_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where the keys go: the c-th sequence of this part has rows c * room .. of k [chunks * room,
 * num_kv_heads, d_qk] and v [.., d_v], in `dtype`: that of the pages, or a real type, descaled. Its
 * queries are cut into pieces of `piece`, each a sequence of fp8_attention_run that sees the keys
 * up to its own end: a grid over the longest of few short ones is small. Sequences of this part
 * beyond `chunks` are left out. */
typedef struct gathered_keys {
    void *k, *v;
    int32_t *q_starts, *q_lengths, *kv_starts, *kv_lengths; /* [pieces]; lengths 0: no such piece */
    int32_t *sequence, *keys; /* [chunks]: which of the batch it is, and its keys; 0: none */
    int64_t chunks, pieces, piece;
    int64_t room, q_least, q_most;
    int causal; /* else a piece is a whole sequence and sees all keys */
    fp8_dtype dtype;
} gathered_keys;

/* Two launches. Asynchronous. */
fp8_status gather_keys(fp8_device *d, const gathered_keys *to, const fp8_kv_pages *pages,
                       const fp8_kv_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
