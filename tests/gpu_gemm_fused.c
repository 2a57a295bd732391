/* What is fused behind a CUDA product, and block descales, against the formula in double; token
 * counts; same-sign data; tuning, its cache, and captured graphs. */
#include "core/graph.h"
#include "quant/gemm_tune.h"
#include "tests/gemm_fused.h"

static fp8_device *gpu;

static int serves(const fused_case *c) {
    const int32_t capability = fp8_device_capability(gpu);
    return c->scaling == BLOCKS ? capability == 90 : c->a < E4M3 || capability >= 89;
}

static void test_table(void) {
    for (size_t i = 0; i < sizeof fused_cases / sizeof *fused_cases; i++)
        if (serves(&fused_cases[i])) fused_test(gpu, &fused_cases[i], NORMAL);
}

/* 1 .. 130, around 256, 4096; each scaling. */
static void test_tokens(void) {
    static const char *const names[] = {"", "scalars", "vectors", "blocks"};
    for (int scaling = SCALARS; scaling <= BLOCKS; scaling++)
        for (int64_t m = 1; m <= 4096; m = m < 130 ? m + 1 : m < 255 ? 255 : m < 257 ? m + 1
                                           : m < 4096 ? 4096 : 4097) {
            char name[48];
            const fused_case c = {name, m, m % 2 ? 48 : 144, m % 3 ? 272 : 112, E4M3, E4M3, BF16,
                                  scaling, m % 5 ? -1 : BF16, -1, 0, 0, 0, 0};
            if (!serves(&c)) continue;
            snprintf(name, sizeof name, "%s, %lld tokens", names[scaling], (long long)m);
            fused_test(gpu, &c, NORMAL);
        }
}

static void test_same_sign(void) {
    static const fused_case cases[] = {
        {"same sign, f32", 512, 1024, 4096, E4M3, E4M3, F32, SCALARS, -1, -1, 0, 0, 0, 0},
        {"same sign, bf16", 64, 256, 24576, E4M3, E4M3, BF16, SCALARS, -1, -1, 0, 0, 0, 0},
        {"same sign, f32, k 24576", 300, 256, 24576, E4M3, E4M3, F32, SCALARS, -1, -1, 0, 0, 0, 0},
        {"same sign, vectors", 512, 1024, 4096, E4M3, E4M3, BF16, VECTORS, -1, -1, 0, 0, 0, 0},
        {"same sign, vectors, f32", 300, 256, 24576, E4M3, E4M3, F32, VECTORS, -1, -1, 0, 0, 0, 0},
        {"same sign, blocks", 512, 1024, 4096, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
        {"same sign, blocks, f32", 300, 256, 24576, E4M3, E4M3, F32, BLOCKS, -1, -1, 0, 0, 0, 0},
        {"same sign, gelu, codes", 256, 256, 4096, E4M3, E4M3, E4M3, SCALARS, BF16, -1, 1, 1, 0,
         0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (serves(&cases[i])) fused_test(gpu, &cases[i], SAME_SIGN);
}

static void test_refused(void) {
    const fused_case c = {"refused", 8, 256, 256, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0};
    fused_problem p = fused_problem_of(gpu, &c, NORMAL);
    fp8_gemm bad[6];

    for (int i = 0; i < 6; i++) bad[i] = p.g;
    bad[0].accumulate = FP8_ACCUMULATE_FAST;
    bad[1].b_descale_ld = 5;
    bad[2].b_descale++;
    bad[3].k = 248;
    bad[4].n = 250;
    bad[5].batch = 2, bad[5].a_stride = bad[5].b_stride = bad[5].d_stride = 0;
    for (int i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK(!fp8_gemm_supported(gpu, &bad[i]));
        CHECK_STATUS(fp8_gemm_run(gpu, &bad[i], NULL, 0), FP8_EUNSUPPORTED);
    }
    fused_drop_problem(gpu, &p);
}

/* NaN in a row stays there; a row of zeros gives zeros. */
static void test_hostile(int scaling) {
    const fused_case c = {"hostile", 48, 128, 256, E4M3, E4M3, BF16, scaling, -1, -1, 0, 0, 0, 0};
    fused_problem p;
    uint8_t row[256];
    uint16_t out[48 * 128];

    if (!serves(&c)) return;
    check_case = c.name;
    p = fused_problem_of(gpu, &c, NORMAL);
    memset(row, 0, sizeof row);
    CHECK_STATUS(fp8_device_upload(gpu, (uint8_t *)p.a.device + 256, row, sizeof row), FP8_OK);
    row[7] = 0x7f;
    CHECK_STATUS(fp8_device_upload(gpu, p.a.device, row, sizeof row), FP8_OK);
    fused_run(gpu, &p);
    CHECK_STATUS(fp8_device_download(gpu, out, p.d.device, sizeof out), FP8_OK);
    for (int j = 0; j < 128; j++) {
        CHECK(isnan(fp8_bf16_to_f32(out[j])));
        CHECK(fp8_bf16_to_f32(out[128 + j]) == 0);
    }
    for (int i = 256; i < 48 * 128; i++) CHECK(isfinite(fp8_bf16_to_f32(out[i])));
    fused_drop_problem(gpu, &p);
}

/* ---- tuning ---------------------------------------------------------------------------------- */

static fp8_status capture(const fp8_gemm *g, void *workspace, size_t bytes, int tune,
                          fp8_graph **graph) {
    fp8_status st;
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    st = tune ? fp8_gemm_tune(gpu, g, workspace, bytes, NULL)
              : fp8_gemm_run(gpu, g, workspace, bytes);
    CHECK_STATUS(fp8_graph_end(gpu, graph), FP8_OK);
    return st;
}

/* Tuned, from the file again, and in a graph: right each time, and tuned the same bytes. */
static void test_tuned(const fused_case *c) {
    fused_problem p;
    const char *path = "gpu_gemm_fused.cache";
    fp8_gemm_tuned tuned;
    fp8_graph *graph = NULL;
    void *workspace = NULL, *once, *again;
    fp8_gemm bare;
    size_t bytes;

    if (!serves(c)) return;
    check_case = c->name;
    p = fused_problem_of(gpu, c, NORMAL);
    bytes = fp8_gemm_workspace_size(gpu, &p.g);
    once = malloc(p.d.bytes), again = malloc(p.d.bytes);
    (void)remove(path);
    fp8_gemm_cache_clear();
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_FOR_UPDATE), FP8_OK);
    bare = p.g;
    bare.a = bare.b = bare.d = NULL;
    CHECK_STATUS(fp8_gemm_tune(gpu, &bare, workspace, bytes, &tuned), FP8_OK);
    fprintf(stderr, "%s: %d candidates, first %.2f us, best %.2f us\n", c->name, tuned.candidates,
            tuned.first_us, tuned.best_us);
    CHECK(tuned.candidates == 0 || (fp8_gemm_cache_count() > 0 && tuned.best_us > 0));
    CHECK_STATUS(fp8_gemm_run(gpu, &p.g, workspace, bytes), FP8_OK);
    fused_check(gpu, &p, fused_bound(c->d), 1);
    CHECK_STATUS(fp8_device_download(gpu, once, p.d.device, p.d.bytes), FP8_OK);
    fp8_gemm_cache_clear();
    if (tuned.candidates > 0) CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_READ), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, p.d.device, 0, p.d.bytes), FP8_OK);
    CHECK_STATUS(capture(&p.g, workspace, bytes, 0, &graph), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, again, p.d.device, p.d.bytes), FP8_OK);
    CHECK(memcmp(once, again, p.d.bytes) == 0);
    fp8_graph_destroy(graph);
    CHECK_STATUS(capture(&p.g, workspace, bytes, 1, &graph), FP8_EINVAL);
    fp8_graph_destroy(graph);
    fp8_gemm_cache_clear();
    (void)remove(path);
    free(once);
    free(again);
    fp8_device_free(gpu, workspace);
    fused_drop_problem(gpu, &p);
}

int main(void) {
    static const fused_case tuned[] = {
        {"tuned scalars", 192, 512, 1024, E4M3, E4M3, BF16, SCALARS, -1, -1, 0, 0, 0, 0},
        {"tuned few rows", 5, 512, 1024, E4M3, E4M3, BF16, SCALARS, BF16, -1, 0, 0, 0, 0},
        {"tuned vectors", 192, 512, 1024, E4M3, E4M3, BF16, VECTORS, BF16, BF16, 0, 0, 0, 0},
        {"tuned blocks", 192, 512, 1024, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
        {"tuned blocks, odd", 194, 512, 1024, E4M3, E4M3, BF16, BLOCKS, -1, -1, 0, 0, 0, 0},
        {"tuned codes", 192, 512, 1024, E4M3, E4M3, E4M3, SCALARS, BF16, -1, 1, 1, 0, 0},
        {"tuned bf16", 192, 512, 1024, BF16, BF16, BF16, PLAIN, BF16, -1, 1, 0, 0, 0},
        {"tuned f32 sums", 192, 512, 1024, E4M3, E4M3, F32, VECTORS, F32, -1, 0, 1, 0, 0}};
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    (void)unsetenv("FP8_GEMM_CACHE");
    test_table();
    test_tokens();
    test_same_sign();
    for (int scaling = SCALARS; scaling <= BLOCKS; scaling++) test_hostile(scaling);
    test_refused();
    for (size_t i = 0; i < sizeof tuned / sizeof *tuned; i++) test_tuned(&tuned[i]);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
