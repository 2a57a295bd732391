/* attention/flash_wide.cu - FP8 attention on Hopper over long sequences: formula, operands and
 * options of flash.cu but LSE and amax, with more rows in flight and no maximum in the steps.
 *
 * Computes   as flash.cu, but P is taken against a maximum of earlier keys
 *            (flash_wide_softmax.cuh), and the sum is that of the rounded p, made by the tensor
 *            cores: a product with ones, from zero each step. Rounding cancels where p are alike
 * Shapes     those of flash.cu; d 256 without promotion alone
 * Numerics   P V accumulates on the tensor cores, which lose what lies 13 bits below a sum: of one
 *            sign 15 % over 8192 keys, 0.6 % over 512. So every 512 keys, or promote_keys as a
 *            power of two, T joins O in FP32, kept in shared memory, and starts from zero. That
 *            costs 10 % of a run; fast sums: never
 * Tiling     a block takes 64 queries a consumer warpgroup, d 64 four, d 128 three, d 256 two, and
 *            a producer. A step of one warpgroup is a chain: S, exponentials, packing; more of them
 *            hide each other's latencies. K [128, d] and V^T [d, 128] come in rings. Blocks share
 *            items evenly where the last wave would be a small one (flash_wide_parts.cuh)
 * Registers  d 64: 112 a consumer: S 32, T 32, P 16;  d 128: 160: S 32, T 64, P 16;  d 256: 232: S
 *            32, T 128, P 16. No spills (ptxas 13.0)
 * Shared     d 64: Q 16 K + 4 x 16 K + O 64 K = 144 K;  d 128: 24 + 3 x 32 + 96 = 216 K;  d 256:
 *            32 + 3 x 64 = 224 K of 227
 * Bound      cycles of one SM for 128 x 128 scores: products 8 d + 64, exponentials 1024 (16 a
 *            cycle); over long sequences the GPU's power
 */
#include "attention/flash_block.cuh"
#include "attention/flash_launch.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * attention_flash_wide_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#else
#define FLASH_SM90 0
#endif

/* ---- a block --------------------------------------------------------------------------------- */

/* 65536 registers: 128 * (32 + 4 * 112) = 61440 = 640 * 96, what 640 threads start with;
 * 128 * (32 + 3 * 160) = 65536 = 512 * 128; 128 * (40 + 2 * 232) = 64512 = 384 * 168. */
template <int D>
struct wide_shape {
    static constexpr int CONSUMERS = D == 64 ? 4 : D == 128 ? 3 : 2; /* warpgroups */
    static constexpr int ROWS = 64 * CONSUMERS;
    static constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
    static constexpr int STAGES = D == 64 ? 4 : 3;
    static constexpr bool PROMOTES = D != 256; /* there is no room to keep it */
    static constexpr bool SHARES = D != 256; /* items; there it would spill */
    static constexpr bool SETTLES_LATE = D != 64; /* S of the next step is issued before that */
    static constexpr int PRODUCER_REGISTERS = D == 256 ? 40 : 32;
    static constexpr int CONSUMER_REGISTERS = D == 64 ? 112 : D == 128 ? 160 : 232;
};

/* As flash_shared. ones: 8 rows of a right operand. */
template <int D>
struct wide_shared {
    static constexpr bool BY_INDEX = false; /* there is a launch before, and a counter */
    static constexpr int STAGES = wide_shape<D>::STAGES;
    alignas(1024) uint8_t q[wide_shape<D>::ROWS * D];
    alignas(1024) uint8_t k[STAGES][BLOCK_N * D];
    alignas(1024) uint8_t v[STAGES][D * BLOCK_N];
    alignas(1024) uint8_t ones[8 * BLOCK_N];
    float4 kept[wide_shape<D>::PROMOTES ? wide_shape<D>::ROWS * D / 4 : 1];
    alignas(8) uint64_t q_full, q_empty;
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    flash_item items[2], coming;
};

template <int D>
static constexpr size_t wide_bytes = sizeof(wide_shared<D>) + 1024; /* to align the start */

#if FLASH_SM90
#include "attention/flash_epilogue.cuh"
#include "attention/flash_producer.cuh"
#include "attention/flash_wide_mainloop.cuh"
#include "attention/flash_wide_parts.cuh"

/* ---- consumers ------------------------------------------------------------------------------- */

/* What the epilogue is told: the maximum behind a row's offset; a quarter of the sum a lane. */
static __device__ __forceinline__ row_result result_of(const wide_rows &rows,
                                                       const flash_item &it) {
    row_result r = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        r.max[h] = (WIDE_OFFSET - rows.offset[h]) / it.factor;
        r.sum[h] = rows.sum[h] * 0.25f;
    }
    return r;
}

template <int D>
static __device__ __forceinline__ void consume(const flash_params &p, wide_shared<D> &s,
                                               int32_t index) {
    wide_place<D> place = {}; /* of the next tile */

    for (;;) {
        wide_rows rows = {{INFINITY, INFINITY}, {}};
        wide_kept<D> kept = {s.kept, D == 64};
        float out[D / 2];

        if (D == 64) clear_kept(kept); /* no register is left to know that there is nothing */
        barrier_wait(&s.q_full, place.item_parity());
        const flash_item &it = s.items[place.item_parity()]; /* stays there: registers are few */
        place.next_item();
        if (it.rows == 0) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0 || (D != 64 && index * 64 >= it.valid)) pass_over<D>(s, place, it);
        else attend_wide<D>(out, rows, kept, s, place, it, index, p);
        if constexpr (wide_shape<D>::PROMOTES) {
            if (kept.any) add_kept(out, kept);
        }
        if (wide_shape<D>::SHARES && it.slot >= 0 && !join_parts<D>(out, rows, p, it.slot))
            continue;
        row_result r = result_of(rows, it);
        store_output<D>(out, r, p, it, row_of_thread(), WIDE_OFFSET);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the consumers' warpgroups, then the
 * producer's. */
template <int D>
static __global__ void __launch_bounds__(wide_shape<D>::THREADS, 1)
wide_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    extern __shared__ uint8_t raw[];
    wide_shared<D> &s = *reinterpret_cast<wide_shared<D> *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);
    constexpr int WARPS = wide_shape<D>::CONSUMERS * WARPGROUP / 32;

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, WARPS);
        for (int i = 0; i < wide_shape<D>::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.k_empty[i], WARPS);
            barrier_init(&s.v_empty[i], WARPS);
        }
        barrier_init_done();
    }
    for (uint32_t i = threadIdx.x; i < sizeof s.ones; i += wide_shape<D>::THREADS)
        s.ones[i] = 0x38; /* 1 in E4M3 */
    proxy_fence();
    __syncthreads();
    dependencies_wait();
    if (warpgroup == wide_shape<D>::CONSUMERS) {
        registers_shrink<wide_shape<D>::PRODUCER_REGISTERS>();
        if (threadIdx.x % WARPGROUP == 0) produce<D, wide_shape<D>::ROWS, false, wide_walk>(p, s);
    } else {
        registers_grow<wide_shape<D>::CONSUMER_REGISTERS>();
        consume<D>(p, s, warpgroup);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef struct wide_entry {
    void (*kernel)(const flash_params);
    unsigned threads;
    size_t bytes;
} wide_entry;

template <int D>
static wide_entry entry_for(void) {
    return {wide_kernel<D>, wide_shape<D>::THREADS, wide_bytes<D>};
}

static wide_entry entry_of(int32_t d) {
    switch (d) {
    case 64: return entry_for<64>();
    case 128: return entry_for<128>();
    case 256: return entry_for<256>();
    default: return {NULL, 0, 0};
    }
}

extern "C" fp8_status attention_flash_wide_prepare(int32_t d) {
    const wide_entry e = entry_of(d);
    return flash_prepare(e.kernel, d, e.bytes);
}

extern "C" fp8_status attention_flash_wide_launch(const flash_params *p, int32_t d, int32_t blocks,
                                                  const flash_queue *to) {
    const wide_entry e = entry_of(d);
    return flash_launch("flash attention, wide", e.kernel, blocks, e.threads, e.bytes, to, *p);
}
