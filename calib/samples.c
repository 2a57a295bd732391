#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"

/* Samples under construction. */
typedef struct builder {
    fp8_ids ids;
    int64_t *starts;
    int64_t count, cap, max_samples;
} builder;

static int is_full(const builder *b) { return b->max_samples > 0 && b->count == b->max_samples; }

/* Ends the sample that was appended to b->ids; an empty one is none. */
static fp8_status end_sample(builder *b) {
    if (b->count > 0 && b->ids.count == b->starts[b->count]) return FP8_OK;
    if (b->ids.count == 0) return FP8_OK;
    if (b->count + 2 > b->cap) {
        const int64_t cap = b->cap ? 2 * b->cap : 64;
        int64_t *more = realloc(b->starts, (size_t)cap * sizeof *more);
        if (!more) return FP8_FAIL(FP8_ENOMEM, "%lld samples", (long long)cap);
        more[0] = 0;
        b->starts = more;
        b->cap = cap;
    }
    b->starts[++b->count] = b->ids.count;
    return FP8_OK;
}

/* ids in pieces of `seq`, each beginning with `prefix`. */
static fp8_status cut(builder *b, const int32_t *ids, int64_t num_ids, const int32_t *prefix,
                      int64_t num_prefix, int64_t seq) {
    const int64_t step = seq - num_prefix;
    fp8_status st = FP8_OK;
    for (int64_t i = 0; i < num_ids && !is_full(b); i += step) {
        FP8_TRY(fp8_ids_append(&b->ids, prefix, num_prefix));
        FP8_TRY(fp8_ids_append(&b->ids, ids + i, num_ids - i < step ? num_ids - i : step));
        FP8_TRY(end_sample(b));
    }
done:
    return st;
}

static fp8_status finish(fp8_samples *out, builder *b) {
    if (b->count == 0) return FP8_FAIL(FP8_EDATA, "no tokens in the data");
    *out = (fp8_samples){b->ids.data, b->ids.count, b->starts, b->count};
    *b = (builder){0};
    return FP8_OK;
}

static void drop(builder *b) {
    fp8_ids_free(&b->ids);
    free(b->starts);
}

fp8_status fp8_samples_from_text(fp8_samples *out, fp8_text *text, const fp8_tokenizer *tokenizer,
                                 int64_t seq, int64_t max_samples) {
    const int lines = fp8_text_is_lines(text);
    const fp8_special special = lines ? FP8_SPECIAL_ADD : FP8_SPECIAL_NONE;
    const int32_t *prefix = NULL;
    const int64_t num_prefix = fp8_tokenizer_prefix(tokenizer, &prefix);
    const char *sample = NULL;
    size_t len = 0;
    fp8_ids ids = {0};
    builder b = {.max_samples = max_samples};
    fp8_status st = FP8_OK;

    *out = (fp8_samples){0};
    if (seq <= num_prefix || max_samples < 0) {
        st = FP8_FAIL(FP8_EINVAL, "samples of %lld ids, at most %lld: expected more than %lld ids "
                      "(the tokenizer puts those in front) and no negative count", (long long)seq,
                      (long long)max_samples, (long long)num_prefix);
        goto done;
    }
    while (!is_full(&b)) {
        FP8_TRY(fp8_text_next(text, &sample, &len));
        if (!sample) break;
        ids.count = 0;
        FP8_TRY(fp8_tokenizer_encode(tokenizer, &ids, sample, len, special));
        if (!lines) {
            FP8_TRY(cut(&b, ids.data, ids.count, prefix, num_prefix, seq));
        } else if (len > 0) { /* an empty line has special tokens only */
            FP8_TRY(fp8_ids_append(&b.ids, ids.data, ids.count < seq ? ids.count : seq));
            FP8_TRY(end_sample(&b));
        }
    }
    FP8_TRY(finish(out, &b));
done:
    fp8_ids_free(&ids);
    drop(&b);
    return st;
}

fp8_status fp8_samples_from_ids(fp8_samples *out, const fp8_id_data *data, int64_t seq,
                                int64_t max_samples) {
    builder b = {.max_samples = max_samples};
    fp8_status st = FP8_OK;

    *out = (fp8_samples){0};
    if (seq < 1 || max_samples < 0) {
        st = FP8_FAIL(FP8_EINVAL, "samples of %lld ids, at most %lld: expected positive sizes",
                      (long long)seq, (long long)max_samples);
        goto done;
    }
    for (int64_t i = 0; i < data->num_seqs; i++)
        FP8_TRY(cut(&b, data->ids.data + data->starts[i], data->starts[i + 1] - data->starts[i],
                    NULL, 0, seq));
    FP8_TRY(finish(out, &b));
done:
    drop(&b);
    return st;
}

void fp8_samples_free(fp8_samples *s) {
    free(s->ids);
    free(s->starts);
    *s = (fp8_samples){0};
}
