/* Scales that suit the activations of a model whose earlier layers are quantized. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/compensate.h"
#include "calib/e4m3_error.h"
#include "calib/real.h"
#include "quant/cast.h"

enum { MOST_ROWS = 4096, FIRST = -4, LAST = 15, CANDIDATES = LAST - FIRST + 1 };

/* ---- rows ------------------------------------------------------------------------------------ */

typedef struct catcher {
    fp8_compensation *j;
    fp8_rows *rows;
    int num, with_amax;
    int64_t per_step, step;
    void *host; /* [per_step, widest] of the compute type */
} catcher;

typedef struct widen_job {
    float *out;
    const void *x;
    fp8_dtype type;
    int64_t width;
} widen_job;

static fp8_status widen_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const widen_job *j = ctx;
    (void)worker;
    for (int64_t i = begin * j->width; i < end * j->width; i++)
        j->out[i] = fp8_real_at(j->x, j->type, i);
    return FP8_OK;
}

static fp8_status keep(catcher *c, fp8_rows *to, const fp8_tensor *x) {
    const int64_t tokens = x->shape[0], width = fp8_tensor_count(x) / tokens;
    const int64_t n = c->per_step < tokens ? c->per_step : tokens;
    const int64_t at = c->step * 977 % (tokens - n + 1); /* another place in every step */
    const size_t size = fp8_dtype_size(x->dtype), bytes = (size_t)(n * width) * size;
    const int64_t most = c->per_step * c->j->steps;
    widen_job widen;
    fp8_status st = FP8_OK;

    if (!to->x) {
        to->width = width;
        to->x = malloc(((size_t)(most * width) + 1) * sizeof *to->x);
    }
    free(c->host);
    c->host = malloc(bytes + 1);
    if (!to->x || !c->host) return FP8_FAIL(FP8_ENOMEM, "sample of activations");
    FP8_TRY(fp8_device_download(c->j->d, c->host,
                                (const char *)x->data + (size_t)(at * width) * size, bytes));
    widen = (widen_job){to->x + to->count * width, c->host, x->dtype, width};
    FP8_TRY(fp8_parallel_for(fp8_device_pool(c->j->d), n, 1, widen_rows, &widen));
    to->count += n;
done:
    return st;
}

static fp8_status catch_rows(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    catcher *c = ctx;
    fp8_status st = FP8_OK;

    (void)layer;
    for (int i = 0; i < c->num; i++) {
        if (c->rows[i].point != point) continue;
        if (c->with_amax)
            FP8_TRY(fp8_observe(c->j->d, c->j->slots + i, x->data, x->dtype, x->shape[0],
                                fp8_tensor_count(x) / x->shape[0],
                                fp8_tensor_count(x) / x->shape[0], NULL));
        FP8_TRY(keep(c, &c->rows[i], x));
        if (i == c->num - 1) st = FP8_ECANCELED;
    }
done:
    return st;
}

fp8_status fp8_compensation_rows(fp8_compensation *j, int which, fp8_rows *rows, int num,
                                 int with_amax) {
    const int64_t wanted = MOST_ROWS / 256; /* steps, where not all are looked at */
    const int64_t every = with_amax || j->steps <= wanted ? 1 : j->steps / wanted;
    const int64_t used = (j->steps + every - 1) / every;
    catcher c = {.j = j, .rows = rows, .num = num, .with_amax = with_amax};
    const fp8_tap tap = {.on = catch_rows, .ctx = &c};
    fp8_status st = FP8_OK;

    c.per_step = (MOST_ROWS + used - 1) / used;
    for (int64_t step = 0; step < j->steps; step += every) {
        c.step = step;
        FP8_TRY(fp8_compensation_run(j, which, step, NULL, &tap));
    }
done:
    free(c.host);
    return st;
}

/* ---- search ---------------------------------------------------------------------------------- */

enum { ROWS = 32 }; /* that a worker takes */

typedef struct search_job {
    const fp8_rows *x;
    const double *metric;
    fp8_scale candidates[CANDIDATES];
    double *errors; /* [pieces of ROWS][CANDIDATES] */
} search_job;

static fp8_scale candidate(const fp8_recipe *recipe, float most, int i) {
    const float amax = (float)((double)most * exp2((double)(i + FIRST) / 16));
    fp8_scale s = {.amax = amax, .amax_without_first = amax, .scale = 1, .descale = 1};
    fp8_recipe_scale(recipe, FP8_DTYPE_E4M3, amax, &s.scale, &s.descale);
    return s;
}

/* Pieces [begin, end) of the rows, each row by all candidates while it is in the cache. */
static fp8_status try_candidates(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const search_job *j = ctx;
    const int64_t width = j->x->width, stop = end * ROWS;

    (void)worker;
    for (int64_t r = begin * ROWS; r < stop && r < j->x->count; r++)
        for (int i = 0; i < CANDIDATES; i++)
            j->errors[r / ROWS * CANDIDATES + i] +=
                fp8_e4m3_error(j->x->x + r * width, j->metric, width, j->candidates[i].scale,
                               j->candidates[i].descale);
    return FP8_OK;
}

fp8_status fp8_search_scale(fp8_scale *s, const fp8_rows *x, const double *metric, float amax,
                            const fp8_recipe *recipe, fp8_pool *pool) {
    const int64_t pieces = (x->count + ROWS - 1) / ROWS;
    search_job j = {.x = x, .metric = metric};
    double errors[CANDIDATES] = {0};
    int best = -FIRST;
    fp8_status st = FP8_OK;

    *s = candidate(recipe, amax, best);
    if (!(amax > 0) || amax > FLT_MAX / 4) return FP8_OK;
    j.errors = calloc((size_t)(pieces * CANDIDATES) + 1, sizeof *j.errors);
    if (!j.errors) return FP8_FAIL(FP8_ENOMEM, "errors of %d scales", CANDIDATES);
    for (int i = 0; i < CANDIDATES; i++) j.candidates[i] = candidate(recipe, amax, i);
    FP8_TRY(fp8_parallel_for(pool, pieces, 1, try_candidates, &j));
    for (int64_t i = 0; i < pieces * CANDIDATES; i++) errors[i % CANDIDATES] += j.errors[i];
    for (int i = 0; i < CANDIDATES; i++)
        if (errors[i] < errors[best]) best = i;
    *s = j.candidates[best];
    s->clipped = best < -FIRST;
done:
    free(j.errors);
    return st;
}

/* ---- Q, K and V ------------------------------------------------------------------------------ */

/* An error of a query counts as much as the keys it meets are large, and the other way round; the
 * values' columns of the output projection are not looked at. metrics [heads * dim], [kv * dim]. */
static void weigh(double *of_q, double *of_k, const fp8_rows *q, const fp8_rows *k,
                  const fp8_model_config *c) {
    const int64_t dim = c->head_dim, group = c->num_heads / c->num_kv_heads;

    for (int64_t r = 0; r < q->count; r++)
        for (int64_t h = 0; h < c->num_heads; h++) {
            const int64_t from = h * dim, met = h / group * dim;
            for (int64_t i = 0; i < dim; i++) {
                const double x = (double)q->x[r * q->width + from + i];
                const double y = (double)k->x[r * k->width + met + i];
                of_k[met + i] += x * x;
                of_q[from + i] += y * y;
            }
        }
}

fp8_status fp8_compensation_kv(fp8_compensation *j) {
    static const fp8_point points[3] = {FP8_POINT_Q, FP8_POINT_K, FP8_POINT_V};
    const fp8_model_config *c = j->config;
    fp8_rows rows[3] = {{.point = points[0]}, {.point = points[1]}, {.point = points[2]}};
    fp8_amax_slot slots[3];
    double *of_q = calloc((size_t)(c->num_heads * c->head_dim), sizeof *of_q);
    double *of_k = calloc((size_t)(c->num_kv_heads * c->head_dim), sizeof *of_k);
    const double *metrics[3] = {of_q, of_k, NULL};
    float descales[3];
    fp8_status st = FP8_OK;

    if (!of_q || !of_k) {
        st = FP8_FAIL(FP8_ENOMEM, "scales of queries and keys");
        goto done;
    }
    FP8_TRY(fp8_device_fill(j->d, j->slots, 0, sizeof slots));
    FP8_TRY(fp8_compensation_rows(j, FP8_CODED, rows, 3, 1));
    FP8_TRY(fp8_device_download(j->d, slots, j->slots, sizeof slots));
    weigh(of_q, of_k, &rows[0], &rows[1], c);
    for (int i = 0; i < 3; i++) {
        const int32_t slot = fp8_point_slot(j->points.num_layers, (int32_t)j->layer, points[i]);
        fp8_scale *s = &j->out->scales[slot];
        FP8_TRY(fp8_search_scale(s, &rows[i], metrics[i], slots[i].amax, &j->options->recipe,
                                 fp8_device_pool(j->d)));
        descales[i] = s->descale;
    }
    FP8_TRY(fp8_model_set_kv_descales(j->models[FP8_CODED], j->layer, descales));
done:
    for (int i = 0; i < 3; i++) free(rows[i].x);
    free(of_q);
    free(of_k);
    return st;
}
