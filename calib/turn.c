#include "calib/turn.h"

#include <math.h>

enum { ANGLES = 64 };
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

void fp8_turn_angles(double *angles, const float *q, const float *k, int64_t rows, int64_t heads,
                     int64_t kv_heads, int64_t dim, int64_t pairs) {
    const int64_t group = heads / kv_heads;

    for (int64_t h = 0; h < kv_heads; h++)
        for (int64_t i = 0; i < pairs; i++) {
            const moments mq = measure(q + h * group * dim + i, rows, heads * dim, group, dim,
                                       pairs);
            const moments mk = measure(k + h * dim + i, rows, kv_heads * dim, 1, dim, pairs);
            double best = noise(&mq, &mk, 0);
            double *angle = &angles[h * pairs + i];
            *angle = 0;
            for (int a = 1; a < ANGLES; a++) {
                const double x = quarter * a / ANGLES, n = noise(&mq, &mk, x);
                if (n >= best) continue;
                best = n;
                *angle = x;
            }
        }
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
