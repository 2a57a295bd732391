/* formats/config.c - what the keys of config.json mean together. */
#include "formats/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/config_read.h"
#include "formats/file.h"

typedef fp8_config_value value;
typedef fp8_config_reader reader;

#define TOP(key) (&r->top[FP8_TOP_##key]) /* r is the reader wherever it is used */

/* ---- architectures --------------------------------------------------------------------------- */

/* Which key holds what. */
typedef struct spelling {
    int hidden, inner, layers, heads, positions, eps, act;
} spelling;

static const spelling usual = {
    FP8_TOP_hidden_size,         FP8_TOP_intermediate_size,       FP8_TOP_num_hidden_layers,
    FP8_TOP_num_attention_heads, FP8_TOP_max_position_embeddings, FP8_TOP_rms_norm_eps,
    FP8_TOP_hidden_act,
};
static const spelling of_gpt2 = {
    FP8_TOP_n_embd,      FP8_TOP_n_inner,            FP8_TOP_n_layer,
    FP8_TOP_n_head,      FP8_TOP_n_positions,        FP8_TOP_layer_norm_epsilon,
    FP8_TOP_activation_function,
};

typedef enum window_rule {
    WINDOW_NONE,
    WINDOW_EVERY, /* every layer, when sliding_window is not null */
    WINDOW_CHOSEN /* use_sliding_window, then layer_types or layers from max_window_layers on */
} window_rule;

typedef enum bias_rule { BIAS_NEVER, BIAS_ALWAYS, BIAS_ASKED } bias_rule; /* ASKED: by the config */

/* What transformers' configuration class takes for an absent key, and what its model hard-codes. */
typedef struct arch_row {
    const char *name;
    fp8_arch arch;
    const spelling *keys;
    int64_t num_kv_heads, head_dim; /* 0, or the key is null: num_heads, hidden_size / num_heads */
    int64_t max_position, bos, eos; /* -1: none */
    double eps;
    const char *act;
    int tie;
    window_rule window;
    bias_rule qkv, o, mlp;
} arch_row;

static const arch_row archs[] = {
    {"llama", FP8_ARCH_LLAMA, &usual, 0, 0, 2048, 1, 2, 1e-6, "silu", 0, WINDOW_NONE, BIAS_ASKED,
     BIAS_ASKED, BIAS_ASKED},
    {"mistral", FP8_ARCH_MISTRAL, &usual, 8, 0, 131072, 1, 2, 1e-6, "silu", 0, WINDOW_EVERY,
     BIAS_NEVER, BIAS_NEVER, BIAS_NEVER},
    {"qwen2", FP8_ARCH_QWEN2, &usual, 32, 0, 32768, -1, -1, 1e-6, "silu", 0, WINDOW_CHOSEN,
     BIAS_ALWAYS, BIAS_NEVER, BIAS_NEVER},
    {"qwen3", FP8_ARCH_QWEN3, &usual, 32, 128, 32768, -1, -1, 1e-6, "silu", 0, WINDOW_CHOSEN,
     BIAS_ASKED, BIAS_ASKED, BIAS_NEVER},
    {"gemma", FP8_ARCH_GEMMA, &usual, 16, 256, 8192, 2, 1, 1e-6, "gelu_pytorch_tanh", 1,
     WINDOW_NONE, BIAS_ASKED, BIAS_ASKED, BIAS_NEVER},
    {"gpt2", FP8_ARCH_GPT2, &of_gpt2, 0, 0, 1024, 50256, 50256, 1e-5, "gelu_new", 1, WINDOW_NONE,
     BIAS_ALWAYS, BIAS_ALWAYS, BIAS_ALWAYS},
};
enum { NUM_ARCHS = sizeof archs / sizeof *archs };

static const struct {
    const char *name;
    fp8_activation act;
} activations[] = {
    {"silu", FP8_ACT_SILU},
    {"swish", FP8_ACT_SILU},
    {"gelu_new", FP8_ACT_GELU_TANH},
    {"gelu_pytorch_tanh", FP8_ACT_GELU_TANH},
    {"gelu", FP8_ACT_GELU_ERF},
    {"relu", FP8_ACT_RELU},
};

/* Switches that change the arithmetic, and the setting that is not ours. */
static const struct {
    int key, refused;
} switches[] = {
    {FP8_TOP_is_causal, 0},
    {FP8_TOP_use_bidirectional_attention, 1},
    {FP8_TOP_add_cross_attention, 1},
    {FP8_TOP_scale_attn_weights, 0},
    {FP8_TOP_scale_attn_by_inverse_layer_idx, 1},
    {FP8_TOP_reorder_and_upcast_attn, 1},
};

const char *fp8_arch_name(fp8_arch a) {
    for (int i = 0; i < NUM_ARCHS; i++)
        if (archs[i].arch == a) return archs[i].name;
    return "?";
}

static int absent(const value *v) { return v->type == FP8_JSON_END; }

/* ---- meaning --------------------------------------------------------------------------------- */

static fp8_status resolve_arch(const reader *r, const arch_row **row) {
    const value *v = TOP(model_type);
    char names[128] = "", buf[FP8_FOUND_BYTES];

    if (fp8_value_has(TOP(text_config)))
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: model_type %s: text_config (a multimodal model) is not supported",
                        r->name, fp8_value_found(v, buf));
    if (absent(v)) return FP8_FAIL(FP8_EFORMAT, "%s: model_type is missing", r->name);
    if (v->type != FP8_JSON_STRING) return fp8_value_mismatch(r, v, "a string");
    for (int i = 0; i < NUM_ARCHS; i++) {
        const size_t at = strlen(names);
        *row = &archs[i];
        if (fp8_value_is(v, archs[i].name)) return FP8_OK;
        snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", archs[i].name);
    }
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: model_type %s is not supported (supported: %s)",
                    r->name, fp8_value_found(v, buf), names);
}

static fp8_status check_switches(const reader *r) {
    fp8_status st = FP8_OK;
    int on = 0;

    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        const value *v = &r->top[switches[i].key];
        FP8_TRY(fp8_value_bool(r, v, !switches[i].refused, &on));
        if (on == switches[i].refused) return fp8_value_refuse(r, v);
    }
done:
    return st;
}

static fp8_status resolve_sizes(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *inner = &r->top[row->keys->inner];
    const int gpt2 = row->arch == FP8_ARCH_GPT2;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_value_size(r, TOP(vocab_size), 0, &c->vocab_size));
    FP8_TRY(fp8_value_size(r, &r->top[row->keys->hidden], 0, &c->hidden_size));
    FP8_TRY(fp8_value_size(r, inner, gpt2 ? 4 * c->hidden_size : 0, &c->intermediate_size));
    FP8_TRY(fp8_value_size(r, &r->top[row->keys->layers], 0, &c->num_layers));
    FP8_TRY(fp8_value_size(r, &r->top[row->keys->positions], row->max_position, &c->max_position));
    if (c->intermediate_size > INT32_MAX)
        return FP8_FAIL(FP8_EFORMAT, "%s: %s: 4 * %lld is above 2147483647", r->name, inner->key,
                        (long long)c->hidden_size);
    if (c->num_layers > FP8_MAX_LAYERS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %lld layers: at most %d are supported", r->name,
                        (long long)c->num_layers, (int)FP8_MAX_LAYERS);
done:
    return st;
}

static fp8_status resolve_heads(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *kv = TOP(num_key_value_heads), *dim = TOP(head_dim);
    fp8_status st = FP8_OK;
    int64_t usual_kv = 0, usual_dim = 0;

    FP8_TRY(fp8_value_size(r, &r->top[row->keys->heads], 0, &c->num_heads));
    c->num_kv_heads = c->num_heads;
    if (row->arch != FP8_ARCH_GPT2) {
        usual_kv = absent(kv) && row->num_kv_heads ? row->num_kv_heads : c->num_heads;
        FP8_TRY(fp8_value_size(r, kv, usual_kv, &c->num_kv_heads));
        usual_dim = absent(dim) ? row->head_dim : 0;
        if (usual_dim || fp8_value_has(dim))
            FP8_TRY(fp8_value_size(r, dim, usual_dim, &c->head_dim));
    }
    if (c->num_heads % c->num_kv_heads)
        return FP8_FAIL(FP8_EFORMAT, "%s: %lld heads are no multiple of %lld key-value heads",
                        r->name, (long long)c->num_heads, (long long)c->num_kv_heads);
    if (c->head_dim) return FP8_OK;
    if (c->hidden_size % c->num_heads)
        return FP8_FAIL(FP8_EFORMAT, "%s: hidden size %lld is no multiple of %lld heads", r->name,
                        (long long)c->hidden_size, (long long)c->num_heads);
    c->head_dim = c->hidden_size / c->num_heads;
done:
    return st;
}

static fp8_status resolve_act(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *v = &r->top[row->keys->act];
    value usual_act = {.type = FP8_JSON_STRING, .len = strlen(row->act)};

    memcpy(usual_act.text, row->act, usual_act.len);
    if (row->arch == FP8_ARCH_GEMMA) {
        /* Gemma was first published as "gelu" and has always been computed with the tanh form. */
        if (fp8_value_is(v, "gelu")) v = &usual_act;
        if (fp8_value_has(TOP(hidden_activation))) v = TOP(hidden_activation);
    }
    if (!fp8_value_has(v)) v = &usual_act;
    if (v->type != FP8_JSON_STRING) return fp8_value_mismatch(r, v, "a string");
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++)
        if (fp8_value_is(v, activations[i].name)) {
            c->act = activations[i].act;
            return FP8_OK;
        }
    return fp8_value_refuse(r, v);
}

static int biased(bias_rule rule, int asked) {
    return rule == BIAS_ASKED ? asked : rule == BIAS_ALWAYS;
}

static fp8_status resolve_biases(const reader *r, const arch_row *row, fp8_model_config *c) {
    fp8_status st = FP8_OK;
    int attention = 0, mlp = 0;

    FP8_TRY(fp8_value_bool(r, TOP(attention_bias), 0, &attention));
    FP8_TRY(fp8_value_bool(r, TOP(mlp_bias), 0, &mlp));
    if (attention && row->qkv == BIAS_NEVER) return fp8_value_refuse(r, TOP(attention_bias));
    if (mlp && row->mlp == BIAS_NEVER) return fp8_value_refuse(r, TOP(mlp_bias));
    c->qkv_bias = biased(row->qkv, attention);
    c->o_bias = biased(row->o, attention);
    c->mlp_bias = biased(row->mlp, mlp);
done:
    return st;
}

/* *window = what sliding layers see (0: none may slide), *first = the first of them by rule. */
static fp8_status read_window(const reader *r, const arch_row *row, int64_t *window,
                              int64_t *first) {
    const value *v = TOP(sliding_window);
    fp8_status st = FP8_OK;
    int use = row->window == WINDOW_EVERY;

    *window = *first = 0;
    if (row->window == WINDOW_CHOSEN) {
        FP8_TRY(fp8_value_bool(r, TOP(use_sliding_window), 0, &use));
        FP8_TRY(fp8_value_int(r, TOP(max_window_layers), 0, 28, first));
    }
    if (use) FP8_TRY(fp8_value_int(r, v, 0, absent(v) ? 4096 : 0, window));
done:
    return st;
}

static fp8_status resolve_windows(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *types = TOP(layer_types);
    const int listed = fp8_value_has(types);
    fp8_status st = FP8_OK;
    int64_t window = 0, first = 0;

    FP8_TRY(read_window(r, row, &window, &first));
    if (listed && types->type != FP8_JSON_ARRAY) return fp8_value_mismatch(r, types, "an array");
    if (fp8_value_has(&r->other_layer_type)) return fp8_value_refuse(r, &r->other_layer_type);
    if (listed && r->num_layer_types != c->num_layers)
        return fp8_json_fail(r->json, types->at, "layer_types: expected %lld entries, found %lld",
                             (long long)c->num_layers, (long long)r->num_layer_types);
    for (int64_t i = 0; i < c->num_layers; i++) {
        const int slides = listed ? r->slides[i] : window && i >= first;
        if (slides ? !window : window && row->window == WINDOW_EVERY)
            return FP8_FAIL(FP8_EUNSUPPORTED,
                            "%s: layer_types[%lld] '%s_attention' is not supported for %s with "
                            "a sliding window of %lld", r->name, (long long)i,
                            slides ? "sliding" : "full", row->name, (long long)window);
        c->layer_window[i] = slides ? window : 0;
    }
done:
    return st;
}

static fp8_status resolve_tokens(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *bos = TOP(bos_token_id), *eos = TOP(eos_token_id);
    fp8_status st = FP8_OK;
    int64_t id = -1;

    FP8_TRY(fp8_value_int(r, bos, 0, absent(bos) ? row->bos : -1, &c->bos_id));
    if (eos->type == FP8_JSON_ARRAY) {
        c->num_eos = r->num_eos;
        memcpy(c->eos_ids, r->eos, sizeof r->eos);
        return FP8_OK;
    }
    FP8_TRY(fp8_value_int(r, eos, 0, absent(eos) ? row->eos : -1, &id));
    if (id >= 0) c->eos_ids[c->num_eos++] = id;
done:
    return st;
}

/* ---- RoPE ------------------------------------------------------------------------------------ */

static fp8_status whole_head(const reader *r, const value *v) {
    fp8_status st = FP8_OK;
    double part = 1;

    FP8_TRY(fp8_value_positive(r, v, 1.0, &part));
    if (part < 1.0 || part > 1.0) return fp8_value_refuse(r, v);
done:
    return st;
}

static fp8_status rope_kind(const reader *r, const value *keys, fp8_rope_type *out) {
    static const char *const names[] = {"none", "default", "linear", "llama3"};
    const value *v = &keys[FP8_ROPE_rope_type];
    char buf[FP8_FOUND_BYTES];

    *out = FP8_ROPE_DEFAULT;
    if (!fp8_value_has(v)) v = &keys[FP8_ROPE_type]; /* its name in old files */
    if (!fp8_value_has(v)) return FP8_OK;
    for (int i = FP8_ROPE_DEFAULT; i <= FP8_ROPE_LLAMA3; i++) {
        *out = (fp8_rope_type)i;
        if (fp8_value_is(v, names[i])) return FP8_OK;
    }
    return FP8_FAIL(FP8_EUNSUPPORTED,
                    "%s: rope_type %s is not supported (supported: default, linear, llama3)",
                    r->name, fp8_value_found(v, buf));
}

/* One rope_parameters or rope_scaling object (absent: all keys of `keys` are). */
static fp8_status resolve_rope(const reader *r, const value *keys, fp8_rope_config *rope) {
    const value *length = &keys[FP8_ROPE_original_max_position_embeddings];
    fp8_status st = FP8_OK;
    double theta = 0;

    for (int i = FP8_ROPE_full_attention; i <= FP8_ROPE_sliding_attention; i++)
        if (fp8_value_has(&keys[i]))
            return FP8_FAIL(FP8_EUNSUPPORTED, "%s: RoPE by layer type ('%s') is not supported",
                            r->name, keys[i].key);
    FP8_TRY(rope_kind(r, keys, &rope->type));
    FP8_TRY(whole_head(r, &keys[FP8_ROPE_partial_rotary_factor]));
    FP8_TRY(fp8_value_positive(r, TOP(rope_theta), 10000.0, &theta));
    FP8_TRY(fp8_value_positive(r, &keys[FP8_ROPE_rope_theta], theta, &rope->theta));
    if (rope->type == FP8_ROPE_DEFAULT) return FP8_OK;

    FP8_TRY(fp8_value_positive(r, &keys[FP8_ROPE_factor], 0, &rope->factor));
    if (rope->factor < 1.0)
        return fp8_value_mismatch(r, &keys[FP8_ROPE_factor], "a number of at least 1");
    if (rope->type == FP8_ROPE_LINEAR) return FP8_OK;

    FP8_TRY(fp8_value_positive(r, &keys[FP8_ROPE_low_freq_factor], 0, &rope->low_freq_factor));
    FP8_TRY(fp8_value_positive(r, &keys[FP8_ROPE_high_freq_factor], 0, &rope->high_freq_factor));
    if (rope->high_freq_factor <= rope->low_freq_factor)
        return fp8_value_mismatch(r, &keys[FP8_ROPE_high_freq_factor],
                                  "more than low_freq_factor");
    if (!fp8_value_has(length)) length = TOP(original_max_position_embeddings);
    FP8_TRY(fp8_value_size(r, length, 0, &rope->original_max_position));
done:
    return st;
}

/* v5 has rope_parameters, v4 rope_theta and rope_scaling; a file with both must say one thing. */
static fp8_status resolve_positions(const reader *r, const arch_row *row, fp8_model_config *c) {
    const value *objects[2] = {TOP(rope_parameters), TOP(rope_scaling)};
    fp8_rope_config rope[2] = {{0}, {0}};
    fp8_status st = FP8_OK;
    int num = 0;

    if (row->arch == FP8_ARCH_GPT2) return FP8_OK;
    FP8_TRY(whole_head(r, TOP(partial_rotary_factor)));
    for (int i = 0; i < 2; i++) {
        if (!fp8_value_has(objects[i])) continue;
        if (objects[i]->type != FP8_JSON_OBJECT)
            return fp8_value_mismatch(r, objects[i], "an object");
        FP8_TRY(resolve_rope(r, r->rope[i], &rope[num++]));
    }
    if (num == 0) FP8_TRY(resolve_rope(r, r->rope[0], &rope[0]));
    if (num == 2 && memcmp(&rope[0], &rope[1], sizeof rope[0]) != 0)
        return fp8_json_fail(r->json, objects[1]->at, "rope_scaling contradicts rope_parameters");
    c->rope = rope[0];
    if (c->head_dim % 2)
        return FP8_FAIL(FP8_EFORMAT, "%s: head_dim %lld is odd: RoPE turns pairs", r->name,
                        (long long)c->head_dim);
done:
    return st;
}

/* ---- public ---------------------------------------------------------------------------------- */

static fp8_status resolve(const reader *r, fp8_model_config *c) {
    const arch_row *row = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(resolve_arch(r, &row));
    c->arch = row->arch;
    snprintf(c->model_type, sizeof c->model_type, "%s", row->name);
    FP8_TRY(check_switches(r));
    FP8_TRY(resolve_sizes(r, row, c));
    FP8_TRY(resolve_heads(r, row, c));
    FP8_TRY(resolve_positions(r, row, c));
    FP8_TRY(fp8_value_positive(r, &r->top[row->keys->eps], row->eps, &c->norm_eps));
    FP8_TRY(resolve_act(r, row, c));
    FP8_TRY(resolve_biases(r, row, c));
    FP8_TRY(resolve_windows(r, row, c));
    FP8_TRY(resolve_tokens(r, row, c));
    FP8_TRY(fp8_value_bool(r, TOP(tie_word_embeddings), row->tie, &c->tie_embeddings));
    c->qk_norm = row->arch == FP8_ARCH_QWEN3;
    c->has_quantization = fp8_value_has(TOP(quantization_config));
done:
    return st;
}

fp8_status fp8_config_parse(fp8_model_config *out, const char *name, const char *json, size_t len) {
    fp8_status st = FP8_OK;
    reader r = {.name = name};

    memset(out, 0, sizeof *out);
    FP8_TRY(fp8_json_open(&r.json, name, json, len, NULL));
    FP8_TRY(fp8_config_read(&r));
    FP8_TRY(resolve(&r, out));
done:
    fp8_json_close(r.json);
    return st;
}

fp8_status fp8_config_load(fp8_model_config *out, const char *folder) {
    char *path = fp8_path_join(folder, "config.json");
    fp8_file f = {0};
    fp8_status st = FP8_OK;

    if (!path) return FP8_FAIL(FP8_ENOMEM, "path of %s/config.json", folder);
    FP8_TRY(fp8_file_map(&f, path));
    FP8_TRY(fp8_config_parse(out, path, (const char *)f.data, f.bytes));
done:
    fp8_file_unmap(&f);
    free(path);
    return st;
}
