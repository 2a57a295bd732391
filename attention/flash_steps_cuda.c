/* The launches of a run as a graph: a chain of kernels, each of which may start while the one
 * before it ends, as their launches to a stream do. */
#include "attention/flash_steps.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/cuda_check.h"

enum { MAX_STEPS = 8 };

typedef struct node {
    cudaGraphNode_t handle;
    void *given; /* the parameter that the graph has */
    size_t bytes;
} node;

struct flash_steps {
    cudaGraph_t graph;
    cudaGraphExec_t exec; /* NULL until finish */
    node nodes[MAX_STEPS];
    int32_t count, next;
};

fp8_status flash_steps_create(flash_steps **out) {
    flash_steps *s = calloc(1, sizeof *s);
    fp8_status st = FP8_OK;

    if (!s) return FP8_FAIL(FP8_ENOMEM, "flash attention: steps");
    FP8_TRY_CUDA(cudaGraphCreate(&s->graph, 0));
    *out = s;
    s = NULL;
done:
    flash_steps_destroy(s);
    return st;
}

static cudaError_t add_node(cudaGraphNode_t *out, cudaGraph_t graph, const cudaGraphNode_t *before,
                            size_t count, struct cudaGraphNodeParams *params) {
    const cudaGraphEdgeData early = {.from_port = cudaGraphKernelNodePortProgrammatic,
                                     .type = cudaGraphDependencyTypeProgrammatic};
#if CUDART_VERSION >= 13000
    return cudaGraphAddNode(out, graph, before, count ? &early : NULL, count, params);
#else
    return cudaGraphAddNode_v2(out, graph, before, count ? &early : NULL, count, params);
#endif
}

static fp8_status add_step(flash_steps *s, const flash_step *x) {
    node *n = &s->nodes[s->count];
    struct cudaGraphNodeParams params = {.type = cudaGraphNodeTypeKernel};
    fp8_status st = FP8_OK;

    if (s->count == MAX_STEPS)
        return FP8_FAIL(FP8_EINVAL, "flash attention: more than %d steps", MAX_STEPS);
    n->given = calloc(1, x->bytes);
    if (!n->given) return FP8_FAIL(FP8_ENOMEM, "flash attention: a step of %zu bytes", x->bytes);
    n->bytes = x->bytes;
    params.kernel.func = (void *)(uintptr_t)x->kernel;
    params.kernel.gridDim = (dim3){x->blocks, 1, 1};
    params.kernel.blockDim = (dim3){x->threads, 1, 1};
    params.kernel.sharedMemBytes = (unsigned)x->shared;
    params.kernel.kernelParams = &n->given;
    FP8_TRY_CUDA(add_node(&n->handle, s->graph, s->count ? &n[-1].handle : NULL, s->count > 0,
                          &params));
    s->count++;
done:
    return st;
}

fp8_status flash_steps_finish(flash_steps *s) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaGraphInstantiate(&s->exec, s->graph, 0));
done:
    return st;
}

void flash_steps_begin(flash_steps *s) { s->next = 0; }

fp8_status flash_steps_put(flash_steps *s, const flash_step *x) {
    node *n = &s->nodes[s->next];
    struct cudaKernelNodeParams params = {0};
    fp8_status st = FP8_OK;

    if (!s->exec) return add_step(s, x);
    assert(s->next < s->count && n->bytes == x->bytes);
    s->next++;
    if (memcmp(n->given, x->parameter, x->bytes) == 0) return FP8_OK;
    memcpy(n->given, x->parameter, x->bytes);
    params.func = (void *)(uintptr_t)x->kernel;
    params.gridDim = (dim3){x->blocks, 1, 1};
    params.blockDim = (dim3){x->threads, 1, 1};
    params.sharedMemBytes = (unsigned)x->shared;
    params.kernelParams = &n->given;
    FP8_TRY_CUDA(cudaGraphExecKernelNodeSetParams(s->exec, n->handle, &params));
done:
    if (st != FP8_OK) memset(n->given, 0xff, n->bytes); /* not what the graph has */
    return st;
}

fp8_status flash_steps_launch(flash_steps *s, fp8_stream stream) {
    fp8_status st = FP8_OK;
    assert(s->next == s->count);
    FP8_TRY_CUDA(cudaGraphLaunch(s->exec, stream));
    st = fp8_cuda_launched("flash attention", stream);
done:
    return st;
}

fp8_status flash_steps_captured(int *out, fp8_stream stream) {
    enum cudaStreamCaptureStatus status;
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaStreamIsCapturing(stream, &status));
    *out = status != cudaStreamCaptureStatusNone;
done:
    return st;
}

void flash_steps_destroy(flash_steps *s) {
    if (!s) return;
    if (s->exec) (void)cudaGraphExecDestroy(s->exec);
    if (s->graph) (void)cudaGraphDestroy(s->graph);
    for (int32_t i = 0; i < MAX_STEPS; i++) free(s->nodes[i].given);
    free(s);
}
