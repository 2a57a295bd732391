/* calib/real.h - private: elements of real tensors on the host, and how many pieces they make. */
#ifndef FP8_CALIB_REAL_H
#define FP8_CALIB_REAL_H
#include <stdint.h>
#include <string.h>

#include "core/dtype.h"
#include "core/half.h"

/* Element i of x, F32 | BF16 | F16; x of any alignment, as files have it. */
static inline float fp8_real_at(const void *x, fp8_dtype t, int64_t i) {
    const unsigned char *p = x;
    uint16_t half;
    float f;

    if (t == FP8_DTYPE_F32) {
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&half, p + 2 * i, sizeof half);
    return t == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
}

/* Pieces of `span` that n makes, the last one perhaps shorter. */
static inline int64_t fp8_pieces(int64_t n, int64_t span) { return (n + span - 1) / span; }
#endif
