/* formats/lint_impl.h - private: what the rules look at. */
#ifndef FP8_FORMATS_LINT_IMPL_H
#define FP8_FORMATS_LINT_IMPL_H
#include "core/arena.h"
#include "formats/config.h"
#include "formats/descales.h"
#include "formats/lint.h"

/* A 2-D tensor NAME.weight. */
typedef struct fp8_lint_weight {
    const char *module;
    const fp8_st_entry *entry;
    int is_fp8, ignored;
    int64_t first; /* the first weight that engines fuse with it; -1: it is that, or alone */
} fp8_lint_weight;

/* What only the text of config.json tells. */
typedef struct fp8_lint_config {
    char status[128], group[128];
    char strange[128]; /* the first key that older readers refuse */
    int num_groups;
} fp8_lint_config;

typedef struct fp8_lint_job {
    const fp8_checkpoint *c;
    const fp8_lint_options *options;
    int64_t tp;
    fp8_quant_config quant;
    char *unreadable; /* message, where quantization_config cannot be read */
    fp8_lint_config config;
    fp8_model_config model;
    int has_model;
    fp8_lint_weight *weights;
    int64_t num_weights;
    int num_files, has_index, has_side; /* .safetensors, their index, hf_quant_config.json */
    fp8_arena arena;
    const fp8_lint_rule *rule; /* at work */
    fp8_lint_report *report;
} fp8_lint_job;

typedef fp8_status (*fp8_lint_check)(fp8_lint_job *j);

/* Adds a finding of the rule at work. */
FP8_NODISCARD fp8_status fp8_lint_find(fp8_lint_job *j, const char *fmt, ...) FP8_PRINTF(2, 3);
/* The check of rule i. */
fp8_lint_check fp8_lint_check_at(int32_t i);
FP8_NODISCARD fp8_status fp8_lint_read_config(fp8_lint_config *out, const char *path);

/* Rules about scales (lint_scales.c). */
fp8_status fp8_lint_scale_missing(fp8_lint_job *j);
fp8_status fp8_lint_scale_shape(fp8_lint_job *j);
fp8_status fp8_lint_scale_value(fp8_lint_job *j);
fp8_status fp8_lint_scale_dtype(fp8_lint_job *j);
fp8_status fp8_lint_fused_weights(fp8_lint_job *j);
fp8_status fp8_lint_fused_inputs(fp8_lint_job *j);
fp8_status fp8_lint_expert_inputs(fp8_lint_job *j);
fp8_status fp8_lint_kv_missing(fp8_lint_job *j);
fp8_status fp8_lint_kv_one_sided(fp8_lint_job *j);
fp8_status fp8_lint_kv_undeclared(fp8_lint_job *j);
fp8_status fp8_lint_kv_name(fp8_lint_job *j);
fp8_status fp8_lint_kv_range(fp8_lint_job *j);

/* "...self_attn.q_proj" -> which set of Linears engines fuse it into, and how long the name of what
 * holds the set is; -1: none. */
int fp8_lint_fused_set(const char *module, size_t *holder);
int fp8_lint_ends_with(const char *text, const char *end);
#endif
