/* attention/unfused.cu - what surrounds the products of unfused attention.
 *
 * Computes   gather   padded[unit, row, c] = x[begin + token, head, c], 0 beyond the sequence
 *            softmax  p = exp(s * scale - max), factor = v_descale / sum(p); optionally p in E4M3
 *            scatter  O[begin + token, head, c] = bf16(o[unit, row, c] * factor[unit, row])
 * Shapes     attention/unfused.h
 * Bound      memory. softmax moves 4 B in (twice, the second time mostly from L2) and 2 B out per
 *            score: 16 heads of 2048 x 2048 are 67 M scores, 0.4 GB, 0.1 ms at 4.3 TB/s
 * Tiling     gather and scatter: a thread moves 8 elements; softmax: a block per row
 * Numerics   F32, expf; the sum is of the unrounded p; one rounding of O
 */
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "attention/unfused.h"
#include "core/cuda_check.h"

/* ---- constants ------------------------------------------------------------------------------- */

enum {
    VEC = 8,               /* elements a thread moves: 16 bytes of BF16 */
    THREADS = 256,         /* gather, scatter */
    MAX_ROW_THREADS = 256, /* softmax: fewer for short rows, a thread taking 4 scores a step */
    WARP = 32
};

/* ---- device helpers -------------------------------------------------------------------------- */

/* What both directions know of an operand: rows of a slice <-> tokens of the sequences. */
typedef struct operand_rows {
    int64_t unit0, num_units, kv_heads, group, token0;
    int64_t rows, pitch; /* of a unit, padded */
    int64_t d;
    fp8_strides strides;
    int64_t total, longest;
    const int32_t *starts, *lengths;
} operand_rows;

/* Element offset of row r of unit `unit` in the operand; -1 beyond the sequence or units. */
static __device__ int64_t operand_offset(const operand_rows &x, int64_t unit, int64_t r) {
    const int64_t token = x.token0 + r / x.group;
    const int64_t head = unit % x.kv_heads * x.group + r % x.group;
    int64_t begin;
    if (unit >= x.num_units) return -1;
    if (token >= attention_sequence(x.starts, x.lengths, unit / x.kv_heads, x.total, x.longest,
                                    &begin))
        return -1;
    return attention_offset(x.strides, unit / x.kv_heads, begin + token, head);
}

static __device__ __nv_bfloat16 widen(const __nv_bfloat16 *x) { return *x; }
static __device__ __nv_bfloat16 widen(const __nv_fp8_e4m3 *x) {
    return __float2bfloat16(static_cast<float>(*x)); /* 3 mantissa bits: exact */
}

/* x = max or sum over the block, in every thread. `shared` holds a float a warp. */
template <bool MAX>
static __device__ float block_reduce(float x, float *shared) {
    const int num_warps = blockDim.x / WARP;
    for (int off = WARP / 2; off > 0; off >>= 1) {
        const float y = __shfl_xor_sync(0xffffffffu, x, off);
        x = MAX ? fmaxf(x, y) : x + y;
    }
    if (num_warps == 1) return x;
    __syncthreads(); /* NOTE: the last use of `shared` is over */
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < num_warps; i++) x = MAX ? fmaxf(x, shared[i]) : x + shared[i];
    return x;
}

/* 2^8 p in E4M3, as BF16, which holds every E4M3 value. */
static __device__ float round_e4m3(float p) {
    const __nv_fp8_e4m3 code(p * 256.0f);
    return static_cast<float>(code);
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid: (rows * pitch / VEC / THREADS, units). `whole`: 8 elements lie and align as one load. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
gather_kernel(uint16_t *__restrict__ out, const T *__restrict__ in, operand_rows x, bool whole) {
    struct alignas(sizeof(T) * VEC) source { T e[VEC]; };
    const int64_t chunks = x.pitch / VEC, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t r = at / chunks, c = at % chunks * VEC;
    alignas(16) __nv_bfloat16 row[VEC];
    int64_t from;

    if (r >= x.rows) return;
    from = operand_offset(x, x.unit0 + blockIdx.y, r);
    if (whole && from >= 0) {
        const source s = *reinterpret_cast<const source *>(in + from + c);
#pragma unroll
        for (int i = 0; i < VEC; i++) row[i] = widen(&s.e[i]);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; i++)
            row[i] = from >= 0 && c + i < x.d ? widen(in + from + c + i) : __nv_bfloat16(0.0f);
    }
    reinterpret_cast<uint4 *>(out + (blockIdx.y * x.rows + r) * x.pitch)[c / VEC] =
        *reinterpret_cast<const uint4 *>(row);
}

/* grid: as gather. */
static __global__ void __launch_bounds__(THREADS)
scatter_kernel(uint16_t *__restrict__ out, const float *__restrict__ in,
               const float *__restrict__ factor, operand_rows x, bool whole) {
    const int64_t chunks = x.pitch / VEC, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t r = at / chunks, c = at % chunks * VEC, row = blockIdx.y * x.rows + r;
    alignas(16) __nv_bfloat16 values[VEC];
    __nv_bfloat16 *to;
    int64_t offset;
    float f;

    if (r >= x.rows || c >= x.d) return;
    offset = operand_offset(x, x.unit0 + blockIdx.y, r);
    if (offset < 0) return;
    to = reinterpret_cast<__nv_bfloat16 *>(out) + offset + c;
    f = factor[row];
#pragma unroll
    for (int i = 0; i < VEC; i++) /* 0 where no key was seen, whatever V holds */
        values[i] = __float2bfloat16(f == 0.0f ? 0.0f : in[row * x.pitch + c + i] * f);
    if (whole) {
        *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(values);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; i++)
            if (c + i < x.d) to[i] = values[i];
    }
}

/* grid: (rows, units), a block per row. P is 0 where the row does not see; rows beyond the sequence
 * are left as they are: nothing reads their product. */
static __global__ void __launch_bounds__(MAX_ROW_THREADS) softmax_kernel(attention_slice a) {
    __shared__ float shared[MAX_ROW_THREADS / WARP];
    const fp8_attention_options &o = a.options;
    const int64_t unit = a.unit0 + blockIdx.y, seq = unit / o.num_kv_heads;
    const int64_t token = a.token0 + blockIdx.x / a.group;
    const int64_t row = blockIdx.y * (a.tokens * a.group) + blockIdx.x;
    const float4 *s = reinterpret_cast<const float4 *>(a.s + row * a.kv_pitch);
    uint2 *p = reinterpret_cast<uint2 *>(a.p + row * a.kv_pitch);
    float scale = o.scale, out_scale = o.quantize_p ? 1.0f / 256.0f : 1.0f;
    float max = -INFINITY, base, sum = 0.0f;
    int64_t begin, s_q, s_kv, lo, hi;

    if (seq >= o.num_seqs) return;
    s_q = attention_sequence(a.io.q_starts, a.io.q_lengths, seq, a.io.total_q, o.max_q, &begin);
    s_kv = attention_sequence(a.io.kv_starts, a.io.kv_lengths, seq, a.io.total_kv, o.max_kv,
                              &begin);
    if (token >= s_q) return;
    attention_visible(&o, token, s_q, s_kv, &lo, &hi);
    if (o.q_dtype == FP8_DTYPE_E4M3) scale *= *a.io.q_descale;
    if (o.kv_dtype == FP8_DTYPE_E4M3) {
        scale *= *a.io.k_descale;
        out_scale *= *a.io.v_descale;
    }

    for (int64_t v = lo / 4 + threadIdx.x; v * 4 < hi; v += blockDim.x) {
        const float4 x = s[v];
        const float e[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (v * 4 + i >= lo && v * 4 + i < hi) max = fmaxf(max, e[i] * scale);
    }
    max = block_reduce<true>(max, shared);
    base = max == -INFINITY ? 0.0f : max;

    for (int64_t v = threadIdx.x; v * 4 < a.kv_pitch; v += blockDim.x) {
        float e[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        alignas(8) __nv_bfloat16 out[4];
        if (v * 4 + 4 > lo && v * 4 < hi) {
            const float4 x = s[v];
            const float t[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (v * 4 + i >= lo && v * 4 + i < hi) e[i] = expf(t[i] * scale - base);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += e[i];
            out[i] = __float2bfloat16(o.quantize_p ? round_e4m3(e[i]) : e[i]);
        }
        p[v] = *reinterpret_cast<const uint2 *>(out);
    }
    sum = block_reduce<false>(sum, shared);
    if (threadIdx.x == 0) a.factor[row] = hi > lo ? out_scale / sum : 0.0f;
}

/* ---- host launchers -------------------------------------------------------------------------- */

/* Whether VEC elements of an operand always lie together and aligned. */
static bool whole_vectors(const void *x, const operand_rows &r, size_t element) {
    return (r.d | r.strides.batch | r.strides.token | r.strides.head) % VEC == 0 &&
           (uintptr_t)x % (VEC * element) == 0;
}

static dim3 vector_grid(const attention_slice *a, const operand_rows &r) {
    const int64_t threads = r.rows * (r.pitch / VEC);
    return dim3((unsigned)((threads + THREADS - 1) / THREADS), (unsigned)a->units);
}

static operand_rows query_rows(const attention_slice *a, int64_t d, int64_t pitch,
                               fp8_strides strides) {
    const fp8_attention_options &o = a->options;
    return {a->unit0, o.num_seqs * o.num_kv_heads, o.num_kv_heads, a->group, a->token0,
            a->tokens * a->group, pitch, d, strides, a->io.total_q, o.max_q, a->io.q_starts,
            a->io.q_lengths};
}

static operand_rows key_rows(const attention_slice *a, int64_t d, int64_t pitch,
                             fp8_strides strides) {
    const fp8_attention_options &o = a->options;
    return {a->unit0, o.num_seqs * o.num_kv_heads, o.num_kv_heads, 1, 0,
            a->kv_pitch, pitch, d, strides, a->io.total_kv, o.max_kv, a->io.kv_starts,
            a->io.kv_lengths};
}

static fp8_status gather(const attention_slice *a, const char *name, uint16_t *out, const void *in,
                         fp8_dtype dtype, const operand_rows &r, cudaStream_t stream) {
    const bool whole = whole_vectors(in, r, fp8_dtype_size(dtype));
    const dim3 grid = vector_grid(a, r);
    if (dtype == FP8_DTYPE_E4M3)
        gather_kernel<<<grid, THREADS, 0, stream>>>(out, static_cast<const __nv_fp8_e4m3 *>(in), r,
                                                    whole);
    else
        gather_kernel<<<grid, THREADS, 0, stream>>>(out, static_cast<const __nv_bfloat16 *>(in), r,
                                                    whole);
    return fp8_cuda_launched(name, stream);
}

extern "C" fp8_status attention_gather_q(const attention_slice *a, fp8_stream stream) {
    const operand_rows r = query_rows(a, a->options.d_qk, a->d_qk_pitch, a->options.q);
    return gather(a, "attention gather Q", a->q, a->io.q, a->options.q_dtype, r, stream);
}

extern "C" fp8_status attention_gather_kv(const attention_slice *a, fp8_stream stream) {
    const operand_rows k = key_rows(a, a->options.d_qk, a->d_qk_pitch, a->options.k);
    const operand_rows v = key_rows(a, a->options.d_v, a->d_v_pitch, a->options.v);
    const fp8_status st =
        gather(a, "attention gather K", a->k, a->io.k, a->options.kv_dtype, k, stream);
    if (st != FP8_OK) return st;
    return gather(a, "attention gather V", a->v, a->io.v, a->options.kv_dtype, v, stream);
}

extern "C" fp8_status attention_softmax(const attention_slice *a, fp8_stream stream) {
    const dim3 grid((unsigned)(a->tokens * a->group), (unsigned)a->units);
    int threads = WARP;
    while (threads < MAX_ROW_THREADS && threads * 4 < a->kv_pitch) threads *= 2;
    softmax_kernel<<<grid, threads, 0, stream>>>(*a);
    return fp8_cuda_launched("attention softmax", stream);
}

extern "C" fp8_status attention_scatter_o(const attention_slice *a, fp8_stream stream) {
    const operand_rows r = query_rows(a, a->options.d_v, a->d_v_pitch, a->options.o);
    uint16_t *o = static_cast<uint16_t *>(a->io.o);
    scatter_kernel<<<vector_grid(a, r), THREADS, 0, stream>>>(o, a->o, a->factor, r,
                                                              whole_vectors(o, r, sizeof *o));
    return fp8_cuda_launched("attention scatter O", stream);
}
