/* A step: which tokens go in, the forward, the choice of ids, and who is done. */
#include <string.h>
#include <time.h>

#include "core/range.h"
#include "model/engine_impl.h"
#include "model/inputs_cuda.h"

/* ---- which tokens ---------------------------------------------------------------------------- */

/* One token of every sequence that decodes, then pieces of prompts, oldest first, until the budget
 * is spent. Returns the step's tokens. */
static int64_t choose_parts(fp8_engine *e) {
    int64_t tokens = 0, budget = e->o.step_tokens;

    e->num_parts = 0;
    for (int64_t i = 0; i < e->num_running; i++)
        budget -= e->running[i]->count - e->running[i]->cached == 1;
    for (int64_t i = 0; i < e->num_running; i++) {
        engine_request *r = e->running[i];
        const int64_t left = r->count - r->cached;
        const int64_t n = left == 1 ? 1 : left < budget ? left : budget;
        if (left > 1) budget -= n;
        if (n == 0) continue;
        e->parts[e->num_parts++] = (engine_part){r, n};
        tokens += n;
    }
    return tokens;
}

static int makes_id(const engine_part *p) {
    return p->request->cached + p->tokens == p->request->count;
}

/* The inputs of the parts; of `seqs` sequences and `tokens` tokens, what is beyond the parts is of
 * no sequence. Returns how many parts make an id: their rows are the first of `last`. */
static int64_t fill_inputs(fp8_engine *e, int64_t seqs, int64_t tokens) {
    const engine_inputs *in = &e->in;
    int64_t at = 0, made = 0;

    for (int64_t s = 0; s < e->num_parts; s++) {
        const engine_part *p = &e->parts[s];
        const engine_request *r = p->request;
        in->q_starts[s] = (int32_t)at;
        in->kv_lengths[s] = (int32_t)(r->cached + p->tokens);
        for (int64_t i = 0; i < p->tokens; i++, at++) {
            in->ids[at] = r->tokens[r->cached + i];
            in->positions[at] = (int32_t)(r->cached + i);
        }
        memcpy(in->table + s * e->max_pages, r->pages, (size_t)r->num_pages * sizeof *r->pages);
        if (!makes_id(p)) continue;
        in->last[made] = (int32_t)(at - 1);
        in->rows[made++] = (fp8_sample_row){r->sampling, r->count};
    }
    for (int64_t i = at; i < tokens; i++) in->ids[i] = in->positions[i] = 0;
    for (int64_t s = e->num_parts; s <= seqs; s++) in->q_starts[s] = (int32_t)at;
    for (int64_t s = e->num_parts; s < seqs; s++) in->kv_lengths[s] = 0;
    for (int64_t s = made; s < seqs; s++) in->last[s] = 0;
    return made;
}

/* ---- the forward ----------------------------------------------------------------------------- */

static const engine_kind *kind_for(const fp8_engine *e, int64_t tokens) {
    const int decoding = tokens == e->num_parts;
    const engine_kind *k = &e->kinds[decoding ? 0 : e->num_decode_kinds];
    while (decoding ? k->seqs < e->num_parts : k->tokens < tokens) k++;
    return k;
}

static fp8_status send(fp8_engine *e) {
#if FP8_CUDA
    if (fp8_device_place(e->device) == FP8_PLACE_CUDA)
        return fp8_inputs_copy_cuda(e->device, (int32_t *)e->place, (int32_t *)e->host,
                                    e->input_bytes);
#endif
    return fp8_device_upload(e->device, e->place, e->host, e->input_bytes);
}

static int all_greedy(const fp8_engine *e, int64_t made) {
    for (int64_t i = 0; i < made; i++)
        if (e->in.rows[i].how.temperature != 0.0f) return 0;
    return 1;
}

/* ids of the first `made` rows of logits, in chosen_host. */
static fp8_status choose_ids(fp8_engine *e, const fp8_tensor *logits, int64_t made) {
    const int64_t vocab = e->m->config.vocab_size;
    fp8_status st = FP8_OK;

    if (made == 0) return FP8_OK;
    if (all_greedy(e, made))
        FP8_TRY(fp8_top_k(e->device, e->chosen, NULL, logits->data, logits->dtype, made, vocab, 0,
                          1, FP8_LAUNCH_OVERLAP));
    else
        FP8_TRY(fp8_sample(e->device, e->chosen, logits->data, e->on_device.rows, made, vocab));
    FP8_TRY(fp8_device_download_async(e->device, e->chosen_host, e->chosen,
                                      (size_t)made * sizeof *e->chosen));
done:
    return st;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static fp8_status wait(fp8_engine *e) {
    const double begin = now();
    const fp8_status st = FP8_IN_RANGE("wait", fp8_device_sync(e->device));

    e->waited = now() - begin;
    return st;
}

/* The step on the device, to the end. */
static fp8_status compute(fp8_engine *e, int64_t tokens, int *replayed) {
    const engine_kind *k = kind_for(e, tokens);
    fp8_tensor logits = k->logits;
    fp8_status st = FP8_OK;
    int64_t made;

    *replayed = k->graph != NULL;
    made = fill_inputs(e, *replayed ? k->seqs : e->num_parts, *replayed ? k->tokens : tokens);
    FP8_TRY(FP8_IN_RANGE("inputs", send(e)));
    if (k->graph) FP8_TRY(FP8_IN_RANGE("forward, replayed", fp8_graph_launch(k->graph)));
    else FP8_TRY(FP8_IN_RANGE("forward", engine_forward(e, k, tokens, e->num_parts, &logits)));
    FP8_TRY(FP8_IN_RANGE("choice of ids", choose_ids(e, &logits, made)));
    FP8_TRY(wait(e));
done:
    return st;
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

static void deliver(fp8_engine *e) {
    int64_t made = 0;

    for (int64_t s = 0; s < e->num_parts; s++) {
        const engine_part *p = &e->parts[s];
        const int id = makes_id(p);
        p->request->cached += p->tokens;
        if (id) take_id(e, p->request, e->chosen_host[made++]);
    }
}

/* ---- the step -------------------------------------------------------------------------------- */

static void count_step(fp8_engine *e, int64_t tokens, int replayed) {
    int64_t fed = 0; /* ids that were made before: the rest are of prompts */

    for (int64_t s = 0; s < e->num_parts; s++)
        fed += e->parts[s].request->cached >= e->parts[s].request->num_prompt;
    e->stats.steps++;
    e->stats.decode_steps += tokens == e->num_parts;
    e->stats.prompt_tokens += tokens - fed;
    e->stats.replays += replayed;
}

fp8_status fp8_engine_step(fp8_engine *e, int64_t *running) {
    const double begin = now();
    fp8_status st = FP8_OK;
    int64_t tokens = 0;
    int replayed = 0;

    *running = 0;
    e->waited = 0;
    fp8_range_begin("step");
    fp8_range_begin("plan");
    pthread_mutex_lock(&e->lock);
    if (e->dead) st = FP8_FAIL(FP8_ECUDA, "the engine is dead: a CUDA call failed in a step");
    if (st == FP8_OK) {
        engine_drop_canceled(e);
        engine_admit(e);
        tokens = choose_parts(e);
    }
    pthread_mutex_unlock(&e->lock);
    fp8_range_end();
    if (st == FP8_OK && tokens > 0) st = compute(e, tokens, &replayed);
    fp8_range_begin("deliver");
    pthread_mutex_lock(&e->lock);
    if (st != FP8_OK) {
        e->dead |= st == FP8_ECUDA;
        engine_fail_all(e);
    } else if (tokens > 0) {
        count_step(e, tokens, replayed);
    }
    pthread_mutex_unlock(&e->lock);
    if (st == FP8_OK && tokens > 0) deliver(e);
    pthread_mutex_lock(&e->lock);
    *running = e->num_running + (e->first != NULL);
    e->stats.wait_s += e->waited;
    e->stats.host_s += now() - begin - e->waited;
    pthread_mutex_unlock(&e->lock);
    fp8_range_end();
    fp8_range_end();
    return st;
}
