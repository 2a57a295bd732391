/* attention/append_unit.cuh - private: a thread's 16 elements of a head of q or k on their way:
 * eight and the eight half a rotation later, or 16 that follow each other. */
#ifndef FP8_ATTENTION_APPEND_UNIT_CUH
#define FP8_ATTENTION_APPEND_UNIT_CUH
#include "attention/append_device.cuh"

namespace attention {

enum {
    PIECE = 8, /* 16 bytes of x */
    UNIT = APPEND_UNIT
};

/* As they lie in x. */
struct raw_unit {
    uint4 low, high;
};

/* Of a part, what a thread has of every token: elements low .. + 7 and low + apart .. + 7. */
struct unit_place {
    int head, slot, low, apart;
    bool there, turns;
};

/* chunk: of as many heads as a warp takes at once, 2^lanes_log threads each. */
static __device__ __forceinline__ unit_place place_unit(int chunk, int lanes_log, int heads, int d,
                                                        int rotary_dim, bool halves) {
    const int lane = (int)threadIdx.x % WARP;
    unit_place w;
    w.slot = lane & ((1 << lanes_log) - 1);
    w.head = (chunk << (5 - lanes_log)) + (lane >> lanes_log);
    w.there = w.head < heads && w.slot * UNIT < d;
    w.turns = w.there && w.slot * UNIT < rotary_dim;
    halves &= w.slot * UNIT < rotary_dim;
    w.low = w.slot * (halves ? PIECE : UNIT);
    w.apart = halves ? rotary_dim / 2 : PIECE;
    return w;
}

/* Threads a head, a power of two, to 2; warps' worth of heads. */
static inline int append_lanes_log(int d) {
    int log = 0;
    while ((UNIT << log) < d) log++;
    return log;
}
static inline int append_chunks(int heads, int lanes_log) {
    const int at_once = WARP >> lanes_log;
    return (heads + at_once - 1) / at_once;
}

template <typename T>
static __device__ __forceinline__ raw_unit load_unit(const T *x, int apart, bool there) {
    raw_unit r = {};
    if (!there) return r;
    r.low = *reinterpret_cast<const uint4 *>(x);
    r.high = *reinterpret_cast<const uint4 *>(x + apart);
    return r;
}

template <typename T>
static __device__ __forceinline__ void widen8(float v[8], const uint4 &raw) {
    const T *x = reinterpret_cast<const T *>(&raw);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = widen(x[k]);
}

template <typename T>
static __device__ __forceinline__ void widen_unit(float (&v)[UNIT], const raw_unit &raw) {
    widen8<T>(v, raw.low);
    widen8<T>(v + PIECE, raw.high);
}

/* RMS norm of a head over its lanes. */
template <typename T>
static __device__ __forceinline__ void norm_unit(const fp8_kv_append &a, float (&v)[UNIT],
                                                 const raw_unit &weight, int d, int lanes) {
    const bool plus = a.norm == FP8_NORM_RMS_PLUS;
    float sum = 0.0f, w[UNIT], r;

    widen_unit<T>(w, weight);
#pragma unroll
    for (int k = 0; k < UNIT; k++) sum += v[k] * v[k];
    for (int off = lanes / 2; off > 0; off /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, off);
    r = 1.0f / sqrtf(sum / (float)d + a.eps);
    if (a.rounded) {
#pragma unroll
        for (int k = 0; k < UNIT; k++) v[k] = norm_value(a, v[k], r, w[k]);
        return;
    }
#pragma unroll
    for (int k = 0; k < UNIT; k++)
        v[k] = __fmul_rn(__fmul_rn(v[k], r), plus ? __fadd_rn(1.0f, w[k]) : w[k]);
}

/* The thread's eight angles are in a row of the tables, whatever the form. */
struct angles {
    float4 cos[PIECE / 4], sin[PIECE / 4];
};

static __device__ __forceinline__ angles load_angles(const float *cos, const float *sin,
                                                     int rotary_dim, const unit_place &w,
                                                     int position) {
    const int64_t at = (int64_t)position * (rotary_dim / 2) + w.slot * PIECE;
    angles a = {};
    if (!w.turns) return a;
#pragma unroll
    for (int k = 0; k < PIECE / 4; k++) {
        a.cos[k] = reinterpret_cast<const float4 *>(cos + at)[k];
        a.sin[k] = reinterpret_cast<const float4 *>(sin + at)[k];
    }
    return a;
}

static __device__ __forceinline__ void rotate_unit(bool halves, float (&v)[UNIT],
                                                   const angles &a) {
#pragma unroll
    for (int k = 0; k < PIECE; k += 4) {
        const float4 c = a.cos[k / 4], s = a.sin[k / 4];
        const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
        if (halves) {
#pragma unroll
            for (int i = 0; i < 4; i++) rotate(v + k + i, v + PIECE + k + i, cos[i], sin[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++)
                rotate(v + 2 * (k + i), v + 2 * (k + i) + 1, cos[i], sin[i]);
        }
    }
}

/* Elements at .. + 7 and at + apart .. + 7: codes or 16-bit reals. */
template <typename T>
static __device__ __forceinline__ void store_unit(void *base, bool codes, int64_t at, int apart,
                                                  float scale, const float (&v)[UNIT]) {
    if (codes) {
        uint8_t *to = static_cast<uint8_t *>(base) + at;
        *reinterpret_cast<uint2 *>(to) = make_uint2(encode4(v, scale), encode4(v + 4, scale));
        *reinterpret_cast<uint2 *>(to + apart) =
            make_uint2(encode4(v + 8, scale), encode4(v + 12, scale));
    } else {
        T *to = static_cast<T *>(base) + at;
        store_as(to, v, PIECE, true);
        store_as(to + apart, v + PIECE, PIECE, true);
    }
}

} /* namespace attention */
#endif
