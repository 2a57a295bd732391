/* calib/e4m3_error.h - private: what E4M3 with one scale costs. */
#ifndef FP8_CALIB_E4M3_ERROR_H
#define FP8_CALIB_E4M3_ERROR_H
#include <stdint.h>

/* sum of metric[i] * e^2, e = x[i] - E4M3(x[i] * scale) * descale in F64 from F32 values, over the
 * i whose x is finite; the order of the sums hangs on n alone.
 *   x       in  host F32 [n]
 *   metric  in  host F64 [n]; NULL: 1 each */
double fp8_e4m3_error(const float *x, const double *metric, int64_t n, float scale, float descale);
#endif
