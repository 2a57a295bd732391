/* quant/linear.h - a Linear layer y = x W^T + b, with dense (BF16, F16, F32) or FP8 weights.
 *
 * Made once, run many times, any token count. Forward allocates nothing, never waits and can be
 * captured in a graph. One layer may run on one stream at a time with one workspace. */
#ifndef FP8_QUANT_LINEAR_H
#define FP8_QUANT_LINEAR_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
#include "quant/cast.h"
#include "quant/gemm.h"
#include "quant/produce.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_weight_layout {
    FP8_WEIGHT_OUT_IN, /* [out, in]: nn.Linear */
    FP8_WEIGHT_IN_OUT  /* [in, out]: GPT-2's Conv1D */
} fp8_weight_layout;

typedef enum fp8_weight_scaling {
    FP8_WEIGHT_AS_GIVEN = 0, /* FP8: one descale or one an output, by their number; else dense */
    FP8_WEIGHT_TENSOR,       /* these two: BF16, F16, F32 weights [out, in] are quantized to E4M3 */
    FP8_WEIGHT_CHANNEL,      /* on the device, with one scale, or one an output */
    FP8_WEIGHT_BLOCKS        /* a descale for 128 x 128 weights: FP8 ones have
                              * [ceil(out / 128), ceil(in / 128)], dense ones are quantized so */
} fp8_weight_scaling;

typedef enum fp8_input_scaling {
    FP8_INPUT_DENSE,   /* x is used as it is */
    FP8_INPUT_STATIC,  /* x is quantized with 1/input_descale */
    FP8_INPUT_DYNAMIC, /* one scale a token, from its own amax */
    FP8_INPUT_CURRENT, /* one scale a call, from the amax of all its tokens */
    FP8_INPUT_DELAYED, /* the scale is the caller's, on the device, who gets the amax: delayed.h */
    FP8_INPUT_GROUPS   /* one a token and 128 columns; with BLOCKS and only with them */
} fp8_input_scaling;

typedef struct fp8_linear_spec {
    const char *name; /* for messages; copied */
    int64_t in, out;
    fp8_tensor weight; /* E4M3, E5M2, BF16, F16 or F32, in host memory; or on the device, then
                        * OUT_IN, and dense ones of the compute type unless quantized here */
    fp8_weight_layout layout;
    fp8_weight_scaling weight_scaling;
    const float *weight_descale; /* FP8 weights, in the place of the weights */
    int64_t num_weight_descales; /* 0, 1 or out; BLOCKS: ceil(out / 128) * ceil(in / 128) */
    fp8_input_scaling input;     /* not DENSE needs FP8 weights, given or made */
    float input_descale;         /* STATIC */
    const float *delayed_scale, *delayed_descale; /* DELAYED: 1 float each, place of the device */
    fp8_amax_slot *delayed_amax; /* DELAYED: joined with x's figures by each forward; NULL: not */
    fp8_tensor bias;             /* host; data NULL = none; BF16, F16 or F32 [out] */
    fp8_dtype compute;           /* BF16 | F32: type of dense x, and of y unless it is asked for */
    int borrow_weight;           /* keep the pointer instead of a copy: of an mmap on the CPU, of
                                  * device memory, on 16 bytes, on CUDA. The caller's until the
                                  * layer is destroyed */
} fp8_linear_spec;

typedef struct fp8_linear fp8_linear;

/* Uploads (CUDA) or copies / borrows the weights; dense weights of another type than `compute` are
 * converted (on the CPU not where that is exact anyway). On CUDA FP8 weights that cuBLASLt cannot
 * multiply are kept as the BF16 values of their codes, and so are codes of x: the same numbers;
 * not with BLOCKS. Waits when it quantizes. FP8_EINVAL, FP8_EUNSUPPORTED (BLOCKS where fp8_gemm
 * has them not), FP8_ENOMEM, FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_linear_create(fp8_linear **out, fp8_device *d,
                                           const fp8_linear_spec *spec);
void fp8_linear_destroy(fp8_linear *l);

enum { FP8_LINEAR_MAX_JOINED = 4 };

/* *out = one Linear whose output is the parts' side by side: one product in place of several, for
 * q, k and v, or gate and up. The weights move into its memory, and the parts borrow them from
 * there: it must outlive them, and no weight is there twice. Waits. FP8_EUNSUPPORTED, and nothing
 * has changed: the parts differ in input, types, kind of scales, or, with one a weight, in the
 * weights' descale; weights [in, out] or in blocks; delayed scaling. */
FP8_NODISCARD fp8_status fp8_linear_join(fp8_linear **out, fp8_linear *const *parts,
                                         int32_t count);

/* Codes of an FP8 weight anew, from what they are to stand for before the descale: [out, in] of
 * `dtype`, place of the device. Asynchronous. FP8_EINVAL: a weight that is not codes. */
FP8_NODISCARD fp8_status fp8_linear_recast(const fp8_linear *l, const void *values,
                                           fp8_dtype dtype);

int64_t fp8_linear_in(const fp8_linear *l);
int64_t fp8_linear_out(const fp8_linear *l);
fp8_dtype fp8_linear_compute(const fp8_linear *l);
fp8_input_scaling fp8_linear_input_scaling(const fp8_linear *l);
float fp8_linear_input_descale(const fp8_linear *l); /* STATIC only */

/* The weight where it lies, in the place of the device, if it is kept [out, in] as values of this
 * type and not as codes; else NULL. The layer's own. */
const void *fp8_linear_dense_weight(const fp8_linear *l, fp8_dtype dtype);

/* For fp8_linear_forward with up to so many tokens. */
size_t fp8_linear_workspace_size(const fp8_linear *l, int64_t max_tokens);

/* y[t,:] = x[t,:] W^T + b.
 *   y  out  [tokens, out] of the compute type, place of the device
 *   x  in   [tokens, in]: of the compute type (quantized inside as the spec says), or FP8 codes
 *           already quantized, with x_descale as fp8_linear_call has it, same place
 * Asynchronous; FP8_EINVAL: shapes, dtypes, workspace too small (expected, found). */
FP8_NODISCARD fp8_status fp8_linear_forward(const fp8_linear *l, const fp8_tensor *y,
                                            const fp8_tensor *x, const float *x_descale,
                                            fp8_accumulate accumulate, void *workspace,
                                            size_t workspace_bytes);

/* Number of descales that come with codes of `tokens` rows: 1 (STATIC, CURRENT, DELAYED), tokens
 * (DYNAMIC), or ceil(in / 128) * ld (GROUPS) with ld = tokens up to a multiple of 4. */
int64_t fp8_linear_num_descales(const fp8_linear *l, int64_t tokens);

/* Quantizes x [tokens, in] once for several Linears that share an input and a scaling:
 * codes [tokens, in], descale [fp8_linear_num_descales]; GROUPS: token t, group g at g * ld + t. */
FP8_NODISCARD fp8_status fp8_linear_quantize_input(const fp8_linear *l, uint8_t *codes,
                                                   float *descale, const fp8_tensor *x);

/* Where a fused producer (quant/produce.h) is to put this layer's input: *out = a sink for `codes`
 * [tokens, in] by the layer's scale, or by scales of its own, whose descales go to `descales`
 * [fp8_linear_num_descales]; GROUPS: set out->descale_group_stride to tokens up to a multiple of 4.
 * *x_descale = what fp8_linear_forward then wants beside the codes. FP8_EINVAL: a DENSE input, and
 * CURRENT, whose scale needs all of x first. */
FP8_NODISCARD fp8_status fp8_linear_sink(const fp8_linear *l, fp8_sink *out,
                                         const float **x_descale, uint8_t *codes,
                                         float *descales);

/* ---- with all that can be fused -------------------------------------------------------------- */

/* y = act(x W^T + b) + residual, or its codes. {0}: as fp8_linear_forward. With a gated activation
 * the Linear is gate and up joined, and y [tokens, out / 2] = act(gate) * up. */
typedef struct fp8_linear_call {
    fp8_accumulate accumulate;
    const float *x_descale; /* for x of codes: place of the device */
    int64_t x_descale_ld;   /* GROUPS: floats between groups; 0 = tokens up to a multiple of 4 */
    fp8_gemm_activation activation;
    const fp8_tensor *residual; /* [tokens, out], F32 | BF16 | F16; may be y; NULL: none */
    const float *y_scale;       /* y of E4M3: quantize multiplier; NULL = 1 */
    float *y_amax;              /* out: max |y| before y_scale; NULL: not wanted */
} fp8_linear_call;

/* y of F32, BF16, F16 or E4M3. Codes of x are E4M3, or E5M2 where the weights are E4M3. On CUDA a
 * store that cuBLASLt does not fuse is a pass of its own: see docs/LINEAR.md. */
FP8_NODISCARD fp8_status fp8_linear_apply(const fp8_linear *l, const fp8_tensor *y,
                                          const fp8_tensor *x, const fp8_linear_call *call,
                                          void *workspace, size_t workspace_bytes);

/* fp8_gemm_gates of the product that such a call of so many tokens runs: where 0, the Linear
 * without its activation and fp8_produce_act behind it take less time. */
int fp8_linear_gates(const fp8_linear *l, int64_t tokens, fp8_dtype y,
                     const fp8_linear_call *call);

/* For fp8_linear_apply with up to so many tokens, y of that type, and such a call: of its pointers
 * it counts whether they are NULL, of the residual its type. */
size_t fp8_linear_apply_workspace_size(const fp8_linear *l, int64_t max_tokens, fp8_dtype y,
                                       const fp8_linear_call *call);

/* fp8_gemm_tune for each of these token counts (NULL: 16, 32, 64, ... up to max_tokens), as
 * fp8_linear_apply would run the product. The workspace is that of max_tokens, which no count may
 * exceed. call NULL = {0}. Waits. */
FP8_NODISCARD fp8_status fp8_linear_tune(const fp8_linear *l, const int64_t *tokens, int32_t count,
                                         int64_t max_tokens, fp8_dtype y,
                                         const fp8_linear_call *call, void *workspace,
                                         size_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif
