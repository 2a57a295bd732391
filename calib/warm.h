/* calib/warm.h - what the first step of a long calibration would wait for, done while the model's
 * weights come: the libraries start, and cuBLASLt's algorithms for the model's Linears are timed
 * (quant/gemm_tune.h, those that give the same bits, so that a result never hangs on a time). */
#ifndef FP8_CALIB_WARM_H
#define FP8_CALIB_WARM_H
#include <stdint.h>

#include "core/device.h"
#include "formats/config.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_warm fp8_warm;

/* Starts a thread with a stream of its own on d's GPU, for steps of `tokens` in BF16 that are `all`
 * tokens together. *out = NULL, and nothing is done, on the CPU and where the calibration takes
 * less than some tenths of a second. Meanwhile half a GB of the device's memory and more is taken,
 * by the size of a step. FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_warm_start(fp8_warm **out, fp8_device *d, const fp8_model_config *c,
                                        int64_t tokens, int64_t all);

/* Waits for it and frees it; NULL is fine. What failed there is a log warning: all works without
 * it. */
void fp8_warm_end(fp8_warm *w);

#ifdef __cplusplus
}
#endif
#endif
