/* attention/append_impl.h - private: an append with its defaults filled in, and which row of a
 * batch is which key, for C and CUDA alike. */
#ifndef FP8_ATTENTION_APPEND_IMPL_H
#define FP8_ATTENTION_APPEND_IMPL_H
#include "attention/append.h"
#include "attention/cache_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { APPEND_UNIT = 16, APPEND_MAX_UNITS = 32 }; /* elements of a head a thread; threads a head */

/* What a row is: token i of sequence seq. */
typedef struct append_row {
    int64_t seq, key; /* seq -1: in no sequence */
    int64_t page;     /* -1: its key has no place */
} append_row;

/* seq: how many of q_starts[1 ..] are at most `row`. */
ATTENTION_INLINE append_row append_row_of(const fp8_kv_pages *p, const fp8_kv_batch *b,
                                          int64_t row, int64_t seq) {
    append_row r = {-1, 0, -1};
    int64_t begin, n;
    if (seq >= b->num_seqs) return r;
    n = kv_tokens(b, seq, &begin);
    if (row < begin || row - begin >= n) return r;
    r.seq = seq;
    r.key = (int64_t)b->kv_lengths[seq] - n + (row - begin);
    r.page = kv_page_to_write(b, seq, r.key, p->page_size, p->num_pages);
    return r;
}

/* The row of the RoPE tables of a token. */
ATTENTION_INLINE int64_t append_position(const fp8_kv_append *a, int64_t row, int64_t key) {
    return attention_clamp(a->positions ? a->positions[row] : key, 0, a->num_positions - 1);
}

/* *out = the append with its strides filled in, for pages with theirs; FP8_EINVAL in words. */
fp8_status append_resolve(fp8_kv_append *out, const fp8_kv_pages *pages,
                          const fp8_kv_append *append);
/* Whether kernels may take it in vectors of 16 bytes and units of 16 elements. */
int append_fits_units(const fp8_kv_pages *pages, const fp8_kv_append *a);

fp8_status append_run_cpu(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *batch,
                          const fp8_kv_append *append);
#if FP8_CUDA
fp8_status append_run_cuda(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *batch,
                           const fp8_kv_append *append, fp8_launch launch);
#endif

#ifdef __cplusplus
}
#endif
#endif
