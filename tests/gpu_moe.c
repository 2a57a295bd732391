/* Rows of a mixture of experts on CUDA. */
#include "tests/moe_cases.h"

int main(void) {
    moe_device = check_gpu();
    if (!moe_device) return TEST_SKIP;
    moe_ops = fp8_ops_cuda();
    moe_test_all();
    fp8_device_destroy(moe_device);
    return CHECK_DONE();
}
