/* formats/config_arch.h - private: what transformers' configuration class of each model_type takes
 * for an absent key, and what its model hard-codes. One row an architecture. */
#ifndef FP8_FORMATS_CONFIG_ARCH_H
#define FP8_FORMATS_CONFIG_ARCH_H
#include "formats/config_read.h"

/* Which key holds what. */
typedef struct fp8_config_keys {
    int hidden, inner, layers, heads, positions, eps, act;
} fp8_config_keys;

typedef enum fp8_window_rule {
    FP8_WINDOW_NONE,
    FP8_WINDOW_EVERY,  /* every layer, when sliding_window is not null */
    /* use_sliding_window, then layer_types or layers from max_window_layers on */
    FP8_WINDOW_CHOSEN,
    FP8_WINDOW_PATTERN, /* layer_types, or all but every n-th layer: sliding_window_pattern */
    FP8_WINDOW_REFUSED  /* use_sliding_window is not served */
} fp8_window_rule;

/* ASKED: by the config */
typedef enum fp8_bias_rule { FP8_BIAS_NEVER, FP8_BIAS_ALWAYS, FP8_BIAS_ASKED } fp8_bias_rule;

typedef struct fp8_arch_row {
    const char *name;
    fp8_arch arch;
    const fp8_config_keys *keys;
    int64_t num_kv_heads, head_dim; /* 0, or the key is null: num_heads, hidden_size / num_heads */
    int64_t max_position, bos, eos; /* -1: none */
    double eps;
    const char *act;
    int tie;
    fp8_window_rule window;
    fp8_bias_rule qkv, o, mlp;
    /* 0 where the key must be there, or has no default of its own */
    int64_t vocab, num_heads;
    int64_t window_size, window_pattern;
    double theta, local_theta;     /* 0: 10000; 0: one RoPE for all layers */
    int partial_rotary;            /* 1: partial_rotary_factor is heeded, else it must be 1 */
    double query_scalar;           /* query_pre_attn_scalar; 0: the head's dimension */
    double softcap, logit_softcap; /* 0: none */
    int64_t experts, per_token, expert_size, shared_size; /* experts 0: a dense model */
} fp8_arch_row;

/* The row of a model_type; NULL: none. */
const fp8_arch_row *fp8_arch_find(const fp8_config_value *model_type);
/* "llama, mistral, ..." into buf. */
void fp8_arch_list(char *buf, size_t bytes);
/* GPT-2 and OPT: learned positions, as many key-value heads as heads, LayerNorm. */
int fp8_arch_is_classic(fp8_arch a);
int fp8_arch_is_gemma(fp8_arch a);

/* c->rope, rope_local and rotary_dim, from v5's rope_parameters or v4's rope_theta and
 * rope_scaling; c->head_dim and max_position are set (config_rope.c). */
FP8_NODISCARD fp8_status fp8_config_resolve_rope(const fp8_config_reader *r,
                                                 const fp8_arch_row *row, fp8_model_config *c);
#endif
