/* Layers that come and go, on the CPU. */
#include "tests/layers_check.h"

static void test_refused(fp8_device *d) {
    const char *folder = check_data("models/gpt2-3m/config.json") ? check_data("models/gpt2-3m")
                                                                   : NULL;
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;

    check_case = "[in, out]";
    if (!folder) return;
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    CHECK_STATUS(layers_load(&m, d, c, 1), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "kept [out, in]") != NULL);
    fp8_checkpoint_close(c);
}

static void test_batches(fp8_device *d) {
    static const int32_t starts[] = {0, 4}, ids[] = {1, 2, 3, 4};
    const fp8_batch none = {ids, 0, starts, 1};
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;

    check_case = "batches";
    CHECK_STATUS(fp8_checkpoint_open(&c, sample_path("examples/sample-model")), FP8_OK);
    CHECK_STATUS(layers_load(&m, d, c, 0), FP8_OK);
    CHECK_STATUS(fp8_model_forward_layers(m, &none, 1, NULL, NULL, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_model_forward_layers(m, NULL, 0, NULL, NULL, NULL), FP8_OK);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
}

int main(void) {
    static const char *const shared[] = {"models/llama-11m", "models/gemma-7m"};
    fp8_device *d = NULL;

    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    sample_begin();
    layers_check(d, sample_path("examples/sample-model"));
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        if (check_data(shared[i])) {
            char folder[4096];
            snprintf(folder, sizeof folder, "%s", check_data(shared[i]));
            layers_check(d, folder);
        }
    test_refused(d);
    test_batches(d);
    sample_done();
    fp8_device_destroy(d);
    return CHECK_DONE();
}
