/* formats/config: both dialects of transformers, defaults, refusals by name. */
#include <math.h>
#include <string.h>

#include "formats/config.h"
#include "formats/file.h"
#include "tests/check.h"

/* ---- a small valid file of each family ------------------------------------------------------- */

typedef struct member {
    const char *key, *value;
} member;

static const member usual[] = {
    {"vocab_size", "512"},       {"hidden_size", "64"},        {"intermediate_size", "160"},
    {"num_hidden_layers", "3"},  {"num_attention_heads", "4"}, {"num_key_value_heads", "2"},
    {"bos_token_id", "0"},       {"eos_token_id", "1"},        {"head_dim", "16"},
};
static const member of_gpt2[] = {
    {"vocab_size", "512"}, {"n_embd", "64"}, {"n_layer", "3"}, {"n_head", "4"},
};

/* The family's members but those whose key `edit` ("key": value, ...) has, then `edit`. An edit of
 * `-"key"` only takes that key away. */
static const char *make(const char *arch, const char *edit) {
    static char text[4096];
    const int gpt2 = strcmp(arch, "gpt2") == 0;
    const member *m = gpt2 ? of_gpt2 : usual;
    const size_t num = gpt2 ? sizeof of_gpt2 / sizeof *m : sizeof usual / sizeof *m;
    const char *gone = strstr(edit, "-\"");
    char quoted[64];
    int n = snprintf(text, sizeof text, "{\"use_cache\": true");

    if (!strstr(edit, "\"model_type\""))
        n += snprintf(text + n, sizeof text - (size_t)n, ", \"model_type\": \"%s\"", arch);
    for (size_t i = 0; i < num; i++) {
        snprintf(quoted, sizeof quoted, "\"%s\"", m[i].key);
        if (!strstr(edit, quoted))
            n += snprintf(text + n, sizeof text - (size_t)n, ", %s: %s", quoted, m[i].value);
    }
    snprintf(text + n, sizeof text - (size_t)n, "%s%s}", *edit && !gone ? ", " : "",
             gone ? "" : edit);
    return text;
}

static fp8_status parse(fp8_model_config *c, const char *json) {
    return fp8_config_parse(c, "config.json", json, strlen(json));
}

/* ---- defaults -------------------------------------------------------------------------------- */

static void test_defaults(void) {
    static const struct {
        const char *arch;
        int64_t kv_heads, head_dim, max_position, bos, eos; /* eos -1: none */
        double eps, theta;
        fp8_activation act;
        int tie, qkv, o, mlp, qk_norm;
        int64_t window[3];
    } cases[] = {
        {"llama", 32, 2, 2048, 1, 2, 1e-6, 1e4, FP8_ACT_SILU, 0, 0, 0, 0, 0, {0, 0, 0}},
        {"mistral", 8, 2, 131072, 1, 2, 1e-6, 1e4, FP8_ACT_SILU, 0, 0, 0, 0, 0, {4096, 4096, 4096}},
        {"qwen2", 32, 2, 32768, -1, -1, 1e-6, 1e4, FP8_ACT_SILU, 0, 1, 0, 0, 0, {0, 0, 0}},
        {"qwen3", 32, 128, 32768, -1, -1, 1e-6, 1e4, FP8_ACT_SILU, 0, 0, 0, 0, 1, {0, 0, 0}},
        {"gemma", 16, 256, 8192, 2, 1, 1e-6, 1e4, FP8_ACT_GELU_TANH, 1, 0, 0, 0, 0, {0, 0, 0}},
    };
    fp8_model_config c;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[512];
        check_case = cases[i].arch;
        snprintf(json, sizeof json,
                 "{\"model_type\": \"%s\", \"vocab_size\": 512, \"hidden_size\": 64, "
                 "\"intermediate_size\": 160, \"num_hidden_layers\": 3, "
                 "\"num_attention_heads\": 32}", cases[i].arch);
        CHECK_STATUS(parse(&c, json), FP8_OK);
        CHECK(strcmp(c.model_type, cases[i].arch) == 0);
        CHECK(strcmp(fp8_arch_name(c.arch), cases[i].arch) == 0);
        CHECK(c.hidden_size == 64 && c.intermediate_size == 160 && c.num_layers == 3);
        CHECK(c.vocab_size == 512 && c.num_heads == 32 && c.num_kv_heads == cases[i].kv_heads);
        CHECK(c.head_dim == cases[i].head_dim && c.max_position == cases[i].max_position);
        CHECK(c.bos_id == cases[i].bos && c.num_eos == (cases[i].eos >= 0));
        CHECK(cases[i].eos < 0 || c.eos_ids[0] == cases[i].eos);
        CHECK(c.norm_eps == cases[i].eps && c.act == cases[i].act);
        CHECK(c.rope.type == FP8_ROPE_DEFAULT && c.rope.theta == cases[i].theta);
        CHECK(c.tie_embeddings == cases[i].tie && c.qk_norm == cases[i].qk_norm);
        CHECK(c.qkv_bias == cases[i].qkv && c.o_bias == cases[i].o && c.mlp_bias == cases[i].mlp);
        CHECK(memcmp(c.layer_window, cases[i].window, sizeof cases[i].window) == 0);
        CHECK(c.has_quantization == 0);
    }
    check_case = "gpt2";
    CHECK_STATUS(parse(&c, make("gpt2", "")), FP8_OK);
    CHECK(c.arch == FP8_ARCH_GPT2 && c.intermediate_size == 256 && c.num_kv_heads == 4);
    CHECK(c.head_dim == 16 && c.max_position == 1024 && c.norm_eps == 1e-5);
    CHECK(c.act == FP8_ACT_GELU_TANH && c.rope.type == FP8_ROPE_NONE && c.tie_embeddings);
    CHECK(c.qkv_bias && c.o_bias && c.mlp_bias && c.bos_id == 50256 && c.eos_ids[0] == 50256);
}

/* What the later families add, by their classes' defaults and by one key. */
static void test_families(void) {
    enum {
        SCALAR, CAPS, LOGIT_CAPS, WINDOWS, LOCAL_THETA, THETA, HEADS, VOCAB, EXPERTS, TOP_K, EXPERT,
        SHARED, NORM_TOP_K, MIXED, ROTARY, QK_NORM, QKV_BIAS, ROPE_TYPE
    };
    static const struct {
        const char *arch, *edit;
        int field;
        double want;
    } cases[] = {
        {"gemma2", "", SCALAR, 1.0 / 16},
        {"gemma2", "\"query_pre_attn_scalar\": 64", SCALAR, 1.0 / 8},
        {"gemma2", "", CAPS, 50},
        {"gemma2", "\"attn_logit_softcapping\": null", CAPS, 0},
        {"gemma2", "", LOGIT_CAPS, 30},
        {"gemma2", "", WINDOWS, 101}, /* layers 0 and 2 of 3 slide */
        {"gemma2", "\"sliding_window\": null", WINDOWS, 0},
        {"gemma2", "-\"num_attention_heads\"", HEADS, 8},
        {"gemma2", "-\"vocab_size\"", VOCAB, 256000},
        {"gemma3_text", "", CAPS, 0},
        {"gemma3_text", "", WINDOWS, 111},
        {"gemma3_text", "\"sliding_window_pattern\": 3", WINDOWS, 110},
        {"gemma3_text", "", THETA, 1e6},
        {"gemma3_text", "", LOCAL_THETA, 1e4},
        {"gemma3_text", "\"rope_local_base_freq\": 500", LOCAL_THETA, 500},
        {"gemma3_text", "\"rope_parameters\": {\"sliding_attention\": {\"rope_theta\": 7}}",
         LOCAL_THETA, 7},
        {"gemma3_text", "", QK_NORM, 1},
        {"gemma3_text", "-\"vocab_size\"", VOCAB, 262208},
        {"phi3", "", ROTARY, 16},
        {"phi3", "\"partial_rotary_factor\": 0.75", ROTARY, 12},
        {"phi3", "", WINDOWS, 0},
        {"phi3", "\"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1,1,1,1,1,1,1,1], "
         "\"long_factor\": [2,2,2,2,2,2,2,2]}", ROPE_TYPE, FP8_ROPE_LONGROPE},
        {"phi3", "\"sliding_window\": 9", WINDOWS, 111},
        {"mixtral", "", EXPERTS, 8},
        {"mixtral", "", TOP_K, 2},
        {"mixtral", "", EXPERT, 160},
        {"mixtral", "", NORM_TOP_K, 1},
        {"mixtral", "", THETA, 1e6},
        {"mixtral", "", MIXED, 111},
        {"qwen2_moe", "", SHARED, 5632},
        {"qwen2_moe", "", NORM_TOP_K, 0},
        {"qwen2_moe", "", QKV_BIAS, 1},
        {"qwen2_moe", "\"qkv_bias\": false", QKV_BIAS, 0},
        {"qwen2_moe", "\"decoder_sparse_step\": 2", MIXED, 10},
        {"qwen3_moe", "\"mlp_only_layers\": [0, 2]", MIXED, 10},
        {"qwen3_moe", "\"num_local_experts\": 6, \"num_experts\": 7, \"num_experts_per_tok\": 3",
         EXPERTS, 6},
        {"qwen3_moe", "\"norm_topk_prob\": true", NORM_TOP_K, 1},
        {"qwen3_moe", "", SHARED, 0},
        {"llama", "", EXPERTS, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static fp8_model_config c;
        double windows = 0, mixed = 0;

        check_case = *cases[i].edit ? cases[i].edit : cases[i].arch;
        CHECK_STATUS(parse(&c, make(cases[i].arch, cases[i].edit)), FP8_OK);
        for (int l = 0; l < 3; l++) {
            windows = 10 * windows + (c.layer_window[l] > 0);
            mixed = 10 * mixed + c.layer_is_mixed[l];
        }
        const double got[] = {
            [SCALAR] = c.attention_scale, [CAPS] = c.softcap, [LOGIT_CAPS] = c.logit_softcap,
            [WINDOWS] = windows, [LOCAL_THETA] = c.rope_local.theta, [THETA] = c.rope.theta,
            [HEADS] = (double)c.num_heads, [VOCAB] = (double)c.vocab_size,
            [EXPERTS] = (double)c.num_experts, [TOP_K] = (double)c.experts_per_token,
            [EXPERT] = (double)c.expert_size, [SHARED] = (double)c.shared_size,
            [NORM_TOP_K] = c.norm_top_k, [MIXED] = mixed, [ROTARY] = (double)c.rotary_dim,
            [QK_NORM] = c.qk_norm, [QKV_BIAS] = c.qkv_bias, [ROPE_TYPE] = c.rope.type,
        };
        CHECK(fabs(got[cases[i].field] - cases[i].want) <= 1e-12 * cases[i].want);
    }
}

/* Of a multimodal model text_config counts, and around it only what it does not say itself. */
static void test_text_config(void) {
    static const char *const texts[] = {
        "{\"eos_token_id\": [7, 8], \"tie_word_embeddings\": true, \"hidden_size\": 1, "
        "\"quantization_config\": {}, \"text_config\": %s}",
        "{\"text_config\": %s, \"hidden_size\": 1, \"quantization_config\": {}, "
        "\"eos_token_id\": [7, 8], \"tie_word_embeddings\": true}",
    };
    for (int i = 0; i < 2; i++) {
        static fp8_model_config c;
        char text[4600];

        check_case = i ? "text_config first" : "text_config last";
        snprintf(text, sizeof text, texts[i], make("llama", "-\"eos_token_id\""));
        CHECK_STATUS(parse(&c, text), FP8_OK);
        CHECK(c.multimodal && c.hidden_size == 64 && c.tie_embeddings && c.has_quantization);
        CHECK(c.num_eos == 2 && c.eos_ids[0] == 7 && c.eos_ids[1] == 8 && c.bos_id == 0);
        snprintf(text, sizeof text, texts[i], make("llama", "\"tie_word_embeddings\": false"));
        CHECK_STATUS(parse(&c, text), FP8_OK);
        CHECK(!c.tie_embeddings && c.num_eos == 1 && c.eos_ids[0] == 1);
    }
}

/* ---- single keys ----------------------------------------------------------------------------- */

enum {
    OF_KV_HEADS, OF_HEAD_DIM, OF_ACT, OF_BOS, OF_NUM_EOS, OF_EOS0, OF_EOS1, OF_TIE, OF_QKV, OF_O,
    OF_MLP, OF_WINDOW0, OF_WINDOW2, OF_ROPE, OF_ROPE_LENGTH, OF_INNER, OF_QUANT, OF_MAX_POSITION
};

static int64_t field(const fp8_model_config *c, int what) {
    switch (what) {
    case OF_KV_HEADS: return c->num_kv_heads;
    case OF_HEAD_DIM: return c->head_dim;
    case OF_ACT: return c->act;
    case OF_BOS: return c->bos_id;
    case OF_NUM_EOS: return c->num_eos;
    case OF_EOS0: return c->eos_ids[0];
    case OF_EOS1: return c->eos_ids[1];
    case OF_TIE: return c->tie_embeddings;
    case OF_QKV: return c->qkv_bias;
    case OF_O: return c->o_bias;
    case OF_MLP: return c->mlp_bias;
    case OF_WINDOW0: return c->layer_window[0];
    case OF_WINDOW2: return c->layer_window[2];
    case OF_ROPE: return c->rope.type;
    case OF_ROPE_LENGTH: return c->rope.original_max_position;
    case OF_INNER: return c->intermediate_size;
    case OF_QUANT: return c->has_quantization;
    default: return c->max_position;
    }
}

static void test_keys(void) {
    static const struct {
        const char *arch, *edit;
        int what;
        int64_t want;
    } cases[] = {
        {"llama", "\"num_key_value_heads\": null", OF_KV_HEADS, 4},
        {"mistral", "\"num_key_value_heads\": null", OF_KV_HEADS, 4},
        {"llama", "\"head_dim\": null", OF_HEAD_DIM, 16},
        {"qwen3", "\"head_dim\": null", OF_HEAD_DIM, 16},
        {"llama", "\"head_dim\": 128", OF_HEAD_DIM, 128},
        {"llama", "\"head_dim\": 32, \"hidden_size\": 81", OF_HEAD_DIM, 32},
        {"gpt2", "\"head_dim\": 128", OF_HEAD_DIM, 16},
        {"llama", "\"hidden_act\": \"gelu\"", OF_ACT, FP8_ACT_GELU_ERF},
        {"llama", "\"hidden_act\": \"relu\"", OF_ACT, FP8_ACT_RELU},
        {"llama", "\"hidden_act\": null", OF_ACT, FP8_ACT_SILU},
        {"gemma", "\"hidden_act\": \"gelu\"", OF_ACT, FP8_ACT_GELU_TANH},
        {"gemma", "\"hidden_act\": \"gelu\", \"hidden_activation\": null", OF_ACT,
         FP8_ACT_GELU_TANH},
        {"gemma", "\"hidden_act\": \"silu\", \"hidden_activation\": \"gelu\"", OF_ACT,
         FP8_ACT_GELU_ERF},
        {"gemma", "\"hidden_act\": 3, \"hidden_activation\": \"gelu_new\"", OF_ACT,
         FP8_ACT_GELU_TANH},
        {"gpt2", "\"activation_function\": \"relu\"", OF_ACT, FP8_ACT_RELU},
        {"llama", "\"bos_token_id\": null", OF_BOS, -1},
        {"llama", "\"bos_token_id\": 128000", OF_BOS, 128000},
        {"llama", "\"eos_token_id\": null", OF_NUM_EOS, 0},
        {"llama", "\"eos_token_id\": []", OF_NUM_EOS, 0},
        {"llama", "\"eos_token_id\": 7", OF_EOS0, 7},
        {"llama", "\"eos_token_id\": [128001, 128008, 128009]", OF_NUM_EOS, 3},
        {"llama", "\"eos_token_id\": [128001, 128008, 128009]", OF_EOS1, 128008},
        {"llama", "\"tie_word_embeddings\": true", OF_TIE, 1},
        {"gemma", "\"tie_word_embeddings\": false", OF_TIE, 0},
        {"llama", "\"attention_bias\": true", OF_QKV, 1},
        {"llama", "\"attention_bias\": true", OF_O, 1},
        {"qwen3", "\"attention_bias\": true", OF_O, 1},
        {"llama", "\"mlp_bias\": true", OF_MLP, 1},
        {"llama", "\"mlp_bias\": true", OF_O, 0},
        {"llama", "\"sliding_window\": 16", OF_WINDOW0, 0},
        {"mistral", "\"sliding_window\": 16", OF_WINDOW2, 16},
        {"mistral", "\"sliding_window\": null", OF_WINDOW0, 0},
        {"mistral", "\"sliding_window\": 0", OF_WINDOW0, 0},
        {"mistral", "\"sliding_window\": 16, \"layer_types\": [\"sliding_attention\", "
         "\"sliding_attention\", \"sliding_attention\"]", OF_WINDOW0, 16},
        {"qwen2", "\"sliding_window\": 16, \"use_sliding_window\": false", OF_WINDOW2, 0},
        {"qwen2", "\"sliding_window\": 16, \"use_sliding_window\": true", OF_WINDOW2, 0},
        {"qwen2", "\"sliding_window\": 16, \"use_sliding_window\": true, \"max_window_layers\": 2",
         OF_WINDOW0, 0},
        {"qwen2", "\"sliding_window\": 16, \"use_sliding_window\": true, \"max_window_layers\": 2",
         OF_WINDOW2, 16},
        {"qwen2", "\"use_sliding_window\": true, \"max_window_layers\": 0", OF_WINDOW0, 4096},
        {"qwen3", "\"sliding_window\": 8, \"use_sliding_window\": true, \"max_window_layers\": 2, "
         "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\"]",
         OF_WINDOW0, 8},
        {"qwen3", "\"sliding_window\": 8, \"use_sliding_window\": true, \"max_window_layers\": 2, "
         "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\"]",
         OF_WINDOW2, 0},
        {"llama", "\"rope_scaling\": null", OF_ROPE, FP8_ROPE_DEFAULT},
        {"llama", "\"rope_scaling\": {}", OF_ROPE, FP8_ROPE_DEFAULT},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}", OF_ROPE,
         FP8_ROPE_LINEAR},
        {"llama", "\"rope_scaling\": {\"rope_type\": \"linear\", \"type\": \"yarn\", "
         "\"factor\": 2.0}", OF_ROPE, FP8_ROPE_LINEAR},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8, "
         "\"low_freq_factor\": 1, \"high_freq_factor\": 4}, "
         "\"original_max_position_embeddings\": 64", OF_ROPE_LENGTH, 64},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2}, "
         "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}", OF_ROPE, FP8_ROPE_LINEAR},
        {"llama", "\"partial_rotary_factor\": 1.0", OF_ROPE, FP8_ROPE_DEFAULT},
        {"gpt2", "\"n_inner\": null", OF_INNER, 256},
        {"gpt2", "\"n_inner\": 100", OF_INNER, 100},
        {"gpt2", "\"n_positions\": 77", OF_MAX_POSITION, 77},
        {"gpt2", "\"scale_attn_weights\": true, \"reorder_and_upcast_attn\": false", OF_TIE, 1},
        {"llama", "\"quantization_config\": {\"bits\": 4}", OF_QUANT, 1},
        {"llama", "\"quantization_config\": null", OF_QUANT, 0},
        {"llama", "\"pretraining_tp\": 1, \"torch_dtype\": \"bfloat16\", \"x\": [{}, [1e5]]",
         OF_KV_HEADS, 2},
    };
    fp8_model_config c;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].edit;
        CHECK_STATUS(parse(&c, make(cases[i].arch, cases[i].edit)), FP8_OK);
        if (field(&c, cases[i].what) != cases[i].want)
            fprintf(stderr, "%s: got %lld\n", cases[i].arch, (long long)field(&c, cases[i].what));
        CHECK(field(&c, cases[i].what) == cases[i].want);
    }
    check_case = "theta";
    CHECK_STATUS(parse(&c, make("llama", "\"rope_theta\": 5e5, \"rope_parameters\": {}")), FP8_OK);
    CHECK(c.rope.theta == 5e5);
    CHECK_STATUS(parse(&c, make("llama", "\"rope_theta\": 5e5, \"rope_parameters\": "
                                         "{\"rope_theta\": 1000000}")), FP8_OK);
    CHECK(c.rope.theta == 1e6);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refusals(void) {
    static const struct {
        const char *arch, *edit;
        fp8_status want;
        const char *says;
    } cases[] = {
        {"falcon", "", FP8_EUNSUPPORTED,
         "config.json: model_type 'falcon' is not supported (supported: llama, mistral, qwen2, "
         "qwen3, gemma, gpt2, gemma2, gemma3_text, phi3, opt, mixtral, qwen2_moe, qwen3_moe)"},
        {"llama", "\"model_type\": \"Llama\"", FP8_EUNSUPPORTED, "model_type 'Llama'"},
        {"llama", "\"model_type\": \"llama\\u0000\"", FP8_EUNSUPPORTED, "model_type 'llama?'"},
        {"llama", "\"model_type\": null", FP8_EFORMAT, "model_type"},
        {"llama", "\"model_type\": 3", FP8_EFORMAT, "model_type: expected a string, found 3"},
        {"llama", "\"text_config\": {}", FP8_EFORMAT, "text_config: model_type is missing"},
        {"llama", "\"text_config\": 3", FP8_EFORMAT, "text_config: expected an object"},
        {"llama", "\"text_config\": {\"model_type\": \"qwen2_vl_text\"}", FP8_EUNSUPPORTED,
         "text_config: model_type 'qwen2_vl_text'"},
        {"llama", "\"text_config\": {\"model_type\": \"llama\", \"text_config\": {}}",
         FP8_EFORMAT,
         "text_config: expected an object without"},
        {"llama", "\"hidden_size\": 0", FP8_EFORMAT,
         "hidden_size: expected an integer from 1 to 2147483647, found 0"},
        {"llama", "\"hidden_size\": -64", FP8_EFORMAT, "found -64"},
        {"llama", "\"hidden_size\": 2147483648", FP8_EFORMAT, "found 2147483648"},
        {"llama", "\"hidden_size\": 18446744073709551615", FP8_EFORMAT, "found 1.84467e+19"},
        {"llama", "\"hidden_size\": 64.5", FP8_EFORMAT, "found 64.5"},
        {"llama", "\"hidden_size\": 64.0", FP8_EFORMAT, "hidden_size: expected an integer"},
        {"llama", "\"hidden_size\": 1e400", FP8_EFORMAT, "number"},
        {"llama", "\"hidden_size\": \"64\"", FP8_EFORMAT, "found '64'"},
        {"llama", "\"hidden_size\": [64]", FP8_EFORMAT, "hidden_size"},
        {"llama", "\"hidden_size\": true", FP8_EFORMAT, "hidden_size"},
        {"llama", "\"hidden_size\": null", FP8_EFORMAT, "hidden_size is missing"},
        {"llama", "-\"hidden_size\"", FP8_EFORMAT, "hidden_size is missing"},
        {"llama", "-\"intermediate_size\"", FP8_EFORMAT, "intermediate_size is missing"},
        {"llama", "-\"vocab_size\"", FP8_EFORMAT, "vocab_size is missing"},
        {"llama", "-\"num_hidden_layers\"", FP8_EFORMAT, "num_hidden_layers is missing"},
        {"llama", "-\"num_attention_heads\"", FP8_EFORMAT, "num_attention_heads is missing"},
        {"gpt2", "-\"n_head\"", FP8_EFORMAT, "n_head is missing"},
        {"gpt2", "\"n_embd\": 1000000000", FP8_EFORMAT, "n_inner: 4 * 1000000000"},
        {"gpt2", "\"n_embd\": 66", FP8_EFORMAT, "hidden size 66 is no multiple of 4 heads"},
        {"llama", "\"num_hidden_layers\": 1025", FP8_EUNSUPPORTED, "1025 layers: at most 1024"},
        {"llama", "\"num_hidden_layers\": 0", FP8_EFORMAT, "num_hidden_layers"},
        {"llama", "\"vocab_size\": 0", FP8_EFORMAT, "vocab_size"},
        {"llama", "\"max_position_embeddings\": 0", FP8_EFORMAT, "max_position_embeddings"},
        {"llama", "\"num_key_value_heads\": 3", FP8_EFORMAT,
         "4 heads are no multiple of 3 key-value heads"},
        {"llama", "\"num_key_value_heads\": 8", FP8_EFORMAT, "4 heads are no multiple of 8"},
        {"llama", "\"num_key_value_heads\": 0", FP8_EFORMAT, "num_key_value_heads"},
        {"llama", "\"head_dim\": null, \"hidden_size\": 66", FP8_EFORMAT,
         "hidden size 66 is no multiple of 4 heads"},
        {"llama", "\"head_dim\": 15", FP8_EFORMAT, "head_dim 15 is odd"},
        {"llama", "\"head_dim\": 0", FP8_EFORMAT, "head_dim"},
        {"llama", "\"rms_norm_eps\": 0", FP8_EFORMAT, "rms_norm_eps: expected a positive number"},
        {"llama", "\"rms_norm_eps\": -1e-5", FP8_EFORMAT, "rms_norm_eps"},
        {"llama", "\"rms_norm_eps\": \"1e-5\"", FP8_EFORMAT, "found '1e-5'"},
        {"llama", "\"rms_norm_eps\": 1e999", FP8_EFORMAT, "number"},
        {"llama", "\"hidden_act\": \"mish\"", FP8_EUNSUPPORTED, "hidden_act 'mish'"},
        {"llama", "\"hidden_act\": 1", FP8_EFORMAT, "hidden_act: expected a string"},
        {"gpt2", "\"activation_function\": \"tanh\"", FP8_EUNSUPPORTED,
         "activation_function 'tanh'"},
        {"llama", "\"tie_word_embeddings\": 1", FP8_EFORMAT, "expected true or false, found 1"},
        {"llama", "\"attention_bias\": \"yes\"", FP8_EFORMAT, "attention_bias"},
        {"mistral", "\"attention_bias\": true", FP8_EUNSUPPORTED, "attention_bias"},
        {"qwen2", "\"mlp_bias\": true", FP8_EUNSUPPORTED, "mlp_bias"},
        {"gemma", "\"use_bidirectional_attention\": true", FP8_EUNSUPPORTED,
         "use_bidirectional_attention"},
        {"qwen2", "\"is_causal\": false", FP8_EUNSUPPORTED, "is_causal"},
        {"gpt2", "\"scale_attn_weights\": false", FP8_EUNSUPPORTED, "scale_attn_weights"},
        {"gpt2", "\"scale_attn_by_inverse_layer_idx\": true", FP8_EUNSUPPORTED,
         "scale_attn_by_inverse_layer_idx"},
        {"gpt2", "\"reorder_and_upcast_attn\": true", FP8_EUNSUPPORTED, "reorder_and_upcast_attn"},
        {"gpt2", "\"add_cross_attention\": true", FP8_EUNSUPPORTED, "add_cross_attention"},
        {"llama", "\"rope_scaling\": {\"type\": \"mrope\", \"factor\": 2}", FP8_EUNSUPPORTED,
         "rope_type 'mrope' is not supported (supported: default, linear, llama3, dynamic, yarn, "
         "longrope)"},
        {"llama", "\"rope_scaling\": {\"type\": \"dynamic\"}", FP8_EFORMAT, "factor is missing"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4, "
         "\"beta_fast\": 0.5}", FP8_EFORMAT, "beta_fast: expected at least beta_slow"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4, \"truncate\": 1}",
         FP8_EFORMAT, "truncate: expected true or false"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4, "
         "\"attention_factor\": -1}", FP8_EFORMAT, "attention_factor: expected a positive"},
        {"llama", "\"rope_parameters\": {\"rope_type\": \"longrope\"}", FP8_EFORMAT,
         "short_factor: expected an array"},
        {"phi3", "\"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1, 1], "
         "\"long_factor\": [1, 1]}", FP8_EFORMAT,
         "short_factor: expected 8 factors, one a pair that turns, found 2"},
        {"phi3", "\"rope_scaling\": {\"type\": \"su\", \"short_factor\": [1, 0]}", FP8_EFORMAT,
         "short_factor: expected positive numbers, found 0"},
        {"phi3", "\"partial_rotary_factor\": 0.4", FP8_OK, ""},
        {"phi3", "\"partial_rotary_factor\": 0.2", FP8_EFORMAT, "0.2 of head_dim 16 turn"},
        {"phi3", "\"partial_rotary_factor\": 1.5", FP8_EUNSUPPORTED, "partial_rotary_factor 1.5"},
        {"phi3", "\"partial_rotary_factor\": 0.5, \"rope_parameters\": "
         "{\"partial_rotary_factor\": 1.0}", FP8_EFORMAT, "said twice, differently"},
        {"gemma2", "\"attn_logit_softcapping\": -5", FP8_EFORMAT, "attn_logit_softcapping"},
        {"gemma2", "\"query_pre_attn_scalar\": 0", FP8_EFORMAT, "query_pre_attn_scalar"},
        {"gemma3_text", "\"sliding_window_pattern\": 0", FP8_EFORMAT, "sliding_window_pattern"},
        {"gemma3_text", "\"rope_parameters\": {\"sliding_attention\": 3}", FP8_EFORMAT,
         "sliding_attention: expected an object"},
        {"mixtral", "\"num_local_experts\": 2, \"num_experts_per_tok\": 3", FP8_EFORMAT,
         "num_experts_per_tok: 3 of 2 experts"},
        {"mixtral", "\"num_local_experts\": 5000", FP8_EUNSUPPORTED, "5000 experts: at most 4096"},
        {"qwen2_moe", "\"num_experts\": 0", FP8_EFORMAT, "num_experts: expected an integer from 1"},
        {"qwen3_moe", "\"mlp_only_layers\": [-1]", FP8_EFORMAT,
         "mlp_only_layers: expected indices"},
        {"qwen3_moe", "\"use_sliding_window\": true", FP8_EUNSUPPORTED, "use_sliding_window"},
        {"opt", "\"do_layer_norm_before\": false", FP8_EUNSUPPORTED, "do_layer_norm_before false"},
        {"opt", "\"ffn_dim\": 160, \"word_embed_proj_dim\": 32", FP8_EUNSUPPORTED,
         "word_embed_proj_dim 32"},
        {"opt", "\"enable_bias\": false", FP8_EUNSUPPORTED, "enable_bias false"},
        {"llama", "\"rope_parameters\": {\"rope_type\": 5}", FP8_EUNSUPPORTED, "rope_type 5"},
        {"llama", "\"rope_parameters\": {\"full_attention\": {}}", FP8_EUNSUPPORTED,
         "by layer type ('full_attention')"},
        {"llama", "\"rope_parameters\": \"llama3\"", FP8_EFORMAT, "rope_parameters: expected an"},
        {"llama", "\"rope_parameters\": {\"rope_theta\": 0}", FP8_EFORMAT, "rope_theta"},
        {"llama", "\"rope_theta\": -1", FP8_EFORMAT, "rope_theta"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\"}", FP8_EFORMAT, "factor is missing"},
        {"llama", "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}", FP8_EFORMAT,
         "factor: expected a number of at least 1"},
        {"llama", "\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 64}", FP8_EFORMAT,
         "high_freq_factor"},
        {"llama", "\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4}", FP8_EFORMAT, "original_max_position_embeddings is missing"},
        {"llama", "\"rope_parameters\": {\"rope_theta\": 5e5}, \"rope_scaling\": {\"type\": "
         "\"linear\", \"factor\": 2}", FP8_EFORMAT, "rope_scaling contradicts rope_parameters"},
        {"llama", "\"partial_rotary_factor\": 0.5", FP8_EUNSUPPORTED, "partial_rotary_factor 0.5"},
        {"llama", "\"rope_parameters\": {\"partial_rotary_factor\": 0.25}", FP8_EUNSUPPORTED,
         "partial_rotary_factor 0.25"},
        {"mistral", "\"sliding_window\": -1", FP8_EFORMAT, "sliding_window"},
        {"mistral", "\"sliding_window\": 16, \"layer_types\": [\"sliding_attention\", "
         "\"full_attention\", \"sliding_attention\"]", FP8_EUNSUPPORTED,
         "layer_types[1] 'full_attention'"},
        {"qwen2", "\"layer_types\": [\"full_attention\"]", FP8_EFORMAT,
         "layer_types: expected 3 entries, found 1"},
        {"qwen2", "\"layer_types\": [\"full_attention\", \"full_attention\", "
         "\"sliding_attention\"]", FP8_EUNSUPPORTED, "layer_types[2] 'sliding_attention'"},
        {"qwen2", "\"layer_types\": [\"full_attention\", \"chunked_attention\", "
         "\"sliding_attention\"]", FP8_EUNSUPPORTED, "layer_types 'chunked_attention'"},
        {"qwen2", "\"layer_types\": [1, 2, 3]", FP8_EFORMAT, "layer_types: expected strings"},
        {"qwen2", "\"layer_types\": \"full_attention\"", FP8_EFORMAT, "layer_types: expected an"},
        {"llama", "\"eos_token_id\": [1, -1]", FP8_EFORMAT, "eos_token_id: expected token ids"},
        {"llama", "\"eos_token_id\": [1, \"2\"]", FP8_EFORMAT, "eos_token_id"},
        {"llama", "\"eos_token_id\": \"2\"", FP8_EFORMAT, "eos_token_id"},
        {"llama", "\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]",
         FP8_EUNSUPPORTED, "more than 16 ids"},
        {"llama", "\"bos_token_id\": -1", FP8_EFORMAT, "bos_token_id"},
        {"llama", "\"use_cache\": true", FP8_EFORMAT, "use_cache"}, /* twice */
    };
    fp8_model_config c;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = *cases[i].edit ? cases[i].edit : cases[i].arch;
        CHECK_STATUS(parse(&c, make(cases[i].arch, cases[i].edit)), cases[i].want);
        if (!strstr(fp8_last_message(), cases[i].says))
            fprintf(stderr, "message: %s\n", fp8_last_message());
        CHECK(strstr(fp8_last_message(), cases[i].says) != NULL);
        CHECK(strchr(fp8_last_message(), '\n') == NULL);
    }
    check_case = "documents";
    CHECK_STATUS(parse(&c, ""), FP8_EFORMAT);
    CHECK_STATUS(parse(&c, "[]"), FP8_EFORMAT);
    CHECK_STATUS(parse(&c, "{}"), FP8_EFORMAT);
    CHECK_STATUS(parse(&c, "{\"model_type\": \"llama\""), FP8_EFORMAT);
    CHECK_STATUS(parse(&c, "{} {}"), FP8_EFORMAT);
    CHECK_STATUS(fp8_config_load(&c, "no/such/folder"), FP8_ENOTFOUND);
}

/* ---- fixtures -------------------------------------------------------------------------------- */

static int test_fixtures(void) {
    static const struct {
        const char *name, *refusal; /* NULL: parses */
    } cases[] = {
        {"fixtures/llama", NULL},
        {"fixtures/llama-mha-bias", NULL},
        {"fixtures/llama-rope-linear", NULL},
        {"fixtures/llama3-rope", NULL},
        {"fixtures/mistral-window", NULL},
        {"fixtures/qwen2", NULL},
        {"fixtures/qwen3", NULL},
        {"fixtures/gemma", NULL},
        {"fixtures/gemma-odd", NULL},
        {"fixtures/gpt2", NULL},
        {"models/sample-1m", NULL},
        {"models/gpt2-3m", NULL},
        {"models/gemma-7m", NULL},
        {"models/llama-11m", NULL},
        {"fixtures/llama-rope-dynamic", NULL},
        {"fixtures/llama-yarn", NULL},
        {"fixtures/gemma2", NULL},
        {"fixtures/gemma3", NULL},
        {"fixtures/mixtral", NULL},
        {"fixtures/opt", NULL},
        {"fixtures/phi3", NULL},
        {"fixtures/phi3-longrope", NULL},
        {"fixtures/phi3-partial-rotary", NULL},
        {"fixtures/qwen2_moe", NULL},
        {"fixtures/qwen3_moe", NULL},
        {"fixtures/qwen3_moe-normtopk", NULL},
    };
    int v4_files = 0;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_model_config v5, v4;
        fp8_file f = {0};
        char folder[4096], relative[256];
        const char *path = check_data(cases[i].name);
        check_case = cases[i].name;
        if (!path) return TEST_SKIP;
        snprintf(folder, sizeof folder, "%s", path);
        CHECK_STATUS(fp8_config_load(&v5, folder), cases[i].refusal ? FP8_EUNSUPPORTED : FP8_OK);
        if (cases[i].refusal) CHECK(strstr(fp8_last_message(), cases[i].refusal) != NULL);
        snprintf(relative, sizeof relative, "%s/config_v4.json", cases[i].name);
        path = check_data(relative);
        if (!path) continue;
        CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
        CHECK_STATUS(fp8_config_parse(&v4, path, (const char *)f.data, f.bytes),
                     cases[i].refusal ? FP8_EUNSUPPORTED : FP8_OK);
        if (!cases[i].refusal) CHECK(memcmp(&v4, &v5, sizeof v4) == 0);
        v4_files++;
        fp8_file_unmap(&f);
    }
    CHECK(v4_files == 9);
    return 0;
}

int main(void) {
    int skipped;

    test_defaults();
    test_families();
    test_text_config();
    test_keys();
    test_refusals();
    skipped = test_fixtures();
    return CHECK_DONE() ? 1 : skipped;
}
