#include "calib/turn.h"

#include <math.h>

enum { ANGLES = 64, GRAIN = 16 }; /* pairs that a worker takes: a cache line of a row */
static const double quarter = 1.5707963267948966; /* the next swaps the two: the same noise */

/* Of one pair over all rows and the heads of a group: sums of x1^2, x1 x2, x2^2. */
typedef struct moments {
    double a, b, c;
} moments;

static moments measure(const float *x, int64_t rows, int64_t stride, int64_t heads, int64_t dim,
                       int64_t pairs) {
    moments m = {0, 0, 0};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            const double x1 = (double)x[r * stride + h * dim];
            const double x2 = (double)x[r * stride + h * dim + pairs];
            m.a += x1 * x1;
            m.b += x1 * x2;
            m.c += x2 * x2;
        }
    return m;
}

static double first(const moments *m, double c, double s) {
    return c * c * m->a + 2 * c * s * m->b + s * s * m->c;
}

static double noise(const moments *q, const moments *k, double angle) {
    const double c = cos(angle), s = sin(angle);
    return first(q, c, s) * first(k, c, s) + first(q, -s, c) * first(k, -s, c);
}

typedef struct angle_job {
    double *angles;
    const float *q, *k;
    int64_t rows, heads, kv_heads, dim, pairs;
} angle_job;

static fp8_status find_angles(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const angle_job *j = ctx;
    const int64_t group = j->heads / j->kv_heads, dim = j->dim;

    (void)worker;
    for (int64_t at = begin; at < end; at++) {
        const int64_t h = at / j->pairs, i = at % j->pairs;
        const moments mq = measure(j->q + h * group * dim + i, j->rows, j->heads * dim, group, dim,
                                   j->pairs);
        const moments mk = measure(j->k + h * dim + i, j->rows, j->kv_heads * dim, 1, dim,
                                   j->pairs);
        double best = noise(&mq, &mk, 0);
        j->angles[at] = 0;
        for (int a = 1; a < ANGLES; a++) {
            const double x = quarter * a / ANGLES, n = noise(&mq, &mk, x);
            if (n >= best) continue;
            best = n;
            j->angles[at] = x;
        }
    }
    return FP8_OK;
}

fp8_status fp8_turn_angles(double *angles, const float *q, const float *k, int64_t rows,
                           int64_t heads, int64_t kv_heads, int64_t dim, int64_t pairs,
                           fp8_pool *pool) {
    angle_job j = {angles, q, k, rows, heads, kv_heads, dim, pairs};
    return fp8_parallel_for(pool, kv_heads * pairs, GRAIN, find_angles, &j);
}

void fp8_turn_rows(float *w, const double *angles, int64_t heads, int64_t kv_heads, int64_t dim,
                   int64_t pairs, int64_t cols) {
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < pairs; i++) {
            const double angle = angles[h / (heads / kv_heads) * pairs + i];
            const double c = cos(angle), s = sin(angle);
            float *x = w + (h * dim + i) * cols, *y = x + pairs * cols;
            for (int64_t k = 0; k < cols; k++) {
                const double x1 = (double)x[k], x2 = (double)y[k];
                x[k] = (float)(x1 * c + x2 * s);
                y[k] = (float)(x2 * c - x1 * s);
            }
        }
}
