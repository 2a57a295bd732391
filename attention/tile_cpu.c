#include "attention/tile_cpu.h"

#include <math.h>
#include <string.h>

#include "core/half.h"

/* Contraction is off for the whole library: each instruction set says what its multiply-add is. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TILE_X86 1
#include <immintrin.h>
#else
#define TILE_X86 0
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Moving the seven magnitude bits under a float's exponent leaves the value times 2^-120,
 * subnormals too; the one code of a magnitude that is not a number is 0x7f. */
static ALWAYS_INLINE float e4m3_value(uint8_t code) {
    const float magnitude = fp8_bits_f32((code & 0x7fu) << 20) * 0x1p120f;
    const uint32_t bits = (code & 0x7fu) == 0x7fu ? 0x7fc00000u : fp8_f32_bits(magnitude);
    return fp8_bits_f32(bits | (code & 0x80u) << 24);
}

#define NAME(x) x##_plain
#define LANES 4
#define BLOCK_M 4
#define SPREAD(x) ((VF){(x), (x), (x), (x)})
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
#define LANE_MAX(a, b) pick_plain((VI)((a) > (b)), (a), (b))
#include "attention/tile_cpu_impl.h"
static const attention_tile_kernels plain = {"plain", widen_plain, raise_max_plain, step_plain};

#if TILE_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_avx2
#define LANES 8
#define BLOCK_M 4
#define SPREAD(x) (VF) _mm256_set1_ps(x)
#define MUL_ADD(a, b, c) (VF) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define LANE_MAX(a, b) (VF) _mm256_max_ps((__m256)(a), (__m256)(b))
#include "attention/tile_cpu_impl.h"
#pragma GCC pop_options
static const attention_tile_kernels avx2 = {"AVX2", widen_avx2, raise_max_avx2, step_avx2};

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define NAME(x) x##_avx512
#define LANES 16
#define BLOCK_M 8
#define SPREAD(x) (VF) _mm512_set1_ps(x)
#define MUL_ADD(a, b, c) (VF) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define LANE_MAX(a, b) (VF) _mm512_max_ps((__m512)(a), (__m512)(b))
#include "attention/tile_cpu_impl.h"
#pragma GCC pop_options
static const attention_tile_kernels avx512 = {"AVX-512", widen_avx512, raise_max_avx512,
                                              step_avx512};
#endif

const attention_tile_kernels *attention_tile_kernels_at(int32_t index) {
    const attention_tile_kernels *runs[3];
    int32_t n = 0;
#if TILE_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        runs[n++] = &avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) runs[n++] = &avx2;
#endif
    runs[n++] = &plain;
    return index < n ? runs[index] : NULL;
}
