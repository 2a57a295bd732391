/* attention/flash_wide_mainloop.cuh - private: a consumer warpgroup's walk over an item's keys, 64
 * a step. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#define FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#include "attention/flash_wide_kept.cuh"

/* ---- products -------------------------------------------------------------------------------- */

/* A descriptor, operand<ROW_BYTES>(), of which only the low half is computed with: sums of 64 bits
 * take twice the instructions and registers. */
template <int ROW_BYTES>
struct wide_operand {
    uint32_t low;

    __device__ __forceinline__ explicit wide_operand(const void *p, int bytes)
        : low(((shared_address(p) & 0x3ffff) + bytes) / 16 | 1 << 16) {}
    __device__ __forceinline__ uint64_t at(int bytes) const {
        const uint32_t high = (uint32_t)(operand<ROW_BYTES>(NULL) >> 32);
        return (uint64_t)high << 32 | (low + bytes / 16);
    }
};

/* S of 64 keys over d, issued and committed. */
template <int D>
static __device__ __forceinline__ void
issue_scores(float (&scores)[32], const wide_operand<flash_shape<D>::ROW_BYTES> q,
             const wide_operand<flash_shape<D>::ROW_BYTES> k) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, STEPS = ROW_BYTES / K_STEP;
    products_begin();
#pragma unroll
    for (int i = 0; i < D / K_STEP; i++) {
        const int block = i / STEPS, within = i % STEPS * K_STEP;
        const uint64_t q_step = q.at(block * wide_shape<D>::ROWS * ROW_BYTES + within);
        const uint64_t k_step = k.at(block * BLOCK_N * ROW_BYTES + within);
        if (i == 0) product_start(scores, q_step, k_step, 0);
        else product(scores, q_step, k_step, 1);
    }
    products_commit();
}

/* T += P V of 64 keys, and part = the sums of P's rows, as a product with ones; issued and
 * committed. */
template <int D>
static __device__ __forceinline__ void issue_output(float (&t)[D / 2], float (&part)[4],
                                                    const uint32_t (&prob)[8],
                                                    const wide_operand<128> v,
                                                    const wide_operand<128> ones) {
    constexpr int COLUMNS = D < 128 ? D : 128;
    products_begin();
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int c = 0; c < D; c += COLUMNS) {
            float(&x)[COLUMNS / 2] = reinterpret_cast<float(&)[COLUMNS / 2]>(t[c / 2]);
            product(x, prob + 4 * i, v.at(c * BLOCK_N + i * K_STEP), 1);
        }
        if (i == 0) product_start(part, prob, ones.at(0), 0);
        else product(part, prob + 4 * i, ones.at(0), 1);
    }
    products_commit();
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* Steps of 64 keys that need no mask for any row of the warp, counted from the item's first: from
 * the low half up to before the high half; what does not fit in 16 bits is masked. One register,
 * since at d 64 there are no two. */
static __device__ __forceinline__ uint32_t find_clear_steps(const flash_item &it) {
    const int32_t row = row_of_thread() & ~15, first = it.first_tile * BLOCK_N;
    const int32_t begin = (key_begin(it, row + 15) - first + 63) / 64;
    const int32_t end = (key_end(it, row) - first) / 64;
    return (uint32_t)(min(begin, 0xffff) | max(0, min(end, 0xffff)) << 16);
}

static __device__ __forceinline__ void mask_step(float (&scores)[32], const flash_item &it,
                                                 uint32_t clear, int32_t step) {
    if (step >= (int32_t)(clear & 0xffff) && step < (int32_t)(clear >> 16)) return;
    mask_scores(scores, it, row_of_thread(), it.first_tile * BLOCK_N + step * 64);
}

/* A place in the rings and the parity of the item. NOTE: apart, they stay in uniform registers,
 * which is worth 8 %; at d 64 they do not, and there are registers for one number alone. */
template <int D, int STAGES>
struct wide_place {
    ring_place at;
    uint32_t item;

    __device__ __forceinline__ int32_t stage() const { return at.stage; }
    __device__ __forceinline__ uint32_t parity() const { return at.parity; }
    __device__ __forceinline__ wide_place next() const { return {next_place<STAGES>(at), item}; }
    __device__ __forceinline__ uint32_t item_parity() const { return item; }
    __device__ __forceinline__ void next_item() { item ^= 1; }
};

template <int STAGES>
struct wide_place<64, STAGES> {
    static constexpr int ITEM = 256;
    static_assert((STAGES & (STAGES - 1)) == 0, "stages are counted on beyond the last");
    int32_t at;

    __device__ __forceinline__ int32_t stage() const { return at % STAGES; }
    __device__ __forceinline__ uint32_t parity() const { return (uint32_t)at / STAGES % 2; }
    __device__ __forceinline__ wide_place next() const {
        return {(at & ITEM) | ((at + 1) % (2 * STAGES))};
    }
    __device__ __forceinline__ uint32_t item_parity() const { return (uint32_t)at / ITEM; }
    __device__ __forceinline__ void next_item() { at ^= ITEM; }
};

/* One tile of keys that the warpgroup does not look at. */
template <class SHARED, class PLACE>
static __device__ __forceinline__ void pass_tile(SHARED &s, PLACE &place) {
    barrier_wait(&s.k_full[place.stage()], place.parity());
    release(&s.k_empty[place.stage()]);
    barrier_wait(&s.v_full[place.stage()], place.parity());
    release(&s.v_empty[place.stage()]);
    place = place.next();
}

/* An item of whose queries the warpgroup has none, or that has no keys. */
template <class SHARED, class PLACE>
static __device__ __forceinline__ void pass_over(SHARED &s, PLACE &place, const flash_item &it) {
    release_item(&s.q_empty);
#pragma unroll 1
    for (int32_t n = it.num_tiles; n > 0; n--) pass_tile(s, place);
}

/* Passes over the last tiles of an item that none of the warpgroup's rows sees, but the first tile;
 * returns the number that are left. */
template <class SHARED, class PLACE>
static __device__ __forceinline__ int32_t skip_unseen(SHARED &s, PLACE &place,
                                                      const flash_item &it, int32_t index) {
    int32_t n = it.num_tiles;
    for (; n > 1 && (it.first_tile + n - 1) * BLOCK_N >= key_end(it, index * 64 + 63); n--)
        pass_tile(s, place);
    return n;
}

/* Of one item. Half 1 of a tile of 128 keys comes before half 0. S of a step and T of the one
 * before it are in flight together; T runs on under the step's softmax. */
template <int D, class SHARED, class PLACE>
static __device__ __forceinline__ void attend_wide(float (&t)[D / 2], wide_rows &rows,
                                                   wide_kept<D> &kept, SHARED &s, PLACE &place,
                                                   const flash_item &it, int32_t index,
                                                   const flash_params &p) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES;
    constexpr bool LATE = wide_shape<D>::SETTLES_LATE, PROMOTES = SHARED::shape::PROMOTES;
    constexpr bool EARLY = SHARED::shape::PROMOTES_EARLY;
    constexpr int HALF_K = 64 * ROW_BYTES, HALF_V = 64; /* bytes */
    using rows_of_d = wide_operand<ROW_BYTES>;
    const rows_of_d q(s.q, index * 64 * ROW_BYTES);
    const wide_operand<128> ones(s.ones, 0);
    uint32_t clear = find_clear_steps(it);
    const int32_t num_tiles = skip_unseen(s, place, it, index);
    float scores[32], part[4], alpha[2] = {1.0f, 1.0f};
    uint32_t high[8], low[8]; /* P of half 1, of half 0 */
    wide_plan plan(PROMOTES && D != 64 ? num_tiles : 0, PROMOTES && D != 64 ? p.promote_keys : 1);

    barrier_wait(&s.k_full[place.stage()], place.parity());
    issue_scores<D>(scores, q, rows_of_d(s.k[place.stage()], HALF_K));
    products_wait<0>();
    pin(scores);
    mask_step(scores, it, clear, 2 * num_tiles - 1);
    raise_offsets(high, scores, rows, it.factor, alpha);
    if (LATE) issue_scores<D>(scores, q, rows_of_d(s.k[place.stage()], 0));
    for (int32_t i = num_tiles - 1; ; i--) {
        PLACE last = place;
        const bool promotes =
            PROMOTES && (D == 64 ? (i & p.promote_mask) == 0 : plan.is_due(i));
        bool grows;

        if (D != 64 && promotes) plan.due -= 2 * plan.half;
        barrier_wait(&s.v_full[last.stage()], last.parity());
        if (!LATE) issue_scores<D>(scores, q, rows_of_d(s.k[last.stage()], 0));
        issue_output<D>(t, part, high, wide_operand<128>(s.v[last.stage()], HALF_V), ones);
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[last.stage()]);
        if (i == 0) release_item(&s.q_empty);
        mask_step(scores, it, clear, 2 * i);
        grows = softmax_of<D>(low, scores, rows, it.factor, alpha);
        products_wait<0>(); /* T */
        pin(t);
        pin(part);
        pin(high);
        if constexpr (D == 64) asm volatile("" : "+r"(last.at)); /* addresses are found anew */
        place = last.next();
        if (i == 0) {
            settle<D, PROMOTES>(t, part, rows, kept, grows, alpha);
            issue_output<D>(t, part, low, wide_operand<128>(s.v[last.stage()], 0), ones);
            products_wait<0>();
            pin(t);
            pin(part);
            rows.sum[0] += part[0];
            rows.sum[1] += part[2];
            release(&s.v_empty[last.stage()]);
            return;
        }
        if (!LATE) settle<D, PROMOTES>(t, part, rows, kept, grows, alpha);
        if (!LATE && promotes) promote(t, kept);
        if constexpr (EARLY && PROMOTES) {
            if (promotes) {
                settle<D, PROMOTES>(t, part, rows, kept, grows, alpha);
                centre<D>(t, part, rows, kept, plan);
                part[0] = part[2] = 0.0f;
                grows = false;
            }
        }
        barrier_wait(&s.k_full[place.stage()], place.parity());
        issue_scores<D>(scores, q, rows_of_d(s.k[place.stage()], HALF_K));
        if (LATE) settle<D, PROMOTES>(t, part, rows, kept, grows, alpha); /* under S */
        if constexpr (LATE && PROMOTES) {
            if (!EARLY && promotes) centre<D>(t, part, rows, kept, plan);
        }
        issue_output<D>(t, part, low, wide_operand<128>(s.v[last.stage()], 0), ones);
        products_wait<1>();
        pin(scores);
        mask_step(scores, it, clear, 2 * i - 1);
        grows = softmax_of<D>(high, scores, rows, it.factor, alpha);
        products_wait<0>();
        pin(t);
        pin(part);
        pin(low);
        release(&s.v_empty[last.stage()]);
        if (!LATE) settle<D, PROMOTES>(t, part, rows, kept, grows, alpha);
        if (LATE) issue_scores<D>(scores, q, rows_of_d(s.k[place.stage()], 0));
        if (LATE) settle<D, PROMOTES>(t, part, rows, kept, grows, alpha);
    }
}
#endif
