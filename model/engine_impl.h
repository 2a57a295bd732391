/* model/engine_impl.h - private: what an engine and a request are, and what its files do for each
 * other: engine.c (life, plans, graphs), engine_requests.c (who is in), engine_step.c (a step),
 * engine_flight.c (its way over the device). */
#ifndef FP8_MODEL_ENGINE_IMPL_H
#define FP8_MODEL_ENGINE_IMPL_H
#include <pthread.h>

#include "core/graph.h"
#include "model/engine.h"
#include "model/model_impl.h"

typedef struct engine_request {
    int64_t id;
    fp8_request_state state;
    int32_t *tokens; /* prompt, then what was made; room for all */
    int64_t num_prompt, max_new, count;
    int64_t cached; /* tokens whose keys are in the pages */
    int64_t polled; /* made ids that poll has given */
    int32_t *stop_ids;
    int64_t num_stop_ids;
    int ignore_eos, canceled;
    fp8_sampling sampling;
    fp8_token_fn on;
    void *ctx;
    int32_t *pages; /* those it holds, in order of its tokens */
    int64_t num_pages;
    struct engine_request *next; /* of those that wait */
} engine_request;

/* Sizes of steps that share plans and, on CUDA, a graph. */
typedef struct engine_kind {
    int64_t seqs, tokens; /* the most it takes; with graphs every step has just these */
    int64_t max_q;        /* tokens of a sequence, at most: 1 where all decode */
    int whole;            /* attention takes a sequence's keys of a head as one part: for lengths
                           * that are even enough (engine_flight.c), of the same sizes as the kind
                           * before it */
    fp8_decode_plan *plans[2]; /* of layers without and with a window */
    fp8_decode_plan **layers;  /* [num_layers] of these */
    fp8_graph *graph;          /* of the whole step; NULL: not captured */
} engine_kind;

/* What a step is given, on its way to the device in one copy. */
typedef struct engine_inputs {
    int32_t *ids, *positions;                 /* [step_tokens] */
    int32_t *q_starts, *kv_lengths, *last;    /* [max_seqs + 1], [max_seqs], [max_seqs] */
    fp8_sample_row *rows;                     /* [max_seqs] */
    int32_t *table;                           /* [max_seqs, max_pages] */
    int32_t *turn;                            /* [max_seqs]: to which chosen_host a row's id goes */
} engine_inputs;

/* A sequence's part in the step under way. */
typedef struct engine_part {
    engine_request *request;
    int64_t tokens; /* of it, in this step */
    int64_t row;    /* of the step's ids; -1: it makes none */
} engine_part;

/* A step that was sent out. The parts are the engine's: of two under way they are the same. */
typedef struct engine_flight {
    int64_t tokens; /* 0: none */
    int64_t made, prompt_tokens;
    int decoding, replayed;
    int slot; /* where its ids come back to */
} engine_flight;

enum {
    ENGINE_MAX_KINDS = 64,
    ENGINE_MAX_CHUNKS = 64 /* prompts of which a step takes more than FP8_DECODE_ROWS tokens: the
                            * copies of their keys are sized for so many, and attention's grid */
};

struct fp8_engine {
    fp8_model *m;
    fp8_device *device;
    fp8_engine_options o; /* defaults filled in */
    int graphs;
    int early; /* the engine of its GPU whose attention begins early */
    int dead; /* a CUDA call failed */

    pthread_mutex_t lock; /* of all below but what only a step looks at */
    engine_request **requests; /* [max_requests]; NULL: free */
    int64_t num_requests, next_id;
    engine_request *first, *last; /* waiting */
    engine_request **running;     /* [max_seqs], oldest first */
    int64_t num_running;
    int32_t *free_pages; /* [num_pages]; a stack */
    int64_t num_free;
    fp8_engine_stats stats;

    /* a step's */
    int64_t max_pages; /* of a sequence */
    fp8_kv_pages *pages; /* [num_layers] */
    void *pool;
    fp8_linear *head; /* NULL: the model's own */
    engine_kind kinds[ENGINE_MAX_KINDS];
    int num_kinds, num_decode_kinds; /* decoding kinds first, both by rising size */
    void *host, *place; /* pinned, device: the inputs */
    size_t input_bytes;
    engine_inputs in, on_device;
    int32_t *chosen, *chosen_host[2]; /* [max_seqs] */
    fp8_event *landed[2]; /* the ids are in chosen_host */
    int ahead; /* a step that is known is sent out before the ids of the one before are there */
    engine_flight flight; /* what the next call of step delivers, if it is under way already */
    engine_part *parts; /* [max_seqs] */
    double waited; /* seconds, for the device */
    int64_t num_parts;
};

/* Requests (engine_requests.c); the lock is held. */
void engine_admit(fp8_engine *e);           /* from waiting to running, while there is room */
void engine_drop_canceled(fp8_engine *e);
/* Its pages are free again; it stays until poll has given its ids. */
void engine_end(fp8_engine *e, engine_request *r, fp8_request_state state);
void engine_fail_all(fp8_engine *e);
void engine_forget_all(fp8_engine *e);      /* frees every request */

/* A step on its way (engine_flight.c): of the parts; of the same parts, one token later; until its
 * ids are there. */
fp8_status engine_launch(fp8_engine *e, engine_flight *f);
fp8_status engine_launch_next(fp8_engine *e, engine_flight *f);
fp8_status engine_wait(fp8_engine *e, const engine_flight *f);
double engine_now(void); /* seconds */

/* All that the device does in a step, from inputs that are there to ids in chosen_host
 * (engine_flight.c): of so many tokens and sequences, of which the first `made` rows of `last` make
 * an id. Captured where there are graphs. */
fp8_status engine_work(fp8_engine *e, const engine_kind *k, int64_t tokens, int64_t seqs,
                       int64_t made);
/* Are q, k, v and gate, up one product? (engine.c) */
int engine_joins(const fp8_engine *e);
fp8_chains engine_chains(const fp8_engine *e);
/* Do Q and what attention leaves go on as codes? (engine.c) */
int engine_q_codes(const fp8_engine *e);
int engine_o_codes(const fp8_engine *e);

#endif
