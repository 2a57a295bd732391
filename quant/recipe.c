#include "quant/recipe.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "quant/cast.h"
#include "quant/scale_pair.h"

/* Over rows [oldest, steps), each pulling the average towards itself. */
static float moving_average(const float *history, int64_t oldest, int64_t steps) {
    float mean = 0; /* 0: no row yet */

    for (int64_t i = oldest; i < steps; i++) {
        if (!isfinite(history[i]) || history[i] <= 0) continue;
        mean = mean > 0 ? mean + FP8_AMAX_AVERAGING * (history[i] - mean) : history[i];
    }
    return mean;
}

float fp8_recipe_amax(const fp8_recipe *r, const float *history, int64_t steps) {
    const int64_t oldest = steps > r->history_len ? steps - r->history_len : 0;
    float amax = 0;

    if (r->algo == FP8_AMAX_MOVING_AVERAGE) return moving_average(history, oldest, steps);
    for (int64_t i = steps - 1; i >= oldest; i--) {
        if (!isfinite(history[i]) || history[i] <= 0) continue;
        if (r->algo == FP8_AMAX_MOST_RECENT) return history[i];
        if (history[i] > amax) amax = history[i];
    }
    return amax;
}

void fp8_recipe_scale(const fp8_recipe *r, fp8_dtype to, float amax, float *scale, float *descale) {
    if (!isfinite(amax) || amax <= 0) return;
    fp8_scale_pair(ldexpf(fp8_max_of(to), -r->margin), amax, scale, descale);
}

static const char *const algo_names[] = {
    [FP8_AMAX_MAX] = "max",
    [FP8_AMAX_MOST_RECENT] = "most_recent",
    [FP8_AMAX_MOVING_AVERAGE] = "moving_average",
};

fp8_status fp8_amax_algo_parse(fp8_amax_algo *out, const char *text) {
    for (size_t i = 0; i < sizeof algo_names / sizeof *algo_names; i++) {
        if (strcmp(text, algo_names[i]) != 0) continue;
        *out = (fp8_amax_algo)i;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL, "amax algorithm '%s': expected max, most_recent or "
                    "moving_average", text);
}

const char *fp8_amax_algo_name(fp8_amax_algo a) {
    return (size_t)a < sizeof algo_names / sizeof *algo_names ? algo_names[a] : "?";
}
