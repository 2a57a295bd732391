#include "attention/cudnn_graph.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "core/log.h"

enum { HANDLE_LESS = 90800, MESSAGE_BYTES = 256 };

/* ---- descriptors ----------------------------------------------------------------------------- */

/* "what: step: status (cuDNN's own words)" as this thread's message. */
static fp8_status refuse(fp8_status st, cudnnStatus_t status, const char *what, const char *step) {
    char words[MESSAGE_BYTES] = "";
    char *end;
    cudnnGetLastErrorString(words, sizeof words);
    while ((end = strpbrk(words, "\r\n"))) *end = ' ';
    return FP8_FAIL(st, "cuDNN %s: %s: %s%s%s%s", what, step, cudnnGetErrorString(status),
                    *words ? " (" : "", words, *words ? ")" : "");
}

static fp8_status create(cudnn_graph *g, cudnnBackendDescriptor_t *out,
                         cudnnBackendDescriptorType_t type, const char *what) {
    const cudnnStatus_t status = cudnnBackendCreateDescriptor(type, out);
    if (status != CUDNN_STATUS_SUCCESS)
        return refuse(FP8_EUNSUPPORTED, status, what, "create descriptor");
    assert(g->num_owned < CUDNN_GRAPH_OWNED);
    g->owned[g->num_owned++] = *out;
    return FP8_OK;
}

static fp8_status set(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                      cudnnBackendAttributeType_t type, int64_t count, const void *value,
                      const char *what, const char *step) {
    const cudnnStatus_t status = cudnnBackendSetAttribute(d, name, type, count, value);
    return status == CUDNN_STATUS_SUCCESS ? FP8_OK
                                          : refuse(FP8_EUNSUPPORTED, status, what, step);
}

static fp8_status set_descriptor(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                 const cudnn_tensor *t, const char *what, const char *step) {
    return set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &t->descriptor, what, step);
}

static fp8_status finalize(cudnnBackendDescriptor_t d, const char *what) {
    const cudnnStatus_t status = cudnnBackendFinalize(d);
    return status == CUDNN_STATUS_SUCCESS ? FP8_OK
                                          : refuse(FP8_EUNSUPPORTED, status, what, "finalize");
}

static void add_op(cudnn_graph *g, cudnnBackendDescriptor_t op) {
    assert(g->num_ops < CUDNN_GRAPH_OPS);
    g->ops[g->num_ops++] = op;
}

void cudnn_graph_free(cudnn_graph *g) {
    while (g->num_owned > 0) (void)cudnnBackendDestroyDescriptor(g->owned[--g->num_owned]);
    memset(g, 0, sizeof *g);
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Everything of a tensor but what kind it is; not finalized. */
static fp8_status begin_tensor(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                               const int64_t shape[4], const int64_t strides[4], char what[64]) {
    const int64_t alignment = 16;
    cudnnBackendDescriptor_t d;
    fp8_status st;

    memcpy(out->shape, shape, sizeof out->shape);
    out->dtype = dtype;
    out->uid = ++g->last_uid;
    snprintf(what, 64, "tensor %lld", (long long)out->uid);
    FP8_TRY(create(g, &d, CUDNN_BACKEND_TENSOR_DESCRIPTOR, what));
    out->descriptor = d;
    FP8_TRY(set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &dtype, what, "type"));
    FP8_TRY(set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape, what, "shape"));
    FP8_TRY(set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides, what, "strides"));
    FP8_TRY(set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &out->uid, what, "id"));
    FP8_TRY(set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment, what,
                "alignment"));
done:
    return st;
}

/* A tensor with a boolean attribute. */
static fp8_status flagged_tensor(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                                 const int64_t shape[4], const int64_t strides[4],
                                 cudnnBackendAttributeName_t flag) {
    const bool yes = true;
    char what[64];
    fp8_status st;

    FP8_TRY(begin_tensor(g, out, dtype, shape, strides, what));
    FP8_TRY(set(out->descriptor, flag, CUDNN_TYPE_BOOLEAN, 1, &yes, what, "kind"));
    FP8_TRY(finalize(out->descriptor, what));
done:
    return st;
}

fp8_status cudnn_graph_operand(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                               const int64_t shape[4], const int64_t strides[4],
                               const cudnn_tensor *offsets) {
    char what[64];
    fp8_status st;

    FP8_TRY(begin_tensor(g, out, dtype, shape, strides, what));
    if (offsets)
        FP8_TRY(set_descriptor(out->descriptor, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, offsets, what,
                               "offsets"));
    FP8_TRY(finalize(out->descriptor, what));
done:
    return st;
}

fp8_status cudnn_graph_scalar(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype) {
    static const int64_t one[4] = {1, 1, 1, 1};
    return flagged_tensor(g, out, dtype, one, one, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
}

fp8_status cudnn_graph_virtual(cudnn_graph *g, cudnn_tensor *out, cudnnDataType_t dtype,
                               const int64_t shape[4]) {
    const int64_t strides[4] = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
    return flagged_tensor(g, out, dtype, shape, strides, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
}

/* ---- operations ------------------------------------------------------------------------------ */

fp8_status cudnn_graph_matmul(cudnn_graph *g, const cudnn_tensor *a, const cudnn_tensor *b,
                              const cudnn_tensor *c, cudnn_extents extents) {
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    const char *what = "matmul";
    cudnnBackendDescriptor_t kind, op;
    fp8_status st;

    FP8_TRY(create(g, &kind, CUDNN_BACKEND_MATMUL_DESCRIPTOR, what));
    FP8_TRY(set(kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision, what,
                "precision"));
    FP8_TRY(finalize(kind, what));
    FP8_TRY(create(g, &op, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, what));
    FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a, what, "A"));
    FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b, what, "B"));
    FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c, what, "C"));
    FP8_TRY(set(op, CUDNN_ATTR_OPERATION_MATMUL_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &kind, what,
                "kind"));
    if (extents.m)
        FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, extents.m,
                               what, "m"));
    if (extents.n)
        FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, extents.n,
                               what, "n"));
    if (extents.k)
        FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, extents.k,
                               what, "k"));
    FP8_TRY(finalize(op, what));
    add_op(g, op);
done:
    return st;
}

fp8_status cudnn_graph_reduce(cudnn_graph *g, cudnnReduceTensorOp_t op, const cudnn_tensor *x,
                              const cudnn_tensor *y) {
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    const char *what = op == CUDNN_REDUCE_TENSOR_MAX   ? "row maximum"
                       : op == CUDNN_REDUCE_TENSOR_ADD ? "row sum"
                                                       : "amax";
    cudnnBackendDescriptor_t kind, d;
    fp8_status st;

    FP8_TRY(create(g, &kind, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, what));
    FP8_TRY(set(kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &precision, what,
                "precision"));
    FP8_TRY(set(kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &op,
                what, "operator"));
    FP8_TRY(finalize(kind, what));
    FP8_TRY(create(g, &d, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, what));
    FP8_TRY(set_descriptor(d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, what, "X"));
    FP8_TRY(set_descriptor(d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, what, "Y"));
    FP8_TRY(set(d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &kind,
                what, "kind"));
    FP8_TRY(finalize(d, what));
    add_op(g, d);
done:
    return st;
}

/* The descriptor that says which pointwise function. */
static fp8_status pointwise_kind(cudnn_graph *g, cudnnBackendDescriptor_t *out,
                                 cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                                 int64_t axis, const char *what) {
    fp8_status st;
    FP8_TRY(create(g, out, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, what));
    FP8_TRY(set(*out, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode, what,
                "mode"));
    FP8_TRY(set(*out, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision, what,
                "precision"));
    if (mode == CUDNN_POINTWISE_GEN_INDEX)
        FP8_TRY(set(*out, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis, what, "axis"));
    FP8_TRY(finalize(*out, what));
done:
    return st;
}

fp8_status cudnn_graph_pointwise(cudnn_graph *g, cudnnPointwiseMode_t mode,
                                 cudnnDataType_t precision, int64_t axis, const cudnn_tensor *x,
                                 const cudnn_tensor *b, const cudnn_tensor *t,
                                 const cudnn_tensor *y) {
    cudnnBackendDescriptor_t kind, op;
    char what[64];
    fp8_status st;

    snprintf(what, sizeof what, "pointwise mode %d", (int)mode);
    FP8_TRY(pointwise_kind(g, &kind, mode, precision, axis, what));
    FP8_TRY(create(g, &op, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, what));
    FP8_TRY(set(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                &kind, what, "kind"));
    FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, what, "X"));
    if (b) FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b, what, "B"));
    if (t) FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t, what, "T"));
    FP8_TRY(set_descriptor(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, what, "Y"));
    FP8_TRY(finalize(op, what));
    add_op(g, op);
done:
    return st;
}

/* ---- compiling ------------------------------------------------------------------------------- */

static fp8_status operation_graph(cudnn_graph *g, cudnnBackendDescriptor_t *out) {
    const char *what = "operation graph";
    fp8_status st;
    FP8_TRY(create(g, out, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, what));
    FP8_TRY(set(*out, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->num_ops,
                g->ops, what, "operations"));
    FP8_TRY(set(*out, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle, what,
                "handle"));
    FP8_TRY(finalize(*out, what));
done:
    return st;
}

/* Engine configurations the heuristics propose, best first. */
static fp8_status engine_configs(cudnn_graph *g, cudnnBackendDescriptor_t graph,
                                 cudnnBackendDescriptor_t configs[CUDNN_GRAPH_CONFIGS],
                                 int64_t *count) {
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    const char *what = "heuristics";
    cudnnBackendDescriptor_t heuristics;
    cudnnStatus_t status;
    fp8_status st;

    FP8_TRY(create(g, &heuristics, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, what));
    FP8_TRY(set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                &graph, what, "operation graph"));
    FP8_TRY(set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode, what,
                "mode"));
    FP8_TRY(finalize(heuristics, what));
    for (int i = 0; i < CUDNN_GRAPH_CONFIGS; i++)
        FP8_TRY(create(g, &configs[i], CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, what));
    status = cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_TYPE_BACKEND_DESCRIPTOR, CUDNN_GRAPH_CONFIGS, count,
                                      configs);
    if (status != CUDNN_STATUS_SUCCESS) st = refuse(FP8_EUNSUPPORTED, status, what, "results");
    else if (*count == 0) st = FP8_FAIL(FP8_EUNSUPPORTED, "cuDNN heuristics: no engine for this");
    if (*count > CUDNN_GRAPH_CONFIGS) *count = CUDNN_GRAPH_CONFIGS;
done:
    return st;
}

static fp8_status execution_plan(cudnn_graph *g, cudnnBackendDescriptor_t config) {
    const char *what = "execution plan";
    cudnnBackendDescriptor_t plan;
    cudnnStatus_t status;
    int64_t count;
    fp8_status st;

    FP8_TRY(create(g, &plan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, what));
    FP8_TRY(set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                &config, what, "engine configuration"));
    if (cudnnGetVersion() < HANDLE_LESS)
        FP8_TRY(set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle, what,
                    "handle"));
    FP8_TRY(finalize(plan, what));
    status = cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                      CUDNN_TYPE_INT64, 1, &count, &g->workspace_bytes);
    if (status != CUDNN_STATUS_SUCCESS) st = refuse(FP8_EUNSUPPORTED, status, what, "workspace");
    if (st == FP8_OK) g->plan = plan;
done:
    return st;
}

/* For the log only: a configuration's engine number, -1 when cuDNN does not tell. */
static int64_t engine_of(cudnn_graph *g, cudnnBackendDescriptor_t config) {
    cudnnBackendDescriptor_t engine;
    int64_t count = 0, index = -1;
    if (create(g, &engine, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine") != FP8_OK) return -1;
    if (cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 1, &count, &engine) != CUDNN_STATUS_SUCCESS)
        return -1;
    if (cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1,
                                 &count, &index) != CUDNN_STATUS_SUCCESS)
        return -1;
    return index;
}

fp8_status cudnn_graph_compile(cudnn_graph *g) {
    cudnnBackendDescriptor_t graph, configs[CUDNN_GRAPH_CONFIGS];
    int64_t count = 0;
    fp8_status st;

    FP8_TRY(operation_graph(g, &graph));
    FP8_TRY(engine_configs(g, graph, configs, &count));
    for (int64_t i = 0; i < count && !g->plan; i++) {
        st = execution_plan(g, configs[i]);
        if (st == FP8_OK) g->engine = engine_of(g, configs[i]);
        else fp8_log(FP8_LOG_DETAIL, "attention: configuration %lld of %lld: %s", (long long)i,
                     (long long)count, fp8_last_message());
    }
done:
    return st;
}

/* ---- running --------------------------------------------------------------------------------- */

void cudnn_pack_free(cudnn_pack *p) {
    if (p->descriptor) (void)cudnnBackendDestroyDescriptor(p->descriptor);
    memset(p, 0, sizeof *p);
}

static fp8_status fill_pack(cudnnBackendDescriptor_t d, int64_t count, const int64_t *uids,
                            void *const *pointers, void *workspace) {
    const char *what = "variant pack";
    fp8_status st;
    FP8_TRY(set(d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers,
                what, "pointers"));
    FP8_TRY(set(d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uids, what, "ids"));
    FP8_TRY(set(d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace, what,
                "workspace"));
    FP8_TRY(finalize(d, what));
done:
    return st == FP8_OK ? FP8_OK : FP8_FAIL(FP8_ECUDA, "%s", fp8_last_message());
}

static int same_pack(const cudnn_pack *p, int64_t count, void *const *pointers, void *workspace) {
    return p->descriptor && p->count == count && p->workspace == workspace &&
           memcmp(p->pointers, pointers, (size_t)count * sizeof *pointers) == 0;
}

static fp8_status renew_pack(cudnn_pack *p, int64_t count, const int64_t *uids,
                             void *const *pointers, void *workspace) {
    cudnnStatus_t status;
    fp8_status st = FP8_OK;

    cudnn_pack_free(p);
    status = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &p->descriptor);
    if (status != CUDNN_STATUS_SUCCESS) return refuse(FP8_ECUDA, status, "run", "variant pack");
    FP8_TRY(fill_pack(p->descriptor, count, uids, pointers, workspace));
    p->count = count;
    p->workspace = workspace;
    memcpy(p->pointers, pointers, (size_t)count * sizeof *pointers);
done:
    if (st != FP8_OK) cudnn_pack_free(p);
    return st;
}

fp8_status cudnn_graph_run(const cudnn_graph *g, cudnnHandle_t handle, fp8_stream stream,
                           cudnn_pack *pack, int64_t count, const int64_t *uids,
                           void *const *pointers, void *workspace) {
    cudnnStatus_t status;
    fp8_status st = FP8_OK;

    assert(count <= CUDNN_PACK_MAX);
    if (!same_pack(pack, count, pointers, workspace))
        FP8_TRY(renew_pack(pack, count, uids, pointers, workspace));
    status = cudnnSetStream(handle, stream);
    if (status != CUDNN_STATUS_SUCCESS) return refuse(FP8_ECUDA, status, "run", "set stream");
    status = cudnnBackendExecute(handle, g->plan, pack->descriptor);
    if (status != CUDNN_STATUS_SUCCESS) st = refuse(FP8_ECUDA, status, "run", "execute");
done:
    return st;
}
