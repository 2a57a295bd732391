/* calib/plain_model.h - private: the FP8 model that plain rounding makes, to be measured or changed
 * layer by layer. */
#ifndef FP8_CALIB_PLAIN_MODEL_H
#define FP8_CALIB_PLAIN_MODEL_H
#include "calib/calib.h"

/* Exports `source` by `options`, each weight rounded to the nearest, into the folder `scratch`,
 * which may be there and which the caller removes; opens and loads it. What was opened when
 * something failed is the caller's, too. Statuses of fp8_export and fp8_model_load. */
FP8_NODISCARD fp8_status fp8_plain_model_load(fp8_checkpoint **plain, fp8_model **m, fp8_device *d,
                                              const char *scratch, const fp8_checkpoint *source,
                                              const fp8_record *record,
                                              const fp8_export_options *options,
                                              const fp8_model_options *how);
#endif
