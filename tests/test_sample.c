/* Sampling on the CPU: what is kept, how often each id is drawn, and refusals. */
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "tests/sample_cases.h"

static fp8_device *cpu;

enum { VOCAB = 12, DRAWS = 40000 };

static int32_t choose(const float *x, int64_t vocab, fp8_sampling how, int64_t position) {
    const fp8_sample_row row = {how, position};
    int32_t id = -1;
    CHECK_STATUS(fp8_sample(cpu, &id, x, FP8_DTYPE_F32, &row, 1, vocab), FP8_OK);
    return id;
}

/* The probabilities by the definition, obvious: sort, cut, renormalize. */
static void expected(double p[VOCAB], const float *x, const fp8_sampling *s) {
    int order[VOCAB], kept = VOCAB;
    double sum = 0, part = 0;

    for (int i = 0; i < VOCAB; i++) order[i] = i;
    for (int i = 0; i < VOCAB; i++)
        for (int j = i + 1; j < VOCAB; j++)
            if (x[order[j]] > x[order[i]]) {
                const int t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
    if (s->top_k && s->top_k < kept) kept = s->top_k;
    for (int i = 0; i < kept; i++) sum += exp((double)x[order[i]] / (double)s->temperature);
    if (s->top_p > 0)
        for (int i = 0; i < kept; i++) {
            part += exp((double)x[order[i]] / (double)s->temperature);
            if (part >= (double)s->top_p * sum) kept = i + 1;
        }
    memset(p, 0, sizeof(double[VOCAB]));
    sum = 0;
    for (int i = 0; i < kept; i++) sum += exp((double)x[order[i]] / (double)s->temperature);
    for (int i = 0; i < kept; i++) p[order[i]] = exp((double)x[order[i]] / s->temperature) / sum;
}

/* Each id as often as its probability says, to five standard deviations; others never. */
static void test_distribution(void) {
    static const fp8_sampling ways[] = {
        {1, 0, 0, 11}, {0.5f, 0, 0, 12}, {3, 0, 0, 13},          {1, 4, 0, 14},
        {1, 0, 0.8f, 15}, {1, 0, 0.3f, 16}, {2, 6, 0.7f, 17}, {1, VOCAB, 1.0f, 18},
    };
    uint64_t seed = 5;
    float x[VOCAB];

    for (int i = 0; i < VOCAB; i++) x[i] = 1.5f * check_normal(&seed);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        int count[VOCAB] = {0};
        double p[VOCAB];
        expected(p, x, &ways[w]);
        for (int i = 0; i < DRAWS; i++) count[choose(x, VOCAB, ways[w], i)]++;
        for (int i = 0; i < VOCAB; i++) {
            const double sd = sqrt(DRAWS * p[i] * (1 - p[i]));
            if (fabs(count[i] - DRAWS * p[i]) > 5 * sd + 1e-9)
                fprintf(stderr, "way %zu, id %d: drawn %d times, expected %.1f +- %.1f\n", w, i,
                        count[i], DRAWS * p[i], sd);
            CHECK(fabs(count[i] - DRAWS * p[i]) <= 5 * sd + 1e-9);
        }
    }
}

/* A draw depends on seed and position, and on nothing else. */
static void test_independence(void) {
    enum { ROWS = 16 };
    const fp8_sampling how = {1, 0, 0, 99};
    float x[ROWS * VOCAB];
    fp8_sample_row rows[ROWS];
    int32_t ids[ROWS];
    uint64_t seed = 6;
    int other_position = 0, other_seed = 0;

    for (int i = 0; i < VOCAB; i++) x[i] = check_normal(&seed);
    for (int r = 0; r < ROWS; r++) {
        memcpy(x + r * VOCAB, x, sizeof(float[VOCAB]));
        rows[r] = (fp8_sample_row){how, r};
    }
    CHECK_STATUS(fp8_sample(cpu, ids, x, FP8_DTYPE_F32, rows, ROWS, VOCAB), FP8_OK);
    for (int r = 0; r < ROWS; r++) {
        CHECK(ids[r] == choose(x, VOCAB, how, r));
        other_position += ids[r] != ids[0];
        other_seed += ids[r] != choose(x, VOCAB, (fp8_sampling){1, 0, 0, 100}, r);
    }
    CHECK(other_position > 0 && other_seed > 0);
}

/* BF16 logits are their values in F32. */
static void test_rounded(void) {
    uint16_t x[VOCAB];
    float values[VOCAB];
    uint64_t seed = 8;
    int32_t id;

    for (int w = 0; w < SAMPLE_WAYS; w++) {
        const fp8_sample_row row = {sample_ways[w], w};
        sample_row(values, VOCAB, w, &seed);
        for (int i = 0; i < VOCAB; i++) {
            x[i] = fp8_f32_to_bf16(values[i]);
            values[i] = fp8_bf16_to_f32(x[i]);
        }
        CHECK_STATUS(fp8_sample(cpu, &id, x, FP8_DTYPE_BF16, &row, 1, VOCAB), FP8_OK);
        CHECK(id == choose(values, VOCAB, sample_ways[w], w));
    }
}

static void test_hostile(void) {
    const float none[3] = {NAN, -INFINITY, NAN}, one[3] = {NAN, 2, -INFINITY};
    const float most[3] = {1, INFINITY, 2}, ties[4] = {1, 3, 3, 2};

    for (int w = 0; w < SAMPLE_WAYS; w++) {
        const fp8_sampling how = sample_ways[w];
        CHECK(choose(none, 3, how, 0) == 0);
        CHECK(choose(one, 3, how, 0) == 1);
        CHECK(choose(most, 3, how, 0) == 1);
    }
    CHECK(choose(ties, 4, (fp8_sampling){0}, 0) == 1);
    CHECK(choose(ties, 4, (fp8_sampling){.temperature = 1, .top_p = 1e-9f}, 3) != 3);
}

static void test_refusals(void) {
    const fp8_sampling bad[] = {{-1, 0, 0, 0}, {NAN, 0, 0, 0}, {INFINITY, 0, 0, 0}, {1, -1, 0, 0},
                                {1, 0, -0.1f, 0}, {1, 0, 1.1f, 0}, {1, 0, NAN, 0}};
    const fp8_sample_row row = {{0}, 0};
    const float x = 1;
    int32_t id;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_STATUS(fp8_sampling_check(&bad[i]), FP8_EINVAL);
    for (int w = 0; w < SAMPLE_WAYS; w++) CHECK_STATUS(fp8_sampling_check(&sample_ways[w]), FP8_OK);
    CHECK_STATUS(fp8_sample(cpu, &id, &x, FP8_DTYPE_F32, &row, 1, 0), FP8_EINVAL);
    CHECK_STATUS(fp8_sample(cpu, &id, &x, FP8_DTYPE_F32, &row, -1, 1), FP8_EINVAL);
    CHECK_STATUS(fp8_sample(cpu, &id, NULL, FP8_DTYPE_F32, &row, 1, 1), FP8_EINVAL);
    CHECK_STATUS(fp8_sample(cpu, NULL, NULL, FP8_DTYPE_F32, NULL, 0, 1), FP8_OK);
    CHECK_STATUS(fp8_sample(cpu, &id, &x, FP8_DTYPE_F16, &row, 1, 1), FP8_EINVAL);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    if (!cpu) return CHECK_DONE();
    test_distribution();
    test_independence();
    test_rounded();
    test_hostile();
    test_refusals();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
