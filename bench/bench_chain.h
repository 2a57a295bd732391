/* bench/bench_chain.h - private: the Linears of a decode step as chains (quant/chain.h), one a
 * layer, for `bench linear`. */
#ifndef FP8_BENCH_CHAIN_H
#define FP8_BENCH_CHAIN_H
#include "core/device.h"

enum { CHAIN_LINEARS = 4 }; /* q k v, o, gate and up, down */

/* Weights [n, k] of each in turn, layer by layer, are E4M3 codes in the place of the device. */
typedef struct bench_chain_shape {
    int64_t layers, n[CHAIN_LINEARS], k[CHAIN_LINEARS], max_tokens;
    const uint8_t *weights;
    const uint8_t *x; /* codes [max_tokens, k[1]], for the check */
} bench_chain_shape;

typedef struct bench_chain bench_chain;

/* FP8_EUNSUPPORTED, with the reason: the device makes no one launch of them. */
FP8_NODISCARD fp8_status bench_chain_create(bench_chain **out, fp8_device *d,
                                            const bench_chain_shape *shape);
void bench_chain_destroy(bench_chain *b); /* NULL is fine */

/* A step: norm and q k v of layer 0; then for each layer a cast in attention's place, and one
 * launch. Asynchronous, can be captured. */
FP8_NODISCARD fp8_status bench_chain_step(const bench_chain *b, int64_t tokens);

/* *error = the largest relative L2 of what the first, middle and last layer's launch leaves against
 * the same layer step by step. Waits. */
FP8_NODISCARD fp8_status bench_chain_check(bench_chain *b, int64_t tokens, double *error);

#endif
