/* attention/decode_pages_output.cuh - private: where rows of a segment go, and how sums become
 * outputs. */
#ifndef FP8_ATTENTION_DECODE_PAGES_OUTPUT_CUH
#define FP8_ATTENTION_DECODE_PAGES_OUTPUT_CUH
#include "attention/decode_pages_tile.cuh"

enum { CONSUMER_BARRIER = 1 };

template <class T> static __device__ __forceinline__ void consumers_sync() {
    named_sync(CONSUMER_BARRIER, T::CONSUMERS);
}

/* Where row r of a segment goes. */
struct row_place {
    int32_t token, head;
};

static __device__ __forceinline__ row_place row_at(const decode_pages_args &p,
                                                   const segment_info &g, int32_t r) {
    const int32_t row = g.row0 + r;
    return {g.q_begin + row / p.group, g.head_kv * p.group + row % p.group};
}

static __device__ __forceinline__ int64_t output_at(const decode_pages_args &p,
                                                    const row_place &x, int32_t d_v) {
    return (int64_t)x.token * p.o_token + (int64_t)x.head * d_v;
}

/* What O's sums are multiplied by, given the row's maximum and sum in powers of 2; writes its
 * LSE if asked to. */
static __device__ __forceinline__ float row_factor(const decode_pages_args &p, const row_place &x,
                                                   float most, float sum, float value_scale,
                                                   bool writes) {
    const bool empty = sum == 0.0f;
    float top = empty ? -INFINITY : most, total = sum, weight = 1.0f;

    if (p.sink || p.off_by_one) {
        const float sink = p.sink ? p.sink[x.head] * LOG2_E : 0.0f, m = fmaxf(top, sink);
        weight = exp2f(top - m);
        total = sum * weight + exp2f(sink - m);
        top = m;
    }
    if (writes && p.lse)
        p.lse[(int64_t)x.head * p.total_q + x.token] =
            total == 0.0f ? -INFINITY : (top + log2f(total)) * (1.0f / LOG2_E);
    return empty ? 0.0f : weight / total * value_scale;
}

static __device__ __forceinline__ void store_pair(const decode_pages_args &p, int64_t at, float a,
                                                  float b) {
    if (p.o_dtype == FP8_DTYPE_E4M3)
        *reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(p.o) + at) =
            (uint16_t)pack_e4m3(a, b, 0.0f, 0.0f);
    else
        *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.o) + at) =
            p.o_dtype == FP8_DTYPE_BF16 ? pack_bf16(a, b) : pack_f16(a, b);
}

/* Four columns of a row, and the row's maximum and sum. */
struct row_sums {
    float most, sum;
    float4 v;
};

static __device__ __forceinline__ void add_weighted(float4 &v, float weight, const float4 &x) {
    v.x = fmaf(weight, x.x, v.x);
    v.y = fmaf(weight, x.y, v.y);
    v.z = fmaf(weight, x.z, v.z);
    v.w = fmaf(weight, x.w, v.w);
}

/* Columns d .. d + 3 of O. */
template <class T>
static __device__ __forceinline__ void put_output(const decode_pages_args &p,
                                                  const segment_info &g, int32_t r, int32_t d,
                                                  const row_sums &x) {
    const row_place place = row_at(p, g, r);
    const float factor = row_factor(p, place, x.most, x.sum, g.value_scale, d == 0);
    const int64_t to = output_at(p, place, T::D_V) + d;
    store_pair(p, to, x.v.x * factor, x.v.y * factor);
    store_pair(p, to + 2, x.v.z * factor, x.v.w * factor);
}
#endif
