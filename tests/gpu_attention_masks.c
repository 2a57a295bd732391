/* The mask helpers and the Hadamard rotation on CUDA against those on the CPU. */
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/half.h"

static fp8_device *gpu, *cpu;

static void *fresh(size_t bytes) {
    void *p = malloc(bytes + 1);
    if (!p) abort();
    memset(p, 0xff, bytes + 1);
    return p;
}

static void *to_gpu(const void *host, size_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(gpu, &p, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, p, host, bytes), FP8_OK);
    return p;
}

static void compare(const void *dev, const void *want, size_t bytes) {
    void *got = fresh(bytes);
    CHECK_STATUS(fp8_device_download(gpu, got, dev, bytes), FP8_OK);
    CHECK(memcmp(got, want, bytes) == 0);
    free(got);
}

static void test_bias(int64_t n, uint64_t *seed) {
    const size_t bytes = (size_t)n * sizeof(float);
    uint8_t *mask = fresh((size_t)n);
    float *bias = fresh(bytes);
    void *dev_mask, *dev_bias;

    for (int64_t i = 0; i < n; i++) mask[i] = (uint8_t)(check_random(seed) % 3);
    dev_mask = to_gpu(mask, (size_t)n);
    dev_bias = to_gpu(bias, bytes);
    CHECK_STATUS(fp8_attention_mask_to_bias(cpu, bias, mask, n), FP8_OK);
    CHECK_STATUS(fp8_attention_mask_to_bias(gpu, dev_bias, dev_mask, n), FP8_OK);
    compare(dev_bias, bias, bytes);
    fp8_device_free(gpu, dev_mask);
    fp8_device_free(gpu, dev_bias);
    free(mask);
    free(bias);
}

/* which: 1 starts, 2 lengths, 3 both */
static void test_lengths(int64_t b, int64_t s, int which, uint64_t *seed) {
    const size_t bytes = (size_t)(b + 1) * sizeof(int32_t);
    uint8_t *mask = fresh((size_t)(b * s));
    int32_t *starts = fresh(bytes), *lengths = fresh(bytes);
    void *dev_mask, *dev_starts = to_gpu(starts, bytes), *dev_lengths = to_gpu(lengths, bytes);

    for (int64_t i = 0; i < b; i++) {
        const int64_t valid = s ? (int64_t)(check_random(seed) % (uint64_t)(s + 1)) : 0;
        for (int64_t j = 0; j < s; j++) mask[i * s + j] = (uint8_t)(j < valid ? 0 : 1 + j % 255);
    }
    dev_mask = to_gpu(mask, (size_t)(b * s));
    CHECK_STATUS(fp8_attention_padding_to_lengths(cpu, which & 1 ? starts : NULL,
                                                  which & 2 ? lengths : NULL, mask, b, s),
                 FP8_OK);
    CHECK_STATUS(fp8_attention_padding_to_lengths(gpu, which & 1 ? dev_starts : NULL,
                                                  which & 2 ? dev_lengths : NULL, dev_mask, b, s),
                 FP8_OK);
    compare(dev_starts, starts, bytes);
    compare(dev_lengths, lengths, bytes);
    fp8_device_free(gpu, dev_mask);
    fp8_device_free(gpu, dev_starts);
    fp8_device_free(gpu, dev_lengths);
    free(mask);
    free(starts);
    free(lengths);
}

static float get(const void *p, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_BF16) return fp8_bf16_to_f32(((const uint16_t *)p)[i]);
    if (t == FP8_DTYPE_F16) return fp8_f16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

/* Against the definition in double: y[c] = sum (-1)^popcount(c & k) signs[k] x[k] / sqrt(d). The
 * error: log2 d additions and a product of at most sum |x| / sqrt(d), and the rounding. `offset`:
 * elements the rows start after an aligned place. */
static void test_hadamard(fp8_dtype t, int d, int64_t rows, int in_place, int offset,
                          uint64_t *seed) {
    const int64_t n = rows * d + offset;
    const size_t size = fp8_dtype_size(t), bytes = (size_t)n * size, skip = (size_t)offset * size;
    const double unit = t == FP8_DTYPE_BF16 ? 0x1p-8 : t == FP8_DTYPE_F16 ? 0x1p-11 : 0x1p-24;
    uint8_t *x = fresh(bytes), *y = fresh(bytes);
    float signs[256];
    void *dev_x, *dev_y, *dev_signs;
    int wrong = 0;

    for (int i = 0; i < d; i++) signs[i] = check_random(seed) % 2 ? 1.0f : -1.0f;
    for (int64_t i = 0; i < n; i++) {
        const float f = check_normal(seed);
        if (t == FP8_DTYPE_BF16) ((uint16_t *)(void *)x)[i] = fp8_f32_to_bf16(f);
        else if (t == FP8_DTYPE_F16) ((uint16_t *)(void *)x)[i] = fp8_f32_to_f16(f);
        else ((float *)(void *)x)[i] = f;
    }
    dev_x = to_gpu(x, bytes);
    dev_y = in_place ? dev_x : to_gpu(y, bytes);
    dev_signs = to_gpu(signs, (size_t)d * sizeof *signs);
    CHECK_STATUS(fp8_attention_hadamard(gpu, (uint8_t *)dev_y + skip, (uint8_t *)dev_x + skip, t,
                                        dev_signs, rows, d),
                 FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, y, dev_y, bytes), FP8_OK);
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < d; c++) {
            double want = 0, all = 0;
            for (int k = 0; k < d; k++) {
                const double v = (double)signs[k] * (double)get(x + skip, t, r * d + k);
                want += __builtin_popcount((unsigned)(c & k)) % 2 ? -v : v;
                all += fabs(v);
            }
            want /= sqrt(d);
            wrong += !(fabs((double)get(y + skip, t, r * d + c) - want) <=
                       unit * fabs(want) + 0x1p-21 * all / sqrt(d));
        }
    CHECK(wrong == 0);
    fp8_device_free(gpu, dev_x);
    if (!in_place) fp8_device_free(gpu, dev_y);
    fp8_device_free(gpu, dev_signs);
    free(x);
    free(y);
}

int main(void) {
    static const int64_t counts[] = {0, 1, 255, 256, 257, 100003};
    static const int64_t shapes[][2] = {{0, 5},  {1, 1},   {3, 0},     {2, 7},
                                        {5, 70}, {300, 3}, {1025, 33}, {4, 5000}};
    static const fp8_dtype dtypes[] = {FP8_DTYPE_BF16, FP8_DTYPE_F16, FP8_DTYPE_F32};
    static const int64_t rows[] = {0, 1, 3, 17, 700};
    uint64_t seed = 3;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (int i = 0; i < 6; i++) test_bias(counts[i], &seed);
    for (int i = 0; i < 8 * 3; i++)
        test_lengths(shapes[i / 3][0], shapes[i / 3][1], 1 + i % 3, &seed);
    for (int i = 0; i < 3 * 3 * 5 * 3; i++)
        test_hadamard(dtypes[i % 3], 64 << (i / 3 % 3), rows[i / 9 % 5], i / 45 == 1,
                      i / 45 == 2 ? 1 : 0, &seed);
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
