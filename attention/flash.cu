/* attention/flash.cu - FP8 attention on Hopper: E4M3 Q, K, V and P on the tensor cores, the softmax
 * and every sum across tiles of keys in FP32, O in BF16, F16 or codes. The parts of the kernel,
 * bottom up: flash_block.cuh (constants, shared memory), flash_items.cuh (what a block works on),
 * flash_sm90.cuh (instructions), flash_producer.cuh, flash_turn.cuh (V of short sequences),
 * flash_softmax.cuh, flash_mainloop.cuh, flash_epilogue.cuh. Long sequences: flash_wide.cu.
 *
 * Computes   S = Q K^T;  p = 2^(S * c - max + 8), c = scale * q_descale * k_descale / ln 2
 *            O = bf16((sum_j e4m3(p_j) V_j) * v_descale / sum_j p_j), 0 for a row that sees no key
 * Shapes     Q, K by maps (d, head, token, sequence), V transposed by flash_prologue.cu, or as it
 *            lies (v_as_is) and turned here, three warps, under the products; O by its strides;
 *            d 64, 128, 256; causal, window, grouped heads
 * Numerics   Hopper's FP8 products keep about 14 bits of their running sum and truncate, which over
 *            8k keys of one sign is 15 % (measured, H200). So P V of one tile of 128 keys starts
 *            from zero and joins O in FP32 (promotion): O <- O * alpha + T, one FMA where the
 *            rescale by alpha = 2^(old max - max) is due anyway. Keys are walked from the last tile
 *            to the first: a first token that attracts all attention then comes last, and does not
 *            push the others' p below E4M3's range before they are summed. p <= 2^8 < 448.
 *            The sum is of the unrounded p.
 *
 * Tiling     a block takes 128 queries of one head: a producer warp that copies (TMA), and two
 *            warpgroups of 64 rows each. K [128, d] and V^T [d, 128] come in STAGES-deep rings.
 *            Blocks are persistent and fetch their next item from a counter.
 *
 * Time       of one block, d = 128 (products_S = Q K^T, 64 x 128 x 128; products_T = P V):
 *
 *   producer    K0 V0 K1 V1 K2 V2 ...                      as stages become free
 *   tensor      S0a S0b | S1a T0a | S1b T0b | S2a T1a | S2b T1b | ...
 *   warps a         softmax 0 ....  softmax 1, O += T0 ....  softmax 2, O += T1
 *   warps b               softmax 0 ....  softmax 1, O += T0 ....  softmax 2
 *
 *            T of tile i - 1 runs under the softmax of tile i in the same warpgroup, and one
 *            warpgroup's products under the other's exponentials. Nothing makes them alternate:
 *            barriers that do cost 1 to 4 %. d = 256 has no registers to hold S and T at once:
 *            there a warpgroup's turn is T of tile i, in four chunks of 64 columns, then S of tile
 *            i + 1, and named barriers pass the turn on, which gains 4 %.
 *
 * Registers  of a consumer's 232:  d 64: S 64, T 32, O 32, P 16;  d 128: S 64, T 64, O 64, P 16;
 *            d 256: O 128, P 16 and either S 64 or T 2 x 32. No spills (ptxas 13.0, sm_90a)
 * Shared     d 64: Q 8 K + 4 x (8 + 8) K = 72 K;  d 128: 16 + 4 x (16 + 16) = 144 K;
 *            d 256: 32 + 3 x (32 + 32) = 224 K of 227; with V as it lies that tile more, and at
 *            d 256 two stages
 * Bound      cycles of one SM for 128 x 128 scores: products 8 d (8192 flop a cycle), exponentials
 *            1024 (16 a cycle), instructions issued 1700 + 4 d over 4 schedulers' 2 warps each, so
 *            about 850 + 2 d. d 64 is bound by the exponentials, d 128 by both, d 256 by products.
 *            At 1.83 GHz on 132 SMs (b, h, d, s; floor; measured on an H200, V's transposition
 *            included; docs/NOTES.md has the rest):
 *              1, 24, 128,  4224 none      219 GFLOP    0.111 ms    0.253 ms
 *              4, 16, 128,  4096 none      550          0.278       0.639
 *              1, 16, 128, 16384 none     2199          1.111       2.557
 *              1, 16, 128, 16384 causal   1100          0.556       1.318
 *              1,  8, 256, 16384 none     2199          1.111       2.081
 *              4, 32,  64,  4096 none      550          0.555       1.056
 *            The floors assume 1979 TFLOP/s; products alone, limited by power, reach 1386. At
 *            d 128 neither pipe is full: a warpgroup's step is a chain of some 2100 cycles (320 to
 *            issue products, 220 waiting for S, 145 until known to need no mask, 320 for the
 *            maximum, 1100 for exponentials, promotion and packing).
 */
#include "attention/flash_block.cuh"
#include "attention/flash_launch.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * attention_flash_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_epilogue.cuh"
#include "attention/flash_mainloop.cuh"
#include "attention/flash_turn.cuh"
#else
#define FLASH_SM90 0
#endif

#if FLASH_SM90

/* ---- consumers ------------------------------------------------------------------------------- */

template <int D, class SHARED>
static __device__ __forceinline__ void consume(const flash_params &p, SHARED &s, int32_t index) {
    const int32_t thread = threadIdx.x % WARPGROUP;
    consumer c = {index, index * WG_ROWS + thread / 32 * 16 + thread % 32 / 4, 0.0f, {0, 0}, 0.0f};
    uint32_t q_parity = 0;

    if (D == 256 && index == 1) pass_turn(c); /* the first turn is warpgroup 0's */
    for (;;) {
        row_state rows = {{-INFINITY, -INFINITY}, {}, {}, {}};
        float out[D / 2];

        barrier_wait(&s.q_full, q_parity);
        const flash_item &it = s.items[q_parity]; /* stays there: registers are few */
        q_parity ^= 1;
        if (it.rows == 0) return;
        c.factor = it.factor;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0) release(&s.q_empty);
        else if constexpr (D == 256) attend_chunked<256, 256, false>(out, rows, p, s, c, it);
        else attend_overlapped<D>(out, rows, s, c, it);
        row_result r = {{rows.max[0], rows.max[1]},
                        {rows.sum[0][0] + rows.sum[0][1], rows.sum[1][0] + rows.sum[1][1]},
                        {}, {}};
        store_output<D>(out, r, p, it, c.row, P_OFFSET);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the producer's warpgroup, then the two
 * consumers'. */
template <int D, bool AS_IS>
static __global__ void __launch_bounds__(THREADS, 1)
flash_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    extern __shared__ uint8_t raw[];
    using shared = flash_shared<D, AS_IS>;
    shared &s = *reinterpret_cast<shared *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, CONSUMER_WARPS);
        barrier_init(&s.v_came, 1);
        barrier_init(&s.v_turned, TURN_WARPS);
        for (int i = 0; i < shared::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], AS_IS ? TURN_WARPS : 1);
            barrier_init(&s.k_empty[i], CONSUMER_WARPS);
            barrier_init(&s.v_empty[i], CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    dependencies_wait();
    if (warpgroup == 0) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<D, BLOCK_M, AS_IS>(p, s, item_walk<shared::BY_INDEX>(p));
        if (AS_IS && threadIdx.x >= 32) turn_tiles<D>(s);
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        consume<D>(p, s, warpgroup - 1);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*flash_entry)(const flash_params);

template <int D>
static flash_entry entry_for(bool as_is, size_t *bytes) {
    *bytes = as_is ? shared_bytes<D, true> : shared_bytes<D, false>;
    return as_is ? flash_kernel<D, true> : flash_kernel<D, false>;
}

static flash_entry entry_of(int32_t d, bool as_is, size_t *bytes) {
    switch (d) {
    case 64: return entry_for<64>(as_is, bytes);
    case 128: return entry_for<128>(as_is, bytes);
    case 256: return entry_for<256>(as_is, bytes);
    default: return NULL;
    }
}

extern "C" fp8_status attention_flash_prepare(int32_t d, int v_as_is) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, v_as_is, &bytes);
    return flash_prepare(entry, d, bytes);
}

extern "C" fp8_status attention_flash_launch(const flash_params *p, int32_t d, int32_t blocks,
                                             const flash_queue *to) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, p->v_as_is, &bytes);
    return flash_launch("flash attention", entry, blocks, THREADS, bytes, to, *p);
}
