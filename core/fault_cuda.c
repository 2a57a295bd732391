/* core/fault.h for calls of CUDA, cuBLASLt and cuDNN. Left out are those whose failure only means
 * another way of doing the same (probing a device, an algorithm, an engine). */
#ifdef FP8_FAULTS
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include "core/fault.h"

/* X(result, name, error, parameters, arguments) */
#define CUDA_FAULT_MAP(X)                                                                          \
    X(cudaError_t, cudaMalloc, cudaErrorMemoryAllocation, (void **p, size_t n), (p, n))            \
    X(cudaError_t, cudaMallocHost, cudaErrorMemoryAllocation, (void **p, size_t n), (p, n))        \
    X(cudaError_t, cudaMemcpyAsync, cudaErrorUnknown,                                              \
      (void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s),               \
      (to, from, n, k, s))                                                                         \
    X(cudaError_t, cudaMemsetAsync, cudaErrorUnknown,                                              \
      (void *p, int byte, size_t n, cudaStream_t s), (p, byte, n, s))                              \
    X(cudaError_t, cudaStreamCreateWithFlags, cudaErrorUnknown, (cudaStream_t * s, unsigned f),    \
      (s, f))                                                                                      \
    X(cudaError_t, cudaStreamSynchronize, cudaErrorUnknown, (cudaStream_t s), (s))                 \
    X(cudaError_t, cudaEventCreateWithFlags, cudaErrorUnknown, (cudaEvent_t * e, unsigned f),      \
      (e, f))                                                                                      \
    X(cudaError_t, cudaEventRecord, cudaErrorUnknown, (cudaEvent_t e, cudaStream_t s), (e, s))     \
    X(cudaError_t, cudaEventSynchronize, cudaErrorUnknown, (cudaEvent_t e), (e))                   \
    X(cudaError_t, cudaGetLastError, cudaErrorLaunchFailure, (void), ())                           \
    X(cublasStatus_t, cublasLtCreate, CUBLAS_STATUS_ALLOC_FAILED, (cublasLtHandle_t * h), (h))     \
    X(cublasStatus_t, cublasLtMatmul, CUBLAS_STATUS_EXECUTION_FAILED,                              \
      (cublasLtHandle_t h, cublasLtMatmulDesc_t op, const void *alpha, const void *a,              \
       cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,      \
       const void *c, cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,               \
       const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes, cudaStream_t stream),      \
      (h, op, alpha, a, la, b, lb, beta, c, lc, d, ld, algo, workspace, bytes, stream))            \
    X(cudnnStatus_t, cudnnBackendExecute, CUDNN_STATUS_EXECUTION_FAILED,                           \
      (cudnnHandle_t h, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),             \
      (h, plan, pack))

#define WRAP(result, name, error, parameters, arguments)                                           \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters {                                                              \
        if (fp8_fault_hits(#name, 0, __builtin_return_address(0))) return error;                   \
        return __real_##name arguments;                                                            \
    }
CUDA_FAULT_MAP(WRAP)
#else
extern int fp8_no_cuda_faults; /* ISO C has no empty file */
#endif
