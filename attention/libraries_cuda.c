#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <stdio.h>

#include "attention/attention_impl.h"

void attention_cuda_libraries(char *text, size_t bytes) {
    const size_t lt = cublasLtGetVersion(), dnn = attention_cudnn_version();
    int cuda = 0;
    (void)cudaRuntimeGetVersion(&cuda);
    snprintf(text, bytes, "CUDA %d.%d, cuBLASLt %zu.%zu.%zu, cuDNN %zu.%zu.%zu", cuda / 1000,
             cuda / 10 % 100, lt / 10000, lt / 100 % 100, lt % 100, dnn / 10000, dnn / 100 % 100,
             dnn % 100);
}
