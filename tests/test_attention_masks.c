/* The helpers of masks.h on the CPU, against their definitions. */
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"

static fp8_device *cpu;

/* ---- slopes ---------------------------------------------------------------------------------- */

static void test_slopes(void) {
    /* Press et al. 2022: 8 heads 1/2 .. 1/256; 12 heads those, then every other one of 16. */
    static const double twelve[12] = {-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5};
    float got[12];
    check_case = "12 heads";
    fp8_attention_alibi_slopes(got, 12);
    for (int i = 0; i < 12; i++) CHECK((double)fabsf(got[i]) <= exp2(twelve[i]) * (1 + 1e-7) &&
                                       (double)got[i] >= exp2(twelve[i]) * (1 - 1e-7));
    check_case = "one head";
    fp8_attention_alibi_slopes(got, 1);
    CHECK(got[0] == 0x1p-8f);
    check_case = "16 heads are evenly spaced";
    for (int32_t n = 16; n <= 64; n *= 2) {
        float slopes[64];
        fp8_attention_alibi_slopes(slopes, n);
        for (int32_t i = 0; i < n; i++)
            CHECK(fabs(log2((double)slopes[i]) + 8.0 * (i + 1) / n) <= 1e-6);
    }
    check_case = "3 heads";
    fp8_attention_alibi_slopes(got, 3);
    CHECK(got[0] == 0x1p-4f && got[1] == 0x1p-8f && got[2] == 0x1p-2f);
}

/* ---- masks ----------------------------------------------------------------------------------- */

static void test_mask_to_bias(void) {
    const uint8_t mask[5] = {0, 1, 255, 0, 128};
    float bias[6] = {9, 9, 9, 9, 9, 9};
    check_case = "mask to bias";
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, bias, mask, 5), FP8_OK);
    for (int i = 0; i < 5; i++) CHECK(bias[i] == (mask[i] ? -INFINITY : 0.0f));
    CHECK(bias[5] == 9);
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, NULL, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, NULL, mask, 5), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, bias, NULL, 5), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, bias, mask, -1), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_mask_to_bias(NULL, bias, mask, 5), FP8_EINVAL);
}

static void test_padding(void) {
    static const uint8_t mask[4 * 5] = {0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 7, 1, 1, 1, 1, 0, 1, 1, 1, 1};
    static const int32_t want_lengths[4] = {3, 5, 0, 1}, want_starts[5] = {0, 3, 8, 8, 9};
    int32_t lengths[4], starts[5];

    for (int i = 0; i < 4; i++) {
        check_case = i == 3 ? "both" : i == 2 ? "lengths" : i == 1 ? "starts" : "neither";
        memset(lengths, 0x55, sizeof lengths);
        memset(starts, 0x55, sizeof starts);
        CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, i & 1 ? starts : NULL,
                                                      i & 2 ? lengths : NULL, mask, 4, 5), FP8_OK);
        if (i & 1) CHECK(memcmp(starts, want_starts, sizeof starts) == 0);
        if (i & 2) CHECK(memcmp(lengths, want_lengths, sizeof lengths) == 0);
    }
    check_case = "no sequences";
    starts[0] = 9;
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, NULL, 0, 5), FP8_OK);
    CHECK(starts[0] == 0);
    check_case = "no tokens";
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, NULL, 4, 0), FP8_OK);
    for (int i = 0; i < 4; i++) CHECK(lengths[i] == 0 && starts[i + 1] == 0);
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, NULL, 4, 5), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, mask, -4, 5), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, mask, 1 << 20, 1 << 20),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, starts, lengths, mask, INT64_MAX, 2),
                 FP8_EOVERFLOW);
}

/* ---- Hadamard -------------------------------------------------------------------------------- */

enum { ROWS = 3, MAX_D = 256 };

static float load(const void *x, fp8_dtype t, int64_t i) {
    return t == FP8_DTYPE_F32    ? ((const float *)x)[i]
           : t == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(((const uint16_t *)x)[i])
                                 : fp8_f16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *x, fp8_dtype t, int64_t i, float f) {
    if (t == FP8_DTYPE_F32) ((float *)x)[i] = f;
    else ((uint16_t *)x)[i] = t == FP8_DTYPE_BF16 ? fp8_f32_to_bf16(f) : fp8_f32_to_f16(f);
}

/* H[i][j] = (-1)^(bits that i and j share). */
static int hadamard_sign(int i, int j) {
    return __builtin_popcount((unsigned)(i & j)) & 1 ? -1 : 1;
}

static void test_hadamard(void) {
    static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16};
    static const double bounds[] = {1e-6, 0x1p-8, 0x1p-11};
    for (int n = 0; n < 18; n++) { /* types, d, in place or not */
        const fp8_dtype t = types[n % 3];
        const int d = 64 << (n / 3 % 3), in_place = n / 9;
        static float x[ROWS * MAX_D], y[ROWS * MAX_D], signs[MAX_D], values[ROWS * MAX_D];
        uint64_t seed = 31;

        check_case = in_place ? "hadamard in place" : "hadamard";
        for (int i = 0; i < d; i++) signs[i] = check_random(&seed) % 2 ? 1.0f : -1.0f;
        for (int i = 0; i < ROWS * d; i++) {
            store(x, t, i, check_normal(&seed));
            values[i] = load(x, t, i);
        }
        CHECK_STATUS(fp8_attention_hadamard(cpu, in_place ? x : y, x, t, signs, ROWS, d), FP8_OK);
        for (int i = 0; i < ROWS * d; i++) {
            double want = 0, got = (double)load(in_place ? x : y, t, i);
            for (int j = 0; j < d; j++)
                want += hadamard_sign(i % d, j) *
                        (double)(signs[j] * values[i / d * d + j]);
            want /= sqrt(d);
            CHECK(fabs(got - want) <= bounds[n % 3] * (1 + fabs(want)));
        }
    }
}

static void test_hadamard_refused(void) {
    float x[64] = {0}, signs[64] = {0};
    check_case = "hadamard refused";
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, x, FP8_DTYPE_F32, signs, 1, 96), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, x, FP8_DTYPE_F32, signs, 1, 32), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, x, FP8_DTYPE_E4M3, signs, 1, 64), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, x, FP8_DTYPE_F32, NULL, 1, 64), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, NULL, FP8_DTYPE_F32, signs, 1, 64), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, x, x, FP8_DTYPE_F32, signs, -1, 64), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(NULL, x, x, FP8_DTYPE_F32, signs, 1, 64), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_hadamard(cpu, NULL, NULL, FP8_DTYPE_F32, NULL, 0, 64), FP8_OK);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    if (!cpu) return 1;
    test_slopes();
    test_mask_to_bias();
    test_padding();
    test_hadamard();
    test_hadamard_refused();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
