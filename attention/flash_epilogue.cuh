/* attention/flash_epilogue.cuh - private: O from registers to memory. Included once, inside the
 * sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_EPILOGUE_CUH
#define FP8_ATTENTION_FLASH_EPILOGUE_CUH
#include "attention/flash_mainloop.cuh"

/* ---- consumers: output ----------------------------------------------------------------------- */

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

/* O = bf16(out * v_descale / sum), 0 for a row that saw no key, whatever V holds (0 * NaN). A quad
 * of lanes writes 64 contiguous bytes of a row. */
template <int D>
static __device__ __forceinline__ void store_output(const float (&out)[D / 2],
                                                    const row_state &rows, const flash_params &p,
                                                    const consumer &c, const flash_item &it) {
    const float v_descale = *p.v_descale;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int32_t row = c.row + 8 * h;
        float sum = rows.sum[h][0] + rows.sum[h][1], norm;
        uint16_t *to = p.o + (it.q_row + row) * p.o_stride + (int64_t)it.head * D;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        norm = sum == 0.0f ? 0.0f : v_descale / sum;
#pragma unroll
        for (int j = 0; j < D / 8; j += 4) {
            uint32_t word[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const float *x = out + 4 * (j + k) + 2 * h;
                word[k] = norm == 0.0f ? 0 : pack_bf16(x[0] * norm, x[1] * norm);
            }
            transpose_quad(word);
            if (row < it.rows)
                *reinterpret_cast<uint4 *>(to + 8 * (j + threadIdx.x % 4)) =
                    make_uint4(word[0], word[1], word[2], word[3]);
        }
    }
}

#endif
