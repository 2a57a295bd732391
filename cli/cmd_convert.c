/* cli/cmd_convert.c - FP8 weights without calibration, and FP8 in another dialect. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/recipe_options.h"

typedef struct options {
    cli_common common;
    const char *output, *to, *dialect, *scheme, *scales, *kv_scales, *record;
    recipe_options recipe;
    cli_list include, exclude;
    size_t max_shard;
    int allow_nonfinite, force, no_sync;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .to = "fp8", .scales = "f32",
                                 .kv_scales = "keep", .recipe = RECIPE_DEFAULTS};

static const cli_option table[] = {
    {"--output", 'o', CLI_TEXT, offsetof(options, output), "OUT", 1, 0,
     "the folder to write (required)"},
    {"--to", 0, CLI_CHOICE, offsetof(options, to), "fp8|bf16", 0, 0,
     "bf16: dequantize an FP8 checkpoint"},
    {"--dialect", 0, CLI_CHOICE, offsetof(options, dialect),
     "compressed-tensors|fp8|deepseek|modelopt", 0, 0,
     "how names, shapes and config.json are spelled: compressed-tensors for vLLM and transformers; "
     "fp8, one scale a weight; deepseek, scales by blocks, read by every engine; modelopt "
     "for TensorRT-LLM. Default: compressed-tensors, of an FP8 checkpoint its own"},
    {"--scheme", 0, CLI_CHOICE, offsetof(options, scheme),
     "dynamic|tensor|tensor-dynamic|block|mxfp8|none", 0, 0,
     "dynamic: a scale an output channel; tensor: one a weight, shared by q, k, v and by gate, up; "
     "block: one for 128 x 128 weights; mxfp8: a power of two for 32 weights of a row, for "
     "Blackwell; none: only scales of an FP8 KV cache. Inputs are scaled "
     "a token (block: a token and 128 columns) at a time when they come, except by tensor with "
     "--record: one static scale an input. Default: dynamic, tensor with --record, or what "
     "the dialect has; of an FP8 checkpoint its own"},
    {"--scales", 0, CLI_CHOICE, offsetof(options, scales), "f32|ue8m0|bf16", 0, 0,
     "ue8m0: blocks have scales rounded up to powers of two; bf16: weights and scales are, bit for "
     "bit, what compressed-tensors makes of a BF16 model (for comparison)"},
    {"--kv-scales", 0, CLI_CHOICE, offsetof(options, kv_scales), "keep|none|tensor|head", 0, 0,
     "of an FP8 checkpoint: leave its KV scales out, or have one a layer or one a head; of a BF16 "
     "model with --record: head, where the record has them (run --kv-heads)"},
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
    {"--no-sync", 0, CLI_FLAG, offsetof(options, no_sync), NULL, 0, 0,
     "do not wait until OUT is on the disk: a power failure soon after may cost it"},
};

/* ---- from BF16 ------------------------------------------------------------------------------- */

/* What a dialect that has only one way is asked for without --scheme. */
static fp8_scheme default_scheme(fp8_dialect dialect, int has_record) {
    static const fp8_scheme order[] = {FP8_SCHEME_DYNAMIC, FP8_SCHEME_TENSOR_DYNAMIC,
                                       FP8_SCHEME_BLOCK};
    if (has_record && fp8_dialect_has(dialect, FP8_SCHEME_TENSOR)) return FP8_SCHEME_TENSOR;
    for (int i = 0; i < 3; i++)
        if (fp8_dialect_has(dialect, order[i])) return order[i];
    return FP8_SCHEME_DYNAMIC;
}

static fp8_status choose(fp8_dialect *dialect, fp8_scheme *scheme, const options *o) {
    fp8_status st = FP8_OK;
    *dialect = FP8_DIALECT_COMPRESSED_TENSORS;
    if (o->dialect) FP8_TRY(fp8_dialect_parse(dialect, o->dialect));
    *scheme = default_scheme(*dialect, o->record != NULL);
    if (o->scheme) FP8_TRY(fp8_scheme_parse(scheme, o->scheme));
    if (*scheme == FP8_SCHEME_TENSOR && !o->record) *scheme = FP8_SCHEME_TENSOR_DYNAMIC;
    if (!fp8_dialect_has(*dialect, *scheme))
        st = FP8_FAIL(FP8_EINVAL, "dialect %s has no scheme %s%s", fp8_dialect_get(*dialect)->name,
                      fp8_scheme_name(*scheme), *scheme == FP8_SCHEME_TENSOR_DYNAMIC && !o->record
                      ? "; scheme tensor with static inputs needs --record" : "");
done:
    return st;
}

static fp8_status check_options(fp8_export_options *out, const options *o) {
    fp8_status st = FP8_OK;
    recipe_options recipe = o->recipe;
    const fp8_dialect_row *row;
    if (strcmp(o->to, "bf16") == 0)
        return FP8_FAIL(FP8_EINVAL, "--to bf16 is for an FP8 checkpoint, and this is none");
    *out = (fp8_export_options){
        .ue8m0 = strcmp(o->scales, "ue8m0") == 0,
        .bf16_scales = strcmp(o->scales, "bf16") == 0,
        .max_shard_bytes = o->max_shard,
        .force = o->force,
        .allow_nonfinite = o->allow_nonfinite,
        .kv_per_head = strcmp(o->kv_scales, "head") == 0,
        .include = o->include.items,
        .num_include = o->include.count,
        .exclude = o->exclude.items,
        .num_exclude = o->exclude.count,
        .progress = cli_progress(),
    };
    FP8_TRY(choose(&out->dialect, &out->scheme, o));
    row = fp8_dialect_get(out->dialect);
    if (!recipe.attention && !row->q_descale) recipe.attention = "none";
    FP8_TRY(recipe_apply(out, &recipe, o->record && row->k_descale ? "fp8" : "none"));
    if (!o->record && out->kv_fp8)
        st = FP8_FAIL(FP8_EINVAL, "--kv fp8 needs --record: its scales are static");
    else if (!o->record && (recipe.margin != 0 || recipe.history != RECIPE_HISTORY ||
                            strcmp(recipe.algo, RECIPE_ALGO) != 0))
        st = FP8_FAIL(FP8_EINVAL, "--margin, --amax-history and --amax-algo need --record: they "
                                  "choose from its history");
done:
    return st;
}

static fp8_status print_result(const options *o, fp8_scheme scheme, const fp8_export_result *r) {
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
    cJSON_AddStringToObject(doc, "scheme", fp8_scheme_name(scheme));
    cJSON_AddNumberToObject(doc, "quantized", (double)r->linears);
    cJSON_AddNumberToObject(doc, "source_bytes", (double)r->source_bytes);
    cJSON_AddNumberToObject(doc, "output_bytes", (double)r->output_bytes);
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status from_dense(const options *o, const fp8_checkpoint *source, fp8_device *device) {
    fp8_status st = FP8_OK;
    fp8_record *record = NULL;
    fp8_export_result result = {0};
    fp8_export_options export_options;
    FP8_TRY(check_options(&export_options, o));
    if (o->record) FP8_TRY(fp8_record_load(&record, o->record));
    FP8_TRY(fp8_export(&result, o->output, source, device, record, &export_options));
    st = print_result(o, export_options.scheme, &result);
done:
    fp8_record_destroy(record);
    return st;
}

/* ---- from FP8 -------------------------------------------------------------------------------- */

static fp8_status convert_options(fp8_convert_options *out, const options *o,
                                  const fp8_quant_config *source) {
    static const char *const kv[] = {"keep", "none", "tensor", "head"};
    fp8_status st = FP8_OK;
    if (strcmp(o->scales, "bf16") == 0)
        return FP8_FAIL(FP8_EINVAL, "--scales bf16 is of BF16 weights, and the source is FP8");
    if (o->record || o->include.count || o->exclude.count || o->recipe.kv || o->recipe.attention)
        return FP8_FAIL(FP8_EINVAL, "the source is FP8 already: --record, --kv, --fp8-attention, "
                                    "--include and --exclude are for BF16 (--kv-scales is not)");
    *out = (fp8_convert_options){
        .to_bf16 = strcmp(o->to, "bf16") == 0,
        .dialect = source->dialect,
        .scheme = FP8_NUM_SCHEMES,
        .ue8m0 = strcmp(o->scales, "ue8m0") == 0,
        .max_shard_bytes = o->max_shard,
        .force = o->force,
        .progress = cli_progress(),
    };
    for (int i = 0; i < 4; i++)
        if (strcmp(o->kv_scales, kv[i]) == 0) out->kv = (fp8_kv_scales)i;
    if (o->dialect) FP8_TRY(fp8_dialect_parse(&out->dialect, o->dialect));
    if (o->scheme) FP8_TRY(fp8_scheme_parse(&out->scheme, o->scheme));
done:
    return st;
}

static void note_losses(const fp8_convert_result *r) {
    if (r->requantized)
        cli_note("%lld weights have new codes, made from their values: the old scales cannot be "
                 "said", (long long)r->requantized);
    if (r->kv_left_out || r->q_left_out)
        cli_note("%lld scales of keys and values and %lld of queries are left out",
                 (long long)r->kv_left_out, (long long)r->q_left_out);
    if (r->kv_merged)
        cli_note("%lld scales were one a head, and are one a layer now", (long long)r->kv_merged);
    if (r->inputs_left_out)
        cli_note("%lld static input scales are left out", (long long)r->inputs_left_out);
}

static fp8_status print_converted(const options *o, const fp8_convert_result *r,
                                  const fp8_convert_options *c) {
    fp8_status st = FP8_OK;
    const char *dialect = c->to_bf16 ? "bf16" : fp8_dialect_get(c->dialect)->name;
    cJSON *doc = NULL;
    note_losses(r);
    if (!o->common.json) {
        printf("%s: %s%s%s; %lld weights kept bit for bit, %lld requantized, %lld dequantized\n",
               o->output, dialect, c->to_bf16 ? "" : ", ",
               c->to_bf16 ? "" : fp8_scheme_name(r->scheme), (long long)r->kept,
               (long long)r->requantized, (long long)r->dequantized);
        return FP8_OK;
    }
    doc = cJSON_CreateObject();
    FP8_TRY(cli_json_add_text(doc, "output", o->output, strlen(o->output)));
    cJSON_AddStringToObject(doc, "dialect", dialect);
    cJSON_AddStringToObject(doc, "scheme", fp8_scheme_name(r->scheme));
    cJSON_AddNumberToObject(doc, "kept", (double)r->kept);
    cJSON_AddNumberToObject(doc, "requantized", (double)r->requantized);
    cJSON_AddNumberToObject(doc, "dequantized", (double)r->dequantized);
    cJSON_AddNumberToObject(doc, "kv_left_out", (double)r->kv_left_out);
    cJSON_AddNumberToObject(doc, "q_left_out", (double)r->q_left_out);
    cJSON_AddNumberToObject(doc, "inputs_left_out", (double)r->inputs_left_out);
    cJSON_AddNumberToObject(doc, "kv_merged", (double)r->kv_merged);
    cJSON_AddNumberToObject(doc, "source_bytes", (double)r->source_bytes);
    cJSON_AddNumberToObject(doc, "output_bytes", (double)r->output_bytes);
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status from_fp8(const options *o, const fp8_checkpoint *source, fp8_device *device,
                           const fp8_quant_config *quant) {
    fp8_status st = FP8_OK;
    fp8_convert_result result = {0};
    fp8_convert_options c;
    FP8_TRY(convert_options(&c, o, quant));
    FP8_TRY(fp8_convert(&result, o->output, source, device, &c));
    st = print_converted(o, &result, &c);
done:
    return st;
}

/* ---- the command ----------------------------------------------------------------------------- */

/* Empty without a config.json. */
static fp8_status read_quant(fp8_quant_config *out, const fp8_checkpoint *source) {
    char *path = NULL;
    fp8_status st = FP8_OK;
    *out = (fp8_quant_config){0};
    FP8_TRY(fp8_checkpoint_sibling(&path, source, "config.json"));
    if (path) st = fp8_quant_config_load(out, path);
done:
    free(path);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    fp8_device *device = NULL;
    fp8_checkpoint *source = NULL;
    fp8_quant_config quant = {0};
    if (!o->output) return FP8_FAIL(FP8_EINVAL, "convert: --output is required");
    fp8_file_set_sync(!o->no_sync);
    FP8_TRY(fp8_checkpoint_open(&source, operands->items[0]));
    FP8_TRY(cli_check_output_folder(o->output, o->force, fp8_checkpoint_folder(source)));
    FP8_TRY(read_quant(&quant, source));
    FP8_TRY(cli_device_open(&device, &o->common));
    if (quant.scheme != FP8_SCHEME_NONE || quant.kv_fp8) st = from_fp8(o, source, device, &quant);
    else st = from_dense(o, source, device);
done:
    fp8_quant_config_free(&quant);
    fp8_checkpoint_close(source);
    fp8_device_destroy(device);
    return st;
}

const cli_command cli_cmd_convert = {
    .name = "convert",
    .purpose = "write an FP8 checkpoint without running the model, or in another dialect",
    .usage = "MODEL -o OUT [options]",
    .about =
        "Writes the folder OUT: the Linear weights as E4M3 with their descales, every\n"
        "other tensor as it was, config.json with quantization_config, tokenizer and\n"
        "generation files. Needs no data and runs no forward: either inputs are scaled\n"
        "when they come, or static scales are derived anew from the history that\n"
        "'fp8calib run' recorded (--record), with another margin, say.\n"
        "\n"
        "An FP8 checkpoint is written in another dialect or scheme, or as BF16: codes stay\n"
        "as they are where the new scales can stand for the old ones, else they are made\n"
        "anew from the values, and a note says so.\n"
        "\n"
        "A single .safetensors file without config.json converts too, without a record:\n"
        "its 2-D weights, narrowed by --include and --exclude.",
    .examples =
        "  fp8calib convert ./Llama-3-8B -o ./Llama-3-8B-dynamic\n"
        "  fp8calib convert ./Llama-3-8B -o ./Llama-3-8B-tensor --scheme tensor\n"
        "  fp8calib convert ./Llama-3-8B -o ./roomy --margin 1 \\\n"
        "      --record ./Llama-3-8B-FP8/calibration.safetensors\n"
        "  fp8calib convert ./Llama-3-8B -o ./blocks --dialect deepseek\n"
        "  fp8calib convert ./Llama-3-8B-FP8 -o ./for-trt --dialect modelopt\n"
        "  fp8calib convert ./DeepSeek-V3 -o ./DeepSeek-V3-BF16 --to bf16\n"
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
