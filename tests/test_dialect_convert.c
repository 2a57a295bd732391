/* calib/convert: BF16 into every dialect and read again, one dialect into another and back, hostile
 * scales. Values are compared with the format's definition, not with the code under test. */
#include "core/half.h"
#include "tests/sample_model.h"
#include "tests/tiny_checkpoint.h"

enum { SEQ = 64, SAMPLES = 8, BATCH = 4 };

/* ---- helpers --------------------------------------------------------------------------------- */

static double decode(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double sign = code & 0x80 ? -1 : 1;
    if ((code & 0x7f) == 0x7f) return NAN;
    if (exponent == 0) return sign * ldexp(mantissa, -9);
    return sign * ldexp(8 + mantissa, exponent - 10);
}

static fp8_checkpoint *reopen(const char *folder) {
    fp8_checkpoint *c = NULL;
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (!c) exit(1);
    return c;
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

static fp8_status convert(fp8_convert_result *r, fp8_device *d, const char *from, const char *to,
                          fp8_convert_options o) {
    fp8_checkpoint *c = reopen(sample_file(from));
    const fp8_status st = fp8_convert(r, sample_file(to), c, d, &o);
    fp8_checkpoint_close(c);
    return st;
}

static int same_file(const char *a, const char *b, const char *name) {
    char x[300], y[300];
    snprintf(x, sizeof x, "%s/%s", a, name);
    snprintf(y, sizeof y, "%s/%s", b, name);
    return sample_same_file(sample_file(x), sample_file(y));
}

/* ---- every dialect from BF16 ----------------------------------------------------------------- */

static const struct spelled {
    const char *name;
    fp8_dialect dialect;
    fp8_scheme scheme;
    int kv, ue8m0, dynamic; /* dynamic: no record */
    const char *scale;      /* suffix of the weight's; NULL: weights stay */
    int ndim;
    const char *k_scale;
} spelled[] = {
    {"ct-static", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_TENSOR, 1, 0, 0, "_scale", 1,
     "self_attn.k_scale"},
    {"ct-dynamic", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_DYNAMIC, 0, 0, 1, "_scale", 2, NULL},
    {"ct-tensor-dynamic", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_TENSOR_DYNAMIC, 0, 0, 1,
     "_scale", 1, NULL},
    {"ct-block", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_BLOCK, 0, 0, 1, "_scale", 2, NULL},
    {"ct-kv", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_NONE, 1, 0, 0, NULL, 0,
     "self_attn.k_scale"},
    {"fp8-static", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 1, 0, 0, "_scale", 0, "self_attn.k_scale"},
    {"fp8-dynamic", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR_DYNAMIC, 0, 0, 1, "_scale", 0, NULL},
    {"deepseek", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 0, 1, "_scale_inv", 2, NULL},
    {"deepseek-ue8m0", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 1, 1, "_scale_inv", 2, NULL},
    {"modelopt", FP8_DIALECT_MODELOPT, FP8_SCHEME_TENSOR, 1, 0, 0, "_scale", 0,
     "self_attn.k_proj.k_scale"},
    {"modelopt-channel", FP8_DIALECT_MODELOPT, FP8_SCHEME_DYNAMIC, 0, 0, 1, "_scale", 1, NULL},
};
enum { NUM_SPELLED = sizeof spelled / sizeof *spelled };

/* Shape and values of one weight against the source: |x - y| is at most half a step of the code. */
static void check_weight(const struct spelled *c, const fp8_st_entry *source,
                         const fp8_st_entry *codes, const fp8_st_entry *scale) {
    const int64_t rows = source->tensor.shape[0], cols = source->tensor.shape[1];
    const int64_t wide = (cols + 127) / 128, n = rows * cols;
    const uint16_t *x = source->tensor.data;
    const uint8_t *q = codes->tensor.data;
    int bad = 0;

    CHECK(codes->tensor.dtype == FP8_DTYPE_E4M3 && scale->tensor.dtype == FP8_DTYPE_F32);
    CHECK(scale->tensor.ndim == c->ndim);
    if (c->scheme == FP8_SCHEME_BLOCK)
        CHECK(scale->tensor.shape[0] == (rows + 127) / 128 && scale->tensor.shape[1] == wide);
    else CHECK(fp8_tensor_count(&scale->tensor) == (c->scheme == FP8_SCHEME_DYNAMIC ? rows : 1));
    for (int64_t i = 0; i < n && bad < 10; i++) {
        const int64_t at = c->scheme == FP8_SCHEME_BLOCK ? i / cols / 128 * wide + i % cols / 128
                           : c->scheme == FP8_SCHEME_DYNAMIC ? i / cols : 0;
        const double s = (double)((const float *)scale->tensor.data)[at];
        const double value = (double)fp8_bf16_to_f32(x[i]);
        int exponent;
        bad += !(fabs(value - decode(q[i]) * s) <= fmax(fabs(value) / 16, s / 1024) * (1 + 1e-6));
        if (c->ue8m0) bad += frexp(s, &exponent) != 0.5;
    }
    CHECK(bad == 0);
}

static void check_written(const struct spelled *c, const sample *s, const char *folder) {
    fp8_checkpoint *out = reopen(folder);
    fp8_quant_config q;
    char *config = NULL, *side = NULL;
    int64_t coded = 0;
    char name[300];

    CHECK_STATUS(fp8_checkpoint_sibling(&config, out, "config.json"), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_sibling(&side, out, "hf_quant_config.json"), FP8_OK);
    CHECK_STATUS(fp8_quant_config_load(&q, config), FP8_OK);
    CHECK(q.dialect == c->dialect && q.scheme == c->scheme && q.kv_fp8 == c->kv);
    CHECK(q.ue8m0 == c->ue8m0 && fp8_quant_config_ignores(&q, "lm_head"));
    CHECK((side != NULL) == (c->dialect == FP8_DIALECT_MODELOPT));
    for (int64_t i = 0; i < fp8_checkpoint_count(s->c); i++) {
        const fp8_st_entry *a = fp8_checkpoint_at(s->c, i), *b, *scale;
        b = fp8_checkpoint_find(out, a->name);
        snprintf(name, sizeof name, "%s%s", a->name, c->scale ? c->scale : "_scale");
        scale = fp8_checkpoint_find(out, name);
        CHECK(b && (b->tensor.dtype == FP8_DTYPE_E4M3) == (scale != NULL));
        if (scale) check_weight(c, a, b, scale);
        else CHECK(b && b->bytes == a->bytes &&
                   memcmp(a->tensor.data, b->tensor.data, a->bytes) == 0);
        coded += scale != NULL;
    }
    CHECK(coded == (c->scale ? 28 : 0));
    if (c->scheme == FP8_SCHEME_NONE) CHECK(q.num_ignore == 29);
    snprintf(name, sizeof name, "model.layers.2.%s", c->k_scale ? c->k_scale : "self_attn.k_scale");
    CHECK((fp8_checkpoint_find(out, name) != NULL) == (c->k_scale != NULL));
    fp8_quant_config_free(&q);
    free(config);
    free(side);
    fp8_checkpoint_close(out);
}

/* The runtime against the values that codes and scales stand for, as BF16. */
static void check_runs(const sample *s, const char *folder) {
    sample fp8 = sample_open(folder, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, 2);
    fp8_eval_result result[2];
    fp8_model *const models[] = {s->m, fp8.m};

    CHECK_STATUS(fp8_evaluate(result, models, 2, data.ids, data.num_ids, SEQ, 0, NULL), FP8_OK);
    CHECK(result[1].kl > 0 && result[1].kl < 0.06);
    fp8_samples_free(&data);
    sample_close(&fp8);
}

static void test_from_bf16(const sample *s, const fp8_record *r) {
    for (int i = 0; i < NUM_SPELLED; i++) {
        const struct spelled *c = &spelled[i];
        const fp8_export_options options = {.dialect = c->dialect, .scheme = c->scheme,
                                            .kv_fp8 = c->kv, .ue8m0 = c->ue8m0,
                                            .recipe = FP8_RECIPE_DEFAULT};
        fp8_export_result result;
        check_case = c->name;
        CHECK_STATUS(fp8_export(&result, sample_file(c->name), s->c, s->d, c->dynamic ? NULL : r,
                                &options), FP8_OK);
        check_written(c, s, sample_file(c->name));
        check_runs(s, sample_file(c->name));
    }
}

/* ---- there and back -------------------------------------------------------------------------- */

static void test_there_and_back(fp8_device *d) {
    static const struct {
        const char *from;
        fp8_dialect to;
        fp8_scheme scheme;
        int exact; /* codes are kept on the way */
        const char *same; /* what it must equal, written from BF16; NULL: not compared */
        int no_way_back;  /* the scale of a block cannot be said by channel ... */
    } cases[] = {
        {"ct-static", FP8_DIALECT_FP8, FP8_NUM_SCHEMES, 1, "fp8-static", 0},
        {"ct-static", FP8_DIALECT_MODELOPT, FP8_NUM_SCHEMES, 1, "modelopt", 0},
        {"fp8-static", FP8_DIALECT_MODELOPT, FP8_NUM_SCHEMES, 1, "modelopt", 0},
        {"modelopt", FP8_DIALECT_COMPRESSED_TENSORS, FP8_NUM_SCHEMES, 1, "ct-static", 0},
        {"ct-dynamic", FP8_DIALECT_MODELOPT, FP8_NUM_SCHEMES, 1, "modelopt-channel", 0},
        {"modelopt-channel", FP8_DIALECT_COMPRESSED_TENSORS, FP8_NUM_SCHEMES, 1, "ct-dynamic", 0},
        {"ct-block", FP8_DIALECT_DEEPSEEK, FP8_NUM_SCHEMES, 1, "deepseek", 0},
        {"deepseek", FP8_DIALECT_COMPRESSED_TENSORS, FP8_NUM_SCHEMES, 1, "ct-block", 0},
        {"fp8-dynamic", FP8_DIALECT_COMPRESSED_TENSORS, FP8_NUM_SCHEMES, 1, "ct-tensor-dynamic", 0},
        {"fp8-dynamic", FP8_DIALECT_DEEPSEEK, FP8_NUM_SCHEMES, 1, NULL, 0},
        {"fp8-dynamic", FP8_DIALECT_MODELOPT, FP8_NUM_SCHEMES, 1, NULL, 0},
        {"deepseek", FP8_DIALECT_MODELOPT, FP8_NUM_SCHEMES, 0, NULL, 1},
        {"ct-dynamic", FP8_DIALECT_FP8, FP8_NUM_SCHEMES, 0, NULL, 1},
        {"ct-dynamic", FP8_DIALECT_DEEPSEEK, FP8_NUM_SCHEMES, 0, NULL, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_convert_result r;
        fp8_quant_config q;
        char there[32], back[32], path[200];

        check_case = cases[i].from;
        snprintf(there, sizeof there, "there-%d", (int)i);
        snprintf(back, sizeof back, "back-%d", (int)i);
        CHECK_STATUS(convert(&r, d, cases[i].from, there, (fp8_convert_options){
            .dialect = cases[i].to, .scheme = cases[i].scheme}), FP8_OK);
        CHECK(r.kept + r.requantized == 28 && (r.requantized == 0) == cases[i].exact);
        if (cases[i].same) CHECK(same_file(there, cases[i].same, "model.safetensors"));
        if (cases[i].same) CHECK(same_file(there, cases[i].same, "config.json"));
        if (cases[i].no_way_back) continue;
        snprintf(path, sizeof path, "%s/config.json", cases[i].from);
        CHECK_STATUS(fp8_quant_config_load(&q, sample_file(path)), FP8_OK);
        CHECK_STATUS(convert(&r, d, there, back, (fp8_convert_options){
            .dialect = q.dialect, .scheme = q.scheme}), FP8_OK);
        CHECK(r.kept == 28 && r.requantized == 0);
        CHECK(same_file(back, cases[i].from, "model.safetensors"));
        CHECK(same_file(back, cases[i].from, "config.json"));
        fp8_quant_config_free(&q);
    }
}

/* Codes made anew stand for the values of the old ones to half a step, one scale for a group. */
static void test_requantized(fp8_device *d) {
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    float scales[3] = {0, 0, 0};
    fp8_convert_result r;
    fp8_checkpoint *a, *b;

    check_case = "requantized";
    CHECK_STATUS(convert(&r, d, "deepseek", "direct", (fp8_convert_options){
        .dialect = FP8_DIALECT_FP8, .scheme = FP8_SCHEME_TENSOR_DYNAMIC}), FP8_OK);
    CHECK(r.requantized >= 12); /* those of more than one square: gate, up, down, and more */
    a = reopen(sample_file("deepseek"));
    b = reopen(sample_file("direct"));
    for (int k = 0; k < 3; k++) {
        char name[200];
        int64_t cols, bad = 0;
        const fp8_st_entry *from, *squares, *to, *one;
        snprintf(name, sizeof name, "model.layers.1.mlp.%s.weight", names[k]);
        from = fp8_checkpoint_find(a, name);
        to = fp8_checkpoint_find(b, name);
        strcat(name, "_scale");
        one = fp8_checkpoint_find(b, name);
        strcat(name, "_inv");
        squares = fp8_checkpoint_find(a, name);
        CHECK(from && to && one && squares);
        cols = from->tensor.shape[1];
        memcpy(&scales[k], one->tensor.data, sizeof scales[k]);
        for (int64_t i = 0; i < fp8_tensor_count(&from->tensor); i++) {
            const int64_t at = i / cols / 128 * ((cols + 127) / 128) + i % cols / 128;
            const double x = decode(((uint8_t *)from->tensor.data)[i]) *
                             (double)((float *)squares->tensor.data)[at];
            const double y = decode(((uint8_t *)to->tensor.data)[i]) * (double)scales[k];
            bad += !(fabs(x - y) <= fmax(fabs(x) / 16, (double)scales[k] / 1024) * (1 + 1e-6));
        }
        CHECK(bad == 0);
    }
    CHECK(scales[0] == scales[1] && scales[0] != scales[2]);
    fp8_checkpoint_close(a);
    fp8_checkpoint_close(b);
}

/* ---- BF16 again ------------------------------------------------------------------------------ */

static void test_to_bf16(const sample *s) {
    static const char *const from[] = {"ct-static", "deepseek", "modelopt-channel", "ct-kv"};
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        char to[40];
        fp8_convert_result r;
        fp8_checkpoint *a, *b;

        check_case = from[i];
        snprintf(to, sizeof to, "bf16-%s", from[i]);
        CHECK_STATUS(convert(&r, s->d, from[i], to, (fp8_convert_options){.to_bf16 = 1}), FP8_OK);
        a = reopen(sample_file(from[i]));
        b = reopen(sample_file(to));
        CHECK(fp8_checkpoint_count(b) == fp8_checkpoint_count(s->c));
        for (int64_t k = 0; k < fp8_checkpoint_count(b); k++)
            CHECK(fp8_checkpoint_at(b, k)->tensor.dtype == FP8_DTYPE_BF16);
        const char *name = "model.layers.1.mlp.up_proj.weight";
        const fp8_st_entry *q = fp8_checkpoint_find(a, name), *x = fp8_checkpoint_find(b, name);
        const fp8_st_entry *one = fp8_checkpoint_find(a, i == 1
            ? "model.layers.1.mlp.up_proj.weight_scale_inv" : "model.layers.1.mlp.up_proj."
                                                              "weight_scale");
        if (one) /* the first element is by the first scale in every scheme */
            CHECK(((uint16_t *)x->tensor.data)[0] ==
                  fp8_f32_to_bf16((float)decode(((uint8_t *)q->tensor.data)[0]) *
                                  ((float *)one->tensor.data)[0]));
        CHECK(same_file(to, "source", "config.json"));
        fp8_checkpoint_close(a);
        fp8_checkpoint_close(b);
    }
}

/* ---- KV scales ------------------------------------------------------------------------------- */

static void test_kv(fp8_device *d) {
    fp8_convert_result r;
    fp8_checkpoint *c;
    const fp8_st_entry *e;
    fp8_model *m = NULL;
    const fp8_convert_options ct = {.scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_HEAD};

    check_case = "KV scales by head";
    CHECK_STATUS(convert(&r, d, "ct-static", "by-head", ct), FP8_OK);
    c = reopen(sample_file("by-head"));
    e = fp8_checkpoint_find(c, "model.layers.0.self_attn.k_scale");
    CHECK(e && e->tensor.ndim == 3 && e->tensor.shape[0] == 1 && e->tensor.shape[2] == 1);
    CHECK_STATUS(fp8_model_load(&m, d, c, NULL), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "compressed-tensors") && strstr(fp8_last_message(), "head"));
    fp8_checkpoint_close(c);
    CHECK_STATUS(convert(&r, d, "by-head", "by-layer", (fp8_convert_options){
        .scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_TENSOR}), FP8_OK);
    CHECK(same_file("by-layer", "ct-static", "model.safetensors"));
    CHECK(same_file("by-layer", "ct-static", "config.json"));
    CHECK_STATUS(convert(&r, d, "by-head", "head-modelopt", (fp8_convert_options){
        .dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_NUM_SCHEMES}), FP8_OK);
    CHECK(same_file("head-modelopt", "modelopt", "model.safetensors"));

    check_case = "without KV scales";
    CHECK_STATUS(convert(&r, d, "modelopt", "no-kv", (fp8_convert_options){
        .dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_NONE}),
                 FP8_OK);
    CHECK(r.kv_left_out == 8);
    CHECK_STATUS(convert(&r, d, "modelopt", "kv-deepseek", (fp8_convert_options){
        .dialect = FP8_DIALECT_DEEPSEEK, .scheme = FP8_NUM_SCHEMES}), FP8_OK);
    CHECK(r.kv_left_out == 8 && r.inputs_left_out == 28 && r.kept == 28);
}

/* With two KV heads; the larger scale serves both. */
static void test_heads(fp8_device *d) {
    static tiny t;
    const char *folder;
    fp8_convert_result r;
    fp8_checkpoint *c;
    const fp8_st_entry *e;
    char source[256];

    check_case = "two heads";
    tiny_make(&t, TINY_STATIC, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    snprintf(source, sizeof source, "%s", folder);
    c = reopen(source);
    CHECK_STATUS(fp8_convert(&r, sample_file("heads"), c, d, &(fp8_convert_options){
        .scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_HEAD}), FP8_OK);
    fp8_checkpoint_close(c);
    c = reopen(sample_file("heads"));
    e = fp8_checkpoint_find(c, "model.layers.1.self_attn.v_scale");
    CHECK(e && e->tensor.ndim == 3 && e->tensor.shape[0] == 2);
    if (e) CHECK(((float *)e->tensor.data)[0] == 0.02f && ((float *)e->tensor.data)[1] == 0.02f);
    fp8_checkpoint_close(c);
    CHECK_STATUS(convert(&r, d, "heads", "layers", (fp8_convert_options){
        .dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_NUM_SCHEMES}), FP8_OK);
    CHECK(r.kv_merged == 4 && r.q_left_out == 2 && r.kept == 14);
    c = reopen(sample_file("layers"));
    CHECK(strcmp(fp8_checkpoint_metadata(c, "format"), "pt") == 0);
    CHECK(fp8_checkpoint_find(c, "model.layers.1.self_attn.v_proj.v_scale") != NULL);
    fp8_checkpoint_close(c);
    tiny_remove(source);
    tiny_free(&t);
}

/* ---- hostile --------------------------------------------------------------------------------- */

static const struct hostile {
    const char *from, *tensor, *says;
    enum { DROP, RESHAPE, ZERO, NOT_A_NUMBER, NEGATIVE } how;
    fp8_status want;
} hostile[] = {
    {"ct-static", "layers.1.mlp.up_proj.weight_scale", "no tensor", DROP, FP8_ENOTFOUND},
    {"ct-static", "layers.1.mlp.up_proj.input_scale", "no tensor", DROP, FP8_ENOTFOUND},
    {"ct-static", "layers.1.mlp.up_proj.weight_scale", "expected shape", RESHAPE, FP8_EFORMAT},
    {"ct-static", "layers.1.mlp.up_proj.weight_scale", "is 0", ZERO, FP8_EDATA},
    {"fp8-static", "layers.1.mlp.up_proj.weight_scale", "nan", NOT_A_NUMBER, FP8_EDATA},
    {"fp8-static", "layers.1.mlp.up_proj.input_scale", "is -", NEGATIVE, FP8_EDATA},
    {"fp8-dynamic", "layers.1.mlp.up_proj.weight_scale", "expected shape", RESHAPE, FP8_EFORMAT},
    {"deepseek", "layers.1.mlp.up_proj.weight_scale_inv", "no tensor", DROP, FP8_ENOTFOUND},
    {"deepseek", "layers.1.mlp.up_proj.weight_scale_inv", "expected shape", RESHAPE, FP8_EFORMAT},
    {"deepseek", "layers.1.mlp.up_proj.weight_scale_inv", "is 0", ZERO, FP8_EDATA},
    {"modelopt-channel", "layers.1.mlp.up_proj.weight_scale", "expected shape", RESHAPE,
     FP8_EFORMAT},
    {"modelopt", "layers.1.self_attn.k_proj.k_scale", "is -", NEGATIVE, FP8_EDATA},
    {"ct-kv", "layers.1.self_attn.v_scale", "nan", NOT_A_NUMBER, FP8_EDATA},
};

/* The checkpoint with one scale spoiled. */
static void spoil(const struct hostile *h, const char *to) {
    fp8_checkpoint *c = reopen(sample_file(h->from));
    const int64_t count = fp8_checkpoint_count(c);
    fp8_st_spec *specs = calloc((size_t)count, sizeof *specs);
    float *values = calloc(4096, sizeof *values);
    fp8_st_writer *w = NULL;
    int64_t kept = 0, hit = -1;
    char path[4200], command[8600];

    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(c, i);
        const int ours = strstr(e->name, h->tensor) != NULL;
        fp8_st_spec *s = &specs[kept];
        if (ours && h->how == DROP) continue;
        *s = (fp8_st_spec){.name = e->name, .dtype = e->tensor.dtype, .ndim = e->tensor.ndim};
        memcpy(s->shape, e->tensor.shape, sizeof s->shape);
        if (ours) hit = kept;
        if (ours) memcpy(values, e->tensor.data, e->bytes);
        if (ours && h->how == RESHAPE) s->ndim = 2, s->shape[0] = 3, s->shape[1] = 5;
        kept++;
    }
    values[0] = h->how == ZERO ? 0 : h->how == NOT_A_NUMBER ? NAN
                : h->how == NEGATIVE ? -1.0f : values[0];
    snprintf(command, sizeof command, "mkdir '%s' && cp '%s'/config.json '%s'",
             sample_file(to), sample_file(h->from), sample_file(to));
    CHECK(system(command) == 0);
    snprintf(path, sizeof path, "%s/model.safetensors", sample_file(to));
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, kept, NULL, 0), FP8_OK);
    for (int64_t i = 0; i < kept; i++) {
        const fp8_st_entry *e = fp8_checkpoint_find(c, specs[i].name);
        const size_t bytes = i == hit && h->how == RESHAPE ? 60 : e->bytes;
        CHECK_STATUS(fp8_st_writer_put(w, i, i == hit ? (void *)values : e->tensor.data, bytes),
                     FP8_OK);
    }
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    free(values);
    free(specs);
    fp8_checkpoint_close(c);
}

static void test_hostile(fp8_device *d) {
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        const struct hostile *h = &hostile[i];
        char folder[32];
        fp8_convert_result r;
        fp8_checkpoint *c;
        fp8_model *m = NULL;

        check_case = h->tensor;
        snprintf(folder, sizeof folder, "hostile-%d", (int)i);
        spoil(h, folder);
        for (int k = 0; k < 2; k++) {
            c = reopen(sample_file(folder));
            CHECK_STATUS(k ? fp8_model_load(&m, d, c, NULL)
                           : fp8_convert(&r, sample_file("never"), c, d,
                                         &(fp8_convert_options){.to_bf16 = 1}), h->want);
            CHECK(strstr(fp8_last_message(), h->tensor) && strstr(fp8_last_message(), h->says));
            CHECK(!strchr(fp8_last_message(), '\n'));
            fp8_checkpoint_close(c);
        }
        CHECK(!fp8_path_exists(sample_file("never")));
    }
}

static void test_refused(const sample *s) {
    static const struct {
        const char *from, *says;
        fp8_convert_options o;
    } cases[] = {
        {"source", "not an FP8 checkpoint", {.to_bf16 = 1}},
        {"ct-dynamic", "needs static input scales", {.scheme = FP8_SCHEME_TENSOR}},
        {"ct-static", "has no scheme block",
         {.dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_SCHEME_BLOCK}},
        {"ct-kv", "neither quantized", {.scheme = FP8_SCHEME_BLOCK}},
        {"ct-static", "neither quantized", {.scheme = FP8_SCHEME_NONE}},
        {"ct-dynamic", "power-of-two", {.scheme = FP8_SCHEME_DYNAMIC, .ue8m0 = 1}},
        {"fp8-static", "no KV scales by head",
         {.dialect = FP8_DIALECT_FP8, .scheme = FP8_NUM_SCHEMES, .kv = FP8_KV_SCALES_HEAD}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_convert_result r;
        check_case = cases[i].says;
        CHECK_STATUS(convert(&r, s->d, cases[i].from, "never", cases[i].o), FP8_EINVAL);
        CHECK(strstr(fp8_last_message(), cases[i].says));
    }
    CHECK(!fp8_path_exists(sample_file("never")));
}

int main(void) {
    sample s;
    fp8_record *r;
    char command[9000];

    sample_begin();
    s = sample_open(NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    r = calibrate(&s);
    snprintf(command, sizeof command, "cp -r '%s' '%s'", sample_path("examples/sample-model"),
             sample_file("source"));
    CHECK(system(command) == 0);
    test_from_bf16(&s, r);
    test_there_and_back(s.d);
    test_requantized(s.d);
    test_to_bf16(&s);
    test_kv(s.d);
    test_heads(s.d);
    test_hostile(s.d);
    test_refused(&s);
    fp8_record_destroy(r);
    sample_close(&s);
    sample_done();
    return CHECK_DONE();
}
