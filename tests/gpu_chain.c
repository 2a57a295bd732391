/* quant/chain.h on CUDA, in one launch and step by step: against the CPU's chain at every kind of
 * token count; the same bytes for a token whatever is beside it, run after run, in graphs, and of
 * two chains by turns in one workspace. */
#include "core/graph.h"
#include "tests/chain_problem.h"

static fp8_device *gpu, *cpu;

/* A model of FP8 tensor cores that truncate to 13 bits of the largest addend, 32 of K at a time:
 * 2^-13 of what they add (tests/linear_fused.h has the worst case). */
static const double sums_apart = 0x1p-13;
/* Of codes that all are +-448: the largest addend is every one, and sums are near 0. */
static const double large_sums_apart = 0x1p-11;

static const int64_t counts[] = {1,  2,  3,  7,  8,  9,   15,  16,  17, 24,
                                 31, 32, 33, 63, 64, 65, 127, 128, 129, 130};
enum { COUNTS = sizeof counts / sizeof *counts, MOST = FP8_CHAIN_MAX_TOKENS };

/* Shapes of models, and some that are no multiple of anything a kernel likes. */
static const chain_case large[] = {
    {"wide", 512, 4,
     {{1040, ACT_NO, 1, RMS, 0, 0}, {12288, FP8_GEMM_SWIGLU, 0, NO_NORM, 0, 0},
      {1040, ACT_NO, 1, RMS, 0, 0}, {1552, ACT_NO, 0, NO_NORM, 0, 0}}, 0},
    {"gemma's, a part", 1024, 4,
     {{3072, ACT_NO, 1, PLUS, 0, 0}, {6144, FP8_GEMM_GEGLU_TANH, 0, NO_NORM, 0, 0},
      {3072, ACT_NO, 1, PLUS, 0, 0}, {4096, ACT_NO, 0, NO_NORM, 0, 0}}, 0},
    {"long", 8208, 3,
     {{784, ACT_NO, 1, LAYER, 1, 1}, {8192, FP8_GEMM_GELU_TANH, 0, NO_NORM, 1, 1},
      {784, ACT_NO, 1, NO_NORM, 1, 1}}, 0},
};

static int same_rows(const uint16_t *a, const uint16_t *b, int64_t rows, int64_t width) {
    return memcmp(a, b, (size_t)(rows * width) * 2) == 0;
}

/* Is it one launch for all counts that the header names, or for none? Then it says why. */
static void check_launch(const chain_on *o) {
    const char *why = NULL;
    const int is_one = fp8_chain_is_one_launch(o->chain, 1, &why);

    CHECK(is_one == !why);
    if (why) printf("%s: %s\n", check_case, why);
    for (int i = 0; i < COUNTS; i++)
        CHECK(fp8_chain_is_one_launch(o->chain, counts[i], NULL) == (is_one && counts[i] <= MOST));
    CHECK(!fp8_chain_is_one_launch(o->chain, 0, NULL));
}

/* All counts: the CPU's rows within the bound, equal bytes, and nothing beyond the rows. */
static void test_counts(const chain_data *t, const chain_on *o, const chain_result *want) {
    chain_result most = chain_run_on(o, 0, MOST);

    for (int i = 0; i < COUNTS; i++) {
        chain_result r = chain_run_on(o, 0, counts[i]);
        const int64_t same = counts[i] <= MOST ? counts[i] : 0;
        for (int64_t k = 0; k < counts[i]; k++)
            chain_compare_rows(t, k, r.h + k * t->stream, want->h + k * t->stream,
                               r.y + k * t->last, want->y + k * t->last,
                               k == LARGE_TOKEN ? large_sums_apart : sums_apart);
        if (fp8_chain_is_one_launch(o->chain, 1, NULL))
            CHECK(same_rows(r.h, most.h, same, t->stream) && same_rows(r.y, most.y, same, t->last));
        CHECK(same_rows(r.h + counts[i] * t->stream, t->h + counts[i] * t->stream,
                        CHAIN_TOKENS - counts[i], t->stream));
        for (int64_t k = counts[i] * t->last; k < CHAIN_TOKENS * t->last; k++)
            if (r.y[k] != 0x5a5a) {
                CHECK(r.y[k] == 0x5a5a);
                break;
            }
        chain_result_drop(&r);
    }
    chain_result_drop(&most);
}

/* Tokens alone, and 20 runs, as in a run of 64. */
static void test_bytes(const chain_data *t, const chain_on *o) {
    static const int64_t alone[] = {0, 5, 40, 63};
    chain_result all = chain_run_on(o, 0, 64);

    for (int i = 0; i < 20; i++) {
        chain_result r = chain_run_on(o, 0, 64);
        CHECK(same_rows(r.h, all.h, 64, t->stream) && same_rows(r.y, all.y, 64, t->last));
        chain_result_drop(&r);
    }
    for (size_t i = 0; i < sizeof alone / sizeof *alone; i++) {
        const int64_t k = alone[i];
        chain_result r = chain_run_on(o, k, 1);
        CHECK(same_rows(r.h + k * t->stream, all.h + k * t->stream, 1, t->stream));
        CHECK(same_rows(r.y, all.y + k * t->last, 1, t->last));
        chain_result_drop(&r);
    }
    chain_result_drop(&all);
}

/* Captured over tokens 0 to 63, replayed over what tokens 64 and on were. */
static void test_graph(const chain_data *t, const chain_on *o) {
    const size_t row = (size_t)t->stream * 2, x_row = (size_t)t->c->in;
    chain_result want = chain_run_on(o, 64, 64), got = {malloc(64 * row + 2), NULL};
    fp8_graph *graph = NULL;
    fp8_status st;

    got.y = malloc((size_t)(64 * t->last) * 2 + 2);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    st = chain_go(o, 0, 64, o->h, o->y);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    CHECK_STATUS(st, FP8_OK);
    for (int i = 0; graph && i < 3; i++) {
        CHECK_STATUS(fp8_device_upload(gpu, o->x, t->x + 64 * x_row, 64 * x_row), FP8_OK);
        CHECK_STATUS(fp8_device_upload(gpu, o->h, t->h + 64 * t->stream, 64 * row), FP8_OK);
        CHECK_STATUS(fp8_device_fill(gpu, o->y, 0, (size_t)(64 * t->last) * 2), FP8_OK);
        CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
        CHECK_STATUS(fp8_device_download(gpu, got.h, o->h, 64 * row), FP8_OK);
        CHECK_STATUS(fp8_device_download(gpu, got.y, o->y, (size_t)(64 * t->last) * 2), FP8_OK);
        CHECK(same_rows(got.h, want.h + 64 * t->stream, 64, t->stream));
        CHECK(same_rows(got.y, want.y, 64, t->last));
    }
    CHECK_STATUS(fp8_device_upload(gpu, o->x, t->x, (size_t)CHAIN_TOKENS * x_row), FP8_OK);
    fp8_graph_destroy(graph);
    chain_result_drop(&want);
    chain_result_drop(&got);
}

static void test_case(const chain_case *c) {
    chain_data t = chain_prepare(c, 11);
    chain_on here = chain_open(cpu, &t), there = chain_open(gpu, &t);

    check_case = c->name;
    if (here.chain && there.chain) {
        chain_result want = chain_run_on(&here, 0, CHAIN_TOKENS);
        check_launch(&there);
        test_counts(&t, &there, &want);
        if (fp8_chain_is_one_launch(there.chain, 1, NULL)) {
            test_bytes(&t, &there);
            test_graph(&t, &there);
        }
        chain_result_drop(&want);
    }
    chain_close(&here);
    chain_close(&there);
    chain_drop(&t);
}

/* ---- many runs ------------------------------------------------------------------------------- */

enum { RUNS = 200 };

/* 200 runs that nothing waits between, of two chains by turns in one workspace, token counts that
 * change: each leaves the bytes of a run of its own. */
static void test_turns(void) {
    chain_data t[2] = {chain_prepare(&chain_cases[0], 3), chain_prepare(&chain_cases[2], 4)};
    chain_on o[2] = {chain_open(gpu, &t[0]), chain_open(gpu, &t[1])};
    chain_result want[2];
    uint16_t *y = malloc((size_t)(MOST * 432) * 2);
    void *out[RUNS] = {0}, *stream = NULL, *shared = NULL;
    const size_t bytes = o[0].bytes > o[1].bytes ? o[0].bytes : o[1].bytes;

    check_case = "two chains by turns";
    CHECK_STATUS(fp8_device_alloc(gpu, &stream, (size_t)(MOST * 144) * 2), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &shared, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, shared, 0xff, bytes), FP8_OK);
    for (int i = 0; i < 2; i++) {
        want[i] = chain_run_on(&o[i], 0, MOST);
        CHECK_STATUS(fp8_device_upload(gpu, o[i].h, t[i].h, (size_t)(MOST * 144) * 2), FP8_OK);
        fp8_device_free(gpu, o[i].workspace);
        o[i].workspace = shared;
        o[i].bytes = bytes;
    }
    for (int i = 0; i < RUNS; i++)
        CHECK_STATUS(fp8_device_alloc(gpu, &out[i], (size_t)(MOST * t[i % 2].last) * 2), FP8_OK);
    for (int i = 0; i < RUNS; i++) {
        const chain_on *const one = &o[i % 2];
        const int64_t tokens = counts[i * 7 % (COUNTS - 2)];
        CHECK_STATUS(fp8_device_copy(gpu, stream, one->h, (size_t)(MOST * 144) * 2), FP8_OK);
        CHECK_STATUS(chain_go(one, 0, tokens, stream, out[i]), FP8_OK);
    }
    for (int i = 0; i < RUNS; i++) {
        const int64_t tokens = counts[i * 7 % (COUNTS - 2)], last = t[i % 2].last;
        CHECK_STATUS(fp8_device_download(gpu, y, out[i], (size_t)(tokens * last) * 2), FP8_OK);
        if (fp8_chain_is_one_launch(o[0].chain, 1, NULL))
            CHECK(same_rows(y, want[i % 2].y, tokens, last));
        fp8_device_free(gpu, out[i]);
    }
    o[1].workspace = NULL;
    fp8_device_free(gpu, stream);
    free(y);
    for (int i = 0; i < 2; i++) {
        chain_result_drop(&want[i]);
        chain_close(&o[i]);
        chain_drop(&t[i]);
    }
}

/* Unless it is asked for there is no launch. */
static void test_switch(void) {
    chain_data t = chain_prepare(&chain_cases[0], 3);
    const char *why = NULL;
    chain_on o;

    check_case = "FP8_CHAIN";
    (void)unsetenv("FP8_CHAIN");
    o = chain_open(gpu, &t);
    CHECK(!fp8_chain_is_one_launch(o.chain, 1, &why) && why && strstr(why, "FP8_CHAIN"));
    chain_close(&o);
    chain_drop(&t);
}

/* In one launch where the GPU has it, and step by step. */
static void test_all(const char *in_one) {
    (void)setenv("FP8_CHAIN", in_one, 1);
    for (size_t i = 0; i < sizeof chain_cases / sizeof *chain_cases; i++)
        test_case(&chain_cases[i]);
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) test_case(&large[i]);
    test_turns();
}

int main(void) {
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    if (fp8_device_capability(gpu) < 89) {
        fprintf(stderr, "skipped: this GPU multiplies no FP8\n");
        return TEST_SKIP;
    }
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    test_all("1");
    test_all("0");
    test_switch();
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
