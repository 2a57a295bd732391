#include "core/tensor_map.h"

#include <stdatomic.h>

#include "core/cuda_check.h"

fp8_status fp8_tensor_map_encoder(fp8_tensor_map_encode *out) {
    static _Atomic(fp8_tensor_map_encode) known; /* threads that meet here store the same */
    enum cudaDriverEntryPointQueryResult found;
    void *f = NULL;
    fp8_status st = FP8_OK;

    *out = atomic_load(&known);
    if (*out) return FP8_OK;
#if CUDART_VERSION >= 12050
    FP8_TRY_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                  cudaEnableDefault, &found));
#else
    FP8_TRY_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || !f)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "the driver has no cuTensorMapEncodeTiled"));
    *out = (fp8_tensor_map_encode)f;
    atomic_store(&known, *out);
done:
    return st;
}
