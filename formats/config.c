/* formats/config.c - what the keys of config.json mean together. */
#include "formats/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/config_arch.h"
#include "formats/file.h"

typedef fp8_config_value value;
typedef fp8_config_reader reader;

#define TOP(key) (&r->top[FP8_TOP_##key]) /* r is the reader wherever it is used */

/* ---- words ---------------------------------------------------------------------------------- */

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
    {FP8_TOP_do_layer_norm_before, 0},
    {FP8_TOP__remove_final_layer_norm, 1},
    {FP8_TOP_layer_norm_elementwise_affine, 0},
    {FP8_TOP_enable_bias, 0},
};

static int absent(const value *v) { return v->type == FP8_JSON_END; }

/* ---- meaning --------------------------------------------------------------------------------- */

static fp8_status resolve_arch(const reader *r, const fp8_arch_row **row) {
    const value *v = TOP(model_type);
    char names[256], buf[FP8_FOUND_BYTES];

    if (fp8_value_has(TOP(text_config)))
        return fp8_value_mismatch(r, TOP(text_config), "an object without a text_config");
    if (absent(v))
        return FP8_FAIL(FP8_EFORMAT, "%s: %smodel_type is missing", r->name,
                        r->wrapped ? "text_config: " : "");
    if (v->type != FP8_JSON_STRING) return fp8_value_mismatch(r, v, "a string");
    *row = fp8_arch_find(v);
    if (*row) return FP8_OK;
    fp8_arch_list(names, sizeof names);
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %smodel_type %s is not supported (supported: %s)",
                    r->name, r->wrapped ? "text_config: " : "", fp8_value_found(v, buf), names);
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

static fp8_status resolve_sizes(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *inner = &r->top[row->keys->inner];
    const int gpt2 = row->arch == FP8_ARCH_GPT2;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_value_size(r, TOP(vocab_size), row->vocab, &c->vocab_size));
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

static fp8_status resolve_heads(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *kv = TOP(num_key_value_heads), *dim = TOP(head_dim);
    fp8_status st = FP8_OK;
    int64_t usual_kv = 0, usual_dim = 0;

    FP8_TRY(fp8_value_size(r, &r->top[row->keys->heads], row->num_heads, &c->num_heads));
    c->num_kv_heads = c->num_heads;
    if (!fp8_arch_is_classic(row->arch)) {
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

static fp8_status resolve_act(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *v = &r->top[row->keys->act];
    value usual_act = {.type = FP8_JSON_STRING, .len = strlen(row->act)};

    memcpy(usual_act.text, row->act, usual_act.len);
    if (fp8_arch_is_gemma(row->arch)) {
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

static int biased(fp8_bias_rule rule, int asked) {
    return rule == FP8_BIAS_ASKED ? asked : rule == FP8_BIAS_ALWAYS;
}

static fp8_status resolve_biases(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    fp8_status st = FP8_OK;
    int attention = 0, mlp = 0;

    FP8_TRY(fp8_value_bool(r, TOP(attention_bias), 0, &attention));
    FP8_TRY(fp8_value_bool(r, TOP(mlp_bias), 0, &mlp));
    if (attention && row->qkv == FP8_BIAS_NEVER) return fp8_value_refuse(r, TOP(attention_bias));
    if (mlp && row->mlp == FP8_BIAS_NEVER) return fp8_value_refuse(r, TOP(mlp_bias));
    c->qkv_bias = biased(row->qkv, attention);
    if (row->arch == FP8_ARCH_QWEN2_MOE)
        FP8_TRY(fp8_value_bool(r, TOP(qkv_bias), 1, &c->qkv_bias));
    c->o_bias = biased(row->o, attention);
    c->mlp_bias = biased(row->mlp, mlp);
done:
    return st;
}

/* *window = what sliding layers see (0: none may slide), *first = the first of them by rule. */
static fp8_status read_window(const reader *r, const fp8_arch_row *row, int64_t *window,
                              int64_t *first) {
    const value *v = TOP(sliding_window);
    fp8_status st = FP8_OK;
    int use = row->window == FP8_WINDOW_EVERY || row->window == FP8_WINDOW_PATTERN;

    *window = *first = 0;
    if (row->window == FP8_WINDOW_CHOSEN) {
        FP8_TRY(fp8_value_bool(r, TOP(use_sliding_window), 0, &use));
        FP8_TRY(fp8_value_int(r, TOP(max_window_layers), 0, 28, first));
    }
    if (row->window == FP8_WINDOW_REFUSED) {
        FP8_TRY(fp8_value_bool(r, TOP(use_sliding_window), 0, &use));
        if (use) return fp8_value_refuse(r, TOP(use_sliding_window));
    }
    if (use) FP8_TRY(fp8_value_int(r, v, 0, absent(v) ? row->window_size : 0, window));
done:
    return st;
}

/* *every = n: layers n - 1, 2 n - 1, ... see all keys; 0: there is no such pattern. */
static fp8_status read_pattern(const reader *r, const fp8_arch_row *row, int64_t *every) {
    const value *v = TOP(sliding_window_pattern);

    *every = 0;
    if (row->window != FP8_WINDOW_PATTERN) return FP8_OK;
    if (!fp8_value_has(v)) v = TOP(_sliding_window_pattern);
    return fp8_value_size(r, v, row->window_pattern, every);
}

static fp8_status resolve_windows(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *types = TOP(layer_types);
    const int listed = fp8_value_has(types);
    fp8_status st = FP8_OK;
    int64_t window = 0, first = 0, every = 0;

    FP8_TRY(read_window(r, row, &window, &first));
    FP8_TRY(read_pattern(r, row, &every));
    if (listed && types->type != FP8_JSON_ARRAY) return fp8_value_mismatch(r, types, "an array");
    if (fp8_value_has(&r->other_layer_type)) return fp8_value_refuse(r, &r->other_layer_type);
    if (listed && r->num_layer_types != c->num_layers)
        return fp8_json_fail(r->json, types->at, "layer_types: expected %lld entries, found %lld",
                             (long long)c->num_layers, (long long)r->num_layer_types);
    for (int64_t i = 0; i < c->num_layers; i++) {
        const int by_rule = every ? (i + 1) % every != 0 : i >= first;
        const int slides = listed ? r->slides[i] : window && by_rule;
        if (slides ? !window : window && row->window == FP8_WINDOW_EVERY)
            return FP8_FAIL(FP8_EUNSUPPORTED,
                            "%s: layer_types[%lld] '%s_attention' is not supported for %s with "
                            "a sliding window of %lld", r->name, (long long)i,
                            slides ? "sliding" : "full", row->name, (long long)window);
        c->layer_window[i] = slides ? window : 0;
    }
done:
    return st;
}

static fp8_status resolve_tokens(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *bos = TOP(bos_token_id), *eos = TOP(eos_token_id);
    fp8_status st = FP8_OK;
    int64_t id = -1;

    FP8_TRY(fp8_value_int(r, bos, 0, absent(bos) ? row->bos : -1, &c->bos_id));
    if (eos->type == FP8_JSON_ARRAY) {
        c->num_eos = r->eos.count;
        memcpy(c->eos_ids, r->eos.ids, sizeof r->eos.ids);
        return FP8_OK;
    }
    FP8_TRY(fp8_value_int(r, eos, 0, absent(eos) ? row->eos : -1, &id));
    if (id >= 0) c->eos_ids[c->num_eos++] = id;
done:
    return st;
}

/* A positive number, null for none; `usual` where the key is absent. */
static fp8_status read_cap(const reader *r, const value *v, double usual, double *out) {
    *out = absent(v) ? usual : 0;
    return fp8_value_has(v) ? fp8_value_positive(r, v, 1.0, out) : FP8_OK;
}

/* What becomes of scores and logits, of architectures that have it. */
static fp8_status resolve_scores(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    fp8_status st = FP8_OK;
    double scalar = 0;

    if (row->arch == FP8_ARCH_OPT) {
        int64_t width = 0;
        FP8_TRY(fp8_value_size(r, TOP(word_embed_proj_dim), c->hidden_size, &width));
        if (width != c->hidden_size) return fp8_value_refuse(r, TOP(word_embed_proj_dim));
    }
    if (row->query_scalar <= 0) return FP8_OK;
    FP8_TRY(fp8_value_positive(r, TOP(query_pre_attn_scalar), row->query_scalar, &scalar));
    c->attention_scale = 1.0 / sqrt(scalar);
    FP8_TRY(read_cap(r, TOP(attn_logit_softcapping), row->softcap, &c->softcap));
    FP8_TRY(read_cap(r, TOP(final_logit_softcapping), row->logit_softcap, &c->logit_softcap));
done:
    return st;
}

/* ---- mixtures of experts --------------------------------------------------------------------- */

static fp8_status read_experts(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const value *count = TOP(num_local_experts);
    fp8_status st = FP8_OK;

    if (!fp8_value_has(count)) count = TOP(num_experts);
    FP8_TRY(fp8_value_size(r, count, row->experts, &c->num_experts));
    FP8_TRY(fp8_value_size(r, TOP(num_experts_per_tok), row->per_token, &c->experts_per_token));
    if (c->num_experts > FP8_MAX_EXPERTS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %lld experts: at most %d are supported", r->name,
                        (long long)c->num_experts, (int)FP8_MAX_EXPERTS);
    if (c->experts_per_token > c->num_experts)
        return FP8_FAIL(FP8_EFORMAT, "%s: num_experts_per_tok: %lld of %lld experts", r->name,
                        (long long)c->experts_per_token, (long long)c->num_experts);
done:
    return st;
}

static fp8_status resolve_experts(const reader *r, const fp8_arch_row *row, fp8_model_config *c) {
    const int mixtral = row->arch == FP8_ARCH_MIXTRAL;
    const value *dense = TOP(mlp_only_layers);
    fp8_status st = FP8_OK;
    int64_t step = 1;

    if (row->experts == 0) return FP8_OK;
    FP8_TRY(read_experts(r, row, c));
    c->expert_size = c->intermediate_size;
    c->norm_top_k = 1;
    if (!mixtral) {
        FP8_TRY(fp8_value_size(r, TOP(moe_intermediate_size), row->expert_size, &c->expert_size));
        FP8_TRY(fp8_value_bool(r, TOP(norm_topk_prob), 0, &c->norm_top_k));
        FP8_TRY(fp8_value_size(r, TOP(decoder_sparse_step), 1, &step));
    }
    if (row->shared_size > 0)
        FP8_TRY(fp8_value_size(r, TOP(shared_expert_intermediate_size), row->shared_size,
                               &c->shared_size));
    if (fp8_value_has(dense) && dense->type != FP8_JSON_ARRAY)
        return fp8_value_mismatch(r, dense, "an array");
    for (int64_t i = 0; i < c->num_layers; i++)
        c->layer_is_mixed[i] = (i + 1) % step == 0 && !r->is_dense[i];
done:
    return st;
}

/* ---- public ---------------------------------------------------------------------------------- */

static fp8_status resolve(const reader *r, fp8_model_config *c) {
    const fp8_arch_row *row = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(resolve_arch(r, &row));
    c->arch = row->arch;
    snprintf(c->model_type, sizeof c->model_type, "%s", row->name);
    FP8_TRY(check_switches(r));
    FP8_TRY(resolve_sizes(r, row, c));
    FP8_TRY(resolve_heads(r, row, c));
    FP8_TRY(fp8_config_resolve_rope(r, row, c));
    FP8_TRY(fp8_value_positive(r, &r->top[row->keys->eps], row->eps, &c->norm_eps));
    FP8_TRY(resolve_act(r, row, c));
    FP8_TRY(resolve_biases(r, row, c));
    FP8_TRY(resolve_windows(r, row, c));
    FP8_TRY(resolve_scores(r, row, c));
    FP8_TRY(resolve_experts(r, row, c));
    FP8_TRY(resolve_tokens(r, row, c));
    FP8_TRY(fp8_value_bool(r, TOP(tie_word_embeddings), row->tie, &c->tie_embeddings));
    c->qk_norm = row->arch == FP8_ARCH_QWEN3 || row->arch == FP8_ARCH_GEMMA3 ||
                 row->arch == FP8_ARCH_QWEN3_MOE;
    c->multimodal = r->wrapped;
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
    if (r.top[FP8_TOP_text_config].type == FP8_JSON_OBJECT) { /* again, for what is inside */
        fp8_json_close(r.json);
        r = (reader){.name = name, .wrapped = 1};
        FP8_TRY(fp8_json_open(&r.json, name, json, len, NULL));
        FP8_TRY(fp8_config_read(&r));
    }
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
