/* What a run must stand: a captured graph replayed with other lengths and scales, lengths and
 * starts that lie, NaN and Inf in the operands. Each on every backend that serves the cell. */
#include "core/graph.h"

#include "attention_cell.h"

static const fp8_attention_backend backends[] = {FP8_BACKEND_UNFUSED, FP8_BACKEND_FLASH,
                                                 FP8_BACKEND_FUSED};
enum { NUM_BACKENDS = sizeof backends / sizeof *backends };

#define BF16 FP8_DTYPE_BF16
#define E4M3 FP8_DTYPE_E4M3

typedef struct kind {
    const char *name;
    fp8_attention_layout layout;
    fp8_attention_mask mask;
    fp8_dtype dtype;
    fp8_attention_quantize quantize;
    int d;
} kind;

static const kind kinds[] = {
    {"thd codes", FP8_LAYOUT_THD_THD_THD, FP8_MASK_CAUSAL_BOTTOM_RIGHT, E4M3, FP8_QUANTIZE_NOT,
     128},
    {"thd bf16", FP8_LAYOUT_THD_THD_THD, FP8_MASK_NONE, BF16, FP8_QUANTIZE_NOT, 64},
    {"bshd codes", FP8_LAYOUT_BSHD_BSHD_BSHD, FP8_MASK_CAUSAL, E4M3, FP8_QUANTIZE_NOT, 128},
    {"bshd bf16", FP8_LAYOUT_BSHD_BSHD_BSHD, FP8_MASK_NONE, BF16, FP8_QUANTIZE_NOT, 128},
    {"sb3hd current", FP8_LAYOUT_SB3HD, FP8_MASK_CAUSAL, BF16, FP8_QUANTIZE_CURRENT, 64},
    {"bs3hd given", FP8_LAYOUT_BS3HD, FP8_MASK_NONE, BF16, FP8_QUANTIZE_GIVEN, 64},
};
enum { NUM_KINDS = sizeof kinds / sizeof *kinds };

static fp8_attention_options options_of(const kind *k) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.layout = k->layout;
    o.num_heads = o.num_kv_heads = 2;
    o.d_qk = o.d_v = k->d;
    o.mask = k->mask;
    o.q_dtype = o.kv_dtype = k->dtype;
    o.quantize = k->quantize;
    o.quantize_p = k->dtype == E4M3 || k->quantize != FP8_QUANTIZE_NOT;
    o.granularity = FP8_DESCALE_HEAD;
    return o;
}

/* A plan with its memory on the device. */
typedef struct setting {
    fp8_device *gpu;
    cell *c;
    fp8_attention_plan *plan;
    void *dev[NUM_MEM], *workspace;
    size_t bytes;
} setting;

/* 0: this backend does not serve. */
static int set_up(setting *t, fp8_device *gpu, cell *c, fp8_attention_backend backend) {
    fp8_status st;
    *t = (setting){.gpu = gpu, .c = c};
    c->o.backend = backend;
    st = fp8_attention_plan_create(&t->plan, gpu, &c->o);
    if (st == FP8_EUNSUPPORTED && backend != FP8_BACKEND_UNFUSED) return 0;
    CHECK_STATUS(st, FP8_OK);
    if (st != FP8_OK) return 0;
    t->bytes = fp8_attention_workspace_size(t->plan);
    CHECK_STATUS(cell_upload(c, gpu, t->dev), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &t->workspace, t->bytes), FP8_OK);
    return 1;
}

static void tear_down(setting *t) {
    for (int i = 0; i < NUM_MEM; i++) fp8_device_free(t->gpu, t->dev[i]);
    fp8_device_free(t->gpu, t->workspace);
    fp8_attention_plan_destroy(t->plan);
}

static void enqueue(setting *t) {
    const fp8_attention_io io = cell_io(t->c, t->dev);
    CHECK_STATUS(fp8_attention_run(t->plan, &io, t->workspace, t->bytes), FP8_OK);
}

/* O as bytes; the caller frees. */
static uint8_t *fetch(setting *t) {
    uint8_t *o = malloc(t->c->bytes[MEM_O]);
    if (!o) abort();
    CHECK_STATUS(fp8_device_download(t->gpu, o, t->dev[MEM_O], t->c->bytes[MEM_O]), FP8_OK);
    return o;
}

static void poison(setting *t) {
    CHECK_STATUS(fp8_device_fill(t->gpu, t->dev[MEM_O], 0xff, t->c->bytes[MEM_O]), FP8_OK);
    CHECK_STATUS(fp8_device_fill(t->gpu, t->workspace, 0xff, t->bytes), FP8_OK);
}

static uint8_t *run_once(setting *t) {
    poison(t);
    enqueue(t);
    return fetch(t);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* The second set of lengths and scales. */
static void change(setting *t) {
    static const int parts[] = {MEM_Q_DESCALE, MEM_K_DESCALE, MEM_V_DESCALE};
    const cell *c = t->c;
    for (int k = MEM_Q_LENGTHS; k <= MEM_KV_LENGTHS; k++) {
        int32_t *l = malloc(c->bytes[k]);
        for (int64_t s = 0; s < c->o.num_seqs; s++) {
            l[s] = ((int32_t *)c->host[k])[s];
            l[s] = s == 1 ? 0 : l[s] - l[s] / 3;
        }
        CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[k], l, c->bytes[k]), FP8_OK);
        free(l);
    }
    for (int i = 0; i < 3; i++) {
        const int k = parts[i];
        float *x;
        if (!c->host[k]) continue;
        x = malloc(c->bytes[k]);
        for (size_t n = 0; n < c->bytes[k] / sizeof *x; n++)
            x[n] = ((float *)c->host[k])[n] * (1.5f + (float)n);
        CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[k], x, c->bytes[k]), FP8_OK);
        free(x);
    }
}

static void restore(setting *t) {
    for (int k = MEM_Q_STARTS; k < NUM_MEM; k++)
        if (t->dev[k])
            CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[k], t->c->host[k], t->c->bytes[k]),
                         FP8_OK);
}

static void replay(setting *t, fp8_graph *graph, const uint8_t *want) {
    uint8_t *got;
    poison(t);
    CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    got = fetch(t);
    CHECK(memcmp(got, want, t->c->bytes[MEM_O]) == 0);
    free(got);
}

static void test_graph(setting *t) {
    fp8_graph *graph = NULL;
    uint8_t *first = run_once(t), *second;

    change(t);
    second = run_once(t);
    CHECK(memcmp(first, second, t->c->bytes[MEM_O]) != 0);
    restore(t);
    CHECK_STATUS(fp8_graph_begin(t->gpu), FP8_OK);
    enqueue(t);
    CHECK_STATUS(fp8_graph_end(t->gpu, &graph), FP8_OK);
    if (graph) {
        replay(t, graph, first);
        change(t);
        replay(t, graph, second);
        restore(t);
        replay(t, graph, first);
    }
    fp8_graph_destroy(graph);
    free(first);
    free(second);
}

/* ---- lengths and starts that lie ------------------------------------------------------------- */

/* compute-sanitizer tells of strays; here the call must be accepted and the device stay well. */
static void test_hostile(setting *t) {
    static const int32_t lies[][3] = {{100, 200, 300},
                                      {-50, 4, -1},
                                      {INT32_MAX, INT32_MIN, INT32_MAX},
                                      {1 << 30, 0, 1}};
    for (int i = 0; i < 4 * 4; i++) {
        for (int k = MEM_Q_STARTS; k <= MEM_KV_LENGTHS; k++) {
            const int32_t *lie = lies[(k & 1 ? i / 4 : i + k) % 4];
            if (t->dev[k])
                CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[k], lie, 3 * sizeof *lie), FP8_OK);
        }
        poison(t);
        enqueue(t);
        CHECK_STATUS(fp8_device_sync(t->gpu), FP8_OK);
    }
    restore(t);
}

/* ---- NaN and Inf ----------------------------------------------------------------------------- */

/* Puts x into element e of a token and head of an operand and runs. */
static uint8_t *run_with(setting *t, int mem, fp8_dtype dtype, int64_t at, float x) {
    uint8_t *all = malloc(t->c->bytes[mem]), *o;
    memcpy(all, t->c->host[mem], t->c->bytes[mem]);
    element_set(all, dtype, at, x);
    CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[mem], all, t->c->bytes[mem]), FP8_OK);
    o = run_once(t);
    CHECK_STATUS(fp8_device_upload(t->gpu, t->dev[mem], t->c->host[mem], t->c->bytes[mem]), FP8_OK);
    free(all);
    return o;
}

/* Rows outside (seq, head) keep their bytes; those with `all`, or row `token` alone, are NaN. */
static void check_spoiled(const setting *t, const uint8_t *o, const uint8_t *clean, int64_t seq,
                          int64_t head, int64_t token, int all) {
    const cell *c = t->c;
    const size_t row = (size_t)c->o.d_v * 2; /* BF16 */
    int wrong = 0;
    for (int64_t s = 0; s < c->o.num_seqs; s++)
        for (int64_t i = 0; i < c->length[s].q; i++)
            for (int64_t h = 0; h < c->o.num_heads; h++) {
                const int64_t at = cell_at(c->o.o, s, c->q_begin[s] + i, h);
                const int spoiled = s == seq && h == head && (all || i == token);
                if (!spoiled && s == seq && h == head && token < 0) continue;
                if (!spoiled) wrong += memcmp(o + at * 2, clean + at * 2, row) != 0;
                else wrong += !isnan(element_get(o, BF16, at));
            }
    CHECK(wrong == 0);
}

static void test_nonfinite(setting *t) {
    const cell *c = t->c;
    const fp8_attention_options *o = &c->o;
    uint8_t *clean, *got;
    const int64_t s = 2, h = 1, token = 5;
    const int64_t q = c->at.q_offset + cell_at(o->q, s, c->q_begin[s] + token, h) + 3;
    const int64_t k = c->at.k_offset + cell_at(o->k, s, c->kv_begin[s], h) + 3;
    const int64_t v = c->at.v_offset + cell_at(o->v, s, c->kv_begin[s], h) + 3;

    clean = run_once(t);
    got = run_with(t, MEM_Q, o->q_dtype, q, NAN);
    check_spoiled(t, got, clean, s, h, token, 0);
    free(got);
    got = run_with(t, c->k_mem, o->kv_dtype, k, NAN); /* key 0: every row of the head sees it */
    check_spoiled(t, got, clean, s, h, -1, o->mask != FP8_MASK_CAUSAL_BOTTOM_RIGHT);
    free(got);
    got = run_with(t, c->v_mem, o->kv_dtype, v, INFINITY); /* codes saturate; others pass it on */
    check_spoiled(t, got, clean, s, h, -1, 0);
    free(got);
    got = run_with(t, c->v_mem, o->kv_dtype, v, NAN);
    check_spoiled(t, got, clean, s, h, -1, 0);
    free(got);
    free(clean);
}

int main(void) {
    static const cell_lengths lengths[3] = {{70, 70}, {33, 40}, {129, 140}};
    fp8_device *gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (int i = 0; i < NUM_KINDS * NUM_BACKENDS; i++) {
        const fp8_attention_options o = options_of(&kinds[i / NUM_BACKENDS]);
        char name[64];
        setting t;
        cell c;
        cell_init(&c, &o, lengths, 3, 1, -1, (uint64_t)i / NUM_BACKENDS);
        snprintf(name, sizeof name, "%s, %s", kinds[i / NUM_BACKENDS].name,
                 fp8_attention_backend_name(backends[i % NUM_BACKENDS]));
        check_case = name;
        if (set_up(&t, gpu, &c, backends[i % NUM_BACKENDS])) {
            fprintf(stderr, "%s\n", name);
            test_graph(&t);
            test_nonfinite(&t);
            test_hostile(&t);
            tear_down(&t);
        }
        cell_free(&c);
    }
    check_case = "";
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
