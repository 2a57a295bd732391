/* Models whose weights have a scale a square of 128 x 128, or a channel, on CUDA against the CPU's
 * forward: fixtures, mixtures among them, also with static scales of a calibration on CUDA, and
 * models of several squares. */
#include "tests/model_fixture.h"
#include "tests/sample_model.h"

enum { TOKENS = FIXTURE_TOKENS };

static fp8_device *gpu, *cpu;

/* Logits [94, vocab] of a folder on a device; allocated. NULL: it cannot be run. */
static float *run(fp8_device *d, const char *folder, const int32_t *ids, int64_t *n) {
    static const int32_t starts[] = {0, FIXTURE_LEN, TOKENS};
    const fp8_model_options options = {.compute = FP8_COMPUTE_BF16, .max_tokens = TOKENS};
    const fp8_batch batch = {ids, TOKENS, starts, FIXTURE_SEQS};
    fp8_checkpoint *c = NULL;
    float *out = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, d, c, &options), FP8_OK);
    if (!m) goto done;
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    *n = fp8_tensor_count(&logits);
    out = malloc((size_t)*n * sizeof *out);
    CHECK_STATUS(fp8_device_download(d, out, logits.data, (size_t)*n * sizeof *out), FP8_OK);
done:
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    return out;
}

/* Of the same ids, on CUDA: every expert has a scale, and its tokens are counted. */
static fp8_record *calibrate(const char *source, const int32_t *ids) {
    static const int64_t starts[] = {0, FIXTURE_LEN, TOKENS};
    const fp8_calib_options options = {.batch = 2, .seq = FIXTURE_LEN, .data_name = "fixture"};
    sample s = sample_open_on("cuda", source, 0, TOKENS, FP8_COMPUTE_BF16);
    fp8_samples data = {.ids = (int32_t *)(uintptr_t)ids, .num_ids = TOKENS,
                        .starts = (int64_t *)(uintptr_t)starts, .count = FIXTURE_SEQS};
    const fp8_model_config *c = fp8_model_get_config(s.m);
    fp8_record *r = NULL;

    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &options), FP8_OK);
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const int64_t *tokens = fp8_model_expert_tokens(s.m, layer);
        int64_t sum = 0;
        for (int64_t e = 0; tokens && e < c->num_experts; e++) sum += tokens[e];
        CHECK(!tokens || sum == TOKENS * c->experts_per_token);
    }
    sample_close(&s);
    return r;
}

/* Both quantize the same values to codes; a BF16 value that a sum in another order moves makes
 * another code now and then, and in a mixture another expert. */
static void compare(const char *source, const int32_t *ids, fp8_scheme scheme, double bound) {
    const fp8_export_options options = {.scheme = scheme, .force = 1,
                                        .recipe = FP8_RECIPE_DEFAULT};
    const char *out = sample_file("scheme");
    fp8_export_result result;
    fp8_record *record = NULL;
    fp8_checkpoint *c = NULL;
    float *want = NULL, *got = NULL, *dense = NULL;
    int64_t n = 0;

    CHECK_STATUS(fp8_checkpoint_open(&c, source), FP8_OK);
    if (!c) return;
    if (scheme == FP8_SCHEME_TENSOR) record = calibrate(source, ids);
    CHECK_STATUS(fp8_export(&result, out, c, cpu, record, &options), FP8_OK);
    dense = run(cpu, source, ids, &n);
    want = run(cpu, out, ids, &n);
    got = run(gpu, out, ids, &n);
    if (dense && want && got) {
        const double cost = check_relative_l2(want, dense, n);
        const double error = check_relative_l2(got, want, n);
        printf("%-20s %-8s CUDA from CPU %.3g, from BF16 %.3g (CPU %.3g)\n", check_case,
               fp8_scheme_name(scheme), error, check_relative_l2(got, dense, n), cost);
        CHECK(error <= bound);
        CHECK(check_relative_l2(got, dense, n) <= (bound > 0.2 ? 1.5 : 1.1) * cost);
    }
    free(dense);
    free(want);
    free(got);
    fp8_record_destroy(record);
    fp8_checkpoint_close(c);
}

static void test_fixtures(void) {
    static const char *const names[] = {"llama", "qwen3",   "gemma2",    "gemma3",
                                        "opt",   "mixtral", "qwen2_moe", "qwen3_moe"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fixture f;
        check_case = names[i];
        if (!fixture_open(&f, names[i])) continue;
        compare(f.folder, f.ids, FP8_SCHEME_BLOCK, fixture_is_mixed(&f) ? 0.5 : 0.12);
        compare(f.folder, f.ids, FP8_SCHEME_DYNAMIC, fixture_is_mixed(&f) ? 0.5 : 0.12);
        if (fixture_is_mixed(&f)) compare(f.folder, f.ids, FP8_SCHEME_TENSOR, 0.5);
        fixture_close(&f);
    }
}

static void test_models(void) {
    static const char *const names[] = {"llama-11m", "gemma-7m", "sample-1m"};
    int32_t ids[TOKENS];

    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 7919 + 13) % 2048;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char relative[64];
        snprintf(relative, sizeof relative, "models/%s", names[i]);
        check_case = names[i];
        if (check_data(relative)) compare(check_data(relative), ids, FP8_SCHEME_BLOCK, 0.12);
    }
}

int main(void) {
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    sample_begin();
    test_fixtures();
    test_models();
    sample_done();
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
