/* cli/cmd_eval.c - perplexity of models on a text, and how far each is from the first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct options {
    cli_common common;
    const char *data, *tokens, *field, *compute;
    int64_t window, max_windows;
    int per_window;
} options;
static const options defaults = {CLI_COMMON_DEFAULTS, NULL, NULL, NULL, "bf16", 0, 0, 0};

static const cli_option table[] = {
    {"--data", 0, CLI_TEXT, offsetof(options, data), "FILE", 1, 0,
     "text or JSONL, either gzipped; default: the built-in text"},
    {"--tokens", 0, CLI_TEXT, offsetof(options, tokens), "FILE", 1, 0,
     "token ids instead of a text: .bin, .npy or .safetensors"},
    {"--field", 0, CLI_TEXT, offsetof(options, field), "NAME", 1, 0,
     "the JSONL key that holds the text; default: text"},
    {"--window", 0, CLI_INT, offsetof(options, window), "N", 1, 1 << 20,
     "tokens of one window; default: 512, less where a model has fewer positions"},
    {"--max-windows", 0, CLI_INT, offsetof(options, max_windows), "N", 0, INT32_MAX,
     "stop after N windows; default: 0, all"},
    {"--per-window", 0, CLI_FLAG, offsetof(options, per_window), NULL, 0, 0,
     "with --json: sums of every window, too, for errors of differences"},
    {"--compute", 0, CLI_CHOICE, offsetof(options, compute), "bf16|fp32", 0, 0,
     "arithmetic of the forward; fp32 on the CPU only"},
};

enum { MAX_MODELS = 16 };

typedef struct evaluation {
    fp8_device *device;
    cli_source sources[MAX_MODELS];
    fp8_model *models[MAX_MODELS];
    fp8_eval_result results[MAX_MODELS];
    int32_t count;
    fp8_ids ids;
    int64_t window, num_windows;
    fp8_window_score *windows; /* [count][num_windows]; NULL: not wanted */
} evaluation;

static fp8_status open_models(evaluation *e, const options *o, const cli_list *paths) {
    fp8_status st = FP8_OK;
    fp8_model_options model_options = {.compute = cli_compute(o->compute)};
    FP8_TRY(cli_device_open(&e->device, &o->common));
    for (; e->count < paths->count; e->count++) {
        cli_source *s = &e->sources[e->count];
        int64_t window = 0;
        FP8_TRY(cli_source_open(s, paths->items[e->count]));
        FP8_TRY(cli_length(&window, "--window", o->window, &s->config));
        if (e->count == 0 || window < e->window) e->window = window;
        if (s->config.vocab_size == e->sources[0].config.vocab_size) continue;
        st = FP8_FAIL(FP8_EDATA, "%s: vocabulary of %lld, but that of %s is %lld",
                      paths->items[e->count], (long long)s->config.vocab_size, paths->items[0],
                      (long long)e->sources[0].config.vocab_size);
        goto done;
    }
    FP8_TRY(cli_load_stream(&e->ids, &e->sources[0], o->data, o->field, o->tokens,
                            o->max_windows ? o->max_windows * e->window + 1 : 0));
    model_options.max_tokens = e->window > CLI_EVAL_TOKENS ? e->window : CLI_EVAL_TOKENS;
    for (int32_t i = 0; i < e->count; i++)
        FP8_TRY(fp8_model_load(&e->models[i], e->device, e->sources[i].checkpoint,
                               &model_options));
done:
    return st;
}

static void close_models(evaluation *e) {
    fp8_ids_free(&e->ids);
    for (int32_t i = 0; i < MAX_MODELS; i++) {
        fp8_model_destroy(e->models[i]);
        cli_source_close(&e->sources[i]);
    }
    fp8_device_destroy(e->device);
    free(e->windows);
}

static void print_table(const evaluation *e, const cli_list *paths) {
    printf("%12s %10s %12s %8s  %s\n", "perplexity", "tokens", "KL (nats)", "top-1", "model");
    for (int32_t i = 0; i < e->count; i++) {
        const fp8_eval_result *r = &e->results[i];
        printf("%12.4f %10lld %12.3g %7.2f%%  %s\n", r->perplexity, (long long)r->tokens, r->kl,
               100 * r->top1, paths->items[i]);
    }
}

/* "windows": {"tokens": [...], "nll": [...], "kl": [...]}, sums in nats. */
static void add_windows(cJSON *row, const evaluation *e, int32_t model) {
    const fp8_window_score *w = e->windows + model * e->num_windows;
    cJSON *o = cJSON_AddObjectToObject(row, "windows");
    cJSON *tokens = cJSON_AddArrayToObject(o, "tokens"), *nll = cJSON_AddArrayToObject(o, "nll");
    cJSON *kl = cJSON_AddArrayToObject(o, "kl");
    for (int64_t i = 0; i < e->num_windows; i++) {
        cJSON_AddItemToArray(tokens, cJSON_CreateNumber((double)w[i].tokens));
        cJSON_AddItemToArray(nll, cJSON_CreateNumber(w[i].nll));
        cJSON_AddItemToArray(kl, cJSON_CreateNumber(w[i].kl));
    }
}

static fp8_status print_json(const evaluation *e, const cli_list *paths) {
    fp8_status st = FP8_OK;
    cJSON *doc = cJSON_CreateObject(), *models = cJSON_AddArrayToObject(doc, "models");
    for (int32_t i = 0; i < e->count; i++) {
        const fp8_eval_result *r = &e->results[i];
        cJSON *row = cJSON_CreateObject();
        cJSON_AddItemToArray(models, row);
        FP8_TRY(cli_json_add_text(row, "path", paths->items[i], strlen(paths->items[i])));
        cJSON_AddNumberToObject(row, "perplexity", r->perplexity);
        cJSON_AddNumberToObject(row, "tokens", (double)r->tokens);
        cJSON_AddNumberToObject(row, "kl", r->kl);
        cJSON_AddNumberToObject(row, "top1", r->top1);
        if (e->windows) add_windows(row, e, i);
    }
    cJSON_AddNumberToObject(doc, "window", (double)e->window);
    st = cli_json_print(doc);
done:
    cJSON_Delete(doc);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    const fp8_progress progress = cli_progress();
    fp8_status st = FP8_OK;
    evaluation *e = NULL;
    if (o->data && o->tokens)
        return FP8_FAIL(FP8_EINVAL, "eval: --data and --tokens exclude each other");
    e = calloc(1, sizeof *e);
    if (!e) return FP8_FAIL(FP8_ENOMEM, "eval: out of memory");
    FP8_TRY(open_models(e, o, operands));
    e->num_windows = fp8_evaluate_count(e->ids.count, e->window, o->max_windows);
    if (o->per_window) {
        e->windows = calloc((size_t)(e->count * e->num_windows) + 1, sizeof *e->windows);
        if (!e->windows) {
            st = FP8_FAIL(FP8_ENOMEM, "eval: %lld windows", (long long)e->num_windows);
            goto done;
        }
    }
    FP8_TRY(fp8_evaluate_windows(e->results, e->windows, e->models, e->count, e->ids.data,
                                 e->ids.count, e->window, o->max_windows, &progress));
    if (o->common.json)
        st = print_json(e, operands);
    else
        print_table(e, operands);
done:
    close_models(e);
    free(e);
    return st;
}

const cli_command cli_cmd_eval = {
    .name = "eval",
    .purpose = "judge models by perplexity, KL divergence and top-1 agreement",
    .usage = "MODEL [MODEL2 ...] [--data FILE | --tokens FILE] [options]",
    .about =
        "Encodes the whole text once with the first model's tokenizer, special tokens as\n"
        "its post-processor adds them (JSONL samples, and the sequences of an id file,\n"
        "follow one another), and cuts it into windows. Window i takes N+1 ids from i*N\n"
        "on: the first N are the input, from position 0, and each predicts the next, so\n"
        "every id but the first is predicted once; the last window is shorter.\n"
        "\n"
        "perplexity is exp(mean negative log-likelihood); KL the mean KL(first || model)\n"
        "in nats a token; top-1 the share of tokens where both find the same id\n"
        "likeliest. With --json: {\"models\": [{\"path\", \"perplexity\", \"tokens\", \"kl\",\n"
        "\"top1\"}], \"window\"}. All models, at most 16, are held in memory at once.",
    .examples = "  fp8calib eval ./Llama-3-8B ./Llama-3-8B-FP8 --data wiki.test.txt\n"
                "  fp8calib eval ./Llama-3-8B-FP8 --data c4.jsonl.gz --max-windows 100 --json\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = MAX_MODELS,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
