#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <zlib.h>

#include "calib/calib.h"
#include "calib/observer.h"
#include "calib/points.h"
#include "calib/steps.h"
#include "core/log.h"

enum { SAVE_SECONDS = 30 }; /* what an interruption by the system may cost at most */

/* One calibration under way. */
typedef struct run {
    fp8_model *model;
    const fp8_samples *samples;
    const fp8_calib_options *options;
    fp8_points points;
    fp8_observer *observer;
    fp8_record *record;
    int32_t *starts; /* [batch + 1] */
    int canceled;
} run;

static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* JSON text of all that makes the history, besides the source; cJSON_free(). */
static fp8_status make_recipe(char **out, const fp8_samples *s, const fp8_calib_options *options,
                              fp8_compute compute) {
    uLong crc = crc32_z(0, (const Bytef *)s->ids, (z_size_t)s->num_ids * sizeof *s->ids);
    cJSON *json = cJSON_CreateObject();
    const char *name = options->data_name ? options->data_name : "";

    crc = crc32_z(crc, (const Bytef *)s->starts, (z_size_t)(s->count + 1) * sizeof *s->starts);
    *out = NULL;
    if (cJSON_AddStringToObject(json, "tool", "fp8calib " FP8_VERSION) &&
        cJSON_AddStringToObject(json, "data", name) &&
        cJSON_AddNumberToObject(json, "data_crc32", (double)crc) &&
        cJSON_AddNumberToObject(json, "samples", (double)s->count) &&
        cJSON_AddNumberToObject(json, "tokens", (double)s->num_ids) &&
        cJSON_AddNumberToObject(json, "batch", (double)options->batch) &&
        cJSON_AddNumberToObject(json, "seq", (double)options->seq) &&
        cJSON_AddStringToObject(json, "compute", compute == FP8_COMPUTE_F32 ? "fp32" : "bf16") &&
        (!options->histograms || cJSON_AddTrueToObject(json, "histograms")))
        *out = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "calibration recipe");
}

/* Takes up the record at record_path in place of the new one, where there is one to take up. */
static fp8_status resume(run *r) {
    const char *path = r->options->record_path;
    fp8_record *old = NULL;
    fp8_status st = FP8_OK;

    if (!path || !r->options->resume || !fp8_path_exists(path)) return FP8_OK;
    FP8_TRY(fp8_record_load(&old, path));
    FP8_TRY(fp8_record_check(old, r->record, path));
    fp8_record_destroy(r->record);
    r->record = old;
    old = NULL;
done:
    fp8_record_destroy(old);
    return st;
}

static fp8_status save(const run *r) {
    const char *path = r->options->record_path;
    return path ? fp8_record_save(r->record, path) : FP8_OK;
}

static fp8_status check_finite(const run *r, const fp8_amax_slot *row) {
    if (r->options->allow_nonfinite) return FP8_OK;
    for (int32_t i = 0; i < (int32_t)fp8_num_slots(r->points.num_layers); i++)
        if (row[i].nonfinite > 0)
            return FP8_FAIL(FP8_EDATA, "%s: %u values are NaN or infinite in calibration step %lld",
                            fp8_points_slot_name(&r->points, i), row[i].nonfinite,
                            (long long)r->record->steps);
    return FP8_OK;
}

static fp8_status launch(run *r, int64_t step) {
    fp8_batch batch;
    fp8_steps_batch(&batch, r->starts, r->samples, r->options->batch, step);
    r->record->tokens[step] = batch.num_tokens;
    return fp8_observer_launch(r->observer, r->model, &batch);
}

_Static_assert((int)FP8_RECORD_BINS == (int)FP8_ERROR_BINS, "a record keeps the bins as counted");

/* Heads have none of their own. */
static void add_counts(const run *r, const fp8_magnitudes *slots) {
    const int32_t end = (int32_t)fp8_num_slots(r->points.num_layers);

    for (int64_t i = 0; i < r->points.count && r->points.slots[i] < end; i++) {
        const uint64_t *bins = slots[r->points.slots[i]].bins;
        int64_t *sums = r->record->histograms + i * FP8_RECORD_BINS;
        for (int64_t b = 0; b < FP8_RECORD_BINS; b++) sums[b] += (int64_t)bins[b];
    }
}

/* Stores the row of the oldest step in flight. */
static fp8_status collect(run *r) {
    const fp8_progress *progress = &r->options->progress;
    fp8_record *rec = r->record;
    const fp8_amax_slot *row = NULL;
    const fp8_magnitudes *bins = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_observer_collect(r->observer, &row, &bins));
    FP8_TRY(check_finite(r, row));
    for (int64_t i = 0; i < r->points.count; i++) {
        const fp8_amax_slot *slot = &row[r->points.slots[i]];
        const int64_t at = i * rec->steps_total + rec->steps;
        rec->amax[at] = slot->amax;
        rec->amax_without_first[at] = slot->amax_without_first;
        rec->nonfinite[at] = slot->nonfinite;
    }
    if (bins) add_counts(r, bins);
    rec->steps++;
    if (progress->on && progress->on(progress->ctx, "calibrating", rec->steps, rec->steps_total))
        r->canceled = 1;
done:
    return st;
}

/* What was collected before a step failed is there to be resumed; the failure stays the one that is
 * told. */
static void keep_rows(const run *r, fp8_status why) {
    char message[512];

    snprintf(message, sizeof message, "%s", fp8_last_message());
    if (r->record->steps == 0 || !r->options->record_path) return;
    if (save(r) == FP8_OK)
        fp8_log(FP8_LOG_INFO, "%s: %lld of %lld steps are kept", r->options->record_path,
                (long long)r->record->steps, (long long)r->record->steps_total);
    else (void)FP8_FAIL(why, "%s", message);
}

/* Two steps in flight, so that the device never waits for the host; a cancelled run keeps the rows
 * of steps that were already launched. */
static fp8_status run_steps(run *r) {
    fp8_record *rec = r->record;
    int64_t launched = rec->steps;
    double saved = now_seconds();
    fp8_status st = FP8_OK;

    while (rec->steps < rec->steps_total) {
        const int64_t in_flight = launched - rec->steps;
        if (r->canceled && in_flight == 0) break;
        if (!r->canceled && launched < rec->steps_total && in_flight < FP8_OBSERVER_DEPTH) {
            FP8_TRY(launch(r, launched++));
            continue;
        }
        FP8_TRY(collect(r));
        if (now_seconds() - saved < SAVE_SECONDS) continue;
        FP8_TRY(save(r));
        saved = now_seconds();
    }
    FP8_TRY(save(r));
    if (rec->steps < rec->steps_total)
        st = FP8_FAIL(FP8_ECANCELED, "calibration stopped after %lld of %lld steps",
                      (long long)rec->steps, (long long)rec->steps_total);
done:
    if (st != FP8_OK && st != FP8_ECANCELED) keep_rows(r, st);
    return st;
}

static fp8_status count_layer(void *ctx, int64_t layer) {
    run *r = ctx;
    const fp8_progress *progress = &r->options->progress;
    const fp8_record *rec = r->record;

    (void)layer;
    if (!progress->on || !progress->on(progress->ctx, "calibrating", rec->steps, rec->steps_total))
        return FP8_OK;
    return FP8_FAIL(FP8_ECANCELED, "calibration stopped after %lld of %lld steps",
                    (long long)rec->steps, (long long)rec->steps_total);
}

/* Steps [record's, record's + count) through the layers together. */
static fp8_status run_wave(run *r, int64_t count, fp8_batch *batches, fp8_tap *taps,
                           int32_t *starts) {
    fp8_record *rec = r->record;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < count; i++) {
        fp8_steps_batch(&batches[i], starts + i * (r->options->batch + 1), r->samples,
                        r->options->batch, rec->steps + i);
        FP8_TRY(fp8_observer_open(r->observer, &taps[i], &batches[i]));
    }
    FP8_TRY(fp8_model_forward_layers(r->model, batches, count, taps, count_layer, r));
    for (int64_t i = 0; i < count; i++) FP8_TRY(fp8_observer_send(r->observer));
    for (int64_t i = 0; i < count; i++) {
        rec->tokens[rec->steps] = batches[i].num_tokens;
        FP8_TRY(collect(r));
    }
    FP8_TRY(save(r));
done:
    return st;
}

/* A model that does not fit: as many steps at a time as their hidden states leave room for. What is
 * stopped keeps the waves that were done. */
static fp8_status run_waves(run *r, int64_t wave) {
    const int64_t width = r->options->batch + 1;
    fp8_record *rec = r->record;
    fp8_batch *batches = malloc((size_t)wave * sizeof *batches);
    fp8_tap *taps = malloc((size_t)wave * sizeof *taps);
    int32_t *starts = malloc((size_t)(wave * width) * sizeof *starts);
    fp8_status st = FP8_OK;

    if (!batches || !taps || !starts)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%lld steps at a time", (long long)wave));
    while (rec->steps < rec->steps_total && !r->canceled) {
        const int64_t left = rec->steps_total - rec->steps;
        FP8_TRY(run_wave(r, left < wave ? left : wave, batches, taps, starts));
    }
    if (rec->steps < rec->steps_total)
        st = FP8_FAIL(FP8_ECANCELED, "calibration stopped after %lld of %lld steps",
                      (long long)rec->steps, (long long)rec->steps_total);
done:
    free(batches);
    free(taps);
    free(starts);
    return st;
}

/* Steps that go together; 0: each is a forward of its own. Histograms lie on the device, too. */
static int64_t wave_of(const run *r) {
    const int64_t tokens = fp8_model_layers_tokens(r->model);
    const int64_t most = r->options->histograms ? 8 : r->record->steps_total;
    const int64_t wave = tokens / (r->options->batch * r->options->seq);

    if (tokens == 0) return 0;
    return wave < 1 ? 1 : wave < most ? wave : most;
}

/* Experts that no token chose: the scale of what their down Linear reads is that of the others. */
static void note_experts(const fp8_model *m) {
    const fp8_model_config *c = fp8_model_get_config(m);

    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const int64_t *tokens = fp8_model_expert_tokens(m, layer);
        int64_t least = INT64_MAX, idle = 0;
        for (int64_t e = 0; tokens && e < c->num_experts; e++) {
            least = tokens[e] < least ? tokens[e] : least;
            idle += tokens[e] == 0;
        }
        if (!tokens) continue;
        if (idle)
            fp8_log(FP8_LOG_WARNING, "layer %lld: %lld of %lld experts saw no token: they take the "
                    "input scales of the others; more data would reach them", (long long)layer,
                    (long long)idle, (long long)c->num_experts);
        else fp8_log(FP8_LOG_INFO, "layer %lld: every expert saw %lld tokens or more",
                     (long long)layer, (long long)least);
    }
}

fp8_status fp8_calibrate(fp8_record **out, fp8_model *m, const fp8_checkpoint *source,
                         const fp8_samples *samples, const fp8_calib_options *options) {
    run r = {.model = m, .samples = samples, .options = options};
    char *recipe = NULL;
    int64_t wave;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (fp8_model_get_quant(m)->scheme != FP8_SCHEME_NONE) {
        st = FP8_FAIL(FP8_EUNSUPPORTED, "%s: already quantized", fp8_checkpoint_path(source));
        goto done;
    }
    FP8_TRY(fp8_steps_check(samples, options));
    FP8_TRY(make_recipe(&recipe, samples, options, fp8_model_compute(m)));
    FP8_TRY(fp8_points_create(&r.points, fp8_model_get_config(m), source));
    if (options->kv_heads)
        FP8_TRY(fp8_points_add_heads(&r.points, fp8_model_get_config(m)->num_kv_heads));
    FP8_TRY(fp8_record_create(&r.record, r.points.names, r.points.count,
                              fp8_steps_count(samples, options->batch), recipe));
    if (options->histograms) FP8_TRY(fp8_record_add_histograms(r.record));
    FP8_TRY(fp8_source_identify(r.record, source));
    FP8_TRY(resume(&r));
    r.starts = malloc((size_t)(options->batch + 1) * sizeof *r.starts);
    if (!r.starts) {
        st = FP8_FAIL(FP8_ENOMEM, "a step of %lld samples", (long long)options->batch);
        goto done;
    }
    wave = wave_of(&r);
    FP8_TRY(fp8_observer_create(&r.observer, fp8_model_device(m), r.points.num_layers,
                                r.points.kv_heads, fp8_model_compute(m),
                                options->batch * options->seq,
                                wave ? wave : FP8_OBSERVER_DEPTH, options->histograms));
    FP8_TRY(wave ? run_waves(&r, wave) : run_steps(&r));
    note_experts(m);
    *out = r.record;
    r.record = NULL;
done:
    fp8_observer_destroy(r.observer);
    fp8_record_destroy(r.record);
    fp8_points_free(&r.points);
    free(r.starts);
    cJSON_free(recipe);
    return st;
}
