/* model/sample.cu - the next id from rows of logits: highest, or drawn among the kept; and the end
 * of a step: its ids to the host, and from its inputs the next one's where nothing changes but that
 * every sequence has one token more.
 *
 * Computes   model/sample.h: fp8_top_k leaves every row's highest, then one block a row draws and
 *            ends the row (model/inputs_cuda.h)
 * Shapes     logits [rows, vocab] F32 or BF16, ids [rows]
 * Bound      the row's passes through L2: 4 digits of top_k's value, the sum and 4 digits of
 *            top_p's, the draw; a greedy row's block ends at once. 256000 logits are 1 MB, some 12
 *            us a pass of one block
 * Numerics   thresholds are values of the row, found digit by digit of an order-preserving integer
 *            key. Weights are summed as integers of 2^-40, so that the order of the atomics does
 *            not matter: the same bytes every time. Against the CPU's doubles a value may fall to
 *            the other side of top_p where the sums meet it within 2^-20
 */
#include <cuda_bf16.h>

#include "core/launch.cuh"
#include "model/inputs_cuda.h"
#include "model/sample_impl.h"
#include "quant/quant.h"

using namespace fp8;

/* ---- constants ----------------------------------------------------------------------------- */

enum { SAMPLE_THREADS = 1024, DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS };
typedef unsigned long long u64;

/* ---- device helpers ------------------------------------------------------------------------ */

template <typename T> static __device__ float value_at(const T *x, int64_t i) {
    const float z = static_cast<float>(x[i]);
    return isnan(z) ? -INFINITY : z;
}

/* Larger floats have larger keys; -0 counts as 0. */
static __device__ uint32_t key_of(float z) {
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

typedef struct candidate {
    float score;
    int index;
} candidate;

static __device__ candidate better(candidate a, candidate b) {
    return b.score > a.score || (b.score == a.score && b.index < a.index) ? b : a;
}

/* The best of the block's candidates, in every thread. */
static __device__ candidate block_best(candidate c) {
    __shared__ candidate all[SAMPLE_THREADS / 32];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;

    for (int step = 16; step > 0; step /= 2) {
        const candidate other = {__shfl_xor_sync(0xffffffffu, c.score, step),
                                 __shfl_xor_sync(0xffffffffu, c.index, step)};
        c = better(c, other);
    }
    __syncthreads();
    if (lane == 0) all[warp] = c;
    __syncthreads();
    c = all[lane];
    for (int step = 16; step > 0; step /= 2) {
        const candidate other = {__shfl_xor_sync(0xffffffffu, c.score, step),
                                 __shfl_xor_sync(0xffffffffu, c.index, step)};
        c = better(c, other);
    }
    return c;
}

/* What an element adds to the sum that is to reach a target: 1, or its weight. */
static __device__ u64 share_of(const fp8_sampling *s, float z, float highest, int counts) {
    return counts ? 1 : (u64)((double)sample_weight(s, z, highest) * 0x1p40);
}

/* Sums by the digit at `shift` of the keys that begin as `prefix` does and are at least `least`. */
template <typename T>
static __device__ void digit_sums(u64 *sums, const T *x, int64_t n, const fp8_sampling *s,
                                  float highest, int counts, uint32_t least, uint32_t prefix,
                                  int shift) {
    const uint32_t above = shift + DIGIT_BITS == 32 ? 0 : ~0u << (shift + DIGIT_BITS);

    for (int d = (int)threadIdx.x; d < DIGITS; d += SAMPLE_THREADS) sums[d] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        const float z = value_at(x, i);
        const uint32_t key = key_of(z);
        if (key < least || (key & above) != prefix) continue;
        atomicAdd(&sums[key >> shift & (DIGITS - 1)], share_of(s, z, highest, counts));
    }
    __syncthreads();
}

/* The largest key at which the sum over keys that are not less reaches `target`; `least` where it
 * never does. */
template <typename T>
static __device__ uint32_t reach(const T *x, int64_t n, const fp8_sampling *s, float highest,
                                 int counts, uint32_t least, u64 target) {
    __shared__ u64 sums[DIGITS], left;
    __shared__ uint32_t digit;
    uint32_t prefix = 0;

    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        digit_sums(sums, x, n, s, highest, counts, least, prefix, shift);
        if (threadIdx.x == 0) {
            uint32_t d = DIGITS - 1;
            u64 missing = target;
            while (d > 0 && sums[d] < missing) missing -= sums[d--];
            digit = d;
            left = missing;
        }
        __syncthreads();
        prefix |= digit << shift;
        target = left;
        __syncthreads();
    }
    return prefix > least ? prefix : least;
}

/* The sum of all weights from `least` on. */
template <typename T>
static __device__ u64 total(const T *x, int64_t n, const fp8_sampling *s, float highest,
                            uint32_t least) {
    __shared__ u64 sum;

    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    u64 own = 0;
    for (int64_t i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        const float z = value_at(x, i);
        if (key_of(z) >= least) own += share_of(s, z, highest, 0);
    }
    atomicAdd(&sum, own);
    __syncthreads();
    return sum;
}

/* All threads: what is drawn of a row whose highest is `id`. */
template <typename T>
static __device__ int32_t draw(const T *x, const fp8_sample_row &row, int32_t id, int64_t vocab) {
    const fp8_sampling *s = &row.how;
    const float highest = value_at(x, id);
    candidate best = {-INFINITY, INT32_MAX};
    uint32_t least = 0;

    if (highest == -INFINITY) return id;
    if (s->top_k && s->top_k < vocab)
        least = reach(x, vocab, s, highest, 1, least, (u64)s->top_k);
    if (s->top_p != 0.0f && s->top_p != 1.0f) {
        const double sum = (double)total(x, vocab, s, highest, least);
        const u64 target = (u64)((double)s->top_p * sum);
        least = reach(x, vocab, s, highest, 0, least, target ? target : 1); /* never nobody */
    }
    for (int64_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
        const float z = value_at(x, i);
        if (z == -INFINITY || key_of(z) < least) continue;
        best = better(best, candidate{sample_score(&row, z, i), (int)i});
    }
    best = block_best(best);
    return best.index != INT32_MAX ? best.index : id;
}

/* One thread: row s of the step has made this id. */
static __device__ void end_row(const fp8_step_end &e, int64_t s, int32_t id) {
    const int32_t turn = e.turn[s] & 1, length = e.advances ? e.kv_lengths[s] : 0;

    e.out[turn][s] = id;
    e.turn[s] = !turn;
    if (length == 0) return; /* of no sequence, or not one token of each */
    e.ids[s] = id;
    e.positions[s]++;
    e.kv_lengths[s] = length + 1;
    e.rows[s].position++;
}

/* ---- kernel -------------------------------------------------------------------------------- */

/* ids: in, the highest of each row; out, of rows that are drawn, what was. */
template <typename T>
static __global__ void __launch_bounds__(SAMPLE_THREADS)
    draw_kernel(int32_t *ids, const T *logits, const fp8_sample_row *rows, int64_t vocab,
                const __grid_constant__ fp8_step_end e) {
    const T *x = logits + blockIdx.x * vocab;

    wait_for_previous();
    let_next_start();
    const fp8_sample_row row = rows[blockIdx.x];
    int32_t id = ids[blockIdx.x];
    if (row.how.temperature != 0.0f) {
        id = draw(x, row, id, vocab);
        if (threadIdx.x == 0) ids[blockIdx.x] = id;
    }
    /* NOTE: it changes rows[s].position, which a greedy row's other threads may still read, and do
     * not use; of a drawn one all have read it */
    if (threadIdx.x == 0 && e.turn) end_row(e, blockIdx.x, id);
}

/* ---- host ---------------------------------------------------------------------------------- */

template <typename T>
static fp8_status launch_draw(fp8_device *d, int32_t *ids, const void *logits,
                              const fp8_sample_row *rows, int64_t num_rows, int64_t vocab,
                              const fp8_step_end *end) {
    return launch("draw", draw_kernel<T>, dim3((unsigned)num_rows), dim3(SAMPLE_THREADS), 0, d,
                  FP8_LAUNCH_OVERLAP, ids, static_cast<const T *>(logits), rows, vocab, *end);
}

extern "C" fp8_status fp8_choose_cuda(fp8_device *d, int32_t *ids, const void *logits,
                                      fp8_dtype dtype, const fp8_sample_row *rows,
                                      int64_t num_rows, int64_t vocab, const fp8_step_end *end) {
    const auto run = dtype == FP8_DTYPE_F32 ? launch_draw<float> : launch_draw<__nv_bfloat16>;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_top_k(d, ids, NULL, logits, dtype, num_rows, vocab, 0, 1, FP8_LAUNCH_OVERLAP));
    FP8_TRY(run(d, ids, logits, rows, num_rows, vocab, end));
done:
    return st;
}

extern "C" fp8_status sample_cuda(fp8_device *d, int32_t *ids, const void *logits, fp8_dtype dtype,
                                  const fp8_sample_row *rows, int64_t num_rows, int64_t vocab) {
    const fp8_step_end nothing = {};
    return fp8_choose_cuda(d, ids, logits, dtype, rows, num_rows, vocab, &nothing);
}
