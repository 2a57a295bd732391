/* attention/cudnn_graph.h - private: cuDNN operation graphs through the C backend API.
 *
 * A graph owns every descriptor it made and frees them together. Tensors have four dimensions,
 * [batch, heads, rows, columns]. Each builder returns FP8_EUNSUPPORTED when cuDNN refuses: the
 * message says which descriptor, which step, and what cuDNN said. */
#ifndef FP8_ATTENTION_CUDNN_GRAPH_H
#define FP8_ATTENTION_CUDNN_GRAPH_H
#include <cudnn.h>

#include "core/device.h"

enum { CUDNN_GRAPH_OWNED = 256, CUDNN_GRAPH_OPS = 64, CUDNN_GRAPH_CONFIGS = 8 };

typedef struct cudnn_graph {
    cudnnHandle_t handle; /* borrowed */
    cudnnBackendDescriptor_t owned[CUDNN_GRAPH_OWNED];
    cudnnBackendDescriptor_t ops[CUDNN_GRAPH_OPS]; /* in the order they were added */
    int32_t num_owned, num_ops;
    int64_t last_uid;
    cudnnBackendDescriptor_t plan; /* of compile */
    int64_t engine, workspace_bytes;
} cudnn_graph;

typedef struct cudnn_tensor {
    cudnnBackendDescriptor_t descriptor;
    int64_t uid;
    int64_t shape[4];
    cudnnDataType_t dtype;
} cudnn_tensor;

/* An operand in memory, 16-byte aligned; strides in elements. offsets: NULL, or an I32 or I64
 * operand [batch + 1, 1, 1, 1]: where each batch entry begins, in elements (strides[0] is then of
 * no meaning). */
fp8_status cudnn_graph_operand(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                               const int64_t shape[4], const int64_t strides[4],
                               const cudnn_tensor *offsets);
/* One number, read from host memory when the graph runs. */
fp8_status cudnn_graph_scalar(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype);
/* A value between two operations, never in memory. */
fp8_status cudnn_graph_virtual(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                               const int64_t shape[4]);

/* Operands [batch, 1, 1, 1] of I32: how much of m, n, k counts in each batch entry. NULL = all. */
typedef struct cudnn_extents {
    const cudnn_tensor *m, *n, *k;
} cudnn_extents;

/* c = a b, accumulated in FP32; batch and heads of a multiple of those of b. */
fp8_status cudnn_graph_matmul(cudnn_graph *g, const cudnn_tensor *a, const cudnn_tensor *b,
                              const cudnn_tensor *c, cudnn_extents extents);
/* y = op over the dimensions in which y has size 1, in FP32. */
fp8_status cudnn_graph_reduce(cudnn_graph *g, cudnnReduceTensorOp_t op, const cudnn_tensor *x,
                              const cudnn_tensor *y);
/* y = mode(x), mode(x, b) or, for BINARY_SELECT, t ? x : b, computed in `precision`. b and t are
 * NULL where the mode has none; axis is for GEN_INDEX. */
fp8_status cudnn_graph_pointwise(cudnn_graph *g, cudnnPointwiseMode_t mode,
                                 cudnnDataType_t precision, int64_t axis, const cudnn_tensor *x,
                                 const cudnn_tensor *b, const cudnn_tensor *t,
                                 const cudnn_tensor *y);

/* Takes the operations to an execution plan: the first of the heuristics' engines that accepts. */
fp8_status cudnn_graph_compile(cudnn_graph *g);

/* What a run reads and writes, by id: operands (device) and scalars (host). Kept from run to run
 * for as long as nothing in it changes. Zero it before the first run. */
enum { CUDNN_PACK_MAX = 48 };
typedef struct cudnn_pack {
    cudnnBackendDescriptor_t descriptor;
    int64_t count;
    void *pointers[CUDNN_PACK_MAX], *workspace;
} cudnn_pack;
void cudnn_pack_free(cudnn_pack *p);

/* Runs on `stream`. FP8_ECUDA. */
fp8_status cudnn_graph_run(const cudnn_graph *g, cudnnHandle_t handle, fp8_stream stream,
                           cudnn_pack *pack, int64_t count, const int64_t *uids,
                           void *const *pointers, void *workspace);

void cudnn_graph_free(cudnn_graph *g); /* everything it owns; not the handle */
#endif
