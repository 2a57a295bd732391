/* formats/dialect: every dialect but compressed-tensors' own test (test_dialect.c): the JSON key by
 * key, read back, and what is refused. */
#include <string.h>

#include "formats/formats.h"
#include "tests/check.h"

#define ARGS(strategy, dynamic, group, block, observer)                                            \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"" strategy               \
    "\",\"dynamic\":" dynamic ",\"group_size\":" group ",\"block_structure\":" block               \
    ",\"actorder\":null,\"observer\":" observer ",\"observer_kwargs\":{}}"
#define MX_ARGS(dynamic, observer)                                                                 \
    "{\"num_bits\":8,\"type\":\"float\",\"symmetric\":true,\"strategy\":\"group\",\"dynamic\":"    \
    dynamic ",\"group_size\":32,\"block_structure\":null,\"actorder\":null,\"observer\":" observer \
    ",\"observer_kwargs\":{},\"scale_dtype\":\"torch.uint8\",\"zp_dtype\":\"torch.uint8\"}"
#define CT(groups, format, ignore, kv)                                                             \
    "{\"config_groups\":{" groups "},\"format\":\"" format "\",\"global_compression_ratio\":null," \
    "\"ignore\":" ignore ",\"kv_cache_scheme\":" kv ",\"quant_method\":\"compressed-tensors\","    \
    "\"quantization_status\":\"compressed\"}"
#define SHORT(dynamic) "{\"dynamic\":" dynamic ",\"num_bits\":8,\"type\":\"float\"}"
#define PRODUCER "\"producer\":{\"name\":\"modelopt\",\"version\":\"0.29.0\"}"
#define MODELOPT(algo, dynamic, kv)                                                                \
    "{\"config_groups\":{\"group_0\":{\"input_activations\":" SHORT(dynamic) ",\"weights\":"       \
    SHORT("false") ",\"targets\":[\"Linear\"]}},\"ignore\":[\"lm_head\"],\"quant_algo\":\"" algo   \
    "\"," kv PRODUCER ",\"quant_method\":\"modelopt\"}"
#define SIDE(algo, kv)                                                                             \
    "{" PRODUCER ",\"quantization\":{\"quant_algo\":\"" algo "\",\"kv_cache_quant_algo\":" kv      \
    ",\"exclude_modules\":[\"lm_head\"]}}"
#define KV_TENSOR ARGS("tensor", "false", "null", "null", "\"minmax\"")
#define KV_HEAD ARGS("attn_head", "false", "null", "null", "\"minmax\"")

static void squeeze(char *text) {
    char *to = text;
    for (; *text; text++)
        if (*text != ' ' && *text != '\n') *to++ = *text;
    *to = '\0';
}

static char lm_head[] = "lm_head", gate[] = "model.layers.0.mlp.gate";
static char *lists[] = {lm_head, gate};

static const struct spelled {
    const char *name;
    fp8_dialect dialect;
    fp8_scheme scheme;
    int kv, per_head, ue8m0, num_ignore;
    const char *want, *side; /* side NULL: none is written */
} spelled[] = {
    {"FP8_BLOCK", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_BLOCK, 0, 0, 0, 1,
     CT("\"group_0\":{\"targets\":[\"Linear\"],\"weights\":"
        ARGS("block", "false", "null", "[128,128]", "\"minmax\"") ",\"input_activations\":"
        ARGS("group", "true", "128", "null", "null") ",\"output_activations\":null}",
        "float-quantized", "[\"lm_head\"]", "null"), NULL},
    {"MXFP8", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_MX, 0, 0, 0, 1,
     CT("\"group_0\":{\"targets\":[\"Linear\"],\"weights\":"
        MX_ARGS("false", "\"minmax\"") ",\"input_activations\":" MX_ARGS("true", "null")
        ",\"output_activations\":null}", "mxfp8-quantized", "[\"lm_head\"]", "null"), NULL},
    {"KV alone", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_NONE, 1, 0, 0, 2,
     CT("", "dense", "[\"lm_head\",\"model.layers.0.mlp.gate\"]", KV_TENSOR), NULL},
    {"KV by head", FP8_DIALECT_COMPRESSED_TENSORS, FP8_SCHEME_NONE, 1, 1, 0, 1,
     CT("", "dense", "[\"lm_head\"]", KV_HEAD), NULL},
    {"fp8 static", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 1, 0, 0, 1,
     "{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\",\"ignored_layers\":[\"lm_head\"],"
     "\"kv_cache_scheme\":\"static\"}", NULL},
    {"fp8 dynamic", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR_DYNAMIC, 0, 0, 0, 2,
     "{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\",\"ignored_layers\":[\"lm_head\","
     "\"model.layers.0.mlp.gate\"]}", NULL},
    {"deepseek", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 0, 0, 1,
     "{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\",\"quant_method\":\"fp8\","
     "\"weight_block_size\":[128,128]}", NULL},
    {"deepseek ue8m0", FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 0, 1, 2,
     "{\"activation_scheme\":\"dynamic\",\"fmt\":\"e4m3\",\"modules_to_not_convert\":[\"lm_head\","
     "\"model.layers.0.mlp.gate\"],\"quant_method\":\"fp8\",\"scale_fmt\":\"ue8m0\","
     "\"weight_block_size\":[128,128]}", NULL},
    {"modelopt and KV", FP8_DIALECT_MODELOPT, FP8_SCHEME_TENSOR, 1, 0, 0, 1,
     MODELOPT("FP8", "false", "\"kv_cache_scheme\":" SHORT("false") ","), SIDE("FP8", "\"FP8\"")},
    {"modelopt by channel", FP8_DIALECT_MODELOPT, FP8_SCHEME_DYNAMIC, 0, 0, 0, 1,
     MODELOPT("FP8_PER_CHANNEL_PER_TOKEN", "true", ""), SIDE("FP8_PER_CHANNEL_PER_TOKEN", "null")},
};

static void check_back(const struct spelled *c, const char *name, const char *text, size_t len) {
    fp8_quant_config back;

    CHECK_STATUS(fp8_quant_config_parse(&back, name, text, len), FP8_OK);
    CHECK(back.dialect == c->dialect && back.scheme == c->scheme && back.kv_fp8 == c->kv);
    CHECK(back.kv_per_head == c->per_head && back.ue8m0 == c->ue8m0);
    CHECK(back.num_ignore == c->num_ignore);
    for (int i = 0; i < back.num_ignore; i++) CHECK(strcmp(back.ignore[i], lists[i]) == 0);
    fp8_quant_config_free(&back);
}

static void test_spelled(void) {
    for (size_t i = 0; i < sizeof spelled / sizeof *spelled; i++) {
        const struct spelled *c = &spelled[i];
        const fp8_quant_config q = {
            .dialect = c->dialect, .scheme = c->scheme, .kv_fp8 = c->kv,
            .kv_per_head = c->per_head, .ue8m0 = c->ue8m0,
            .ignore = lists, .num_ignore = c->num_ignore};
        char *text = NULL, *side = NULL, *config = NULL;
        size_t len = 0;

        check_case = c->name;
        CHECK_STATUS(fp8_quant_config_print(&text, &q), FP8_OK);
        CHECK_STATUS(fp8_config_insert(&config, &len, "c", "{}", 2, text), FP8_OK);
        check_back(c, "config.json", config, len);
        squeeze(text);
        if (strcmp(text, c->want) != 0) fprintf(stderr, "%s\n", text);
        CHECK(strcmp(text, c->want) == 0);
        CHECK_STATUS(fp8_quant_config_print_side(&side, &q), FP8_OK);
        CHECK((side != NULL) == (c->side != NULL));
        if (side) squeeze(side);
        if (side && c->side) CHECK(strcmp(side, c->side) == 0);
        free(config);
        free(text);
        free(side);
    }
}

/* What a dialect has no words for. */
static void test_unspeakable(void) {
    static const struct {
        fp8_quant_config q;
        const char *says;
    } cases[] = {
        {{.dialect = FP8_DIALECT_FP8, .scheme = FP8_SCHEME_DYNAMIC}, "fp8 has no scheme dynamic"},
        {{.dialect = FP8_DIALECT_FP8, .scheme = FP8_SCHEME_BLOCK}, "fp8 has no scheme block"},
        {{.dialect = FP8_DIALECT_DEEPSEEK, .scheme = FP8_SCHEME_TENSOR}, "deepseek has no scheme"},
        {{.dialect = FP8_DIALECT_DEEPSEEK, .scheme = FP8_SCHEME_BLOCK, .kv_fp8 = 1},
         "deepseek has no names for KV scales"},
        {{.dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_SCHEME_NONE, .kv_fp8 = 1},
         "modelopt has no scheme none"},
        {{.dialect = FP8_DIALECT_MODELOPT, .scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
          .kv_per_head = 1}, "modelopt has no KV scales by head"},
    };
    char *text = NULL;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].says;
        CHECK_STATUS(fp8_quant_config_print(&text, &cases[i].q), FP8_EINVAL);
        CHECK(!text && strstr(fp8_last_message(), cases[i].says));
    }
}

/* ---- as others write it ---------------------------------------------------------------------- */

static void test_foreign(void) {
    static const struct {
        const char *name, *members;
        fp8_dialect dialect;
        fp8_scheme scheme;
        int kv, num_ignore;
    } cases[] = {
        {"AutoFP8", "\"quant_method\": \"fp8\", \"activation_scheme\": \"static\"",
         FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 0, 1},
        {"Mistral", "\"activation_scheme\": \"static\", \"quant_method\": \"fp8\", "
         "\"weight_block_size\": null, \"modules_to_not_convert\": [\"model.vision_tower\", "
         "\"lm_head\"]", FP8_DIALECT_FP8, FP8_SCHEME_TENSOR, 0, 2},
        {"DeepSeek-V3.1", "\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"scale_fmt\": \"ue8m0\", "
         "\"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]",
         FP8_DIALECT_DEEPSEEK, FP8_SCHEME_BLOCK, 0, 1},
        {"modelopt", "\"quant_method\": \"modelopt\", \"quant_algo\": \"fp8\", "
         "\"kv_cache_quant_algo\": \"fp8\", \"exclude_modules\": [\"lm_head\", \"*gate*\"]",
         FP8_DIALECT_MODELOPT, FP8_SCHEME_TENSOR, 1, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[1024];
        fp8_quant_config q;
        const int n = snprintf(json, sizeof json, "{\"quantization_config\": {%s}}",
                               cases[i].members);
        check_case = cases[i].name;
        CHECK_STATUS(fp8_quant_config_parse(&q, "c", json, (size_t)n), FP8_OK);
        CHECK(q.dialect == cases[i].dialect && q.scheme == cases[i].scheme);
        CHECK(q.kv_fp8 == cases[i].kv && q.num_ignore == cases[i].num_ignore);
        CHECK(fp8_quant_config_ignores(&q, "lm_head"));
        CHECK(fp8_quant_config_ignores(&q, "model.vision_tower.a.b") == (i == 1));
        CHECK(fp8_quant_config_ignores(&q, "model.layers.1.mlp.gate") == (i == 3));
        CHECK(!fp8_quant_config_ignores(&q, "model.layers.1.mlp.up_proj"));
        fp8_quant_config_free(&q);
    }
}

static void test_refusals(void) {
    static const struct {
        const char *members;
        fp8_status want;
        const char *says;
    } cases[] = {
        {"\"quant_method\": \"fp8\"", FP8_EFORMAT, "activation_scheme is missing"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"token\"", FP8_EUNSUPPORTED,
         "activation_scheme 'token'"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", "
         "\"weight_block_size\": [128, 128]", FP8_EUNSUPPORTED,
         "weight_block_size with activation_scheme 'static'"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", "
         "\"weight_block_size\": [64, 128]", FP8_EUNSUPPORTED, "weight_block_size '64x128'"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", "
         "\"weight_block_size\": [128]", FP8_EFORMAT, "weight_block_size"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", \"fmt\": \"e5m2\"",
         FP8_EUNSUPPORTED, "fmt 'e5m2'"},
        {"\"quant_method\": \"fp8\", \"activation_scheme\": \"dynamic\", \"scale_fmt\": \"ue8m0\"",
         FP8_EUNSUPPORTED, "scale_fmt without blocks"},
        {"\"quant_method\": \"modelopt\"", FP8_EFORMAT, "quant_algo is missing"},
        {"\"quant_method\": \"modelopt\", \"quant_algo\": \"NVFP4\"", FP8_EUNSUPPORTED,
         "quant_algo 'NVFP4'"},
        {"\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8_PB_WO\"", FP8_EUNSUPPORTED,
         "quant_algo 'FP8_PB_WO'"},
        {"\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8\", \"kv_cache_quant_algo\": "
         "\"NVFP4\"", FP8_EUNSUPPORTED, "kv_cache_quant_algo 'NVFP4'"},
        {"\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8\", \"kv_cache_scheme\": "
         "{\"num_bits\": 4}", FP8_EUNSUPPORTED, "not of 8 bits"},
    };
    fp8_quant_config q;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[1024];
        const int n = snprintf(json, sizeof json, "{\"quantization_config\": {%s}}",
                               cases[i].members);
        check_case = cases[i].members;
        CHECK_STATUS(fp8_quant_config_parse(&q, "c", json, (size_t)n), cases[i].want);
        CHECK(strstr(fp8_last_message(), cases[i].says) != NULL);
        CHECK(q.ignore == NULL && q.num_ignore == 0);
    }
}

int main(void) {
    test_spelled();
    test_unspeakable();
    test_foreign();
    test_refusals();
    return CHECK_DONE();
}
