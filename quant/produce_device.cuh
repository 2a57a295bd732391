/* quant/produce_device.cuh - private: what the row producers share on the device: teams of threads,
 * pieces of eight elements, and the sink that quantizes them. */
#ifndef FP8_QUANT_PRODUCE_DEVICE_CUH
#define FP8_QUANT_PRODUCE_DEVICE_CUH
#include "core/launch.cuh"
#include "quant/cast_device.cuh"
#include "quant/produce_impl.h"
#include "quant/scale_pair.h"

namespace fp8 {

/* A piece is eight elements of a row: 16 bytes of BF16 or F16, 32 of F32, 8 codes. */
enum { PIECE = 8, GROUP_PIECES = FP8_SINK_GROUP_COLS / PIECE, MAX_WARPS = 32 };

template <typename T> struct piece {
    enum { VECTORS = PIECE * sizeof(T) / VECTOR_BYTES };
    vector16<T> part[VECTORS];
};

/* Index `i` counts pieces from p, which is 16-byte aligned. */
template <typename T>
static __device__ __forceinline__ piece<T> load_piece(const T *p, int64_t i) {
    piece<T> out;
#pragma unroll
    for (int k = 0; k < piece<T>::VECTORS; k++)
        out.part[k] = reinterpret_cast<const vector16<T> *>(p)[i * piece<T>::VECTORS + k];
    return out;
}

template <typename T>
static __device__ __forceinline__ void widen_piece(float v[PIECE], const piece<T> &in) {
    enum { N = vector16<T>::COUNT };
#pragma unroll
    for (int k = 0; k < PIECE; k++) v[k] = to_float(in.part[k / N].at[k % N]);
}

template <typename T>
static __device__ __forceinline__ void store_piece(T *p, int64_t i, const float v[PIECE]) {
    enum { N = vector16<T>::COUNT };
#pragma unroll
    for (int k = 0; k < piece<T>::VECTORS; k++) {
        vector16<T> out;
#pragma unroll
        for (int w = 0; w < N / 4; w++) narrow4(out.at + 4 * w, v + k * N + 4 * w);
        reinterpret_cast<vector16<T> *>(p)[i * piece<T>::VECTORS + k] = out;
    }
}

template <typename T> static __device__ __forceinline__ float round_to(float v) {
    return to_float(from_float<T>(v));
}

/* ---- teams: a power of two of lanes, or a whole block of warps ------------------------------- */

/* Sum over a team, in a fixed order, in every thread. A block-wide team needs MAX_WARPS floats of
 * scratch that no other reduction of the kernel uses. */
static __device__ __forceinline__ float team_sum(float v, int team, float *scratch) {
    for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, off);
    if (team <= 32) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (int warp = 0; warp < team / 32; warp++) v += scratch[warp];
    return v;
}

static __device__ __forceinline__ uint32_t team_max(uint32_t v, int team, float *scratch) {
    for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
        v = max(v, __shfl_xor_sync(0xffffffffu, v, off));
    if (team <= 32) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = __uint_as_float(v);
    __syncthreads();
    for (int warp = 0; warp < team / 32; warp++) v = max(v, __float_as_uint(scratch[warp]));
    return v;
}

/* ---- amax ------------------------------------------------------------------------------------ */

/* Bits of the largest finite |v[k]|; adds the number of others to *others. The maximum that keeps
 * NaN is one instruction an element: only where it is not finite are they looked at singly. */
template <int N>
static __device__ __forceinline__ uint32_t finite_amax(const float *v, uint32_t *others) {
    uint32_t most = 0;
#if __CUDA_ARCH__ >= 800
    float top = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(top) : "f"(fabsf(v[k])));
    most = __float_as_uint(top);
#else
#pragma unroll
    for (int k = 0; k < N; k++) most = max(most, magnitude_bits(v[k]));
#endif
    if (is_finite_bits(most)) return most;
    most = 0;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const uint32_t u = magnitude_bits(v[k]);
        most = max(most, is_finite_bits(u) ? u : 0u);
        *others += !is_finite_bits(u);
    }
    return most;
}

/* Most find nothing larger than what is there: look before the atomic. */
static __device__ __forceinline__ void raise_to(float *slot, uint32_t bits) {
    uint32_t *u = reinterpret_cast<uint32_t *>(slot);
    if (bits > *reinterpret_cast<volatile uint32_t *>(u)) atomicMax(u, bits);
}

/* Joins a warp's findings with the slot; is_first is the lane's row's. All lanes take part. */
static __device__ __forceinline__ void join_amax(fp8_amax_slot *slot, uint32_t most,
                                                 uint32_t others, bool is_first) {
    const uint32_t all = warp_max(most), later = warp_max(is_first ? 0u : most);
    if (__any_sync(0xffffffffu, others != 0)) {
        others = warp_sum(others);
        if (threadIdx.x % 32 == 0) atomicAdd(&slot->nonfinite, others);
    }
    if (threadIdx.x % 32 != 0) return;
    raise_to(&slot->amax, all);
    raise_to(&slot->amax_without_first, later);
}

/* ---- the sink -------------------------------------------------------------------------------- */

template <typename T> struct sink_args {
    uint8_t *codes;
    T *dense;
    const float *scale;
    float *descale;
    fp8_amax_slot *amax;
    const uint8_t *first;
    int64_t codes_stride, dense_stride, descale_row, descale_group;
    float q_max;
    fp8_sink_scaling scaling;
    bool e5m2;
};

template <typename T> static sink_args<T> sink_of(const fp8_sink *s) {
    const fp8_dtype code = s->codes ? s->code : FP8_DTYPE_E4M3;
    return {s->codes,
            static_cast<T *>(s->dense),
            s->scale,
            s->descale,
            s->amax,
            s->first,
            s->codes_stride,
            s->dense_stride,
            s->descale_row_stride,
            s->descale_group_stride,
            fp8_max_of(code),
            s->codes ? s->scaling : FP8_SINK_STATIC,
            code == FP8_DTYPE_E5M2};
}

/* Rows of pieces fit what the sink holds. */
template <typename T> static bool sink_fits(const fp8_sink *s) {
    const bool codes = !s->codes || ((uintptr_t)s->codes % PIECE == 0 &&
                                     s->codes_stride % PIECE == 0);
    const bool dense = !s->dense || (aligned16(s->dense) &&
                                     s->dense_stride * sizeof(T) % VECTOR_BYTES == 0);
    return codes && dense;
}

/* Rows of pieces fit x (NULL: nothing to read). */
template <typename T> static bool rows_fit(const T *x, int64_t stride) {
    return !x || (aligned16(x) && stride * sizeof(T) % VECTOR_BYTES == 0);
}

static __device__ __forceinline__ float own_scale(uint32_t amax_bits, float q_max,
                                                  float *descale) {
    float scale = 1.0f, down = 1.0f;
    if (amax_bits > 0) fp8_scale_pair(q_max, __uint_as_float(amax_bits), &scale, &down);
    if (descale) *descale = down;
    return scale;
}

/* Where a thread's pieces lie: piece i is number begin + i * team + lane of the row, there when it
 * is below `end`. */
struct share {
    int64_t row;
    int lane, team, begin, end;
    __device__ __forceinline__ int at(int i) const { return begin + i * team + lane; }
    __device__ __forceinline__ bool has(int i) const { return at(i) < end; }
};

/* Takes v [N][PIECE] of a thread; pieces it does not have are zero. Every thread of the block comes
 * here. A TOKEN row is one team's; groups never straddle teams. */
template <bool KEEP_NAN_SIGN, int N, typename T>
static __device__ __forceinline__ void put(const sink_args<T> &s, const share &mine,
                                           const float (&v)[N][PIECE], float *scratch) {
    const bool by_group = s.scaling == FP8_SINK_GROUP, by_token = s.scaling == FP8_SINK_TOKEN;
    const int width = mine.team < GROUP_PIECES ? mine.team : GROUP_PIECES;
    float scale = s.scale && !by_group && !by_token ? *s.scale : 1.0f;
    uint32_t most = 0, others = 0;

    if (by_token) {
#pragma unroll
        for (int i = 0; i < N; i++) most = max(most, finite_amax<PIECE>(v[i], &others));
        scale = own_scale(team_max(most, mine.team, scratch), s.q_max,
                          mine.lane == 0 && mine.begin < mine.end ? s.descale + mine.row
                                                                  : nullptr);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (by_group || (s.amax && !by_token)) {
            uint32_t group = finite_amax<PIECE>(v[i], &others);
            most = max(most, group);
            if (by_group) {
                for (int off = width / 2; off > 0; off /= 2)
                    group = max(group, __shfl_xor_sync(0xffffffffu, group, off));
                scale = own_scale(group, s.q_max,
                                  mine.lane % width == 0 && mine.has(i)
                                      ? s.descale + mine.row * s.descale_row +
                                            mine.at(i) / GROUP_PIECES * s.descale_group
                                      : nullptr);
            }
        }
        if (!mine.has(i)) continue;
        if (s.codes) {
            const uint2 codes = {encode4<KEEP_NAN_SIGN>(v[i], scale, s.e5m2),
                                 encode4<KEEP_NAN_SIGN>(v[i] + 4, scale, s.e5m2)};
            reinterpret_cast<uint2 *>(s.codes + mine.row * s.codes_stride)[mine.at(i)] = codes;
        }
        if (s.dense) store_piece(s.dense + mine.row * s.dense_stride, mine.at(i), v[i]);
    }
    if (s.amax)
        join_amax(s.amax, most, others,
                  mine.begin < mine.end && s.first && s.first[mine.row] != 0);
}

/* ---- any row: a block each, an element at a time --------------------------------------------- */

/* Thread t of warp w has elements lane, lane + 32, ... of groups w, w + warps, ...: the same in
 * every walk over the row, so that what it wrote it may read again. visit(column). */
template <typename F>
static __device__ __forceinline__ void walk_row(int64_t cols, F visit) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int64_t g = threadIdx.x / 32; g * FP8_SINK_GROUP_COLS < cols; g += warps)
        for (int k = lane; k < FP8_SINK_GROUP_COLS; k += 32)
            if (g * FP8_SINK_GROUP_COLS + k < cols) visit(g * FP8_SINK_GROUP_COLS + k);
}

/* The sink for a row whose values value(column) makes; it may be asked twice. */
template <bool KEEP_NAN_SIGN, typename T, typename F>
static __device__ __forceinline__ void put_any(const sink_args<T> &s, int64_t row, int64_t cols,
                                               float *scratch, F value) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32, team = blockDim.x;
    float scale = s.scale && s.scaling == FP8_SINK_STATIC ? *s.scale : 1.0f;
    uint32_t most = 0, others = 0, ignored = 0;

    if (s.scaling == FP8_SINK_TOKEN) {
        walk_row(cols, [&](int64_t c) {
            const float v = value(c);
            most = max(most, finite_amax<1>(&v, &ignored));
        });
        scale = own_scale(team_max(most, team, scratch), s.q_max,
                          threadIdx.x == 0 ? s.descale + row : nullptr);
    }
    for (int64_t g = threadIdx.x / 32; g * FP8_SINK_GROUP_COLS < cols; g += warps) {
        const int64_t begin = g * FP8_SINK_GROUP_COLS + lane;
        float v[4] = {0};
        uint32_t group;
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (begin + 32 * k < cols) v[k] = value(begin + 32 * k);
        group = finite_amax<4>(v, &others);
        most = max(most, group);
        if (s.scaling == FP8_SINK_GROUP)
            scale = own_scale(warp_max(group), s.q_max,
                              lane == 0 ? s.descale + row * s.descale_row + g * s.descale_group
                                        : nullptr);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int64_t c = begin + 32 * k;
            if (c >= cols) continue;
            uint8_t code = encode(v[k], scale, s.e5m2);
            if (!KEEP_NAN_SIGN && (code & 0x7fu) == (s.e5m2 ? 0x7eu : 0x7fu)) code &= 0x7fu;
            if (s.codes) s.codes[row * s.codes_stride + c] = code;
            if (s.dense) s.dense[row * s.dense_stride + c] = from_float<T>(v[k]);
        }
    }
    if (s.amax) join_amax(s.amax, most, others, s.first && s.first[row] != 0);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* How rows are dealt out. pieces a thread: 1, 2 or 4; 0: a block a row, an element at a time. */
typedef struct row_tile {
    int pieces, team, threads, segments; /* segments: blocks that share a row */
} row_tile;

static inline int64_t tile_rows(const row_tile &t) {
    return t.threads / (t.team < t.threads ? t.team : t.threads);
}

/* Blocks for all rows. */
static inline int64_t tile_blocks(const row_tile &t, int64_t rows) {
    return (rows + tile_rows(t) - 1) / tile_rows(t) * t.segments;
}

} /* namespace fp8 */
#endif
