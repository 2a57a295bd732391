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
    FLASH16_YIELDS = 1024       /* queries up to which flash comes before fused at d 256 */
};

/* In 16 bits: keys and query rows of a tile (measured: docs/NOTES.md). */
#define FLASH16_KEYS(d) ((d) == 256 ? 80 : (d) == 128 ? 176 : 128)
#define FLASH16_ROWS(d) ((d) == 64 ? 192 : 128)

/* Q, K and V stay in BF16 or F16. */
static inline int flash_is_16(const fp8_attention_options *o) {
    return o->q_dtype != FP8_DTYPE_E4M3 && o->kv_dtype != FP8_DTYPE_E4M3 &&
           o->quantize == FP8_QUANTIZE_NOT;
}
#endif
