/* attention/decode_gathered.cu - keys and values out of their pages, as packed rows.
 *
 * Computes   k[c * room + j, h, :] = K of key j of the c-th sequence that is this part's, v
 *            likewise, turned back; descaled where codes become reals, one rounding
 * Shapes     pages as attention/cache.h has them; k, v [chunks * room, num_kv_heads, d]
 * Bound      memory: each key read and written once
 * Tiling     a block finds the sequences and their pieces; then a block a page and head, 256
 *            threads; V by 32 of d x 64 tokens through shared memory
 * Numerics   F32 between; the same type comes out as it went in
 */
#include "attention/decode_gathered.h"
#include "attention/element.cuh"
#include "core/launch.cuh"

using namespace attention;

namespace {

enum { THREADS = 256, TILE_D = 32, TILE_KEYS = 64, WARPS = THREADS / 32 };

struct gather_args {
    gathered_keys to;
    fp8_kv_pages p;
    fp8_kv_batch b;
    bool whole_k, whole_v; /* rows and strides are in pieces of eight */
};

/* Chunks and pieces, counted together: pieces in the low half. */
typedef uint64_t places;
constexpr places ONE_CHUNK = UINT64_C(1) << 32;

/* The sum of `mine` over the threads before this one, and *all, over all of them. */
__device__ places sum_before(places mine, places *all) {
    __shared__ places sums[WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    places sum = mine, before = 0;

    for (int step = 1; step < 32; step *= 2) {
        const places other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    *all = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += sums[w];
        *all += sums[w];
    }
    __syncthreads();
    return before + sum - mine;
}

/* Sequence s as chunk `chunk`, its pieces from `piece` on. */
__device__ void put_sequence(const gathered_keys &to, int64_t s, int64_t begin, int64_t n,
                             int64_t keys, int64_t chunk, int64_t piece) {
    if (chunk >= to.chunks) return;
    to.sequence[chunk] = (int32_t)s;
    to.keys[chunk] = (int32_t)keys;
    for (int64_t q = 0; q < n && piece < to.pieces; q += to.piece, piece++) {
        const int64_t end = q + to.piece < n ? q + to.piece : n, seen = keys - n + end;
        to.q_starts[piece] = (int32_t)(begin + q);
        to.q_lengths[piece] = (int32_t)(end - q);
        to.kv_starts[piece] = (int32_t)(chunk * to.room);
        to.kv_lengths[piece] = (int32_t)(to.causal ? (seen > 0 ? seen : 0) : keys);
    }
}

/* One block: the sequences that are this part's, in their order. */
__global__ void __launch_bounds__(THREADS) sequences_kernel(const __grid_constant__ gather_args g) {
    const gathered_keys &to = g.to;
    places taken = 0, all;

    fp8::wait_for_previous();
    fp8::let_next_start();
    for (int64_t first = 0; first < g.b.num_seqs; first += THREADS) {
        const int64_t s = first + threadIdx.x;
        int64_t begin = 0, n = 0;
        if (s < g.b.num_seqs) n = kv_tokens(&g.b, s, &begin);
        if (n < to.q_least || n > to.q_most) n = 0;
        const places mine = n > 0 ? ONE_CHUNK + (places)((n + to.piece - 1) / to.piece) : 0;
        const places at = taken + sum_before(mine, &all);
        if (n > 0)
            put_sequence(to, s, begin, n, kv_keys(&g.b, s, g.p.page_size), (int64_t)(at >> 32),
                         (int64_t)(uint32_t)at);
        taken += all;
    }
    for (int64_t c = (int64_t)(taken >> 32) + threadIdx.x; c < to.chunks; c += THREADS)
        to.keys[c] = 0;
    for (int64_t p = (int64_t)(uint32_t)taken + threadIdx.x; p < to.pieces; p += THREADS)
        to.q_starts[p] = to.q_lengths[p] = to.kv_starts[p] = to.kv_lengths[p] = 0;
}

__device__ __forceinline__ float descale_of(const gather_args &g, const float *descale, int head) {
    if (g.p.dtype != FP8_DTYPE_E4M3 || g.to.dtype == FP8_DTYPE_E4M3) return 1.0f;
    return descale[g.p.granularity == FP8_DESCALE_HEAD ? head : 0];
}

/* `keys` rows of d elements. */
__device__ void gather_k(const gather_args &g, int64_t page, int head, int64_t row, int keys) {
    const int d = g.p.d_qk, pieces = (d + VEC - 1) / VEC;
    const int64_t from = kv_k_offset(&g.p, page, head, 0);
    const float descale = descale_of(g, g.p.k_descale, head);

    for (int i = (int)threadIdx.x; i < keys * pieces; i += THREADS) {
        const int t = i / pieces, c = i % pieces * VEC;
        const int64_t to = ((row + t) * g.p.num_kv_heads + head) * d + c;
        float x[VEC];
        load8(x, g.p.k, g.p.dtype, from + t * d + c, d - c, g.whole_k);
#pragma unroll
        for (int k = 0; k < VEC; k++) x[k] *= descale;
        store8(g.to.k, g.to.dtype, to, x, d - c, g.whole_k);
    }
}

/* TILE_KEYS of the page's keys from `first` on, of which `keys` are there. */
__device__ void gather_v(const gather_args &g, float (*tile)[TILE_KEYS + 1], int64_t page, int head,
                         int64_t row, int first, int keys) {
    const int d = g.p.d_v, tid = (int)threadIdx.x;
    const int64_t from = kv_v_offset(&g.p, page, head, first);
    const float descale = descale_of(g, g.p.v_descale, head);
    float x[VEC];

    for (int d0 = 0; d0 < d; d0 += TILE_D) {
        const int in = tid / (TILE_KEYS / VEC), t0 = tid % (TILE_KEYS / VEC) * VEC;
        const int t = tid / (TILE_D / VEC), c = tid % (TILE_D / VEC) * VEC;
        if (d0 + in < d) {
            load8(x, g.p.v, g.p.dtype, from + (int64_t)(d0 + in) * g.p.page_size + t0, VEC,
                  g.whole_v);
#pragma unroll
            for (int k = 0; k < VEC; k++) tile[in][t0 + k] = x[k] * descale;
        }
        __syncthreads();
        if (t < keys && d0 + c < d) {
            const int64_t to = ((row + first + t) * g.p.num_kv_heads + head) * d + d0 + c;
#pragma unroll
            for (int k = 0; k < VEC; k++) x[k] = tile[c + k][t];
            store8(g.to.v, g.to.dtype, to, x, d - d0 - c, g.whole_v && d % VEC == 0);
        }
        __syncthreads();
    }
}

/* grid: pages of the longest sequence, chunks, heads. */
__global__ void __launch_bounds__(THREADS)
gather_kernel(const __grid_constant__ gather_args g) {
    __shared__ float tile[TILE_D][TILE_KEYS + 1];
    const int64_t chunk = blockIdx.y, first = (int64_t)blockIdx.x * g.p.page_size;
    const int64_t row = chunk * g.to.room + first;
    const int head = (int)blockIdx.z;

    fp8::wait_for_previous();
    fp8::let_next_start();
    const int64_t left = g.to.keys[chunk] - first;
    if (left <= 0) return;
    const int keys = (int)(left < g.p.page_size ? left : g.p.page_size);
    const int64_t page = kv_page(&g.b, g.to.sequence[chunk], first, g.p.page_size, g.p.num_pages);
    gather_k(g, page, head, row, keys);
    for (int t = 0; t < keys; t += TILE_KEYS) gather_v(g, tile, page, head, row, t, keys - t);
}

bool aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

} /* namespace */

extern "C" fp8_status gather_keys(fp8_device *d, const gathered_keys *to,
                                  const fp8_kv_pages *pages, const fp8_kv_batch *batch) {
    const gather_args g = {*to, *pages, *batch,
                           aligned(pages->k) && pages->k_page % 16 == 0 && pages->d_qk % 16 == 0,
                           aligned(pages->v) && pages->v_page % 16 == 0};
    const int64_t most = batch->max_pages * pages->page_size;
    const int64_t keys = batch->max_kv < most ? batch->max_kv : most;
    const dim3 grid((unsigned)((keys + pages->page_size - 1) / pages->page_size),
                    (unsigned)to->chunks, (unsigned)pages->num_kv_heads);
    fp8_status st;

    FP8_TRY(fp8::launch("decode_sequences", sequences_kernel, dim3(1), dim3(THREADS), 0, d,
                        FP8_LAUNCH_OVERLAP, g));
    if (keys > 0)
        FP8_TRY(fp8::launch("decode_gather", gather_kernel, grid, dim3(THREADS), 0, d,
                            FP8_LAUNCH_OVERLAP, g));
done:
    return st;
}
