/* attention/flash_launch.cuh - private: launches one of a run's kernels. */
#ifndef FP8_ATTENTION_FLASH_LAUNCH_CUH
#define FP8_ATTENTION_FLASH_LAUNCH_CUH
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#include "core/device.h"

/* dependent: the kernel may start while the one before it on the stream ends (programmatic
 * dependent launch); it waits for that one's results itself, dependencies_wait(). */
template <typename P>
static fp8_status flash_launch(const char *name, void (*kernel)(const P), int64_t blocks,
                               unsigned threads, size_t shared, fp8_stream stream, const P &p,
                               bool dependent) {
    cudaLaunchAttribute how = {};
    cudaLaunchConfig_t config = {};
    fp8_status st = FP8_OK;

    how.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    how.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &how;
    config.numAttrs = dependent ? 1 : 0;
    FP8_TRY_CUDA(cudaLaunchKernelEx(&config, kernel, p));
    st = fp8_cuda_launched(name, stream);
done:
    return st;
}
#endif
