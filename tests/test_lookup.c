/* quant/lookup.h, quant/delayed.h and fp8_quantize_transposed on the CPU. */
#include "tests/lookup_cases.h"

static void test_refusals(fp8_device *d) {
    float x[8] = {0};
    int32_t ids[8];
    fp8_amax_slot slot = {0};
    int64_t steps = 0;
    fp8_recipe recipe = FP8_RECIPE_DEFAULT;
    fp8_delayed state = {1, 1, &slot, x, &steps, x + 1, NULL};

    check_case = "refusals";
    CHECK_STATUS(fp8_top_k(d, ids, NULL, x, FP8_DTYPE_F32, 1, 8, 0, 9, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_top_k(d, ids, NULL, x, FP8_DTYPE_F32, 1, 8, 0, 0, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_top_k(d, ids, NULL, x, FP8_DTYPE_F32, 1, 8, 7, 1, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_top_k(d, NULL, NULL, x, FP8_DTYPE_F32, 1, 8, 0, 1, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    state.descale = x + 2;
    CHECK_STATUS(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_BF16, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    recipe.margin = 33;
    CHECK_STATUS(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    recipe = (fp8_recipe){FP8_AMAX_MOVING_AVERAGE, 0, 8};
    CHECK_STATUS(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED),
                 FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "moving_average") != NULL);
    CHECK(steps == 0);
}

int main(void) {
    fp8_device *d = NULL;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 3), FP8_OK);
    run_all_embeds(d);
    run_all_tops(d);
    run_all_delayed(d);
    run_all_transposed(d);
    test_refusals(d);
    fp8_device_free(d, twin_pool);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
