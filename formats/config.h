/* formats/config.h - config.json of a decoder model, transformers v4 and v5 dialects, as plain
 * facts; and the textual insertion of quantization_config. */
#ifndef FP8_FORMATS_CONFIG_H
#define FP8_FORMATS_CONFIG_H
#include <stddef.h>
#include <stdint.h>

#include "core/activation.h"
#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* model_type -> architecture. Any other model_type is FP8_EUNSUPPORTED by name. */
typedef enum fp8_arch {
    FP8_ARCH_LLAMA,
    FP8_ARCH_MISTRAL,
    FP8_ARCH_QWEN2,
    FP8_ARCH_QWEN3,
    FP8_ARCH_GEMMA,
    FP8_ARCH_GPT2,
    FP8_ARCH_GEMMA2,
    FP8_ARCH_GEMMA3, /* its text part: gemma3_text */
    FP8_ARCH_PHI3,
    FP8_ARCH_OPT,
    FP8_ARCH_MIXTRAL,
    FP8_ARCH_QWEN2_MOE,
    FP8_ARCH_QWEN3_MOE
} fp8_arch;

typedef enum fp8_rope_type {
    FP8_ROPE_NONE,
    FP8_ROPE_DEFAULT,
    FP8_ROPE_LINEAR,
    FP8_ROPE_LLAMA3,
    FP8_ROPE_DYNAMIC,
    FP8_ROPE_YARN,
    FP8_ROPE_LONGROPE
} fp8_rope_type;

enum { FP8_MAX_ROPE_FACTORS = 512 };

typedef struct fp8_rope_config {
    fp8_rope_type type;
    double theta;
    double factor;           /* all but DEFAULT */
    double low_freq_factor;  /* LLAMA3 */
    double high_freq_factor; /* LLAMA3 */
    int64_t original_max_position; /* LLAMA3, DYNAMIC, YARN, LONGROPE */
    double attention_factor;       /* YARN, LONGROPE: multiplies cos and sin */
    double beta_fast, beta_slow;   /* YARN: rotations within original_max_position */
    int truncate;                  /* YARN: the ramp's ends are whole numbers */
    /* LONGROPE, [rotary_dim / 2]: up to original_max_position, and for longer sequences */
    float short_factor[FP8_MAX_ROPE_FACTORS], long_factor[FP8_MAX_ROPE_FACTORS];
} fp8_rope_config;

enum { FP8_MAX_EOS = 16, FP8_MAX_LAYERS = 1024, FP8_MAX_EXPERTS = 4096 };

typedef struct fp8_model_config {
    fp8_arch arch;
    char model_type[32];
    int64_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
    int64_t vocab_size, max_position;
    double norm_eps;
    fp8_activation act;
    fp8_rope_config rope;
    fp8_rope_config rope_local;      /* of layers with a window; NONE: theirs is `rope` too */
    int64_t rotary_dim;              /* elements of a head that turn, from the first on */
    double attention_scale;          /* multiplies Q K^T; 0: 1 / sqrt(head_dim) */
    double softcap, logit_softcap;   /* x -> cap * tanh(x / cap) of scores, of logits; 0: none */
    int qkv_bias, o_bias, mlp_bias; /* biases the architecture's Linears carry */
    int qk_norm;                    /* RMSNorm of each head's q and k before RoPE */
    int tie_embeddings;
    /* A mixture of experts; num_experts 0: none. A token takes the best experts_per_token by the
     * softmax of all; norm_top_k: their weights are made to sum to 1. shared_size 0: none is
     * shared */
    int64_t num_experts, experts_per_token, expert_size, shared_size;
    int norm_top_k;
    uint8_t layer_is_mixed[FP8_MAX_LAYERS]; /* 1: its MLP is the mixture */
    int64_t layer_window[FP8_MAX_LAYERS]; /* keys each query sees, itself included; 0 = all */
    int64_t bos_id;                       /* -1: none */
    int64_t eos_ids[FP8_MAX_EOS];
    int32_t num_eos;
    int multimodal;       /* the facts are those of text_config: the text part of a larger model */
    int has_quantization; /* a quantization_config key is there: formats/dialect.h reads it */
} fp8_model_config;

/* Parses and checks: every size positive and below 2^31, num_heads a multiple of num_kv_heads,
 * head_dim even where RoPE is used ... An absent key means what transformers' configuration class
 * of that model_type takes for it; of a multimodal model text_config counts; unknown keys are
 * ignored, those that would change the arithmetic refused. `name` is for messages. FP8_EFORMAT,
 * FP8_EUNSUPPORTED (architecture, activation, RoPE type: by name). */
FP8_NODISCARD fp8_status fp8_config_parse(fp8_model_config *out, const char *name,
                                          const char *json, size_t len);

/* config.json beside a checkpoint (a folder path). FP8_ENOTFOUND when there is none. */
FP8_NODISCARD fp8_status fp8_config_load(fp8_model_config *out, const char *folder);

/* *out = json (an object) with `value` (JSON text) as top-level key "quantization_config": replaced
 * when there, else put in before the closing brace; laid out as the file is (its indentation and
 * line ends; one line in a one-line file); every other byte stays. NUL-terminated as well; free().
 * FP8_EFORMAT: json or value is not JSON. */
FP8_NODISCARD fp8_status fp8_config_insert(char **out, size_t *out_len, const char *name,
                                           const char *json, size_t len, const char *value);

/* *out = json without its top-level key "quantization_config"; every other byte stays but the comma
 * and white space before the key (after it where it is the first). Otherwise as above. */
FP8_NODISCARD fp8_status fp8_config_remove(char **out, size_t *out_len, const char *name,
                                           const char *json, size_t len);

const char *fp8_arch_name(fp8_arch a);

#ifdef __cplusplus
}
#endif
#endif
