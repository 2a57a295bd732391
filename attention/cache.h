/* attention/cache.h - a paged cache of keys and values, of one layer, in memory of the caller's.
 *
 * A page holds `page_size` tokens of all KV heads. A sequence is a row of a page table: key j of it
 * is token j % page_size of page table[s][j / page_size]. Moving, forking (two rows name one page)
 * and freeing pages is work on that table alone; a cache that is contiguous is an identity table
 * (fp8_kv_identity_table). A page that two sequences share must not be appended to: copy its K and
 * V first where it is not full.
 *
 *   K of a page  [kv_head][token][d_qk]          element: k + page * k_page + head * k_head
 *                                                           + token * d_qk + i
 *   V of a page  [kv_head][d_v][token]           element: v + page * v_page + head * v_head
 *                                                           + i * page_size + token
 * V is transposed within the page, as the tensor cores read it. Codes are e4m3(x * (1 / descale)).
 *
 * Memory beyond a sequence's length may hold anything, NaN too, and changes nothing. Nothing here
 * allocates or launches. */
#ifndef FP8_ATTENTION_CACHE_H
#define FP8_ATTENTION_CACHE_H
#include <stddef.h>
#include <stdint.h>

#include "attention/attention_options.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Geometry and place of one layer's pages. */
typedef struct fp8_kv_pages {
    fp8_dtype dtype; /* E4M3, BF16, F16; F32 (cpu only) */
    int32_t num_kv_heads, d_qk, d_v; /* head sizes from 1 to 1024; d_qk bounds nothing of d_v */
    int32_t page_size;               /* tokens a page: 64 or 128 */
    int64_t num_pages;               /* 1 or more, below 2^31 */
    int64_t k_page, v_page; /* elements from one page to the next; 0 = packed. More than packed, so
                             * that K and V, or all layers, of a page may lie side by side */
    void *k, *v;            /* place of the device; 16-byte aligned where a kernel is to serve */
    const float *k_descale, *v_descale;    /* E4M3: place of the device, F32, [1] or ... */
    fp8_attention_granularity granularity; /* TENSOR: [1]; HEAD: [num_kv_heads]; that of Q too */
} fp8_kv_pages;

/* Sizes and strides that follow from the geometry; bytes for whoever owns the memory. */
typedef struct fp8_kv_layout {
    int64_t k_page, k_head; /* elements; a token is d_qk */
    int64_t v_page, v_head; /* elements; a row of d_v is page_size */
    size_t k_page_bytes, v_page_bytes; /* of what one page holds, without room between pages */
    size_t k_bytes, v_bytes;           /* from k, v to the end of the last page */
} fp8_kv_layout;

/* Looks at the geometry alone, not at k, v and descales. FP8_EINVAL: a size that makes no sense,
 * page strides below a page; FP8_EOVERFLOW. */
FP8_NODISCARD fp8_status fp8_kv_pages_layout(fp8_kv_layout *out, const fp8_kv_pages *pages);

/* ---- a batch: who has which pages ------------------------------------------------------------ */

/* What one call of append or decode works on: num_seqs sequences, each with some tokens of this
 * call at the end of its keys. Tokens are packed: sequence s has rows q_starts[s] ..
 * q_starts[s + 1] - 1 of what has total_q rows; of its n = q_starts[s + 1] - q_starts[s] tokens,
 * token i is key kv_lengths[s] - n + i. Pointers are int32 in the place of the device, and read
 * when the work runs: a captured graph may be replayed with other numbers in them.
 *
 * Whatever they hold, no byte outside the buffers is read or written: starts are clamped to
 * 0 .. total_q, n to 0 .. max_q, kv_lengths to 0 .. min(max_kv, max_pages * page_size) for reading;
 * tokens whose key is negative or beyond max_pages * page_size are not written. A page number
 * outside 0 .. num_pages - 1 is read as the nearest of these, and is not written to. Entries of the
 * table at and beyond ceil(kv_length / page_size) are not looked at. FP8_SYNC=1 reports all of that
 * after a checked call (FP8_EINVAL). */
typedef struct fp8_kv_batch {
    int64_t num_seqs;
    const int32_t *page_table; /* [num_seqs, max_pages] */
    int64_t max_pages;
    const int32_t *kv_lengths; /* [num_seqs] keys, those of this call's tokens included; 0: none */
    const int32_t *q_starts;   /* [num_seqs + 1], not falling */
    int64_t max_q, max_kv;     /* host: the longest that q_starts and kv_lengths may bring */
    int64_t total_q;           /* host: rows that may be read or written */
} fp8_kv_batch;

/* table[s, j] = s * max_pages + j: sequences lie one after the other. Host memory. */
void fp8_kv_identity_table(int32_t *table, int64_t num_seqs, int64_t max_pages);

#ifdef __cplusplus
}
#endif
#endif
