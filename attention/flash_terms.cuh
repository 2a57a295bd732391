/* attention/flash_terms.cuh - private: what flash_any.cu and flash16_any.cu do to scores beside
 * scale and visibility, and the sink. Included inside the sm_90a guard.
 *
 * Computes   y = S * c (+ bias * c before the cap), c to base-2 exponents
 *            y = cap * tanh(y / cap) (+ bias after it, + slope * (key - diagonal)); -Inf where the
 *            mask is not 0
 *            then p = 2^(y - max) with a factor of 1; a sink adds 2^sink to the sum
 * Loads      a thread reads the elements of its own scores: of a row 2 columns of each 8, so that a
 *            quad of lanes reads 8 in a row, two in one load where rows begin on their alignment.
 *            Nothing is read for keys that the row does not see, nor for rows that are not there */
#ifndef FP8_ATTENTION_FLASH_TERMS_CUH
#define FP8_ATTENTION_FLASH_TERMS_CUH
#include <cuda_fp16.h>

#include "attention/flash_epilogue.cuh"

#define LOG2_E 1.44269504f

/* ---- elements -------------------------------------------------------------------------------- */

/* Of a thread's rows, r and r + 8, in a tile of scores: the columns 8 j + e from its first on that
 * it needs are lo <= 8 j + e < hi. */
struct term_rows {
    int32_t lo[2], hi[2];
    int32_t first; /* key of column 0 */
};

/* NOTE: each term finds them anew, behind a wall to the compiler, which else keeps what all of them
 * compare in registers that there are not. */
static __device__ __forceinline__ term_rows find_rows(const flash_item &it, int32_t row,
                                                      int32_t first) {
    uint32_t column = first + 2 * (threadIdx.x % 4);
    term_rows r;
    pin(column);
    r.first = (int32_t)column;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.lo[h] = key_begin(it, row + 8 * h) - r.first;
        r.hi[h] = row + 8 * h < it.valid ? key_end(it, row + 8 * h) - r.first : INT32_MIN;
    }
    return r;
}

/* Elements of BYTES, as bits. */
struct two_elements {
    uint32_t x, y;
};

template <int BYTES>
static __device__ __forceinline__ uint32_t load_element(const uint8_t *from) {
    if constexpr (BYTES == 4) return __ldg(reinterpret_cast<const uint32_t *>(from));
    else if constexpr (BYTES == 2) return __ldg(reinterpret_cast<const uint16_t *>(from));
    else return __ldg(from);
}

template <int BYTES, bool PAIRS>
static __device__ __forceinline__ two_elements load_two(const uint8_t *from, bool first,
                                                        bool second) {
    two_elements t = {0, 0};
    if constexpr (!PAIRS) {
        if (first) t.x = load_element<BYTES>(from);
        if (second) t.y = load_element<BYTES>(from + BYTES);
    } else if constexpr (BYTES == 4) {
        if (!first && !second) return t;
        const uint2 both = __ldg(reinterpret_cast<const uint2 *>(from));
        t = {both.x, both.y};
    } else {
        if (!first && !second) return t;
        const uint32_t both = load_element<2 * BYTES>(from);
        t = {both & ((1u << 8 * BYTES) - 1), both >> 8 * BYTES};
    }
    return t;
}

/* visit(i, bits of the element of score i) for a thread's N scores of a tile; `from`: its first
 * row's column 0, `below`: bytes to the second's. BATCH: loads under way, of 2 elements of both
 * rows. NOTE: with PAIRS an element beside one that is seen is read too: rows are of an even
 * number of elements, so that it is there. */
template <int BYTES, bool PAIRS, int BATCH, int N, typename VISIT>
static __device__ __forceinline__ void visit_elements(const uint8_t *from, int64_t below,
                                                      const term_rows &r, VISIT visit) {
    static_assert(N / 4 % BATCH == 0, "whole batches");
#pragma unroll
    for (int j = 0; j < N / 4; j += BATCH) {
        two_elements got[BATCH][2];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int column = 8 * (j + k);
                got[k][h] = load_two<BYTES, PAIRS>(
                    from + h * below + column * BYTES, column >= r.lo[h] && column < r.hi[h],
                    column + 1 >= r.lo[h] && column + 1 < r.hi[h]);
            }
#pragma unroll
        for (int k = 0; k < BATCH; k++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                visit(4 * (j + k) + 2 * h, got[k][h].x);
                visit(4 * (j + k) + 2 * h + 1, got[k][h].y);
            }
    }
}

/* Bytes from `data` to the thread's first row's column 0. */
static __device__ __forceinline__ int64_t term_offset(const flash_params &p, const flash_item &it,
                                                      const term_rows &r, int32_t row,
                                                      int64_t seq_stride, int64_t head_stride,
                                                      int32_t bytes) {
    return (it.seq * seq_stride + it.head * head_stride +
            (int64_t)(it.first + row) * p.max_kv + r.first) * bytes;
}

/* ---- terms ----------------------------------------------------------------------------------- */

/* A tile's bias of 16 bits in pairs, asked for a tile early where there are registers: words[2 j +
 * h] has the columns 8 j and 8 j + 1 of row h. */
static __device__ __forceinline__ bool bias_comes_early(const flash_terms &t) {
    return t.bias && t.bias_pairs && t.bias_dtype != FP8_DTYPE_F32;
}

template <int N>
static __device__ __forceinline__ void ask_for_bias(uint32_t (&words)[N], const flash_params &p,
                                                    const flash_item &it, int32_t row,
                                                    int32_t first) {
    const flash_terms &t = p.terms;
    const term_rows r = find_rows(it, row, first);
    const uint8_t *from = static_cast<const uint8_t *>(t.bias) +
                          term_offset(p, it, r, row, t.bias_seq, t.bias_head, 2);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int column = 4 * (i - i % 2), h = i % 2;
        words[i] = 0;
        if (column + 1 >= r.lo[h] && column < r.hi[h])
            words[i] = load_element<4>(from + (h * (int64_t)8 * p.max_kv + column) * 2);
    }
}

template <int N>
static __device__ __forceinline__ void add_words(float (&scores)[N], const uint32_t (&words)[N / 2],
                                                 const flash_terms &t) {
    const float factor = t.bias_factor;
    if (t.bias_dtype == FP8_DTYPE_F16) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float2 x = __half22float2(*reinterpret_cast<const __half2 *>(&words[i]));
            scores[2 * i] = fmaf(x.x, factor, scores[2 * i]);
            scores[2 * i + 1] = fmaf(x.y, factor, scores[2 * i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            scores[2 * i] = fmaf(__uint_as_float(words[i] << 16), factor, scores[2 * i]);
            scores[2 * i + 1] =
                fmaf(__uint_as_float(words[i] & 0xffff0000u), factor, scores[2 * i + 1]);
        }
    }
}

template <int BATCH, bool EARLY, int N>
static __device__ __forceinline__ void add_bias(float (&scores)[N], const flash_params &p,
                                                const flash_item &it, int32_t row, int32_t first) {
    const flash_terms &t = p.terms;
    const term_rows r = find_rows(it, row, first);
    const bool wide = t.bias_dtype == FP8_DTYPE_F32, f16 = t.bias_dtype == FP8_DTYPE_F16;
    const bool pairs = t.bias_pairs;
    const int32_t bytes = wide ? 4 : 2;
    const uint8_t *from = static_cast<const uint8_t *>(t.bias) +
                          term_offset(p, it, r, row, t.bias_seq, t.bias_head, bytes);
    const int64_t below = (int64_t)8 * p.max_kv * bytes;
    const float factor = t.bias_factor;
    const auto add_wide = [&](int i, uint32_t bits) {
        scores[i] = fmaf(__uint_as_float(bits), factor, scores[i]);
    };
    const auto add_half = [&](int i, uint32_t bits) {
        const float half = __half2float(__ushort_as_half((unsigned short)bits));
        scores[i] = fmaf(f16 ? half : __uint_as_float(bits << 16), factor, scores[i]);
    };

    if (wide && pairs) visit_elements<4, true, BATCH, N>(from, below, r, add_wide);
    else if (wide) visit_elements<4, false, BATCH, N>(from, below, r, add_wide);
    else if (!EARLY && pairs) visit_elements<2, true, BATCH, N>(from, below, r, add_half);
    else visit_elements<2, false, BATCH, N>(from, below, r, add_half);
}

template <int BATCH, int N>
static __device__ __forceinline__ void hide_masked(float (&scores)[N], const flash_params &p,
                                                   const flash_item &it, int32_t row,
                                                   int32_t first) {
    const flash_terms &t = p.terms;
    const term_rows r = find_rows(it, row, first);
    const uint8_t *from = t.mask + term_offset(p, it, r, row, t.mask_seq, t.mask_head, 1);
    const int64_t below = (int64_t)8 * p.max_kv;
    uint32_t hidden[2] = {0, 0}; /* a bit a score; scores are chosen when all are known */
    const auto note = [&](int i, uint32_t bits) { hidden[i / 32] |= (bits != 0) << i % 32; };

    static_assert(N <= 64, "bits");
    if (t.mask_pairs) visit_elements<1, true, BATCH, N>(from, below, r, note);
    else visit_elements<1, false, BATCH, N>(from, below, r, note);
    pin(hidden);
#pragma unroll
    for (int i = 0; i < N; i++) scores[i] = hidden[i / 32] >> i % 32 & 1 ? -INFINITY : scores[i];
}

/* cap * tanh(y / cap). tanh z = 1 - 2 / (1 + e^2z) loses what is left of z below 1/8, where the
 * series is exact to 3e-8; in all within 2e-6 of the value. twice: 2 log2(e) / cap. */
static __device__ __forceinline__ float bend(float y, float cap, float twice) {
    const float z = y * twice * (0.5f / LOG2_E), zz = z * z;
    const float series = fmaf(zz, fmaf(zz, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f) * y;
    const float whole = cap + __fdividef(-2.0f * cap, 1.0f + exp2_fast(y * twice));
    return fabsf(z) < 0.125f ? series : whole;
}

template <int N>
static __device__ __forceinline__ void bend_scores(float (&scores)[N], float cap) {
    const float twice = 2.0f * LOG2_E / cap;
#pragma unroll
    for (int i = 0; i < N; i++) scores[i] = bend(scores[i], cap, twice);
}

/* Scores of a tile, as the product leaves them, to exponents with every term. row: the thread's
 * first; first: key of the tile; early: the bias is in `words`. What a row does not see is left to
 * mask_scores. */
template <int BATCH, bool EARLY, int N>
static __device__ __forceinline__ void change_scores(float (&scores)[N],
                                                     const uint32_t (&words)[N / 2], bool early,
                                                     const flash_params &p, const flash_item &it,
                                                     float slope, int32_t row, int32_t first) {
    const flash_terms &t = p.terms;
    const float factor = it.factor;

#pragma unroll
    for (int i = 0; i < N; i++) scores[i] *= factor;
    if (t.cap != 0.0f && !t.bias_first) bend_scores(scores, t.cap);
    if (EARLY && early) add_words(scores, words, t);
    else if (t.bias) add_bias<BATCH, EARLY>(scores, p, it, row, first);
    if (t.cap != 0.0f && t.bias_first) bend_scores(scores, t.cap);
    if (t.alibi) {
        const int32_t distance =
            first + 2 * (int32_t)(threadIdx.x % 4) - (it.begin + p.left + row);
#pragma unroll
        for (int i = 0; i < N; i++)
            scores[i] = fmaf(slope, (float)(distance + 8 * (i / 4 - i / 2 % 2) + i % 2),
                             scores[i]);
    }
    if (t.mask) hide_masked<BATCH>(scores, p, it, row, first);
}

/* A head's slope in exponents. */
static __device__ __forceinline__ float slope_of(const flash_params &p, const flash_item &it) {
    if (!p.terms.alibi) return 0.0f;
    return LOG2_E * (p.terms.slopes ? p.terms.slopes[it.head]
                                    : attention_alibi_slope(it.head, p.num_heads));
}

/* ---- sink ------------------------------------------------------------------------------------ */

/* The sink joins the sums; where it is above the maximum it takes its place. Maxima are exponents.
 * NOTE: of a row that saw no key nothing but the sink is left, whatever is in out. */
template <int D>
static __device__ __forceinline__ void add_sink(float (&out)[D / 2], row_result &r,
                                                const flash_params &p, const flash_item &it,
                                                float offset) {
    const float sink = p.terms.sink ? p.terms.sink[it.head] * LOG2_E : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = r.sum[h], top = sink, alpha = 0.0f;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const bool sees = sum != 0.0f;
        if (sees) {
            const float base = r.max[h] == -INFINITY ? 0.0f : r.max[h];
            top = fmaxf(base, sink);
            alpha = exp2_fast(base - top);
        }
        sum = (sees ? sum * alpha : 0.0f) + exp2_fast(sink - top + offset);
        r.sum[h] = threadIdx.x % 4 == 0 ? sum : 0.0f; /* finish_rows adds the four */
        r.max[h] = top;
        r.top[h] *= alpha;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = out[4 * j + 2 * h + e];
                x = sees ? x * alpha : 0.0f;
            }
    }
}
#endif
