/* quant/skinny.cu - E4M3 products for few tokens on Hopper.
 *
 * Computes   y[t, n] = round(alpha * a_descale[t] * b_descale[n] * sum_k x[t, k] W[n, k] + bias[n]
 *                            + residual[t, n]), the residual with up to 32 tokens;
 *            or, gated, with up to 64, act(column j) * (column n / 2 + j) of it, rounded or
 *            cast(v * d_scale)
 * Shapes     x [tokens, k] E4M3, tokens 1 .. 128; W [n, k] E4M3, any n and k, rows on 16 bytes; y
 *            [tokens, n] F32, BF16 or F16; gated [tokens, n / 2], E4M3 too, n a multiple of 16
 * Bound      memory: n * k bytes of W once. At 4.55 TB/s, what reading alone reaches on an H200:
 *            37.7 MB (12288 x 3072) 8.3 us, 12.6 MB 2.8 us, 151 MB 33 us, 75.5 MB 17 us. Products
 *            are 2 tokens n k: at 128 tokens as long as the reading
 * Tiling     operands are swapped: rows of W are the M of wgmma, tokens its N. A unit is 80 to 128
 *            rows of W, so that tiles come out even on the multiprocessors, and all tokens by 128
 *            of K; a ring of units fills by bulk tensor copies that one thread of a ninth warp
 *            issues. Two warpgroups of 64 rows each multiply, whatever a tile has. Where
 *            tiles are few, a cluster's blocks take a part of K each, and unit u of the partial
 *            sums (a warp's 16 rows, 8 tokens) is sent to rank u % splits, which adds and stores.
 *            Gated, a warp's 16 rows are 8 of gate and the same 8 of up, by a tensor map of four
 *            dimensions, so that both meet in one thread's registers
 * Numerics   Hopper's FP8 products keep about 14 bits of a running sum and truncate: every 128 of K
 *            they start from zero and are added in FP32. Partial sums are added in a fixed order
 * Overlap    up to 32 tokens two blocks share a multiprocessor; beyond, one has it, with all of
 *            its shared memory as a ring. With FP8_LAUNCH_OVERLAP the next product's first units of
 *            W come as blocks of this one end, while others reduce and store:
 *
 *   kernel i      W ........ last W | sums | reduce | store | end
 *   kernel i + 1                 start  W fills the ring       | x | sums, W ....
 *
 *            x waits for the end of the kernels before; W does not. Memory would rest from the
 *            time that the ring is full: a few units more go to the L2 cache then, one after the
 *            other. What is asked for at once is bounded: with more on its way than memory needs,
 *            the sums, results and x of other kernels queue behind it
 * Registers  80 to 96 of 96 (two blocks of 9 warps) up to 64 tokens, 168 of 168 at 128; no spills
 *            (ptxas 13.0, sm_90a)
 */
#include "core/launch.cuh"
#include "quant/skinny_store.cuh"

#if SKINNY_SM90

struct unit_place {
    int32_t tile, unit;
    __device__ __forceinline__ void next(const block_share &b) {
        if (++unit < b.count) return;
        unit = 0;
        tile += b.step;
    }
};

/* ---- producer: one thread -------------------------------------------------------------------- */

/* W of a unit. */
template <bool GATED>
static __device__ __forceinline__ void copy_w(const skinny_args &p, const block_share &b,
                                              const unit_place &u, int32_t stage, uint8_t *data,
                                              uint64_t *bar) {
    uint8_t *to = data + stage * p.stage_bytes;
    const int32_t k = (b.begin + u.unit) * BLOCK_K, row = u.tile * p.rows;

    if constexpr (GATED)
        copy_box_4d(to, &p.w_map, bar, k, 0, 0, row / WARP_ROWS, policy_evict_first());
    else copy_box_2d(to, &p.w_map, bar, k, row, policy_evict_first());
}

static __device__ __forceinline__ void copy_x(const skinny_args &p, const block_share &b,
                                              const unit_place &u, int32_t stage, uint8_t *data,
                                              skinny_control &c) {
    copy_box_2d(data + stage * p.stage_bytes + p.rows * BLOCK_K, &p.x_map, c.full + stage,
                (b.begin + u.unit) * BLOCK_K, 0, policy_evict_last());
}

template <bool GATED>
static __device__ __forceinline__ void fetch_w(const skinny_args &p, const block_share &b,
                                               const unit_place &u) {
    const int32_t k = (b.begin + u.unit) * BLOCK_K, row = u.tile * p.rows;

    if constexpr (GATED) fetch_box_4d(&p.w_map, k, 0, 0, row / WARP_ROWS);
    else fetch_box_2d(&p.w_map, k, row);
}

static __device__ __forceinline__ unit_place place_of(const block_share &b, int32_t index) {
    const int32_t tile = index / b.count;
    return {b.first + tile * b.step, index - tile * b.count};
}

/* W of unit i of the first round, x of which comes later. Paced it has a barrier of its own, so
 * that it is seen when it is there. */
template <bool GATED>
static __device__ __forceinline__ void start_w(const skinny_args &p, const block_share &b,
                                               const unit_place &u, int32_t i, uint8_t *data,
                                               skinny_control &c) {
    uint64_t *bar = p.paced ? c.early + i : c.full + i;

    barrier_expect(bar, p.paced ? p.rows * BLOCK_K : p.stage_bytes);
    copy_w<GATED>(p, b, u, i, data, bar);
}

static __device__ __forceinline__ void start_x(const skinny_args &p, const block_share &b,
                                               const unit_place &u, int32_t i, uint8_t *data,
                                               skinny_control &c) {
    if (p.paced) barrier_expect(c.full + i, p.stage_bytes - p.rows * BLOCK_K);
    copy_x(p, b, u, i, data, c);
}

/* The first of W, which does not depend on the kernels before. */
template <bool GATED>
static __device__ __forceinline__ void produce_early(const skinny_args &p, const block_share &b,
                                                     uint8_t *data, skinny_control &c) {
    unit_place u = {b.first, 0};

    if (p.lead == SKINNY_RELEASE_AT_START) dependents_launch();
    if (!p.early) dependencies_wait();
    for (int32_t i = 0; i < min(b.total, p.bound); i++, u.next(b))
        start_w<GATED>(p, b, u, i, data, c);
}

/* Until x can be read: the rest of the ring, no more than p.bound units on their way, then what
 * follows into the L2 cache, at the pace of memory. Returns the units whose W is asked for. */
template <bool GATED>
static __device__ __forceinline__ int32_t produce_waiting(const skinny_args &p,
                                                          const block_share &b, uint8_t *data,
                                                          skinny_control &c) {
    const int32_t ring = min(b.total, p.stages), end = min(b.total, ring + p.ahead);
    int32_t i = min(b.total, p.bound);
    unit_place u = place_of(b, i);
    uint32_t fetched = 0;

    while (i < end && !barrier_is_over(&c.started, 0)) {
        if (i < ring ? !barrier_is_over(c.early + i - p.bound, 0)
                     : !barrier_is_over(c.early + ring - 1, 0) ||
                           (uint32_t)clock() - fetched < FETCH_CLOCKS)
            continue;
        if (i < ring) start_w<GATED>(p, b, u, i, data, c);
        else fetch_w<GATED>(p, b, u);
        fetched = (uint32_t)clock();
        i++;
        u.next(b);
    }
    return min(i, ring);
}

/* Waits until no more than p.bound units of W are on their way when unit i is asked for; `at` is
 * where unit i - p.bound lies. */
static __device__ __forceinline__ void keep_bound(const skinny_args &p, int32_t i, ring_place &at,
                                                  skinny_control &c) {
    if (p.bound == p.stages) return;
    if (i - p.bound < p.stages) barrier_wait(c.early + i - p.bound, 0);
    else barrier_wait(c.full + at.slot, at.parity);
    at.next(p.stages);
}

template <bool GATED>
static __device__ __forceinline__ void produce(const skinny_args &p, const block_share &b,
                                               uint8_t *data, skinny_control &c) {
    const int32_t ring = min(b.total, p.stages);
    int32_t i = p.paced ? produce_waiting<GATED>(p, b, data, c) : ring;
    ring_place at = {0, 0}, there = {max(i - p.bound, 0), 0};
    unit_place u = {b.first, 0};

    dependencies_wait();
    for (int32_t j = 0; j < i; j++, u.next(b)) start_x(p, b, u, j, data, c);
    if (b.total - p.lead <= p.stages) dependents_launch();
    for (; i < ring; i++, u.next(b)) {
        keep_bound(p, i, there, c);
        start_w<GATED>(p, b, u, i, data, c);
        start_x(p, b, u, i, data, c);
    }
    for (; i < b.total; i++, u.next(b)) {
        barrier_wait(c.empty + at.slot, at.parity);
        keep_bound(p, i, there, c);
        barrier_expect(c.full + at.slot, p.stage_bytes);
        copy_w<GATED>(p, b, u, at.slot, data, c.full + at.slot);
        copy_x(p, b, u, at.slot, data, c);
        if (i == b.total - p.lead) dependents_launch();
        at.next(p.stages);
    }
}

/* ---- consumers: sums ------------------------------------------------------------------------- */

/* main = sums of this block's K of a tile. */
template <int TOKENS>
static __device__ __forceinline__ void accumulate(float (&main)[TOKENS / 2], const skinny_args &p,
                                                  const block_share &b, const uint8_t *data,
                                                  skinny_control &c, ring_place &at) {
    const uint32_t step = (uint32_t)p.stage_bytes / 16;
    const uint32_t w0 = operand_low(data + threadIdx.x / WARPGROUP * WG_ROWS * BLOCK_K);
    const uint32_t x0 = operand_low(data + p.rows * BLOCK_K);
    float sum[TOKENS / 2];

#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) main[i] = 0.0f;
    for (int32_t i = 0; i < b.count; i++) {
        const uint32_t w = w0 + at.slot * step, x = x0 + at.slot * step;
        if (p.paced && at.parity == 0) barrier_wait(c.early + at.slot, 0);
        barrier_wait(c.full + at.slot, at.parity);
        products_begin();
        product_start(sum, w, x);
#pragma unroll
        for (int k = 1; k < BLOCK_K / K_STEP; k++) product(sum, w + 2 * k, x + 2 * k);
        products_commit();
        products_wait<0>();
        pin(sum);
        if (threadIdx.x % 32 == 0) barrier_arrive(c.empty + at.slot);
#pragma unroll
        for (int j = 0; j < TOKENS / 2; j++) main[j] += sum[j];
        at.next(p.stages);
    }
}

/* ---- consumers: reduction over a cluster ----------------------------------------------------- */

template <int TOKENS>
static __device__ __forceinline__ void expect_shares(const skinny_args &p, const block_share &b,
                                                     skinny_control &c) {
    int32_t owned = 0;
    if (!has_rows(p)) return;
    for (int j = 0; j < TOKENS / 8; j++)
        owned += share_index<TOKENS>(j) % p.splits == b.rank;
    barrier_expect(c.received + threadIdx.x / 32,
                   owned * (p.splits - 1) * SHARE * (int32_t)sizeof(float));
}

/* Sends what others own and adds what they sent, own sum first, then by rank. */
template <int TOKENS>
static __device__ __forceinline__ void reduce(float (&main)[TOKENS / 2], const skinny_args &p,
                                              const block_share &b, float *boxes,
                                              skinny_control &c) {
    uint64_t *received = c.received + threadIdx.x / 32;
    float *lane_box = boxes + threadIdx.x % 32 * 4;
    bool waited = false;

    cluster_wait(); /* all blocks of the cluster have started */
    if (!has_rows(p)) return;
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        const int32_t u = share_index<TOKENS>(j), owner = u % p.splits;
        const int32_t sender = b.rank - (b.rank > owner);
        if (owner != b.rank)
            store_at(lane_box + (u / p.splits * (p.splits - 1) + sender) * SHARE, received, owner,
                     main + 4 * j);
    }
#pragma unroll
    for (int j = 0; j < TOKENS / 8; j++) {
        const int32_t u = share_index<TOKENS>(j);
        const float *box = lane_box + u / p.splits * (p.splits - 1) * SHARE;
        if (u % p.splits != b.rank) continue;
        if (!waited) barrier_wait(received, 0);
        waited = true;
        for (int32_t r = 0; r < p.splits - 1; r++) {
            const float4 v = *reinterpret_cast<const float4 *>(box + r * SHARE);
            main[4 * j] += v.x;
            main[4 * j + 1] += v.y;
            main[4 * j + 2] += v.z;
            main[4 * j + 3] += v.w;
        }
    }
}

/* ---- consumers ------------------------------------------------------------------------------- */

/* The descales of tokens and D's scale, on their way while the sums are made. */
template <int TOKENS, bool GATED>
static __device__ __forceinline__ void fetch_scales(const skinny_args &p, skinny_control &c) {
    for (int32_t t = threadIdx.x; t < TOKENS; t += CONSUMERS) {
        const int32_t from = p.a_vector ? min(t, p.tokens - 1) : 0;
        if (p.a_descale) copy_word(c.token_scale + t, p.a_descale + from);
        else c.token_scale[t] = 1.0f;
    }
    if (GATED && p.d_scale && threadIdx.x == 0) copy_word(&c.d_scale, p.d_scale);
}

template <int TOKENS, bool GATED>
static __device__ __forceinline__ void consume(const skinny_args &p, const block_share &b,
                                               uint8_t *data, uint8_t *boxes, skinny_control &c) {
    constexpr bool HAS_RESIDUAL = !GATED && TOKENS <= SKINNY_RESIDUAL_TOKENS;
    const int32_t lane = threadIdx.x % 32;
    ring_place at = {0, 0};
    bool first = true;

    if (!GATED && p.splits > 1 && lane == 0) expect_shares<TOKENS>(p, b, c);
    dependencies_wait();
    if (threadIdx.x == 0) barrier_arrive(&c.started);
    fetch_scales<TOKENS, GATED>(p, c);
    for (int32_t tile = b.first; tile < p.tiles; tile += b.step) {
        const int32_t row = (tile * p.rows + threadIdx.x / 32 * WARP_ROWS) / (GATED ? 2 : 1);
        const row_terms terms = load_terms<GATED>(p, row + lane / 4);
        float main[TOKENS / 2], more[TOKENS / 2];

        if constexpr (HAS_RESIDUAL)
            load_residual<TOKENS>(more, p, b, row + lane / 4);
        accumulate<TOKENS>(main, p, b, data, c, at);
        if (first) {
            copied_words();
            named_sync(CONSUMER_BARRIER, CONSUMERS);
        }
        first = false;
        if (!GATED && p.splits > 1)
            reduce<TOKENS>(main, p, b, reinterpret_cast<float *>(boxes), c);
        if (!has_rows(p)) continue;
        finish<TOKENS>(main, p, c, terms);
        if constexpr (GATED) {
            store_gated<TOKENS>(main, p, p.d_scale ? c.d_scale : 1.0f, row);
            continue;
        }
        if constexpr (HAS_RESIDUAL) {
            if (p.residual)
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) main[i] = __fadd_rn(main[i], more[i]);
        }
        if (p.d_by_copy) store_copied<TOKENS>(main, p, boxes, row);
        else store<TOKENS>(main, p, b, row);
    }
    if (!GATED && p.d_by_copy && lane == 0) boxes_read();
}

#endif /* SKINNY_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: clusters of p.splits blocks; block: 8 warps that multiply, one that copies. NOTE: a block
 * may end before its peers: they send only to owners, who wait for all that is sent. */
template <int TOKENS, int RESIDENT, bool GATED>
static __global__ void __launch_bounds__(THREADS, RESIDENT)
skinny_kernel(const __grid_constant__ skinny_args p) {
#if SKINNY_SM90
    extern __shared__ __align__(1024) uint8_t data[];
    uint8_t *boxes = data + p.stages * p.stage_bytes;
    skinny_control &c = *reinterpret_cast<skinny_control *>(boxes + p.box_bytes);
    const int32_t warp = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / 32, 0);
    const bool copies = threadIdx.x == CONSUMERS;
    block_share b;

    b.rank = (int32_t)blockIdx.x % p.splits;
    b.first = (int32_t)blockIdx.x / p.splits;
    b.step = (int32_t)gridDim.x / p.splits;
    b.begin = (int32_t)((int64_t)p.units * b.rank / p.splits);
    b.count = (int32_t)((int64_t)p.units * (b.rank + 1) / p.splits) - b.begin;
    b.total = (p.tiles - b.first + b.step - 1) / b.step * b.count;
    if (copies) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(c.full + i, 1);
            barrier_init(c.empty + i, SKINNY_WARPS);
            barrier_init(c.early + i, 1);
        }
        for (int i = 0; i < SKINNY_WARPS; i++) barrier_init(c.received + i, 1);
        barrier_init(&c.started, 1);
        barrier_init_done();
        produce_early<GATED>(p, b, data, c);
    }
    __syncwarp();
    __syncthreads();
    if (p.splits > 1) cluster_arrive();
    if (warp < SKINNY_WARPS) {
        consume<TOKENS, GATED>(p, b, data, boxes, c);
    } else {
        if (copies) produce<GATED>(p, b, data, c);
        __syncwarp();
        if (p.splits > 1) cluster_wait();
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*skinny_entry)(const skinny_args);

static skinny_entry entry_of(const skinny_tile *t) {
    switch (t->tokens) {
    case 8: return t->gated ? skinny_kernel<8, 2, true> : skinny_kernel<8, 2, false>;
    case 16: return t->gated ? skinny_kernel<16, 2, true> : skinny_kernel<16, 2, false>;
    case 32: return t->gated ? skinny_kernel<32, 2, true> : skinny_kernel<32, 2, false>;
    case 64: return t->gated ? skinny_kernel<64, 2, true> : skinny_kernel<64, 2, false>;
    default: return skinny_kernel<128, 1, false>;
    }
}

extern "C" fp8_status skinny_available(void) {
    static int known; /* 1: it does, 2: it does not; the same for every thread that finds out */
    cudaFuncAttributes a;
    fp8_status st = FP8_OK;

    if (__atomic_load_n(&known, __ATOMIC_RELAXED) == 0) {
        FP8_TRY_CUDA(cudaFuncGetAttributes(&a, skinny_kernel<8, 2, false>));
        __atomic_store_n(&known, a.numRegs < EMPTY_REGISTERS ? 2 : 1, __ATOMIC_RELAXED);
    }
    if (__atomic_load_n(&known, __ATOMIC_RELAXED) == 2)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "skinny gemm: this build holds no sm_90a code");
done:
    return st;
}

extern "C" fp8_status skinny_launch(fp8_device *d, const skinny_args *a, const skinny_tile *t,
                                    fp8_launch how) {
    const size_t shared = skinny_shared_bytes(t);
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(entry_of(t), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared));
    FP8_TRY(launch_clusters("skinny gemm", entry_of(t), (unsigned)t->splits,
                            dim3((unsigned)(t->clusters * t->splits)), dim3(THREADS), shared, d,
                            how, *a));
done:
    return st;
}
