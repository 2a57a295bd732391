#include "calib/ridge.h"

#include <stdlib.h>

#include "calib/cholesky.h"

enum { ROWS = 8 }; /* that a worker takes, so that a row of the factor is read once for all */

struct fp8_ridge {
    int64_t cols;
    double *factor; /* L of H + r I */
    double r;
    const double *cross;
};

typedef struct solve_job {
    const fp8_ridge *r;
    const float *w;
    float *t;
    double *scratch; /* [threads][2 * ROWS][cols] */
} solve_job;

fp8_status fp8_ridge_create(fp8_ridge **out, const double *hessian, const double *cross,
                            int64_t cols, double ridge, fp8_pool *pool) {
    fp8_ridge *r = calloc(1, sizeof *r);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!r) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    r->cols = cols;
    r->cross = cross;
    r->factor = malloc(((size_t)(cols * cols) + 1) * sizeof *r->factor);
    if (!r->factor) {
        st = FP8_FAIL(FP8_ENOMEM, "factor of %lld inputs", (long long)cols);
        goto done;
    }
    FP8_TRY(fp8_cholesky(r->factor, &r->r, hessian, NULL, cols, ridge, pool));
    *out = r;
    r = NULL;
done:
    fp8_ridge_destroy(r);
    return st;
}

void fp8_ridge_destroy(fp8_ridge *r) {
    if (!r) return;
    free(r->factor);
    free(r);
}

/* z L^T = b, then t L = z, in place of b; `rows` of them. */
static void substitute(const fp8_ridge *r, double *b, int64_t rows) {
    const int64_t n = r->cols;

    for (int64_t k = 0; k < n; k++) {
        const double *line = r->factor + k * n;
        for (int64_t i = 0; i < rows; i++)
            b[i * n + k] = (b[i * n + k] - fp8_dot(b + i * n, line, k)) / line[k];
    }
    for (int64_t k = n - 1; k >= 0; k--) {
        const double *line = r->factor + k * n;
        for (int64_t i = 0; i < rows; i++) {
            double *row = b + i * n;
            const double x = row[k] / line[k];
            row[k] = x;
            for (int64_t c = 0; c < k; c++) row[c] -= x * line[c];
        }
    }
}

static fp8_status solve_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const solve_job *j = ctx;
    const int64_t n = j->r->cols, rows = end - begin;
    double *w = j->scratch + (int64_t)worker * 2 * ROWS * n, *b = w + ROWS * n;

    for (int64_t i = 0; i < rows * n; i++) w[i] = (double)j->w[begin * n + i];
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < rows; i++)
            b[i * n + k] = fp8_dot(w + i * n, j->r->cross + k * n, n) + j->r->r * w[i * n + k];
    substitute(j->r, b, rows);
    for (int64_t i = 0; i < rows * n; i++) j->t[begin * n + i] = (float)b[i];
    return FP8_OK;
}

fp8_status fp8_ridge_solve(float *t, const fp8_ridge *r, const float *w, int64_t rows,
                           fp8_pool *pool) {
    const size_t most = (size_t)fp8_pool_threads(pool) * 2 * ROWS * (size_t)r->cols;
    solve_job j = {.r = r, .w = w, .t = t};
    fp8_status st = FP8_OK;

    j.scratch = malloc((most + 1) * sizeof *j.scratch);
    if (!j.scratch) return FP8_FAIL(FP8_ENOMEM, "%lld weights a row", (long long)r->cols);
    FP8_TRY(fp8_parallel_for(pool, rows, ROWS, solve_rows, &j));
done:
    free(j.scratch);
    return st;
}
