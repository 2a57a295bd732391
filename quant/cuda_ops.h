/* quant/cuda_ops.h - private: the CUDA halves of the calls in this folder. Arguments were checked
 * and nothing is empty. In a build without CUDA they are absent and FP8_ON_CUDA is constant 0. */
#ifndef FP8_QUANT_CUDA_OPS_H
#define FP8_QUANT_CUDA_OPS_H
#include "quant/cast.h"
#include "quant/gemm.h"
#include "quant/gemm_tune.h"

#if FP8_CUDA
#define FP8_ON_CUDA(d) (fp8_device_place(d) == FP8_PLACE_CUDA)
#define FP8_CUDA_CALL(call) call
#else
#define FP8_ON_CUDA(d) ((void)(d), 0)
#define FP8_CUDA_CALL(call) FP8_EUNSUPPORTED
#endif

#ifdef __cplusplus
extern "C" {
#endif

fp8_status fp8_cuda_quantize(fp8_device *d, uint8_t *codes, fp8_dtype to, const void *x,
                             fp8_dtype from, int64_t n, const float *scale);
fp8_status fp8_cuda_dequantize(fp8_device *d, void *x, fp8_dtype to, const uint8_t *codes,
                               fp8_dtype from, int64_t n, const float *descale);
fp8_status fp8_cuda_quantize_groups(fp8_device *d, uint8_t *codes, fp8_dtype to, float *descale,
                                    const void *x, fp8_dtype from, int64_t rows, int64_t cols,
                                    int32_t axis);
fp8_status fp8_cuda_dequantize_groups(fp8_device *d, void *x, fp8_dtype to, const uint8_t *codes,
                                      fp8_dtype from, const float *descale, int64_t rows,
                                      int64_t cols, int32_t axis);
fp8_status fp8_cuda_transpose_codes(fp8_device *d, uint8_t *out, const uint8_t *in, int64_t rows,
                                    int64_t cols);
fp8_status fp8_cuda_quantize_transposed(fp8_device *d, uint8_t *codes_t, uint8_t *codes,
                                        fp8_dtype to, const void *x, fp8_dtype from, int64_t rows,
                                        int64_t cols, const float *scale);
/* bins may be NULL. */
fp8_status fp8_cuda_observe(fp8_device *d, fp8_amax_slot *out, fp8_magnitudes *bins, const void *x,
                            fp8_dtype dtype, int64_t rows, int64_t cols, int64_t stride,
                            const uint8_t *first);
size_t fp8_cuda_measure_error_workspace(const fp8_device *d);
fp8_status fp8_cuda_measure_error(fp8_device *d, fp8_error_stats *out, const void *x,
                                  fp8_dtype dtype, int64_t rows, int64_t cols, int64_t stride,
                                  fp8_dtype to, const float *scale, const float *descale,
                                  void *workspace);

fp8_status fp8_gemm_check(const fp8_gemm *g); /* all that no device changes; FP8_EINVAL */
int fp8_cuda_gemm_supported(const fp8_device *d, const fp8_gemm *g);
int fp8_cuda_gemm_gates(const fp8_device *d, const fp8_gemm *g);
size_t fp8_cuda_gemm_workspace_size(const fp8_device *d, const fp8_gemm *g);
fp8_status fp8_cuda_gemm_run(fp8_device *d, const fp8_gemm *g, void *workspace,
                             size_t workspace_bytes);
fp8_status fp8_cuda_gemm_tune(fp8_device *d, const fp8_gemm *g, void *workspace,
                              size_t workspace_bytes, int same_bits, fp8_gemm_tuned *tuned);

#ifdef __cplusplus
}
#endif
#endif
