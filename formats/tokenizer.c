#include "formats/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "formats/file.h"
#include "formats/tokenizer_impl.h"

/* ---- ids ------------------------------------------------------------------------------------ */

fp8_status fp8_ids_append(fp8_ids *ids, const int32_t *data, int64_t count) {
    int64_t cap = ids->cap ? ids->cap : 64;
    int32_t *grown;

    if (count <= 0) return FP8_OK;
    if (count > ids->cap - ids->count) {
        if (count > INT64_MAX / 16 - ids->count)
            return FP8_FAIL(FP8_EOVERFLOW, "%lld + %lld ids", (long long)ids->count,
                            (long long)count);
        while (cap < ids->count + count) cap *= 2;
        grown = realloc(ids->data, (size_t)cap * sizeof *grown);
        if (!grown) return FP8_FAIL(FP8_ENOMEM, "%lld ids", (long long)cap);
        ids->data = grown;
        ids->cap = cap;
    }
    memcpy(ids->data + ids->count, data, (size_t)count * sizeof *data);
    ids->count += count;
    return FP8_OK;
}

fp8_status fp8_ids_push(fp8_ids *ids, int32_t id) { return fp8_ids_append(ids, &id, 1); }

void fp8_ids_free(fp8_ids *ids) {
    free(ids->data);
    *ids = (fp8_ids){0};
}

/* ---- handle --------------------------------------------------------------------------------- */

fp8_status fp8_tokenizer_open(fp8_tokenizer **out, const char *path) {
    fp8_file file = {0};
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(tok_load(out, path, (const char *)file.data, file.bytes));
done:
    fp8_file_unmap(&file);
    return st;
}

void fp8_tokenizer_close(fp8_tokenizer *t) {
    if (!t) return;
    tok_vocab_free(&t->vocab);
    tok_matcher_free(&t->plain);
    tok_matcher_free(&t->normalized);
    free(t->added);
    fp8_ids_free(&t->prefix);
    fp8_ids_free(&t->suffix);
    fp8_arena_free(&t->arena);
    free(t);
}

int64_t fp8_tokenizer_vocab_size(const fp8_tokenizer *t) { return t->vocab.size; }

int64_t fp8_tokenizer_prefix(const fp8_tokenizer *t, const int32_t **ids) {
    *ids = t->prefix.data;
    return t->prefix.count;
}
