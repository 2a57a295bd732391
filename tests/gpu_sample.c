/* Sampling on CUDA: the ids of the CPU's version. Where top_p's sums meet their target to the last
 * bits the two may cut at neighbours, so of the rows with top_p one in a hundred may differ. */
#include <stdlib.h>

#include "core/half.h"
#include "tests/sample_cases.h"

enum { ROWS = 8 * SAMPLE_WAYS };

/* x[i] as BF16, which x[i] then is. */
static void round_all(uint16_t *to, float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        to[i] = fp8_f32_to_bf16(x[i]);
        x[i] = fp8_bf16_to_f32(to[i]);
    }
}

static void compare(fp8_device *gpu, fp8_device *cpu, fp8_dtype type, int64_t vocab,
                    uint64_t *seed) {
    float *x = malloc((size_t)(ROWS * vocab) * sizeof *x);
    uint16_t *rounded = malloc((size_t)(ROWS * vocab) * sizeof *rounded);
    fp8_sample_row rows[ROWS];
    int32_t want[ROWS], got[ROWS], again[ROWS];
    void *dx = NULL, *drows = NULL, *dids = NULL;
    int cut = 0;

    for (int64_t r = 0; r < ROWS; r++) {
        sample_row(x + r * vocab, vocab, r / SAMPLE_WAYS + r % SAMPLE_WAYS, seed);
        rows[r] = (fp8_sample_row){sample_ways[r % SAMPLE_WAYS], r};
    }
    if (type == FP8_DTYPE_BF16) round_all(rounded, x, ROWS * vocab);
    CHECK_STATUS(fp8_device_alloc(gpu, &dx, (size_t)(ROWS * vocab) * sizeof *x), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &drows, sizeof rows), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &dids, sizeof got), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, dx, type == FP8_DTYPE_F32 ? (void *)x : rounded,
                                   (size_t)(ROWS * vocab) * fp8_dtype_size(type)), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, drows, rows, sizeof rows), FP8_OK);
    CHECK_STATUS(fp8_sample(gpu, dids, dx, type, drows, ROWS, vocab), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, got, dids, sizeof got), FP8_OK);
    CHECK_STATUS(fp8_sample(gpu, dids, dx, type, drows, ROWS, vocab), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, again, dids, sizeof got), FP8_OK);
    CHECK_STATUS(fp8_sample(cpu, want, x, FP8_DTYPE_F32, rows, ROWS, vocab), FP8_OK);
    for (int r = 0; r < ROWS; r++) {
        CHECK(got[r] == again[r]);
        if (got[r] == want[r]) continue;
        if (rows[r].how.top_p != 0.0f) cut++;
        else CHECK(got[r] == want[r]);
    }
    if (cut > ROWS / 100)
        fprintf(stderr, "vocab %lld: %d of %d differ\n", (long long)vocab, cut, ROWS);
    CHECK(cut <= ROWS / 100);
    fp8_device_free(gpu, dx);
    fp8_device_free(gpu, drows);
    fp8_device_free(gpu, dids);
    free(x);
    free(rounded);
}

int main(void) {
    static const int64_t vocabs[] = {1, 2, 31, 33, 512, 1023, 1025, 32000, 128256};
    fp8_device *gpu = check_gpu(), *cpu = NULL;
    uint64_t seed = 17;

    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (size_t v = 0; cpu && v < sizeof vocabs / sizeof *vocabs; v++)
        for (int i = 0; i < 2; i++)
            compare(gpu, cpu, i ? FP8_DTYPE_BF16 : FP8_DTYPE_F32, vocabs[v], &seed);
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
