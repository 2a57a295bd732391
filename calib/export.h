/* calib/export.h - what a record says about scales, and the FP8 checkpoint written by it. */
#ifndef FP8_CALIB_EXPORT_H
#define FP8_CALIB_EXPORT_H
#include <stddef.h>
#include <stdint.h>

#include "calib/progress.h"
#include "formats/formats.h"
#include "model/model.h"
#include "quant/quant.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- scales and export --------------------------------------------------------------------- */

/* What a recipe makes of one point of a record: amax = fp8_recipe_amax over its history, scale and
 * descale = fp8_recipe_scale of that to E4M3. */
typedef struct fp8_scale {
    float amax, amax_without_first; /* the second: of the history without sequences' first rows */
    float scale, descale;           /* 1 and 1 where amax is 0: only zeros were seen */
    uint64_t nonfinite;             /* over the whole history */
    int clipped;                    /* amax is less than what was seen: larger values saturate */
} fp8_scale;

/* Where amax is lowered, so that larger values saturate. */
typedef enum fp8_clip_rule {
    FP8_CLIP_NONE,
    FP8_CLIP_PERCENTILE, /* the |x| below which so many in a hundred of the counted values lie (the
                          * upper edge of its bin) */
    FP8_CLIP_MSE,        /* of least sum (x - qdq(x))^2, values being anywhere in their bins */
    FP8_CLIP_ENTROPY     /* of least KL divergence of the codes' distribution from the values' (what
                          * TensorRT does for INT8: calib/histogram.h) */
} fp8_clip_rule;
typedef struct fp8_clip {
    fp8_clip_rule rule;
    double percentile; /* PERCENTILE: more than 0, at most 100 */
} fp8_clip;

/* Point `point`, 0 <= point < record->num_points, over the rows that are done: no model, no
 * forward. Without a clip: as above. With one amax becomes what the rule takes from the point's
 * histogram, but only where that is less and the noise, sum (x - qdq(x))^2 over the values counted,
 * is certain to fall by it (for a BF16 tensor: wherever in their bins the values lie). E4M3's steps
 * grow with the value, so that it seldom does, without a margin hardly ever. It is the tensor's own
 * error that counts; what a Linear makes of it is not measured here. A log warning names a point
 * that saw only zeros. FP8_EINVAL: the percentile; FP8_EDATA: a clip of a record without
 * histograms. */
FP8_NODISCARD fp8_status fp8_scale_of_point(fp8_scale *out, const fp8_record *record,
                                            int64_t point, const fp8_recipe *recipe,
                                            fp8_clip clip);

typedef struct fp8_rounding fp8_rounding; /* calib/rounding.h */

typedef struct fp8_export_options {
    fp8_dialect dialect;
    fp8_scheme scheme;            /* one that the dialect has; NONE: KV scales alone */
    int ue8m0;                    /* BLOCK: descales rounded up to powers of two */
    int bf16_scales;              /* weights as compressed-tensors makes them: below */
    int kv_fp8;                   /* write k and v descales */
    int kv_per_head;              /* one a head; the record has their points (kv_heads) */
    fp8_attention_mode attention; /* not NONE: q descales too, and kv_fp8 is implied */
    fp8_fp8_format format;        /* HYBRID is E4M3 in the forward: noted in the metadata */
    fp8_recipe recipe;            /* of activations; weights take their amax without a margin */
    fp8_clip clip;                /* of activations: as fp8_scale_of_point's */
    size_t max_shard_bytes;       /* 0: one file */
    int force;
    int allow_nonfinite;
    const char *const *include; /* lone files only: patterns (fnmatch) of tensor names; none: all */
    int32_t num_include;
    const char *const *exclude;
    int32_t num_exclude;
    fp8_progress progress;
    const char *config_json; /* NULL: config.json beside the source; else this file's path */
    const char *const *keep; /* Linears that stay as they are, with a model; a group's, or none */
    int64_t num_keep;
    const fp8_rounding *rounding; /* its codes and scales in place of plain ones; NULL: none */
} fp8_export_options;

typedef struct fp8_export_result {
    int64_t linears; /* quantized */
    size_t source_bytes, output_bytes;
} fp8_export_result;

/* Writes the FP8 checkpoint of `source` into the folder `out`: quantized weights and descales,
 * every other tensor as it was, config.json with quantization_config, tokenizer and generation
 * files copied, the record as calibration.safetensors. Streams: holds a few tensors at a time.
 *   TENSOR   codes = e4m3(w * 448/amax), amax over the weights of a group (q, k, v; gate, up);
 *            weight_scale F32 [1]; input_scale F32 [1] from the record
 *   DYNAMIC  one scale an output channel: weight_scale F32 [out, 1], or [1, out] beside weights
 *            kept [in, out], so that it broadcasts over the codes; no input scales
 *   TENSOR_DYNAMIC  codes and weight_scale as TENSOR, no input scales
 *   BLOCK    one scale a square of 128 x 128 (edges: what there is), no input scales; with ue8m0
 *            descale = 2^ceil(log2(amax/448))
 *   MX       one power of two a row and 32 columns, weight_scale U8 [out, in / 32], the exponent +
 *            127; no input scales
 *   NONE     weights as they are, k and v scales beside them; only with kv_fp8
 * bf16_scales: BF16 weights alone; weight_scale BF16 = bf16(amax / 448), amax a weight's own, and
 * codes = e4m3(bf16(w / weight_scale)): the bytes of compressed-tensors, for comparison.
 * Names and shapes are the dialect's (formats/dialect.h); those above are compressed-tensors'.
 * record NULL only without static scales: not TENSOR, no FP8 keys, no FP8 attention. A lone file
 * (no config.json) has none: every 2-D floating tensor named *.weight but embeddings, output layers
 * and routers, narrowed by include and exclude; its groups are known by name (q_proj, k_proj,
 * v_proj; gate_proj, up_proj); its quantization_config.json lies beside it. FP8_EINVAL:
 * options that do not go together; FP8_EUNSUPPORTED: a source that is quantized already;
 * FP8_EDATA: NaN or infinite weights by name, a record of another source or unfinished;
 * FP8_EEXIST; FP8_ECANCELED. The bytes are the same whichever device `d` is. */
FP8_NODISCARD fp8_status fp8_export(fp8_export_result *result, const char *out,
                                    const fp8_checkpoint *source, fp8_device *d,
                                    const fp8_record *record, const fp8_export_options *options);

/* The same in two steps, a calibration between them: begin decides and checks all that needs no
 * record; with a model on CUDA (m not NULL: the source's, on `d`) a thread of its own then writes
 * the weights out of the model's memory, on a stream of its own, beside whatever the caller does
 * with the device. finish takes the record, if has_record said that there would be one, and frees
 * the job whatever it returns. What is given must outlive the job; the model stays as it is. */
typedef struct fp8_export_job fp8_export_job;
FP8_NODISCARD fp8_status fp8_export_begin(fp8_export_job **out, const char *folder,
                                          const fp8_checkpoint *source, fp8_device *d,
                                          const fp8_model *m, int has_record,
                                          const fp8_export_options *options);
FP8_NODISCARD fp8_status fp8_export_finish(fp8_export_job *j, fp8_export_result *result,
                                           const fp8_record *record);
void fp8_export_abort(fp8_export_job *j); /* leaves no output; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
