/* attention/flash.h - private: what the host half of the flash backend hands to its kernels. */
#ifndef FP8_ATTENTION_FLASH_H
#define FP8_ATTENTION_FLASH_H
#include <cuda.h> /* CUtensorMap; nothing of libcuda is linked */

#include "attention/flash_limits.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One run. Item i is one tile of queries of one head; a unit is a (sequence, query head). Units are
 * taken in bands, so that the keys and values of a band stay in L2; within a band the last tiles of
 * all units come first: under a causal mask they are the longest. */
typedef struct flash_params {
    CUtensorMap q_map; /* (d, head, token), box (d up to 128, 1, FLASH_BLOCK_M) */
    CUtensorMap k_map; /* (d, KV head, token), box (d up to 128, 1, FLASH_BLOCK_N) */
    CUtensorMap v_map; /* (key, (sequence, KV head, d)) of v_transposed, box (FLASH_BLOCK_N, d) */
    uint16_t *o;
    const uint8_t *v;
    uint8_t *v_transposed; /* [num_seqs, num_kv_heads, d, kv_pitch], keys permuted: flash_v.cu */
    int32_t *next_item;    /* counter, set to 0 by flash_v.cu */
    const int32_t *q_starts, *kv_starts;
    const int32_t *q_lengths, *kv_lengths; /* may be NULL */
    const float *q_descale, *k_descale, *v_descale;
    int64_t o_stride, v_stride, total_q, total_kv, kv_pitch;
    int32_t num_seqs, num_heads, num_kv_heads, max_q, max_kv;
    int32_t tiles, band, units, num_items; /* tiles of max_q; units a band; units; items */
    int32_t causal, window;                /* window FLASH_MAX_LENGTH * 2 = none */
    float scale;
} flash_params;

/* FP8_EUNSUPPORTED when this build holds no sm_90a code for head size d; else makes room for the
 * kernel's shared memory on the current device. */
fp8_status attention_flash_prepare(int32_t d);

/* V -> v_transposed, next_item = 0. Asynchronous. */
fp8_status attention_flash_transpose(const flash_params *p, int32_t d, fp8_stream stream);

/* The attention itself, on `blocks` persistent blocks. Asynchronous. */
fp8_status attention_flash_launch(const flash_params *p, int32_t d, int32_t blocks,
                                  fp8_stream stream);

#ifdef __cplusplus
}
#endif
#endif
