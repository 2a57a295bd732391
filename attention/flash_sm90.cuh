/* attention/flash_sm90.cuh - private: what flash.cu needs beside core/sm90.cuh: its tensor-core
 * products and the exponential. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_SM90_CUH
#define FP8_ATTENTION_FLASH_SM90_CUH
#include "core/sm90.cuh"

#define REGS4(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define REGS16(c, d, i)                                                                            \
    REGS4(c, d, i), REGS4(c, d, i + 4), REGS4(c, d, i + 8), REGS4(c, d, i + 12)
#define REGS32(c, d, i) REGS16(c, d, i), REGS16(c, d, i + 16)

#define TO_31                                                                                      \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TO_63                                                                                      \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define PRODUCT_128(name, constraint)                                                              \
    SM90 void name(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {                       \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, %66, 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"                     \
                     TO_31 ", " TO_63 "}, "                                                        \
                     "%64, %65, p, 1, 1;\n"                                                        \
                     "}"                                                                           \
                     : REGS32(constraint, d, 0), REGS32(constraint, d, 32)                         \
                     : "l"(a), "l"(b), "r"(accumulate));                                           \
    }
#define PRODUCT_128_A(name, constraint)                                                            \
    SM90 void name(float (&d)[64], const uint32_t *a, uint64_t b, int accumulate) {                \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, %69, 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"                     \
                     TO_31 ", " TO_63 "}, "                                                        \
                     "{%64, %65, %66, %67}, %68, p, 1, 1;\n"                                       \
                     "}"                                                                           \
                     : REGS32(constraint, d, 0), REGS32(constraint, d, 32)                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));       \
    }
#define PRODUCT_64_A(name, constraint)                                                             \
    SM90 void name(float (&d)[32], const uint32_t *a, uint64_t b, int accumulate) {                \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, %37, 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"                      \
                     TO_31 "}, "                                                                   \
                     "{%32, %33, %34, %35}, %36, p, 1, 1;\n"                                       \
                     "}"                                                                           \
                     : REGS32(constraint, d, 0)                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));       \
    }

#define PRODUCT_64(name, constraint)                                                               \
    SM90 void name(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {                       \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, %34, 0;\n"                                                    \
                     "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"                      \
                     TO_31 "}, "                                                                   \
                     "%32, %33, p, 1, 1;\n"                                                        \
                     "}"                                                                           \
                     : REGS32(constraint, d, 0)                                                    \
                     : "l"(a), "l"(b), "r"(accumulate));                                           \
    }
#define PRODUCT_8_A(name, constraint)                                                              \
    SM90 void name(float (&d)[4], const uint32_t *a, uint64_t b, int accumulate) {                 \
        asm volatile("{\n"                                                                         \
                     ".reg .pred p;\n"                                                             \
                     "setp.ne.b32 p, %9, 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, "      \
                     "{%4, %5, %6, %7}, %8, p, 1, 1;\n"                                            \
                     "}"                                                                           \
                     : REGS4(constraint, d, 0)                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));       \
    }

/* d[64, N] (+)= A[64, 32] B[N, 32]^T, E4M3, A and B in shared memory. Thread t of the warpgroup has
 * rows r = 16 (t / 32) + t % 32 / 4 and r + 8: d[4 j + 2 h + e] = D[r + 8 h][8 j + 2 (t % 4) + e].
 * accumulate is a constant but where said otherwise. A sum begins with product_start(.., 0): d is
 * out only, early-clobbered so that no operand shares its registers. */
PRODUCT_128(product_start, "=&f")
PRODUCT_128(product, "+f")
PRODUCT_64(product_start, "=&f")
PRODUCT_64(product, "+f")

/* The same with A in registers: a[2 h + i] holds A[r + 8 i][16 h + 4 (t % 4) .. + 3]. */
PRODUCT_128_A(product_start, "=&f")
PRODUCT_128_A(product, "+f")
PRODUCT_64_A(product_start, "=&f")
PRODUCT_64_A(product, "+f")
PRODUCT_8_A(product_start, "=&f")
PRODUCT_8_A(product, "+f")

#undef PRODUCT_64
#undef PRODUCT_8_A
#undef PRODUCT_128
#undef PRODUCT_128_A
#undef PRODUCT_64_A
#undef TO_31
#undef TO_63
#undef REGS4
#undef REGS16
#undef REGS32
#endif
