/* fp8_linear_apply on the CPU: every scaling, what is fused, weights of a fixture, refusals. */
#include "tests/linear_fused.h"

static void test_refused(fp8_device *d) {
    static linear_data t;
    const linear_case c = {"refused", 256, 128, W8, BLOCK, GROUPS, B16, B16, 0, 0, 0, 0};
    fp8_linear_spec good, bad[9];
    fp8_linear *l = NULL;

    linear_prepare(&t, &c);
    good = linear_spec_of(&t, &c);
    for (int i = 0; i < 9; i++) bad[i] = good;
    bad[0].num_weight_descales = 1;
    bad[1].weight_descale = NULL;
    bad[2].input = STATIC;
    bad[3].weight_scaling = FP8_WEIGHT_AS_GIVEN;
    bad[4].weight_scaling = TENSOR; /* FP8 already */
    bad[5].weight.place = FP8_PLACE_CUDA;
    bad[6].weight.dtype = B16, bad[6].num_weight_descales = 0, bad[6].borrow_weight = 1;
    bad[7] = (fp8_linear_spec){.name = "delayed", .in = 256, .out = 128, .weight = good.weight,
                               .input = DELAYED, .compute = B16};
    bad[8].layout = FP8_WEIGHT_IN_OUT, bad[8].in = 128, bad[8].out = 256;
    for (int i = 0; i < 9; i++) {
        char name[24];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK_STATUS(fp8_linear_create(&l, d, &bad[i]), FP8_EINVAL);
        CHECK(l == NULL);
    }
    check_case = "";
}

static void test_calls_refused(fp8_device *d) {
    static linear_data t;
    static float x[4 * 256], y[4 * 128], scale[64];
    static uint8_t workspace[1 << 22];
    const linear_case c = {"call", 256, 128, W8, BLOCK, GROUPS, B32, B32, 0, 0, 0, 0};
    fp8_linear_spec spec;
    fp8_linear *l = NULL;
    fp8_tensor in = fp8_tensor_view(x, B32, FP8_PLACE_CPU, 4, 256);
    fp8_tensor out = fp8_tensor_view(y, B32, FP8_PLACE_CPU, 4, 128);
    fp8_tensor codes = fp8_tensor_view(x, W8, FP8_PLACE_CPU, 4, 256);
    fp8_tensor wide = fp8_tensor_view(x, B32, FP8_PLACE_CPU, 4, 129);
    const fp8_linear_call no_descale = {0}, short_ld = {.x_descale = scale, .x_descale_ld = 3},
                          residual = {.residual = &wide},
                          both = {.residual = &out, .activation = FP8_GEMM_GELU_TANH};
    const int64_t tokens[] = {5};

    check_case = c.name;
    linear_prepare(&t, &c);
    spec = linear_spec_of(&t, &c);
    CHECK_STATUS(fp8_linear_create(&l, d, &spec), FP8_OK);
    CHECK_STATUS(fp8_linear_apply(l, &out, &in, NULL, workspace, sizeof workspace), FP8_OK);
    CHECK_STATUS(fp8_linear_apply(l, &out, &codes, &no_descale, workspace, sizeof workspace),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_linear_apply(l, &out, &codes, &short_ld, workspace, sizeof workspace),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_linear_apply(l, &out, &in, &residual, workspace, sizeof workspace),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_linear_apply(l, &out, &in, &both, workspace, sizeof workspace), FP8_EINVAL);
    CHECK_STATUS(fp8_linear_apply(l, &wide, &in, NULL, workspace, sizeof workspace), FP8_EINVAL);
    CHECK_STATUS(fp8_linear_tune(l, NULL, 0, 4, B32, NULL, workspace, sizeof workspace), FP8_OK);
    CHECK_STATUS(fp8_linear_tune(l, tokens, 1, 4, B32, NULL, workspace, sizeof workspace),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_linear_tune(l, tokens, 1, 5, B32, NULL, workspace, 8), FP8_EINVAL);
    fp8_linear_destroy(l);
}

int main(void) {
    const char *fixture = check_data("fixtures/llama/model.safetensors");
    fp8_device *d = NULL;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    if (!d) return CHECK_DONE();
    if (fixture) linear_test_fixture(d, fixture, 1);
    for (size_t i = 0; i < sizeof linear_cases / sizeof *linear_cases; i++)
        linear_test(d, &linear_cases[i]);
    test_refused(d);
    test_calls_refused(d);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
