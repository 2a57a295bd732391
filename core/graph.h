/* core/graph.h - work that is captured once and replayed: a CUDA graph of what a device's stream is
 * given between begin and end. Addresses and sizes stay as they were captured; what lies at those
 * addresses may change between replays. */
#ifndef FP8_CORE_GRAPH_H
#define FP8_CORE_GRAPH_H
#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_graph fp8_graph;

/* From here the stream records instead of running, until end. Calls that wait or allocate fail
 * meanwhile. FP8_EUNSUPPORTED on the CPU; FP8_ECUDA. */
FP8_NODISCARD fp8_status fp8_graph_begin(fp8_device *d);
/* Ends the recording, also of one that something went wrong in: then *out is NULL, and the stream
 * is as before. */
FP8_NODISCARD fp8_status fp8_graph_end(fp8_device *d, fp8_graph **out);
/* What was recorded. */
typedef struct fp8_graph_shape {
    int64_t kernels, others; /* others: copies, fills */
    int64_t early; /* kernels that may start while the one before them still runs */
} fp8_graph_shape;
fp8_graph_shape fp8_graph_get_shape(const fp8_graph *g);
/* Asynchronous, in the order of the stream. */
FP8_NODISCARD fp8_status fp8_graph_launch(fp8_graph *g);
void fp8_graph_destroy(fp8_graph *g); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
