/* calib/calib.h - calibration: data in, amax history, scales, the FP8 checkpoint and a report out;
 * and the evaluation that judges it.
 *
 * Long calls report through a progress callback, which can also stop them: FP8_ECANCELED leaves a
 * resumable record and no half-written output. One thread drives a model and its device at once. */
#ifndef FP8_CALIB_CALIB_H
#define FP8_CALIB_CALIB_H
#include "calib/calibrate.h"
#include "calib/convert.h"
#include "calib/evaluate.h"
#include "calib/export.h"
#include "calib/progress.h"
#include "calib/rounding.h"
#include "calib/warm.h"
#endif
