/* Calibrated amax of the fixtures on the CPU. In F32 both sides sum in another order: 3e-6 or less
 * here. In BF16 each of some ten roundings on the way is up to 0.4 %. */
#include "tests/fixture_amax.h"

int main(void) {
    if (test_fixtures("cpu", FP8_COMPUTE_F32, 1e-5) == TEST_SKIP) return TEST_SKIP;
    if (test_fixtures("cpu", FP8_COMPUTE_BF16, 0.03) == TEST_SKIP) return TEST_SKIP;
    return CHECK_DONE();
}
