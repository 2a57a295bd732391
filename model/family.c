/* The table of families, and the names it makes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_impl.h"

/* The prefixes after the first are those of multimodal models. */
#define LLAMA_MODULES                                                                              \
    .prefixes = {"model.", "language_model.model.", "model.language_model."},                      \
    .embed = "embed_tokens", .layers = "layers", .final_norm = "norm", .norm1 = "input_layernorm", \
    .attention = "self_attn"

#define LLAMA_NAMES                                                                                \
    LLAMA_MODULES, .norm2 = "post_attention_layernorm", LLAMA_LINEARS

#define LLAMA_LINEARS                                                                              \
    .linears = {                                                                                   \
        [FP8_LINEAR_Q] = "self_attn.q_proj",                                                       \
        [FP8_LINEAR_K] = "self_attn.k_proj",                                                       \
        [FP8_LINEAR_V] = "self_attn.v_proj",                                                       \
        [FP8_LINEAR_O] = "self_attn.o_proj",                                                       \
        [FP8_LINEAR_GATE] = "mlp.gate_proj",                                                       \
        [FP8_LINEAR_UP] = "mlp.up_proj",                                                           \
        [FP8_LINEAR_DOWN] = "mlp.down_proj",                                                       \
    }

const fp8_family *fp8_family_of(fp8_arch arch) {
    static const fp8_family llama = {
        LLAMA_NAMES,
        .q_norm = "self_attn.q_norm", /* where config.qk_norm is set */
        .k_norm = "self_attn.k_norm",
        .norm = FP8_NORM_RMS,
        .layout = FP8_WEIGHT_OUT_IN,
    };
    static const fp8_family mixtral = {
        LLAMA_NAMES,
        .router = "block_sparse_moe.gate",
        .experts = "block_sparse_moe.experts",
        .expert_linears = {"w1", "w3", "w2"},
        .norm = FP8_NORM_RMS,
        .layout = FP8_WEIGHT_OUT_IN,
    };
    static const fp8_family qwen_moe = {
        LLAMA_NAMES,
        .q_norm = "self_attn.q_norm",
        .k_norm = "self_attn.k_norm",
        .router = "mlp.gate",
        .experts = "mlp.experts",
        .expert_linears = {"gate_proj", "up_proj", "down_proj"},
        .shared = "mlp.shared_expert",
        .shared_gate = "mlp.shared_expert_gate",
        .norm = FP8_NORM_RMS,
        .layout = FP8_WEIGHT_OUT_IN,
    };
    static const fp8_family gemma = {
        LLAMA_NAMES,
        .norm = FP8_NORM_RMS_PLUS,
        .layout = FP8_WEIGHT_OUT_IN,
        .scale_embeddings = 1,
    };
    static const fp8_family gemma2 = {
        LLAMA_MODULES,
        LLAMA_LINEARS,
        .norm1_after = "post_attention_layernorm",
        .norm2 = "pre_feedforward_layernorm",
        .norm2_after = "post_feedforward_layernorm",
        .q_norm = "self_attn.q_norm", /* Gemma 3 */
        .k_norm = "self_attn.k_norm",
        .norm = FP8_NORM_RMS_PLUS,
        .layout = FP8_WEIGHT_OUT_IN,
        .scale_embeddings = 1,
    };
    static const fp8_family phi3 = {
        LLAMA_MODULES,
        .norm2 = "post_attention_layernorm",
        .linears = {
            [FP8_LINEAR_QKV] = "self_attn.qkv_proj",
            [FP8_LINEAR_O] = "self_attn.o_proj",
            [FP8_LINEAR_GATE_UP] = "mlp.gate_up_proj",
            [FP8_LINEAR_DOWN] = "mlp.down_proj",
        },
        .norm = FP8_NORM_RMS,
        .layout = FP8_WEIGHT_OUT_IN,
    };
    static const fp8_family opt = {
        .prefixes = {"model.decoder.", "decoder."},
        .embed = "embed_tokens",
        .positions = "embed_positions",
        .layers = "layers",
        .final_norm = "final_layer_norm",
        .norm1 = "self_attn_layer_norm",
        .norm2 = "final_layer_norm",
        .attention = "self_attn",
        .linears = {
            [FP8_LINEAR_Q] = "self_attn.q_proj",
            [FP8_LINEAR_K] = "self_attn.k_proj",
            [FP8_LINEAR_V] = "self_attn.v_proj",
            [FP8_LINEAR_O] = "self_attn.out_proj",
            [FP8_LINEAR_UP] = "fc1",
            [FP8_LINEAR_DOWN] = "fc2",
        },
        .norm = FP8_NORM_LAYER,
        .layout = FP8_WEIGHT_OUT_IN,
        .position_offset = 2,
    };
    static const fp8_family gpt2 = {
        .prefixes = {"transformer.", ""},
        .embed = "wte",
        .positions = "wpe",
        .layers = "h",
        .final_norm = "ln_f",
        .norm1 = "ln_1",
        .norm2 = "ln_2",
        .attention = "attn",
        .linears = {
            [FP8_LINEAR_QKV] = "attn.c_attn",
            [FP8_LINEAR_O] = "attn.c_proj",
            [FP8_LINEAR_UP] = "mlp.c_fc",
            [FP8_LINEAR_DOWN] = "mlp.c_proj",
        },
        .norm = FP8_NORM_LAYER,
        .layout = FP8_WEIGHT_IN_OUT,
    };
    switch (arch) {
    case FP8_ARCH_LLAMA:
    case FP8_ARCH_MISTRAL:
    case FP8_ARCH_QWEN2:
    case FP8_ARCH_QWEN3: return &llama;
    case FP8_ARCH_MIXTRAL: return &mixtral;
    case FP8_ARCH_QWEN2_MOE:
    case FP8_ARCH_QWEN3_MOE: return &qwen_moe;
    case FP8_ARCH_GEMMA: return &gemma;
    case FP8_ARCH_GEMMA2:
    case FP8_ARCH_GEMMA3: return &gemma2;
    case FP8_ARCH_PHI3: return &phi3;
    case FP8_ARCH_OPT: return &opt;
    case FP8_ARCH_GPT2: return &gpt2;
    }
    return &llama;
}

const char *fp8_family_prefix(const fp8_family *f, const fp8_checkpoint *c) {
    for (size_t i = 0; i < sizeof f->prefixes / sizeof *f->prefixes && f->prefixes[i]; i++) {
        char name[FP8_NAME_BYTES];
        snprintf(name, sizeof name, "%s%s.weight", f->prefixes[i], f->embed);
        if (fp8_checkpoint_find(c, name)) return f->prefixes[i];
    }
    return f->prefixes[0];
}

const char *fp8_family_lm_head(const char *prefix) {
    return strcmp(prefix, "language_model.model.") == 0 ? "language_model.lm_head" : "lm_head";
}

void fp8_family_layer_name(char *buf, const fp8_family *f, const char *prefix, int64_t layer,
                           const char *part) {
    snprintf(buf, FP8_NAME_BYTES, "%s%s.%lld.%s", prefix, f->layers, (long long)layer, part);
}

/* What each kind reads; Linears that read one point share one weight amax. */
static fp8_point input_of(fp8_linear_kind kind) {
    static const fp8_point points[FP8_NUM_LINEAR_KINDS] = {
        [FP8_LINEAR_Q] = FP8_POINT_QKV_INPUT,   [FP8_LINEAR_K] = FP8_POINT_QKV_INPUT,
        [FP8_LINEAR_V] = FP8_POINT_QKV_INPUT,   [FP8_LINEAR_QKV] = FP8_POINT_QKV_INPUT,
        [FP8_LINEAR_O] = FP8_POINT_O_INPUT,     [FP8_LINEAR_GATE_UP] = FP8_POINT_UP_INPUT,
        [FP8_LINEAR_GATE] = FP8_POINT_UP_INPUT, [FP8_LINEAR_UP] = FP8_POINT_UP_INPUT,
        [FP8_LINEAR_DOWN] = FP8_POINT_DOWN_INPUT,
    };
    return points[kind];
}

static void size_of(const fp8_model_config *c, fp8_linear_kind kind, int64_t *in, int64_t *out) {
    const int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    const int64_t hidden = c->hidden_size, inner = c->intermediate_size;

    *in = kind == FP8_LINEAR_O ? q : kind == FP8_LINEAR_DOWN ? inner : hidden;
    switch (kind) {
    case FP8_LINEAR_Q: *out = q; return;
    case FP8_LINEAR_K:
    case FP8_LINEAR_V: *out = kv; return;
    case FP8_LINEAR_QKV: *out = q + 2 * kv; return;
    case FP8_LINEAR_O:
    case FP8_LINEAR_DOWN: *out = hidden; return;
    case FP8_LINEAR_GATE_UP: *out = 2 * inner; return;
    case FP8_LINEAR_GATE:
    case FP8_LINEAR_UP: *out = inner; return;
    }
}

/* A list of Linears being made. */
typedef struct lister {
    const fp8_model_config *config;
    const fp8_family *family;
    const char *prefix;
    fp8_linear_info *list;
    int64_t count;
} lister;

/* The next Linear; its name is already in place. Those that share a point share a group. */
static fp8_linear_info *add(lister *l, int32_t layer, fp8_linear_kind kind, int32_t expert) {
    fp8_linear_info *info = &l->list[l->count], *before = l->count ? info - 1 : NULL;

    info->layer = layer;
    info->kind = kind;
    info->expert = expert;
    info->input = input_of(kind);
    info->in_out = l->family->layout == FP8_WEIGHT_IN_OUT;
    size_of(l->config, kind, &info->in, &info->out);
    info->group = before ? before->group : 0;
    if (before && (before->layer != layer || before->expert != expert ||
                   before->input != info->input))
        info->group++;
    l->count++;
    return info;
}

static void add_expert(lister *l, int32_t layer, int32_t expert) {
    static const fp8_linear_kind kinds[3] = {FP8_LINEAR_GATE, FP8_LINEAR_UP, FP8_LINEAR_DOWN};
    const fp8_family *f = l->family;
    const int shared = expert == FP8_SHARED_EXPERT;
    const int64_t inner = shared ? l->config->shared_size : l->config->expert_size;

    for (int k = 0; k < 3; k++) {
        fp8_linear_info *info = &l->list[l->count];
        char part[FP8_NAME_BYTES / 2];
        if (shared) snprintf(part, sizeof part, "%s.%s", f->shared, f->expert_linears[k]);
        else snprintf(part, sizeof part, "%s.%d.%s", f->experts, expert, f->expert_linears[k]);
        fp8_family_layer_name(info->name, f, l->prefix, layer, part);
        info = add(l, layer, kinds[k], expert);
        *(kinds[k] == FP8_LINEAR_DOWN ? &info->in : &info->out) = inner;
        if (shared && kinds[k] == FP8_LINEAR_DOWN) info->input = FP8_POINT_SHARED_DOWN_INPUT;
    }
}

static void add_layer(lister *l, int32_t layer) {
    const int mixed = l->config->layer_is_mixed[layer];

    for (int kind = 0; kind < FP8_NUM_LINEAR_KINDS; kind++) {
        if (!l->family->linears[kind] || (mixed && kind > FP8_LINEAR_O)) continue;
        fp8_family_layer_name(l->list[l->count].name, l->family, l->prefix, layer,
                              l->family->linears[kind]);
        add(l, layer, (fp8_linear_kind)kind, FP8_NO_EXPERT);
    }
    if (!mixed) return;
    for (int32_t e = 0; e < l->config->num_experts; e++) add_expert(l, layer, e);
    if (l->config->shared_size) add_expert(l, layer, FP8_SHARED_EXPERT);
}

fp8_status fp8_model_list_linears(fp8_linear_info **out, int64_t *count,
                                  const fp8_model_config *config, const fp8_checkpoint *c) {
    const fp8_family *f = fp8_family_of(config->arch);
    const int64_t most = FP8_NUM_LINEAR_KINDS + 3 * (config->num_experts + 1);
    lister l = {.config = config, .family = f, .prefix = fp8_family_prefix(f, c)};

    *out = NULL;
    *count = 0;
    l.list = calloc((size_t)(config->num_layers * most), sizeof *l.list);
    if (!l.list)
        return FP8_FAIL(FP8_ENOMEM, "list of Linears of %lld layers",
                        (long long)config->num_layers);
    for (int32_t layer = 0; layer < config->num_layers; layer++) add_layer(&l, layer);
    *out = l.list;
    *count = l.count;
    return FP8_OK;
}

fp8_status fp8_model_attention_name(char *buf, size_t bytes, const fp8_model_config *config,
                                    const fp8_checkpoint *c, int32_t layer) {
    const fp8_family *f = fp8_family_of(config->arch);
    char name[FP8_NAME_BYTES];

    if (layer < 0 || layer >= config->num_layers)
        return FP8_FAIL(FP8_EINVAL, "layer %d of %lld", layer, (long long)config->num_layers);
    fp8_family_layer_name(name, f, fp8_family_prefix(f, c), layer, f->attention);
    if (strlen(name) >= bytes)
        return FP8_FAIL(FP8_EOVERFLOW, "'%s' needs %zu bytes, found %zu", name, strlen(name) + 1,
                        bytes);
    memcpy(buf, name, strlen(name) + 1);
    return FP8_OK;
}

const char *fp8_point_name(fp8_point p) {
    static const char *const names[FP8_NUM_POINTS] = {
        "hidden",  "qkv_input", "q",          "k",           "v",
        "o_input", "up_input",  "down_input", "shared_down_input", "lm_head_input",
    };
    return (unsigned)p < FP8_NUM_POINTS ? names[p] : "?";
}
