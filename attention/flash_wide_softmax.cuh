/* attention/flash_wide_softmax.cuh - private: P of 64 keys from their scores in a thread's
 * registers, without the maximum wherever the last one still serves. Included once, inside the
 * sm_90a guard.
 *
 * Exponents are taken against a maximum of earlier keys. Where a p then rounds to E4M3's largest
 * code, or is NaN, the step is done once more against a new maximum: a warp decides for its 16
 * rows, and from then on looks at the largest score of a step first, which costs 5 % of a run over
 * flat rows and saves 15 % over steep ones. A maximum's p is 2^3, so that later ones may be 2^5.75
 * times larger before that. */
#ifndef FP8_ATTENTION_FLASH_WIDE_SOFTMAX_CUH
#define FP8_ATTENTION_FLASH_WIDE_SOFTMAX_CUH
#include "attention/flash_items.cuh"
#include "attention/flash_sm90.cuh"

#define WIDE_OFFSET 3.0f /* a new maximum's p is 2^3 */
#define WIDE_MOST 8.75f  /* 2^8.75 rounds to less than 448 */

/* Of a thread's two rows, r and r + 8 of its warp's 16. */
struct wide_rows {
    float offset[2]; /* p = 2^(S * factor + offset); Inf: no key seen yet */
    float sum[2];    /* of the codes of p, every lane of a quad the whole */
    bool careful;    /* a step of the warp had to be done twice */
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

/* The largest of these scores in either of the thread's rows, two chains a row. */
static __device__ __forceinline__ void largest(float (&top)[2], const float (&scores)[32]) {
    float part[4] = {scores[0], scores[1], scores[2], scores[3]};
#pragma unroll
    for (int i = 4; i < 32; i++) part[i % 4] = fmaxf(part[i % 4], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = fmaxf(part[2 * h], part[2 * h + 1]);
}

/* The rows' offsets with keys whose largest scores, of this lane, are top; alpha: by which O and
 * the sums are due to shrink; offset: what exponents are taken against, 0 where no key was seen. */
static __device__ __forceinline__ void lower_offsets(float (&offset)[2], float (&top)[2],
                                                     wide_rows &rows, float factor,
                                                     float (&alpha)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
        const float next = fminf(rows.offset[h], fmaf(-top[h], factor, WIDE_OFFSET));
        offset[h] = next == INFINITY ? 0.0f : next; /* 2^-Inf = 0, not NaN */
        alpha[h] = exp2_fast(offset[h] - rows.offset[h]);
        rows.offset[h] = next;
    }
}

/* P against the maximum with these keys; alpha: by which O and the sums are due to shrink. */
static __device__ __forceinline__ void raise_offsets(uint32_t (&prob)[8],
                                                     const float (&scores)[32], wide_rows &rows,
                                                     float factor, float (&alpha)[2]) {
    float top[2] = {-INFINITY, -INFINITY}, offset[2]; /* one chain a row: fewer registers */
#pragma unroll
    for (int i = 0; i < 32; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
    lower_offsets(offset, top, rows, factor, alpha);
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

/* The same, careful once it had to do a step twice. */
static __device__ __forceinline__ bool softmax_careful(uint32_t (&prob)[8],
                                                       const float (&scores)[32], wide_rows &rows,
                                                       float factor, float (&alpha)[2]) {
    float top[2], offset[2] = {rows.offset[0], rows.offset[1]};
    bool grows = false;

    if (!rows.careful) return rows.careful = softmax_wide(prob, scores, rows, factor, alpha);
    largest(top, scores);
#pragma unroll
    for (int h = 0; h < 2; h++)
        grows = grows || !(fmaf(top[h], factor, offset[h]) <= WIDE_MOST);
    grows = __any_sync(0xffffffffu, grows);
    if (grows) lower_offsets(offset, top, rows, factor, alpha);
    (void)codes_of(prob, scores, factor, offset);
    return grows;
}

/* d 64 has no register for careful. */
template <int D>
static __device__ __forceinline__ bool softmax_of(uint32_t (&prob)[8], const float (&scores)[32],
                                                  wide_rows &rows, float factor,
                                                  float (&alpha)[2]) {
    if (D > 64) return softmax_careful(prob, scores, rows, factor, alpha);
    return softmax_wide(prob, scores, rows, factor, alpha);
}
#endif
