#include "cli/run_result.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/lint_result.h"

enum { WORST_ROWS = 5 };

void run_result_free(run_result *r) {
    fp8_report_free(&r->report);
    fp8_lint_report_free(&r->lint);
    free(r->prompt);
    free(r->bf16.text);
    free(r->fp8.text);
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_line(const char *label, const char *text, size_t len) {
    printf("%-14s ", label);
    cli_print_escaped(text, len);
    putchar('\n');
}

static void print_evaluation(const run_result *r) {
    const double before = r->bf16.eval.perplexity, after = r->fp8.eval.perplexity;
    printf("\n%-14s BF16 %.4f, FP8 %.4f (%+.2f %%)\n", "perplexity", before, after,
           100 * (after / before - 1));
    printf("%-14s KL %.4g nats a token, top-1 agreement %.2f %%\n", "", r->fp8.eval.kl,
           100 * r->fp8.eval.top1);
    printf("%-14s %lld tokens of %s, windows of %lld\n", "", (long long)r->fp8.eval.tokens,
           r->eval_name, (long long)r->window);
    if (!r->bf16.text || !r->fp8.text) return;
    print_line("prompt", r->prompt, r->prompt_len);
    print_line("BF16", r->bf16.text, r->bf16.text_len);
    print_line("FP8", r->fp8.text, r->fp8.text_len);
}

static void print_worst(const run_result *r) {
    const int64_t count = r->report.count < WORST_ROWS ? r->report.count : WORST_ROWS;
    if (count == 0) return;
    if (r->rounding_loss > 0) printf("\nof plain rounding:");
    printf("\n%-14s %8s %10s %10s  of %lld weights and activations\n", "worst", "SQNR dB",
           "clipped", "amax", (long long)r->report.count);
    for (int64_t i = 0; i < count; i++) {
        const fp8_report_row *row = &r->report.rows[i];
        printf("%-14s %8.2f %9.4f%% %10.4g  %s\n", row->is_weight ? "  weight" : "  activation",
               row->sqnr_db, 100 * row->clipped, (double)row->amax, row->name);
    }
}

void run_result_print(const run_result *r) {
    char before[32], after[32];
    printf("%-14s %s\n", "FP8 checkpoint", r->output);
    printf("%-14s BF16 %s, FP8 %s; %lld Linears quantized\n", "size",
           cli_bytes_text(before, sizeof before, r->exported.source_bytes),
           cli_bytes_text(after, sizeof after, r->exported.output_bytes),
           (long long)r->exported.linears);
    printf("%-14s %lld steps, %lld tokens in %lld samples of %s\n", "calibration",
           (long long)r->steps, (long long)r->tokens, (long long)r->samples, r->data_name);
    if (r->experts)
        printf("%-14s %lld; %lld to %lld tokens each, %lld saw none\n", "experts",
               (long long)r->experts, (long long)r->least_tokens, (long long)r->most_tokens,
               (long long)r->idle_experts);
    printf("%-14s %s/calibration.safetensors\n", "record", r->output);
    printf("%-14s %s, KV cache %s, attention %s, format %s\n", "scheme", r->scheme, r->recipe.kv,
           r->recipe.attention, r->recipe.format);
    if (r->rounding_loss > 0)
        printf("%-14s %s: %.1f %% of what rounding each weight to the nearest loses\n", "rounding",
               r->round, 100 * r->rounding_loss);
    if (r->keep) {
        printf("%-14s %.1f %% of the weights, KL in the whole %.4g\n", "BF16", 100 * r->keep->share,
               r->keep->kl);
        for (int64_t i = 0; i < r->keep->num_names; i++)
            printf("%-14s   %s\n", "", r->keep->names[i]);
    }
    if (r->evaluated) print_evaluation(r);
    print_worst(r);
}

/* ---- for programs ---------------------------------------------------------------------------- */

static fp8_status add_paths(cJSON *doc, const run_result *r) {
    fp8_status st = FP8_OK;
    FP8_TRY(cli_json_add_text(doc, "model", r->model, strlen(r->model)));
    FP8_TRY(cli_json_add_text(doc, "output", r->output, strlen(r->output)));
    FP8_TRY(cli_json_add_text(doc, "device", r->device, strlen(r->device)));
    cJSON_AddNumberToObject(doc, "linears", (double)r->exported.linears);
    cJSON_AddNumberToObject(doc, "source_bytes", (double)r->exported.source_bytes);
    cJSON_AddNumberToObject(doc, "output_bytes", (double)r->exported.output_bytes);
done:
    return st;
}

static void add_kept(cJSON *doc, const fp8_keep *k) {
    cJSON *o, *names, *choices;
    if (!k) return;
    o = cJSON_AddObjectToObject(doc, "kept");
    cJSON_AddNumberToObject(o, "share", k->share);
    cJSON_AddNumberToObject(o, "kl", k->kl);
    names = cJSON_AddArrayToObject(o, "linears");
    for (int64_t i = 0; i < k->num_names; i++)
        cJSON_AddItemToArray(names, cJSON_CreateString(k->names[i]));
    choices = cJSON_AddArrayToObject(o, "choices");
    for (int64_t i = 0; i < k->count; i++) {
        cJSON *c = cJSON_CreateObject();
        cJSON_AddItemToArray(choices, c);
        cJSON_AddNumberToObject(c, "layer", k->choices[i].layer);
        cJSON_AddStringToObject(c, "input", fp8_point_name(k->choices[i].point));
        cJSON_AddNumberToObject(c, "gain", k->choices[i].gain);
        cJSON_AddNumberToObject(c, "share", k->choices[i].share);
        cJSON_AddBoolToObject(c, "kept", k->choices[i].chosen);
    }
}

static void add_seconds(cJSON *doc, const run_seconds *s) {
    cJSON *o = cJSON_AddObjectToObject(doc, "seconds");
    cJSON_AddNumberToObject(o, "data", s->data);
    cJSON_AddNumberToObject(o, "device", s->device);
    cJSON_AddNumberToObject(o, "load", s->load);
    cJSON_AddNumberToObject(o, "plan", s->plan);
    cJSON_AddNumberToObject(o, "calibrate", s->calibrate);
    cJSON_AddNumberToObject(o, "report", s->report);
    if (s->round > 0) cJSON_AddNumberToObject(o, "round", s->round);
    cJSON_AddNumberToObject(o, "write", s->write);
}

static fp8_status add_calibration(cJSON *doc, const run_result *r) {
    cJSON *c = cJSON_AddObjectToObject(doc, "calibration"), *recipe;
    cJSON_AddNumberToObject(c, "samples", (double)r->samples);
    cJSON_AddNumberToObject(c, "batch", (double)r->batch);
    cJSON_AddNumberToObject(c, "seq", (double)r->seq);
    cJSON_AddNumberToObject(c, "steps", (double)r->steps);
    cJSON_AddNumberToObject(c, "tokens", (double)r->tokens);
    if (r->experts) {
        cJSON *e = cJSON_AddObjectToObject(c, "experts");
        cJSON_AddNumberToObject(e, "count", (double)r->experts);
        cJSON_AddNumberToObject(e, "idle", (double)r->idle_experts);
        cJSON_AddNumberToObject(e, "least_tokens", (double)r->least_tokens);
        cJSON_AddNumberToObject(e, "most_tokens", (double)r->most_tokens);
    }
    recipe = cJSON_AddObjectToObject(doc, "recipe");
    cJSON_AddStringToObject(recipe, "kv", r->recipe.kv);
    cJSON_AddStringToObject(recipe, "fp8_attention", r->recipe.attention);
    cJSON_AddStringToObject(recipe, "fp8_format", r->recipe.format);
    cJSON_AddStringToObject(recipe, "amax_algo", r->recipe.algo);
    cJSON_AddNumberToObject(recipe, "amax_history", (double)r->recipe.history);
    cJSON_AddNumberToObject(recipe, "margin", (double)r->recipe.margin);
    cJSON_AddStringToObject(recipe, "calibrator", r->recipe.calibrator);
    if (r->recipe.percentile > 0)
        cJSON_AddNumberToObject(recipe, "percentile", r->recipe.percentile);
    return cli_json_add_text(c, "data", r->data_name, strlen(r->data_name));
}

static fp8_status add_side(cJSON *doc, const char *key, const run_side *side) {
    cJSON *s = cJSON_AddObjectToObject(doc, key);
    cJSON_AddNumberToObject(s, "perplexity", side->eval.perplexity);
    cJSON_AddNumberToObject(s, "kl", side->eval.kl);
    cJSON_AddNumberToObject(s, "top1", side->eval.top1);
    return side->text ? cli_json_add_text(s, "text", side->text, side->text_len) : FP8_OK;
}

static fp8_status add_evaluation(cJSON *doc, const run_result *r) {
    fp8_status st = FP8_OK;
    cJSON *e = cJSON_AddObjectToObject(doc, "evaluation");
    FP8_TRY(cli_json_add_text(e, "data", r->eval_name, strlen(r->eval_name)));
    cJSON_AddNumberToObject(e, "window", (double)r->window);
    cJSON_AddNumberToObject(e, "tokens", (double)r->fp8.eval.tokens);
    if (r->prompt) FP8_TRY(cli_json_add_text(e, "prompt", r->prompt, r->prompt_len));
    FP8_TRY(add_side(e, "bf16", &r->bf16));
    FP8_TRY(add_side(e, "fp8", &r->fp8));
done:
    return st;
}

fp8_status run_result_print_json(const run_result *r) {
    fp8_status st = FP8_OK;
    cJSON *doc = cJSON_CreateObject();
    char *report = NULL;
    FP8_TRY(add_paths(doc, r));
    FP8_TRY(add_calibration(doc, r));
    add_kept(doc, r->keep);
    add_seconds(doc, &r->seconds);
    if (r->evaluated) FP8_TRY(add_evaluation(doc, r));
    FP8_TRY(fp8_report_json(&report, &r->report));
    cJSON_AddRawToObject(doc, "report", report);
    FP8_TRY(lint_result_add(doc, &r->lint));
    st = cli_json_print(doc);
done:
    free(report);
    cJSON_Delete(doc);
    return st;
}
