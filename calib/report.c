#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"
#include "calib/points.h"
#include "calib/scales.h"
#include "calib/steps.h"
#include "calib/weight_stage.h"

/* One report under way. */
typedef struct job {
    fp8_device *d;
    fp8_model *model;
    const fp8_samples *samples;
    const fp8_calib_options *calib;
    const fp8_export_options *options;
    fp8_points points;
    fp8_weights weights;
    fp8_scale *scales;     /* [num_slots]; NULL: no record */
    fp8_error_stats *host; /* one */
    fp8_error_stats *stats; /* device: one for weights; [num_slots] for activations */
    float *pairs;           /* device: scale and descale of each slot or output channel */
    float *host_pairs;
    fp8_amax_slot *channels, *host_channels; /* device, host: one an output channel */
    void *workspace;
    fp8_report_row *rows;
    int64_t count;
} job;

static void add_row(job *j, const char *name, int is_weight, const fp8_scale *s) {
    const fp8_error_stats *e = j->host;
    const double largest = fp8_error_quantile(e, 1.0);
    fp8_report_row *row = &j->rows[j->count++];

    snprintf(row->name, sizeof row->name, "%s%s", name, is_weight ? ".weight" : "");
    row->is_weight = is_weight;
    row->amax = s->amax;
    row->amax_without_first = s->amax_without_first;
    row->scale = s->scale;
    row->descale = s->descale;
    row->sqnr_db = fp8_error_sqnr_db(e);
    row->clipped = e->count ? (double)e->clipped / (double)e->count : 0;
    row->p999_over_max = largest > 0 ? fp8_error_quantile(e, 0.999) / largest : 0;
    row->nonfinite = s->nonfinite;
}

/* ---- weights -----------------------------------------------------------------------------------
 */

/* Scale and descale of `count` groups, from their amax, to the device. */
static fp8_status upload_pairs(job *j, int64_t count) {
    return fp8_device_upload(j->d, j->pairs, j->host_pairs,
                             (size_t)(2 * count) * sizeof *j->pairs);
}

/* A channel is a row of the weight, or a column of an [in, out] one. */
static fp8_status measure_channels(job *j, const fp8_weight *w, const void *x) {
    const fp8_dtype dtype = w->entry->tensor.dtype;
    const int64_t n = w->channels, rows = w->in_out ? w->rows : 1, cols = w->in_out ? 1 : w->cols;
    const size_t step = fp8_dtype_size(dtype) * (size_t)(w->in_out ? 1 : w->cols);
    const size_t slot_bytes = (size_t)n * sizeof *j->channels;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_fill(j->d, j->channels, 0, slot_bytes));
    for (int64_t i = 0; i < n; i++)
        FP8_TRY(fp8_observe(j->d, j->channels + i, (const char *)x + (size_t)i * step, dtype, rows,
                            cols, w->cols, NULL));
    FP8_TRY(fp8_device_download(j->d, j->host_channels, j->channels, slot_bytes));
    for (int64_t i = 0; i < n; i++) {
        const fp8_scale s = fp8_scale_of(j->host_channels[i].amax);
        j->host_pairs[2 * i] = s.scale;
        j->host_pairs[2 * i + 1] = s.descale;
    }
    FP8_TRY(upload_pairs(j, n));
    for (int64_t i = 0; i < n; i++)
        FP8_TRY(fp8_measure_error(j->d, j->stats, (const char *)x + (size_t)i * step, dtype, rows,
                                  cols, w->cols, FP8_DTYPE_E4M3, j->pairs + 2 * i,
                                  j->pairs + 2 * i + 1, j->workspace));
done:
    return st;
}

static fp8_status measure_weight(job *j, const fp8_weight *w, const void *x, fp8_scale s) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_fill(j->d, j->stats, 0, sizeof *j->stats));
    if (j->options->scheme == FP8_SCHEME_DYNAMIC) {
        FP8_TRY(measure_channels(j, w, x));
        s = fp8_scale_of(s.amax);
    } else {
        j->host_pairs[0] = s.scale;
        j->host_pairs[1] = s.descale;
        FP8_TRY(upload_pairs(j, 1));
        FP8_TRY(fp8_measure_error(j->d, j->stats, x, w->entry->tensor.dtype, w->rows, w->cols,
                                  w->cols, FP8_DTYPE_E4M3, j->pairs, j->pairs + 1, j->workspace));
    }
    FP8_TRY(fp8_device_download(j->d, j->host, j->stats, sizeof *j->host));
    add_row(j, w->name, 1, &s);
done:
    return st;
}

static fp8_status report_weights(job *j) {
    const fp8_weights *all = &j->weights;
    fp8_weight_stage *stage = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_weight_stage_create(&stage, j->d, all));
    for (int64_t begin = 0, end; begin < all->count; begin = end) {
        end = fp8_weights_group_end(all, begin);
        FP8_TRY(fp8_weight_stage_load(stage, all, begin, end, j->options->allow_nonfinite));
        for (int64_t i = 0; i < end - begin; i++)
            FP8_TRY(measure_weight(j, &all->data[begin + i], fp8_weight_stage_data(stage, i),
                                   fp8_weight_stage_scale(stage, i)));
    }
done:
    fp8_weight_stage_destroy(stage);
    return st;
}

/* ---- activations -------------------------------------------------------------------------------
 */

/* 1 when the export writes a static scale for this point. */
static int is_scaled(const fp8_export_options *o, fp8_point point) {
    switch (point) {
    case FP8_POINT_Q: return o->attention != FP8_ATTENTION_NONE;
    case FP8_POINT_K:
    case FP8_POINT_V: return o->kv_fp8 || o->attention != FP8_ATTENTION_NONE;
    case FP8_POINT_QKV_INPUT:
    case FP8_POINT_O_INPUT:
    case FP8_POINT_UP_INPUT:
    case FP8_POINT_DOWN_INPUT:
    case FP8_POINT_SHARED_DOWN_INPUT: return o->scheme == FP8_SCHEME_TENSOR;
    default: return 0;
    }
}

static fp8_status measure_point(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    job *j = ctx;
    if (!is_scaled(j->options, point)) return FP8_OK;
    const int32_t slot = fp8_point_slot(j->points.num_layers, layer, point);
    const int64_t rows = x->shape[0], cols = fp8_tensor_count(x) / rows;
    return fp8_measure_error(j->d, j->stats + slot, x->data, x->dtype, rows, cols, cols,
                             FP8_DTYPE_E4M3, j->pairs + 2 * slot, j->pairs + 2 * slot + 1,
                             j->workspace);
}

static fp8_status tell(void *ctx, int64_t done, int64_t total) {
    const job *j = ctx;
    const fp8_progress *p = &j->calib->progress;
    if (!p->on || !p->on(p->ctx, "measuring", done, total)) return FP8_OK;
    return FP8_FAIL(FP8_ECANCELED, "report stopped after %lld of %lld steps", (long long)done,
                    (long long)total);
}

static fp8_status tell_layer(void *ctx, int64_t layer) {
    (void)layer;
    return tell(ctx, 0, 1);
}

/* Of a model that does not fit, `wave` steps together (0: one by one). */
static fp8_status run_steps(job *j, int64_t steps, int64_t wave) {
    const int64_t width = j->calib->batch + 1, room = wave ? wave : 1;
    fp8_batch *batches = malloc((size_t)room * sizeof *batches);
    fp8_tap *taps = malloc((size_t)room * sizeof *taps);
    int32_t *starts = malloc((size_t)(room * width) * sizeof *starts);
    fp8_status st = FP8_OK;

    if (!batches || !taps || !starts)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "steps of %lld samples", (long long)j->calib->batch));
    for (int64_t begin = 0, n; begin < steps; begin += n) {
        n = steps - begin < room ? steps - begin : room;
        for (int64_t i = 0; i < n; i++) {
            fp8_steps_batch(&batches[i], starts + i * width, j->samples, j->calib->batch,
                            begin + i);
            taps[i] = (fp8_tap){.on = measure_point, .ctx = j};
        }
        if (wave)
            FP8_TRY(fp8_model_forward_layers(j->model, batches, n, taps, tell_layer, j));
        else
            FP8_TRY(fp8_model_forward(j->model, batches, NULL, taps, FP8_LOGITS_NONE, NULL));
        FP8_TRY(tell(j, begin + n, steps));
    }
done:
    free(batches);
    free(taps);
    free(starts);
    return st;
}

static fp8_status report_activations(job *j, int64_t steps) {
    const int32_t num_slots = (int32_t)fp8_num_slots(j->points.num_layers);
    const int64_t all = fp8_steps_count(j->samples, j->calib->batch);
    const int64_t tokens = fp8_model_layers_tokens(j->model);
    int64_t wave = 0;
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < num_slots; i++) {
        j->host_pairs[2 * i] = j->scales[i].scale;
        j->host_pairs[2 * i + 1] = j->scales[i].descale;
    }
    FP8_TRY(upload_pairs(j, num_slots));
    FP8_TRY(fp8_device_fill(j->d, j->stats, 0, (size_t)num_slots * sizeof *j->stats));
    if (tokens) wave = tokens / (j->calib->batch * j->calib->seq);
    if (tokens && wave < 1) wave = 1;
    FP8_TRY(run_steps(j, steps < all ? steps : all, wave));
    for (int32_t i = 0; i < num_slots; i++) {
        FP8_TRY(fp8_device_download(j->d, j->host, j->stats + i, sizeof *j->host));
        if (j->host->count > 0)
            add_row(j, fp8_points_slot_name(&j->points, i), 0, &j->scales[i]);
    }
done:
    return st;
}

/* ---- the whole ---------------------------------------------------------------------------------
 */

static fp8_status allocate(job *j) {
    const size_t num_slots = fp8_num_slots(j->points.num_layers);
    int64_t channels = (int64_t)num_slots;
    size_t n;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->weights.count; i++)
        if (j->weights.data[i].channels > channels) channels = j->weights.data[i].channels;
    n = (size_t)channels;
    j->rows = calloc((size_t)j->weights.count + num_slots, sizeof *j->rows);
    j->host = malloc(sizeof *j->host);
    j->host_pairs = malloc(2 * n * sizeof *j->host_pairs);
    j->host_channels = malloc(n * sizeof *j->host_channels);
    if (!j->rows || !j->host || !j->host_pairs || !j->host_channels)
        return FP8_FAIL(FP8_ENOMEM, "report");
    FP8_TRY(fp8_device_alloc(j->d, (void **)&j->stats, num_slots * sizeof *j->stats));
    FP8_TRY(fp8_device_alloc(j->d, (void **)&j->pairs, 2 * n * sizeof *j->pairs));
    FP8_TRY(fp8_device_alloc(j->d, (void **)&j->channels, n * sizeof *j->channels));
    FP8_TRY(fp8_device_alloc(j->d, &j->workspace, fp8_measure_error_workspace(j->d)));
done:
    return st;
}

static void drop(job *j) {
    fp8_device_free(j->d, j->stats);
    fp8_device_free(j->d, j->pairs);
    fp8_device_free(j->d, j->channels);
    fp8_device_free(j->d, j->workspace);
    free(j->rows);
    free(j->host);
    free(j->host_pairs);
    free(j->host_channels);
    free(j->scales);
    fp8_weights_free(&j->weights);
    fp8_points_free(&j->points);
}

static int worse_first(const void *a, const void *b) {
    const fp8_report_row *x = a, *y = b;
    const double dx = isnan(x->sqnr_db) ? INFINITY : x->sqnr_db;
    const double dy = isnan(y->sqnr_db) ? INFINITY : y->sqnr_db;
    if (dx != dy) return dx < dy ? -1 : 1;
    return strcmp(x->name, y->name);
}

fp8_status fp8_report_create(fp8_report *out, fp8_model *m, const fp8_checkpoint *source,
                             const fp8_record *record, const fp8_samples *samples,
                             const fp8_calib_options *calib, const fp8_export_options *options,
                             int64_t steps) {
    job j = {.d = fp8_model_device(m), .model = m, .samples = samples, .calib = calib,
             .options = options};
    fp8_status st = FP8_OK;

    *out = (fp8_report){0};
    FP8_TRY(fp8_points_create(&j.points, fp8_model_get_config(m), source));
    FP8_TRY(fp8_weights_of_model(&j.weights, &j.points, source));
    fp8_weights_find_resident(&j.weights, &j.points, m);
    FP8_TRY(allocate(&j));
    FP8_TRY(report_weights(&j));
    if (record && steps > 0) {
        FP8_TRY(fp8_steps_check(samples, calib));
        FP8_TRY(fp8_scales_create(&j.scales, record, source, &j.points, &options->recipe,
                                  options->clip));
        FP8_TRY(report_activations(&j, steps));
    }
    qsort(j.rows, (size_t)j.count, sizeof *j.rows, worse_first);
    *out = (fp8_report){j.rows, j.count};
    j.rows = NULL;
done:
    drop(&j);
    return st;
}

void fp8_report_free(fp8_report *r) {
    free(r->rows);
    *r = (fp8_report){0};
}

/* JSON has no infinity: an exact row's SQNR is null. */
static int add_number(cJSON *o, const char *key, double x) {
    return isfinite(x) ? cJSON_AddNumberToObject(o, key, x) != NULL
                       : cJSON_AddNullToObject(o, key) != NULL;
}

static int add_json_row(cJSON *array, const fp8_report_row *r) {
    cJSON *o = cJSON_CreateObject();
    if (!o) return 0;
    cJSON_AddItemToArray(array, o);
    return cJSON_AddStringToObject(o, "name", r->name) &&
           cJSON_AddStringToObject(o, "kind", r->is_weight ? "weight" : "activation") &&
           add_number(o, "sqnr_db", r->sqnr_db) && add_number(o, "clipped", r->clipped) &&
           add_number(o, "p999_over_max", r->p999_over_max) &&
           add_number(o, "amax", (double)r->amax) &&
           add_number(o, "amax_without_first", (double)r->amax_without_first) &&
           add_number(o, "scale", (double)r->scale) &&
           add_number(o, "descale", (double)r->descale) &&
           add_number(o, "nonfinite", (double)r->nonfinite);
}

fp8_status fp8_report_json(char **out, const fp8_report *r) {
    cJSON *rows = cJSON_CreateArray();
    int ok = rows != NULL;

    for (int64_t i = 0; ok && i < r->count; i++) ok = add_json_row(rows, &r->rows[i]);
    *out = ok ? cJSON_Print(rows) : NULL;
    cJSON_Delete(rows);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "report of %lld rows", (long long)r->count);
}
