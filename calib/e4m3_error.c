#include "calib/e4m3_error.h"

#include <math.h>

#include "core/half.h"
#include "quant/cast.h"

/* Values at a time, and sums side by side: both fill vectors of any width evenly. */
enum { PIECE = 64, LANES = 8 };

/* |y| on the grid of E4M3, in integers and without a branch, so that compilers make vectors of it:
 * 2^20 times its power of two (2^-6 for smaller ones) has steps of an eighth of that power, and
 * adding it rounds to nearest even. NaN becomes 448. */
static inline float nearest(float y) {
    const int32_t most = 0x43e00000, least = 0x3c800000, shift = 20 << 23; /* 448, 2^-6 */
    const int32_t u = (int32_t)(fp8_f32_bits(y) & 0x7fffffffu), clipped = u < most ? u : most;
    const int32_t power = clipped & 0x7f800000, up = (power > least ? power : least) + shift;
    const float a = fp8_bits_f32((uint32_t)clipped), b = fp8_bits_f32((uint32_t)up);
    return a + b - b;
}

static inline double squared(float x, float kept) {
    const double e = (double)fabsf(x) - (double)kept;
    return e * e;
}

/* Where some of x is not finite. */
static double finite_error(const float *x, const double *metric, int64_t n, float scale,
                           float descale) {
    double all = 0;

    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i]))
            all += squared(x[i], nearest(x[i] * scale) * descale) * (metric ? metric[i] : 1);
    return all;
}

double fp8_e4m3_error(const float *x, const double *metric, int64_t n, float scale, float descale) {
    double sums[LANES] = {0}, all = 0, ones[PIECE];
    float kept[PIECE];
    int64_t at = 0;

    for (int i = 0; i < PIECE; i++) ones[i] = 1;
    for (; at + PIECE <= n; at += PIECE) {
        const double *weights = metric ? metric + at : ones;
        for (int i = 0; i < PIECE; i++) kept[i] = nearest(x[at + i] * scale) * descale;
        for (int i = 0; i < PIECE; i += LANES)
            for (int k = 0; k < LANES; k++)
                sums[k] += squared(x[at + i + k], kept[i + k]) * weights[i + k];
    }
    for (; at < n; at++)
        all += squared(x[at], nearest(x[at] * scale) * descale) * (metric ? metric[at] : 1);
    for (int k = 0; k < LANES; k++) all += sums[k];
    return isfinite(all) ? all : finite_error(x, metric, n, scale, descale);
}
