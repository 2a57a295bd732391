/* quant/linear.h - a Linear layer y = x W^T + b, with dense (BF16, F16, F32) or FP8 weights.
 *
 * Made once, run many times, any token count. Forward allocates nothing and never waits. */
#ifndef FP8_QUANT_LINEAR_H
#define FP8_QUANT_LINEAR_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
#include "quant/gemm.h"
#include "quant/produce.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_weight_layout {
    FP8_WEIGHT_OUT_IN, /* [out, in]: nn.Linear */
    FP8_WEIGHT_IN_OUT  /* [in, out]: GPT-2's Conv1D */
} fp8_weight_layout;

typedef enum fp8_input_scaling {
    FP8_INPUT_DENSE,  /* x is used as it is */
    FP8_INPUT_STATIC, /* x is quantized with 1/input_descale */
    FP8_INPUT_DYNAMIC /* one scale a token, from its own amax */
} fp8_input_scaling;

typedef struct fp8_linear_spec {
    const char *name; /* for messages; copied */
    int64_t in, out;
    fp8_tensor weight; /* CPU memory; E4M3, E5M2, BF16, F16 or F32 */
    fp8_weight_layout layout;
    const float *weight_descale; /* CPU; FP8 weights: [1] or [out] */
    int64_t num_weight_descales; /* 0, 1 or out */
    fp8_input_scaling input;     /* not DENSE needs FP8 weights */
    float input_descale;         /* STATIC */
    fp8_tensor bias;             /* CPU; data NULL = none; BF16, F16 or F32 [out] */
    fp8_dtype compute;           /* BF16 | F32: type of dense x and of y */
    int borrow_weight;           /* CPU only: keep the pointer (an mmap) instead of a copy */
} fp8_linear_spec;

typedef struct fp8_linear fp8_linear;

/* Uploads (CUDA) or copies / borrows (CPU) the weights; dense weights of another type than
 * `compute` are converted (on the CPU not where that is exact anyway). On CUDA FP8 weights that
 * cuBLASLt cannot multiply are kept as the BF16 values of their codes, and so are codes of x: the
 * same numbers. FP8_EINVAL, FP8_ENOMEM, FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_linear_create(fp8_linear **out, fp8_device *d,
                                           const fp8_linear_spec *spec);
void fp8_linear_destroy(fp8_linear *l);

int64_t fp8_linear_in(const fp8_linear *l);
int64_t fp8_linear_out(const fp8_linear *l);
fp8_input_scaling fp8_linear_input_scaling(const fp8_linear *l);
float fp8_linear_input_descale(const fp8_linear *l); /* STATIC only */

size_t fp8_linear_workspace_size(const fp8_linear *l, int64_t max_tokens);

/* y[t,:] = x[t,:] W^T + b.
 *   y  out  [tokens, out] of the compute type, place of the device
 *   x  in   [tokens, in]: of the compute type (quantized inside as the spec says), or E4M3 codes
 *           already quantized, with x_descale [1] (STATIC) or [tokens] (DYNAMIC), same place
 * Asynchronous; FP8_EINVAL: shapes, dtypes, workspace too small (expected, found). */
FP8_NODISCARD fp8_status fp8_linear_forward(const fp8_linear *l, const fp8_tensor *y,
                                            const fp8_tensor *x, const float *x_descale,
                                            fp8_accumulate accumulate, void *workspace,
                                            size_t workspace_bytes);

/* Where a fused producer is to put this layer's input: *out = a sink for `codes` [tokens, in] with
 * the layer's static scale, or one scale a token, whose descales go to `descales` [tokens].
 * *x_descale = what fp8_linear_forward then wants beside the codes. FP8_EINVAL: a DENSE input. */
FP8_NODISCARD fp8_status fp8_linear_sink(const fp8_linear *l, fp8_sink *out,
                                         const float **x_descale, uint8_t *codes,
                                         float *descales);

/* Quantizes x [tokens, in] once for several Linears that share an input and a scaling:
 * codes [tokens, in], descale [1] (STATIC: filled with the constant) or [tokens]. */
FP8_NODISCARD fp8_status fp8_linear_quantize_input(const fp8_linear *l, uint8_t *codes,
                                                   float *descale, const fp8_tensor *x);

#ifdef __cplusplus
}
#endif
#endif
