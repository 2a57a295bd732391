#include "cli/generate_many.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- prompts --------------------------------------------------------------------------------- */

fp8_status prompt_list_add(prompt_list *l, const char *text, size_t length) {
    char **grown = realloc(l->texts, ((size_t)l->count + 1) * sizeof *grown);
    char *copy;

    if (!grown) return FP8_FAIL(FP8_ENOMEM, "%lld prompts", (long long)l->count);
    l->texts = grown;
    copy = malloc(length + 1);
    if (!copy) return FP8_FAIL(FP8_ENOMEM, "a prompt of %zu bytes", length);
    memcpy(copy, text, length);
    copy[length] = '\0';
    l->texts[l->count++] = copy;
    return FP8_OK;
}

fp8_status prompt_list_read(prompt_list *l, const char *path) {
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    fp8_status st = FP8_OK;
    char *line = NULL;
    size_t room = 0;
    ssize_t n;

    if (!in)
        return FP8_FAIL(errno == ENOENT ? FP8_ENOTFOUND : FP8_EIO, "%s: %s", path, strerror(errno));
    while (st == FP8_OK && (n = getline(&line, &room, in)) > 0) {
        if (line[n - 1] == '\n') n--;
        if (n > 0) st = prompt_list_add(l, line, (size_t)n);
    }
    if (st == FP8_OK && ferror(in)) st = FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
    if (in != stdin) fclose(in);
    free(line);
    return st;
}

void prompt_list_free(prompt_list *l) {
    for (int64_t i = 0; i < l->count; i++) free(l->texts[i]);
    free(l->texts);
    *l = (prompt_list){0};
}

/* ---- through an engine ----------------------------------------------------------------------- */

typedef struct job {
    const fp8_tokenizer *tokenizer;
    const prompt_list *prompts;
    fp8_engine *engine;
    fp8_ids *ids;       /* [count]: the prompt, then what was made */
    int64_t *lengths;   /* [count]: of the prompts */
    int64_t *requests;  /* [count]; 0: not submitted yet */
    int *done;          /* [count] */
    int64_t submitted, printed;
    cJSON *list;        /* NULL: text */
} job;

static fp8_status encode_all(job *j) {
    fp8_status st = FP8_OK;
    for (int64_t i = 0; i < j->prompts->count; i++) {
        const char *text = j->prompts->texts[i];
        FP8_TRY(fp8_tokenizer_encode(j->tokenizer, &j->ids[i], text, strlen(text),
                                     FP8_SPECIAL_ADD));
        if (j->ids[i].count == 0)
            return FP8_FAIL(FP8_EDATA, "prompt %lld: no token to go on from", (long long)i + 1);
        j->lengths[i] = j->ids[i].count;
    }
done:
    return st;
}

static fp8_status add_ids(cJSON *doc, const char *key, const int32_t *ids, int64_t count) {
    cJSON *list = cJSON_AddArrayToObject(doc, key);
    int ok = list != NULL;
    for (int64_t i = 0; ok && i < count; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(ids[i]));
    return ok ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "printing the results: out of memory");
}

fp8_status generation_to_json(cJSON *doc, const fp8_tokenizer *t, const char *prompt,
                              const fp8_ids *ids, int64_t num_prompt) {
    fp8_status st = FP8_OK;
    char *text = NULL;
    size_t length = 0;

    FP8_TRY(cli_continuation(&text, &length, t, ids, num_prompt));
    FP8_TRY(cli_json_add_text(doc, "prompt", prompt, strlen(prompt)));
    FP8_TRY(cli_json_add_text(doc, "text", text, length));
    FP8_TRY(add_ids(doc, "prompt_ids", ids->data, num_prompt));
    FP8_TRY(add_ids(doc, "ids", ids->data + num_prompt, ids->count - num_prompt));
done:
    free(text);
    return st;
}

static fp8_status print_text(const job *j, int64_t i) {
    fp8_status st = FP8_OK;
    char *text = NULL;
    size_t length = 0;

    FP8_TRY(cli_continuation(&text, &length, j->tokenizer, &j->ids[i], j->lengths[i]));
    if (j->prompts->count > 1) printf("[%lld] %s", (long long)i + 1, j->prompts->texts[i]);
    fwrite(text, 1, length, stdout);
    putchar('\n');
    fflush(stdout);
done:
    free(text);
    return st;
}

static fp8_status print_one(job *j, int64_t i) {
    cJSON *doc;

    if (!j->list) return print_text(j, i);
    doc = cJSON_CreateObject();
    if (!cJSON_AddItemToArray(j->list, doc))
        return FP8_FAIL(FP8_ENOMEM, "printing the results: out of memory");
    return generation_to_json(doc, j->tokenizer, j->prompts->texts[i], &j->ids[i], j->lengths[i]);
}

/* What has been made since the last look, and whatever can be printed by now. */
static fp8_status collect(job *j) {
    fp8_status st = FP8_OK;
    int32_t ids[64];

    for (int64_t i = 0; i < j->submitted; i++) {
        fp8_request_state state = FP8_REQUEST_RUNNING;
        int64_t count = 64;
        while (!j->done[i] && count == 64) {
            FP8_TRY(fp8_engine_poll(j->engine, j->requests[i], ids, 64, &count, &state));
            FP8_TRY(fp8_ids_append(&j->ids[i], ids, count));
            j->done[i] = state > FP8_REQUEST_RUNNING;
        }
    }
    for (; j->printed < j->prompts->count && j->done[j->printed]; j->printed++)
        FP8_TRY(print_one(j, j->printed));
done:
    return st;
}

/* Draws of different prompts, and of the same prompt given twice, do not go together. */
static fp8_status submit_next(job *j, int64_t max_tokens, const fp8_sampling *how) {
    const int64_t i = j->submitted;
    fp8_request q = {.prompt = j->ids[i].data, .num_prompt = j->lengths[i], .max_new = max_tokens,
                     .sampling = *how};
    q.sampling.seed += (uint64_t)i;
    j->submitted++;
    return fp8_engine_submit(j->engine, &q, &j->requests[i]);
}

static fp8_status run_all(job *j, int64_t max_tokens, int64_t room, const fp8_sampling *how) {
    fp8_status st = FP8_OK;
    int64_t running = 0;

    while (j->printed < j->prompts->count) {
        while (j->submitted < j->prompts->count && j->submitted - j->printed < room)
            FP8_TRY(submit_next(j, max_tokens, how));
        FP8_TRY(fp8_engine_step(j->engine, &running));
        FP8_TRY(collect(j));
        FP8_TRY(cli_check_interrupt());
    }
done:
    return st;
}

static fp8_status open_engine(job *j, fp8_device *d, const cli_source *source, int64_t max_tokens,
                              int64_t batch, fp8_model **model) {
    fp8_model_options options = {.max_tokens = 512};
    fp8_engine_options engine = {.max_seqs = batch, .max_requests = 4 * batch};
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->prompts->count; i++)
        if (j->lengths[i] + max_tokens > engine.max_context)
            engine.max_context = j->lengths[i] + max_tokens;
    if (batch > options.max_tokens) options.max_tokens = batch;
    FP8_TRY(fp8_model_load(model, d, source->checkpoint, &options));
    FP8_TRY(fp8_engine_create(&j->engine, *model, &engine));
done:
    return st;
}

fp8_status generate_many(fp8_device *d, const cli_source *source, const prompt_list *prompts,
                         int64_t max_tokens, int64_t batch, const fp8_sampling *how, int json) {
    const size_t n = (size_t)prompts->count;
    job j = {.tokenizer = source->tokenizer, .prompts = prompts};
    fp8_model *model = NULL;
    cJSON *doc = json ? cJSON_CreateObject() : NULL;
    fp8_status st = FP8_OK;

    if (batch > prompts->count) batch = prompts->count;
    j.ids = calloc(n, sizeof *j.ids);
    j.lengths = calloc(n, sizeof *j.lengths);
    j.requests = calloc(n, sizeof *j.requests);
    j.done = calloc(n, sizeof *j.done);
    if (json) j.list = cJSON_AddArrayToObject(doc, "generations");
    if (!j.ids || !j.lengths || !j.requests || !j.done || (json && !j.list)) {
        st = FP8_FAIL(FP8_ENOMEM, "%lld prompts", (long long)prompts->count);
        goto done;
    }
    FP8_TRY(encode_all(&j));
    FP8_TRY(open_engine(&j, d, source, max_tokens, batch, &model));
    FP8_TRY(run_all(&j, max_tokens, 4 * batch, how));
    if (json) FP8_TRY(cli_json_print(doc));
done:
    for (size_t i = 0; j.ids && i < n; i++) fp8_ids_free(&j.ids[i]);
    free(j.ids);
    free(j.lengths);
    free(j.requests);
    free(j.done);
    cJSON_Delete(doc);
    fp8_engine_destroy(j.engine);
    fp8_model_destroy(model);
    return st;
}
