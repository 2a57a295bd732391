/* Serving: many prompts at once, a forced number of new tokens, from a checkpoint. Wall time of
 * all after loading, by what is switched on; each rung's ids are held against the first's. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"
#include "model/model.h"

enum { S, TOKENS_PER_S, PREFILL_MS, STEP_MS, STEP_GB, TB_PER_S, CACHE_GB, READY_S, SAME, COLUMNS };
static const fp8_bench_column columns[COLUMNS] = {
    {"s", 4},    {"tokens/s", 4}, {"prefill_ms", 4}, {"ms/step", 4}, {"GB/step", 4},
    {"TB/s", 4}, {"cache_GB", 4}, {"ready_s", 3},    {"same_ids", 3},
};

typedef struct rung { /* --shape: a part of its name */
    const char *name;
    fp8_engine_kv kv;
    int no_graphs, fp8_keys, fp8_head; /* fp8_keys: only with a checkpoint that has scales */
} rung;
static const rung rungs[] = {
    {"launch by launch", FP8_ENGINE_KV_REAL, 1, 0, 0},
    {"graphs", FP8_ENGINE_KV_REAL, 0, 0, 0},
    {"graphs, FP8 KV", FP8_ENGINE_KV_FP8, 0, 1, 0},
    {"graphs, FP8 KV, FP8 head", FP8_ENGINE_KV_FP8, 0, 1, 1},
};

typedef struct bench_case {
    const fp8_bench_options *options;
    fp8_model *m;
    int64_t count, new_tokens; /* requests; ids of each */
    int64_t *lengths;
    int32_t *prompts;          /* [count, longest] */
    int64_t longest, prompt_tokens;
    size_t weight_bytes;       /* that a step reads: all but the embedding */
    int32_t *first, *ids;      /* [count, new_tokens]: the first rung's, this one's */
} bench_case;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t draw(uint64_t *state) { /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- the case -------------------------------------------------------------------------------- */

static fp8_status make_prompts(bench_case *c) {
    const fp8_bench_generate_shape *shape = &c->options->generate;
    const int64_t vocab = fp8_model_get_config(c->m)->vocab_size;
    uint64_t state = 88172645463325252u;

    c->count = shape->requests;
    c->new_tokens = shape->new_tokens;
    c->longest = shape->prompt_most;
    c->lengths = calloc((size_t)c->count, sizeof *c->lengths);
    c->prompts = calloc((size_t)(c->count * c->longest), sizeof *c->prompts);
    c->first = calloc((size_t)(c->count * c->new_tokens), sizeof *c->first);
    c->ids = calloc((size_t)(c->count * c->new_tokens), sizeof *c->ids);
    if (!c->lengths || !c->prompts || !c->first || !c->ids)
        return FP8_FAIL(FP8_ENOMEM, "%lld prompts", (long long)c->count);
    for (int64_t r = 0; r < c->count; r++) {
        const uint64_t spread = (uint64_t)(c->longest - shape->prompt_least + 1);
        c->lengths[r] = shape->prompt_least + (int64_t)(draw(&state) % spread);
        c->prompt_tokens += c->lengths[r];
        for (int64_t i = 0; i < c->lengths[r]; i++)
            c->prompts[r * c->longest + i] = (int32_t)(draw(&state) % (uint64_t)vocab);
    }
    return FP8_OK;
}

static int is_wanted(const fp8_bench_options *o, const char *name) {
    for (int32_t i = 0; i < o->num_shapes; i++)
        if (strstr(name, o->shapes[i])) return 1;
    return o->num_shapes == 0;
}

static size_t step_weight_bytes(const fp8_checkpoint *k, const fp8_model_config *config) {
    const size_t table = (size_t)(config->vocab_size * config->hidden_size) * 2;
    const size_t all = fp8_checkpoint_bytes(k);
    return config->tie_embeddings || all < table ? all : all - table;
}

/* ---- one run --------------------------------------------------------------------------------- */

typedef struct timing {
    double ready, wall, prefill, decode;
    int64_t decode_steps;
    size_t cache_bytes;
} timing;

static fp8_status submit_all(const bench_case *c, fp8_engine *e, int64_t *ids) {
    fp8_status st = FP8_OK;
    for (int64_t r = 0; r < c->count; r++) {
        const fp8_request q = {.prompt = c->prompts + r * c->longest, .num_prompt = c->lengths[r],
                               .max_new = c->new_tokens, .ignore_eos = 1};
        FP8_TRY(fp8_engine_submit(e, &q, &ids[r]));
    }
done:
    return st;
}

static fp8_status collect_all(const bench_case *c, fp8_engine *e, const int64_t *ids) {
    fp8_status st = FP8_OK;
    for (int64_t r = 0; r < c->count; r++) {
        fp8_request_state state;
        int64_t count;
        FP8_TRY(fp8_engine_poll(e, ids[r], c->ids + r * c->new_tokens, c->new_tokens, &count,
                                &state));
        if (state != FP8_REQUEST_FULL || count != c->new_tokens)
            return FP8_FAIL(FP8_EDATA, "bench generate: request %lld ended with %lld of %lld ids",
                            (long long)r, (long long)count, (long long)c->new_tokens);
    }
done:
    return st;
}

static fp8_status run_steps(const bench_case *c, fp8_engine *e, timing *t) {
    fp8_engine_stats before, after;
    fp8_status st = FP8_OK;
    int64_t running = 1;

    fp8_engine_get_stats(e, &before);
    while (running) {
        const double begin = now();
        FP8_TRY(fp8_engine_step(e, &running));
        fp8_engine_get_stats(e, &after);
        *(after.decode_steps > before.decode_steps ? &t->decode : &t->prefill) += now() - begin;
        before = after;
        if (c->options->interrupted && c->options->interrupted())
            return FP8_FAIL(FP8_ECANCELED, "bench generate: interrupted");
    }
    t->decode_steps = after.decode_steps;
    t->cache_bytes = after.bytes;
done:
    return st;
}

static fp8_status run_once(const bench_case *c, const rung *g, timing *t) {
    const int64_t context = c->longest + c->new_tokens;
    const fp8_engine_options o = {.max_seqs = c->count, .max_context = context, .kv = g->kv,
                                  .no_graphs = g->no_graphs, .fp8_head = g->fp8_head};
    int64_t *ids = calloc((size_t)c->count, sizeof *ids);
    fp8_engine *e = NULL;
    fp8_status st = FP8_OK;
    double begin = now();

    *t = (timing){0};
    if (!ids) return FP8_FAIL(FP8_ENOMEM, "%lld requests", (long long)c->count);
    FP8_TRY(fp8_engine_create(&e, c->m, &o));
    t->ready = now() - begin;
    begin = now();
    FP8_TRY(submit_all(c, e, ids));
    FP8_TRY(run_steps(c, e, t));
    FP8_TRY(collect_all(c, e, ids));
    t->wall = now() - begin;
done:
    fp8_engine_destroy(e);
    free(ids);
    return st;
}

/* ---- the table ------------------------------------------------------------------------------- */

/* Bytes of keys and values that a decoding step reads, on average over the run. */
static double key_bytes(const bench_case *c, const rung *g) {
    const fp8_model_config *m = fp8_model_get_config(c->m);
    const double element = g->kv == FP8_ENGINE_KV_FP8 ? 1 : 2;
    const double tokens = (double)c->prompt_tokens + 0.5 * (double)(c->count * c->new_tokens);
    return 2.0 * (double)(m->num_layers * m->num_kv_heads * m->head_dim) * element * tokens;
}

/* Bytes that a head in codes does not read. */
static double head_saving(const bench_case *c) {
    const fp8_model_config *m = fp8_model_get_config(c->m);
    return (double)(m->vocab_size * m->hidden_size);
}

static double same_ids(const bench_case *c) {
    int64_t same = 0;
    for (int64_t r = 0; r < c->count; r++) { /* up to the first that differs */
        const int32_t *a = c->first + r * c->new_tokens, *b = c->ids + r * c->new_tokens;
        int64_t n = 0;
        while (n < c->new_tokens && a[n] == b[n]) n++;
        same += n;
    }
    return (double)same / (double)(c->count * c->new_tokens);
}

static fp8_status add_rung(fp8_bench_table *out, bench_case *c, const char *subject, int index) {
    const rung *g = &rungs[index];
    const double bytes = (double)c->weight_bytes + key_bytes(c, g) -
                         (g->fp8_head ? head_saving(c) : 0);
    fp8_bench_row *row;
    fp8_status st = FP8_OK;
    timing t;

    if (c->options->note) c->options->note(g->name);
    FP8_TRY(run_once(c, g, &t));
    if (out->num_rows == 0)
        memcpy(c->first, c->ids, (size_t)(c->count * c->new_tokens) * sizeof *c->first);
    FP8_TRY(fp8_bench_add_row(out, &row, subject, g->name));
    row->value[S] = t.wall;
    row->value[TOKENS_PER_S] = (double)(c->count * c->new_tokens) / t.wall;
    row->value[PREFILL_MS] = 1e3 * t.prefill;
    row->value[STEP_MS] = 1e3 * t.decode / (double)t.decode_steps;
    row->value[STEP_GB] = 1e-9 * bytes;
    row->value[TB_PER_S] = 1e-12 * bytes * (double)t.decode_steps / t.decode;
    row->value[CACHE_GB] = 1e-9 * (double)t.cache_bytes;
    row->value[READY_S] = t.ready;
    row->value[SAME] = same_ids(c);
done:
    return st;
}

fp8_status fp8_bench_generate(fp8_bench_table *out, fp8_device *d,
                              const fp8_bench_options *options) {
    const fp8_bench_generate_shape *shape = &options->generate;
    const int64_t budget = shape->requests > 2048 ? shape->requests : 2048;
    const fp8_model_options model = {.max_tokens = budget};
    bench_case c = {.options = options};
    fp8_checkpoint *checkpoint = NULL;
    fp8_status st = FP8_OK;
    char subject[64];

    if (!shape->model) return FP8_FAIL(FP8_EINVAL, "bench generate: no model");
    if (shape->prompt_least < 1 || shape->prompt_most < shape->prompt_least)
        return FP8_FAIL(FP8_EINVAL, "bench generate: prompts of %lld to %lld tokens",
                        (long long)shape->prompt_least, (long long)shape->prompt_most);
    FP8_TRY(fp8_checkpoint_open(&checkpoint, shape->model));
    FP8_TRY(fp8_model_load(&c.m, d, checkpoint, &model));
    FP8_TRY(make_prompts(&c));
    c.weight_bytes = step_weight_bytes(checkpoint, fp8_model_get_config(c.m));
    out->columns = columns;
    out->num_columns = COLUMNS;
    out->drawn = S;
    snprintf(out->title, sizeof out->title,
             "Generating, %s: prompts of %lld to %lld random tokens, %lld forced new ones each; "
             "wall time after loading; same_ids: up to the first that differs from the first row's",
             fp8_device_name(d), (long long)shape->prompt_least, (long long)shape->prompt_most,
             (long long)shape->new_tokens);
    snprintf(subject, sizeof subject, "%lld requests", (long long)shape->requests);
    for (int i = 0; i < (int)(sizeof rungs / sizeof *rungs); i++) {
        if (!is_wanted(options, rungs[i].name)) continue;
        if (rungs[i].fp8_keys && !fp8_model_get_quant(c.m)->kv_fp8) continue;
        if (!rungs[i].no_graphs && fp8_device_place(d) == FP8_PLACE_CPU) continue;
        FP8_TRY(add_rung(out, &c, subject, i));
    }
done:
    free(c.lengths);
    free(c.prompts);
    free(c.first);
    free(c.ids);
    fp8_model_destroy(c.m);
    fp8_checkpoint_close(checkpoint);
    return st;
}
