/* attention/fused.h - private: the kernels around cuDNN's attention: what lengths and starts become
 * before it, and what it leaves to be done after. */
#ifndef FP8_ATTENTION_FUSED_H
#define FP8_ATTENTION_FUSED_H
#include "attention/attention_impl.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fused_view {
    fp8_attention_options options;
    fp8_attention_io io;
    int32_t *q_length, *kv_length; /* [num_seqs], as cuDNN is to see them */
    int64_t *q_offset, *k_offset, *v_offset, *o_offset; /* [num_seqs + 1] elements */
    const float *stats; /* packed, with want_lse: [num_seqs, num_heads, max_q] */
    uint8_t *kept;      /* FP8: FUSED_KEPT_HEADER bytes, then a row of O */
} fused_view;

enum { FUSED_KEPT_HEADER = 16 };

/* Clamped lengths, and where each sequence begins. cuDNN's FP8 kernels stop with an error at a
 * sequence without queries, and never end at one without keys: they are shown another sequence of
 * the batch in its place, which is then computed twice. Where there is no other, the first row of a
 * sequence without keys (finish() blanks it), or without queries too row 0 of O, which is kept and
 * put back. In the other types a sequence without keys becomes one without queries.
 * Asynchronous. FP8_ECUDA. */
fp8_status attention_fused_prepare(const fused_view *v, fp8_stream stream);

/* O = 0 and LSE = -inf (or the sink's) in rows that see no key, and in those of a layout that is
 * not packed beyond a sequence's length; LSE of packed tokens to its place; amax of nothing 0.
 * lengths: prepare() came before. Asynchronous. */
fp8_status attention_fused_finish(const fused_view *v, int lengths, fp8_stream stream);

/* Nonzero when a run of these options may need finish(). */
int attention_fused_unfinished(const fp8_attention_options *o);

#ifdef __cplusplus
}
#endif
#endif
