/* calib/calib.h - calibration: data in, amax history, scales, the FP8 checkpoint and a report out;
 * and the evaluation that judges it.
 *
 * Long calls report through a progress callback, which can also stop them: FP8_ECANCELED leaves a
 * resumable record and no half-written output. */
#ifndef FP8_CALIB_CALIB_H
#define FP8_CALIB_CALIB_H
#include <stddef.h>
#include <stdint.h>

#include "formats/formats.h"
#include "model/model.h"
#include "quant/quant.h"
#ifdef __cplusplus
extern "C" {
#endif

/* done of total units of `what` ("calibrating", "writing"); nonzero stops. NULL function = silent. */
typedef struct fp8_progress {
    int (*on)(void *ctx, const char *what, int64_t done, int64_t total);
    void *ctx;
} fp8_progress;

/* ---- data ------------------------------------------------------------------------------------ */

/* Samples: pieces of token ids, each the input of one forward position range. */
typedef struct fp8_samples {
    int32_t *ids;
    int64_t num_ids;
    int64_t *starts; /* [count + 1] */
    int64_t count;
} fp8_samples;

/* Text: a plain text is encoded once, without special tokens, and cut into pieces of `seq` ids, each
 * starting with the tokenizer's prefix (BOS) where it adds one; a JSONL line is one sample, encoded
 * with its special tokens and cut at `seq`. At most max_samples. FP8_EDATA when nothing is left. */
FP8_NODISCARD fp8_status fp8_samples_from_text(fp8_samples *out, fp8_text *text,
                                               const fp8_tokenizer *tokenizer, int64_t seq,
                                               int64_t max_samples);
/* Id files: a sequence longer than seq is cut; nothing is put in front. */
FP8_NODISCARD fp8_status fp8_samples_from_ids(fp8_samples *out, const fp8_id_data *ids, int64_t seq,
                                              int64_t max_samples);
void fp8_samples_free(fp8_samples *s);

/* The built-in calibration text (the project's own), for runs without data. */
const char *fp8_builtin_text(size_t *len);

/* ---- calibration ----------------------------------------------------------------------------- */

typedef struct fp8_calib_options {
    int64_t batch;          /* samples a step; short ones are packed by their lengths */
    int64_t seq;            /* a step holds at most batch * seq tokens */
    int allow_nonfinite;
    const char *record_path;/* where an interrupted or finished history is saved; NULL: nowhere */
    int resume;             /* go on from record_path where it exists */
    const char *data_name;  /* goes into the recipe, with a CRC32 of the ids */
    fp8_progress progress;
} fp8_calib_options;

/* Runs the forward over the samples, one history row a step. FP8_EDATA names the first tensor with
 * non-finite values (unless allowed), or a resume of another source or recipe. *out: the record. */
FP8_NODISCARD fp8_status fp8_calibrate(fp8_record **out, fp8_model *m, const fp8_checkpoint *source,
                                       const fp8_samples *samples, const fp8_calib_options *options);

/* ---- scales and export ----------------------------------------------------------------------- */

typedef struct fp8_export_options {
    fp8_scheme scheme;
    int kv_fp8;
    fp8_attention_mode attention;
    fp8_fp8_format format;
    fp8_recipe recipe;
    size_t max_shard_bytes;
    int force;
    int allow_nonfinite;
    const char *const *include; /* patterns (fnmatch) of tensor names; lone files only; NULL = all */
    int32_t num_include;
    const char *const *exclude;
    int32_t num_exclude;
    fp8_progress progress;
} fp8_export_options;

typedef struct fp8_export_result {
    int64_t linears;       /* quantized */
    size_t source_bytes, output_bytes;
} fp8_export_result;

/* Writes the FP8 checkpoint of `source` into the folder `out`: quantized weights and descales, every
 * other tensor as it was, config.json with quantization_config, tokenizer and generation files copied,
 * the record as calibration.safetensors. Streams: holds a few tensors at a time. record NULL only for
 * DYNAMIC or weights-only TENSOR. FP8_EDATA: NaN weights by name. */
FP8_NODISCARD fp8_status fp8_export(fp8_export_result *result, const char *out,
                                    const fp8_checkpoint *source, fp8_device *d,
                                    const fp8_record *record, const fp8_export_options *options);

/* ---- report ---------------------------------------------------------------------------------- */

/* One row a Linear (and K, V, Q a layer): weights and activations under the scales chosen. */
typedef struct fp8_report_row {
    char name[256];
    int is_weight;           /* else an activation */
    float amax, amax_without_first, scale, descale; /* the last: value of a code step at 1.0 */
    double sqnr_db, clipped, p999_over_max;
    uint64_t nonfinite;
} fp8_report_row;

typedef struct fp8_report {
    fp8_report_row *rows; /* worst (lowest SQNR) first */
    int64_t count;
} fp8_report;

/* Weights: all of them, exactly. Activations: a second forward over the first `steps` steps, measured
 * against the scales of the export (steps 0: weights only). */
FP8_NODISCARD fp8_status fp8_report_create(fp8_report *out, fp8_model *m,
                                           const fp8_checkpoint *source, const fp8_record *record,
                                           const fp8_samples *samples,
                                           const fp8_calib_options *calib,
                                           const fp8_export_options *options, int64_t steps);
void fp8_report_free(fp8_report *r);
FP8_NODISCARD fp8_status fp8_report_json(char **out, const fp8_report *r); /* free() */

/* ---- evaluation ------------------------------------------------------------------------------ */

typedef struct fp8_eval_result {
    double perplexity;
    int64_t tokens;  /* predicted */
    double kl, top1; /* against the first model: mean nats a token, share; 0 and 1 for itself */
} fp8_eval_result;

/* Window i takes ids[i*T .. i*T+T] inclusive: the first T are the input from an empty cache, each
 * predicts the next, so every id but the first is predicted once; the last window is shorter. Windows
 * are batched. max_windows 0 = all. Models must share one vocabulary size. */
FP8_NODISCARD fp8_status fp8_evaluate(fp8_eval_result *out, fp8_model *const *models,
                                      int32_t num_models, const int32_t *ids, int64_t num_ids,
                                      int64_t window, int64_t max_windows,
                                      const fp8_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
