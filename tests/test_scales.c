/* Scales from a record alone: every point against figures worked out by hand. */
#include <float.h>
#include <string.h>

#include "calib/calib.h"
#include "tests/check.h"

enum { STEPS = 4, TOTAL = 6 }; /* rows that are done, and room for more: its rows never count */

static const char *const names[] = {"rising", "spike", "zeros", "infinite", "last is zero",
                                    "leaps"};
enum { POINTS = sizeof names / sizeof *names };
static const float history[POINTS][TOTAL] = {
    {1, 2, 3, 4, 900, 900},
    {2, 8, 2, 4, 900, 900},
    {0, 0, 0, 0, 900, 900},
    {2, INFINITY, 4, INFINITY, 900, 900},
    {4, 0, 8, 0, 900, 900},
    {9, 9, 1, 101, 900, 900}, /* of the newest two: 1 + 1 % of 100 = 2 */
};
static const float without_first[POINTS][TOTAL] = {
    {1, 1, 2, 2, 800}, {2, 2, 2, 2, 800}, {0}, {2, 2, 2, INFINITY, 800}, {0, 0, 0, 0, 800},
    {9, 9, 1, 1, 800}};
static const uint32_t nonfinite[POINTS][TOTAL] = {[3] = {0, 3, 0, UINT32_MAX, 7}};

#define LOST (UINT32_MAX + UINT64_C(3)) /* more than 32 bits: of rows that are done alone */

static fp8_record *make_record(void) {
    fp8_record *r = NULL;
    CHECK_STATUS(fp8_record_create(&r, names, POINTS, TOTAL, "{\"data\":\"x\"}"), FP8_OK);
    if (!r) exit(1);
    memcpy(r->amax, history, sizeof history);
    memcpy(r->amax_without_first, without_first, sizeof without_first);
    memcpy(r->nonfinite, nonfinite, sizeof nonfinite);
    r->steps = STEPS;
    return r;
}

static void test_points(void) {
    static const struct {
        const char *name;
        fp8_recipe recipe;
        int64_t point;
        fp8_scale want;
    } cases[] = {
        {"max", {FP8_AMAX_MAX, 0, 1024}, 0, {4, 2, 112, 0x1p-4f / 7, 0, 0}},
        {"max, margin", {FP8_AMAX_MAX, 2, 1024}, 0, {4, 2, 28, 1.0f / 28, 0, 0}},
        {"max of the newest two", {FP8_AMAX_MAX, 0, 2}, 1, {4, 2, 112, 0x1p-4f / 7, 0, 0}},
        {"max of all", {FP8_AMAX_MAX, 0, 4}, 1, {8, 2, 56, 0x1p-3f / 7, 0, 0}},
        {"most recent", {FP8_AMAX_MOST_RECENT, 0, 1024}, 1, {4, 2, 112, 0x1p-4f / 7, 0, 0}},
        {"average", {FP8_AMAX_MOVING_AVERAGE, 0, 2}, 5, {2, 1, 224, 0x1p-5f / 7, 0, 0}},
        {"average, margin", {FP8_AMAX_MOVING_AVERAGE, 1, 2}, 5, {2, 1, 112, 0x1p-4f / 7, 0, 0}},
        {"only zeros", {FP8_AMAX_MAX, 0, 1024}, 2, {0, 0, 1, 1, 0, 0}},
        {"only zeros, margin", {FP8_AMAX_MAX, 5, 1024}, 2, {0, 0, 1, 1, 0, 0}},
        {"Inf passed over", {FP8_AMAX_MAX, 0, 1024}, 3, {4, 2, 112, 0x1p-4f / 7, LOST, 0}},
        {"only Inf left", {FP8_AMAX_MAX, 0, 1}, 3, {0, 0, 1, 1, LOST, 0}},
        {"zero passed over", {FP8_AMAX_MOST_RECENT, 0, 1024}, 4, {8, 0, 56, 0x1p-3f / 7, 0, 0}},
        {"zero forgets", {FP8_AMAX_MOST_RECENT, 0, 1}, 4, {0, 0, 1, 1, 0, 0}},
        {"margin 32", {FP8_AMAX_MAX, 32, 1024}, 0, {4, 2, 112 * 0x1p-32f, 0x1p28f / 7, 0, 0}},
    };
    fp8_record *r = make_record();

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_scale *want = &cases[i].want;
        fp8_scale got = {0};
        check_case = cases[i].name;
        CHECK_STATUS(fp8_scale_of_point(&got, r, cases[i].point, &cases[i].recipe,
                                        (fp8_clip){0}), FP8_OK);
        CHECK(!got.clipped);
        CHECK(got.amax == want->amax);
        CHECK(got.amax_without_first == want->amax_without_first);
        CHECK(got.scale == want->scale);
        CHECK(got.descale == want->descale);
        CHECK(got.nonfinite == want->nonfinite);
    }
    fp8_record_destroy(r);
}

/* A record that went through a file gives the same scales, bit for bit. */
static void test_saved(void) {
    static const fp8_recipe recipes[] = {
        {FP8_AMAX_MAX, 0, 1024}, {FP8_AMAX_MOST_RECENT, 3, 2}, {FP8_AMAX_MOVING_AVERAGE, 0, 3}};
    char path[] = "/tmp/fp8calib-scales-XXXXXX";
    const int fd = mkstemp(path);
    fp8_record *r = make_record(), *again = NULL;

    check_case = "saved and loaded";
    CHECK(fd >= 0);
    if (fd >= 0) close(fd);
    CHECK_STATUS(fp8_record_save(r, path), FP8_OK);
    CHECK_STATUS(fp8_record_load(&again, path), FP8_OK);
    for (size_t k = 0; again && k < sizeof recipes / sizeof *recipes; k++)
        for (int64_t i = 0; i < POINTS; i++) {
            fp8_scale a, b;
            CHECK_STATUS(fp8_scale_of_point(&a, r, i, &recipes[k], (fp8_clip){0}), FP8_OK);
            CHECK_STATUS(fp8_scale_of_point(&b, again, i, &recipes[k], (fp8_clip){0}), FP8_OK);
            CHECK(a.amax == b.amax && a.amax_without_first == b.amax_without_first);
            CHECK(a.scale == b.scale && a.descale == b.descale && a.nonfinite == b.nonfinite);
        }
    remove(path);
    fp8_record_destroy(again);
    fp8_record_destroy(r);
}

int main(void) {
    test_points();
    test_saved();
    return CHECK_DONE();
}
