/* The solver of compensated rounding on CUDA against the host's: weights aimed, codes and losses,
 * for sizes around a panel, each kind of scale, inputs fewer than tokens or more. Both have sums of
 * F32 in their own order, so a code between two values may differ: losses must not. */
#include <string.h>

#include "calib/solver.h"
#include "core/half.h"
#include "quant/cast.h"
#include "tests/check.h"

static fp8_device *devices[2]; /* host, CUDA */

typedef struct problem {
    int64_t rows, cols, tokens;
    float *w, *scales, *descales;
    uint16_t *x, *q; /* [tokens, cols] BF16 */
    fp8_gptq_scales grid;
} problem;

static void fill_scales(problem *p, int64_t row_span, int64_t col_span) {
    const int64_t across = (p->cols + col_span - 1) / col_span;
    const int64_t count = (p->rows + row_span - 1) / row_span * across;

    p->scales = calloc((size_t)count, sizeof *p->scales);
    p->descales = calloc((size_t)count, sizeof *p->descales);
    for (int64_t i = 0; i < p->rows * p->cols; i++) {
        float *amax = &p->descales[i / p->cols / row_span * across + i % p->cols / col_span];
        *amax = fmaxf(*amax, fabsf(p->w[i]));
    }
    for (int64_t i = 0; i < count; i++) {
        p->scales[i] = 448.0f / p->descales[i];
        p->descales[i] /= 448.0f;
    }
    p->grid = (fp8_gptq_scales){p->scales, p->descales, row_span, col_span};
}

/* Inputs that share a few causes; q is x with an error that has some of x in it. */
static problem make(int64_t rows, int64_t cols, int64_t tokens, int64_t row_span,
                    int64_t col_span, uint64_t seed) {
    problem p = {.rows = rows, .cols = cols, .tokens = tokens};

    p.w = malloc((size_t)(rows * cols) * sizeof *p.w);
    p.x = malloc((size_t)(tokens * cols) * sizeof *p.x);
    p.q = malloc((size_t)(tokens * cols) * sizeof *p.q);
    for (int64_t i = 0; i < rows * cols; i++) p.w[i] = fp8_round_bf16(0.05f * check_normal(&seed));
    for (int64_t t = 0; t < tokens; t++) {
        const float cause = check_normal(&seed), other = check_normal(&seed);
        for (int64_t c = 0; c < cols; c++) {
            const float x = check_normal(&seed) * (float)(1 + c % 5) + (c % 2 ? cause : other);
            p.x[t * cols + c] = fp8_f32_to_bf16(x);
            p.q[t * cols + c] = fp8_f32_to_bf16(x * 1.03f + 0.05f * check_normal(&seed));
        }
    }
    fill_scales(&p, row_span, col_span);
    return p;
}

static void drop(problem *p) {
    free(p->w);
    free(p->scales);
    free(p->descales);
    free(p->x);
    free(p->q);
}

static fp8_hessian *sums_on(fp8_device *d, const problem *p) {
    const size_t bytes = (size_t)(p->tokens * p->cols) * sizeof(uint16_t);
    fp8_hessian *h = NULL;
    void *x = NULL, *q = NULL;

    CHECK_STATUS(fp8_hessian_create(&h, d, FP8_DTYPE_BF16, p->cols, p->tokens), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &x, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &q, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, x, p->x, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, q, p->q, bytes), FP8_OK);
    CHECK_STATUS(fp8_hessian_begin(h, p->cols, FP8_SCHEME_NONE, 1), FP8_OK);
    CHECK_STATUS(fp8_hessian_add(h, x, q, p->tokens), FP8_OK);
    fp8_device_free(d, x);
    fp8_device_free(d, q);
    return h;
}

typedef struct answer {
    float *w;
    uint8_t *codes, *again;
    double loss[2];
} answer;

/* Weights aimed; codes of the weights as they were. */
static answer solve(fp8_device *d, const problem *p, int act_order) {
    const fp8_gptq_options options = {0.01, act_order};
    const size_t n = (size_t)(p->rows * p->cols);
    answer a = {malloc(n * sizeof *a.w), malloc(n), malloc(n), {0, 0}};
    fp8_hessian *h = sums_on(d, p);
    fp8_solver *s = NULL;

    memcpy(a.w, p->w, n * sizeof *a.w);
    CHECK_STATUS(fp8_solver_create(&s, d, h, p->cols, &options, 0.2), FP8_OK);
    if (s) {
        CHECK_STATUS(fp8_solver_aim(s, a.w, p->rows), FP8_OK);
        CHECK_STATUS(fp8_solver_round(a.again, a.loss, s, p->w, p->rows, &p->grid), FP8_OK);
        CHECK_STATUS(fp8_solver_round(a.codes, a.loss, s, p->w, p->rows, &p->grid), FP8_OK);
        CHECK(memcmp(a.codes, a.again, n) == 0);
    }
    fp8_solver_destroy(s);
    fp8_hessian_destroy(h);
    return a;
}

static void drop_answer(answer *a) {
    free(a->w);
    free(a->codes);
    free(a->again);
}

static void test_case(const problem *p, int act_order) {
    answer a = solve(devices[0], p, act_order), b = solve(devices[1], p, act_order);
    const int64_t n = p->rows * p->cols;
    const double error = check_relative_l2(b.w, a.w, n);
    int64_t other = 0;

    for (int64_t i = 0; i < n; i++) other += a.codes[i] != b.codes[i];
    printf("%-8s %lld x %lld, %lld tokens: aimed %.2g off, %lld codes differ, loss %.6g (host "
           "%.6g) of %.6g (host %.6g)\n", check_case, (long long)p->rows, (long long)p->cols,
           (long long)p->tokens, error, (long long)other, b.loss[1], a.loss[1], b.loss[0],
           a.loss[0]);
    CHECK(error <= 1e-4);
    CHECK(other <= n / 50 + 2);
    CHECK(fabs(b.loss[0] / a.loss[0] - 1) <= 1e-3 || a.loss[0] == 0);
    CHECK(b.loss[1] <= 1.02 * a.loss[1] + 1e-12 && b.loss[1] <= b.loss[0]);
    drop_answer(&a);
    drop_answer(&b);
}

static void test_nonfinite(void) {
    const fp8_gptq_options options = FP8_GPTQ_OPTIONS;
    problem p = make(3, 16, 20, 3, 16, 5);
    fp8_hessian *h;
    fp8_solver *s = NULL;

    check_case = "NaN";
    p.q[17] = 0x7fc0;
    h = sums_on(devices[1], &p);
    CHECK_STATUS(fp8_solver_create(&s, devices[1], h, 16, &options, 0.2), FP8_EDATA);
    CHECK(s == NULL);
    fp8_hessian_destroy(h);
    drop(&p);
}

int main(void) {
    static const struct {
        int64_t rows, cols, tokens;
    } sizes[] = {{1, 1, 3},    {5, 2, 40},     {64, 63, 300},  {65, 64, 300}, {63, 65, 300},
                 {130, 129, 90}, {70, 200, 1000}, {256, 512, 2000}, {96, 1000, 700}};
    devices[1] = check_gpu();
    if (!devices[1]) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&devices[0], "cpu", 0), FP8_OK);
    for (size_t i = 0; devices[0] && i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 3; kind++) {
            const int64_t rows = sizes[i].rows, cols = sizes[i].cols;
            const int64_t spans[3][2] = {{rows, cols}, {1, cols}, {128, 128}};
            static const char *const names[] = {"tensor", "channel", "block"};
            problem p = make(rows, cols, sizes[i].tokens, spans[kind][0], spans[kind][1], 40 + i);
            check_case = names[kind];
            test_case(&p, kind != 1);
            drop(&p);
        }
    test_nonfinite();
    fp8_device_destroy(devices[0]);
    fp8_device_destroy(devices[1]);
    return CHECK_DONE();
}
