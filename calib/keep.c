/* Which Linears stay as they are. */
#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"
#include "calib/plain_model.h"
#include "calib/points.h"
#include "calib/weight_stage.h"

typedef struct job {
    fp8_model *m, *donor, *coded; /* BF16, BF16, FP8 */
    const fp8_checkpoint *source;
    fp8_checkpoint *plain;
    const fp8_samples *samples;
    const fp8_calib_options *calib;
    int64_t windows;
    fp8_points points;
    fp8_keep *out;
} job;

static fp8_status load(job *j, const char *scratch, const fp8_record *record,
                       const fp8_export_options *options) {
    const fp8_model_options how = {.compute = fp8_model_compute(j->m),
                                   .max_tokens = fp8_model_max_tokens(j->m)};
    fp8_device *d = fp8_model_device(j->m);
    fp8_export_options all = *options;
    fp8_status st = FP8_OK;

    all.num_keep = 0;
    FP8_TRY(fp8_plain_model_load(&j->plain, &j->coded, d, scratch, j->source, record, &all, &how));
    FP8_TRY(fp8_model_load(&j->donor, d, j->source, &how));
done:
    return st;
}

/* ---- choices --------------------------------------------------------------------------------- */

static fp8_status list_choices(job *j) {
    double all = 0;
    fp8_keep *k = j->out;

    k->choices = calloc((size_t)j->points.num_linears + 1, sizeof *k->choices);
    k->names = calloc((size_t)j->points.num_linears + 1, sizeof *k->names);
    if (!k->choices || !k->names) return FP8_FAIL(FP8_ENOMEM, "list of Linears");
    for (int64_t i = 0; i < j->points.num_linears; i++) {
        const fp8_linear_info *l = &j->points.linears[i];
        const fp8_point point =
            l->input == FP8_POINT_SHARED_DOWN_INPUT ? FP8_POINT_DOWN_INPUT : l->input;
        int64_t at = 0;
        while (at < k->count &&
               (k->choices[at].layer != l->layer || k->choices[at].point != point))
            at++;
        if (at == k->count) k->choices[k->count++] = (fp8_kept){.layer = l->layer, .point = point};
        k->choices[at].share += (double)l->in * (double)l->out;
        all += (double)l->in * (double)l->out;
    }
    for (int64_t i = 0; i < k->count; i++) k->choices[i].share /= all;
    return FP8_OK;
}

static fp8_status measure(job *j, double *kl) {
    fp8_model *const models[2] = {j->m, j->coded};
    fp8_eval_result results[2];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_evaluate(results, models, 2, j->samples->ids, j->samples->num_ids, j->calib->seq,
                         j->windows, NULL));
    *kl = results[1].kl;
done:
    return st;
}

static fp8_status measure_all(job *j) {
    const fp8_progress *p = &j->calib->progress;
    fp8_keep *k = j->out;
    fp8_status st = FP8_OK;

    FP8_TRY(measure(j, &k->kl));
    for (int64_t i = 0; i < k->count; i++) {
        fp8_kept *c = &k->choices[i];
        double kl;
        FP8_TRY(fp8_model_exchange_linears(j->coded, j->donor, c->layer, c->point));
        FP8_TRY(measure(j, &kl));
        FP8_TRY(fp8_model_exchange_linears(j->coded, j->donor, c->layer, c->point));
        c->gain = k->kl - kl;
        if (p->on && p->on(p->ctx, "weighing", i + 1, k->count)) {
            st = FP8_FAIL(FP8_ECANCELED, "weighing stopped after %lld of %lld choices",
                          (long long)(i + 1), (long long)k->count);
            goto done;
        }
    }
done:
    return st;
}

static int by_gain(const void *a, const void *b) {
    const fp8_kept *x = a, *y = b;
    const double gx = x->gain / x->share, gy = y->gain / y->share;
    if (gx != gy) return gx > gy ? -1 : 1;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    return x->point < y->point ? -1 : 1;
}

static fp8_status choose(job *j, double percent) {
    fp8_keep *k = j->out;

    qsort(k->choices, (size_t)k->count, sizeof *k->choices, by_gain);
    for (int64_t i = 0; i < k->count; i++) {
        fp8_kept *c = &k->choices[i];
        c->chosen = c->gain > 0 && k->share + c->share <= percent / 100 * (1 + 1e-9);
        if (!c->chosen) continue;
        k->share += c->share;
        for (int64_t n = 0; n < j->points.num_linears; n++) {
            const fp8_linear_info *l = &j->points.linears[n];
            if (l->layer != c->layer ||
                (l->input != c->point && !(c->point == FP8_POINT_DOWN_INPUT &&
                                           l->input == FP8_POINT_SHARED_DOWN_INPUT)))
                continue;
            k->names[k->num_names] = strdup(l->name);
            if (!k->names[k->num_names++]) return FP8_FAIL(FP8_ENOMEM, "'%s'", l->name);
        }
    }
    return FP8_OK;
}

/* ---- the whole ------------------------------------------------------------------------------- */

fp8_status fp8_keep_create(fp8_keep **out, fp8_model *m, const fp8_checkpoint *source,
                           const char *scratch, const fp8_record *record,
                           const fp8_samples *samples, const fp8_calib_options *calib,
                           const fp8_export_options *options, double percent, int64_t windows) {
    job j = {.m = m, .source = source, .samples = samples, .calib = calib, .windows = windows};
    fp8_status st = FP8_OK, removed = FP8_OK;

    *out = NULL;
    if (!(percent >= 0 && percent <= 100) || windows < 1)
        return FP8_FAIL(FP8_EINVAL, "%g %% of the weights in BF16, by %lld windows: expected 0 to "
                        "100, at least one", percent, (long long)windows);
    j.out = calloc(1, sizeof *j.out);
    if (!j.out) return FP8_FAIL(FP8_ENOMEM, "choice of Linears");
    FP8_TRY(fp8_points_create(&j.points, fp8_model_get_config(m), source));
    FP8_TRY(list_choices(&j));
    FP8_TRY(load(&j, scratch, record, options));
    FP8_TRY(measure_all(&j));
    FP8_TRY(choose(&j, percent));
    *out = j.out;
    j.out = NULL;
done:
    fp8_model_destroy(j.coded);
    fp8_model_destroy(j.donor);
    fp8_checkpoint_close(j.plain);
    fp8_points_free(&j.points);
    fp8_keep_destroy(j.out);
    if (fp8_path_exists(scratch)) removed = fp8_folder_remove(scratch);
    return st != FP8_OK ? st : removed;
}

void fp8_keep_destroy(fp8_keep *k) {
    if (!k) return;
    for (int64_t i = 0; k->names && i < k->num_names; i++) free(k->names[i]);
    free(k->names);
    free(k->choices);
    free(k);
}
