/* Attention over pages on the GPU, each backend that serves: the table of cases against the oracle,
 * the same bytes twice and in other company, lengths and tables that lie, and a captured graph
 * replayed with other lengths, pages and scales. `gpu_decode CASE` leaves one case. */
#include <string.h>

#include "core/graph.h"
#include "decode_cases.h"

static fp8_device *gpu;
static const fp8_decode_backend backends[] = {FP8_DECODE_PAGES, FP8_DECODE_GATHERED};
enum { NUM_BACKENDS = sizeof backends / sizeof *backends };

/* Queries up to which a backend's P is exact. */
static int64_t exact_q(fp8_decode_backend b) {
    return b == FP8_DECODE_PAGES ? FP8_DECODE_ROWS : 0;
}

/* 0: this backend does not serve, or is not there. */
static int run_or_say(decode_result *r, const decode_problem *p, fp8_decode_backend b) {
    const fp8_status st = decode_problem_run(r, gpu, p, b);
    if (st == FP8_EUNSUPPORTED) {
        printf("[%s] %s: %s\n", check_case, fp8_decode_backend_name(b), fp8_last_message());
        return 0;
    }
    CHECK_STATUS(st, FP8_OK);
    return st == FP8_OK;
}

/* Chunks that the gathered backend cuts into pieces of a tile, and as many as it has room for. With
 * so many rows some code of P falls to the other side than the oracle's: an eighth of that P. */
static const decode_case piece_cases[] = {
    {"pieces, codes", OPT(8, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL, .quantize_p = 1,
     .max_chunks = 6), RANDOM_ORDER, 10,
     {{300, 500}, {1, 700}, {128, 128}, {129, 400}, {0, 30}, {257, 257}, {8, 9}, {9, 900},
      {256, 1000}, {3, 64}}},
    {"pieces, window", OPT(4, 4, 256, 256, 64, E4M3, E4M3, E4M3, WINDOW(150), .quantize_p = 1),
     RANDOM_ORDER, 4, {{300, 500}, {1, 700}, {130, 130}, {129, 900}}},
    {"pieces, BF16", OPT(4, 2, 64, 64, 64, BF16, BF16, BF16, CAUSAL), RANDOM_ORDER, 4,
     {{300, 500}, {1, 700}, {193, 193}, {385, 900}}},
    {"pieces, real Q", OPT(4, 2, 128, 128, 64, BF16, E4M3, BF16, WINDOW(200)), RANDOM_ORDER, 3,
     {{300, 500}, {1, 70}, {193, 193}}},
    {"whole chunks, softcap", OPT(4, 2, 128, 128, 64, E4M3, E4M3, BF16, CAUSAL, .quantize_p = 1,
     .softcap = 5.0f), RANDOM_ORDER, 3, {{300, 500}, {1, 70}, {193, 193}}},
};
enum { NUM_PIECE_CASES = sizeof piece_cases / sizeof *piece_cases };

static void test_cases(const char *only, const decode_case *cases, int count, double atol) {
    for (int i = 0; i < count; i++) {
        const decode_case *c = &cases[i];
        const double codes = c->o.o_dtype == E4M3 ? 0x1p-4 : 0.0;
        decode_problem p;
        int served = 0;
        if (only && strcmp(only, c->name) != 0) continue;
        decode_problem_init(&p, c, (uint64_t)i + 77);
        for (int b = 0; b < NUM_BACKENDS; b++) {
            char name[128];
            decode_result r, again;
            snprintf(name, sizeof name, "%s, %s", c->name, fp8_decode_backend_name(backends[b]));
            check_case = name;
            if (!run_or_say(&r, &p, backends[b])) continue;
            served++;
            decode_check(&r, &p, exact_q(backends[b]), atol, 3e-2 + codes);
            CHECK_STATUS(decode_problem_run(&again, gpu, &p, backends[b]), FP8_OK);
            CHECK(memcmp(r.bytes, again.bytes, p.o_bytes) == 0);
            decode_result_free(&r);
            decode_result_free(&again);
        }
        check_case = c->name;
        CHECK(served > 0);
        decode_problem_free(&p);
    }
}

/* Lengths up to 32k, some 0, in random pages; sampled by a second run that has a sequence alone. */
static void test_long(fp8_decode_backend b) {
    const decode_case c = {"long", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL,
                                       .split_keys = 1024), RANDOM_ORDER, 9,
                           {{1, 32000}, {1, 0}, {1, 1}, {2, 9001}, {1, 4096}, {1, 4097}, {8, 1023},
                            {1, 0}, {1, 17000}}};
    decode_problem p;
    decode_result r;
    check_case = c.name;
    decode_problem_init(&p, &c, 21);
    if (run_or_say(&r, &p, b)) {
        decode_check(&r, &p, exact_q(b), 2e-2, 3e-2);
        decode_result_free(&r);
    }
    decode_problem_free(&p);
}

static void test_company(fp8_decode_backend b) {
    const decode_case c = {"company", OPT(8, 2, 128, 128, 64, BF16, E4M3, BF16, CAUSAL,
                                          .split_keys = 128), RANDOM_ORDER, 6,
                           {{1, 700}, {3, 65}, {1, 333}, {1, 128}, {8, 40}, {1, 1500}}};
    decode_problem p;
    decode_result r;
    check_case = c.name;
    decode_problem_init(&p, &c, 9);
    if (!run_or_say(&r, &p, b)) {
        decode_problem_free(&p);
        return;
    }
    for (int64_t s = 0; s < c.num_seqs; s++) {
        const decode_problem one = decode_problem_alone(&p, s);
        decode_result x;
        CHECK_STATUS(decode_problem_run(&x, gpu, &one, b), FP8_OK);
        CHECK(memcmp(x.bytes, r.bytes + (size_t)(p.batch.q_starts[s] * p.o.o_token) * 2,
                     one.o_bytes) == 0);
        decode_result_free(&x);
    }
    decode_result_free(&r);
    decode_problem_free(&p);
}

static void test_hostile(fp8_decode_backend b) {
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
    if (run_or_say(&r, &bad, b)) {
        decode_check(&r, &bad, exact_q(b), 2e-2, 3e-2);
        decode_result_free(&r);
    }
    decode_problem_free(&p);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* Other lengths, pages and scales of the same sizes. */
static void change(decode_problem *p) {
    int32_t *lengths = (int32_t *)(uintptr_t)p->batch.kv_lengths;
    int32_t *table = (int32_t *)(uintptr_t)p->batch.page_table;
    for (int64_t s = 0; s < p->o.num_seqs; s++) {
        const int32_t first = table[s * p->batch.max_pages];
        lengths[s] -= lengths[s] / 64 * 64 == lengths[s] ? 0 : lengths[s] / 3;
        if (lengths[s] <= 128) continue;
        table[s * p->batch.max_pages] = table[s * p->batch.max_pages + 1];
        table[s * p->batch.max_pages + 1] = first;
    }
    p->k_descale[0] *= 1.25f;
    p->v_descale[0] *= 0.75f;
}

static void test_graph(fp8_decode_backend b, int which) {
    const decode_case *c = &decode_cases[which];
    fp8_decode_plan *plan = NULL;
    fp8_graph *graph = NULL;
    void *workspace = NULL;
    decode_problem p;
    decode_device g = {0};
    decode_result want, got;
    size_t bytes;
    const size_t n = (size_t)c->num_seqs;

    check_case = c->name;
    decode_problem_init(&p, c, 31);
    p.o.backend = b;
    if (fp8_decode_plan_create(&plan, gpu, &p.o) != FP8_OK) goto done;
    bytes = fp8_decode_workspace_size(plan);
    decode_device_init(&g, gpu, &p);
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    CHECK_STATUS(fp8_decode_run(plan, &g.io, workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    if (!graph) goto done;
    CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    change(&p);
    CHECK_STATUS(fp8_device_upload(gpu, g.memory[2], p.k_descale, p.descale_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, g.memory[3], p.v_descale, p.descale_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, g.memory[4], p.batch.page_table,
                                   n * (size_t)p.batch.max_pages * sizeof(int32_t)), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, g.memory[5], p.batch.kv_lengths, n * sizeof(int32_t)),
                 FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, workspace, 0xff, bytes), FP8_OK);
    CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    decode_fetch(&got, gpu, &g, &p);
    CHECK_STATUS(decode_problem_run(&want, gpu, &p, b), FP8_OK);
    CHECK(want.bytes && memcmp(want.bytes, got.bytes, p.o_bytes) == 0);
    decode_result_free(&got);
    decode_result_free(&want);
done:
    fp8_graph_destroy(graph);
    decode_device_free(&g, gpu);
    fp8_device_free(gpu, workspace);
    fp8_decode_plan_destroy(plan);
    decode_problem_free(&p);
}

static int case_named(const char *name) {
    for (int i = 0; i < NUM_DECODE_CASES; i++)
        if (strcmp(decode_cases[i].name, name) == 0) return i;
    abort();
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : NULL;
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    test_cases(only, decode_cases, NUM_DECODE_CASES, 2e-2);
    test_cases(only, piece_cases, NUM_PIECE_CASES, 0x1p-3);
    for (int b = 0; b < NUM_BACKENDS && !only; b++) {
        test_long(backends[b]);
        test_company(backends[b]);
        test_hostile(backends[b]);
        test_graph(backends[b], case_named("edges, page 64"));
        test_graph(backends[b], case_named("everything"));
        test_graph(backends[b], case_named("split"));
        test_graph(backends[b], case_named("chunks and decoding"));
    }
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
