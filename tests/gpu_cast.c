/* quant/cast.h on CUDA: bit-equal to the CPU, which test_cast.c and test_observe.c prove. */
#include <string.h>

#include "core/half.h"
#include "quant/cast.h"
#include "tests/check.h"

static const fp8_dtype codes_of[] = {FP8_DTYPE_E4M3, FP8_DTYPE_E5M2};
static const fp8_dtype reals[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16};
enum { NUM_CODES = 2, NUM_REALS = 3, MAX = 1 << 20 };

static fp8_device *cpu, *gpu;
_Alignas(16) static uint8_t host_in[4 * MAX + 64], host_a[4 * MAX + 64], host_b[4 * MAX + 64];
static float descale_a[MAX], descale_b[MAX];
static char *dev_in, *dev_out;
static float *dev_descale;

static void up(void *dst, const void *src, size_t bytes) {
    CHECK_STATUS(fp8_device_upload(gpu, dst, src, bytes), FP8_OK);
}

static void down(void *dst, const void *src, size_t bytes) {
    CHECK_STATUS(fp8_device_download(gpu, dst, src, bytes), FP8_OK);
}

static float value_at(const void *x, fp8_dtype t, int64_t i) {
    if (t == FP8_DTYPE_F32) return ((const float *)x)[i];
    return t == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(((const uint16_t *)x)[i])
                               : fp8_f16_to_f32(((const uint16_t *)x)[i]);
}

/* Equal values, with the sign of zeros; of a NaN product each processor makes its own. */
static void check_values(const void *got, const void *want, fp8_dtype t, int64_t n) {
    int shown = 0;
    for (int64_t i = 0; i < n && shown < 10; i++) {
        const float g = value_at(got, t, i), w = value_at(want, t, i);
        if (isnan(w) ? isnan(g) : g == w && !signbit(g) == !signbit(w)) continue;
        fprintf(stderr, "[%s] element %lld: got %a, want %a\n", check_case, (long long)i,
                (double)g, (double)w);
        shown++;
    }
    check_failures += shown > 0;
}

static void check_bytes(const void *got, const void *want, size_t bytes) {
    int shown = 0;
    for (size_t i = 0; i < bytes && shown < 10; i++) {
        const uint8_t g = ((const uint8_t *)got)[i], w = ((const uint8_t *)want)[i];
        if (g == w) continue;
        fprintf(stderr, "[%s] byte %zu: got %02x, want %02x\n", check_case, i, g, w);
        shown++;
    }
    check_failures += shown > 0;
}

/* Every BF16 or F16; for F32 those of BF16 with low bits set at random: ties, NaN, subnormals. */
static void make_all(fp8_dtype t, int64_t n) {
    uint64_t seed = 1;
    for (int64_t i = 0; i < n; i++) {
        const uint16_t h = (uint16_t)(i * 40503);
        const uint32_t low = i % 3 ? (uint32_t)check_random(&seed) & 0xffffu : 0;
        const uint32_t f = (uint32_t)h << 16 | low;
        if (t == FP8_DTYPE_F32) memcpy(host_in + 4 * i, &f, 4);
        else memcpy(host_in + 2 * i, &h, 2);
    }
}

static void test_casts(void) {
    static const int64_t sizes[] = {0, 1, 3, 4, 7, 8, 15, 17, 127, 1025, 65536, MAX};
    const float scale = 1.7f, descale = 0.3f;
    float *two = dev_descale;

    up(two, &scale, 4);
    up(two + 1, &descale, 4);
    for (int r = 0; r < NUM_REALS; r++)
        for (int c = 0; c < NUM_CODES; c++)
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                for (int shift = 0; shift < 2; shift++) { /* by one element: not aligned */
                    const int64_t n = sizes[s], size = (int64_t)fp8_dtype_size(reals[r]);
                    const size_t bytes = (size_t)(n * size);
                    char *x = dev_in + shift * size, *codes = dev_out + shift;
                    if (n == MAX && shift) continue;
                    check_case = fp8_dtype_name(reals[r]);
                    make_all(reals[r], n);
                    up(x, host_in, bytes);
                    CHECK_STATUS(fp8_quantize(gpu, (uint8_t *)codes, codes_of[c], x, reals[r], n,
                                              s % 2 ? two : NULL), FP8_OK);
                    CHECK_STATUS(fp8_quantize(cpu, host_b, codes_of[c], host_in, reals[r], n,
                                              s % 2 ? &scale : NULL), FP8_OK);
                    down(host_a, codes, (size_t)n);
                    check_bytes(host_a, host_b, (size_t)n);
                    for (int64_t i = 0; i < n; i++) host_in[i] = (uint8_t)(i * 37);
                    up(codes, host_in, (size_t)n);
                    CHECK_STATUS(fp8_dequantize(gpu, x, reals[r], (uint8_t *)codes, codes_of[c], n,
                                                two + 1), FP8_OK);
                    CHECK_STATUS(fp8_dequantize(cpu, host_b, reals[r], host_in, codes_of[c], n,
                                                &descale), FP8_OK);
                    down(host_a, x, bytes);
                    check_values(host_a, host_b, reals[r], n);
                }
}

static const struct {
    int64_t rows, cols;
} shapes[] = {{0, 5},    {1, 1},   {3, 17},  {16, 16},   {7, 1024},
              {5, 4097}, {600, 3}, {65, 96}, {300, 1030}};
enum { NUM_SHAPES = sizeof shapes / sizeof *shapes };

/* Normal numbers with NaN, Inf and zeros among them. */
static void make_normal(fp8_dtype t, int64_t n) {
    uint64_t seed = 77;
    for (int64_t i = 0; i < n; i++) {
        float v = check_normal(&seed) * 3;
        uint16_t h;
        if (check_random(&seed) % 64 == 0) v = check_random(&seed) % 2 ? NAN : -INFINITY;
        if (check_random(&seed) % 64 == 0) v = -0.0f;
        h = t == FP8_DTYPE_BF16 ? fp8_f32_to_bf16(v) : fp8_f32_to_f16(v);
        if (t == FP8_DTYPE_F32) memcpy(host_in + 4 * i, &v, 4);
        else memcpy(host_in + 2 * i, &h, 2);
    }
}

static void test_groups(void) {
    for (int r = 0; r < NUM_REALS; r++)
        for (size_t s = 0; s < NUM_SHAPES; s++)
            for (int32_t axis = 0; axis < 2; axis++) {
                const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
                const int64_t groups = axis ? cols : rows;
                const size_t n = (size_t)(rows * cols), bytes = n * fp8_dtype_size(reals[r]);
                check_case = "groups";
                make_normal(reals[r], (int64_t)n);
                up(dev_in, host_in, bytes);
                CHECK_STATUS(fp8_quantize_groups(gpu, (uint8_t *)dev_out, FP8_DTYPE_E4M3,
                                                 dev_descale, dev_in, reals[r], rows, cols, axis),
                             FP8_OK);
                CHECK_STATUS(fp8_quantize_groups(cpu, host_b, FP8_DTYPE_E4M3, descale_b, host_in,
                                                 reals[r], rows, cols, axis), FP8_OK);
                down(host_a, dev_out, n);
                down(descale_a, dev_descale, (size_t)groups * 4);
                check_bytes(host_a, host_b, n);
                check_bytes(descale_a, descale_b, (size_t)groups * 4);
                CHECK_STATUS(fp8_dequantize_groups(gpu, dev_in, FP8_DTYPE_BF16, (uint8_t *)dev_out,
                                                   FP8_DTYPE_E4M3, dev_descale, rows, cols, axis),
                             FP8_OK);
                CHECK_STATUS(fp8_dequantize_groups(cpu, host_in, FP8_DTYPE_BF16, host_b,
                                                   FP8_DTYPE_E4M3, descale_b, rows, cols, axis),
                             FP8_OK);
                down(host_a, dev_in, 2 * n);
                check_values(host_a, host_in, FP8_DTYPE_BF16, (int64_t)n);
            }
}

static void test_transpose(void) {
    check_case = "transpose";
    for (size_t s = 0; s < NUM_SHAPES; s++) {
        const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
        const size_t n = (size_t)(rows * cols);
        for (size_t i = 0; i < n; i++) host_in[i] = (uint8_t)(i * 31 >> 2);
        up(dev_in, host_in, n);
        CHECK_STATUS(fp8_transpose_codes(gpu, (uint8_t *)dev_out, (uint8_t *)dev_in, rows, cols),
                     FP8_OK);
        CHECK_STATUS(fp8_transpose_codes(cpu, host_b, host_in, rows, cols), FP8_OK);
        down(host_a, dev_out, n);
        check_bytes(host_a, host_b, n);
    }
}

static void test_observe(void) {
    static uint8_t first[1024];
    for (int r = 0; r < 1024; r++) first[r] = r % 7 == 0;
    up(dev_descale, first, sizeof first);
    for (int r = 0; r < NUM_REALS; r++)
        for (size_t s = 0; s < NUM_SHAPES; s++)
            for (int variant = 0; variant < 4; variant++) { /* with first rows; odd stride */
                const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
                const int64_t stride = cols + (variant & 2 ? 3 : 0);
                const uint8_t *marks = variant & 1 ? first : NULL;
                fp8_amax_slot want = {0.5f, 0.25f, 2, 0}, got = want;
                check_case = "observe";
                make_normal(reals[r], rows * stride);
                up(dev_in, host_in, (size_t)(rows * stride) * fp8_dtype_size(reals[r]));
                up(dev_out, &got, sizeof got);
                CHECK_STATUS(fp8_observe(gpu, (fp8_amax_slot *)(void *)dev_out, dev_in, reals[r],
                                         rows, cols, stride, marks ? (uint8_t *)dev_descale : NULL),
                             FP8_OK);
                CHECK_STATUS(fp8_observe(cpu, &want, host_in, reals[r], rows, cols, stride, marks),
                             FP8_OK);
                down(&got, dev_out, sizeof got);
                check_bytes(&got, &want, sizeof got);
            }
}

/* The histogram of hostile values, and the figures beside it as without. */
static void test_magnitudes(void) {
    static fp8_magnitudes got, want;
    fp8_magnitudes *bins = NULL;

    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&bins, sizeof got), FP8_OK);
    for (int r = 0; r < NUM_REALS; r++)
        for (size_t s = 0; s < NUM_SHAPES; s++)
            for (int odd = 0; odd < 2; odd++) {
                const int64_t rows = shapes[s].rows, cols = shapes[s].cols, stride = cols + 3 * odd;
                fp8_amax_slot slot = {0}, plain = {0};
                check_case = "magnitudes";
                make_normal(reals[r], rows * stride);
                up(dev_in, host_in, (size_t)(rows * stride) * fp8_dtype_size(reals[r]));
                up(dev_out, &slot, sizeof slot);
                CHECK_STATUS(fp8_device_fill(gpu, bins, 0, sizeof got), FP8_OK);
                CHECK_STATUS(fp8_observe_magnitudes(gpu, (fp8_amax_slot *)(void *)dev_out, bins,
                                                    dev_in, reals[r], rows, cols, stride, NULL),
                             FP8_OK);
                memset(&want, 0, sizeof want);
                CHECK_STATUS(fp8_observe_magnitudes(cpu, &plain, &want, host_in, reals[r], rows,
                                                    cols, stride, NULL), FP8_OK);
                down(&slot, dev_out, sizeof slot);
                down(&got, bins, sizeof got);
                check_bytes(&slot, &plain, sizeof slot);
                check_bytes(&got, &want, sizeof got);
            }
    fp8_device_free(gpu, bins);
}

static void test_measure(void) {
    static fp8_error_stats got, again, want;
    const float pair[2] = {48.0f, 1.0f / 48.0f};
    double host_workspace[4096];
    void *workspace = NULL;

    CHECK(fp8_measure_error_workspace(cpu) <= sizeof host_workspace);
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, fp8_measure_error_workspace(gpu)), FP8_OK);
    up(dev_descale, pair, sizeof pair);
    for (int r = 0; r < NUM_REALS; r++)
        for (size_t s = 0; s < NUM_SHAPES; s++) {
            const int64_t rows = shapes[s].rows, cols = shapes[s].cols;
            check_case = "measure";
            make_normal(reals[r], rows * cols);
            up(dev_in, host_in, (size_t)(rows * cols) * fp8_dtype_size(reals[r]));
            for (int round = 0; round < 2; round++) {
                CHECK_STATUS(fp8_device_fill(gpu, dev_out, 0, sizeof got), FP8_OK);
                CHECK_STATUS(fp8_measure_error(gpu, (fp8_error_stats *)(void *)dev_out, dev_in,
                                               reals[r], rows, cols, cols, FP8_DTYPE_E4M3,
                                               dev_descale, dev_descale + 1, workspace), FP8_OK);
                down(round ? &again : &got, dev_out, sizeof got);
            }
            memset(&want, 0, sizeof want);
            CHECK_STATUS(fp8_measure_error(cpu, &want, host_in, reals[r], rows, cols, cols,
                                           FP8_DTYPE_E4M3, &pair[0], &pair[1], host_workspace),
                         FP8_OK);
            check_bytes(&again, &got, sizeof got); /* the same every time */
            CHECK(fabs(got.signal - want.signal) <= 1e-10 * want.signal);
            CHECK(fabs(got.noise - want.noise) <= 1e-10 * want.noise);
            check_bytes(&got.count, &want.count, sizeof got - 2 * sizeof(double));
        }
    fp8_device_free(gpu, workspace);
}

int main(void) {
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&dev_in, sizeof host_in), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&dev_out, sizeof host_a), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, (void **)&dev_descale, sizeof descale_a), FP8_OK);
    if (check_failures) return CHECK_DONE();
    test_casts();
    test_groups();
    test_transpose();
    test_observe();
    test_magnitudes();
    test_measure();
    CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    fp8_device_free(gpu, dev_in);
    fp8_device_free(gpu, dev_out);
    fp8_device_free(gpu, dev_descale);
    fp8_device_destroy(gpu);
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
