/* calib/histogram.h - private: what a point's histogram says of scales that were never tried. */
#ifndef FP8_CALIB_HISTOGRAM_H
#define FP8_CALIB_HISTOGRAM_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Both: bins [FP8_RECORD_BINS] of a record, counts >= 0 whose sum is within int64. */

/* |x| below which `percentile` (0 < percentile <= 100) of the values lie: upper edge of its bin, so
 * up to an eighth too large; 0 when nothing was counted. */
float fp8_histogram_cut(const int64_t *bins, double percentile);

/* The least by which sum (x - e4m3(x * scale) * descale)^2 can fall from `before` to `after`, each
 * {scale, descale}, wherever in its bin a value lies: sum over bins of count * min over the 16
 * BF16 values x of the bin of (error^2 before - error^2 after). Exact support for BF16 tensors; of
 * others only those values are looked at. Below 0: it may rise. */
double fp8_histogram_gain(const int64_t *bins, const float before[2], const float after[2]);

#ifdef __cplusplus
}
#endif
#endif
