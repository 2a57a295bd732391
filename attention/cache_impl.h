/* attention/cache_impl.h - private: where a key of a sequence lies, whatever lengths and tables
 * hold, for C and CUDA alike. Pages here have their strides filled in (kv_pages_resolve). */
#ifndef FP8_ATTENTION_CACHE_IMPL_H
#define FP8_ATTENTION_CACHE_IMPL_H
#include "attention/attention_impl.h"
#include "attention/cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *out = pages with their strides; FP8_EINVAL also for NULL k, v, or descales that E4M3 needs. */
fp8_status kv_pages_resolve(fp8_kv_pages *out, const fp8_kv_pages *pages);
/* Sizes and pointers of a batch for pages of `page_size` tokens; FP8_EINVAL in words. */
fp8_status kv_batch_check(const fp8_kv_batch *b, int32_t page_size);
/* What of a batch had to be clamped or was not written, FP8_EINVAL names the first. Waits. */
fp8_status kv_batch_report(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *b);

/* Tokens of sequence s in this call, from row *begin on. */
ATTENTION_INLINE int64_t kv_tokens(const fp8_kv_batch *b, int64_t s, int64_t *begin) {
    return attention_sequence(b->q_starts, NULL, s, b->total_q, b->max_q, begin);
}

/* Keys of sequence s for reading. */
ATTENTION_INLINE int64_t kv_keys(const fp8_kv_batch *b, int64_t s, int32_t page_size) {
    const int64_t most = b->max_pages * page_size;
    return attention_clamp(b->kv_lengths[s], 0, b->max_kv < most ? b->max_kv : most);
}

/* The page of key j, 0 <= j < kv_keys, for reading. */
ATTENTION_INLINE int64_t kv_page(const fp8_kv_batch *b, int64_t s, int64_t j, int32_t page_size,
                                 int64_t num_pages) {
    return attention_clamp(b->page_table[s * b->max_pages + j / page_size], 0, num_pages - 1);
}

/* The page that key j is to be written to, -1: it has no place. */
ATTENTION_INLINE int64_t kv_page_to_write(const fp8_kv_batch *b, int64_t s, int64_t j,
                                          int32_t page_size, int64_t num_pages) {
    int64_t page;
    if (j < 0 || j >= b->max_pages * page_size) return -1;
    page = b->page_table[s * b->max_pages + j / page_size];
    return page >= 0 && page < num_pages ? page : -1;
}

/* K: the first of d_qk elements that follow each other. V: the first of d_v, page_size apart. */
ATTENTION_INLINE int64_t kv_k_offset(const fp8_kv_pages *p, int64_t page, int64_t head,
                                     int64_t token) {
    return page * p->k_page + (head * p->page_size + token) * p->d_qk;
}
ATTENTION_INLINE int64_t kv_v_offset(const fp8_kv_pages *p, int64_t page, int64_t head,
                                     int64_t token) {
    return page * p->v_page + head * p->d_v * p->page_size + token;
}

#ifdef __cplusplus
}
#endif
#endif
