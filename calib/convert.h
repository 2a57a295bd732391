/* calib/convert.h - an FP8 checkpoint in another dialect, or as BF16. */
#ifndef FP8_CALIB_CONVERT_H
#define FP8_CALIB_CONVERT_H
#include <stddef.h>
#include <stdint.h>

#include "calib/progress.h"
#include "core/device.h"
#include "formats/formats.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_kv_scales {
    FP8_KV_SCALES_KEEP,
    FP8_KV_SCALES_NONE,   /* leave them out: queries' too */
    FP8_KV_SCALES_TENSOR, /* one a layer: the largest of its heads' */
    FP8_KV_SCALES_HEAD    /* one a head: that of its layer */
} fp8_kv_scales;

typedef struct fp8_convert_options {
    int to_bf16;         /* dequantize: what follows up to kv is not looked at */
    fp8_dialect dialect;
    fp8_scheme scheme;   /* FP8_NUM_SCHEMES: the source's, or what is nearest in the dialect */
    int ue8m0;
    fp8_kv_scales kv;
    size_t max_shard_bytes; /* 0: one file */
    int force;
    fp8_progress progress;
} fp8_convert_options;

typedef struct fp8_convert_result {
    fp8_scheme scheme;        /* written */
    int64_t kept;             /* weights whose codes are the source's, bit for bit */
    int64_t requantized;      /* whose codes were made anew from their values */
    int64_t dequantized;      /* BF16 now */
    int64_t kv_left_out, q_left_out, inputs_left_out; /* scales that were not written */
    int64_t kv_merged;        /* k and v scales of a layer that were one a head */
    size_t source_bytes, output_bytes;
} fp8_convert_result;

/* Writes the FP8 checkpoint `source` (any dialect of formats/dialect.h, any architecture) into the
 * folder `out` in another dialect, or as BF16. Codes stay where the new scales can stand for the
 * old: the same granularity, one scale spread over channels or squares, or many that are all equal;
 * then there and back gives the same bytes. Else they are made anew from code * descale in F32,
 * with one scale for q, k, v and for gate, up where there is one a tensor. On the host, by threads
 * of `d`. FP8_EINVAL: a source that is not FP8, a static scheme without input scales in the source,
 * what the dialect cannot spell; FP8_ENOTFOUND, FP8_EFORMAT, FP8_EDATA: a scale that is missing, of
 * a wrong shape, not finite and positive; FP8_EEXIST; FP8_ECANCELED. */
FP8_NODISCARD fp8_status fp8_convert(fp8_convert_result *result, const char *out,
                                     const fp8_checkpoint *source, fp8_device *d,
                                     const fp8_convert_options *options);

#ifdef __cplusplus
}
#endif
#endif
