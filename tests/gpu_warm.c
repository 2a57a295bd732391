/* calib/warm.h: algorithms that were timed while nobody looked give the bits of the first guess. */
#include <stdlib.h>
#include <string.h>

#include "calib/warm.h"
#include "check.h"
#include "core/half.h"
#include "quant/quant.h"

enum { TOKENS = 1536, HIDDEN = 1024, FFN = 4096 };

static uint16_t *numbers(int64_t n, uint32_t seed) {
    uint16_t *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; x && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = fp8_f32_to_bf16((float)(seed >> 8) * 0x1p-23f - 1.0f);
    }
    return x;
}

/* out [TOKENS, FFN] = a b^T, or a [TOKENS, FFN] b [HIDDEN, FFN] when `down`. */
static fp8_status product(fp8_device *d, uint16_t *out, const void *a, const void *b, void *y,
                          int down) {
    const int64_t n = down ? HIDDEN : FFN, k = down ? FFN : HIDDEN;
    const fp8_gemm g = {.m = TOKENS, .n = n, .k = k, .a = a, .b = b, .d = y, .lda = k, .ldb = k,
                        .ldd = n, .a_dtype = FP8_DTYPE_BF16, .b_dtype = FP8_DTYPE_BF16,
                        .d_dtype = FP8_DTYPE_BF16, .alpha = 1};
    const size_t bytes = fp8_gemm_workspace_size(d, &g);
    void *workspace = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_alloc(d, &workspace, bytes));
    FP8_TRY(fp8_gemm_run(d, &g, workspace, bytes));
    FP8_TRY(fp8_device_download(d, out, y, (size_t)(TOKENS * n) * sizeof *out));
done:
    fp8_device_free(d, workspace);
    return st;
}

static fp8_status upload(fp8_device *d, void **out, int64_t n, uint32_t seed) {
    uint16_t *x = numbers(n, seed);
    fp8_status st = FP8_OK;

    if (!x) return FP8_FAIL(FP8_ENOMEM, "numbers");
    FP8_TRY(fp8_device_alloc(d, out, (size_t)n * sizeof *x));
    FP8_TRY(fp8_device_upload(d, *out, x, (size_t)n * sizeof *x));
done:
    free(x);
    return st;
}

int main(void) {
    const fp8_model_config config = {.num_layers = 4, .hidden_size = HIDDEN, .num_heads = 16,
                                     .num_kv_heads = 4, .head_dim = 64, .intermediate_size = FFN};
    const size_t bytes = (size_t)TOKENS * FFN * sizeof(uint16_t);
    uint16_t *before[2] = {malloc(bytes), malloc(bytes)}, *after = malloc(bytes);
    void *a = NULL, *b = NULL, *y = NULL;
    fp8_device *d = NULL;
    fp8_warm *w = NULL;

    if (fp8_device_create(&d, "cuda", 0) != FP8_OK) return TEST_SKIP;
    CHECK_STATUS(upload(d, &a, (int64_t)TOKENS * FFN, 1), FP8_OK);
    CHECK_STATUS(upload(d, &b, (int64_t)HIDDEN * FFN, 2), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &y, bytes), FP8_OK);
    for (int down = 0; down < 2; down++)
        CHECK_STATUS(product(d, before[down], a, b, y, down), FP8_OK);

    CHECK_STATUS(fp8_warm_start(&w, d, &config, TOKENS, TOKENS), FP8_OK); /* not worth it */
    CHECK(w == NULL);
    CHECK(fp8_gemm_cache_count() == 0);
    CHECK_STATUS(fp8_warm_start(&w, d, &config, TOKENS, INT32_MAX), FP8_OK);
    CHECK(w != NULL);
    fp8_warm_end(w);
    CHECK(fp8_gemm_cache_count() == 4); /* q and o are of one shape */
    for (int down = 0; down < 2; down++) {
        const size_t n = (size_t)TOKENS * (down ? HIDDEN : FFN) * sizeof *after;
        CHECK_STATUS(product(d, after, a, b, y, down), FP8_OK);
        CHECK(memcmp(before[down], after, n) == 0);
    }
    fp8_gemm_cache_clear();
    fp8_device_free(d, a);
    fp8_device_free(d, b);
    fp8_device_free(d, y);
    fp8_device_destroy(d);
    for (int i = 0; i < 2; i++) free(before[i]);
    free(after);
    return CHECK_DONE();
}
