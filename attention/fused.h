/* attention/fused.h - private: which masks the fused backend's graph needs, for its check and its
 * build. */
#ifndef FP8_ATTENTION_FUSED_H
#define FP8_ATTENTION_FUSED_H
#include "attention/attention_impl.h"

/* A lone query sees all keys, so only longer ones need the causal mask. */
static inline int attention_fused_causal(const fp8_attention_options *o) {
    return o->mask != FP8_MASK_NONE && o->max_q > 1;
}

static inline int attention_fused_window(const fp8_attention_options *o) {
    return o->window_left >= 0 && o->window_left + 1 < o->max_kv;
}
#endif
