/* tests/kv_heads_check.h - scales of keys and values by head, on any device: the record against
 * what a tap sees, the checkpoint against the record. */
#ifndef FP8_TESTS_KV_HEADS_CHECK_H
#define FP8_TESTS_KV_HEADS_CHECK_H
#include "tests/model_fixture.h"
#include "tests/sample_model.h"

enum { KV_MAX_HEADS = 16 };

typedef struct kv_seen {
    fp8_device *d;
    int64_t heads;
    float amax[FIXTURE_MAX_LAYERS][2][KV_MAX_HEADS];
} kv_seen;

static fp8_status kv_look(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    kv_seen *s = ctx;
    const int64_t cols = x->shape[1], n = fp8_tensor_count(x);
    const size_t bytes = (size_t)n * fp8_dtype_size(x->dtype);
    uint16_t *host;

    if (point != FP8_POINT_K && point != FP8_POINT_V) return FP8_OK;
    host = malloc(bytes);
    CHECK_STATUS(fp8_device_download(s->d, host, x->data, bytes), FP8_OK);
    for (int64_t i = 0; i < n; i++) {
        float *amax = &s->amax[layer][point == FP8_POINT_V][i % cols / (cols / s->heads)];
        *amax = fmaxf(*amax, fabsf(fp8_bf16_to_f32(host[i])));
    }
    free(host);
    return FP8_OK;
}

static float kv_amax(const fp8_record *r, const char *name) {
    for (int64_t i = 0; i < r->num_points; i++)
        if (strcmp(r->points[i], name) == 0) return r->amax[i * r->steps_total];
    return NAN;
}

/* One step over the fixture's ids. */
static fp8_record *kv_calibrate(const sample *s, const fixture *f, int kv_heads, int histograms) {
    static const int64_t starts[] = {0, FIXTURE_LEN, FIXTURE_TOKENS};
    const fp8_calib_options options = {.batch = 2, .seq = FIXTURE_LEN, .data_name = "fixture",
                                       .kv_heads = kv_heads, .histograms = histograms};
    const fp8_samples data = {.ids = (int32_t *)(uintptr_t)f->ids, .num_ids = FIXTURE_TOKENS,
                              .starts = (int64_t *)(uintptr_t)starts, .count = FIXTURE_SEQS};
    fp8_record *r = NULL;

    CHECK_STATUS(fp8_calibrate(&r, s->m, s->c, &data, &options), FP8_OK);
    return r;
}

static void kv_check_record(const fp8_record *r, const fp8_record *plain, const kv_seen *seen,
                            const char *module, int32_t layer) {
    char name[400];

    for (int is_v = 0; is_v < 2; is_v++) {
        float most = 0;
        for (int64_t h = 0; h < seen->heads; h++) {
            snprintf(name, sizeof name, "%s.%c.%lld", module, is_v ? 'v' : 'k', (long long)h);
            CHECK(kv_amax(r, name) == seen->amax[layer][is_v][h]);
            CHECK(isnan(kv_amax(plain, name)));
            most = fmaxf(most, seen->amax[layer][is_v][h]);
        }
        snprintf(name, sizeof name, "%s.%c", module, is_v ? 'v' : 'k');
        CHECK(kv_amax(r, name) == most && kv_amax(plain, name) == most);
    }
}

static void kv_check_written(const char *folder, const kv_seen *seen, const char *module,
                             int32_t layer) {
    fp8_checkpoint *c = NULL;
    char name[400];

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    for (int is_v = 0; c && is_v < 2; is_v++) {
        const fp8_st_entry *e;
        snprintf(name, sizeof name, "%s.%c_scale", module, is_v ? 'v' : 'k');
        e = fp8_checkpoint_find(c, name);
        CHECK(e && e->tensor.ndim == 3 && e->tensor.shape[0] == seen->heads);
        CHECK(e && e->tensor.shape[1] == 1 && e->tensor.shape[2] == 1);
        for (int64_t h = 0; e && h < seen->heads; h++) {
            const float descale = ((const float *)e->tensor.data)[h];
            CHECK(fabsf(descale * 448.0f / seen->amax[layer][is_v][h] - 1) < 1e-6f);
        }
    }
    fp8_checkpoint_close(c);
}

static void kv_check_fixture(const char *device, const char *fixture_name, int histograms) {
    static const fp8_export_options by_layer = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                                                .recipe = FP8_RECIPE_DEFAULT, .force = 1};
    const char *heads = sample_file("heads"), *merged = sample_file("merged");
    const char *layers = sample_file("layers");
    fp8_export_options by_head = by_layer;
    fp8_record *r, *plain;
    fp8_export_result result;
    fp8_convert_result converted;
    fp8_checkpoint *c = NULL;
    kv_seen seen = {0};
    const fp8_tap tap = {.on = kv_look, .ctx = &seen};
    fp8_batch batch;
    fixture f;
    sample s;

    check_case = fixture_name;
    if (!fixture_open(&f, fixture_name)) return;
    s = sample_open_on(device, f.folder, 0, FIXTURE_TOKENS, FP8_COMPUTE_BF16);
    const fp8_model_config *config = fp8_model_get_config(s.m);
    seen.d = s.d;
    seen.heads = config->num_kv_heads;
    CHECK(seen.heads > 1 && seen.heads <= KV_MAX_HEADS);
    batch = fixture_batch(&f);
    CHECK_STATUS(fp8_model_forward(s.m, &batch, NULL, &tap, FP8_LOGITS_NONE, NULL), FP8_OK);
    r = kv_calibrate(&s, &f, 1, histograms);
    plain = kv_calibrate(&s, &f, 0, histograms);
    by_head.kv_per_head = 1;
    CHECK_STATUS(fp8_export(&result, heads, s.c, s.d, r, &by_head), FP8_OK);
    for (int32_t l = 0; r && plain && l < config->num_layers; l++) {
        char module[256];
        CHECK_STATUS(fp8_model_attention_name(module, sizeof module, config, s.c, l), FP8_OK);
        kv_check_record(r, plain, &seen, module, l);
        kv_check_written(heads, &seen, module, l);
    }
    /* the largest of the heads is the layer's: the checkpoint that plain calibration makes */
    CHECK_STATUS(fp8_export(&result, layers, s.c, s.d, plain, &by_layer), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&c, heads), FP8_OK);
    CHECK_STATUS(fp8_convert(&converted, merged, c, s.d, &(fp8_convert_options){
        .scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_TENSOR, .force = 1}), FP8_OK);
    CHECK(converted.kv_merged == 2 * config->num_layers);
    fp8_checkpoint_close(c);
    c = NULL;
    for (int k = 0; k < 2; k++) { /* what a scale is, not what else lies in the file */
        const fp8_st_entry *e;
        static float scales[2];
        char name[400];
        CHECK_STATUS(fp8_checkpoint_open(&c, k ? layers : merged), FP8_OK);
        CHECK_STATUS(fp8_model_attention_name(name, 300, config, s.c, 0), FP8_OK);
        strcat(name, ".k_scale");
        e = fp8_checkpoint_find(c, name);
        CHECK(e && e->tensor.ndim == 1);
        if (e) memcpy(&scales[k], e->tensor.data, sizeof(float));
        CHECK(k == 0 || scales[0] == scales[1]);
        fp8_checkpoint_close(c);
        c = NULL;
    }
    CHECK_STATUS(fp8_export(&result, heads, s.c, s.d, plain, &by_head), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "run --kv-heads") != NULL);
    by_head.kv_fp8 = 0;
    CHECK_STATUS(fp8_export(&result, heads, s.c, s.d, r, &by_head), FP8_EINVAL);
    fp8_record_destroy(r);
    fp8_record_destroy(plain);
    sample_close(&s);
    fixture_close(&f);
}

static int kv_check_all(const char *device) {
    static const char *const names[] = {"llama", "qwen3", "gemma2", "gpt2"};
    if (!check_data("fixtures/llama")) return TEST_SKIP;
    sample_begin();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        kv_check_fixture(device, names[i], i % 2 != 0);
    sample_done();
    return CHECK_DONE();
}
#endif
