/* attention/flash_limits.h - private: tiles and limits of the flash backend, for its kernels and
 * for its check, which is built without CUDA too. */
#ifndef FP8_ATTENTION_FLASH_LIMITS_H
#define FP8_ATTENTION_FLASH_LIMITS_H
#include "attention/attention_impl.h"

enum {
    FLASH_BLOCK_M = 128,        /* query rows of a tile */
    FLASH_BLOCK_N = 128,        /* keys of a tile */
    FLASH_MAX_LENGTH = 1 << 29, /* keeps key indices plus a window in 32 bits */
    FLASH_MAX_ITEMS = 1 << 30   /* tiles of a run, for a 32-bit counter */
};
#endif
