/* calib/steps.h - private: samples packed into steps, and who the weights are. */
#ifndef FP8_CALIB_STEPS_H
#define FP8_CALIB_STEPS_H
#include <stdint.h>

#include "calib/calib.h"
#ifdef __cplusplus
extern "C" {
#endif

/* batch and seq positive, batch * seq within int32, every sample of 1 .. seq ids: FP8_EINVAL; no
 * samples: FP8_EDATA. */
FP8_NODISCARD fp8_status fp8_steps_check(const fp8_samples *samples,
                                         const fp8_calib_options *options);
int64_t fp8_steps_count(const fp8_samples *samples, int64_t batch); /* ceil(count / batch) */

/* *out = samples [step * batch, (step + 1) * batch), packed; ids are the samples' own, `starts`
 * [batch + 1] is the caller's and must outlive *out. */
void fp8_steps_batch(fp8_batch *out, int32_t *starts, const fp8_samples *samples, int64_t batch,
                     int64_t step);

/* Bytes, newest modification time and fingerprint of the checkpoint into the record's source_*. */
FP8_NODISCARD fp8_status fp8_source_identify(fp8_record *r, const fp8_checkpoint *source);

#ifdef __cplusplus
}
#endif
#endif
