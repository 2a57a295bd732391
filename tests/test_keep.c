/* Linears that stay in BF16: what is measured, what is chosen, what is written. */
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, SAMPLES = 16, WINDOWS = 6 };

typedef struct bench {
    sample s;
    fp8_samples data;
    fp8_calib_options calib;
    fp8_export_options options;
    fp8_record *r;
} bench;

static bench begin(void) {
    bench b = {.s = sample_open(NULL, 2, BATCH * SEQ, FP8_COMPUTE_BF16),
               .data = sample_samples(SEQ, SAMPLES),
               .calib = {.batch = BATCH, .seq = SEQ},
               .options = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                           .attention = FP8_ATTENTION_DPA, .recipe = FP8_RECIPE_DEFAULT,
                           .force = 1}};
    CHECK_STATUS(fp8_calibrate(&b.r, b.s.m, b.s.c, &b.data, &b.calib), FP8_OK);
    return b;
}

static void end(bench *b) {
    fp8_record_destroy(b->r);
    fp8_samples_free(&b->data);
    sample_close(&b->s);
}

static double kl_of(const bench *b, const char *name) {
    sample f = sample_open(sample_file(name), 2, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_model *models[2] = {b->s.m, f.m};
    fp8_eval_result results[2] = {{0}};
    CHECK_STATUS(fp8_evaluate(results, models, 2, b->data.ids, b->data.num_ids, SEQ, WINDOWS, NULL),
                 FP8_OK);
    sample_close(&f);
    return results[1].kl;
}

/* Shares add up to 1, the most gain a byte comes first, what is kept gains. */
static void test_choice(void) {
    bench b = begin();
    fp8_keep *k = NULL;
    fp8_export_result result;
    double shares = 0;
    int64_t chosen = 0;

    check_case = "choice";
    CHECK_STATUS(fp8_export(&result, sample_file("plain"), b.s.c, b.s.d, b.r, &b.options), FP8_OK);
    CHECK_STATUS(fp8_keep_create(&k, b.s.m, b.s.c, sample_file("scratch"), b.r, &b.data, &b.calib,
                                 &b.options, 20, WINDOWS), FP8_OK);
    CHECK(!fp8_path_exists(sample_file("scratch")));
    CHECK(k->count == 16 && k->kl == kl_of(&b, "plain"));
    for (int64_t i = 0; i < k->count; i++) {
        shares += k->choices[i].share;
        chosen += k->choices[i].chosen;
        CHECK(!k->choices[i].chosen || k->choices[i].gain > 0);
        CHECK(i == 0 || k->choices[i].gain / k->choices[i].share <=
                            k->choices[i - 1].gain / k->choices[i - 1].share);
    }
    CHECK(fabs(shares - 1) < 1e-9 && chosen > 0 && k->share > 0 && k->share <= 0.2);
    b.options.keep = (const char *const *)k->names;
    b.options.num_keep = k->num_names;
    CHECK_STATUS(fp8_export(&result, sample_file("kept"), b.s.c, b.s.d, b.r, &b.options), FP8_OK);
    CHECK(result.linears == 28 - k->num_names);
    CHECK(kl_of(&b, "kept") < k->kl);
    fp8_keep_destroy(k);
    end(&b);
}

/* One choice alone: percent so small that only the cheapest fits. */
static void test_gain(void) {
    bench b = begin();
    fp8_keep *k = NULL;
    fp8_export_result result;
    fp8_quant_config quant = {0};
    fp8_checkpoint *c = NULL;

    check_case = "gain";
    CHECK_STATUS(fp8_keep_create(&k, b.s.m, b.s.c, sample_file("scratch"), b.r, &b.data, &b.calib,
                                 &b.options, 100, WINDOWS), FP8_OK);
    for (int64_t i = 0; i < k->count; i++) {
        const char *const o[] = {"model.layers.2.self_attn.o_proj"};
        if (k->choices[i].layer != 2 || k->choices[i].point != FP8_POINT_O_INPUT) continue;
        b.options.keep = o;
        b.options.num_keep = 1;
        CHECK_STATUS(fp8_export(&result, sample_file("one"), b.s.c, b.s.d, b.r, &b.options),
                     FP8_OK);
        CHECK(fabs(k->kl - kl_of(&b, "one") - k->choices[i].gain) < 1e-12);
    }
    CHECK_STATUS(fp8_quant_config_load(&quant, sample_file("one/config.json")), FP8_OK);
    CHECK(fp8_quant_config_ignores(&quant, "model.layers.2.self_attn.o_proj"));
    CHECK(!fp8_quant_config_ignores(&quant, "model.layers.1.self_attn.o_proj"));
    fp8_quant_config_free(&quant);
    CHECK_STATUS(fp8_checkpoint_open(&c, sample_file("one")), FP8_OK);
    const fp8_st_entry *got = fp8_checkpoint_find(c, "model.layers.2.self_attn.o_proj.weight");
    const fp8_st_entry *want = fp8_checkpoint_find(b.s.c, "model.layers.2.self_attn.o_proj.weight");
    CHECK(got && got->bytes == want->bytes &&
          memcmp(got->tensor.data, want->tensor.data, got->bytes) == 0);
    CHECK(!fp8_checkpoint_find(c, "model.layers.2.self_attn.o_proj.weight_scale"));
    CHECK(!fp8_checkpoint_find(c, "model.layers.2.self_attn.o_proj.input_scale"));
    fp8_checkpoint_close(c);
    fp8_keep_destroy(k);
    end(&b);
}

/* Compensated rounding leaves them alone, and keeps a K weight's scales of K and V. */
static void test_with_rounding(void) {
    static const char *const qkv[] = {"model.layers.0.self_attn.q_proj",
                                      "model.layers.0.self_attn.k_proj",
                                      "model.layers.0.self_attn.v_proj"};
    const fp8_rounding_options how = FP8_ROUNDING_OPTIONS;
    bench b = begin();
    fp8_rounding *rounding = NULL;
    fp8_export_result result;
    fp8_checkpoint *c = NULL;

    check_case = "with compensated rounding";
    b.options.keep = qkv;
    b.options.num_keep = 3;
    CHECK_STATUS(fp8_rounding_create(&rounding, b.s.m, b.s.c, sample_file("scratch"), b.r, &b.data,
                                     &b.calib, &b.options, &how), FP8_OK);
    b.options.rounding = rounding;
    CHECK_STATUS(fp8_export(&result, sample_file("both"), b.s.c, b.s.d, b.r, &b.options), FP8_OK);
    fp8_rounding_destroy(rounding);
    CHECK(result.linears == 25 && kl_of(&b, "both") > 0);
    CHECK_STATUS(fp8_checkpoint_open(&c, sample_file("both")), FP8_OK);
    for (int i = 0; i < 3; i++) {
        char name[256];
        snprintf(name, sizeof name, "%s.weight", qkv[i]);
        CHECK(memcmp(fp8_checkpoint_find(c, name)->tensor.data,
                     fp8_checkpoint_find(b.s.c, name)->tensor.data,
                     fp8_checkpoint_find(b.s.c, name)->bytes) == 0);
    }
    CHECK(fp8_checkpoint_find(c, "model.layers.0.self_attn.k_scale") != NULL);
    fp8_checkpoint_close(c);
    end(&b);
}

static void test_refused(void) {
    static const char *const unknown[] = {"model.layers.9.self_attn.o_proj"};
    static const char *const part[] = {"model.layers.0.self_attn.q_proj"};
    bench b = begin();
    fp8_export_result result;
    fp8_keep *k = NULL;

    check_case = "refused";
    b.options.keep = unknown;
    b.options.num_keep = 1;
    CHECK_STATUS(fp8_export(&result, sample_file("x"), b.s.c, b.s.d, b.r, &b.options), FP8_EINVAL);
    b.options.keep = part;
    CHECK_STATUS(fp8_export(&result, sample_file("x"), b.s.c, b.s.d, b.r, &b.options), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "share scales") != NULL);
    b.options.num_keep = 0;
    CHECK_STATUS(fp8_keep_create(&k, b.s.m, b.s.c, sample_file("scratch"), b.r, &b.data, &b.calib,
                                 &b.options, 101, WINDOWS), FP8_EINVAL);
    CHECK_STATUS(fp8_model_exchange_linears(b.s.m, b.s.m, 99, FP8_POINT_O_INPUT), FP8_EINVAL);
    CHECK_STATUS(fp8_model_exchange_linears(b.s.m, b.s.m, 0, FP8_POINT_V), FP8_EINVAL);
    end(&b);
}

int main(void) {
    sample_begin();
    test_choice();
    test_gain();
    test_with_rounding();
    test_refused();
    sample_done();
    return CHECK_DONE();
}
