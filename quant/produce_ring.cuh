/* quant/produce_ring.cuh - private: many rows through few blocks (Hopper). A block stays on its
 * multiprocessor; each of its teams has a row in registers while the copy engine brings the team's
 * next rows to shared memory, so that reading never waits for sums, maxima and divisions.
 *
 *   copy engine   row 0 | row 1 | row 2 | row 3 | ...     into `stages` slots of the team
 *   team                  registers 0, join | store 0 | registers 1, join | store 1 | ...
 *                                           ^ the slot is free: its next row is asked for
 */
#ifndef FP8_QUANT_PRODUCE_RING_CUH
#define FP8_QUANT_PRODUCE_RING_CUH
#include "quant/produce_device.cuh"
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#include "core/sm90.cuh"
#endif

namespace fp8 {

enum {
    RING_TEAMS = 12,     /* at most; barrier 1 + i is team i's */
    RING_STAGES = 4,     /* at most */
    RING_BYTES = 225 << 10 /* of shared memory; the rest of 227 KiB is the block's own */
};

typedef struct ring_tile {
    int64_t rows;
    int n_pieces, team, teams, stages;
    size_t bytes; /* of shared memory */
} ring_tile;

/* A row of n_pieces in teams of `team` threads, whole warps; inputs: rows read for one. stages 0:
 * does not fit, or too few rows for it. */
template <typename T>
static ring_tile ring_of(int64_t rows, int64_t n_pieces, int team, int inputs, int threads,
                         int sms) {
    const int64_t bytes = n_pieces * (int64_t)sizeof(piece<T>) * inputs;
    ring_tile t = {rows, (int)n_pieces, team, 0, 0, 0};

    if (team > threads || RING_BYTES < 2 * bytes) return t;
    t.teams = threads / t.team;
    if (t.teams > RING_TEAMS) t.teams = RING_TEAMS;
    while (t.teams > 1 && RING_BYTES / (t.teams * bytes) < 2) t.teams--;
    if (rows < (int64_t)t.teams * sms) return t;
    t.stages = (int)(RING_BYTES / (t.teams * bytes));
    if (t.stages > RING_STAGES) t.stages = RING_STAGES;
    t.bytes = (size_t)(t.teams * t.stages * bytes);
    return t;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* `bytes` (a multiple of 16) to shared memory; the barrier counts them. */
static __device__ __forceinline__ void copy_row(void *to, const void *from, uint32_t bytes,
                                                uint64_t *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}

/* One team of a block; it joins values over its threads through barrier `id`. */
struct ring_team {
    int id, warps, first_warp;

    /* The largest of the team's values, after every thread came here. */
    __device__ __forceinline__ uint32_t most(uint32_t v, uint32_t *scratch) const {
        const int lane = (int)threadIdx.x % 32;
        v = warp_max(v);
        if (warps == 1) {
            __syncwarp();
            return v;
        }
        if (lane == 0) scratch[threadIdx.x / 32] = v;
        named_sync(id, warps * 32);
        return warp_max(lane < warps ? scratch[first_warp + lane] : 0u);
    }
};
#endif

/* One scale a token. The op has, beside what rows_kernel asks for: INPUTS, rows read for one;
 * input(i, row), where they lie; take(v, mine, slot), the values of a row in shared memory. */
template <typename Op>
static __global__ void __launch_bounds__(Op::RING_THREADS, 1)
token_ring_kernel(const __grid_constant__ Op op,
                  const __grid_constant__ sink_args<typename Op::real> s,
                  const __grid_constant__ ring_tile t) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    typedef typename Op::real T;
    enum { N = Op::PIECES };
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ uint32_t scratch[2][MAX_WARPS]; /* by turns: a team is never two rows ahead */
    __shared__ uint64_t full[RING_TEAMS][RING_STAGES];
    const uint32_t row_bytes = (uint32_t)t.n_pieces * (uint32_t)sizeof(piece<T>);
    const int group = (int)threadIdx.x / t.team, lane = (int)threadIdx.x - group * t.team;
    const int64_t step = (int64_t)gridDim.x * t.teams;
    const ring_team team = {1 + group, t.team / 32, group * (t.team / 32)};
    unsigned char *slots = memory + (uint32_t)(group * t.stages * Op::INPUTS) * row_bytes;
    share mine = {blockIdx.x + (int64_t)gridDim.x * group, lane, t.team, 0, t.n_pieces};
    int slot = 0, turn = 0;
    uint32_t parity = 0;

    if ((int)threadIdx.x < RING_TEAMS * RING_STAGES) barrier_init(&full[0][0] + threadIdx.x, 1);
    barrier_init_done();
    __syncthreads();
    let_next_start();
    wait_for_previous();
    const auto fill = [&](int at, int64_t row) {
        barrier_expect(&full[group][at], row_bytes * Op::INPUTS);
#pragma unroll
        for (int i = 0; i < Op::INPUTS; i++)
            copy_row(slots + (uint32_t)(at * Op::INPUTS + i) * row_bytes, op.input(i, row),
                     row_bytes, &full[group][at]);
    };
    if (lane == 0)
        for (int k = 0; k < t.stages && mine.row + k * step < t.rows; k++)
            fill(k, mine.row + k * step);

    for (; mine.row < t.rows; mine.row += step, turn ^= 1) {
        float v[N][PIECE], scale[N];
        uint32_t most = 0, ignored = 0;

        barrier_wait(&full[group][slot], parity);
        op.take(v, mine, reinterpret_cast<const T *>(slots + (uint32_t)(slot * Op::INPUTS) *
                                                                 row_bytes));
#pragma unroll
        for (int i = 0; i < N; i++) most = max(most, finite_amax<PIECE>(v[i], &ignored));
        most = team.most(most, scratch[turn]); /* after which the slot has been read */
        if (lane == 0 && mine.row + t.stages * step < t.rows)
            fill(slot, mine.row + t.stages * step);
        scale[0] = own_scale(most, s.q_max, lane == 0 ? s.descale + mine.row : nullptr);
#pragma unroll
        for (int i = 1; i < N; i++) scale[i] = scale[0];
        store_pieces<Op::KEEP_NAN_SIGN, Op::MODE>(s, mine, 0, v, scale);
        if (++slot == t.stages) {
            slot = 0;
            parity ^= 1;
        }
    }
#endif
}

/* Raises the kernel's limit of shared memory too. */
template <typename... P, typename... A>
static fp8_status launch_ring(const char *name, void (*kernel)(P...), int sms, const ring_tile &t,
                              fp8_device *d, fp8_launch how, A... args) {
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)t.bytes));
    st = launch(name, kernel, dim3((unsigned)sms), dim3((unsigned)(t.team * t.teams)), t.bytes, d,
                how, args...);
done:
    return st;
}

} /* namespace fp8 */
#endif
