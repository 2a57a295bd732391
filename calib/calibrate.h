/* calib/calibrate.h - samples, and the forwards over them that fill a record with the amax of every
 * step. */
#ifndef FP8_CALIB_CALIBRATE_H
#define FP8_CALIB_CALIBRATE_H
#include <stddef.h>
#include <stdint.h>

#include "calib/progress.h"
#include "formats/formats.h"
#include "model/model.h"
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

#ifdef __cplusplus
}
#endif
#endif
