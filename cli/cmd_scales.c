/* cli/cmd_scales.c - other scales from a saved record: no data, no forward. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/recipe_options.h"

typedef struct options {
    cli_common common;
    const char *output, *model;
    recipe_options recipe;
    size_t max_shard;
    int allow_nonfinite, force;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .recipe = RECIPE_DEFAULTS};

static const cli_option table[] = {
    {"--output", 'o', CLI_TEXT, offsetof(options, output), "OUT", 1, 0,
     "write the scales to the file OUT, as JSON; with --model: the FP8 checkpoint with these "
     "scales to the folder OUT"},
    {"--model", 0, CLI_TEXT, offsetof(options, model), "MODEL", 1, 0,
     "the BF16 model that the record was made from"},
    RECIPE_OPTIONS(offsetof(options, recipe), "fp8"),
    CALIBRATOR_OPTIONS(offsetof(options, recipe)),
    {"--max-shard-size", 0, CLI_BYTES, offsetof(options, max_shard), "SIZE", 1, 0,
     "split the weights into files of at most SIZE (500MB, 5GB, 4GiB); default: one file"},
    {"--allow-nonfinite", 0, CLI_FLAG, offsetof(options, allow_nonfinite), NULL, 0, 0,
     "write weights with NaN or Inf too: NaN stays NaN, Inf becomes the largest value"},
    {"--force", 0, CLI_FLAG, offsetof(options, force), NULL, 0, 0,
     "replace OUT when it is there, whole and only at the end"},
};

typedef struct job {
    const options *o;
    recipe_options recipe; /* with its defaults filled in */
    fp8_export_options export;
    char *path; /* of the record */
    fp8_record *record;
    fp8_scale *scales; /* [record->num_points] */
    uint64_t tokens;
    fp8_export_result exported;
} job;

/* ---- before the work ------------------------------------------------------------------------- */

static fp8_status check_options(job *j) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    if (o->model && !o->output)
        return FP8_FAIL(FP8_EINVAL, "scales: --model writes a checkpoint: --output is required");
    if (!o->model && (o->recipe.kv || o->recipe.attention || o->max_shard || o->allow_nonfinite ||
                      strcmp(o->recipe.format, RECIPE_FORMAT) != 0))
        return FP8_FAIL(FP8_EINVAL, "--kv, --fp8-attention, --fp8-format, --max-shard-size and "
                        "--allow-nonfinite need --model: they are choices of a checkpoint");
    j->export = (fp8_export_options){
        .scheme = FP8_SCHEME_TENSOR,
        .max_shard_bytes = o->max_shard,
        .force = o->force,
        .allow_nonfinite = o->allow_nonfinite,
        .progress = cli_progress(),
    };
    j->recipe = o->recipe;
    FP8_TRY(recipe_apply(&j->export, &j->recipe, "fp8"));
done:
    return st;
}

/* The operand is the record, or the folder of the checkpoint that was written with it. */
static fp8_status load_record(job *j, const char *operand) {
    fp8_status st = FP8_OK;
    j->path = fp8_path_is_dir(operand) ? fp8_path_join(operand, "calibration.safetensors")
                                       : strdup(operand);
    if (!j->path) return FP8_FAIL(FP8_ENOMEM, "scales: out of memory");
    FP8_TRY(fp8_record_load(&j->record, j->path));
    if (j->record->steps < 1)
        return FP8_FAIL(FP8_EDATA, "%s: expected a history of 1 step or more, found 0 of %lld",
                        j->path, (long long)j->record->steps_total);
    for (int64_t i = 0; i < j->record->steps; i++) j->tokens += (uint64_t)j->record->tokens[i];
done:
    return st;
}

static fp8_status compute(job *j) {
    const fp8_record *r = j->record;
    fp8_status st = FP8_OK;
    j->scales = calloc((size_t)r->num_points + 1, sizeof *j->scales);
    if (!j->scales)
        return FP8_FAIL(FP8_ENOMEM, "%s: scales of %lld points", j->path, (long long)r->num_points);
    for (int64_t i = 0; i < r->num_points; i++)
        FP8_TRY(fp8_scale_of_point(&j->scales[i], r, i, &j->export.recipe, j->export.clip));
done:
    return cli_name_culprit(st, j->path);
}

/* ---- for people ------------------------------------------------------------------------------ */

static void print_table(const job *j) {
    const fp8_record *r = j->record;
    printf("%s: %lld of %lld steps, %llu tokens; %s of the newest %lld, margin %lld", j->path,
           (long long)r->steps, (long long)r->steps_total, (unsigned long long)j->tokens,
           j->recipe.algo, (long long)j->recipe.history, (long long)j->recipe.margin);
    if (j->export.clip.rule != FP8_CLIP_NONE) printf(", %s", j->recipe.calibrator);
    if (j->recipe.percentile > 0) printf(" %g", j->recipe.percentile);
    printf("\n\n");
    printf("%-52s %12s %12s %12s %12s\n", "point", "amax", "not first", "scale", "descale");
    for (int64_t i = 0; i < r->num_points; i++) {
        const fp8_scale *s = &j->scales[i];
        printf("%-52s %12.6g %12.6g %12.6g %12.6g", r->points[i], (double)s->amax,
               (double)s->amax_without_first, (double)s->scale, (double)s->descale);
        if (s->clipped) printf("  clipped");
        if (s->nonfinite) printf("  %llu not finite", (unsigned long long)s->nonfinite);
        putchar('\n');
    }
}

static void print_text(const job *j) {
    const char *output = j->o->output;
    char before[32], after[32];
    if (!j->o->model && output) {
        printf("%s: scales of %lld points\n", output, (long long)j->record->num_points);
        return;
    }
    print_table(j);
    if (j->o->model)
        printf("\n%s: %lld weights to FP8, %s -> %s\n", output, (long long)j->exported.linears,
               cli_bytes_text(before, sizeof before, j->exported.source_bytes),
               cli_bytes_text(after, sizeof after, j->exported.output_bytes));
}

/* ---- for programs ---------------------------------------------------------------------------- */

static fp8_status add_point(cJSON *list, const char *name, const fp8_scale *s) {
    cJSON *row = cJSON_CreateObject();
    cJSON_AddItemToArray(list, row);
    cJSON_AddNumberToObject(row, "amax", (double)s->amax);
    cJSON_AddNumberToObject(row, "amax_without_first", (double)s->amax_without_first);
    cJSON_AddNumberToObject(row, "scale", (double)s->scale);
    cJSON_AddNumberToObject(row, "descale", (double)s->descale);
    cJSON_AddBoolToObject(row, "clipped", s->clipped);
    cJSON_AddNumberToObject(row, "nonfinite", (double)s->nonfinite);
    return cli_json_add_text(row, "name", name, strlen(name));
}

static fp8_status add_record(cJSON *doc, const job *j) {
    const fp8_record *r = j->record;
    fp8_status st = FP8_OK;
    cJSON *record = cJSON_AddObjectToObject(doc, "record");
    FP8_TRY(cli_json_add_text(record, "path", j->path, strlen(j->path)));
    cJSON_AddNumberToObject(record, "steps", (double)r->steps);
    cJSON_AddNumberToObject(record, "steps_total", (double)r->steps_total);
    cJSON_AddNumberToObject(record, "tokens", (double)j->tokens);
    cJSON_AddNumberToObject(record, "source_bytes", (double)r->source_bytes);
    cJSON_AddNumberToObject(record, "source_crc32", (double)r->source_crc32);
    if (!cJSON_AddRawToObject(record, "made_with", r->recipe)) /* JSON: checked when loaded */
        st = FP8_FAIL(FP8_ENOMEM, "'made_with' of the results: out of memory");
done:
    return st;
}

static fp8_status make_document(cJSON **out, const job *j) {
    fp8_status st = FP8_OK;
    cJSON *doc = cJSON_CreateObject(), *recipe, *list;
    FP8_TRY(add_record(doc, j));
    recipe = cJSON_AddObjectToObject(doc, "recipe");
    cJSON_AddStringToObject(recipe, "amax_algo", j->recipe.algo);
    cJSON_AddNumberToObject(recipe, "amax_history", (double)j->recipe.history);
    cJSON_AddNumberToObject(recipe, "margin", (double)j->recipe.margin);
    cJSON_AddStringToObject(recipe, "calibrator", j->recipe.calibrator);
    if (j->recipe.percentile > 0)
        cJSON_AddNumberToObject(recipe, "percentile", j->recipe.percentile);
    if (j->o->model) {
        FP8_TRY(cli_json_add_text(doc, "output", j->o->output, strlen(j->o->output)));
        cJSON_AddNumberToObject(doc, "quantized", (double)j->exported.linears);
        cJSON_AddNumberToObject(doc, "source_bytes", (double)j->exported.source_bytes);
        cJSON_AddNumberToObject(doc, "output_bytes", (double)j->exported.output_bytes);
    }
    list = cJSON_AddArrayToObject(doc, "points");
    for (int64_t i = 0; i < j->record->num_points; i++)
        FP8_TRY(add_point(list, j->record->points[i], &j->scales[i]));
    *out = doc;
    doc = NULL;
done:
    cJSON_Delete(doc);
    return st;
}

/* ---- the work -------------------------------------------------------------------------------- */

static fp8_status write_checkpoint(job *j) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    fp8_device *device = NULL;
    fp8_checkpoint *source = NULL;
    FP8_TRY(fp8_checkpoint_open(&source, o->model));
    FP8_TRY(cli_check_output_folder(o->output, o->force, fp8_checkpoint_folder(source)));
    FP8_TRY(cli_device_open(&device, &o->common));
    FP8_TRY(fp8_export(&j->exported, o->output, source, device, j->record, &j->export));
done:
    fp8_checkpoint_close(source);
    fp8_device_destroy(device);
    return st;
}

/* The record costs a calibration to make: not even --force writes over it. */
static fp8_status write_file(const job *j, const cJSON *doc) {
    const char *path = j->o->output;
    struct stat a, b;
    fp8_status st = FP8_OK;
    char *text = NULL;
    size_t len;
    FP8_TRY(cli_check_output_file(path, j->o->force));
    if (stat(path, &a) == 0 && stat(j->path, &b) == 0 && a.st_dev == b.st_dev &&
        a.st_ino == b.st_ino)
        return FP8_FAIL(FP8_EINVAL, "%s: the scales would replace their record", path);
    text = cJSON_Print(doc);
    if (!text) return FP8_FAIL(FP8_ENOMEM, "%s: out of memory", path);
    len = strlen(text);
    text[len++] = '\n'; /* in place of the NUL */
    FP8_TRY(fp8_file_write(path, text, len));
done:
    cJSON_free(text);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    fp8_status st = FP8_OK;
    job j = {.o = opts};
    cJSON *doc = NULL;
    FP8_TRY(check_options(&j));
    FP8_TRY(load_record(&j, operands->items[0]));
    FP8_TRY(compute(&j));
    if (j.o->model) FP8_TRY(write_checkpoint(&j));
    FP8_TRY(make_document(&doc, &j));
    if (j.o->output && !j.o->model) FP8_TRY(write_file(&j, doc));
    if (j.o->common.json) st = cli_json_print(doc);
    else print_text(&j);
done:
    cJSON_Delete(doc);
    fp8_record_destroy(j.record);
    free(j.scales);
    free(j.path);
    return st;
}

const cli_command cli_cmd_scales = {
    .name = "scales",
    .purpose = "other scales from a calibration record, without a forward",
    .usage = "RECORD [--model MODEL] [-o OUT] [options]",
    .about =
        "Takes the history that 'fp8calib run' recorded (RECORD: calibration.safetensors,\n"
        "or the folder of the checkpoint that holds it) and derives scales from it as\n"
        "the options ask: another algorithm, another margin, fewer steps; and, of\n"
        "a record with histograms, a percentile, the clip of least squared error or of\n"
        "least divergence. Prints for every point the largest magnitude\n"
        "that was taken, the same without the first tokens of sequences, and\n"
        "scale (x * scale -> code) and descale (code * descale\n"
        "-> x, what a checkpoint stores). Loads no model and runs no forward.\n"
        "\n"
        "With --model, the model that the record was made from, the FP8 checkpoint is\n"
        "written too, as 'fp8calib run' writes it but with these scales. The record of an\n"
        "interrupted run gives the scales of the steps it has, but no checkpoint.",
    .examples =
        "  fp8calib scales ./Llama-3-8B-FP8 --margin 1\n"
        "  fp8calib scales calibration.safetensors --amax-algo most_recent -o scales.json\n"
        "  fp8calib scales ./Llama-3-8B-FP8 --amax-history 64 \\\n"
        "      --model ./Llama-3-8B -o ./Llama-3-8B-FP8-64\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "RECORD",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
