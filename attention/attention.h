/* attention/attention.h - scaled dot-product attention with the softmax in FP32, behind one
 * plan/run pair over several backends.
 *
 *   S = softcap(scale * Q K^T (+ pre-scale bias inside the product with scale)) + post-scale bias
 *   P = softmax over the keys a query sees (and the sink)         O = P V
 *   per sequence and query head; query head i reads KV head i / (num_heads / num_kv_heads)
 *
 * Backends, named as Transformer Engine's users know them: `flash` (our kernels for Hopper),
 * `fused` (cuDNN), `unfused` (cuBLASLt products around an FP32 softmax kernel; any GPU, any option
 * here but hadamard, which is flash's alone), `cpu` (threaded; fp8_attention_reference is its
 * oracle in double). plan() picks one and keeps, in words, why each other was passed over.
 * FP8_FLASH_ATTN, FP8_FUSED_ATTN and FP8_UNFUSED_ATTN = 0 | 1 switch backends off;
 * FP8_ATTENTION_BACKEND prefers one where it is eligible; options.backend forces one and fails
 * loudly. FP8_DEBUG=1 logs the chosen backend, 2 the whole configuration and every reason.
 *
 * A plan holds no data; run() allocates nothing, does not synchronise and can be captured in a CUDA
 * graph: lengths, starts, scales are device memory. One thread uses a plan at a time. The same
 * input gives the same bytes.
 *
 * Numerics: scores, maximum and sum in FP32, one rounding of O. NaN and Inf follow the formula: in
 * Q they spoil their row, in K and V the rows that see them, and in V possibly others of the
 * sequence (0 * NaN). */
#ifndef FP8_ATTENTION_ATTENTION_H
#define FP8_ATTENTION_ATTENTION_H
#include <stddef.h>

#include "attention/append.h"
#include "attention/attention_options.h"
#include "attention/cache.h"
#include "attention/decode.h"
#include "attention/explain.h"
#include "attention/layout.h"
#include "attention/masks.h"
#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_attention_plan fp8_attention_plan;

/* FP8_EINVAL: a size or option that makes no sense; FP8_EUNSUPPORTED: nothing serves it. */
FP8_NODISCARD fp8_status fp8_attention_plan_create(fp8_attention_plan **out, fp8_device *d,
                                                   const fp8_attention_options *options);
void fp8_attention_plan_destroy(fp8_attention_plan *p);
fp8_attention_backend fp8_attention_plan_backend(const fp8_attention_plan *p);
/* One line a backend: "fused: cuDNN 9.14: serves" / "fused: sliding window ...". */
const char *fp8_attention_plan_reasons(const fp8_attention_plan *p);
/* cpu: some hundred KB a thread, whatever the lengths. unfused: at most 1 GiB beside what cuBLASLt
 * wants, more only where 64 queries of one KV head need it. fused: what cuDNN asks for. flash: the
 * transposed V and, with quantize, the codes. */
size_t fp8_attention_workspace_size(const fp8_attention_plan *p);

/* Rows with no key to see, or none above -Inf, give 0 and LSE -inf (with a sink, its own). In a
 * layout that is not packed, rows beyond a sequence's length are written as 0 and -inf; rows of
 * packed tokens that are in no sequence are left alone. Lengths beyond the plan's maxima and starts
 * outside the totals are clamped: no byte outside the buffers is read or written; FP8_SYNC=1
 * reports them (FP8_EINVAL) after a checked launch.
 * Asynchronous on CUDA. FP8_EINVAL (NULL, alignment, workspace), FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_attention_run(fp8_attention_plan *p, const fp8_attention_io *io,
                                           void *workspace, size_t workspace_bytes);

/* The oracle: the formula in double on host memory, obvious loops; every option above (quantize and
 * quantize_p too). o: F64 [num_seqs, max_q, num_heads, d_v] or [total_q, num_heads, d_v] packed,
 * unrounded; lse as in io but F64; amax [2] (S, O). lse and amax may be NULL; io's own four are not
 * looked at. */
FP8_NODISCARD fp8_status fp8_attention_reference(double *o, double *lse, double *amax,
                                                 const fp8_attention_options *options,
                                                 const fp8_attention_io *io);

const char *fp8_attention_backend_name(fp8_attention_backend b);

#ifdef __cplusplus
}
#endif
#endif
