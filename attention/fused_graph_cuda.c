/* The operation graph of attention, as NVIDIA's cudnn-frontend lowers it and the engines recognise
 * it: Q K^T, scale, descales, bias, masks, maximum, exp, sum, division, P V, with every value
 * between them virtual. In FP8 P is scaled and rounded before the second product, O after it. */
#include "attention/fused_graph.h"

#include <assert.h>
#include <math.h>

enum { VERSION_INFINITE = 91000 }; /* takes -Inf for a masked score; before, the lowest float */

/* ---- operands -------------------------------------------------------------------------------- */

static cudnnDataType_t type_of(int64_t dtype) {
    switch ((fp8_dtype)dtype) {
    case FP8_DTYPE_BF16: return CUDNN_DATA_BFLOAT16;
    case FP8_DTYPE_F16: return CUDNN_DATA_HALF;
    case FP8_DTYPE_E4M3: return CUDNN_DATA_FP8_E4M3;
    default: return CUDNN_DATA_FLOAT;
    }
}

static int is_fp8(const fused_graph *g) { return g->config.in == FP8_DTYPE_E4M3; }

static int64_t bound(fused_graph *g, const cudnn_tensor *t, int32_t slot) {
    assert(g->num_bound < CUDNN_PACK_MAX);
    g->uids[g->num_bound] = t->uid;
    g->slots[g->num_bound] = slot;
    return g->num_bound++;
}

static fp8_status bind(fused_graph *g, fused_slot slot, cudnn_tensor *out, cudnnDataType_t dtype,
                       const int64_t shape[4], const int64_t strides[4],
                       const cudnn_tensor *offsets) {
    const fp8_status st = cudnn_graph_operand(&g->graph, out, dtype, shape, strides, offsets);
    if (st == FP8_OK) (void)bound(g, out, slot);
    return st;
}

/* A packed operand, I32 or F32, of one size that is not 1. */
static fp8_status bind_vector(fused_graph *g, fused_slot slot, cudnn_tensor *out,
                              cudnnDataType_t dtype, int64_t batch, int64_t heads) {
    return bind(g, slot, out, dtype, (int64_t[]){batch, heads, 1, 1},
                (int64_t[]){heads, 1, 1, 1}, NULL);
}

static fp8_status bind_float(fused_graph *g, cudnn_tensor *out, double value) {
    const fp8_status st = cudnn_graph_scalar(&g->graph, out, CUDNN_DATA_FLOAT);
    if (st == FP8_OK) g->scalars[bound(g, out, -1)].f = (float)value;
    return st;
}

static fp8_status bind_int(fused_graph *g, cudnn_tensor *out, int64_t value) {
    const fp8_status st = cudnn_graph_scalar(&g->graph, out, CUDNN_DATA_INT32);
    if (st == FP8_OK) g->scalars[bound(g, out, -1)].i = (int32_t)value;
    return st;
}

/* Q, K, V or O; for `transposed` the last two dimensions change places. Whatever has lengths has
 * offsets too: only then does nothing beyond a sequence's end, NaN or not, reach its rows. */
static fp8_status bind_rows(fused_graph *g, fused_slot slot, cudnn_tensor *out, int64_t dtype,
                            int64_t heads, int64_t rows, int64_t d, fp8_strides x, int transposed) {
    const fused_config *c = &g->config;
    const int64_t plain[4] = {c->num_seqs, heads, rows, d};
    const int64_t plain_strides[4] = {x.batch ? x.batch : rows * x.token, x.head, x.token, 1};
    const int64_t turned[4] = {c->num_seqs, heads, d, rows};
    const int64_t turned_strides[4] = {plain_strides[0], x.head, 1, x.token};
    cudnn_tensor offsets;
    fp8_status st;

    if (c->padding)
        FP8_TRY(bind_vector(g, FUSED_Q_OFFSET + (slot - FUSED_Q), &offsets, CUDNN_DATA_INT64,
                            c->num_seqs + 1, 1));
    FP8_TRY(bind(g, slot, out, type_of(dtype), transposed ? turned : plain,
                 transposed ? turned_strides : plain_strides, c->padding ? &offsets : NULL));
done:
    return st;
}

/* ---- operations ------------------------------------------------------------------------------ */

/* out = mode(x, b), virtual, of x's shape. */
static fp8_status apply(fused_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t precision,
                        cudnnDataType_t dtype, const cudnn_tensor *x, const cudnn_tensor *b,
                        cudnn_tensor *out) {
    fp8_status st = cudnn_graph_virtual(&g->graph, out, dtype, x->shape);
    if (st != FP8_OK) return st;
    return cudnn_graph_pointwise(&g->graph, mode, precision, 0, x, b, NULL, out);
}

/* *x = mode(*x, b), in F32. */
static fp8_status apply_f32(fused_graph *g, cudnnPointwiseMode_t mode, cudnn_tensor *x,
                            const cudnn_tensor *b) {
    const cudnn_tensor in = *x;
    return apply(g, mode, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &in, b, x);
}

static fp8_status apply_i32(fused_graph *g, cudnnPointwiseMode_t mode, cudnn_tensor *x,
                            const cudnn_tensor *b) {
    const cudnn_tensor in = *x;
    return apply(g, mode, CUDNN_DATA_INT32, CUDNN_DATA_INT32, &in, b, x);
}

/* *x *= the F32 number bound to `slot`. */
static fp8_status multiply_by(fused_graph *g, fused_slot slot, cudnn_tensor *x) {
    cudnn_tensor factor;
    fp8_status st;
    FP8_TRY(bind_vector(g, slot, &factor, CUDNN_DATA_FLOAT, 1, 1));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_MUL, x, &factor));
done:
    return st;
}

static fp8_status index_of(fused_graph *g, int64_t axis, cudnnDataType_t precision,
                           const cudnn_tensor *x, cudnn_tensor *out) {
    fp8_status st = cudnn_graph_virtual(&g->graph, out, CUDNN_DATA_INT32, x->shape);
    if (st != FP8_OK) return st;
    return cudnn_graph_pointwise(&g->graph, CUDNN_POINTWISE_GEN_INDEX, precision, axis, x, NULL,
                                 NULL, out);
}

/* *x = keep ? *x : masked. */
static fp8_status select(fused_graph *g, const cudnn_tensor *keep, cudnn_tensor *x) {
    cudnn_tensor masked, out;
    fp8_status st;

    FP8_TRY(bind_float(g, &masked,
                       cudnnGetVersion() < VERSION_INFINITE ? -3.4028234663852886e38 : -INFINITY));
    FP8_TRY(cudnn_graph_virtual(&g->graph, &out, CUDNN_DATA_FLOAT, x->shape));
    FP8_TRY(cudnn_graph_pointwise(&g->graph, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, x,
                                  &masked, keep, &out));
    *x = out;
done:
    return st;
}

static fp8_status compare(fused_graph *g, cudnnPointwiseMode_t mode, const cudnn_tensor *left,
                          const cudnn_tensor *right, cudnn_tensor *out) {
    return apply(g, mode, CUDNN_DATA_BOOLEAN, CUDNN_DATA_BOOLEAN, left, right, out);
}

/* ---- what becomes of the scores -------------------------------------------------------------- */

typedef struct lengths {
    cudnn_tensor q, kv;
    cudnn_extents scores, output; /* of the two products */
} lengths;

static fp8_status apply_softcap(fused_graph *g, cudnn_tensor *x) {
    cudnn_tensor cap;
    fp8_status st;
    FP8_TRY(bind_float(g, &cap, g->config.softcap));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_DIV, x, &cap));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_TANH_FWD, x, NULL));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_MUL, x, &cap));
done:
    return st;
}

static fp8_status add_bias(fused_graph *g, cudnn_tensor *x) {
    const fused_config *c = &g->config;
    const int64_t plane = c->s_q * c->s_kv;
    cudnn_tensor bias;
    fp8_status st;
    FP8_TRY(bind(g, FUSED_BIAS, &bias, type_of(c->bias - 1),
                 (int64_t[]){c->bias_batch, c->bias_heads, c->s_q, c->s_kv},
                 (int64_t[]){c->bias_heads * plane, plane, c->s_kv, 1}, NULL));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_ADD, x, &bias));
done:
    return st;
}

/* += slope[h] * (column - row): what a row adds to all its keys alike leaves P as it is. */
static fp8_status add_alibi(fused_graph *g, cudnn_tensor *x) {
    cudnn_tensor row, distance, slopes, slope;
    fp8_status st;
    FP8_TRY(index_of(g, 2, CUDNN_DATA_INT32, x, &row));
    FP8_TRY(index_of(g, 3, CUDNN_DATA_INT32, x, &distance));
    FP8_TRY(apply_i32(g, CUDNN_POINTWISE_SUB, &distance, &row));
    FP8_TRY(bind_vector(g, FUSED_SLOPES, &slopes, CUDNN_DATA_FLOAT, 1, g->config.num_heads));
    FP8_TRY(apply(g, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, CUDNN_DATA_FLOAT, &distance, &slopes,
                  &slope));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_ADD, x, &slope));
done:
    return st;
}

/* Keeps row < q length and column < kv length. */
static fp8_status mask_padding(fused_graph *g, const lengths *n, cudnn_tensor *x) {
    cudnn_tensor row, column, row_in, column_in, both;
    fp8_status st;
    FP8_TRY(index_of(g, 2, CUDNN_DATA_INT32, x, &row));
    FP8_TRY(index_of(g, 3, CUDNN_DATA_INT32, x, &column));
    FP8_TRY(compare(g, CUDNN_POINTWISE_CMP_LT, &row, &n->q, &row_in));
    FP8_TRY(compare(g, CUDNN_POINTWISE_CMP_LT, &column, &n->kv, &column_in));
    FP8_TRY(compare(g, CUDNN_POINTWISE_LOGICAL_AND, &row_in, &column_in, &both));
    FP8_TRY(select(g, &both, x));
done:
    return st;
}

/* *index += s_kv - s_q, or its negative: to the bottom-right diagonal. */
static fp8_status shift(fused_graph *g, const lengths *n, int forth, cudnn_tensor *index) {
    const cudnnPointwiseMode_t kv = forth ? CUDNN_POINTWISE_ADD : CUDNN_POINTWISE_SUB;
    const cudnnPointwiseMode_t q = forth ? CUDNN_POINTWISE_SUB : CUDNN_POINTWISE_ADD;
    const fused_config *c = &g->config;
    cudnn_tensor s_q, s_kv;
    fp8_status st;

    if (c->padding) {
        FP8_TRY(apply_i32(g, kv, index, &n->kv));
        FP8_TRY(apply_i32(g, q, index, &n->q));
        goto done;
    }
    FP8_TRY(bind_int(g, &s_kv, c->s_kv));
    FP8_TRY(apply_i32(g, kv, index, &s_kv));
    FP8_TRY(bind_int(g, &s_q, c->s_q));
    FP8_TRY(apply_i32(g, q, index, &s_q));
done:
    return st;
}

/* Needs a shift at all. */
static int shifted(const fused_config *c) {
    return c->bottom_right && (c->padding || c->s_q != c->s_kv);
}

/* Keeps column <= row + shift + right. */
static fp8_status mask_right(fused_graph *g, const lengths *n, cudnn_tensor *x) {
    const fused_config *c = &g->config;
    cudnn_tensor row, column, right, keep;
    fp8_status st;
    FP8_TRY(index_of(g, 2, CUDNN_DATA_FLOAT, x, &row));
    FP8_TRY(index_of(g, 3, CUDNN_DATA_FLOAT, x, &column));
    if (shifted(c)) FP8_TRY(shift(g, n, 1, &row));
    if (c->right > 0) {
        FP8_TRY(bind_int(g, &right, c->right));
        FP8_TRY(apply_i32(g, CUDNN_POINTWISE_ADD, &row, &right));
    }
    FP8_TRY(compare(g, CUDNN_POINTWISE_CMP_GE, &row, &column, &keep));
    FP8_TRY(select(g, &keep, x));
done:
    return st;
}

/* Keeps column + left + 1 - shift > row. With lengths of its own the engines want integers, else
 * one float that holds the shift too. */
static fp8_status mask_left(fused_graph *g, const lengths *n, cudnn_tensor *x) {
    const fused_config *c = &g->config;
    const int64_t fixed = c->bottom_right ? c->s_kv - c->s_q : 0;
    cudnn_tensor row, column, left, keep;
    fp8_status st;
    FP8_TRY(index_of(g, 2, CUDNN_DATA_FLOAT, x, &row));
    FP8_TRY(index_of(g, 3, CUDNN_DATA_FLOAT, x, &column));
    if (c->bottom_right && c->padding) {
        FP8_TRY(bind_int(g, &left, c->left + 1));
        FP8_TRY(apply_i32(g, CUDNN_POINTWISE_ADD, &column, &left));
        FP8_TRY(shift(g, n, 0, &column));
    } else {
        FP8_TRY(bind_float(g, &left, (double)(c->left + 1 - fixed)));
        FP8_TRY(apply_f32(g, CUDNN_POINTWISE_ADD, &column, &left));
    }
    FP8_TRY(compare(g, CUDNN_POINTWISE_CMP_GT, &column, &row, &keep));
    FP8_TRY(select(g, &keep, x));
done:
    return st;
}

static fp8_status change_scores(fused_graph *g, const lengths *n, cudnn_tensor *x) {
    const fused_config *c = &g->config;
    cudnn_tensor scale;
    fp8_status st;

    FP8_TRY(bind_float(g, &scale, c->scale));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_MUL, x, &scale));
    if (is_fp8(g)) {
        FP8_TRY(multiply_by(g, FUSED_Q_DESCALE, x));
        FP8_TRY(multiply_by(g, FUSED_K_DESCALE, x));
    }
    if (c->softcap != 0) FP8_TRY(apply_softcap(g, x));
    if (c->bias) FP8_TRY(add_bias(g, x));
    if (c->alibi) FP8_TRY(add_alibi(g, x));
    if (c->padding) FP8_TRY(mask_padding(g, n, x));
    if (c->right >= 0) FP8_TRY(mask_right(g, n, x));
    if (c->left >= 0) FP8_TRY(mask_left(g, n, x));
done:
    return st;
}

/* ---- softmax --------------------------------------------------------------------------------- */

/* max = max(max, sink), and the sum's share of it. */
static fp8_status begin_sink(fused_graph *g, cudnn_tensor *max, cudnn_tensor *sink) {
    fp8_status st;
    FP8_TRY(bind_vector(g, FUSED_SINK, sink, CUDNN_DATA_FLOAT, 1, g->config.num_heads));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_MAX, max, sink));
done:
    return st;
}

static fp8_status end_sink(fused_graph *g, const cudnn_tensor *max, cudnn_tensor *sink,
                           cudnn_tensor *sum) {
    cudnn_tensor share;
    fp8_status st;
    FP8_TRY(cudnn_graph_virtual(&g->graph, &share, CUDNN_DATA_FLOAT, max->shape));
    FP8_TRY(cudnn_graph_pointwise(&g->graph, CUDNN_POINTWISE_SUB, CUDNN_DATA_FLOAT, 0, sink, max,
                                  NULL, &share));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_EXP, &share, NULL));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_ADD, sum, &share));
done:
    return st;
}

/* log(sum) + max. Where nobody reads it it is still there: cuDNN 9.19 does not recognise the
 * softmax without ("Dropout set of ops not configured correctly"). */
static fp8_status add_stats(fused_graph *g, const cudnn_tensor *max, const cudnn_tensor *sum) {
    const int64_t strides[4] = {max->shape[1] * max->shape[2], max->shape[2], 1, 1};
    cudnn_tensor log_sum = *sum, stats;
    fp8_status st;
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_LOG, &log_sum, NULL));
    if (g->config.stats)
        FP8_TRY(bind(g, FUSED_STATS, &stats, CUDNN_DATA_FLOAT, max->shape, strides, NULL));
    else FP8_TRY(cudnn_graph_virtual(&g->graph, &stats, CUDNN_DATA_FLOAT, max->shape));
    FP8_TRY(cudnn_graph_pointwise(&g->graph, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, 0, max,
                                  &log_sum, NULL, &stats));
done:
    return st;
}

/* p = exp(x - max) / sum, of the type of the second product's operands but in FP8, where it is
 * scaled first. */
static fp8_status softmax(fused_graph *g, const cudnn_tensor *x, cudnn_tensor *p) {
    const int64_t rows[4] = {x->shape[0], x->shape[1], x->shape[2], 1};
    cudnn_tensor max, sink, e = *x, sum;
    fp8_status st;

    FP8_TRY(cudnn_graph_virtual(&g->graph, &max, CUDNN_DATA_FLOAT, rows));
    FP8_TRY(cudnn_graph_reduce(&g->graph, CUDNN_REDUCE_TENSOR_MAX, x, &max));
    if (g->config.sink) FP8_TRY(begin_sink(g, &max, &sink));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_SUB, &e, &max));
    FP8_TRY(apply_f32(g, CUDNN_POINTWISE_EXP, &e, NULL));
    FP8_TRY(cudnn_graph_virtual(&g->graph, &sum, CUDNN_DATA_FLOAT, rows));
    FP8_TRY(cudnn_graph_reduce(&g->graph, CUDNN_REDUCE_TENSOR_ADD, &e, &sum));
    if (g->config.sink) FP8_TRY(end_sink(g, &max, &sink, &sum));
    FP8_TRY(add_stats(g, &max, &sum));
    FP8_TRY(apply(g, CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT,
                  is_fp8(g) ? CUDNN_DATA_FLOAT : type_of(g->config.in), &e, &sum, p));
done:
    return st;
}

/* ---- the graph ------------------------------------------------------------------------------- */

/* No engine takes the graph without; a value that nobody reads saves its memset and 1.5 us. */
static fp8_status amax_of(fused_graph *g, fused_slot slot, const cudnn_tensor *x) {
    cudnn_tensor amax;
    fp8_status st;
    if (g->config.amax) FP8_TRY(bind_vector(g, slot, &amax, CUDNN_DATA_FLOAT, 1, 1));
    else FP8_TRY(cudnn_graph_virtual(&g->graph, &amax, CUDNN_DATA_FLOAT, (int64_t[]){1, 1, 1, 1}));
    FP8_TRY(cudnn_graph_reduce(&g->graph, CUDNN_REDUCE_TENSOR_AMAX, x, &amax));
done:
    return st;
}

/* P = e4m3(p * scale); O = e4m3(P V * descale of P * descale of V * scale of O). */
static fp8_status output_fp8(fused_graph *g, const lengths *n, const cudnn_tensor *p,
                             const cudnn_tensor *v, const cudnn_tensor *o) {
    cudnn_tensor scale, codes, x, o_scale;
    fp8_status st;

    FP8_TRY(amax_of(g, FUSED_P_AMAX, p));
    FP8_TRY(bind_vector(g, FUSED_P_SCALE, &scale, CUDNN_DATA_FLOAT, 1, 1));
    FP8_TRY(apply(g, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, CUDNN_DATA_FP8_E4M3, p, &scale,
                  &codes));
    FP8_TRY(cudnn_graph_virtual(&g->graph, &x, CUDNN_DATA_FLOAT, o->shape));
    FP8_TRY(cudnn_graph_matmul(&g->graph, &codes, v, &x, n->output));
    FP8_TRY(multiply_by(g, FUSED_P_DESCALE, &x));
    FP8_TRY(multiply_by(g, FUSED_V_DESCALE, &x));
    FP8_TRY(bind_vector(g, FUSED_O_SCALE, &o_scale, CUDNN_DATA_FLOAT, 1, 1));
    FP8_TRY(cudnn_graph_pointwise(&g->graph, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, 0, &x, &o_scale,
                                  NULL, o));
    FP8_TRY(amax_of(g, FUSED_O_AMAX, &x));
done:
    return st;
}

static fp8_status bind_lengths(fused_graph *g, lengths *n) {
    const int64_t b = g->config.num_seqs;
    fp8_status st = FP8_OK;
    *n = (lengths){0};
    if (!g->config.padding) return FP8_OK;
    FP8_TRY(bind_vector(g, FUSED_Q_LENGTH, &n->q, CUDNN_DATA_INT32, b, 1));
    FP8_TRY(bind_vector(g, FUSED_KV_LENGTH, &n->kv, CUDNN_DATA_INT32, b, 1));
    n->scores = (cudnn_extents){.m = &n->q, .n = &n->kv};
    n->output = (cudnn_extents){.m = &n->q, .k = &n->kv};
done:
    return st;
}

fp8_status attention_fused_build(fused_graph *g, cudnnHandle_t handle) {
    const fused_config *c = &g->config;
    const int64_t scores[4] = {c->num_seqs, c->num_heads, c->s_q, c->s_kv};
    cudnn_tensor q, k, v, o, x, p;
    lengths n;
    fp8_status st;

    g->graph.handle = handle;
    FP8_TRY(bind_rows(g, FUSED_Q, &q, c->in, c->num_heads, c->s_q, c->d_qk, c->q, 0));
    FP8_TRY(bind_rows(g, FUSED_K, &k, c->in, c->num_kv_heads, c->s_kv, c->d_qk, c->k, 1));
    FP8_TRY(bind_rows(g, FUSED_V, &v, c->in, c->num_kv_heads, c->s_kv, c->d_v, c->v, 0));
    FP8_TRY(bind_rows(g, FUSED_O, &o, c->out, c->num_heads, c->s_q, c->d_v, c->o, 0));
    FP8_TRY(bind_lengths(g, &n));
    FP8_TRY(cudnn_graph_virtual(&g->graph, &x, CUDNN_DATA_FLOAT, scores));
    FP8_TRY(cudnn_graph_matmul(&g->graph, &q, &k, &x, n.scores));
    FP8_TRY(change_scores(g, &n, &x));
    FP8_TRY(softmax(g, &x, &p));
    if (is_fp8(g)) FP8_TRY(output_fp8(g, &n, &p, &v, &o));
    else FP8_TRY(cudnn_graph_matmul(&g->graph, &p, &v, &o, n.output));
    FP8_TRY(cudnn_graph_compile(&g->graph));
done:
    return st;
}
