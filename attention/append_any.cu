/* attention/append_any.cu - the append of any size, alignment and type: a block a row, a warp a
 * head, an element at a time. What append.cu does, for what it does not take.
 *
 * Computes   as append.cu
 * Bound      latency: a head waits for each of its steps; no model's shape comes here but those of
 *            odd head sizes, F32, or rows that are not in 16-byte pieces
 * Tiling     lane l of a warp has elements l, l + 32, ... of a head, in shared memory: what turns
 *            needs its partner
 * Numerics   as append.cu
 */
#include "attention/append_device.cuh"

using namespace attention;

namespace {

enum { ANY_THREADS = 256, ANY_WARPS = ANY_THREADS / WARP };

struct any_head {
    const fp8_append_heads *h;
    void *to;
    fp8_dtype dtype;
    int64_t from, at, step; /* elements: of x; of `to`, and from one to the next */
    int d;
    float scale;
};

__device__ void norm_any(const fp8_kv_append &a, const void *weight, float *v, int d) {
    const int lane = (int)threadIdx.x % WARP;
    float sum = 0.0f;
    for (int i = lane; i < d; i += WARP) sum += v[i] * v[i];
    for (int off = WARP / 2; off > 0; off /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    sum = 1.0f / sqrtf(sum / (float)d + a.eps);
    for (int i = lane; i < d; i += WARP)
        v[i] = norm_value(a, v[i], sum, load1(weight, a.dtype, i));
}

__device__ void store_any(const any_head &w, int64_t at, float v) {
    if (w.dtype == FP8_DTYPE_F32) static_cast<float *>(w.to)[at] = v;
    else if (w.dtype == FP8_DTYPE_BF16) narrow(static_cast<__nv_bfloat16 *>(w.to) + at, v);
    else if (w.dtype == FP8_DTYPE_F16) narrow(static_cast<__half *>(w.to) + at, v);
    else {
        const float four[4] = {v, 0.0f, 0.0f, 0.0f};
        static_cast<uint8_t *>(w.to)[at] = (uint8_t)encode4(four, w.scale);
    }
}

/* at < 0: nowhere. position < 0: nothing turns. */
__device__ void append_head(const append_args &g, const any_head &w, int64_t position, float *v) {
    const int lane = (int)threadIdx.x % WARP, half = g.a.rotary_dim / 2;
    uint32_t others = 0;
    float most = 0.0f;

    for (int i = lane; i < w.d; i += WARP) v[i] = load1(w.h->x, g.a.dtype, w.from + i);
    __syncwarp();
    if (w.h->norm_weight) norm_any(g.a, w.h->norm_weight, v, w.d);
    __syncwarp();
    for (int i = lane; position >= 0 && i < half; i += WARP) {
        const bool halves = g.a.rope == FP8_ROPE_HALVES;
        rotate(v + (halves ? i : 2 * i), v + (halves ? i + half : 2 * i + 1),
               g.a.cos[position * half + i], g.a.sin[position * half + i]);
    }
    __syncwarp();
    for (int i = lane; i < w.d; i += WARP) {
        most = fmaxf(most, finite_amax<1>(v + i, &others));
        if (w.at >= 0) store_any(w, w.at + i * w.step, v[i]);
    }
    if (w.h->amax) join_amax(w.h->amax, most, others);
    __syncwarp(); /* v is filled again by the next head */
}

/* Head `index` of q, then k, then v. */
__device__ any_head head_of(const append_args &g, int row, const append_place &p, int index,
                            bool *turns) {
    const fp8_kv_pages &c = g.pages;
    const int heads = g.a.q.x ? g.a.num_heads : 0, slot = p.key & (c.page_size - 1);
    const bool is_q = index < heads, is_k = !is_q && index - heads < c.num_kv_heads;
    const int h = is_q ? index : (index - heads) % c.num_kv_heads;
    any_head w;

    *turns = (is_q || is_k) && g.a.rotary_dim > 0;
    w.h = is_q ? &g.a.q : is_k ? &g.a.k : &g.a.v;
    w.d = is_q || is_k ? c.d_qk : c.d_v;
    w.from = row * w.h->token_stride + h * w.h->head_stride;
    w.to = is_q ? g.a.q_out : is_k ? c.k : c.v;
    w.dtype = is_q ? g.a.q_dtype : c.dtype;
    w.step = is_q || is_k ? 1 : c.page_size;
    w.at = is_q         ? ((int64_t)row * g.a.num_heads + h) * c.d_qk
           : p.page < 0 ? -1
           : is_k       ? kv_k_offset(&c, p.page, h, slot)
                        : kv_v_offset(&c, p.page, h, slot);
    w.scale = is_q   ? scale_of(c, w.dtype, g.a.q_descale, h / (heads / c.num_kv_heads))
              : is_k ? scale_of(c, w.dtype, c.k_descale, h)
                     : scale_of(c, w.dtype, c.v_descale, h);
    return w;
}

/* grid: rows. */
__global__ void __launch_bounds__(ANY_THREADS)
append_any_kernel(const __grid_constant__ append_args g) {
    __shared__ float values[ANY_WARPS][FP8_HEAD_DIM_MAX];
    const int row = (int)blockIdx.x, warp = (int)threadIdx.x / WARP;
    const int heads = (g.a.q.x ? g.a.num_heads : 0) + (g.a.k.x ? 2 * g.pages.num_kv_heads : 0);

    fp8::let_next_start();
    fp8::wait_for_previous();
    const append_place p = place_of(g, row, sequence_of(g, row));
    if (p.page == APPEND_NOBODY) return;
    for (int i = warp; i < heads; i += ANY_WARPS) {
        bool turns;
        const any_head w = head_of(g, row, p, i, &turns);
        append_head(g, w, turns ? position_of(g, row, p.key) : -1, values[warp]);
    }
}

} /* namespace */

fp8_status attention::append_any(fp8_device *d, const append_args &g, fp8_launch how) {
    return fp8::launch("append", append_any_kernel, dim3((unsigned)g.batch.total_q),
                       dim3(ANY_THREADS), 0, d, how, g);
}
