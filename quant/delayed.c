/* Delayed scaling: the call, and its CPU half over the rule of recipe.c. */
#include "quant/delayed.h"

#include "quant/produce_impl.h"

/* The newest `keep` steps of a ring, oldest first as fp8_recipe_amax wants them: two runs. */
static float ring_amax(const fp8_recipe *r, const float *ring, int64_t length, int64_t steps) {
    const int64_t known = steps < length ? steps : length;
    const int64_t keep = known < r->history_len ? known : r->history_len;
    const int64_t end = (steps - 1) % length + 1; /* one past the newest */
    const int64_t newer = keep < end ? keep : end, older = keep - newer;
    const float recent = fp8_recipe_amax(r, ring + end - newer, newer);
    const float past = older > 0 ? fp8_recipe_amax(r, ring + length - older, older) : 0.0f;

    if (r->algo == FP8_AMAX_MOST_RECENT) return recent > 0 ? recent : past;
    return recent > past ? recent : past;
}

static void update(const fp8_delayed *s, const fp8_recipe *r, fp8_dtype to, int64_t i) {
    float *ring = s->history + i * s->length;

    ring[s->steps[i] % s->length] = s->slots[i].amax;
    s->steps[i]++;
    s->slots[i].amax = s->slots[i].amax_without_first = 0;
    fp8_recipe_scale(r, to, ring_amax(r, ring, s->length, s->steps[i]), &s->scale[i],
                     &s->descale[i]);
}

fp8_status fp8_delayed_update(fp8_device *d, const fp8_delayed *state, const fp8_recipe *recipe,
                              fp8_dtype to, fp8_launch launch) {
    const fp8_delayed *s = state;

    if (s->count < 0 || s->count > INT32_MAX || s->length < 1 || recipe->history_len < 1 ||
        recipe->margin < 0 || recipe->margin > 32 ||
        (to != FP8_DTYPE_E4M3 && to != FP8_DTYPE_E5M2))
        return FP8_FAIL(FP8_EINVAL, "delayed_update: %lld points of %lld steps, history_len %lld, "
                        "margin %d, to %s", (long long)s->count, (long long)s->length,
                        (long long)recipe->history_len, recipe->margin, fp8_dtype_name(to));
    if (recipe->algo != FP8_AMAX_MAX && recipe->algo != FP8_AMAX_MOST_RECENT)
        return FP8_FAIL(FP8_EUNSUPPORTED, "delayed_update: amax algorithm %s: expected max or "
                        "most_recent", fp8_amax_algo_name(recipe->algo));
    if (s->count == 0) return FP8_OK;
    if (!s->slots || !s->history || !s->steps || !s->scale || !s->descale)
        return FP8_FAIL(FP8_EINVAL, "delayed_update: an array is NULL");
    if (FP8_ON_CUDA(d)) return FP8_CUDA_CALL(fp8_cuda_delayed_update(d, s, recipe, to, launch));
    for (int64_t i = 0; i < s->count; i++) update(s, recipe, to, i);
    (void)launch;
    return FP8_OK;
}
