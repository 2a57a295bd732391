/* formats/lint: each rule has a checkpoint that breaks it, and good ones break none. */
#include <string.h>
#include <sys/stat.h>

#include "formats/formats.h"
#include "tests/check.h"

enum { MAX = 64 };

/* A checkpoint of one layer, every Linear 256 x 256, spoiled by a case. */
typedef struct model {
    fp8_st_spec specs[MAX];
    char names[MAX][96];
    float values[MAX]; /* of the first element of F32 tensors */
    int count;
    char config[4096];
} model;

static void add(model *m, const char *name, fp8_dtype dtype, int32_t ndim, int64_t rows,
                int64_t cols, float value) {
    const int i = m->count++;
    snprintf(m->names[i], sizeof m->names[i], "%s", name);
    m->specs[i] = (fp8_st_spec){.name = m->names[i], .dtype = dtype, .ndim = ndim,
                                .shape = {rows, cols}};
    m->values[i] = value;
}

static int find(const model *m, const char *name) {
    for (int i = 0; i < m->count; i++)
        if (strcmp(m->names[i], name) == 0) return i;
    fprintf(stderr, "no '%s'\n", name);
    exit(1);
}

static void drop(model *m, const char *name) {
    snprintf(m->names[find(m, name)], sizeof m->names[0], "unused.%d", find(m, name));
}

#define MODEL_JSON                                                                                 \
    "{\"model_type\": \"llama\", \"hidden_size\": 256, \"intermediate_size\": 256,"                \
    " \"num_hidden_layers\": 1, \"num_attention_heads\": 4, \"num_key_value_heads\": 4,"           \
    " \"head_dim\": 64, \"vocab_size\": 64, \"max_position_embeddings\": 128,"                     \
    " \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", \"quantization_config\": "

static const char *const linears[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                      "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                                      "mlp.down_proj"};

static void make(model *m, fp8_dialect dialect, fp8_scheme scheme, int kv) {
    static char lm_head[] = "lm_head", *list[] = {lm_head};
    const fp8_quant_config q = {.dialect = dialect, .scheme = scheme, .kv_fp8 = kv, .ignore = list,
                                .num_ignore = 1};
    const fp8_dialect_row *row = fp8_dialect_get(dialect);
    char *value = NULL, module[64], name[96];

    memset(m, 0, sizeof *m);
    CHECK_STATUS(fp8_quant_config_print(&value, &q), FP8_OK);
    snprintf(m->config, sizeof m->config, MODEL_JSON "%s}", value);
    free(value);
    add(m, "model.embed_tokens.weight", FP8_DTYPE_BF16, 2, 64, 256, 0);
    add(m, "lm_head.weight", FP8_DTYPE_BF16, 2, 64, 256, 0);
    for (int i = 0; i < 7; i++) {
        int64_t shape[2], count;
        int32_t ndim;
        snprintf(module, sizeof module, "model.layers.0.%s", linears[i]);
        snprintf(name, sizeof name, "%s.weight", module);
        add(m, name, FP8_DTYPE_E4M3, 2, 256, 256, 0);
        CHECK_STATUS(fp8_descale_shape(shape, &ndim, &count, dialect, scheme, 256, 256, 0), FP8_OK);
        CHECK_STATUS(fp8_dialect_format(name, sizeof name, row->weight_descale, module), FP8_OK);
        add(m, name, FP8_DTYPE_F32, ndim, shape[0], shape[1], 0.1f);
        if (scheme != FP8_SCHEME_TENSOR) continue;
        CHECK_STATUS(fp8_dialect_format(name, sizeof name, row->input_descale, module), FP8_OK);
        add(m, name, FP8_DTYPE_F32, row->one_ndim, 1, 1, 0.01f);
    }
    for (int i = 0; kv && i < 2; i++) {
        CHECK_STATUS(fp8_dialect_format(name, sizeof name, i ? row->v_descale : row->k_descale,
                                        "model.layers.0.self_attn"), FP8_OK);
        add(m, name, FP8_DTYPE_F32, row->one_ndim, 1, 1, 0.02f);
    }
}

static void replace(model *m, const char *from, const char *to) {
    char *at = strstr(m->config, from), rest[4096];
    if (!at) {
        fprintf(stderr, "no '%s' in config.json\n", from);
        exit(1);
    }
    snprintf(rest, sizeof rest, "%s", at + strlen(from));
    snprintf(at, sizeof m->config - (size_t)(at - m->config), "%s%s", to, rest);
}

static void write_file(const char *folder, const char *name, const char *text) {
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_STATUS(fp8_file_write(path, text, strlen(text)), FP8_OK);
}

static void write_model(const model *m, const char *folder) {
    fp8_st_writer *w = NULL;
    char path[400];

    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_STATUS(fp8_st_writer_create(&w, path, m->specs, m->count, NULL, 0), FP8_OK);
    for (int i = 0; w && i < m->count; i++) {
        size_t bytes = 0;
        unsigned char *data;
        CHECK_STATUS(fp8_shape_bytes(&bytes, m->specs[i].dtype, m->specs[i].shape,
                                     m->specs[i].ndim), FP8_OK);
        data = calloc(1, bytes);
        for (size_t k = 0; m->specs[i].dtype == FP8_DTYPE_F32 && k < bytes / 4; k++)
            memcpy(data + 4 * k, &m->values[i], 4);
        if (m->specs[i].dtype == FP8_DTYPE_E8M0) memset(data, 124, bytes);
        CHECK_STATUS(fp8_st_writer_put(w, i, data, bytes), FP8_OK);
        free(data);
    }
    if (w) CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    write_file(folder, "config.json", m->config);
}

/* ---- how each rule is broken ----------------------------------------------------------------- */

#define L "model.layers.0."

static void frozen(model *m) { replace(m, "\"compressed\"", "\"frozen\""); }
static void gptq(model *m) { replace(m, "\"compressed-tensors\"", "\"gptq\""); }
static void group(model *m) { replace(m, "group_0", "FP8"); }
static void keys(model *m) {
    replace(m, "\"num_bits\"", "\"scale_dtype\": null, \"num_bits\"");
}
static void ignored(model *m) { replace(m, "\"lm_head\"", "\"lm_head\", \"" L "mlp.up_proj\""); }
static void dense(model *m, const char *name) { m->specs[find(m, name)].dtype = FP8_DTYPE_BF16; }
static void dense_o(model *m) { dense(m, L "self_attn.o_proj.weight"); }
static void fused_name(model *m) {
    replace(m, "\"lm_head\"", "\"lm_head\", \"" L "self_attn.qkv_proj\"");
}
static void dense_k(model *m) { dense(m, L "self_attn.k_proj.weight"); }
static void experts(model *m, fp8_dtype second, float scale) {
    for (int e = 0; e < 2; e++) {
        char name[96];
        snprintf(name, sizeof name, L "mlp.experts.%d.down_proj.weight", e);
        add(m, name, e ? second : FP8_DTYPE_E4M3, 2, 256, 256, 0);
        strcat(name, "_scale");
        add(m, name, FP8_DTYPE_F32, 1, 1, 1, 0.1f);
        snprintf(name, sizeof name, L "mlp.experts.%d.down_proj.input_scale", e);
        add(m, name, FP8_DTYPE_F32, 1, 1, 1, e ? scale : 0.01f);
    }
}
static void expert_dense(model *m) { experts(m, FP8_DTYPE_BF16, 0.01f); }
static void expert_input(model *m) { experts(m, FP8_DTYPE_E4M3, 0.02f); }
static void no_scale(model *m) { drop(m, L "mlp.down_proj.weight_scale"); }
static void no_input(model *m) { drop(m, L "mlp.down_proj.input_scale"); }
static void wide_scale(model *m) { m->specs[find(m, L "mlp.down_proj.weight_scale")].shape[0] = 3; }
static void zero_scale(model *m) { m->values[find(m, L "mlp.down_proj.weight_scale")] = 0; }
static void nan_input(model *m) { m->values[find(m, L "mlp.down_proj.input_scale")] = NAN; }
static void e8m0(model *m) {
    m->specs[find(m, L "mlp.down_proj.weight_scale")].dtype = FP8_DTYPE_E8M0;
}
static void other_weight(model *m) {
    m->values[find(m, L "self_attn.k_proj.weight_scale")] = 0.07f;
}
static void other_input(model *m) { m->values[find(m, L "mlp.up_proj.input_scale")] = 0.02f; }
static void no_k(model *m) { drop(m, L "self_attn.k_scale"); }
static void no_kv(model *m) {
    drop(m, L "self_attn.k_scale");
    drop(m, L "self_attn.v_scale");
}
static void undeclared(model *m) {
    add(m, L "self_attn.k_scale", FP8_DTYPE_F32, 1, 1, 1, 0.1f);
}
static void projected(model *m) {
    add(m, L "self_attn.k_proj.k_scale", FP8_DTYPE_F32, 1, 1, 1, 0.1f);
}
static void huge_k(model *m) { m->values[find(m, L "self_attn.k_scale")] = 0.7f; }
static void nan_k(model *m) { m->values[find(m, L "self_attn.v_scale")] = NAN; }
static void narrow(model *m) { m->specs[find(m, L "self_attn.k_proj.weight")].shape[0] = 192; }
static void nothing(model *m) { (void)m; }

#define CT FP8_DIALECT_COMPRESSED_TENSORS

static const struct {
    const char *rule, *says;
    fp8_dialect dialect;
    fp8_scheme scheme;
    int kv;
    int64_t tp;
    void (*spoil)(model *m);
    const char *file; /* put beside it; NULL: none */
} broken[] = {
    {"config-unreadable", "'gptq'", CT, FP8_SCHEME_TENSOR, 0, 1, gptq, NULL},
    {"status-frozen", "'frozen'", CT, FP8_SCHEME_TENSOR, 0, 1, frozen, NULL},
    {"group-name", "'FP8'", CT, FP8_SCHEME_TENSOR, 0, 1, group, NULL},
    {"new-keys", "'scale_dtype'", CT, FP8_SCHEME_TENSOR, 0, 1, keys, NULL},
    {"side-missing", "hf_quant", FP8_DIALECT_MODELOPT, FP8_SCHEME_TENSOR, 0, 1, nothing, NULL},
    {"stray-files", "2 .safetensors", CT, FP8_SCHEME_TENSOR, 0, 1, nothing, "x.safetensors"},
    {"ignored-fp8", "mlp.up_proj", CT, FP8_SCHEME_TENSOR, 0, 1, ignored, NULL},
    {"not-ignored", "o_proj", CT, FP8_SCHEME_TENSOR, 0, 1, dense_o, NULL},
    {"not-ignored", "o_proj", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 0, 1, dense_o, NULL},
    {"fused-name", "qkv_proj", CT, FP8_SCHEME_TENSOR, 0, 1, fused_name, NULL},
    {"fused-split", "k_proj", CT, FP8_SCHEME_TENSOR, 0, 1, dense_k, NULL},
    {"expert-split", "experts.1", CT, FP8_SCHEME_TENSOR, 0, 1, expert_dense, NULL},
    {"scale-missing", "weight_scale", CT, FP8_SCHEME_TENSOR, 0, 1, no_scale, NULL},
    {"scale-missing", "input_scale", CT, FP8_SCHEME_TENSOR, 0, 1, no_input, NULL},
    {"scale-shape", "[3]", CT, FP8_SCHEME_TENSOR, 0, 1, wide_scale, NULL},
    {"scale-value", "is 0", CT, FP8_SCHEME_TENSOR_DYNAMIC, 0, 1, zero_scale, NULL},
    {"scale-value", "nan", CT, FP8_SCHEME_TENSOR, 0, 1, nan_input, NULL},
    {"scale-dtype", "F8_E8M0", CT, FP8_SCHEME_BLOCK, 0, 1, e8m0, NULL},
    {"fused-weight-scale", "0.07", CT, FP8_SCHEME_TENSOR, 0, 1, other_weight, NULL},
    {"fused-input-scale", "0.02", CT, FP8_SCHEME_TENSOR, 0, 1, other_input, NULL},
    {"expert-input-scale", "0.02", CT, FP8_SCHEME_TENSOR, 0, 1, expert_input, NULL},
    {"kv-missing", "found none", CT, FP8_SCHEME_TENSOR, 1, 1, no_kv, NULL},
    {"kv-one-sided", "only that of v", CT, FP8_SCHEME_TENSOR, 1, 1, no_k, NULL},
    {"kv-undeclared", "k_scale", CT, FP8_SCHEME_TENSOR, 0, 1, undeclared, NULL},
    {"kv-name", "k_proj.k_scale", CT, FP8_SCHEME_TENSOR, 1, 1, projected, NULL},
    {"kv-range", "0.7", CT, FP8_SCHEME_TENSOR, 1, 1, huge_k, NULL},
    {"kv-range", "nan", CT, FP8_SCHEME_TENSOR, 1, 1, nan_k, NULL},
    {"tp-heads", "4 attention heads on 3", CT, FP8_SCHEME_TENSOR, 0, 3, nothing, NULL},
    {"block-size", "192", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 1, narrow, NULL},
    {"block-size", "multiple of 512", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 4, nothing, NULL},
};

static char root[] = "/tmp/fp8-lint-XXXXXX";

/* The report of a model that is written into a folder of its own. */
static fp8_lint_report judge(const model *m, int number, fp8_lint_options how, const char *file) {
    fp8_checkpoint *c = NULL;
    fp8_lint_report r = {0};
    char folder[200];

    snprintf(folder, sizeof folder, "%s/%d", root, number);
    CHECK(mkdir(folder, 0700) == 0);
    write_model(m, folder);
    if (file) write_file(folder, file, "");
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_lint(&r, c, &how), FP8_OK);
    fp8_checkpoint_close(c);
    return r;
}

static int number;

static void test_broken(void) {
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        static model m;
        fp8_lint_report r;
        int found = 0;

        check_case = broken[i].rule;
        make(&m, broken[i].dialect, broken[i].scheme, broken[i].kv);
        broken[i].spoil(&m);
        r = judge(&m, number++, (fp8_lint_options){.tp = broken[i].tp}, broken[i].file);
        for (int k = 0; k < r.count; k++) {
            const int ours = strcmp(r.findings[k].rule->id, broken[i].rule) == 0;
            found |= ours && strstr(r.findings[k].text, broken[i].says) != NULL;
            CHECK(!strchr(r.findings[k].text, '\n'));
        }
        CHECK(found);
        fp8_lint_report_free(&r);
    }
    for (int32_t k = 0; k < fp8_lint_num_rules(); k++) { /* none without its checkpoint */
        int there = 0;
        check_case = fp8_lint_rule_at(k)->id;
        for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
            there |= strcmp(broken[i].rule, fp8_lint_rule_at(k)->id) == 0;
        CHECK(there);
    }
}

static void test_good(void) {
    static const struct {
        const char *name;
        fp8_dialect dialect;
        fp8_scheme scheme;
        int kv;
        int64_t tp;
        const char *file;
    } cases[] = {
        {"ct static and KV", CT, FP8_SCHEME_TENSOR, 1, 4, NULL},
        {"ct dynamic", CT, FP8_SCHEME_DYNAMIC, 0, 2, NULL},
        {"ct block", CT, FP8_SCHEME_BLOCK, 0, 2, NULL},
        {"fp8 static", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 1, 1, NULL},
        {"fp8 dynamic", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR_DYNAMIC, 0, 1, NULL},
        {"deepseek", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 1, NULL},
        {"modelopt", FP8_DIALECT_MODELOPT, FP8_SCHEME_TENSOR, 1, 1, "hf_quant_config.json"},
        {"modelopt channel", FP8_DIALECT_MODELOPT, FP8_SCHEME_DYNAMIC, 0, 1,
         "hf_quant_config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static model m;
        fp8_lint_report r;
        check_case = cases[i].name;
        make(&m, cases[i].dialect, cases[i].scheme, cases[i].kv);
        r = judge(&m, number++, (fp8_lint_options){.tp = cases[i].tp}, cases[i].file);
        for (int k = 0; k < r.count; k++)
            fprintf(stderr, "%s: %s\n", r.findings[k].rule->id, r.findings[k].text);
        CHECK(r.count == 0 && r.errors == 0);
        fp8_lint_report_free(&r);
    }
}

/* A rule is asked only for its engines. */
static void test_engines(void) {
    static model m;
    fp8_lint_report r;
    fp8_lint_engine e;

    check_case = "engines";
    make(&m, CT, FP8_SCHEME_TENSOR, 0);
    group(&m);
    r = judge(&m, number++, (fp8_lint_options){.engines = 1u << FP8_LINT_VLLM}, NULL);
    CHECK(r.count == 0);
    fp8_lint_report_free(&r);
    r = judge(&m, number++, (fp8_lint_options){.engines = 1u << FP8_LINT_TENSORRT_LLM}, NULL);
    CHECK(r.count == 1 && r.errors == 1);
    fp8_lint_report_free(&r);
    CHECK_STATUS(fp8_lint_engine_parse(&e, "sglang"), FP8_OK);
    CHECK(e == FP8_LINT_SGLANG);
    CHECK_STATUS(fp8_lint_engine_parse(&e, "llama.cpp"), FP8_EINVAL);
}

int main(void) {
    char command[100];
    if (!mkdtemp(root)) return 1;
    test_broken();
    test_good();
    test_engines();
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (system(command) != 0) return 1;
    return CHECK_DONE();
}
