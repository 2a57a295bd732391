/* The weights of a group: read, aimed, scaled, rounded, put into the quantized model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/compensate.h"
#include "calib/e4m3_error.h"
#include "calib/real.h"
#include "calib/turn.h"
#include "core/log.h"
#include "quant/cast.h"

enum { GRAIN = 16 }; /* rows, or inputs, that a worker takes */

typedef struct read_job {
    float *w;
    double *energy;
    const fp8_weight *from;
} read_job;

static fp8_status read_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const read_job *j = ctx;
    const fp8_weight *from = j->from;
    const fp8_tensor *t = &from->entry->tensor;

    (void)worker;
    for (int64_t r = begin; r < end; r++)
        for (int64_t c = 0; c < from->cols; c++)
            j->w[from->in_out ? c * from->rows + r : r * from->cols + c] =
                fp8_real_at(t->data, t->dtype, r * from->cols + c);
    return FP8_OK;
}

/* w [out, in], however it lies on disk. */
static fp8_status read_weight(float *w, const fp8_weight *from, fp8_pool *pool) {
    read_job j = {.w = w, .from = from};
    return fp8_parallel_for(pool, from->rows, GRAIN, read_rows, &j);
}

static int64_t in_of(const fp8_weight *w) { return w->in_out ? w->rows : w->cols; }

/* Inputs [begin, end), each its outputs in their order: the same sums for any number of threads. */
static fp8_status sum_energy(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const read_job *j = ctx;
    const fp8_weight *w = j->from;
    const fp8_tensor *t = &w->entry->tensor;
    const int64_t outs = w->in_out ? w->cols : w->rows;

    (void)worker;
    for (int64_t out = 0; out < outs; out++)
        for (int64_t in = begin; in < end; in++) {
            const int64_t at = w->in_out ? in * w->cols + out : out * w->cols + in;
            const double x = (double)fp8_real_at(t->data, t->dtype, at);
            j->energy[in] += x * x;
        }
    return FP8_OK;
}

fp8_status fp8_compensation_column_energy(double *energy, const fp8_weight *w, fp8_pool *pool) {
    enum { INPUTS = 128 }; /* 256 bytes of a BF16 row */
    read_job j = {.energy = energy, .from = w};
    return fp8_parallel_for(pool, in_of(w), INPUTS, sum_energy, &j);
}

/* The turn of this layer's queries and keys, put into the rows of `w` that make them. */
static void turn(const fp8_compensation *j, float *w, const fp8_linear_info *l) {
    const fp8_model_config *c = j->config;
    const int64_t pairs = c->rotary_dim / 2, q = c->num_heads * c->head_dim;
    const int queries = l->kind == FP8_LINEAR_Q || l->kind == FP8_LINEAR_QKV;
    const int keys = l->kind == FP8_LINEAR_K || l->kind == FP8_LINEAR_QKV;

    if (!j->angles) return;
    if (queries)
        fp8_turn_rows(w, j->angles, c->num_heads, c->num_kv_heads, c->head_dim, pairs, l->in);
    if (keys)
        fp8_turn_rows(w + (l->kind == FP8_LINEAR_QKV ? q * l->in : 0), j->angles, c->num_kv_heads,
                      c->num_kv_heads, c->head_dim, pairs, l->in);
}

/* Weights [begin, end) that share scales: what they are rounded from, and their scales. */
typedef struct group {
    int64_t begin, end, in;
    float **w;                /* [end - begin]: [out, in] */
    float *scales, *descales; /* of all of them; TENSOR: 1 */
    fp8_gptq_scales grid;     /* of the first; the others' follow */
} group;

static void group_free(group *g) {
    for (int64_t i = 0; g->w && i < g->end - g->begin; i++) free(g->w[i]);
    free(g->w);
    free(g->scales);
    free(g->descales);
}

static fp8_status group_read(group *g, const fp8_compensation *j) {
    const int64_t n = g->end - g->begin;
    fp8_status st = FP8_OK;

    g->w = calloc((size_t)n, sizeof *g->w);
    for (int64_t i = 0; g->w && i < n; i++) {
        const fp8_weight *w = &j->weights.data[g->begin + i];
        g->w[i] = malloc(((size_t)(w->rows * w->cols) + 1) * sizeof **g->w);
        if (!g->w[i]) break;
        FP8_TRY(read_weight(g->w[i], w, fp8_device_pool(j->d)));
        turn(j, g->w[i], &j->points.linears[g->begin + i]);
        if (i == n - 1) return FP8_OK;
    }
    st = FP8_FAIL(FP8_ENOMEM, "'%s.weight'", j->weights.data[g->begin].name);
done:
    return st;
}

/* Moves the weights to those that make of the quantized model's input what they made of x. */
static fp8_status group_aim(group *g, const fp8_compensation *j, fp8_solver *solver) {
    fp8_status st = FP8_OK;
    for (int64_t i = 0; i < g->end - g->begin; i++)
        FP8_TRY(fp8_solver_aim(solver, g->w[i], j->weights.data[g->begin + i].channels));
done:
    return st;
}

typedef struct amax_job {
    const float *w;
    float *amax; /* of bands of row_span rows, by pieces of col_span columns */
    int64_t rows, in, row_span, col_span;
} amax_job;

static fp8_status find_amax(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const amax_job *j = ctx;
    const int64_t across = fp8_pieces(j->in, j->col_span);

    (void)worker;
    for (int64_t r = begin * j->row_span; r < end * j->row_span && r < j->rows; r++)
        for (int64_t c = 0; c < j->in; c++) {
            float *amax = &j->amax[r / j->row_span * across + c / j->col_span];
            const float a = fabsf(j->w[r * j->in + c]);
            if (a > *amax && isfinite(a)) *amax = a;
        }
    return FP8_OK;
}

/* Of weight i, joined to amax: what a band or square has; TENSOR: one. */
static fp8_status join_amax(const group *g, const fp8_compensation *j, int64_t i, float *amax) {
    const int one = g->grid.row_span == 0;
    const int64_t rows = j->weights.data[g->begin + i].channels;
    amax_job job = {g->w[i], amax, rows, g->in, one ? GRAIN : g->grid.row_span, g->grid.col_span};
    const int64_t bands = fp8_pieces(rows, job.row_span);
    fp8_status st = FP8_OK;

    if (one) {
        job.amax = calloc((size_t)bands + 1, sizeof *job.amax);
        if (!job.amax) return FP8_FAIL(FP8_ENOMEM, "amax of %lld rows", (long long)rows);
    }
    FP8_TRY(fp8_parallel_for(fp8_device_pool(j->d), bands, 1, find_amax, &job));
    for (int64_t k = 0; one && k < bands; k++)
        if (job.amax[k] > *amax) *amax = job.amax[k];
done:
    if (one) free(job.amax);
    return st;
}

/* One amax a group of the scheme; weights of the scheme TENSOR share one. */
static fp8_status group_scale(group *g, const fp8_compensation *j) {
    const fp8_scheme scheme = j->options->scheme;
    const int64_t side = FP8_DIALECT_BLOCK;
    int64_t count = 0, at = 0;
    fp8_status st = FP8_OK;

    g->grid.row_span = scheme == FP8_SCHEME_BLOCK ? side : scheme == FP8_SCHEME_DYNAMIC ? 1 : 0;
    g->grid.col_span = scheme == FP8_SCHEME_BLOCK ? side : g->in;
    for (int64_t i = g->begin; i < g->end; i++)
        count += g->grid.row_span ? fp8_pieces(j->weights.data[i].channels, g->grid.row_span) *
                                        fp8_pieces(g->in, g->grid.col_span)
                                  : 1;
    g->scales = malloc((size_t)count * sizeof *g->scales);
    g->descales = calloc((size_t)count, sizeof *g->descales);
    if (!g->scales || !g->descales) return FP8_FAIL(FP8_ENOMEM, "%lld scales", (long long)count);
    if (!g->grid.row_span) count = 1;
    for (int64_t i = 0; i < g->end - g->begin; i++) {
        FP8_TRY(join_amax(g, j, i, g->descales + at));
        if (g->grid.row_span)
            at += fp8_pieces(j->weights.data[g->begin + i].channels, g->grid.row_span) *
                  fp8_pieces(g->in, g->grid.col_span);
    }
    for (int64_t i = 0; i < count; i++) {
        const fp8_scale s = fp8_weight_scale_of(g->descales[i], j->options->ue8m0);
        g->scales[i] = s.scale;
        g->descales[i] = s.descale;
    }
done:
    return st;
}

/* Codes [out, in] of weight i into j->out, as the tensor lies on disk. Takes `codes`. */
static fp8_status group_keep(const group *g, fp8_compensation *j, int64_t i, uint8_t *codes,
                             const fp8_gptq_scales *s) {
    const fp8_weight *w = &j->weights.data[g->begin + i];
    const int64_t rows = w->channels, n = rows * g->in;
    const int64_t count = fp8_pieces(rows, s->row_span) * fp8_pieces(g->in, s->col_span);
    fp8_rounded *out = &j->out->weights[g->begin + i];

    out->codes = codes;
    out->descales = malloc((size_t)count * sizeof *out->descales);
    if (!out->descales) return FP8_FAIL(FP8_ENOMEM, "'%s.weight'", w->name);
    memcpy(out->descales, s->descales, (size_t)count * sizeof *out->descales);
    if (!w->in_out) return FP8_OK;
    out->codes = malloc((size_t)n + 1);
    for (int64_t k = 0; out->codes && k < n; k++)
        out->codes[k % g->in * rows + k / g->in] = codes[k];
    free(codes);
    return out->codes ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "'%s.weight'", w->name);
}

/* The scales of weight i, which begin at `at`. */
static fp8_gptq_scales group_scales(const group *g, const fp8_compensation *j, int64_t i,
                                    int64_t at) {
    const int64_t rows = j->weights.data[g->begin + i].channels;
    return (fp8_gptq_scales){g->scales + at, g->descales + at,
                             g->grid.row_span ? g->grid.row_span : rows, g->grid.col_span};
}

/* Where those of the next one begin. */
static int64_t group_next(const group *g, const fp8_compensation *j, int64_t i, int64_t at) {
    if (!g->grid.row_span) return 0;
    return at + fp8_pieces(j->weights.data[g->begin + i].channels, g->grid.row_span) *
                    fp8_pieces(g->in, g->grid.col_span);
}

/* Weight i of the group into j->out and into the quantized model. */
static fp8_status group_round(const group *g, fp8_compensation *j, fp8_solver *solver, int64_t i,
                              int64_t at, float input_descale) {
    const fp8_weight *w = &j->weights.data[g->begin + i];
    const fp8_gptq_scales s = group_scales(g, j, i, at);
    const fp8_rounded *out = &j->out->weights[g->begin + i];
    uint8_t *codes = malloc((size_t)(w->channels * g->in) + 1);
    double loss[2];
    fp8_status st = FP8_OK;

    if (!codes) return FP8_FAIL(FP8_ENOMEM, "'%s.weight'", w->name);
    st = fp8_solver_round(codes, loss, solver, g->w[i], w->channels, &s);
    if (st != FP8_OK) {
        free(codes);
        goto done;
    }
    FP8_TRY(group_keep(g, j, i, codes, &s));
    FP8_TRY(fp8_model_set_codes(j->models[FP8_CODED], j->plain, &j->points.linears[g->begin + i],
                                out->codes, out->descales, input_descale));
    if (loss[0] > 0) j->out->loss += loss[1] / loss[0];
    j->out->num_rounded++;
    fp8_log(FP8_LOG_INFO, "%s: the loss of rounding is %.3f of plain rounding's", w->name,
            loss[0] > 0 ? loss[1] / loss[0] : 1);
done:
    return st;
}

fp8_status fp8_compensation_round(fp8_compensation *j, int64_t begin, int64_t end,
                                  fp8_solver *solver, float input_descale) {
    group g = {.begin = begin, .end = end, .in = in_of(&j->weights.data[begin])};
    int64_t at = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(group_read(&g, j));
    FP8_TRY(group_aim(&g, j, solver));
    FP8_TRY(group_scale(&g, j));
    for (int64_t i = 0; i < end - begin; i++) {
        FP8_TRY(group_round(&g, j, solver, i, at, input_descale));
        at = group_next(&g, j, i, at);
    }
done:
    group_free(&g);
    return st;
}

/* ---- scales of least error, and no more ------------------------------------------------------ */

enum { CANDIDATES = 16 }; /* amax * 2^(i/16): an octave further E4M3 rounds alike */

typedef struct search_job {
    const group *g;
    const fp8_compensation *j;
    int64_t num_scales;
    double *errors; /* [CANDIDATES][num_scales] */
} search_job;

static fp8_scale candidate(const search_job *s, int64_t scale, int64_t i) {
    const double amax = (double)(s->g->descales[scale] * FP8_E4M3_MAX);
    return fp8_weight_scale_of((float)(amax * exp2((double)i / CANDIDATES)),
                               s->j->options->ue8m0);
}

/* What candidate c of every scale of the group costs. */
static void measure(const search_job *s, int64_t c) {
    const group *g = s->g;

    for (int64_t i = 0, at = 0; i < g->end - g->begin; at = group_next(g, s->j, i++, at)) {
        const fp8_gptq_scales grid = group_scales(g, s->j, i, at);
        const int64_t across = fp8_pieces(g->in, grid.col_span);
        for (int64_t r = 0; r < s->j->weights.data[g->begin + i].channels; r++)
            for (int64_t k = 0; k < g->in; k += grid.col_span) {
                const int64_t scale = at + r / grid.row_span * across + k / grid.col_span;
                const int64_t n = g->in - k < grid.col_span ? g->in - k : grid.col_span;
                const fp8_scale x = candidate(s, scale, c);
                s->errors[c * s->num_scales + scale] +=
                    fp8_e4m3_error(g->w[i] + r * g->in + k, NULL, n, x.scale, x.descale);
            }
    }
}

static fp8_status measure_candidates(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    (void)worker;
    for (int64_t c = begin; c < end; c++) measure(ctx, c);
    return FP8_OK;
}

static fp8_status group_search(group *g, const fp8_compensation *j) {
    search_job s = {.g = g, .j = j, .num_scales = 1};
    fp8_status st = FP8_OK;

    for (int64_t i = 0, at = 0; g->grid.row_span && i < g->end - g->begin; i++)
        s.num_scales = at = group_next(g, j, i, at);
    s.errors = calloc((size_t)(CANDIDATES * s.num_scales), sizeof *s.errors);
    if (!s.errors) return FP8_FAIL(FP8_ENOMEM, "%lld scales", (long long)s.num_scales);
    FP8_TRY(fp8_parallel_for(fp8_device_pool(j->d), CANDIDATES, 1, measure_candidates, &s));
    for (int64_t i = 0; i < s.num_scales; i++) {
        int64_t best = 0;
        for (int64_t c = 1; c < CANDIDATES; c++)
            if (s.errors[c * s.num_scales + i] < s.errors[best * s.num_scales + i]) best = c;
        const fp8_scale x = candidate(&s, i, best);
        g->scales[i] = x.scale;
        g->descales[i] = x.descale;
    }
done:
    free(s.errors);
    return st;
}

static uint8_t *plain_codes(const group *g, const fp8_weight *w, int64_t i,
                            const fp8_gptq_scales *s) {
    const int64_t across = fp8_pieces(g->in, s->col_span);
    uint8_t *codes = malloc((size_t)(w->channels * g->in) + 1);

    for (int64_t k = 0; codes && k < w->channels * g->in; k++) {
        const int64_t at = k / g->in / s->row_span * across + k % g->in / s->col_span;
        codes[k] = fp8_from_f32(FP8_DTYPE_E4M3, g->w[i][k] * s->scales[at]);
    }
    return codes;
}

fp8_status fp8_compensation_nearest(fp8_compensation *j, int64_t begin, int64_t end) {
    group g = {.begin = begin, .end = end, .in = in_of(&j->weights.data[begin])};
    fp8_status st = FP8_OK;

    FP8_TRY(group_read(&g, j));
    FP8_TRY(group_scale(&g, j));
    FP8_TRY(group_search(&g, j));
    for (int64_t i = 0, at = 0; i < end - begin; at = group_next(&g, j, i++, at)) {
        const fp8_gptq_scales s = group_scales(&g, j, i, at);
        uint8_t *codes = plain_codes(&g, &j->weights.data[begin + i], i, &s);
        if (!codes) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "'%s.weight'", j->weights.data[begin + i].name));
        FP8_TRY(group_keep(&g, j, i, codes, &s));
    }
done:
    group_free(&g);
    return st;
}
