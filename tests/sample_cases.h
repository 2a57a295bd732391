/* tests/sample_cases.h - rows of logits and ways to choose from them, for the CPU and CUDA. */
#ifndef FP8_TESTS_SAMPLE_CASES_H
#define FP8_TESTS_SAMPLE_CASES_H
#include <math.h>

#include "model/sample.h"
#include "tests/check.h"

static const fp8_sampling sample_ways[] = {
    {0, 0, 0, 0},         {1, 0, 0, 1},          {0.7f, 0, 0, 2},    {1, 1, 0, 3},
    {1, 5, 0, 4},         {2, 50, 0, 5},         {1, 0, 0.9f, 6},    {1, 0, 0.1f, 7},
    {0.5f, 40, 0.95f, 8}, {1, 1 << 30, 1.0f, 9}, {1e-3f, 0, 0, 10},  {100, 0, 0.5f, 11},
    {1, 3, 1e-20f, 12},
};
enum { SAMPLE_WAYS = sizeof sample_ways / sizeof *sample_ways };

/* Row r: normal numbers, with ties in every third, NaN and Inf in some. */
static inline void sample_row(float *x, int64_t vocab, int64_t r, uint64_t *seed) {
    for (int64_t i = 0; i < vocab; i++) {
        x[i] = 4.0f * check_normal(seed);
        if (r % 3 == 1) x[i] = roundf(x[i]);
        if (r % 5 == 2 && i % 7 == 3) x[i] = NAN;
        if (r % 7 == 3 && i % 2) x[i] = -INFINITY;
        if (r % 11 == 4 && i == vocab / 2) x[i] = INFINITY;
        if (r % 13 == 5) x[i] = i % 2 ? NAN : -INFINITY;
        if (r % 17 == 6) x[i] = i % 2 ? 0.0f : -0.0f;
    }
}
#endif
