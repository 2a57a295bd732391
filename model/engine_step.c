/* A step: which tokens go in, and who is done. */
#include "core/range.h"
#include "model/engine_impl.h"

/* ---- which tokens ---------------------------------------------------------------------------- */

/* One token of every sequence that decodes, then pieces of prompts, oldest first, until the budget
 * or the number of such pieces is spent. Returns the step's tokens. */
static int64_t choose_parts(fp8_engine *e) {
    int64_t tokens = 0, budget = e->o.step_tokens, chunks = ENGINE_MAX_CHUNKS;

    e->num_parts = 0;
    for (int64_t i = 0; i < e->num_running; i++)
        budget -= e->running[i]->count - e->running[i]->cached == 1;
    for (int64_t i = 0; i < e->num_running; i++) {
        engine_request *r = e->running[i];
        const int64_t left = r->count - r->cached;
        const int64_t n = left == 1 ? 1 : left < budget ? left : budget;
        const int is_chunk = n > FP8_DECODE_ROWS;
        if (n == 0 || (is_chunk && chunks == 0)) continue;
        chunks -= is_chunk;
        if (left > 1) budget -= n;
        e->parts[e->num_parts++] = (engine_part){r, n, -1};
        tokens += n;
    }
    return tokens;
}

/* ---- who is done ----------------------------------------------------------------------------- */

static int stops(const fp8_engine *e, const engine_request *r, int32_t id) {
    const fp8_model_config *c = &e->m->config;
    for (int32_t i = 0; !r->ignore_eos && i < c->num_eos; i++)
        if (c->eos_ids[i] == id) return 1;
    for (int64_t i = 0; i < r->num_stop_ids; i++)
        if (r->stop_ids[i] == id) return 1;
    return 0;
}

/* One new id of a request; on() is called without the lock, so that it may submit or cancel. */
static void take_id(fp8_engine *e, engine_request *r, int32_t id) {
    int ended = stops(e, r, id);

    pthread_mutex_lock(&e->lock);
    if (ended) {
        engine_end(e, r, FP8_REQUEST_STOPPED);
    } else {
        r->tokens[r->count++] = id;
        e->stats.new_tokens++;
    }
    pthread_mutex_unlock(&e->lock);
    if (ended) return;
    ended = r->on && r->on(r->ctx, id);
    pthread_mutex_lock(&e->lock);
    if (ended) engine_end(e, r, FP8_REQUEST_STOPPED);
    else if (r->count == r->num_prompt + r->max_new) engine_end(e, r, FP8_REQUEST_FULL);
    pthread_mutex_unlock(&e->lock);
}

/* Requests that have ended since the step was sent out get nothing; they may be gone. */
static int is_running(const fp8_engine *e, const engine_request *r) {
    for (int64_t i = 0; i < e->num_running; i++)
        if (e->running[i] == r) return 1;
    return 0;
}

static void deliver(fp8_engine *e, const engine_flight *f) {
    for (int64_t s = 0; s < e->num_parts; s++) {
        const engine_part *p = &e->parts[s];
        if (!is_running(e, p->request)) continue;
        p->request->cached += p->tokens;
        if (p->row >= 0) take_id(e, p->request, e->chosen_host[f->slot][p->row]);
    }
}

/* ---- the step -------------------------------------------------------------------------------- */

static int64_t count_prompt_tokens(const fp8_engine *e, int64_t tokens) {
    for (int64_t s = 0; s < e->num_parts; s++) /* what is left is of prompts */
        tokens -= e->parts[s].request->cached >= e->parts[s].request->num_prompt;
    return tokens;
}

static void count_step(fp8_engine *e, const engine_flight *f) {
    e->stats.steps++;
    e->stats.decode_steps += f->decoding;
    e->stats.prompt_tokens += f->prompt_tokens;
    e->stats.replays += f->replayed;
}

/* Is the step after the one under way known before its ids are: the same sequences, one token
 * each? An id may end a request all the same; then what the step makes for it is dropped. */
static int goes_on(const fp8_engine *e) {
    const int admits = e->first && e->num_running < e->o.max_seqs &&
                       e->first->num_pages <= e->num_free;

    if (!e->ahead || !e->flight.decoding || admits || e->num_parts != e->num_running) return 0;
    for (int64_t s = 0; s < e->num_parts; s++) {
        const engine_request *r = e->parts[s].request;
        if (e->running[s] != r) return 0; /* it may be gone */
        if (e->parts[s].row != s) return 0; /* one token of a prompt looks like decoding */
        if (r->canceled || r->count + 1 >= r->num_prompt + r->max_new) return 0;
    }
    return 1;
}

/* Sends out a step, unless one is under way; tells its tokens, 0: there is nothing to do. */
static fp8_status send_out(fp8_engine *e) {
    fp8_status st = FP8_OK;
    int64_t tokens = 0;

    fp8_range_begin("plan");
    pthread_mutex_lock(&e->lock);
    if (e->dead) st = FP8_FAIL(FP8_ECUDA, "the engine is dead: a CUDA call failed in a step");
    if (st == FP8_OK) engine_drop_canceled(e);
    if (st == FP8_OK && !e->flight.tokens) {
        engine_admit(e);
        tokens = choose_parts(e);
    }
    pthread_mutex_unlock(&e->lock);
    fp8_range_end();
    if (tokens == 0) return st;
    e->flight = (engine_flight){.tokens = tokens,
                                .prompt_tokens = count_prompt_tokens(e, tokens),
                                .decoding = tokens == e->num_parts};
    return engine_launch(e, &e->flight);
}

/* The step under way to its end, and before that the next one sent out if it is known. */
static fp8_status land(fp8_engine *e, engine_flight *next) {
    fp8_status st = FP8_OK;
    int more;

    pthread_mutex_lock(&e->lock);
    more = goes_on(e);
    pthread_mutex_unlock(&e->lock);
    if (more) {
        *next = (engine_flight){.tokens = e->flight.tokens, .decoding = 1,
                                .slot = !e->flight.slot};
        FP8_TRY(engine_launch_next(e, next));
    }
    FP8_TRY(engine_wait(e, &e->flight));
done:
    return st;
}

fp8_status fp8_engine_step(fp8_engine *e, int64_t *running) {
    const double begin = engine_now();
    engine_flight next = {0}, landed;
    fp8_status st;

    *running = 0;
    e->waited = 0;
    fp8_range_begin("step");
    st = send_out(e);
    if (st == FP8_OK && e->flight.tokens) st = land(e, &next);
    landed = e->flight;
    e->flight = next;
    fp8_range_begin("deliver");
    pthread_mutex_lock(&e->lock);
    if (st != FP8_OK) {
        e->dead |= st == FP8_ECUDA;
        e->flight.tokens = 0;
        engine_fail_all(e);
    } else if (landed.tokens > 0) {
        count_step(e, &landed);
    }
    pthread_mutex_unlock(&e->lock);
    if (st == FP8_OK && landed.tokens > 0) deliver(e, &landed);
    pthread_mutex_lock(&e->lock);
    *running = e->num_running + (e->first != NULL);
    e->stats.wait_s += e->waited;
    e->stats.host_s += engine_now() - begin - e->waited;
    pthread_mutex_unlock(&e->lock);
    fp8_range_end();
    fp8_range_end();
    return st;
}
