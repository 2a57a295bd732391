/* quant/rings_device.cuh - private: rows in blocks that stay on their multiprocessor and go from
 * row to row, the pieces of the next ones on their way to shared memory, and rows over clusters of
 * blocks. Chosen by FP8_PRODUCER_RINGS=1. */
#ifndef FP8_QUANT_RINGS_DEVICE_CUH
#define FP8_QUANT_RINGS_DEVICE_CUH
#include "quant/produce_ops.cuh"

namespace fp8 {
namespace rings {

/* ---- clusters -------------------------------------------------------------------------------- */

/* All blocks of the cluster come here, and see what they wrote to shared memory before. */
static __device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* What block `rank` of the cluster has in shared memory where this one has *mine. */
static __device__ __forceinline__ uint32_t cluster_read(const uint32_t *mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
    uint32_t at, value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(at)
                 : "r"((uint32_t)__cvta_generic_to_shared(mine)), "r"(rank));
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
    return value;
#else
    (void)rank;
    return *mine;
#endif
}

/* ---- teams ----------------------------------------------------------------------------------- */

/* A team has a row, or a segment of one: 1, 2, 4 ... 32 lanes of a warp, or all warps of a block.
 * Where a row's segments belong together, their blocks make a cluster. */
typedef struct row_tile {
    int64_t rows;
    int n_pieces; /* of a row */
    int pieces;   /* of a thread: 1 or 2; 0: such rows are not served here */
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

/* A block's sums. Two of them, used by turns: a reduction then needs one barrier, for when a warp
 * writes again, all have passed the barrier of the other. */
struct alignas(16) team_scratch {
    float first[MAX_WARPS], second[MAX_WARPS];
    uint32_t most[MAX_WARPS];
    uint32_t block_most; /* read by the other blocks of a cluster */
};

/* Sum over a team, in a fixed order, in every thread. */
static __device__ __forceinline__ float team_sum(float v, int team, float *scratch) {
    const int warps = team / 32;
    int w = 0;

    for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, off);
    if (team <= 32) return v;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (; w + 4 <= warps; w += 4) {
        const float4 q = *reinterpret_cast<const float4 *>(scratch + w);
        v += (q.x + q.y) + (q.z + q.w);
    }
    for (; w < warps; w++) v += scratch[w];
    return v;
}

/* Over a team, and over `cluster` blocks. */
static __device__ __forceinline__ uint32_t team_max(uint32_t v, int team, int cluster,
                                                    team_scratch *scratch) {
    for (int off = (team < 32 ? team : 32) / 2; off > 0; off /= 2)
        v = max(v, __shfl_xor_sync(0xffffffffu, v, off));
    if (team <= 32) return v;
    if (threadIdx.x % 32 == 0) scratch->most[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 0; w < team / 32; w++) v = max(v, scratch->most[w]);
    if (cluster == 1) return v;
    if (threadIdx.x == 0) scratch->block_most = v;
    cluster_sync();
    for (int r = 0; r < cluster; r++)
        v = max(v, cluster_read(&scratch->block_most, (unsigned)r));
    return v;
}

/* ---- the sink -------------------------------------------------------------------------------- */

/* Takes v [N][PIECE] of a thread; pieces it does not have are zero. Every thread of the block comes
 * here. A TOKEN row is one team's, or a cluster's; groups never straddle teams. */
template <bool KEEP_NAN_SIGN, int N, typename T>
static __device__ __forceinline__ void put(const sink_args<T> &s, const share &mine,
                                           const float (&v)[N][PIECE], int segments,
                                           team_scratch *scratch) {
    const bool by_group = s.scaling == FP8_SINK_GROUP, by_token = s.scaling == FP8_SINK_TOKEN;
    const int width = mine.team < GROUP_PIECES ? mine.team : GROUP_PIECES;
    float scale = s.scale && !by_group && !by_token ? *s.scale : 1.0f;
    uint32_t most = 0, others = 0;

    if (by_token) {
        most = finite_amax<N * PIECE>(v[0], &others);
        scale = own_scale(team_max(most, mine.team, segments, scratch), s.q_max,
                          mine.begin + mine.lane == 0 && mine.end > 0 ? s.descale + mine.row
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
        join_amax(s.amax, most, others, mine.end > 0 && s.first && s.first[mine.row] != 0);
}

/* ---- the kernel of rows in pieces ------------------------------------------------------------ */

/* 16 bytes into shared memory, in the background; wait_for_copies<K>() waits for all but the
 * newest K groups of this thread. */
static __device__ __forceinline__ void copy_async(void *to, const void *from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
#else
    *static_cast<uint4 *>(to) = *static_cast<const uint4 *>(from);
#endif
}
static __device__ __forceinline__ void end_of_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> static __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

/* A thread's pieces of the rows to come, in shared memory. It reads only what it asked for itself,
 * so nothing is synchronised. Memory: STAGES x N x INPUTS pieces a thread. */
template <typename Op, int N, int STAGES> struct row_ring {
    typedef typename Op::real T;
    enum { INPUTS = Op::INPUTS, VECTORS = piece<T>::VECTORS };
    uint4 *memory;

    __device__ __forceinline__ uint4 *slot(int stage, int i, int input, int k) const {
        const int at = ((stage * N + i) * INPUTS + input) * VECTORS + k;
        return memory + at * blockDim.x + threadIdx.x;
    }
    __device__ __forceinline__ void ask(const Op &op, const share &mine, int stage) const {
#pragma unroll
        for (int input = 0; input < INPUTS; input++) {
            const T *row = op.input(input, mine.row);
#pragma unroll
            for (int i = 0; i < N; i++)
                if (row && mine.has(i))
#pragma unroll
                    for (int k = 0; k < VECTORS; k++)
                        copy_async(slot(stage, i, input, k),
                                   reinterpret_cast<const uint4 *>(row) + mine.at(i) * VECTORS + k);
        }
        end_of_copies();
    }
    __device__ __forceinline__ piece<T> take(int stage, int i, int input) const {
        piece<T> out;
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            *reinterpret_cast<uint4 *>(&out.part[k]) = *slot(stage, i, input, k);
        return out;
    }
};

/* Blocks stay and go from row to row. STAGES > 0: with the pieces of as many rows less one under
 * way; 0: read when they are needed. Op has: real, its type; INPUTS, at most two; KEEP_NAN_SIGN;
 * input(n, row), the row of the n-th (NULL: there is none); values(v, from, mine, scratch), which
 * makes the values of pieces from[i][n] and may write. */
template <typename Op, int N, int STAGES>
static __global__ void __launch_bounds__(1024, 1) /* 1: else ptxas is content with 32 registers */
rows_kernel(const Op op, const sink_args<typename Op::real> s, const row_tile t) {
    extern __shared__ uint4 ring_memory[];
    __shared__ team_scratch scratch[2];
    typedef typename Op::real T;
    const int lane = (int)threadIdx.x & ((1 << t.shift) - 1), group = (int)threadIdx.x >> t.shift;
    const int64_t step = (int64_t)(gridDim.x / t.segments) * t.rows_per_block;
    const row_ring<Op, N, STAGES> ring = {ring_memory};
    int64_t first = (int64_t)(blockIdx.x / t.segments) * t.rows_per_block;
    share mine = {first + group, lane, t.team, (int)(blockIdx.x % t.segments) * t.team * N, 0};
    int stage = 0, turn = 0;

    wait_for_previous();
    let_next_start();
#pragma unroll
    for (int ahead = 0; ahead + 1 < STAGES; ahead++) {
        share then = mine;
        then.row += ahead * step;
        then.end = then.row < t.rows ? t.n_pieces : 0;
        ring.ask(op, then, ahead);
    }
    for (; first < t.rows; first += step, mine.row += step, turn ^= 1) {
        piece<T> from[N][Op::INPUTS] = {};
        float v[N][PIECE];

        mine.end = mine.row < t.rows ? t.n_pieces : 0;
        if (STAGES > 0) {
            share then = mine;
            then.row += (STAGES - 1) * step;
            then.end = then.row < t.rows ? t.n_pieces : 0;
            wait_for_copies<(STAGES > 2 ? STAGES - 2 : 0)>();
            ring.ask(op, then, stage == 0 ? STAGES - 1 : stage - 1);
        }
#pragma unroll
        for (int input = 0; input < Op::INPUTS; input++) {
            const T *row = op.input(input, mine.row);
#pragma unroll
            for (int i = 0; i < N; i++)
                if (row && mine.has(i))
                    from[i][input] = STAGES > 0 ? ring.take(stage, i, input)
                                                : load_piece(row, mine.at(i));
        }
        op.values(v, from, mine, &scratch[turn]);
        put<Op::KEEP_NAN_SIGN>(s, mine, v, s.scaling == FP8_SINK_TOKEN ? t.segments : 1,
                               &scratch[turn]);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    if (s.scaling == FP8_SINK_TOKEN && t.segments > 1) cluster_sync(); /* none ends being read */
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* A row of n_pieces in `segments` blocks, `pieces` a thread; threads: of a block of small teams. */
static inline row_tile tile_of(int64_t rows, int64_t n_pieces, int pieces, int segments,
                               int threads) {
    const int64_t need = (n_pieces + (int64_t)segments * pieces - 1) / ((int64_t)segments * pieces);
    row_tile t = {rows, (int)n_pieces, pieces, 1, 0, 1, segments, threads};

    if (need > 32 || segments > 1) {
        t.team = t.threads = (int)(need + 31) / 32 * 32;
        t.shift = 10;
        return t;
    }
    while (t.team < need) {
        t.team *= 2;
        t.shift++;
    }
    t.rows_per_block = threads / t.team;
    return t;
}

/* Blocks for all rows, at most as many as the GPU holds with `resident` threads a multiprocessor,
 * and as many for each segment. */
static inline fp8_status tile_grid(const fp8_device *d, const row_tile &t, int resident,
                                   unsigned *blocks) {
    const int64_t rows = (t.rows + t.rows_per_block - 1) / t.rows_per_block;
    fp8_status st = FP8_OK;
    int64_t most;
    int sms = 0;

    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    most = (int64_t)sms * (resident / t.threads) / t.segments;
    if (most < 1) most = 1;
    *blocks = (unsigned)((rows < most ? rows : most) * t.segments);
done:
    return st;
}

/* Launches rows_kernel: with one piece a thread for a short way, with two for bytes. */
template <typename Op, typename T>
static fp8_status launch_rows(const char *name, fp8_device *d, fp8_launch how, const Op &op,
                              const sink_args<T> &s, const row_tile &t, int resident,
                              int cluster) {
    enum { STAGES = 3 };
    const size_t bytes =
        t.pieces == 1 ? 0
                      : (size_t)t.threads * STAGES * 2 * Op::INPUTS * sizeof(piece<T>);
    const auto kernel = t.pieces == 1 ? rows_kernel<Op, 1, 0> : rows_kernel<Op, 2, STAGES>;
    unsigned blocks = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(tile_grid(d, t, resident, &blocks));
    if (bytes > 48 * 1024) /* what a block gets without asking */
        FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)bytes));
    st = launch_clusters(name, kernel, (unsigned)cluster, dim3(blocks), dim3((unsigned)t.threads),
                         bytes, d, how, op, s, t);
done:
    return st;
}

} /* namespace rings */
} /* namespace fp8 */
#endif
