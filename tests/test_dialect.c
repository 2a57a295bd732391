/* formats/dialect: quantization_config there and back, foreign ones read or refused by name. */
#include <string.h>

#include "formats/config.h"
#include "formats/dialect.h"
#include "tests/check.h"

/* ---- writing --------------------------------------------------------------------------------- */

/* The portable key set of compressed-tensors, as engines of 2024 read it. */
#define STATIC_ARGS                                                                                \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"tensor\","               \
    "\"dynamic\":false,\"group_size\":null,\"block_structure\":null,\"actorder\":null,"            \
    "\"observer\":\"minmax\",\"observer_kwargs\":{}}"
#define CHANNEL_ARGS                                                                               \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"channel\","              \
    "\"dynamic\":false,\"group_size\":null,\"block_structure\":null,\"actorder\":null,"            \
    "\"observer\":\"minmax\",\"observer_kwargs\":{}}"
#define TOKEN_ARGS                                                                                 \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"token\","                \
    "\"dynamic\":true,\"group_size\":null,\"block_structure\":null,\"actorder\":null,"             \
    "\"observer\":null,\"observer_kwargs\":{}}"
#define WHOLE(weights, inputs, ignore, kv)                                                         \
    "{\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":" weights               \
    ",\"input_activations\":" inputs ",\"output_activations\":null}},\"format\":"                  \
    "\"float-quantized\",\"global_compression_ratio\":null,\"ignore\":" ignore                     \
    ",\"kv_cache_scheme\":" kv ",\"quant_method\":\"compressed-tensors\","                         \
    "\"quantization_status\":\"compressed\"}"

/* The text without the spaces and newlines of its layout (no string here holds one). */
static void squeeze(char *text) {
    char *to = text;
    for (; *text; text++)
        if (*text != ' ' && *text != '\n') *to++ = *text;
    *to = '\0';
}

static void test_print(void) {
    static char lm_head[] = "lm_head", pattern[] = "re:.*\"gate\"$";
    static char *ignore[] = {lm_head, pattern};
    static const struct {
        const char *name;
        fp8_scheme scheme;
        int kv, num_ignore;
        const char *want;
    } cases[] = {
        {"static", FP8_SCHEME_TENSOR, 0, 1,
         WHOLE(STATIC_ARGS, STATIC_ARGS, "[\"lm_head\"]", "null")},
        {"static and KV", FP8_SCHEME_TENSOR, 1, 1,
         WHOLE(STATIC_ARGS, STATIC_ARGS, "[\"lm_head\"]", STATIC_ARGS)},
        {"dynamic", FP8_SCHEME_DYNAMIC, 0, 2,
         WHOLE(CHANNEL_ARGS, TOKEN_ARGS, "[\"lm_head\",\"re:.*\\\"gate\\\"$\"]", "null")},
        {"tensor, dynamic", FP8_SCHEME_TENSOR_DYNAMIC, 0, 1,
         WHOLE(STATIC_ARGS, TOKEN_ARGS, "[\"lm_head\"]", "null")},
        {"tensor, dynamic, and KV", FP8_SCHEME_TENSOR_DYNAMIC, 1, 0,
         WHOLE(STATIC_ARGS, TOKEN_ARGS, "[]", STATIC_ARGS)},
        {"dynamic and KV", FP8_SCHEME_DYNAMIC, 1, 0,
         WHOLE(CHANNEL_ARGS, TOKEN_ARGS, "[]", STATIC_ARGS)},
    };
    static const char head[] = "{\n  \"config_groups\": {\n    \"group_0\": {\n      "
                               "\"targets\": [\n        \"Linear\"\n      ],\n";
    fp8_quant_config none = {0};
    char *text = NULL;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_quant_config q = {0}, back;
        char *config = NULL;
        size_t len = 0;

        check_case = cases[i].name;
        q.scheme = cases[i].scheme;
        q.kv_fp8 = cases[i].kv;
        q.ignore = ignore;
        q.num_ignore = cases[i].num_ignore;
        CHECK_STATUS(fp8_quant_config_print(&text, &q), FP8_OK);
        CHECK(strncmp(text, head, sizeof head - 1) == 0);
        CHECK_STATUS(fp8_config_insert(&config, &len, "c", "{\n  \"a\": 1\n}", 12, text), FP8_OK);
        squeeze(text);
        CHECK(strcmp(text, cases[i].want) == 0);
        CHECK_STATUS(fp8_quant_config_parse(&back, "c", config, len), FP8_OK);
        CHECK(back.scheme == q.scheme && back.kv_fp8 == q.kv_fp8);
        CHECK(back.attention == FP8_ATTENTION_NONE && back.format == FP8_FORMAT_E4M3);
        CHECK(back.num_ignore == q.num_ignore);
        for (int k = 0; k < back.num_ignore; k++) CHECK(strcmp(back.ignore[k], ignore[k]) == 0);
        fp8_quant_config_free(&back);
        free(config);
        free(text);
    }
    check_case = "none";
    CHECK_STATUS(fp8_quant_config_print(&text, &none), FP8_EINVAL);
    CHECK(text == NULL);
}

/* ---- reading --------------------------------------------------------------------------------- */

#define FLOAT8 "\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true"
#define TENSOR "{" FLOAT8 ", \"strategy\": \"tensor\", \"dynamic\": false}"
#define CHANNEL "{" FLOAT8 ", \"strategy\": \"channel\"}"
#define TOKEN "{" FLOAT8 ", \"strategy\": \"token\", \"dynamic\": true}"
#define GROUP(weights, inputs)                                                                     \
    "{\"targets\": [\"Linear\"], \"weights\": " weights ", \"input_activations\": " inputs "}"
#define METHOD "\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\""
#define CONFIG(more, groups) METHOD more ", \"config_groups\": {" groups "}"
#define GOOD(more) CONFIG(more, "\"group_0\": " GROUP(TENSOR, TENSOR))

static fp8_status parse(fp8_quant_config *q, const char *members) {
    char json[4096];
    const int n = snprintf(json, sizeof json, "{\"a\": 1, \"quantization_config\": {%s}}", members);
    return fp8_quant_config_parse(q, "config.json", json, (size_t)n);
}

static void test_parse(void) {
    static const struct {
        const char *name, *members;
        fp8_scheme scheme;
        int kv, num_ignore;
    } cases[] = {
        {"least", GOOD(""), FP8_SCHEME_TENSOR, 0, 0},
        {"dynamic", CONFIG("", "\"group_0\": " GROUP(CHANNEL, TOKEN)), FP8_SCHEME_DYNAMIC, 0, 0},
        {"tensor, dynamic", CONFIG("", "\"group_0\": " GROUP(TENSOR, TOKEN)),
         FP8_SCHEME_TENSOR_DYNAMIC, 0, 0},
        {"any group name", CONFIG("", "\"FP8\": " GROUP(TENSOR, TENSOR)), FP8_SCHEME_TENSOR, 0, 0},
        {"KV", GOOD(", \"kv_cache_scheme\": " TENSOR), FP8_SCHEME_TENSOR, 1, 0},
        {"KV null", GOOD(", \"kv_cache_scheme\": null, \"ignore\": null"), FP8_SCHEME_TENSOR, 0, 0},
        {"status", GOOD(", \"quantization_status\": \"compressed\""), FP8_SCHEME_TENSOR, 0, 0},
        {"ignore", GOOD(", \"ignore\": [\"lm_head\", \"re:.*\\\\.gate$\"]"), FP8_SCHEME_TENSOR,
         0, 2},
        {"newer keys",
         CONFIG(", \"version\": \"0.12.2\", \"transform_config\": {}, \"sparsity_config\": "
                "{\"format\": \"dense\", \"global_sparsity\": 0.1}, \"new\": [{}]",
                "\"group_0\": {\"format\": \"float-quantized\", \"targets\": [\"Linear\"], "
                "\"weights\": {" FLOAT8 ", \"strategy\": \"tensor\", \"scale_dtype\": null, "
                "\"zp_dtype\": \"x\"}, \"input_activations\": " TENSOR ", \"output_activations\": "
                "null, \"new\": 1}"), FP8_SCHEME_TENSOR, 0, 0},
        {"method last", "\"config_groups\": {\"group_0\": " GROUP(TENSOR, TENSOR) "}, " METHOD,
         FP8_SCHEME_TENSOR, 0, 0},
    };
    static const char *const absent[] = {"{}", "{\"quantization_config\": null}",
                                         "{\"x\": {\"quantization_config\": {\"bits\": 4}}}"};
    fp8_quant_config q;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK_STATUS(parse(&q, cases[i].members), FP8_OK);
        CHECK(q.dialect == FP8_DIALECT_COMPRESSED_TENSORS && q.scheme == cases[i].scheme);
        CHECK(q.kv_fp8 == cases[i].kv && q.num_ignore == cases[i].num_ignore);
        fp8_quant_config_free(&q);
        CHECK(q.ignore == NULL && q.num_ignore == 0);
    }
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        check_case = absent[i];
        CHECK_STATUS(fp8_quant_config_parse(&q, "c", absent[i], strlen(absent[i])), FP8_OK);
        CHECK(q.scheme == FP8_SCHEME_NONE && !q.kv_fp8 && q.num_ignore == 0);
    }
}

static void test_refusals(void) {
    static const struct {
        const char *members;
        fp8_status want;
        const char *says;
    } cases[] = {
        {"\"quant_method\": \"fbgemm_fp8\", \"kv_cache_scheme\": \"static\", \"ignore\": 1",
         FP8_EUNSUPPORTED,
         "config.json: quantization_config: quant_method 'fbgemm_fp8' is not supported"},
        {"\"quant_method\": \"gptq\", \"bits\": 4", FP8_EUNSUPPORTED, "'gptq'"},
        {"\"quant_method\": \"compressed-tensors\\u0000\"", FP8_EUNSUPPORTED,
         "'compressed-tensors?'"},
        {"", FP8_EFORMAT, "quant_method is missing"},
        {"\"quant_method\": 8", FP8_EFORMAT, "quant_method: expected a string, found"},
        {"\"quant_method\": \"compressed-tensors\"", FP8_EFORMAT, "format is missing"},
        {"\"quant_method\": \"compressed-tensors\", \"format\": \"naive-quantized\"",
         FP8_EUNSUPPORTED, "format 'naive-quantized'"},
        {"\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"",
         FP8_EUNSUPPORTED, "format 'pack-quantized'"},
        {GOOD(", \"quantization_status\": \"frozen\""), FP8_EUNSUPPORTED,
         "quantization_status 'frozen'"},
        {METHOD, FP8_EUNSUPPORTED, "weights by none with inputs by none"},
        {CONFIG("", ""), FP8_EUNSUPPORTED, "weights by none"},
        {METHOD ", \"config_groups\": []", FP8_EFORMAT, "config_groups: expected an object"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, TENSOR) ", \"group_1\": " GROUP(TENSOR, TENSOR)),
         FP8_EUNSUPPORTED, "more than one config group"},
        {CONFIG("", "\"group_0\": {\"targets\": [\"re:.*q_proj\"], \"weights\": " TENSOR "}"),
         FP8_EUNSUPPORTED, "targets 're:.*q_proj'"},
        {CONFIG("", "\"group_0\": {\"targets\": []}"), FP8_EUNSUPPORTED, "targets '[]'"},
        {CONFIG("", "\"group_0\": {\"targets\": \"Linear\"}"), FP8_EFORMAT, "targets"},
        {CONFIG("", "\"group_0\": " GROUP("null", TENSOR)), FP8_EUNSUPPORTED, "weights by none"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, "null")), FP8_EUNSUPPORTED,
         "weights by tensor with inputs by none"},
        {CONFIG("", "\"group_0\": " GROUP("8", TENSOR)), FP8_EFORMAT,
         "weights: expected an object"},
        {CONFIG("", "\"group_0\": " GROUP("{" FLOAT8 ", \"strategy\": \"block\", "
                                          "\"block_structure\": [128, 128]}", TOKEN)),
         FP8_EUNSUPPORTED, "weights by block with inputs by dynamic token"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, "{" FLOAT8 ", \"strategy\": \"group\", "
                                          "\"group_size\": 128, \"dynamic\": true}")),
         FP8_EUNSUPPORTED, "inputs by dynamic group"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, "{" FLOAT8 ", \"strategy\": \"token\"}")),
         FP8_EUNSUPPORTED, "weights by tensor with inputs by token"},
        {CONFIG("", "\"group_0\": " GROUP("{" FLOAT8 ", \"strategy\": \"tensor\", "
                                          "\"dynamic\": true}", TOKEN)),
         FP8_EUNSUPPORTED, "weights by dynamic tensor with inputs by dynamic token"},
        {CONFIG("", "\"group_0\": " GROUP(CHANNEL, TENSOR)), FP8_EUNSUPPORTED,
         "weights by channel with inputs by tensor"},
        {CONFIG("", "\"group_0\": " GROUP(CHANNEL, "{" FLOAT8 ", \"strategy\": \"token\"}")),
         FP8_EUNSUPPORTED, "inputs by token"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, "{" FLOAT8 ", \"strategy\": \"tensor\", "
                                          "\"dynamic\": true}")),
         FP8_EUNSUPPORTED, "inputs by dynamic tensor"},
        {CONFIG("", "\"group_0\": " GROUP("{\"num_bits\": 4}", TENSOR)), FP8_EUNSUPPORTED,
         "num_bits '4'"},
        {CONFIG("", "\"group_0\": " GROUP("{\"num_bits\": \"8\"}", TENSOR)), FP8_EFORMAT,
         "num_bits"},
        {CONFIG("", "\"group_0\": " GROUP("{\"num_bits\": 8.5}", TENSOR)), FP8_EFORMAT, "num_bits"},
        {CONFIG("", "\"group_0\": " GROUP("{\"type\": \"int\"}", TENSOR)), FP8_EUNSUPPORTED,
         "type 'int'"},
        {CONFIG("", "\"group_0\": " GROUP("{\"symmetric\": false}", TENSOR)), FP8_EUNSUPPORTED,
         "symmetric 'false'"},
        {CONFIG("", "\"group_0\": " GROUP("{\"dynamic\": \"local\"}", TENSOR)), FP8_EUNSUPPORTED,
         "dynamic 'local'"},
        {CONFIG("", "\"group_0\": " GROUP("{\"dynamic\": 0}", TENSOR)), FP8_EFORMAT, "dynamic"},
        {CONFIG("", "\"group_0\": " GROUP("{\"strategy\": \"tensor\"}", TENSOR)), FP8_EFORMAT,
         "weights: type is missing"},
        {CONFIG("", "\"group_0\": " GROUP(TENSOR, "{" FLOAT8 "}")), FP8_EFORMAT,
         "input_activations: strategy is missing"},
        {CONFIG("", "\"group_0\": {\"targets\": [\"Linear\"], \"output_activations\": " TENSOR "}"),
         FP8_EUNSUPPORTED, "output_activations 'tensor'"},
        {CONFIG("", "\"group_0\": {\"format\": \"pack-quantized\"}"), FP8_EUNSUPPORTED,
         "format 'pack-quantized'"},
        {GOOD(", \"kv_cache_scheme\": {" FLOAT8 ", \"strategy\": \"channel\"}"), FP8_EUNSUPPORTED,
         "kv_cache_scheme 'channel'"},
        {CONFIG("", "\"group_0\": " GROUP("{" FLOAT8 ", \"strategy\": \"block\", "
                                          "\"block_structure\": [64, 128]}",
                                          "{" FLOAT8 ", \"strategy\": \"group\", "
                                          "\"group_size\": 128, \"dynamic\": true}")),
         FP8_EUNSUPPORTED, "block_structure '64x128'"},
        {CONFIG("", "\"group_0\": " GROUP("{" FLOAT8 ", \"strategy\": \"block\", "
                                          "\"block_structure\": [128, 128]}",
                                          "{" FLOAT8 ", \"strategy\": \"group\", "
                                          "\"group_size\": 32, \"dynamic\": true}")),
         FP8_EUNSUPPORTED, "group_size '32'"},
        {"\"quant_method\": \"compressed-tensors\", \"format\": \"dense\", \"config_groups\": {"
         "\"group_0\": " GROUP(TENSOR, TENSOR) "}", FP8_EUNSUPPORTED, "format 'dense'"},
        {GOOD(", \"kv_cache_scheme\": {" FLOAT8 ", \"strategy\": \"tensor\", \"dynamic\": true}"),
         FP8_EUNSUPPORTED, "kv_cache_scheme 'dynamic'"},
        {GOOD(", \"kv_cache_scheme\": {\"num_bits\": 4}"), FP8_EUNSUPPORTED, "num_bits '4'"},
        {GOOD(", \"kv_cache_scheme\": {}"), FP8_EFORMAT, "kv_cache_scheme: type is missing"},
        {GOOD(", \"kv_cache_scheme\": \"static\""), FP8_EFORMAT, "kv_cache_scheme"},
        {GOOD(", \"ignore\": \"lm_head\""), FP8_EFORMAT, "ignore: expected an array"},
        {GOOD(", \"ignore\": [\"a\", 1]"), FP8_EFORMAT, "ignore: expected strings"},
        {GOOD(", \"ignore\": [\"a\\u0000b\"]"), FP8_EFORMAT, "ignore"},
        {GOOD(", \"ignore\": [\"a\", \"re:.*(gate|up)\"]"), FP8_EUNSUPPORTED,
         "ignore pattern 're:.*(gate|up)'"},
        {GOOD(", \"transform_config\": {\"config_groups\": {}}"), FP8_EUNSUPPORTED,
         "transform_config 'config_groups'"},
        {GOOD(", \"sparsity_config\": {\"format\": \"sparse-24-bitmask\"}"), FP8_EUNSUPPORTED,
         "sparsity_config 'sparse-24-bitmask'"},
    };
    static const char *const broken[] = {"", "null", "[]", "{\"quantization_config\": 3}",
                                         "{\"quantization_config\": {}", "{} {}"};
    fp8_quant_config q;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].members;
        CHECK_STATUS(parse(&q, cases[i].members), cases[i].want);
        if (!strstr(fp8_last_message(), cases[i].says))
            fprintf(stderr, "message: %s\n", fp8_last_message());
        CHECK(strstr(fp8_last_message(), cases[i].says) != NULL);
        CHECK(q.ignore == NULL && q.num_ignore == 0 && q.scheme == FP8_SCHEME_NONE);
    }
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        check_case = broken[i];
        CHECK_STATUS(fp8_quant_config_parse(&q, "c", broken[i], strlen(broken[i])), FP8_EFORMAT);
    }
}

/* ---- names and patterns ---------------------------------------------------------------------- */

static void test_ignores(void) {
    static const struct {
        const char *entry, *module;
        int want;
    } cases[] = {
        {"lm_head", "lm_head", 1},
        {"lm_head", "model.lm_head", 0},
        {"lm_head", "lm_head2", 0},
        {"model.layers", "model.layers.0", 0},
        {"re:.*lm_head", "lm_head", 1},
        {"re:.*lm_head", "model.lm_head.x", 1},
        {"re:lm_head", "model.lm_head", 0}, /* re.match is anchored in front */
        {"re:lm_head", "lm_head.x", 1},     /* and not at the end */
        {"re:lm_head$", "lm_head.x", 0},
        {"re:^lm_head$", "lm_head", 1},
        {"re:.*mlp\\.gate$", "model.layers.3.mlp.gate", 1},
        {"re:.*mlp\\.gate$", "model.layers.3.mlp.gate_proj", 0},
        {"re:.*mlp\\.gate$", "model.layers.3.mlpxgate", 0},
        {"re:.*mlp.gate$", "model.layers.3.mlpxgate", 1},
        {"re:model\\.layers\\.[0-9]+\\.mlp", "model.layers.17.mlp.up_proj", 1},
        {"re:model\\.layers\\.[0-9]+\\.mlp", "model.layers.mlp.up_proj", 0},
        {"re:model\\.layers\\.[0-9]+\\.mlp", "model.layers.1x.mlp", 0},
        {"re:[0-9]+1$", "11", 1}, /* the run gives one back */
        {"re:[0-9]+1$", "1", 0},
        {"re:.*a.*b.*c$", "xxaxxbxxc", 1},
        {"re:.*a.*b.*c$", "xxaxxcxxb", 0},
        {"re:", "anything", 1},
        {"re:$", "anything", 0},
        {"re:.*", "", 1},
        {"re:.", "", 0},
    };
    static const char *const refused[] = {"a|b", "(a)", "a*", "a+", "a?", "[a-z]", "[0-9]", "\\d+",
                                          "a^", "$a", "a{2}", ".+", "\\"};
    char entry[256], *list[] = {entry};
    fp8_quant_config q = {.ignore = list, .num_ignore = 1};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].entry;
        snprintf(entry, sizeof entry, "%s", cases[i].entry);
        CHECK(fp8_quant_config_ignores(&q, cases[i].module) == cases[i].want);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        check_case = refused[i];
        snprintf(entry, sizeof entry, "re:%s", refused[i]);
        CHECK(fp8_quant_config_ignores(&q, refused[i]) == 0);
    }
    check_case = "many stars"; /* would take 2^60 steps by backtracking */
    snprintf(entry, sizeof entry, "re:.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*b$");
    CHECK(fp8_quant_config_ignores(&q, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") == 0);
    memset(entry, 'a', sizeof entry - 1);
    memcpy(entry, "re:", 3);
    entry[sizeof entry - 1] = '\0';
    CHECK(fp8_quant_config_ignores(&q, entry + 3) == 1);
    q.num_ignore = 0;
    CHECK(fp8_quant_config_ignores(&q, "lm_head") == 0);
}

static void test_names(void) {
    const fp8_dialect_row *row = fp8_dialect_get(FP8_DIALECT_COMPRESSED_TENSORS);
    const char *const patterns[] = {row->weight,    row->weight_descale, row->input_descale,
                                    row->k_descale, row->v_descale,      row->q_descale};
    static const char *const want[] = {"a.b.weight",  "a.b.weight_scale", "a.b.input_scale",
                                       "a.b.k_scale", "a.b.v_scale",      "a.b.q_scale"};
    fp8_attention_mode m = FP8_ATTENTION_NONE;
    fp8_fp8_format f = FP8_FORMAT_E4M3;
    char buf[32];

    check_case = "names";
    CHECK(strcmp(row->name, "compressed-tensors") == 0);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const size_t len = strlen(want[i]);
        CHECK_STATUS(fp8_dialect_format(buf, len + 1, patterns[i], "a.b"), FP8_OK);
        CHECK(strcmp(buf, want[i]) == 0);
        CHECK_STATUS(fp8_dialect_format(buf, len, patterns[i], "a.b"), FP8_EOVERFLOW);
        CHECK_STATUS(fp8_dialect_format(buf, 0, patterns[i], "a.b"), FP8_EOVERFLOW);
    }
    CHECK_STATUS(fp8_dialect_format(buf, sizeof buf, NULL, "a.b"), FP8_EINVAL);
    for (int i = FP8_ATTENTION_NONE; i <= FP8_ATTENTION_MHA; i++) {
        CHECK_STATUS(fp8_attention_mode_parse(&m, fp8_attention_mode_name((fp8_attention_mode)i)),
                     FP8_OK);
        CHECK((int)m == i);
    }
    for (int i = FP8_FORMAT_E4M3; i <= FP8_FORMAT_HYBRID; i++) {
        CHECK_STATUS(fp8_fp8_format_parse(&f, fp8_fp8_format_name((fp8_fp8_format)i)), FP8_OK);
        CHECK((int)f == i);
    }
    CHECK(strcmp(fp8_attention_mode_name(FP8_ATTENTION_DPA), "dpa") == 0);
    CHECK(strcmp(fp8_fp8_format_name(FP8_FORMAT_HYBRID), "hybrid") == 0);
    CHECK_STATUS(fp8_attention_mode_parse(&m, "DPA"), FP8_EINVAL);
    CHECK_STATUS(fp8_fp8_format_parse(&f, ""), FP8_EINVAL);
}

int main(void) {
    test_print();
    test_parse();
    test_refusals();
    test_ignores();
    test_names();
    return CHECK_DONE();
}
