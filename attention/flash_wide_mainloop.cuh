/* attention/flash_wide_mainloop.cuh - private: a consumer warpgroup's walk over an item's keys, 64
 * a step. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#define FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#include "attention/flash_wide_softmax.cuh"

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

/* T += P V of 64 keys, -= with MINUS, and part = the sums of P's rows, as a product with ones;
 * issued and committed. */
template <int D, bool MINUS>
static __device__ __forceinline__ void issue_sums(float (&t)[D / 2], float (&part)[4],
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
            const uint64_t columns = v.at(c * BLOCK_N + i * K_STEP);
            if constexpr (MINUS) product_minus(x, prob + 4 * i, columns, 1);
            else product(x, prob + 4 * i, columns, 1);
        }
        if (i == 0) product_start(part, prob, ones.at(0), 0);
        else product(part, prob + 4 * i, ones.at(0), 1);
    }
    products_commit();
}

/* NOTE: each of the two branches has all the products of a step: with one branch a product, ptxas
 * lets each of them end before the next, which costs 5 to 10 %. */
template <int D, bool ALTERNATES>
static __device__ __forceinline__ void issue_output(float (&t)[D / 2], float (&part)[4],
                                                    const uint32_t (&prob)[8],
                                                    const wide_operand<128> v,
                                                    const wide_operand<128> ones, bool down) {
    if constexpr (ALTERNATES) {
        if (down) issue_sums<D, true>(t, part, prob, v, ones);
        else issue_sums<D, false>(t, part, prob, v, ones);
    } else issue_sums<D, false>(t, part, prob, v, ones);
}

/* Volatile, so that it is found anew where it is used, not kept in a register. */
static __device__ __forceinline__ int32_t thread_index() {
    int32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

/* ---- sums in FP32 ---------------------------------------------------------------------------- */

template <int N>
static __device__ __forceinline__ void shrink(float (&x)[N], const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] *= alpha[i / 2 % 2];
}

/* What of a warpgroup's O has been promoted lies in shared memory, each thread's own. */
template <int D>
struct wide_kept {
    float4 *all; /* [D / 8, threads of the consumers] */
    bool any;    /* of this item */
    bool down;   /* T goes down now */

    __device__ __forceinline__ float4 *own(int i) const {
        return all + i * wide_shape<D>::CONSUMERS * WARPGROUP + thread_index();
    }
};

/* Between loads, or ptxas has more of them at a time than there are registers for. */
template <int D>
static __device__ __forceinline__ void load_fence(int i) {
    if (D == 64 && i % 2 == 0) __syncwarp();
}

template <int D>
static __device__ __forceinline__ void clear_kept(const wide_kept<D> &kept) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) *kept.own(i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

/* T = what is kept + T, T's sign being that of its last sums. */
template <int D>
static __device__ __forceinline__ void join_kept(float (&t)[D / 2], const wide_kept<D> &kept) {
    const float sign = kept.down ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        const float4 x = *kept.own(i);
        t[4 * i] = fmaf(t[4 * i], sign, x.x);
        t[4 * i + 1] = fmaf(t[4 * i + 1], sign, x.y);
        t[4 * i + 2] = fmaf(t[4 * i + 2], sign, x.z);
        t[4 * i + 3] = fmaf(t[4 * i + 3], sign, x.w);
    }
}

/* What is kept gains twice T, which turns round. */
template <int D>
static __device__ __forceinline__ void turn_round(const float (&t)[D / 2], wide_kept<D> &kept) {
    const float twice = kept.down ? -2.0f : 2.0f;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (kept.any) x = *kept.own(i);
        *kept.own(i) = make_float4(fmaf(t[4 * i], twice, x.x), fmaf(t[4 * i + 1], twice, x.y),
                                   fmaf(t[4 * i + 2], twice, x.z), fmaf(t[4 * i + 3], twice, x.w));
    }
    kept.any = true;
    kept.down = !kept.down;
}

/* T += what is kept. */
template <int D>
static __device__ __forceinline__ void add_kept(float (&t)[D / 2], const wide_kept<D> &kept) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        load_fence<D>(i);
        const float4 x = *kept.own(i);
        t[4 * i] += x.x;
        t[4 * i + 1] += x.y;
        t[4 * i + 2] += x.z;
        t[4 * i + 3] += x.w;
    }
}

/* What is kept += T, and T = 0. */
template <int D>
static __device__ __forceinline__ void promote(float (&t)[D / 2], wide_kept<D> &kept) {
    if (kept.any) add_kept(t, kept);
    kept.any = true;
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        *kept.own(i) = make_float4(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
#pragma unroll
        for (int k = 0; k < 4; k++) t[4 * i + k] = 0.0f;
    }
}

template <int D>
static __device__ __forceinline__ void shrink_kept(const wide_kept<D> &kept,
                                                   const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        load_fence<D>(i);
        float4 *at = kept.own(i), x = *at;
        *at = make_float4(x.x * alpha[0], x.y * alpha[0], x.z * alpha[1], x.w * alpha[1]);
    }
}

/* T of a step has come: its sums, and what the step after it asks for. */
template <int D, bool PROMOTES>
static __device__ __forceinline__ void settle(float (&t)[D / 2], const float (&part)[4],
                                              wide_rows &rows, const wide_kept<D> &kept, bool grows,
                                              const float (&alpha)[2]) {
    rows.sum[0] += part[0];
    rows.sum[1] += part[2];
    if (!grows) return;
    shrink(t, alpha);
    rows.sum[0] *= alpha[0];
    rows.sum[1] *= alpha[1];
    if constexpr (PROMOTES) {
        if (kept.any) shrink_kept(kept, alpha);
    }
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* The thread's first row in a tile of queries. */
static __device__ __forceinline__ int32_t row_of_thread() {
    const int32_t thread = thread_index();
    return thread / 32 * 16 + thread % 32 / 4;
}

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
    release(&s.q_empty);
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
    constexpr bool ALTERNATES = SHARED::shape::ALTERNATES;
    constexpr int HALF_K = 64 * ROW_BYTES, HALF_V = 64; /* bytes */
    using rows_of_d = wide_operand<ROW_BYTES>;
    const rows_of_d q(s.q, index * 64 * ROW_BYTES);
    const wide_operand<128> ones(s.ones, 0);
    uint32_t clear = find_clear_steps(it);
    const int32_t num_tiles = skip_unseen(s, place, it, index);
    float scores[32], part[4], alpha[2] = {1.0f, 1.0f};
    uint32_t high[8], low[8]; /* P of half 1, of half 0 */
    /* With this tile the next promotion comes; the first after half as many. */
    int32_t promoted = num_tiles - (p.promote_tiles - p.promote_tiles / 2);

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
            PROMOTES && (D == 64 ? (i & p.promote_mask) == 0 : i == promoted);
        bool grows;

        if (D != 64 && promotes) promoted -= p.promote_tiles;
        barrier_wait(&s.v_full[last.stage()], last.parity());
        if (!LATE) issue_scores<D>(scores, q, rows_of_d(s.k[last.stage()], 0));
        issue_output<D, ALTERNATES>(t, part, high, wide_operand<128>(s.v[last.stage()], HALF_V),
                                    ones, kept.down);
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[last.stage()]);
        if (i == 0) release(&s.q_empty);
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
            issue_output<D, ALTERNATES>(t, part, low, wide_operand<128>(s.v[last.stage()], 0),
                                        ones, kept.down);
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
        barrier_wait(&s.k_full[place.stage()], place.parity());
        issue_scores<D>(scores, q, rows_of_d(s.k[place.stage()], HALF_K));
        if (LATE) settle<D, PROMOTES>(t, part, rows, kept, grows, alpha); /* under S */
        if (LATE && promotes) turn_round(t, kept);
        issue_output<D, ALTERNATES>(t, part, low, wide_operand<128>(s.v[last.stage()], 0), ones,
                                    kept.down);
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
