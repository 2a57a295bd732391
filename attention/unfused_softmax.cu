/* attention/unfused_softmax.cu - the softmax of unfused attention: scale, bias, softcap, mask,
 * window, sink, LSE and amax in one kernel over rows of scores.
 *
 * Computes   x = softcap(scale * (s * descales + pre-scale bias)) + post-scale bias | ALiBi
 *            p = p_scale * exp(x - max over the keys seen), in the type of P; 0 elsewhere
 *            factor = v_descale / (p_scale * (sum exp(x - max) + exp(sink - max)))
 *            lse = log(sum exp(x) + exp(sink));  amax_s = max of exp(x - lse)
 * Shapes     attention/unfused.h
 * Bound      memory: 4 B in (twice, the second time mostly from L2) and 1 to 4 B out a score:
 *            16 heads of 2048 x 2048 are 67 M scores, 0.4 GB in BF16, 0.1 ms at 4.3 TB/s
 * Tiling     a block a row, a thread four keys a step
 * Numerics   F32, expf, tanhf; the sum is of the unrounded p, in a fixed order
 */
#include "attention/element.cuh"
#include "attention/unfused.h"
#include "core/cuda_check.h"

using namespace attention;

/* ---- constants ------------------------------------------------------------------------------- */

enum { MAX_ROW_THREADS = 256, QUAD = 4 }; /* fewer threads for short rows */

/* ---- device helpers -------------------------------------------------------------------------- */

/* Everything that turns a row's scores into what goes into its softmax. */
struct row_terms {
    float descale, scale, softcap, slope, v_descale;
    int64_t diagonal, lo, hi;
    const void *bias; /* of the whole tensor, bias_at its element of key 0 */
    int64_t bias_at;
    fp8_dtype bias_dtype;
    bool pre, post, transforms;
    const uint8_t *mask; /* of the row */
};

struct row_place {
    int64_t seq, token, head, kv_head, begin, s_q, s_kv;
};

static __device__ __forceinline__ row_terms make_terms(const attention_slice &a,
                                                       const row_place &r) {
    const fp8_attention_options &o = a.options;
    const int64_t d = attention_descale_index(&o, r.seq, r.kv_head);
    row_terms t = {};
    t.descale = (a.q_descale ? a.q_descale[d] : 1.0f) * (a.k_descale ? a.k_descale[d] : 1.0f);
    t.v_descale = a.v_descale ? a.v_descale[d] : 1.0f;
    t.scale = o.scale;
    t.softcap = o.softcap;
    t.diagonal = attention_diagonal(&o, r.token, r.s_q, r.s_kv);
    attention_visible(&o, r.token, r.s_q, r.s_kv, &t.lo, &t.hi);
    t.pre = o.bias == FP8_BIAS_PRE_SCALE;
    t.post = o.bias == FP8_BIAS_POST_SCALE;
    t.bias = a.io.bias;
    t.bias_dtype = o.bias_dtype;
    if (t.pre || t.post)
        t.bias_at = attention_bias_offset(&o, o.bias_shape, r.seq, r.head, r.token, 0);
    if (o.bias == FP8_BIAS_ALIBI)
        t.slope = a.io.alibi_slopes ? a.io.alibi_slopes[r.head]
                                    : attention_alibi_slope((int32_t)r.head, o.num_heads);
    if (o.mask == FP8_MASK_ARBITRARY)
        t.mask = a.io.mask + attention_bias_offset(&o, o.mask_shape, r.seq, r.head, r.token, 0);
    t.transforms = o.bias != FP8_BIAS_NONE || o.softcap != 0.0f || t.mask;
    return t;
}

static __device__ __forceinline__ float score_of(const row_terms &t, float s, int64_t j) {
    float x = s * t.descale;
    if (!t.transforms) return x * t.scale;
    if (t.pre) x += load1(t.bias, t.bias_dtype, t.bias_at + j);
    x *= t.scale;
    if (t.softcap != 0.0f) x = t.softcap * tanhf(x / t.softcap);
    if (t.post) x += load1(t.bias, t.bias_dtype, t.bias_at + j);
    if (t.slope != 0.0f) x += t.slope * (float)(j - t.diagonal);
    return t.mask && t.mask[j] ? -INFINITY : x;
}

template <typename P> struct alignas(sizeof(P) * QUAD) quad {
    P at[QUAD];
};

/* exp(sink - max): what the sum gains; sink: the logit. */
static __device__ __forceinline__ bool sink_logit(const attention_slice &a, int64_t head,
                                                  float *logit) {
    *logit = a.options.sink == FP8_SINK_LEARNABLE ? a.io.sink[head] : 0.0f;
    return a.options.sink != FP8_SINK_NONE;
}

/* What the row leaves beside P. sum 0: no key was seen. */
static __device__ void finish_row(const attention_slice &a, const row_place &r, const row_terms &t,
                                  int64_t row, float max, float sum) {
    const fp8_attention_options &o = a.options;
    float logit, lse = sum == 0.0f ? -INFINITY : max + logf(sum), whole = sum;

    if (sink_logit(a, r.head, &logit)) {
        const float top = fmaxf(lse, logit);
        whole += expf(logit - max);
        if (top > -INFINITY) lse = top + logf(expf(lse - top) + expf(logit - top));
    }
    a.factor[row] = sum == 0.0f ? 0.0f : t.v_descale / (a.p_scale * whole);
    if (o.want_lse)
        a.io.lse[attention_lse_offset(&o, &a.io, r.seq, r.head, r.begin, r.token)] = lse;
    if (o.want_amax && sum != 0.0f) raise_amax(a.io.amax_s, 1.0f / whole);
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* grid: (rows, units), a block per row. Rows beyond the sequence are left as they are: nothing
 * reads their product. */
template <typename P>
static __global__ void __launch_bounds__(MAX_ROW_THREADS)
softmax_kernel(attention_slice a, bool round_p) {
    __shared__ float shared[MAX_ROW_THREADS / WARP];
    const fp8_attention_options &o = a.options;
    const int64_t unit = a.unit0 + blockIdx.y, threads = blockDim.x;
    const int64_t row = (int64_t)blockIdx.y * (a.tokens * a.group) + blockIdx.x;
    float4 *s = reinterpret_cast<float4 *>(a.s + row * a.s_pitch);
    quad<P> *p = reinterpret_cast<quad<P> *>(static_cast<P *>(a.p) + row * a.s_pitch);
    float max = -INFINITY, base, sum = 0.0f;
    row_place r = {};
    row_terms t;
    int64_t lo, hi; /* columns that the row sees */

    r.seq = unit / o.num_kv_heads;
    r.kv_head = unit % o.num_kv_heads;
    r.token = a.token0 + blockIdx.x / (uint32_t)a.group;
    r.head = r.kv_head * a.group + blockIdx.x % (uint32_t)a.group;
    if (r.seq >= o.num_seqs || r.token >= o.max_q) return;
    r.s_kv = attention_sequence(a.io.kv_starts, a.io.kv_lengths, r.seq, a.io.total_kv, o.max_kv,
                                &r.begin);
    r.s_q = attention_sequence(a.io.q_starts, a.io.q_lengths, r.seq, a.io.total_q, o.max_q,
                               &r.begin);
    if (r.token >= r.s_q) {
        if (threadIdx.x == 0 && o.want_lse && !a.io.q_starts)
            a.io.lse[attention_lse_offset(&o, &a.io, r.seq, r.head, 0, r.token)] = -INFINITY;
        return;
    }
    t = make_terms(a, r);
    lo = t.lo - a.key0;
    hi = t.hi - a.key0;

    /* NOTE: a thread has the same keys in both walks, so that it reads what it wrote itself. */
    for (int64_t v = lo / QUAD / threads * threads + threadIdx.x; v * QUAD < hi; v += threads) {
        const float4 in = s[v];
        float x[QUAD] = {in.x, in.y, in.z, in.w};
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            const int64_t j = v * QUAD + i;
            x[i] = j >= lo && j < hi ? score_of(t, x[i], a.key0 + j) : -INFINITY;
            max = fmaxf(max, x[i]);
        }
        if (t.transforms) s[v] = make_float4(x[0], x[1], x[2], x[3]);
    }
    max = block_reduce<true>(max, shared);
    base = max == -INFINITY ? 0.0f : max;

    for (int64_t v = threadIdx.x; v * QUAD < a.s_pitch; v += threads) {
        float e[QUAD] = {};
        quad<P> out;
        if (v * QUAD + QUAD > lo && v * QUAD < hi) {
            const float4 in = s[v];
            const float x[QUAD] = {in.x, in.y, in.z, in.w};
#pragma unroll
            for (int i = 0; i < QUAD; i++) {
                const int64_t j = v * QUAD + i;
                const float score = t.transforms ? x[i] : score_of(t, x[i], a.key0 + j);
                if (j >= lo && j < hi) e[i] = expf(score - base);
            }
        }
#pragma unroll
        for (int i = 0; i < QUAD; i++) {
            sum += e[i];
            e[i] *= a.p_scale;
            narrow(&out.at[i], round_p ? round_e4m3(e[i]) : e[i]);
        }
        p[v] = out;
    }
    sum = block_reduce<false>(sum, shared);
    if (threadIdx.x == 0) finish_row(a, r, t, row, max, sum);
}

/* ---- launchers ------------------------------------------------------------------------------- */

template <typename P>
static void launch(const attention_slice *a, const dim3 &grid, int threads, fp8_stream stream) {
    softmax_kernel<P><<<grid, threads, 0, stream>>>(*a, a->options.quantize_p != 0);
}

extern "C" fp8_status attention_softmax(const attention_slice *a, fp8_stream stream) {
    const dim3 grid((unsigned)(a->tokens * a->group), (unsigned)a->units);
    int threads = WARP;
    while (threads < MAX_ROW_THREADS && threads * QUAD < a->s_pitch) threads *= 2;
    switch (a->pv_dtype) {
    case FP8_DTYPE_E4M3: launch<__nv_fp8_e4m3>(a, grid, threads, stream); break;
    case FP8_DTYPE_BF16: launch<__nv_bfloat16>(a, grid, threads, stream); break;
    case FP8_DTYPE_F16: launch<__half>(a, grid, threads, stream); break;
    default: launch<float>(a, grid, threads, stream);
    }
    return fp8_cuda_launched("attention softmax", stream);
}
