/* Calibrated amax of the fixtures on CUDA, in BF16. */
#include "tests/fixture_amax.h"

int main(void) {
    fp8_device *gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    fp8_device_destroy(gpu);
    if (test_fixtures("cuda", FP8_COMPUTE_BF16, 0.03) == TEST_SKIP) return TEST_SKIP;
    return CHECK_DONE();
}
