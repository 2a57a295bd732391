/* calib/requantize.h - private: codes with other scales, from codes with the old ones. */
#ifndef FP8_CALIB_REQUANTIZE_H
#define FP8_CALIB_REQUANTIZE_H
#include "calib/convert_source.h"
#include "core/threads.h"

/* 1 when descales of `scheme` can stand for those of w, the codes unchanged; ue8m0: and be powers
 * of two. */
int fp8_coded_keeps(const fp8_coded *w, fp8_scheme scheme, int ue8m0);
/* out [count of the scheme] = w's descales, one spread over all where w has one. */
void fp8_coded_spread(float *out, int64_t count, const fp8_coded *w);

/* values [rows, cols] = code * descale, F32; *amax (may be NULL) = the largest finite |value|. */
FP8_NODISCARD fp8_status fp8_coded_values(float *values, float *amax, fp8_pool *pool,
                                          const fp8_coded *w);
/* E4M3 codes and descales by the scheme; TENSOR and TENSOR_DYNAMIC: from the amax that is given. */
FP8_NODISCARD fp8_status fp8_coded_quantize(uint8_t *codes, float *descales, fp8_pool *pool,
                                            const float *values, const fp8_coded *w,
                                            fp8_scheme scheme, int ue8m0, float amax);
#endif
