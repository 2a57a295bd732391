/* attention/append_device.cuh - private: what the kernels of the append share: their arguments, the
 * place of a row, norm, RoPE and rounding of single values. */
#ifndef FP8_ATTENTION_APPEND_DEVICE_CUH
#define FP8_ATTENTION_APPEND_DEVICE_CUH
#include "attention/append_impl.h"
#include "attention/element.cuh"
#include "attention/decode.h"
#include "core/launch.cuh"

namespace attention {

enum { APPEND_NOWHERE = -1, APPEND_NOBODY = -2 };

struct append_args {
    fp8_kv_pages pages;
    fp8_kv_batch batch;
    fp8_kv_append a;
    int page_shift; /* of page_size */
};

/* page: APPEND_NOWHERE: the row's key has no place; APPEND_NOBODY: it is in no sequence. */
struct append_place {
    int key, page;
};

/* What append.cu does not take: any size and alignment (append_any.cu). */
fp8_status append_any(fp8_device *d, const append_args &g, fp8_launch how);
/* What it takes, of many rows (append_ring.cu). *taken 0: nothing was done. */
fp8_status append_ring(fp8_device *d, const append_args &g, fp8_launch how, int *taken);
/* What it takes, when decoding (append_once.cu). */
fp8_status append_once(fp8_device *d, const append_args &g, fp8_launch how);

/* The sequence of a row: how many of q_starts[1 ..] are at most `row`. All lanes of a warp ask for
 * the same one; 128 starts are looked at together, as each look is a wait for memory. */
static __device__ __forceinline__ int sequence_of(const append_args &g, int row) {
    enum { AT_ONCE = 4 };
    const int32_t *starts = g.batch.q_starts + 1;
    const int n = (int)g.batch.num_seqs, lane = (int)threadIdx.x % WARP;
    int count = 0;

    for (int base = 0; base < n && count == base; base += AT_ONCE * WARP) {
        bool below[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = base + k * WARP + lane;
            below[k] = i < n && starts[i] <= row;
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) count += __popc(__ballot_sync(0xffffffffu, below[k]));
    }
    return count;
}

/* A row's key. seq -1: it is in no sequence. */
struct append_token {
    int seq, key;
};

/* append_row_of without its page. seq: sequence_of(g, row). */
static __device__ __forceinline__ append_token token_of(const append_args &g, int row, int seq) {
    const fp8_kv_batch &b = g.batch;
    int64_t begin, n;

    if (seq >= b.num_seqs) return {-1, 0};
    n = kv_tokens(&b, seq, &begin);
    if (row < begin || row - begin >= n) return {-1, 0};
    return {seq, (int)(b.kv_lengths[seq] - n + (row - begin))};
}

static __device__ __forceinline__ bool is_page(const append_args &g, int page) {
    return page >= 0 && page < g.pages.num_pages;
}

/* The page that a token is written to, or APPEND_NOWHERE. */
static __device__ __forceinline__ int page_of(const append_args &g, append_token t) {
    const fp8_kv_batch &b = g.batch;
    if (t.seq < 0 || t.key < 0 || t.key >= b.max_pages << g.page_shift) return APPEND_NOWHERE;
    const int page = b.page_table[t.seq * b.max_pages + (t.key >> g.page_shift)];
    return is_page(g, page) ? page : APPEND_NOWHERE;
}

static __device__ __forceinline__ append_place place_of(const append_args &g, int row, int seq) {
    const append_token t = token_of(g, row, seq);
    return {t.key, t.seq < 0 ? APPEND_NOBODY : page_of(g, t)};
}

static __device__ __forceinline__ int64_t position_of(const append_args &g, int row, int key) {
    return append_position(&g.a, row, key);
}

/* ---- values ---------------------------------------------------------------------------------- */

static __device__ __forceinline__ float norm_value(const fp8_kv_append &a, float x, float r,
                                                   float w) {
    const bool bf16 = a.dtype == FP8_DTYPE_BF16, f16 = a.dtype == FP8_DTYPE_F16;
    float v = __fmul_rn(x, r);
    if (a.norm == FP8_NORM_RMS_PLUS) {
        v = __fmul_rn(v, __fadd_rn(1.0f, w));
    } else {
        if (a.rounded && bf16) v = __bfloat162float(__float2bfloat16_rn(v));
        if (a.rounded && f16) v = __half2float(__float2half_rn(v));
        v = __fmul_rn(v, w);
    }
    if (a.rounded && bf16) v = __bfloat162float(__float2bfloat16_rn(v));
    if (a.rounded && f16) v = __half2float(__float2half_rn(v));
    return v;
}

static __device__ __forceinline__ void rotate(float *x, float *y, float cos, float sin) {
    const float u = *x, v = *y;
    *x = __fsub_rn(__fmul_rn(u, cos), __fmul_rn(v, sin));
    *y = __fadd_rn(__fmul_rn(v, cos), __fmul_rn(u, sin));
}

/* The quantize multiplier of a KV head; real types: 1. */
static __device__ __forceinline__ float scale_of(const fp8_kv_pages &p, fp8_dtype dtype,
                                                 const float *descale, int kv_head) {
    if (dtype != FP8_DTYPE_E4M3) return 1.0f;
    return __fdiv_rn(1.0f, descale[p.granularity == FP8_DESCALE_HEAD ? kv_head : 0]);
}

/* Four codes of v * scale, the first in the low byte; every NaN is 0x7f. */
static __device__ __forceinline__ uint32_t encode4(const float *v, float scale) {
    const float2 low = make_float2(__fmul_rn(v[0], scale), __fmul_rn(v[1], scale));
    const float2 high = make_float2(__fmul_rn(v[2], scale), __fmul_rn(v[3], scale));
    const uint32_t codes =
        __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3) |
        (uint32_t)__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3) << 16;
#if __CUDA_ARCH__ >= 890
    return codes;
#else /* in software a NaN keeps its sign */
    const uint32_t nans = ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    return codes & ~nans;
#endif
}

/* Largest finite |v|; the others are counted. */
template <int N>
static __device__ __forceinline__ float finite_amax(const float *v, uint32_t *others) {
    float most = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const bool finite = fabsf(v[k]) <= FLT_MAX;
        most = fmaxf(most, finite ? fabsf(v[k]) : 0.0f);
        *others += !finite;
    }
    return most;
}

/* Joins what a warp's lanes found with the slot. */
static __device__ __forceinline__ void join_amax(fp8_amax_slot *slot, float most,
                                                 uint32_t others) {
    for (int off = WARP / 2; off > 0; off /= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, off));
    if (__any_sync(0xffffffffu, others != 0)) {
        for (int off = WARP / 2; off > 0; off /= 2)
            others += __shfl_xor_sync(0xffffffffu, others, off);
        if (threadIdx.x % WARP == 0) atomicAdd(&slot->nonfinite, others);
    }
    if (threadIdx.x % WARP != 0) return;
    raise_amax(&slot->amax, most);
    raise_amax(&slot->amax_without_first, most);
}

} /* namespace attention */
#endif
