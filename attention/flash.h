/* attention/flash.h - private: what the host half of the flash backend hands to its kernels. */
#ifndef FP8_ATTENTION_FLASH_H
#define FP8_ATTENTION_FLASH_H
#include <cuda.h> /* CUtensorMap; nothing of libcuda is linked */

#include "attention/flash_limits.h"
#include "attention/flash_order.h"
#include "attention/flash_steps.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What changes the scores beside scale and visibility, and what joins their sum, for flash_any.cu
 * and flash16_any.cu: flash_terms.cuh. Scores are base-2 exponents there, and so are the two caps'
 * factors. */
typedef struct flash_terms {
    const uint8_t *mask;       /* nonzero masks out; NULL: none */
    const void *bias;          /* NULL: none */
    const float *slopes;       /* ALiBi; NULL: attention_alibi_slope's */
    const float *sink;         /* [num_heads], natural; NULL: 0 */
    int64_t mask_seq, mask_head, bias_seq, bias_head; /* elements from one to the next; 0: shared */
    int32_t changes;           /* 0: scores are as the product and the scale leave them */
    int32_t bias_dtype;        /* fp8_dtype */
    int32_t bias_pairs, mask_pairs; /* elements 2 i, 2 i + 1 of a row lie on their alignment */
    int32_t bias_first;        /* it comes before the cap */
    int32_t alibi, has_sink;
    float bias_factor;         /* elements to exponents */
    float cap;                 /* 0: none */
} flash_terms;

/* One run. Item i is one tile of queries of one head; a unit is a (sequence, query head). Units are
 * taken in bands, so that the keys and values of a band stay in L2; within a band the last tiles of
 * all units come first: under a causal mask they are the longest.
 *
 * Maps of Q, K and V are (d, head, token, sequence), boxes (up to 128 bytes of d, 1, tokens of a
 * tile, 1). Tokens of a packed layout are all of one sequence, 0, and count from the first in the
 * buffer (q_packed, kv_packed); else from the sequence's. V in codes is transposed unless v_as_is:
 * its map is (key, (sequence, KV head, d)), boxes (FLASH_BLOCK_N, d). */
typedef struct flash_params {
    CUtensorMap q_map, k_map, v_map;
    void *o;
    fp8_strides o_at;
    const float *o_scale;    /* of codes */
    float *lse;              /* NULL: not wanted; so are the two below */
    float *amax_s, *amax_o;  /* 0 when the kernel starts */
    int32_t *next_item;      /* counter, 0 when the kernel starts; NULL: items by their index */
    const int32_t *q_starts, *q_lengths, *kv_starts, *kv_lengths; /* NULL as in the io */
    const float *q_descale, *k_descale, *v_descale; /* of codes */
    int64_t total_q, total_kv;
    int32_t num_seqs, num_heads, num_kv_heads, max_q, max_kv;
    int32_t q_packed, kv_packed, v_as_is;
    int32_t tiles, band, units, num_items; /* tiles of max_q; units a band; units; items */
    int32_t top_left, left, right; /* diagonal, and keys seen before and after it */
    int32_t granularity;           /* fp8_attention_granularity */
    int32_t o_dtype;               /* fp8_dtype: BF16, F16 or E4M3 */
    int32_t promote_keys, promote_mask; /* flash_wide.cu: the most keys between promotions; at d 64
                                         * tiles of keys, a power of two, - 1 */
    /* flash_wide.cu: the first `split` items, of them short_items last tiles of queries, are shared
     * evenly by the blocks: flash_wide_parts.cuh. They have key_tiles tiles of keys, the short ones
     * count for short_tiles. 0: items are in the order above */
    int32_t split, short_items, key_tiles, short_tiles;
    int32_t stretch, longer; /* tiles a block; blocks that have one more */
    int32_t *arrived; /* [blocks, warps of consumers], 0 when the kernel starts */
    float *pieces;    /* [blocks, d / 8 + 1, threads of consumers, 4] */
    float scale;
    int32_t d_v;       /* flash_any.cu, flash16_any.cu: at most the kernel's */
    flash_terms terms; /* of these two alone */
} flash_params;

/* A tile of queries of one head, resolved by the producer. Row r < valid sees the keys from
 * max(0, begin + r) to before min(s_kv, end + r). */
typedef struct flash_item {
    int32_t rows;  /* to be written; 0: no more items */
    int32_t valid; /* of them of the sequence; what follows is 0 */
    int32_t head, kv_head, seq, first;
    int32_t s_kv, begin, end;
    int32_t first_tile, num_tiles; /* of keys that any row sees */
    int32_t clear_begin, clear_end; /* tiles that every row sees all of; none: begin >= end */
    int32_t q_row, kv_row;         /* of the first query, of key 0, in their maps */
    int32_t q_begin;               /* token 0 of the sequence in O */
    int32_t slot;                  /* of an item in parts: where they are added up; -1: whole */
    float factor;                  /* scores to base-2 exponents */
    float v_descale;
} flash_item;

/* One of Q, K, V for the prologue. */
typedef struct flash_operand {
    const void *from;      /* codes, BF16 or F16 */
    fp8_strides at;
    const int32_t *starts, *lengths;
    int64_t total;
    uint8_t *codes;        /* out: [num_seqs, heads, pitch, d], transposed [num_seqs, heads, d,
                            * pitch] */
    const float *descale;  /* NULL for codes, or with amax */
    uint32_t *amax;        /* [num_descales] bits of floats; NULL: descales are given */
    float *made;           /* out with amax: [num_descales] */
    int32_t blocks;        /* of the grid; 0: nothing to make */
    int32_t observed;      /* with amax: tiles it is found of before, from the first on */
    int32_t heads, d, longest, pitch; /* pitch: `longest` in whole tiles */
    int32_t is_codes, transposed;
} flash_operand;

typedef struct flash_prologue {
    flash_operand x[3]; /* Q, K, V */
    int32_t *next_item; /* out: 0, as are num_counters in all from there */
    int32_t num_counters;
    float *amax_s, *amax_o; /* out: 0; may be NULL */
    int32_t part; /* columns of a block: all that an operand has, or a part of them */
    int32_t num_kv_heads, num_descales, granularity;
    int32_t f16;       /* what are no codes is F16, not BF16 */
    int32_t backwards; /* 1 with amax */
    int32_t beside; /* V's codes and what of rotated Q and K comes next are made side by side */
} flash_prologue;

/* Codes that flash_wide.cu makes while it attends, at d 128: those of the groups (a KV head of a
 * sequence) from `first` on; flash_later.cuh. */
typedef struct flash_later {
    flash_prologue prologue;
    int32_t groups, first;  /* all of them, 0: it makes none; the first to make */
    int32_t observes;       /* it finds their amax too, that of a group from the group alone */
    int32_t tasks;          /* tiles of K, V and Q of a group */
    int32_t *next;          /* counter, 0 when the kernel starts */
    int32_t *seen, *made;   /* [groups] tasks done, of amax and of codes, 0 when it starts */
} flash_later;

/* FP8_EUNSUPPORTED when this build holds no sm_90a code for head size d; else makes room for the
 * kernel's shared memory on the current device. */
fp8_status attention_flash_prepare(int32_t d, int v_as_is);

/* The codes, and zeros for the kernel to start from. One launch; two more with amax; one, of one
 * block, when there is nothing to make. Asynchronous. */
fp8_status attention_flash_prologue(const flash_prologue *p, const flash_queue *to);

/* Q and K alone, both in blocks of p->part columns (32, 64 or 128), rotated within them: their amax
 * (observe), or their codes. One launch. Asynchronous. */
fp8_status attention_flash_rotate(const flash_prologue *p, int observe, int32_t num_sms,
                                  const flash_queue *to);

/* The attention itself, on `blocks` persistent blocks, after the prologue. Asynchronous. */
fp8_status attention_flash_launch(const flash_params *p, int32_t d, int32_t blocks,
                                  const flash_queue *to);

/* The same over long sequences (flash_wide.cu): tiles of flash_wide_rows, no amax. order: of the
 * items, where V comes as it lies. */
fp8_status attention_flash_wide_prepare(const flash_params *p, int32_t d);
fp8_status attention_flash_wide_launch(const flash_params *p, const flash_order *order,
                                       const flash_later *later, int32_t d, int32_t blocks,
                                       const flash_queue *to);

/* The same with terms and for other head sizes (flash_any.cu), V in codes transposed, its map of
 * boxes (FLASH_BLOCK_N, d.v), those of Q and K of flash_any_row_bytes(d). */
fp8_status attention_flash_any_prepare(flash_sizes d);
fp8_status attention_flash_any_launch(const flash_params *p, flash_sizes d, int32_t blocks,
                                      const flash_queue *to);

/* The same in 16 bits (flash16_any.cu); maps as below, of FLASH16_ANY_KEYS. */
fp8_status attention_flash16_any_prepare(flash_sizes d, int f16);
fp8_status attention_flash16_any_launch(const flash_params *p, flash_sizes d, int f16,
                                        int32_t blocks, const flash_queue *to);

/* The same in BF16 or F16: a 16-bit operand each, V as it lies; maps' boxes are 64 columns by
 * FLASH_BLOCK_M or FLASH16_KEYS(d) tokens. */
fp8_status attention_flash16_prepare(int32_t d, int f16);
fp8_status attention_flash16_launch(const flash_params *p, int32_t d, int f16, int32_t blocks,
                                    const flash_queue *to);

#ifdef __cplusplus
}
#endif
#endif
