/* What compensated rounding is made of, each part against loops: sums, the aim, the turn. */
#include <string.h>

#include "calib/cholesky.h"
#include "calib/ridge.h"
#include "calib/turn.h"
#include "tests/hessian_check.h"

static uint64_t seed = 5;

/* ---- the factor ------------------------------------------------------------------------------ */

static void test_cholesky(void) {
    static const int64_t sizes[] = {1, 2, 7, 63, 64, 65, 129};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t n = sizes[s];
        double *h = calloc((size_t)(n * n), sizeof *h), *a = malloc((size_t)(n * n) * sizeof *a);
        double *b = malloc((size_t)(n * n) * sizeof *b), damped = 0;
        fp8_pool *pool = NULL;
        check_case = "factor";
        CHECK_STATUS(fp8_pool_create(&pool, 3), FP8_OK);
        for (int64_t t = 0; t < 2 * n; t++) {
            for (int64_t i = 0; i < n; i++) b[i] = (double)check_normal(&seed);
            for (int64_t i = 0; i < n * n; i++) h[i] += b[i / n] * b[i % n];
        }
        CHECK_STATUS(fp8_cholesky(a, &damped, h, NULL, n, 0.01, pool), FP8_OK);
        for (int64_t i = 0; i < n; i++)
            for (int64_t k = 0; k <= i; k++) {
                double sum = i == k ? -damped : 0;
                for (int64_t m = 0; m <= k; m++) sum += a[i * n + m] * a[k * n + m];
                CHECK(fabs(sum - h[i * n + k]) <= 1e-10 * (double)n);
            }
        CHECK_STATUS(fp8_cholesky(b, &damped, h, NULL, n, 0.01, NULL), FP8_OK);
        for (int64_t i = 0; i < n; i++)
            CHECK(memcmp(a + i * n, b + i * n, (size_t)(i + 1) * sizeof *a) == 0);
        fp8_pool_destroy(pool);
        free(h);
        free(a);
        free(b);
    }
}

/* Slightly indefinite, as sums in F32 may be: damped more. By far: refused. */
static void test_indefinite(void) {
    double h[4] = {1, 1.05, 1.05, 1}, a[4], damped = 0;
    check_case = "indefinite";
    CHECK_STATUS(fp8_cholesky(a, &damped, h, NULL, 2, 0.01, NULL), FP8_OK);
    CHECK(damped == 0.08);
    h[1] = h[2] = 1e9;
    CHECK_STATUS(fp8_cholesky(a, &damped, h, NULL, 2, 0.01, NULL), FP8_EDATA);
    h[1] = h[2] = NAN;
    CHECK_STATUS(fp8_cholesky(a, &damped, h, NULL, 2, 0.01, NULL), FP8_EDATA);
}

/* ---- the aim --------------------------------------------------------------------------------- */

/* t solves t (H + r I) = w C^T + r w: put in, it must hold; and no other t near it is better. */
static void test_ridge(void) {
    static const struct {
        int64_t rows, cols, tokens;
        double ridge;
    } cases[] = {{1, 1, 3, 0.1}, {9, 5, 40, 0.1}, {17, 33, 20, 0.5}, {8, 70, 300, 0.01}};
    for (size_t s = 0; s < sizeof cases / sizeof *cases; s++) {
        const int64_t n = cases[s].cols, rows = cases[s].rows;
        double *h = calloc((size_t)(n * n), sizeof *h), *c = calloc((size_t)(n * n), sizeof *c);
        double *x = malloc((size_t)n * sizeof *x), *q = malloc((size_t)n * sizeof *q), r = 0;
        float *w = malloc((size_t)(rows * n) * sizeof *w);
        float *t = malloc((size_t)(rows * n) * sizeof *t);
        float *again = malloc((size_t)(rows * n) * sizeof *again);
        fp8_ridge *ridge = NULL;
        fp8_pool *pool = NULL;
        check_case = "aim";
        CHECK_STATUS(fp8_pool_create(&pool, 3), FP8_OK);
        for (int64_t i = 0; i < rows * n; i++) w[i] = check_normal(&seed);
        for (int64_t k = 0; k < cases[s].tokens; k++) {
            for (int64_t i = 0; i < n; i++) {
                x[i] = (double)check_normal(&seed) + (i > 0 ? x[i - 1] : 0);
                q[i] = 1.1 * x[i] + 0.3 * (double)check_normal(&seed);
            }
            for (int64_t i = 0; i < n * n; i++) {
                h[i] += q[i / n] * q[i % n];
                c[i] += q[i / n] * x[i % n];
            }
        }
        for (int64_t i = 0; i < n; i++) r += cases[s].ridge * h[i * n + i] / (double)n;
        CHECK_STATUS(fp8_ridge_create(&ridge, h, c, n, cases[s].ridge, pool), FP8_OK);
        CHECK_STATUS(fp8_ridge_solve(t, ridge, w, rows, pool), FP8_OK);
        for (int64_t i = 0; i < rows * n; i++) {
            const float *wr = w + i / n * n, *tr = t + i / n * n;
            double left = r * (double)tr[i % n], right = r * (double)wr[i % n], scale = 0;
            for (int64_t k = 0; k < n; k++) {
                left += (double)tr[k] * h[k * n + i % n];
                right += (double)wr[k] * c[i % n * n + k];
                scale += fabs((double)tr[k] * h[k * n + i % n]);
            }
            CHECK(fabs(left - right) <= 1e-5 * (scale + r));
        }
        memcpy(again, w, (size_t)(rows * n) * sizeof *w); /* in place, one thread */
        CHECK_STATUS(fp8_ridge_solve(again, ridge, again, rows, NULL), FP8_OK);
        CHECK(memcmp(again, t, (size_t)(rows * n) * sizeof *t) == 0);
        fp8_ridge_destroy(ridge);
        /* an input that is as it was moves nothing */
        CHECK_STATUS(fp8_ridge_create(&ridge, h, h, n, cases[s].ridge, pool), FP8_OK);
        CHECK_STATUS(fp8_ridge_solve(t, ridge, w, rows, pool), FP8_OK);
        CHECK(check_relative_l2(t, w, rows * n) <= 1e-6);
        fp8_ridge_destroy(ridge);
        fp8_pool_destroy(pool);
        free(h);
        free(c);
        free(x);
        free(q);
        free(w);
        free(t);
        free(again);
    }
}

/* ---- the turn -------------------------------------------------------------------------------- */

enum { HEADS = 4, KV = 2, DIM = 10, PAIRS = 4, HIDDEN = 3, ROWS = 200 }; /* 2 of DIM: no RoPE */

static double noise_of(const float *q, const float *k) {
    double sum = 0;
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < 2 * PAIRS; i++) {
            double eq = 0, ek = 0;
            for (int r = 0; r < ROWS; r++) {
                const double a = (double)q[r * HEADS * DIM + h * DIM + i];
                const double b = (double)k[r * KV * DIM + h / (HEADS / KV) * DIM + i];
                eq += a * a;
                ek += b * b;
            }
            sum += eq * ek;
        }
    return sum;
}

/* The rows of a weight are turned as the outputs would be: weights that are the outputs. */
static void turn(float *x, const double *angles, int64_t heads) {
    float *w = malloc((size_t)(heads * DIM * ROWS) * sizeof *w);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < heads * DIM; c++) w[c * ROWS + r] = x[r * heads * DIM + c];
    fp8_turn_rows(w, angles, heads, KV, DIM, PAIRS, ROWS);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < heads * DIM; c++) x[r * heads * DIM + c] = w[c * ROWS + r];
    free(w);
}

static void test_turn(void) {
    float *q = malloc(ROWS * HEADS * DIM * sizeof *q), *k = malloc(ROWS * KV * DIM * sizeof *k);
    double angles[KV * PAIRS], products[HEADS], before;
    check_case = "turn";
    for (int i = 0; i < ROWS * HEADS * DIM; i++)
        q[i] = check_normal(&seed) + (i % DIM < PAIRS ? 3.0f : 0);
    for (int i = 0; i < ROWS * KV * DIM; i++)
        k[i] = check_normal(&seed) + (i % DIM < PAIRS ? 5.0f : 0);
    before = noise_of(q, k);
    for (int h = 0; h < HEADS; h++) {
        products[h] = 0;
        for (int i = 0; i < DIM; i++)
            products[h] += (double)q[h * DIM + i] * (double)k[h / 2 * DIM + i];
    }
    CHECK_STATUS(fp8_turn_angles(angles, q, k, ROWS, HEADS, KV, DIM, PAIRS, NULL), FP8_OK);
    turn(q, angles, HEADS);
    turn(k, angles, KV);
    CHECK(noise_of(q, k) < 0.7 * before); /* one axis had almost all: half is the best */
    for (int h = 0; h < HEADS; h++) {
        double now = 0;
        for (int i = 0; i < DIM; i++)
            now += (double)q[h * DIM + i] * (double)k[h / 2 * DIM + i];
        CHECK(fabs(now - products[h]) <= 1e-4 * (fabs(products[h]) + 10));
    }
    /* nothing is left to gain */
    CHECK_STATUS(fp8_turn_angles(angles, q, k, ROWS, HEADS, KV, DIM, PAIRS, NULL), FP8_OK);
    for (int i = 0; i < KV * PAIRS; i++) {
        const double x = angles[i];
        CHECK(x < 0.06 || x > 1.51);
    }
    free(q);
    free(k);
}

int main(void) {
    fp8_device *d = NULL;
    test_cholesky();
    test_indefinite();
    test_ridge();
    test_turn();
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    hessian_check_all(d, 1, &seed);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
