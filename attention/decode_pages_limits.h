/* attention/decode_pages_limits.h - private: what the kernels over pages can do, for them and for
 * the check, which is built without CUDA too. */
#ifndef FP8_ATTENTION_DECODE_PAGES_LIMITS_H
#define FP8_ATTENTION_DECODE_PAGES_LIMITS_H
#include "attention/decode_impl.h"

/* Head sizes (d_qk, d_v) that have kernels. */
#define DECODE_PAGES_HEADS(X) X(64, 64) X(128, 128) X(192, 128) X(256, 256)

enum {
    DECODE_PAGES_VECTOR = 16,          /* bytes; of addresses and strides */
    DECODE_PAGES_MAX_KEYS = 1 << 28,   /* with DECODE_PAGES_NO_WINDOW keys stay within 32 bits */
    DECODE_PAGES_NO_WINDOW = 1 << 29,
    DECODE_PAGES_MAX_UNITS = 1 << 28,  /* of a run: tiles of all sequences and heads */
    DECODE_PAGES_QUARTERS = 4,         /* of a page: what is read of the last one */
    DECODE_PAGES_UNIT_FLOATS = 8,      /* of what blocks send each other, two of them unused */
    DECODE_PAGES_UNSENT_BYTE = 0xff    /* of a word of it that has not come */
};

#endif
