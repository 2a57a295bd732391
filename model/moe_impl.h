/* model/moe_impl.h - private: what a token's experts are, for C and CUDA alike; and the checks that
 * both places make. */
#ifndef FP8_MODEL_MOE_IMPL_H
#define FP8_MODEL_MOE_IMPL_H
#include <math.h>
#include <stdint.h>

#include "model/ops.h"
#ifdef __CUDACC__
#define FP8_MOE_FN static inline __host__ __device__
#else
#define FP8_MOE_FN static inline
#endif

/* p [n] = softmax(p), in F32, in order. */
FP8_MOE_FN void fp8_moe_softmax(float *p, int64_t n) {
    float max = p[0], sum = 0.0f;
    for (int64_t i = 1; i < n; i++) max = p[i] > max ? p[i] : max;
    for (int64_t i = 0; i < n; i++) sum += p[i] = expf(p[i] - max);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
}

/* What is compared: a NaN is below every value, and above what was taken (-1), so that a token
 * has `per_token` different experts whatever its logits are. */
FP8_MOE_FN float fp8_moe_key(float p) { return p != p ? -0.5f : p; }

/* The experts of one token with their shares of p [experts], which is spoilt, by ascending index;
 * shares are not rounded yet. */
FP8_MOE_FN void fp8_moe_choose(int32_t *chosen, float *weights, float *p, int64_t experts,
                               int64_t per_token, int normalize) {
    float sum = 0.0f;

    for (int64_t c = 0; c < per_token; c++) {
        int32_t best = 0;
        int64_t at = c;
        float share;
        for (int32_t e = 1; e < experts; e++)
            best = fp8_moe_key(p[e]) > fp8_moe_key(p[best]) ? e : best;
        share = p[best];
        sum += share;
        p[best] = -1.0f;
        for (; at > 0 && chosen[at - 1] > best; at--) {
            chosen[at] = chosen[at - 1];
            weights[at] = weights[at - 1];
        }
        chosen[at] = best;
        weights[at] = share;
    }
    for (int64_t c = 0; normalize && c < per_token; c++) weights[c] /= sum;
}

#ifdef __cplusplus
extern "C" {
#endif

/* Of both places (moe_rows.c); FP8_EINVAL names what is wrong. */
FP8_NODISCARD fp8_status fp8_moe_check_route(const fp8_route *r);
FP8_NODISCARD fp8_status fp8_moe_check_combine(const void *x, const fp8_combine *c);
FP8_NODISCARD fp8_status fp8_route_cpu(fp8_device *d, const fp8_route *r);
FP8_NODISCARD fp8_status fp8_combine_cpu(fp8_device *d, void *x, const fp8_combine *c);

#ifdef __cplusplus
}
#endif
#endif
