/* The calibration loop against a plain one, its determinism, resume, and what stops it. */
#include "core/half.h"
#include "tests/sample_model.h"

enum { SEQ = 48, BATCH = 4 };

static fp8_calib_options options_for(const char *record_path) {
    return (fp8_calib_options){.batch = BATCH, .seq = SEQ, .record_path = record_path,
                               .data_name = "built-in"};
}

static int64_t point_index(const fp8_record *r, const char *name) {
    for (int64_t i = 0; i < r->num_points; i++)
        if (strcmp(r->points[i], name) == 0) return i;
    return -1;
}

/* ---- against a plain loop ------------------------------------------------------------------ */

/* amax of each point of a layer, over one step. */
typedef struct plain {
    const int32_t *starts;
    int64_t num_seqs;
    float amax[64][FP8_NUM_POINTS], without_first[64][FP8_NUM_POINTS]; /* [layer + 1] */
    int64_t (*bins)[FP8_NUM_POINTS][FP8_RECORD_BINS]; /* [layer + 1], of all steps */
} plain;

static float value_at(const fp8_tensor *x, int64_t i) {
    return x->dtype == FP8_DTYPE_F32 ? ((const float *)x->data)[i]
                                     : fp8_bf16_to_f32(((const uint16_t *)x->data)[i]);
}

static fp8_status look(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    plain *p = ctx;
    const int64_t rows = x->shape[0], cols = fp8_tensor_count(x) / rows;
    for (int64_t r = 0; r < rows; r++) {
        int first = 0;
        for (int64_t s = 0; s < p->num_seqs; s++) first |= p->starts[s] == r;
        for (int64_t c = 0; c < cols; c++) {
            const float a = fabsf(value_at(x, r * cols + c));
            uint32_t bits;
            memcpy(&bits, &a, sizeof bits);
            p->bins[layer + 1][point][bits >> 20]++;
            if (a > p->amax[layer + 1][point]) p->amax[layer + 1][point] = a;
            if (!first && a > p->without_first[layer + 1][point])
                p->without_first[layer + 1][point] = a;
        }
    }
    return FP8_OK;
}

static void check_point(const fp8_record *r, const char *name, const plain *p, int64_t step,
                        int32_t layer, fp8_point point) {
    const int64_t i = point_index(r, name);
    check_case = name;
    CHECK(i >= 0);
    if (i < 0) return;
    const int64_t at = i * r->steps_total + step;
    CHECK(r->amax[at] == p->amax[layer + 1][point]);
    CHECK(r->amax_without_first[at] == p->without_first[layer + 1][point]);
    CHECK(r->amax[at] > 0 && r->nonfinite[at] == 0);
}

static void check_bins(const fp8_record *r, const char *name, const int64_t *want) {
    const int64_t i = point_index(r, name);
    check_case = name;
    CHECK(i >= 0 && memcmp(r->histograms + i * FP8_RECORD_BINS, want,
                           FP8_RECORD_BINS * sizeof *want) == 0);
}

static void test_history(fp8_compute compute) {
    static const struct { const char *suffix; fp8_point point; } in_layer[] = {
        {"self_attn.q_proj.input", FP8_POINT_QKV_INPUT},
        {"self_attn.k_proj.input", FP8_POINT_QKV_INPUT},
        {"self_attn.v_proj.input", FP8_POINT_QKV_INPUT},
        {"self_attn.q", FP8_POINT_Q}, {"self_attn.k", FP8_POINT_K}, {"self_attn.v", FP8_POINT_V},
        {"self_attn.o_proj.input", FP8_POINT_O_INPUT}, {"mlp.gate_proj.input", FP8_POINT_UP_INPUT},
        {"mlp.up_proj.input", FP8_POINT_UP_INPUT}, {"mlp.down_proj.input", FP8_POINT_DOWN_INPUT}};
    enum { IN_LAYER = sizeof in_layer / sizeof *in_layer };
    sample s = sample_open(NULL, 0, BATCH * SEQ, compute);
    fp8_samples data = sample_samples(SEQ, 2 * BATCH + 1); /* the last step has one sample */
    fp8_calib_options options = options_for(NULL);
    int64_t (*bins)[FP8_NUM_POINTS][FP8_RECORD_BINS] = calloc(64, sizeof *bins);
    char name[256];
    const int64_t layers = fp8_model_get_config(s.m)->num_layers;
    fp8_record *r = NULL;

    if (!bins) exit(1);
    check_case = "history";
    options.histograms = 1;
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &options), FP8_OK);
    CHECK(r->steps == 3 && r->steps_total == 3);
    CHECK(r->num_points == IN_LAYER * layers + 1);
    for (int64_t step = 0; step < r->steps; step++) {
        const int64_t begin = step * BATCH, left = data.count - begin;
        const int64_t n = left < BATCH ? left : BATCH;
        int32_t starts[BATCH + 1];
        plain p = {.starts = starts, .num_seqs = n, .bins = bins};
        for (int64_t i = 0; i <= n; i++)
            starts[i] = (int32_t)(data.starts[begin + i] - data.starts[begin]);
        const fp8_batch batch = {data.ids + data.starts[begin], starts[n], starts, n};
        const fp8_tap tap = {.on = look, .ctx = &p};
        CHECK_STATUS(fp8_model_forward(s.m, &batch, NULL, &tap, FP8_LOGITS_NONE, NULL), FP8_OK);
        CHECK(r->tokens[step] == starts[n]);
        for (int32_t layer = 0; layer < layers; layer++)
            for (size_t i = 0; i < IN_LAYER; i++) {
                snprintf(name, sizeof name, "model.layers.%d.%s", layer, in_layer[i].suffix);
                check_point(r, name, &p, step, layer, in_layer[i].point);
                check_case = "wiring order";
                CHECK(point_index(r, name) == layer * IN_LAYER + (int64_t)i);
            }
        check_point(r, "lm_head.input", &p, step, -1, FP8_POINT_LM_HEAD_INPUT);
    }
    for (int32_t layer = 0; layer < layers; layer++)
        for (size_t i = 0; i < IN_LAYER; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s", layer, in_layer[i].suffix);
            check_bins(r, name, bins[layer + 1][in_layer[i].point]);
        }
    check_bins(r, "lm_head.input", bins[0][FP8_POINT_LM_HEAD_INPUT]);
    free(bins);
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
}

/* ---- determinism and resume ---------------------------------------------------------------- */

static int stop_at(void *ctx, const char *what, int64_t done, int64_t total) {
    (void)total;
    return strcmp(what, "calibrating") == 0 && done >= *(const int64_t *)ctx;
}

static fp8_status run(const char *folder, int32_t threads, const fp8_samples *data,
                      const fp8_calib_options *options) {
    sample s = sample_open(folder, threads, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_record *r = NULL;
    const fp8_status st = fp8_calibrate(&r, s.m, s.c, data, options);
    CHECK((st == FP8_OK) == (r != NULL));
    fp8_record_destroy(r);
    sample_close(&s);
    return st;
}

static void test_resume(int histograms) {
    fp8_samples data = sample_samples(SEQ, 6 * BATCH), fewer = sample_samples(SEQ, 5 * BATCH);
    const char *whole = sample_file("whole"), *again = sample_file("again");
    const char *cut = sample_file("cut");
    fp8_calib_options options = options_for(whole);

    options.histograms = histograms;
    check_case = "two runs, one and two threads";
    CHECK_STATUS(run(NULL, 1, &data, &options), FP8_OK);
    options.record_path = again;
    CHECK_STATUS(run(NULL, 2, &data, &options), FP8_OK);
    CHECK(sample_same_file(whole, again));

    for (int64_t k = 1; k <= 6; k++) {
        check_case = "cancelled at step k, then resumed";
        options = options_for(cut);
        options.histograms = histograms;
        options.progress = (fp8_progress){stop_at, &k};
        const int whole_run = k > 4; /* the steps in flight were the last ones */
        CHECK_STATUS(run(NULL, 0, &data, &options), whole_run ? FP8_OK : FP8_ECANCELED);
        options.progress = (fp8_progress){0};
        options.resume = 1;
        CHECK_STATUS(run(NULL, 0, &data, &options), FP8_OK);
        CHECK(sample_same_file(whole, cut));
        CHECK_STATUS(run(NULL, 0, &data, &options), FP8_OK); /* nothing left to do */
        CHECK(sample_same_file(whole, cut));
    }

    check_case = "resume without a record begins";
    options.record_path = sample_file("absent");
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_OK);
    CHECK(sample_same_file(whole, options.record_path));
    remove(options.record_path);

    check_case = "resume of other data";
    options.record_path = cut;
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_OK);
    check_case = "resume with the other choice of histograms";
    options.histograms = !histograms;
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_EDATA);
    options.histograms = histograms;
    check_case = "resume of other data";
    CHECK_STATUS(run(NULL, 0, &fewer, &options), FP8_EDATA);
    data.ids[data.num_ids - 1] ^= 1;
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_EDATA);
    data.ids[data.num_ids - 1] ^= 1;
    check_case = "resume of other steps";
    options.batch = BATCH - 1;
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_EDATA);
    check_case = "no record at all";
    options = options_for(cut);
    options.resume = 1;
    CHECK_STATUS(fp8_file_write(cut, "nonsense", 8), FP8_OK);
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_EFORMAT);
    CHECK(sample_same_file(whole, again)); /* and nothing else was touched */
    fp8_samples_free(&data);
    fp8_samples_free(&fewer);
}

static void shift_norm(const char *name, void *data, const fp8_st_entry *e) {
    (void)e;
    if (strcmp(name, "model.norm.weight") == 0) ((uint16_t *)data)[0] ^= 1;
}

static void test_other_source(void) {
    fp8_samples data = sample_samples(SEQ, 2 * BATCH);
    const char *other = sample_file("other");
    fp8_calib_options options = options_for(sample_file("record"));

    check_case = "record of another source";
    sample_copy(other, shift_norm);
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_OK);
    options.resume = 1;
    CHECK_STATUS(run(other, 0, &data, &options), FP8_EDATA);
    fp8_samples_free(&data);
}

/* ---- what stops it ------------------------------------------------------------------------- */

static int32_t poisoned_id;

/* NaN and Inf in one token's embedding: the first step that has the token sees them. */
static void poison_embedding(const char *name, void *data, const fp8_st_entry *e) {
    uint16_t *row = (uint16_t *)data + poisoned_id * e->tensor.shape[1];
    if (strcmp(name, "model.embed_tokens.weight") != 0) return;
    row[0] = 0x7fc0;
    row[1] = 0x7f80;
}

static void test_nonfinite(void) {
    fp8_samples data = sample_samples(SEQ, 3 * BATCH);
    const char *folder = sample_file("poisoned");
    const char *record = sample_file("poisoned-record");
    fp8_calib_options options = options_for(record);
    const int64_t step_1 = data.starts[BATCH];
    int64_t at = step_1;
    sample s;
    fp8_record *r = NULL;

    check_case = "non-finite activation";
    for (int seen = 1; seen; at++) { /* an id that the first step does not have */
        seen = 0;
        poisoned_id = data.ids[at];
        for (int64_t i = 0; i < step_1; i++) seen |= data.ids[i] == poisoned_id;
    }
    CHECK(at <= data.starts[2 * BATCH]);
    sample_copy(folder, poison_embedding);
    CHECK_STATUS(run(folder, 0, &data, &options), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "model.layers.0.self_attn.q_proj.input") != NULL);
    CHECK(strstr(fp8_last_message(), "step 1") != NULL);
    CHECK_STATUS(fp8_record_load(&r, record), FP8_OK); /* the step before it is kept */
    CHECK(r && r->steps == 1 && r->steps_total == 3);
    fp8_record_destroy(r);
    r = NULL;

    check_case = "non-finite activation, allowed";
    options.allow_nonfinite = 1;
    options.resume = 1; /* from there */
    s = sample_open(folder, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &options), FP8_OK);
    CHECK(r && r->nonfinite[0] == 0 && r->nonfinite[1] > 0);
    for (int64_t i = 0; r && i < r->num_points * r->steps_total; i++) CHECK(isfinite(r->amax[i]));
    fp8_record_destroy(r);
    sample_close(&s);
    fp8_samples_free(&data);
}

static void test_arguments(void) {
    static const struct {
        const char *name;
        int64_t batch, seq;
        fp8_status want;
    } cases[] = {
        {"batch 0", 0, SEQ, FP8_EINVAL},
        {"seq 0", BATCH, 0, FP8_EINVAL},
        {"negative", -1, -1, FP8_EINVAL},
        {"too many tokens", INT64_MAX / 2, SEQ, FP8_EINVAL},
        {"samples longer than seq", BATCH, SEQ - 1, FP8_EINVAL},
        {"more tokens than the model takes", 2 * BATCH, SEQ, FP8_EINVAL},
        {"batch of one", 1, SEQ, FP8_OK},
    };
    fp8_samples data = sample_samples(SEQ, 2 * BATCH), none = {0};
    fp8_calib_options options = options_for(NULL);

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        options.batch = cases[i].batch;
        options.seq = cases[i].seq;
        CHECK_STATUS(run(NULL, 0, &data, &options), cases[i].want);
    }
    check_case = "no samples";
    options = options_for(NULL);
    CHECK_STATUS(run(NULL, 0, &none, &options), FP8_EDATA);
    check_case = "an id outside the vocabulary";
    data.ids[data.num_ids - 1] = 1 << 30;
    CHECK_STATUS(run(NULL, 0, &data, &options), FP8_EINVAL);
    fp8_samples_free(&data);
}

int main(void) {
    sample_begin();
    test_history(FP8_COMPUTE_BF16);
    test_history(FP8_COMPUTE_F32);
    test_resume(0);
    test_resume(1);
    test_other_source();
    test_nonfinite();
    test_arguments();
    sample_done();
    return CHECK_DONE();
}
