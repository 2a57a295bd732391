/* The cost of E4M3 with one scale against the scalar cast: every BF16 pattern, random floats, odd
 * lengths, with and without weights; what is not finite is left out. */
#include <math.h>

#include "calib/e4m3_error.h"
#include "core/half.h"
#include "quant/cast.h"
#include "tests/check.h"

static double one(float x, float scale, float descale) {
    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, x * scale);
    const double e = (double)x - (double)(fp8_to_f32(FP8_DTYPE_E4M3, code) * descale);
    return isfinite(x) ? e * e : 0;
}

static void test_values(void) {
    static const float scales[] = {1.0f, 0.37f, 1000.0f, 0x1p-20f};

    check_case = "values";
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++)
        for (uint32_t u = 0; u < 0x10000; u++) {
            const float x = fp8_bits_f32(u << 16 | (u * 40503u & 0xffffu));
            const double got = fp8_e4m3_error(&x, NULL, 1, scales[s], 1 / scales[s]);
            const double want = one(x, scales[s], 1 / scales[s]);
            if (got == want) continue;
            fprintf(stderr, "%a * %a: %a, expected %a\n", (double)x, (double)scales[s], got, want);
            CHECK(got == want);
            return;
        }
}

/* Sums in another order: 2^-53 of the sum an addition. */
static void test_lengths(void) {
    static const int64_t lengths[] = {0, 1, 7, 63, 64, 65, 127, 129, 1000};
    uint64_t seed = 3;
    float x[1000];
    double metric[1000];

    for (size_t s = 0; s < sizeof lengths / sizeof *lengths; s++)
        for (int weighed = 0; weighed < 2; weighed++)
            for (int spoiled = 0; spoiled < 3; spoiled++) {
                const int64_t n = lengths[s];
                double want = 0, got;
                check_case = "lengths";
                for (int64_t i = 0; i < n; i++) {
                    x[i] = check_normal(&seed) * 30;
                    metric[i] = (double)(i % 5);
                }
                if (spoiled && n > 0) x[n / 2] = spoiled == 1 ? NAN : -INFINITY;
                for (int64_t i = 0; i < n; i++)
                    want += one(x[i], 7.3f, 1 / 7.3f) * (weighed ? metric[i] : 1);
                got = fp8_e4m3_error(x, weighed ? metric : NULL, n, 7.3f, 1 / 7.3f);
                CHECK(fabs(got - want) <= 0x1p-53 * 1000 * want);
            }
}

int main(void) {
    test_values();
    test_lengths();
    return CHECK_DONE();
}
