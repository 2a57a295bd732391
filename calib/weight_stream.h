/* calib/weight_stream.h - private: a planned checkpoint written on the host, by all threads of a
 * pool at once: each takes the next piece (at most a few MB), reads, quantizes and writes it. What
 * is held is a piece or two a thread, whatever the tensors' sizes. */
#ifndef FP8_CALIB_WEIGHT_STREAM_H
#define FP8_CALIB_WEIGHT_STREAM_H
#include "calib/export_plan.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_weight_stream {
    const fp8_export_plan *plan;
    const fp8_weights *weights; /* none are quantized with scheme NONE */
    fp8_checkpoint_writer *writer;
    fp8_pool *pool;
    fp8_scheme scheme;
    int ue8m0, allow_nonfinite;
    const fp8_progress *progress; /* "writing", from the calling thread */
} fp8_weight_stream;

/* Puts every tensor of the plan: what it has data for, and of the others the codes and descales.
 * The mapped source leaves this process's memory behind it. FP8_EDATA: NaN or infinite weights,
 * the first such by name; FP8_ECANCELED. */
FP8_NODISCARD fp8_status fp8_weight_stream_run(const fp8_weight_stream *s);

#ifdef __cplusplus
}
#endif
#endif
