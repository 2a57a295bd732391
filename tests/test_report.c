/* The report against plain loops: every figure of every row. */
#include <cjson/cJSON.h>

#include "core/half.h"
#include "tests/sample_model.h"

enum { SEQ = 32, BATCH = 4, SAMPLES = 12, STEPS = 2 };

static const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ, .data_name = "built-in"};

/* Nearest even E4M3 value of y, saturated: spacing 2^-3 of the binade, 2^-9 below 2^-6. */
static double round_e4m3(double y) {
    int e = 0;
    if (fabs(y) >= 448) return copysign(448, y);
    frexp(y, &e);
    const double step = ldexp(1, (e - 1 < -6 ? -6 : e - 1) - 3);
    return rint(y / step) * step;
}

typedef struct figures {
    double signal, noise, amax;
    int64_t count, clipped;
} figures;

static void add(figures *f, float x, float scale, float descale) {
    const float y = x * scale, back = (float)round_e4m3((double)y) * descale;
    const double error = (double)x - (double)back;
    f->signal += (double)x * (double)x;
    f->noise += error * error;
    f->count++;
    f->clipped += fabsf(y) > 448;
    f->amax = fmax(f->amax, (double)fabsf(x));
}

static const fp8_report_row *find(const fp8_report *r, const char *name) {
    for (int64_t i = 0; i < r->count; i++)
        if (strcmp(r->rows[i].name, name) == 0) return &r->rows[i];
    return NULL;
}

static void check_row(const fp8_report_row *row, const figures *f) {
    CHECK(row != NULL);
    if (!row) return;
    check_case = row->name;
    CHECK(fabs(row->sqnr_db - 10 * log10(f->signal / f->noise)) < 1e-6);
    CHECK(row->sqnr_db > 25 && row->sqnr_db < 40);
    CHECK(fabs(row->clipped - (double)f->clipped / (double)f->count) < 1e-12);
    CHECK(row->p999_over_max > 0.01 && row->p999_over_max <= 1);
    CHECK(row->nonfinite == 0);
}

static void check_order(const fp8_report *r) {
    check_case = "worst first";
    for (int64_t i = 1; i < r->count; i++) CHECK(r->rows[i - 1].sqnr_db <= r->rows[i].sqnr_db);
}

/* ---- weights ------------------------------------------------------------------------------- */

static float weight_value(const fp8_st_entry *e, int64_t i) {
    uint16_t half;
    memcpy(&half, (const char *)e->tensor.data + 2 * i, 2);
    return fp8_bf16_to_f32(half);
}

static float amax_of(const fp8_st_entry *e, int64_t begin, int64_t end) {
    float amax = 0;
    for (int64_t i = begin; i < end; i++) amax = fmaxf(amax, fabsf(weight_value(e, i)));
    return amax;
}

/* One scale for the tensor, or with per_row one a row. */
static figures weight_figures(const fp8_st_entry *e, float amax, int per_row) {
    const int64_t rows = e->tensor.shape[0], cols = e->tensor.shape[1];
    figures f = {0};
    for (int64_t r = 0; r < rows; r++) {
        if (per_row) amax = amax_of(e, r * cols, (r + 1) * cols);
        for (int64_t c = 0; c < cols; c++)
            add(&f, weight_value(e, r * cols + c), 448.0f / amax, amax / 448.0f);
    }
    return f;
}

static void check_weights(const fp8_report *r, const fp8_checkpoint *c, int per_row) {
    static const char *const together[] = {"model.layers.1.self_attn.q_proj.weight",
                                           "model.layers.1.self_attn.k_proj.weight",
                                           "model.layers.1.self_attn.v_proj.weight"};
    float amax = 0;
    for (int i = 0; i < 3; i++) {
        const fp8_st_entry *e = fp8_checkpoint_find(c, together[i]);
        amax = fmaxf(amax, amax_of(e, 0, fp8_tensor_count(&e->tensor)));
    }
    for (int i = 0; i < 3; i++) {
        const fp8_st_entry *e = fp8_checkpoint_find(c, together[i]);
        const figures f = weight_figures(e, amax, per_row);
        const fp8_report_row *row = find(r, together[i]);
        check_row(row, &f);
        if (!row) continue;
        CHECK(row->is_weight && (double)row->amax == f.amax);
        CHECK(row->amax_without_first == row->amax);
        CHECK(row->descale == (per_row ? row->amax : amax) / 448.0f);
    }
}

/* ---- activations --------------------------------------------------------------------------- */

typedef struct watched {
    fp8_point point;
    int32_t layer;
    const char *name;
    const fp8_report_row *row;
    figures f;
} watched;

static fp8_status watch(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    for (watched *w = ctx; w->name; w++) {
        if (w->layer != layer || w->point != point || !w->row) continue;
        for (int64_t i = 0; i < fp8_tensor_count(x); i++)
            add(&w->f, fp8_bf16_to_f32(((const uint16_t *)x->data)[i]), w->row->scale,
                w->row->descale);
    }
    return FP8_OK;
}

static void check_activations(const fp8_report *r, const sample *s, const fp8_samples *data) {
    watched all[] = {
        {.point = FP8_POINT_QKV_INPUT, .layer = 0, .name = "self_attn.q_proj.input"},
        {.point = FP8_POINT_Q, .layer = 1, .name = "self_attn.q"},
        {.point = FP8_POINT_K, .layer = 2, .name = "self_attn.k"},
        {.point = FP8_POINT_V, .layer = 3, .name = "self_attn.v"},
        {.point = FP8_POINT_O_INPUT, .layer = 3, .name = "self_attn.o_proj.input"},
        {.point = FP8_POINT_UP_INPUT, .layer = 1, .name = "mlp.gate_proj.input"},
        {.point = FP8_POINT_DOWN_INPUT, .layer = 2, .name = "mlp.down_proj.input"},
        {.name = NULL}};
    const fp8_tap tap = {.on = watch, .ctx = all};

    for (watched *w = all; w->name; w++) {
        char name[256];
        snprintf(name, sizeof name, "model.layers.%d.%s", w->layer, w->name);
        w->row = find(r, name);
    }
    for (int64_t step = 0; step < STEPS; step++) {
        int32_t starts[BATCH + 1];
        for (int i = 0; i <= BATCH; i++)
            starts[i] = (int32_t)(data->starts[step * BATCH + i] - data->starts[step * BATCH]);
        const fp8_batch batch = {data->ids + data->starts[step * BATCH], starts[BATCH], starts,
                                 BATCH};
        CHECK_STATUS(fp8_model_forward(s->m, &batch, NULL, &tap, FP8_LOGITS_NONE, NULL), FP8_OK);
    }
    for (watched *w = all; w->name; w++) {
        check_row(w->row, &w->f);
        if (!w->row) continue;
        CHECK(!w->row->is_weight);
        CHECK((double)w->row->amax >= w->f.amax); /* of all steps, not of the first two */
        CHECK(w->row->descale == w->row->amax / 448.0f);
        CHECK(w->row->amax_without_first <= w->row->amax && w->row->amax_without_first > 0);
    }
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static void check_json(const fp8_report *r) {
    char *text = NULL;
    cJSON *rows;
    check_case = "JSON";
    CHECK_STATUS(fp8_report_json(&text, r), FP8_OK);
    rows = cJSON_Parse(text);
    CHECK(rows && cJSON_GetArraySize(rows) == (int)r->count);
    for (int i = 0; i < cJSON_GetArraySize(rows); i++) {
        const cJSON *o = cJSON_GetArrayItem(rows, i);
        CHECK(strcmp(cJSON_GetObjectItem(o, "name")->valuestring, r->rows[i].name) == 0);
        CHECK(fabs(cJSON_GetObjectItem(o, "sqnr_db")->valuedouble - r->rows[i].sqnr_db) < 1e-9);
        CHECK(strcmp(cJSON_GetObjectItem(o, "kind")->valuestring,
                     r->rows[i].is_weight ? "weight" : "activation") == 0);
    }
    cJSON_Delete(rows);
    free(text);
}

static void test_exact_row(void) {
    fp8_report_row row = {.name = "exact", .sqnr_db = INFINITY};
    const fp8_report report = {&row, 1};
    char *text = NULL;
    check_case = "infinite SQNR";
    CHECK_STATUS(fp8_report_json(&text, &report), FP8_OK);
    CHECK(text && strstr(text, "null") != NULL);
    free(text);
}

static int stop(void *ctx, const char *what, int64_t done, int64_t total) {
    (void)ctx;
    (void)done;
    (void)total;
    return strcmp(what, "measuring") == 0;
}

int main(void) {
    const fp8_export_options fixed = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                                      .attention = FP8_ATTENTION_DPA,
                                      .recipe = FP8_RECIPE_DEFAULT};
    const fp8_export_options dynamic = {.scheme = FP8_SCHEME_DYNAMIC, .recipe = FP8_RECIPE_DEFAULT};
    sample s = sample_open(NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    fp8_calib_options stopped = calib;
    fp8_record *record = NULL;
    fp8_report r;

    CHECK_STATUS(fp8_calibrate(&record, s.m, s.c, &data, &calib), FP8_OK);
    check_case = "static";
    CHECK_STATUS(fp8_report_create(&r, s.m, s.c, record, &data, &calib, &fixed, STEPS), FP8_OK);
    CHECK(r.count == 4 * (7 + 4 + 3)); /* weights, inputs, Q K V of each layer */
    check_order(&r);
    check_weights(&r, s.c, 0);
    check_activations(&r, &s, &data);
    check_json(&r);
    fp8_report_free(&r);

    check_case = "more steps than there are";
    CHECK_STATUS(fp8_report_create(&r, s.m, s.c, record, &data, &calib, &fixed, 99), FP8_OK);
    fp8_report_free(&r);

    check_case = "dynamic, weights only";
    CHECK_STATUS(fp8_report_create(&r, s.m, s.c, NULL, &data, &calib, &dynamic, 0), FP8_OK);
    CHECK(r.count == 4 * 7);
    check_order(&r);
    check_weights(&r, s.c, 1);
    fp8_report_free(&r);

    check_case = "stopped";
    stopped.progress.on = stop;
    CHECK_STATUS(fp8_report_create(&r, s.m, s.c, record, &data, &stopped, &fixed, 2),
                 FP8_ECANCELED);
    CHECK(r.rows == NULL);
    test_exact_row();
    fp8_record_destroy(record);
    fp8_samples_free(&data);
    sample_close(&s);
    return CHECK_DONE();
}
