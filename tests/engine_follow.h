/* tests/engine_follow.h - an engine's ids held against the model's own forward over the same
 * tokens: where it took another id than the highest, the two must be nearly level. Ids that differ
 * from those made alone say little: after one near tie all that follows differs. */
#ifndef FP8_TESTS_ENGINE_FOLLOW_H
#define FP8_TESTS_ENGINE_FOLLOW_H
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "tests/check.h"

/* How many of so many ids are the highest, and how far below it one was, at most, in deviations of
 * that row of logits. */
typedef struct follow_tally {
    int64_t all, highest;
    double below;
} follow_tally;

/* How far `id` lies below the highest of a row. */
static inline double follow_below(const float *row, int64_t vocab, int32_t id) {
    double sum = 0, squares = 0, most = (double)row[0];
    for (int64_t i = 0; i < vocab; i++) {
        const double x = (double)row[i];
        sum += x;
        squares += x * x;
        if (x > most) most = x;
    }
    sum /= (double)vocab;
    return (most - (double)row[id]) / sqrt(squares / (double)vocab - sum * sum);
}

/* The `count` ids `got` that followed a prompt, each against the logits of all tokens before it. */
static inline void follow_ids(follow_tally *t, fp8_model *m, const int32_t *prompt, int64_t length,
                              const int32_t *got, int64_t count) {
    const int64_t vocab = fp8_model_get_config(m)->vocab_size, tokens = length + count - 1;
    const size_t bytes = (size_t)(tokens * vocab) * sizeof(float);
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    float *rows = malloc(bytes);
    const int32_t starts[2] = {0, (int32_t)tokens};
    const fp8_batch batch = {ids, tokens, starts, 1};
    fp8_tensor logits = {0};

    memcpy(ids, prompt, (size_t)length * sizeof *ids);
    memcpy(ids + length, got, (size_t)(count - 1) * sizeof *ids);
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    CHECK_STATUS(fp8_device_download(fp8_model_device(m), rows, logits.data, bytes), FP8_OK);
    for (int64_t i = 0; i < count; i++) {
        const double d = follow_below(rows + (length - 1 + i) * vocab, vocab, got[i]);
        t->highest += d == 0;
        if (d > t->below) t->below = d;
    }
    t->all += count;
    free(ids);
    free(rows);
}

#endif
