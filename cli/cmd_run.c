/* cli/cmd_run.c - the whole job: data -> calibration -> FP8 checkpoint -> evaluation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/lint_result.h"
#include "cli/round_options.h"
#include "cli/run_result.h"

typedef struct options {
    cli_common common;
    const char *output, *data, *tokens, *field, *eval_data;
    recipe_options recipe;
    round_options round;
    const char *scheme;
    int64_t samples, seq, batch, eval_windows;
    size_t max_shard, gpu_memory;
    int histograms, kv_heads, resume, force, no_sync, allow_nonfinite, no_eval;
} options;
static const options defaults = {
    .common = CLI_COMMON_DEFAULTS,
    .recipe = RECIPE_DEFAULTS,
    .round = ROUND_DEFAULTS,
    .scheme = "tensor",
    .samples = 512,
    .batch = 8,
    .eval_windows = 16,
};

static const cli_option table[] = {
    {"--output", 'o', CLI_TEXT, offsetof(options, output), "OUT", 1, 0,
     "the folder to write; default: the model's name with -FP8, beside the model"},
    {"--data", 0, CLI_TEXT, offsetof(options, data), "FILE", 1, 0,
     "calibration text: plain or JSONL (.jsonl), either gzipped; default: the built-in text"},
    {"--tokens", 0, CLI_TEXT, offsetof(options, tokens), "FILE", 1, 0,
     "calibration token ids instead: .bin, .npy or .safetensors"},
    {"--field", 0, CLI_TEXT, offsetof(options, field), "NAME", 1, 0,
     "the JSONL key that holds the text; default: text"},
    {"--samples", 0, CLI_INT, offsetof(options, samples), "N", 1, 1 << 30,
     "calibrate on at most N samples"},
    {"--seq", 0, CLI_INT, offsetof(options, seq), "N", 1, 1 << 20,
     "tokens of a sample, at most; default: 512, less where the model has fewer positions"},
    {"--batch", 0, CLI_INT, offsetof(options, batch), "N", 1, 65536,
     "samples of a step; a step is one row of the amax history"},
    {"--scheme", 0, CLI_CHOICE, offsetof(options, scheme), "tensor|dynamic|tensor-dynamic|block", 0,
     0, "tensor: static scales of inputs; the others compute those at run time, weights having a "
     "scale a channel, a tensor, or a square of 128"},
    RECIPE_OPTIONS(offsetof(options, recipe), "fp8"),
    ROUND_OPTIONS(offsetof(options, round)),
    CALIBRATOR_OPTIONS(offsetof(options, recipe)),
    {"--histograms", 0, CLI_FLAG, offsetof(options, histograms), NULL, 0, 0,
     "keep histograms in the record, for other calibrators later ('fp8calib help scales'); "
     "--calibrator percentile, mse and entropy do, too"},
    {"--kv-heads", 0, CLI_FLAG, offsetof(options, kv_heads), NULL, 0, 0,
     "keep the amax of keys and values a head at a time in the record, too: 'fp8calib convert "
     "--record --kv-scales head' writes them (OUT itself has one scale a layer)"},
    {"--max-shard-size", 0, CLI_BYTES, offsetof(options, max_shard), "SIZE", 1, 0,
     "split the weights into files of at most SIZE (500MB, 5GB, 4GiB); default: one file"},
    {"--gpu-memory", 0, CLI_BYTES, offsetof(options, gpu_memory), "SIZE", 1, 0,
     "CUDA: use at most about SIZE of the GPU (8GB, 16GiB); a model that does not fit has two "
     "layers there at a time, and all steps go through them together"},
    {"--resume", 0, CLI_FLAG, offsetof(options, resume), NULL, 0, 0,
     "go on from the record an interrupted run left; begins anew where there is none"},
    {"--force", 0, CLI_FLAG, offsetof(options, force), NULL, 0, 0,
     "replace OUT when it is there, whole and only at the end"},
    {"--no-sync", 0, CLI_FLAG, offsetof(options, no_sync), NULL, 0, 0,
     "do not wait until OUT is on the disk: a power failure soon after may cost it"},
    {"--allow-nonfinite", 0, CLI_FLAG, offsetof(options, allow_nonfinite), NULL, 0, 0,
     "go on when a weight or an activation is NaN or Inf"},
    {"--eval-data", 0, CLI_TEXT, offsetof(options, eval_data), "FILE", 1, 0,
     "judge on this text; default: the beginning of the calibration data"},
    {"--eval-windows", 0, CLI_INT, offsetof(options, eval_windows), "N", 0, INT32_MAX,
     "windows of --seq tokens to judge on; 0 = all"},
    {"--no-eval", 0, CLI_FLAG, offsetof(options, no_eval), NULL, 0, 0,
     "no perplexity, no generated line"},
};

/* The report's activations are measured over the first steps: errors of 8192 tokens tell the points
 * apart, and a step of a large model takes a tenth of a second. Its prompt begins the evaluation
 * text and one line of text follows. */
enum { REPORT_STEPS = 8, REPORT_TOKENS = 8192, PROMPT_TOKENS = 12, LINE_TOKENS = 32 };
enum { KEEP_WINDOWS = 32 }; /* of calibration data, to see what a Linear costs */

typedef struct job {
    const options *o;
    fp8_device *device;
    cli_source source;
    fp8_model *model;
    fp8_samples samples;
    fp8_calib_options calib;
    fp8_export_options export;
    int compensate;
    fp8_rounding_options rounding;
    fp8_rounding *rounded;
    fp8_keep *keep;
    fp8_record *record;
    fp8_export_job *exporting; /* CUDA: its weights are written while the forward runs */
    char *output, *record_path, *scratch; /* OUT, OUT.calibration.safetensors, OUT.fp8-plain */
    fp8_path_lock *lock;        /* on both */
    run_result result;
} job;

/* ---- before the work ------------------------------------------------------------------------- */

static fp8_status check_options(job *j) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    if (o->data && o->tokens)
        return FP8_FAIL(FP8_EINVAL, "run: --data and --tokens exclude each other");
    j->export = (fp8_export_options){
        .max_shard_bytes = o->max_shard,
        .force = o->force,
        .allow_nonfinite = o->allow_nonfinite,
        .progress = cli_progress(),
    };
    FP8_TRY(fp8_scheme_parse(&j->export.scheme, o->scheme));
    FP8_TRY(round_apply(&j->rounding, &j->compensate, &o->round));
    j->result.round = o->round.round;
    j->result.scheme = o->scheme;
    j->result.recipe = o->recipe;
    FP8_TRY(recipe_apply(&j->export, &j->result.recipe, "fp8"));
    j->result.batch = o->batch;
done:
    return st;
}

/* The folder of plain codes beside OUT, of which a killed run may have left one. */
static fp8_status name_scratch(job *j) {
    static const char suffix[] = ".fp8-plain";
    const size_t len = strlen(j->output);

    j->scratch = malloc(len + sizeof suffix);
    if (!j->scratch) return FP8_FAIL(FP8_ENOMEM, "run: out of memory");
    memcpy(j->scratch, j->output, len);
    memcpy(j->scratch + len, suffix, sizeof suffix);
    return fp8_path_is_dir(j->scratch) ? fp8_folder_remove(j->scratch) : FP8_OK;
}

/* Names OUT and its working record, and makes sure that both can be written, before any work. */
static fp8_status prepare_output(job *j, const char *model) {
    static const char suffix[] = ".calibration.safetensors";
    const options *o = j->o;
    fp8_status st = FP8_OK;
    size_t len;
    if (o->output) j->output = strdup(o->output);
    else FP8_TRY(cli_default_output(&j->output, model));
    len = j->output ? strlen(j->output) : 0;
    j->record_path = malloc(len + sizeof suffix);
    if (!j->output || !j->record_path) {
        st = FP8_FAIL(FP8_ENOMEM, "run: out of memory");
        goto done;
    }
    while (len > 1 && j->output[len - 1] == '/') j->output[--len] = 0;
    memcpy(j->record_path, j->output, len);
    memcpy(j->record_path + len, suffix, sizeof suffix);
    FP8_TRY(cli_check_output_folder(j->output, o->force,
                                    fp8_checkpoint_folder(j->source.checkpoint)));
    FP8_TRY(fp8_path_lock_take(&j->lock, j->output));
    FP8_TRY(name_scratch(j));
    if (!o->resume && !o->force && fp8_path_exists(j->record_path))
        st = FP8_FAIL(FP8_EEXIST, "%s: left by an interrupted run; --resume goes on from it, "
                      "--force begins anew", j->record_path);
done:
    return st;
}

static fp8_status load_samples(job *j) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    fp8_id_data ids = {0};
    fp8_text *text = NULL;
    size_t len = 0;
    const char *builtin = fp8_builtin_text(&len);
    j->result.data_name = o->tokens ? o->tokens : o->data ? o->data : "the built-in text";
    if (o->tokens) {
        FP8_TRY(fp8_id_data_load(&ids, o->tokens, j->source.config.vocab_size));
        FP8_TRY(fp8_samples_from_ids(&j->samples, &ids, j->result.seq, o->samples));
    } else {
        FP8_TRY(cli_source_tokenizer(&j->source));
        if (o->data) FP8_TRY(fp8_text_open(&text, o->data, o->field));
        else FP8_TRY(fp8_text_open_memory(&text, j->result.data_name, builtin, len));
        FP8_TRY(fp8_samples_from_text(&j->samples, text, j->source.tokenizer, j->result.seq,
                                      o->samples));
    }
    j->result.samples = j->samples.count;
done:
    fp8_text_close(text);
    fp8_id_data_free(&ids);
    return cli_name_culprit(st, j->result.data_name);
}

static fp8_status prepare(job *j, const char *model) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    fp8_model_options model_options = {0};
    fp8_warm *warm = NULL;
    int warmed;
    double seconds = cli_seconds();
    FP8_TRY(check_options(j));
    FP8_TRY(cli_source_open(&j->source, model));
    FP8_TRY(prepare_output(j, model));
    FP8_TRY(cli_length(&j->result.seq, "--seq", o->seq, &j->source.config));
    FP8_TRY(load_samples(j));
    j->result.seconds.data = cli_seconds() - seconds;
    seconds = cli_seconds();
    FP8_TRY(cli_device_open(&j->device, &o->common));
    j->result.seconds.device = cli_seconds() - seconds;
    if (o->gpu_memory && fp8_device_place(j->device) != FP8_PLACE_CUDA) {
        st = FP8_FAIL(FP8_EINVAL, "run: --gpu-memory is for CUDA, found device %s",
                      fp8_device_name(j->device));
        goto done;
    }
    model_options.memory_bytes = o->gpu_memory;
    model_options.max_tokens = j->result.seq * o->batch;
    seconds = cli_seconds();
    FP8_TRY(fp8_warm_start(&warm, j->device, &j->source.config, model_options.max_tokens,
                           j->samples.num_ids));
    st = fp8_model_load(&j->model, j->device, j->source.checkpoint, &model_options);
    warmed = warm != NULL;
    fp8_warm_end(warm);
    if (st == FP8_ENOMEM && warmed) /* what it took may have been what was missing */
        st = fp8_model_load(&j->model, j->device, j->source.checkpoint, &model_options);
    FP8_TRY(st);
    FP8_TRY(fp8_device_sync(j->device));
    j->result.seconds.load = cli_seconds() - seconds;
    j->calib = (fp8_calib_options){
        .batch = o->batch,
        .seq = j->result.seq,
        .allow_nonfinite = o->allow_nonfinite,
        .kv_heads = o->kv_heads,
        .histograms = o->histograms || j->export.clip.rule != FP8_CLIP_NONE,
        .record_path = j->record_path,
        .resume = o->resume,
        .data_name = j->result.data_name,
        .progress = cli_progress(),
    };
    j->result.model = model;
    j->result.output = j->output;
    j->result.device = fp8_device_name(j->device);
done:
    return st;
}

/* ---- the work -------------------------------------------------------------------------------- */

/* Before the report runs more forwards. */
static void count_experts(run_result *r, const fp8_model *m) {
    const fp8_model_config *c = fp8_model_get_config(m);

    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const int64_t *tokens = fp8_model_expert_tokens(m, layer);
        for (int64_t e = 0; tokens && e < c->num_experts; e++) {
            if (r->experts == 0 || tokens[e] < r->least_tokens) r->least_tokens = tokens[e];
            if (tokens[e] > r->most_tokens) r->most_tokens = tokens[e];
            r->idle_experts += tokens[e] == 0;
            r->experts++;
        }
    }
}

/* What stays in BF16, and the codes by compensated rounding; a folder beside OUT holds the plain
 * ones meanwhile. */
static fp8_status weigh_and_round(job *j) {
    fp8_status st = FP8_OK;

    if (j->o->round.keep > 0) {
        FP8_TRY(fp8_keep_create(&j->keep, j->model, j->source.checkpoint, j->scratch, j->record,
                                &j->samples, &j->calib, &j->export, j->o->round.keep,
                                KEEP_WINDOWS));
        j->export.keep = (const char *const *)j->keep->names;
        j->export.num_keep = j->keep->num_names;
        j->result.keep = j->keep;
    }
    if (j->compensate) {
        FP8_TRY(fp8_rounding_create(&j->rounded, j->model, j->source.checkpoint, j->scratch,
                                    j->record, &j->samples, &j->calib, &j->export, &j->rounding));
        j->result.rounding_loss = fp8_rounding_loss(j->rounded);
    } else if (strcmp(j->o->round.weight_scales, "mse") == 0) {
        FP8_TRY(fp8_rounding_search(&j->rounded, j->device, &j->source.config,
                                    j->source.checkpoint, j->record, &j->export));
    }
    j->export.rounding = j->rounded;
done:
    return st;
}

/* As many as make REPORT_TOKENS, at most REPORT_STEPS. */
static int64_t report_steps(const run_result *r) {
    const int64_t step = r->batch * r->seq, enough = (REPORT_TOKENS + step - 1) / step;
    return enough < REPORT_STEPS ? enough : REPORT_STEPS;
}

/* From samples to the checkpoint; what is interrupted leaves the record. */
static fp8_status make_checkpoint(job *j) {
    fp8_status st = FP8_OK;
    run_result *r = &j->result;
    double seconds = cli_seconds();
    const int later = j->compensate || j->o->round.keep > 0 ||
                      strcmp(j->o->round.weight_scales, "mse") == 0;
    if (!later)
        FP8_TRY(fp8_export_begin(&j->exporting, j->output, j->source.checkpoint, j->device,
                                 j->model, 1, &j->export));
    r->seconds.plan = cli_seconds() - seconds;
    seconds = cli_seconds();
    cli_note("calibrating on %s: %lld samples, %lld tokens", r->data_name, (long long)r->samples,
             (long long)j->samples.num_ids);
    FP8_TRY(fp8_calibrate(&j->record, j->model, j->source.checkpoint, &j->samples, &j->calib));
    r->seconds.calibrate = cli_seconds() - seconds;
    count_experts(r, j->model);
    r->steps = j->record->steps;
    for (int64_t i = 0; i < r->steps; i++) r->tokens += j->record->tokens[i];
    seconds = cli_seconds();
    FP8_TRY(fp8_report_create(&r->report, j->model, j->source.checkpoint, j->record, &j->samples,
                              &j->calib, &j->export, report_steps(r)));
    r->seconds.report = cli_seconds() - seconds;
    seconds = cli_seconds();
    if (later) {
        FP8_TRY(weigh_and_round(j));
        r->seconds.round = cli_seconds() - seconds;
        seconds = cli_seconds();
        FP8_TRY(fp8_export(&r->exported, j->output, j->source.checkpoint, j->device, j->record,
                           &j->export));
    } else {
        st = fp8_export_finish(j->exporting, &r->exported, j->record);
        j->exporting = NULL; /* freed whatever it returns */
        FP8_TRY(st);
    }
    r->seconds.write = cli_seconds() - seconds;
    remove(j->record_path); /* the whole of it is in OUT now */
done:
    if (st == FP8_ECANCELED && fp8_path_exists(j->record_path))
        st = FP8_FAIL(st, "interrupted; the steps done are in %s: run again with --resume",
                      j->record_path);
    return st;
}

/* Warnings about what was written. */
static fp8_status lint_output(job *j) {
    fp8_status st = FP8_OK;
    fp8_checkpoint *written = NULL;
    FP8_TRY(fp8_checkpoint_open(&written, j->output));
    FP8_TRY(fp8_lint(&j->result.lint, written, NULL));
    lint_result_note(&j->result.lint);
done:
    fp8_checkpoint_close(written);
    return st;
}

/* One greedy line after the first tokens of the evaluation text. */
static fp8_status generate_line(run_side *side, fp8_model *m, const fp8_tokenizer *t,
                                const int32_t *prompt, int64_t num_prompt) {
    fp8_status st = FP8_OK;
    fp8_ids ids = {0};
    FP8_TRY(fp8_ids_append(&ids, prompt, num_prompt));
    FP8_TRY(fp8_model_generate(m, &ids, prompt, num_prompt, LINE_TOKENS, 0, NULL, NULL));
    FP8_TRY(cli_continuation(&side->text, &side->text_len, t, &ids, num_prompt));
    st = cli_check_interrupt();
done:
    fp8_ids_free(&ids);
    return st;
}

static fp8_status generate_both(job *j, fp8_model *fp8, const fp8_ids *ids) {
    fp8_status st = FP8_OK;
    const int64_t n = ids->count < PROMPT_TOKENS ? ids->count : PROMPT_TOKENS;
    const fp8_tokenizer *t = j->source.tokenizer;
    run_result *r = &j->result;
    if (!t || n + LINE_TOKENS > j->source.config.max_position) return FP8_OK;
    FP8_TRY(fp8_tokenizer_decode(t, &r->prompt, &r->prompt_len, ids->data, n, 1));
    FP8_TRY(generate_line(&r->bf16, j->model, t, ids->data, n));
    FP8_TRY(generate_line(&r->fp8, fp8, t, ids->data, n));
done:
    return st;
}

static fp8_status evaluate(job *j) {
    const options *o = j->o;
    fp8_status st = FP8_OK;
    run_result *r = &j->result;
    const char *data = o->eval_data ? o->eval_data : o->data;
    fp8_eval_result results[2];
    fp8_checkpoint *checkpoint = NULL;
    fp8_model *models[2] = {j->model, NULL};
    const fp8_model_options model_options = {
        .max_tokens = r->seq > CLI_EVAL_TOKENS ? r->seq : CLI_EVAL_TOKENS,
    };
    fp8_ids ids = {0};
    FP8_TRY(cli_load_stream(&ids, &j->source, data, o->field, o->eval_data ? NULL : o->tokens,
                            o->eval_windows ? o->eval_windows * r->seq + 1 : 0));
    FP8_TRY(fp8_checkpoint_open(&checkpoint, j->output));
    FP8_TRY(fp8_model_load(&models[1], j->device, checkpoint, &model_options));
    FP8_TRY(fp8_evaluate(results, models, 2, ids.data, ids.count, r->seq, o->eval_windows,
                         &j->calib.progress));
    r->bf16.eval = results[0];
    r->fp8.eval = results[1];
    r->window = r->seq;
    r->eval_name = o->eval_data ? o->eval_data : "the calibration data";
    FP8_TRY(generate_both(j, models[1], &ids));
    r->evaluated = 1;
done:
    fp8_model_destroy(models[1]);
    fp8_checkpoint_close(checkpoint);
    fp8_ids_free(&ids);
    if (st != FP8_OK)
        st = FP8_FAIL(st, "%s is written, but not judged: %s", j->output, fp8_last_message());
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    fp8_status st = FP8_OK;
    job *j = calloc(1, sizeof *j);
    if (!j) return FP8_FAIL(FP8_ENOMEM, "run: out of memory");
    j->o = o;
    fp8_file_set_sync(!o->no_sync);
    FP8_TRY(prepare(j, operands->items[0]));
    FP8_TRY(make_checkpoint(j));
    FP8_TRY(lint_output(j));
    if (!o->no_eval) FP8_TRY(evaluate(j));
    if (o->common.json)
        st = run_result_print_json(&j->result);
    else
        run_result_print(&j->result);
done:
    fp8_export_abort(j->exporting);
    fp8_rounding_destroy(j->rounded);
    fp8_keep_destroy(j->keep);
    fp8_record_destroy(j->record);
    fp8_samples_free(&j->samples);
    fp8_model_destroy(j->model);
    cli_source_close(&j->source);
    run_result_free(&j->result);
    fp8_device_destroy(j->device);
    fp8_path_lock_release(j->lock);
    free(j->output);
    free(j->scratch);
    free(j->record_path);
    free(j);
    return st;
}

const cli_command cli_cmd_run = {
    .name = "run",
    .purpose = "calibrate a BF16 model and write it as an FP8 checkpoint",
    .usage = "MODEL [-o OUT] [--data FILE | --tokens FILE] [options]",
    .about =
        "Runs the model's forward over the calibration data and keeps, for every\n"
        "activation and every step, its largest magnitude; turns that history into\n"
        "scales; and writes the folder OUT:\n"
        "  model.safetensors        E4M3 weights with their descales, static descales of\n"
        "                           Linear inputs and of K, V and Q, every other tensor\n"
        "                           as it was; shards and an index with --max-shard-size\n"
        "  config.json              the model's, with quantization_config\n"
        "                           (compressed-tensors)\n"
        "  tokenizer.json ...       tokenizer and generation files of the model, copied\n"
        "  calibration.safetensors  the record: the whole history and what made it\n"
        "Then it prints sizes, perplexity and a generated line of BF16 and FP8 side by\n"
        "side ('fp8calib help eval' has the recipe), and the weights and activations\n"
        "that lost most (activations: over the first 8 steps, fewer where those are\n"
        "more than 8192 tokens).\n"
        "\n"
        "OUT appears whole at the end, or not at all. While it runs, and after an\n"
        "interruption, the history so far is in OUT.calibration.safetensors beside it;\n"
        "--resume goes on from there with the same model, data and options. What a killed\n"
        "run leaves in OUT.fp8-partial and OUT.lock, the next one removes. The default\n"
        "OUT of MODEL 'dir/llama', 'dir/llama/model.safetensors' and\n"
        "'dir/llama.safetensors' is 'dir/llama-FP8'.\n"
        "\n"
        "A plain text is encoded once and cut into samples of --seq tokens, each\n"
        "beginning with the tokenizer's prefix; a JSONL line is one sample, cut at\n"
        "--seq. Id files: see 'fp8calib help logits'.",
    .examples =
        "  fp8calib run ./Llama-3-8B\n"
        "  fp8calib run ./Llama-3-8B -o ./out --data c4.jsonl.gz --seq 2048\n"
        "  fp8calib run ./Llama-3-8B --kv none --eval-data wiki.txt --json >result.json\n"
        "  fp8calib run ./Llama-3-8B --data c4.jsonl.gz --resume\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
