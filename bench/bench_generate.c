/* Serving: many prompts at once, a forced number of new tokens, from a checkpoint. Wall time of
 * all after loading, one row for each step from BF16 weights and padded prompts to all in FP8. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/bench.h"
#include "model/model.h"

enum { S, TOKENS_PER_S, PREFILL_MS, STEP_MS, HOST_US, STEP_GB, TB_PER_S, MEMORY_GB, EXTRA_GB,
       LOAD_S, READY_S, LAUNCHES, EARLY, COLUMNS };
static const fp8_bench_column columns[COLUMNS] = {
    {"s", 4},         {"tokens/s", 4},  {"prefill_ms", 4}, {"ms/step", 4}, {"host_us", 3},
    {"GB/step", 4},   {"TB/s", 4},      {"memory_GB", 4},  {"extra_GB", 3}, {"load_s", 3},
    {"ready_s", 3},   {"launches", 4},  {"early", 4},
};

typedef enum weights { DENSE, CAST, CODES } weights;

typedef struct rung { /* --shape: a part of its name */
    const char *name;
    weights weights;
    int padded, no_graphs, fp8_keys, fp8_head; /* padded: every prompt as long as the longest */
} rung;
static const rung rungs[] = {
    {"BF16, padded prompts", DENSE, 1, 1, 0, 0},
    {"BF16", DENSE, 0, 1, 0, 0},
    {"BF16, graphs", DENSE, 0, 0, 0, 0},
    {"FP8 cast each step, graphs", CAST, 0, 0, 0, 0},
    {"FP8 weights, no graphs", CODES, 0, 1, 0, 0},
    {"FP8 weights, graphs", CODES, 0, 0, 0, 0},
    {"FP8 weights, graphs, FP8 KV", CODES, 0, 0, 1, 0},
    {"FP8 weights, graphs, FP8 KV, FP8 head", CODES, 0, 0, 1, 1},
};
enum { NUM_RUNGS = sizeof rungs / sizeof *rungs };

typedef struct bench_case {
    const fp8_bench_options *options;
    fp8_device *device;
    fp8_checkpoint *checkpoint;
    fp8_quant_config quant;
    fp8_model *m;
    int in;                    /* weights of m; -1: none is loaded */
    double load_s;
    size_t free_before;        /* device memory, before m was loaded */
    int64_t count, new_tokens; /* requests; ids of each */
    int64_t *lengths;
    int32_t *prompts;          /* [count, longest] */
    int64_t longest;
    int32_t *ids;              /* [count, new_tokens] */
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
    fp8_model_config config;
    uint64_t state = 88172645463325252u;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_config_load(&config, fp8_checkpoint_folder(c->checkpoint)));
    c->count = shape->requests;
    c->new_tokens = shape->new_tokens;
    c->longest = shape->prompt_most;
    c->lengths = calloc((size_t)c->count, sizeof *c->lengths);
    c->prompts = calloc((size_t)(c->count * c->longest), sizeof *c->prompts);
    c->ids = calloc((size_t)(c->count * c->new_tokens), sizeof *c->ids);
    if (!c->lengths || !c->prompts || !c->ids)
        return FP8_FAIL(FP8_ENOMEM, "%lld prompts", (long long)c->count);
    for (int64_t r = 0; r < c->count; r++) {
        const uint64_t spread = (uint64_t)(c->longest - shape->prompt_least + 1);
        c->lengths[r] = shape->prompt_least + (int64_t)(draw(&state) % spread);
        for (int64_t i = 0; i < c->longest; i++)
            c->prompts[r * c->longest + i] =
                (int32_t)(draw(&state) % (uint64_t)config.vocab_size);
    }
done:
    return st;
}

static int64_t length_of(const bench_case *c, const rung *g, int64_t request) {
    return g->padded ? c->longest : c->lengths[request];
}

static int is_wanted(const fp8_bench_options *o, const char *name) {
    for (int32_t i = 0; i < o->num_shapes; i++)
        if (strstr(name, o->shapes[i])) return 1;
    return o->num_shapes == 0;
}

/* ---- the model ------------------------------------------------------------------------------- */

static fp8_status read_quant(bench_case *c) {
    char *path = fp8_path_join(fp8_checkpoint_folder(c->checkpoint), "config.json");
    fp8_status st;

    if (!path) return FP8_FAIL(FP8_ENOMEM, "path of config.json");
    st = fp8_quant_config_load(&c->quant, path);
    free(path);
    return st;
}

static int is_fp8(const bench_case *c) { return c->quant.scheme != FP8_SCHEME_NONE; }

static fp8_weight_form form_of(const bench_case *c, weights w) {
    if (w == CAST) return FP8_FORM_CAST;
    if (w == DENSE) return is_fp8(c) ? FP8_FORM_VALUES : FP8_FORM_AS_STORED;
    return is_fp8(c) ? FP8_FORM_AS_STORED : FP8_FORM_QUANTIZED;
}

/* A model with the weights that a rung wants; the one before, if it has others, goes first. */
static fp8_status load(bench_case *c, weights w) {
    const int64_t requests = c->options->generate.requests;
    const fp8_model_options model = {.max_tokens = requests > 2048 ? requests : 2048,
                                     .weights = form_of(c, w)};
    fp8_status st = FP8_OK;
    size_t all;
    double begin;

    if (c->in == (int)w) return FP8_OK;
    fp8_model_destroy(c->m);
    c->m = NULL;
    c->in = -1;
    FP8_TRY(fp8_device_memory(c->device, &c->free_before, &all));
    begin = now();
    FP8_TRY(fp8_model_load(&c->m, c->device, c->checkpoint, &model));
    FP8_TRY(fp8_device_sync(c->device));
    c->load_s = now() - begin;
    c->in = (int)w;
done:
    return st;
}

/* Elements of the Linears of all layers. */
static double linear_elements(const bench_case *c) {
    const fp8_model_config *m = fp8_model_get_config(c->m);
    fp8_linear_info *all = NULL;
    int64_t count = 0;
    double sum = 0;

    if (fp8_model_list_linears(&all, &count, m, c->checkpoint) != FP8_OK) return NAN;
    for (int64_t i = 0; i < count; i++) sum += (double)all[i].in * (double)all[i].out;
    free(all);
    return sum;
}

/* Bytes of weights that a decoding step reads; a cast reads values, writes and reads codes. */
static double weight_bytes(const bench_case *c, const rung *g) {
    static const double each[] = {[DENSE] = 2, [CAST] = 4, [CODES] = 1};
    const fp8_model_config *m = fp8_model_get_config(c->m);
    const double head = (double)m->vocab_size * (double)m->hidden_size;

    return each[g->weights] * linear_elements(c) + (g->fp8_head ? 1 : 2) * head;
}

/* ---- one run --------------------------------------------------------------------------------- */

/* Of decoding, only steps in which all requests take part. */
typedef struct timing {
    double ready, wall, prefill, decode, host;
    int64_t decode_steps, launches, early;
    size_t free_bytes, engine_bytes; /* device memory with all claimed */
} timing;

static fp8_status submit_all(const bench_case *c, const rung *g, fp8_engine *e, int64_t *ids) {
    fp8_status st = FP8_OK;
    for (int64_t r = 0; r < c->count; r++) {
        const fp8_request q = {.prompt = c->prompts + r * c->longest,
                               .num_prompt = length_of(c, g, r),
                               .max_new = c->new_tokens,
                               .ignore_eos = 1};
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
        if (after.decode_steps == before.decode_steps) t->prefill += now() - begin;
        else if (after.new_tokens - before.new_tokens == c->count) {
            t->decode += now() - begin;
            t->host += after.host_s - before.host_s;
            t->decode_steps++;
        }
        before = after;
        if (c->options->interrupted && c->options->interrupted())
            return FP8_FAIL(FP8_ECANCELED, "bench generate: interrupted");
    }
    t->engine_bytes = after.bytes;
    t->launches = after.launches;
    t->early = after.early;
done:
    return st;
}

static fp8_status run_once(const bench_case *c, const rung *g, timing *t) {
    const int64_t context = c->longest + c->new_tokens;
    const fp8_engine_options o = {.max_seqs = c->count,
                                  .max_context = context,
                                  .kv = g->fp8_keys ? FP8_ENGINE_KV_FP8 : FP8_ENGINE_KV_REAL,
                                  .no_graphs = g->no_graphs,
                                  .fp8_head = g->fp8_head};
    int64_t *ids = calloc((size_t)c->count, sizeof *ids);
    fp8_engine *e = NULL;
    fp8_status st = FP8_OK;
    double begin = now();
    size_t all;

    *t = (timing){0};
    if (!ids) return FP8_FAIL(FP8_ENOMEM, "%lld requests", (long long)c->count);
    FP8_TRY(fp8_engine_create(&e, c->m, &o));
    t->ready = now() - begin;
    FP8_TRY(fp8_device_memory(c->device, &t->free_bytes, &all));
    begin = now();
    FP8_TRY(submit_all(c, g, e, ids));
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
    double tokens = 0.5 * (double)(c->count * c->new_tokens);

    for (int64_t r = 0; r < c->count; r++) tokens += (double)length_of(c, g, r);
    return 2.0 * (double)(m->num_layers * m->num_kv_heads * m->head_dim) *
           (g->fp8_keys ? 1 : 2) * tokens;
}

/* Memory beyond the checkpoint's weights in this form and the engine's own. */
static double extra_bytes(const bench_case *c, const rung *g, const timing *t) {
    const fp8_model_config *m = fp8_model_get_config(c->m);
    static const double each[] = {[DENSE] = 2, [CAST] = 3, [CODES] = 1};
    const double table = 2.0 * (double)m->vocab_size * (double)m->hidden_size;
    const double weight = each[g->weights] * linear_elements(c) +
                          (m->tie_embeddings ? 1 : 2) * table;

    return (double)c->free_before - (double)t->free_bytes - weight - (double)t->engine_bytes;
}

static fp8_status add_rung(fp8_bench_table *out, bench_case *c, const char *subject,
                           const rung *g) {
    const double steps = (double)c->new_tokens;
    fp8_bench_row *row;
    fp8_status st = FP8_OK;
    double bytes;
    timing t;

    if (c->options->note) c->options->note(g->name);
    FP8_TRY(load(c, g->weights));
    FP8_TRY(run_once(c, g, &t));
    bytes = weight_bytes(c, g) + key_bytes(c, g);
    FP8_TRY(fp8_bench_add_row(out, &row, subject, g->name));
    row->value[S] = t.wall;
    row->value[TOKENS_PER_S] = (double)c->count * steps / t.wall;
    row->value[PREFILL_MS] = 1e3 * t.prefill;
    row->value[STEP_MS] = 1e3 * t.decode / (double)t.decode_steps;
    row->value[HOST_US] = 1e6 * t.host / (double)t.decode_steps;
    row->value[STEP_GB] = 1e-9 * bytes;
    row->value[TB_PER_S] = 1e-12 * bytes * (double)t.decode_steps / t.decode;
    row->value[MEMORY_GB] = 1e-9 * ((double)c->free_before - (double)t.free_bytes);
    row->value[EXTRA_GB] = 1e-9 * extra_bytes(c, g, &t);
    row->value[LOAD_S] = c->load_s;
    row->value[READY_S] = t.ready;
    row->value[LAUNCHES] = t.launches ? (double)t.launches : NAN;
    row->value[EARLY] = t.launches ? (double)t.early : NAN;
done:
    return st;
}

/* What a rung asks for that this checkpoint or device has not. */
static int is_possible(const bench_case *c, const rung *g) {
    if (g->fp8_keys && !c->quant.kv_fp8) return 0;
    if (g->weights == CAST && !is_fp8(c)) return 0;
    return g->no_graphs || fp8_device_place(c->device) == FP8_PLACE_CUDA;
}

fp8_status fp8_bench_generate(fp8_bench_table *out, fp8_device *d,
                              const fp8_bench_options *options) {
    const fp8_bench_generate_shape *shape = &options->generate;
    bench_case c = {.options = options, .device = d, .in = -1};
    fp8_status st = FP8_OK;
    char subject[64];

    if (!shape->model) return FP8_FAIL(FP8_EINVAL, "bench generate: no model");
    if (shape->prompt_least < 1 || shape->prompt_most < shape->prompt_least)
        return FP8_FAIL(FP8_EINVAL, "bench generate: prompts of %lld to %lld tokens",
                        (long long)shape->prompt_least, (long long)shape->prompt_most);
    FP8_TRY(fp8_checkpoint_open(&c.checkpoint, shape->model));
    FP8_TRY(read_quant(&c));
    FP8_TRY(make_prompts(&c));
    out->columns = columns;
    out->num_columns = COLUMNS;
    out->drawn = S;
    snprintf(out->title, sizeof out->title,
             "Generating, %s: prompts of %lld to %lld random tokens, %lld forced new ones each; "
             "wall time after loading; ms/step of steps in which all requests decode",
             fp8_device_name(d), (long long)shape->prompt_least, (long long)shape->prompt_most,
             (long long)shape->new_tokens);
    snprintf(subject, sizeof subject, "%lld requests", (long long)shape->requests);
    for (int i = 0; i < NUM_RUNGS; i++)
        if (is_wanted(options, rungs[i].name) && is_possible(&c, &rungs[i]))
            FP8_TRY(add_rung(out, &c, subject, &rungs[i]));
done:
    free(c.lengths);
    free(c.prompts);
    free(c.ids);
    fp8_model_destroy(c.m);
    fp8_quant_config_free(&c.quant);
    fp8_checkpoint_close(c.checkpoint);
    return st;
}
