/* attention/flash16_kernel.cuh - private: the kernel of flash16.cu and flash16_any.cu, and its
 * launchers' common part. Included once. */
#ifndef FP8_ATTENTION_FLASH16_KERNEL_CUH
#define FP8_ATTENTION_FLASH16_KERNEL_CUH
#include "attention/flash16_block.cuh"
#include "attention/flash_launch.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * flash_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash16_mainloop.cuh"
#else
#define FLASH_SM90 0
#endif

#if FLASH_SM90

/* ---- consumers ------------------------------------------------------------------------------- */

template <class SHAPE, bool F16>
static __device__ __forceinline__ void consume16(const flash_params &p, flash16_shared<SHAPE> &s,
                                                 int32_t index) {
    constexpr int D = SHAPE::D_V;
    const int32_t thread = threadIdx.x % WARPGROUP;
    consumer16 c = {index * WG_ROWS + thread / 32 * 16 + thread % 32 / 4, 0, 0.0f};
    uint32_t q_parity = 0;

    if (index == SHAPE::CONSUMERS - 1) pass_turn<SHAPE>(c); /* warpgroup 0's is the first */
    for (;;) {
        row_state16 rows = {{-INFINITY, -INFINITY}, {}, {}, {}};
        float out[D / 2];

        barrier_wait(&s.q_full, q_parity);
        const flash_item &it = s.items[q_parity]; /* stays there: registers are few */
        q_parity ^= 1;
        if (it.rows == 0) return;
        if constexpr (SHAPE::ANY) c.slope = slope_of(p, it);
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0) release(&s.q_empty);
        else attend16<SHAPE, F16>(out, rows, p, s, c, it);
        row_result r = {{rows.max[0], rows.max[1]},
                        {rows.sum[0][0] + rows.sum[0][1], rows.sum[1][0] + rows.sum[1][1]},
                        {}, {1.0f, 1.0f}};
        if constexpr (SHAPE::ANY)
            if (p.terms.has_sink) add_sink<D>(out, r, p, it, 0.0f);
        store_output<D, SHAPE::ANY>(out, r, p, it, c.row, 0.0f);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the producer's warpgroup, then the
 * consumers'. */
template <class SHAPE, bool F16>
static __global__ void __launch_bounds__(SHAPE::THREADS, 1)
flash16_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    extern __shared__ uint8_t raw[];
    flash16_shared<SHAPE> &s = *reinterpret_cast<flash16_shared<SHAPE> *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, SHAPE::CONSUMER_WARPS);
        barrier_init(&s.tail, 1);
        for (int i = 0; i < SHAPE::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.k_empty[i], SHAPE::CONSUMER_WARPS);
            barrier_init(&s.v_empty[i], SHAPE::CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    dependencies_wait();
    if (warpgroup == 0) {
        registers_shrink<SHAPE::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32) produce16<SHAPE>(p, s);
    } else {
        registers_grow<SHAPE::CONSUMER_REGISTERS>();
        consume16<SHAPE, F16>(p, s, warpgroup - 1);
    }
#endif
}

/* ---- host ------------------------------------------------------------------------------------ */

/* One of the kernels, and what its launch needs. */
struct flash16_entry {
    void (*kernel)(const flash_params);
    size_t bytes;
    unsigned threads;
};

template <int QK, int V, bool ANY, bool EARLY = false>
static flash16_entry flash16_entry_of(int f16) {
    using shape = flash16_shape<QK, V, ANY, EARLY>;
    return {f16 ? flash16_kernel<shape, true> : flash16_kernel<shape, false>, shared_bytes<shape>,
            (unsigned)shape::THREADS};
}
#endif
