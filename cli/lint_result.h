/* cli/lint_result.h - private: findings of lint, as `lint` and `run` tell them. */
#ifndef FP8_CLI_LINT_RESULT_H
#define FP8_CLI_LINT_RESULT_H
#include "cli/cli.h"

/* "lint": an array of objects. */
FP8_NODISCARD fp8_status lint_result_add(cJSON *doc, const fp8_lint_report *r);
void lint_result_note(const fp8_lint_report *r); /* a line each on stderr, unless --quiet */

#endif
