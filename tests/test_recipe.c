/* quant/recipe.h: amax from a history, scale and descale from an amax. */
#include <float.h>
#include <string.h>

#include "quant/recipe.h"
#include "tests/check.h"

static void test_amax(void) {
    static const struct {
        const char *name;
        fp8_recipe recipe;
        float history[6];
        int64_t steps;
        float want;
    } cases[] = {
        {"empty", FP8_RECIPE_DEFAULT, {0}, 0, 0},
        {"max", FP8_RECIPE_DEFAULT, {1, 5, 3}, 3, 5},
        {"max forgets", {FP8_AMAX_MAX, 0, 2}, {9, 1, 3}, 3, 3},
        {"max of exactly its length", {FP8_AMAX_MAX, 0, 3}, {9, 1, 3}, 3, 9},
        {"most recent", {FP8_AMAX_MOST_RECENT, 0, 8}, {1, 5, 3}, 3, 3},
        {"most recent passes over 0", {FP8_AMAX_MOST_RECENT, 0, 8}, {1, 5, 0}, 3, 5},
        {"most recent forgets", {FP8_AMAX_MOST_RECENT, 0, 1}, {1, 5, 0}, 3, 0},
        {"not finite", FP8_RECIPE_DEFAULT, {2, INFINITY, NAN, -3}, 4, 2},
        {"only zeros", FP8_RECIPE_DEFAULT, {0, 0}, 2, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK(fp8_recipe_amax(&cases[i].recipe, cases[i].history, cases[i].steps) ==
              cases[i].want);
    }
}

static void test_scale(void) {
    static const struct {
        const char *name;
        int32_t margin;
        fp8_dtype to;
        float amax, scale, descale;
    } cases[] = {
        {"one", 0, FP8_DTYPE_E4M3, 448, 1, 1},
        {"usual", 0, FP8_DTYPE_E4M3, 3, 448.0f / 3.0f, 3.0f / 448.0f},
        {"margin", 2, FP8_DTYPE_E4M3, 3, 112.0f / 3.0f, 3.0f / 112.0f},
        {"e5m2", 0, FP8_DTYPE_E5M2, 7, 57344.0f / 7.0f, 7.0f / 57344.0f},
        {"zero keeps", 0, FP8_DTYPE_E4M3, 0, 5, 7},
        {"inf keeps", 0, FP8_DTYPE_E4M3, INFINITY, 5, 7},
        {"nan keeps", 0, FP8_DTYPE_E4M3, NAN, 5, 7},
        {"negative keeps", 0, FP8_DTYPE_E4M3, -1, 5, 7},
        {"scale overflows", 0, FP8_DTYPE_E4M3, 1e-37f, FLT_MAX, FLT_MIN},
        {"descale vanishes", 0, FP8_DTYPE_E5M2, FLT_TRUE_MIN, FLT_MAX, FLT_MIN},
        {"largest", 0, FP8_DTYPE_E4M3, FLT_MAX, 448.0f / FLT_MAX, FLT_MAX / 448.0f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_recipe r = {FP8_AMAX_MAX, cases[i].margin, 1};
        float scale = 5, descale = 7;
        check_case = cases[i].name;
        fp8_recipe_scale(&r, cases[i].to, cases[i].amax, &scale, &descale);
        CHECK(scale == cases[i].scale);
        CHECK(descale == cases[i].descale);
    }
}

static void test_names(void) {
    fp8_amax_algo a = FP8_AMAX_MAX;
    check_case = "names";
    CHECK_STATUS(fp8_amax_algo_parse(&a, "most_recent"), FP8_OK);
    CHECK(a == FP8_AMAX_MOST_RECENT);
    CHECK_STATUS(fp8_amax_algo_parse(&a, fp8_amax_algo_name(FP8_AMAX_MAX)), FP8_OK);
    CHECK(a == FP8_AMAX_MAX);
    CHECK_STATUS(fp8_amax_algo_parse(&a, "median"), FP8_EINVAL);
    CHECK(strcmp(fp8_amax_algo_name((fp8_amax_algo)9), "?") == 0);
}

int main(void) {
    test_amax();
    test_scale();
    test_names();
    return CHECK_DONE();
}
