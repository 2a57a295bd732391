/* attention/qkv_descales.cu - current descales of Q, K and V.
 *
 * Computes   amax[tensor, g] = max finite |x| over the tokens of sequences; descale from it
 * Shapes     attention/qkv_descales.h
 * Bound      memory, one read: BF16, b 1, h 24, s 4608, d 128: 85 MB for the three, 19 us at the
 *            H200's read rate of 4.55 TB/s
 * Tiling     the three tensors side by side in grid.y; a block takes PASSES x THREADS vectors of
 *            eight of a unit at a time, grid-stride; a thread has PASSES loads in flight
 * Numerics   the maximum of bits is exact in any order
 */
#include "attention/operand_rows.cuh"
#include "attention/qkv_descales.h"
#include "core/cuda_check.h"

using namespace attention;

/* ---- constants ------------------------------------------------------------------------------- */

enum { THREADS = 256, PASSES = 4, BLOCKS_PER_SM = 8, NUM_TENSORS = 3 };

/* ---- device helpers -------------------------------------------------------------------------- */

struct tensor_job {
    operand_rows rows;
    uint32_t num_rows; /* of a unit, by the longest */
    int64_t parts;     /* of a unit: groups of rows */
    int64_t items;     /* units by parts; 0: nothing to do */
};

struct qkv_jobs {
    tensor_job of[NUM_TENSORS];
    fp8_attention_granularity granularity;
    int64_t count; /* descales a tensor */
};

static __device__ __forceinline__ int64_t descale_index(const qkv_jobs &jobs,
                                                        const operand_rows &x,
                                                        const operand_unit &u) {
    if (jobs.granularity == FP8_DESCALE_TENSOR) return 0;
    return jobs.granularity == FP8_DESCALE_HEAD ? u.kv_head : u.seq * x.kv_heads + u.kv_head;
}

static __device__ __forceinline__ float finite_amax(const float x[VEC], float most) {
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        const float a = fabsf(x[i]);
        if (a < INFINITY) most = fmaxf(most, a);
    }
    return most;
}

/* This thread's share of the largest |x| in rows [row0, row0 + PASSES * rows a block). */
template <typename T>
static __device__ __forceinline__ float item_amax(const operand_rows &x, const operand_unit &u,
                                                  const block_rows &mine, uint32_t row0,
                                                  uint32_t chunks) {
    const T *data = static_cast<const T *>(x.data);
    const uint32_t end = (uint32_t)u.length * x.group;
    float most = 0.0f;

    for (uint32_t c = mine.chunk; c < chunks; c += mine.step) {
        float v[PASSES][VEC];
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const uint32_t r = row0 + i * mine.rows + mine.row;
            const bool inside = mine.row < mine.rows && r < end;
            const int64_t at = inside ? row_offset(x, u, x.strides, r) + c * VEC : 0;
            load_as(v[i], data + at, inside ? x.d - c * VEC : 0, inside && x.whole);
        }
#pragma unroll
        for (int i = 0; i < PASSES; i++) most = finite_amax(v[i], most);
    }
    return most;
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid: (items, tensors). `amax` [NUM_TENSORS][count] holds zeros before. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) amax_kernel(float *amax, qkv_jobs jobs) {
    __shared__ float shared[THREADS / WARP];
    const tensor_job &t = jobs.of[blockIdx.y];
    const uint32_t chunks = (uint32_t)((t.rows.d + VEC - 1) / VEC);
    const block_rows mine = share_rows(THREADS, chunks);

    for (int64_t item = blockIdx.x; item < t.items; item += gridDim.x) {
        const operand_unit u = open_unit(t.rows, item / t.parts);
        const uint32_t row0 = (uint32_t)(item % t.parts) * mine.rows * PASSES;
        const float most =
            block_reduce<true>(item_amax<T>(t.rows, u, mine, row0, chunks), shared);
        if (threadIdx.x == 0)
            raise_amax(amax + blockIdx.y * jobs.count + descale_index(jobs, t.rows, u), most);
        __syncthreads(); /* NOTE: `shared` is written again */
    }
}

static __global__ void __launch_bounds__(THREADS)
amax_to_descale_kernel(float *descale, qkv_jobs jobs) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float *at = descale + blockIdx.y * jobs.count + i;

    if (i < jobs.count && jobs.of[blockIdx.y].items) *at = attention_descale_of(*at);
}

/* ---- launchers ------------------------------------------------------------------------------- */

extern "C" int64_t attention_descale_count(const fp8_attention_options *o) {
    if (o->granularity == FP8_DESCALE_TENSOR) return 1;
    return o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : o->num_seqs * o->num_kv_heads;
}

static tensor_job job_of(const fp8_attention_options *o, const fp8_attention_io *io, const void *x,
                         fp8_dtype dtype, fp8_strides strides, int64_t d, bool is_query) {
    const int64_t span = rows_a_block(THREADS, (uint32_t)((d + VEC - 1) / VEC)) * PASSES;
    tensor_job t = {};
    t.rows = operand_of(o, io, x, dtype, strides, d, is_query);
    t.num_rows = (uint32_t)t.rows.longest * t.rows.group;
    t.parts = (t.num_rows + span - 1) / span;
    if (dtype != FP8_DTYPE_E4M3) t.items = t.rows.num_units * t.parts;
    return t;
}

static qkv_jobs jobs_of(const fp8_attention_options *o, const fp8_attention_io *io) {
    qkv_jobs jobs = {};
    jobs.granularity = o->granularity;
    jobs.count = attention_descale_count(o);
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

/* Tensors that are not E4M3 are of one type. */
static fp8_status launch_amax(float *amax, const qkv_jobs &jobs, fp8_dtype dtype, unsigned blocks,
                              cudaStream_t stream) {
    const dim3 grid(blocks, NUM_TENSORS);
    if (dtype == FP8_DTYPE_BF16)
        amax_kernel<__nv_bfloat16><<<grid, THREADS, 0, stream>>>(amax, jobs);
    else if (dtype == FP8_DTYPE_F16)
        amax_kernel<__half><<<grid, THREADS, 0, stream>>>(amax, jobs);
    else amax_kernel<float><<<grid, THREADS, 0, stream>>>(amax, jobs);
    return fp8_cuda_launched("attention amax of Q, K, V", stream);
}

extern "C" fp8_status attention_current_descales(float *descales, const fp8_attention_options *o,
                                                 const fp8_attention_io *io, fp8_stream stream) {
    const qkv_jobs jobs = jobs_of(o, io);
    const fp8_dtype dtype = o->q_dtype != FP8_DTYPE_E4M3 ? o->q_dtype : o->kv_dtype;
    const dim3 finish((unsigned)((jobs.count + THREADS - 1) / THREADS), NUM_TENSORS);
    fp8_status st = FP8_OK;
    unsigned blocks = 0;

    FP8_TRY(grid_x(jobs, &blocks));
    if (blocks == 0) goto done;
    for (int i = 0; i < NUM_TENSORS; i++)
        if (jobs.of[i].items)
            FP8_TRY_CUDA(cudaMemsetAsync(descales + i * jobs.count, 0,
                                         (size_t)jobs.count * sizeof(float), stream));
    FP8_TRY(launch_amax(descales, jobs, dtype, blocks, stream));
    amax_to_descale_kernel<<<finish, THREADS, 0, stream>>>(descales, jobs);
    FP8_TRY(fp8_cuda_launched("attention descales of Q, K, V", stream));
done:
    return st;
}
