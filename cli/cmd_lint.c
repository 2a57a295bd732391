/* cli/cmd_lint.c - what an engine would stumble over. */
#include <stdio.h>
#include <string.h>

#include "cli/lint_result.h"

typedef struct options {
    cli_common common;
    const char *engine;
    int64_t tp;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .tp = 1};

static const cli_option table[] = {
    {"--engine", 0, CLI_CHOICE, offsetof(options, engine), "vllm|sglang|tensorrt-llm|hf", 0, 0,
     "judge for this engine alone; default: for all of them"},
    {"--tp", 0, CLI_INT, offsetof(options, tp), "N", 1, 1024, "so many tensor-parallel ranks"},
};

fp8_status lint_result_add(cJSON *doc, const fp8_lint_report *r) {
    cJSON *list = cJSON_AddArrayToObject(doc, "lint");
    fp8_status st = FP8_OK;
    for (int32_t i = 0; i < r->count; i++) {
        const fp8_lint_finding *f = &r->findings[i];
        cJSON *row = cJSON_CreateObject(), *engines;
        cJSON_AddItemToArray(list, row);
        cJSON_AddStringToObject(row, "rule", f->rule->id);
        cJSON_AddBoolToObject(row, "error", f->rule->is_error);
        cJSON_AddStringToObject(row, "breaks", f->rule->breaks);
        cJSON_AddStringToObject(row, "mend", f->rule->mend);
        engines = cJSON_AddArrayToObject(row, "engines");
        for (int e = 0; e < FP8_NUM_ENGINES; e++)
            if (f->rule->engines >> e & 1)
                cJSON_AddItemToArray(
                    engines, cJSON_CreateString(fp8_lint_engine_name((fp8_lint_engine)e)));
        FP8_TRY(cli_json_add_text(row, "where", f->text, strlen(f->text)));
    }
done:
    return st;
}

void lint_result_note(const fp8_lint_report *r) {
    for (int32_t i = 0; i < r->count; i++)
        cli_note("lint: %s: %s: %s; mend: %s", r->findings[i].rule->id, r->findings[i].text,
                 r->findings[i].rule->breaks, r->findings[i].rule->mend);
}

static void print_finding(const fp8_lint_finding *f) {
    const char *comma = "";
    printf("%s %s (", f->rule->is_error ? "error  " : "warning", f->rule->id);
    for (int e = 0; e < FP8_NUM_ENGINES; e++) {
        if (!(f->rule->engines >> e & 1)) continue;
        printf("%s%s", comma, fp8_lint_engine_name((fp8_lint_engine)e));
        comma = ", ";
    }
    printf(")\n  where  ");
    cli_print_escaped(f->text, strlen(f->text));
    printf("\n  breaks %s\n  mend   %s\n", f->rule->breaks, f->rule->mend);
}

static fp8_status print_report(const options *o, const char *path, const fp8_lint_report *r) {
    fp8_status st = FP8_OK;
    cJSON *doc = NULL;
    if (!o->common.json) {
        for (int32_t i = 0; i < r->count; i++) print_finding(&r->findings[i]);
        printf("%d rules, %d errors, %d warnings\n", fp8_lint_num_rules(), r->errors,
               r->count - r->errors);
        return FP8_OK;
    }
    doc = cJSON_CreateObject();
    FP8_TRY(cli_json_add_text(doc, "path", path, strlen(path)));
    cJSON_AddNumberToObject(doc, "rules", fp8_lint_num_rules());
    cJSON_AddNumberToObject(doc, "errors", r->errors);
    FP8_TRY(lint_result_add(doc, r));
    st = cli_json_print(doc);
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    fp8_checkpoint *c = NULL;
    fp8_lint_report report = {0};
    fp8_lint_options how = {.tp = o->tp};
    fp8_lint_engine engine;
    if (o->engine) {
        FP8_TRY(fp8_lint_engine_parse(&engine, o->engine));
        how.engines = 1u << engine;
    }
    FP8_TRY(fp8_checkpoint_open(&c, operands->items[0]));
    FP8_TRY(fp8_lint(&report, c, &how));
    FP8_TRY(print_report(o, operands->items[0], &report));
    if (report.errors)
        st = FP8_FAIL(FP8_EDATA, "%s: %d error%s", operands->items[0], report.errors,
                      report.errors == 1 ? "" : "s");
done:
    fp8_lint_report_free(&report);
    fp8_checkpoint_close(c);
    return st;
}

const cli_command cli_cmd_lint = {
    .name = "lint",
    .purpose = "judge whether vLLM, SGLang, TensorRT-LLM, transformers will load a checkpoint",
    .usage = "MODEL [--engine NAME] [--tp N] [--json]",
    .about =
        "Holds an FP8 checkpoint against a table of what engines expect: config.json,\n"
        "names, shapes and values of scales, the ignore list, matrices that are fused,\n"
        "experts, KV scales, sizes that tensor parallelism divides. Each finding says\n"
        "where it is, what breaks, and what mends it. 'error': it will not load, or will\n"
        "answer wrongly; then the exit code is 4. 'warning': it loads, with a loss.\n"
        "'fp8calib run' lints what it wrote. --device and --threads have no effect here.",
    .examples = "  fp8calib lint ./Llama-3-8B-FP8\n"
                "  fp8calib lint ./Llama-3-8B-FP8 --engine vllm --tp 4\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
