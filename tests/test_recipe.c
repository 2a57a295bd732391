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
        {"average of none", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {0}, 0, 0},
        {"average of zeros", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {0, 0}, 2, 0},
        {"average begins with the first", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {7}, 1, 7},
        {"average of equals", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {3, 3, 3, 3}, 4, 3},
        {"average of two", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {1, 101}, 2, 2}, /* 1 + 1 % of 100 */
        {"average falls", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {200, 100}, 2, 199},
        {"average of three", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {1, 101, 102}, 3, 3},
        {"average passes over", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {0, 1, INFINITY, NAN, -9, 101},
         6, 2},
        {"average forgets", {FP8_AMAX_MOVING_AVERAGE, 0, 2}, {50, 1, 101}, 3, 2},
        {"average forgets its first", {FP8_AMAX_MOVING_AVERAGE, 0, 2}, {50, 0, 101}, 3, 101},
        {"average of the largest", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {FLT_MAX, FLT_MAX}, 2, FLT_MAX},
        {"average of subnormals", {FP8_AMAX_MOVING_AVERAGE, 0, 8}, {FLT_TRUE_MIN}, 1, FLT_TRUE_MIN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK(fp8_recipe_amax(&cases[i].recipe, cases[i].history, cases[i].steps) ==
              cases[i].want);
    }
}

/* The recurrence in closed form: m = .99^(n-1) a[0] + .01 sum .99^(n-1-i) a[i]. The F32 one rounds
 * thrice a row, at most 1.5 ulp of the largest value, and the factor .99 forgets what was lost. */
static void test_average(void) {
    const fp8_recipe r = {FP8_AMAX_MOVING_AVERAGE, 0, 4096};
    uint64_t seed = 20261121;
    float history[1000];

    for (int64_t n = 1; n <= 1000; n += n < 70 ? 1 : 93) {
        double want = 0, largest = 0;
        check_case = "average in closed form";
        for (int64_t i = 0; i < n; i++) {
            const double weight = pow(0.99, (double)(n - 1 - i)) * (i ? 0.01 : 1.0);
            history[i] = expf(check_normal(&seed));
            largest = fmax(largest, (double)history[i]);
            want += weight * (double)history[i];
        }
        const double got = (double)fp8_recipe_amax(&r, history, n);
        CHECK(fabs(got - want) <= 1.5 * 100 * 0x1p-23 * largest);
        CHECK(n == 1 || got < largest);
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
    CHECK_STATUS(fp8_amax_algo_parse(&a, "moving_average"), FP8_OK);
    CHECK(a == FP8_AMAX_MOVING_AVERAGE);
    CHECK(strcmp(fp8_amax_algo_name(a), "moving_average") == 0);
    CHECK_STATUS(fp8_amax_algo_parse(&a, "median"), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "moving_average") != NULL);
    CHECK(strcmp(fp8_amax_algo_name((fp8_amax_algo)9), "?") == 0);
}

int main(void) {
    test_amax();
    test_average();
    test_scale();
    test_names();
    return CHECK_DONE();
}
