/* attention/flash_wide_mainloop.cuh - private: a consumer warpgroup's walk over an item's keys, 64
 * a step. Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#define FP8_ATTENTION_FLASH_WIDE_MAINLOOP_CUH
#include "attention/flash_wide_softmax.cuh"

/* ---- products -------------------------------------------------------------------------------- */

/* S of 64 keys over d, issued and committed. */
template <int D>
static __device__ __forceinline__ void issue_scores(float (&scores)[32], uint64_t q, uint64_t k) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, STEPS = ROW_BYTES / K_STEP;
    products_begin();
#pragma unroll
    for (int i = 0; i < D / K_STEP; i++) {
        const int block = i / STEPS, within = i % STEPS * K_STEP;
        const uint64_t q_step = q + (block * wide_shape<D>::ROWS * ROW_BYTES + within) / 16;
        const uint64_t k_step = k + (block * BLOCK_N * ROW_BYTES + within) / 16;
        if (i == 0) product_start(scores, q_step, k_step, 0);
        else product(scores, q_step, k_step, 1);
    }
    products_commit();
}

/* T += P V of 64 keys, or T = with accumulate 0, and part = the sums of P's rows, as a product with
 * ones; issued and committed. */
template <int D>
static __device__ __forceinline__ void issue_output(float (&t)[D / 2], float (&part)[4],
                                                    const uint32_t (&prob)[8], uint64_t v,
                                                    uint64_t ones, int accumulate) {
    constexpr int COLUMNS = D < 128 ? D : 128;
    products_begin();
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int c = 0; c < D; c += COLUMNS)
            product(reinterpret_cast<float(&)[COLUMNS / 2]>(t[c / 2]), prob + 4 * i,
                    v + (c * BLOCK_N + i * K_STEP) / 16, i == 0 ? accumulate : 1);
        if (i == 0) product_start(part, prob, ones, 0);
        else product(part, prob + 4 * i, ones, 1);
    }
    products_commit();
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
    float4 *all;   /* [D / 8, threads of the consumers] */
    int32_t steps; /* in T since the last promotion */

    __device__ __forceinline__ float4 *own(int i) const {
        return all + i * wide_shape<D>::CONSUMERS * WARPGROUP + threadIdx.x;
    }
};

/* T += what is kept. */
template <int D>
static __device__ __forceinline__ void add_kept(float (&t)[D / 2], const wide_kept<D> &kept) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        const float4 x = *kept.own(i);
        t[4 * i] += x.x;
        t[4 * i + 1] += x.y;
        t[4 * i + 2] += x.z;
        t[4 * i + 3] += x.w;
    }
}

/* What is kept += T, which is then to start from zero. */
template <int D>
static __device__ __forceinline__ void promote(wide_kept<D> &kept, float (&t)[D / 2]) {
    add_kept(t, kept);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        *kept.own(i) = make_float4(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
    kept.steps = 0;
}

template <int D>
static __device__ __forceinline__ void shrink_kept(const wide_kept<D> &kept,
                                                   const float (&alpha)[2]) {
#pragma unroll
    for (int i = 0; i < D / 8; i++) {
        float4 *at = kept.own(i), x = *at;
        *at = make_float4(x.x * alpha[0], x.y * alpha[0], x.z * alpha[1], x.w * alpha[1]);
    }
}

/* T of a step has come: its sums, and what the step after it asks for. */
template <int D>
static __device__ __forceinline__ void settle(float (&t)[D / 2], const float (&part)[4],
                                              wide_rows &rows, wide_kept<D> &kept, bool grows,
                                              const float (&alpha)[2], int32_t promote_steps) {
    rows.sum[0] += part[0];
    rows.sum[1] += part[2];
    kept.steps++;
    if constexpr (wide_shape<D>::PROMOTES) {
        if (kept.steps == promote_steps) promote(kept, t);
    }
    if (!grows) return;
    shrink(t, alpha);
    rows.sum[0] *= alpha[0];
    rows.sum[1] *= alpha[1];
    if constexpr (wide_shape<D>::PROMOTES) shrink_kept(kept, alpha);
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* The thread's first row in a tile of queries; volatile, so that it is found anew where it is used,
 * not kept in a register. */
static __device__ __forceinline__ int32_t row_of_thread() {
    int32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
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

/* Passes over the last tiles of an item that none of the warpgroup's rows sees, but the first tile;
 * returns the number that are left. */
template <int D>
static __device__ __forceinline__ int32_t skip_unseen(wide_shared<D> &s, ring_place &place,
                                                      const flash_item &it, int32_t index) {
    int32_t n = it.num_tiles;
    for (; n > 1 && (it.first_tile + n - 1) * BLOCK_N >= key_end(it, index * 64 + 63); n--) {
        barrier_wait(&s.k_full[place.stage], place.parity);
        release(&s.k_empty[place.stage]);
        barrier_wait(&s.v_full[place.stage], place.parity);
        release(&s.v_empty[place.stage]);
        place = next_place<wide_shape<D>::STAGES>(place);
    }
    return n;
}

/* Of one item. Half 1 of a tile of 128 keys comes before half 0. S of a step and T of the one
 * before it are in flight together; T runs on under the step's softmax. */
template <int D>
static __device__ __forceinline__ void attend_wide(float (&t)[D / 2], wide_rows &rows,
                                                   wide_kept<D> &kept, wide_shared<D> &s,
                                                   ring_place &place, const flash_item &it,
                                                   int32_t index, int32_t promote_steps) {
    constexpr int STAGES = wide_shape<D>::STAGES, ROW_BYTES = flash_shape<D>::ROW_BYTES;
    constexpr int HALF_K = 64 * ROW_BYTES / 16, HALF_V = 64 / 16; /* of descriptors */
    const uint64_t q = operand<ROW_BYTES>(s.q + index * 64 * ROW_BYTES);
    const uint64_t ones = operand<128>(s.ones);
    const uint32_t clear = find_clear_steps(it);
    const int32_t num_tiles = skip_unseen<D>(s, place, it, index);
    float scores[32], part[4], alpha[2] = {1.0f, 1.0f};
    uint32_t high[8], low[8]; /* P of half 1, of half 0 */

    barrier_wait(&s.k_full[place.stage], place.parity);
    issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[place.stage]) + HALF_K);
    products_wait<0>();
    pin(scores);
    mask_step(scores, it, clear, 2 * num_tiles - 1);
    raise_offsets(high, scores, rows, it.factor, alpha);
    for (int32_t i = num_tiles - 1; ; i--) {
        const ring_place last = place;
        const uint64_t v = operand<128>(s.v[last.stage]);
        bool grows;

        barrier_wait(&s.v_full[last.stage], last.parity);
        issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[last.stage]));
        issue_output<D>(t, part, high, v + HALF_V, ones, kept.steps);
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[last.stage]);
        if (i == 0) release(&s.q_empty);
        mask_step(scores, it, clear, 2 * i);
        grows = softmax_of<D>(low, scores, rows, it.factor, alpha);
        products_wait<0>(); /* T */
        pin(t);
        pin(part);
        pin(high);
        settle(t, part, rows, kept, grows, alpha, promote_steps);
        place = next_place<STAGES>(last);
        if (i == 0) {
            issue_output<D>(t, part, low, v, ones, kept.steps);
            products_wait<0>();
            pin(t);
            pin(part);
            settle(t, part, rows, kept, false, alpha, promote_steps);
            release(&s.v_empty[last.stage]);
            return;
        }
        barrier_wait(&s.k_full[place.stage], place.parity);
        issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[place.stage]) + HALF_K);
        issue_output<D>(t, part, low, v, ones, kept.steps);
        products_wait<1>();
        pin(scores);
        mask_step(scores, it, clear, 2 * i - 1);
        grows = softmax_of<D>(high, scores, rows, it.factor, alpha);
        products_wait<0>();
        pin(t);
        pin(part);
        pin(low);
        release(&s.v_empty[last.stage]);
        settle(t, part, rows, kept, grows, alpha, promote_steps);
    }
}
#endif
