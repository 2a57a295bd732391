/* calib/calib.h - calibration: data in, amax history, scales, the FP8 checkpoint and a report out;
 * and the evaluation that judges it.
 *
 * Long calls report through a progress callback, which can also stop them: FP8_ECANCELED leaves a
 * resumable record and no half-written output. One thread drives a model and its device at once. */
#ifndef FP8_CALIB_CALIB_H
#define FP8_CALIB_CALIB_H
#include <stddef.h>
#include <stdint.h>

#include "calib/convert.h"
#include "calib/progress.h"
#include "calib/warm.h"
#include "formats/formats.h"
#include "model/model.h"
#include "quant/quant.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- data ---------------------------------------------------------------------------------- */

/* Samples: pieces of token ids, each a sequence of its own in a forward. */
typedef struct fp8_samples {
    int32_t *ids;
    int64_t num_ids;
    int64_t *starts; /* [count + 1] */
    int64_t count;
} fp8_samples;

/* Text: a plain text is encoded once, without special tokens, and cut into pieces of `seq` ids,
 * each starting with the tokenizer's prefix (BOS) where it adds one; a JSONL line is one sample,
 * encoded with its special tokens, of which the first `seq` ids are kept. At most max_samples; 0:
 * all. FP8_EINVAL: seq leaves no room after the prefix; FP8_EDATA when nothing is left. */
FP8_NODISCARD fp8_status fp8_samples_from_text(fp8_samples *out, fp8_text *text,
                                               const fp8_tokenizer *tokenizer, int64_t seq,
                                               int64_t max_samples);
/* Id files: a sequence longer than seq is cut into pieces; nothing is put in front. */
FP8_NODISCARD fp8_status fp8_samples_from_ids(fp8_samples *out, const fp8_id_data *ids, int64_t seq,
                                              int64_t max_samples);
void fp8_samples_free(fp8_samples *s);

/* The built-in calibration text (the project's own), for runs without data; NUL-terminated too. */
const char *fp8_builtin_text(size_t *len);

/* ---- calibration --------------------------------------------------------------------------- */

typedef struct fp8_calib_options {
    int64_t batch; /* samples a step; short ones are packed by their lengths */
    int64_t seq;   /* longest sample; the model's max_tokens must hold batch * seq */
    int allow_nonfinite;
    const char *record_path; /* where an interrupted or finished history is saved; NULL: nowhere */
    int histograms; /* gather them into the record: a pass over every observed tensor */
    int kv_heads; /* the amax of K and V also a head at a time: points "...self_attn.k.0" ... */
    int resume;              /* go on from record_path where it exists */
    const char *data_name;   /* goes into the recipe, with a CRC32 of the ids */
    fp8_progress progress;
} fp8_calib_options;

/* Runs the forward over the samples, one history row a step: sample 0 .. batch-1, and so on.
 * FP8_EDATA names the first tensor with non-finite values (unless allowed), or a resume of another
 * source or recipe. FP8_EUNSUPPORTED: the model is quantized already. A cancelled run keeps the
 * steps that were launched; its record is saved then, every half minute, and at the end. *out: the
 * record. */
FP8_NODISCARD fp8_status fp8_calibrate(fp8_record **out, fp8_model *m, const fp8_checkpoint *source,
                                       const fp8_samples *samples,
                                       const fp8_calib_options *options);

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

typedef struct fp8_rounding fp8_rounding; /* see below */

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

/* ---- what stays as it is --------------------------------------------------------------------- */

/* One choice: all Linears of a layer that read one input. */
typedef struct fp8_kept {
    int32_t layer;
    fp8_point point;
    double gain;   /* KL of the whole FP8 model less KL with these kept, nats a token */
    double share;  /* of the elements of all Linears */
    int chosen;
} fp8_kept;

typedef struct fp8_keep {
    fp8_kept *choices; /* most gain a byte first */
    int64_t count;
    char **names; /* Linears of those that were chosen: for fp8_export_options.keep */
    int64_t num_names;
    double kl;    /* of the whole FP8 model */
    double share; /* of all elements, that is kept */
} fp8_keep;

/* Which Linears cost most: m, the source's BF16 model, against its export with `options` (plain
 * rounding) in which one layer's Linears of one input are m's, for each of them; KL over up to
 * `windows` windows of calib->seq ids from the samples. Chosen are those of most gain a byte until
 * `percent` of the Linears' elements are used; none that gains nothing. scratch as
 * fp8_rounding_create has it; on the device a third model beside m and the FP8 one. (4 layers + 1)
 * x 2 forwards over the windows. FP8_EINVAL: percent not in 0 .. 100; FP8_EUNSUPPORTED: m is not
 * whole on the device; FP8_ECANCELED. */
FP8_NODISCARD fp8_status fp8_keep_create(fp8_keep **out, fp8_model *m, const fp8_checkpoint *source,
                                         const char *scratch, const fp8_record *record,
                                         const fp8_samples *samples,
                                         const fp8_calib_options *calib,
                                         const fp8_export_options *options, double percent,
                                         int64_t windows);
void fp8_keep_destroy(fp8_keep *k); /* NULL is fine */

/* ---- compensated rounding -------------------------------------------------------------------- */

typedef enum fp8_round_target {
    FP8_ROUND_TO_OUTPUT, /* weights are first moved to those that give the BF16 model's output on
                          * the quantized model's inputs (calib/ridge.h) */
    FP8_ROUND_TO_WEIGHT  /* the error of rounding alone is compensated */
} fp8_round_target;

typedef struct fp8_rounding_options {
    double damping;     /* added to the diagonal of H, of its mean */
    int act_order;      /* inputs of most energy are rounded first */
    fp8_round_target target;
    double ridge;       /* ROUND_TO_OUTPUT: what holds a weight where it was, as much as so many
                         * tokens of inputs that have nothing to do with each other */
    int search_scales;  /* static scales of inputs, Q, K and V of least error, not of amax */
    int turn;           /* with FP8 attention: queries and keys in the basis that costs them least,
                         * where the model allows it (calib/turn.h) */
} fp8_rounding_options;
#define FP8_ROUNDING_OPTIONS {0.01, 1, FP8_ROUND_TO_OUTPUT, 24576, 1, 1}

/* Codes and scales for m's weights by error compensation (GPTQ, calib/gptq.h), layer after layer,
 * inputs being those of a model whose earlier layers are rounded already. m: the source's BF16
 * model, whole on its device; record: of its calibration (NULL where the scheme needs none);
 * scratch: a folder that is made, with the export by plain rounding in it, and removed. Beside both
 * models it takes, on the device, 2 residual streams (tokens of all samples x hidden_size) and
 * 8 in^2 + 8 in * batch * seq bytes of the widest input; on the host the codes, and 24 in^2. What
 * does not take part is rounded plainly: the down Linears of experts; with scheme BLOCK weights
 * kept [in, out]. Starts at the first layer again after an interruption. The same bytes for any
 * number of CPU threads; devices differ. FP8_EINVAL: options; FP8_EUNSUPPORTED: m is not whole on
 * the device; FP8_ECANCELED; else as fp8_export and the model's forward. */
FP8_NODISCARD fp8_status fp8_rounding_create(fp8_rounding **out, fp8_model *m,
                                             const fp8_checkpoint *source, const char *scratch,
                                             const fp8_record *record, const fp8_samples *samples,
                                             const fp8_calib_options *calib,
                                             const fp8_export_options *options,
                                             const fp8_rounding_options *how);
/* Codes by plain rounding, with the scales of least squared error of the weights instead of those
 * of amax: of amax * 2^(i/16), i = 0 .. 15, each for all that share it (tensors of a group, a
 * channel, a square); nothing is clipped. Host. What does not take part: with scheme BLOCK weights
 * kept [in, out]. FP8_EINVAL: scheme NONE. */
FP8_NODISCARD fp8_status fp8_rounding_search(fp8_rounding **out, fp8_device *d,
                                             const fp8_model_config *config,
                                             const fp8_checkpoint *source, const fp8_record *record,
                                             const fp8_export_options *options);
void fp8_rounding_destroy(fp8_rounding *r); /* NULL is fine */
/* Mean over the weights of (loss of rounding) / (loss of rounding the same weights plainly). */
double fp8_rounding_loss(const fp8_rounding *r);

/* ---- report -------------------------------------------------------------------------------- */

/* One row a weight, and one an activation that has a static scale (an input that several Linears
 * share under the first one's name): how well its E4M3 codes serve it. */
typedef struct fp8_report_row {
    char name[288]; /* "model.layers.0.mlp.up_proj.weight", "...up_proj.input", "...attn.k" */
    int is_weight;  /* else an activation */
    /* amax: a weight's own; of an activation what the recipe takes from the history. scale and
     * descale: as exported; with DYNAMIC those of a weight's largest channel. */
    float amax, amax_without_first, scale, descale;
    double sqnr_db;       /* 10 log10(sum x^2 / sum (x - qdq(x))^2) */
    double clipped;       /* share of elements with |x| * scale > 448 */
    double p999_over_max; /* 99.9 % quantile of |x| / largest |x|, from a histogram */
    uint64_t nonfinite;
} fp8_report_row;

typedef struct fp8_report {
    fp8_report_row *rows; /* worst (lowest SQNR) first */
    int64_t count;
} fp8_report;

/* Weights: all of them, exactly. Activations: a second forward over the first `steps` steps,
 * measured against the scales of the export (steps 0, or record NULL: weights only). */
FP8_NODISCARD fp8_status fp8_report_create(fp8_report *out, fp8_model *m,
                                           const fp8_checkpoint *source, const fp8_record *record,
                                           const fp8_samples *samples,
                                           const fp8_calib_options *calib,
                                           const fp8_export_options *options, int64_t steps);
void fp8_report_free(fp8_report *r);
/* An array of objects; an infinite SQNR is null. free(). */
FP8_NODISCARD fp8_status fp8_report_json(char **out, const fp8_report *r);

/* ---- evaluation ---------------------------------------------------------------------------- */

typedef struct fp8_eval_result {
    double perplexity; /* exp(sum of -log p / tokens) */
    int64_t tokens;    /* predicted */
    double kl, top1;   /* against the first model: mean nats a token, share; 0 and 1 for itself */
} fp8_eval_result;

/* Window i takes ids[i*T .. i*T+T] inclusive: the first T are the input from an empty cache, each
 * predicts the next, so every id but the first is predicted once; the last window is shorter. A
 * forward takes as many windows as the models' max_tokens hold. max_windows 0 = all. out
 * [num_models]. Models must be of one device and one vocabulary size. FP8_EDATA: fewer than 2 ids,
 * vocabularies differ, a likelihood that is not finite. */
FP8_NODISCARD fp8_status fp8_evaluate(fp8_eval_result *out, fp8_model *const *models,
                                      int32_t num_models, const int32_t *ids, int64_t num_ids,
                                      int64_t window, int64_t max_windows,
                                      const fp8_progress *progress);

/* Sums over one window, for errors of differences between models that saw the same. */
typedef struct fp8_window_score {
    double nll, kl; /* nats; kl against the first model, 0 for itself */
    int64_t tokens;
} fp8_window_score;
/* How many windows fp8_evaluate takes. */
int64_t fp8_evaluate_count(int64_t num_ids, int64_t window, int64_t max_windows);
/* The same, and windows [num_models][fp8_evaluate_count()], row-major; may be NULL. */
FP8_NODISCARD fp8_status fp8_evaluate_windows(fp8_eval_result *out, fp8_window_score *windows,
                                              fp8_model *const *models, int32_t num_models,
                                              const int32_t *ids, int64_t num_ids, int64_t window,
                                              int64_t max_windows, const fp8_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
