/* attention/decode_pages16.cu - the kernels of decode_pages.cu over pages of BF16 and F16. */
#include "attention/decode_pages_table.cuh"

#define KERNELS_OF(type, page)                                                                     \
    KERNEL(type, 64, 64, page, 1, 8, 1, 6, 1), KERNEL(type, 64, 64, page, 2, 4, 2, 6, 1),          \
        KERNEL(type, 128, 128, page, 1, 8, 1, 3, 1), KERNEL(type, 128, 128, page, 2, 4, 2, 3, 1),  \
        KERNEL(type, 192, 128, page, 1, 4, 1, 4, 1), KERNEL(type, 256, 256, page, 1, 4, 1, 3, 1)
#define KERNELS(type) KERNELS_OF(type, 64), KERNELS_OF(type, 128)

static const decode_pages_kernel kernels[] = {KERNELS(FP8_DTYPE_BF16), KERNELS(FP8_DTYPE_F16)};

extern "C" const decode_pages_kernel *decode_pages16_kernels(int *count) {
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
