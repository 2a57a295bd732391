/* The table of architectures. */
#include "formats/config_arch.h"

#include <stdio.h>
#include <string.h>

static const fp8_config_keys usual = {
    FP8_TOP_hidden_size,         FP8_TOP_intermediate_size,       FP8_TOP_num_hidden_layers,
    FP8_TOP_num_attention_heads, FP8_TOP_max_position_embeddings, FP8_TOP_rms_norm_eps,
    FP8_TOP_hidden_act,
};
static const fp8_config_keys of_gpt2 = {
    FP8_TOP_n_embd,      FP8_TOP_n_inner,            FP8_TOP_n_layer,
    FP8_TOP_n_head,      FP8_TOP_n_positions,        FP8_TOP_layer_norm_epsilon,
    FP8_TOP_activation_function,
};
static const fp8_config_keys of_opt = {
    FP8_TOP_hidden_size,         FP8_TOP_ffn_dim,                 FP8_TOP_num_hidden_layers,
    FP8_TOP_num_attention_heads, FP8_TOP_max_position_embeddings, FP8_TOP_layer_norm_epsilon,
    FP8_TOP_activation_function,
};

#define NEVER FP8_BIAS_NEVER
#define ALWAYS FP8_BIAS_ALWAYS
#define ASKED FP8_BIAS_ASKED
#define GELU "gelu_pytorch_tanh"

static const fp8_arch_row rows[] = {
    {"llama", FP8_ARCH_LLAMA, &usual, 0, 0, 2048, 1, 2, 1e-6, "silu", 0, FP8_WINDOW_NONE, ASKED,
     ASKED, ASKED, .theta = 1e4},
    {"mistral", FP8_ARCH_MISTRAL, &usual, 8, 0, 131072, 1, 2, 1e-6, "silu", 0, FP8_WINDOW_EVERY,
     NEVER, NEVER, NEVER, .window_size = 4096},
    {"qwen2", FP8_ARCH_QWEN2, &usual, 32, 0, 32768, -1, -1, 1e-6, "silu", 0, FP8_WINDOW_CHOSEN,
     ALWAYS, NEVER, NEVER, .window_size = 4096},
    {"qwen3", FP8_ARCH_QWEN3, &usual, 32, 128, 32768, -1, -1, 1e-6, "silu", 0, FP8_WINDOW_CHOSEN,
     ASKED, ASKED, NEVER, .window_size = 4096},
    {"gemma", FP8_ARCH_GEMMA, &usual, 16, 256, 8192, 2, 1, 1e-6, GELU, 1, FP8_WINDOW_NONE, ASKED,
     ASKED, NEVER, .theta = 1e4},
    {"gpt2", FP8_ARCH_GPT2, &of_gpt2, 0, 0, 1024, 50256, 50256, 1e-5, "gelu_new", 1,
     FP8_WINDOW_NONE, ALWAYS, ALWAYS, ALWAYS, .theta = 0},
    {"gemma2", FP8_ARCH_GEMMA2, &usual, 4, 256, 8192, 2, 1, 1e-6, GELU, 1, FP8_WINDOW_PATTERN,
     ASKED, ASKED, NEVER, .vocab = 256000, .num_heads = 8, .window_size = 4096,
     .window_pattern = 2, .query_scalar = 256, .softcap = 50, .logit_softcap = 30},
    {"gemma3_text", FP8_ARCH_GEMMA3, &usual, 4, 256, 131072, 2, 1, 1e-6, GELU, 1,
     FP8_WINDOW_PATTERN, ASKED, ASKED, NEVER, .vocab = 262208, .num_heads = 8,
     .window_size = 4096, .window_pattern = 6, .theta = 1e6, .local_theta = 1e4,
     .query_scalar = 256},
    {"phi3", FP8_ARCH_PHI3, &usual, 0, 0, 4096, 1, 32000, 1e-5, "silu", 0, FP8_WINDOW_EVERY,
     NEVER, NEVER, NEVER, .vocab = 32064, .partial_rotary = 1},
    {"opt", FP8_ARCH_OPT, &of_opt, 0, 0, 2048, 2, 2, 1e-5, "relu", 1, FP8_WINDOW_NONE, ALWAYS,
     ALWAYS, ALWAYS, .theta = 0},
    {"mixtral", FP8_ARCH_MIXTRAL, &usual, 8, 0, 131072, 1, 2, 1e-5, "silu", 0, FP8_WINDOW_EVERY,
     NEVER, NEVER, NEVER, .theta = 1e6, .experts = 8, .per_token = 2},
    {"qwen2_moe", FP8_ARCH_QWEN2_MOE, &usual, 16, 0, 32768, -1, -1, 1e-6, "silu", 0,
     FP8_WINDOW_REFUSED, ALWAYS, NEVER, NEVER, .experts = 60, .per_token = 4, .expert_size = 1408,
     .shared_size = 5632},
    {"qwen3_moe", FP8_ARCH_QWEN3_MOE, &usual, 4, 0, 32768, -1, -1, 1e-6, "silu", 0,
     FP8_WINDOW_REFUSED, ASKED, ASKED, NEVER, .experts = 128, .per_token = 8, .expert_size = 768},
};
enum { NUM_ROWS = sizeof rows / sizeof *rows };

const char *fp8_arch_name(fp8_arch a) {
    for (int i = 0; i < NUM_ROWS; i++)
        if (rows[i].arch == a) return rows[i].name;
    return "?";
}

const fp8_arch_row *fp8_arch_find(const fp8_config_value *model_type) {
    for (int i = 0; i < NUM_ROWS; i++)
        if (fp8_value_is(model_type, rows[i].name)) return &rows[i];
    return NULL;
}

void fp8_arch_list(char *buf, size_t bytes) {
    size_t at = 0;
    for (int i = 0; i < NUM_ROWS && at < bytes; i++)
        at += (size_t)snprintf(buf + at, bytes - at, "%s%s", i ? ", " : "", rows[i].name);
}

int fp8_arch_is_classic(fp8_arch a) { return a == FP8_ARCH_GPT2 || a == FP8_ARCH_OPT; }

int fp8_arch_is_gemma(fp8_arch a) {
    return a == FP8_ARCH_GEMMA || a == FP8_ARCH_GEMMA2 || a == FP8_ARCH_GEMMA3;
}
