/* attention/decode_pages_append.cu - decode_pages.cu's kernels with the append of the new tokens,
 * one a sequence, in the same launch: for codes (decode_pages_append16.cu: for 16 bits).
 *
 * Computes   what append_once.cu and decode_pages.cu would, byte for byte
 * Bound      memory, as decode_pages.cu: the new tokens are 3 bytes an element of theirs
 * Tiling     decode_pages.cu's, and a warp that makes queries, K and V (decode_pages_append.cuh) */
#include "attention/decode_pages_table.cuh"

#define KERNEL(...) append_entry<tiling<__VA_ARGS__>>()

static const decode_pages_kernel kernels[] = {CODES_KERNELS(64), CODES_KERNELS(128)};

extern "C" const decode_pages_kernel *decode_append_kernels(int *count) {
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
