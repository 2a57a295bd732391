/* quant/produce.h - fused producers: norm, activation, RoPE or nothing, and the quantizing of what
 * comes out, in one pass over the input. They make what FP8 products and FP8 attention read.
 *
 * The value v that is quantized is the F32 value of the formula: nothing is rounded to BF16 on the
 * way (unless `rounded` asks for it). A NaN v becomes code 0x7f (E4M3) or 0x7e (E5M2) whatever its
 * sign; Inf saturates. Sums have a fixed order on each device, so every run gives the same bytes;
 * between devices v agrees to parts in 10^6, so that a code differs, by one step, only where v
 * lies that near to a rounding boundary.
 * Every call runs on `d`: pool threads on the CPU, asynchronously on the stream on CUDA. Pointers
 * are of that place, nothing is allocated, inputs and outputs overlap only where it is said. Any
 * size and alignment is served; 16-byte aligned rows of a multiple of 16 bytes are fast.
 * Real types are F32, BF16, F16; one type for all reals of a call. FP8_EINVAL: NULL where something
 * is needed, a negative size, a stride below the row, a dtype not named; FP8_ECUDA. */
#ifndef FP8_QUANT_PRODUCE_H
#define FP8_QUANT_PRODUCE_H
#include <stddef.h>
#include <stdint.h>

#include "core/activation.h"
#include "core/device.h"
#include "quant/cast.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- where the rows of a producer go --------------------------------------------------------- */

typedef enum fp8_sink_scaling {
    FP8_SINK_STATIC, /* codes = cast(v * scale[0]) */
    FP8_SINK_TOKEN,  /* a row by its amax: codes = cast(v * (max/amax)), descale = amax/max */
    FP8_SINK_GROUP   /* likewise each FP8_SINK_GROUP_COLS columns of a row; the last may be short */
} fp8_sink_scaling;

enum { FP8_SINK_GROUP_COLS = 128 };

/* v [rows, cols] as codes, as values of the operation's real type, as an amax, or any of these. The
 * amax of a row or group is over its finite v; 0 gives descale 1, limits are fp8_recipe_scale's.
 * {0} wants nothing; a sink for E4M3 by a static scale is {.codes = c, .code = FP8_DTYPE_E4M3,
 * .scale = s}. */
typedef struct fp8_sink {
    uint8_t *codes;       /* out [rows, cols]; NULL: none */
    int64_t codes_stride; /* elements between rows; 0 = cols */
    fp8_dtype code;       /* E4M3 | E5M2 */
    fp8_sink_scaling scaling;
    const float *scale; /* in, 1 float, STATIC: quantize multiplier; NULL = 1 */
    float *descale;     /* out, TOKEN [rows]; GROUP: that of row r, group g is at
                         * r * descale_row_stride + g * descale_group_stride */
    int64_t descale_row_stride, descale_group_stride; /* GROUP; 0, 0 = packed [rows, groups] */
    void *dense;          /* out [rows, cols], v rounded once to the real type; NULL: none */
    int64_t dense_stride; /* 0 = cols */
    fp8_amax_slot *amax;  /* io, 1 slot: joined with the figures of v, as fp8_observe; NULL: none */
    const uint8_t *first; /* in [rows], as fp8_observe's; NULL */
} fp8_sink;

/* ---- norm ------------------------------------------------------------------------------------ */

typedef enum fp8_norm_kind {
    FP8_NORM_RMS,      /* v = h * r * w,            r = 1 / sqrt(mean(h^2) + eps) */
    FP8_NORM_RMS_PLUS, /* v = h * r * (1 + w)       Gemma */
    FP8_NORM_LAYER     /* v = (h - mean) * r * w + b, r = 1 / sqrt(mean((h - mean)^2) + eps) */
} fp8_norm_kind;

/* h = x, or with a residual h = round(x + residual), which is written: the residual stream. With
 * `from` row i of x and residual is their row from[i], and x is round(x * multiplier). */
typedef struct fp8_norm {
    fp8_norm_kind kind;
    float eps;
    int rounded; /* 1: RMS rounds h * r to the real type before w, as transformers does in BF16 */
    fp8_dtype dtype;
    int64_t rows, cols;
    const void *x;        /* in [rows, cols] */
    const void *residual; /* in [rows, cols]; NULL: none */
    void *h;              /* out [rows, cols]; with a residual; may be x or residual. With `from`
                           * neither, and NULL: it is not kept */
    int64_t x_stride, residual_stride, h_stride; /* elements between rows; 0 = cols */
    const void *weight; /* in [cols] */
    const void *bias;   /* in [cols], LAYER; NULL = 0 */
    /* in [rows], checked by the caller; NULL: the rows as they lie. With a residual it must be
     * there when the kernel before this one starts: an overlapping launch reads it early */
    const int32_t *from;
    float multiplier; /* 0 and 1: none */
} fp8_norm;

/* One read of x (up to 16384 aligned columns on CUDA; longer rows are read again from the caches).
 * The sink's dense may be x or residual too, where h is not and there is no `from`. */
FP8_NODISCARD fp8_status fp8_produce_norm(fp8_device *d, const fp8_sink *out, const fp8_norm *norm,
                                          fp8_launch launch);

/* ---- activation ------------------------------------------------------------------------------ */

/* v = act(x), or gated v = act(x) * up: SwiGLU, GeGLU. One tensor [rows, 2 * cols] of gate and up
 * side by side is x, up = x + cols, strides 2 * cols. */
typedef struct fp8_act {
    fp8_activation act;
    int rounded; /* 1: act(x) is rounded to the real type before it meets up */
    fp8_dtype dtype;
    int64_t rows, cols;
    const void *x;  /* in [rows, cols]: the gate */
    const void *up; /* in [rows, cols]; NULL: none */
    int64_t x_stride, up_stride; /* 0 = cols */
} fp8_act;

/* dense may be x or up. */
FP8_NODISCARD fp8_status fp8_produce_act(fp8_device *d, const fp8_sink *out, const fp8_act *act,
                                         fp8_launch launch);

/* ---- nothing but the quantizing -------------------------------------------------------------- */

/* v = x [rows, cols], rows x_stride apart (0 = cols). A NaN keeps its sign, as in quant/cast.h. */
FP8_NODISCARD fp8_status fp8_produce_cast(fp8_device *d, const fp8_sink *out, const void *x,
                                          fp8_dtype dtype, int64_t rows, int64_t cols,
                                          int64_t x_stride, fp8_launch launch);

/* ---- Q, K, V --------------------------------------------------------------------------------- */

enum { FP8_HEAD_DIM_MAX = 1024 };

/* One of the three. Strides are in elements; codes and values of token t, head h, element i lie at
 * t * token + h * head + i * dim: any layout of a cache that a stride can say. */
typedef struct fp8_heads {
    int64_t heads; /* 0: this part is absent, and nothing below is looked at */
    const void *x; /* in [tokens, heads, dim] */
    int64_t x_token_stride, x_head_stride; /* 0, 0 = packed */
    const void *norm_weight; /* in [dim]: each head is normed first; NULL: not */
    const float *scale;   /* in: quantize multiplier; NULL = 1 */
    int64_t scale_stride; /* 0: one for all heads; 1: [heads] */
    uint8_t *codes;       /* out; NULL: none */
    int64_t codes_token_stride, codes_head_stride, codes_dim_stride; /* 0, 0, 0 = packed */
    void *dense; /* out, v rounded once; may be x with x's strides; NULL: none */
    int64_t dense_token_stride, dense_head_stride; /* 0, 0 = packed */
    fp8_amax_slot *amax; /* io: joined with the figures of v; NULL: none */
} fp8_heads;

/* Packed tokens. Per head: RMS norm where there is a weight; then the first rotary_dim elements of
 * q and k turn, rotate_half form, by the angles of the token's position:
 *   (a, b) -> (a cos - b sin, b cos + a sin)   a = element i, b = element i + rotary_dim / 2
 * v is only quantized. */
typedef struct fp8_qkv {
    fp8_heads q, k, v;
    fp8_dtype dtype, code; /* reals; E4M3 | E5M2 */
    int64_t tokens, dim; /* dim from 1 to FP8_HEAD_DIM_MAX */
    int64_t rotary_dim;  /* even, at most dim; 0: nothing turns */
    const float *cos, *sin;   /* in [positions, rotary_dim / 2] */
    const int32_t *positions; /* in [tokens], checked by the caller */
    fp8_norm_kind norm;       /* of heads: RMS | RMS_PLUS */
    float eps;
    int rounded; /* 1: the norm rounds to the real type, RMS before its weight too */
    const uint8_t *first; /* in [tokens], for amax; NULL */
} fp8_qkv;

FP8_NODISCARD fp8_status fp8_produce_qkv(fp8_device *d, const fp8_qkv *qkv, fp8_launch launch);

#ifdef __cplusplus
}
#endif
#endif
