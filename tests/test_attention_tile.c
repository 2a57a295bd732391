/* The CPU's tile kernels, each instruction set against the first and the definition of E4M3. */
#include "attention/tile_cpu.h"
#include "attention_problem.h"

typedef struct tile_store {
    _Alignas(TILE_ALIGN) float q[33 * TILE_ROWS], k[33 * TILE_KEYS], v[20 * TILE_KEYS];
    _Alignas(TILE_ALIGN) float s[TILE_KEYS * TILE_ROWS], o[20 * TILE_ROWS];
    _Alignas(TILE_ALIGN) float max[TILE_ROWS], sum[TILE_ROWS], alpha[TILE_ROWS];
    _Alignas(TILE_ALIGN) int32_t lo[TILE_ROWS], hi[TILE_ROWS];
} tile_store;

/* Three steps of `keys` keys on `rows` rows, of which row r sees keys [r % 5, 3 * keys - r % 7). */
static void tile_outputs(const attention_tile_kernels *kernels, tile_store *m, int64_t rows,
                         int64_t keys, int quantize_p, float *out) {
    attention_tile t = {rows, 33,   20,   0.2f,   quantize_p, m->q,  m->k, m->v,
                        m->s, m->o, m->max, m->sum, m->alpha,   m->lo, m->hi, NULL, NULL};
    uint64_t seed = 11;
    memset(m, 0, sizeof *m);
    for (int64_t r = 0; r < rows; r++) {
        for (int c = 0; c < 33; c++) m->q[c * TILE_ROWS + r] = check_normal(&seed);
        m->lo[r] = (int32_t)(r % 5);
        m->hi[r] = (int32_t)(3 * keys - r % 7);
        m->max[r] = -INFINITY;
    }
    for (int pass = quantize_p ? 0 : 1; pass < 2; pass++) {
        seed = 12;
        for (int64_t first = 0; first < 3 * keys; first += keys) {
            for (int64_t i = 0; i < 33 * keys; i++) m->k[i] = check_normal(&seed);
            for (int64_t i = 0; i < 20 * keys; i++) m->v[i] = check_normal(&seed);
            if (pass == 0) kernels->raise_max(&t, first, keys);
            else kernels->step(&t, first, keys);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < 20; c++)
            out[r * 20 + c] = m->sum[r] > 0 ? m->o[c * TILE_ROWS + r] / m->sum[r] : 0.0f;
}

/* The instruction sets agree on whole tiles. */
static void test_tiles(const attention_tile_kernels *kernels) {
    static const int64_t rows[] = {1, 4, 5, 16, 17, 63, 64}, keys[] = {1, 3, 8, 17, 64};
    static tile_store store;
    static float want[TILE_ROWS * 20], got[TILE_ROWS * 20];

    for (int c = 0; c < 7 * 5 * 2; c++) {
        const int64_t r = rows[c / 2 % 7], k = keys[c / 14];
        tile_outputs(attention_tile_kernels_at(0), &store, r, k, c % 2, want);
        tile_outputs(kernels, &store, r, k, c % 2, got);
        CHECK(check_relative_l2(got, want, r * 20) <= (c % 2 ? 1e-4 : 1e-6));
    }
}

/* Every code, BF16 and F16 widens exactly. */
static void test_widen(const attention_tile_kernels *kernels) {
    static float wide[65536];
    static uint16_t halves[65536];
    uint8_t codes[256];

    for (int i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)i;
    kernels->widen(wide, codes, FP8_DTYPE_E4M3, 256);
    for (int i = 0; i < 256; i++)
        CHECK(isnan(e4m3_value(i)) ? isnan(wide[i]) : (double)wide[i] == e4m3_value(i));
    kernels->widen(wide, halves, FP8_DTYPE_BF16, 65536);
    for (int i = 0; i < 65536; i++) CHECK(fp8_f32_bits(wide[i]) == (uint32_t)i << 16);
    kernels->widen(wide, halves, FP8_DTYPE_F16, 65536);
    for (int i = 0; i < 65536; i++)
        CHECK(fp8_f32_bits(wide[i]) == fp8_f32_bits(fp8_f16_to_f32((uint16_t)i)));
}

/* One step over 64 keys whose scores are `scores` against a maximum of 0; p comes out in m->s. */
static void probabilities(const attention_tile_kernels *kernels, tile_store *m, const float *scores,
                          int quantize_p) {
    attention_tile t = {1,    1,      1,      1.0f,     quantize_p, m->q,  m->k, m->v,
                        m->s, m->o, m->max, m->sum, m->alpha, m->lo,      m->hi, NULL, NULL};
    memset(m, 0, sizeof *m); /* the running maximum is 0 */
    m->q[0] = 1.0f;
    m->hi[0] = TILE_KEYS;
    memcpy(m->k, scores, TILE_KEYS * sizeof *scores);
    kernels->step(&t, 0, TILE_KEYS);
}

/* p against exp in double, and its E4M3 rounding bit for bit; the scores crowd around those where
 * 256 p is halfway between two codes. */
static void test_probabilities(const attention_tile_kernels *kernels) {
    static tile_store plain, rounded;
    int ties = 0;

    for (int c = 0; c < 0x78; c++) { /* codes up to 256 */
        const double tie = (e4m3_value(c) + e4m3_value(c + 1)) / 2;
        float scores[TILE_KEYS];
        scores[0] = fminf((float)log(tie / 256.0), 0.0f);
        for (int i = 0; i < 32; i++) scores[0] = nextafterf(scores[0], -INFINITY);
        for (int i = 1; i < TILE_KEYS; i++)
            scores[i] = fminf(nextafterf(scores[i - 1], INFINITY), 0.0f);
        probabilities(kernels, &plain, scores, 0);
        probabilities(kernels, &rounded, scores, 1);
        for (int i = 0; i < TILE_KEYS; i++) {
            const double p = (double)plain.s[i * TILE_ROWS], exact = exp((double)scores[i]);
            const double want = e4m3_value(e4m3_code(256.0 * p));
            CHECK(fabs(p - exact) <= 2.4e-7 * exact);
            CHECK((double)rounded.s[i * TILE_ROWS] == want);
            ties += 256.0 * p == tie;
        }
    }
    CHECK(ties > 50); /* the even rule was met */
}

/* Scores far below the maximum end in 0, without a detour through garbage; NaN stays NaN. */
static void test_small_probabilities(const attention_tile_kernels *kernels) {
    static tile_store store;
    float scores[TILE_KEYS];

    for (int i = 0; i < TILE_KEYS; i++) scores[i] = -80.0f - (float)i;
    scores[60] = -1.0e30f;
    scores[61] = -3.4e38f;
    scores[62] = -INFINITY;
    scores[63] = NAN;
    probabilities(kernels, &store, scores, 0);
    for (int i = 0; i < 63; i++) {
        const double p = (double)store.s[i * TILE_ROWS], exact = exp((double)scores[i]);
        CHECK(fabs(p - exact) <= fmax(2.4e-7 * exact, 1.2e-38));
    }
    CHECK(isnan(store.s[63 * TILE_ROWS]));
}

int main(void) {
    for (int n = 0; attention_tile_kernels_at(n); n++) {
        check_case = attention_tile_kernels_at(n)->name;
        test_tiles(attention_tile_kernels_at(n));
        test_widen(attention_tile_kernels_at(n));
        test_probabilities(attention_tile_kernels_at(n));
        test_small_probabilities(attention_tile_kernels_at(n));
    }
    return CHECK_DONE();
}
