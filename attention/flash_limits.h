/* attention/flash_limits.h - private: tiles and limits of the flash backend, for its kernels and
 * for its check, which is built without CUDA too. */
#ifndef FP8_ATTENTION_FLASH_LIMITS_H
#define FP8_ATTENTION_FLASH_LIMITS_H
#include "attention/attention_impl.h"

enum {
    FLASH_BLOCK_M = 128,        /* query rows of a tile */
    FLASH_BLOCK_N = 128,        /* keys of a tile of codes */
    FLASH_TILE = 128,           /* tokens of a block of the prologue; lengths of codes round up */
    FLASH_VECTOR = 16,          /* bytes; maps, loads and stores ask it of addresses and strides */
    FLASH_MAX_LENGTH = 1 << 29, /* with FLASH_NO_WINDOW keeps key indices within 32 bits */
    FLASH_NO_WINDOW = 1 << 30,
    FLASH_MAX_ITEMS = 1 << 30,  /* tiles of a run, for a 32-bit counter */
    FLASH16_YIELDS = 1024,      /* queries up to which flash comes before fused at d 256 */
    FLASH_WIDE_KEYS = 4096,     /* flash_wide.cu serves from these lengths (docs/NOTES.md) */
    FLASH_WIDE_TURN_KEYS = 1024, /* and from these where V is turned in the kernel */
    FLASH_WIDE_QUERIES = 1024,
    FLASH_WIDE_ITEMS = 132,     /* and these tiles of queries, one a multiprocessor */
    FLASH_WIDE_ROWS = 64,       /* of a warpgroup */
    FLASH_SHARED_TILES = 3,     /* tiles of keys a block must save, for items to be shared evenly */
    FLASH_SHARED_KEYS = 1 << 15, /* tiles of keys an item, for 32 bits */
    FLASH_PROMOTE_KEYS = 512,   /* its default between promotions at d 64 */
    FLASH_CENTRE_KEYS = 1440,   /* the same at d 128 and 256, where sums start below 0 */
    FLASH_STATIC_KEYS = 2048,   /* up to which items need no counter */
    FLASH_AS_IS_READS = 8       /* of V, up to which it is not transposed before */
};

/* In 16 bits: keys and query rows of a tile (measured: docs/NOTES.md). */
#define FLASH16_KEYS(d) ((d) == 256 ? 80 : (d) == 128 ? 176 : 128)
#define FLASH16_ROWS(d) ((d) == 64 ? 192 : 128)
/* The same of flash16_any.cu, of 128 rows, by the head size of V and whether a bias comes early. */
#define FLASH16_ANY_KEYS(v, early)                                                                 \
    ((v) == 256 ? 64 : (v) == 192 || ((early) && (v) == 128) ? 96 : 128)

/* Q, K and V stay in BF16 or F16. */
static inline int flash_is_16(const fp8_attention_options *o) {
    return o->q_dtype != FP8_DTYPE_E4M3 && o->kv_dtype != FP8_DTYPE_E4M3 &&
           o->quantize == FP8_QUANTIZE_NOT;
}

/* What changes scores beside scale and visibility, or joins their sum. */
static inline int flash_has_terms(const fp8_attention_options *o) {
    return o->mask == FP8_MASK_ARBITRARY || o->bias != FP8_BIAS_NONE || o->softcap > 0.0f ||
           o->sink != FP8_SINK_NONE;
}

/* flash_any.cu or flash16_any.cu serves: those terms, or head sizes beside 64, 128 and 256. */
static inline int flash_is_any(const fp8_attention_options *o) {
    const int even = o->d_qk == o->d_v && (o->d_v == 64 || o->d_v == 128 || o->d_v == 256);
    return !even || flash_has_terms(o);
}

/* Scores there: without terms, with any, or with a bias of 16 bits that is asked for a tile before
 * it is used. The first and the last at 64 and 128 alone, where there are registers for them. */
typedef enum flash_any_kind { FLASH_ANY_PLAIN, FLASH_ANY_TERMS, FLASH_ANY_EARLY } flash_any_kind;

/* Head sizes of the kernel there that serves: the smallest pair that d_qk and d_v fit into; what is
 * beyond them is 0 in shared memory and not written. */
typedef struct flash_sizes {
    int32_t qk, v;
    flash_any_kind kind;
} flash_sizes;

static inline flash_sizes flash_any_sizes(const fp8_attention_options *o) {
    static const int32_t all[][2] = {{64, 64}, {128, 128}, {192, 128}, {192, 192}, {256, 256}};
    const int bias = o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE;
    flash_any_kind kind = FLASH_ANY_TERMS;
    int i = 0;
    while (i < 4 && (o->d_qk > all[i][0] || o->d_v > all[i][1])) i++;
    if (i < 2 && !flash_has_terms(o)) kind = FLASH_ANY_PLAIN;
    if (i < 2 && bias && o->bias_dtype != FP8_DTYPE_F32) kind = FLASH_ANY_EARLY;
    return (flash_sizes){all[i][0], all[i][1], kind};
}

/* Columns of a block of the prologue: the most, up to FLASH_TILE, that d_qk and d_v are multiples
 * of. */
static inline int32_t flash_part(const fp8_attention_options *o) {
    int32_t part = FLASH_TILE;
    while (part > 16 && (o->d_qk % part || o->d_v % part)) part -= 16;
    return part;
}

/* V in codes is read so few times that it is turned where it is used, not in a pass of its own: by
 * tiles of queries; under a causal mask by half of them. */
static inline int flash_turns_v(const fp8_attention_options *o) {
    const int halved = o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    return o->kv_dtype == FP8_DTYPE_E4M3 && !flash_is_any(o) &&
           (o->max_q + FLASH_BLOCK_M - 1) / FLASH_BLOCK_M * (o->num_heads / o->num_kv_heads) <=
               (halved ? 2 : 1) * FLASH_AS_IS_READS;
}

/* Query rows of a tile of flash_wide.cu, 0 when another kernel serves: short sequences, 16 bits,
 * terms, or what it does not do: amax, LSE (its sums are of the rounded p). Where V is turned in
 * the kernel, which is at d 128 alone, it serves shorter ones. */
static inline int32_t flash_wide_rows(const fp8_attention_options *o) {
    const int32_t rows = o->d_v == 64 ? 256 : o->d_v == 128 ? 192 : 128;
    const int64_t items = (o->max_q + rows - 1) / rows * o->num_heads * o->num_seqs;
    const int32_t least = o->d_v == 128 && flash_turns_v(o) ? FLASH_WIDE_TURN_KEYS
                                                            : FLASH_WIDE_KEYS;
    if (flash_is_16(o) || flash_is_any(o) || o->want_amax || o->want_lse) return 0;
    if (o->max_q < FLASH_WIDE_QUERIES || o->max_kv < least) return 0;
    return items < FLASH_WIDE_ITEMS ? 0 : rows;
}

/* flash_wide.cu can make codes while it attends (flash_later.cuh): of Q, K and V all, as they are;
 * the plan decides (flash_items_cuda.c). */
static inline int flash_can_make_later(const fp8_attention_options *o) {
    return flash_wide_rows(o) > 0 && o->d_v == 128 && !o->hadamard &&
           o->q_dtype != FP8_DTYPE_E4M3 && o->kv_dtype != FP8_DTYPE_E4M3;
}

/* And find their scales there: those of a KV head of a sequence, from its own data. */
static inline int flash_can_observe_later(const fp8_attention_options *o) {
    return flash_can_make_later(o) && o->quantize == FP8_QUANTIZE_CURRENT &&
           (o->granularity == FP8_DESCALE_BATCH_HEAD ||
            (o->granularity == FP8_DESCALE_HEAD && o->num_seqs == 1));
}

/* Whether it is: over long sequences flash_wide.cu reads it transposed. */
static inline int flash_v_as_is(const fp8_attention_options *o) {
    return flash_turns_v(o) && (o->max_kv < FLASH_WIDE_KEYS || flash_wide_rows(o) == 0);
}
#endif
