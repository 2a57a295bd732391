/* attention/flash_launch.cuh - private: makes ready and launches one of a run's kernels. */
#ifndef FP8_ATTENTION_FLASH_LAUNCH_CUH
#define FP8_ATTENTION_FLASH_LAUNCH_CUH
#include <cuda_runtime.h>

#include "attention/flash_steps.h"
#include "core/cuda_check.h"

enum { FLASH_EMPTY_REGISTERS = 64 }; /* the kernel of other architectures, empty, has fewer */

/* Room for the shared memory of the kernel for head size d; NULL: there is none for d.
 * FP8_EUNSUPPORTED also where this build holds no sm_90a code. */
template <typename P>
static fp8_status flash_prepare(void (*kernel)(const P), int32_t d, size_t shared) {
    fp8_status st = FP8_OK;
    cudaFuncAttributes a;

    if (!kernel) return FP8_FAIL(FP8_EUNSUPPORTED, "d %d, expected 64, 128 or 256", d);
    FP8_TRY_CUDA(cudaFuncGetAttributes(&a, kernel));
    if (a.numRegs < FLASH_EMPTY_REGISTERS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "this build holds no sm_90a code");
    FP8_TRY_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared));
done:
    return st;
}

/* The kernel may start while the one before it on the stream ends, whosever that is (programmatic
 * dependent launch): before its first access to global memory it waits, dependencies_wait(). In
 * steps that is between the steps alone. */
template <typename P>
static fp8_status flash_launch(const char *name, void (*kernel)(const P), int64_t blocks,
                               unsigned threads, size_t shared, const flash_queue *to,
                               const P &p) {
    const flash_step step = {name,   (const void *)kernel, &p,     sizeof p,
                             shared, (uint32_t)blocks,     threads};
    cudaLaunchAttribute how = {};
    cudaLaunchConfig_t config = {};
    fp8_status st = FP8_OK;

    if (to->steps) return flash_steps_put(to->steps, &step);
    how.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    how.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = to->stream;
    config.attrs = &how;
    config.numAttrs = 1;
    FP8_TRY_CUDA(cudaLaunchKernelEx(&config, kernel, p));
    st = fp8_cuda_launched(name, to->stream);
done:
    return st;
}
#endif
