/* quant/chain.cu - up to four FP8 Linears one after the other in one launch, up to 128 tokens.
 *
 * Computes   as quant/chain.h says
 * Shapes     x [tokens, k] E4M3, W [n, k] E4M3, n and k multiples of 16, h and y BF16
 * Bound      memory: all W once; 277 MB of a layer of Gemma-7B 61 us at 4.55 TB/s
 * Tiling     one block a multiprocessor. Rows of W are the M of wgmma, tokens its N. Tiles of W
 *            have as many rows as make them come out even on the blocks (chain_cuda.c). Steps that
 *            add have few rows: there up to four blocks take a part of K each
 * Numerics   Hopper's FP8 products keep about 14 bits of a running sum and truncate: every 128 of K
 *            they start from zero and are added in FP32; parts of K are added in their order
 * Overlap    a thread streams W of all steps, whatever its block waits for: between two steps,
 *            while sums are added, normed and quantized, the ring (144 to 208 KB a block) fills:
 *
 *   W        step 1 ......... | step 2 ................ | step 3 .......   as fast as memory is
 *   sums     step 1 ........| add, norm |  step 2 ..... .. .. ..| store |  catches up, then waits
 *
 * Registers  up to 166 of 168; no spills (ptxas 13.0, sm_90a)
 */
#include "core/launch.cuh"
#include "quant/chain_cuda.h"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * chain_available finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CHAIN_SM90 1
#include "quant/chain_store.cuh"
#else
#define CHAIN_SM90 0
#endif

using namespace fp8;

enum {
    THREADS = 8 * 32 + 2 * 32,
    SHARED_BYTES = CHAIN_RING_BYTES + 1024, /* rings and control */
    MIN_FLIGHT = 48 << 10, /* bytes */
    EMPTY_REGISTERS = 32 /* the kernel of other architectures, which is empty, has fewer */
};

/* Bytes and stages of x, of what the rings have. */
template <int TOKENS> struct chain_shape {
    static constexpr int X_BYTES = TOKENS * CHAIN_BLOCK_K;
    static constexpr int X_STAGES = TOKENS <= 32 ? 16 : TOKENS == 64 ? 8 : 5;
    static constexpr int W_BYTES = CHAIN_RING_BYTES - X_STAGES * X_BYTES;
};

#if CHAIN_SM90
static_assert(THREADS == CONSUMERS + 64, "two warps copy");
static_assert(CHAIN_RING_BYTES + sizeof(chain_control) <= SHARED_BYTES, "SHARED_BYTES");

/* ---- copies: a thread each ------------------------------------------------------------------- */

/* The ring of W, as the thread sees it that fills it. Units of different steps have different
 * sizes: they lie one behind the other, each in one piece, so that the end of the ring may stay
 * empty. Bytes are counted from the beginning, with those left out. */
struct w_ring {
    ring_place at, oldest, landed; /* of barriers */
    int32_t size;                  /* of the ring */
    int32_t next, begin;           /* end of the youngest unit, beginning of the oldest used */
    int32_t units, flying;         /* used; bytes on their way */

    /* Room for a unit: its place. NOTE: no more than `flight` bytes are on their way at once. More
     * bring no more bytes a second, and x, sums and counters then wait behind them: 2 to 4 us in
     * place of 1. */
    __device__ __forceinline__ int32_t claim(int32_t bytes, int32_t flight, chain_control &c) {
        const int32_t place = next % size;
        const int32_t first = place + bytes > size ? next + size - place : next;

        while (flying > 0 && flying + bytes > flight) {
            barrier_wait(c.w_full + landed.slot, landed.parity);
            flying -= c.w_bytes[landed.slot];
            landed.next(CHAIN_W_UNITS);
        }
        while (units == CHAIN_W_UNITS || first + bytes - begin > size) {
            barrier_wait(c.w_empty + oldest.slot, oldest.parity);
            begin = c.w_end[oldest.slot];
            oldest.next(CHAIN_W_UNITS);
            units--;
        }
        c.w_bytes[at.slot] = bytes;
        c.w_end[at.slot] = next = first + bytes;
        units++;
        flying += bytes;
        return first % size;
    }
};

template <int TOKENS>
static __device__ __forceinline__ void copy_weights(const chain_args &p, uint8_t *data,
                                                    chain_control &c) {
    const uint64_t policy = policy_evict_first();
    w_ring ring = {{0, 0}, {0, 0}, {0, 0}, chain_shape<TOKENS>::W_BYTES, 0, 0, 0, 0};

#pragma unroll 1
    for (int32_t i = 0; i < p.count; i++) {
        const chain_stage &s = p.steps[i];
        const block_share b = share_of(s);
        const int32_t bytes = s.rows * CHAIN_BLOCK_K;

        for (int32_t tile = b.first; tile < s.tiles; tile += b.step)
            for (int32_t k = b.begin; k < b.begin + b.count; k++) {
                uint8_t *to = data + ring.claim(bytes, max(p.flight * bytes, MIN_FLIGHT), c);
                uint64_t *full = c.w_full + ring.at.slot;

                barrier_expect(full, bytes);
                if (is_gated(s))
                    copy_box_4d(to, &s.w_map, full, k * CHAIN_BLOCK_K, 0, 0,
                                tile * (s.rows / WARP_ROWS), policy);
                else
                    copy_box_2d(to, &s.w_map, full, k * CHAIN_BLOCK_K, tile * s.rows, policy);
                ring.at.next(CHAIN_W_UNITS);
            }
    }
    dependents_launch();
}

template <int TOKENS>
static __device__ __forceinline__ void copy_inputs(const chain_args &p, uint8_t *ring,
                                                   chain_control &c) {
    constexpr int BYTES = chain_shape<TOKENS>::X_BYTES;
    const uint64_t policy = policy_evict_last();
    ring_place at = {0, 1};

    dependencies_wait();
#pragma unroll 1
    for (int32_t i = 0; i < p.count; i++) {
        const chain_stage &s = p.steps[i];
        const block_share b = share_of(s);

        /* NOTE: only who has tiles may wait, for nobody waits for the others' end: the last block
         * to end sets the counters back. */
        if (i > 0 && b.first < s.tiles) {
            const bool by_rows = p.steps[i - 1].h != nullptr;
            counter_wait(p.counters + CHAIN_READY + (i - 1) * CHAIN_LINE,
                         by_rows ? min((int32_t)gridDim.x, p.tokens) : gridDim.x);
            copies_fence();
        }
        for (int32_t tile = b.first; tile < s.tiles; tile += b.step)
            for (int32_t k = b.begin; k < b.begin + b.count; k++) {
                barrier_wait(c.x_empty + at.slot, at.parity);
                barrier_expect(c.x_full + at.slot, BYTES);
                copy_box_2d(ring + at.slot * BYTES, &s.x_map, c.x_full + at.slot,
                            k * CHAIN_BLOCK_K, 0, policy);
                at.next(chain_shape<TOKENS>::X_STAGES);
            }
    }
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* Where a block's consumers are in the rings. */
struct consumer {
    const uint8_t *w_ring, *x_ring;
    ring_place w_at, x_at;
    int32_t w_place; /* bytes into the ring */
};

/* main = sums over `count` units of K of a tile. Rows beyond the tile's are multiplied, too: with
 * whatever is there. */
template <int TOKENS>
static __device__ __forceinline__ void accumulate(float (&main)[TOKENS / 2], int32_t rows,
                                                  int32_t count, consumer &k, chain_control &c) {
    typedef chain_shape<TOKENS> S;
    const uint32_t w0 = operand_low(k.w_ring + threadIdx.x / WARPGROUP * WG_ROWS * CHAIN_BLOCK_K);
    const uint32_t x0 = operand_low(k.x_ring);
    float sum[TOKENS / 2];

#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) main[i] = 0.0f;
    for (; count > 0; count--) {
        if (k.w_place + rows * CHAIN_BLOCK_K > S::W_BYTES) k.w_place = 0;
        const uint32_t w = w0 + k.w_place / 16;
        const uint32_t x = x0 + k.x_at.slot * (S::X_BYTES / 16);
        barrier_wait(c.x_full + k.x_at.slot, k.x_at.parity);
        barrier_wait(c.w_full + k.w_at.slot, k.w_at.parity);
        products_begin();
        product_start(sum, w, x);
#pragma unroll
        for (int i = 1; i < CHAIN_BLOCK_K / K_STEP; i++) product(sum, w + 2 * i, x + 2 * i);
        products_commit();
        products_wait<0>();
        pin(sum);
        if (threadIdx.x % 32 == 0) {
            barrier_arrive(c.w_empty + k.w_at.slot);
            barrier_arrive(c.x_empty + k.x_at.slot);
        }
#pragma unroll
        for (int j = 0; j < TOKENS / 2; j++) main[j] += sum[j];
        k.w_place += rows * CHAIN_BLOCK_K;
        k.w_at.next(CHAIN_W_UNITS);
        k.x_at.next(S::X_STAGES);
    }
}

template <int TOKENS>
static __device__ __forceinline__ void run_step(const chain_args &p, const chain_stage &s,
                                                consumer &k, chain_control &c) {
    const block_share b = share_of(s);

#pragma unroll 1
    for (int32_t tile = b.first; tile < s.tiles; tile += b.step) {
        const row_terms t = load_terms(s, tile);
        float main[TOKENS / 2];

        accumulate<TOKENS>(main, s.rows, b.count, k, c);
        if (!has_rows(s)) continue;
        if (s.h) leave_tile<TOKENS>(main, p, s, b.part, tile);
        else put_tile<TOKENS>(main, p, s, t, tile);
    }
}

/* ---- a block's way through the steps --------------------------------------------------------- */

/* All consumers have stored what they had to. */
static __device__ __forceinline__ void signal(uint32_t *counter) {
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    if (threadIdx.x == 0) counter_add(counter);
}

/* The last block to end leaves the counters as it found them. */
static __device__ __forceinline__ void end_run(const chain_args &p, chain_control &c) {
    if (threadIdx.x == 0) c.ticket = atomicAdd(p.counters, 1u);
    named_sync(CONSUMER_BARRIER, CONSUMERS);
    if (c.ticket != gridDim.x - 1) return;
    for (int32_t i = threadIdx.x; i < CHAIN_COUNTERS; i += CONSUMERS) p.counters[i] = 0;
}

template <int TOKENS>
static __device__ __forceinline__ void consume(const chain_args &p, consumer &k,
                                               chain_control &c) {
    const int32_t block = blockIdx.x;

    dependencies_wait();
#pragma unroll 1
    for (int32_t i = 0; i < p.count; i++) {
        const chain_stage &s = p.steps[i];
        uint32_t *const added = p.counters + CHAIN_ADDED + i * CHAIN_LINE;
        uint32_t *const ready = p.counters + CHAIN_READY + i * CHAIN_LINE;

        run_step<TOKENS>(p, s, k, c);
        if (s.h) {
            signal(added);
            if (block >= p.tokens) continue;
            if (s.out <= FEW_PIECES * PIECE * CONSUMERS) add_rows<FEW_PIECES>(p, s, added, c);
            else add_rows<MANY_PIECES>(p, s, added, c);
        }
        if (i + 1 < p.count) signal(ready);
    }
    end_run(p, c);
}

#endif /* CHAIN_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: one block a multiprocessor, all there at once, since they wait for each other; block: 8
 * warps that multiply, one that copies W, one that copies x. */
template <int TOKENS>
static __global__ void __launch_bounds__(THREADS, 1)
chain_kernel(const __grid_constant__ chain_args p) {
#if CHAIN_SM90
    extern __shared__ __align__(1024) uint8_t data[];
    uint8_t *const x_ring = data + chain_shape<TOKENS>::W_BYTES;
    chain_control &c = *reinterpret_cast<chain_control *>(data + CHAIN_RING_BYTES);
    const int32_t warp = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / 32, 0);

    if (threadIdx.x == 0) {
        for (int i = 0; i < CHAIN_W_UNITS; i++) {
            barrier_init(c.w_full + i, 1);
            barrier_init(c.w_empty + i, CHAIN_WARPS);
        }
        for (int i = 0; i < MAX_X_STAGES; i++) {
            barrier_init(c.x_full + i, 1);
            barrier_init(c.x_empty + i, CHAIN_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (warp < CHAIN_WARPS) {
        consumer k = {data, x_ring, {0, 0}, {0, 0}, 0};
        consume<TOKENS>(p, k, c);
    } else if (threadIdx.x == CONSUMERS) {
        copy_weights<TOKENS>(p, data, c);
    } else if (threadIdx.x == CONSUMERS + 32) {
        copy_inputs<TOKENS>(p, x_ring, c);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*chain_entry)(const chain_args);

static chain_entry entry_of(int64_t tokens) {
    switch (chain_kernel_tokens(tokens)) {
    case 8: return chain_kernel<8>;
    case 16: return chain_kernel<16>;
    case 32: return chain_kernel<32>;
    case 64: return chain_kernel<64>;
    default: return chain_kernel<128>;
    }
}

extern "C" int32_t chain_kernel_tokens(int64_t tokens) {
    int32_t n = 8;
    while (n < tokens) n *= 2;
    return n;
}

extern "C" fp8_status chain_available(void) {
    cudaFuncAttributes a;
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncGetAttributes(&a, chain_kernel<8>));
    if (a.numRegs < EMPTY_REGISTERS)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "chain: this build holds no sm_90a code");
done:
    return st;
}

extern "C" fp8_status chain_start(fp8_device *d, const chain_args *a, int32_t blocks) {
    const chain_entry entry = entry_of(a->tokens);
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)SHARED_BYTES));
    FP8_TRY(launch("chain", entry, dim3((unsigned)blocks), dim3(THREADS), (size_t)SHARED_BYTES, d,
                   FP8_LAUNCH_OVERLAP, *a));
done:
    return st;
}
