/* tests/layers_check.h - a model whose layers come and go against the same model at rest: the same
 * bits in logits, history, histograms and report. For one device. */
#ifndef FP8_TESTS_LAYERS_CHECK_H
#define FP8_TESTS_LAYERS_CHECK_H
#include "tests/sample_model.h"

enum { LAYERS_SEQ = 48, LAYERS_BATCH = 2, LAYERS_SAMPLES = 9 }; /* the last step has one sample */

static inline fp8_status layers_load(fp8_model **out, fp8_device *d, const fp8_checkpoint *c,
                                     size_t memory) {
    const fp8_model_options o = {.max_tokens = LAYERS_SEQ * LAYERS_BATCH, .memory_bytes = memory};
    return fp8_model_load(out, d, c, &o);
}

/* The least that a model is content with, as its message says. */
static inline size_t layers_least(fp8_device *d, const fp8_checkpoint *c) {
    fp8_model *m = NULL;
    const char *at;
    CHECK_STATUS(layers_load(&m, d, c, 1), FP8_EINVAL);
    at = strstr(fp8_last_message(), "expected at least ");
    CHECK(at != NULL);
    return at ? (size_t)strtoull(at + strlen("expected at least "), NULL, 10) : 0;
}

static inline fp8_samples layers_samples(int64_t vocab) {
    fp8_samples s = {.count = LAYERS_SAMPLES};
    uint64_t random = 3;
    s.starts = calloc(LAYERS_SAMPLES + 1, sizeof *s.starts);
    s.ids = calloc(LAYERS_SAMPLES * LAYERS_SEQ, sizeof *s.ids);
    for (int64_t i = 0; i < s.count; i++) /* lengths differ */
        s.starts[i + 1] = s.starts[i] + LAYERS_SEQ - i % 3 * 7;
    s.num_ids = s.starts[s.count];
    for (int64_t i = 0; i < s.num_ids; i++)
        s.ids[i] = (int32_t)(check_random(&random) % (uint64_t)vocab);
    return s;
}

static inline void layers_check_logits(fp8_device *d, fp8_model *m, fp8_model *small) {
    static const int32_t starts[] = {0, 5, 30};
    const int64_t vocab = fp8_model_get_config(m)->vocab_size;
    const size_t bytes = (size_t)(30 * vocab) * sizeof(float);
    float *a = malloc(bytes), *b = malloc(bytes);
    int32_t ids[30];
    const fp8_batch batch = {ids, 30, starts, 2};
    fp8_tensor logits;
    for (int i = 0; i < 30; i++) ids[i] = (int32_t)((i * 37 + 5) % vocab);
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    CHECK_STATUS(fp8_device_download(d, a, logits.data, bytes), FP8_OK);
    for (int turn = 0; turn < 2; turn++) {
        CHECK_STATUS(fp8_model_forward(small, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
        CHECK_STATUS(fp8_device_download(d, b, logits.data, bytes), FP8_OK);
        CHECK(memcmp(a, b, bytes) == 0);
    }
    free(a);
    free(b);
}

static inline int layers_stop(void *ctx, const char *phase, int64_t done, int64_t total) {
    (void)phase, (void)total;
    return done >= *(const int64_t *)ctx;
}

/* Without histograms most figures are joined by what makes the values, before they are rounded. */
static inline void layers_check_joined(fp8_model *m, const fp8_checkpoint *c,
                                       const fp8_samples *data, const fp8_record *want) {
    const fp8_calib_options o = {.batch = LAYERS_BATCH, .seq = LAYERS_SEQ, .data_name = "x"};
    fp8_record *r = NULL;
    size_t bytes;
    CHECK_STATUS(fp8_calibrate(&r, m, c, data, &o), FP8_OK);
    bytes = (size_t)(want->num_points * want->steps_total) * sizeof(float);
    CHECK(r && r->num_points == want->num_points && r->steps == want->steps);
    CHECK(r && memcmp(r->amax, want->amax, bytes) == 0);
    CHECK(r && memcmp(r->amax_without_first, want->amax_without_first, bytes) == 0);
    fp8_record_destroy(r);
}

/* Histories of both, whole and stopped half way and taken up again. */
static inline fp8_record *layers_check_record(fp8_model *m, fp8_model *small,
                                              const fp8_checkpoint *c, const fp8_samples *data) {
    fp8_calib_options o = {.batch = LAYERS_BATCH, .seq = LAYERS_SEQ, .histograms = 1,
                           .data_name = "x"};
    int64_t stop_at = 2;
    fp8_record *r = NULL, *other = NULL;
    remove(sample_file("a"));
    remove(sample_file("b"));
    remove(sample_file("c"));
    o.record_path = sample_file("a");
    CHECK_STATUS(fp8_calibrate(&r, m, c, data, &o), FP8_OK);
    o.record_path = sample_file("b");
    CHECK_STATUS(fp8_calibrate(&other, small, c, data, &o), FP8_OK);
    CHECK(sample_same_file(sample_file("a"), sample_file("b")));
    fp8_record_destroy(other);
    o.record_path = sample_file("c");
    o.progress = (fp8_progress){layers_stop, &stop_at};
    CHECK_STATUS(fp8_calibrate(&other, small, c, data, &o), FP8_ECANCELED);
    o.progress = (fp8_progress){0};
    o.resume = 1;
    CHECK_STATUS(fp8_calibrate(&other, small, c, data, &o), FP8_OK);
    CHECK(sample_same_file(sample_file("a"), sample_file("c")));
    fp8_record_destroy(other);
    return r;
}

static inline void layers_check_report(fp8_model *m, fp8_model *small, const fp8_checkpoint *c,
                                       const fp8_record *r, const fp8_samples *data) {
    const fp8_calib_options calib = {.batch = LAYERS_BATCH, .seq = LAYERS_SEQ};
    const fp8_export_options o = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                                  .attention = FP8_ATTENTION_DPA, .recipe = FP8_RECIPE_DEFAULT};
    fp8_report a, b;
    CHECK_STATUS(fp8_report_create(&a, m, c, r, data, &calib, &o, 3), FP8_OK);
    CHECK_STATUS(fp8_report_create(&b, small, c, r, data, &calib, &o, 3), FP8_OK);
    CHECK(a.count == b.count && a.count > 0);
    for (int64_t i = 0; i < a.count && i < b.count; i++)
        CHECK(strcmp(a.rows[i].name, b.rows[i].name) == 0 &&
              a.rows[i].sqnr_db == b.rows[i].sqnr_db && a.rows[i].clipped == b.rows[i].clipped);
    fp8_report_free(&a);
    fp8_report_free(&b);
}

/* `folder`: a BF16 model of [out, in] weights. */
static inline void layers_check(fp8_device *d, const char *folder) {
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL, *small = NULL;
    fp8_samples data;
    size_t least, step;

    check_case = folder;
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (!c) return;
    CHECK_STATUS(layers_load(&m, d, c, 0), FP8_OK);
    if (!m) {
        fp8_checkpoint_close(c);
        return;
    }
    CHECK(fp8_model_layers_tokens(m) == 0);
    data = layers_samples(fp8_model_get_config(m)->vocab_size);
    least = layers_least(d, c);
    step = 4 * (size_t)fp8_model_get_config(m)->hidden_size * LAYERS_SEQ * LAYERS_BATCH;
    CHECK_STATUS(layers_load(&small, d, c, least - 1), FP8_EINVAL);
    CHECK_STATUS(layers_load(&small, d, c, (size_t)1 << 40), FP8_OK);
    CHECK(fp8_model_layers_tokens(small) == 0); /* all of it fits */
    fp8_model_destroy(small);
    for (size_t wave = 1; wave <= 3; wave++) {
        fp8_record *r;
        CHECK_STATUS(layers_load(&small, d, c, least + (wave - 1) * step), FP8_OK);
        CHECK(fp8_model_layers_tokens(small) / (LAYERS_SEQ * LAYERS_BATCH) == (int64_t)wave);
        layers_check_logits(d, m, small);
        r = layers_check_record(m, small, c, &data);
        layers_check_joined(m, c, &data, r);
        layers_check_joined(small, c, &data, r);
        layers_check_report(m, small, c, r, &data);
        fp8_record_destroy(r);
        fp8_model_destroy(small);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    fp8_samples_free(&data);
}
#endif
