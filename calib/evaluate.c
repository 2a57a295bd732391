#include <math.h>
#include <stdlib.h>

#include "calib/calib.h"

/* Per-token scores of one forward, and their sums over all. */
typedef struct scores {
    float *nll, *kl; /* [tokens of a forward] */
    uint8_t *top1;
    int32_t *starts; /* [windows of a forward + 1] */
} scores;

typedef struct sums {
    double nll, kl;
    int64_t top1;
} sums;

static fp8_status check(fp8_model *const *models, int32_t num_models, int64_t num_ids,
                        int64_t window, int64_t max_windows) {
    if (num_models < 1 || window < 1 || window > INT32_MAX || max_windows < 0)
        return FP8_FAIL(FP8_EINVAL, "evaluation of %d models in windows of %lld: expected at least "
                        "one of each", num_models, (long long)window);
    if (num_ids < 2)
        return FP8_FAIL(FP8_EDATA, "evaluation: expected at least 2 token ids, found %lld",
                        (long long)num_ids);
    for (int32_t i = 1; i < num_models; i++) {
        const int64_t want = fp8_model_get_config(models[0])->vocab_size;
        const int64_t got = fp8_model_get_config(models[i])->vocab_size;
        if (got != want)
            return FP8_FAIL(FP8_EDATA, "evaluation: model %d has a vocabulary of %lld, the first "
                            "one of %lld", i, (long long)got, (long long)want);
    }
    return FP8_OK;
}

/* Windows a forward takes: what the smallest of the models was made for. */
static int64_t windows_at_once(fp8_model *const *models, int32_t num_models, int64_t window) {
    int64_t tokens = INT64_MAX;
    for (int32_t i = 0; i < num_models; i++)
        if (fp8_model_max_tokens(models[i]) < tokens) tokens = fp8_model_max_tokens(models[i]);
    return tokens > window ? tokens / window : 1;
}

/* Tokens [begin, end) of the forward, one window: into the model's sums and the window's. */
static fp8_status add_scores(sums *sum, fp8_window_score *window, const scores *s, int64_t begin,
                             int64_t end, int compared, int32_t model, int64_t first_token) {
    fp8_window_score w = {.tokens = end - begin};

    for (int64_t i = begin; i < end; i++) {
        if (!isfinite(s->nll[i]))
            return FP8_FAIL(FP8_EDATA, "evaluation: model %d: the likelihood of token %lld is not "
                            "finite", model, (long long)(first_token + i + 1));
        w.nll += (double)s->nll[i];
        if (!compared) continue;
        w.kl += (double)s->kl[i];
        sum->top1 += s->top1[i];
    }
    sum->nll += w.nll;
    sum->kl += w.kl;
    if (window) *window = w;
    return FP8_OK;
}

/* Where the scores go: windows [num_models][total], the next ones from `at` on; NULL: nowhere. */
typedef struct window_sink {
    fp8_window_score *windows;
    int64_t total, at;
} window_sink;

/* One forward of each model over `batch`; targets[i] follows batch->ids[i]. */
static fp8_status score_batch(sums *sum, const window_sink *to, const scores *s,
                              fp8_model *const *models, int32_t num_models, const fp8_batch *batch,
                              int64_t first_token) {
    fp8_tensor first = {0}, logits = {0};
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < num_models; i++) {
        const int compared = i > 0;
        FP8_TRY(fp8_model_forward(models[i], batch, NULL, NULL, FP8_LOGITS_ALL, &logits));
        if (!compared) first = logits;
        FP8_TRY(fp8_model_score(models[i], &logits, compared ? &first : NULL, batch->ids + 1,
                                s->nll, compared ? s->kl : NULL, compared ? s->top1 : NULL));
        for (int64_t w = 0; w < batch->num_seqs; w++)
            FP8_TRY(add_scores(&sum[i],
                               to->windows ? &to->windows[i * to->total + to->at + w] : NULL, s,
                               batch->starts[w], batch->starts[w + 1], compared, i, first_token));
    }
done:
    return st;
}

static fp8_status allocate(scores *s, int64_t windows, size_t tokens) {
    s->nll = malloc(tokens * sizeof *s->nll);
    s->kl = malloc(tokens * sizeof *s->kl);
    s->top1 = malloc(tokens);
    s->starts = malloc((size_t)(windows + 1) * sizeof *s->starts);
    return s->nll && s->kl && s->top1 && s->starts
               ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "scores of %zu tokens", tokens);
}

fp8_status fp8_evaluate(fp8_eval_result *out, fp8_model *const *models, int32_t num_models,
                        const int32_t *ids, int64_t num_ids, int64_t window, int64_t max_windows,
                        const fp8_progress *progress) {
    return fp8_evaluate_windows(out, NULL, models, num_models, ids, num_ids, window, max_windows,
                                progress);
}

int64_t fp8_evaluate_count(int64_t num_ids, int64_t window, int64_t max_windows) {
    const int64_t all = num_ids < 2 || window < 1 ? 0 : (num_ids - 1 + window - 1) / window;
    return max_windows > 0 && max_windows < all ? max_windows : all;
}

fp8_status fp8_evaluate_windows(fp8_eval_result *out, fp8_window_score *windows,
                                fp8_model *const *models, int32_t num_models, const int32_t *ids,
                                int64_t num_ids, int64_t window, int64_t max_windows,
                                const fp8_progress *progress) {
    const int64_t total = fp8_evaluate_count(num_ids, window, max_windows);
    window_sink to = {windows, total, 0};
    scores s = {0};
    sums *sum = NULL;
    int64_t most, tokens = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(check(models, num_models, num_ids, window, max_windows));
    most = windows_at_once(models, num_models, window);
    if (most > total) most = total;
    FP8_TRY(allocate(&s, most, (size_t)(most * window < num_ids ? most * window : num_ids)));
    sum = calloc((size_t)num_models, sizeof *sum);
    if (!sum) {
        st = FP8_FAIL(FP8_ENOMEM, "scores of %d models", num_models);
        goto done;
    }
    for (int64_t done_windows = 0, n; done_windows < total; done_windows += n) {
        const int64_t begin = done_windows * window;
        n = total - done_windows < most ? total - done_windows : most;
        fp8_batch batch = {ids + begin, n * window, s.starts, n};
        /* Every id but the last one is an input. */
        if (batch.num_tokens > num_ids - 1 - begin) batch.num_tokens = num_ids - 1 - begin;
        for (int64_t i = 0; i < n; i++) s.starts[i] = (int32_t)(i * window);
        s.starts[n] = (int32_t)batch.num_tokens;
        to.at = done_windows;
        FP8_TRY(score_batch(sum, &to, &s, models, num_models, &batch, begin));
        tokens += batch.num_tokens;
        if (progress && progress->on &&
            progress->on(progress->ctx, "evaluating", done_windows + n, total)) {
            st = FP8_FAIL(FP8_ECANCELED, "evaluation stopped after %lld of %lld windows",
                          (long long)(done_windows + n), (long long)total);
            goto done;
        }
    }
    for (int32_t i = 0; i < num_models; i++) {
        const double n = (double)tokens;
        out[i] = (fp8_eval_result){exp(sum[i].nll / n), tokens, sum[i].kl / n,
                                   i > 0 ? (double)sum[i].top1 / n : 1};
    }
done:
    free(s.nll);
    free(s.kl);
    free(s.top1);
    free(s.starts);
    free(sum);
    return st;
}
