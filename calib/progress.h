/* calib/progress.h - how long calls report, and are stopped. */
#ifndef FP8_CALIB_PROGRESS_H
#define FP8_CALIB_PROGRESS_H
#include <stdint.h>

/* done of total units of `what` ("calibrating" steps, "measuring" steps, "writing" bytes,
 * "evaluating" windows, "weighing" choices, "rounding" inputs of layers); nonzero stops. NULL
 * function = silent. */
typedef struct fp8_progress {
    int (*on)(void *ctx, const char *what, int64_t done, int64_t total);
    void *ctx;
} fp8_progress;
#endif
