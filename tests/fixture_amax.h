/* tests/fixture_amax.h - calibrated amax against what transformers' own F32 forward gave: the input
 * of every Linear, K after RoPE, and V, for each family of architectures; on any device. */
#ifndef FP8_TESTS_FIXTURE_AMAX_H
#define FP8_TESTS_FIXTURE_AMAX_H
#include <cjson/cJSON.h>

#include "tests/sample_model.h"

static double tolerance; /* relative */

/* The one row of the point, or of the layer's point that ends in `suffix`; NaN: there is none. */
static double amax_of(const fp8_record *r, const char *name, const char *suffix, int64_t layer) {
    const size_t tail = strlen(suffix);
    for (int64_t i = 0; i < r->num_points; i++) {
        const size_t len = strlen(r->points[i]);
        if (name ? strcmp(r->points[i], name) == 0
                 : len > tail && strcmp(r->points[i] + len - tail, suffix) == 0 && layer-- == 0)
            return (double)r->amax[i * r->steps_total];
    }
    return NAN;
}

static int is_near(double got, const cJSON *want) {
    if (want && fabs(got / want->valuedouble - 1) < tolerance) return 1;
    fprintf(stderr, "%s: got %.9g, want %.9g\n", want ? want->string : "?", got,
            want ? want->valuedouble : NAN);
    return 0;
}

/* Keys and values of a window layer are left out: the fixture's are of the last positions only. */
static void compare(const fp8_record *r, const cJSON *reference, const fp8_model_config *config) {
    const cJSON *inputs = cJSON_GetObjectItem(reference, "linear_input_amax_fp32"), *e;
    const cJSON *kv = cJSON_GetObjectItem(reference, "kv_post_rope_amax_fp32");

    CHECK(cJSON_GetArraySize(inputs) > 0 && cJSON_GetArraySize(kv) == config->num_layers);
    cJSON_ArrayForEach(e, inputs) {
        char name[300];
        if (strstr(e->string, "shared_expert_gate")) continue; /* no Linear of ours: it stays */
        snprintf(name, sizeof name, "%s.input", e->string);
        CHECK(is_near(amax_of(r, name, "", 0), e));
    }
    cJSON_ArrayForEach(e, kv) {
        const int64_t layer = atoi(e->string);
        if (config->layer_window[layer]) continue;
        CHECK(is_near(amax_of(r, NULL, ".k", layer), cJSON_GetObjectItem(e, "k_amax")));
        CHECK(is_near(amax_of(r, NULL, ".v", layer), cJSON_GetObjectItem(e, "v_amax")));
    }
}

static cJSON *read_json(const char *path) {
    fp8_file file = {0};
    cJSON *json;
    CHECK_STATUS(fp8_file_map(&file, path), FP8_OK);
    json = cJSON_ParseWithLength((const char *)file.data, file.bytes);
    fp8_file_unmap(&file);
    CHECK(json != NULL);
    return json;
}

static void test_fixture(const char *device, const char *folder, fp8_compute compute) {
    const fp8_calib_options options = {.batch = 2, .seq = 512, .data_name = "fixture"};
    sample s = sample_open_on(device, folder, 0, 1024, compute);
    const fp8_model_config *config = fp8_model_get_config(s.m);
    fp8_id_data ids = {0};
    fp8_samples samples = {0};
    fp8_record *r = NULL;
    cJSON *reference = NULL;
    char path[4200];

    snprintf(path, sizeof path, "%s/reference.json", folder);
    reference = read_json(path);
    snprintf(path, sizeof path, "%s/reference.safetensors", folder);
    CHECK_STATUS(fp8_id_data_load(&ids, path, config->vocab_size), FP8_OK);
    CHECK_STATUS(fp8_samples_from_ids(&samples, &ids, options.seq, 0), FP8_OK);
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &samples, &options), FP8_OK);
    if (r && reference) compare(r, reference, config);
    fp8_record_destroy(r);
    fp8_samples_free(&samples);
    fp8_id_data_free(&ids);
    cJSON_Delete(reference);
    sample_close(&s);
}

/* 0, or TEST_SKIP without fixtures. Failures are counted. */
static int test_fixtures(const char *device, fp8_compute compute, double bound) {
    static const char *const fixtures[] = {
        "llama", "llama-mha-bias", "llama-rope-linear", "llama3-rope", "llama-rope-dynamic",
        "llama-yarn", "mistral-window", "qwen2", "qwen3", "gemma", "gemma-odd", "gemma2",
        "gemma3", "phi3", "phi3-longrope", "phi3-partial-rotary", "opt", "gpt2",
        "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe-normtopk"};
    tolerance = bound;
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        char relative[64], folder[4096];
        snprintf(relative, sizeof relative, "fixtures/%s", fixtures[i]);
        check_case = fixtures[i];
        if (!check_data(relative)) {
            fprintf(stderr, "skipped: no %s\n", relative);
            return TEST_SKIP;
        }
        snprintf(folder, sizeof folder, "%s", check_data(relative));
        test_fixture(device, folder, compute);
    }
    return 0;
}
#endif
