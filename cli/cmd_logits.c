/* cli/cmd_logits.c - the logits of given token ids, as a safetensors file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct options {
    cli_common common;
    const char *tokens, *output, *compute;
    int force;
} options;
static const options defaults = {CLI_COMMON_DEFAULTS, NULL, NULL, "bf16", 0};

static const cli_option table[] = {
    {"--output", 'o', CLI_TEXT, offsetof(options, output), "FILE", 1, 0,
     "the .safetensors file to write (required)"},
    {"--tokens", 0, CLI_TEXT, offsetof(options, tokens), "FILE", 1, 0,
     "token ids: .bin, .npy or .safetensors, sequences of one length (required)"},
    {"--compute", 0, CLI_CHOICE, offsetof(options, compute), "bf16|fp32", 0, 0,
     "arithmetic of the forward; fp32 on the CPU only"},
    {"--force", 0, CLI_FLAG, offsetof(options, force), NULL, 0, 0, "replace FILE"},
};

/* Length of all sequences; FP8_EDATA when they differ. */
static fp8_status common_length(int64_t *out, const fp8_id_data *ids, const char *name) {
    *out = ids->starts[1] - ids->starts[0];
    for (int64_t i = 1; i < ids->num_seqs; i++)
        if (ids->starts[i + 1] - ids->starts[i] != *out)
            return FP8_FAIL(FP8_EDATA, "%s: sequence %lld has %lld ids, the first %lld", name,
                            (long long)i, (long long)(ids->starts[i + 1] - ids->starts[i]),
                            (long long)*out);
    return FP8_OK;
}

static fp8_status forward_all(float *out, fp8_model *m, const fp8_id_data *ids, int64_t length) {
    fp8_status st = FP8_OK;
    const fp8_progress progress = cli_progress();
    const int64_t vocab = fp8_model_get_config(m)->vocab_size;
    const int32_t starts[2] = {0, (int32_t)length};
    for (int64_t i = 0; i < ids->num_seqs; i++) {
        const fp8_batch batch = {ids->ids.data + ids->starts[i], length, starts, 1};
        fp8_tensor logits;
        FP8_TRY(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits));
        FP8_TRY(fp8_device_download(fp8_model_device(m), out + i * length * vocab, logits.data,
                                    (size_t)(length * vocab) * sizeof *out));
        if (progress.on(progress.ctx, "sequences", i + 1, ids->num_seqs)) break;
    }
    st = cli_check_interrupt();
done:
    return st;
}

static fp8_status write_logits(const char *path, const float *data, const fp8_st_spec *spec,
                               size_t bytes) {
    fp8_status st = FP8_OK;
    fp8_st_writer *w = NULL;
    FP8_TRY(fp8_st_writer_create(&w, path, spec, 1, NULL, 0));
    FP8_TRY(fp8_st_writer_put(w, 0, data, bytes));
    st = fp8_st_writer_commit(w);
    w = NULL;
done:
    fp8_st_writer_abort(w);
    return st;
}

static fp8_status print_result(const options *o, const fp8_st_spec *spec) {
    fp8_status st = FP8_OK;
    cJSON *doc = NULL, *shape;
    if (!o->common.json) {
        char text[128];
        printf("%s: logits F32 %s\n", o->output,
               fp8_shape_text(text, sizeof text, spec->shape, spec->ndim));
        return FP8_OK;
    }
    doc = cJSON_CreateObject();
    FP8_TRY(cli_json_add_text(doc, "output", o->output, strlen(o->output)));
    shape = cJSON_AddArrayToObject(doc, "shape");
    for (int32_t i = 0; i < spec->ndim; i++)
        cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)spec->shape[i]));
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    fp8_device *device = NULL;
    cli_source source = {0};
    fp8_model *model = NULL;
    fp8_model_options model_options = {.compute = cli_compute(o->compute)};
    fp8_id_data ids = {0};
    fp8_st_spec spec = {.name = "logits", .dtype = FP8_DTYPE_F32, .ndim = 3};
    float *logits = NULL;
    size_t bytes = 0;
    if (!o->tokens || !o->output)
        return FP8_FAIL(FP8_EINVAL, "logits: %s is required", o->tokens ? "--output" : "--tokens");
    FP8_TRY(cli_check_output_file(o->output, o->force));
    FP8_TRY(cli_device_open(&device, &o->common));
    FP8_TRY(cli_source_open(&source, operands->items[0]));
    FP8_TRY(fp8_id_data_load(&ids, o->tokens, source.config.vocab_size));
    FP8_TRY(common_length(&model_options.max_tokens, &ids, o->tokens));
    FP8_TRY(fp8_model_load(&model, device, source.checkpoint, &model_options));
    spec.shape[0] = ids.num_seqs;
    spec.shape[1] = model_options.max_tokens;
    spec.shape[2] = source.config.vocab_size;
    FP8_TRY(fp8_shape_bytes(&bytes, spec.dtype, spec.shape, spec.ndim));
    logits = malloc(bytes);
    if (!logits) {
        st = FP8_FAIL(FP8_ENOMEM, "logits: out of memory for %zu bytes", bytes);
        goto done;
    }
    FP8_TRY(forward_all(logits, model, &ids, model_options.max_tokens));
    FP8_TRY(write_logits(o->output, logits, &spec, bytes));
    st = print_result(o, &spec);
done:
    free(logits);
    fp8_id_data_free(&ids);
    fp8_model_destroy(model);
    cli_source_close(&source);
    fp8_device_destroy(device);
    return st;
}

const cli_command cli_cmd_logits = {
    .name = "logits",
    .purpose = "write a model's logits of given token ids",
    .usage = "MODEL --tokens FILE -o OUT.safetensors [options]",
    .about =
        "Runs each sequence of the id file from an empty cache and writes one tensor\n"
        "`logits`, F32 [sequences, length, vocabulary], for comparisons with other\n"
        "runtimes. All of it is held in memory. Sequences of unequal length are refused.\n"
        "\n"
        "Id files: .bin (raw little-endian u16 when the vocabulary is at most 65536,\n"
        "else u32; one sequence), .npy (1-D or 2-D integers, C order) or .safetensors\n"
        "(tensor input_ids, or the only one).",
    .examples = "  fp8calib logits ./Llama-3-8B-FP8 --tokens ids.npy -o logits.safetensors\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
