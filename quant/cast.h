/* quant/cast.h - FP8 casts, amax and quantization error, on the CPU (scalar, AVX2, AVX-512, chosen
 * at run time, all bit-equal) and CUDA.
 *
 * Rounding: nearest even, saturating to +-448 (E4M3) or +-57344 (E5M2), Inf saturates, NaN stays
 * NaN (E4M3 0x7f|sign, E5M2 0x7e|sign), -0 stays -0. Source: OCP OFP8 v1.0 and CUDA's
 * __NV_SATFINITE. The sign of a NaN is that of x times that of the scale.
 * Every call runs on `d`: pool threads on the CPU, asynchronously on the stream on CUDA; pointers
 * are of that place; nothing is allocated. FP8_EINVAL: NULL, negative size, a dtype not named. */
#ifndef FP8_QUANT_CAST_H
#define FP8_QUANT_CAST_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

#define FP8_E4M3_MAX 448.0f
#define FP8_E5M2_MAX 57344.0f

/* The scalar oracle. `to` / `from`: FP8_DTYPE_E4M3 or FP8_DTYPE_E5M2. */
uint8_t fp8_from_f32(fp8_dtype to, float x);
float fp8_to_f32(fp8_dtype from, uint8_t code);
float fp8_max_of(fp8_dtype t); /* 448 or 57344 */

/* codes[i] = cast(x[i] * scale[0]), the product in F32.
 *   codes  out  n bytes          to    E4M3 | E5M2
 *   x      in   n elements       from  F32 | BF16 | F16
 *   scale  in   1 float, quantize multiplier = max/amax; NULL = 1 */
FP8_NODISCARD fp8_status fp8_quantize(fp8_device *d, uint8_t *codes, fp8_dtype to, const void *x,
                                      fp8_dtype from, int64_t n, const float *scale);

/* x[i] = codes[i] * descale[0], product in F32, rounded once to `to` (F32 | BF16 | F16). */
FP8_NODISCARD fp8_status fp8_dequantize(fp8_device *d, void *x, fp8_dtype to, const uint8_t *codes,
                                        fp8_dtype from, int64_t n, const float *descale);

/* One scale a row (axis 0: codes[r,c] from x[r,:]) or a column (axis 1), from that row's or
 * column's own amax: descale[i] = amax/max, codes = cast(x * (max/amax)). An all-zero group gets
 * descale 1. A token's dynamic scale and a weight's channel scale are both this. NaN or Inf
 * in a group: its descale comes from the finite values; NaN stays NaN, Inf saturates. Limits of
 * descale as fp8_recipe_scale's.
 *   codes [rows, cols]  descale out F32 [rows] or [cols]  x [rows, cols] F32 | BF16 | F16 */
FP8_NODISCARD fp8_status fp8_quantize_groups(fp8_device *d, uint8_t *codes, fp8_dtype to,
                                             float *descale, const void *x, fp8_dtype from,
                                             int64_t rows, int64_t cols, int32_t axis);

/* x[r,c] = codes[r,c] * descale[r or c]; rounded once. */
FP8_NODISCARD fp8_status fp8_dequantize_groups(fp8_device *d, void *x, fp8_dtype to,
                                               const uint8_t *codes, fp8_dtype from,
                                               const float *descale, int64_t rows, int64_t cols,
                                               int32_t axis);

/* out[c, r] = in[r, c], bytes. */
FP8_NODISCARD fp8_status fp8_transpose_codes(fp8_device *d, uint8_t *out, const uint8_t *in,
                                             int64_t rows, int64_t cols);

/* The same cast as fp8_quantize, turned: codes_t[c, r] = cast(x[r, c] * scale[0]), and when `codes`
 * is not NULL also codes[r, c], from one read of x. */
FP8_NODISCARD fp8_status fp8_quantize_transposed(fp8_device *d, uint8_t *codes_t, uint8_t *codes,
                                                 fp8_dtype to, const void *x, fp8_dtype from,
                                                 int64_t rows, int64_t cols, const float *scale);

/* What one observation of x [rows, cols] finds; combined into *out (max, sum), which the caller
 * zeroed. Deterministic. */
typedef struct fp8_amax_slot {
    float amax;               /* max |x| over finite x */
    float amax_without_first; /* likewise, rows with first[r] != 0 left out */
    uint32_t nonfinite;       /* count of NaN and Inf */
    uint32_t reserved;
} fp8_amax_slot;

/*   out    io   1 slot, place of d
 *   x      in   [rows, cols], row stride `stride` elements (>= cols), F32 | BF16 | F16
 *   first  in   [rows] bytes, place of d; NULL: no row is a first one */
FP8_NODISCARD fp8_status fp8_observe(fp8_device *d, fp8_amax_slot *out, const void *x,
                                     fp8_dtype dtype, int64_t rows, int64_t cols, int64_t stride,
                                     const uint8_t *first);

/* fp8_observe, and a histogram of |x| over finite x by the top 12 bits of the float (sign dropped:
 * 8 exponent bits, 3 mantissa bits), in the same pass.
 *   bins   io   1, place of d: added to; the caller zeroed it */
enum { FP8_ERROR_BINS = 2048 };
typedef struct fp8_magnitudes {
    uint64_t bins[FP8_ERROR_BINS];
} fp8_magnitudes;
FP8_NODISCARD fp8_status fp8_observe_magnitudes(fp8_device *d, fp8_amax_slot *out,
                                                fp8_magnitudes *bins, const void *x,
                                                fp8_dtype dtype, int64_t rows, int64_t cols,
                                                int64_t stride, const uint8_t *first);

/* How well a static scale serves x: exact sums, and the same histogram, from which quantiles are
 * read. */
typedef struct fp8_error_stats {
    double signal, noise; /* sum x^2, sum (x - dequantize(quantize(x)))^2 over finite x */
    uint64_t count, clipped; /* finite elements; those with |x| * scale > max */
    uint64_t bins[FP8_ERROR_BINS];
} fp8_error_stats;

/* Adds x's figures to *out (place of d, zeroed by the caller). Deterministic between runs. scale
 * and descale point to one float each, workspace to as many bytes as below, in the place of d. */
size_t fp8_measure_error_workspace(const fp8_device *d);
FP8_NODISCARD fp8_status fp8_measure_error(fp8_device *d, fp8_error_stats *out, const void *x,
                                           fp8_dtype dtype, int64_t rows, int64_t cols,
                                           int64_t stride, fp8_dtype to, const float *scale,
                                           const float *descale, void *workspace);
/* |x| below which `fraction` (0.999) of the counted elements lie: upper edge of its bin. */
double fp8_error_quantile(const fp8_error_stats *host_stats, double fraction);
/* 10 log10(signal/noise); +Inf if exact. */
double fp8_error_sqnr_db(const fp8_error_stats *host_stats);

#ifdef __cplusplus
}
#endif
#endif
