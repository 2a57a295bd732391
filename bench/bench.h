/* bench/bench.h - the benchmarks behind `fp8calib bench`. Each fills a table: what was measured
 * (subject), by whom (provider), and a number a column; the table is written as text, CSV or SVG.
 *
 * The rules of every figure: all providers of a subject run in one process, in turns, on random
 * data; their output is checked in that same program and a wrong one fails the benchmark
 * (FP8_EDATA); a time is the median of many replays of a CUDA graph, between its 0.2 and 0.8
 * quantiles; the limit (what the measured rates of this device allow) stands beside it. Causal
 * products count half. Nothing here prints but the writers. Not thread-safe: one at a time. */
#ifndef FP8_BENCH_BENCH_H
#define FP8_BENCH_BENCH_H
#include <stdint.h>
#include <stdio.h>

#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_BENCH_COLUMNS = 16 };

typedef struct fp8_bench_column {
    const char *name; /* "ms", "TFLOP/s" */
    int32_t digits;   /* significant ones in the text; CSV has all */
} fp8_bench_column;

typedef struct fp8_bench_row {
    char subject[72], provider[40];
    char note[256];                  /* why there are no numbers, or what to know of them */
    double value[FP8_BENCH_COLUMNS]; /* NaN = none */
} fp8_bench_row;

/* Rows of one subject follow each other. Zero it, set title and columns, then add rows. */
typedef struct fp8_bench_table {
    char title[320]; /* device, clocks, protocol */
    const fp8_bench_column *columns;
    int32_t num_columns;
    int32_t drawn; /* the column of the SVG's bars */
    fp8_bench_row *rows;
    int64_t num_rows, capacity;
} fp8_bench_table;

/* *row: the new last row, every value NaN; valid until the next one is added. FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_bench_add_row(fp8_bench_table *t, fp8_bench_row **row,
                                           const char *subject, const char *provider);
void fp8_bench_table_free(fp8_bench_table *t);

/* Aligned columns for people; header and all digits for programs; a bar a row in groups a subject.
 * FP8_EIO. The last two replace `path`. */
FP8_NODISCARD fp8_status fp8_bench_write_text(const fp8_bench_table *t, FILE *out);
FP8_NODISCARD fp8_status fp8_bench_write_csv(const fp8_bench_table *t, const char *path);
FP8_NODISCARD fp8_status fp8_bench_write_svg(const fp8_bench_table *t, const char *path);

typedef enum fp8_bench_dtype { FP8_BENCH_ALL, FP8_BENCH_BF16, FP8_BENCH_FP8 } fp8_bench_dtype;

/* Of `bench block`: heads of hidden / heads elements; batch sequences of seq tokens, behind
 * `context` more whose keys are in pages (0: none). */
typedef struct fp8_bench_block_shape {
    int64_t hidden, ffn, heads, seq, batch, context;
    fp8_bench_dtype dtype; /* of the Linears */
} fp8_bench_block_shape;

/* Of `bench generate`. */
typedef struct fp8_bench_generate_shape {
    const char *model; /* a checkpoint */
    int64_t requests, prompt_least, prompt_most, new_tokens;
} fp8_bench_generate_shape;

typedef struct fp8_bench_options {
    const char *const *shapes; /* of the benchmark's own form; none = its published list */
    int32_t num_shapes;
    fp8_bench_block_shape block; /* of bench block alone */
    fp8_bench_generate_shape generate; /* of bench generate alone */
    int64_t rounds; /* times every provider is measured */
    void (*note)(const char *line); /* what is under way; NULL = nobody listens */
    int (*interrupted)(void);       /* nonzero stops with FP8_ECANCELED; NULL = never */
} fp8_bench_options;

/* FP8 prefill. Shapes "b,h,h_kv,d,s,mask[,bias]": d may be d_qk/d_v, s may be s_q/s_kv, mask none |
 * causal | causal_br (bottom-right), bias adds a post-scale one of BF16 [1,h,s,s]. Default: the
 * twelve of docs/NOTES.md. Providers: flash (exact, fast), cuDNN FP8, cuDNN BF16, unfused; those
 * that refuse have their reason as a note. Error: relative L2 of sampled rows against F64 on the
 * operands that the provider was given. FP8_EUNSUPPORTED without CUDA. */
FP8_NODISCARD fp8_status fp8_bench_attention(fp8_bench_table *out, fp8_device *d,
                                             const fp8_bench_options *options);

/* Attention of the Flux image model as published tables have it: b 1, h 24, d 128, shapes "s"
 * (default 4096 + 128, 256, 320, 384, 448, 512), BF16 randn * randint(1..4) in, BF16 out, so that
 * quantizing is inside the time; absmax, mae and mse against FP32 on the operands in BF16. */
FP8_NODISCARD fp8_status fp8_bench_flux(fp8_bench_table *out, fp8_device *d,
                                        const fp8_bench_options *options);

/* All Linears of one decode step, every weight from memory: shapes "gemma-7b,TOKENS" or
 * "llama-8b,TOKENS" (1 to 128), with ",quantizing" as whole steps without attention too. Providers:
 * our skinny kernel, cuBLASLt by its own choice, a chain a layer with all quantizing, reading the
 * weights alone, which is the limit. Error: relative L2 of sampled outputs against F64 sums of the
 * same codes; a chain's against its steps. FP8_EUNSUPPORTED without CUDA. */
FP8_NODISCARD fp8_status fp8_bench_linear(fp8_bench_table *out, fp8_device *d,
                                          const fp8_bench_options *options);

/* FP8 products of many tokens: shapes "M,N,K[,tensor|row|blocks][,fast]", default: 8192^3, 4096^3
 * and Linears of Gemma-7B and Llama-8B sizes, per tensor and per row, exact and fast, and one in
 * 128 x 128 blocks. Providers: the algorithm that fp8_gemm_tune finds, cuBLASLt's first guess.
 * Error: relative L2 of sampled elements against F64. Forgets the process's timed choices. */
FP8_NODISCARD fp8_status fp8_bench_linear_large(fp8_bench_table *out, fp8_device *d,
                                                const fp8_bench_options *options);

/* Attention of one new token a sequence over a paged cache, caches rotated past L2: shapes
 * "b,h,h_kv,d,kv[,page]" (page 128 if not given; default: batches of 64 and 1 of docs/NOTES.md).
 * Providers: our kernels over FP8 and BF16 pages, reading as many bytes as the FP8 cache has, which
 * is the limit. Error: relative L2 of sampled rows against F64 on the pages. FP8_EUNSUPPORTED
 * without CUDA and where `pages` does not serve. */
FP8_NODISCARD fp8_status fp8_bench_decode(fp8_bench_table *out, fp8_device *d,
                                          const fp8_bench_options *options);

/* The fused producers, casts and lookups of quant/: bytes a second against a copy in the same race,
 * and microseconds at the size of a decoding step. Shapes: parts of a line's name; default: all. */
FP8_NODISCARD fp8_status fp8_bench_quant(fp8_bench_table *out, fp8_device *d,
                                         const fp8_bench_options *options);

/* A decoder block of GPT-2's form, options->block, its forward: dense with every step a pass of its
 * own, dense with residuals, biases and GELU at the products' stores, FP8 by static scales, and FP8
 * attention (its sums as the peers') besides; all but the first with q, k, v joined; each with
 * flash, fused and unfused attention, or, with a context, over pages,
 * beside reading weights, keys and values alone (x floor: times as long as that). Error: relative
 * L2 of the first sequence's output against the block in F32 on the CPU, at most 8e-2. peak_GB:
 * device memory that the block, its weights, input and output take. */
FP8_NODISCARD fp8_status fp8_bench_block(fp8_bench_table *out, fp8_device *d,
                                         const fp8_bench_options *options);

/* Serving: options->generate's requests through an engine (model/engine.h), by what is switched on;
 * wall time after loading, tokens a second, the bytes a decoding step must read and the rate that
 * comes to. On the CPU without graphs. */
FP8_NODISCARD fp8_status fp8_bench_generate(fp8_bench_table *out, fp8_device *d,
                                            const fp8_bench_options *options);

/* Norm, RoPE, cast and write of new tokens into a paged cache of codes (fp8_kv_append_run), BF16
 * in: bytes a second at 8192 tokens against a copy in the same race, and microseconds for one token
 * of each of 64 sequences. Shapes: parts of a line's name; default: all. */
FP8_NODISCARD fp8_status fp8_bench_append(fp8_bench_table *out, fp8_device *d,
                                          const fp8_bench_options *options);

#ifdef __cplusplus
}
#endif
#endif
