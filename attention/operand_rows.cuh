/* attention/operand_rows.cuh - private: the rows of one operand as kernels walk over them, whatever
 * its layout.
 *
 * A unit is one KV head of one sequence. Its rows are tokens times the `group` of heads that share
 * it (1 for K and V): row r is token token0 + r / group, head r % group of the group. A block takes
 * rows by chunks of eight elements. */
#ifndef FP8_ATTENTION_OPERAND_ROWS_CUH
#define FP8_ATTENTION_OPERAND_ROWS_CUH
#include "attention/attention_impl.h"
#include "attention/element.cuh"

namespace attention {

struct operand_rows {
    const void *data;
    fp8_strides strides;
    const int32_t *starts, *lengths;
    int64_t total, longest;
    int64_t num_units, kv_heads, token0, d;
    uint32_t group;
    fp8_dtype dtype;
    bool whole; /* eight elements at a multiple of eight lie on their vector's alignment */
};

/* Whether vectors of eight of rows of d elements from x on are all whole and aligned. */
static inline bool whole_vectors(const void *x, fp8_dtype dtype, fp8_strides s, int64_t d) {
    const size_t vector = fp8_dtype_size(dtype) * VEC;
    return d % VEC == 0 && (s.batch | s.token | s.head) % VEC == 0 &&
           (uintptr_t)x % (vector < 16 ? vector : 16) == 0;
}

/* Rows of Q or O (is_query), or of K or V. */
static inline operand_rows operand_of(const fp8_attention_options *o, const fp8_attention_io *io,
                                      const void *x, fp8_dtype dtype, fp8_strides strides,
                                      int64_t d, bool is_query) {
    operand_rows r = {};
    r.data = x;
    r.strides = strides;
    r.starts = is_query ? io->q_starts : io->kv_starts;
    r.lengths = is_query ? io->q_lengths : io->kv_lengths;
    r.total = is_query ? io->total_q : io->total_kv;
    r.longest = is_query ? o->max_q : o->max_kv;
    r.num_units = o->num_seqs * o->num_kv_heads;
    r.kv_heads = o->num_kv_heads;
    r.group = is_query ? (uint32_t)(o->num_heads / o->num_kv_heads) : 1;
    r.d = d;
    r.dtype = dtype;
    r.whole = whole_vectors(x, dtype, strides, d);
    return r;
}

/* One unit: where its token 0 and first head lie, and how many tokens it has. */
struct operand_unit {
    int64_t seq, kv_head, begin, length;
};

static __device__ __forceinline__ operand_unit open_unit(const operand_rows &x, int64_t unit) {
    operand_unit u = {unit / x.kv_heads, unit % x.kv_heads, 0, 0};
    if (unit < x.num_units)
        u.length = attention_sequence(x.starts, x.lengths, u.seq, x.total, x.longest, &u.begin);
    return u;
}

static __device__ __forceinline__ int64_t row_token(const operand_rows &x, uint32_t r) {
    return x.token0 + r / x.group;
}

static __device__ __forceinline__ int64_t row_head(const operand_rows &x, const operand_unit &u,
                                                   uint32_t r) {
    return u.kv_head * x.group + r % x.group;
}

/* Element 0 of row r, by the strides of x or of a copy of it. */
static __device__ __forceinline__ int64_t row_offset(const operand_rows &x, const operand_unit &u,
                                                     fp8_strides strides, uint32_t r) {
    return attention_offset(strides, u.seq, u.begin + row_token(x, r), row_head(x, u, r));
}

/* How a block of `threads` cuts rows of `chunks` vectors: thread t has row `row`, and vectors
 * `chunk`, chunk + step ... of it; `rows` rows a block. */
struct block_rows {
    uint32_t rows, row, chunk, step;
};

static __host__ __device__ __forceinline__ uint32_t rows_a_block(uint32_t threads,
                                                                 uint32_t chunks) {
    return chunks < threads ? threads / chunks : 1;
}

static __device__ __forceinline__ block_rows share_rows(uint32_t threads, uint32_t chunks) {
    const uint32_t across = chunks < threads ? chunks : threads;
    return {rows_a_block(threads, chunks), threadIdx.x / across, threadIdx.x % across, across};
}

} /* namespace attention */
#endif
