#include "model/inputs_cuda.h"

#include "core/cuda_check.h"

fp8_status fp8_inputs_copy_cuda(fp8_device *d, void *dst, const void *src, size_t bytes) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, fp8_device_stream(d)));
done:
    return st;
}
