/* model/ops_cuda.cuh - private: what the CUDA operations of ops.h share. */
#ifndef FP8_MODEL_OPS_CUDA_CUH
#define FP8_MODEL_OPS_CUDA_CUH
#include "core/cuda_check.h"
#include "model/ops.h"

enum { QUAD = 4 }; /* floats in the widest load: 16 bytes */

/* FP8_EINVAL unless t is of that type, on the device, and has as many elements. */
fp8_status fp8_ops_check(const char *operation, const fp8_tensor *t, fp8_dtype dtype,
                         int64_t count);

fp8_status fp8_score_cuda(fp8_device *d, const fp8_tensor *logits, const fp8_tensor *reference,
                          const int32_t *targets, float *nll, float *kl, uint8_t *top1);
fp8_status fp8_route_cuda(fp8_device *d, const fp8_route *r);
fp8_status fp8_combine_cuda(fp8_device *d, void *x, const fp8_combine *c);
#endif
