/* formats/record.h - the calibration record: the whole amax history with what made it, as a
 * safetensors file, so that other scales can be derived and a run resumed. */
#ifndef FP8_FORMATS_RECORD_H
#define FP8_FORMATS_RECORD_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* On disk: for each point P two F32 [steps] tensors, `P.amax_history` and
 * `P.amax_history_without_first`, one U32 [steps] `P.nonfinite`; I64 [steps] `tokens`; U8 [n]
 * `recipe` (JSON text); where histograms were kept, I64 [points, 2048] `histograms`; nothing else.
 * __metadata__: format "fp8calib.record", version "1",
 * source_bytes, source_mtime, source_crc32, steps_done, steps_total (decimal), points (their names
 * in order, a newline between). */
enum { FP8_RECORD_BINS = 2048 }; /* as quant/cast.h's fp8_error_stats counts |x| */
typedef struct fp8_record {
    char **points; /* names: "model.layers.0.self_attn.q_proj.input", "...self_attn.k" ... */
    int64_t num_points;
    int64_t steps, steps_total; /* rows that are done; rows the run is to have */
    float *amax;                /* [num_points][steps_total] */
    float *amax_without_first;  /* likewise: rows that begin a sequence left out */
    uint32_t *nonfinite;        /* likewise */
    int64_t *tokens;            /* [steps_total] */
    int64_t *histograms; /* [num_points][FP8_RECORD_BINS]: finite values of all rows that are done,
                          * by the top 12 bits of |x| as F32; NULL: not kept */
    uint64_t source_bytes;
    int64_t source_mtime; /* seconds */
    uint32_t source_crc32;
    char *recipe; /* JSON text of every choice that makes the history: compared on resume */
} fp8_record;

/* Allocates for num_points x steps_total, zeroed, steps 0; names are copied. FP8_EINVAL: a name
 * that is empty, given twice or unfit for a tensor; a recipe that is not JSON. */
FP8_NODISCARD fp8_status fp8_record_create(fp8_record **out, const char *const *points,
                                           int64_t num_points, int64_t steps_total,
                                           const char *recipe);
/* Gives r its histograms, zeroed. FP8_EINVAL: it has them. */
FP8_NODISCARD fp8_status fp8_record_add_histograms(fp8_record *r);
void fp8_record_destroy(fp8_record *r);

/* Writes the rows that are done; the file appears whole or not. FP8_EIO, FP8_ENOTFOUND
 * (no such folder). */
FP8_NODISCARD fp8_status fp8_record_save(const fp8_record *r, const char *path);

/* Checks names, shapes and dtypes, that histories are finite or +Inf and >= 0, counts >= 0
 * and their sum within int64, that steps <= steps_total. FP8_ENOTFOUND, FP8_EIO, FP8_EFORMAT. */
FP8_NODISCARD fp8_status fp8_record_load(fp8_record **out, const char *path);

/* FP8_EDATA with one line when `old`, read from path, is of another source (size, mtime or CRC32),
 * recipe, set of points or number of steps than `now`, or only one has histograms. */
FP8_NODISCARD fp8_status fp8_record_check(const fp8_record *old, const fp8_record *now,
                                          const char *path);

#ifdef __cplusplus
}
#endif
#endif
