/* The sums of compensated rounding on CUDA. */
#include "tests/hessian_check.h"

int main(void) {
    uint64_t seed = 9;
    fp8_device *d = check_gpu();
    if (!d) return TEST_SKIP;
    hessian_check_all(d, 0, &seed);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
