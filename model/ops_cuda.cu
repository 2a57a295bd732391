/* model/ops_cuda.cu - embedding, gather, RoPE, activations, addition and rounding on CUDA; and the
 * table of all CUDA operations.
 *
 * Computes   as ops.h says
 * Shapes     x, y, table, up [rows, cols] BF16, logits F32; ids, positions [rows] I32; cos, sin
 *            [max_position, dim / 2] F32
 * Bound      memory: every operand once. activate(gate, up) moves 6 bytes an element: 4096 x 14336
 *            are 352 MB, no faster than 82 us at 4.27 TB/s (H200 copy, measured)
 * Tiling     flat operations: a thread takes 16 bytes of each operand and ends, so that blocks come
 *            and go evenly. Embedding and RoPE: one block a token. What is not 16-byte aligned goes
 *            one element at a time
 * Numerics   embedding, RoPE, addition and rounding match the CPU bit for bit (no product is
 *            contracted); expf, erff and division are the accurate ones
 */
#include "model/ops_cuda.cuh"

/* ---- constants ----------------------------------------------------------------------------- */

enum { THREADS = 256 };

/* ---- device helpers ------------------------------------------------------------------------ */

/* The formulas of core/mathfn.h: no cancellation near -1, -0 and NaN kept. */
template <int N>
static __device__ void activate(float *v, fp8_activation act) {
    switch (act) {
    case FP8_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = v[k] / (1.0f + expf(-v[k]));
        return;
    case FP8_ACT_GELU_TANH:
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float u = 0.7978845608028654f * (v[k] + 0.044715f * v[k] * v[k] * v[k]);
            v[k] = v[k] / (1.0f + expf(-2.0f * u));
        }
        return;
    case FP8_ACT_GELU_ERF:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] *= 0.5f * (1.0f + erff(v[k] * 0.70710678118654752f));
        return;
    case FP8_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = v[k] < 0.0f ? 0.0f : v[k];
        return;
    }
}

/* ---- kernels ------------------------------------------------------------------------------- */

/* y[i] = act(x[i]), or round(act(x[i])) * up[i]. y may be x or up: each element is read before it
 * is written, by the same thread. The first 8 * n_vec elements go in vectors, the rest singly. */
static __global__ void __launch_bounds__(THREADS)
activate_kernel(bf16 *y, const bf16 *x, const bf16 *up, fp8_activation act, int64_t n_vec,
                int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, single = n_vec * VEC + i;

    if (i < n_vec) {
        float v[VEC], u[VEC];
        unpack8(v, reinterpret_cast<const uint4 *>(x)[i]);
        if (up) unpack8(u, reinterpret_cast<const uint4 *>(up)[i]);
        activate<VEC>(v, act);
#pragma unroll
        for (int k = 0; k < VEC; k++)
            if (up) v[k] = round_bf16(v[k]) * u[k];
        reinterpret_cast<uint4 *>(y)[i] = pack8(v);
    }
    if (single < n) {
        float v = __bfloat162float(x[single]);
        activate<1>(&v, act);
        if (up) v = round_bf16(v) * __bfloat162float(up[single]);
        y[single] = __float2bfloat16_rn(v);
    }
}

static __global__ void __launch_bounds__(THREADS)
add_kernel(bf16 *x, const bf16 *y, int64_t n_vec, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, single = n_vec * VEC + i;

    if (i < n_vec) {
        float a[VEC], b[VEC];
        unpack8(a, reinterpret_cast<const uint4 *>(x)[i]);
        unpack8(b, reinterpret_cast<const uint4 *>(y)[i]);
#pragma unroll
        for (int k = 0; k < VEC; k++) a[k] += b[k];
        reinterpret_cast<uint4 *>(x)[i] = pack8(a);
    }
    if (single < n)
        x[single] = __float2bfloat16_rn(__bfloat162float(x[single]) + __bfloat162float(y[single]));
}

static __global__ void __launch_bounds__(THREADS) round_kernel(float *x, int64_t n_vec, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, single = n_vec * QUAD + i;

    if (i < n_vec) {
        const float4 v = reinterpret_cast<const float4 *>(x)[i];
        reinterpret_cast<float4 *>(x)[i] =
            make_float4(round_bf16(v.x), round_bf16(v.y), round_bf16(v.z), round_bf16(v.w));
    }
    if (single < n) x[single] = round_bf16(x[single]);
}

/* One block a token. A row that is only copied keeps its bits, NaN payloads included. */
static __global__ void __launch_bounds__(THREADS)
embed_kernel(bf16 *__restrict__ x, const bf16 *__restrict__ table, const int32_t *__restrict__ ids,
             float multiplier, const bf16 *__restrict__ positions_table,
             const int32_t *__restrict__ positions, int64_t cols, int vectors) {
    const int64_t t = blockIdx.x;
    const bf16 *row = table + ids[t] * cols;
    const bf16 *add = positions_table ? positions_table + positions[t] * cols : nullptr;
    const bool plain = multiplier == 1.0f && !add;
    const int64_t n_vec = vectors ? cols / VEC : 0;
    bf16 *out = x + t * cols;

    for (int64_t i = threadIdx.x; i < n_vec; i += THREADS) {
        uint4 raw = reinterpret_cast<const uint4 *>(row)[i];
        float v[VEC], p[VEC];
        if (!plain) {
            unpack8(v, raw);
            if (add) unpack8(p, reinterpret_cast<const uint4 *>(add)[i]);
#pragma unroll
            for (int k = 0; k < VEC; k++) {
                v[k] *= multiplier;
                if (add) v[k] = round_bf16(v[k]) + p[k];
            }
            raw = pack8(v);
        }
        reinterpret_cast<uint4 *>(out)[i] = raw;
    }
    for (int64_t i = n_vec * VEC + threadIdx.x; i < cols; i += THREADS) {
        float v = __bfloat162float(row[i]) * multiplier;
        if (add) v = round_bf16(v) + __bfloat162float(add[i]);
        out[i] = plain ? row[i] : __float2bfloat16_rn(v);
    }
}

/* Two 16-byte loads. */
static __device__ void load8(float out[VEC], const float *p) {
    const float4 low = reinterpret_cast<const float4 *>(p)[0];
    const float4 high = reinterpret_cast<const float4 *>(p)[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

/* (a, b) -> (a cos - b sin, b cos + a sin). */
static __device__ void rotate(float *a, float *b, float cos, float sin) {
    const float u = *a, v = *b;
    *a = __fsub_rn(__fmul_rn(u, cos), __fmul_rn(v, sin));
    *b = __fadd_rn(__fmul_rn(v, cos), __fmul_rn(u, sin));
}

/* One block a token; a thread takes eight pairs of one head, or one pair. half = dim / 2. */
static __global__ void __launch_bounds__(THREADS)
rope_kernel(bf16 *x, int heads, int half, int64_t row_stride, const float *__restrict__ cos,
            const float *__restrict__ sin, const int32_t *__restrict__ positions, int vectors) {
    const int64_t t = blockIdx.x, at = (int64_t)positions[t] * half;
    const int step = vectors ? VEC : 1, per_head = half / step;
    bf16 *row = x + t * row_stride;

    for (int unit = (int)threadIdx.x; unit < heads * per_head; unit += (int)blockDim.x) {
        const int i = unit % per_head * step;
        bf16 *a = row + (int64_t)(unit / per_head) * 2 * half + i, *b = a + half;
        float u[VEC], v[VEC], c[VEC], s[VEC];
        if (!vectors) {
            u[0] = __bfloat162float(*a), v[0] = __bfloat162float(*b);
            rotate(u, v, cos[at + i], sin[at + i]);
            *a = __float2bfloat16_rn(u[0]), *b = __float2bfloat16_rn(v[0]);
            continue;
        }
        unpack8(u, *reinterpret_cast<const uint4 *>(a));
        unpack8(v, *reinterpret_cast<const uint4 *>(b));
        load8(c, cos + at + i);
        load8(s, sin + at + i);
#pragma unroll
        for (int k = 0; k < VEC; k++) rotate(u + k, v + k, c[k], s[k]);
        *reinterpret_cast<uint4 *>(a) = pack8(u);
        *reinterpret_cast<uint4 *>(b) = pack8(v);
    }
}

/* ---- launchers ----------------------------------------------------------------------------- */

fp8_status fp8_ops_check(const char *operation, const fp8_tensor *t, fp8_dtype dtype,
                         int64_t count) {
    char shape[128];

    if (t->dtype == dtype && t->place == FP8_PLACE_CUDA && fp8_tensor_count(t) == count &&
        (t->data || count == 0))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: expected %lld elements of %s on the device, found %s %s%s",
                    operation, (long long)count, fp8_dtype_name(dtype), fp8_dtype_name(t->dtype),
                    fp8_shape_text(shape, sizeof shape, t->shape, t->ndim),
                    t->place == FP8_PLACE_CUDA ? "" : " on the host");
}

/* CUDA's limit of a grid. */
static fp8_status check_blocks(const char *operation, int64_t blocks) {
    if (blocks <= INT32_MAX) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: %lld blocks of threads", operation, (long long)blocks);
}

/* Blocks of a flat operation on n elements, `step` a thread. */
static int64_t flat_blocks(int64_t n, int step) {
    return (n + (int64_t)THREADS * step - 1) / ((int64_t)THREADS * step);
}

static fp8_status cuda_activate(fp8_device *d, const fp8_tensor *y, const fp8_tensor *x,
                                const fp8_tensor *up, fp8_activation act) {
    const int64_t n = fp8_tensor_count(x);
    const bf16 *gate = (const bf16 *)x->data, *other = up ? (const bf16 *)up->data : nullptr;
    const int vectors = aligned16(gate) && aligned16(other) && aligned16(y->data);
    const int64_t blocks = flat_blocks(n, vectors ? VEC : 1);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("activate", x, FP8_DTYPE_BF16, n));
    FP8_TRY(fp8_ops_check("activate", y, FP8_DTYPE_BF16, n));
    if (up) FP8_TRY(fp8_ops_check("activate", up, FP8_DTYPE_BF16, n));
    if (n == 0) return FP8_OK;
    FP8_TRY(check_blocks("activate", blocks));
    activate_kernel<<<(unsigned)blocks, THREADS, 0, fp8_device_stream(d)>>>(
        (bf16 *)y->data, gate, other, act, vectors ? n / VEC : 0, n);
    st = fp8_cuda_launched("activate", fp8_device_stream(d));
done:
    return st;
}

static fp8_status cuda_add(fp8_device *d, const fp8_tensor *x, const fp8_tensor *y) {
    const int64_t n = fp8_tensor_count(x);
    const int vectors = aligned16(x->data) && aligned16(y->data);
    const int64_t blocks = flat_blocks(n, vectors ? VEC : 1);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("add", x, FP8_DTYPE_BF16, n));
    FP8_TRY(fp8_ops_check("add", y, FP8_DTYPE_BF16, n));
    if (n == 0) return FP8_OK;
    FP8_TRY(check_blocks("add", blocks));
    add_kernel<<<(unsigned)blocks, THREADS, 0, fp8_device_stream(d)>>>(
        (bf16 *)x->data, (const bf16 *)y->data, vectors ? n / VEC : 0, n);
    st = fp8_cuda_launched("add", fp8_device_stream(d));
done:
    return st;
}

static fp8_status cuda_round(fp8_device *d, const fp8_tensor *x, fp8_dtype to) {
    const int64_t n = fp8_tensor_count(x);
    const int vectors = aligned16(x->data);
    const int64_t blocks = flat_blocks(n, vectors ? QUAD : 1);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("round", x, FP8_DTYPE_F32, n));
    if (to == FP8_DTYPE_F32) return FP8_OK;
    if (to != FP8_DTYPE_BF16) return FP8_FAIL(FP8_EINVAL, "round: to %s", fp8_dtype_name(to));
    if (n == 0) return FP8_OK;
    FP8_TRY(check_blocks("round", blocks));
    round_kernel<<<(unsigned)blocks, THREADS, 0, fp8_device_stream(d)>>>(
        (float *)x->data, vectors ? n / QUAD : 0, n);
    st = fp8_cuda_launched("round", fp8_device_stream(d));
done:
    return st;
}

static fp8_status cuda_embed(fp8_device *d, const fp8_tensor *x, const fp8_tensor *table,
                             const int32_t *ids, float multiplier,
                             const fp8_tensor *positions_table, const int32_t *positions) {
    const int64_t rows = x->shape[0], cols = x->shape[1];
    const bf16 *add = positions_table ? (const bf16 *)positions_table->data : nullptr;
    const int vectors =
        cols % VEC == 0 && aligned16(x->data) && aligned16(table->data) && aligned16(add);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("embed", x, FP8_DTYPE_BF16, rows * cols));
    FP8_TRY(fp8_ops_check("embed", table, FP8_DTYPE_BF16, table->shape[0] * cols));
    if (positions_table)
        FP8_TRY(fp8_ops_check("embed", positions_table, FP8_DTYPE_BF16,
                              positions_table->shape[0] * cols));
    FP8_TRY(check_blocks("embed", rows));
    if (rows == 0 || cols == 0) return FP8_OK;
    embed_kernel<<<(unsigned)rows, THREADS, 0, fp8_device_stream(d)>>>(
        (bf16 *)x->data, (const bf16 *)table->data, ids, multiplier, add, positions, cols, vectors);
    st = fp8_cuda_launched("embed", fp8_device_stream(d));
done:
    return st;
}

static fp8_status cuda_gather(fp8_device *d, const fp8_tensor *out, const fp8_tensor *x,
                              const int32_t *rows) {
    return cuda_embed(d, out, x, rows, 1.0f, nullptr, nullptr);
}

static fp8_status cuda_rope(fp8_device *d, const fp8_tensor *x, int64_t heads, int64_t dim,
                            int64_t row_stride, const float *cos, const float *sin,
                            const int32_t *positions) {
    const int64_t rows = x->shape[0], half = dim / 2;
    const int vectors = half % VEC == 0 && row_stride % VEC == 0 && aligned16(x->data) &&
                        aligned16(cos) && aligned16(sin);
    const int64_t units = heads * half / (vectors ? VEC : 1);
    const int64_t threads = units < THREADS ? (units + 31) / 32 * 32 : (int64_t)THREADS;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_ops_check("rope", x, FP8_DTYPE_BF16, fp8_tensor_count(x)));
    FP8_TRY(check_blocks("rope", rows));
    if (dim % 2 || heads * dim > row_stride || heads * dim > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "rope: %lld heads of %lld, rows %lld apart", (long long)heads,
                        (long long)dim, (long long)row_stride);
    if (rows == 0 || units == 0) return FP8_OK;
    rope_kernel<<<(unsigned)rows, (unsigned)threads, 0, fp8_device_stream(d)>>>(
        (bf16 *)x->data, (int)heads, (int)half, row_stride, cos, sin, positions, vectors);
    st = fp8_cuda_launched("rope", fp8_device_stream(d));
done:
    return st;
}

extern "C" const fp8_ops *fp8_ops_cuda(void) {
    static const fp8_ops ops = {
        cuda_embed,  fp8_norm_cuda, cuda_rope,      cuda_activate,   cuda_add,
        cuda_gather, cuda_round,    fp8_score_cuda, fp8_argmax_cuda,
    };
    return &ops;
}
