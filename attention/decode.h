/* attention/decode.h - attention of new tokens against a paged cache: decoding (one query a
 * sequence, or up to 8 where tokens are speculative) and chunks of prefill, mixed in one call.
 *
 *   S = softcap(scale * Q K^T) + ALiBi      P = softmax over the keys a query sees (and the sink)
 *   O = P V                query head i reads KV head i / (num_heads / num_kv_heads)
 *
 * Query i of the n of a sequence with L keys stands at key t = L - n + i (fp8_attention's
 * bottom-right diagonal); causal, it sees keys t - window_left .. t, otherwise t - window_left ..
 * L - 1.
 *
 * A plan picks a backend once and keeps, in words, why each other was passed over: `pages` (our
 * kernels for Hopper, on the pages as they lie; up to 8 queries a sequence), `gathered` (keys and
 * values copied out of the pages, then an fp8_attention plan; any GPU, any length), both of them
 * where max_q is above 8 (each takes its sequences), `cpu` (threaded; fp8_decode_reference is its
 * oracle in double). FP8_DECODE_BACKEND prefers one; options.backend forces one and fails loudly.
 *
 * A plan holds no data and serves every layer of its geometry; run() allocates nothing, does not
 * synchronise and can be captured in a CUDA graph: table, lengths, starts, scales are device
 * memory. One thread uses a plan at a time, and `pages` one stream: its plan holds what blocks send
 * each other (up to 9 MB on an H200), and with split_keys 0 they wait for one another, so that it
 * is a cooperative launch: where a stream has too few multiprocessors for a grid, FP8_ECUDA. A
 * captured run uses that memory: the plan must outlive its graph. The same input gives the same
 * bytes, and with the same split_keys (not 0) a sequence gives the same bytes whatever else is in
 * the batch. */
#ifndef FP8_ATTENTION_DECODE_H
#define FP8_ATTENTION_DECODE_H
#include <stddef.h>
#include <stdint.h>

#include "attention/append.h"
#include "attention/cache.h"
#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_decode_backend {
    FP8_DECODE_AUTO,
    FP8_DECODE_PAGES,
    FP8_DECODE_GATHERED,
    FP8_DECODE_CPU
} fp8_decode_backend;

enum { FP8_DECODE_ROWS = 8 }; /* queries a sequence up to which it is decoding, not a chunk */

typedef struct fp8_decode_options {
    int32_t num_heads, num_kv_heads, d_qk, d_v; /* num_heads a multiple of num_kv_heads */
    int32_t page_size;
    int64_t num_seqs, max_q, max_kv; /* the most a run may bring */
    int64_t total_q;                 /* likewise; 0 = num_seqs * max_q */
    int64_t max_chunks; /* sequences of a run with more than FP8_DECODE_ROWS queries, beside any
                         * number of those with fewer: rows of more are left alone; 0 = no bound */
    int64_t q_token, o_token;        /* elements between tokens; 0 = num_heads * d; heads packed */
    fp8_dtype q_dtype;  /* E4M3 with io.q_descale, BF16, F16; F32 (cpu only) */
    fp8_dtype kv_dtype; /* of the pages; E4M3, or the type of q */
    fp8_dtype o_dtype;  /* BF16, F16, E4M3 with io.o_scale; F32 (cpu only) */
    fp8_attention_granularity granularity; /* of the descales: TENSOR, HEAD (Q's by KV head) */
    fp8_attention_mask mask;               /* CAUSAL_BOTTOM_RIGHT, or NONE */
    int64_t window_left;                   /* -1 = no bound */
    int alibi;     /* 1: S += slope[h] * (key - t) */
    float softcap; /* S = softcap * tanh(S / softcap) before ALiBi; 0 = none */
    fp8_attention_sink sink;
    float scale;    /* 0 = 1/sqrt(d_qk) */
    int quantize_p; /* 1: with E4M3 pages P may be rounded to E4M3 with a 2^8 offset before P V (cpu
                     * and oracle do); 0: P keeps 8 bits of mantissa or more */
    fp8_attention_precision precision;
    int64_t split_keys; /* keys that one part of a split over the keys takes, a multiple of
                         * page_size, counted from the first key that the window lets be seen, in
                         * whole tiles of 64 or 128; 0 = cut where it keeps the device busy, by the
                         * lengths of the whole batch */
    int want_lse;
    int early; /* 1: a promise, by which `pages` begins to read while the kernels before it run: no
                * kernel from the last one of the stream that was launched ORDERED (core/device.h),
                * itself included, up to a run writes its table, lengths, starts, descales, o_scale,
                * an append's positions, or keys and values of tokens that are not this call's own
                * (before kv_lengths[s] - n). What q holds, and the call's own tokens, may still be
                * on their way. And with split_keys 0 no other stream of the GPU runs kernels whose
                * blocks wait for each other: the launch is not cooperative, or it could not begin
                * early. 0: all that is read may be on its way */
    fp8_decode_backend backend; /* AUTO, or one that must serve (else FP8_EUNSUPPORTED) */
} fp8_decode_options;
/* Start from this: fp8_decode_options o = FP8_DECODE_OPTIONS; then set sizes and the rest. */
#define FP8_DECODE_OPTIONS                                                                         \
    {                                                                                              \
        .page_size = 64, .q_dtype = FP8_DTYPE_BF16, .kv_dtype = FP8_DTYPE_E4M3,                    \
        .o_dtype = FP8_DTYPE_BF16, .mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT, .window_left = -1,        \
        .quantize_p = 1                                                                            \
    }

/* Operands, in the place of the device but for the structs themselves. A pointer may be NULL where
 * the plan's options do not ask for it. The batch may bring fewer sequences, queries, keys and rows
 * than the plan was made for, not more. */
typedef struct fp8_decode_io {
    fp8_kv_pages pages; /* of the plan's geometry; num_pages and page strides of its own */
    fp8_kv_batch batch;
    void *o;       /* out [total_q, num_heads, d_v], 16-byte aligned where a kernel is to serve */
    const void *q; /* [total_q, num_heads, d_qk], likewise */
    const float *q_descale;     /* E4M3: [1] or [num_kv_heads] */
    const float *o_scale;       /* [1], E4M3 out: codes = e4m3(O * o_scale) */
    const float *alibi_slopes;  /* [num_heads]; NULL: fp8_attention_alibi_slopes' */
    const float *sink;          /* [num_heads] */
    float *lse; /* out [num_heads, total_q] (the batch's): log of the sum of exponentials, sink
                 * included, natural; -inf for a row without a key */
} fp8_decode_io;

typedef struct fp8_decode_plan fp8_decode_plan;

/* FP8_EINVAL: a size or option that makes no sense; FP8_EUNSUPPORTED: nothing serves it. */
FP8_NODISCARD fp8_status fp8_decode_plan_create(fp8_decode_plan **out, fp8_device *d,
                                                const fp8_decode_options *options);
void fp8_decode_plan_destroy(fp8_decode_plan *p);
/* The backend of sequences of up to FP8_DECODE_ROWS queries. */
fp8_decode_backend fp8_decode_plan_backend(const fp8_decode_plan *p);
const char *fp8_decode_plan_reasons(const fp8_decode_plan *p); /* one line a backend */
int64_t fp8_decode_plan_split_keys(const fp8_decode_plan *p);  /* as it is kept to; 0: not given */
/* Of GPU blocks that share the keys of a run, each a range of equal size or, with split_keys, of as
 * many parts; 0: it is not done so. */
int32_t fp8_decode_plan_blocks(const fp8_decode_plan *p);
size_t fp8_decode_workspace_size(const fp8_decode_plan *p);

/* Rows without a key to see, or none above -Inf, give 0 and LSE -inf (with a sink, its own). Rows
 * in no sequence are left alone. NaN and Inf follow the formula: in Q they spoil their row, in K
 * and V the rows that see them, and in V possibly others of the sequence (0 * NaN). What lengths,
 * starts and table are clamped to: attention/cache.h. Asynchronous on CUDA. FP8_EINVAL (NULL,
 * alignment, workspace, pages of another geometry, a batch beyond the plan), FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_decode_run(fp8_decode_plan *p, const fp8_decode_io *io,
                                        void *workspace, size_t workspace_bytes);

/* fp8_kv_append_run of the batch, then fp8_decode_run with what it leaves for q: the same bytes in
 * O, LSE and pages, with one launch less where `pages` serves by itself and can (below). io->q is
 * not looked at; append->q_out is room that may be written or not. The append is launched as
 * FP8_LAUNCH_OVERLAP. FP8_EINVAL also: an append without q.x, of other heads or another type of Q
 * than the plan's, a plan with gaps between tokens of q. */
FP8_NODISCARD fp8_status fp8_decode_append_run(fp8_decode_plan *p, const fp8_decode_io *io,
                                               const fp8_kv_append *append, void *workspace,
                                               size_t workspace_bytes);
/* Whether that would be one launch: on Hopper, every sequence brings one token (batch.max_q 1), q,
 * k and v are there without slots for amax, there is no ALiBi, head sizes are equal and 64, 128 or
 * 256, strides of x multiples of 8 elements, rotary_dim and page strides of 16, addresses of 16
 * bytes. Launches nothing. */
int fp8_decode_append_is_one(const fp8_decode_plan *p, const fp8_decode_io *io,
                             const fp8_kv_append *append);

/* The oracle: the formula in double on host memory. o F64 [total_q, num_heads, d_v], unrounded; lse
 * F64 [num_heads, total_q], may be NULL; io's own two are not looked at. */
FP8_NODISCARD fp8_status fp8_decode_reference(double *o, double *lse,
                                              const fp8_decode_options *options,
                                              const fp8_decode_io *io);

const char *fp8_decode_backend_name(fp8_decode_backend b);

#ifdef __cplusplus
}
#endif
#endif
