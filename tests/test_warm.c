/* calib/warm.h where there is nothing to warm up: the CPU. (On a GPU: gpu_warm.c.) */
#include "calib/warm.h"
#include "check.h"

int main(void) {
    const fp8_model_config config = {.num_layers = 28, .hidden_size = 3072, .num_heads = 16,
                                     .num_kv_heads = 16, .head_dim = 256,
                                     .intermediate_size = 24576};
    fp8_device *d = NULL;
    fp8_warm *w = (fp8_warm *)(void *)&d; /* anything but NULL */

    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    CHECK_STATUS(fp8_warm_start(&w, d, &config, 4096, INT32_MAX), FP8_OK);
    CHECK(w == NULL);
    fp8_warm_end(w);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
