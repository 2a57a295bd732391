/* An engine's life: its pages, plans and graphs of its sizes of steps, the forward of a step. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model/engine_impl.h"

enum { MAX_CONTEXT = 8192, MAX_SEQS = 64, PAGE_SIZE = 64, LEAST_TOKENS = 64, ALIGN = 256 };

/* ---- options --------------------------------------------------------------------------------- */

static int64_t or_else(int64_t value, int64_t fallback) { return value ? value : fallback; }

static fp8_status check_size(const char *what, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "engine: %s is %lld, expected %lld to %lld", what,
                    (long long)value, (long long)least, (long long)most);
}

static fp8_status check_kv(const fp8_model *m, fp8_engine_kv kv) {
    if (kv == FP8_ENGINE_KV_FP8 && !m->quant.kv_fp8)
        return FP8_FAIL(FP8_EUNSUPPORTED, "engine: FP8 keys and values are asked for, and the "
                        "checkpoint has no scales for them");
    return FP8_OK;
}

static fp8_status check_rope(const fp8_model *m, int64_t context) {
    const fp8_rope_config *rope = &m->config.rope;
    if (fp8_rope_key(rope, 1) == fp8_rope_key(rope, context)) return FP8_OK;
    return FP8_FAIL(FP8_EUNSUPPORTED, "engine: this RoPE has other frequencies beyond %lld tokens: "
                    "max_context is %lld", (long long)rope->original_max_position,
                    (long long)context);
}

static fp8_status check_store(const fp8_model *m) {
    if (!m->store) return FP8_OK;
    return FP8_FAIL(FP8_EUNSUPPORTED, "engine: the model's weights pass through the device layer "
                    "by layer, expected all of them there");
}

/* Defaults filled in. */
static fp8_status resolve(fp8_engine_options *o, const fp8_model *m) {
    const int64_t learned = m->config.max_position;
    const int64_t context = learned && learned < MAX_CONTEXT ? learned : MAX_CONTEXT;
    fp8_status st = FP8_OK;
    int64_t each;

    o->max_seqs = or_else(o->max_seqs, MAX_SEQS < m->max_tokens ? MAX_SEQS : m->max_tokens);
    o->step_tokens = or_else(o->step_tokens, m->max_tokens);
    o->max_context = or_else(o->max_context, context);
    if (!o->page_size) o->page_size = PAGE_SIZE;
    o->max_requests = or_else(o->max_requests, 4 * o->max_seqs);
    FP8_TRY(check_size("max_seqs", o->max_seqs, 1, m->max_tokens));
    FP8_TRY(check_size("step_tokens", o->step_tokens, o->max_seqs, m->max_tokens));
    FP8_TRY(check_size("max_context", o->max_context, 2,
                       m->positions.data ? learned : INT32_MAX / 4));
    FP8_TRY(check_size("max_requests", o->max_requests, 1, INT32_MAX));
    if (o->page_size != 64 && o->page_size != 128)
        return FP8_FAIL(FP8_EINVAL, "engine: page_size is %d, expected 64 or 128", o->page_size);
    each = (o->max_context + o->page_size - 1) / o->page_size;
    o->num_pages = or_else(o->num_pages, each * o->max_seqs);
    FP8_TRY(check_size("num_pages", o->num_pages, 1, INT32_MAX));
    FP8_TRY(check_kv(m, o->kv));
    FP8_TRY(check_store(m));
    FP8_TRY(check_rope(m, o->max_context));
done:
    return st;
}

static int fp8_keys(const fp8_engine *e) {
    return e->m->quant.kv_fp8 && e->o.kv != FP8_ENGINE_KV_REAL;
}

int engine_q_codes(const fp8_engine *e) {
    return fp8_keys(e) && e->m->quant.attention != FP8_ATTENTION_NONE;
}

/* Does attention leave what every o Linear reads? */
int engine_o_codes(const fp8_engine *e) {
    for (int64_t i = 0; i < e->m->config.num_layers; i++)
        if (!fp8_layer_takes_codes(e->m, i)) return 0;
    return 1;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

static fp8_status create_pages(fp8_engine *e) {
    const fp8_model_config *c = &e->m->config;
    const fp8_kv_pages like = {.dtype = fp8_keys(e) ? FP8_DTYPE_E4M3 : e->m->type,
                               .num_kv_heads = (int32_t)c->num_kv_heads,
                               .d_qk = (int32_t)c->head_dim,
                               .d_v = (int32_t)c->head_dim,
                               .page_size = e->o.page_size,
                               .num_pages = e->o.num_pages};
    fp8_kv_layout lie;
    fp8_status st = FP8_OK;
    size_t bytes = 0;
    char *at;

    FP8_TRY(fp8_kv_pages_layout(&lie, &like));
    FP8_TRY(fp8_mul_size(&bytes, aligned(lie.k_bytes) + aligned(lie.v_bytes),
                         (size_t)c->num_layers));
    FP8_TRY(fp8_device_alloc(e->device, &e->pool, bytes));
    e->stats.bytes += bytes;
    e->pages = calloc((size_t)c->num_layers, sizeof *e->pages);
    if (!e->pages) return FP8_FAIL(FP8_ENOMEM, "pages of %lld layers", (long long)c->num_layers);
    at = e->pool;
    for (int64_t i = 0; i < c->num_layers; i++) {
        const float *scales = fp8_keys(e) ? e->m->layers[i].kv_scales : NULL;
        fp8_kv_pages *p = &e->pages[i];
        *p = like;
        p->k = at;
        p->v = at + aligned(lie.k_bytes);
        at += aligned(lie.k_bytes) + aligned(lie.v_bytes);
        p->k_descale = scales ? scales + 3 * FP8_SCALE_STEP : NULL;
        p->v_descale = scales ? scales + 5 * FP8_SCALE_STEP : NULL;
    }
done:
    return st;
}

/* ---- Linears in one -------------------------------------------------------------------------- */

/* Of `count` Linears from the first, where they can be; room: as fp8_model_make_room has it. */
static fp8_status join(fp8_model *m, fp8_linear *const *linears, int32_t count, fp8_linear **joined,
                       void **room) {
    fp8_status st = FP8_OK;

    if (!*joined) st = fp8_linear_join(joined, linears, count);
    if (st == FP8_EUNSUPPORTED) return FP8_OK; /* scales that differ: they stay apart */
    return st == FP8_OK ? fp8_model_make_room(m, *joined, room) : st;
}

/* Joined Linears leave theirs where the parts would, but where what is made of it, real queries or
 * the activation's values, goes there too. */
static fp8_status join_linears(fp8_engine *e) {
    fp8_model *m = e->m;
    fp8_scratch *s = &m->scratch;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < m->config.num_layers; i++) {
        fp8_layer *l = &m->layers[i];
        FP8_TRY(join(m, &l->linears[FP8_LINEAR_Q], 3, &l->joined_qkv,
                     engine_q_codes(e) ? NULL : &s->joined_qkv));
        if (l->linears[FP8_LINEAR_GATE] && !l->mixture.experts) {
            fp8_linear *const pair[2] = {l->linears[FP8_LINEAR_GATE], l->linears[FP8_LINEAR_UP]};
            const int dense =
                fp8_linear_input_scaling(l->linears[FP8_LINEAR_DOWN]) == FP8_INPUT_DENSE;
            FP8_TRY(join(m, pair, 2, &l->joined_up, dense ? &s->joined_up : NULL));
        }
    }
done:
    return st;
}

static fp8_status create_chains(fp8_engine *e) {
    fp8_status st = FP8_OK;
    for (int64_t i = 0; i < e->m->config.num_layers; i++) FP8_TRY(fp8_layer_make_chain(e->m, i));
done:
    return st;
}

/* The output layer's weights as codes; beside the real ones, which a tied embedding needs. */
static fp8_status create_head(fp8_engine *e) {
    fp8_model *m = e->m;
    const fp8_linear_spec spec = {.name = "lm_head",
                                  .in = m->config.hidden_size,
                                  .out = m->config.vocab_size,
                                  .weight = m->lm_head,
                                  .weight_scaling = FP8_WEIGHT_CHANNEL,
                                  .input = FP8_INPUT_DYNAMIC,
                                  .compute = m->type};
    const fp8_linear_call call = {.accumulate = m->accumulate};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_model_make_codes(m));
    FP8_TRY(fp8_linear_create(&e->head, m->device, &spec));
    for (int i = 0; i < 2; i++) {
        const fp8_dtype y = i ? FP8_DTYPE_F32 : m->type;
        FP8_TRY(fp8_model_reserve(m, fp8_linear_apply_workspace_size(e->head, e->o.max_seqs, y,
                                                                     &call), 0));
    }
    e->stats.bytes += (size_t)(spec.in * spec.out);
done:
    return st;
}

int engine_joins(const fp8_engine *e) {
    if (e->o.join != FP8_ENGINE_JOIN_AUTO) return e->o.join == FP8_ENGINE_JOIN_ALWAYS;
    return fp8_device_place(e->device) == FP8_PLACE_CUDA;
}

fp8_chains engine_chains(const fp8_engine *e) {
    if (!engine_joins(e) || e->o.chain == FP8_ENGINE_CHAIN_NEVER) return FP8_CHAINS_NEVER;
    return e->o.chain == FP8_ENGINE_CHAIN_ALWAYS ? FP8_CHAINS_ALWAYS : FP8_CHAINS_IN_ONE;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

/* The parts of a block at `at`; returns its bytes. */
static size_t lay_out(const fp8_engine *e, engine_inputs *in, char *at) {
    const size_t seqs = (size_t)e->o.max_seqs, tokens = (size_t)e->o.step_tokens;
    int32_t *i = (int32_t *)(void *)(at + seqs * sizeof *in->rows);
    const size_t ints = 2 * tokens + 4 * seqs + 1 + seqs * (size_t)e->max_pages;

    in->rows = (fp8_sample_row *)(void *)at;
    in->q_starts = i;
    in->kv_lengths = in->q_starts + seqs + 1;
    in->last = in->kv_lengths + seqs;
    in->ids = in->last + seqs;
    in->positions = in->ids + tokens;
    in->table = in->positions + tokens;
    in->turn = in->table + seqs * (size_t)e->max_pages;
    return seqs * sizeof *in->rows + ints * sizeof *i;
}

static fp8_status create_inputs(fp8_engine *e) {
    const size_t seqs = (size_t)e->o.max_seqs;
    const size_t rest = (4 * seqs + 1 + seqs * (size_t)e->max_pages) * sizeof(int32_t);
    fp8_status st = FP8_OK;
    void *chosen = NULL;

    e->input_bytes = seqs * sizeof(fp8_sample_row) + rest +
                     2 * (size_t)e->o.step_tokens * sizeof(int32_t);
    FP8_TRY(fp8_device_alloc_host(e->device, &e->host, e->input_bytes));
    memset(e->host, 0, e->input_bytes);
    FP8_TRY(fp8_device_alloc(e->device, &e->place, e->input_bytes));
    FP8_TRY(fp8_device_fill(e->device, e->place, 0, e->input_bytes));
    (void)lay_out(e, &e->in, e->host);
    (void)lay_out(e, &e->on_device, e->place);
    FP8_TRY(fp8_device_alloc(e->device, &chosen, seqs * sizeof *e->chosen));
    e->chosen = chosen;
    for (int i = 0; i < 2; i++) {
        void *host = NULL;
        FP8_TRY(fp8_device_alloc_host(e->device, &host, seqs * sizeof *e->chosen));
        e->chosen_host[i] = host;
        FP8_TRY(fp8_event_create(e->device, &e->landed[i]));
    }
    e->stats.bytes += e->input_bytes + seqs * sizeof *e->chosen;
done:
    return st;
}

/* ---- kinds of steps -------------------------------------------------------------------------- */

/* Bit i: GPU i has an engine whose attention begins early (fp8_decode_options.early), one at most:
 * its blocks wait for each other, and two such kernels at once, on two streams, may never end.
 * The rest of the promise: a step begins with an ORDERED kernel (its embedding), which comes after
 * the end of the last step and inputs from the host; within it only appends write to pages. */
static atomic_uint early_engines;

static unsigned early_bit(const fp8_engine *e) {
    const int32_t i = fp8_device_index(e->device);
    return fp8_device_place(e->device) == FP8_PLACE_CUDA && i < 32 ? 1u << i : 0;
}

static void claim_early(fp8_engine *e) {
    const unsigned bit = early_bit(e);
    e->early = bit && !(atomic_fetch_or(&early_engines, bit) & bit);
}

static void leave_early(fp8_engine *e) {
    if (e->early) atomic_fetch_and(&early_engines, ~early_bit(e));
}

static fp8_decode_options plan_options(const fp8_engine *e, const engine_kind *k, int64_t window) {
    fp8_decode_options o = fp8_decode_options_of(e->m, e->pages, window, engine_o_codes(e));

    o.num_seqs = k->seqs;
    o.total_q = k->tokens;
    o.max_q = k->max_q;
    o.max_kv = e->o.max_context;
    o.max_chunks = ENGINE_MAX_CHUNKS;
    o.early = e->early || k->whole; /* nobody waits for others where items are whole */
    if (k->whole) o.split_keys = e->max_pages * e->o.page_size;
    return o;
}

/* The plans of a kind; its layers have at most one window. */
static fp8_status plan_kind(fp8_engine *e, engine_kind *k) {
    const int64_t layers = e->m->config.num_layers, *windows = e->m->config.layer_window;
    fp8_status st = FP8_OK;
    int64_t window = 0;

    k->layers = calloc((size_t)layers, sizeof *k->layers);
    if (!k->layers) return FP8_FAIL(FP8_ENOMEM, "plans of %lld layers", (long long)layers);
    for (int64_t i = 0; i < layers; i++) {
        const int windowed = windows[i] > 0;
        if (windowed && window && windows[i] != window)
            return FP8_FAIL(FP8_EUNSUPPORTED, "engine: windows of %lld and %lld tokens, expected "
                            "one", (long long)window, (long long)windows[i]);
        if (windowed) window = windows[i];
        if (!k->plans[windowed]) {
            const fp8_decode_options o = plan_options(e, k, windows[i]);
            FP8_TRY(fp8_decode_plan_create(&k->plans[windowed], e->device, &o));
            FP8_TRY(fp8_model_reserve(e->m, 0, fp8_decode_workspace_size(k->plans[windowed])));
        }
        k->layers[i] = k->plans[windowed];
    }
done:
    return st;
}

static fp8_status add_kind(fp8_engine *e, int64_t seqs, int64_t tokens, int64_t max_q, int whole) {
    engine_kind *k = &e->kinds[e->num_kinds];

    if (e->num_kinds == ENGINE_MAX_KINDS)
        return FP8_FAIL(FP8_EINVAL, "engine: more than %d sizes of steps", (int)ENGINE_MAX_KINDS);
    e->num_kinds++;
    *k = (engine_kind){.seqs = seqs, .tokens = tokens, .max_q = max_q, .whole = whole};
    return plan_kind(e, k);
}

/* Decoding of so many sequences; twice where whole items, a head of a sequence each, may be even
 * shares of the GPU's blocks: nine tenths of a round of them, or more rounds. */
static fp8_status add_decoding(fp8_engine *e, int64_t seqs) {
    const fp8_model_config *c = &e->m->config;
    fp8_status st = FP8_OK;
    int64_t blocks;

    FP8_TRY(add_kind(e, seqs, seqs, 1, 0));
    blocks = fp8_decode_plan_blocks(e->kinds[e->num_kinds - 1].layers[0]);
    if (blocks > 0 && 10 * seqs * c->num_kv_heads >= 9 * blocks)
        FP8_TRY(add_kind(e, seqs, seqs, 1, 1));
done:
    return st;
}

/* Powers of two below `most`, and that. */
static int64_t next_size(int64_t size, int64_t most) {
    if (size == most) return most + 1;
    return 2 * size < most ? 2 * size : most;
}

/* Powers of two and the halves between them: of a step's rows at most a third are too many. */
static int64_t next_tokens(int64_t size, int64_t most) {
    const int64_t next = size & (size - 1) ? size / 3 * 4 : size + size / 2;
    if (size == most) return most + 1;
    return next < most ? next : most;
}

/* Decoding by number of sequences, mixed steps by number of tokens; without graphs the largest of
 * each, since a run may bring less than its plan was made for. */
static fp8_status create_kinds(fp8_engine *e) {
    const int64_t seqs = e->o.max_seqs, tokens = e->o.step_tokens;
    const int64_t least = LEAST_TOKENS < tokens ? LEAST_TOKENS : tokens;
    fp8_status st = FP8_OK;

    for (int64_t n = e->graphs ? 1 : seqs; n <= seqs; n = next_size(n, seqs))
        FP8_TRY(add_decoding(e, n));
    e->num_decode_kinds = e->num_kinds;
    for (int64_t n = e->graphs ? least : tokens; n <= tokens; n = next_tokens(n, tokens))
        if (n >= seqs) FP8_TRY(add_kind(e, seqs, n, n, 0));
done:
    return st;
}

static void record_shape(fp8_engine *e) {
    const fp8_graph_shape s = fp8_graph_get_shape(e->kinds[e->num_decode_kinds - 1].graph);
    e->stats.launches = s.kernels;
    e->stats.early = s.early;
}

/* Every kind once as it is, so that all that is lazy is there, then captured. The inputs are of no
 * sequence at all: nothing is written to the pages. */
static fp8_status capture(fp8_engine *e) {
    fp8_status st = FP8_OK, ended;

    for (int i = 0; i < e->num_kinds; i++) {
        engine_kind *k = &e->kinds[i];
        FP8_TRY(engine_work(e, k, k->tokens, k->seqs, k->seqs));
        FP8_TRY(fp8_graph_begin(e->device));
        st = engine_work(e, k, k->tokens, k->seqs, k->seqs);
        ended = fp8_graph_end(e->device, &k->graph);
        if (st == FP8_OK) st = ended;
        if (st != FP8_OK) goto done;
    }
    record_shape(e);
    FP8_TRY(fp8_device_sync(e->device));
done:
    return st;
}

/* ---- life ------------------------------------------------------------------------------------ */

static fp8_status create_lists(fp8_engine *e) {
    e->requests = calloc((size_t)e->o.max_requests, sizeof(engine_request *));
    e->running = calloc((size_t)e->o.max_seqs, sizeof(engine_request *));
    e->free_pages = calloc((size_t)e->o.num_pages, sizeof *e->free_pages);
    e->parts = calloc((size_t)e->o.max_seqs, sizeof *e->parts);
    if (!e->requests || !e->running || !e->free_pages || !e->parts)
        return FP8_FAIL(FP8_ENOMEM, "lists of %lld requests, %lld pages",
                        (long long)e->o.max_requests, (long long)e->o.num_pages);
    for (int64_t i = 0; i < e->o.num_pages; i++)
        e->free_pages[i] = (int32_t)(e->o.num_pages - 1 - i); /* page 0 goes first */
    e->num_free = e->o.num_pages;
    return FP8_OK;
}

/* Logits that the largest step leaves. */
static fp8_status reserve_logits(fp8_engine *e) {
    fp8_status st = FP8_OK;
    size_t bytes = 0;
    FP8_TRY(fp8_mul_size(&bytes, (size_t)e->o.max_seqs * sizeof(float),
                         (size_t)e->m->config.vocab_size));
    FP8_TRY(fp8_buffer_reserve(e->device, &e->m->logits, bytes));
done:
    return st;
}

fp8_status fp8_engine_create(fp8_engine **out, fp8_model *m, const fp8_engine_options *options) {
    fp8_engine *e = calloc(1, sizeof *e);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!e) return FP8_FAIL(FP8_ENOMEM, "engine");
    if (pthread_mutex_init(&e->lock, NULL) != 0) {
        free(e);
        return FP8_FAIL(FP8_ENOMEM, "engine: a mutex");
    }
    e->m = m;
    e->device = m->device;
    if (options) e->o = *options;
    FP8_TRY(resolve(&e->o, m));
    e->max_pages = (e->o.max_context + e->o.page_size - 1) / e->o.page_size;
    e->graphs = !e->o.no_graphs && fp8_device_place(m->device) == FP8_PLACE_CUDA &&
                !m->config.num_experts; /* a mixture waits for the device: nothing to capture */
    e->ahead = e->o.ahead == FP8_ENGINE_AHEAD_AUTO ? e->graphs
                                                   : e->o.ahead == FP8_ENGINE_AHEAD_ALWAYS;
    FP8_TRY(fp8_rope_extend(m, e->o.max_context));
    FP8_TRY(fp8_rope_fit(m, e->o.max_context));
    FP8_TRY(create_pages(e));
    FP8_TRY(create_lists(e));
    FP8_TRY(create_inputs(e));
    if (engine_joins(e)) FP8_TRY(join_linears(e));
    if (engine_chains(e) != FP8_CHAINS_NEVER) FP8_TRY(create_chains(e));
    if (e->o.fp8_head) FP8_TRY(create_head(e));
    claim_early(e);
    FP8_TRY(create_kinds(e));
    FP8_TRY(reserve_logits(e));
    if (e->graphs) FP8_TRY(capture(e));
    *out = e;
    e = NULL;
done:
    fp8_engine_destroy(e);
    return st;
}

void fp8_engine_destroy(fp8_engine *e) {
    if (!e) return;
    if (e->requests) engine_forget_all(e);
    for (int i = 0; i < e->num_kinds; i++) {
        fp8_graph_destroy(e->kinds[i].graph);
        for (int w = 0; w < 2; w++) fp8_decode_plan_destroy(e->kinds[i].plans[w]);
        free(e->kinds[i].layers);
    }
    fp8_linear_destroy(e->head);
    fp8_device_free(e->device, e->pool);
    fp8_device_free(e->device, e->place);
    fp8_device_free(e->device, e->chosen);
    fp8_device_free_host(e->device, e->host);
    for (int i = 0; i < 2; i++) {
        fp8_device_free_host(e->device, e->chosen_host[i]);
        fp8_event_destroy(e->landed[i]);
    }
    leave_early(e); /* nothing of it runs any more */
    pthread_mutex_destroy(&e->lock);
    free(e->requests);
    free(e->running);
    free(e->free_pages);
    free(e->parts);
    free(e->pages);
    free(e);
}
