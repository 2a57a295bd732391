/* attention/warp_product.cuh - private: the product of one warp on 16-bit tensor cores. Included
 * inside the sm_90a guard. */
#ifndef FP8_ATTENTION_WARP_PRODUCT_CUH
#define FP8_ATTENTION_WARP_PRODUCT_CUH
#include "core/sm90.cuh"

/* d[16, 8] += A[16, 16] B[16, 8], operands BF16 or F16. Lane 4 g + t has d[g][2t, 2t + 1],
 * d[g + 8][2t, 2t + 1]; a = A[g][2t, +1], A[g + 8][2t, +1], A[g][2t + 8, +1], A[g + 8][2t + 8, +1];
 * b = B[2t, +1][g], B[2t + 8, +1][g]. */
template <bool BF16>
SM90 void warp_product(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                       uint32_t b0, uint32_t b1) {
    if constexpr (BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
