/* quant/produce_qkv.cu - norm, RoPE and cast of the heads of Q, K and V, one launch for all.
 *
 * Computes   per head: h * r * w (or (1 + w)); (a, b) -> (a cos - b sin, b cos + a sin); codes,
 *            values, amax
 * Shapes     x [tokens, heads, dim] of each part, strides any; cos, sin [positions, rotary / 2]
 * Bound      memory: BF16 to codes 3 bytes an element, 4 with codes of Q alone kept as values too;
 *            16384 tokens of 32 + 8 + 8 heads of 128: 302 MB, at the H200's copy rate of 4.27 TB/s
 *            71 us. The tables are read once a token
 * Tiling     a thread has 16 elements of a head: eight and the eight half a rotation later, or 16
 *            that do not turn; `lanes` threads, a power of two, make a head, a warp 32 / lanes
 *            heads of one part. It goes through a token's heads (with few tokens: some of them)
 *            with its cos and sin in registers, the next head asked for beside each. Many tokens
 *            to codes alone: blocks that stay (quant/qkv_ring.cuh). Heads that are not multiples of
 *            16 or not aligned: a warp a head, an element at a time
 * Numerics   F32; the rotation is not contracted, as on the CPU; sums in a fixed order
 */
#include "quant/qkv_ring.cuh"

using namespace fp8;

/* ---- constants ------------------------------------------------------------------------------ */

enum {
    THREADS = 256,
    FEW_THREADS = 128, /* of a block whose warps have one chunk each */
    BLOCKS_PER_SM = 3  /* at up to 80 registers */
};

/* Blocks an SM: as many as their registers allow without spilling. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define QKV_BLOCKS 2
#else
#define QKV_BLOCKS (is_bf16<T>() ? BLOCKS_PER_SM : 2)
#endif

/* ---- device helpers ------------------------------------------------------------------------- */

/* Where a warp's heads begin: 32 / lanes of one part. */
struct place {
    int part, head;
};

template <typename T>
static __device__ __forceinline__ place place_of(const qkv_args<T> &a, int chunk, int lanes) {
    place w = {0, chunk * (32 / lanes)};
    while (w.head >= a.part[w.part].padded) w.head -= a.part[w.part++].padded;
    w.head += (int)threadIdx.x % 32 / lanes;
    return w;
}

/* A lane's 16 elements of its head as they were read. */
template <typename T> struct unit_held {
    piece<T> x[2];
    float scale;
};

template <typename T>
static __device__ __forceinline__ unit_held<T> load_unit(const qkv_args<T> &a, int64_t token,
                                                         place w, const unit &u) {
    const heads_args<T> &p = a.part[w.part];
    const T *x = p.x + token * p.x_token + w.head * p.x_head;
    unit_held<T> held = {};

    held.scale = 1.0f;
    if (!u.there || w.head >= p.heads) return held;
    held.x[0] = load_piece(x + u.low, 0);
    held.x[1] = load_piece(x + u.high, 0);
    if (p.codes && p.scale) held.scale = p.scale[w.head * p.scale_stride];
    return held;
}

/* A lane's part of the weight of its head's norm, where it has one. */
template <typename T> struct unit_weight {
    piece<T> at[2];
};

template <typename T>
static __device__ __forceinline__ unit_weight<T> load_weight(const qkv_args<T> &a, place w,
                                                             const unit &u) {
    const heads_args<T> &p = a.part[w.part];
    unit_weight<T> weight = {};

    if (!p.weight || !u.there || w.head >= p.heads) return weight;
    weight.at[0] = load_piece(p.weight + u.low, 0);
    weight.at[1] = load_piece(p.weight + u.high, 0);
    return weight;
}

/* Figures of what a warp made of one part of a token. */
struct found {
    uint32_t most, others;
};

/* All lanes of the warp come here. ASKED: the weight is there, else it is read now. */
template <bool ASKED, typename T>
static __device__ __forceinline__ void
produce_unit(const qkv_args<T> &a, const unit_held<T> &held, const unit_weight<T> &asked,
             int64_t token, place w, unit u, const float cos[PIECE], const float sin[PIECE],
             int lanes, found *f) {
    const heads_args<T> &p = a.part[w.part];
    float v[2][PIECE];

    u.there = u.there && w.head < p.heads;
    widen_piece(v[0], held.x[0]);
    widen_piece(v[1], held.x[1]);
    if (p.weight) {
        unit_weight<T> weight = asked;
        if (!ASKED && u.there) {
            weight.at[0] = load_piece(p.weight + u.low, 0);
            weight.at[1] = load_piece(p.weight + u.high, 0);
        }
        const float rstd = head_rstd(v, a, lanes);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float w[PIECE];
            widen_piece(w, weight.at[i]);
            norm_piece<false>(v[i], a, rstd, w);
        }
    }
    if (w.part < 2 && u.turns) {
#pragma unroll
        for (int k = 0; k < PIECE; k++) rotate(&v[0][k], &v[1][k], cos[k], sin[k]);
    }
    if (p.amax) f->most = max(f->most, finite_amax<2 * PIECE>(v[0], &f->others));
    if (!u.there) return;
    if (p.codes) {
        uint8_t *to = p.codes + token * p.codes_token + w.head * p.codes_head;
        store_codes(to + u.low * p.codes_dim, p.codes_dim, v[0], held.scale, a.e5m2);
        store_codes(to + u.high * p.codes_dim, p.codes_dim, v[1], held.scale, a.e5m2);
    }
    if (p.dense) {
        T *to = p.dense + token * p.dense_token + w.head * p.dense_head;
        store_piece(to + u.low, 0, v[0]);
        store_piece(to + u.high, 0, v[1]);
    }
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* A warp takes a token, or one of `spans` parts of it: `chunks` warps' worth of heads, those of q
 * first. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, QKV_BLOCKS)
qkv_kernel(const __grid_constant__ qkv_args<T> a, int64_t tokens, int lanes, int chunks,
           int spans) {
    const int64_t warps = (int64_t)gridDim.x * (THREADS / 32), items = tokens * spans;
    const int each = (chunks + spans - 1) / spans;
    const unit u = unit_of(a, (int)threadIdx.x % 32 % lanes);

    let_next_start();
    wait_for_previous();
    for (int64_t item = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; item < items;
         item += warps) {
        const int64_t token = spans == 1 ? item : item / spans;
        const int begin = (int)(item - token * spans) * each, end = min(begin + each, chunks);
        float cos[PIECE] = {}, sin[PIECE] = {};
        place at = place_of(a, begin < end ? begin : 0, lanes);
        unit_held<T> held = load_unit(a, token, at, u); /* beside the walk to the tables */
        const bool is_first = a.first && a.first[token] != 0;
        found f = {};

        if (begin < end && u.turns && u.there) {
            const int64_t angle = (int64_t)a.positions[token] * (a.rotary / 2) + u.low;
            widen_piece(cos, load_piece(a.cos + angle, 0));
            widen_piece(sin, load_piece(a.sin + angle, 0));
        }
        for (int chunk = begin; chunk < end; chunk++) {
            const place now = at;
            const unit_held<T> mine = held;
            if (chunk + 1 < end) {
                at = place_of(a, chunk + 1, lanes);
                held = load_unit(a, token, at, u);
            }
            produce_unit<false>(a, mine, {}, token, now, u, cos, sin, lanes, &f);
            if (!a.part[now.part].amax || (chunk + 1 < end && at.part == now.part)) continue;
            join_amax(a.part[now.part].amax, look_at(a.part[now.part].amax), f.most, f.others,
                      is_first);
            f = {};
        }
    }
}

/* The same for few tokens: a warp has one chunk, and all that it reads is on its way at once, what
 * nobody writes before the kernel in front has ended. */
template <typename T>
static __global__ void __launch_bounds__(FEW_THREADS)
qkv_few_kernel(const __grid_constant__ qkv_args<T> a, int64_t tokens, int lanes, int chunks) {
    const unsigned item = blockIdx.x * (FEW_THREADS / 32) + threadIdx.x / 32;
    const int64_t token = item / (unsigned)chunks;
    const unit u = unit_of(a, (int)threadIdx.x % 32 % lanes);
    const place at = place_of(a, (int)(item % (unsigned)chunks), lanes);
    const heads_args<T> &p = a.part[at.part];
    const unit_weight<T> weight = load_weight(a, at, u);
    const bool turns = at.part < 2 && u.turns && u.there;
    float cos[PIECE] = {}, sin[PIECE] = {};
    int32_t position = 0;
    found f = {};

    let_next_start();
    wait_for_previous();
    if (token >= tokens) return;
    if (turns) position = a.positions[token];
    const unit_held<T> held = load_unit(a, token, at, u);
    const bool is_first = p.amax && a.first && a.first[token] != 0;
    if (turns) {
        const int64_t angle = (int64_t)position * (a.rotary / 2) + u.low;
        widen_piece(cos, load_piece(a.cos + angle, 0));
        widen_piece(sin, load_piece(a.sin + angle, 0));
    }
    produce_unit<true>(a, held, weight, token, at, u, cos, sin, lanes, &f);
    if (p.amax) join_amax(p.amax, look_at(p.amax), f.most, f.others, is_first);
}

/* Lane's elements lane, lane + 32, ... of a head, in shared memory: what turns needs its
 * partner. */
template <typename T>
static __device__ void produce_any(const qkv_args<T> &a, const heads_args<T> &p, int64_t token,
                                   int head, bool turns, float *v, uint32_t *most,
                                   uint32_t *others) {
    const int lane = threadIdx.x % 32, half = a.rotary / 2;
    const T *x = p.x + token * p.x_token + head * p.x_head;
    const float scale = p.scale ? p.scale[head * p.scale_stride] : 1.0f;
    float sum = 0.0f;

    for (int i = lane; i < a.dim; i += 32) {
        v[i] = to_float(x[i]);
        sum += v[i] * v[i];
    }
    if (p.weight) {
        const float rstd = rsqrtf(fmaf(team_sum<true>(sum, 32, nullptr), a.per_dim, a.eps));
        for (int i = lane; i < a.dim; i += 32)
            v[i] = norm_one(a, v[i], rstd, to_float(p.weight[i]));
    }
    __syncwarp();
    if (turns)
        for (int i = lane; i < half; i += 32) {
            const int64_t at = (int64_t)a.positions[token] * half + i;
            rotate(&v[i], &v[i + half], a.cos[at], a.sin[at]);
        }
    __syncwarp();
    for (int i = lane; i < a.dim; i += 32) {
        uint8_t code = encode(v[i], scale, a.e5m2);
        if ((code & 0x7fu) == (a.e5m2 ? 0x7eu : 0x7fu)) code &= 0x7fu;
        *most = max(*most, finite_amax<1>(v + i, others));
        if (p.codes)
            p.codes[token * p.codes_token + head * p.codes_head + i * p.codes_dim] = code;
        if (p.dense)
            p.dense[token * p.dense_token + head * p.dense_head + i] = from_float<T>(v[i]);
    }
    __syncwarp(); /* v is filled again by the next head */
}

/* grid: tokens; a warp a head. */
template <typename T>
static __global__ void __launch_bounds__(THREADS, 4)
qkv_any_kernel(const __grid_constant__ qkv_args<T> a) {
    __shared__ float scratch[THREADS / 32][FP8_HEAD_DIM_MAX];
    const int64_t token = blockIdx.x;
    const int warp = (int)threadIdx.x / 32;

    let_next_start();
    wait_for_previous();
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const heads_args<T> &p = a.part[i];
        uint32_t most = 0, others = 0;
        for (int head = warp; head < p.heads; head += THREADS / 32)
            produce_any(a, p, token, head, i < 2, scratch[warp], &most, &others);
        if (p.amax)
            join_amax(p.amax, look_at(p.amax), most, others, a.first && a.first[token] != 0);
    }
}

/* ---- launcher ------------------------------------------------------------------------------- */

/* Parts of a token, a warp each: as many as let all warps work, or those that end soonest where
 * rounds of warps do not come out even. Angles cost each part about one more chunk. */
static int64_t spans_for(int64_t tokens, int chunks, int64_t warps) {
    int64_t best = warps / tokens, least = INT64_MAX;

    best = best < 1 ? 1 : best < chunks ? best : chunks;
    for (int64_t spans = best; spans <= chunks; spans++) {
        const int64_t rounds = (tokens * spans + warps - 1) / warps;
        const int64_t time = rounds * ((chunks + spans - 1) / spans + 1);
        if (time < least) best = spans;
        if (time < least) least = time;
    }
    return best;
}

template <typename T> static heads_args<T> part_of(const fp8_heads *h) {
    return {static_cast<const T *>(h->x),
            static_cast<const T *>(h->norm_weight),
            static_cast<T *>(h->dense),
            h->codes,
            h->scale,
            h->amax,
            h->x_token_stride,
            h->x_head_stride,
            h->dense_token_stride,
            h->dense_head_stride,
            h->codes_token_stride,
            h->codes_head_stride,
            h->codes_dim_stride,
            (int)h->heads,
            0,
            (int)h->scale_stride};
}

/* Units of 16 elements fit what this part reads and writes. */
template <typename T> static bool part_fits(const heads_args<T> &p) {
    const int64_t size = sizeof(T);
    const bool codes = !p.codes || p.codes_dim != 1 ||
                       ((uintptr_t)p.codes % PIECE == 0 && p.codes_token % PIECE == 0 &&
                        p.codes_head % PIECE == 0);
    return p.heads == 0 ||
           (codes && aligned16(p.x) && aligned16(p.weight) && aligned16(p.dense) &&
            p.x_token * size % VECTOR_BYTES == 0 && p.x_head * size % VECTOR_BYTES == 0 &&
            p.dense_token * size % VECTOR_BYTES == 0 && p.dense_head * size % VECTOR_BYTES == 0);
}

template <typename T>
static fp8_status launch_qkv(fp8_device *d, const fp8_qkv *q, fp8_launch how) {
    qkv_args<T> a = {{part_of<T>(&q->q), part_of<T>(&q->k), part_of<T>(&q->v)},
                           q->cos,
                           q->sin,
                           q->positions,
                           q->first,
                           (int)q->dim,
                           (int)q->rotary_dim,
                           q->norm,
                           q->eps,
                           1.0f / (float)q->dim,
                           q->rounded != 0,
                           q->code == FP8_DTYPE_E5M2};
    const bool fits = a.dim % UNIT == 0 && a.rotary % UNIT == 0 && a.dim <= 32 * UNIT &&
                      aligned16(a.cos) && aligned16(a.sin) && part_fits(a.part[0]) &&
                      part_fits(a.part[1]) && part_fits(a.part[2]);
    const dim3 grid((unsigned)q->tokens);
    int lanes = 1, chunks = 0, sms = 0;
    int64_t warps, spans, blocks;
    fp8_status st = FP8_OK;

    if (!fits)
        return launch("produce_qkv", qkv_any_kernel<T>, grid, dim3(THREADS), 0, d, how, a);
    while (lanes * UNIT < a.dim) lanes *= 2;
    for (int i = 0; i < PARTS; i++) {
        const int at_once = 32 / lanes, warps = (a.part[i].heads + at_once - 1) / at_once;
        a.part[i].padded = warps * at_once;
        chunks += warps;
    }
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    if constexpr (is_bf16<T>()) {
        const qkv_ring r = ring_for(a, q->tokens, sms);
        if (r.slots && fp8_device_capability(d) >= 90)
            return launch_qkv_ring(d, a, r, sms, how);
    }
    warps = (int64_t)sms * BLOCKS_PER_SM * (THREADS / 32); /* on the GPU at once */
    spans = spans_for(q->tokens, chunks, warps);
    if (spans == chunks) {
        blocks = (q->tokens * chunks + FEW_THREADS / 32 - 1) / (FEW_THREADS / 32);
        st = launch("produce_qkv", qkv_few_kernel<T>, dim3((unsigned)blocks), dim3(FEW_THREADS), 0,
                    d, how, a, q->tokens, lanes, chunks);
        goto done;
    }
    blocks = (q->tokens * spans + THREADS / 32 - 1) / (THREADS / 32);
    if (blocks > warps / (THREADS / 32)) blocks = warps / (THREADS / 32);
    st = launch("produce_qkv", qkv_kernel<T>, dim3((unsigned)blocks), dim3(THREADS), 0, d, how, a,
                q->tokens, lanes, chunks, (int)spans);
done:
    return st;
}

extern "C" fp8_status fp8_cuda_produce_qkv(fp8_device *d, const fp8_qkv *qkv, fp8_launch launch) {
    FP8_FOR_REAL(qkv->dtype, return launch_qkv<T>(d, qkv, launch));
}
