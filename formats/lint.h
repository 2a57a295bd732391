/* formats/lint.h - will an engine load this checkpoint, and as it is meant? A table of rules, each
 * with the engines that it is about; headers, scales and config.json are looked at, no weight.
 *
 * Findings are data, not failures: a status other than FP8_OK says that nothing could be judged. */
#ifndef FP8_FORMATS_LINT_H
#define FP8_FORMATS_LINT_H
#include <stdint.h>

#include "formats/checkpoint.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_lint_engine {
    FP8_LINT_VLLM,
    FP8_LINT_SGLANG,
    FP8_LINT_TENSORRT_LLM,
    FP8_LINT_HF, /* transformers */
    FP8_NUM_ENGINES
} fp8_lint_engine;

const char *fp8_lint_engine_name(fp8_lint_engine e); /* "vllm", "sglang", "tensorrt-llm", "hf" */
/* FP8_EINVAL names those that are known. */
FP8_NODISCARD fp8_status fp8_lint_engine_parse(fp8_lint_engine *out, const char *name);

typedef struct fp8_lint_rule {
    const char *id;     /* "fused-weight-scale" */
    unsigned engines;   /* 1 << fp8_lint_engine of each that it is about */
    int is_error;       /* it will not load, or answers wrongly; else: it loads, with a loss */
    const char *breaks; /* what happens */
    const char *mend;   /* the command or flag that mends it */
} fp8_lint_rule;

int32_t fp8_lint_num_rules(void);
const fp8_lint_rule *fp8_lint_rule_at(int32_t i);

typedef struct fp8_lint_finding {
    const fp8_lint_rule *rule;
    char *text; /* where, what was expected and what was found; one line */
} fp8_lint_finding;

typedef struct fp8_lint_report {
    fp8_lint_finding *findings; /* in the order of the rules */
    int32_t count, errors;
} fp8_lint_report;

typedef struct fp8_lint_options {
    unsigned engines; /* 1 << fp8_lint_engine of each; 0: all */
    int64_t tp;       /* tensor-parallel ranks; 0: 1 */
} fp8_lint_options;

/* Judges `c` with its config.json (of any architecture; what depends on numbers of heads is judged
 * where it is known). A checkpoint without FP8 has no findings. FP8_ENOTFOUND: no config.json;
 * FP8_EFORMAT: it is no JSON; FP8_EINVAL: tp < 0; FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_lint(fp8_lint_report *out, const fp8_checkpoint *c,
                                  const fp8_lint_options *options);
void fp8_lint_report_free(fp8_lint_report *r); /* {0} is fine */

#ifdef __cplusplus
}
#endif
#endif
