/* cli/cmd_convert.c - FP8 weights without calibration. */
#include <stdio.h>
#include <string.h>

#include "cli/recipe_options.h"

typedef struct options {
    cli_common common;
    const char *output, *scheme, *record;
    recipe_options recipe;
    cli_list include, exclude;
    size_t max_shard;
    int allow_nonfinite, force;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .recipe = RECIPE_DEFAULTS};

static const cli_option table[] = {
    {"--output", 'o', CLI_TEXT, offsetof(options, output), "OUT", 1, 0,
     "the folder to write (required)"},
    {"--scheme", 0, CLI_CHOICE, offsetof(options, scheme), "dynamic|tensor", 0, 0,
     "dynamic: a scale an output channel; tensor: one scale a weight, shared by q, k, v and by "
     "gate, up. Inputs are scaled a token at a time when they come, except by tensor with "
     "--record: one static scale an input. Default: dynamic, tensor with --record"},
    {"--record", 0, CLI_TEXT, offsetof(options, record), "FILE", 1, 0,
     "the calibration.safetensors of an earlier run of this model: static scales come from it, and "
     "the model need not run again"},
    RECIPE_OPTIONS(offsetof(options, recipe), "fp8 with --record, else none"),
    {"--include", 0, CLI_LIST, offsetof(options, include), "PATTERN", 0, 0,
     "a file without config.json: quantize only tensors of this name (* and ? match any text "
     "and character)"},
    {"--exclude", 0, CLI_LIST, offsetof(options, exclude), "PATTERN", 0, 0,
     "likewise: never quantize these"},
    {"--max-shard-size", 0, CLI_BYTES, offsetof(options, max_shard), "SIZE", 1, 0,
     "split the weights into files of at most SIZE (500MB, 5GB, 4GiB); default: one file"},
    {"--allow-nonfinite", 0, CLI_FLAG, offsetof(options, allow_nonfinite), NULL, 0, 0,
     "convert weights with NaN or Inf too: NaN stays NaN, Inf becomes the largest value"},
    {"--force", 0, CLI_FLAG, offsetof(options, force), NULL, 0, 0,
     "replace OUT when it is there, whole and only at the end"},
};

static fp8_scheme scheme_of(const options *o) {
    const int tensor = o->scheme ? strcmp(o->scheme, "tensor") == 0 : o->record != NULL;
    if (!tensor) return FP8_SCHEME_DYNAMIC;
    return o->record ? FP8_SCHEME_TENSOR : FP8_SCHEME_TENSOR_DYNAMIC;
}

static fp8_status check_options(fp8_export_options *out, const options *o) {
    fp8_status st = FP8_OK;
    recipe_options recipe = o->recipe;
    if (!o->output) return FP8_FAIL(FP8_EINVAL, "convert: --output is required");
    *out = (fp8_export_options){
        .scheme = scheme_of(o),
        .max_shard_bytes = o->max_shard,
        .force = o->force,
        .allow_nonfinite = o->allow_nonfinite,
        .include = o->include.items,
        .num_include = o->include.count,
        .exclude = o->exclude.items,
        .num_exclude = o->exclude.count,
        .progress = cli_progress(),
    };
    FP8_TRY(recipe_apply(out, &recipe, o->record ? "fp8" : "none"));
    if (!o->record && out->kv_fp8)
        st = FP8_FAIL(FP8_EINVAL, "--kv fp8 needs --record: its scales are static");
    else if (!o->record && (recipe.margin != 0 || recipe.history != RECIPE_HISTORY ||
                            strcmp(recipe.algo, RECIPE_ALGO) != 0))
        st = FP8_FAIL(FP8_EINVAL, "--margin, --amax-history and --amax-algo need --record: they "
                                  "choose from its history");
done:
    return st;
}

static fp8_status print_result(const options *o, const fp8_export_result *r) {
    fp8_status st = FP8_OK;
    cJSON *doc = NULL;
    if (!o->common.json) {
        char before[32], after[32];
        printf("%s: %lld weights to FP8, %s -> %s\n", o->output, (long long)r->linears,
               cli_bytes_text(before, sizeof before, r->source_bytes),
               cli_bytes_text(after, sizeof after, r->output_bytes));
        return FP8_OK;
    }
    doc = cJSON_CreateObject();
    FP8_TRY(cli_json_add_text(doc, "output", o->output, strlen(o->output)));
    cJSON_AddStringToObject(doc, "scheme", fp8_scheme_name(scheme_of(o)));
    cJSON_AddNumberToObject(doc, "quantized", (double)r->linears);
    cJSON_AddNumberToObject(doc, "source_bytes", (double)r->source_bytes);
    cJSON_AddNumberToObject(doc, "output_bytes", (double)r->output_bytes);
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    fp8_device *device = NULL;
    fp8_checkpoint *source = NULL;
    fp8_record *record = NULL;
    fp8_export_result result = {0};
    fp8_export_options export_options;
    FP8_TRY(check_options(&export_options, o));
    FP8_TRY(fp8_checkpoint_open(&source, operands->items[0]));
    FP8_TRY(cli_check_output_folder(o->output, o->force, fp8_checkpoint_folder(source)));
    if (o->record) FP8_TRY(fp8_record_load(&record, o->record));
    FP8_TRY(cli_device_open(&device, &o->common));
    FP8_TRY(fp8_export(&result, o->output, source, device, record, &export_options));
    st = print_result(o, &result);
done:
    fp8_record_destroy(record);
    fp8_checkpoint_close(source);
    fp8_device_destroy(device);
    return st;
}

const cli_command cli_cmd_convert = {
    .name = "convert",
    .purpose = "write an FP8 checkpoint without running the model",
    .usage = "MODEL -o OUT [options]",
    .about =
        "Writes the folder OUT: the Linear weights as E4M3 with their descales, every\n"
        "other tensor as it was, config.json with quantization_config, tokenizer and\n"
        "generation files. Needs no data and runs no forward: either inputs are scaled\n"
        "when they come, or static scales are derived anew from the history that\n"
        "'fp8calib run' recorded (--record), with another margin, say.\n"
        "\n"
        "A single .safetensors file without config.json converts too, without a record:\n"
        "its 2-D weights, narrowed by --include and --exclude.",
    .examples =
        "  fp8calib convert ./Llama-3-8B -o ./Llama-3-8B-dynamic\n"
        "  fp8calib convert ./Llama-3-8B -o ./Llama-3-8B-tensor --scheme tensor\n"
        "  fp8calib convert ./Llama-3-8B -o ./roomy --margin 1 \\\n"
        "      --record ./Llama-3-8B-FP8/calibration.safetensors\n"
        "  fp8calib convert weights.safetensors -o ./weights-FP8 --exclude '*embed*'\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
