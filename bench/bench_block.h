/* bench/bench_block.h - private: what `bench block` is made of: operands and a block of them
 * (bench_block_parts_cuda.c), its rungs (bench_block_cuda.c). */
#ifndef FP8_BENCH_BLOCK_H
#define FP8_BENCH_BLOCK_H
#include "bench/bench_impl.h"
#include "model/model.h"

enum { BLOCK_Q, BLOCK_K, BLOCK_V, BLOCK_O, BLOCK_UP, BLOCK_DOWN, BLOCK_WEIGHTS };
/* BLOCK_FP8_FAST: as the one before it, and the Linears' sums as Hopper's FP8 accumulators keep
 * them, which is what other libraries do in a forward. */
enum {
    BLOCK_PLAIN,
    BLOCK_FUSED,
    BLOCK_FP8,
    BLOCK_FP8_ATTENTION,
    BLOCK_FP8_FAST,
    BLOCK_PRECISIONS
};

/* Host operands, BF16, and what the first sequence of the block in F32 was. */
typedef struct block_problem {
    fp8_bench_block_shape shape;
    fp8_device *d, *cpu;
    uint16_t *w[BLOCK_WEIGHTS], *bias; /* bias: zeros and small numbers, of every Linear */
    uint16_t *x;  /* [tokens, hidden]; with a context [context + seq, hidden], of every sequence */
    float *want;  /* [seq, hidden]: the last ones of the first sequence */
    float amax[FP8_NUM_POINTS];
    int64_t tokens; /* of a forward */
} block_problem;

/* A block of the operands, and what it is called with. */
typedef struct block_run {
    block_problem *p;
    int precision;
    fp8_attention_backend backend;
    fp8_linear *linears[BLOCK_WEIGHTS], *joined; /* joined: q, k, v */
    fp8_block *block;
    fp8_block_spec spec;
    fp8_tensor x, y;
    void *owned[4]; /* norms' weights and biases */
    int32_t *starts, *lengths, *table; /* the last two with a context */
    fp8_block_batch batch;
    fp8_kv_pages pages;
    fp8_kv_batch keys;
    double error, gb;
    char note[256];
} block_run;

/* Random normal data, the same for the same shape. */
FP8_NODISCARD fp8_status bench_block_operands(block_problem *p);
/* r->block on `d` for forwards of so many tokens, by r's precision and backend; F32 on the CPU. */
FP8_NODISCARD fp8_status bench_block_make(block_run *r, fp8_device *d, int64_t tokens);
/* x, y and starts of `seqs` sequences, x from the host's as the compute type has it. */
FP8_NODISCARD fp8_status bench_block_batch(block_run *r, fp8_device *d, int64_t seqs);
/* The same before a context: pages, and all tokens of it through the block, so that the next
 * forward, and every one after it, is of the last shape.seq tokens. */
FP8_NODISCARD fp8_status bench_block_context(block_run *r);
FP8_NODISCARD fp8_status bench_block_call(void *run); /* one forward; void *: a bench_contender's */
void bench_block_free(block_run *r, fp8_device *d);

#endif
