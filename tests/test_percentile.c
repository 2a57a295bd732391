/* The percentile calibrator: what a histogram says against figures worked out by hand, and what it
 * chose against the error that a second forward measures. */
#include <float.h>
#include <string.h>

#include "calib/histogram.h"
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, SAMPLES = 32 };

static fp8_clip percentile_of(double percentile) { /* 0: none */
    return (fp8_clip){percentile > 0 ? FP8_CLIP_PERCENTILE : FP8_CLIP_NONE, percentile};
}

static int32_t bin_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int32_t)(bits >> 20);
}

/* ---- by hand ------------------------------------------------------------------------------- */

typedef struct counted {
    float x; /* in the bin that is meant; 0: end of the list */
    int64_t count;
} counted;
static void fill(int64_t *bins, const counted *c) {
    memset(bins, 0, FP8_RECORD_BINS * sizeof *bins);
    for (; c->count; c++) bins[bin_of(c->x)] = c->count;
}

static void test_cut(void) {
    static const struct {
        const char *name;
        counted counts[4];
        double percentile;
        float want;
    } cases[] = {
        {"nothing counted", {{0, 0}}, 99, 0},
        {"one bin", {{1, 5}}, 99, 1.125f},
        {"inside a bin", {{1.1f, 5}}, 50, 1.125f},
        {"half", {{1, 50}, {2, 50}}, 50, 1.125f},
        {"more than half", {{1, 50}, {2, 50}}, 51, 2.25f},
        {"all", {{1, 50}, {2, 49}, {96, 1}}, 100, 104},
        {"one in a hundred", {{1, 99}, {2, 1}}, 99, 1.125f},
        {"one in ten thousand", {{0.5f, 99990000}, {448, 10000}}, 99.99, 0.5625f},
        {"mostly zeros", {{0, 1000}, {3, 1}}, 99.99, 3.25f},
        {"largest float", {{FLT_MAX, 1}}, 100, FLT_MAX},
    };
    int64_t bins[FP8_RECORD_BINS];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        fill(bins, cases[i].counts);
        CHECK(fp8_histogram_cut(bins, cases[i].percentile) == cases[i].want);
    }
}

/* Codes at scale 1 are 1/8 apart from 1 on. Of x = 1 + k/128, k = 0 .. 15, scale 1 loses k/128 up
 * to the tie at k = 8, which goes to 1, then (16 - k)/128; scale 1/2^20 loses all of x, for x/2^20
 * is below half the smallest subnormal. From that to scale 1 the least is gained at k = 0: 1; the
 * other way the most is lost at k = 15: (1 + 15/128)^2 - 1/128^2. 512 + 4k saturates at scale 1 and
 * is off by 64 + 4k; at scale 1/2 it is off by 4k up to k = 8, then by 4 (16 - k): the least is
 * gained at k = 0, 64^2, and the most at k = 15, 124^2 - 4^2. */
static void test_gain(void) {
    static const struct {
        const char *name;
        counted counts[4];
        float before[2], after[2];
        double want;
    } cases[] = {
        {"nothing counted", {{0, 0}}, {1, 1}, {0.5f, 2}, 0},
        {"the same", {{1, 5}, {512, 3}}, {1, 1}, {1, 1}, 0},
        {"power of two", {{1, 5}, {3, 3}}, {1, 1}, {0.5f, 2}, 0},
        {"saved from zero", {{1, 5}}, {0x1p-20f, 0x1p20f}, {1, 1}, 5},
        {"lost to zero", {{1, 5}}, {1, 1}, {0x1p-20f, 0x1p20f}, -5 * (143.0 * 143 - 1) / 16384},
        {"no longer saturated", {{512, 2}}, {1, 1}, {0.5f, 2}, 2 * 4096},
        {"saturated", {{512, 2}}, {0.5f, 2}, {1, 1}, -2 * (124.0 * 124 - 16)},
        {"both", {{512, 2}, {1, 5}}, {1, 1}, {0.5f, 2}, 2 * 4096},
    };
    int64_t bins[FP8_RECORD_BINS];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        fill(bins, cases[i].counts);
        const double got = fp8_histogram_gain(bins, cases[i].before, cases[i].after);
        CHECK(got == cases[i].want);
        if (got != cases[i].want) fprintf(stderr, "got %.17g want %.17g\n", got, cases[i].want);
    }
}

/* One value of 2^20 beside n of about 1: unclipped they all become 0, an error of n at least;
 * clipped at 1.125 that one value is off by 2^20 to 1.12 * 2^20, an error of up to 1.4e12. So it is
 * certain to be worth it from n = 1.4e12 on. */
static void test_choice(void) {
    static const struct {
        const char *name;
        counted counts[4];
        float amax;
        double percentile;
        fp8_recipe recipe;
        float want;
        int clipped;
    } cases[] = {
        {"worth it", {{1, 10000000000000}, {0x1p20f, 1}}, 0x1p20f, 99.99, FP8_RECIPE_DEFAULT,
         1.125f, 1},
        {"with a margin", {{1, 10000000000000}, {0x1p20f, 1}}, 0x1p20f, 99.99,
         {FP8_AMAX_MAX, 1, 9}, 1.125f, 1},
        {"not worth it", {{1, 100000000000}, {0x1p20f, 1}}, 0x1p20f, 99.99, FP8_RECIPE_DEFAULT,
         0x1p20f, 0},
        {"not asked", {{1, 10000000000000}, {0x1p20f, 1}}, 0x1p20f, 0, FP8_RECIPE_DEFAULT,
         0x1p20f, 0},
        {"all", {{1, 10000000000000}, {0x1p20f, 1}}, 0x1p20f, 100, FP8_RECIPE_DEFAULT, 0x1p20f, 0},
        {"bin of amax", {{1, 7}}, 1.0625f, 99.99, FP8_RECIPE_DEFAULT, 1.0625f, 0},
        {"only zeros", {{0, 7}}, 0, 99.99, FP8_RECIPE_DEFAULT, 0, 0},
        {"nothing counted", {{0, 0}}, 3, 99.99, FP8_RECIPE_DEFAULT, 3, 0},
    };
    static const char *const names[] = {"a", "b"};
    fp8_record *r = NULL;
    fp8_scale s;

    CHECK_STATUS(fp8_record_create(&r, names, 2, 1, "{}"), FP8_OK);
    r->steps = 1;
    check_case = "no histograms";
    CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[0].recipe, percentile_of(99)), FP8_EDATA);
    CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[0].recipe, (fp8_clip){0}), FP8_OK);
    CHECK_STATUS(fp8_record_add_histograms(r), FP8_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const float top = cases[i].recipe.margin ? 224 : 448;
        check_case = cases[i].name;
        r->amax[1] = cases[i].amax;
        fill(r->histograms + FP8_RECORD_BINS, cases[i].counts);
        CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[i].recipe,
                                        percentile_of(cases[i].percentile)), FP8_OK);
        CHECK(s.amax == cases[i].want && s.clipped == cases[i].clipped);
        CHECK(s.amax == 0 || (s.scale == top / s.amax && s.descale == s.amax / top));
    }
    check_case = "no percentile";
    CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[0].recipe,
                                    (fp8_clip){FP8_CLIP_PERCENTILE, -1}), FP8_EINVAL);
    CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[0].recipe,
                                    (fp8_clip){FP8_CLIP_PERCENTILE, 100.5}), FP8_EINVAL);
    CHECK_STATUS(fp8_scale_of_point(&s, r, 1, &cases[0].recipe,
                                    (fp8_clip){FP8_CLIP_PERCENTILE, NAN}), FP8_EINVAL);
    fp8_record_destroy(r);
}

/* ---- against a second forward -------------------------------------------------------------- */

static const fp8_report_row *row_of(const fp8_report *r, const char *name) {
    for (int64_t i = 0; i < r->count; i++)
        if (strcmp(r->rows[i].name, name) == 0) return &r->rows[i];
    return NULL;
}

/* Same steps as calibrated, so that the histogram and the measurement see the same values: a point
 * that is clipped has more SQNR than without, any other has the same. Returns how many are. */
static int compare(const fp8_report *plain, const fp8_report *clipped) {
    int num_clipped = 0;
    CHECK(plain->count == clipped->count && plain->count > 0);
    for (int64_t i = 0; i < clipped->count; i++) {
        const fp8_report_row *now = &clipped->rows[i], *before = row_of(plain, now->name);
        check_case = now->name;
        CHECK(before != NULL);
        if (!before) continue;
        if (now->amax == before->amax) {
            CHECK(now->sqnr_db == before->sqnr_db);
            continue;
        }
        num_clipped++;
        CHECK(!now->is_weight && now->amax < before->amax);
        CHECK(now->sqnr_db > before->sqnr_db);
    }
    return num_clipped;
}

/* A margin of 2^14 and more leaves activations a few codes, all subnormal: there a clip pays. */
static void test_measured(double percentile) {
    sample s = sample_open(NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ, .histograms = 1};
    fp8_export_options options = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                                  .attention = FP8_ATTENTION_DPA, .recipe = FP8_RECIPE_DEFAULT};
    fp8_report plain = {0}, clipped = {0};
    fp8_record *r = NULL;
    int num_clipped = 0;

    check_case = "measured";
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &calib), FP8_OK);
    for (int32_t margin = 0; margin <= 18; margin += margin < 14 ? 14 : 1) {
        options.recipe.margin = margin;
        options.clip = (fp8_clip){0};
        CHECK_STATUS(fp8_report_create(&plain, s.m, s.c, r, &data, &calib, &options, SAMPLES),
                     FP8_OK);
        options.clip = percentile_of(percentile);
        CHECK_STATUS(fp8_report_create(&clipped, s.m, s.c, r, &data, &calib, &options, SAMPLES),
                     FP8_OK);
        num_clipped += compare(&plain, &clipped);
        fp8_report_free(&plain);
        fp8_report_free(&clipped);
    }
    check_case = "some are clipped";
    CHECK(num_clipped > 0);
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
}

int main(void) {
    test_cut();
    test_gain();
    test_choice();
    test_measured(99);
    test_measured(99.99);
    return CHECK_DONE();
}
