/* Graphs on CUDA: stream capture of this thread's work. */
#include <stdlib.h>

#include "core/cuda_check.h"
#include "core/graph.h"

struct fp8_graph {
    fp8_device *device;
    cudaGraphExec_t exec;
    fp8_graph_shape shape;
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

static cudaError_t get_edges(cudaGraph_t graph, cudaGraphNode_t *from, cudaGraphNode_t *to,
                             cudaGraphEdgeData *data, size_t *count) {
#if CUDART_VERSION >= 13000
    return cudaGraphGetEdges(graph, from, to, data, count);
#else
    return cudaGraphGetEdges_v2(graph, from, to, data, count);
#endif
}

static fp8_status count_edges(fp8_graph_shape *shape, cudaGraph_t graph) {
    cudaGraphNode_t *ends = NULL;
    cudaGraphEdgeData *data = NULL;
    fp8_status st = FP8_OK;
    size_t count = 0;

    FP8_TRY_CUDA(get_edges(graph, NULL, NULL, NULL, &count));
    ends = calloc(2 * count + 1, sizeof *ends);
    data = calloc(count + 1, sizeof *data);
    if (!ends || !data) {
        st = FP8_FAIL(FP8_ENOMEM, "graph: %zu edges", count);
        goto done;
    }
    if (count > 0) /* asked for none, the call is refused */
        FP8_TRY_CUDA(get_edges(graph, ends, ends + count, data, &count));
    for (size_t i = 0; i < count; i++)
        shape->early += data[i].type == cudaGraphDependencyTypeProgrammatic;
done:
    free(ends);
    free(data);
    return st;
}

static fp8_status measure(fp8_graph_shape *shape, cudaGraph_t graph) {
    cudaGraphNode_t *nodes = NULL;
    fp8_status st = FP8_OK;
    size_t count = 0;

    FP8_TRY_CUDA(cudaGraphGetNodes(graph, NULL, &count));
    nodes = calloc(count + 1, sizeof *nodes);
    if (!nodes) {
        st = FP8_FAIL(FP8_ENOMEM, "graph: %zu nodes", count);
        goto done;
    }
    if (count > 0) FP8_TRY_CUDA(cudaGraphGetNodes(graph, nodes, &count));
    for (size_t i = 0; i < count; i++) {
        enum cudaGraphNodeType type;
        FP8_TRY_CUDA(cudaGraphNodeGetType(nodes[i], &type));
        *(type == cudaGraphNodeTypeKernel ? &shape->kernels : &shape->others) += 1;
    }
    FP8_TRY(count_edges(shape, graph));
done:
    free(nodes);
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
    FP8_TRY(measure(&g->shape, graph));
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

fp8_graph_shape fp8_graph_get_shape(const fp8_graph *g) { return g->shape; }

void fp8_graph_destroy(fp8_graph *g) {
    if (!g) return;
    if (g->exec) (void)cudaGraphExecDestroy(g->exec);
    free(g);
}
