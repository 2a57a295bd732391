/* attention/flash_wide_softmax.cuh - private: P of 64 keys from their scores in a thread's
 * registers, without the maximum wherever the last one still serves. Included once, inside the
 * sm_90a guard.
 *
 * Exponents are taken against a maximum of earlier keys. Where a p then rounds to E4M3's largest
 * code, or is NaN, the step is done once more against a new maximum: a warp decides for its 16
 * rows. A maximum's p is 2^6, so that later ones may be 2^2.75 times larger before that. */
#ifndef FP8_ATTENTION_FLASH_WIDE_SOFTMAX_CUH
#define FP8_ATTENTION_FLASH_WIDE_SOFTMAX_CUH
#include "attention/flash_items.cuh"
#include "attention/flash_sm90.cuh"

#define WIDE_OFFSET 6.0f /* a new maximum's p is 2^6 */

/* Of a thread's two rows, r and r + 8 of its warp's 16. */
struct wide_rows {
    float offset[2]; /* p = 2^(S * factor + offset); Inf: no key seen yet */
    float sum[2];    /* of the codes of p, every lane of a quad the whole */
};

/* P as the left operand of the next product, in the order of keys of flash_prologue.cu; the sign
 * bits of the result are set where a code is 448 or NaN. */
static __device__ __forceinline__ uint32_t codes_of(uint32_t (&prob)[8], const float (&scores)[32],
                                                    float factor, const float (&offset)[2]) {
    uint32_t full = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) /* half k-steps: 16 keys */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float *x = scores + 8 * i + 2 * h;
            float y[4];
#pragma unroll
            for (int e = 0; e < 4; e++)
                y[e] = exp2_fast(fmaf(x[e / 2 * 4 + e % 2], factor, offset[h]));
            prob[2 * i + h] = pack_e4m3(y[0], y[1], y[2], y[3]);
            full |= prob[2 * i + h] + 0x02020202u; /* codes are at most 0x7f: no carry */
        }
    return full & 0x80808080u;
}

/* P against the maximum with these keys; alpha: by which O and the sums are due to shrink. */
static __device__ __forceinline__ void raise_offsets(uint32_t (&prob)[8],
                                                     const float (&scores)[32], wide_rows &rows,
                                                     float factor, float (&alpha)[2]) {
    float top[2] = {-INFINITY, -INFINITY}, offset[2];
#pragma unroll
    for (int i = 0; i < 32; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
        const float next = fminf(rows.offset[h], fmaf(-top[h], factor, WIDE_OFFSET));
        offset[h] = next == INFINITY ? 0.0f : next; /* 2^-Inf = 0, not NaN */
        alpha[h] = exp2_fast(offset[h] - rows.offset[h]);
        rows.offset[h] = next;
    }
    (void)codes_of(prob, scores, factor, offset);
}

/* P of a step; true: O and the sums are due to shrink by alpha. */
static __device__ __forceinline__ bool softmax_wide(uint32_t (&prob)[8], const float (&scores)[32],
                                                    wide_rows &rows, float factor,
                                                    float (&alpha)[2]) {
    const uint32_t full = codes_of(prob, scores, factor, rows.offset);
    const bool grows = __any_sync(0xffffffffu, full);
    if (grows) raise_offsets(prob, scores, rows, factor, alpha);
    return grows;
}
#endif
