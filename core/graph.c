#include "core/graph.h"

#if !FP8_CUDA
/* Without CUDA there is nothing to capture. */
fp8_status fp8_graph_begin(fp8_device *d) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "graphs: found device %s, expected CUDA", fp8_device_name(d));
}

fp8_status fp8_graph_end(fp8_device *d, fp8_graph **out) {
    *out = NULL;
    return fp8_graph_begin(d);
}

fp8_status fp8_graph_launch(fp8_graph *g) {
    (void)g;
    return FP8_FAIL(FP8_EINVAL, "graphs: this build is without CUDA");
}

fp8_graph_shape fp8_graph_get_shape(const fp8_graph *g) {
    (void)g;
    return (fp8_graph_shape){0};
}

void fp8_graph_destroy(fp8_graph *g) { (void)g; }
#endif
