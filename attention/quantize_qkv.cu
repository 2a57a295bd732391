/* attention/quantize_qkv.cu - Q, K and V to E4M3 codes, with given or current scales.
 *
 * Computes   amax[tensor, g] = max finite |x| over the tokens of sequences
 *            descale = amax / 448;  code = e4m3(x * (1 / descale))
 * Shapes     attention/quantize_qkv.h
 * Bound      memory: BF16 2 bytes an element for the amax, 3 for the codes. b 1, h 24, s 4608,
 *            d 128: 14.2 M elements a tensor, 85 MB and 127 MB for the three; 19 us at the H200's
 *            read rate of 4.55 TB/s and 30 us at its copy rate of 4.27
 * Tiling     the three tensors side by side in grid.y; a block takes PASS rows of a unit at a time,
 *            grid-stride, a thread 8 elements of a row
 * Numerics   the maximum of bits is exact in any order; one product in F32, one rounding
 */
#include <float.h>

#include "attention/operand_rows.cuh"
#include "attention/quantize_qkv.h"
#include "core/cuda_check.h"

using namespace attention;

/* ---- constants ------------------------------------------------------------------------------- */

enum { THREADS = 256, PASSES = 4, BLOCKS_PER_SM = 16, NUM_TENSORS = 3 };

/* ---- device helpers -------------------------------------------------------------------------- */

/* One tensor as both kernels see it. */
struct tensor_job {
    operand_rows rows;
    fp8_strides out_strides;
    uint8_t *codes;       /* NULL: nothing to do */
    const float *descale; /* in, or amax out */
    uint32_t num_rows;    /* of a unit, by the longest */
    int64_t items;        /* units by groups of rows */
    bool out_whole;
};

struct qkv_jobs {
    tensor_job of[NUM_TENSORS];
    fp8_attention_granularity granularity;
};

static __device__ __forceinline__ int64_t descale_index(const qkv_jobs &jobs, const operand_rows &x,
                                                        const operand_unit &u) {
    if (jobs.granularity == FP8_DESCALE_TENSOR) return 0;
    return jobs.granularity == FP8_DESCALE_HEAD ? u.kv_head : u.seq * x.kv_heads + u.kv_head;
}

/* Calls visit(unit, row, first element, count) for this thread's share of an item. */
template <typename F>
static __device__ __forceinline__ void visit_item(const tensor_job &t, int64_t item, F visit) {
    const operand_rows &x = t.rows;
    const uint32_t chunks = (uint32_t)((x.d + VEC - 1) / VEC);
    const block_rows mine = share_rows(THREADS, chunks);
    const uint32_t span = mine.rows * PASSES;
    const int64_t parts = (t.num_rows + span - 1) / span;
    const operand_unit u = open_unit(x, item / parts);
    const uint32_t row0 = (uint32_t)(item % parts) * span;
    const uint32_t end = min(row0 + span, (uint32_t)u.length * x.group);

    if (mine.row >= mine.rows) return;
    for (uint32_t r = row0 + mine.row; r < end; r += mine.rows)
        for (uint32_t c = mine.chunk; c < chunks; c += mine.step)
            visit(u, r, (int64_t)c * VEC, x.d - (int64_t)c * VEC);
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid: (items, tensors). `amax` holds zeros before. */
static __global__ void __launch_bounds__(THREADS) amax_kernel(float *amax, int64_t count,
                                                              qkv_jobs jobs) {
    __shared__ float shared[THREADS / WARP];
    const tensor_job &t = jobs.of[blockIdx.y];

    for (int64_t item = blockIdx.x; item < t.items; item += gridDim.x) {
        float most = 0.0f;
        int64_t index = 0; /* NOTE: thread 0 sees an element of every item that has one */
        visit_item(t, item, [&](const operand_unit &u, uint32_t r, int64_t c, int64_t n) {
            const int64_t at = row_offset(t.rows, u, t.rows.strides, r) + c;
            float x[VEC];
            load8(x, t.rows.data, t.rows.dtype, at, n, t.rows.whole);
            index = descale_index(jobs, t.rows, u);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float a = fabsf(x[i]);
                if (a <= FLT_MAX) most = fmaxf(most, a);
            }
        });
        most = block_reduce<true>(most, shared);
        if (threadIdx.x == 0) raise_amax(amax + blockIdx.y * count + index, most);
        __syncthreads(); /* NOTE: `shared` is written again */
    }
}

static __global__ void __launch_bounds__(THREADS)
amax_to_descale_kernel(float *descale, int64_t count, qkv_jobs jobs) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float *at = descale + blockIdx.y * count + i;

    if (i < count && jobs.of[blockIdx.y].items) *at = attention_descale_of(*at);
}

/* grid: (items, tensors) */
static __global__ void __launch_bounds__(THREADS) quantize_kernel(qkv_jobs jobs) {
    const tensor_job &t = jobs.of[blockIdx.y];

    for (int64_t item = blockIdx.x; item < t.items; item += gridDim.x)
        visit_item(t, item, [&](const operand_unit &u, uint32_t r, int64_t c, int64_t n) {
            const int64_t from = row_offset(t.rows, u, t.rows.strides, r) + c;
            const int64_t to = row_offset(t.rows, u, t.out_strides, r) + c;
            const float scale = 1.0f / t.descale[descale_index(jobs, t.rows, u)];
            float x[VEC];
            load8(x, t.rows.data, t.rows.dtype, from, n, t.rows.whole);
#pragma unroll
            for (int i = 0; i < VEC; i++) x[i] *= scale;
            store8(t.codes, FP8_DTYPE_E4M3, to, x, n, t.out_whole);
        });
}

/* ---- launchers ------------------------------------------------------------------------------- */

extern "C" int64_t attention_descale_count(const fp8_attention_options *o) {
    if (o->granularity == FP8_DESCALE_TENSOR) return 1;
    return o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : o->num_seqs * o->num_kv_heads;
}

static tensor_job job_of(const fp8_attention_options *o, const fp8_attention_io *io, const void *x,
                         fp8_dtype dtype, fp8_strides strides, int64_t d, bool is_query) {
    tensor_job t = {};
    const uint32_t chunks = (uint32_t)((d + VEC - 1) / VEC);
    const uint32_t span = rows_a_block(THREADS, chunks) * PASSES;
    t.rows = operand_of(o, io, x, dtype, strides, d, is_query);
    t.num_rows = (uint32_t)t.rows.longest * t.rows.group;
    if (dtype != FP8_DTYPE_E4M3)
        t.items = t.rows.num_units * (((int64_t)t.num_rows + span - 1) / span);
    return t;
}

static qkv_jobs jobs_of(const fp8_attention_options *o, const fp8_attention_io *io) {
    qkv_jobs jobs = {};
    jobs.granularity = o->granularity;
    jobs.of[0] = job_of(o, io, io->q, o->q_dtype, o->q, o->d_qk, true);
    jobs.of[1] = job_of(o, io, io->k, o->kv_dtype, o->k, o->d_qk, false);
    jobs.of[2] = job_of(o, io, io->v, o->kv_dtype, o->v, o->d_v, false);
    return jobs;
}

/* Blocks a tensor; 0 when there is nothing to do. */
static fp8_status grid_x(const qkv_jobs &jobs, unsigned *blocks) {
    fp8_status st = FP8_OK;
    int device = 0, sms = 0;
    int64_t most = 0;

    FP8_TRY_CUDA(cudaGetDevice(&device));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
    for (int i = 0; i < NUM_TENSORS; i++)
        if (jobs.of[i].items > most) most = jobs.of[i].items;
    *blocks = (unsigned)(most < (int64_t)sms * BLOCKS_PER_SM ? most : sms * BLOCKS_PER_SM);
done:
    return st;
}

extern "C" fp8_status attention_current_descales(float *descales, const fp8_attention_options *o,
                                                 const fp8_attention_io *io, fp8_stream stream) {
    const qkv_jobs jobs = jobs_of(o, io);
    const int64_t count = attention_descale_count(o);
    const dim3 finish((unsigned)((count + THREADS - 1) / THREADS), NUM_TENSORS);
    fp8_status st = FP8_OK;
    unsigned blocks = 0;

    if (count == 0) goto done;
    FP8_TRY(grid_x(jobs, &blocks));
    for (int i = 0; i < NUM_TENSORS; i++)
        if (jobs.of[i].items)
            FP8_TRY_CUDA(cudaMemsetAsync(descales + i * count, 0, (size_t)count * sizeof(float),
                                         stream));
    if (blocks == 0) goto done;
    amax_kernel<<<dim3(blocks, NUM_TENSORS), THREADS, 0, stream>>>(descales, count, jobs);
    FP8_TRY(fp8_cuda_launched("attention amax of Q, K, V", stream));
    amax_to_descale_kernel<<<finish, THREADS, 0, stream>>>(descales, count, jobs);
    FP8_TRY(fp8_cuda_launched("attention descales of Q, K, V", stream));
done:
    return st;
}

extern "C" fp8_status attention_quantize_qkv(const attention_codes *codes,
                                             const fp8_attention_options *o,
                                             const fp8_attention_io *io, fp8_stream stream) {
    uint8_t *const out[NUM_TENSORS] = {codes->q, codes->k, codes->v};
    const float *const descale[NUM_TENSORS] = {codes->q_descale, codes->k_descale,
                                               codes->v_descale};
    const fp8_strides strides[NUM_TENSORS] = {codes->q_strides, codes->k_strides,
                                              codes->v_strides};
    qkv_jobs jobs = jobs_of(o, io);
    fp8_status st = FP8_OK;
    unsigned blocks = 0;

    for (int i = 0; i < NUM_TENSORS; i++) {
        tensor_job &t = jobs.of[i];
        if (!out[i]) t.items = 0;
        t.codes = out[i];
        t.descale = descale[i];
        t.out_strides = strides[i];
        t.out_whole = whole_vectors(out[i], FP8_DTYPE_E4M3, strides[i], t.rows.d);
    }
    FP8_TRY(grid_x(jobs, &blocks));
    if (blocks == 0) goto done;
    quantize_kernel<<<dim3(blocks, NUM_TENSORS), THREADS, 0, stream>>>(jobs);
    FP8_TRY(fp8_cuda_launched("attention quantize Q, K, V", stream));
done:
    return st;
}
