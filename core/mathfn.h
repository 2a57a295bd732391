/* core/mathfn.h - private: functions of float made for loops that the compiler turns into vectors:
 * no calls, no branches, no tables. Put FP8_VECTOR before a (static) function that holds such a
 * loop: it is compiled for AVX2 too and the version is chosen when the program is loaded. Both give
 * the same bits, since nothing is contracted or reordered. */
#ifndef FP8_CORE_MATHFN_H
#define FP8_CORE_MATHFN_H
#include "core/half.h"

/* Not under ThreadSanitizer: it is not up yet when the choice is made. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__SANITIZE_THREAD__)
#define FP8_VECTOR __attribute__((target_clones("avx2", "default")))
#else
#define FP8_VECTOR
#endif

/* e^x within 1 ulp (all floats tried); overflows to Inf, underflows through the subnormals
 * to 0, NaN stays NaN. x = n ln 2 + r; e^r = 1 + r + r^2 q(r), q fitted for |r| <= ln 2 / 2. */
static inline float fp8_expf(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const uint32_t bits = fp8_f32_bits(x), mag = bits & 0x7fffffffu, limit = 0x42d00000u; /* 104 */
    /* |x| in (104, Inf] becomes 104, in integers: float compares would keep the loop scalar. */
    const uint32_t capped = mag - limit - 1u < 0x7f800000u - limit ? limit : mag;
    const float clamped = fp8_bits_f32((bits & 0x80000000u) | capped);
    const float shifted = clamped * 0x1.715476p+0f + magic, n = shifted - magic;
    const int32_t i = (int32_t)(fp8_f32_bits(shifted) - fp8_f32_bits(magic));
    const int32_t half = i >> 1; /* 2^n as a product of two: |n| reaches 150 */
    const float r = (clamped - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
    const float q = 0x1.fffffcp-2f +
                    r * (0x1.555492p-3f +
                         r * (0x1.5558f2p-5f + r * (0x1.1239e2p-7f + r * 0x1.6a2434p-10f)));
    const float e = 1.0f + (r + r * r * q);
    return e * fp8_bits_f32((uint32_t)(127 + half) << 23) *
           fp8_bits_f32((uint32_t)(127 + i - half) << 23);
}

/* x / (1 + e^-x) */
static inline float fp8_siluf(float x) { return x / (1.0f + fp8_expf(-x)); }

/* x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3), written as x / (1 + e^-2u): the same, and
 * without the cancellation of 1 + tanh near -1. */
static inline float fp8_gelu_tanhf(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.0f + fp8_expf(-2.0f * u));
}
#endif
