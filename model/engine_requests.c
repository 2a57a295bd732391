/* Who is in: submitting, polling, canceling, and the way from waiting to running to ended. */
#include <stdlib.h>
#include <string.h>

#include "model/engine_impl.h"

/* ---- pages and places ------------------------------------------------------------------------ */

/* Pages for all it may bring: the last id is never fed back. */
static int64_t pages_for(const fp8_engine *e, int64_t num_prompt, int64_t max_new) {
    const int64_t tokens = num_prompt + max_new - 1;
    return (tokens + e->o.page_size - 1) / e->o.page_size;
}

void engine_admit(fp8_engine *e) {
    while (e->first && e->num_running < e->o.max_seqs && e->first->num_pages <= e->num_free) {
        engine_request *r = e->first;
        e->first = r->next;
        if (!e->first) e->last = NULL;
        r->next = NULL;
        for (int64_t i = 0; i < r->num_pages; i++) r->pages[i] = e->free_pages[--e->num_free];
        r->state = FP8_REQUEST_RUNNING;
        e->running[e->num_running++] = r;
    }
}

void engine_end(fp8_engine *e, engine_request *r, fp8_request_state state) {
    int64_t at = 0;

    r->state = state;
    while (at < e->num_running && e->running[at] != r) at++;
    if (at == e->num_running) return; /* it waited */
    e->num_running--;
    for (; at < e->num_running; at++) e->running[at] = e->running[at + 1];
    for (int64_t i = r->num_pages; i-- > 0;) e->free_pages[e->num_free++] = r->pages[i];
}

static void end_waiting(fp8_engine *e, engine_request *r, fp8_request_state state) {
    engine_request **at = &e->first, *before = NULL;

    while (*at != r) {
        before = *at;
        at = &(*at)->next;
    }
    *at = r->next;
    if (e->last == r) e->last = before;
    r->next = NULL;
    engine_end(e, r, state);
}

void engine_drop_canceled(fp8_engine *e) {
    for (int64_t i = e->num_running; i-- > 0;)
        if (e->running[i]->canceled) engine_end(e, e->running[i], FP8_REQUEST_CANCELED);
}

void engine_fail_all(fp8_engine *e) {
    while (e->num_running) engine_end(e, e->running[e->num_running - 1], FP8_REQUEST_FAILED);
    while (e->first) end_waiting(e, e->first, FP8_REQUEST_FAILED);
}

/* ---- submit ---------------------------------------------------------------------------------- */

static void free_request(engine_request *r) {
    if (!r) return;
    free(r->tokens);
    free(r->stop_ids);
    free(r->pages);
    free(r);
}

void engine_forget_all(fp8_engine *e) {
    for (int64_t i = 0; i < e->o.max_requests; i++) {
        free_request(e->requests[i]);
        e->requests[i] = NULL;
    }
}

static fp8_status check_request(const fp8_engine *e, const fp8_request *q) {
    const fp8_model_config *c = &e->m->config;
    const int64_t total = q->num_prompt + q->max_new;

    if (!q->prompt || q->num_prompt < 1)
        return FP8_FAIL(FP8_EINVAL, "request: a prompt of %lld tokens, expected 1 or more",
                        (long long)q->num_prompt);
    if (q->num_stop_ids < 0 || (q->num_stop_ids && !q->stop_ids))
        return FP8_FAIL(FP8_EINVAL, "request: %lld stop ids at NULL", (long long)q->num_stop_ids);
    for (int64_t i = 0; i < q->num_prompt; i++)
        if (q->prompt[i] < 0 || q->prompt[i] >= c->vocab_size)
            return FP8_FAIL(FP8_EINVAL, "request: prompt[%lld] is %d, the vocabulary has %lld",
                            (long long)i, q->prompt[i], (long long)c->vocab_size);
    if (q->max_new < 1 || q->max_new > INT32_MAX || q->num_prompt > INT32_MAX ||
        total > e->o.max_context)
        return FP8_FAIL(FP8_EINVAL, "request: %lld prompt tokens and %lld new ones, a sequence has "
                        "at most %lld", (long long)q->num_prompt, (long long)q->max_new,
                        (long long)e->o.max_context);
    if (pages_for(e, q->num_prompt, q->max_new) > e->o.num_pages)
        return FP8_FAIL(FP8_EINVAL, "request: %lld tokens need %lld pages, the pool has %lld",
                        (long long)total,
                        (long long)pages_for(e, q->num_prompt, q->max_new),
                        (long long)e->o.num_pages);
    return fp8_sampling_check(&q->sampling);
}

static fp8_status copy_request(engine_request **out, const fp8_engine *e, const fp8_request *q) {
    engine_request *r = calloc(1, sizeof *r);
    fp8_status st = FP8_OK;

    if (!r) return FP8_FAIL(FP8_ENOMEM, "request");
    r->num_pages = pages_for(e, q->num_prompt, q->max_new);
    r->tokens = malloc((size_t)(q->num_prompt + q->max_new) * sizeof *r->tokens);
    r->pages = malloc((size_t)r->num_pages * sizeof *r->pages);
    r->stop_ids = malloc(((size_t)q->num_stop_ids + 1) * sizeof *r->stop_ids);
    if (!r->tokens || !r->pages || !r->stop_ids) {
        st = FP8_FAIL(FP8_ENOMEM, "request of %lld tokens",
                      (long long)(q->num_prompt + q->max_new));
        goto done;
    }
    memcpy(r->tokens, q->prompt, (size_t)q->num_prompt * sizeof *r->tokens);
    if (q->num_stop_ids)
        memcpy(r->stop_ids, q->stop_ids, (size_t)q->num_stop_ids * sizeof *r->stop_ids);
    r->count = r->num_prompt = q->num_prompt;
    r->max_new = q->max_new;
    r->num_stop_ids = q->num_stop_ids;
    r->ignore_eos = q->ignore_eos;
    r->sampling = q->sampling;
    r->on = q->on;
    r->ctx = q->ctx;
    *out = r;
    r = NULL;
done:
    free_request(r);
    return st;
}

fp8_status fp8_engine_submit(fp8_engine *e, const fp8_request *request, int64_t *id) {
    engine_request *r = NULL;
    fp8_status st = FP8_OK;
    int64_t place = 0;

    *id = 0;
    FP8_TRY(check_request(e, request));
    FP8_TRY(copy_request(&r, e, request));
    pthread_mutex_lock(&e->lock);
    while (place < e->o.max_requests && e->requests[place]) place++;
    if (e->dead) {
        st = FP8_FAIL(FP8_ECUDA, "the engine is dead: a CUDA call failed in a step");
    } else if (place == e->o.max_requests) {
        st = FP8_FAIL(FP8_ENOMEM, "%lld requests are in, the most this engine takes",
                      (long long)e->o.max_requests);
    } else {
        r->id = *id = ++e->next_id;
        e->requests[place] = r;
        e->num_requests++;
        if (e->last) e->last->next = r;
        else e->first = r;
        e->last = r;
        r = NULL;
    }
    pthread_mutex_unlock(&e->lock);
done:
    free_request(r);
    return st;
}

/* ---- poll, cancel ---------------------------------------------------------------------------- */

/* Its place, or max_requests; the lock is held. */
static int64_t find(const fp8_engine *e, int64_t id) {
    int64_t i = 0;
    while (i < e->o.max_requests && !(e->requests[i] && e->requests[i]->id == id)) i++;
    return i;
}

static fp8_status unknown(int64_t id) {
    return FP8_FAIL(FP8_ENOTFOUND, "request %lld is not in, or its last ids were given",
                    (long long)id);
}

fp8_status fp8_engine_poll(fp8_engine *e, int64_t id, int32_t *ids, int64_t capacity,
                           int64_t *count, fp8_request_state *state) {
    engine_request *r;
    int64_t place, n;
    int given;

    *count = 0;
    pthread_mutex_lock(&e->lock);
    place = find(e, id);
    if (place == e->o.max_requests) {
        pthread_mutex_unlock(&e->lock);
        return unknown(id);
    }
    r = e->requests[place];
    n = r->count - r->num_prompt - r->polled;
    if (n > capacity) n = capacity;
    if (n > 0) memcpy(ids, r->tokens + r->num_prompt + r->polled, (size_t)n * sizeof *ids);
    if (n > 0) r->polled += n;
    *count = n > 0 ? n : 0;
    given = r->polled == r->count - r->num_prompt;
    *state = given || r->state <= FP8_REQUEST_RUNNING ? r->state : FP8_REQUEST_RUNNING;
    if (given && r->state > FP8_REQUEST_RUNNING) {
        e->requests[place] = NULL;
        e->num_requests--;
        free_request(r);
    }
    pthread_mutex_unlock(&e->lock);
    return FP8_OK;
}

fp8_status fp8_engine_cancel(fp8_engine *e, int64_t id) {
    fp8_status st = FP8_OK;
    int64_t place;

    pthread_mutex_lock(&e->lock);
    place = find(e, id);
    if (place == e->o.max_requests) st = unknown(id);
    else if (e->requests[place]->state == FP8_REQUEST_WAITING)
        end_waiting(e, e->requests[place], FP8_REQUEST_CANCELED);
    else
        e->requests[place]->canceled = 1;
    pthread_mutex_unlock(&e->lock);
    return st;
}

void fp8_engine_get_stats(fp8_engine *e, fp8_engine_stats *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    out->running = e->num_running;
    out->waiting = 0;
    for (const engine_request *r = e->first; r; r = r->next) out->waiting++;
    out->free_pages = e->num_free;
    out->num_pages = e->o.num_pages;
    pthread_mutex_unlock(&e->lock);
}
