/* What is fused behind a CPU product, and block descales, against the formula in double; the same
 * bytes for any number of threads; refusals. */
#include "tests/gemm_fused.h"

static void test_refused(fp8_device *d) {
    const fused_case c = {"refused", 8, 256, 256, E4M3, E4M3, BF16, BLOCKS, -1, BF16, 0, 0, 0, 0};
    fused_problem p = fused_problem_of(d, &c, NORMAL);
    fp8_gemm bad[10];

    for (int i = 0; i < 10; i++) bad[i] = p.g;
    bad[0].activation = FP8_GEMM_GELU_TANH; /* beside a residual */
    bad[1].a_descale_ld = 7;
    bad[2].b_descale_ld = 1;
    bad[3].b_descale = NULL;
    bad[4].ldr = 255;
    bad[5].residual_dtype = FP8_DTYPE_E4M3;
    bad[6].d_scale = p.a_descale.device; /* with a BF16 d */
    bad[7].residual = p.g.d, bad[7].ldr = 264;
    bad[8].activation = FP8_GEMM_SWIGLU; /* beside a residual */
    bad[9].activation = FP8_GEMM_SWIGLU, bad[9].residual = NULL, bad[9].n = 255;
    for (int i = 0; i < 10; i++) {
        char name[16];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK(!fp8_gemm_supported(d, &bad[i]));
        CHECK_STATUS(fp8_gemm_run(d, &bad[i], NULL, 0), FP8_EINVAL);
    }
    check_case = "";
    fused_drop_problem(d, &p);
}

static void test_threads(fp8_device *one, fp8_device *three) {
    const fused_case c = {"threads", 40, 256, 300, E4M3, E4M3, E4M3, VECTORS, BF16, -1, 1, 1, 0, 0};
    fused_problem p = fused_problem_of(one, &c, NORMAL);
    uint8_t *once = malloc(p.d.bytes);
    float amax;

    check_case = c.name;
    fused_run(one, &p);
    memcpy(once, p.d.device, p.d.bytes);
    memcpy(&amax, p.amax.device, sizeof amax);
    fused_run(three, &p);
    CHECK(memcmp(once, p.d.device, p.d.bytes) == 0);
    CHECK(memcmp(&amax, p.amax.device, sizeof amax) == 0);
    free(once);
    fused_drop_problem(one, &p);
}

/* NaN and Inf in a row stay in that row, and amax is of something. */
static void test_hostile(fp8_device *d) {
    const fused_case c = {"hostile", 12, 64, 64, BF16, BF16, E4M3, PLAIN, -1, -1, 0, 1, 0, 0};
    fused_problem p = fused_problem_of(d, &c, NORMAL);
    uint16_t *a = p.a.device;
    uint8_t *out = p.d.device;

    check_case = c.name;
    a[0] = 0x7fc0;                                     /* NaN */
    for (int k = 0; k < 64; k++) a[2 * 64 + k] = 0;    /* a row of zeros */
    fused_run(d, &p);
    for (int j = 0; j < 64; j++) {
        CHECK((out[j] & 0x7f) == 0x7f);
        CHECK((out[64 + j] & 0x7f) != 0x7f);
        CHECK((out[2 * 64 + j] & 0x7f) == 0);
    }
    fused_drop_problem(d, &p);
}

int main(void) {
    fp8_device *d = NULL, *one = NULL;

    CHECK_STATUS(fp8_device_create(&d, "cpu", 3), FP8_OK);
    CHECK_STATUS(fp8_device_create(&one, "cpu", 1), FP8_OK);
    if (check_failures) return CHECK_DONE();
    for (size_t i = 0; i < sizeof fused_cases / sizeof *fused_cases; i++)
        fused_test(d, &fused_cases[i], NORMAL);
    test_threads(one, d);
    test_hostile(d);
    test_refused(d);
    fp8_device_destroy(one);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
