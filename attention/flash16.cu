/* attention/flash16.cu - attention on Hopper in BF16 or F16: operands and P in 16 bits, the softmax
 * and every sum in FP32. Shares items, masks and epilogue with flash.cu (flash_items.cuh,
 * flash_epilogue.cuh).
 *
 * Computes   S = Q K^T;  p = 2^(S * c - max), c = scale / ln 2;  O = (sum_j p_j V_j) / sum_j p_j, 0
 *            for a row that sees no key; LSE, amax where wanted
 * Shapes     q, k, v by maps (d, head, token, sequence), V as it lies: Hopper's 16-bit products
 *            take a right-hand operand contiguous along its columns too. d 64, 128, 256
 * Numerics   FP32 accumulation; p is rounded to 16 bits, the sum is of the unrounded p
 * Tiling     a block takes 64 queries of one head a consumer warpgroup, two of them, three at d 64,
 *            and a producer warp that copies (TMA); K and V come in rings of tiles of 128 keys at
 *            d 64, of 176 and of 80. Blocks are persistent and get their next item from a counter.
 * Time       P V of tile i - 1 runs under the softmax of tile i in the same warpgroup, and one
 *            warpgroup's products under the others' exponentials: turns, by named barriers. O is
 *            rescaled only where the maximum of a warp's rows rose: at d 256 10 % of the time
 * Registers  of a consumer: d 64: S 64, O 32, P 32 of 160;  d 128: S 88, O 64, P 44 of 232;
 *            d 256: S 40, O 128, P 20 of 224. No spills (ptxas 13.0, sm_90a)
 * Bound      cycles of one SM for 128 x 128 scores: products 16 d (4096 flop a cycle), exponentials
 *            1024: d 64 is bound by both, d 128 and 256 by products, then by power: a BF16 product
 *            of 8192^3 reaches 781 TFLOP/s. Measured on an H200 (b, h, h_kv, d, s; docs/NOTES.md):
 *              1, 24, 24, 128,  4224 none      0.320 ms    685 TFLOP/s
 *              1, 16, 16, 128, 16384 none      3.544       621
 *              2, 32,  4, 128,  8192 causal    1.808       608
 *              1,  8,  8, 256, 16384 none      3.120       705
 *              4, 32, 32,  64,  4096 none      1.145       480
 */
#include "attention/flash.h"
#include "attention/flash_launch.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * attention_flash16_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#else
#define FLASH_SM90 0
#endif

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    WARPGROUP = 128,      /* threads */
    WG_ROWS = 64,         /* of a warpgroup: the M of wgmma */
    K_STEP = 16,          /* elements a product contracts over */
    COLUMN_BLOCK = 64,    /* elements of a swizzled row */
    TURN_BARRIER = 1      /* named barriers from 1 on, one a consumer; 0 is __syncthreads */
};

template <int D>
struct flash16_shape {
    static constexpr int ROWS = FLASH16_ROWS(D), KEYS = FLASH16_KEYS(D);
    static constexpr int CONSUMERS = ROWS / WG_ROWS; /* warpgroups */
    static constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / 32;
    static constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
    static constexpr int STAGES = D == 64 ? 4 : 2;
    static constexpr int BLOCKS = D / COLUMN_BLOCK; /* of columns */
    /* 65536 in all: 128 * (32 + 3 * 160) = 65536, 128 * (40 + 2 * 232) = 64512 and 128 * (56 + 2 *
     * 224) likewise */
    static constexpr int PRODUCER_REGISTERS = D == 64 ? 32 : D == 128 ? 40 : 56;
    static constexpr int CONSUMER_REGISTERS = D == 64 ? 160 : D == 128 ? 232 : 224;
};

/* Operands are [column blocks][tokens][COLUMN_BLOCK], swizzled by the copy. */
template <int D>
struct flash16_shared {
    static constexpr int STAGES = flash16_shape<D>::STAGES, KEYS = flash16_shape<D>::KEYS;
    alignas(1024) uint16_t q[flash16_shape<D>::ROWS * D];
    alignas(1024) uint16_t k[STAGES][KEYS * D];
    alignas(1024) uint16_t v[STAGES][KEYS * D];
    alignas(8) uint64_t q_full, q_empty; /* q_full: item too */
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    uint64_t tail;       /* V of a tile that is not all of the sequence has come */
    flash_item items[2]; /* of an item's parity: consumers store item n while n + 1 is described */
};

template <int D>
static constexpr size_t shared_bytes = sizeof(flash16_shared<D>) + 1024; /* to align the start */

#if FLASH_SM90
#include "attention/flash16_mainloop.cuh"

/* ---- consumers ------------------------------------------------------------------------------- */

template <int D, bool F16>
static __device__ __forceinline__ void consume16(const flash_params &p, flash16_shared<D> &s,
                                                 int32_t index) {
    const int32_t thread = threadIdx.x % WARPGROUP;
    consumer16 c = {index * WG_ROWS + thread / 32 * 16 + thread % 32 / 4, 0};
    uint32_t q_parity = 0;

    if (index == flash16_shape<D>::CONSUMERS - 1) pass_turn<D>(c); /* warpgroup 0's is the first */
    for (;;) {
        row_state16 rows = {{-INFINITY, -INFINITY}, {}, {}, {}};
        float out[D / 2];

        barrier_wait(&s.q_full, q_parity);
        const flash_item &it = s.items[q_parity]; /* stays there: registers are few */
        q_parity ^= 1;
        if (it.rows == 0) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0) release(&s.q_empty);
        else attend16<D, F16>(out, rows, s, c, it);
        row_result r = {{rows.max[0], rows.max[1]},
                        {rows.sum[0][0] + rows.sum[0][1], rows.sum[1][0] + rows.sum[1][1]}, {}};
        store_output<D>(out, r, p, it, c.row, 0.0f);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the producer's warpgroup, then the
 * consumers'. */
template <int D, bool F16>
static __global__ void __launch_bounds__(flash16_shape<D>::THREADS, 1)
flash16_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    using shape = flash16_shape<D>;
    extern __shared__ uint8_t raw[];
    flash16_shared<D> &s = *reinterpret_cast<flash16_shared<D> *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, shape::CONSUMER_WARPS);
        barrier_init(&s.tail, 1);
        for (int i = 0; i < shape::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.k_empty[i], shape::CONSUMER_WARPS);
            barrier_init(&s.v_empty[i], shape::CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    dependencies_wait();
    if (warpgroup == 0) {
        registers_shrink<shape::PRODUCER_REGISTERS>();
        if (threadIdx.x < 32) produce16<D>(p, s);
    } else {
        registers_grow<shape::CONSUMER_REGISTERS>();
        consume16<D, F16>(p, s, warpgroup - 1);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*flash_entry)(const flash_params);

static flash_entry entry_of(int32_t d, int f16, size_t *bytes) {
    switch (d) {
    case 64:
        *bytes = shared_bytes<64>;
        return f16 ? flash16_kernel<64, true> : flash16_kernel<64, false>;
    case 128:
        *bytes = shared_bytes<128>;
        return f16 ? flash16_kernel<128, true> : flash16_kernel<128, false>;
    case 256:
        *bytes = shared_bytes<256>;
        return f16 ? flash16_kernel<256, true> : flash16_kernel<256, false>;
    default: return NULL;
    }
}

extern "C" fp8_status attention_flash16_prepare(int32_t d, int f16) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, f16, &bytes);
    return flash_prepare(entry, d, bytes);
}

extern "C" fp8_status attention_flash16_launch(const flash_params *p, int32_t d, int f16,
                                               int32_t blocks, fp8_stream stream) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, f16, &bytes);
    const unsigned threads = (1 + FLASH16_ROWS(d) / WG_ROWS) * WARPGROUP;
    return flash_launch("flash attention in 16 bits", entry, blocks, threads, bytes, stream, *p);
}
