/* Layers that come and go, on CUDA. */
#include "tests/layers_check.h"

int main(void) {
    static const char *const shared[] = {"models/llama-11m", "models/gemma-7m"};
    fp8_device *d = check_gpu();

    if (!d) return TEST_SKIP;
    sample_begin();
    layers_check(d, sample_path("examples/sample-model"));
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        if (check_data(shared[i])) {
            char folder[4096];
            snprintf(folder, sizeof folder, "%s", check_data(shared[i]));
            layers_check(d, folder);
        }
    sample_done();
    fp8_device_destroy(d);
    return CHECK_DONE();
}
