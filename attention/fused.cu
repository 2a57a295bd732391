/* fused.cu - the small kernels around cuDNN's attention.
 *
 * Computes  prepare: lengths and offsets of num_seqs sequences; finish: rows that cuDNN leaves
 *           undefined, and the LSE of packed tokens.
 * Bound     launch latency: prepare is one block; finish reads lengths alone but where it writes.
 * Numerics  none. */
#include "attention/fused.h"

#include <math.h>

#include "core/cuda_check.h"

namespace {

enum { PREPARE_THREADS = 256, FINISH_THREADS = 128, FINISH_TOKENS = 32 };

struct sequence {
    int64_t q_begin, kv_begin, s_q, s_kv;
};

__device__ sequence sequence_at(const fused_view &v, int64_t s) {
    const fp8_attention_options &o = v.options;
    sequence x;
    x.s_q = attention_sequence(v.io.q_starts, v.io.q_lengths, s, v.io.total_q, o.max_q, &x.q_begin);
    x.s_kv = attention_sequence(v.io.kv_starts, v.io.kv_lengths, s, v.io.total_kv, o.max_kv,
                                &x.kv_begin);
    return x;
}

/* ---- prepare --------------------------------------------------------------------------------- */

/* What stands at the beginning of fused_view.kept. */
struct kept_header {
    int32_t nothing; /* 1: no sequence has queries and keys */
    int32_t kept;    /* 1: row 0 of O is kept behind */
};

__device__ bool is_work(const sequence &x) { return x.s_q > 0 && x.s_kv > 0; }

/* Begin of sequence s, which lies at x, in elements. */
__device__ void write_offsets(const fused_view &v, int64_t i, int64_t s, int64_t q_token,
                              int64_t kv_token) {
    const fp8_attention_options &o = v.options;
    v.q_offset[i] = attention_offset(o.q, s, q_token, 0);
    v.o_offset[i] = attention_offset(o.o, s, q_token, 0);
    v.k_offset[i] = attention_offset(o.k, s, kv_token, 0);
    v.v_offset[i] = attention_offset(o.v, s, kv_token, 0);
}

/* Place i shows sequence s with these lengths; begins stay inside the buffers. */
__device__ void show(const fused_view &v, int64_t i, int64_t s, const sequence &x, int64_t s_q,
                     int64_t s_kv) {
    const bool packed = v.io.q_starts != NULL;
    const int64_t q_last = packed ? v.io.total_q - 1 : v.options.max_q - 1;
    const int64_t kv_last = packed ? v.io.total_kv - 1 : v.options.max_kv - 1;
    v.q_length[i] = (int32_t)s_q;
    v.kv_length[i] = (int32_t)s_kv;
    write_offsets(v, i, s, x.q_begin < q_last ? x.q_begin : q_last,
                  x.kv_begin < kv_last ? x.kv_begin : kv_last);
    if (i == v.options.num_seqs - 1)
        write_offsets(v, i + 1, s, x.q_begin + s_q, x.kv_begin + s_kv);
}

/* The smallest of all threads' candidates (work in the upper bits, index in the lower), by all. */
__device__ uint64_t block_min(uint64_t x) {
    __shared__ uint64_t shared[PREPARE_THREADS];
    __syncthreads(); /* a minimum before this one was read by all */
    shared[threadIdx.x] = x;
    for (int step = PREPARE_THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step && shared[threadIdx.x + step] < shared[threadIdx.x])
            shared[threadIdx.x] = shared[threadIdx.x + step];
    }
    __syncthreads();
    return shared[0];
}

constexpr uint64_t nobody = ~0ull;

__device__ uint64_t candidate(int64_t work, int64_t s) {
    const uint64_t most = 0xffffffffull;
    return ((uint64_t)work < most - 1 ? (uint64_t)work : most - 1) << 32 | (uint64_t)s;
}

/* The sequence of least work that has queries and (keys) keys; nobody if there is none. */
__device__ uint64_t find_stand_in(const fused_view &v, bool keys) {
    uint64_t best = nobody;
    for (int64_t s = threadIdx.x; s < v.options.num_seqs; s += PREPARE_THREADS) {
        const sequence x = sequence_at(v, s);
        const uint64_t c = candidate(keys ? x.s_q * x.s_kv / 64 : 0, s);
        if (x.s_q > 0 && (x.s_kv > 0 || !keys) && c < best) best = c;
    }
    return block_min(best);
}

__device__ void keep_row(const fused_view &v) {
    const fp8_attention_options &o = v.options;
    const uint8_t *out = (const uint8_t *)v.io.o;
    const int64_t n = (int64_t)o.num_heads * o.d_v;
    for (int64_t i = threadIdx.x; i < n; i += PREPARE_THREADS)
        v.kept[FUSED_KEPT_HEADER + i] = out[attention_offset(o.o, 0, 0, i / o.d_v) + i % o.d_v];
}

__global__ void prepare_fp8(const fused_view v) {
    const uint64_t work = find_stand_in(v, true);
    const uint64_t row = work == nobody ? find_stand_in(v, false) : nobody;
    const int64_t other = (int64_t)((work != nobody ? work : row != nobody ? row : 0) & 0xffffffff);
    const sequence stand_in = sequence_at(v, other);

    for (int64_t s = threadIdx.x; s < v.options.num_seqs; s += PREPARE_THREADS) {
        const sequence x = sequence_at(v, s);
        if (is_work(x)) show(v, s, s, x, x.s_q, x.s_kv);
        else if (work != nobody) show(v, s, other, stand_in, stand_in.s_q, stand_in.s_kv);
        else if (row != nobody) show(v, s, other, stand_in, 1, 1);
        else show(v, s, 0, sequence{0, 0, 0, 0}, 1, 1);
    }
    if (threadIdx.x == 0)
        *(kept_header *)(void *)v.kept = {work == nobody, work == nobody && row == nobody};
    if (work == nobody && row == nobody) keep_row(v);
}

__global__ void prepare(const fused_view v) {
    for (int64_t s = threadIdx.x; s < v.options.num_seqs; s += PREPARE_THREADS) {
        const sequence x = sequence_at(v, s);
        show(v, s, s, x, x.s_kv > 0 ? x.s_q : 0, x.s_kv > 0 ? x.s_kv : 1);
    }
}

/* ---- finish ---------------------------------------------------------------------------------- */

__device__ bool sees_a_key(const fused_view &v, const sequence &x, int64_t token) {
    int64_t lo, hi;
    if (token >= x.s_q) return false;
    attention_visible(&v.options, token, x.s_q, x.s_kv, &lo, &hi);
    return lo < hi;
}

__device__ float blank_lse(const fused_view &v, bool inside, int64_t head) {
    if (!inside || v.options.sink == FP8_SINK_NONE) return -INFINITY;
    return v.options.sink == FP8_SINK_LEARNABLE ? v.io.sink[head] : 0.0f;
}

__device__ void write_lse(const fused_view &v, int64_t s, const sequence &x, int64_t token,
                          int64_t head, bool sees) {
    const fp8_attention_options &o = v.options;
    const int64_t padded = (s * o.num_heads + head) * o.max_q + token;
    const bool packed = v.io.q_starts != NULL;
    const int64_t at = packed ? head * v.io.total_q + x.q_begin + token : padded;
    if (!sees) v.io.lse[at] = blank_lse(v, token < x.s_q, head);
    else if (packed) v.io.lse[at] = v.stats[padded];
}

/* What a run of no work at all must not leave behind. */
__device__ void undo(const fused_view &v) {
    const fp8_attention_options &o = v.options;
    const kept_header &header = *(const kept_header *)(const void *)v.kept;
    uint8_t *out = (uint8_t *)v.io.o;
    if (header.nothing && o.want_amax && threadIdx.x == 0) *v.io.amax_s = *v.io.amax_o = 0;
    for (int64_t i = threadIdx.x; header.kept && i < (int64_t)o.num_heads * o.d_v;
         i += FINISH_THREADS)
        out[attention_offset(o.o, 0, 0, i / o.d_v) + i % o.d_v] = v.kept[FUSED_KEPT_HEADER + i];
}

/* One block: FINISH_TOKENS queries of one sequence. Rows of packed tokens past a sequence's end are
 * another's. O's elements have 1 or 2 bytes, 0 is all zero bits in each type. */
template <typename T> __global__ void finish(const fused_view v, int64_t tiles, T *out) {
    const fp8_attention_options &o = v.options;
    const int64_t s = blockIdx.x / tiles, first = blockIdx.x % tiles * FINISH_TOKENS;
    const sequence x = sequence_at(v, s);
    const bool packed = v.io.q_starts != NULL;
    const int64_t end = packed ? x.s_q : o.max_q;
    const int64_t own = first + threadIdx.x;
    const bool blank = threadIdx.x < FINISH_TOKENS && own < end && !sees_a_key(v, x, own);
    const bool any = __syncthreads_or(blank) != 0;

    if (v.kept && blockIdx.x == 0) {
        undo(v);
        __syncthreads(); /* then the blanks */
    }
    if (!any && !(packed && v.io.lse)) return;
    for (int64_t i = threadIdx.x / 32; i < FINISH_TOKENS * o.num_heads; i += FINISH_THREADS / 32) {
        const int64_t token = first + i / o.num_heads, head = i % o.num_heads;
        const bool sees = sees_a_key(v, x, token);
        if (token >= end) break;
        if (v.io.lse && threadIdx.x % 32 == 0) write_lse(v, s, x, token, head, sees);
        for (int64_t c = threadIdx.x % 32; !sees && c < o.d_v; c += 32)
            out[attention_offset(o.o, s, x.q_begin + token, head) + c] = 0;
    }
}

} // namespace

extern "C" fp8_status attention_fused_prepare(const fused_view *v, fp8_stream stream) {
    if (v->options.q_dtype == FP8_DTYPE_E4M3)
        prepare_fp8<<<1, PREPARE_THREADS, 0, stream>>>(*v);
    else prepare<<<1, PREPARE_THREADS, 0, stream>>>(*v);
    return fp8_cuda_launched("attention_fused_prepare", stream);
}

extern "C" fp8_status attention_fused_finish(const fused_view *v, int lengths, fp8_stream stream) {
    const fp8_attention_options *o = &v->options;
    const int64_t tiles = (o->max_q + FINISH_TOKENS - 1) / FINISH_TOKENS;
    const unsigned grid = (unsigned)(o->num_seqs * tiles); /* below 2^31: checked with the plan */
    fused_view x = *v;
    if (!lengths || o->q_dtype != FP8_DTYPE_E4M3) x.kept = NULL;
    if (o->o_dtype == FP8_DTYPE_E4M3)
        finish<uint8_t><<<grid, FINISH_THREADS, 0, stream>>>(x, tiles, (uint8_t *)v->io.o);
    else finish<uint16_t><<<grid, FINISH_THREADS, 0, stream>>>(x, tiles, (uint16_t *)v->io.o);
    return fp8_cuda_launched("attention_fused_finish", stream);
}
