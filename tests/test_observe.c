/* fp8_observe and fp8_measure_error on the CPU against obvious loops. */
#include <float.h>
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "quant/simd.h"
#include "tests/check.h"

static const fp8_dtype reals[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16};
enum { ROWS = 300, COLS = 1030, STRIDE = 1033 };
static float x[ROWS * STRIDE];
static uint16_t half[ROWS * STRIDE];
static uint8_t first[ROWS];

static const struct {
    int64_t rows, cols;
} shapes[] = {{0, 3}, {3, 0}, {1, 1}, {1, 1030}, {7, 15}, {64, 16}, {65, 17}, {300, 1030}};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

/* The values in `half` (or x) as type t; what they are is left in x. Padding holds the largest. */
static const void *make(fp8_dtype t, int hostile, int64_t cols) {
    uint64_t seed = 9;
    for (int64_t i = 0; i < ROWS * STRIDE; i++) {
        x[i] = i % STRIDE < cols ? check_normal(&seed) * 3 : 60000.0f;
        if (hostile && check_random(&seed) % 50 == 0 && i % STRIDE < cols)
            x[i] = check_random(&seed) % 2 ? NAN : -INFINITY;
        if (check_random(&seed) % 90 == 0 && i % STRIDE < cols) x[i] = -0.0f;
    }
    if (t == FP8_DTYPE_F32) return x;
    fp8_simd_scalar.narrow(half, t, x, ROWS * STRIDE);
    fp8_simd_scalar.widen(x, half, t, ROWS * STRIDE);
    return half;
}

static void test_observe(fp8_device *d) {
    for (int r = 0; r < ROWS; r++) first[r] = r % 64 == 0;
    for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < NUM_SHAPES; s++)
            for (int with_first = 0; with_first < 2; with_first++) {
                const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
                const void *in = make(reals[t], 1, cols);
                fp8_amax_slot got = {0.25f, 0.125f, 3, 0}, want = got;
                check_case = "observe";
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t c = 0; c < cols; c++) {
                        const float v = fabsf(x[r * STRIDE + c]);
                        if (!isfinite(v)) {
                            want.nonfinite++;
                            continue;
                        }
                        want.amax = fmaxf(want.amax, v);
                        if (!with_first || !first[r])
                            want.amax_without_first = fmaxf(want.amax_without_first, v);
                    }
                CHECK_STATUS(fp8_observe(d, &got, in, reals[t], rows, cols, STRIDE,
                                         with_first ? first : NULL),
                             FP8_OK);
                CHECK(memcmp(&got, &want, sizeof got) == 0);
            }
}

/* The figures of fp8_observe, and each finite value in its bin. */
static void test_magnitudes(fp8_device *d) {
    static fp8_magnitudes got, want;

    for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < NUM_SHAPES; s++) {
            const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
            const void *in = make(reals[t], 1, cols);
            fp8_amax_slot slot = {0}, plain = {0};
            check_case = "magnitudes";
            memset(&got, 0, sizeof got);
            memset(&want, 0, sizeof want);
            got.bins[1016] = want.bins[1016] = 7;
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++)
                    if (isfinite(x[r * STRIDE + c]))
                        want.bins[(fp8_f32_bits(x[r * STRIDE + c]) & 0x7fffffffu) >> 20]++;
            CHECK_STATUS(fp8_observe(d, &plain, in, reals[t], rows, cols, STRIDE, first), FP8_OK);
            CHECK_STATUS(fp8_observe_magnitudes(d, &slot, &got, in, reals[t], rows, cols, STRIDE,
                                                first), FP8_OK);
            CHECK(memcmp(&slot, &plain, sizeof slot) == 0);
            CHECK(memcmp(&got, &want, sizeof got) == 0);
        }
    CHECK_STATUS(fp8_observe_magnitudes(d, &(fp8_amax_slot){0}, NULL, x, FP8_DTYPE_F32, 1, 1, 1,
                                        NULL), FP8_EINVAL);
}

/* Sums in double over at most 309000 elements: any order agrees to n eps = 309000 * 2^-53 <
 * 1e-10. */
static void test_measure(fp8_device *d) {
    static fp8_error_stats got, again, want;
    const float scale = 48.0f, descale = 1.0f / 48.0f; /* 3 sigma clips a few */
    const size_t bytes = fp8_measure_error_workspace(d);
    void *workspace = malloc(bytes);

    for (int t = 0; t < 3; t++)
        for (size_t s = 0; s < NUM_SHAPES; s++) {
            const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
            const void *in = make(reals[t], 1, cols);
            check_case = "measure";
            memset(&got, 0, sizeof got);
            memset(&again, 0, sizeof again);
            memset(&want, 0, sizeof want);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < cols; c++) {
                    const float v = x[r * STRIDE + c];
                    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, v * scale);
                    const float q = fp8_to_f32(FP8_DTYPE_E4M3, code) * descale;
                    if (!isfinite(v)) continue;
                    want.signal += (double)v * (double)v;
                    want.noise += ((double)v - (double)q) * ((double)v - (double)q);
                    want.count++;
                    want.clipped += fabsf(v * scale) > 448.0f;
                    want.bins[(fp8_f32_bits(v) & 0x7fffffffu) >> 20]++;
                }
            CHECK_STATUS(fp8_measure_error(d, &got, in, reals[t], rows, cols, STRIDE,
                                           FP8_DTYPE_E4M3, &scale, &descale, workspace),
                         FP8_OK);
            CHECK_STATUS(fp8_measure_error(d, &again, in, reals[t], rows, cols, STRIDE,
                                           FP8_DTYPE_E4M3, &scale, &descale, workspace),
                         FP8_OK);
            CHECK(memcmp(&got, &again, sizeof got) == 0);
            CHECK(fabs(got.signal - want.signal) <= 1e-10 * want.signal);
            CHECK(fabs(got.noise - want.noise) <= 1e-10 * want.noise);
            CHECK(got.count == want.count && got.clipped == want.clipped);
            CHECK(memcmp(got.bins, want.bins, sizeof got.bins) == 0);
        }
    free(workspace);
}

static void test_figures(void) {
    static fp8_error_stats s;
    check_case = "figures";
    CHECK(fp8_error_quantile(&s, 0.5) == 0);
    CHECK(isinf(fp8_error_sqnr_db(&s)));
    s.bins[0] = 1;                  /* a zero */
    s.bins[0x3f800000u >> 20] = 98; /* [1, 1.125) */
    s.bins[0x7f7u] = 1;             /* up to FLT_MAX */
    s.count = 100;
    s.signal = 1000;
    s.noise = 1;
    CHECK(fp8_error_quantile(&s, 0.01) == (double)fp8_bits_f32(1u << 20));
    CHECK(fp8_error_quantile(&s, 0.5) == 1.125);
    CHECK(fp8_error_quantile(&s, 0.99) == 1.125);
    CHECK(fp8_error_quantile(&s, 1.0) == 0x1p128);
    CHECK(fabs(fp8_error_sqnr_db(&s) - 30) < 1e-12);
}

static void test_arguments(fp8_device *d) {
    fp8_amax_slot slot = {0};
    fp8_error_stats stats = {0};
    const float one = 1;
    double workspace[128] = {0};
    check_case = "arguments";
    CHECK_STATUS(fp8_observe(d, NULL, x, FP8_DTYPE_F32, 1, 1, 1, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_observe(d, &slot, NULL, FP8_DTYPE_F32, 1, 1, 1, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_observe(d, &slot, x, FP8_DTYPE_E4M3, 1, 1, 1, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_observe(d, &slot, x, FP8_DTYPE_F32, -1, 1, 1, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_observe(d, &slot, x, FP8_DTYPE_F32, 2, 4, 3, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_measure_error(d, &stats, x, FP8_DTYPE_F32, 1, 1, 1, FP8_DTYPE_E4M3, NULL,
                                   &one, workspace),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_measure_error(d, &stats, x, FP8_DTYPE_F32, 1, 1, 1, FP8_DTYPE_E4M3, &one,
                                   &one, NULL),
                 FP8_EINVAL);
}

int main(void) {
    fp8_device *d = NULL;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 3), FP8_OK);
    if (!d) return CHECK_DONE();
    test_observe(d);
    test_magnitudes(d);
    test_measure(d);
    test_figures();
    test_arguments(d);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
