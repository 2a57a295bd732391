/* Attention over pages on Hopper: every case of the table against the oracle, the same bytes
 * however a sequence comes, graphs replayed with other contents, tables that lie, long sums. */
#include <cuda_runtime_api.h>

#include "decode_cases.h"

static fp8_device *device;

/* What P in 16 bits and one rounding of O leave; P in the oracle's codes is off by more. */
static double relative_of(const fp8_decode_options *o) {
    return o->o_dtype == E4M3 ? 0.07 : o->quantize_p ? 3e-2 : 1e-2;
}
static double absolute_of(const fp8_decode_options *o) { return o->quantize_p ? 2e-2 : 4e-3; }

static void test_cases(void) {
    for (int i = 0; i < NUM_DECODE_CASES; i++) {
        const decode_case *c = &decode_cases[i];
        decode_problem p;
        decode_result r;
        fp8_status st;
        check_case = c->name;
        decode_problem_init(&p, c, (uint64_t)i + 177);
        st = decode_problem_run(&r, device, &p, FP8_DECODE_PAGES);
        if (st == FP8_EUNSUPPORTED && p.o.max_q > FP8_DECODE_ROWS)
            fprintf(stderr, "%s: no backend for chunks\n", c->name);
        else CHECK_STATUS(st, FP8_OK);
        if (r.o) decode_check(&r, &p, absolute_of(&p.o), relative_of(&p.o));
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* Sizes of heads, groups, pages and types, on lengths drawn anew. */
static void test_shapes(void) {
    static const int32_t heads[][2] = {{64, 64}, {128, 128}, {192, 128}, {256, 256}};
    static const int32_t groups[][2] = {{1, 1}, {4, 4}, {6, 2}, {8, 1}, {9, 1}, {32, 2}};
    static const fp8_dtype types[][2] = {{BF16, E4M3}, {E4M3, E4M3}, {F16, E4M3}, {BF16, BF16},
                                         {F16, F16}};
    uint64_t seed = 5;
    for (int i = 0; i < 4 * 6 * 5; i += 1 + i % 2) {
        decode_case c = {"shapes",
                         OPT(groups[i % 6][0], groups[i % 6][1], heads[i / 6 % 4][0],
                             heads[i / 6 % 4][1], i % 2 ? 64 : 128, types[i / 24][0],
                             types[i / 24][1], BF16, CAUSAL),
                         RANDOM_ORDER, 6, {{1, 1}}};
        decode_problem p;
        decode_result r;
        char name[96];
        for (int s = 0; s < c.num_seqs; s++) {
            c.length[s].q = (int32_t)(check_random(&seed) % 9);
            c.length[s].kv = (int32_t)(check_random(&seed) % (s == 0 ? 700 : 200));
        }
        c.o.split_keys = i % 4 == 3 ? 256 : 0;
        snprintf(name, sizeof name, "%d/%d heads, d %d, page %d, %s over %s", c.o.num_heads,
                 c.o.num_kv_heads, c.o.d_qk, c.o.page_size, fp8_dtype_name(c.o.q_dtype),
                 fp8_dtype_name(c.o.kv_dtype));
        check_case = name;
        decode_problem_init(&p, &c, (uint64_t)i + 400);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.o) decode_check(&r, &p, absolute_of(&p.o), relative_of(&p.o));
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* ---- the same bytes -------------------------------------------------------------------------- */

/* Sequences `first` .. `first` + n - 1 of a problem, in the same pages. */
static decode_problem some_of(const decode_problem *p, int64_t first, int64_t n, int32_t *starts) {
    const int32_t begin = p->batch.q_starts[first];
    decode_problem x = *p;
    for (int64_t s = 0; s <= n; s++) starts[s] = p->batch.q_starts[first + s] - begin;
    x.o.num_seqs = x.batch.num_seqs = n;
    x.o.total_q = x.batch.total_q = starts[n];
    x.batch.page_table += first * p->batch.max_pages;
    x.batch.kv_lengths += first;
    x.batch.q_starts = starts;
    x.q = (uint8_t *)p->q + (size_t)(begin * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    x.q_bytes = (size_t)(starts[n] * p->o.q_token) * fp8_dtype_size(p->o.q_dtype);
    x.o_bytes = (size_t)(starts[n] * p->o.o_token) * fp8_dtype_size(p->o.o_dtype);
    x.lse_bytes = (size_t)(starts[n] * p->o.num_heads) * sizeof(float);
    return x;
}

static void check_same(const decode_problem *p, int64_t first, int64_t n, const uint8_t *want) {
    int32_t starts[DECODE_MAX_SEQS + 1];
    const decode_problem x = some_of(p, first, n, starts);
    decode_result r;
    CHECK_STATUS(decode_problem_run(&r, device, &x, FP8_DECODE_PAGES), FP8_OK);
    if (r.bytes)
        CHECK(memcmp(r.bytes,
                     want + (size_t)(p->batch.q_starts[first] * p->o.o_token) *
                                fp8_dtype_size(p->o.o_dtype),
                     x.o_bytes) == 0);
    decode_result_free(&r);
}

/* With a given split a sequence gives the same bytes in any batch; without, a batch does. */
static void test_same_bytes(void) {
    for (int i = 0; i < 4; i++) {
        const decode_case c = {
            "same bytes",
            OPT(8, i % 2 ? 8 : 2, 128, 128, i / 2 ? 128 : 64, BF16, E4M3, BF16, CAUSAL,
                .split_keys = i == 3 ? 0 : 256 << i),
            RANDOM_ORDER, 6, {{1, 9000}, {3, 65}, {8, 2333}, {1, 128}, {0, 40}, {2, 5000}}};
        decode_problem p;
        decode_result r;
        check_case = c.name;
        decode_problem_init(&p, &c, (uint64_t)i + 9);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.bytes) check_same(&p, 0, 6, r.bytes);
        for (int s = 0; s < 6 && r.bytes && c.o.split_keys; s++) check_same(&p, s, 1, r.bytes);
        if (r.bytes && c.o.split_keys) check_same(&p, 2, 4, r.bytes);
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static fp8_decode_plan *plan_of(const decode_problem *p, void **workspace) {
    fp8_decode_options o = p->o;
    fp8_decode_plan *plan = NULL;
    o.backend = FP8_DECODE_PAGES;
    CHECK_STATUS(fp8_decode_plan_create(&plan, device, &o), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(device, workspace, fp8_decode_workspace_size(plan)), FP8_OK);
    return plan;
}

/* The contents of b where those of a were captured. */
static void replace_contents(decode_device *to, const decode_problem *b) {
    const fp8_kv_batch *x = &b->batch;
    const struct {
        const void *to, *from;
        size_t bytes;
    } all[] = {
        {to->io.pages.k, b->pages.k, b->k_bytes},
        {to->io.pages.v, b->pages.v, b->v_bytes},
        {to->io.pages.k_descale, b->k_descale, b->descale_bytes},
        {to->io.pages.v_descale, b->v_descale, b->descale_bytes},
        {to->io.batch.page_table, x->page_table,
         (size_t)(x->num_seqs * x->max_pages) * sizeof(int32_t)},
        {to->io.batch.kv_lengths, x->kv_lengths, (size_t)x->num_seqs * sizeof(int32_t)},
        {to->io.batch.q_starts, x->q_starts, (size_t)(x->num_seqs + 1) * sizeof(int32_t)},
        {to->io.q, b->q, b->q_bytes},
        {to->io.q_descale, b->q_descale, b->descale_bytes},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CHECK_STATUS(fp8_device_upload(device, (void *)(uintptr_t)all[i].to, all[i].from,
                                       all[i].bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(device, to->io.o, 0xff, b->o_bytes), FP8_OK);
}

/* Two problems of one geometry: the graph of the first, replayed with what the second holds. */
static void test_graph(void) {
    const decode_case cases[2] = {
        {"graph", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL), RANDOM_ORDER, 4,
         {{2, 900}, {1, 65}, {3, 333}, {1, 128}}},
        {"graph, other contents", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL), RANDOM_ORDER,
         4, {{1, 128}, {3, 900}, {1, 0}, {2, 460}}}};
    const cudaStream_t stream = fp8_device_stream(device);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    fp8_decode_plan *plan;
    decode_problem p[2];
    decode_device g;
    decode_result r;
    void *workspace = NULL;

    check_case = cases[1].name;
    for (int i = 0; i < 2; i++) decode_problem_init(&p[i], &cases[i], 31);
    if (p[0].k_bytes != p[1].k_bytes || p[0].pages.num_pages != p[1].pages.num_pages) {
        CHECK(!"the two problems differ in size");
        return;
    }
    plan = plan_of(&p[0], &workspace);
    decode_device_init(&g, device, &p[0]);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK_STATUS(fp8_decode_run(plan, &g.io, workspace, fp8_decode_workspace_size(plan)), FP8_OK);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
    for (int i = 0; i < 4; i++) {
        decode_result direct;
        replace_contents(&g, &p[i % 2]);
        CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
        decode_fetch(&r, device, &g, &p[i % 2]);
        CHECK_STATUS(decode_problem_run(&direct, device, &p[i % 2], FP8_DECODE_PAGES), FP8_OK);
        if (direct.bytes) CHECK(memcmp(r.bytes, direct.bytes, p[i % 2].o_bytes) == 0);
        decode_check(&r, &p[i % 2], 4e-3, 1e-2);
        decode_result_free(&direct);
        decode_result_free(&r);
    }
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    decode_device_free(&g, device);
    fp8_device_free(device, workspace);
    fp8_decode_plan_destroy(plan);
    for (int i = 0; i < 2; i++) decode_problem_free(&p[i]);
}

/* ---- what lies, what is long ----------------------------------------------------------------- */

/* Lengths, starts and pages that point outside: as the oracle clamps them. */
static void test_hostile(void) {
    static int32_t lengths[] = {INT32_MAX, -5, 1000, 40}, starts[] = {-3, 2, 2, 900, 4};
    static int32_t table[4 * 3];
    const decode_case c = {"hostile", OPT(4, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL),
                           RANDOM_ORDER, 4, {{1, 100}, {1, 90}, {1, 128}, {1, 60}}};
    decode_problem p, bad;
    decode_result r;

    check_case = c.name;
    decode_problem_init(&p, &c, 3);
    memset(p.pages.k, 0x31, p.k_bytes);
    memset(p.pages.v, 0x32, p.v_bytes);
    for (int i = 0; i < 12; i++) table[i] = i % 3 == 0 ? -i * 1000 : INT32_MAX - i;
    bad = p;
    bad.batch.kv_lengths = lengths;
    bad.batch.q_starts = starts;
    bad.batch.page_table = table;
    bad.batch.max_pages = 3;
    CHECK_STATUS(decode_problem_run(&r, device, &bad, FP8_DECODE_PAGES), FP8_OK);
    if (r.o) decode_check(&r, &bad, 4e-3, 1e-2);
    decode_result_free(&r);
    decode_problem_free(&p);
}

/* NaN in a query spoils its row alone. */
static void test_not_finite(void) {
    const decode_case c = {"NaN in a query", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL),
                           RANDOM_ORDER, 2, {{2, 700}, {1, 300}}};
    decode_problem p;
    decode_result good, bad;
    const int32_t row = 128; /* d */

    check_case = c.name;
    decode_problem_init(&p, &c, 3);
    CHECK_STATUS(decode_problem_run(&good, device, &p, FP8_DECODE_PAGES), FP8_OK);
    ((uint16_t *)p.q)[3 * row + 5] = 0x7fc0;
    CHECK_STATUS(decode_problem_run(&bad, device, &p, FP8_DECODE_PAGES), FP8_OK);
    for (int64_t i = 0; i < good.count && good.o && bad.o; i++) {
        if (i / row == 3 ? isnan(bad.o[i]) : bad.o[i] == good.o[i]) continue;
        fprintf(stderr, "[%s] row %lld [%lld]: %g, without %g\n", check_case, (long long)(i / row),
                (long long)(i % row), (double)bad.o[i], (double)good.o[i]);
        CHECK(!"NaN is where it should be");
        break;
    }
    decode_result_free(&good);
    decode_result_free(&bad);
    decode_problem_free(&p);
}

/* V of one sign, even scores, 128 k keys: sums that lose bits would be far off. */
static void test_long(void) {
    const decode_case c = {"128 k keys of one sign",
                           OPT(4, 1, 128, 128, 128, BF16, E4M3, BF16, CAUSAL, .scale = 0.001f),
                           RANDOM_ORDER, 2, {{1, 131072}, {1, 8192}}};
    decode_problem p;
    decode_result r;

    check_case = c.name;
    decode_problem_init(&p, &c, 8);
    for (size_t i = 0; i < p.v_bytes; i++) ((uint8_t *)p.pages.v)[i] &= 0x7f; /* NaN stays */
    CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
    if (r.o) decode_check(&r, &p, 1e-6, 5e-3);
    decode_result_free(&r);
    decode_problem_free(&p);
}

/* Lengths of 1 to 32 k and none, drawn anew each time. */
static void test_ragged(void) {
    uint64_t seed = 77;
    for (int i = 0; i < 2; i++) {
        decode_case c = {"ragged", OPT(4, 1, 128, 128, i % 2 ? 64 : 128, BF16, E4M3, BF16, CAUSAL),
                         i == 1 ? SHARED_ORDER : RANDOM_ORDER, 12, {{1, 32768}}};
        decode_problem p;
        decode_result r;
        check_case = c.name;
        for (int s = 1; s < c.num_seqs; s++) {
            c.length[s].q = 1;
            c.length[s].kv = s == 4 ? 0 : (int32_t)(check_random(&seed) % (1u << (5 + s % 9)));
        }
        decode_problem_init(&p, &c, seed);
        CHECK_STATUS(decode_problem_run(&r, device, &p, FP8_DECODE_PAGES), FP8_OK);
        if (r.o) decode_check(&r, &p, 4e-3, 1e-2);
        decode_result_free(&r);
        decode_problem_free(&p);
    }
}

/* "quick": what a sanitizer can take. */
int main(int argc, char **argv) {
    const int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    device = check_gpu();
    if (!device) return TEST_SKIP;
    test_hostile();
    test_graph();
    test_not_finite();
    if (!quick) {
        test_same_bytes();
        test_long();
        test_ragged();
    }
    test_cases();
    if (!quick) test_shapes();
    fp8_device_destroy(device);
    return CHECK_DONE();
}
