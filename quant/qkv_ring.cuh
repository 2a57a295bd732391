/* quant/qkv_ring.cuh - private: norm, RoPE and cast of many tokens' heads through blocks that stay
 * (Hopper). Four warps have a token; the copy engine brings its heads, cosines and sines and those
 * of the team's next tokens to shared memory. A slot is asked for again one token after its last
 * reader, so that nobody waits for that. Heads packed, BF16 to E4M3. */
#ifndef FP8_QUANT_QKV_RING_CUH
#define FP8_QUANT_QKV_RING_CUH
#include "quant/produce_ring.cuh"
#include "quant/qkv_device.cuh"

namespace fp8 {

enum {
    QKV_TEAM = 128,
    QKV_TEAMS = 4, /* of a block, at up to 128 registers */
    QKV_STAGES = 4, /* at most */
    QKV_NORM_BYTES = 2 << 10 /* less than RING_BYTES where the norms' weights lie beside the ring */
};

static_assert(RING_BYTES - QKV_NORM_BYTES + 3 * 512 * 2 + 2 * QKV_TEAMS * QKV_STAGES * 8 <=
              227 << 10, "the ring, three weights of 512 values, barriers");

/* Where things lie in a slot of shared memory, in bytes. */
typedef struct qkv_ring {
    int64_t tokens;
    int lanes, teams, stages;
    int chunks[3];   /* warps' worth of heads up to the end of each part */
    uint32_t at[3], bytes[3]; /* of a token's heads */
    uint32_t table_at, table_bytes, slot_bytes;
} qkv_ring;

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
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/* A warp's heads of one part of a token: `chunk` and every fourth after it; a chunk is 32 / lanes
 * heads. x: the part's heads in shared memory; sub: the lane's head of a chunk. */
template <typename T, bool NORM>
static __device__ __forceinline__ void
put_heads(const qkv_args<T> &a, int part, const T *x, const T *weights, const float (&cos)[PIECE],
          const float (&sin)[PIECE], const unit &u, int64_t token, int chunk, int count, int sub,
          int lanes) {
    const heads_args<T> &p = a.part[part];
    const bool norm = NORM && p.weight;
    uint8_t *codes = p.codes + token * p.codes_token;
    float w[2][PIECE];

    if (norm) {
        widen_piece(w[0], load_piece(weights + u.low, 0));
        widen_piece(w[1], load_piece(weights + u.high, 0));
    }
    for (; chunk < count; chunk += QKV_TEAM / 32) {
        const int at = chunk * (32 / lanes) + sub, head = min(at, p.heads - 1);
        const T *from = x + head * (lanes * UNIT);
        const float scale = p.scale ? p.scale[head * p.scale_stride] : 1.0f;
        uint8_t *to = codes + head * p.codes_head;
        float v[2][PIECE];

        widen_piece(v[0], load_piece(from + u.low, 0));
        widen_piece(v[1], load_piece(from + u.high, 0));
        if (norm) {
            const float rstd = head_rstd(v, a, lanes);
            norm_piece(v[0], a, rstd, w[0]);
            norm_piece(v[1], a, rstd, w[1]);
        }
        if (part < 2 && u.turns) {
#pragma unroll
            for (int k = 0; k < PIECE; k++) rotate(&v[0][k], &v[1][k], cos[k], sin[k]);
        }
        if (at != head) continue;
        store_codes(to + u.low, 1, v[0], scale, false);
        store_codes(to + u.high, 1, v[1], scale, false);
    }
}
#endif

/* NORM: at least one part has a weight. LANES: of a head, 0: r says it. */
template <typename T, bool NORM, int LANES>
static __global__ void __launch_bounds__(QKV_TEAM *QKV_TEAMS, 1)
qkv_ring_kernel(const __grid_constant__ qkv_args<T> a, const __grid_constant__ qkv_ring r) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ uint64_t full[QKV_TEAMS][QKV_STAGES], empty[QKV_TEAMS][QKV_STAGES];
    __shared__ __align__(16) T weights[PARTS][NORM ? 512 : 8];
    const int team = (int)threadIdx.x / QKV_TEAM, warp = (int)threadIdx.x % QKV_TEAM / 32;
    const int lane = (int)threadIdx.x % 32, lanes = LANES ? LANES : r.lanes;
    const int sub = lane / lanes;
    const bool lead = threadIdx.x % QKV_TEAM == 0;
    const int64_t step = (int64_t)gridDim.x * r.teams;
    const unit u = unit_of(a, lane % lanes);
    unsigned char *slots = memory + (uint32_t)(team * r.stages) * r.slot_bytes;
    int64_t token = blockIdx.x + (int64_t)gridDim.x * team, later;
    int slot = 0, last = 0;
    uint32_t parity = 0, last_parity = 0;
    int32_t position = 0;

    if (threadIdx.x < QKV_TEAMS * QKV_STAGES) {
        barrier_init(&full[0][0] + threadIdx.x, 1);
        barrier_init(&empty[0][0] + threadIdx.x, QKV_TEAM / 32);
    }
    barrier_init_done();
    if (NORM)
        for (int i = 0; i < PARTS; i++)
            for (int k = (int)threadIdx.x; a.part[i].weight && k < a.dim; k += (int)blockDim.x)
                weights[i][k] = a.part[i].weight[k];
    __syncthreads();
    wait_for_previous();
    let_next_start();
    if (lead) {
        for (int k = 0; k < r.stages && token + k * step < r.tokens; k++)
            fill_token(a, r, slots + (uint32_t)k * r.slot_bytes, &full[team][k], token + k * step,
                       a.rotary ? a.positions[token + k * step] : 0);
        later = token + r.stages * step;
        if (later < r.tokens && a.rotary) position = a.positions[later];
    }
    for (bool first = true; token < r.tokens; token += step, first = false) {
        const unsigned char *from = slots + (uint32_t)slot * r.slot_bytes;
        float cos[PIECE] = {}, sin[PIECE] = {};

        if (lead && !first) {
            later = token + (r.stages - 1) * step;
            if (later < r.tokens) {
                barrier_wait(&empty[team][last], last_parity);
                fill_token(a, r, slots + (uint32_t)last * r.slot_bytes, &full[team][last], later,
                           position);
                if (later + step < r.tokens && a.rotary) position = a.positions[later + step];
            }
        }
        __syncwarp();
        barrier_wait(&full[team][slot], parity);
        if (u.turns) {
            const float *table = reinterpret_cast<const float *>(from + r.table_at);
            widen_piece(cos, load_piece(table + u.low, 0));
            widen_piece(sin, load_piece(table + a.rotary / 2 + u.low, 0));
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const int begin = part ? r.chunks[part - 1] : 0, count = r.chunks[part] - begin;
            const T *x = reinterpret_cast<const T *>(from + r.at[part]);
            int chunk = (warp - begin) & (QKV_TEAM / 32 - 1);
            if (chunk >= count) continue;
            put_heads<T, NORM>(a, part, x, weights[part], cos, sin, u, token, chunk, count, sub,
                               lanes);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty[team][slot]);
        last = slot;
        last_parity = parity;
        if (++slot == r.stages) {
            slot = 0;
            parity ^= 1;
        }
    }
#endif
}

/* stages 0: not for qkv_ring_kernel. */
template <typename T> static qkv_ring ring_for(const qkv_args<T> &a, int64_t tokens, int sms) {
    qkv_ring r = {tokens, 1, QKV_TEAMS, 0, {0}, {0}, {0}, 0, 0, 0};
    const bool norm = a.part[0].weight || a.part[1].weight || a.part[2].weight;
    uint32_t at = 0;
    bool fits = tokens >= (int64_t)sms * r.teams && !a.e5m2 && a.dim <= 512;

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
    r.stages = (int)((RING_BYTES - (norm ? QKV_NORM_BYTES : 0)) / r.teams / r.slot_bytes);
    if (r.stages > QKV_STAGES) r.stages = QKV_STAGES;
    if (!fits || r.stages < 2 || r.lanes * UNIT != a.dim) r.stages = 0;
    return r;
}

template <typename T>
static fp8_status launch_qkv_ring(fp8_device *d, const qkv_args<T> &a, const qkv_ring &r, int sms,
                                  fp8_launch how) {
    const size_t bytes = (size_t)r.teams * (size_t)r.stages * r.slot_bytes;
    const bool norm = a.part[0].weight || a.part[1].weight || a.part[2].weight;
    const auto kernel = r.lanes == 8 ? norm ? qkv_ring_kernel<T, true, 8>
                                            : qkv_ring_kernel<T, false, 8>
                        : norm       ? qkv_ring_kernel<T, true, 0>
                                     : qkv_ring_kernel<T, false, 0>;
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    st = launch("produce_qkv", kernel, dim3((unsigned)sms), dim3((unsigned)(QKV_TEAM * r.teams)),
                bytes, d, how, a, r);
done:
    return st;
}

} /* namespace fp8 */
#endif
