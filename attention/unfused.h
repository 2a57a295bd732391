/* attention/unfused.h - private: the kernels around the two products of the unfused backend.
 *
 * A unit is one KV head of one sequence; its rows are query tokens times the query heads that
 * share it: row r of a slice is token token0 + r / group, head r % group of the group. Padded
 * operands are zero outside the sequence, so that garbage never meets the zeros of P. */
#ifndef FP8_ATTENTION_UNFUSED_H
#define FP8_ATTENTION_UNFUSED_H
#include "attention/attention_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What one pass handles: units [unit0, unit0 + units) by tokens [token0, token0 + tokens); those
 * beyond the last are skipped; and by the keys that one of these tokens may see, key0 and on.
 * Buffers are 16-byte aligned, key0 and pitches multiples of 16 elements. */
typedef struct attention_slice {
    fp8_attention_options options; /* resolved */
    fp8_attention_io io;
    int64_t unit0, units, token0, tokens;
    int64_t key0, s_pitch; /* keys key0 .. key0 + s_pitch are the columns of s and p */
    int64_t group, kv_pitch, d_qk_pitch, d_v_pitch;
    fp8_dtype qk_dtype, pv_dtype; /* of the two products: E4M3, BF16, F16 or F32 */
    const float *q_descale, *k_descale, *v_descale; /* by the granularity; NULL = 1 */
    float p_scale; /* what P carries: 2^8 in E4M3, 2^14 in F16, to keep small ones; else 1 */
    void *q;       /* [units, tokens * group, d_qk_pitch] */
    void *k;       /* [units, kv_pitch, d_qk_pitch] */
    void *v;       /* [units, kv_pitch, d_v_pitch], or E4M3 [units, d_v_pitch, kv_pitch] */
    float *s;      /* [units, tokens * group, s_pitch] q . k; overwritten by the softmax */
    void *p;       /* like s: p_scale * exp(score - max), 0 where not seen */
    float *factor; /* [units, tokens * group] what o is multiplied by: v_descale / (p_scale sum) */
    float *o;      /* [units, tokens * group, d_v_pitch] p v */
} attention_slice;

/* Each launches one kernel (gather_kv two) on `stream`. FP8_ECUDA: the launch failed. */
fp8_status attention_gather_q(const attention_slice *a, fp8_stream stream);
fp8_status attention_gather_kv(const attention_slice *a, fp8_stream stream);
fp8_status attention_softmax(const attention_slice *a, fp8_stream stream);
fp8_status attention_scatter_o(const attention_slice *a, fp8_stream stream);

#ifdef __cplusplus
}
#endif
#endif
