/* calib/histogram.h - private: what a point's histogram says of scales that were never tried. */
#ifndef FP8_CALIB_HISTOGRAM_H
#define FP8_CALIB_HISTOGRAM_H
#include <stdint.h>

#include "quant/recipe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All: bins [FP8_RECORD_BINS] of a record, counts >= 0 whose sum is within int64. */

/* |x| below which `percentile` (0 < percentile <= 100) of the values lie: upper edge of its bin, so
 * up to an eighth too large; 0 when nothing was counted. */
float fp8_histogram_cut(const int64_t *bins, double percentile);

/* These two try amax and the upper edges of the bins below it, down to amax / 4096, each with
 * the scale that the recipe makes of it, and return the best; of equals the largest.
 * mse: the least sum over bins of count * mean of (x - qdq(x))^2 over the bin's 16 BF16 values.
 * entropy: the least sum p log(p / q). p: the counts of the bins up to the edge, those above it
 * added to the last; q: the same counts without those, those of bins whose middles get one code
 * spread evenly over the bins of them that are not empty; both made to sum to 1. A
 * candidate with p > 0 where q is 0 is not taken. */
float fp8_histogram_mse(const int64_t *bins, const fp8_recipe *recipe, float amax);
float fp8_histogram_entropy(const int64_t *bins, const fp8_recipe *recipe, float amax);

/* The least by which sum (x - e4m3(x * scale) * descale)^2 can fall from `before` to `after`, each
 * {scale, descale}, wherever in its bin a value lies: sum over bins of count * min over the 16
 * BF16 values x of the bin of (error^2 before - error^2 after). Exact support for BF16 tensors; of
 * others only those values are looked at. Below 0: it may rise. */
double fp8_histogram_gain(const int64_t *bins, const float before[2], const float after[2]);

#ifdef __cplusplus
}
#endif
#endif
