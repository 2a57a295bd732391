/* quant/produce_device.cuh - private: what the row producers share on the device: teams of threads,
 * pieces of eight elements, and the sink that quantizes them. */
#ifndef FP8_QUANT_PRODUCE_DEVICE_CUH
#define FP8_QUANT_PRODUCE_DEVICE_CUH
#include <string.h>

#include <type_traits>

#include "core/launch.cuh"
#include "core/posts.cuh"
#include "quant/cast_device.cuh"
#include "quant/produce_impl.h"
#include "quant/scale_pair.h"

namespace fp8 {

/* A piece is eight elements of a row: 16 bytes of BF16 or F16, 32 of F32, 8 codes. */
enum { PIECE = 8, GROUP_PIECES = FP8_SINK_GROUP_COLS / PIECE, MAX_WARPS = 32 };

template <typename T> static __host__ __device__ constexpr bool is_bf16() {
    return std::is_same<T, __nv_bfloat16>::value;
}

/* Words, not elements: what is loaded under a condition is then not taken apart. */
template <typename T> struct piece {
    enum { VECTORS = PIECE * sizeof(T) / VECTOR_BYTES };
    uint4 part[VECTORS];
};

/* Index `i` counts pieces from p, which is 16-byte aligned. */
template <typename T>
static __device__ __forceinline__ piece<T> load_piece(const T *p, int64_t i) {
    piece<T> out;
#pragma unroll
    for (int k = 0; k < piece<T>::VECTORS; k++)
        out.part[k] = reinterpret_cast<const uint4 *>(p)[i * piece<T>::VECTORS + k];
    return out;
}

template <typename T>
static __device__ __forceinline__ void widen_piece(float v[PIECE], const piece<T> &in) {
    T x[PIECE];
    memcpy(x, &in, sizeof x);
#pragma unroll
    for (int k = 0; k < PIECE; k++) v[k] = to_float(x[k]);
}

/* Two elements a word, an instruction an element. */
static __device__ __forceinline__ void widen_piece(float v[PIECE],
                                                   const piece<__nv_bfloat16> &in) {
    const uint32_t word[PIECE / 2] = {in.part[0].x, in.part[0].y, in.part[0].z, in.part[0].w};
#pragma unroll
    for (int k = 0; k < PIECE / 2; k++) {
        v[2 * k] = __uint_as_float(word[k] << 16);
        v[2 * k + 1] = __uint_as_float(word[k] & 0xffff0000u);
    }
}

template <typename T>
static __device__ __forceinline__ void put_piece(T *p, int64_t i, const piece<T> &in) {
#pragma unroll
    for (int k = 0; k < piece<T>::VECTORS; k++)
        reinterpret_cast<uint4 *>(p)[i * piece<T>::VECTORS + k] = in.part[k];
}

template <typename T>
static __device__ __forceinline__ piece<T> narrow_piece(const float v[PIECE]) {
    piece<T> out;
    T x[PIECE];
    narrow4(x, v);
    narrow4(x + 4, v + 4);
    memcpy(&out, x, sizeof out);
    return out;
}

template <typename T>
static __device__ __forceinline__ void store_piece(T *p, int64_t i, const float v[PIECE]) {
    put_piece(p, i, narrow_piece<T>(v));
}

/* Rounded to T's values; a NaN loses its sign. */
template <typename T> static __device__ __forceinline__ float round_to(float v) { return v; }
template <> __device__ __forceinline__ float round_to<__nv_bfloat16>(float v) {
    return __bfloat162float(__float2bfloat16_rn(v));
}
template <> __device__ __forceinline__ float round_to<__half>(float v) {
    return __half2float(__float2half_rn(v));
}

/* ---- teams ----------------------------------------------------------------------------------- */

/* A team has a row, or a segment of one: 1, 2, 4 ... 32 lanes of a warp, or a block's warps. */
typedef struct row_tile {
    int64_t rows;
    int n_pieces; /* of a row */
    int team, shift, rows_per_block; /* thread t is lane t % 2^shift of team t >> shift */
    int segments, threads;
} row_tile;

/* Where a thread's pieces lie: piece i is number begin + i * team + lane of the row, there when it
 * is below `end`. */
struct share {
    int64_t row;
    int lane, team, begin, end;
    __device__ __forceinline__ int at(int i) const { return begin + i * team + lane; }
    __device__ __forceinline__ bool has(int i) const { return at(i) < end; }
};

/* What the warps of a block tell each other; each field is written once. */
struct team_scratch {
    float first[MAX_WARPS], second[MAX_WARPS];
    uint32_t most[MAX_WARPS];
};

/* join(...) of v over a team, in a fixed order, in every thread. WHOLE: teams are whole warps. */
template <bool WHOLE, typename V, typename F>
static __device__ __forceinline__ V team_join(V v, int team, V *scratch, F join) {
    const int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;

    if (WHOLE) {
#pragma unroll
        for (int off = 16; off > 0; off /= 2) v = join(v, __shfl_xor_sync(0xffffffffu, v, off));
    } else {
        for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
            v = join(v, __shfl_xor_sync(0xffffffffu, v, off));
    }
    if (team <= 32) return v;
    if (lane == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = lane < warps ? scratch[lane] : V(0);
#pragma unroll
    for (int off = 16; off > 0; off /= 2) v = join(v, __shfl_xor_sync(0xffffffffu, v, off));
    return v;
}

template <bool WHOLE>
static __device__ __forceinline__ float team_sum(float v, int team, float *scratch) {
    return team_join<WHOLE>(v, team, scratch, [](float a, float b) { return a + b; });
}

template <bool WHOLE>
static __device__ __forceinline__ uint32_t team_max(uint32_t v, int team, uint32_t *scratch) {
    return team_join<WHOLE>(v, team, scratch, [](uint32_t a, uint32_t b) { return max(a, b); });
}

/* How the warps of a cluster tell each other their maxima: each posts its own to every block. */
struct cluster_posts {
    uint64_t arrived;
    uint32_t most[2 * MAX_WARPS];
};

/* Which cluster of the grid this is, and which of its blocks: no division. */
static __device__ __forceinline__ unsigned cluster_place(int *rank) {
    unsigned cluster = blockIdx.x;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(cluster));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(*rank));
#else
    (void)rank;
#endif
    return cluster;
}

/* The largest of all threads' `most` of the cluster, of which this is block `rank`. */
static __device__ __forceinline__ uint32_t cluster_most(uint32_t most, cluster_posts *p, int rank,
                                                        int blocks) {
    const int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32;

    most = warp_max(most);
    posts_ready();
    if (lane < blocks)
        post(p->most + rank * warps + (int)threadIdx.x / 32, &p->arrived, (unsigned)lane, most);
    posts_wait(&p->arrived);
    most = lane < blocks * warps ? p->most[lane] : 0u;
    if (lane + 32 < blocks * warps) most = max(most, p->most[lane + 32]);
    return warp_max(most);
}

/* ---- amax ------------------------------------------------------------------------------------ */

/* Bits of the largest |v[k]|, or of a NaN where one is: an instruction an element. */
template <int N> static __device__ __forceinline__ uint32_t largest_bits(const float *v) {
#if __CUDA_ARCH__ >= 800
    float top = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(top) : "f"(fabsf(v[k])));
    return __float_as_uint(top);
#else
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < N; k++) most = max(most, magnitude_bits(v[k]));
    return most;
#endif
}

/* Bits of the largest finite |v[k]|; adds the number of others to *others. Only where the largest
 * is not finite are they looked at singly. */
template <int N>
static __device__ __forceinline__ uint32_t finite_amax(const float *v, uint32_t *others) {
    uint32_t most = largest_bits<N>(v);
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

/* What a slot has been seen to hold: bits, which only grow. Asked for beside a row's values, so
 * that nobody waits for it at the end. */
struct amax_seen {
    uint32_t amax, without_first;
};

static __device__ __forceinline__ amax_seen look_at(const fp8_amax_slot *slot) {
    const uint32_t *bits = reinterpret_cast<const uint32_t *>(slot);
    return {__ldcg(bits), __ldcg(bits + 1)};
}

/* Joins a warp's findings with the slot; is_first is the lane's row's. All lanes take part. Most
 * find nothing larger than what was seen, and so need no atomic. */
static __device__ __forceinline__ void join_amax(fp8_amax_slot *slot, amax_seen seen, uint32_t most,
                                                 uint32_t others, bool is_first) {
    const uint32_t all = warp_max(most), later = warp_max(is_first ? 0u : most);
    uint32_t *bits = reinterpret_cast<uint32_t *>(slot);

    if (__any_sync(0xffffffffu, others != 0)) {
        others = warp_sum(others);
        if (threadIdx.x % 32 == 0) atomicAdd(&slot->nonfinite, others);
    }
    if (threadIdx.x % 32 != 0) return;
    if (all > seen.amax) atomicMax(bits, all);
    if (later > seen.without_first) atomicMax(bits + 1, later);
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

/* What a kernel was compiled for: a BF16 sink of one output, E4M3 or values, without amax, or
 * (OBSERVED, what a calibration's forward has) values with amax; and an operation (whose numbers
 * are multiples of NUM_SINK_MODES). Or ANY_MODE, where everything is asked when it runs: the code
 * of what is not asked for took more time than the memory. */
enum {
    ANY_MODE = -1,
    MODE_ONE_SCALE = 0,
    MODE_TOKEN,
    MODE_GROUP,
    MODE_VALUES,
    MODE_OBSERVED,
    NUM_SINK_MODES = 8 /* a power of two: operations are bits above */
};

template <typename T> static bool is_observed(const sink_args<T> &s) {
    return is_bf16<T>() && s.amax && s.dense && !s.codes && !s.e5m2;
}

template <typename T> static int sink_mode(const sink_args<T> &s) {
    if (!is_bf16<T>()) return ANY_MODE;
    if (s.amax || s.e5m2 || !s.codes == !s.dense) return ANY_MODE;
    if (s.dense) return MODE_VALUES;
    return s.scaling == FP8_SINK_TOKEN   ? MODE_TOKEN
           : s.scaling == FP8_SINK_GROUP ? MODE_GROUP
                                         : MODE_ONE_SCALE;
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

/* The scale of codes with this amax; its descale goes to *descale, where that is not NULL. */
static __device__ __forceinline__ float own_scale(uint32_t amax_bits, float q_max,
                                                  float *descale) {
    const float amax = __uint_as_float(amax_bits);
    if (descale) *descale = amax_bits > 0 ? fp8_scale_quotient(amax, q_max) : 1.0f;
    return amax_bits > 0 ? fp8_scale_quotient(q_max, amax) : 1.0f;
}

/* Scale and descale of the groups that a thread's N pieces lie in. The 2 N lanes beside each other
 * are in the same groups: each makes one of the quotients, for division is what takes time here. */
template <int N>
static __device__ __forceinline__ void group_scales(float (&scale)[N], float (&descale)[N],
                                                    const uint32_t (&most)[N], float q_max) {
    if constexpr (N == 1) {
        scale[0] = own_scale(most[0], q_max, &descale[0]);
    } else {
        const int mine = (int)threadIdx.x % (2 * N);
        uint32_t bits = mine & 2 ? most[1] : most[0]; /* no loop: it would become a table */
        float quotient;
        static_assert(N == 2 || N == 4, "pieces at once");
        if (N == 4) {
            const uint32_t later = mine & 2 ? most[N - 1] : most[N - 2];
            bits = mine & 4 ? later : bits;
        }
        quotient = mine % 2 ? fp8_scale_quotient(__uint_as_float(bits), q_max)
                            : fp8_scale_quotient(q_max, __uint_as_float(bits));
        if (bits == 0) quotient = 1.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            scale[i] = __shfl_sync(0xffffffffu, quotient, 2 * i, 2 * N);
            descale[i] = __shfl_sync(0xffffffffu, quotient, 2 * i + 1, 2 * N);
        }
    }
}

/* Amax, scale and descale of the groups of N pieces, `first` and on; the first of a group's lanes
 * stores the descale. */
template <bool WHOLE, int N, typename T>
static __device__ __forceinline__ void scale_groups(const sink_args<T> &s, const share &mine,
                                                    int first, const float (&v)[N][PIECE],
                                                    float (&scale)[N], uint32_t *most,
                                                    uint32_t *others) {
    const int width = WHOLE || mine.team >= GROUP_PIECES ? GROUP_PIECES : mine.team;
    uint32_t group[N];
    float descale[N];

#pragma unroll
    for (int i = 0; i < N; i++) {
        group[i] = finite_amax<PIECE>(v[i], others);
        *most = max(*most, group[i]);
    }
#pragma unroll
    for (int off = GROUP_PIECES / 2; off > 0; off /= 2)
#pragma unroll
        for (int i = 0; i < N; i++)
            if (WHOLE || off < width)
                group[i] = max(group[i], __shfl_xor_sync(0xffffffffu, group[i], off));
    group_scales(scale, descale, group, s.q_max);
    if (mine.lane % width) return;
#pragma unroll
    for (int i = 0; i < N; i++)
        if (mine.has(first + i))
            s.descale[mine.row * s.descale_row +
                      mine.at(first + i) / GROUP_PIECES * s.descale_group] = descale[i];
}

/* Pieces `first` and on as codes, values, or both. */
template <bool KEEP_NAN_SIGN, int MODE, int N, typename T>
static __device__ __forceinline__ void store_pieces(const sink_args<T> &s, const share &mine,
                                                    int first, const float (&v)[N][PIECE],
                                                    const float (&scale)[N]) {
    const bool codes = MODE == ANY_MODE ? s.codes != nullptr : MODE % NUM_SINK_MODES < MODE_VALUES;
    const bool dense = MODE == ANY_MODE ? s.dense != nullptr : !codes;
    const bool e5m2 = MODE == ANY_MODE && s.e5m2;

#pragma unroll
    for (int i = 0; i < N; i++) {
        if (!mine.has(first + i)) continue;
        if (codes) {
            const uint2 word = {encode4<KEEP_NAN_SIGN>(v[i], scale[i], e5m2),
                                encode4<KEEP_NAN_SIGN>(v[i] + 4, scale[i], e5m2)};
            reinterpret_cast<uint2 *>(s.codes + mine.row * s.codes_stride)[mine.at(first + i)] =
                word;
        }
        if (dense) store_piece(s.dense + mine.row * s.dense_stride, mine.at(first + i), v[i]);
    }
}

/* ---- the kernel of rows in pieces ------------------------------------------------------------ */

enum { BATCH = 4 }; /* pieces that a thread asks for at once */

/* The op has: real, its type; MODE; PIECES, of a thread; AT_ONCE, of which values are registers at
 * one time; THREADS and BLOCKS, its bounds; KEEP_NAN_SIGN; held, what a thread keeps
 * of its row; ask(held, mine), from constants alone; load(held, mine, scratch), which reads the row
 * and may write; values<N>(v, held, mine, first): the values of N pieces; forget(held), between two
 * rounds of them. A TOKEN row is one team's; groups never straddle teams. */
template <typename Op>
static __global__ void __launch_bounds__(Op::THREADS, Op::BLOCKS)
rows_kernel(const Op op, const sink_args<typename Op::real> s, const row_tile t) {
    enum { N = Op::PIECES, MODE = Op::MODE, STEP = Op::AT_ONCE };
    const bool known = MODE != ANY_MODE, whole = known;
    const int sink = known ? MODE % NUM_SINK_MODES
                     : s.scaling == FP8_SINK_TOKEN   ? MODE_TOKEN
                     : s.scaling == FP8_SINK_GROUP   ? MODE_GROUP
                                                     : MODE_ONE_SCALE;
    const bool observed = known ? sink == MODE_OBSERVED : s.amax != nullptr;
    __shared__ team_scratch scratch;
    __shared__ cluster_posts posts;
    const int lane = (int)threadIdx.x & ((1 << t.shift) - 1), group = (int)threadIdx.x >> t.shift;
    const bool paired = known && sink == MODE_TOKEN; /* a row's segments are a cluster */
    unsigned block = blockIdx.x;
    int segment = 0;
    if (t.segments > 1 && paired) {
        block = cluster_place(&segment);
    } else if (t.segments > 1) {
        block = blockIdx.x / (unsigned)t.segments;
        segment = (int)(blockIdx.x % (unsigned)t.segments);
    }
    const int64_t row = (int64_t)block * t.rows_per_block + group;
    share mine = {row, lane, t.team, segment * t.team * N, t.n_pieces};
    typename Op::held held;
    uint32_t most = 0, others = 0, of_row = 0;
    float one = 1.0f;
    amax_seen seen = {};
    bool is_first = false;

    if (paired && t.segments > 1)
        posts_open(&posts.arrived, (uint32_t)t.segments * (blockDim.x / 32) * 4);
    op.ask(held, mine);
    let_next_start();
    wait_for_previous();
    if (row >= t.rows) mine.end = 0; /* stays, for the others of its warp and block */
    if (sink == MODE_ONE_SCALE && s.scale) one = *s.scale;
    if (observed) {
        seen = look_at(s.amax);
        is_first = mine.end > 0 && s.first && s.first[row] != 0;
    }
    op.load(held, mine, &scratch);
    if (sink == MODE_TOKEN) {
#pragma unroll
        for (int first = 0; first < N; first += STEP) {
            float v[STEP][PIECE];
            uint32_t ignored = 0;
            op.values(v, held, mine, first);
            most = max(most, finite_amax<STEP * PIECE>(v[0], &ignored));
        }
        if (paired && t.segments > 1) of_row = cluster_most(most, &posts, segment, t.segments);
        else of_row = team_max<whole>(most, t.team, scratch.most);
        one = own_scale(of_row, s.q_max, nullptr);
        most = 0;
        op.forget(held);
    }
#pragma unroll
    for (int first = 0; first < N; first += STEP) {
        float v[STEP][PIECE], scale[STEP];
        op.values(v, held, mine, first);
        if (sink == MODE_GROUP) scale_groups<whole>(s, mine, first, v, scale, &most, &others);
        else if (observed)
            most = max(most, finite_amax<STEP * PIECE>(v[0], &others));
#pragma unroll
        for (int i = 0; i < STEP; i++)
            if (sink != MODE_GROUP) scale[i] = one;
        store_pieces<Op::KEEP_NAN_SIGN, MODE>(s, mine, first, v, scale);
    }
    if (sink == MODE_TOKEN && lane == 0 && mine.end > 0 && segment == 0) /* nobody waits for it */
        own_scale(of_row, s.q_max, s.descale + row);
    if (observed) join_amax(s.amax, seen, most, others, is_first);
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
                                               team_scratch *scratch, F value) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32, team = blockDim.x;
    float scale = s.scale && s.scaling == FP8_SINK_STATIC ? *s.scale : 1.0f;
    uint32_t most = 0, others = 0, ignored = 0;

    if (s.scaling == FP8_SINK_TOKEN) {
        walk_row(cols, [&](int64_t c) {
            const float v = value(c);
            most = max(most, finite_amax<1>(&v, &ignored));
        });
        scale = own_scale(team_max<true>(most, team, scratch->most), s.q_max,
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
    if (s.amax)
        join_amax(s.amax, look_at(s.amax), most, others, s.first && s.first[row] != 0);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

enum { ANY_THREADS = 256 /* of a block that has a row an element at a time */ };

/* A row of n_pieces in `segments` blocks, `pieces` a thread; threads: of a block of small teams.
 * whole: teams are not smaller than a warp. */
static inline row_tile tile_of(int64_t rows, int64_t n_pieces, int pieces, int segments,
                               int threads, bool whole) {
    const int64_t need = (n_pieces + (int64_t)segments * pieces - 1) / ((int64_t)segments * pieces);
    row_tile t = {rows, (int)n_pieces, 1, 0, 1, segments, threads};

    if (need > 32 || segments > 1) {
        t.team = t.threads = (int)(need + 31) / 32 * 32;
        t.shift = 10;
        return t;
    }
    while (t.team < need || (whole && t.team < 32)) {
        t.team *= 2;
        t.shift++;
    }
    t.rows_per_block = threads / t.team;
    return t;
}

template <typename Op>
static fp8_status launch_rows(const char *name, fp8_device *d, fp8_launch how, const Op &op,
                              const sink_args<typename Op::real> &s, const row_tile &t) {
    const int64_t blocks = (t.rows + t.rows_per_block - 1) / t.rows_per_block * t.segments;

    if (blocks > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "%s: %lld rows of %d elements are too many", name,
                        (long long)t.rows, t.n_pieces * PIECE);
    return launch(name, rows_kernel<Op>, dim3((unsigned)blocks), dim3((unsigned)t.threads), 0, d,
                  how, op, s, t);
}

} /* namespace fp8 */
#endif
