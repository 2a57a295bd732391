/* model/engine.h - serving: requests that join and leave between steps, packed prefill in chunks
 * mixed with decoding, a paged KV cache, greedy or sampled ids.
 *
 * An engine owns the pages of one model and drives it. A step takes one token of every sequence
 * that is decoding and fills its token budget with pieces of the prompts that are not in yet,
 * oldest request first, of at most 64 prompts more than 8 tokens. A request is admitted, in the
 * order of submitting, when a place is free and the pages for its prompt and all it may make are:
 * nothing that runs is ever put back.
 *
 *   submit, poll, cancel   any thread, at any time
 *   step                   one thread at a time; nobody else may use the model meanwhile
 *
 * Memory is claimed when the engine is made; a step allocates nothing. On CUDA a step is a replay
 * of a captured graph where there is one for its size, ends with one wait for the ids, and all of
 * it runs on the model's device's stream. NOTE: of the engines of a GPU the first has attention
 * whose blocks wait for each other without a cooperative launch: no other stream of that GPU may
 * run such kernels (fp8_decode_options.early, fp8_chain) meanwhile; further engines do not. */
#ifndef FP8_MODEL_ENGINE_H
#define FP8_MODEL_ENGINE_H
#include <stddef.h>
#include <stdint.h>

#include "model/model.h"
#include "model/sample.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_engine fp8_engine;

typedef enum fp8_engine_kv {
    FP8_ENGINE_KV_AUTO, /* as the checkpoint says */
    FP8_ENGINE_KV_REAL, /* the compute type, whatever scales there are */
    FP8_ENGINE_KV_FP8   /* E4M3; the checkpoint must have scales */
} fp8_engine_kv;

/* q, k, v and gate, up of a layer in one product each, where their scales are one. The weights
 * move; the model goes on with them where they then are. */
typedef enum fp8_engine_join {
    FP8_ENGINE_JOIN_AUTO, /* on CUDA */
    FP8_ENGINE_JOIN_ALWAYS,
    FP8_ENGINE_JOIN_NEVER
} fp8_engine_join;

/* All Linears from attention's output to the next layer's q, k and v as one launch (quant/chain.h),
 * in steps of up to 128 tokens, where weights and inputs are E4M3 with static scales, q, k, v and
 * gate, up are joined, and nothing but a norm stands between. Sums are promoted, and what gate and
 * up make is not rounded before the activation: values differ by what rounding in another place
 * does. One launch is made of them where FP8_CHAIN=1 in the environment asks for it. */
typedef enum fp8_engine_chain {
    FP8_ENGINE_CHAIN_AUTO,   /* where it is one launch */
    FP8_ENGINE_CHAIN_ALWAYS, /* elsewhere its steps one after the other: for tests */
    FP8_ENGINE_CHAIN_NEVER
} fp8_engine_chain;

/* Where all that run decode, the next step is sent out before this one's ids are back, so that the
 * device does not wait for the host; it takes its ids from the device. Ids are the same. A request
 * that an id ends has been decoded once too often, one that is submitted waits a step longer. */
typedef enum fp8_engine_ahead {
    FP8_ENGINE_AHEAD_AUTO, /* where steps are graphs */
    FP8_ENGINE_AHEAD_ALWAYS,
    FP8_ENGINE_AHEAD_NEVER
} fp8_engine_ahead;

typedef struct fp8_engine_options {
    int64_t max_seqs;    /* sequences that run at once; 0: 64 */
    int64_t step_tokens; /* most tokens of a step, at least max_seqs, at most the model's
                          * max_tokens; 0: that */
    int64_t max_context; /* most tokens of a sequence, made ones included; 0: the model's
                          * max_position, at most 8192 */
    int64_t num_pages;   /* of the pool; 0: enough for max_seqs sequences of max_context */
    int32_t page_size;   /* 64 or 128 tokens; 0: 64 */
    int64_t max_requests; /* submitted and not yet collected; 0: 4 * max_seqs */
    fp8_engine_kv kv;
    fp8_engine_join join;
    fp8_engine_chain chain;
    fp8_engine_ahead ahead;
    int fp8_head;  /* 1: the output layer in E4M3, one scale a row, its input one a token */
    int no_graphs; /* 1: launch every kernel anew, as is done with a mixture of experts */
} fp8_engine_options;

/* FP8_EINVAL: sizes (expected, found); FP8_EUNSUPPORTED: a RoPE whose frequencies would change
 * within max_context, KV_FP8 without scales; FP8_ENOMEM names the bytes. `m` must outlive it. */
FP8_NODISCARD fp8_status fp8_engine_create(fp8_engine **out, fp8_model *m,
                                           const fp8_engine_options *options);
void fp8_engine_destroy(fp8_engine *e); /* NULL is fine; requests in it are dropped */

typedef struct fp8_request {
    const int32_t *prompt; /* copied */
    int64_t num_prompt;
    int64_t max_new;
    const int32_t *stop_ids; /* copied; such an id ends the request and is not given, like EOS */
    int64_t num_stop_ids;
    int ignore_eos;          /* 1: the model's EOS ids do not end it */
    fp8_sampling sampling;   /* {0}: greedy */
    fp8_token_fn on;         /* called by step with each id; nonzero ends the request. NULL: none */
    void *ctx;
} fp8_request;

typedef enum fp8_request_state {
    FP8_REQUEST_WAITING,
    FP8_REQUEST_RUNNING,
    FP8_REQUEST_FULL,     /* max_new ids were made */
    FP8_REQUEST_STOPPED,  /* EOS, a stop id, or on() */
    FP8_REQUEST_CANCELED,
    FP8_REQUEST_FAILED    /* a step failed; the engine makes no more */
} fp8_request_state;

/* *id = a number of its own, 1 and up. FP8_EINVAL: an id outside the vocabulary, a prompt or length
 * that never fits (max_context, the pool, learned positions), a bad sampling; FP8_ENOMEM:
 * max_requests are in; FP8_ECUDA: the engine is dead. */
FP8_NODISCARD fp8_status fp8_engine_submit(fp8_engine *e, const fp8_request *request, int64_t *id);

/* One step; *running = requests that wait or run after it, 0: there is nothing to do. A failure
 * fails every request that is in; after FP8_ECUDA the engine is dead: only poll and destroy. */
FP8_NODISCARD fp8_status fp8_engine_step(fp8_engine *e, int64_t *running);

/* The ids made since the last poll, at most `capacity`; *count of them, and how it stands. That it
 * has ended is said with its last ids, and then the engine forgets it: FP8_ENOTFOUND after that. */
FP8_NODISCARD fp8_status fp8_engine_poll(fp8_engine *e, int64_t id, int32_t *ids, int64_t capacity,
                                         int64_t *count, fp8_request_state *state);
/* Ends a request that waits or runs, before the next step; one that has ended is left alone. */
FP8_NODISCARD fp8_status fp8_engine_cancel(fp8_engine *e, int64_t id);

typedef struct fp8_engine_stats {
    int64_t steps, decode_steps; /* of which only decoding */
    int64_t prompt_tokens, new_tokens;
    int64_t waiting, running, free_pages, num_pages;
    int64_t replays;             /* steps that were a replay of a graph */
    int64_t launches, early;     /* kernels of the largest decoding step's graph, and of these, that
                                  * may start while the one before them still runs */
    double host_s, wait_s;       /* time of all steps: the host's own, and waiting for the device */
    size_t bytes;                /* device memory of the engine, without the model's */
} fp8_engine_stats;
void fp8_engine_get_stats(fp8_engine *e, fp8_engine_stats *out);

#ifdef __cplusplus
}
#endif
#endif
