/* attention/flash_softmax.cuh - private: row maximum, exponentials, P and the rescale of O, of
 * one tile of scores in a thread's registers. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_SOFTMAX_CUH
#define FP8_ATTENTION_FLASH_SOFTMAX_CUH
#include "attention/flash_producer.cuh"

/* ---- consumers: softmax ---------------------------------------------------------------------- */

/* Of a thread's two rows, r and r + 8 of its warp's 16. max is in units of S. */
struct row_state {
    float max[2];
    float sum[2][2]; /* of even and of odd columns */
    float alpha[2];  /* by which O is due to shrink */
    float offset[2]; /* p = 2^(S * factor + offset) */
};

/* Takes the maximum of one tile of scores in; factor turns S into a base-2 exponent. Four chains,
 * of both rows by even and odd columns, hide each other's latency. Where nothing was seen yet the
 * maximum is -Inf; exponents are then taken against 0, so that 2^-Inf = 0 comes out, not NaN. */
static __device__ __forceinline__ void raise_maximum(const float (&scores)[64], row_state &rows,
                                                     float factor) {
    float top[4] = {rows.max[0], scores[1], rows.max[1], scores[3]};
#pragma unroll
    for (int i = 0; i < 64; i++) top[i % 4] = fmaxf(top[i % 4], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = fmaxf(top[2 * h], top[2 * h + 1]);
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int h = 0; h < 2; h++)
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float base = top[h] == -INFINITY ? 0.0f : top[h];
        rows.offset[h] = fmaf(-base, factor, P_OFFSET);
        rows.alpha[h] = exp2_fast((rows.max[h] - base) * factor);
        rows.max[h] = top[h];
        rows.sum[h][0] *= rows.alpha[h];
        rows.sum[h][1] *= rows.alpha[h];
    }
}

/* S -> p in place, and into the sum, for half 0 or 1 of the columns. */
template <int HALF>
static __device__ __forceinline__ void exponentials(float (&scores)[64], row_state &rows,
                                                    float factor) {
#pragma unroll
    for (int i = 32 * HALF; i < 32 * HALF + 32; i++) {
        scores[i] = exp2_fast(fmaf(scores[i], factor, rows.offset[i / 2 % 2]));
        rows.sum[i / 2 % 2][i % 2] += scores[i];
    }
}

/* p of half 0 or 1 of the columns as the left operand of the next product, in the order of keys of
 * flash_prologue.cu. */
template <int HALF>
static __device__ __forceinline__ void pack_scores(uint32_t (&prob)[16],
                                                   const float (&scores)[64]) {
#pragma unroll
    for (int i = 4 * HALF; i < 4 * HALF + 4; i++) /* half k-steps: 16 keys */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float *x = scores + 8 * i + 2 * h;
            prob[2 * i + h] = pack_e4m3(x[0], x[1], x[4], x[5]);
        }
}

/* A whole tile of scores, where nothing else waits to be done. */
static __device__ __forceinline__ void softmax_step(uint32_t (&prob)[16], float (&scores)[64],
                                                    row_state &rows, float factor) {
    raise_maximum(scores, rows, factor);
    exponentials<0>(scores, rows, factor);
    pack_scores<0>(prob, scores);
    exponentials<1>(scores, rows, factor);
    pack_scores<1>(prob, scores);
}

/* O = O * alpha + T. */
template <int N>
static __device__ __forceinline__ void promote(float *out, const float (&sum)[N],
                                               const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = fmaf(out[i], alpha[i / 2 % 2], sum[i]);
}

#endif
