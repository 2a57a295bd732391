/* fp8_block_forward on CUDA against the formula in double, with each attention backend that serves
 * the case; and the same bytes from a replayed graph's worth of forwards (twice the same). */
#include "tests/block_check.h"

int main(void) {
    static const fp8_attention_backend backends[] = {FP8_BACKEND_AUTO, FP8_BACKEND_UNFUSED};
    fp8_device *gpu = check_gpu();

    if (!gpu) return TEST_SKIP;
    for (int i = 0; i < NUM_BLOCK_CASES; i++)
        for (size_t k = 0; k < sizeof backends / sizeof *backends; k++)
            check_block(gpu, &block_cases[i], FP8_DTYPE_BF16, backends[k],
                        block_bound_bf16(block_cases[i].input != FP8_INPUT_DENSE));
    CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
