/* Perplexity, KL divergence and top-1 agreement against plain loops over the logits. */
#include "tests/sample_model.h"

enum { VOCAB = 2048 };

typedef struct plain {
    double nll, kl;
    int64_t tokens, top1;
} plain;

static double log_sum(const float *row) {
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < VOCAB; i++) most = fmax(most, (double)row[i]);
    for (int i = 0; i < VOCAB; i++) sum += exp((double)row[i] - most);
    return most + log(sum);
}

static int best(const float *row) {
    int at = 0;
    for (int i = 1; i < VOCAB; i++) at = row[i] > row[at] ? i : at;
    return at;
}

static float *logits_of(fp8_model *m, const int32_t *ids, int64_t n) {
    const int32_t starts[] = {0, (int32_t)n};
    const fp8_batch batch = {ids, n, starts, 1};
    fp8_tensor logits = {0};
    float *copy = malloc((size_t)(n * VOCAB) * sizeof *copy);
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    memcpy(copy, logits.data, (size_t)(n * VOCAB) * sizeof *copy);
    return copy;
}

/* One window a forward. */
static plain evaluate(fp8_model *m, fp8_model *reference, const int32_t *ids, int64_t num_ids,
                      int64_t window, int64_t max_windows) {
    plain p = {0};
    for (int64_t at = 0, w = 0; at + 1 < num_ids && (!max_windows || w < max_windows);
         at += window, w++) {
        const int64_t n = num_ids - 1 - at < window ? num_ids - 1 - at : window;
        float *got = logits_of(m, ids + at, n), *want = logits_of(reference, ids + at, n);
        for (int64_t t = 0; t < n; t++) {
            const float *x = got + t * VOCAB, *y = want + t * VOCAB;
            const double sum_x = log_sum(x), sum_y = log_sum(y);
            p.nll += sum_x - (double)x[ids[at + t + 1]];
            for (int i = 0; i < VOCAB; i++)
                p.kl += exp((double)y[i] - sum_y) *
                        (((double)y[i] - sum_y) - ((double)x[i] - sum_x));
            p.top1 += best(x) == best(y);
            p.tokens++;
        }
        free(got);
        free(want);
    }
    return p;
}

static void weaken(const char *name, void *data, const fp8_st_entry *e) {
    if (strcmp(name, "model.layers.3.mlp.down_proj.weight") == 0) memset(data, 0, e->bytes);
}

static void check_result(const fp8_eval_result *got, const plain *want, int is_first) {
    const double n = (double)want->tokens;
    CHECK(got->tokens == want->tokens);
    CHECK(fabs(got->perplexity / exp(want->nll / n) - 1) < 1e-5);
    if (is_first) CHECK(got->kl == 0 && got->top1 == 1);
    else CHECK(fabs(got->kl - want->kl / n) < 1e-5 * (1 + want->kl / n));
    if (!is_first) CHECK(fabs(got->top1 - (double)want->top1 / n) < 1e-12);
}

static void test_windows(fp8_model *m, fp8_model *other, const int32_t *ids) {
    static const struct {
        const char *name;
        int64_t num_ids, window, max_windows;
    } cases[] = {
        {"one prediction", 2, 32, 0},       {"exactly one window", 33, 32, 0},
        {"one prediction more", 34, 32, 0}, {"one less", 32, 32, 0},
        {"several forwards", 300, 32, 0},   {"windows of one", 5, 1, 0},
        {"a part of them", 300, 32, 2},     {"more than there are", 70, 32, 9},
        {"window of the whole", 120, 200, 0},
    };
    fp8_model *const models[] = {m, other, m};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_eval_result got[3];
        check_case = cases[i].name;
        CHECK_STATUS(fp8_evaluate(got, models, 3, ids, cases[i].num_ids, cases[i].window,
                                  cases[i].max_windows, NULL), FP8_OK);
        for (int k = 0; k < 3; k++) {
            const plain want = evaluate(models[k], m, ids, cases[i].num_ids, cases[i].window,
                                        cases[i].max_windows);
            check_result(&got[k], &want, k == 0);
        }
        CHECK(got[2].kl < 1e-9 && got[2].top1 == 1); /* the first model once more */
        CHECK(cases[i].num_ids < 100 || got[1].kl > 0.01);
    }
}

/* Each window's sums are those of an evaluation that ends with it less one that ends before. */
static void test_by_window(fp8_model *m, fp8_model *other, const int32_t *ids) {
    fp8_model *const models[] = {m, other};
    const int64_t count = fp8_evaluate_count(300, 32, 0);
    fp8_window_score *w = calloc((size_t)(2 * count), sizeof *w);
    fp8_eval_result whole[2], before[2] = {{0}}, now[2];
    double kl = 0;

    check_case = "by window";
    CHECK(count == 10 && fp8_evaluate_count(300, 32, 4) == 4 && fp8_evaluate_count(1, 32, 0) == 0);
    CHECK_STATUS(fp8_evaluate_windows(whole, w, models, 2, ids, 300, 32, 0, NULL), FP8_OK);
    for (int64_t i = 0; i < count; i++) {
        CHECK_STATUS(fp8_evaluate(now, models, 2, ids, 300, 32, i + 1, NULL), FP8_OK);
        const double nll = log(now[1].perplexity) * (double)now[1].tokens -
                           (i ? log(before[1].perplexity) * (double)before[1].tokens : 0);
        CHECK(w[count + i].tokens == now[1].tokens - before[1].tokens);
        CHECK(fabs(w[count + i].nll - nll) < 1e-3);
        CHECK(w[i].kl == 0 && w[i].tokens == w[count + i].tokens);
        kl += w[count + i].kl;
        memcpy(before, now, sizeof now);
    }
    CHECK(fabs(kl - whole[1].kl * (double)whole[1].tokens) < 1e-6);
    free(w);
}

static void test_batching(fp8_model *small, fp8_model *large, const int32_t *ids) {
    fp8_eval_result a, b;
    check_case = "windows together or alone";
    CHECK_STATUS(fp8_evaluate(&a, &small, 1, ids, 1000, 64, 0, NULL), FP8_OK);
    CHECK_STATUS(fp8_evaluate(&b, &large, 1, ids, 1000, 64, 0, NULL), FP8_OK);
    CHECK(a.perplexity == b.perplexity && a.tokens == 999 && b.tokens == 999);
}

static int stop(void *ctx, const char *what, int64_t done, int64_t total) {
    int64_t *calls = ctx;
    CHECK(strcmp(what, "evaluating") == 0 && done <= total && total == 8);
    return ++*calls == 2;
}

static void test_refused(fp8_model *m, const int32_t *ids) {
    static const struct {
        const char *name;
        int64_t num_ids, window, max_windows;
        fp8_status want;
    } cases[] = {
        {"no ids", 0, 32, 0, FP8_EDATA},
        {"one id", 1, 32, 0, FP8_EDATA},
        {"window 0", 100, 0, 0, FP8_EINVAL},
        {"negative windows", 100, 32, -1, FP8_EINVAL},
        {"window larger than the model takes", 1000, 500, 0, FP8_EINVAL},
    };
    int64_t calls = 0;
    const fp8_progress progress = {stop, &calls};
    fp8_eval_result got;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK_STATUS(fp8_evaluate(&got, &m, 1, ids, cases[i].num_ids, cases[i].window,
                                  cases[i].max_windows, NULL), cases[i].want);
    }
    check_case = "stopped";
    CHECK_STATUS(fp8_evaluate(&got, &m, 1, ids, 1000, 128, 0, &progress), FP8_ECANCELED);
    CHECK(calls == 2);
}

static void break_norm(const char *name, void *data, const fp8_st_entry *e) {
    (void)e;
    if (strcmp(name, "model.norm.weight") == 0) ((uint16_t *)data)[0] = 0x7fc0;
}

static void test_nan(const int32_t *ids) {
    const char *folder = sample_file("broken");
    fp8_eval_result got;
    sample s;
    check_case = "NaN logits";
    sample_copy(folder, break_norm);
    s = sample_open(folder, 0, 256, FP8_COMPUTE_BF16);
    CHECK_STATUS(fp8_evaluate(&got, &s.m, 1, ids, 100, 32, 0, NULL), FP8_EDATA);
    sample_close(&s);
}

int main(void) {
    fp8_samples data = sample_samples(1 << 20, 0); /* one sample: BOS and the whole text */
    sample s, large, other;
    sample_begin();
    sample_copy(sample_file("weak"), weaken);
    s = sample_open(NULL, 0, 200, FP8_COMPUTE_BF16);
    large = sample_open(NULL, 0, 4096, FP8_COMPUTE_BF16);
    other = sample_open(sample_file("weak"), 0, 256, FP8_COMPUTE_BF16);
    test_windows(s.m, other.m, data.ids);
    test_by_window(s.m, other.m, data.ids);
    test_batching(s.m, large.m, data.ids);
    test_refused(s.m, data.ids);
    test_nan(data.ids);
    sample_close(&s);
    sample_close(&large);
    sample_close(&other);
    fp8_samples_free(&data);
    sample_done();
    return CHECK_DONE();
}
