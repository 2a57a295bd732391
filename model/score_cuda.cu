/* model/score_cuda.cu - scores of rows of F32 logits.
 *
 * Computes   nll   log sum exp(x) - x[target]
 *            kl    sum p (ref - x) - lse(ref) + lse(x),  p = softmax(ref)
 *            top1  argmax(x) == argmax(ref): lowest index on ties, NaN counts as -Inf
 * Shapes     x, ref [rows, vocab] F32, out one value a row
 * Bound      memory: each row once, 4 bytes an element, 8 with a reference: 512 x 128256 are 525
 *            MB, no faster than 115 us at 4.55 TB/s (H200 reading, measured)
 * Tiling     one block a row. A thread walks every THREADS-th 16-byte piece with a running maximum
 *            and sums about it, so that nothing is read twice; then the block brings all sums to
 *            the row's maximum. Elements before the first 16-byte boundary and after the last go
 *            singly
 * Numerics   exponentials and a thread's sums in F32, sums over threads and logarithms in double,
 *            in a fixed order: kl of a row with itself is exactly 0. A row that holds NaN or +Inf,
 *            or nothing but -Inf, scores NaN. Elements of p that underflow beside the maximum a
 *            thread has seen add nothing to kl, even where x is -Inf
 */
#include "model/ops_cuda.cuh"

/* ---- constants ----------------------------------------------------------------------------- */

enum {
    SCORE_THREADS = 512, /* leaves 64 registers a thread at two blocks an SM */
    SCORE_DEPTH = 2 /* 16-byte loads of each row under way in a thread: 32 KiB a block */
};

/* ---- device helpers ------------------------------------------------------------------------ */

typedef struct best {
    float value; /* -Inf until something larger is seen */
    int index;
} best;

/* A softmax under way: sum of exp(x - top.value), and for the reference sum of that * (ref - x). */
typedef struct running {
    best top;
    float sum, gap;
} running;

static __device__ best better(best a, best b) {
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

/* v[k] is element index + k; a thread sees its elements in order. NaN is never larger. */
template <int N>
static __device__ void see(best *top, const float v[N], int index) {
#pragma unroll
    for (int k = 0; k < N; k++)
        if (v[k] > top->value) {
            top->value = v[k];
            top->index = index + k;
        }
}

/* Adds N elements; `other` (the scored row, when v is the reference) may be NULL. */
template <int N>
static __device__ void push(running *r, const float v[N], const float *other, int index) {
    const float before = r->top.value;

    see<N>(&r->top, v, index);
    if (r->top.value > before) {
        const float shrink = expf(before - r->top.value);
        r->sum = __fmul_rn(r->sum, shrink); /* never contracted: the same sum for x and ref */
        r->gap = shrink == 0.0f ? 0.0f : r->gap * shrink; /* an Inf of no weight */
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float e = v[k] == -INFINITY ? 0.0f : expf(v[k] - r->top.value);
        r->sum = __fadd_rn(r->sum, e);
        if (other && e != 0.0f) r->gap += e * (v[k] - other[k]);
    }
}

/* 16-byte pieces q, q + stride ... of a row, all asked for before the first is looked at; past the
 * end -Inf, which adds nothing. */
template <int DEPTH>
static __device__ void load_quads(float out[DEPTH][QUAD], const float *from, int q, int stride,
                                  int quads) {
#pragma unroll
    for (int u = 0; u < DEPTH; u++) {
        float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (q + u * stride < quads) v = reinterpret_cast<const float4 *>(from)[q + u * stride];
        out[u][0] = v.x, out[u][1] = v.y, out[u][2] = v.z, out[u][3] = v.w;
    }
}

static __device__ best block_best(best b, best *scratch) {
    for (int off = 16; off > 0; off /= 2) {
        const best o = {__shfl_xor_sync(0xffffffffu, b.value, off),
                        __shfl_xor_sync(0xffffffffu, b.index, off)};
        b = better(b, o);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = b;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) b = better(b, scratch[warp]);
    __syncthreads(); /* scratch is written again by the next call */
    return b;
}

static __device__ double block_sum(double v, double *scratch) {
    for (int off = 16; off > 0; off /= 2) v += __shfl_xor_sync(0xffffffffu, v, off);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) v += scratch[warp];
    __syncthreads();
    return v;
}

typedef struct row_total {
    best top;
    double lse, gap; /* gap: sum p (ref - x) */
} row_total;

/* All threads' sums about the row's maximum. */
static __device__ row_total finish(const running *r) {
    __shared__ best bests[SCORE_THREADS / 32];
    __shared__ double sums[SCORE_THREADS / 32];
    row_total t = {block_best(r->top, bests), 0.0, 0.0};
    const float weight = r->top.value == t.top.value ? 1.0f : expf(r->top.value - t.top.value);
    const double sum = block_sum((double)r->sum * (double)weight, sums);
    const double gap = block_sum(weight == 0.0f ? 0.0 : (double)r->gap * (double)weight, sums);

    t.lse = log(sum) + (double)t.top.value;
    t.gap = gap / sum;
    if (t.top.value == -INFINITY) t.top.index = 0; /* the first of them all */
    return t;
}

/* Elements before the row's first 16-byte boundary. */
static __device__ int head_of(const float *row, int n) {
    const int head = (int)(-(reinterpret_cast<uintptr_t>(row) / sizeof(float)) % QUAD);
    return head < n ? head : n;
}

/* ---- kernels ------------------------------------------------------------------------------- */

/* grid: rows. Walks x and, unless NULL, the reference beside it. */
static __global__ void __launch_bounds__(SCORE_THREADS)
score_kernel(const float *__restrict__ logits, const float *__restrict__ reference,
             const int32_t *__restrict__ targets, float *nll, float *kl, uint8_t *top1, int vocab) {
    const int64_t row = blockIdx.x;
    const float *x = logits + row * vocab;
    const float *ref = reference ? reference + row * vocab : nullptr;
    const bool apart = ref && head_of(x, QUAD) != head_of(ref, QUAD); /* never aligned together */
    const int head = apart ? vocab : head_of(x, vocab), quads = (vocab - head) / QUAD;
    running a = {{-INFINITY, INT32_MAX}, 0.0f, 0.0f}, b = a;

    for (int i = (int)threadIdx.x; i < head; i += SCORE_THREADS) {
        push<1>(&a, x + i, nullptr, i);
        if (ref) push<1>(&b, ref + i, x + i, i);
    }
    for (int q = (int)threadIdx.x; q < quads; q += SCORE_DEPTH * SCORE_THREADS) {
        float v[SCORE_DEPTH][QUAD], w[SCORE_DEPTH][QUAD];
        load_quads<SCORE_DEPTH>(v, x + head, q, SCORE_THREADS, quads);
        if (ref) load_quads<SCORE_DEPTH>(w, ref + head, q, SCORE_THREADS, quads);
#pragma unroll
        for (int u = 0; u < SCORE_DEPTH; u++) {
            const int i = head + (q + u * SCORE_THREADS) * QUAD;
            push<QUAD>(&a, v[u], nullptr, i);
            if (ref) push<QUAD>(&b, w[u], v[u], i);
        }
    }
    for (int i = head + quads * QUAD + (int)threadIdx.x; i < vocab; i += SCORE_THREADS) {
        push<1>(&a, x + i, nullptr, i);
        if (ref) push<1>(&b, ref + i, x + i, i);
    }

    const row_total t = finish(&a);
    if (threadIdx.x == 0) nll[row] = (float)(t.lse - (double)x[targets[row]]);
    if (!ref) return; /* the whole block */
    const row_total u = finish(&b);
    if (threadIdx.x != 0) return;
    if (kl) kl[row] = (float)(u.gap + (t.lse - u.lse));
    if (top1) top1[row] = t.top.index == u.top.index;
}

/* ---- launchers ----------------------------------------------------------------------------- */

/* One block a row, 32-bit indices within it. */
static fp8_status check_logits(const char *operation, const fp8_tensor *t, int64_t rows,
                               int64_t vocab) {
    if (rows > INT32_MAX || vocab > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: %lld rows of %lld", operation, (long long)rows,
                        (long long)vocab);
    return fp8_ops_check(operation, t, FP8_DTYPE_F32, rows * vocab);
}

fp8_status fp8_score_cuda(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                          const int32_t *targets, float *nll, float *kl, uint8_t *top1) {
    const int64_t rows = logits->shape[0], vocab = logits->shape[1];
    const float *ref = reference && (kl || top1) ? (const float *)reference->data : nullptr;
    fp8_status st = FP8_OK;

    FP8_TRY(check_logits("score", logits, rows, vocab));
    if (ref) FP8_TRY(check_logits("score", reference, rows, vocab));
    if (!ref && (kl || top1))
        return FP8_FAIL(FP8_EINVAL, "score: kl and top1 need a reference");
    if (rows == 0 || vocab == 0) return FP8_OK;
    score_kernel<<<(unsigned)rows, SCORE_THREADS, 0, fp8_device_stream(d)>>>(
        (const float *)logits->data, ref, targets, nll, kl, top1, (int)vocab);
    st = fp8_cuda_launched("score", fp8_device_stream(d));
done:
    return st;
}
