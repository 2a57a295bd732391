/* The FP8 checkpoint that is written: every tensor, its scales, the files beside it, and what is
 * refused. Weights are dequantized here by the format's definition, not by the code under test. */
#include <sys/stat.h>

#include "core/half.h"
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, SAMPLES = 16 };

static const fp8_export_options static_options = {
    .scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1, .attention = FP8_ATTENTION_DPA,
    .format = FP8_FORMAT_HYBRID, .recipe = FP8_RECIPE_DEFAULT};
static const fp8_export_options dynamic_options = {.scheme = FP8_SCHEME_DYNAMIC,
                                                   .recipe = FP8_RECIPE_DEFAULT};
static const fp8_export_options tensor_dynamic_options = {.scheme = FP8_SCHEME_TENSOR_DYNAMIC,
                                                          .recipe = FP8_RECIPE_DEFAULT};

/* ---- reading back -------------------------------------------------------------------------- */

/* E4M3 by its definition: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f is NaN. */
static double decode(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double sign = code & 0x80 ? -1 : 1;
    if ((code & 0x7f) == 0x7f) return NAN;
    if (exponent == 0) return sign * ldexp(mantissa, -9);
    return sign * ldexp(8 + mantissa, exponent - 10);
}

static double source_value(const fp8_st_entry *e, int64_t i) {
    const unsigned char *p = e->tensor.data;
    uint16_t half;
    float single;
    if (e->tensor.dtype == FP8_DTYPE_F32) {
        memcpy(&single, p + 4 * i, 4);
        return (double)single;
    }
    memcpy(&half, p + 2 * i, 2);
    return (double)(e->tensor.dtype == FP8_DTYPE_F16 ? fp8_f16_to_f32(half)
                                                     : fp8_bf16_to_f32(half));
}

static const fp8_st_entry *find(const fp8_checkpoint *c, const char *module, const char *suffix) {
    char name[512];
    snprintf(name, sizeof name, "%s%s", module, suffix);
    return fp8_checkpoint_find(c, name);
}

static float scalar(const fp8_checkpoint *c, const char *module, const char *suffix) {
    const fp8_st_entry *e = find(c, module, suffix);
    float x = NAN;
    CHECK(e && e->tensor.dtype == FP8_DTYPE_F32 && e->tensor.ndim == 1 && e->tensor.shape[0] == 1);
    if (e && e->bytes == sizeof x) memcpy(&x, e->tensor.data, sizeof x);
    return x;
}

/* Nearest even of x/descale, so |x - code * descale| is at most half a step: 2^-4 |x|, or where
 * E4M3 is subnormal 2^-10 descale; a little more for the F32 quotient. */
static void check_codes(const fp8_st_entry *codes, const fp8_st_entry *source,
                        const float *descales, int64_t num_descales) {
    const int64_t n = fp8_tensor_count(&source->tensor), cols = source->tensor.shape[1];
    const uint8_t *q = codes->tensor.data;
    int shown = 0;
    CHECK(codes->tensor.dtype == FP8_DTYPE_E4M3 && fp8_tensor_count(&codes->tensor) == n);
    for (int64_t i = 0; i < n && shown < 10; i++) {
        float descale;
        memcpy(&descale, descales + (num_descales > 1 ? i / cols : 0), sizeof descale);
        const double x = source_value(source, i), y = decode(q[i]) * (double)descale;
        const double bound = fmax(fabs(x) / 16, (double)descale / 1024) * (1 + 1e-6);
        if (fabs(x - y) <= bound) continue;
        fprintf(stderr, "%s[%lld]: %g became %g\n", source->name, (long long)i, x, y);
        shown++;
    }
    CHECK(shown == 0);
}

static double source_amax(const fp8_checkpoint *c, const char *module) {
    const fp8_st_entry *e = find(c, module, ".weight");
    double amax = 0;
    for (int64_t i = 0; i < fp8_tensor_count(&e->tensor); i++)
        amax = fmax(amax, fabs(source_value(e, i)));
    return amax;
}

static float recipe_descale(const fp8_record *r, const char *point) {
    float amax = 0;
    for (int64_t i = 0; i < r->num_points; i++)
        for (int64_t step = 0; strcmp(r->points[i], point) == 0 && step < r->steps; step++)
            amax = fmaxf(amax, r->amax[i * r->steps_total + step]);
    CHECK(amax > 0);
    return amax / 448.0f;
}

static fp8_record *calibrate(const sample *s) {
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    const fp8_calib_options options = {.batch = BATCH, .seq = SEQ, .data_name = "built-in"};
    fp8_record *r = NULL;
    CHECK_STATUS(fp8_calibrate(&r, s->m, s->c, &data, &options), FP8_OK);
    if (!r) exit(1);
    fp8_samples_free(&data);
    return r;
}

static fp8_status export(const char *out, const fp8_checkpoint *source, fp8_device *d,
                         const fp8_record *r, const fp8_export_options *options) {
    fp8_export_result result;
    const fp8_status st = fp8_export(&result, out, source, d, r, options);
    CHECK((st == FP8_OK) == (result.output_bytes > 0));
    return st;
}

static fp8_checkpoint *reopen(const char *out) {
    fp8_checkpoint *c = NULL;
    CHECK_STATUS(fp8_checkpoint_open(&c, out), FP8_OK);
    if (!c) exit(1);
    return c;
}

/* ---- static scales ------------------------------------------------------------------------- */

static const char *const groups[][4] = {
    {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"self_attn.o_proj"},
    {"mlp.gate_proj", "mlp.up_proj"}, {"mlp.down_proj"}};

/* `r` NULL: inputs are dynamic, no static scale is there. */
static void check_layer(const fp8_checkpoint *source, const fp8_checkpoint *out,
                        const fp8_record *r, int64_t layer) {
    static char module[256]; /* check_case keeps pointing here */
    char point[300];
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        double amax = 0;
        for (int i = 0; groups[g][i]; i++) {
            snprintf(module, sizeof module, "model.layers.%lld.%s", (long long)layer, groups[g][i]);
            amax = fmax(amax, source_amax(source, module));
        }
        for (int i = 0; groups[g][i]; i++) {
            snprintf(module, sizeof module, "model.layers.%lld.%s", (long long)layer, groups[g][i]);
            snprintf(point, sizeof point, "%s.input", module);
            check_case = module;
            const float descale = scalar(out, module, ".weight_scale");
            CHECK(descale == (float)amax / 448.0f); /* of the group, not of the tensor */
            if (r) CHECK(scalar(out, module, ".input_scale") == recipe_descale(r, point));
            else CHECK(!find(out, module, ".input_scale"));
            check_codes(find(out, module, ".weight"), find(source, module, ".weight"), &descale, 1);
        }
    }
    snprintf(module, sizeof module, "model.layers.%lld.self_attn", (long long)layer);
    check_case = module;
    for (const char *c = "kvq"; *c; c++) {
        const char suffix[] = {'.', *c, '_', 's', 'c', 'a', 'l', 'e', 0};
        snprintf(point, sizeof point, "%s.%c", module, *c);
        if (r) CHECK(scalar(out, module, suffix) == recipe_descale(r, point));
        else CHECK(!find(out, module, suffix));
    }
}

static void check_rest(const fp8_checkpoint *source, const fp8_checkpoint *out, int64_t layers) {
    int64_t copied = 0;
    for (int64_t i = 0; i < fp8_checkpoint_count(source); i++) {
        const fp8_st_entry *a = fp8_checkpoint_at(source, i);
        const fp8_st_entry *b = fp8_checkpoint_find(out, a->name);
        check_case = a->name;
        CHECK(b && b->tensor.ndim == a->tensor.ndim);
        if (!b || b->tensor.dtype == FP8_DTYPE_E4M3) continue;
        copied++;
        CHECK(b->tensor.dtype == a->tensor.dtype && b->bytes == a->bytes);
        CHECK(memcmp(a->tensor.data, b->tensor.data, a->bytes) == 0);
    }
    check_case = "all tensors";
    CHECK(copied == 2 + 2 * layers); /* embedding, final norm, two norms a layer */
    CHECK(fp8_checkpoint_count(out) == fp8_checkpoint_count(source) + layers * (7 * 2 + 3));
}

/* A file as a string; free(). */
static char *read_text(const char *path) {
    fp8_file file = {0};
    char *text = NULL;
    CHECK_STATUS(fp8_file_map(&file, path), FP8_OK);
    text = calloc(1, file.bytes + 1);
    if (!text) exit(1);
    memcpy(text, file.data ? (const char *)file.data : "", file.bytes);
    fp8_file_unmap(&file);
    return text;
}

static void check_files(const fp8_checkpoint *source, const char *out_folder,
                        const fp8_checkpoint *out, const fp8_record *r) {
    static const char *const same[] = {"tokenizer.json", "tokenizer_config.json",
                                       "generation_config.json"};
    fp8_model_config config;
    fp8_quant_config quant;
    fp8_record *saved = NULL;
    fp8_file text = {0};
    char path[4200], *index;

    check_case = "files beside the weights";
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char *from = NULL;
        CHECK_STATUS(fp8_checkpoint_sibling(&from, source, same[i]), FP8_OK);
        snprintf(path, sizeof path, "%s/%s", out_folder, same[i]);
        CHECK(from && sample_same_file(from, path));
        free(from);
    }
    CHECK_STATUS(fp8_config_load(&config, out_folder), FP8_OK);
    CHECK(config.has_quantization && config.num_layers == 4);
    snprintf(path, sizeof path, "%s/config.json", out_folder);
    CHECK_STATUS(fp8_file_map(&text, path), FP8_OK);
    CHECK_STATUS(fp8_quant_config_parse(&quant, path, (const char *)text.data, text.bytes), FP8_OK);
    CHECK(quant.scheme == FP8_SCHEME_TENSOR && quant.kv_fp8 == 1);
    CHECK(fp8_quant_config_ignores(&quant, "lm_head"));
    fp8_quant_config_free(&quant);
    fp8_file_unmap(&text);
    /* Engines take every .safetensors of a folder without an index, the record too. */
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", out_folder);
    index = read_text(path);
    CHECK(strstr(index, "\"model.safetensors\"") != NULL);
    CHECK(strstr(index, "calibration") == NULL && strstr(index, "amax_history") == NULL);
    free(index);
    CHECK(strcmp(fp8_checkpoint_metadata(out, "format"), "pt") == 0);
    CHECK(strcmp(fp8_checkpoint_metadata(out, "fp8calib.attention"), "dpa") == 0);
    CHECK(strcmp(fp8_checkpoint_metadata(out, "fp8calib.format"), "hybrid") == 0);
    CHECK(strcmp(fp8_checkpoint_metadata(out, "fp8calib.version"), FP8_VERSION) == 0);
    snprintf(path, sizeof path, "%s/calibration.safetensors", out_folder);
    CHECK_STATUS(fp8_record_load(&saved, path), FP8_OK);
    CHECK(saved && saved->steps == r->steps && strcmp(saved->recipe, r->recipe) == 0);
    fp8_record_destroy(saved);
}

/* Perplexity of the sample model and of `out`, on text that was not calibrated on. */
static void check_quality(const sample *s, const char *out, double most) {
    fp8_tokenizer *t = NULL;
    fp8_file text = {0};
    fp8_ids ids = {0};
    fp8_eval_result result[2];
    sample fp8 = sample_open(out, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_model *const models[] = {s->m, fp8.m};

    check_case = out;
    CHECK_STATUS(fp8_file_map(&text, sample_path("examples/evaluation.txt")), FP8_OK);
    CHECK_STATUS(fp8_tokenizer_open(&t, sample_path("examples/sample-model/tokenizer.json")),
                 FP8_OK);
    CHECK_STATUS(fp8_tokenizer_encode(t, &ids, (const char *)text.data, text.bytes,
                                      FP8_SPECIAL_ADD), FP8_OK);
    CHECK_STATUS(fp8_evaluate(result, models, 2, ids.data, ids.count, SEQ, 0, NULL), FP8_OK);
    CHECK(fabs(result[1].perplexity / result[0].perplexity - 1) < most);
    CHECK(result[1].kl > 0 && result[1].kl < 0.05 && result[1].top1 > 0.85);
    fprintf(stderr, "BF16 %.4f, FP8 %.4f, KL %.4f, top-1 %.3f\n", result[0].perplexity,
            result[1].perplexity, result[1].kl, result[1].top1);
    fp8_ids_free(&ids);
    fp8_tokenizer_close(t);
    fp8_file_unmap(&text);
    sample_close(&fp8);
}

static void test_static(const sample *s, const fp8_record *r) {
    const char *out = sample_file("static"), *again = sample_file("static-again");
    const int64_t layers = fp8_model_get_config(s->m)->num_layers;
    fp8_checkpoint *written = NULL;
    fp8_device *one = NULL;

    check_case = "static";
    CHECK_STATUS(export(out, s->c, s->d, r, &static_options), FP8_OK);
    written = reopen(out);
    for (int64_t i = 0; i < layers; i++) check_layer(s->c, written, r, i);
    check_rest(s->c, written, layers);
    check_files(s->c, out, written, r);
    fp8_checkpoint_close(written);

    check_case = "the same bytes again, with one thread";
    CHECK_STATUS(fp8_device_create(&one, "cpu", 1), FP8_OK);
    CHECK_STATUS(export(again, s->c, one, r, &static_options), FP8_OK);
    CHECK(sample_same_file(sample_file("static/model.safetensors"),
                           sample_file("static-again/model.safetensors")));
    CHECK(sample_same_file(sample_file("static/config.json"),
                           sample_file("static-again/config.json")));
    fp8_device_destroy(one);
    check_quality(s, out, 0.05);
}

static void test_shards(const sample *s, const fp8_record *r) {
    const char *out = sample_file("shards");
    fp8_export_options options = static_options;
    fp8_checkpoint *written = NULL;

    check_case = "shards";
    options.max_shard_bytes = 300000;
    CHECK_STATUS(export(out, s->c, s->d, r, &options), FP8_OK);
    written = reopen(out);
    CHECK(fp8_checkpoint_num_shards(written) > 2);
    for (int64_t i = 0; i < 4; i++) check_layer(s->c, written, r, i);
    for (int32_t k = 0; k < fp8_checkpoint_num_shards(written); k++) {
        const fp8_safetensors *shard = fp8_checkpoint_shard(written, k);
        for (int64_t i = 0; i < fp8_safetensors_count(shard); i++) {
            const fp8_st_entry *e = fp8_safetensors_at(shard, i);
            char name[300];
            if (e->tensor.dtype != FP8_DTYPE_E4M3) continue;
            snprintf(name, sizeof name, "%s_scale", e->name);
            CHECK(fp8_safetensors_find(shard, name) != NULL);
        }
    }
    fp8_checkpoint_close(written);
}

/* ---- dynamic scales, lone files ------------------------------------------------------------ */

/* Descales of `num` channels against the source's row (or column) amax, and the codes. */
static void check_dynamic(const fp8_checkpoint *source, const fp8_checkpoint *out,
                          const char *module) {
    const fp8_st_entry *w = find(source, module, ".weight");
    const fp8_st_entry *d = find(out, module, ".weight_scale");
    check_case = module;
    CHECK(w && d && d->tensor.dtype == FP8_DTYPE_F32 && d->tensor.ndim == 2);
    if (!w || !d) return;
    const int64_t rows = w->tensor.shape[0], cols = w->tensor.shape[1];
    CHECK(d->tensor.shape[0] == rows && d->tensor.shape[1] == 1);
    for (int64_t row = 0; row < rows; row++) {
        float descale, amax = 0;
        memcpy(&descale, (const char *)d->tensor.data + 4 * row, 4);
        for (int64_t c = 0; c < cols; c++) {
            const float a = fabsf((float)source_value(w, row * cols + c));
            if (isfinite(a)) amax = fmaxf(amax, a);
        }
        CHECK(descale == (amax > 0 ? amax / 448.0f : 1.0f));
    }
    check_codes(find(out, module, ".weight"), w, d->tensor.data, rows);
}

static void test_dynamic(const sample *s) {
    const char *out = sample_file("dynamic");
    fp8_checkpoint *written = NULL;

    check_case = "dynamic";
    CHECK_STATUS(export(out, s->c, s->d, NULL, &dynamic_options), FP8_OK);
    written = reopen(out);
    check_dynamic(s->c, written, "model.layers.0.self_attn.k_proj");
    check_dynamic(s->c, written, "model.layers.3.mlp.down_proj");
    check_case = "no static scales";
    CHECK(fp8_checkpoint_count(written) == fp8_checkpoint_count(s->c) + 4 * 7);
    CHECK(!fp8_path_exists(sample_file("dynamic/calibration.safetensors")));
    fp8_checkpoint_close(written);
    check_quality(s, out, 0.05);
}

static fp8_scheme scheme_of(const char *config_json) {
    char *text = read_text(config_json);
    fp8_quant_config quant;
    CHECK_STATUS(fp8_quant_config_parse(&quant, config_json, text, strlen(text)), FP8_OK);
    const fp8_scheme scheme = quant.scheme;
    fp8_quant_config_free(&quant);
    free(text);
    return scheme;
}

/* The sample's weights without its config.json: groups known by name give the same bytes. */
static void check_lone_sample(fp8_device *d, const fp8_checkpoint *want) {
    const char *folder = sample_file("bare");
    fp8_checkpoint *source = NULL, *written = NULL;
    char *value, config[8192];

    sample_copy(folder, NULL);
    CHECK(unlink(sample_file("bare/config.json")) == 0);
    source = reopen(folder);
    CHECK_STATUS(export(sample_file("bare-out"), source, d, NULL, &tensor_dynamic_options), FP8_OK);
    written = reopen(sample_file("bare-out"));
    CHECK(fp8_checkpoint_count(written) == fp8_checkpoint_count(want));
    for (int64_t i = 0; i < fp8_checkpoint_count(want); i++) {
        const fp8_st_entry *a = fp8_checkpoint_at(want, i);
        const fp8_st_entry *b = fp8_checkpoint_find(written, a->name);
        check_case = a->name;
        CHECK(b && b->tensor.dtype == a->tensor.dtype && b->bytes == a->bytes);
        CHECK(b && memcmp(a->tensor.data, b->tensor.data, a->bytes) == 0);
    }
    check_case = "lone sample";
    value = read_text(sample_file("bare-out/quantization_config.json"));
    snprintf(config, sizeof config, "{\"quantization_config\": %s}", value);
    CHECK_STATUS(fp8_file_write(sample_file("bare-out.json"), config, strlen(config)), FP8_OK);
    CHECK(scheme_of(sample_file("bare-out.json")) == FP8_SCHEME_TENSOR_DYNAMIC);
    free(value);
    fp8_checkpoint_close(written);
    fp8_checkpoint_close(source);
}

static void test_tensor_dynamic(const sample *s) {
    fp8_checkpoint *written = NULL;

    check_case = "tensor-dynamic";
    CHECK_STATUS(export(sample_file("tensor-dynamic"), s->c, s->d, NULL, &tensor_dynamic_options),
                 FP8_OK);
    written = reopen(sample_file("tensor-dynamic"));
    for (int64_t i = 0; i < 4; i++) check_layer(s->c, written, NULL, i);
    check_case = "tensor-dynamic: files";
    CHECK(fp8_checkpoint_count(written) == fp8_checkpoint_count(s->c) + 4 * 7);
    CHECK(scheme_of(sample_file("tensor-dynamic/config.json")) == FP8_SCHEME_TENSOR_DYNAMIC);
    CHECK(!fp8_path_exists(sample_file("tensor-dynamic/calibration.safetensors")));
    check_lone_sample(s->d, written);
    fp8_checkpoint_close(written);
    check_quality(s, sample_file("tensor-dynamic"), 0.05);
}

/* A file without config.json: [5, 7] and [3, 33] weights of each dtype, with hostile values. */
static const char *write_lone(int poisoned) {
    static const fp8_st_spec specs[] = {
        {"block.a.weight", FP8_DTYPE_F32, 2, {5, 7}},
        {"block.b.weight", FP8_DTYPE_F16, 2, {3, 33}},
        {"block.c.weight", FP8_DTYPE_BF16, 2, {1, 1}},
        {"block.norm.weight", FP8_DTYPE_F32, 1, {7}},
        {"block.bias", FP8_DTYPE_F32, 2, {2, 2}},
        {"model.embed_tokens.weight", FP8_DTYPE_F32, 2, {4, 4}},
        {"lm_head.weight", FP8_DTYPE_F32, 2, {4, 4}},
        {"ids.weight", FP8_DTYPE_I32, 2, {2, 2}},
        {"empty.weight", FP8_DTYPE_F32, 2, {0, 4}}};
    enum { COUNT = sizeof specs / sizeof *specs };
    const char *path = sample_file(poisoned ? "nan/lone.safetensors" : "lone/lone.safetensors");
    fp8_st_writer *w = NULL;
    uint64_t random = 7;

    mkdir(sample_file(poisoned ? "nan" : "lone"), 0700);
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, COUNT, NULL, 0), FP8_OK);
    for (int64_t i = 0; i < COUNT; i++) {
        float x[64] = {0};
        uint16_t half[128];
        int64_t n = 0;
        CHECK_STATUS(fp8_shape_count(&n, specs[i].shape, specs[i].ndim), FP8_OK);
        for (int64_t k = 0; k < n && k < 64; k++) x[k] = check_normal(&random);
        if (i == 0) { /* a row of zeros, -0, subnormals, a tie */
            memset(x + 7, 0, 7 * sizeof *x);
            x[14] = -0.0f;
            x[15] = 1e-42f;
            x[21] = 448.0f;
            x[22] = 17.0f;
        }
        if (i == 0 && poisoned) x[3] = NAN;
        for (int64_t k = 0; k < n; k++)
            half[k] = specs[i].dtype == FP8_DTYPE_F16 ? fp8_f32_to_f16(x[k % 64])
                                                      : fp8_f32_to_bf16(x[k % 64]);
        const size_t bytes = (size_t)n * fp8_dtype_size(specs[i].dtype);
        CHECK_STATUS(fp8_st_writer_put(w, i, fp8_dtype_size(specs[i].dtype) == 4 ? (void *)x
                                                                                : (void *)half,
                                       bytes), FP8_OK);
    }
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    return path;
}

static int is_codes(const fp8_checkpoint *c, const char *name) {
    const fp8_st_entry *e = fp8_checkpoint_find(c, name);
    return e && e->tensor.dtype == FP8_DTYPE_E4M3;
}

static void test_lone_file(fp8_device *d) {
    static const char *const a_and_b[] = {"block.[ab].*"}, *const b[] = {"*.b.weight"};
    fp8_export_options options = dynamic_options;
    fp8_checkpoint *source = reopen(write_lone(0)), *written = NULL;

    check_case = "lone file";
    CHECK_STATUS(export(sample_file("lone-out"), source, d, NULL, &options), FP8_OK);
    written = reopen(sample_file("lone-out"));
    check_dynamic(source, written, "block.a");
    check_dynamic(source, written, "block.b");
    check_dynamic(source, written, "block.c");
    check_case = "lone file: what stays";
    CHECK(fp8_checkpoint_count(written) == fp8_checkpoint_count(source) + 3);
    CHECK(!is_codes(written, "model.embed_tokens.weight") && !is_codes(written, "lm_head.weight"));
    CHECK(fp8_path_exists(sample_file("lone-out/quantization_config.json")));
    CHECK(!fp8_path_exists(sample_file("lone-out/config.json")));
    fp8_checkpoint_close(written);

    check_case = "lone file: patterns";
    options.include = a_and_b;
    options.num_include = 1;
    options.exclude = b;
    options.num_exclude = 1;
    CHECK_STATUS(export(sample_file("lone-some"), source, d, NULL, &options), FP8_OK);
    written = reopen(sample_file("lone-some"));
    CHECK(is_codes(written, "block.a.weight"));
    CHECK(!is_codes(written, "block.b.weight") && !is_codes(written, "block.c.weight"));
    fp8_checkpoint_close(written);
    options.include = b;
    CHECK_STATUS(export(sample_file("lone-none"), source, d, NULL, &options), FP8_EDATA);
    CHECK_STATUS(export(sample_file("lone-none"), source, d, NULL, &static_options), FP8_EINVAL);
    fp8_checkpoint_close(source);
}

static void test_nonfinite(fp8_device *d) {
    fp8_export_options options = dynamic_options;
    fp8_checkpoint *source = reopen(write_lone(1)), *written = NULL;

    check_case = "NaN in a weight";
    CHECK_STATUS(export(sample_file("nan-out"), source, d, NULL, &options), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "block.a.weight") != NULL);
    CHECK(!fp8_path_exists(sample_file("nan-out")));
    check_case = "NaN in a weight, allowed";
    options.allow_nonfinite = 1;
    CHECK_STATUS(export(sample_file("nan-out"), source, d, NULL, &options), FP8_OK);
    written = reopen(sample_file("nan-out"));
    const uint8_t *codes = fp8_checkpoint_find(written, "block.a.weight")->tensor.data;
    CHECK(isnan(decode(codes[3])) && isfinite(decode(codes[2])));
    fp8_checkpoint_close(written);
    fp8_checkpoint_close(source);
}

/* ---- what is refused ----------------------------------------------------------------------- */

static void poison_weight(const char *name, void *data, const fp8_st_entry *e) {
    (void)e;
    if (strcmp(name, "model.layers.2.mlp.up_proj.weight") == 0) ((uint16_t *)data)[5] = 0xff80;
}

static int stop(void *ctx, const char *what, int64_t done, int64_t total) {
    (void)ctx;
    return strcmp(what, "writing") == 0 && done > total / 2;
}

static void test_options(const sample *s, const fp8_record *r) {
    fp8_export_options kv_only = dynamic_options, none = static_options, attention = kv_only;
    fp8_export_options patterns = static_options, stopped = static_options;
    static const char *const all[] = {"*"};
    kv_only.kv_fp8 = 1;
    attention.attention = FP8_ATTENTION_MHA;
    none.scheme = FP8_SCHEME_NONE;
    none.kv_fp8 = 0;
    none.attention = FP8_ATTENTION_NONE;
    patterns.include = all;
    patterns.num_include = 1;
    stopped.progress.on = stop;
    const struct {
        const char *name, *out;
        const fp8_record *record;
        const fp8_export_options *options;
        fp8_status want;
    } cases[] = {
        {"static without a record", "x", NULL, &static_options, FP8_EINVAL},
        {"FP8 keys without a record", "x", NULL, &kv_only, FP8_EINVAL},
        {"FP8 attention without a record", "x", NULL, &attention, FP8_EINVAL},
        {"scheme none", "x", r, &none, FP8_EINVAL},
        {"patterns for a model", "x", r, &patterns, FP8_EINVAL},
        {"stopped", "x", r, &stopped, FP8_ECANCELED},
        {"over an existing output", "static", r, &static_options, FP8_EEXIST},
        {"dynamic with FP8 keys", "kv", r, &kv_only, FP8_OK},
        {"attention implies FP8 keys", "mha", r, &attention, FP8_OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK_STATUS(export(sample_file(cases[i].out), s->c, s->d, cases[i].record,
                            cases[i].options), cases[i].want);
    }
    check_case = "nothing is left behind";
    CHECK(!fp8_path_exists(sample_file("x")));
    check_case = "attention implies FP8 keys";
    fp8_checkpoint *written = reopen(sample_file("mha"));
    CHECK(find(written, "model.layers.0.self_attn", ".k_scale") != NULL);
    CHECK(find(written, "model.layers.0.self_attn", ".q_scale") != NULL);
    fp8_checkpoint_close(written);
    check_quality(s, sample_file("mha"), 0.05);
}

static void test_sources(const sample *s, fp8_record *r) {
    const char *folder = sample_file("infinite");
    fp8_export_options forced = static_options;
    fp8_checkpoint *other = NULL;

    check_case = "already quantized";
    other = reopen(sample_file("static"));
    CHECK_STATUS(export(sample_file("y"), other, s->d, NULL, &dynamic_options), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "already quantized") != NULL);
    fp8_checkpoint_close(other);

    sample_copy(folder, poison_weight);
    other = reopen(folder);
    check_case = "record of another source";
    CHECK_STATUS(export(sample_file("y"), other, s->d, r, &static_options), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "another checkpoint") != NULL);
    check_case = "infinity in a weight";
    CHECK_STATUS(export(sample_file("y"), other, s->d, NULL, &dynamic_options), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "model.layers.2.mlp.up_proj.weight") != NULL);
    check_case = "into its own folder";
    forced.force = 1;
    CHECK_STATUS(export(folder, other, s->d, NULL, &dynamic_options), FP8_EINVAL);
    fp8_checkpoint_close(other);
    r->source_crc32 ^= 1;
    check_case = "record of another source of the same size";
    CHECK_STATUS(export(sample_file("y"), s->c, s->d, r, &static_options), FP8_EDATA);
    r->source_crc32 ^= 1;

    check_case = "unfinished record";
    r->steps--;
    CHECK_STATUS(export(sample_file("y"), s->c, s->d, r, &static_options), FP8_EDATA);
    r->steps++;
    check_case = "record without a point";
    r->points[3][0] = 'X';
    CHECK_STATUS(export(sample_file("y"), s->c, s->d, r, &static_options), FP8_EDATA);
    r->points[3][0] = 'm';
    CHECK(!fp8_path_exists(sample_file("y")));
    check_case = "force";
    CHECK_STATUS(export(sample_file("static"), s->c, s->d, r, &forced), FP8_OK);
}

/* GPT-2 keeps its weights [in, out]: one descale a column. */
static void test_in_out(fp8_device *d) {
    const char *folder = check_data("models/gpt2-3m");
    fp8_checkpoint *source = NULL, *written = NULL;
    fp8_model *model = NULL;
    const char *name = "transformer.h.0.mlp.c_fc";

    check_case = "gpt2";
    if (!folder) return;
    source = reopen(folder);
    CHECK_STATUS(export(sample_file("gpt2"), source, d, NULL, &dynamic_options), FP8_OK);
    written = reopen(sample_file("gpt2"));
    const fp8_st_entry *w = find(source, name, ".weight"), *q = find(written, name, ".weight");
    const fp8_st_entry *descales = find(written, name, ".weight_scale");
    const int64_t rows = w->tensor.shape[0], cols = w->tensor.shape[1];
    CHECK(descales && descales->tensor.shape[0] == 1 && descales->tensor.shape[1] == cols);
    for (int64_t c = 0; c < cols; c++) {
        const float descale = ((const float *)descales->tensor.data)[c];
        double amax = 0, worst = 0;
        for (int64_t r = 0; r < rows; r++) {
            const double x = source_value(w, r * cols + c);
            const double y = decode(((const uint8_t *)q->tensor.data)[r * cols + c]);
            amax = fmax(amax, fabs(x));
            worst = fmax(worst, fabs(x - y * (double)descale) /
                                    fmax(fabs(x) / 16, (double)descale / 1024));
        }
        CHECK(descale == (float)amax / 448.0f);
        CHECK(worst <= 1 + 1e-6);
    }
    CHECK_STATUS(fp8_model_load(&model, d, written, NULL), FP8_OK); /* and the runtime reads it */
    fp8_model_destroy(model);
    fp8_checkpoint_close(written);

    check_case = "gpt2, tensor-dynamic";
    CHECK_STATUS(export(sample_file("gpt2-t"), source, d, NULL, &tensor_dynamic_options), FP8_OK);
    written = reopen(sample_file("gpt2-t"));
    CHECK(scalar(written, name, ".weight_scale") == (float)source_amax(source, name) / 448.0f);
    CHECK_STATUS(fp8_model_load(&model, d, written, NULL), FP8_OK);
    fp8_model_destroy(model);
    fp8_checkpoint_close(written);
    fp8_checkpoint_close(source);
}

int main(void) {
    sample s;
    fp8_record *r = NULL;
    sample_begin();
    s = sample_open(NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    r = calibrate(&s);
    test_static(&s, r);
    test_shards(&s, r);
    test_dynamic(&s);
    test_tensor_dynamic(&s);
    test_lone_file(s.d);
    test_nonfinite(s.d);
    test_options(&s, r);
    test_sources(&s, r);
    test_in_out(s.d);
    fp8_record_destroy(r);
    sample_close(&s);
    sample_done();
    return CHECK_DONE();
}
