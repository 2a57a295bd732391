/* Compensated rounding of a whole model: the forward in parts, the bytes, the loss. */
#include "core/half.h"
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, SAMPLES = 48, HELD_OUT = 16 };

typedef struct recorded {
    fp8_point point;
    int32_t layer;
    float sum;
    int64_t calls;
} recorded;

static fp8_status record_tap(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    recorded *r = ctx;
    if (layer != r->layer || point != r->point) return FP8_OK;
    for (int64_t i = 0; i < fp8_tensor_count(x); i++) r->sum += fabsf(((const float *)x->data)[i]);
    r->calls++;
    return FP8_ECANCELED;
}

/* Layer by layer, the stream kept outside, as all at once. */
static void test_parts(void) {
    static const int32_t ids[] = {5, 9, 700, 3, 8, 8, 1, 40, 41}, starts[] = {0, 4, 9};
    const fp8_batch batch = {ids, 9, starts, 2};
    sample s = sample_open(NULL, 1, 16, FP8_COMPUTE_F32);
    const int64_t hidden = fp8_model_get_config(s.m)->hidden_size;
    const int64_t layers = fp8_model_get_config(s.m)->num_layers;
    float *x = malloc((size_t)(9 * hidden) * sizeof *x);
    recorded whole = {.point = FP8_POINT_DOWN_INPUT, .layer = 2}, part = whole;
    const fp8_tap tap = {.on = record_tap, .ctx = &whole};
    const fp8_tap part_tap = {.on = record_tap, .ctx = &part};

    check_case = "parts";
    CHECK(fp8_model_forward(s.m, &batch, NULL, &tap, FP8_LOGITS_NONE, NULL) == FP8_ECANCELED);
    CHECK_STATUS(fp8_model_forward_part(s.m, &batch, NULL, x, 0, 0, NULL), FP8_OK);
    for (int64_t i = 0; i < layers; i++) {
        if (i == 2) {
            CHECK(fp8_model_forward_part(s.m, &batch, x, NULL, i, i + 1, &part_tap) ==
                  FP8_ECANCELED);
            break;
        }
        CHECK_STATUS(fp8_model_forward_part(s.m, &batch, x, x, i, i + 1, NULL), FP8_OK);
    }
    CHECK(whole.calls == 1 && part.calls == 1 && whole.sum == part.sum);
    CHECK_STATUS(fp8_model_forward_part(s.m, &batch, NULL, x, 1, 2, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_model_forward_part(s.m, &batch, x, x, 0, layers + 1, NULL), FP8_EINVAL);
    free(x);
    sample_close(&s);
}

/* ---- the whole ------------------------------------------------------------------------------- */

typedef struct made {
    double loss;
    fp8_status st;
} made;

/* Calibrates, rounds and writes "name". */
static made make(const char *name, const char *folder, int32_t threads, fp8_scheme scheme,
                 const fp8_rounding_options *how) {
    sample s = sample_open(folder, threads, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ};
    fp8_export_options options = {.scheme = scheme, .kv_fp8 = 1, .attention = FP8_ATTENTION_DPA,
                                  .recipe = FP8_RECIPE_DEFAULT, .force = 1};
    fp8_export_result result;
    fp8_record *r = NULL;
    fp8_rounding *rounding = NULL;
    made m = {0, FP8_OK};

    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &calib), FP8_OK);
    if (how) {
        m.st = fp8_rounding_create(&rounding, s.m, s.c, sample_file("scratch"), r, &data, &calib,
                                   &options, how);
        CHECK(!fp8_path_exists(sample_file("scratch")));
    }
    if (rounding) m.loss = fp8_rounding_loss(rounding);
    options.rounding = rounding;
    if (m.st == FP8_OK)
        CHECK_STATUS(fp8_export(&result, sample_file(name), s.c, s.d, r, &options), FP8_OK);
    fp8_rounding_destroy(rounding);
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
    return m;
}

/* KL of "name" against the model on text that was not calibrated on. */
static double kl_of(const char *name, const char *folder) {
    sample a = sample_open(folder, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    sample b = sample_open(sample_file(name), 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_model *models[2] = {a.m, b.m};
    fp8_samples data = sample_samples(SEQ, SAMPLES + HELD_OUT);
    const int64_t from = data.starts[data.count > SAMPLES ? SAMPLES : 0];
    fp8_eval_result results[2] = {{0}};

    CHECK_STATUS(fp8_evaluate(results, models, 2, data.ids + from, data.num_ids - from, SEQ, 0,
                              NULL), FP8_OK);
    fp8_samples_free(&data);
    sample_close(&a);
    sample_close(&b);
    return results[1].kl;
}

static void test_schemes(void) {
    static const struct {
        const char *name;
        fp8_scheme scheme;
        fp8_rounding_options how;
    } cases[] = {
        {"tensor", FP8_SCHEME_TENSOR, FP8_ROUNDING_OPTIONS},
        {"weights alone", FP8_SCHEME_TENSOR, {0.01, 0, FP8_ROUND_TO_WEIGHT, 1, 0, 0}},
        {"dynamic", FP8_SCHEME_DYNAMIC, FP8_ROUNDING_OPTIONS},
        {"tensor-dynamic", FP8_SCHEME_TENSOR_DYNAMIC, FP8_ROUNDING_OPTIONS},
        {"block", FP8_SCHEME_BLOCK, FP8_ROUNDING_OPTIONS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double plain, rounded;
        made m;
        check_case = cases[i].name;
        make("plain", NULL, 2, cases[i].scheme, NULL);
        m = make("rounded", NULL, 2, cases[i].scheme, &cases[i].how);
        CHECK_STATUS(m.st, FP8_OK);
        CHECK(m.loss > 0 && m.loss < 0.9);
        plain = kl_of("plain", NULL);
        rounded = kl_of("rounded", NULL);
        if (getenv("VERBOSE"))
            fprintf(stderr, "%s: loss %.3f, KL %.5f -> %.5f\n", check_case, m.loss, plain, rounded);
        CHECK(rounded < plain);
    }
}

static void test_threads(void) {
    const fp8_rounding_options how = FP8_ROUNDING_OPTIONS;
    check_case = "one thread and three";
    make("one", NULL, 1, FP8_SCHEME_TENSOR, &how);
    make("three", NULL, 3, FP8_SCHEME_TENSOR, &how);
    CHECK(sample_same_file(sample_file("one/model.safetensors"),
                           sample_file("three/model.safetensors")));
}

/* sum (w - code * descale)^2 of a weight of "name"; scales by tensor or output channel. */
static double error_of(const char *name, const fp8_checkpoint *source, const char *module) {
    char weight[256], scale[256];
    fp8_checkpoint *c = NULL;
    double sum = 0;

    snprintf(weight, sizeof weight, "%s.weight", module);
    snprintf(scale, sizeof scale, "%s.weight_scale", module);
    CHECK_STATUS(fp8_checkpoint_open(&c, sample_file(name)), FP8_OK);
    const fp8_tensor *codes = &fp8_checkpoint_find(c, weight)->tensor;
    const fp8_st_entry *descales = fp8_checkpoint_find(c, scale);
    const uint16_t *w = fp8_checkpoint_find(source, weight)->tensor.data;
    for (int64_t i = 0; i < fp8_tensor_count(codes); i++) {
        const int64_t at = descales->bytes > 4 ? i / codes->shape[1] : 0;
        const float v = fp8_to_f32(FP8_DTYPE_E4M3, ((const uint8_t *)codes->data)[i]);
        float d;
        memcpy(&d, (const char *)descales->tensor.data + 4 * at, sizeof d);
        const double e = (double)fp8_bf16_to_f32(w[i]) - (double)(v * d);
        sum += e * e;
    }
    fp8_checkpoint_close(c);
    return sum;
}

/* Scales of least error: of o_proj, alone in its group, never more than by amax, and less
 * somewhere; q, k and v still share one. */
static void test_search(void) {
    static const fp8_scheme schemes[] = {FP8_SCHEME_TENSOR, FP8_SCHEME_DYNAMIC};
    sample s = sample_open(NULL, 2, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, 4);
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ};
    fp8_record *r = NULL;

    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &calib), FP8_OK);
    for (int i = 0; i < 2; i++) {
        fp8_export_options options = {.scheme = schemes[i], .recipe = FP8_RECIPE_DEFAULT,
                                      .force = 1};
        fp8_export_result result;
        fp8_rounding *found = NULL;
        fp8_checkpoint *c = NULL;
        int better = 0;
        check_case = fp8_scheme_name(schemes[i]);
        CHECK_STATUS(fp8_export(&result, sample_file("amax"), s.c, s.d, r, &options), FP8_OK);
        CHECK_STATUS(fp8_rounding_search(&found, s.d, fp8_model_get_config(s.m), s.c, r, &options),
                     FP8_OK);
        options.rounding = found;
        CHECK_STATUS(fp8_export(&result, sample_file("mse"), s.c, s.d, r, &options), FP8_OK);
        fp8_rounding_destroy(found);
        for (int layer = 0; layer < 4; layer++) {
            char module[128];
            snprintf(module, sizeof module, "model.layers.%d.self_attn.o_proj", layer);
            const double before = error_of("amax", s.c, module), now = error_of("mse", s.c, module);
            CHECK(now <= before);
            better += now < 0.99 * before;
        }
        CHECK(better > 0);
        CHECK_STATUS(fp8_checkpoint_open(&c, sample_file("mse")), FP8_OK);
        if (schemes[i] == FP8_SCHEME_TENSOR)
            CHECK(memcmp(fp8_checkpoint_find(c, "model.layers.1.self_attn.q_proj.weight_scale")
                             ->tensor.data,
                         fp8_checkpoint_find(c, "model.layers.1.self_attn.v_proj.weight_scale")
                             ->tensor.data, 4) == 0);
        fp8_checkpoint_close(c);
    }
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
}

static void test_refused(void) {
    fp8_rounding_options how = FP8_ROUNDING_OPTIONS;
    check_case = "refused";
    how.damping = 0;
    CHECK(make("x", NULL, 1, FP8_SCHEME_TENSOR, &how).st == FP8_EINVAL);
    how.damping = 0.01;
    how.ridge = NAN;
    CHECK(make("x", NULL, 1, FP8_SCHEME_TENSOR, &how).st == FP8_EINVAL);
}

static int stop_at(void *ctx, const char *what, int64_t done, int64_t total) {
    (void)total;
    return strcmp(what, "rounding") == 0 && done == *(const int64_t *)ctx;
}

/* Stopped in the middle of a layer: a status, nothing left behind. */
static void test_canceled(void) {
    sample s = sample_open(NULL, 2, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, 4);
    int64_t at = 7;
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ, .progress = {stop_at, &at}};
    const fp8_export_options options = {.scheme = FP8_SCHEME_TENSOR, .recipe = FP8_RECIPE_DEFAULT};
    const fp8_rounding_options how = FP8_ROUNDING_OPTIONS;
    fp8_record *r = NULL;
    fp8_rounding *rounding = NULL;

    check_case = "canceled";
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &calib), FP8_OK);
    CHECK_STATUS(fp8_rounding_create(&rounding, s.m, s.c, sample_file("scratch"), r, &data, &calib,
                                     &options, &how), FP8_ECANCELED);
    CHECK(rounding == NULL && !fp8_path_exists(sample_file("scratch")));
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
}

int main(void) {
    sample_begin();
    test_canceled();
    test_parts();
    test_schemes();
    test_threads();
    test_search();
    test_refused();
    sample_done();
    return CHECK_DONE();
}
