/* attention/flash16_mainloop.cuh - private: what the warps of flash16.cu do: the producer that
 * fills shared memory, the softmax and a consumer warpgroup's walk over an item's tiles of keys.
 * Included once, inside the sm_90a guard. */
#ifndef FP8_ATTENTION_FLASH16_MAINLOOP_CUH
#define FP8_ATTENTION_FLASH16_MAINLOOP_CUH
#include "attention/flash16_block.cuh"
#include "attention/flash16_products.cuh"
#include "attention/flash_terms.cuh"

/* ---- producer -------------------------------------------------------------------------------- */

/* Boxes of `rows` tokens, all D columns. */
template <int D>
static __device__ __forceinline__ void copy_rows(uint16_t *to, const CUtensorMap *map,
                                                 uint64_t *bar, int32_t rows, int32_t head,
                                                 int32_t row, int32_t seq) {
    for (int b = 0; b < D / COLUMN_BLOCK; b++)
        copy_box_4d(to + b * rows * COLUMN_BLOCK, map, bar, b * COLUMN_BLOCK, head, row, seq);
}

/* Of a tile of V only `valid` keys are the sequence's: what follows may be anything, NaN too, which
 * p = 0 does not make 0. */
template <class SHAPE>
static __device__ __forceinline__ void clear_tail(flash16_shared<SHAPE> &s, int32_t stage,
                                                  int32_t valid, uint32_t parity) {
    constexpr int KEYS = SHAPE::KEYS;
    constexpr int VECTORS = COLUMN_BLOCK * 2 / 16; /* of a key in a column block */
    barrier_wait(&s.tail, parity);
    for (int b = 0; b < SHAPE::D_V / COLUMN_BLOCK; b++) {
        uint4 *to = reinterpret_cast<uint4 *>(s.v[stage] + b * KEYS * COLUMN_BLOCK);
        for (int i = valid * VECTORS + (int)threadIdx.x; i < KEYS * VECTORS; i += 32)
            to[i] = make_uint4(0, 0, 0, 0);
    }
    proxy_fence();
    __syncwarp();
    if (threadIdx.x == 0) barrier_arrive(&s.v_full[stage]);
}

/* K and V of an item's tiles from the last to the first. The last tile's V is cleared beyond the
 * sequence when the next tile is under way. tile: count of tiles, place and parity in the rings. */
template <class SHAPE>
static __device__ __forceinline__ void produce_keys(const flash_params &p, flash16_shared<SHAPE> &s,
                                                    const flash_item &it, uint32_t &tile,
                                                    uint32_t &tail_parity) {
    constexpr int KEYS = SHAPE::KEYS, STAGES = SHAPE::STAGES;

    for (int32_t i = it.num_tiles - 1; i >= 0; i--, tile++) {
        const int32_t left = it.s_kv - (it.first_tile + it.num_tiles - 1) * KEYS;
        const bool tail = i == it.num_tiles - 1 && left < KEYS;
        if (threadIdx.x == 0) {
            const int32_t row = it.kv_row + (it.first_tile + i) * KEYS;
            const int32_t stage = tile % STAGES, seq = p.kv_packed ? 0 : it.seq;
            uint64_t *full = tail ? &s.tail : &s.v_full[stage];
            barrier_wait(&s.k_empty[stage], tile / STAGES % 2 ^ 1);
            barrier_expect(&s.k_full[stage], sizeof s.k[0]);
            copy_rows<SHAPE::D_QK>(s.k[stage], &p.k_map, &s.k_full[stage], KEYS, it.kv_head, row,
                                   seq);
            barrier_wait(&s.v_empty[stage], tile / STAGES % 2 ^ 1);
            barrier_expect(full, sizeof s.v[0]);
            copy_rows<SHAPE::D_V>(s.v[stage], &p.v_map, full, KEYS, it.kv_head, row, seq);
        }
        __syncwarp();
        if (left < KEYS && i == max(it.num_tiles - 2, 0)) {
            clear_tail<SHAPE>(s, (tile - (it.num_tiles > 1)) % STAGES, left, tail_parity);
            tail_parity ^= 1;
        }
    }
}

static __device__ __forceinline__ int32_t next_index(const flash_params &p, int32_t index,
                                                     uint32_t odd) {
    int32_t next = 0;
    if (threadIdx.x == 0) next = item_after<true>(p, index, odd);
    return __shfl_sync(0xffffffffu, next, 0);
}

/* One warp: for each item Q, then K and V. */
template <class SHAPE>
static __device__ void produce16(const flash_params &p, flash16_shared<SHAPE> &s) {
    uint32_t tile = 0, q_parity = 0, tail_parity = 0;

    dependents_launch();
    for (int32_t index = blockIdx.x; index < p.num_items;
         index = next_index(p, index, q_parity ^ 1)) {
        flash_item it;
        find_item<SHAPE::ROWS, SHAPE::KEYS>(it, p, index);
        find_descales(p, it);
        if (it.rows <= 0) continue;
        if (threadIdx.x == 0) {
            barrier_wait(&s.q_empty, q_parity ^ 1);
            s.items[q_parity] = it;
            if (it.num_tiles == 0) {
                barrier_arrive(&s.q_full);
            } else {
                barrier_expect(&s.q_full, sizeof s.q);
                copy_rows<SHAPE::D_QK>(s.q, &p.q_map, &s.q_full, SHAPE::ROWS, it.head, it.q_row,
                                       p.q_packed ? 0 : it.seq);
            }
        }
        __syncwarp();
        produce_keys<SHAPE>(p, s, s.items[q_parity], tile, tail_parity); /* registers are few */
        q_parity ^= 1;
    }
    if (threadIdx.x != 0) return;
    barrier_wait(&s.q_empty, q_parity ^ 1);
    s.items[q_parity].rows = 0; /* no more */
    barrier_arrive(&s.q_full);
}

/* ---- consumers: softmax ---------------------------------------------------------------------- */

/* Of a thread's two rows, r and r + 8 of its warp's 16. */
struct row_state16 {
    float max[2];
    float sum[2][2]; /* of even and of odd columns */
    float alpha[2];  /* by which O is due to shrink */
    float offset[2]; /* p = 2^(S * factor + offset) */
};

/* Takes the maximum of one tile of scores in. Where nothing was seen yet the maximum is -Inf;
 * exponents are then taken against 0, so that 2^-Inf = 0 comes out, not NaN. */
template <int N>
static __device__ __forceinline__ void raise_maximum(const float (&scores)[N], row_state16 &rows,
                                                     float factor) {
    float top[4] = {rows.max[0], scores[1], rows.max[1], scores[3]};
#pragma unroll
    for (int i = 0; i < N; i++) top[i % 4] = fmaxf(top[i % 4], scores[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = fmaxf(top[2 * h], top[2 * h + 1]);
#pragma unroll
    for (int step = 1; step <= 2; step *= 2)
#pragma unroll
        for (int h = 0; h < 2; h++)
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float base = top[h] == -INFINITY ? 0.0f : top[h];
        rows.offset[h] = -base * factor;
        rows.alpha[h] = exp2_fast((rows.max[h] - base) * factor);
        rows.max[h] = top[h];
        rows.sum[h][0] *= rows.alpha[h];
        rows.sum[h][1] *= rows.alpha[h];
    }
}

/* S -> p in place, and into the sum. */
template <int N>
static __device__ __forceinline__ void exponentials(float (&scores)[N], row_state16 &rows,
                                                    float factor) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores[i] = exp2_fast(fmaf(scores[i], factor, rows.offset[i / 2 % 2]));
        rows.sum[i / 2 % 2][i % 2] += scores[i];
    }
}

/* p as the left operand of the next product: the registers are where it wants them. */
template <bool F16, int N>
static __device__ __forceinline__ void pack_scores(uint32_t (&prob)[N / 2],
                                                   const float (&scores)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        prob[i] = F16 ? pack_f16(scores[2 * i], scores[2 * i + 1])
                      : pack_bf16(scores[2 * i], scores[2 * i + 1]);
}

/* ---- consumers: products --------------------------------------------------------------------- */

/* S = Q K^T over d, issued and committed. */
template <class SHAPE, bool F16, int N>
static __device__ __forceinline__ void issue_scores(float (&scores)[N], uint64_t q, uint64_t k) {
    constexpr int STEPS = COLUMN_BLOCK / K_STEP, BLOCK = COLUMN_BLOCK * 2; /* bytes of a row */
    products_begin();
#pragma unroll
    for (int i = 0; i < SHAPE::D_QK / K_STEP; i++) {
        const int block = i / STEPS, within = i % STEPS * K_STEP * 2;
        const uint64_t q_step = q + (block * SHAPE::ROWS * BLOCK + within) / 16;
        const uint64_t k_step = k + (block * 2 * N * BLOCK + within) / 16;
        if (i == 0) scores_start<F16>(scores, q_step, k_step);
        else scores_add<F16>(scores, q_step, k_step);
    }
    products_commit();
}

/* O += P V, issued and committed. */
template <int D, bool F16, int N>
static __device__ __forceinline__ void issue_output(float (&out)[D / 2],
                                                    const uint32_t (&prob)[N], uint64_t v) {
    products_begin();
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        output_add<F16>(out, prob + 4 * i, v + i * K_STEP * COLUMN_BLOCK * 2 / 16);
    products_commit();
}

/* ---- consumers: the walk over an item's tiles ------------------------------------------------ */

/* What a consumer warpgroup carries from item to item. */
struct consumer16 {
    int32_t row;   /* of the thread, in a tile of queries */
    uint32_t tile; /* count of tiles of keys: place and parity in the rings, in one register */
    float slope;   /* flash16_any.cu: of the head */
};

/* Turns: a warpgroup issues its products of a step while the others have none to issue. */
static __device__ __forceinline__ void take_turn(const consumer16 &c) {
    named_sync(TURN_BARRIER + c.row / WG_ROWS, 2 * WARPGROUP);
}
template <class SHAPE>
static __device__ __forceinline__ void pass_turn(const consumer16 &c) {
    const int next = c.row / WG_ROWS + 1 == SHAPE::CONSUMERS ? 0 : c.row / WG_ROWS + 1;
    named_arrive(TURN_BARRIER + next, 2 * WARPGROUP);
}

/* Terms of a tile's scores, if there are any, by the registers left; then the bias of the next. */
template <class SHAPE, int N>
static __device__ __forceinline__ void change_scores16(float (&scores)[N],
                                                       uint32_t (&words)[N / 2], bool early,
                                                       const flash_params &p, const consumer16 &c,
                                                       const flash_item &it, int32_t first) {
    constexpr int BATCH = SHAPE::KEYS == 128 ? 8 : SHAPE::D_V == 256 ? 2 : 4;
    if (p.terms.changes)
        change_scores<BATCH, SHAPE::EARLY>(scores, words, early, p, it, c.slope, c.row, first);
    if (early && first > it.first_tile * SHAPE::KEYS)
        ask_for_bias(words, p, it, c.row, first - SHAPE::KEYS);
}

/* S of a tile and P V of the one before it are in flight together. NOTE: between the exponentials
 * and the wait for O stands a loop, the wait for V: without it the compiler moves the wait for O
 * up, before what is to run under it. */
template <class SHAPE, bool F16>
static __device__ __forceinline__ void attend16(float (&out)[SHAPE::D_V / 2], row_state16 &rows,
                                                const flash_params &p, flash16_shared<SHAPE> &s,
                                                consumer16 &c, const flash_item &it) {
    constexpr int D = SHAPE::D_V;
    constexpr int STAGES = SHAPE::STAGES, KEYS = SHAPE::KEYS;
    constexpr int BLOCK_BYTES = KEYS * COLUMN_BLOCK * 2;
    const uint64_t q = operand<128>(s.q + c.row / WG_ROWS * WG_ROWS * COLUMN_BLOCK);
    const int32_t first_tile = it.first_tile, clear_begin = it.clear_begin;
    const int32_t clear_end = it.clear_end;
    const float factor = SHAPE::ANY && p.terms.changes ? 1.0f : it.factor;
    const bool early = SHAPE::EARLY && bias_comes_early(p.terms);
    float scores[KEYS / 2];
    uint32_t prob[KEYS / 4], words[KEYS / 4];
    int32_t tile = first_tile + it.num_tiles - 1;

    if (early) ask_for_bias(words, p, it, c.row, tile * KEYS);
    barrier_wait(&s.k_full[c.tile % STAGES], c.tile / STAGES % 2);
    issue_scores<SHAPE, F16>(scores, q, operand<128>(s.k[c.tile % STAGES]));
    products_wait<0>();
    pin(scores);
    release(&s.k_empty[c.tile % STAGES]);
    if (it.num_tiles == 1) release(&s.q_empty);
    if constexpr (SHAPE::ANY)
        change_scores16<SHAPE>(scores, words, early, p, c, it, tile * KEYS);
    mask_scores(scores, it, c.row, tile * KEYS);
    raise_maximum(scores, rows, factor);
    exponentials(scores, rows, factor);
    pack_scores<F16>(prob, scores);
    barrier_wait(&s.v_full[c.tile % STAGES], c.tile / STAGES % 2);

    while (--tile >= first_tile) {
        const uint64_t v = operand_columns(s.v[c.tile % STAGES], BLOCK_BYTES);

        c.tile++;
        barrier_wait(&s.k_full[c.tile % STAGES], c.tile / STAGES % 2);
        take_turn(c);
        issue_scores<SHAPE, F16>(scores, q, operand<128>(s.k[c.tile % STAGES]));
        issue_output<D, F16>(out, prob, v);
        pass_turn<SHAPE>(c);
        products_wait<1>(); /* S */
        pin(scores);
        release(&s.k_empty[c.tile % STAGES]);
        if (tile == first_tile) release(&s.q_empty);
        if constexpr (SHAPE::ANY)
            change_scores16<SHAPE>(scores, words, early, p, c, it, tile * KEYS);
        if (tile < clear_begin || tile >= clear_end) mask_scores(scores, it, c.row, tile * KEYS);
        raise_maximum(scores, rows, factor);
        exponentials(scores, rows, factor);
        pin(scores);
        barrier_wait(&s.v_full[c.tile % STAGES], c.tile / STAGES % 2); /* for the next step */
        products_wait<0>();                                            /* O */
        pin(out);
        pin(prob);
        release(&s.v_empty[(c.tile - 1) % STAGES]);
        if (__any_sync(0xffffffffu, rows.alpha[0] != 1.0f || rows.alpha[1] != 1.0f))
#pragma unroll
            for (int k = 0; k < D / 2; k++)
                out[k] *= rows.alpha[k / 2 % 2];
        pack_scores<F16>(prob, scores);
    }
    issue_output<D, F16>(out, prob, operand_columns(s.v[c.tile % STAGES], BLOCK_BYTES));
    products_wait<0>();
    pin(out);
    release(&s.v_empty[c.tile % STAGES]);
    c.tile++;
}

#endif
