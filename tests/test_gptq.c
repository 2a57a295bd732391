/* Compensated rounding against the textbook's way of it, and against plain rounding. Data are new
 * with every seed: GPTQ_SEED in the environment sets it. */
#include <string.h>

#include "calib/gptq.h"
#include "core/half.h"
#include "quant/cast.h"
#include "tests/check.h"

static uint64_t seed = 20261121;

typedef struct problem {
    int64_t rows, cols, tokens;
    float *w, *scales, *descales;
    double *h;
    uint8_t *codes, *other;
    fp8_gptq_scales s;
} problem;

static void fill_scales(problem *p, int64_t row_span, int64_t col_span) {
    const int64_t across = (p->cols + col_span - 1) / col_span;
    const int64_t count = (p->rows + row_span - 1) / row_span * across;

    p->scales = malloc((size_t)count * sizeof *p->scales);
    p->descales = malloc((size_t)count * sizeof *p->descales);
    for (int64_t i = 0; i < count; i++) p->descales[i] = 0;
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t c = 0; c < p->cols; c++) {
            float *amax = &p->descales[r / row_span * across + c / col_span];
            if (fabsf(p->w[r * p->cols + c]) > *amax) *amax = fabsf(p->w[r * p->cols + c]);
        }
    for (int64_t i = 0; i < count; i++) {
        p->scales[i] = 448.0f / p->descales[i];
        p->descales[i] /= 448.0f;
    }
    p->s = (fp8_gptq_scales){p->scales, p->descales, row_span, col_span};
}

/* Inputs that share a few causes, as activations do; `tokens` fewer than cols: H is singular. */
static problem make(int64_t rows, int64_t cols, int64_t tokens, int64_t row_span,
                    int64_t col_span) {
    problem p = {.rows = rows, .cols = cols, .tokens = tokens};
    const size_t n = (size_t)(rows * cols);
    double *x = malloc((size_t)cols * sizeof *x);

    p.w = malloc((n + 1) * sizeof *p.w);
    p.codes = malloc(n + 1);
    p.other = malloc(n + 1);
    p.h = calloc((size_t)(cols * cols) + 1, sizeof *p.h);
    for (size_t i = 0; i < n; i++) p.w[i] = fp8_round_bf16(0.05f * check_normal(&seed));
    for (int64_t t = 0; t < tokens; t++) {
        const double cause[2] = {(double)check_normal(&seed), (double)check_normal(&seed)};
        for (int64_t c = 0; c < cols; c++)
            x[c] = (double)check_normal(&seed) * (1 + (double)(c % 5)) + 3 * cause[c % 2] +
                   cause[c % 3 != 0];
        for (int64_t i = 0; i < cols; i++)
            for (int64_t k = 0; k < cols; k++) p.h[i * cols + k] += x[i] * x[k];
    }
    fill_scales(&p, row_span, col_span);
    free(x);
    return p;
}

static void drop(problem *p) {
    free(p->w);
    free(p->scales);
    free(p->descales);
    free(p->h);
    free(p->codes);
    free(p->other);
}

static int64_t scale_at(const problem *p, int64_t r, int64_t c) {
    return r / p->s.row_span * ((p->cols + p->s.col_span - 1) / p->s.col_span) + c / p->s.col_span;
}

static double value(const problem *p, const uint8_t *codes, int64_t r, int64_t c) {
    return (double)(fp8_to_f32(FP8_DTYPE_E4M3, codes[r * p->cols + c]) *
                    p->descales[scale_at(p, r, c)]);
}

static double mean_diagonal(const problem *p) {
    double sum = 0;
    for (int64_t i = 0; i < p->cols; i++) sum += p->h[i * p->cols + i];
    return sum > 0 ? sum / (double)p->cols : 1;
}

/* (w - q) (H + damping) (w - q)^T of one row, by its formula. */
static double row_loss(const problem *p, const uint8_t *codes, double damping, int64_t r) {
    const double more = damping * mean_diagonal(p);
    double sum = 0;
    for (int64_t i = 0; i < p->cols; i++) {
        const double di = (double)p->w[r * p->cols + i] - value(p, codes, r, i);
        for (int64_t k = 0; k < p->cols; k++) {
            const double dk = (double)p->w[r * p->cols + k] - value(p, codes, r, k);
            sum += di * (p->h[i * p->cols + k] + (i == k ? more : 0)) * dk;
        }
    }
    return sum;
}

static void plain(const problem *p, uint8_t *codes) {
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t c = 0; c < p->cols; c++)
            codes[r * p->cols + c] = fp8_from_f32(
                FP8_DTYPE_E4M3, p->w[r * p->cols + c] * p->scales[scale_at(p, r, c)]);
}

/* inverse [n, n] of a, Gauss and Jordan, the pivots as they come (a is definite). */
static void invert(double *inverse, double *a, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) inverse[i * n + k] = i == k;
    for (int64_t i = 0; i < n; i++) {
        const double pivot = a[i * n + i];
        for (int64_t k = 0; k < n; k++) {
            a[i * n + k] /= pivot;
            inverse[i * n + k] /= pivot;
        }
        for (int64_t r = 0; r < n; r++) {
            const double f = a[r * n + i];
            if (r == i) continue;
            for (int64_t k = 0; k < n; k++) {
                a[r * n + k] -= f * a[i * n + k];
                inverse[r * n + k] -= f * inverse[i * n + k];
            }
        }
    }
}

/* The textbook (Optimal Brain Quantization): round one input, let the others answer by the inverse
 * of what is left of H, go on. left [cols]: inputs not yet rounded, the next one first. */
static void oracle(const problem *p, uint8_t *codes, double damping, int64_t *left) {
    const int64_t n = p->cols;
    const double more = damping * mean_diagonal(p);
    double *a = malloc((size_t)(n * n) * sizeof *a), *inverse = malloc((size_t)(n * n) * sizeof *a);
    double *w = malloc((size_t)(p->rows * n) * sizeof *w);

    for (int64_t i = 0; i < p->rows * n; i++) w[i] = (double)p->w[i];
    for (int64_t m = n; m > 0; m--, left++) {
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < m; k++)
                a[i * m + k] = p->h[left[i] * n + left[k]] + (i == k ? more : 0);
        invert(inverse, a, m);
        for (int64_t r = 0; r < p->rows; r++) {
            const int64_t c = left[0], at = scale_at(p, r, c);
            codes[r * n + c] =
                fp8_from_f32(FP8_DTYPE_E4M3, (float)w[r * n + c] * p->scales[at]);
            const double error = w[r * n + c] - value(p, codes, r, c);
            for (int64_t k = 1; k < m; k++)
                w[r * n + left[k]] -= error * inverse[k] / inverse[0];
        }
    }
    free(a);
    free(inverse);
    free(w);
}

static void order(const problem *p, int act_order, int64_t *left) {
    for (int64_t i = 0; i < p->cols; i++) left[i] = i;
    for (int64_t i = 0; act_order && i < p->cols; i++)
        for (int64_t k = i + 1; k < p->cols; k++) {
            const double a = p->h[left[i] * (p->cols + 1)], b = p->h[left[k] * (p->cols + 1)];
            const int64_t t = left[i];
            if (a > b || (a == b && left[i] < left[k])) continue;
            left[i] = left[k];
            left[k] = t;
        }
}

static void round_with(const problem *p, uint8_t *codes, double *loss,
                       const fp8_gptq_options *options, int32_t threads) {
    fp8_pool *pool = NULL;
    fp8_gptq *g = NULL;
    CHECK_STATUS(fp8_pool_create(&pool, threads), FP8_OK);
    CHECK_STATUS(fp8_gptq_create(&g, p->h, p->cols, options, pool), FP8_OK);
    CHECK_STATUS(fp8_gptq_round(codes, loss, g, p->w, p->rows, &p->s, pool), FP8_OK);
    fp8_gptq_destroy(g);
    fp8_pool_destroy(pool);
}

/* F32 sums here, F64 there: a value next to a tie may fall the other way, and those after it answer
 * to that; the loss hardly changes. */
static void test_oracle(void) {
    static const struct {
        const char *name;
        int64_t rows, cols, tokens;
        fp8_gptq_options options;
    } cases[] = {
        {"one input", 3, 1, 4, {0.01, 1}},
        {"two inputs", 5, 2, 9, {0.01, 1}},
        {"odd", 17, 13, 64, {0.01, 1}},
        {"as it comes", 17, 13, 64, {0.01, 0}},
        {"fewer tokens than inputs", 16, 24, 7, {0.01, 1}},
        {"more than a panel", 4, 67, 200, {0.01, 1}},
        {"much damping", 9, 31, 64, {1, 1}},
        {"little damping", 9, 31, 640, {1e-6, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = make(cases[i].rows, cases[i].cols, cases[i].tokens, cases[i].rows,
                         cases[i].cols);
        const fp8_gptq_options *o = &cases[i].options;
        int64_t *left = malloc((size_t)p.cols * sizeof *left), off = 0;
        uint8_t *as_plain = malloc((size_t)(p.rows * p.cols));
        double got = 0, want = 0;
        check_case = cases[i].name;
        order(&p, o->act_order, left);
        oracle(&p, p.other, o->damping, left);
        plain(&p, as_plain);
        round_with(&p, p.codes, NULL, o, 1);
        for (int64_t r = 0; r < p.rows; r++) {
            const double loss = row_loss(&p, p.other, o->damping, r);
            const int is_plain = row_loss(&p, as_plain, o->damping, r) <= loss;
            const uint8_t *expected = (is_plain ? as_plain : p.other) + r * p.cols;
            got += row_loss(&p, p.codes, o->damping, r);
            want += is_plain ? row_loss(&p, as_plain, o->damping, r) : loss;
            for (int64_t c = 0; c < p.cols; c++)
                off += p.codes[r * p.cols + c] != expected[c];
        }
        CHECK(fabs(got - want) <= 1e-2 * want);
        CHECK(off * 20 <= p.rows * p.cols);
        free(as_plain);
        free(left);
        drop(&p);
    }
}

/* Whatever H is: no row's loss above plain rounding's, and the loss reported is the loss. */
static void test_never_worse(void) {
    static const struct {
        const char *name;
        int64_t rows, cols, tokens, row_span, col_span;
    } cases[] = {
        {"nothing was seen", 5, 40, 0, 5, 40},
        {"one token", 5, 40, 1, 5, 40},
        {"a row", 1, 63, 90, 1, 63},
        {"a panel", 15, 64, 90, 15, 64},
        {"a panel and one", 16, 65, 300, 16, 65},
        {"by channel", 17, 130, 300, 1, 130},
        {"by block", 33, 130, 300, 16, 64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = make(cases[i].rows, cases[i].cols, cases[i].tokens, cases[i].row_span,
                         cases[i].col_span);
        const fp8_gptq_options o = FP8_GPTQ_OPTIONS;
        double before = 0, after = 0, loss[2];
        check_case = cases[i].name;
        round_with(&p, p.codes, loss, &o, 1);
        plain(&p, p.other);
        for (int64_t r = 0; r < p.rows; r++) {
            const double a = row_loss(&p, p.other, o.damping, r);
            const double b = row_loss(&p, p.codes, o.damping, r);
            CHECK(b <= a * (1 + 1e-6));
            before += a;
            after += b;
        }
        CHECK(fabs(loss[0] - before) <= 1e-3 * before);
        CHECK(fabs(loss[1] - after) <= 1e-3 * before);
        if (p.tokens == 0) CHECK(memcmp(p.codes, p.other, (size_t)(p.rows * p.cols)) == 0);
        if (p.tokens > p.cols && p.cols > 1) CHECK(after < 0.9 * before);
        round_with(&p, p.other, NULL, &o, 5);
        CHECK(memcmp(p.codes, p.other, (size_t)(p.rows * p.cols)) == 0);
        drop(&p);
    }
}

/* Inputs that have nothing to do with each other: nothing to answer with. */
static void test_diagonal(void) {
    problem p = make(33, 129, 1, 1, 129);
    const fp8_gptq_options o = FP8_GPTQ_OPTIONS;

    check_case = "diagonal";
    for (int64_t i = 0; i < p.cols; i++)
        for (int64_t k = 0; k < p.cols; k++)
            p.h[i * p.cols + k] = i == k ? 7 * check_uniform(&seed) : 0;
    p.w[5] = 0;
    p.w[6] = -0.0f;
    p.w[7] = 1e-30f;
    plain(&p, p.other);
    round_with(&p, p.codes, NULL, &o, 2);
    CHECK(memcmp(p.codes, p.other, (size_t)(p.rows * p.cols)) == 0);
    drop(&p);
}

/* A row with a NaN is rounded plainly; the others do not see it. */
static void test_nonfinite_weight(void) {
    problem p = make(4, 20, 100, 1, 20);
    const fp8_gptq_options o = FP8_GPTQ_OPTIONS;
    uint8_t *clean = malloc(80);

    check_case = "a weight that is NaN";
    round_with(&p, clean, NULL, &o, 1);
    p.w[2 * 20 + 3] = NAN;
    plain(&p, p.other);
    round_with(&p, p.codes, NULL, &o, 1);
    CHECK(memcmp(p.codes, clean, 40) == 0);
    CHECK(memcmp(p.codes + 40, p.other + 40, 20) == 0);
    CHECK(memcmp(p.codes + 60, clean + 60, 20) == 0);
    free(clean);
    drop(&p);
}

static void test_refused(void) {
    static const struct {
        const char *name;
        double first, off;
    } cases[] = {{"NaN", NAN, 0}, {"infinite", INFINITY, 0}, {"indefinite", 1, 1e9}};
    const fp8_gptq_options o = FP8_GPTQ_OPTIONS;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        problem p = make(2, 3, 5, 2, 3);
        fp8_gptq *g = NULL;
        check_case = cases[i].name;
        p.h[0] = cases[i].first;
        if (cases[i].off > 0) p.h[1] = p.h[3] = cases[i].off;
        CHECK_STATUS(fp8_gptq_create(&g, p.h, p.cols, &o, NULL), FP8_EDATA);
        CHECK(g == NULL);
        drop(&p);
    }
}

int main(void) {
    if (getenv("GPTQ_SEED")) seed = strtoull(getenv("GPTQ_SEED"), NULL, 0);
    test_oracle();
    test_never_worse();
    test_diagonal();
    test_nonfinite_weight();
    test_refused();
    return CHECK_DONE();
}
