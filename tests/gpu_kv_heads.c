/* Scales of keys and values by head, calibrated on CUDA. */
#include "tests/kv_heads_check.h"

int main(void) {
    fp8_device *gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    fp8_device_destroy(gpu);
    return kv_check_all("cuda");
}
