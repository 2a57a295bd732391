/* attention/flash_any.cu - flash.cu for what that one leaves out: terms of the scores (arbitrary
 * mask, biases, ALiBi, softcap, sink: flash_terms.cuh), and head sizes beside 64, 128 and 256, d_qk
 * apart from d_v. One kernel for a pair of sizes, what a run has of the terms being switches, and
 * at 64 and 128 one more without terms and one that asks for a bias of 16 bits a tile early.
 *
 * Computes   as flash.cu, with scores changed by flash_terms.cuh
 * Shapes     d_qk and d_v multiples of 16 up to the kernel's, V transposed by flash_prologue.cu.
 *            Columns that Q and K do not have come as 0 into shared memory (maps of d_qk columns,
 *            wider boxes); columns beyond d_v, of the next head, end in columns of O that are not
 *            written
 * Numerics   as flash.cu. Scores with terms are exponents in F32; p is taken against their maximum,
 *            and the sink joins the sum at the end
 * Tiling     as flash.cu; the walk is that of d 256: S, its terms, softmax, then T in chunks of 64
 *            columns, and the two warpgroups take turns at the products. A walk that has S and T
 *            under way at once has no registers left for what the terms load
 * Registers  of a consumer's 232: O d_v / 2, P 16, up to 32 of a bias, and either S 64 or T 2 x 32.
 *            No spills (ptxas 13.0, sm_90a)
 * Shared     Q, 4 stages of K and V (256: 3): 64: 72 K;  128: 144 K;  192/128: 184 K;  192: 216 K;
 *            256: 224 K
 * Bound      with a bias its bytes: 1, 16, 16, 2048 x 2048 in BF16 are 134 MB, 30 us at 4.5 TB/s,
 *            a causal mask takes half
 */
#include "attention/flash_block.cuh"
#include "attention/flash_launch.cuh"

/* The instructions exist for this one architecture; for others the kernel is empty, and
 * attention_flash_any_prepare finds out. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FLASH_SM90 1
#include "attention/flash_mainloop.cuh"
#else
#define FLASH_SM90 0
#endif

/* As flash_shared of flash.cu. */
template <int QK, int V>
struct flash_any_shared {
    static constexpr bool BY_INDEX = true, OWN_ITEM = true;
    static constexpr int STAGES = flash_shape<V>::STAGES;
    alignas(1024) uint8_t q[BLOCK_M * QK];
    alignas(1024) uint8_t k[STAGES][BLOCK_N * QK];
    alignas(1024) uint8_t v[STAGES][V * BLOCK_N];
    alignas(8) uint64_t q_full, q_empty;
    uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    flash_item items[2];
};

template <int QK, int V>
static constexpr size_t any_bytes = sizeof(flash_any_shared<QK, V>) + 1024; /* to align it */

#if FLASH_SM90

/* ---- consumers ------------------------------------------------------------------------------- */

/* Where scores have no terms S and T are under way at once, as in flash.cu. */
template <int QK, int V, flash_any_kind KIND, class SHARED>
static __device__ __forceinline__ void consume(const flash_params &p, SHARED &s, int32_t index) {
    constexpr bool TERMS = KIND != FLASH_ANY_PLAIN;
    const int32_t thread = threadIdx.x % WARPGROUP;
    consumer c = {index, index * WG_ROWS + thread / 32 * 16 + thread % 32 / 4, 0.0f, {0, 0}, 0.0f};
    uint32_t q_parity = 0;

    if (TERMS && index == 1) pass_turn(c); /* the first turn is warpgroup 0's */
    for (;;) {
        row_state rows = {{-INFINITY, -INFINITY}, {}, {}, {}};
        float out[V / 2];

        barrier_wait(&s.q_full, q_parity);
        const flash_item &it = s.items[q_parity]; /* stays there: registers are few */
        q_parity ^= 1;
        if (it.rows == 0) return;
        c.factor = TERMS && p.terms.changes ? 1.0f : it.factor;
        c.slope = TERMS ? slope_of(p, it) : 0.0f;
#pragma unroll
        for (int i = 0; i < V / 2; i++) out[i] = 0.0f;
        if (it.num_tiles == 0) release(&s.q_empty);
        else if constexpr (TERMS)
            attend_chunked<QK, V, true, KIND == FLASH_ANY_EARLY>(out, rows, p, s, c, it);
        else attend_overlapped<V>(out, rows, s, c, it);
        row_result r = {{rows.max[0], rows.max[1]},
                        {rows.sum[0][0] + rows.sum[0][1], rows.sum[1][0] + rows.sum[1][1]},
                        {}, {P_LARGEST, P_LARGEST}};
        if (TERMS && p.terms.has_sink) add_sink<V>(out, r, p, it, P_OFFSET);
        store_output<V, true>(out, r, p, it, c.row, P_OFFSET);
    }
}

#endif /* FLASH_SM90 */

/* ---- kernel ---------------------------------------------------------------------------------- */

/* grid: persistent blocks, one a multiprocessor; block: the producer's warpgroup, then the two
 * consumers'. */
template <int QK, int V, flash_any_kind KIND>
static __global__ void __launch_bounds__(THREADS, 1)
flash_any_kernel(const __grid_constant__ flash_params p) {
#if FLASH_SM90
    extern __shared__ uint8_t raw[];
    using shared = flash_any_shared<QK, V>;
    shared &s = *reinterpret_cast<shared *>(
        raw + (1024 - shared_address(raw) % 1024) % 1024);
    const int32_t warpgroup = __shfl_sync(0xffffffffu, (int32_t)threadIdx.x / WARPGROUP, 0);

    if (threadIdx.x == 0) {
        prefetch_map(&p.q_map);
        prefetch_map(&p.k_map);
        prefetch_map(&p.v_map);
        barrier_init(&s.q_full, 1);
        barrier_init(&s.q_empty, CONSUMER_WARPS);
        for (int i = 0; i < shared::STAGES; i++) {
            barrier_init(&s.k_full[i], 1);
            barrier_init(&s.v_full[i], 1);
            barrier_init(&s.k_empty[i], CONSUMER_WARPS);
            barrier_init(&s.v_empty[i], CONSUMER_WARPS);
        }
        barrier_init_done();
    }
    __syncthreads();
    dependencies_wait();
    if (warpgroup == 0) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0)
            produce<QK, BLOCK_M, false, true>(p, s, item_walk<shared::BY_INDEX>(p));
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        consume<QK, V, KIND>(p, s, warpgroup - 1);
    }
#endif
}

/* ---- host launchers -------------------------------------------------------------------------- */

typedef void (*flash_entry)(const flash_params);

template <int QK, int V, flash_any_kind KIND = FLASH_ANY_TERMS>
static flash_entry entry_for(size_t *bytes) {
    *bytes = any_bytes<QK, V>;
    return flash_any_kernel<QK, V, KIND>;
}

/* Of sizes that have all three kinds. */
template <int D>
static flash_entry entry_of_kind(flash_any_kind kind, size_t *bytes) {
    if (kind == FLASH_ANY_PLAIN) return entry_for<D, D, FLASH_ANY_PLAIN>(bytes);
    if (kind == FLASH_ANY_EARLY) return entry_for<D, D, FLASH_ANY_EARLY>(bytes);
    return entry_for<D, D>(bytes);
}

static flash_entry entry_of(flash_sizes d, size_t *bytes) {
    switch (d.qk) {
    case 64: return entry_of_kind<64>(d.kind, bytes);
    case 128: return entry_of_kind<128>(d.kind, bytes);
    case 192: return d.v == 128 ? entry_for<192, 128>(bytes) : entry_for<192, 192>(bytes);
    default: return entry_for<256, 256>(bytes);
    }
}

extern "C" fp8_status attention_flash_any_prepare(flash_sizes d) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, &bytes);
    return flash_prepare(entry, d.v, bytes);
}

extern "C" fp8_status attention_flash_any_launch(const flash_params *p, flash_sizes d,
                                                 int32_t blocks, const flash_queue *to) {
    size_t bytes = 0;
    const flash_entry entry = entry_of(d, &bytes);
    return flash_launch("flash attention, any", entry, blocks, THREADS, bytes, to, *p);
}
