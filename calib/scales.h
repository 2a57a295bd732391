/* calib/scales.h - private: from the amax histories of a record to a checkpoint's scales. */
#ifndef FP8_CALIB_SCALES_H
#define FP8_CALIB_SCALES_H
#include <stdint.h>

#include "calib/calib.h"
#include "calib/points.h"
#ifdef __cplusplus
extern "C" {
#endif

/* (*out)[slot] for every slot, with those of heads where points has them (which clip nothing);
 * free(). Linears that share an input share its scale. FP8_EDATA: the
 * record is unfinished, of another source, or lacks a point (named). Else as fp8_scale_of_point. */
FP8_NODISCARD fp8_status fp8_scales_create(fp8_scale **out, const fp8_record *record,
                                           const fp8_checkpoint *source, const fp8_points *points,
                                           const fp8_recipe *recipe, fp8_clip clip);

/* The scale of an amax without a history: no margin, E4M3. */
fp8_scale fp8_scale_of(float amax);

#ifdef __cplusplus
}
#endif
#endif
