/* attention/flash_mainloop.cuh - private: a consumer warpgroup's walk over an item's tiles of keys.
 * Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH_MAINLOOP_CUH
#define FP8_ATTENTION_FLASH_MAINLOOP_CUH
#include "attention/flash_softmax.cuh"
#include "attention/flash_terms.cuh"

/* ---- consumers: products --------------------------------------------------------------------- */

/* S = Q K^T over d, issued and committed. */
template <int D>
static __device__ __forceinline__ void issue_scores(float (&scores)[64], uint64_t q, uint64_t k) {
    constexpr int ROW_BYTES = flash_shape<D>::ROW_BYTES, STEPS = ROW_BYTES / K_STEP;
    products_begin();
#pragma unroll
    for (int i = 0; i < D / K_STEP; i++) {
        const int block = i / STEPS, within = i % STEPS * K_STEP;
        const uint64_t q_step = q + (block * BLOCK_M * ROW_BYTES + within) / 16;
        const uint64_t k_step = k + (block * BLOCK_N * ROW_BYTES + within) / 16;
        if (i == 0) product_start(scores, q_step, k_step, 0);
        else product(scores, q_step, k_step, 1);
    }
    products_commit();
}

/* T = P V for 2 N columns of V, issued and committed; N registers. */
template <int N>
static __device__ __forceinline__ void issue_output(float (&sum)[N], const uint32_t (&prob)[16],
                                                    uint64_t v) {
    products_begin();
    product_start(sum, prob, v, 0);
#pragma unroll
    for (int i = 1; i < BLOCK_N / K_STEP; i++)
        product(sum, prob + 4 * i, v + i * K_STEP / 16, 1);
    products_commit();
}

/* The same into registers that were in use until now. `never` is 0, which the compiler must not
 * know: it then takes this for a sum that goes on, and does not issue it before the last one is
 * read, into registers that there are not. */
template <int N>
static __device__ __forceinline__ void issue_output_again(float (&sum)[N],
                                                          const uint32_t (&prob)[16], uint64_t v,
                                                          int never) {
    products_begin();
    product(sum, prob, v, never);
#pragma unroll
    for (int i = 1; i < BLOCK_N / K_STEP; i++)
        product(sum, prob + 4 * i, v + i * K_STEP / 16, 1);
    products_commit();
}

/* ---- consumers: the walk over an item's tiles ------------------------------------------------ */

/* What a consumer warpgroup carries from item to item. */
struct consumer {
    int32_t index;    /* of the warpgroup */
    int32_t row;      /* of the thread, in a tile of queries */
    float factor;     /* S to base-2 exponent */
    ring_place place; /* of the next tile */
    float slope;      /* flash_any.cu: of the head */
};

/* d 64 and 128: S of a tile and T of the one before it are in flight together. NOTE: between the
 * first half of the softmax and the wait for T stands a loop, the wait for V: without it the
 * compiler moves the wait for T up, before what is to run under it. */
template <int D, class SHARED>
static __device__ __forceinline__ void attend_overlapped(float (&out)[D / 2], row_state &rows,
                                                         SHARED &s, consumer &c,
                                                         const flash_item &it) {
    constexpr int STAGES = SHARED::STAGES, ROW_BYTES = flash_shape<D>::ROW_BYTES;
    const uint64_t q = operand<ROW_BYTES>(s.q + c.index * WG_ROWS * ROW_BYTES);
    float scores[64], sum[D / 2];
    uint32_t prob[16];
    int32_t first = (it.first_tile + it.num_tiles - 1) * BLOCK_N;

    barrier_wait(&s.k_full[c.place.stage], c.place.parity);
    issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[c.place.stage]));
    products_wait<0>();
    pin(scores);
    release(&s.k_empty[c.place.stage]);
    if (it.num_tiles == 1) release(&s.q_empty);
    mask_scores(scores, it, c.row, first);
    softmax_step(prob, scores, rows, c.factor);
    barrier_wait(&s.v_full[c.place.stage], c.place.parity);

    for (int32_t i = it.num_tiles - 1; i > 0; i--) {
        const ring_place last = c.place;
        const float alpha[2] = {rows.alpha[0], rows.alpha[1]};

        c.place = next_place<STAGES>(c.place);
        first -= BLOCK_N;
        barrier_wait(&s.k_full[c.place.stage], c.place.parity);
        issue_scores<D>(scores, q, operand<ROW_BYTES>(s.k[c.place.stage]));
        issue_output(sum, prob, operand<128>(s.v[last.stage]));
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[c.place.stage]);
        if (i == 1) release(&s.q_empty);
        mask_scores(scores, it, c.row, first);
        raise_maximum(scores, rows, c.factor);
        exponentials<0>(scores, rows, c.factor);
        pin(scores);
        barrier_wait(&s.v_full[c.place.stage], c.place.parity); /* for the next step */
        products_wait<0>();                                     /* T */
        pin(sum);
        pin(prob);
        release(&s.v_empty[last.stage]);
        promote(out, sum, alpha);
        exponentials<1>(scores, rows, c.factor); /* interleaved with promote, pack */
        pack_scores<0>(prob, scores);
        pack_scores<1>(prob, scores);
    }
    issue_output(sum, prob, operand<128>(s.v[c.place.stage]));
    products_wait<0>();
    pin(sum);
    release(&s.v_empty[c.place.stage]);
    promote(out, sum, rows.alpha);
    c.place = next_place<STAGES>(c.place);
}

/* Turns where T comes in chunks: a warpgroup issues its products of a step while the other has none
 * to issue. */
static __device__ void take_turn(const consumer &c) {
    named_sync(TURN_BARRIER + c.index, CONSUMERS * WARPGROUP);
}
static __device__ void pass_turn(const consumer &c) {
    named_arrive(TURN_BARRIER + 1 - c.index, CONSUMERS * WARPGROUP);
}

/* d 256, and flash_any.cu: T in chunks of 64 columns, two of them in flight, each added to O when
 * it is there. */
template <int V>
static __device__ __forceinline__ void add_output(float (&out)[V / 2], uint32_t (&prob)[16],
                                                  uint64_t v, const float (&alpha)[2], int never) {
    constexpr int CHUNK = 64 * BLOCK_N / 16, CHUNKS = V / 64;
    float sum[2][32];

    issue_output(sum[0], prob, v);
    if constexpr (CHUNKS > 1) issue_output(sum[1], prob, v + CHUNK);
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        if (i + 1 < CHUNKS) products_wait<1>();
        else products_wait<0>();
        pin(sum[i % 2]);
        if (i + 1 == CHUNKS) pin(prob);
        promote(out + 32 * i, sum[i % 2], alpha);
        if (i + 2 < CHUNKS) issue_output_again(sum[i % 2], prob, v + (i + 2) * CHUNK, never);
    }
}

/* d 256, and flash_any.cu (ANY): a turn is T of a tile, then S of the next. EARLY: a bias of 16
 * bits is asked for a tile before it is used. */
template <int QK, int V, bool ANY, bool EARLY = false, class SHARED>
static __device__ __forceinline__ void attend_chunked(float (&out)[V / 2], row_state &rows,
                                                      const flash_params &p, SHARED &s,
                                                      consumer &c, const flash_item &it) {
    constexpr int STAGES = SHARED::STAGES, ROW_BYTES = flash_shape<QK>::ROW_BYTES;
    const uint64_t q = operand<ROW_BYTES>(s.q + c.index * WG_ROWS * ROW_BYTES);
    constexpr int BATCH = V == 256 ? 2 : V == 192 ? 4 : 8;
    const bool early = EARLY && bias_comes_early(p.terms);
    float scores[64];
    uint32_t prob[16], words[32];

    if (early) ask_for_bias(words, p, it, c.row, (it.first_tile + it.num_tiles - 1) * BLOCK_N);
    take_turn(c);
    for (int32_t i = it.num_tiles - 1; i >= 0; i--) {
        barrier_wait(&s.k_full[c.place.stage], c.place.parity);
        issue_scores<QK>(scores, q, operand<ROW_BYTES>(s.k[c.place.stage]));
        pass_turn(c);
        products_wait<0>();
        pin(scores);
        release(&s.k_empty[c.place.stage]);
        if (i == 0) release(&s.q_empty);
        if constexpr (ANY) {
            const int32_t first = (it.first_tile + i) * BLOCK_N;
            if (p.terms.changes)
                change_scores<BATCH, EARLY>(scores, words, early, p, it, c.slope, c.row, first);
            if (early && i > 0) ask_for_bias(words, p, it, c.row, first - BLOCK_N);
        }
        mask_scores(scores, it, c.row, (it.first_tile + i) * BLOCK_N);
        softmax_step(prob, scores, rows, c.factor);
        barrier_wait(&s.v_full[c.place.stage], c.place.parity);
        take_turn(c);
        add_output<V>(out, prob, operand<128>(s.v[c.place.stage]), rows.alpha, p.num_items < 0);
        release(&s.v_empty[c.place.stage]);
        c.place = next_place<STAGES>(c.place);
    }
    pass_turn(c);
}

#endif
