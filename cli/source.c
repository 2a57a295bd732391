#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

enum { DEFAULT_LENGTH = 512 };

/* A device that is not there is the system's failure, not a file's. */
fp8_status cli_device_open(fp8_device **out, const cli_common *common) {
    const fp8_status st = fp8_device_create(out, common->device, (int32_t)common->threads);
    if (st == FP8_EUNSUPPORTED || st == FP8_ENOTFOUND)
        return FP8_FAIL(FP8_ECUDA, "--device %s: %s", common->device, fp8_last_message());
    if (st == FP8_EINVAL)
        return FP8_FAIL(FP8_EINVAL, "--device '%s': expected auto, cpu, cuda or cuda:N",
                        common->device);
    return st;
}

fp8_status cli_source_open(cli_source *s, const char *path) {
    fp8_status st = FP8_OK;
    memset(s, 0, sizeof *s);
    FP8_TRY(fp8_checkpoint_open(&s->checkpoint, path));
    FP8_TRY(fp8_config_load(&s->config, fp8_checkpoint_folder(s->checkpoint)));
done:
    if (st != FP8_OK) cli_source_close(s);
    return st;
}

void cli_source_close(cli_source *s) {
    fp8_tokenizer_close(s->tokenizer);
    fp8_checkpoint_close(s->checkpoint);
    s->tokenizer = NULL;
    s->checkpoint = NULL;
}

fp8_status cli_source_tokenizer(cli_source *s) {
    fp8_status st = FP8_OK;
    char *path = NULL;
    if (s->tokenizer) return FP8_OK;
    FP8_TRY(fp8_checkpoint_sibling(&path, s->checkpoint, "tokenizer.json"));
    if (!path)
        return FP8_FAIL(FP8_ENOTFOUND,
                        "%s: no tokenizer.json beside the weights; --tokens takes token ids",
                        fp8_checkpoint_path(s->checkpoint));
    FP8_TRY(fp8_tokenizer_open(&s->tokenizer, path));
    if (fp8_tokenizer_vocab_size(s->tokenizer) > s->config.vocab_size)
        st = FP8_FAIL(FP8_EDATA, "%s: %lld ids, but the vocab_size of config.json is %lld", path,
                      (long long)fp8_tokenizer_vocab_size(s->tokenizer),
                      (long long)s->config.vocab_size);
done:
    free(path);
    return st;
}

fp8_status cli_length(int64_t *out, const char *flag, int64_t asked,
                      const fp8_model_config *config) {
    const int64_t most = config->max_position;
    if (most > 0 && asked > most)
        return FP8_FAIL(FP8_EINVAL, "%s %lld: the model has %lld positions", flag,
                        (long long)asked, (long long)most);
    *out = asked ? asked : DEFAULT_LENGTH;
    if (most > 0 && *out > most) *out = most;
    return FP8_OK;
}

fp8_status cli_name_culprit(fp8_status st, const char *culprit) {
    if (st != FP8_EDATA || strstr(fp8_last_message(), culprit)) return st;
    return FP8_FAIL(st, "%s: %s", culprit, fp8_last_message());
}

static fp8_status load_text(fp8_ids *ids, const fp8_tokenizer *tokenizer, const char *data,
                            const char *field, int64_t enough) {
    fp8_status st = FP8_OK;
    fp8_text *text = NULL;
    const char *piece = NULL;
    size_t len = 0;
    if (data) {
        FP8_TRY(fp8_text_open(&text, data, field));
    } else {
        piece = fp8_builtin_text(&len);
        FP8_TRY(fp8_text_open_memory(&text, "the built-in text", piece, len));
    }
    while (enough == 0 || ids->count < enough) {
        FP8_TRY(fp8_text_next(text, &piece, &len));
        if (!piece) break;
        FP8_TRY(cli_check_interrupt());
        FP8_TRY(fp8_tokenizer_encode(tokenizer, ids, piece, len, FP8_SPECIAL_ADD));
    }
done:
    fp8_text_close(text);
    return st;
}

fp8_status cli_load_stream(fp8_ids *ids, cli_source *s, const char *data, const char *field,
                           const char *tokens, int64_t enough) {
    const char *name = tokens ? tokens : data ? data : "the built-in text";
    fp8_status st = FP8_OK;
    fp8_id_data file = {0};
    if (tokens) {
        FP8_TRY(fp8_id_data_load(&file, tokens, s->config.vocab_size));
        FP8_TRY(fp8_ids_append(ids, file.ids.data, file.ids.count));
    } else {
        FP8_TRY(cli_source_tokenizer(s));
        FP8_TRY(load_text(ids, s->tokenizer, data, field, enough));
    }
    if (ids->count < 2)
        st = FP8_FAIL(FP8_EDATA, "%s: %lld tokens; a prediction needs 2", name,
                      (long long)ids->count);
done:
    fp8_id_data_free(&file);
    return cli_name_culprit(st, name);
}

fp8_status cli_continuation(char **out, size_t *len, const fp8_tokenizer *t, const fp8_ids *ids,
                            int64_t num_prompt) {
    fp8_status st = FP8_OK;
    char *before = NULL, *all = NULL;
    size_t before_len = 0, all_len = 0, cut;
    FP8_TRY(fp8_tokenizer_decode(t, &before, &before_len, ids->data, num_prompt, 1));
    FP8_TRY(fp8_tokenizer_decode(t, &all, &all_len, ids->data, ids->count, 1));
    cut = before_len < all_len ? before_len : all_len;
    memmove(all, all + cut, all_len - cut + 1);
    *out = all;
    *len = all_len - cut;
    all = NULL;
done:
    free(before);
    free(all);
    return st;
}

fp8_compute cli_compute(const char *text) {
    return strcmp(text, "fp32") == 0 ? FP8_COMPUTE_F32 : FP8_COMPUTE_BF16;
}
