/* attention/decode_pages_table.cuh - private: a table's entry for a kernel over pages, with or
 * without an append, and the shapes that there are.
 *
 * KERNEL(type, d_qk, d_v, page, NT, warps, KT, stages, blocks a multiprocessor): see tiling; what
 * was tried: docs/NOTES.md. */
#ifndef FP8_ATTENTION_DECODE_PAGES_TABLE_CUH
#define FP8_ATTENTION_DECODE_PAGES_TABLE_CUH
#include "attention/decode_pages_kernel.cuh"

/* Heads of one size, codes. */
#define CODES_KERNELS(page)                                                                        \
    KERNEL(FP8_DTYPE_E4M3, 64, 64, page, 1, 8, 1, 8, 1),                                           \
        KERNEL(FP8_DTYPE_E4M3, 64, 64, page, 2, 4, 2, 8, 1),                                       \
        KERNEL(FP8_DTYPE_E4M3, 128, 128, page, 1, 8, 1, 3, 1),                                     \
        KERNEL(FP8_DTYPE_E4M3, 128, 128, page, 2, 4, 2, 4, 1),                                     \
        KERNEL(FP8_DTYPE_E4M3, 256, 256, page, 1, 4, 1, 2, 2)

/* Likewise, 16 bits. */
#define REAL_KERNELS(type, page)                                                                   \
    KERNEL(type, 64, 64, page, 1, 8, 1, 6, 1), KERNEL(type, 64, 64, page, 2, 4, 2, 6, 1),          \
        KERNEL(type, 128, 128, page, 1, 8, 1, 3, 1), KERNEL(type, 128, 128, page, 2, 4, 2, 3, 1),  \
        KERNEL(type, 256, 256, page, 1, 4, 1, 3, 1)

template <class T>
static constexpr decode_pages_kernel shape_entry(int32_t threads, size_t shared) {
    return {T::KV,     T::D_QK,    T::D_V,     T::PAGE, T::ROWS,   T::TILE, T::SPAN,
            T::K_PITCH, T::V_PITCH, threads, T::PER_SM, shared, NULL,    NULL};
}

template <class T> static constexpr decode_pages_kernel table_entry() {
    decode_pages_kernel k = shape_entry<T>(T::THREADS, shared_bytes<T, decode_control<T>>());
    k.entry = decode_pages_kernel_of<T>;
    return k;
}

template <class T> static constexpr decode_pages_kernel append_entry() {
    decode_pages_kernel k = shape_entry<T>(T::APPEND_THREADS, shared_bytes<T, append_control<T>>());
    k.append_entry = decode_append_kernel_of<T>;
    return k;
}
#endif
