/* Graphs on CUDA: stream capture of this thread's work. */
#include <stdlib.h>

#include "core/cuda_check.h"
#include "core/graph.h"

struct fp8_graph {
    fp8_device *device;
    cudaGraphExec_t exec;
};

fp8_status fp8_graph_begin(fp8_device *d) {
    fp8_status st = FP8_OK;
    if (fp8_device_place(d) != FP8_PLACE_CUDA)
        return FP8_FAIL(FP8_EUNSUPPORTED, "graphs: found device %s, expected CUDA",
                        fp8_device_name(d));
    FP8_TRY_CUDA(cudaStreamBeginCapture(fp8_device_stream(d), cudaStreamCaptureModeThreadLocal));
done:
    return st;
}

fp8_status fp8_graph_end(fp8_device *d, fp8_graph **out) {
    cudaGraph_t graph = NULL;
    fp8_graph *g = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY_CUDA(cudaStreamEndCapture(fp8_device_stream(d), &graph));
    g = calloc(1, sizeof *g);
    if (!g) {
        st = FP8_FAIL(FP8_ENOMEM, "graph");
        goto done;
    }
    g->device = d;
    FP8_TRY_CUDA(cudaGraphInstantiate(&g->exec, graph, 0));
    FP8_TRY_CUDA(cudaGraphUpload(g->exec, fp8_device_stream(d)));
    *out = g;
    g = NULL;
done:
    if (graph) (void)cudaGraphDestroy(graph);
    fp8_graph_destroy(g);
    return st;
}

fp8_status fp8_graph_launch(fp8_graph *g) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaGraphLaunch(g->exec, fp8_device_stream(g->device)));
done:
    return st;
}

void fp8_graph_destroy(fp8_graph *g) {
    if (!g) return;
    if (g->exec) (void)cudaGraphExecDestroy(g->exec);
    free(g);
}
