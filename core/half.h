/* core/half.h - BF16 and FP16 bits <-> float, round to nearest even, NaN stays (quiet) NaN.
 *
 * Scalar and obvious: the oracle of every vector and CUDA conversion. FP8 is in quant/cast.h. */
#ifndef FP8_CORE_HALF_H
#define FP8_CORE_HALF_H
#include <stdint.h>
#include <string.h>

static inline uint32_t fp8_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float fp8_bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float fp8_bf16_to_f32(uint16_t b) { return fp8_bits_f32((uint32_t)b << 16); }

static inline uint16_t fp8_f32_to_bf16(float f) {
    const uint32_t u = fp8_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* The value a BF16 store would keep. */
static inline float fp8_round_bf16(float f) { return fp8_bf16_to_f32(fp8_f32_to_bf16(f)); }

static inline float fp8_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, man = h & 0x3ffu, exp = (h >> 10) & 31u;
    if (exp == 31u) return fp8_bits_f32(sign | 0x7f800000u | man << 13);
    if (exp == 0u) { /* subnormal: man * 2^-24 is exact */
        const float f = (float)man * 5.9604644775390625e-8f;
        return fp8_bits_f32(fp8_f32_bits(f) | sign);
    }
    return fp8_bits_f32(sign | (exp + 112u) << 23 | man << 13);
}

static inline uint16_t fp8_f32_to_f16(float f) {
    const uint32_t u = fp8_f32_bits(f), sign = (u >> 16) & 0x8000u;
    uint32_t mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to Inf */
    if (mag < 0x38800000u) { /* subnormal: adding 0.5 rounds at 2^-24 in the FPU */
        const float g = fp8_bits_f32(mag) + 0.5f;
        return (uint16_t)(sign | (fp8_f32_bits(g) - 0x3f000000u));
    }
    mag += 0xc8000fffu + ((mag >> 13) & 1u);
    return (uint16_t)(sign | mag >> 13);
}
#endif
