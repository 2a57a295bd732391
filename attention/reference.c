/* The oracle: the formula of attention.h in double, one loop after the other, on host memory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attention_impl.h"
#include "core/half.h"
#include "quant/quant.h"

/* One of Q, K, V as values: its descales folded in, quantized if the options say so. */
typedef struct source {
    const void *data;
    fp8_dtype dtype;
    fp8_strides strides;
    int64_t d, group; /* group: heads that share a KV head */
    int quantize;
    const float *descales; /* NULL: values are as they stand */
    float *rotated;        /* owned, NULL without: [rows, heads, d], of options.hadamard */
    float *current;        /* owned: those of FP8_QUANTIZE_CURRENT */
    const int32_t *starts, *lengths;
    int64_t total, longest;
} source;

typedef struct oracle {
    const fp8_attention_options *o;
    const fp8_attention_io *io;
    source q, k, v;
    const float *slopes;
    double *out, *lse, amax_s, amax_o;
    double *score, *p; /* [max_kv] */
} oracle;

/* A query row. */
typedef struct query {
    int64_t seq, head, kv_head, token, s_q, s_kv, q_begin, kv_begin;
} query;

/* ---- operands -------------------------------------------------------------------------------- */

static float load(const void *x, fp8_dtype dtype, int64_t i) {
    switch (dtype) {
    case FP8_DTYPE_F32: return ((const float *)x)[i];
    case FP8_DTYPE_BF16: return fp8_bf16_to_f32(((const uint16_t *)x)[i]);
    case FP8_DTYPE_F16: return fp8_f16_to_f32(((const uint16_t *)x)[i]);
    default: return fp8_to_f32(FP8_DTYPE_E4M3, ((const uint8_t *)x)[i]);
    }
}

static float round_e4m3(float x) {
    return fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, x));
}

/* Rows of [tokens of all sequences] by heads. */
static int64_t rotated_row(const oracle *a, const source *x, int64_t seq, int64_t token,
                           int64_t head) {
    return (x->starts ? token : seq * x->longest + token) * a->o->num_kv_heads * x->group + head;
}

/* An element as it is before its descale. */
static float raw_value(const oracle *a, const source *x, int64_t seq, int64_t token, int64_t head,
                       int64_t c) {
    if (x->rotated) return x->rotated[rotated_row(a, x, seq, token, head) * x->d + c];
    return load(x->data, x->dtype, attention_offset(x->strides, seq, token, head) + c);
}

static double value(const oracle *a, const source *x, int64_t seq, int64_t token, int64_t head,
                    int64_t c) {
    float f = raw_value(a, x, seq, token, head, c), descale;
    if (!x->descales) return (double)f;
    descale = x->descales[attention_descale_index(a->o, seq, head / x->group)];
    if (x->quantize) f = round_e4m3(f * (1.0f / descale));
    return (double)f * (double)descale;
}

/* Element c of a row in blocks, rotated. */
static float rotated_value(const source *x, int64_t row, int64_t c) {
    const int64_t block = attention_hadamard_block((int32_t)x->d), first = c / block * block;
    double sum = 0;
    for (int64_t i = 0; i < block; i++) {
        const double f = (double)load(x->data, x->dtype, row + first + i);
        sum += __builtin_popcountll((unsigned long long)(i & (c - first))) % 2 ? -f : f;
    }
    return (float)(sum / sqrt((double)block));
}

/* Every row of every sequence. */
static fp8_status rotate(const oracle *a, source *x) {
    const fp8_attention_options *o = a->o;
    const int64_t heads = o->num_kv_heads * x->group;
    const int64_t rows = x->starts ? x->total : o->num_seqs * x->longest;

    x->rotated = calloc((size_t)(rows * heads * x->d) + 1, sizeof *x->rotated);
    if (!x->rotated) return FP8_FAIL(FP8_ENOMEM, "attention oracle");
    for (int64_t s = 0; s < o->num_seqs; s++) {
        int64_t begin, tokens = attention_sequence(x->starts, x->lengths, s, x->total, x->longest,
                                                   &begin);
        for (int64_t i = 0; i < tokens * heads; i++) {
            const int64_t token = begin + i / heads, h = i % heads;
            const int64_t row = attention_offset(x->strides, s, token, h);
            float *to = x->rotated + rotated_row(a, x, s, token, h) * x->d;
            for (int64_t c = 0; c < x->d; c++) to[c] = rotated_value(x, row, c);
        }
    }
    return FP8_OK;
}

/* Descales from the finite values of every sequence. */
static void measure(const oracle *a, source *x, int64_t count) {
    const fp8_attention_options *o = a->o;
    for (int64_t s = 0; s < o->num_seqs; s++) {
        int64_t begin, tokens = attention_sequence(x->starts, x->lengths, s, x->total, x->longest,
                                                   &begin);
        for (int64_t t = begin; t < begin + tokens; t++)
            for (int64_t h = 0; h < o->num_kv_heads * x->group; h++) {
                float *amax = &x->current[attention_descale_index(o, s, h / x->group)];
                for (int64_t c = 0; c < x->d; c++) {
                    const float f = fabsf(raw_value(a, x, s, t, h, c));
                    if (isfinite(f) && f > *amax) *amax = f;
                }
            }
    }
    for (int64_t i = 0; i < count; i++) x->current[i] = attention_descale_of(x->current[i]);
    x->descales = x->current;
}

static fp8_status open_source(const oracle *a, source *x, const float *descales) {
    const fp8_attention_options *o = a->o;
    const int64_t count = o->granularity == FP8_DESCALE_TENSOR ? 1
                          : o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads
                                                               : o->num_seqs * o->num_kv_heads;
    fp8_status st = FP8_OK;

    if (x->dtype != FP8_DTYPE_E4M3 && o->quantize == FP8_QUANTIZE_NOT) return FP8_OK;
    x->quantize = x->dtype != FP8_DTYPE_E4M3;
    x->descales = descales;
    if (o->hadamard && x != &a->v) FP8_TRY(rotate(a, x));
    if (!x->quantize || o->quantize == FP8_QUANTIZE_GIVEN) return FP8_OK;
    x->current = calloc((size_t)count + 1, sizeof *x->current);
    if (!x->current) return FP8_FAIL(FP8_ENOMEM, "attention oracle");
    measure(a, x, count);
done:
    return st;
}

static fp8_status open_sources(oracle *a) {
    const fp8_attention_options *o = a->o;
    const fp8_attention_io *io = a->io;
    fp8_status st;
    a->q = (source){.data = io->q, .dtype = o->q_dtype, .strides = o->q, .d = o->d_qk,
                    .group = o->num_heads / o->num_kv_heads, .starts = io->q_starts,
                    .lengths = io->q_lengths, .total = io->total_q, .longest = o->max_q};
    a->k = (source){.data = io->k, .dtype = o->kv_dtype, .strides = o->k, .d = o->d_qk,
                    .group = 1, .starts = io->kv_starts, .lengths = io->kv_lengths,
                    .total = io->total_kv, .longest = o->max_kv};
    a->v = a->k;
    a->v.data = io->v;
    a->v.strides = o->v;
    a->v.d = o->d_v;
    FP8_TRY(open_source(a, &a->q, io->q_descale));
    FP8_TRY(open_source(a, &a->k, io->k_descale));
    FP8_TRY(open_source(a, &a->v, io->v_descale));
done:
    return st;
}

/* ---- one row --------------------------------------------------------------------------------- */

/* S of key j, or -Inf where the query does not see it. *seen tells the two apart. */
static double score(const oracle *a, const query *r, int64_t j, int *seen) {
    const fp8_attention_options *o = a->o;
    const int64_t bias_at =
        attention_bias_offset(o, o->bias_shape, r->seq, r->head, r->token, j);
    int64_t lo, hi;
    double s = 0;

    attention_visible(o, r->token, r->s_q, r->s_kv, &lo, &hi);
    *seen = j >= lo && j < hi;
    if (o->mask == FP8_MASK_ARBITRARY && *seen)
        *seen = !a->io->mask[attention_bias_offset(o, o->mask_shape, r->seq, r->head, r->token, j)];
    if (!*seen) return -INFINITY;
    for (int64_t c = 0; c < o->d_qk; c++)
        s += value(a, &a->q, r->seq, r->q_begin + r->token, r->head, c) *
             value(a, &a->k, r->seq, r->kv_begin + j, r->kv_head, c);
    if (o->bias == FP8_BIAS_PRE_SCALE) s += (double)load(a->io->bias, o->bias_dtype, bias_at);
    s *= (double)o->scale;
    if (o->softcap > 0.0f) s = (double)o->softcap * tanh(s / (double)o->softcap);
    if (o->bias == FP8_BIAS_POST_SCALE) s += (double)load(a->io->bias, o->bias_dtype, bias_at);
    if (o->bias == FP8_BIAS_ALIBI)
        s += (double)a->slopes[r->head] *
             (double)(j - attention_diagonal(o, r->token, r->s_q, r->s_kv));
    return s;
}

static double round_p(double p) { return (double)round_e4m3((float)(p * 256.0)) / 256.0; }

/* out[d_v], *lse; the largest P and |O| join the amax. */
static void attend(oracle *a, const query *r, double *out, double *lse) {
    const fp8_attention_options *o = a->o;
    const double sink = o->sink == FP8_SINK_LEARNABLE ? (double)a->io->sink[r->head]
                        : o->sink == FP8_SINK_OFF_BY_ONE ? 0.0 : -INFINITY;
    double max = -INFINITY, sum = 0, base, top;

    for (int64_t j = 0; j < r->s_kv; j++) {
        int seen;
        a->score[j] = score(a, r, j, &seen);
        a->p[j] = seen;
        if (a->score[j] > max) max = a->score[j];
    }
    base = max == -INFINITY ? 0 : max;
    for (int64_t j = 0; j < r->s_kv; j++) {
        a->p[j] = a->p[j] != 0 ? exp(a->score[j] - base) : 0;
        sum += a->p[j];
    }
    /* The sink joins the sum, not the maximum that P is rounded against. */
    top = sink > base ? sink : base;
    *lse = log(sum * exp(base - top) + exp(sink - top)) + top;
    for (int64_t c = 0; c < o->d_v; c++) out[c] = 0;
    if (sum == 0) return; /* no key was seen, or each at -Inf */
    for (int64_t j = 0; j < r->s_kv; j++) {
        const double p = a->p[j] * exp(base - *lse);
        const double used = o->quantize_p ? round_p(a->p[j]) * exp(base - *lse) : p;
        if (p > a->amax_s) a->amax_s = p;
        if (a->p[j] == 0) continue; /* nothing of V, NaN neither */
        for (int64_t c = 0; c < o->d_v; c++)
            out[c] += used * value(a, &a->v, r->seq, r->kv_begin + j, r->kv_head, c);
    }
    for (int64_t c = 0; c < o->d_v; c++)
        if (fabs(out[c]) > a->amax_o) a->amax_o = fabs(out[c]);
}

/* ---- all rows -------------------------------------------------------------------------------- */

/* Row (seq, token, head) of out and lse; those beyond a length of padded tokens are 0 and -Inf. */
static void attend_row(oracle *a, query *r) {
    const fp8_attention_options *o = a->o;
    const int packed = a->io->q_starts != NULL;
    const int64_t row = packed ? r->q_begin + r->token : r->seq * o->max_q + r->token;
    const int64_t lse_row =
        attention_lse_offset(o, a->io, r->seq, r->head, r->q_begin, r->token);
    double *out = a->out + (row * o->num_heads + r->head) * o->d_v, lse = -INFINITY;

    if (r->token < r->s_q) attend(a, r, out, &lse);
    else if (packed) return;
    else memset(out, 0, (size_t)o->d_v * sizeof *out);
    if (a->lse) a->lse[lse_row] = lse;
}

static void attend_all(oracle *a) {
    const fp8_attention_options *o = a->o;
    query r;
    for (r.seq = 0; r.seq < o->num_seqs; r.seq++) {
        r.s_q = attention_sequence(a->q.starts, a->q.lengths, r.seq, a->q.total, o->max_q,
                                   &r.q_begin);
        r.s_kv = attention_sequence(a->k.starts, a->k.lengths, r.seq, a->k.total, o->max_kv,
                                    &r.kv_begin);
        for (r.token = 0; r.token < o->max_q; r.token++)
            for (r.head = 0; r.head < o->num_heads; r.head++) {
                r.kv_head = r.head / a->q.group;
                attend_row(a, &r);
            }
    }
}

fp8_status fp8_attention_reference(double *o, double *lse, double *amax,
                                   const fp8_attention_options *options,
                                   const fp8_attention_io *io) {
    fp8_attention_options resolved;
    fp8_attention_io operands;
    float *slopes = NULL;
    oracle a = {0};
    fp8_status st;

    if (!options || !io)
        return FP8_FAIL(FP8_EINVAL, "attention oracle: options=%p io=%p", (const void *)options,
                        (const void *)io);
    FP8_TRY(attention_resolve_options(&resolved, options));
    resolved.want_lse = resolved.want_amax = 0; /* what comes out are the arguments */
    resolved.o_dtype = FP8_DTYPE_F32;
    operands = *io;
    operands.o = o;
    FP8_TRY(attention_resolve_io(&operands, &resolved, &operands));
    slopes = malloc((size_t)resolved.num_heads * sizeof *slopes);
    a = (oracle){.o = &resolved, .io = &operands, .out = o, .lse = lse,
                 .slopes = operands.alibi_slopes ? operands.alibi_slopes : slopes};
    a.score = malloc((size_t)(resolved.max_kv + 1) * sizeof *a.score);
    a.p = malloc((size_t)(resolved.max_kv + 1) * sizeof *a.p);
    if (!slopes || !a.score || !a.p) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "attention oracle"));
    fp8_attention_alibi_slopes(slopes, resolved.num_heads);
    FP8_TRY(open_sources(&a));
    attend_all(&a);
    if (amax) {
        amax[0] = a.amax_s;
        amax[1] = a.amax_o;
    }
done:
    free(a.q.rotated);
    free(a.k.rotated);
    free(a.q.current);
    free(a.k.current);
    free(a.v.current);
    free(a.score);
    free(a.p);
    free(slopes);
    return st;
}
