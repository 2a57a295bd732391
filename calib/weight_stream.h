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
    fp8_device *d;     /* the host: its pool alone is used */
    fp8_pool *writers; /* fp8_weight_ship_run: another pool than d's, of at least 2 threads */
    fp8_scheme scheme;
    int ue8m0, bf16_scales, allow_nonfinite;
    int no_scales;                /* leave out what comes from the record */
    const fp8_progress *progress; /* "writing", from the calling thread */
} fp8_weight_stream;

/* Puts every tensor of the plan: what it has data for, and of the others the codes and descales.
 * The mapped source leaves this process's memory behind it. FP8_EDATA: NaN or infinite weights,
 * the first such by name; FP8_ECANCELED. */
FP8_NODISCARD fp8_status fp8_weight_stream_run(const fp8_weight_stream *s);

/* The same by a device `d` of any kind: the calling thread drives it; it quantizes what it holds
 * already or is given, group after group; `writers` write what has come back through pinned memory.
 * Not schemes BLOCK and MX, nor bf16_scales. */
FP8_NODISCARD fp8_status fp8_weight_ship_run(const fp8_weight_stream *s);

/* What both do with a tensor: 1 where it has data to be copied. */
static inline int fp8_weight_stream_copies(const fp8_weight_stream *s, int64_t spec) {
    return s->plan->data[spec] && !(s->no_scales && s->plan->from_record[spec]);
}
/* "writing": FP8_ECANCELED when the caller wants it to stop. */
static inline fp8_status fp8_weight_stream_tell(const fp8_weight_stream *s, size_t done) {
    const fp8_progress *p = s->progress;
    if (!p->on || !p->on(p->ctx, "writing", (int64_t)done, (int64_t)s->plan->bytes)) return FP8_OK;
    return FP8_FAIL(FP8_ECANCELED, "writing stopped after %zu of %zu bytes", done, s->plan->bytes);
}

#ifdef __cplusplus
}
#endif
#endif
