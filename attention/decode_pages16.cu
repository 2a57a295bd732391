/* attention/decode_pages16.cu - the kernels of decode_pages.cu over pages of BF16 and F16. */
#include "attention/decode_pages_table.cuh"

#define KERNEL(...) table_entry<tiling<__VA_ARGS__>>()
#define KERNELS(type, page)                                                                        \
    REAL_KERNELS(type, page), KERNEL(type, 192, 128, page, 1, 4, 1, 4, 1)

static const decode_pages_kernel kernels[] = {
    KERNELS(FP8_DTYPE_BF16, 64), KERNELS(FP8_DTYPE_BF16, 128), KERNELS(FP8_DTYPE_F16, 64),
    KERNELS(FP8_DTYPE_F16, 128)};

extern "C" const decode_pages_kernel *decode_pages16_kernels(int *count) {
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
