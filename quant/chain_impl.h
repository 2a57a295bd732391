/* quant/chain_impl.h - private: a chain as chain.c makes it and runs it step by step, and its CUDA
 * half, which makes one launch of it. */
#ifndef FP8_QUANT_CHAIN_IMPL_H
#define FP8_QUANT_CHAIN_IMPL_H
#include "quant/chain.h"
#include "quant/linear_impl.h"

typedef struct chain_launch chain_launch; /* chain_cuda.c */

struct fp8_chain {
    fp8_device *device;
    fp8_chain_step steps[FP8_CHAIN_MAX_STEPS];
    int32_t count;
    chain_launch *launch; /* NULL: not one launch, for the reason */
    const char *why;
};

/* The CUDA half; in a build without CUDA these are not there and not called. */

/* c->launch, or NULL and c->why: a build or GPU without the instructions, shapes that it does not
 * take. */
FP8_NODISCARD fp8_status chain_launch_create(fp8_chain *c);
void chain_launch_destroy(fp8_chain *c);
size_t chain_launch_workspace(const fp8_chain *c, int64_t max_tokens);
/* Checked arguments, 1 to FP8_CHAIN_MAX_TOKENS tokens. */
FP8_NODISCARD fp8_status chain_launch_run(const fp8_chain *c, const fp8_chain_call *call);
#endif
