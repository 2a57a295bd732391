/* cli/cmd_generate.c - text from a checkpoint: of one prompt as it comes, or of many at once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/generate_many.h"

typedef struct options {
    cli_common common;
    cli_list prompts;
    const char *file;
    int64_t max_tokens, batch, top_k, seed;
    double temperature, top_p;
} options;
static const options defaults = {.common = CLI_COMMON_DEFAULTS, .max_tokens = 64, .batch = 64};

static const cli_option table[] = {
    {"--prompt", 0, CLI_LIST, offsetof(options, prompts), "TEXT", 0, 0,
     "a text to go on from"},
    {"--prompts", 0, CLI_TEXT, offsetof(options, file), "FILE", 1, 0,
     "more of them, one a line; - reads standard input"},
    {"--max-tokens", 0, CLI_INT, offsetof(options, max_tokens), "N", 1, 1 << 20,
     "stop after N tokens, or sooner at the model's end-of-text token"},
    {"--batch", 0, CLI_INT, offsetof(options, batch), "N", 1, 4096, "prompts at once, at most"},
    {"--temperature", 0, CLI_REAL, offsetof(options, temperature), "T", 0, 1000,
     "draw each id with probability softmax(logits / T); default: 0, the likeliest"},
    {"--top-k", 0, CLI_INT, offsetof(options, top_k), "N", 0, INT32_MAX,
     "draw among the N likeliest; default: 0, all"},
    {"--top-p", 0, CLI_REAL, offsetof(options, top_p), "P", 0, 1,
     "and among the fewest that have probability P together; default: 0, all"},
    {"--seed", 0, CLI_INT, offsetof(options, seed), "N", 0, INT64_MAX,
     "the same draws for the same number; prompt i draws with N + i"},
};

/* Text appears a whole character at a time: ids[base .. shown) is printed context, since what an
 * id reads as depends on those before it; a tail that ends within a character waits for more. */
typedef struct stream {
    const fp8_tokenizer *tokenizer;
    fp8_ids ids;
    int64_t base, shown;
    fp8_status st;
} stream;

static int ends_within_character(const char *text, size_t len) {
    return len >= 3 && memcmp(text + len - 3, "\xef\xbf\xbd", 3) == 0; /* U+FFFD */
}

static fp8_status stream_print(stream *s, int last) {
    fp8_status st = FP8_OK;
    const int32_t *from = s->ids.data + s->base;
    char *before = NULL, *all = NULL;
    size_t before_len = 0, all_len = 0;
    FP8_TRY(fp8_tokenizer_decode(s->tokenizer, &before, &before_len, from, s->shown - s->base, 1));
    FP8_TRY(fp8_tokenizer_decode(s->tokenizer, &all, &all_len, from, s->ids.count - s->base, 1));
    if (all_len <= before_len || (!last && ends_within_character(all, all_len))) goto done;
    fwrite(all + before_len, 1, all_len - before_len, stdout);
    fflush(stdout);
    s->base = s->shown;
    s->shown = s->ids.count;
done:
    free(before);
    free(all);
    return st;
}

static int on_token(void *ctx, int32_t id) {
    stream *s = ctx;
    s->st = fp8_ids_push(&s->ids, id);
    if (s->st == FP8_OK) s->st = stream_print(s, 0);
    return s->st != FP8_OK || cli_interrupted();
}

static int on_silent_token(void *ctx, int32_t id) {
    (void)ctx;
    (void)id;
    return cli_interrupted();
}

static fp8_status generate_stream(fp8_model *m, const fp8_tokenizer *t, const fp8_ids *prompt,
                                  const options *o) {
    fp8_status st = FP8_OK;
    fp8_ids made = {0};
    stream s = {.tokenizer = t, .shown = prompt->count};
    FP8_TRY(fp8_ids_append(&s.ids, prompt->data, prompt->count));
    FP8_TRY(fp8_model_generate(m, &made, prompt->data, prompt->count, o->max_tokens, 0, on_token,
                               &s));
    FP8_TRY(s.st);
    FP8_TRY(stream_print(&s, 1));
    putchar('\n');
done:
    fp8_ids_free(&made);
    fp8_ids_free(&s.ids);
    return st;
}

static fp8_status generate_json(fp8_model *m, const fp8_tokenizer *t, fp8_ids *ids,
                                const char *prompt, const options *o) {
    fp8_status st = FP8_OK;
    const int64_t num_prompt = ids->count;
    fp8_ids made = {0};
    cJSON *doc = cJSON_CreateObject();
    FP8_TRY(fp8_model_generate(m, &made, ids->data, num_prompt, o->max_tokens, 0, on_silent_token,
                               NULL));
    FP8_TRY(cli_check_interrupt());
    FP8_TRY(fp8_ids_append(ids, made.data, made.count));
    FP8_TRY(generation_to_json(doc, t, prompt, ids, num_prompt));
    FP8_TRY(cli_json_print(doc));
done:
    cJSON_Delete(doc);
    fp8_ids_free(&made);
    return st;
}

/* One prompt, greedy: printed as it comes. */
static fp8_status generate_one(fp8_device *device, const cli_source *source, const char *text,
                               const options *o) {
    fp8_model_options wanted = {0};
    fp8_model *model = NULL;
    fp8_ids prompt = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(cli_name_culprit(fp8_tokenizer_encode(source->tokenizer, &prompt, text, strlen(text),
                                                  FP8_SPECIAL_ADD),
                             "--prompt"));
    if (prompt.count == 0) {
        st = FP8_FAIL(FP8_EDATA, "--prompt: no token to go on from");
        goto done;
    }
    wanted.max_tokens = prompt.count;
    FP8_TRY(fp8_model_load(&model, device, source->checkpoint, &wanted));
    FP8_TRY(o->common.json ? generate_json(model, source->tokenizer, &prompt, text, o)
                           : generate_stream(model, source->tokenizer, &prompt, o));
    st = cli_check_interrupt();
done:
    fp8_ids_free(&prompt);
    fp8_model_destroy(model);
    return st;
}

static fp8_status run(const void *opts, const cli_list *operands) {
    const options *o = opts;
    const fp8_sampling how = {(float)o->temperature, (int32_t)o->top_k, (float)o->top_p,
                              (uint64_t)o->seed};
    prompt_list prompts = {0};
    cli_source source = {0};
    fp8_device *device = NULL;
    fp8_status st = FP8_OK;

    if (!o->prompts.count && !o->file)
        return FP8_FAIL(FP8_EINVAL, "generate: --prompt or --prompts is required");
    for (int32_t i = 0; i < o->prompts.count; i++)
        FP8_TRY(prompt_list_add(&prompts, o->prompts.items[i], strlen(o->prompts.items[i])));
    if (o->file) FP8_TRY(prompt_list_read(&prompts, o->file));
    if (prompts.count == 0) FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: no prompt in it", o->file));
    FP8_TRY(cli_device_open(&device, &o->common));
    FP8_TRY(cli_source_open(&source, operands->items[0]));
    FP8_TRY(cli_source_tokenizer(&source));
    FP8_TRY(prompts.count == 1 && how.temperature == 0
                ? generate_one(device, &source, prompts.texts[0], o)
                : generate_many(device, &source, &prompts, o->max_tokens, o->batch, &how,
                                o->common.json));
done:
    prompt_list_free(&prompts);
    cli_source_close(&source);
    fp8_device_destroy(device);
    return st;
}

const cli_command cli_cmd_generate = {
    .name = "generate",
    .purpose = "print what a model writes after a prompt, or after many",
    .usage = "MODEL --prompt TEXT [--prompt TEXT]... [--prompts FILE] [options]",
    .about =
        "Loads a BF16 or FP8 checkpoint, encodes the prompt with the tokenizer.json\n"
        "beside it and prints the continuation on stdout as it comes: the likeliest\n"
        "token each time, the lowest id on a tie, or drawn with --temperature. With\n"
        "--json: one object {\"prompt\", \"text\", \"prompt_ids\", \"ids\"} at the end.\n"
        "\n"
        "Several prompts are served at once over a paged KV cache and printed in their\n"
        "order, '[N] PROMPT CONTINUATION'; with --json {\"generations\": [objects]}.\n",
    .examples = "  fp8calib generate ./Llama-3-8B-FP8 --prompt 'The moon is' --max-tokens 100\n"
                "  fp8calib generate ./Llama-3-8B-FP8 --prompts questions.txt --temperature 0.7\n",
    .options = table,
    .num_options = sizeof table / sizeof *table,
    .min_operands = 1,
    .max_operands = 1,
    .operand = "MODEL",
    .defaults = &defaults,
    .options_bytes = sizeof defaults,
    .run = run,
};
