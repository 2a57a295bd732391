/* attention/decode_pages_table.cuh - private: a table's entry for a kernel over pages. */
#ifndef FP8_ATTENTION_DECODE_PAGES_TABLE_CUH
#define FP8_ATTENTION_DECODE_PAGES_TABLE_CUH
#include "attention/decode_pages_kernel.cuh"

template <class T>
static constexpr decode_pages_kernel table_entry(void (*entry)(const decode_pages_args)) {
    return {T::KV,      T::D_QK, T::D_V,          T::PAGE,    T::ROWS,   T::TILE,
            T::SPAN,    T::K_PITCH, T::V_PITCH,   T::THREADS, T::PER_SM, shared_bytes<T>(),
            entry};
}

/* type, d_qk, d_v, page, NT, warps, KT, stages, blocks a multiprocessor: see tiling. */
#define KERNEL(...) table_entry<tiling<__VA_ARGS__>>(decode_pages_kernel_of<tiling<__VA_ARGS__>>)
#endif
