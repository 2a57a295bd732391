/* Rows of a mixture of experts on the CPU; and a model in which one sequence is NaN. */
#include "tests/model_fixture.h"
#include "tests/moe_cases.h"

static fp8_status spoil(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    float *data = x->data;

    (void)ctx;
    if (layer == 0 && point == FP8_POINT_HIDDEN)
        for (int64_t i = 0; i < FIXTURE_LEN * x->shape[1]; i++) data[i] = NAN;
    return FP8_OK;
}

/* The first sequence is NaN: its tokens have experts all the same, each of them different, and the
 * second sequence is what it was. */
static void test_nan(const char *name) {
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = FIXTURE_TOKENS};
    const fp8_tap tap = {.on = spoil};
    enum { HALF = FIXTURE_LEN * FIXTURE_VOCAB };
    fp8_model *m = NULL;
    fp8_tensor logits;
    fp8_batch batch;
    fixture f;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    batch = fixture_batch(&f);
    CHECK_STATUS(fp8_model_load(&m, moe_device, f.checkpoint, &options), FP8_OK);
    if (m) {
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, &tap, FP8_LOGITS_ALL, &logits), FP8_OK);
        CHECK(isnan(((float *)logits.data)[0]) && isnan(((float *)logits.data)[HALF - 1]));
        CHECK(check_relative_l2((float *)logits.data + HALF, f.logits + HALF, HALF) <= 1e-5);
    }
    fp8_model_destroy(m);
    fixture_close(&f);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&moe_device, "cpu", 2), FP8_OK);
    moe_ops = fp8_ops_cpu();
    if (moe_device) {
        moe_test_all();
        test_nan("mixtral");
        test_nan("qwen2_moe");
        test_nan("qwen3_moe");
    }
    fp8_device_destroy(moe_device);
    return CHECK_DONE();
}
