#include "calib/gptq.h"

#include <stdlib.h>
#include <string.h>

#include "calib/cholesky.h"
#include "quant/cast.h"

/* PANEL: inputs that are rounded before their errors are carried on to all others at once; ROWS: of
 * a weight that a worker takes, so that a panel of the factor is read once for all of them (64 x
 * 8192 floats are 2 MB). */
enum { PANEL = 64, ROWS = 16 };

struct fp8_gptq {
    int64_t cols;
    int64_t *order; /* [cols]: place k of the factor is input order[k]; the last is rounded first */
    double *pivots; /* [cols]: L_kk^2, what an error at place k costs */
    float *factor;  /* [cols, cols]: row i holds L_ik / L_kk for k < i; the rest is not used */
};

/* ---- factor ---------------------------------------------------------------------------------- */

typedef struct ranked {
    double diagonal;
    int64_t input;
} ranked;

static int by_diagonal(const void *x, const void *y) {
    const ranked *a = x, *b = y;
    if (a->diagonal != b->diagonal) return a->diagonal < b->diagonal ? -1 : 1;
    return a->input > b->input ? -1 : 1; /* of equal ones the first input is rounded first */
}

fp8_status fp8_gptq_order(int64_t *order, const double *diagonal, int64_t stride, int64_t n,
                          int act_order) {
    ranked *all = malloc((size_t)(n + 1) * sizeof *all);

    if (!all) return FP8_FAIL(FP8_ENOMEM, "order of %lld inputs", (long long)n);
    for (int64_t i = 0; i < n; i++)
        all[i] = (ranked){act_order ? diagonal[i * stride] : 0, i};
    qsort(all, (size_t)n, sizeof *all, by_diagonal);
    for (int64_t i = 0; i < n; i++) order[i] = all[i].input;
    free(all);
    return FP8_OK;
}

static void keep(fp8_gptq *g, const double *a) {
    const int64_t n = g->cols;

    for (int64_t k = 0; k < n; k++) g->pivots[k] = a[k * n + k] * a[k * n + k];
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < i; k++)
            g->factor[i * n + k] = (float)(a[i * n + k] / a[k * n + k]);
}

fp8_status fp8_gptq_create(fp8_gptq **out, const double *hessian, int64_t cols,
                           const fp8_gptq_options *options, fp8_pool *pool) {
    const size_t n = (size_t)cols;
    fp8_gptq *g = calloc(1, sizeof *g);
    double *a = NULL, damped;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!g) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    g->cols = cols;
    a = malloc((n * n + 1) * sizeof *a);
    g->order = malloc((n + 1) * sizeof *g->order);
    g->pivots = malloc((n + 1) * sizeof *g->pivots);
    g->factor = malloc((n * n + 1) * sizeof *g->factor);
    if (!a || !g->order || !g->pivots || !g->factor) {
        st = FP8_FAIL(FP8_ENOMEM, "factor of %lld inputs", (long long)cols);
        goto done;
    }
    FP8_TRY(fp8_gptq_order(g->order, hessian, cols + 1, cols, options->act_order));
    FP8_TRY(fp8_cholesky(a, &damped, hessian, g->order, cols, options->damping, pool));
    keep(g, a);
    *out = g;
    g = NULL;
done:
    free(a);
    fp8_gptq_destroy(g);
    return st;
}

void fp8_gptq_destroy(fp8_gptq *g) {
    if (!g) return;
    free(g->order);
    free(g->pivots);
    free(g->factor);
    free(g);
}

/* ---- round ----------------------------------------------------------------------------------- */

typedef struct round_job {
    const fp8_gptq *g;
    const float *w;
    const fp8_gptq_scales *s;
    uint8_t *codes;
    double *losses; /* [rows][2] */
    int64_t rows;
    float *scratch; /* [threads][2 * ROWS][cols] */
    float values[256];
} round_job;

static int64_t scale_at(const round_job *j, int64_t r, int64_t c) {
    const int64_t across = (j->g->cols + j->s->col_span - 1) / j->s->col_span;
    return r / j->s->row_span * across + c / j->s->col_span;
}

/* *error = x - its value. */
static uint8_t round_one(const round_job *j, int64_t at, float x, float w, float *error) {
    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, x * j->s->scales[at]);
    *error = w - j->values[code] * j->s->descales[at];
    return code;
}

/* moved[0 .. n) += sum over k of errors[k] * factor[k][0 .. n), four rows of the factor at a time,
 * always in the same order. */
static void carry(float *moved, const float *errors, const float *factor, int64_t stride,
                  int64_t count, int64_t n) {
    int64_t k = 0;

    for (; k + 4 <= count; k += 4) {
        const float *f = factor + k * stride;
        const float e0 = errors[k], e1 = errors[k + 1], e2 = errors[k + 2], e3 = errors[k + 3];
        for (int64_t i = 0; i < n; i++)
            moved[i] += e0 * f[i] + e1 * f[stride + i] + e2 * f[2 * stride + i] +
                        e3 * f[3 * stride + i];
    }
    for (; k < count; k++)
        for (int64_t i = 0; i < n; i++) moved[i] += errors[k] * factor[k * stride + i];
}

/* Rows [begin, end): from the last place to the first; errors and moved [ROWS][cols]. With `plain`
 * nothing moves what is rounded, but its effect is summed all the same: moved[k] is then what
 * rounding would have answered. */
static void round_rows(const round_job *j, int64_t begin, int64_t end, float *errors, float *moved,
                       int plain) {
    const fp8_gptq *g = j->g;
    const int64_t n = g->cols;

    memset(moved, 0, (size_t)((end - begin) * n) * sizeof *moved);
    for (int64_t right = n; right > 0;) {
        const int64_t left = right > PANEL ? right - PANEL : 0;
        for (int64_t r = begin; r < end; r++) {
            float *e = errors + (r - begin) * n, *m = moved + (r - begin) * n;
            double *loss = &j->losses[2 * r + !plain];
            for (int64_t k = right - 1; k >= left; k--) {
                const int64_t c = g->order[k];
                const float w = j->w[r * n + c];
                const float x = plain ? w : w + m[k];
                double miss;
                j->codes[r * n + c] = round_one(j, scale_at(j, r, c), x, w, &e[k]);
                miss = (double)e[k] + (double)m[k];
                *loss += miss * miss * g->pivots[k];
                carry(m + left, &e[k], g->factor + k * n + left, n, 1, k - left);
            }
        }
        for (int64_t r = begin; r < end; r++)
            carry(moved + (r - begin) * n, errors + (r - begin) * n + left, g->factor + left * n, n,
                  right - left, left);
        right = left;
    }
}

static fp8_status round_band(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    round_job *j = ctx;
    const int64_t n = j->g->cols;
    float *errors = j->scratch + (int64_t)worker * 2 * ROWS * n, *moved = errors + ROWS * n;

    round_rows(j, begin, end, errors, moved, 1);
    round_rows(j, begin, end, errors, moved, 0);
    for (int64_t r = begin; r < end; r++) {
        double *loss = &j->losses[2 * r];
        if (loss[1] < loss[0]) continue;
        loss[0] = 0;
        round_rows(j, r, r + 1, errors, moved, 1);
        loss[1] = loss[0];
    }
    return FP8_OK;
}

fp8_status fp8_gptq_round(uint8_t *codes, double *loss, const fp8_gptq *g, const float *w,
                          int64_t rows, const fp8_gptq_scales *s, fp8_pool *pool) {
    const int64_t threads = fp8_pool_threads(pool);
    round_job j = {.g = g, .w = w, .s = s, .codes = codes, .rows = rows};
    fp8_status st = FP8_OK;

    for (int i = 0; i < 256; i++) j.values[i] = fp8_to_f32(FP8_DTYPE_E4M3, (uint8_t)i);
    j.losses = calloc((size_t)rows + 1, 2 * sizeof *j.losses);
    j.scratch = malloc(((size_t)(threads * 2 * ROWS * g->cols) + 1) * sizeof *j.scratch);
    if (!j.losses || !j.scratch) {
        st = FP8_FAIL(FP8_ENOMEM, "compensated rounding of %lld x %lld weights", (long long)rows,
                      (long long)g->cols);
        goto done;
    }
    FP8_TRY(fp8_parallel_for(pool, rows, ROWS, round_band, &j));
    if (loss) loss[0] = loss[1] = 0;
    for (int64_t r = 0; loss && r < rows; r++) {
        loss[0] += j.losses[2 * r];
        loss[1] += j.losses[2 * r + 1];
    }
done:
    free(j.losses);
    free(j.scratch);
    return st;
}
