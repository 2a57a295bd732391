/* attention/flash_epilogue.cuh - private: O, LSE and amax from registers to memory. Included inside
 * the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_EPILOGUE_CUH
#define FP8_ATTENTION_FLASH_EPILOGUE_CUH
#include "attention/flash_items.cuh"

/* What a thread's rows, r and r + 8, came to. */
struct row_result {
    float max[2];  /* in units of the scores */
    float sum[2];  /* of 2^(S * factor - max * factor + offset) */
    bool sees[2]; /* a key whose score is not -Inf */
    float top[2]; /* ANY: the largest term of the sum; else it is 2^offset */
};

/* This lane's part of each sum becomes the whole, out becomes O: 0 for a row that saw no key,
 * whatever is in out (0 * NaN). */
template <int D>
static __device__ __forceinline__ void finish_rows(float (&out)[D / 2], row_result &r,
                                                   const flash_item &it, int32_t row) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float norm;
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
        r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
        r.sees[h] = row + 8 * h < it.valid && r.sum[h] != 0.0f;
        norm = it.v_descale / r.sum[h];
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = out[4 * j + 2 * h + e];
                x = r.sees[h] ? x * norm : 0.0f;
            }
    }
}

/* Lanes 4 q .. 4 q + 3 hold in word[k] their part of column block k; afterwards lane 4 q + t
 * holds block t whole. */
static __device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int low = step == 1 ? 2 * i : i, high = low + step;
            const uint32_t got =
                __shfl_xor_sync(0xffffffffu, upper ? word[low] : word[high], step);
            word[low] = upper ? got : word[low];
            word[high] = upper ? word[high] : got;
        }
    }
}

/* Up to 64 columns of a row: a quad of lanes writes 64 bytes of BF16 or F16 twice. x: the thread's
 * first of them, its others each 4 further. Stores that let L2 drop O before K and V: 2 to 9 % of a
 * short run (measured: docs/NOTES.md). */
static __device__ __forceinline__ void store_wide(uint16_t *to, const float *x, bool f16,
                                                  bool written, int32_t columns) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
        uint32_t word[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float *y = x + 4 * (j + k);
            word[k] = f16 ? pack_f16(y[0], y[1]) : pack_bf16(y[0], y[1]);
        }
        transpose_quad(word);
        if (written && 8 * (j + (int32_t)(threadIdx.x % 4)) < columns)
            __stcs(reinterpret_cast<uint4 *>(to + 8 * (j + threadIdx.x % 4)),
                   make_uint4(word[0], word[1], word[2], word[3]));
    }
}

/* The same in codes, up to 64 bytes. A word has two columns of each of two blocks of 8. */
static __device__ __forceinline__ void store_codes(uint8_t *to, const float *x, float scale,
                                                   bool written, int32_t columns) {
    uint32_t word[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float *y = x + 8 * k;
        word[k] = pack_e4m3(y[0] * scale, y[1] * scale, y[4] * scale, y[5] * scale);
    }
    transpose_quad(word);
    if (written && 16 * (int32_t)(threadIdx.x % 4) < columns)
        *reinterpret_cast<uint4 *>(to + 16 * (threadIdx.x % 4)) =
            make_uint4(__byte_perm(word[0], word[1], 0x5410), __byte_perm(word[2], word[3], 0x5410),
                       __byte_perm(word[0], word[1], 0x7632),
                       __byte_perm(word[2], word[3], 0x7632));
}

/* LSE = ln sum_j exp(S_j) with S in natural units, -Inf for a row that saw no key. ANY: maxima may
 * be exponents already. */
template <bool ANY>
static __device__ __forceinline__ void store_lse(const row_result &r, const flash_params &p,
                                                 const flash_item &it, int32_t row, float offset) {
    if (threadIdx.x % 4 != 0) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t i = row + 8 * h;
        const float lse =
            ((ANY && p.terms.changes ? r.max[h] : r.max[h] * it.factor) +
             (log2f(r.sum[h]) - offset)) *
            0.693147181f;
        const int64_t unit = (int64_t)it.seq * p.num_heads + it.head;
        const int64_t at = (p.q_starts ? it.head * p.total_q : unit * p.max_q) + it.q_begin +
                           it.first + i;
        if (i < it.rows) p.lse[at] = r.sees[h] ? lse : -INFINITY;
    }
}

/* Columns from `end` on, a multiple of 8, are none of O. */
template <int D>
static __device__ __forceinline__ void clear_columns(float (&out)[D / 2], int32_t end) {
    if (end == D) return;
#pragma unroll
    for (int i = 0; i < D / 2; i++) out[i] = i / 4 * 8 < end ? out[i] : 0.0f;
}

/* Floats that are not negative are in the order of their bits, NaN above them all. */
static __device__ __forceinline__ void raise_amax(float *to, uint32_t bits) {
    const uint32_t top = __reduce_max_sync(0xffffffffu, bits & 0x7fffffffu);
    if (threadIdx.x % 32 == 0 && top) atomicMax(reinterpret_cast<unsigned *>(to), top);
}

template <int D, bool ANY>
static __device__ __forceinline__ void observe(const float (&out)[D / 2], const row_result &r,
                                               const flash_params &p, float offset) {
    uint32_t top_o = 0, top_p = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float top = ANY ? r.top[h] : exp2f(offset);
        if (r.sees[h]) top_p = max(top_p, __float_as_uint(top / r.sum[h]));
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) top_o = max(top_o, __float_as_uint(out[i]) & 0x7fffffffu);
    raise_amax(p.amax_s, top_p);
    raise_amax(p.amax_o, top_o);
}

/* O of a thread's two rows; ANY: its first d_v columns. */
template <int D, bool CODES, bool ANY>
static __device__ __forceinline__ void store_rows(const float (&out)[D / 2],
                                                  const flash_params &p, const flash_item &it,
                                                  int32_t row) {
    const float o_scale = CODES ? *p.o_scale : 1.0f;
    const bool f16 = p.o_dtype == FP8_DTYPE_F16;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t i = row + 8 * h;
        const int64_t at = attention_offset(p.o_at, it.seq, it.q_begin + it.first + i, it.head);
#pragma unroll
        for (int c = 0; c < D; c += 64) {
            const float *x = out + c / 2 + 2 * h;
            const int32_t columns = ANY ? p.d_v - c : 64;
            if (CODES)
                store_codes(static_cast<uint8_t *>(p.o) + at + c, x, o_scale, i < it.rows, columns);
            else store_wide(static_cast<uint16_t *>(p.o) + at + c, x, f16, i < it.rows, columns);
        }
    }
}

/* Everything of an item that goes out. row: the thread's first; offset: of the exponents. NOTE:
 * with an else in place of the last test ptxas 13.0 spills, in the walk over the keys too. */
template <int D, bool ANY = false>
static __device__ __forceinline__ void store_output(float (&out)[D / 2], row_result &r,
                                                    const flash_params &p, const flash_item &it,
                                                    int32_t row, float offset) {
    finish_rows<D>(out, r, it, row);
    if constexpr (ANY) clear_columns<D>(out, p.d_v);
    if (p.lse) store_lse<ANY>(r, p, it, row, offset);
    if (p.amax_o) observe<D, ANY>(out, r, p, offset);
    if (p.o_dtype == FP8_DTYPE_E4M3) store_rows<D, true, ANY>(out, p, it, row);
    if (p.o_dtype != FP8_DTYPE_E4M3) store_rows<D, false, ANY>(out, p, it, row);
}
#endif
