/* quant/composed.h - whole pieces of a transformer block in one call: a norm and the Linears behind
 * it, and a gated or plain MLP. Values pass between the steps as codes (or, for dense Linears, in
 * their compute type): norm, activation and quantizing are fused producers.
 *
 * The residual stream: with fp8_norm.residual the call first adds what the block before has left,
 * h = x + residual, in the norm's pass; its own result y can be left for the next norm in the same
 * way, or take a residual at the last Linear's store.
 * Everything runs on `d`, which is that of the Linears; asynchronous on CUDA, nothing is allocated.
 * FP8_EINVAL: sizes or types that do not fit each other, Linears that do not share one input,
 * a workspace too small (expected, found); and what the steps return. */
#ifndef FP8_QUANT_COMPOSED_H
#define FP8_QUANT_COMPOSED_H
#include <stddef.h>

#include "quant/linear.h"
#include "quant/produce.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Bytes for up to max_tokens, place of the device. */
size_t fp8_norm_linear_workspace_size(const fp8_linear *const *linears, int32_t count,
                                      int64_t max_tokens);

/* ys[i] = linears[i](norm(h)): q, k and v, or gate and up, from one quantized input. They must
 * agree on it: the same fp8_input_scaling, and where that has a scale, the same scale.
 *   ys    out  [count] tensors [rows, out of linears[i]] of the Linears' compute type
 *   norm  in   of the compute type, cols = in of the Linears; `rounded` is for dense ones */
FP8_NODISCARD fp8_status fp8_norm_linear(fp8_device *d, const fp8_tensor *ys, const fp8_norm *norm,
                                         const fp8_linear *const *linears, int32_t count,
                                         fp8_accumulate accumulate, void *workspace,
                                         size_t workspace_bytes);

typedef struct fp8_mlp {
    const fp8_linear *gate; /* NULL: none */
    const fp8_linear *up, *down;
    fp8_activation act;
} fp8_mlp;

/* adds: 1 when a residual will be given. */
size_t fp8_norm_mlp_workspace_size(const fp8_mlp *mlp, int64_t max_tokens, int adds);

/* y = down(act(gate(n)) * up(n)) + residual, or down(act(up(n))) + residual without a gate;
 * n = norm(h).
 *   y         out  [rows, out of down] of the compute type; may be what norm->residual points to,
 *                  which was added before
 *   residual  in   likewise; may be y, or h; NULL: none */
FP8_NODISCARD fp8_status fp8_norm_mlp(fp8_device *d, const fp8_tensor *y, const fp8_norm *norm,
                                      const fp8_mlp *mlp, const fp8_tensor *residual,
                                      fp8_accumulate accumulate, void *workspace,
                                      size_t workspace_bytes);

#ifdef __cplusplus
}
#endif
#endif
