/* attention/flash_wide.cu - FP8 attention on Hopper over long sequences: formula, operands and
 * options of flash.cu but LSE and amax, with more rows in flight and no maximum in the steps.
 *
 * Computes   as flash.cu, but P is taken against a maximum of earlier keys
 *            (flash_wide_softmax.cuh), and the sum is that of the rounded p, made by the tensor
 *            cores: a product with ones, from zero each step. Rounding cancels where p are alike
 * Shapes     those of flash.cu; V as it lies at d 128 alone
 * Numerics   P V accumulates on the tensor cores, which lose what lies 13 bits below a sum: of one
 *            sign 15 % over 8192 keys, 0.6 % over 512. So at d 64 every 512 keys, or promote_keys
 *            as a power of two, T joins O in FP32, kept in shared memory, and starts from zero.
 *            At d 128 and 256 every 1440 keys at most all of O is kept, and T starts below zero by
 *            half of what the next keys will bring, so that it is never longer than that half: by
 *            a share of O itself, what the last 64 keys weighed telling how much is still coming.
 *            A few heavy keys so stay in T for one gap at most, not to drown all that follow.
 *            Kept are BF16, and what they lack stays in T: O = T + kept * share, FP32 throughout,
 *            where share, one a row, also is all that shrinks when a maximum grows. 0.9 % is lost
 *            of one sign at most, over 8192 to 131072 keys. Fast sums: never
 * Tiling     a block takes 64 queries a consumer warpgroup, d 64 four, d 128 three, d 256 two, and
 *            a producer. A step of one warpgroup is a chain: S, exponentials, packing; more of them
 *            hide each other's latencies. K [128, d] and V^T [d, 128] come in rings. Blocks share
 *            items evenly where the last wave would be a small one (flash_wide_parts.cuh)
 *            V as it lies is transposed by three warps (flash_turn.cuh), for sequences whose V is
 *            read few times: no launch goes before, and few items come in the plan's order
 *            Where Q, K and V come in BF16 or F16, codes of all heads but the first are made here,
 *            by the producer's other three warps (flash_later.cuh)
 * Registers  d 64: 112 a consumer: S 32, T 32, P 16;  d 128: 160: S 32, T 64, P 16;  d 256: 232: S
 *            32, T 128, P 16. No spills (ptxas 13.0)
 * Shared     d 64: Q 16 K + 4 x 16 K + O 64 K = 144 K;  d 128: 24 + 4 x 32 + 48 = 200 K, fast
 *            24 + 3 x 32; V as it lies 24 + 3 x 32 + 16 + 48 = 184 K, fast without the 48;
 *            d 256: 32 + 2 x 64 + 64 = 224 K of 227, fast 32 + 3 x 64
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

/* How V comes, transposed or as it lies, and whether a run promotes; at d 64 one kernel does
 * both. */
enum wide_kind { TURNED_FAST, TURNED_EXACT, AS_IS_FAST, AS_IS_EXACT };

/* ---- a block --------------------------------------------------------------------------------- */

/* 65536 registers: 128 * (32 + 4 * 112) = 61440 = 640 * 96, what 640 threads start with;
 * 128 * (32 + 3 * 160) = 128 * (56 + 3 * 152) = 65536 = 512 * 128; 128 * (40 + 2 * 232) = 64512 =
 * 384 * 168. */
template <int D, wide_kind KIND = TURNED_EXACT>
struct wide_shape {
    static constexpr bool AS_IS = KIND == AS_IS_FAST || KIND == AS_IS_EXACT;
    static constexpr int CONSUMERS = D == 64 ? 4 : D == 128 ? 3 : 2; /* warpgroups */
    static constexpr int ROWS = 64 * CONSUMERS;
    static constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
    static constexpr int STAGES =
        D == 64 ? 4 : KIND == TURNED_EXACT ? (D == 128 ? 4 : 2) : 3;
    static constexpr bool PROMOTES = KIND == TURNED_EXACT || KIND == AS_IS_EXACT;
    static constexpr int KEPT_BYTES = !PROMOTES ? 0 : D == 64 ? 4 : 2; /* of an element of O */
    static constexpr bool PROMOTES_EARLY = AS_IS; /* before S of the next step: no room for both */
    static constexpr bool SHARES = D != 256 && !AS_IS; /* items; there it would spill */
    static constexpr bool SETTLES_LATE = D != 64; /* S of the next step is issued before that */
    static constexpr int PRODUCER_REGISTERS = D == 256 ? 40 : AS_IS ? 56 : 32;
    static constexpr int CONSUMER_REGISTERS =
        D == 64 ? 112 : D == 256 ? 232 : AS_IS ? 152 : 160;
};

/* As flash_shared. ones: 8 rows of a right operand. */
template <int D, wide_kind KIND>
struct wide_shared {
    using shape = wide_shape<D, KIND>;
    static constexpr bool AS_IS = shape::AS_IS;
    static constexpr bool BY_INDEX = AS_IS; /* else a launch goes before, and there is a counter */
    static constexpr bool OWN_ITEM = false;
    static constexpr int STAGES = shape::STAGES;
    alignas(1024) uint8_t q[shape::ROWS * D];
    alignas(1024) uint8_t k[STAGES][BLOCK_N * D];
    alignas(1024) uint8_t v[STAGES][D * BLOCK_N];
    alignas(1024) uint8_t ones[8 * BLOCK_N];
    float4 kept[shape::PROMOTES ? shape::ROWS * D * shape::KEPT_BYTES / 16 : 1];
    float share[shape::PROMOTES && D != 64 ? shape::ROWS : 1];
    alignas(8) uint64_t q_full, q_empty;
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    flash_item items[2], coming;
    uint64_t v_came, v_turned; /* AS_IS: of as_is */
    int32_t v_keys;            /* of as_is, of the sequence; -1: no more tiles */
    alignas(AS_IS ? 1024 : 16) uint8_t as_is[AS_IS ? D * BLOCK_N : 16];
};

template <int D, wide_kind KIND>
static constexpr size_t wide_bytes = sizeof(wide_shared<D, KIND>) + 1024; /* to align the start */
static_assert(wide_bytes<128, TURNED_EXACT> <= 227 << 10, "what a block may have of shared memory");
static_assert(wide_bytes<256, TURNED_EXACT> <= 227 << 10, "what a block may have of shared memory");
static_assert(wide_bytes<128, AS_IS_EXACT> <= 227 << 10, "what a block may have of shared memory");
static_assert(wide_bytes<256, TURNED_FAST> <= 227 << 10, "what a block may have of shared memory");

/* What a kernel is given; AS_IS: items in an order of the host's, or without one by their index. */
template <bool AS_IS>
struct wide_params {
    flash_params p;
    flash_later later;
};
template <>
struct wide_params<true> {
    flash_params p;
    flash_order order;
};

#if FLASH_SM90
#include "attention/flash_epilogue.cuh"
#include "attention/flash_later.cuh"
#include "attention/flash_producer.cuh"
#include "attention/flash_turn.cuh"
#include "attention/flash_wide_mainloop.cuh"
#include "attention/flash_wide_parts.cuh"

/* ---- consumers ------------------------------------------------------------------------------- */

/* O is promoted at most 1 % short, of terms of one sign (docs/NOTES.md), or not at all, of mixed
 * ones: what is divided by is smaller by half a bit of BF16. */
#define PROMOTED_SUM (1.0f - 1.0f / 512.0f)

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

template <int D, class SHARED>
static __device__ __forceinline__ void consume(const flash_params &p, SHARED &s, int32_t index) {
    wide_place<D, SHARED::STAGES> place = {}; /* of the next tile */

    for (;;) {
        wide_rows rows = {{INFINITY, INFINITY}, {}};
        wide_kept<D> kept = {s.kept, s.share, D == 64};
        float out[D / 2];

        if (D == 64) clear_kept(kept); /* no register is left to know that there is nothing */
        barrier_wait(&s.q_full, place.item_parity());
        const flash_item &it = s.items[place.item_parity()]; /* stays there: registers are few */
        place.next_item();
        if (it.rows == 0) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0 || (D != 64 && index * 64 >= it.valid)) pass_over(s, place, it);
        else attend_wide<D>(out, rows, kept, s, place, it, index, p);
        if constexpr (SHARED::shape::PROMOTES) {
            if (kept.any && D == 64) add_kept(out, kept);
            else if (kept.any) {
                join_kept(out, kept);
                rows.sum[0] *= PROMOTED_SUM;
                rows.sum[1] *= PROMOTED_SUM;
            }
        }
        if (SHARED::shape::SHARES && it.slot >= 0 && !join_parts<D>(out, rows, p, it.slot))
            continue;
        row_result r = result_of(rows, it);
        store_output<D>(out, r, p, it, row_of_thread(), WIDE_OFFSET);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the consumers' warpgroups, then the
 * producer's. */
template <int D, wide_kind KIND>
static __global__ void __launch_bounds__(wide_shape<D>::THREADS, 1)
wide_kernel(const __grid_constant__ wide_params<wide_shape<D, KIND>::AS_IS> all) {
#if FLASH_SM90
    const flash_params &p = all.p;
    extern __shared__ uint8_t raw[];
    using shared = wide_shared<D, KIND>;
    using shape = typename shared::shape;
    shared &s = *reinterpret_cast<shared *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);
    constexpr int WARPS = shape::CONSUMERS * WARPGROUP / 32;

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, 32 * WARPS);
        barrier_init(&s.v_came, 1);
        barrier_init(&s.v_turned, TURN_WARPS);
        for (int i = 0; i < shape::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], shape::AS_IS ? TURN_WARPS : 1);
            barrier_init(&s.k_empty[i], WARPS);
            barrier_init(&s.v_empty[i], WARPS);
        }
        barrier_init_done();
    }
    for (uint32_t i = threadIdx.x; i < sizeof s.ones; i += shape::THREADS)
        s.ones[i] = 0x38; /* 1 in E4M3 */
    proxy_fence();
    __syncthreads();
    dependencies_wait();
    if (warpgroup == shape::CONSUMERS) {
        registers_shrink<shape::PRODUCER_REGISTERS>();
        const int32_t thread = (int32_t)threadIdx.x % WARPGROUP;
        if constexpr (shape::AS_IS) {
            if (thread == 0) {
                if (all.order.begin[gridDim.x] > 0)
                    produce<D, shape::ROWS, true>(p, s, order_walk(all.order));
                else produce<D, shape::ROWS, true>(p, s, item_walk<true>(p));
            }
            if (thread >= 32) turn_tiles<D>(s);
        } else if (thread == 0) {
            produce<D, shape::ROWS, false>(p, s, wide_walk<D == 128>(p, all.later));
        } else if (D == 128 && thread >= 32 && all.later.groups > 0) {
            make_later(all.later);
        }
    } else {
        registers_grow<shape::CONSUMER_REGISTERS>();
        consume<D>(p, s, warpgroup);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

template <int D, wide_kind KIND>
static fp8_status launch(const wide_params<wide_shape<D, KIND>::AS_IS> &p, int32_t blocks,
                         const flash_queue *to) {
    return flash_launch("flash attention, wide", wide_kernel<D, KIND>, blocks,
                        wide_shape<D>::THREADS, wide_bytes<D, KIND>, to, p);
}

template <int D, wide_kind KIND>
static fp8_status prepare(void) {
    return flash_prepare(wide_kernel<D, KIND>, D, wide_bytes<D, KIND>);
}

static bool is_fast(const flash_params *p) { return p->promote_keys == INT32_MAX; }

extern "C" fp8_status attention_flash_wide_prepare(const flash_params *p, int32_t d) {
    if (d == 64) return prepare<64, TURNED_EXACT>();
    if (d == 256) return is_fast(p) ? prepare<256, TURNED_FAST>() : prepare<256, TURNED_EXACT>();
    if (p->v_as_is) return is_fast(p) ? prepare<128, AS_IS_FAST>() : prepare<128, AS_IS_EXACT>();
    return is_fast(p) ? prepare<128, TURNED_FAST>() : prepare<128, TURNED_EXACT>();
}

extern "C" fp8_status attention_flash_wide_launch(const flash_params *p, const flash_order *order,
                                                  const flash_later *later, int32_t d,
                                                  int32_t blocks, const flash_queue *to) {
    if (d == 64) return launch<64, TURNED_EXACT>({*p, *later}, blocks, to);
    if (d == 256 && is_fast(p)) return launch<256, TURNED_FAST>({*p, *later}, blocks, to);
    if (d == 256) return launch<256, TURNED_EXACT>({*p, *later}, blocks, to);
    if (p->v_as_is && is_fast(p)) return launch<128, AS_IS_FAST>({*p, *order}, blocks, to);
    if (p->v_as_is) return launch<128, AS_IS_EXACT>({*p, *order}, blocks, to);
    if (is_fast(p)) return launch<128, TURNED_FAST>({*p, *later}, blocks, to);
    return launch<128, TURNED_EXACT>({*p, *later}, blocks, to);
}
