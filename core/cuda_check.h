/* core/cuda_check.h - CUDA result -> fp8_status. Private: never included by a public header. */
#ifndef FP8_CORE_CUDA_CHECK_H
#define FP8_CORE_CUDA_CHECK_H
#include <cuda_runtime_api.h>

#include "core/status.h"

/* Needs `fp8_status st` and a `done:` label in scope, like FP8_TRY. */
#define FP8_TRY_CUDA(expr)                                                                         \
    do {                                                                                           \
        cudaError_t e_ = (expr);                                                                   \
        if (e_ != cudaSuccess) {                                                                   \
            (void)cudaGetLastError(); /* do not blame the next call */                             \
            st = FP8_FAIL(FP8_ECUDA, "%s: %s", #expr, cudaGetErrorString(e_));                     \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

/* After a kernel launch, in a function that returns fp8_status: checks it was accepted. With
 * FP8_SYNC=1 in the environment it also waits, so that a fault names its kernel. */
#ifdef __cplusplus
extern "C"
#endif
fp8_status fp8_cuda_launched(const char *kernel, struct CUstream_st *stream);
#endif
