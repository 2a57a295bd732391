/* calib/export_background.h - private: the weights of an export, written beside other work. */
#ifndef FP8_CALIB_EXPORT_BACKGROUND_H
#define FP8_CALIB_EXPORT_BACKGROUND_H
#include "calib/weight_stream.h"

/* fp8_weight_ship_run with writers of its own. */
FP8_NODISCARD fp8_status fp8_export_ship(const fp8_weight_stream *s);

typedef struct fp8_export_background fp8_export_background;

/* fp8_export_ship in a thread of its own, on a stream of its own of the device of *s, without what
 * comes from the record. What *s points to must outlive it. */
FP8_NODISCARD fp8_status fp8_export_background_start(fp8_export_background **out,
                                                     const fp8_weight_stream *s);
/* Waits for its end and returns its verdict; meanwhile tells of the bytes written of `total`, and
 * stops it when that is wished. */
FP8_NODISCARD fp8_status fp8_export_background_join(fp8_export_background *b,
                                                    const fp8_progress *progress, size_t total);
void fp8_export_background_stop(fp8_export_background *b); /* and frees it; NULL is fine */
#endif
