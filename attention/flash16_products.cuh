/* attention/flash16_products.cuh - private: tensor-core products of 16-bit operands for flash16.cu.
 * Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH16_PRODUCTS_CUH
#define FP8_ATTENTION_FLASH16_PRODUCTS_CUH
#include "core/sm90.cuh"

/* ---- register lists: N accumulators of a thread, and their names in the instruction ---------- */

#define REGS8(c, d, i)                                                                             \
    c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]),         \
        c(d[i + 7])
#define REGS32(c, d, i) REGS8(c, d, i), REGS8(c, d, i + 8), REGS8(c, d, i + 16), REGS8(c, d, i + 24)
#define REGS_32(c, d) REGS32(c, d, 0)
#define REGS_40(c, d) REGS32(c, d, 0), REGS8(c, d, 32)
#define REGS_48(c, d) REGS_40(c, d), REGS8(c, d, 40)
#define REGS_64(c, d) REGS32(c, d, 0), REGS32(c, d, 32)
#define REGS_88(c, d) REGS_64(c, d), REGS8(c, d, 64), REGS8(c, d, 72), REGS8(c, d, 80)
#define REGS_96(c, d) REGS_88(c, d), REGS8(c, d, 88)
#define REGS_128(c, d) REGS_64(c, d), REGS32(c, d, 64), REGS32(c, d, 96)

#define NAMES_32                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                         \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40                                                                                   \
    NAMES_32                                                                                       \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_48                                                                                   \
    NAMES_40                                                                                       \
    ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64                                                                                   \
    NAMES_32                                                                                       \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"             \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_88                                                                                   \
    NAMES_64                                                                                       \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
    ", %80, %81, %82, %83, %84, %85, %86, %87"
#define NAMES_96                                                                                   \
    NAMES_88                                                                                       \
    ", %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128                                                                                  \
    NAMES_64                                                                                       \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119"                                             \
    ", %120, %121, %122, %123, %124, %125, %126, %127"

/* ---- products -------------------------------------------------------------------------------- */

#define PRODUCT_SS(N, count, type, constraint, A, B, P)                                            \
    asm volatile("{\n"                                                                             \
                 ".reg .pred p;\n"                                                                 \
                 "setp.ne.b32 p, %" #P ", 0;\n"                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {"              \
                 NAMES_##count "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n"                             \
                 "}"                                                                               \
                 : REGS_##count(constraint, d)                                                     \
                 : "l"(a), "l"(b), "r"(accumulate))
#define PRODUCT_RS(N, count, type, A0, A1, A2, A3, B)                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {"              \
                 NAMES_##count "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B                 \
                 ", 1, 1, 1, 1;"                                                                   \
                 : REGS_##count("+f", d)                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define SCORES(N, count, A, B, P)                                                                  \
    template <bool F16>                                                                            \
    SM90 void scores_start(float (&d)[count], uint64_t a, uint64_t b) {                            \
        const int accumulate = 0;                                                                  \
        if constexpr (F16) PRODUCT_SS(N, count, "f16", "=&f", A, B, P);                            \
        else PRODUCT_SS(N, count, "bf16", "=&f", A, B, P);                                         \
    }                                                                                              \
    template <bool F16>                                                                            \
    SM90 void scores_add(float (&d)[count], uint64_t a, uint64_t b) {                              \
        const int accumulate = 1;                                                                  \
        if constexpr (F16) PRODUCT_SS(N, count, "f16", "+f", A, B, P);                             \
        else PRODUCT_SS(N, count, "bf16", "+f", A, B, P);                                          \
    }
#define OUTPUT(N, count, A0, A1, A2, A3, B)                                                        \
    template <bool F16>                                                                            \
    SM90 void output_add(float (&d)[count], const uint32_t *a, uint64_t b) {                       \
        if constexpr (F16) PRODUCT_RS(N, count, "f16", A0, A1, A2, A3, B);                         \
        else PRODUCT_RS(N, count, "bf16", A0, A1, A2, A3, B);                                      \
    }

/* d[64, N] = A[64, 16] B[N, 16]^T, or added to it; both in shared memory, contiguous along the 16.
 * Thread t of the warpgroup has rows r = 16 (t / 32) + t % 32 / 4 and r + 8:
 * d[4 j + 2 h + e] = D[r + 8 h][8 j + 2 (t % 4) + e]. */
SCORES(64, 32, 32, 33, 34)
SCORES(80, 40, 40, 41, 42)
SCORES(96, 48, 48, 49, 50)
SCORES(128, 64, 64, 65, 66)
SCORES(176, 88, 88, 89, 90)

/* d[64, N] += A[64, 16] B[16, N], A in registers: a[2 i + h] holds A[r + 8 h][8 i + 2 (t % 4) + e],
 * e < 2; B in shared memory, contiguous along N (operand_columns). */
OUTPUT(64, 32, 32, 33, 34, 35, 36)
OUTPUT(128, 64, 64, 65, 66, 67, 68)
OUTPUT(192, 96, 96, 97, 98, 99, 100)
OUTPUT(256, 128, 128, 129, 130, 131, 132)

/* Descriptor of a right-hand operand [k rows][N] that lies as column blocks of 128 bytes,
 * block_bytes apart, each a row of 128 bytes a k, swizzled. 16 rows further is + 128. */
SM90 uint64_t operand_columns(const void *p, uint64_t block_bytes) {
    return (uint64_t)((shared_address(p) & 0x3ffff) >> 4) | (block_bytes >> 4) << 16 |
           (uint64_t)(8 * 128 >> 4) << 32 | 1ull << 62;
}

#undef SCORES
#undef OUTPUT
#undef PRODUCT_SS
#undef PRODUCT_RS
#undef NAMES_32
#undef NAMES_40
#undef NAMES_48
#undef NAMES_64
#undef NAMES_88
#undef NAMES_96
#undef NAMES_128
#undef REGS_32
#undef REGS_40
#undef REGS_48
#undef REGS_64
#undef REGS_88
#undef REGS_96
#undef REGS_128
#undef REGS32
#undef REGS8
#endif
