/* quant/cast.h on the CPU: the oracle against a search over all codes, every vector version against
 * the oracle, the calls against obvious loops. */
#include <float.h>
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "quant/simd.h"
#include "tests/check.h"

static const fp8_dtype codes_of[] = {FP8_DTYPE_E4M3, FP8_DTYPE_E5M2};
static const fp8_dtype reals[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16};
enum { NUM_CODES = 2, NUM_REALS = 3, MAX_N = 130, GUARD = 16 };

static const float hostile[] = {
    0.0f, -0.0f, NAN, -NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN,
    -FLT_TRUE_MIN, 1.0f, -1.0f, 447.0f, 448.0f, 449.0f, 464.0f, -464.0f, 480.0f, 57344.0f,
    57345.0f, 61440.0f, 65536.0f, -65536.0f, 0x1p-6f, 0x1p-9f, 0x1p-10f, 0x1.8p-10f, 0x1p-14f,
    0x1p-16f, 0x1p-17f, 0x1.8p-17f, 0x1.fffffep-7f, 0x1.fffffep-15f, 15.5f, 17.0f, 19.0f};
enum { NUM_HOSTILE = sizeof hostile / sizeof *hostile };

/* ---- the oracle of the oracle ---------------------------------------------------------------- */

/* The value of a code from its fields, in double: nothing shared with the library. */
static double value_of(fp8_dtype t, int code) {
    const int man_bits = t == FP8_DTYPE_E4M3 ? 3 : 2, bias = t == FP8_DTYPE_E4M3 ? 7 : 15;
    const int exp = (code & 0x7f) >> man_bits, man = code & ((1 << man_bits) - 1);
    const double sign = code & 0x80 ? -1.0 : 1.0;

    if (t == FP8_DTYPE_E4M3 && (code & 0x7f) == 0x7f) return NAN;
    if (t == FP8_DTYPE_E5M2 && exp == 31) return man ? NAN : sign * INFINITY;
    if (exp == 0) return sign * ldexp(man, 1 - bias - man_bits);
    return sign * ldexp((1 << man_bits) + man, exp - bias - man_bits);
}

/* The nearest finite code, the even one of two; NaN and signs as cast.h says. */
static uint8_t search(fp8_dtype t, float x) {
    const int last = t == FP8_DTYPE_E4M3 ? 0x7e : 0x7b, nan = t == FP8_DTYPE_E4M3 ? 0x7f : 0x7e;
    const int sign = signbit(x) ? 0x80 : 0;
    double best = INFINITY;
    int found = 0;

    if (isnan(x)) return (uint8_t)(nan | sign);
    if (fabs((double)x) > value_of(t, last)) return (uint8_t)(last | sign);
    for (int code = 0; code <= last; code++) {
        const double off = fabs(fabs((double)x) - value_of(t, code));
        if (off < best || (off == best && code % 2 == 0)) {
            best = off;
            found = code;
        }
    }
    return (uint8_t)(found | sign);
}

static void check_one(fp8_dtype t, float x) {
    const uint8_t got = fp8_from_f32(t, x), want = search(t, x);
    if (got == want) return;
    fprintf(stderr, "[%s] %s of %a: got %02x, want %02x\n", check_case, fp8_dtype_name(t),
            (double)x, got, want);
    check_failures++;
}

static void test_oracle(fp8_dtype t) {
    const int last = t == FP8_DTYPE_E4M3 ? 0x7e : 0x7b;

    check_case = "decode";
    for (int code = 0; code < 256; code++) {
        const double want = value_of(t, code);
        const float got = fp8_to_f32(t, (uint8_t)code);
        CHECK(isnan(want) ? isnan(got) : (double)got == want);
        CHECK(!signbit(got) == !(code & 0x80));
    }
    CHECK((double)fp8_max_of(t) == value_of(t, last));
    check_case = "every bf16 and f16";
    for (uint32_t u = 0; u < 65536 && check_failures < 10; u++) {
        check_one(t, fp8_bf16_to_f32((uint16_t)u));
        check_one(t, fp8_f16_to_f32((uint16_t)u));
    }
    check_case = "ties and their neighbours";
    for (int code = 0; code < last; code++) {
        const float tie = (float)((value_of(t, code) + value_of(t, code + 1)) / 2);
        const float near[] = {tie, nextafterf(tie, 0), nextafterf(tie, INFINITY)};
        for (int i = 0; i < 3; i++) {
            check_one(t, near[i]);
            check_one(t, -near[i]);
        }
    }
    check_case = "hostile";
    for (int i = 0; i < NUM_HOSTILE; i++) check_one(t, hostile[i]);
}

/* ---- vector versions against the scalar one -------------------------------------------------- */

static void check_bytes(const void *got, const void *want, size_t bytes, int64_t n) {
    if (memcmp(got, want, bytes) == 0) return;
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)got)[i] != ((const uint8_t *)want)[i]) {
            fprintf(stderr, "[%s] n=%lld byte %zu: got %02x, want %02x\n", check_case,
                    (long long)n, i, ((const uint8_t *)got)[i], ((const uint8_t *)want)[i]);
            break;
        }
    check_failures++;
}

/* Bits of every kind: uniform over patterns, so a good part is NaN, subnormal or out of range. */
static void fill_bits(float *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) {
        const uint64_t r = check_random(&seed);
        const float normal = check_normal(&seed) * 64;
        x[i] = r % 8 == 0   ? hostile[r / 8 % NUM_HOSTILE]
               : r % 8 == 1 ? fp8_bits_f32((uint32_t)(r >> 32))
                            : normal;
    }
}

/* NaN payloads may differ between versions: all NaN become one, by sign. */
static void same_nan(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (isnan(x[i])) x[i] = signbit(x[i]) ? -NAN : NAN;
}

static void test_widen_all(const fp8_simd *s) {
    static uint16_t in[65536];
    static float got[65536], want[65536];
    static uint8_t codes[256];

    check_case = "widen, every input";
    for (uint32_t u = 0; u < 65536; u++) in[u] = (uint16_t)u;
    for (uint32_t u = 0; u < 256; u++) codes[u] = (uint8_t)u;
    for (int t = 1; t < NUM_REALS; t++) {
        s->widen(got, in, reals[t], 65536);
        fp8_simd_scalar.widen(want, in, reals[t], 65536);
        same_nan(got, 65536);
        same_nan(want, 65536);
        check_bytes(got, want, sizeof got, 65536);
    }
    for (int t = 0; t < NUM_CODES; t++) {
        s->widen(got, codes, codes_of[t], 256);
        fp8_simd_scalar.widen(want, codes, codes_of[t], 256);
        same_nan(got, 256);
        same_nan(want, 256);
        check_bytes(got, want, 256 * sizeof *got, 256);
    }
}

/* Every length 0 .. MAX_N from a misaligned input, with a guard behind the output. */
static void test_lengths(const fp8_simd *s) {
    float x[MAX_N + 1], got[MAX_N + GUARD], want[MAX_N + GUARD];
    char raw[sizeof x + 8], a[sizeof got], b[sizeof got];

    check_case = s->name;
    for (int64_t n = 0; n <= MAX_N; n++) {
        uint32_t others[2] = {7, 7};
        fill_bits(x, n, (uint64_t)n);
        memcpy(raw + 1, x, sizeof x);
        for (int t = 0; t < NUM_REALS; t++) {
            memset(got, 0x5a, sizeof got);
            memset(want, 0x5a, sizeof want);
            s->widen(got, raw + 1, reals[t], n);
            fp8_simd_scalar.widen(want, raw + 1, reals[t], n);
            same_nan(got, n);
            same_nan(want, n);
            check_bytes(got, want, sizeof got, n);
            memset(a, 0x5a, sizeof a);
            memset(b, 0x5a, sizeof b);
            s->narrow(a, reals[t], x, n);
            fp8_simd_scalar.narrow(b, reals[t], x, n);
            check_bytes(a, b, sizeof a, n);
        }
        for (int t = 0; t < NUM_CODES; t++) {
            const float scale = n % 3 ? 1.7f : n % 2 ? -3e-3f : 1.0f;
            memset(a, 0x5a, sizeof a);
            memset(b, 0x5a, sizeof b);
            s->encode((uint8_t *)a, codes_of[t], x, n, scale);
            fp8_simd_scalar.encode((uint8_t *)b, codes_of[t], x, n, scale);
            check_bytes(a, b, sizeof a, n);
            memset(got, 0x5a, sizeof got);
            memset(want, 0x5a, sizeof want);
            s->widen(got, a, codes_of[t], n);
            fp8_simd_scalar.widen(want, a, codes_of[t], n);
            same_nan(got, n);
            same_nan(want, n);
            check_bytes(got, want, sizeof got, n);
        }
        CHECK(s->amax(x, n, &others[0]) == fp8_simd_scalar.amax(x, n, &others[1]));
        for (int64_t i = 0; i < n; i++) { /* BF16 without widening, from an odd address too */
            const uint16_t half = fp8_f32_to_bf16(x[i]);
            memcpy(raw + 1 + 2 * i, &half, sizeof half);
            want[i] = fp8_bf16_to_f32(half);
        }
        CHECK(s->amax_bf16(raw + 1, n, &others[0]) ==
              fp8_simd_scalar.amax(want, n, &others[1]));
        CHECK(others[0] == others[1]);
    }
}

static void test_encode_all(const fp8_simd *s) {
    static float x[65536];
    static uint8_t got[65536];

    check_case = "encode, every bf16 and f16, ties";
    for (int t = 0; t < NUM_CODES; t++)
        for (int part = 0; part < 2; part++) {
            for (uint32_t u = 0; u < 65536; u++)
                x[u] = part ? fp8_f16_to_f32((uint16_t)u) : fp8_bf16_to_f32((uint16_t)u);
            s->encode(got, codes_of[t], x, 65536, 1);
            for (uint32_t u = 0; u < 65536; u++)
                CHECK(got[u] == fp8_from_f32(codes_of[t], x[u]));
        }
}

static void test_transpose(const fp8_simd *s) {
    static const struct {
        int64_t rows, cols;
    } cases[] = {{0, 4}, {1, 1}, {3, 17}, {8, 8}, {16, 16}, {16, 15}, {17, 33}, {32, 64}, {33, 7}};
    enum { MAX = 64 };
    static float in[MAX * MAX], got[MAX * MAX], want[MAX * MAX];

    check_case = "transpose";
    for (int i = 0; i < MAX * MAX; i++) in[i] = (float)i;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(got, 0, sizeof got);
        memset(want, 0, sizeof want);
        s->transpose(got, MAX, in, MAX, cases[i].rows, cases[i].cols);
        fp8_simd_scalar.transpose(want, MAX, in, MAX, cases[i].rows, cases[i].cols);
        check_bytes(got, want, sizeof got, cases[i].rows);
    }
}

/* ---- the calls ------------------------------------------------------------------------------- */

static void test_quantize(fp8_device *d) {
    static const int64_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 65535, 200001};
    static float x[200001], back[200001], want_back[200001];
    static uint16_t half[200001];
    static uint8_t codes[200001];
    const float scale = 0.37f, descale = 2.9f;

    check_case = "quantize";
    fill_bits(x, 200001, 11);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int real = 0; real < NUM_REALS; real++)
            for (int t = 0; t < NUM_CODES; t++) {
                const int64_t n = sizes[i];
                const void *in = real ? (const void *)half : x;
                const fp8_dtype narrow = real ? reals[real] : FP8_DTYPE_BF16;
                int64_t wrong = 0;
                fp8_simd_scalar.narrow(half, narrow, x, n);
                CHECK_STATUS(fp8_quantize(d, codes, codes_of[t], in, reals[real], n, &scale),
                             FP8_OK);
                fp8_simd_scalar.widen(back, in, reals[real], n);
                for (int64_t k = 0; k < n; k++) {
                    const float product = isnan(back[k]) ? back[k] : back[k] * scale;
                    wrong += codes[k] != fp8_from_f32(codes_of[t], product);
                }
                CHECK(wrong == 0);
                CHECK_STATUS(fp8_dequantize(d, real ? (void *)half : back, reals[real], codes,
                                            codes_of[t], n, &descale),
                             FP8_OK);
                if (real) fp8_simd_scalar.widen(back, half, reals[real], n);
                for (int64_t k = 0; k < n; k++) {
                    const float v = fp8_to_f32(codes_of[t], codes[k]) * descale;
                    want_back[k] = real == 1   ? fp8_round_bf16(v)
                                   : real == 2 ? fp8_f16_to_f32(fp8_f32_to_f16(v))
                                               : v;
                }
                same_nan(back, n);
                same_nan(want_back, n);
                check_bytes(back, want_back, (size_t)n * sizeof *back, n);
            }
    CHECK_STATUS(fp8_quantize(d, codes, FP8_DTYPE_E4M3, x, FP8_DTYPE_F32, 3, NULL), FP8_OK);
    CHECK(codes[1] == fp8_from_f32(FP8_DTYPE_E4M3, x[1]));
}

static void test_groups(fp8_device *d) {
    static const struct {
        int64_t rows, cols;
    } cases[] = {{0, 5}, {5, 0}, {1, 1}, {3, 17}, {16, 16}, {7, 1025}, {1100, 3}, {65, 64}};
    enum { MAX = 8192 };
    static float x[MAX], descale[MAX], back[MAX];
    static uint8_t codes[MAX];

    check_case = "groups";
    fill_bits(x, MAX, 5);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int axis = 0; axis < 2; axis++) {
            const int64_t rows = cases[i].rows, cols = cases[i].cols;
            const int64_t groups = axis ? cols : rows, len = axis ? rows : cols;
            CHECK_STATUS(fp8_quantize_groups(d, codes, FP8_DTYPE_E4M3, descale, x, FP8_DTYPE_F32,
                                             rows, cols, axis),
                         FP8_OK);
            for (int64_t g = 0; g < groups; g++) {
                float amax = 0, want = 1, scale = 1;
                for (int64_t e = 0; e < len; e++) {
                    const float v = fabsf(x[axis ? e * cols + g : g * cols + e]);
                    if (isfinite(v) && v > amax) amax = v;
                }
                if (amax > 0) {
                    scale = fminf(448.0f / amax, FLT_MAX);
                    want = amax / 448.0f > 0 ? amax / 448.0f : FLT_MIN;
                }
                CHECK(descale[g] == want);
                for (int64_t e = 0; e < len; e++) {
                    const int64_t at = axis ? e * cols + g : g * cols + e;
                    const float product = isnan(x[at]) ? x[at] : x[at] * scale;
                    CHECK(codes[at] == fp8_from_f32(FP8_DTYPE_E4M3, product));
                }
            }
            CHECK_STATUS(fp8_dequantize_groups(d, back, FP8_DTYPE_F32, codes, FP8_DTYPE_E4M3,
                                               descale, rows, cols, axis),
                         FP8_OK);
            for (int64_t at = 0; at < rows * cols; at++) {
                const float want = fp8_to_f32(FP8_DTYPE_E4M3, codes[at]) *
                                   descale[axis ? at % cols : at / cols];
                CHECK(back[at] == want || (isnan(back[at]) && isnan(want)));
            }
        }
}

static void test_zero_group(fp8_device *d) {
    const float x[] = {0, -0.0f, 0, NAN, 0, INFINITY};
    float descale[2];
    uint8_t codes[6];
    check_case = "groups without a finite value but 0";
    CHECK_STATUS(fp8_quantize_groups(d, codes, FP8_DTYPE_E4M3, descale, x, FP8_DTYPE_F32, 2, 3, 0),
                 FP8_OK);
    CHECK(descale[0] == 1 && descale[1] == 1);
    CHECK(codes[0] == 0 && codes[1] == 0x80 && codes[3] == 0x7f && codes[5] == 0x7e);
}

static void test_transpose_codes(fp8_device *d) {
    enum { ROWS = 67, COLS = 130 };
    static uint8_t in[ROWS * COLS], out[ROWS * COLS];
    check_case = "transpose codes";
    for (int i = 0; i < ROWS * COLS; i++) in[i] = (uint8_t)(i * 7);
    CHECK_STATUS(fp8_transpose_codes(d, out, in, ROWS, COLS), FP8_OK);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++) CHECK(out[c * ROWS + r] == in[r * COLS + c]);
    CHECK_STATUS(fp8_transpose_codes(d, NULL, NULL, 0, COLS), FP8_OK);
}

static void test_arguments(fp8_device *d) {
    uint8_t codes[4] = {0};
    float x[4] = {0}, descale[4];
    check_case = "arguments";
    CHECK_STATUS(fp8_quantize(d, NULL, FP8_DTYPE_E4M3, x, FP8_DTYPE_F32, 4, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize(d, codes, FP8_DTYPE_E4M3, NULL, FP8_DTYPE_F32, 4, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize(d, codes, FP8_DTYPE_E4M3, x, FP8_DTYPE_F32, -1, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize(d, codes, FP8_DTYPE_U8, x, FP8_DTYPE_F32, 4, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize(d, codes, FP8_DTYPE_E4M3, x, FP8_DTYPE_E4M3, 4, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_dequantize(d, x, FP8_DTYPE_F64, codes, FP8_DTYPE_E4M3, 4, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize_groups(d, codes, FP8_DTYPE_E4M3, descale, x, FP8_DTYPE_F32, 2, 2, 2),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_quantize_groups(d, codes, FP8_DTYPE_E4M3, NULL, x, FP8_DTYPE_F32, 2, 2, 0),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_quantize_groups(d, codes, FP8_DTYPE_E4M3, descale, x, FP8_DTYPE_F32,
                                     INT64_MAX / 2, 4, 0),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_transpose_codes(d, codes, NULL, 2, 2), FP8_EINVAL);
    CHECK_STATUS(fp8_quantize(d, NULL, FP8_DTYPE_E4M3, NULL, FP8_DTYPE_F32, 0, NULL), FP8_OK);
}

int main(void) {
    fp8_device *d = NULL;

    for (int t = 0; t < NUM_CODES; t++) test_oracle(codes_of[t]);
    for (int level = 0; level < FP8_NUM_SIMD_LEVELS; level++) {
        const fp8_simd *s = fp8_simd_at((fp8_simd_level)level);
        if (!s) continue;
        test_widen_all(s);
        test_encode_all(s);
        test_lengths(s);
        test_transpose(s);
    }
    CHECK_STATUS(fp8_device_create(&d, "cpu", 3), FP8_OK);
    if (!d) return CHECK_DONE();
    test_quantize(d);
    test_groups(d);
    test_zero_group(d);
    test_transpose_codes(d);
    test_arguments(d);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
