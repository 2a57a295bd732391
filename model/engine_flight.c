/* A step on its way: its inputs to the device, the forward, the choice of ids and their way back.
 * With graphs all but the inputs is one replay. Nothing waits here but engine_wait. */
#include <string.h>
#include <time.h>

#include "core/range.h"
#include "model/engine_impl.h"
#include "model/inputs_cuda.h"

/* ---- inputs ---------------------------------------------------------------------------------- */

static int makes_id(const engine_part *p) {
    return p->request->cached + p->tokens == p->request->count;
}

/* The inputs of the parts; of `seqs` sequences and `tokens` tokens, what is beyond the parts is of
 * no sequence. Returns how many parts make an id: their rows are the first of `last`. */
static int64_t fill_inputs(fp8_engine *e, int64_t seqs, int64_t tokens, int slot) {
    const engine_inputs *in = &e->in;
    int64_t at = 0, made = 0;

    for (int64_t s = 0; s < e->num_parts; s++) {
        engine_part *p = &e->parts[s];
        const engine_request *r = p->request;
        in->q_starts[s] = (int32_t)at;
        in->kv_lengths[s] = (int32_t)(r->cached + p->tokens);
        for (int64_t i = 0; i < p->tokens; i++, at++) {
            in->ids[at] = r->tokens[r->cached + i];
            in->positions[at] = (int32_t)(r->cached + i);
        }
        memcpy(in->table + s * e->max_pages, r->pages, (size_t)r->num_pages * sizeof *r->pages);
        if (!makes_id(p)) continue;
        p->row = made;
        in->last[made] = (int32_t)(at - 1);
        in->rows[made++] = (fp8_sample_row){r->sampling, r->count};
    }
    for (int64_t i = at; i < tokens; i++) in->ids[i] = in->positions[i] = 0;
    for (int64_t s = e->num_parts; s <= seqs; s++) in->q_starts[s] = (int32_t)at;
    for (int64_t s = e->num_parts; s < seqs; s++) in->kv_lengths[s] = 0;
    for (int64_t s = made; s < seqs; s++) in->last[s] = 0;
    for (int64_t s = made; s < seqs; s++) in->rows[s] = (fp8_sample_row){0};
    for (int64_t s = 0; s < seqs; s++) in->turn[s] = slot;
    return made;
}

static fp8_status send(fp8_engine *e) {
#if FP8_CUDA
    if (fp8_device_place(e->device) == FP8_PLACE_CUDA)
        return fp8_inputs_copy_cuda(e->device, (int32_t *)e->place, (int32_t *)e->host,
                                    e->input_bytes);
#endif
    return fp8_device_upload(e->device, e->place, e->host, e->input_bytes);
}

/* ---- the forward ----------------------------------------------------------------------------- */

/* Would whole items, a head of a sequence each, be nearly even shares of the blocks? The busiest
 * one may read so much more than the average as takes no longer than the parts of items, where they
 * are cut, cost: some 5 us. */
static int is_even(const fp8_engine *e, const engine_kind *k) {
    const int64_t slack_bytes = 192 << 10;
    const fp8_kv_pages *p = &e->pages[0];
    const int64_t heads = p->num_kv_heads, items = e->num_parts * heads;
    const int64_t key_bytes = (p->d_qk + p->d_v) * (int64_t)fp8_dtype_size(p->dtype);
    const int64_t blocks = fp8_decode_plan_blocks(k->layers[0]);
    int64_t all = 0, most = 0;

    for (int64_t b = 0; b < blocks; b++) {
        int64_t keys = 0;
        for (int64_t i = b * items / blocks; i < (b + 1) * items / blocks; i++)
            keys += e->parts[i / heads].request->cached + 1;
        all += keys;
        if (keys > most) most = keys;
    }
    return (most - all / blocks) * key_bytes <= slack_bytes;
}

static const engine_kind *kind_for(const fp8_engine *e, int64_t tokens) {
    const int decoding = tokens == e->num_parts;
    const engine_kind *k = &e->kinds[decoding ? 0 : e->num_decode_kinds];
    while (decoding ? k->seqs < e->num_parts : k->tokens < tokens) k++;
    return decoding && k[1].whole && is_even(e, k + 1) ? k + 1 : k;
}

static fp8_status forward(fp8_engine *e, const engine_kind *k, int64_t tokens, int64_t seqs,
                          fp8_tensor *logits) {
    const engine_inputs *in = &e->on_device;
    const fp8_paged paged = {.batch = {.num_seqs = seqs,
                                       .page_table = in->table,
                                       .max_pages = e->max_pages,
                                       .kv_lengths = in->kv_lengths,
                                       .q_starts = in->q_starts,
                                       .max_q = k->max_q < tokens ? k->max_q : tokens,
                                       .max_kv = e->o.max_context,
                                       .total_q = tokens},
                             .pages = e->pages,
                             .plans = k->layers,
                             .q_codes = engine_q_codes(e),
                             .o_codes = engine_o_codes(e),
                             .head = e->head,
                             .joined = engine_joins(e),
                             .chains = engine_chains(e)};
    return fp8_model_step(e->m, &paged, tokens, in->ids, in->positions, in->last, seqs, logits);
}

/* The first `made` ids, to the host too, and what the next step of the same sequences is given:
 * where all decode, that is the same with one token more. */
static fp8_status choose(fp8_engine *e, const engine_kind *k, const fp8_tensor *logits,
                         int64_t made) {
    const engine_inputs *in = &e->on_device;
    const int64_t vocab = e->m->config.vocab_size;
    const int advances = k->max_q == 1;
    fp8_status st = FP8_OK;

    if (made == 0) return FP8_OK;
#if FP8_CUDA
    if (fp8_device_place(e->device) == FP8_PLACE_CUDA) {
        const fp8_step_end end = {.out = {e->chosen_host[0], e->chosen_host[1]},
                                  .turn = in->turn, .advances = advances, .ids = in->ids,
                                  .positions = in->positions, .kv_lengths = in->kv_lengths,
                                  .rows = in->rows};
        return fp8_choose_cuda(e->device, e->chosen, logits->data, logits->dtype, in->rows, made,
                               vocab, &end);
    }
#endif
    FP8_TRY(fp8_sample(e->device, e->chosen, logits->data, logits->dtype, in->rows, made, vocab));
    for (int64_t s = 0; s < made; s++) {
        e->chosen_host[in->turn[s]][s] = e->chosen[s];
        in->turn[s] = !in->turn[s];
        if (!advances) continue;
        in->ids[s] = e->chosen[s];
        in->positions[s]++;
        in->kv_lengths[s]++;
        in->rows[s].position++;
    }
done:
    return st;
}

fp8_status engine_work(fp8_engine *e, const engine_kind *k, int64_t tokens, int64_t seqs,
                       int64_t made) {
    fp8_status st = FP8_OK;
    fp8_tensor logits;

    FP8_TRY(FP8_IN_RANGE("forward", forward(e, k, tokens, seqs, &logits)));
    FP8_TRY(FP8_IN_RANGE("choice of ids", choose(e, k, &logits, made)));
done:
    return st;
}

/* From inputs that are on the device, or on their way. */
static fp8_status run(fp8_engine *e, engine_flight *f, const engine_kind *k) {
    fp8_status st = FP8_OK;

    f->replayed = k->graph != NULL;
    if (k->graph) FP8_TRY(FP8_IN_RANGE("replay", fp8_graph_launch(k->graph)));
    else FP8_TRY(engine_work(e, k, f->tokens, e->num_parts, f->made));
    FP8_TRY(fp8_event_record(e->landed[f->slot]));
done:
    return st;
}

fp8_status engine_launch(fp8_engine *e, engine_flight *f) {
    const engine_kind *k = kind_for(e, f->tokens);
    fp8_status st = FP8_OK;

    f->made = fill_inputs(e, k->graph ? k->seqs : e->num_parts,
                          k->graph ? k->tokens : f->tokens, f->slot);
    FP8_TRY(FP8_IN_RANGE("inputs", send(e)));
    FP8_TRY(run(e, f, k));
done:
    return st;
}

fp8_status engine_launch_next(fp8_engine *e, engine_flight *f) {
    f->made = e->num_parts;
    return run(e, f, kind_for(e, f->tokens));
}

/* ---- the end --------------------------------------------------------------------------------- */

double engine_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

fp8_status engine_wait(fp8_engine *e, const engine_flight *f) {
    const double begin = engine_now();
    const fp8_status st = FP8_IN_RANGE("wait", fp8_event_wait(e->landed[f->slot]));

    e->waited = engine_now() - begin;
    return st;
}
