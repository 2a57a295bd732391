/* quant/qkv_ring.cuh - private: norm, RoPE and cast of many tokens' heads through blocks that stay
 * (Hopper). A team has a warp for each chunk of 32 / lanes heads of a token: what belongs to the
 * chunk, its weight, scale and place, is found once and kept for all tokens. One more warp has the
 * copy engine bring tokens' heads, cosines and sines to slots of shared memory, in turn for the
 * teams; asking for a token takes as long as a chunk, and would hold up a team. Heads packed, BF16
 * to E4M3. */
#ifndef FP8_QUANT_QKV_RING_CUH
#define FP8_QUANT_QKV_RING_CUH
#include "quant/produce_ring.cuh"
#include "quant/qkv_device.cuh"

namespace fp8 {

enum {
    QKV_WARPS = 24, /* of a block's teams, at up to 80 registers */
    QKV_TEAMS = 8,  /* at most */
    QKV_SLOTS = 16  /* at most */
};

/* Where things lie in a slot of shared memory, in bytes. */
typedef struct qkv_ring {
    int64_t tokens;
    int lanes, warps, teams, slots;
    int chunks[3]; /* up to the end of each part; a team has `warps` */
    uint32_t at[3], bytes[3]; /* of a token's heads */
    uint32_t table_at, table_bytes, slot_bytes;
} qkv_ring;

/* What is known of norms when the kernel is compiled: none; plain, x * r * w; or any. */
enum { NO_NORM, PLAIN_NORM, ANY_NORM };

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* A token's heads, cosines and sines into a slot. */
template <typename T>
static __device__ __forceinline__ void fill_token(const qkv_args<T> &a, const qkv_ring &r,
                                                  unsigned char *slot, uint64_t *full,
                                                  int64_t token, int32_t position) {
    const int64_t angle = (int64_t)position * (a.rotary / 2);

    barrier_expect(full, r.bytes[0] + r.bytes[1] + r.bytes[2] + 2 * r.table_bytes);
#pragma unroll
    for (int i = 0; i < 3; i++)
        if (r.bytes[i])
            copy_row(slot + r.at[i], a.part[i].x + token * a.part[i].x_token, r.bytes[i], full);
    if (r.table_bytes == 0) return;
    copy_row(slot + r.table_at, a.cos + angle, r.table_bytes, full);
    copy_row(slot + r.table_at + r.table_bytes, a.sin + angle, r.table_bytes, full);
}

/* A lane's share of its warp's chunk: what is the same for every token. */
template <typename T> struct chunk_work {
    piece<T> weight[2];
    float scale;
    uint32_t from;  /* of its head, in a slot */
    uint8_t *codes; /* of its head, of token 0 */
    int64_t step;   /* codes of a token to those of the next */
    bool there, norm, turns;
};

template <typename T>
static __device__ __forceinline__ chunk_work<T> chunk_of(const qkv_args<T> &a, const qkv_ring &r,
                                                         int chunk, int lanes, const unit &u) {
    const int part = (chunk >= r.chunks[0]) + (chunk >= r.chunks[1]);
    const int at = (chunk - (part ? r.chunks[part - 1] : 0)) * (32 / lanes) +
                   (int)threadIdx.x % 32 / lanes;
    const heads_args<T> &p = a.part[part];
    const int head = min(at, p.heads - 1);
    chunk_work<T> c = {};

    c.there = at == head;
    c.norm = p.weight != nullptr;
    c.turns = part < 2 && u.turns;
    c.from = r.at[part] + (uint32_t)(head * a.dim) * (uint32_t)sizeof(T);
    c.codes = p.codes + head * p.codes_head;
    c.step = p.codes_token;
    c.scale = p.scale ? p.scale[head * p.scale_stride] : 1.0f;
    if (!c.norm) return c;
    c.weight[0] = load_piece(p.weight + u.low, 0);
    c.weight[1] = load_piece(p.weight + u.high, 0);
    return c;
}

/* The chunk of one token, from its slot. */
template <int NORM, int LANES, typename T>
static __device__ __forceinline__ void put_chunk(const qkv_args<T> &a, const qkv_ring &r,
                                                 const chunk_work<T> &c, const unit &u,
                                                 const unsigned char *slot, int64_t token) {
    const int lanes = LANES ? LANES : r.lanes;
    const T *from = reinterpret_cast<const T *>(slot + c.from);
    uint8_t *to = c.codes + token * c.step;
    float v[2][PIECE];

    widen_piece(v[0], load_piece(from + u.low, 0));
    widen_piece(v[1], load_piece(from + u.high, 0));
    if (NORM != NO_NORM && c.norm) {
        const float rstd = head_rstd(v, a, lanes);
        float w[PIECE];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            widen_piece(w, c.weight[i]);
            norm_piece<NORM == PLAIN_NORM>(v[i], a, rstd, w);
        }
    }
    if (c.turns) {
        const float *table = reinterpret_cast<const float *>(slot + r.table_at) + u.low;
        float cos[PIECE], sin[PIECE];
        widen_piece(cos, load_piece(table, 0));
        widen_piece(sin, load_piece(table + a.rotary / 2, 0));
#pragma unroll
        for (int k = 0; k < PIECE; k++) rotate(&v[0][k], &v[1][k], cos[k], sin[k]);
    }
    if (!c.there) return;
    store_codes(to + u.low, 1, v[0], c.scale, false);
    store_codes(to + u.high, 1, v[1], c.scale, false);
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* The warp that asks: the block's tokens one after the other, each into the next slot. Positions
 * are read 32 tokens ahead, one a lane. */
template <typename T>
static __device__ __forceinline__ void ask_for_tokens(const qkv_args<T> &a, const qkv_ring &r,
                                                      unsigned char *memory, uint64_t *full,
                                                      uint64_t *empty) {
    const int lane = (int)threadIdx.x % 32;
    const auto position_of = [&](int64_t token) {
        return a.rotary && token < r.tokens ? a.positions[token] : 0;
    };
    int32_t now = 0, next = position_of(blockIdx.x + (int64_t)gridDim.x * lane);
    int64_t token = blockIdx.x;
    uint32_t parity = 1; /* of a slot's last readers: nobody yet */

    for (int i = 0, slot = 0; token < r.tokens; i = (i + 1) % 32, token += gridDim.x) {
        if (i == 0) {
            now = next;
            next = position_of(token + (int64_t)gridDim.x * (32 + lane));
        }
        const int32_t position = __shfl_sync(0xffffffffu, now, i);
        if (lane == 0) {
            barrier_wait(&empty[slot], parity);
            fill_token(a, r, memory + (uint32_t)slot * r.slot_bytes, &full[slot], token, position);
        }
        __syncwarp();
        if (++slot == r.slots) {
            slot = 0;
            parity ^= 1;
        }
    }
}
#endif

/* NORM: of the parts that have a weight. LANES: of a head, 0: r says it. */
template <typename T, int NORM, int LANES>
static __global__ void __launch_bounds__((QKV_WARPS + 1) * 32, 1)
qkv_ring_kernel(const __grid_constant__ qkv_args<T> a, const __grid_constant__ qkv_ring r) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ uint64_t full[QKV_SLOTS], empty[QKV_SLOTS];
    const int warp = (int)threadIdx.x / 32 % r.warps, team = (int)threadIdx.x / 32 / r.warps;
    const int lanes = LANES ? LANES : r.lanes, lane = (int)threadIdx.x % 32;
    const int chunks = r.chunks[2];
    const int64_t step = (int64_t)gridDim.x * r.teams;
    const unit u = unit_of(a, lane % lanes);
    int slot = team;
    uint32_t parity = 0;

    if (threadIdx.x < QKV_SLOTS) {
        barrier_init(&full[threadIdx.x], 1);
        barrier_init(&empty[threadIdx.x], r.warps);
    }
    barrier_init_done();
    __syncthreads();
    let_next_start();
    wait_for_previous();
    if (team == r.teams) {
        ask_for_tokens(a, r, memory, full, empty);
        return;
    }
    chunk_work<T> work = chunk_of(a, r, warp, lanes, u);
    for (int64_t token = blockIdx.x + (int64_t)gridDim.x * team; token < r.tokens; token += step) {
        const unsigned char *from = memory + (uint32_t)slot * r.slot_bytes;

        barrier_wait(&full[slot], parity);
        put_chunk<NORM, LANES>(a, r, work, u, from, token);
        for (int chunk = warp + r.warps; chunk < chunks; chunk += r.warps) {
            work = chunk_of(a, r, chunk, lanes, u);
            put_chunk<NORM, LANES>(a, r, work, u, from, token);
        }
        if (chunks > r.warps) work = chunk_of(a, r, warp, lanes, u);
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty[slot]);
        slot += r.teams;
        if (slot >= r.slots) {
            slot -= r.slots;
            parity ^= 1;
        }
    }
#endif
}

/* slots 0: not for qkv_ring_kernel. */
template <typename T> static qkv_ring ring_for(const qkv_args<T> &a, int64_t tokens, int sms) {
    qkv_ring r = {tokens, 1, 0, 0, 0, {0}, {0}, {0}, 0, 0, 0};
    uint32_t at = 0;
    bool fits = !a.e5m2 && a.dim <= 512;

    while (r.lanes * UNIT < a.dim) r.lanes *= 2;
    for (int i = 0; i < PARTS; i++) {
        const heads_args<T> &p = a.part[i];
        const int at_once = 32 / r.lanes;
        fits = fits && (p.heads == 0 || (p.codes && !p.dense && !p.amax && p.codes_dim == 1 &&
                                         p.x_head == a.dim));
        r.chunks[i] = (i ? r.chunks[i - 1] : 0) + (p.heads + at_once - 1) / at_once;
        r.at[i] = at;
        r.bytes[i] = (uint32_t)(p.heads * a.dim) * (uint32_t)sizeof(T);
        at += r.bytes[i];
    }
    r.table_at = at;
    r.table_bytes = (uint32_t)a.rotary / 2 * 4;
    r.slot_bytes = (at + 2 * r.table_bytes + 127) / 128 * 128;
    if (!fits || r.chunks[2] < 1 || r.lanes * UNIT != a.dim) return r;
    const int rounds = (r.chunks[2] + QKV_WARPS - 1) / QKV_WARPS;
    r.warps = (r.chunks[2] + rounds - 1) / rounds;
    r.teams = QKV_WARPS / r.warps < QKV_TEAMS ? QKV_WARPS / r.warps : QKV_TEAMS;
    if (tokens < (int64_t)sms * r.teams) return r;
    r.slots = (int)(RING_BYTES / r.slot_bytes);
    if (r.slots > QKV_SLOTS) r.slots = QKV_SLOTS;
    if (r.slots < 2 || r.slots < r.teams) r.slots = 0;
    return r;
}

template <typename T>
static fp8_status launch_qkv_ring(fp8_device *d, const qkv_args<T> &a, const qkv_ring &r, int sms,
                                  fp8_launch how) {
    const size_t bytes = (size_t)r.slots * r.slot_bytes;
    const bool norm = a.part[0].weight || a.part[1].weight || a.part[2].weight;
    const bool plain = a.norm == FP8_NORM_RMS && !a.rounded;
    const auto kernel = r.lanes == 8 ? !norm   ? qkv_ring_kernel<T, NO_NORM, 8>
                                       : plain ? qkv_ring_kernel<T, PLAIN_NORM, 8>
                                               : qkv_ring_kernel<T, ANY_NORM, 8>
                        : norm       ? qkv_ring_kernel<T, ANY_NORM, 0>
                                     : qkv_ring_kernel<T, NO_NORM, 0>;
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    st = launch("produce_qkv", kernel, dim3((unsigned)sms),
                dim3((unsigned)(32 * (r.warps * r.teams + 1))), bytes, d, how, a, r);
done:
    return st;
}

} /* namespace fp8 */
#endif
