/* model/sample_impl.h - private: what both versions of fp8_sample share. */
#ifndef FP8_MODEL_SAMPLE_IMPL_H
#define FP8_MODEL_SAMPLE_IMPL_H
#include <math.h>

#include "model/sample.h"
#ifdef __CUDACC__
#define SAMPLE_INLINE static __host__ __device__ inline
#else
#define SAMPLE_INLINE static inline
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* splitmix64's finalizer: every bit of the result depends on every bit of x. */
SAMPLE_INLINE uint64_t sample_mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* z / temperature plus a Gumbel variable of (seed, position, id). */
SAMPLE_INLINE float sample_score(const fp8_sample_row *row, float z, int64_t id) {
    const uint64_t step = 0x9e3779b97f4a7c15u * (uint64_t)row->position;
    const uint64_t place = sample_mix(row->how.seed + step);
    const uint64_t bits = sample_mix(place ^ sample_mix((uint64_t)id + 0x9e3779b97f4a7c15u));
    const float u = ((float)(bits >> 41) + 0.5f) * 0x1p-23f; /* 23 bits: never 0, never 1 */
    return z / row->how.temperature - logf(-logf(u));
}

/* exp of how far z lies below the row's highest, in units of the temperature. */
SAMPLE_INLINE float sample_weight(const fp8_sampling *s, float z, float highest) {
    return z == highest ? 1.0f : expf((z - highest) / s->temperature);
}

/* fp8_sample of checked arguments; asynchronous (sample.cu). */
FP8_NODISCARD fp8_status sample_cuda(fp8_device *d, int32_t *ids, const void *logits,
                                     fp8_dtype dtype, const fp8_sample_row *rows,
                                     int64_t num_rows, int64_t vocab);

#ifdef __cplusplus
}
#endif
#endif
