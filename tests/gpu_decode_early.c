/* Attention over pages that begins to read before the kernels before it have ended
 * (fp8_decode_options.early): steps of layers, norm, q k v, append, attention, o, in a graph whose
 * tokens and lengths change from replay to replay, against one kernel after the other: the same
 * bytes of the stream after every step and of all pages in the end. `gpu_decode_early few` leaves
 * what a sanitizer gets through in seconds. */
#include <math.h>
#include <string.h>

#include "attention/decode.h"
#include "core/graph.h"
#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { LAYERS = 3, HIDDEN = 512, MAX_SEQS = 40, POSITIONS = 2048, STEPS = 24, FEW_STEPS = 3,
       STIR = 11 /* pages from one of a sequence to its next */ };

static fp8_device *gpu;

typedef struct early_case {
    const char *name;
    int32_t heads, kv_heads, d, page;
    int64_t seqs, q; /* q: tokens a sequence and step; of every third one less, if there are more */
    int64_t split;
    int within, bf16_pages;
    int32_t least, apart; /* keys: least + i * apart of sequence i, with the first step's */
} early_case;

static const early_case cases[] = {
    {"d 128, append before", 8, 2, 128, 64, 5, 1, 0, 0, 0, 60, 97},
    {"d 128, append within", 8, 2, 128, 64, 5, 1, 0, 1, 0, 60, 97},
    {"d 256, many short, before", 4, 4, 256, 64, 40, 1, 0, 0, 0, 1, 13},
    {"d 256, many short, within", 4, 4, 256, 64, 40, 1, 0, 1, 0, 1, 13},
    {"d 256, whole items, before", 4, 4, 256, 64, 40, 1, 1024, 0, 0, 120, 1},
    {"d 256, whole items, within", 4, 4, 256, 64, 40, 1, 1024, 1, 0, 120, 1},
    {"1 sequence, before", 8, 2, 128, 128, 1, 1, 0, 0, 0, 1000, 0},
    {"1 sequence, within", 8, 2, 128, 128, 1, 1, 0, 1, 0, 1000, 0},
    {"3 tokens a sequence", 8, 2, 128, 64, 7, 3, 0, 0, 0, 3, 61},
    {"groups of 16 over BF16, within", 16, 1, 128, 64, 6, 1, 256, 1, 1, 30, 50},
    {"d 64, before", 8, 8, 64, 128, 12, 1, 0, 0, 0, 100, 31},
    {"d 64, within", 8, 8, 64, 128, 12, 1, 0, 1, 0, 100, 31},
};

typedef struct problem {
    const early_case *c;
    int64_t width, inner, rows, max_pages, key_bytes; /* key_bytes: of K or V of a layer */
    uint8_t *weights[LAYERS][2], *pages[2][LAYERS]; /* q k v, o; of the two ways: K, then V */
    uint8_t *codes, *out;
    uint16_t *stream, *qkv, *q, *norm_weight;
    float *scales, *turn; /* multiplier of codes; descales of x, W, K and V at 4, 8, 12 */
    int32_t *table, *lengths, *starts, *positions;
    int32_t begin[MAX_SEQS + 1];
} problem;

static void *room(size_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(gpu, &p, bytes), FP8_OK);
    return p;
}

/* A period of values again and again. */
static void *normals(fp8_dtype type, int64_t count, float scale, float offset, uint64_t seed) {
    const int64_t period = 60013;
    const size_t size = fp8_dtype_size(type);
    uint8_t *host = malloc((size_t)count * size), *p = room((size_t)count * size);
    for (int64_t i = 0; i < count && i < period; i++) {
        const float x = offset + scale * check_normal(&seed);
        const uint16_t real = fp8_f32_to_bf16(x);
        if (size == 2) memcpy(host + 2 * i, &real, 2);
        else host[i] = fp8_from_f32(FP8_DTYPE_E4M3, x);
    }
    for (int64_t i = period; i < count; i++)
        memcpy(host + i * (int64_t)size, host + (i - period) * (int64_t)size, size);
    CHECK_STATUS(fp8_device_upload(gpu, p, host, (size_t)count * size), FP8_OK);
    free(host);
    return p;
}

static void *normal_bf16(int64_t count, float scale, float offset, uint64_t seed) {
    return normals(FP8_DTYPE_BF16, count, scale, offset, seed);
}

static void *normal_codes(int64_t count, uint64_t seed) {
    return normals(FP8_DTYPE_E4M3, count, 3.0f, 0.0f, seed);
}

static int64_t element_bytes(const early_case *c) { return c->bf16_pages ? 2 : 1; }

/* Pages of both ways with the same in them; `pages` lie in an order of their own. */
static void make_cache(problem *p) {
    const early_case *c = p->c;
    const int64_t pages = c->seqs * p->max_pages;
    int32_t *table = malloc((size_t)pages * sizeof *table);

    p->key_bytes = pages * c->kv_heads * c->page * c->d * element_bytes(c);
    for (int l = 0; l < LAYERS; l++) {
        p->pages[0][l] = c->bf16_pages ? normal_bf16(p->key_bytes, 1, 0, 50 + (uint64_t)l)
                                       : normal_codes(2 * p->key_bytes, 50 + (uint64_t)l);
        p->pages[1][l] = room((size_t)(2 * p->key_bytes));
        CHECK_STATUS(fp8_device_copy(gpu, p->pages[1][l], p->pages[0][l],
                                     (size_t)(2 * p->key_bytes)), FP8_OK);
    }
    for (int64_t i = 0; i < pages; i++) table[i] = (int32_t)((i * STIR + 3) % pages);
    CHECK(pages % STIR != 0);
    p->table = room((size_t)pages * sizeof *table);
    CHECK_STATUS(fp8_device_upload(gpu, p->table, table, (size_t)pages * sizeof *table), FP8_OK);
    free(table);
}

static void make_turn(problem *p) {
    const int64_t half = p->c->d / 2;
    float *turn = malloc((size_t)(2 * POSITIONS * half) * sizeof *turn);
    for (int64_t i = 0; i < POSITIONS * half; i++) {
        const double angle = (double)(i / half) / (double)(1 + i % half);
        turn[i] = (float)cos(angle);
        turn[POSITIONS * half + i] = (float)sin(angle);
    }
    p->turn = room((size_t)(2 * POSITIONS * half) * sizeof *turn);
    CHECK_STATUS(fp8_device_upload(gpu, p->turn, turn, (size_t)(2 * POSITIONS * half) *
                                   sizeof *turn), FP8_OK);
    free(turn);
}

static problem make(const early_case *c) {
    const float scales[16] = {[0] = 16.0f, [4] = 1.0f / 16.0f, [8] = 0.01f, [12] = 0.02f};
    problem p = {.c = c, .width = (c->heads + 2 * c->kv_heads) * c->d, .inner = c->heads * c->d};
    const int64_t most = c->least + (c->seqs - 1) * c->apart + STEPS * c->q;

    for (int64_t s = 0; s < c->seqs; s++)
        p.begin[s + 1] = p.begin[s] + (int32_t)(s % 3 == 1 && c->q > 1 ? c->q - 1 : c->q);
    p.rows = p.begin[c->seqs];
    p.max_pages = (most + c->page - 1) / c->page;
    if (c->seqs * p.max_pages % STIR == 0) p.max_pages++;
    for (int l = 0; l < LAYERS; l++) {
        p.weights[l][0] = normal_codes(p.width * HIDDEN, 10 + (uint64_t)l);
        p.weights[l][1] = normal_codes(HIDDEN * p.inner, 20 + (uint64_t)l);
    }
    make_cache(&p);
    make_turn(&p);
    p.codes = room((size_t)(p.rows * HIDDEN));
    p.out = room((size_t)(p.rows * p.inner));
    p.stream = room((size_t)(p.rows * HIDDEN) * 2);
    p.qkv = room((size_t)(p.rows * p.width) * 2);
    p.q = room((size_t)(p.rows * p.inner) * 2);
    p.norm_weight = normal_bf16(HIDDEN, 0.2f, 1.0f, 5);
    p.scales = room(sizeof scales);
    CHECK_STATUS(fp8_device_upload(gpu, p.scales, scales, sizeof scales), FP8_OK);
    p.lengths = room(MAX_SEQS * sizeof(int32_t));
    p.starts = room(sizeof p.begin);
    p.positions = room((size_t)p.rows * sizeof(int32_t));
    CHECK_STATUS(fp8_device_upload(gpu, p.starts, p.begin, sizeof p.begin), FP8_OK);
    return p;
}

static void drop(problem *p) {
    void *all[] = {p->codes, p->out, p->stream, p->qkv, p->q, p->norm_weight, p->scales, p->turn,
                   p->table, p->lengths, p->starts, p->positions};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(gpu, all[i]);
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < 2; i++) {
            fp8_device_free(gpu, p->weights[l][i]);
            fp8_device_free(gpu, p->pages[i][l]);
        }
}

/* ---- a step ---------------------------------------------------------------------------------- */

static fp8_decode_plan *make_plan(const problem *p, int early) {
    const early_case *c = p->c;
    fp8_decode_options o = FP8_DECODE_OPTIONS;
    fp8_decode_plan *plan = NULL;

    o.num_heads = c->heads;
    o.num_kv_heads = c->kv_heads;
    o.d_qk = o.d_v = c->d;
    o.page_size = c->page;
    o.num_seqs = c->seqs;
    o.max_q = c->q;
    o.max_kv = p->max_pages * c->page;
    o.kv_dtype = c->bf16_pages ? FP8_DTYPE_BF16 : FP8_DTYPE_E4M3;
    o.o_dtype = FP8_DTYPE_E4M3;
    o.split_keys = c->split;
    o.early = early;
    o.backend = FP8_DECODE_PAGES;
    CHECK_STATUS(fp8_decode_plan_create(&plan, gpu, &o), FP8_OK);
    return plan;
}

static void multiply(const problem *p, const void *x, const void *w, void *y, int64_t n, int64_t k,
                     int adds, fp8_launch how) {
    const fp8_gemm g = {.m = p->rows, .n = n, .k = k, .lda = k, .ldb = k, .ldd = n, .a = x, .b = w,
                        .d = y, .a_dtype = FP8_DTYPE_E4M3, .b_dtype = FP8_DTYPE_E4M3,
                        .d_dtype = FP8_DTYPE_BF16, .alpha = 1.0f, .a_descale = p->scales + 4,
                        .b_descale = p->scales + 8, .a_descale_count = 1, .b_descale_count = 1,
                        .residual = adds ? y : NULL, .residual_dtype = FP8_DTYPE_BF16, .ldr = n,
                        .backend = FP8_GEMM_SKINNY, .launch = how};
    CHECK_STATUS(fp8_gemm_run(gpu, &g, NULL, 0), FP8_OK);
}

static fp8_decode_io io_of(const problem *p, int way, int layer) {
    const early_case *c = p->c;
    return (fp8_decode_io){
        .pages = {.dtype = c->bf16_pages ? FP8_DTYPE_BF16 : FP8_DTYPE_E4M3,
                  .num_kv_heads = c->kv_heads, .d_qk = c->d, .d_v = c->d, .page_size = c->page,
                  .num_pages = c->seqs * p->max_pages, .k = p->pages[way][layer],
                  .v = p->pages[way][layer] + p->key_bytes, .k_descale = p->scales + 12,
                  .v_descale = p->scales + 12},
        .batch = {.num_seqs = c->seqs, .page_table = p->table, .max_pages = p->max_pages,
                  .kv_lengths = p->lengths, .q_starts = p->starts, .max_q = c->q,
                  .max_kv = p->max_pages * c->page, .total_q = p->rows},
        .o = p->out, .q = p->q, .o_scale = p->scales};
}

static fp8_kv_append append_of(const problem *p) {
    const early_case *c = p->c;
    fp8_kv_append a = {.q = {.x = p->qkv, .token_stride = p->width, .head_stride = c->d},
                       .num_heads = c->heads, .dtype = FP8_DTYPE_BF16, .rotary_dim = c->d,
                       .cos = p->turn, .sin = p->turn + POSITIONS * c->d / 2,
                       .num_positions = POSITIONS, .positions = p->positions, .q_out = p->q,
                       .q_dtype = FP8_DTYPE_BF16};
    a.k = a.v = a.q;
    a.k.x = p->qkv + c->heads * c->d;
    a.v.x = p->qkv + (c->heads + c->kv_heads) * c->d;
    return a;
}

/* way 0: one kernel after the other; 1: as early as they may. */
static void attend(const problem *p, int way, int layer, fp8_decode_plan *plan, void *workspace) {
    const fp8_decode_io io = io_of(p, way, layer);
    const fp8_kv_append a = append_of(p);
    const size_t bytes = fp8_decode_workspace_size(plan);

    if (way && p->c->within) {
        CHECK(fp8_decode_append_is_one(plan, &io, &a));
        CHECK_STATUS(fp8_decode_append_run(plan, &io, &a, workspace, bytes), FP8_OK);
        return;
    }
    CHECK_STATUS(fp8_kv_append_run(gpu, &io.pages, &io.batch, &a,
                                   way ? FP8_LAUNCH_OVERLAP : FP8_LAUNCH_ORDERED), FP8_OK);
    if (!way) CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    CHECK_STATUS(fp8_decode_run(plan, &io, workspace, bytes), FP8_OK);
    if (!way) CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
}

static void run_layers(const problem *p, int way, fp8_decode_plan *plan, void *workspace) {
    const fp8_launch how = way ? FP8_LAUNCH_OVERLAP : FP8_LAUNCH_ORDERED;
    const fp8_sink sink = {.codes = p->codes, .code = FP8_DTYPE_E4M3, .scale = p->scales};
    const fp8_norm norm = {.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = FP8_DTYPE_BF16,
                           .rows = p->rows, .cols = HIDDEN, .x = p->stream,
                           .weight = p->norm_weight};

    for (int layer = 0; layer < LAYERS; layer++) {
        CHECK_STATUS(fp8_produce_norm(gpu, &sink, &norm, how), FP8_OK);
        multiply(p, p->codes, p->weights[layer][0], p->qkv, p->width, HIDDEN, 0, how);
        attend(p, way, layer, plan, workspace);
        multiply(p, p->out, p->weights[layer][1], p->stream, HIDDEN, p->inner, 1, how);
    }
}

/* Tokens and lengths of a step. */
static void begin_step(const problem *p, int64_t step) {
    const early_case *c = p->c;
    uint16_t *host = malloc((size_t)(p->rows * HIDDEN) * 2);
    int32_t lengths[MAX_SEQS] = {0}, positions[MAX_SEQS];
    uint64_t seed = 100 + (uint64_t)step;

    for (int64_t i = 0; i < p->rows * HIDDEN; i++)
        host[i] = fp8_f32_to_bf16(check_normal(&seed));
    CHECK(p->rows <= MAX_SEQS);
    for (int64_t s = 0; s < c->seqs; s++) {
        const int32_t n = p->begin[s + 1] - p->begin[s];
        lengths[s] = c->least + (int32_t)s * c->apart + (int32_t)step * n;
        for (int32_t i = 0; i < n; i++) positions[p->begin[s] + i] = lengths[s] - n + i;
    }
    CHECK_STATUS(fp8_device_upload(gpu, p->stream, host, (size_t)(p->rows * HIDDEN) * 2), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, p->lengths, lengths, sizeof lengths), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, p->positions, positions, (size_t)p->rows *
                                   sizeof *positions), FP8_OK);
    free(host);
}

/* ---- a case ---------------------------------------------------------------------------------- */

static void compare_pages(const problem *p) {
    const size_t bytes = (size_t)(2 * p->key_bytes);
    uint8_t *all[2] = {malloc(bytes), malloc(bytes)};
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < 2; i++)
            CHECK_STATUS(fp8_device_download(gpu, all[i], p->pages[i][l], bytes), FP8_OK);
        CHECK(memcmp(all[0], all[1], bytes) == 0);
    }
    free(all[0]);
    free(all[1]);
}

static void test_case(const early_case *c, int steps) {
    problem p = make(c);
    fp8_decode_plan *plans[2] = {make_plan(&p, 0), make_plan(&p, 1)};
    void *workspace = room(fp8_decode_workspace_size(plans[0]));
    const size_t bytes = (size_t)(p.rows * HIDDEN) * 2;
    uint8_t *want = malloc(bytes), *got = malloc(bytes), *last = calloc(1, bytes);
    fp8_graph *graph = NULL;
    int wrong = 0;

    check_case = c->name;
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    run_layers(&p, 1, plans[1], workspace);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    for (int step = 0; step < steps; step++) {
        begin_step(&p, step);
        run_layers(&p, 0, plans[0], workspace);
        CHECK_STATUS(fp8_device_download(gpu, want, p.stream, bytes), FP8_OK);
        begin_step(&p, step);
        CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
        CHECK_STATUS(fp8_device_download(gpu, got, p.stream, bytes), FP8_OK);
        wrong += memcmp(got, want, bytes) != 0;
        CHECK(memcmp(got, last, bytes) != 0);
        memcpy(last, got, bytes);
    }
    if (wrong > 0) fprintf(stderr, "[%s] %d of %d steps differ\n", c->name, wrong, steps);
    CHECK(wrong == 0);
    compare_pages(&p);
    free(want);
    free(got);
    free(last);
    fp8_graph_destroy(graph);
    fp8_device_free(gpu, workspace);
    for (int i = 0; i < 2; i++) fp8_decode_plan_destroy(plans[i]);
    drop(&p);
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!few || i % 3 < 2) test_case(&cases[i], few ? FEW_STEPS : STEPS);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
