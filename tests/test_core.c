/* core/: sizes, dtype table, errors, arena, pool, half precision, devices. */
#include <string.h>

#include "core/core.h"
#include "tests/check.h"

static void test_sizes(void) {
    static const struct {
        const char *name;
        int64_t shape[FP8_MAX_DIMS];
        int32_t ndim;
        fp8_dtype dtype;
        fp8_status want;
        size_t bytes;
    } cases[] = {
        {"scalar", {0}, 0, FP8_DTYPE_F32, FP8_OK, 4},
        {"matrix", {3, 5}, 2, FP8_DTYPE_BF16, FP8_OK, 30},
        {"empty", {3, 0}, 2, FP8_DTYPE_BF16, FP8_OK, 0},
        {"zero hides overflow", {INT64_MAX, INT64_MAX, 0}, 3, FP8_DTYPE_U8, FP8_OK, 0},
        {"negative", {-1, 4}, 2, FP8_DTYPE_U8, FP8_EINVAL, 0},
        {"rank", {1}, FP8_MAX_DIMS + 1, FP8_DTYPE_U8, FP8_EINVAL, 0},
        {"product", {INT64_MAX, 2}, 2, FP8_DTYPE_U8, FP8_EOVERFLOW, 0},
        {"bits", {INT64_MAX / 4}, 1, FP8_DTYPE_F32, FP8_EOVERFLOW, 0},
        {"half a byte", {3}, 1, FP8_DTYPE_F4, FP8_EINVAL, 0},
        {"two nibbles", {4}, 1, FP8_DTYPE_F4, FP8_OK, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t bytes = 0;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_shape_bytes(&bytes, cases[i].dtype, cases[i].shape, cases[i].ndim),
                     cases[i].want);
        CHECK(bytes == cases[i].bytes);
    }
}

static void test_dtypes(void) {
    fp8_dtype t = FP8_DTYPE_BOOL;
    check_case = "dtypes";
    for (int i = 0; i < FP8_NUM_DTYPES; i++) {
        const char *name = fp8_dtype_name((fp8_dtype)i);
        CHECK_STATUS(fp8_dtype_parse(&t, name, strlen(name)), FP8_OK);
        CHECK((int)t == i);
    }
    CHECK_STATUS(fp8_dtype_parse(&t, "bf16", 4), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_dtype_parse(&t, "BF16", 3), FP8_ENOTFOUND);
    CHECK(fp8_dtype_size(FP8_DTYPE_F4) == 0 && fp8_dtype_size(FP8_DTYPE_E4M3) == 1);
}

static void test_errors(void) {
    check_case = "errors";
    CHECK(FP8_FAIL(FP8_EDATA, "weight %d", 7) == FP8_EDATA);
    CHECK(strcmp(fp8_last_message(), "weight 7") == 0);
    CHECK(strncmp(fp8_last_error(), "tests/test_core.c:", 18) == 0);
    CHECK(FP8_FAIL(FP8_EIO, "again: %s", fp8_last_message()) == FP8_EIO);
    CHECK(strcmp(fp8_last_message(), "again: weight 7") == 0);
}

static fp8_status add_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    (void)worker;
    for (int64_t i = begin; i < end; i++) ((int *)ctx)[i]++;
    return FP8_OK;
}

static fp8_status fail_at_17(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    (void)ctx, (void)worker;
    return begin <= 17 && 17 < end ? FP8_FAIL(FP8_EDATA, "seventeen") : FP8_OK;
}

static void test_pool(void) {
    static int seen[1000];
    fp8_pool *p = NULL;
    check_case = "pool";
    CHECK_STATUS(fp8_pool_create(&p, -1), FP8_EINVAL);
    CHECK_STATUS(fp8_pool_create(&p, 4), FP8_OK);
    CHECK(fp8_pool_threads(p) == 4);
    for (int round = 0; round < 200; round++)
        CHECK_STATUS(fp8_parallel_for(p, 1000, 7, add_range, seen), FP8_OK);
    for (int i = 0; i < 1000; i++) CHECK(seen[i] == 200);
    CHECK_STATUS(fp8_parallel_for(p, 100, 1, fail_at_17, NULL), FP8_EDATA);
    CHECK(strcmp(fp8_last_message(), "seventeen") == 0);
    CHECK_STATUS(fp8_parallel_for(p, 0, 1, fail_at_17, NULL), FP8_OK);
    CHECK_STATUS(fp8_parallel_for(p, 1, 0, fail_at_17, NULL), FP8_EINVAL);
    fp8_pool_destroy(p);
}

static void test_arena(void) {
    fp8_arena a = {0};
    char *first = fp8_arena_copy(&a, "a\0b", 3);
    check_case = "arena";
    for (size_t i = 0; i < 3000; i++) {
        char *p = fp8_arena_alloc(&a, i % 97 == 0 ? 100000 : i);
        CHECK(p && (uintptr_t)p % 16 == 0);
        if (p && i) p[i - 1] = 1;
    }
    CHECK(memcmp(first, "a\0b", 4) == 0);
    CHECK(fp8_arena_alloc(&a, SIZE_MAX) == NULL);
    fp8_arena_free(&a);
}

/* Every code there and back; and rounding against a search for the nearest, ties to even. */
static void test_half(void) {
    check_case = "half";
    for (uint32_t h = 0; h < 65536; h++) {
        const float b = fp8_bf16_to_f32((uint16_t)h), f = fp8_f16_to_f32((uint16_t)h);
        if (b == b) CHECK(fp8_f32_to_bf16(b) == h);
        else CHECK(isnan(fp8_bf16_to_f32(fp8_f32_to_bf16(b))));
        if (f == f) CHECK(fp8_f32_to_f16(f) == h);
        else CHECK(isnan(fp8_f16_to_f32(fp8_f32_to_f16(f))));
        if (h < 0x7bff) { /* halfway to the next FP16 goes to the even one; a hair off does not */
            const float next = fp8_f16_to_f32((uint16_t)(h + 1)), mid = (f + next) * 0.5f;
            CHECK(fp8_f32_to_f16(mid) == (h + (h & 1)));
            CHECK(fp8_f32_to_f16(nextafterf(mid, 0.0f)) == h);
            CHECK(fp8_f32_to_f16(nextafterf(mid, INFINITY)) == h + 1);
        }
        if (h < 0x7f7f) {
            const float mid = fp8_bits_f32(h << 16 | 0x8000u);
            CHECK(fp8_f32_to_bf16(mid) == (h + (h & 1)));
            CHECK(fp8_f32_to_bf16(nextafterf(mid, INFINITY)) == h + 1);
        }
    }
    CHECK(fp8_f32_to_f16(65520.0f) == 0x7c00 && fp8_f32_to_f16(65519.0f) == 0x7bff);
}

static void test_device(void) {
    static const char *const bad[] = {"",       "gpu",  "cuda:",     "cuda:-1",
                                      "cuda:x", "cpu ", "cuda:99999"};
    fp8_device *d = NULL;
    void *p = NULL;
    char back[4] = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check_case = bad[i];
        CHECK_STATUS(fp8_device_create(&d, bad[i], 1), FP8_EINVAL);
        CHECK(d == NULL);
    }
    check_case = "cpu";
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    CHECK(fp8_device_place(d) == FP8_PLACE_CPU);
    CHECK(strcmp(fp8_device_name(d), "CPU, 2 threads") == 0);
    CHECK_STATUS(fp8_device_alloc(d, &p, 0), FP8_OK);
    CHECK(p != NULL);
    fp8_device_free(d, p);
    CHECK_STATUS(fp8_device_alloc(d, &p, SIZE_MAX), FP8_ENOMEM);
    CHECK_STATUS(fp8_device_alloc(d, &p, 4), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, p, "abc", 4), FP8_OK);
    CHECK_STATUS(fp8_device_download(d, back, p, 4), FP8_OK);
    CHECK(strcmp(back, "abc") == 0);
    fp8_device_free(d, p);
    fp8_device_destroy(d);
}

int main(void) {
    test_sizes();
    test_dtypes();
    test_errors();
    test_pool();
    test_arena();
    test_half();
    test_device();
    return CHECK_DONE();
}
