#include "quant/recipe.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "quant/cast.h"
#include "quant/scale_pair.h"

float fp8_recipe_amax(const fp8_recipe *r, const float *history, int64_t steps) {
    const int64_t oldest = steps > r->history_len ? steps - r->history_len : 0;
    float amax = 0;

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
};

fp8_status fp8_amax_algo_parse(fp8_amax_algo *out, const char *text) {
    for (size_t i = 0; i < sizeof algo_names / sizeof *algo_names; i++) {
        if (strcmp(text, algo_names[i]) != 0) continue;
        *out = (fp8_amax_algo)i;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL, "amax algorithm '%s': expected max or most_recent", text);
}

const char *fp8_amax_algo_name(fp8_amax_algo a) {
    return (size_t)a < sizeof algo_names / sizeof *algo_names ? algo_names[a] : "?";
}
