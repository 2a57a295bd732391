/* calib/cholesky.h - private: the factor that compensated rounding stands on. Host, F64; the same
 * bits for any number of threads. */
#ifndef FP8_CALIB_CHOLESKY_H
#define FP8_CALIB_CHOLESKY_H
#include <stdint.h>

#include "core/threads.h"

/* a [n, n], lower triangle: L with L L^T = h[order, order] + damping * (mean diagonal of h) * I;
 * what is above it means nothing. order NULL: as it is. An h of zeros counts as one of mean 1.
 * Damping is doubled, with a warning, until there is an L; *damped = what was added to the
 * diagonal. FP8_EDATA: h is not finite, or not semidefinite by far. */
FP8_NODISCARD fp8_status fp8_cholesky(double *a, double *damped, const double *h,
                                      const int64_t *order, int64_t n, double damping,
                                      fp8_pool *pool);

/* sum x[i] y[i], in eight sums side by side. */
double fp8_dot(const double *x, const double *y, int64_t n);
#endif
