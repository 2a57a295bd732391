/* attention/decode_pages.h - private: between decode_pages_cuda.c, which plans, and the kernels
 * over pages (decode_pages.cu for codes, decode_pages16.cu for 16 bits). */
#ifndef FP8_ATTENTION_DECODE_PAGES_H
#define FP8_ATTENTION_DECODE_PAGES_H
#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

#include "attention/decode_pages_limits.h"

/* What a kernel reads. A row of a KV head is one query of one head: row r is query r / group, head
 * kv_head * group + r % group; 8 or 16 rows are a block of rows. */
typedef struct decode_pages_args {
    /* [page][kv_head][token][d], [page][kv_head * d_v][token]; the i-th ends after i + 1 quarters
     * of a page's tokens: beyond, copies bring zeros and read nothing */
    CUtensorMap k_map[DECODE_PAGES_QUARTERS], v_map[DECODE_PAGES_QUARTERS];
    void *o;
    const void *q;
    const int32_t *page_table, *kv_lengths, *q_starts;
    const float *q_descale, *k_descale, *v_descale; /* NULL: 1 */
    const float *o_scale, *alibi_slopes, *sink;     /* NULL: none, or ALiBi's own slopes */
    float *lse;                                     /* NULL: not wanted */
    /* parts of items, [slots, rows, d_v / 4, DECODE_PAGES_UNIT_FLOATS], all bytes
     * DECODE_PAGES_UNSENT_BYTE before and after a run; with a split given, those below instead */
    float *exchange;
    float *parts;      /* workspace [slots, rows, d_v]: sums of parts of an item */
    float *part_stats; /* workspace [slots, rows, 2]: their maxima and sums of exponentials */
    int32_t *arrived;  /* parts of an item that are there; 0 before and after a run */
    int64_t q_token, o_token, max_pages; /* elements */
    int32_t num_seqs, num_heads, num_kv_heads, group, num_pages;
    int32_t total_q, max_q, max_kv; /* max_kv: with what the table can hold */
    int32_t most_q;       /* sequences of more queries are another part's */
    int32_t row_blocks;   /* most that a sequence has */
    int32_t unit_tiles;   /* tiles of one part of a given split; 0: equal shares a block */
    int32_t item_cost;    /* of equal shares: tiles that an item counts for beside its own */
    int32_t early;        /* fp8_decode_options.early */
    int32_t causal, window_left, alibi, off_by_one, descale_by_head;
    int32_t q_dtype, o_dtype; /* fp8_dtype */
    float scale; /* to powers of 2; with a cap: to 2 log2(e) / softcap of the score */
    float softcap;
} decode_pages_args;

/* One of Q, K, V of the new tokens: fp8_append_heads. */
typedef struct decode_append_heads {
    const void *x, *weight; /* weight NULL: not normed */
    int32_t token_stride, head_stride;
} decode_append_heads;

/* What a kernel that appends reads beside it: the new tokens, one a sequence, and the pages as they
 * are written to; in few lines of memory, as all of it is fetched anew a launch. */
typedef struct decode_append_args {
    decode_append_heads q, k, v;
    const int32_t *positions; /* NULL: keys */
    const float *cos, *sin, *q_descale; /* q_descale NULL: real types */
    void *k_pages, *v_pages;
    int64_t k_page, v_page; /* elements */
    int32_t num_positions, rotary_dim, halves, dtype;
    int32_t norm, rounded; /* of fp8_kv_append, as eps */
    float eps;
} decode_append_args;

/* A kernel and the shape of its tiles. */
typedef struct decode_pages_kernel {
    int32_t kv_dtype, d_qk, d_v, page_size;
    int32_t rows;             /* of a block of rows */
    int32_t tile, span;       /* keys of a tile; of them in one page, the height of K's boxes */
    int32_t k_pitch, v_pitch; /* bytes, 64 or 128: width of boxes, and their swizzle */
    int32_t threads, blocks_per_sm;
    size_t shared_bytes;
    /* one of them; the other is NULL */
    void (*entry)(const decode_pages_args);
    void (*append_entry)(const decode_pages_args, const decode_append_args);
} decode_pages_kernel;

#ifdef __cplusplus
extern "C" {
#endif
/* Those of codes, and of 16 bits. */
const decode_pages_kernel *decode_pages_kernels(int *count);
const decode_pages_kernel *decode_pages16_kernels(int *count);
/* Likewise those that append; of the same shapes, but fewer. */
const decode_pages_kernel *decode_append_kernels(int *count);
const decode_pages_kernel *decode_append16_kernels(int *count);
#ifdef __cplusplus
}
#endif
#endif
