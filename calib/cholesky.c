#include "calib/cholesky.h"

#include <math.h>

#include "core/log.h"

/* PANEL: columns of a step; LANES: sums side by side, and rows that a worker takes. */
enum { PANEL = 64, LANES = 8, MOST_DOUBLINGS = 16 };

typedef struct factor_job {
    double *a; /* [n, n]: lower triangle, in place */
    int64_t n, begin, end; /* the panel */
} factor_job;

/* In LANES sums side by side, so that the compiler keeps them in a vector. */
double fp8_dot(const double *x, const double *y, int64_t n) {
    double lanes[LANES] = {0}, sum = 0;
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int64_t l = 0; l < LANES; l++) lanes[l] += x[i + l] * y[i + l];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int64_t l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* Rows below and in the panel: minus what the columns before it account for. */
static fp8_status update_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const factor_job *j = ctx;
    const int64_t n = j->n;

    (void)worker;
    for (int64_t i = j->begin + begin; i < j->begin + end; i++) {
        const int64_t last = i < j->end - 1 ? i : j->end - 1;
        for (int64_t k = j->begin; k <= last; k++)
            j->a[i * n + k] -= fp8_dot(j->a + i * n, j->a + k * n, j->begin);
    }
    return FP8_OK;
}

static fp8_status solve_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const factor_job *j = ctx;
    const int64_t n = j->n;

    (void)worker;
    for (int64_t i = j->end + begin; i < j->end + end; i++)
        for (int64_t k = j->begin; k < j->end; k++) {
            double *row = j->a + i * n;
            row[k] -= fp8_dot(row + j->begin, j->a + k * n + j->begin, k - j->begin);
            row[k] /= j->a[k * n + k];
        }
    return FP8_OK;
}

/* 0: a pivot is not positive. */
static int factor_panel(const factor_job *j) {
    const int64_t n = j->n;

    for (int64_t i = j->begin; i < j->end; i++) {
        double *row = j->a + i * n;
        for (int64_t k = j->begin; k <= i; k++) {
            const double *other = j->a + k * n;
            row[k] -= fp8_dot(row + j->begin, other + j->begin, k - j->begin);
            if (k < i) row[k] /= other[k];
        }
        if (!(row[i] > 0)) return 0;
        row[i] = sqrt(row[i]);
    }
    return 1;
}

/* a = L L^T, L in a's lower triangle. */
static fp8_status factor(double *a, int64_t n, fp8_pool *pool, int *done_whole) {
    fp8_status st = FP8_OK;

    *done_whole = 0;
    for (int64_t begin = 0; begin < n; begin += PANEL) {
        factor_job j = {a, n, begin, begin + PANEL < n ? begin + PANEL : n};
        FP8_TRY(fp8_parallel_for(pool, n - begin, LANES, update_rows, &j));
        if (!factor_panel(&j)) return FP8_OK;
        FP8_TRY(fp8_parallel_for(pool, n - j.end, LANES, solve_rows, &j));
    }
    *done_whole = 1;
done:
    return st;
}

static void fill(double *a, const double *h, const int64_t *order, int64_t n, double more) {
    for (int64_t i = 0; i < n; i++) {
        const double *row = h + (order ? order[i] : i) * n;
        for (int64_t k = 0; k <= i; k++) a[i * n + k] = row[order ? order[k] : k];
        a[i * n + i] += more;
    }
}

fp8_status fp8_cholesky(double *a, double *damped, const double *h, const int64_t *order,
                        int64_t n, double damping, fp8_pool *pool) {
    double mean = 0;
    int whole = 0;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < n * n; i++)
        if (!isfinite(h[i]))
            return FP8_FAIL(FP8_EDATA, "compensated rounding: the product of inputs %lld and %lld "
                            "is not finite", (long long)(i / n), (long long)(i % n));
    for (int64_t i = 0; i < n; i++) mean += h[i * n + i] / (double)n;
    if (!(mean > 0)) mean = 1; /* nothing but zeros was seen */
    for (int tries = 0; tries < MOST_DOUBLINGS && !whole; tries++) {
        if (tries)
            fp8_log(FP8_LOG_WARNING, "compensated rounding: %lld inputs whose products a damping "
                    "of %g does not make definite: doubled", (long long)n, damping);
        if (tries) damping *= 2;
        *damped = damping * mean;
        fill(a, h, order, n, *damped);
        FP8_TRY(factor(a, n, pool, &whole));
    }
    if (!whole)
        st = FP8_FAIL(FP8_EDATA, "compensated rounding: the products of %lld inputs are not "
                      "semidefinite", (long long)n);
done:
    return st;
}
