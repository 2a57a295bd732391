/* attention/decode_pages_exchange.cuh - private: parts of an item that lies in several ranges. The
 * blocks of those ranges send each other what they have of each row, and each adds up an equal
 * share of the columns, in an order that follows from the number of parts alone.
 *
 * What is sent lies in memory of the plan that is UNSENT before and after a run: a word that is not
 * has come, so that nothing is counted and nothing fenced. Blocks wait for each other: all of a
 * grid must be there at a time (decode_pages_cuda.c launches it so). */
#ifndef FP8_ATTENTION_DECODE_PAGES_EXCHANGE_CUH
#define FP8_ATTENTION_DECODE_PAGES_EXCHANGE_CUH
#include "attention/decode_pages_output.cuh"

static constexpr uint32_t UNSENT = DECODE_PAGES_UNSENT_BYTE * 0x01010101u; /* a NaN */

/* A unit: four columns of a row of a part with the row's maximum and sum, a sector. */
template <class T>
static __device__ __forceinline__ float *unit_at(const decode_pages_args &p, int32_t slot,
                                                 int32_t unit) {
    return p.exchange +
           ((int64_t)slot * (T::ROWS * T::D_V / 4) + unit) * DECODE_PAGES_UNIT_FLOATS;
}

static __device__ __forceinline__ float sendable(float x) {
    return __float_as_uint(x) == UNSENT ? __uint_as_float(0x7fffffffu) : x;
}

template <class T>
static __device__ __forceinline__ void send(const decode_pages_args &p, int32_t slot, int32_t r,
                                            int32_t d, const row_sums &x) {
    float *to = unit_at<T>(p, slot, (r * T::D_V + d) / 4);
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                 "f"(sendable(x.v.x)), "f"(sendable(x.v.y)), "f"(sendable(x.v.z)),
                 "f"(sendable(x.v.w))
                 : "memory");
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to + 4),
                 "f"(sendable(x.most)), "f"(sendable(x.sum))
                 : "memory");
}

static __device__ __forceinline__ row_sums look(const float *at) {
    row_sums x;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.v.x), "=f"(x.v.y), "=f"(x.v.z), "=f"(x.v.w)
                 : "l"(at)
                 : "memory");
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
                 : "=f"(x.most), "=f"(x.sum)
                 : "l"(at + 4)
                 : "memory");
    return x;
}

static __device__ __forceinline__ bool has_come(const row_sums &x) {
    const auto sent = [](float word) { return __float_as_uint(word) != UNSENT; };
    return sent(x.v.x) && sent(x.v.y) && sent(x.v.z) && sent(x.v.w) && sent(x.most) && sent(x.sum);
}

static __device__ __forceinline__ void clear(float *at) {
    const float word = __uint_as_float(UNSENT);
    *reinterpret_cast<float4 *>(at) = make_float4(word, word, word, word);
    *reinterpret_cast<float2 *>(at + 4) = make_float2(word, word);
}

/* x and y of the same columns; y may be none: NONE, 0, 0. */
static __device__ __forceinline__ void join(row_sums &x, const row_sums &y) {
    const float most = fmaxf(x.most, y.most);
    const float mine = exp2_fast(x.most - most), other = exp2_fast(y.most - most);
    x.most = most;
    x.sum = fmaf(other, y.sum, x.sum * mine);
    x.v.x *= mine, x.v.y *= mine, x.v.z *= mine, x.v.w *= mine;
    add_weighted(x.v, other, y.v);
}

/* Parts i and i + step of a unit, as far as there are so many, when they have come. */
template <class T>
static __device__ __forceinline__ row_sums take_two(const decode_pages_args &p,
                                                    const segment_info &g, int32_t unit, int32_t i,
                                                    int32_t step) {
    float *at[2];
    row_sums x[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        x[k] = {NONE, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
        at[k] = i + k * step < g.parts ? unit_at<T>(p, slot_of(p, g, i + k * step), unit) : NULL;
        if (at[k]) x[k] = look(at[k]);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        if (!at[k]) continue;
        while (!has_come(x[k])) x[k] = look(at[k]);
        clear(at[k]);
    }
    join(x[0], x[1]);
    return x[0];
}

/* This block's share of an item that it has a part of. All warps but the copying one. */
template <class T>
static __device__ __forceinline__ void take_share(const decode_pages_args &p,
                                                  const segment_info &g) {
    const int32_t rows = min(T::ROWS, g.q_len * p.group - g.row0), units = rows * (T::D_V / 4);
    const int32_t mine = (g.slot - g.first_slot) / 2; /* which of the parts: see slot_of */
    const int32_t begin = units * mine / g.parts, end = units * (mine + 1) / g.parts;
    const int32_t lanes = g.parts > 16 ? 32 : g.parts > 4 ? 8 : 2; /* of a unit */
    const int32_t thread = threadIdx.x, lane = thread % lanes;

    for (int32_t first = begin; first < end; first += T::CONSUMERS / lanes) {
        const int32_t unit = first + thread / lanes;
        row_sums x = {NONE, 0.0f, make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
        for (int32_t i = lane; unit < end && i < g.parts; i += 2 * lanes)
            join(x, take_two<T>(p, g, unit, i, lanes));
        for (int32_t off = lanes / 2; off > 0; off /= 2) {
            const row_sums y = {__shfl_xor_sync(0xffffffffu, x.most, off),
                                __shfl_xor_sync(0xffffffffu, x.sum, off),
                                make_float4(__shfl_xor_sync(0xffffffffu, x.v.x, off),
                                            __shfl_xor_sync(0xffffffffu, x.v.y, off),
                                            __shfl_xor_sync(0xffffffffu, x.v.z, off),
                                            __shfl_xor_sync(0xffffffffu, x.v.w, off))};
            join(x, y);
        }
        if (lane == 0 && unit < end)
            put_output<T>(p, g, unit * 4 / T::D_V, unit * 4 % T::D_V, x);
    }
}
#endif
