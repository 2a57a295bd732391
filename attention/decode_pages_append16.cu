/* attention/decode_pages_append16.cu - the kernels of decode_pages_append.cu over pages of BF16 and
 * F16. */
#include "attention/decode_pages_table.cuh"

#define KERNEL(...) append_entry<tiling<__VA_ARGS__>>()

static const decode_pages_kernel kernels[] = {
    REAL_KERNELS(FP8_DTYPE_BF16, 64), REAL_KERNELS(FP8_DTYPE_BF16, 128),
    REAL_KERNELS(FP8_DTYPE_F16, 64), REAL_KERNELS(FP8_DTYPE_F16, 128)};

extern "C" const decode_pages_kernel *decode_append16_kernels(int *count) {
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
