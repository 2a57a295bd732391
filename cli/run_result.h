/* cli/run_result.h - private: what `run` finds out, and its printing. */
#ifndef FP8_CLI_RUN_RESULT_H
#define FP8_CLI_RUN_RESULT_H
#include "cli/recipe_options.h"

typedef struct run_side { /* BF16 or FP8 */
    fp8_eval_result eval;
    char *text; /* greedy continuation; NULL: none was made */
    size_t text_len;
} run_side;

/* Wall time of the parts, one after the other; weights are written during `calibrate` on CUDA. */
typedef struct run_seconds {
    double data, device, load, plan, calibrate, report, round, write;
} run_seconds;

typedef struct run_result {
    const char *model, *output, *data_name, *eval_name, *device;
    int64_t samples, batch, seq, steps, tokens;
    int64_t experts, idle_experts, least_tokens, most_tokens; /* of all mixtures; experts 0: none */
    recipe_options recipe;
    const char *scheme, *round; /* as the options spell them */
    const fp8_keep *keep;       /* NULL: nothing is kept; not the result's own */
    double rounding_loss;       /* of what plain rounding loses; 0: it is plain rounding */
    fp8_export_result exported;
    fp8_report report;
    fp8_lint_report lint; /* of what was written */
    int evaluated;
    int64_t window;
    char *prompt;
    size_t prompt_len;
    run_side bf16, fp8;
    run_seconds seconds;
} run_result;

void run_result_free(run_result *r);
void run_result_print(const run_result *r);
FP8_NODISCARD fp8_status run_result_print_json(const run_result *r);

#endif
