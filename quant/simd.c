/* Which version of the row primitives this processor runs. */
#include "quant/simd.h"

#include <stddef.h>

#if defined(__x86_64__)
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const fp8_simd *fp8_simd_at(fp8_simd_level level) {
    if (level == FP8_SIMD_SCALAR) return &fp8_simd_scalar;
#if defined(__x86_64__)
    if (level == FP8_SIMD_AVX2 && has_avx2()) return &fp8_simd_avx2;
    if (level == FP8_SIMD_AVX512 && has_avx512()) return &fp8_simd_avx512;
#endif
    return NULL;
}

const fp8_simd *fp8_simd_best(void) {
    for (int level = FP8_NUM_SIMD_LEVELS - 1; level > FP8_SIMD_SCALAR; level--) {
        const fp8_simd *s = fp8_simd_at((fp8_simd_level)level);
        if (s) return s;
    }
    return &fp8_simd_scalar;
}
