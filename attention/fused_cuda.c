/* The fused backend: cuDNN's attention forward in BF16, for sequences of one length. The graph is
 * the one its engines recognise: Q K^T, scale, masks, maximum, exp, sum, division, P V, with every
 * intermediate virtual (as NVIDIA's cudnn-frontend lowers it). It is compiled with the plan. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "attention/cudnn_graph.h"
#include "attention/fused.h"
#include "core/cuda_check.h"
#include "core/log.h"

enum { VERSION_INFINITE = 91000 }; /* takes -Inf for a masked score; before, the lowest float */

enum { SLOT_Q, SLOT_K, SLOT_V, SLOT_O, NUM_SLOTS, MAX_BOUND = NUM_SLOTS + 6 };

typedef struct fused_state {
    cudnn_graph graph;
    int64_t uids[MAX_BOUND]; /* Q, K, V, O, then the scalars */
    int64_t num_bound;
    float scale, masked, window; /* the scalars' values, read when the graph runs */
    int32_t s_kv, s_q;
    void *scalars[MAX_BOUND];
} fused_state;

/* ---- one handle a device --------------------------------------------------------------------- */

/* Handles take long to make and a lot of memory, so the plans of a device share one. */
typedef struct shared_handle {
    const fp8_device *device;
    cudnnHandle_t handle;
    int64_t users;
    struct shared_handle *next;
} shared_handle;

static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static shared_handle *handles;

static fp8_status make_handle(shared_handle **out, const fp8_device *d) {
    shared_handle *h = calloc(1, sizeof *h);
    fp8_status st = FP8_OK;
    cudnnStatus_t status;

    if (!h) return FP8_FAIL(FP8_ENOMEM, "cuDNN handle");
    FP8_TRY_CUDA(cudaSetDevice(fp8_device_index(d)));
    status = cudnnCreate(&h->handle);
    if (status != CUDNN_STATUS_SUCCESS)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "cudnnCreate: %s", cudnnGetErrorString(status));
done:
    if (st == FP8_OK) *out = h;
    else free(h);
    return st;
}

static fp8_status acquire_handle(cudnnHandle_t *out, const fp8_device *d) {
    fp8_status st = FP8_OK;
    shared_handle *h;

    pthread_mutex_lock(&handles_lock);
    for (h = handles; h && h->device != d;) h = h->next;
    if (!h) {
        FP8_TRY(make_handle(&h, d));
        h->device = d;
        h->next = handles;
        handles = h;
    }
    h->users++;
    *out = h->handle;
done:
    pthread_mutex_unlock(&handles_lock);
    return st;
}

static void release_handle(const fp8_device *d) {
    pthread_mutex_lock(&handles_lock);
    for (shared_handle **at = &handles; *at; at = &(*at)->next) {
        shared_handle *h = *at;
        if (h->device != d) continue;
        if (--h->users == 0) {
            *at = h->next;
            (void)cudnnDestroy(h->handle);
            free(h);
        }
        break;
    }
    pthread_mutex_unlock(&handles_lock);
}

/* ---- the graph ------------------------------------------------------------------------------- */

/* A scalar operand bound to `value`, which lives in the state. */
static fp8_status bind_scalar(fused_state *f, cudnn_tensor *out, cudnnDataType_t dtype,
                              void *value) {
    const fp8_status st = cudnn_graph_scalar(&f->graph, out, dtype);
    f->uids[f->num_bound] = out->uid;
    f->scalars[f->num_bound++] = value;
    return st;
}

static fp8_status bind_operand(fused_state *f, int slot, cudnn_tensor *out, const int64_t shape[4],
                               const int64_t strides[4]) {
    const fp8_status st = cudnn_graph_operand(&f->graph, out, CUDNN_DATA_BFLOAT16, shape, strides);
    f->uids[slot] = out->uid;
    return st;
}

/* out = mode(x, b), virtual, of x's shape. */
static fp8_status apply(fused_state *f, cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                        cudnnDataType_t dtype, const cudnn_tensor *x, const cudnn_tensor *b,
                        cudnn_tensor *out) {
    fp8_status st = cudnn_graph_virtual(&f->graph, out, dtype, x->shape);
    if (st != FP8_OK) return st;
    return cudnn_graph_pointwise(&f->graph, mode, precision, 0, x, b, NULL, out);
}

static fp8_status index_of(fused_state *f, int64_t axis, const cudnn_tensor *x, cudnn_tensor *out) {
    fp8_status st = cudnn_graph_virtual(&f->graph, out, CUDNN_DATA_INT32, x->shape);
    if (st != FP8_OK) return st;
    return cudnn_graph_pointwise(&f->graph, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, axis, x,
                                 NULL, NULL, out);
}

/* *x = left <mode> right ? *x : masked. */
static fp8_status keep_where(fused_state *f, cudnnPointwiseMode_t mode, const cudnn_tensor *left,
                             const cudnn_tensor *right, cudnn_tensor *x) {
    cudnn_tensor keep, masked, out;
    fp8_status st;

    FP8_TRY(apply(f, mode, CUDNN_DATA_BOOLEAN, CUDNN_DATA_BOOLEAN, left, right, &keep));
    FP8_TRY(bind_scalar(f, &masked, CUDNN_DATA_FLOAT, &f->masked));
    FP8_TRY(cudnn_graph_virtual(&f->graph, &out, CUDNN_DATA_FLOAT, x->shape));
    FP8_TRY(cudnn_graph_pointwise(&f->graph, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, x,
                                  &masked, &keep, &out));
    *x = out;
done:
    return st;
}

/* Keeps column <= row + s_kv - s_q. */
static fp8_status mask_causal(fused_state *f, cudnn_tensor *x) {
    cudnn_tensor row, column, s_kv, s_q, above, diagonal;
    fp8_status st;

    FP8_TRY(index_of(f, 2, x, &row));
    FP8_TRY(index_of(f, 3, x, &column));
    if (f->s_q != f->s_kv) {
        FP8_TRY(bind_scalar(f, &s_kv, CUDNN_DATA_INT32, &f->s_kv));
        FP8_TRY(apply(f, CUDNN_POINTWISE_ADD, CUDNN_DATA_INT32, CUDNN_DATA_INT32, &row, &s_kv,
                      &above));
        FP8_TRY(bind_scalar(f, &s_q, CUDNN_DATA_INT32, &f->s_q));
        FP8_TRY(apply(f, CUDNN_POINTWISE_SUB, CUDNN_DATA_INT32, CUDNN_DATA_INT32, &above, &s_q,
                      &diagonal));
        row = diagonal;
    }
    FP8_TRY(keep_where(f, CUDNN_POINTWISE_CMP_GE, &row, &column, x));
done:
    return st;
}

/* Keeps column + window - (s_kv - s_q) > row. */
static fp8_status mask_window(fused_state *f, cudnn_tensor *x) {
    cudnn_tensor row, column, window, shifted;
    fp8_status st;

    FP8_TRY(index_of(f, 2, x, &row));
    FP8_TRY(index_of(f, 3, x, &column));
    FP8_TRY(bind_scalar(f, &window, CUDNN_DATA_FLOAT, &f->window));
    FP8_TRY(apply(f, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &column, &window,
                  &shifted));
    FP8_TRY(keep_where(f, CUDNN_POINTWISE_CMP_GT, &shifted, &row, x));
done:
    return st;
}

/* p = exp(x - max) / sum, BF16: the type of the second product's operands. The log of the sum plus
 * the maximum is read by nobody, but without it cuDNN 9.19 does not recognise the softmax ("Dropout
 * set of ops not configured correctly"). */
static fp8_status softmax(fused_state *f, const cudnn_tensor *x, cudnn_tensor *p) {
    const int64_t rows[4] = {x->shape[0], x->shape[1], x->shape[2], 1};
    cudnn_tensor max, below, e, sum, log_sum, unused;
    fp8_status st;

    FP8_TRY(cudnn_graph_virtual(&f->graph, &max, CUDNN_DATA_FLOAT, rows));
    FP8_TRY(cudnn_graph_reduce(&f->graph, CUDNN_REDUCE_TENSOR_MAX, x, &max));
    FP8_TRY(apply(f, CUDNN_POINTWISE_SUB, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, x, &max, &below));
    FP8_TRY(apply(f, CUDNN_POINTWISE_EXP, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &below, NULL, &e));
    FP8_TRY(cudnn_graph_virtual(&f->graph, &sum, CUDNN_DATA_FLOAT, rows));
    FP8_TRY(cudnn_graph_reduce(&f->graph, CUDNN_REDUCE_TENSOR_ADD, &e, &sum));
    FP8_TRY(apply(f, CUDNN_POINTWISE_LOG, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &sum, NULL,
                  &log_sum));
    FP8_TRY(apply(f, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &max, &log_sum,
                  &unused));
    FP8_TRY(apply(f, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16, &e, &sum, p));
done:
    return st;
}

/* Operands as [batch, heads, tokens, d]; K transposed, as the first product wants it. */
static fp8_status bind_operands(fused_state *f, const fp8_attention_options *o,
                                cudnn_tensor all[NUM_SLOTS]) {
    const int64_t b = o->num_seqs, h_q = o->num_heads, h_kv = o->num_kv_heads;
    fp8_status st;

    FP8_TRY(bind_operand(f, SLOT_Q, &all[SLOT_Q], (int64_t[]){b, h_q, o->max_q, o->d_qk},
                         (int64_t[]){o->q.batch, o->q.head, o->q.token, 1}));
    FP8_TRY(bind_operand(f, SLOT_K, &all[SLOT_K], (int64_t[]){b, h_kv, o->d_qk, o->max_kv},
                         (int64_t[]){o->k.batch, o->k.head, 1, o->k.token}));
    FP8_TRY(bind_operand(f, SLOT_V, &all[SLOT_V], (int64_t[]){b, h_kv, o->max_kv, o->d_v},
                         (int64_t[]){o->v.batch, o->v.head, o->v.token, 1}));
    FP8_TRY(bind_operand(f, SLOT_O, &all[SLOT_O], (int64_t[]){b, h_q, o->max_q, o->d_v},
                         (int64_t[]){o->o.batch, o->o.head, o->o.token, 1}));
done:
    return st;
}

static fp8_status build(fused_state *f, const fp8_attention_options *o) {
    const int64_t scores[4] = {o->num_seqs, o->num_heads, o->max_q, o->max_kv};
    cudnn_tensor operands[NUM_SLOTS], dots, scale, x, p;
    fp8_status st;

    f->num_bound = NUM_SLOTS;
    FP8_TRY(bind_operands(f, o, operands));
    FP8_TRY(cudnn_graph_virtual(&f->graph, &dots, CUDNN_DATA_FLOAT, scores));
    FP8_TRY(cudnn_graph_matmul(&f->graph, &operands[SLOT_Q], &operands[SLOT_K], &dots));
    FP8_TRY(bind_scalar(f, &scale, CUDNN_DATA_FLOAT, &f->scale));
    FP8_TRY(apply(f, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &dots, &scale, &x));
    if (attention_fused_causal(o)) FP8_TRY(mask_causal(f, &x));
    if (attention_fused_window(o)) FP8_TRY(mask_window(f, &x));
    FP8_TRY(softmax(f, &x, &p));
    FP8_TRY(cudnn_graph_matmul(&f->graph, &p, &operands[SLOT_V], &operands[SLOT_O]));
    FP8_TRY(cudnn_graph_compile(&f->graph));
done:
    return st;
}

/* ---- backend --------------------------------------------------------------------------------- */

size_t attention_cudnn_version(void) { return cudnnGetVersion(); }

static fp8_status fused_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    fused_state *f = calloc(1, sizeof *f);
    fp8_status st;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "fused attention plan");
    FP8_TRY(acquire_handle(&f->graph.handle, p->device));
    p->state = f;
    f->scale = o->scale;
    f->masked = cudnnGetVersion() < VERSION_INFINITE ? -3.402823466e38f : -INFINITY;
    f->s_q = (int32_t)o->max_q;
    f->s_kv = (int32_t)o->max_kv;
    f->window = (float)(o->window_left + 1 - o->max_kv + o->max_q);
    FP8_TRY(build(f, o));
    p->workspace_bytes = (size_t)f->graph.workspace_bytes;
    fp8_log(FP8_LOG_DETAIL, "attention: cuDNN engine %lld, %d operations, workspace %lld bytes",
            (long long)f->graph.engine, f->graph.num_ops, (long long)f->graph.workspace_bytes);
done:
    if (!p->state) free(f);
    return st;
}

static void fused_close(fp8_attention_plan *p) {
    fused_state *f = p->state;
    if (!f) return;
    cudnn_graph_free(&f->graph);
    release_handle(p->device);
    free(f);
    p->state = NULL;
}

static fp8_status fused_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    const fused_state *f = p->state;
    void *pointers[MAX_BOUND];

    if (((uintptr_t)io->q | (uintptr_t)io->k | (uintptr_t)io->v | (uintptr_t)io->o) % 16)
        return FP8_FAIL(FP8_EINVAL, "attention: fused: q=%p k=%p v=%p o=%p, expected 16-byte "
                                    "alignment",
                        io->q, io->k, io->v, io->o);
    for (int64_t i = NUM_SLOTS; i < f->num_bound; i++) pointers[i] = f->scalars[i];
    pointers[SLOT_Q] = (void *)(uintptr_t)io->q; /* cuDNN takes no const */
    pointers[SLOT_K] = (void *)(uintptr_t)io->k;
    pointers[SLOT_V] = (void *)(uintptr_t)io->v;
    pointers[SLOT_O] = io->o;
    return cudnn_graph_run(&f->graph, fp8_device_stream(p->device), f->num_bound, f->uids, pointers,
                           workspace);
}

const attention_backend attention_backend_fused = {
    FP8_BACKEND_FUSED, "fused",     "FP8_FUSED_ATTN", attention_fused_check,
    fused_open,        fused_close, fused_run,
};
