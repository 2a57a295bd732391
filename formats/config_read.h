/* formats/config_read.h - private: the keys of config.json that matter, read in whatever order they
 * come, before anything is made of them. */
#ifndef FP8_FORMATS_CONFIG_READ_H
#define FP8_FORMATS_CONFIG_READ_H
#include "formats/config.h"
#include "formats/json.h"
#include "formats/utf8.h"

#define FP8_CONFIG_KEYS(X)                                                                         \
    X(model_type)                                                                                  \
    X(text_config)                                                                                 \
    X(quantization_config)                                                                         \
    X(vocab_size)                                                                                  \
    X(hidden_size)                                                                                 \
    X(intermediate_size)                                                                           \
    X(num_hidden_layers)                                                                           \
    X(num_attention_heads)                                                                         \
    X(num_key_value_heads)                                                                         \
    X(head_dim)                                                                                    \
    X(max_position_embeddings)                                                                     \
    X(rms_norm_eps)                                                                                \
    X(hidden_act)                                                                                  \
    X(hidden_activation)                                                                           \
    X(n_embd)                                                                                      \
    X(n_inner)                                                                                     \
    X(n_layer)                                                                                     \
    X(n_head)                                                                                      \
    X(n_positions)                                                                                 \
    X(layer_norm_epsilon)                                                                          \
    X(activation_function)                                                                         \
    X(rope_parameters)                                                                             \
    X(rope_scaling)                                                                                \
    X(rope_theta)                                                                                  \
    X(partial_rotary_factor)                                                                       \
    X(original_max_position_embeddings)                                                            \
    X(attention_bias)                                                                              \
    X(mlp_bias)                                                                                    \
    X(tie_word_embeddings)                                                                         \
    X(sliding_window)                                                                              \
    X(use_sliding_window)                                                                          \
    X(max_window_layers)                                                                           \
    X(layer_types)                                                                                 \
    X(bos_token_id)                                                                                \
    X(eos_token_id)                                                                                \
    X(is_causal)                                                                                   \
    X(use_bidirectional_attention)                                                                 \
    X(add_cross_attention)                                                                         \
    X(scale_attn_weights)                                                                          \
    X(scale_attn_by_inverse_layer_idx)                                                             \
    X(reorder_and_upcast_attn)                                                                     \
    X(rope_local_base_freq)                                                                        \
    X(sliding_window_pattern)                                                                      \
    X(_sliding_window_pattern)                                                                     \
    X(query_pre_attn_scalar)                                                                       \
    X(attn_logit_softcapping)                                                                      \
    X(final_logit_softcapping)                                                                     \
    X(ffn_dim)                                                                                     \
    X(word_embed_proj_dim)                                                                         \
    X(do_layer_norm_before)                                                                        \
    X(_remove_final_layer_norm)                                                                    \
    X(layer_norm_elementwise_affine)                                                               \
    X(enable_bias)                                                                                 \
    X(num_experts)                                                                                 \
    X(num_local_experts)                                                                           \
    X(num_experts_per_tok)                                                                         \
    X(moe_intermediate_size)                                                                       \
    X(shared_expert_intermediate_size)                                                             \
    X(norm_topk_prob)                                                                              \
    X(decoder_sparse_step)                                                                         \
    X(mlp_only_layers)                                                                             \
    X(qkv_bias)

#define FP8_ROPE_KEYS(X)                                                                           \
    X(rope_type)                                                                                   \
    X(type)                                                                                        \
    X(rope_theta)                                                                                  \
    X(factor)                                                                                      \
    X(low_freq_factor)                                                                             \
    X(high_freq_factor)                                                                            \
    X(original_max_position_embeddings)                                                            \
    X(partial_rotary_factor)                                                                       \
    X(attention_factor)                                                                            \
    X(beta_fast)                                                                                   \
    X(beta_slow)                                                                                   \
    X(mscale)                                                                                      \
    X(mscale_all_dim)                                                                              \
    X(truncate)                                                                                    \
    X(short_factor)                                                                                \
    X(long_factor)                                                                                 \
    X(full_attention)                                                                              \
    X(sliding_attention)

#define X(key) FP8_TOP_##key,
enum { FP8_CONFIG_KEYS(X) FP8_NUM_TOP };
#undef X
#define X(key) FP8_ROPE_##key,
enum { FP8_ROPE_KEYS(X) FP8_NUM_ROPE };
#undef X

/* The objects that hold RoPE's keys: rope_parameters, rope_scaling, and by layer type. */
enum { FP8_ROPE_OF_V5, FP8_ROPE_OF_V4, FP8_ROPE_OF_FULL, FP8_ROPE_OF_SLIDING, FP8_NUM_ROPES };

typedef struct fp8_config_value {
    const char *key;
    fp8_json_type type; /* END: the key is absent */
    int64_t i64;
    double f64;
    char text[FP8_SHOWN_BYTES]; /* a string, fit to print */
    size_t len;                 /* its length in the file */
    size_t at;                  /* offset in the file */
} fp8_config_value;

typedef struct fp8_config_eos { /* eos_token_id when it is a list */
    int64_t ids[FP8_MAX_EOS];
    int32_t count;
} fp8_config_eos;

typedef struct fp8_config_reader {
    fp8_json *json;
    const char *name;
    int wrapped; /* 1: the keys below are those of text_config, what is around it lies in outer */
    fp8_config_value top[FP8_NUM_TOP];
    fp8_config_value rope[FP8_NUM_ROPES][FP8_NUM_ROPE];
    float factors[FP8_NUM_ROPES][2][FP8_MAX_ROPE_FACTORS]; /* short_factor, long_factor */
    int64_t num_factors[FP8_NUM_ROPES][2];
    fp8_config_value outer[FP8_NUM_TOP];
    fp8_config_eos eos, outer_eos;
    uint8_t slides[FP8_MAX_LAYERS]; /* layer_types: 1 where "sliding_attention" */
    int64_t num_layer_types;
    uint8_t is_dense[FP8_MAX_LAYERS]; /* mlp_only_layers */
    fp8_config_value other_layer_type; /* the first that is neither full nor sliding */
} fp8_config_reader;

/* r->json, r->name and r->wrapped are set, the rest zero. Reads the whole document. Wrapped:
 * quantization_config, tie_word_embeddings and the special tokens are the outer ones where
 * text_config has none. */
FP8_NODISCARD fp8_status fp8_config_read(fp8_config_reader *r);

int fp8_value_has(const fp8_config_value *v); /* neither absent nor null */
int fp8_value_is(const fp8_config_value *v, const char *text);

/* "'mish'", "-3", "0.5", "array": what was found, for a message. Returns buf. */
enum { FP8_FOUND_BYTES = FP8_SHOWN_BYTES + 4 };
const char *fp8_value_found(const fp8_config_value *v, char buf[FP8_FOUND_BYTES]);

/* FP8_EUNSUPPORTED "name: key 'value' is not supported". */
fp8_status fp8_value_refuse(const fp8_config_reader *r, const fp8_config_value *v);
/* FP8_EFORMAT "name: line l, column c: key: expected ..., found ...". */
fp8_status fp8_value_mismatch(const fp8_config_reader *r, const fp8_config_value *v,
                              const char *expected);

/* Typed values. Absent and null give the fallback. */
FP8_NODISCARD fp8_status fp8_value_int(const fp8_config_reader *r, const fp8_config_value *v,
                                       int64_t lo, int64_t fallback, int64_t *out); /* < 2^31 */
FP8_NODISCARD fp8_status fp8_value_bool(const fp8_config_reader *r, const fp8_config_value *v,
                                        int fallback, int *out);
/* Positive; fallback 0 means that the key must be there. */
FP8_NODISCARD fp8_status fp8_value_size(const fp8_config_reader *r, const fp8_config_value *v,
                                        int64_t fallback, int64_t *out);
FP8_NODISCARD fp8_status fp8_value_positive(const fp8_config_reader *r, const fp8_config_value *v,
                                            double fallback, double *out);
#endif
