/* attention/layout.h - where the elements of Q, K, V and O lie: the layouts that Transformer
 * Engine names, as strides, and back from three pointers and their strides to a name.
 *
 * A name says how the three tensors share memory and in which order the dimensions stand: b batch,
 * s sequence, t packed tokens, h head, d head size, 3 or 2 = tensors interleaved at that place.
 * Element (b, s, h, d) of a tensor is base + b * batch + s * token + h * head + d. */
#ifndef FP8_ATTENTION_LAYOUT_H
#define FP8_ATTENTION_LAYOUT_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* id, name */
#define FP8_ATTENTION_LAYOUTS(X)                                                                  \
    X(SB3HD, "sb3hd")                                                                             \
    X(SBH3D, "sbh3d")                                                                             \
    X(SBHD_SB2HD, "sbhd_sb2hd")                                                                   \
    X(SBHD_SBH2D, "sbhd_sbh2d")                                                                   \
    X(SBHD_SBHD_SBHD, "sbhd_sbhd_sbhd")                                                           \
    X(BS3HD, "bs3hd")                                                                             \
    X(BSH3D, "bsh3d")                                                                             \
    X(BSHD_BS2HD, "bshd_bs2hd")                                                                   \
    X(BSHD_BSH2D, "bshd_bsh2d")                                                                   \
    X(BSHD_BSHD_BSHD, "bshd_bshd_bshd")                                                           \
    X(T3HD, "t3hd")                                                                               \
    X(TH3D, "th3d")                                                                               \
    X(THD_T2HD, "thd_t2hd")                                                                       \
    X(THD_TH2D, "thd_th2d")                                                                       \
    X(THD_THD_THD, "thd_thd_thd")                                                                 \
    X(BHSD_BHSD_BHSD, "bhsd_bhsd_bhsd")

typedef enum fp8_attention_layout {
#define X(id, name) FP8_LAYOUT_##id,
    FP8_ATTENTION_LAYOUTS(X)
#undef X
    FP8_NUM_LAYOUTS
} fp8_attention_layout;

typedef struct fp8_strides {
    int64_t batch, token, head; /* elements; batch is 0 where tokens are packed (thd) */
} fp8_strides;

/* Strides of a layout; `offset`: of the tensor's first element from that of the memory it shares
 * with others (sb3hd: K lies h * d elements after Q), 0 where it has its own. */
typedef struct fp8_layout_strides {
    fp8_strides q, k, v, o; /* o: as q would be alone in that order */
    int64_t q_offset, k_offset, v_offset;
} fp8_layout_strides;

const char *fp8_attention_layout_name(fp8_attention_layout l);
FP8_NODISCARD fp8_status fp8_attention_layout_parse(fp8_attention_layout *out, const char *name);
int fp8_attention_layout_is_packed(fp8_attention_layout l); /* thd: tokens of all sequences */

/* b, s_q, s_kv: sequences and padded lengths (ignored where tokens are packed). Layouts that share
 * memory between Q and K, V need num_heads = num_kv_heads, s_q = s_kv and d_qk = d_v, those that
 * interleave K and V d_qk = d_v: else FP8_EINVAL. */
FP8_NODISCARD fp8_status fp8_attention_layout_strides(fp8_layout_strides *out,
                                                      fp8_attention_layout l, int64_t b,
                                                      int64_t s_q, int64_t s_kv, int32_t num_heads,
                                                      int32_t num_kv_heads, int32_t d_qk,
                                                      int32_t d_v);

/* The layout whose strides these are, for tensors whose first elements lie at q, k, v (only
 * differences are used, in elements of `element_bytes`). packed: tokens of all sequences, batch
 * strides are not looked at. FP8_EUNSUPPORTED: none of them. Sizes of 1 leave a stride free. */
FP8_NODISCARD fp8_status fp8_attention_layout_detect(
    fp8_attention_layout *out, const void *q, const void *k, const void *v, const fp8_strides *qs,
    const fp8_strides *ks, const fp8_strides *vs, int packed, size_t element_bytes, int64_t b,
    int64_t s_q, int64_t s_kv, int32_t num_heads, int32_t num_kv_heads, int32_t d_qk, int32_t d_v);

#ifdef __cplusplus
}
#endif
#endif
