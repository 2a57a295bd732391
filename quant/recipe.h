/* quant/recipe.h - from an amax (or its history) to scale and descale: delayed scaling as
 * Transformer Engine defines it, over a history with one row a calibration step. Host, pure. */
#ifndef FP8_QUANT_RECIPE_H
#define FP8_QUANT_RECIPE_H
#include <stdint.h>

#include "core/dtype.h"
#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* What a history a[0 .. n), oldest first, is worth; rows that do not count are left out before.
 *   MAX             max a[i]
 *   MOST_RECENT     a[n-1]
 *   MOVING_AVERAGE  m = a[0]; then m += FP8_AMAX_AVERAGING * (a[i] - m) for i = 1 .. n-1, in F32:
 *                   torch.ao's MovingAverageMinMaxObserver and llm-compressor's minmax observer,
 *                   but of amax, where they average minimum and maximum each. Lies below the
 *                   largest row unless all are equal: larger values saturate. */
typedef enum fp8_amax_algo {
    FP8_AMAX_MAX,
    FP8_AMAX_MOST_RECENT,
    FP8_AMAX_MOVING_AVERAGE
} fp8_amax_algo;
#define FP8_AMAX_AVERAGING 0.01f /* weight of a new row; the default of both named above */

typedef struct fp8_recipe {
    fp8_amax_algo algo;
    int32_t margin;      /* scale = max / 2^margin / amax; 0 <= margin <= 32 */
    int64_t history_len; /* only the newest rows count; >= 1 */
} fp8_recipe;
#define FP8_RECIPE_DEFAULT {FP8_AMAX_MAX, 0, 1024}

/* amax that the recipe takes from history[0 .. steps), oldest first. Only the newest
 * history_len rows count, and of them those that are positive and finite; 0 when none is left. */
float fp8_recipe_amax(const fp8_recipe *r, const float *history, int64_t steps);

/* *scale = max_of(to) / 2^margin / amax, *descale = amax / (max_of(to) / 2^margin), in F32.
 * amax 0 or not finite: both keep their `previous` (1 and 1 on first use). A scale that overflows
 * becomes FLT_MAX, a descale that would be 0 the smallest normal float. */
void fp8_recipe_scale(const fp8_recipe *r, fp8_dtype to, float amax, float *scale, float *descale);

FP8_NODISCARD fp8_status fp8_amax_algo_parse(fp8_amax_algo *out, const char *text);
const char *fp8_amax_algo_name(fp8_amax_algo a);

#ifdef __cplusplus
}
#endif
#endif
