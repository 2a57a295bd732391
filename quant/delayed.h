/* quant/delayed.h - delayed scaling on the device: the amax that producers leave in their slots
 * becomes history, and history the scales of the next step, with no host in between. The host half
 * of the same rule is quant/recipe.h. */
#ifndef FP8_QUANT_DELAYED_H
#define FP8_QUANT_DELAYED_H
#include <stdint.h>

#include "core/device.h"
#include "quant/cast.h"
#include "quant/recipe.h"
#ifdef __cplusplus
extern "C" {
#endif

/* `count` points of observation, each with a ring of `length` steps. All arrays are in the place of
 * the device; zeroed slots, history and steps, and scale = descale = 1, are the beginning. */
typedef struct fp8_delayed {
    int64_t count, length;
    fp8_amax_slot *slots; /* io [count]: both amax are taken and become 0; nonfinite goes on */
    float *history;       /* io [count, length]: step s of point i at i * length + s % length */
    int64_t *steps;       /* io [count]: how many steps each point has seen */
    float *scale;         /* io [count] */
    float *descale;       /* io [count] */
} fp8_delayed;

/* For every point: history gets slot.amax, steps goes up by one, and scale and descale become what
 * fp8_recipe_scale makes of fp8_recipe_amax over the newest steps (at most `length`, and at most
 * the recipe's history_len). One kernel; can be captured in a graph. FP8_EINVAL: NULL, count < 0,
 * length < 1, a recipe out of range; FP8_EUNSUPPORTED: an algorithm other than max and
 * most_recent; FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_delayed_update(fp8_device *d, const fp8_delayed *state,
                                            const fp8_recipe *recipe, fp8_dtype to,
                                            fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
