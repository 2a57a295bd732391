#include "calib/scales.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "calib/histogram.h"
#include "core/log.h"

fp8_scale fp8_scale_of(float amax) {
    const fp8_recipe plain = {FP8_AMAX_MAX, 0, 1};
    fp8_scale s = {.amax = amax, .amax_without_first = amax, .scale = 1, .descale = 1};
    fp8_recipe_scale(&plain, FP8_DTYPE_E4M3, amax, &s.scale, &s.descale);
    return s;
}

/* Bytes and fingerprint alone: a copy of the source has another time, and is still the source. */
static fp8_status check_record(const fp8_record *r, const fp8_checkpoint *source) {
    const uint64_t bytes = fp8_checkpoint_bytes(source);
    uint32_t crc = 0;
    fp8_status st = fp8_checkpoint_fingerprint(source, &crc);

    if (st != FP8_OK) return st;
    if (r->source_bytes != bytes || r->source_crc32 != crc)
        return FP8_FAIL(FP8_EDATA, "calibration record: of another checkpoint than %s: expected "
                        "%" PRIu64 " bytes, CRC32 %08x, found %" PRIu64 ", %08x",
                        fp8_checkpoint_path(source), bytes, crc, r->source_bytes,
                        r->source_crc32);
    if (r->steps < 1 || r->steps != r->steps_total)
        return FP8_FAIL(FP8_EDATA, "calibration record: only %lld of %lld steps are done: resume "
                        "it first", (long long)r->steps, (long long)r->steps_total);
    return FP8_OK;
}

/* Index of a name; `hint` is where it is when the record was made from these points. -1: absent. */
static int64_t find_point(const fp8_record *r, const char *name, int64_t hint) {
    if (hint < r->num_points && strcmp(r->points[hint], name) == 0) return hint;
    for (int64_t i = 0; i < r->num_points; i++)
        if (strcmp(r->points[i], name) == 0) return i;
    return -1;
}

static float cut_by(fp8_clip rule, const int64_t *bins, const fp8_recipe *recipe, float amax) {
    switch (rule.rule) {
    case FP8_CLIP_PERCENTILE: return fp8_histogram_cut(bins, rule.percentile);
    case FP8_CLIP_MSE: return fp8_histogram_mse(bins, recipe, amax);
    case FP8_CLIP_ENTROPY: return fp8_histogram_entropy(bins, recipe, amax);
    case FP8_CLIP_NONE: break;
    }
    return amax;
}

/* Takes the rule's value in place of s->amax where that lowers the noise for certain. */
static void clip_scale(fp8_scale *s, const int64_t *bins, const fp8_recipe *recipe, fp8_clip clip) {
    const float cut = cut_by(clip, bins, recipe, s->amax), before[2] = {s->scale, s->descale};
    float after[2] = {1, 1};

    if (cut <= 0 || cut >= s->amax) return;
    fp8_recipe_scale(recipe, FP8_DTYPE_E4M3, cut, &after[0], &after[1]);
    if (!(fp8_histogram_gain(bins, before, after) > 0)) return;
    s->amax = cut;
    s->scale = after[0];
    s->descale = after[1];
    s->clipped = 1;
}

fp8_status fp8_scale_of_point(fp8_scale *out, const fp8_record *record, int64_t point,
                              const fp8_recipe *recipe, fp8_clip clip) {
    const int64_t row = point * record->steps_total;
    fp8_scale s = {.scale = 1, .descale = 1};

    *out = s;
    if (clip.rule == FP8_CLIP_PERCENTILE && !(clip.percentile > 0 && clip.percentile <= 100))
        return FP8_FAIL(FP8_EINVAL, "percentile %g: expected more than 0, at most 100",
                        clip.percentile);
    if (clip.rule != FP8_CLIP_NONE && !record->histograms)
        return FP8_FAIL(FP8_EDATA, "calibration record: no histograms to read a clip from: "
                        "calibrate with histograms first");
    s.amax = fp8_recipe_amax(recipe, record->amax + row, record->steps);
    s.amax_without_first =
        fp8_recipe_amax(recipe, record->amax_without_first + row, record->steps);
    for (int64_t step = 0; step < record->steps; step++)
        s.nonfinite += record->nonfinite[row + step];
    fp8_recipe_scale(recipe, FP8_DTYPE_E4M3, s.amax, &s.scale, &s.descale);
    if (s.amax == 0)
        fp8_log(FP8_LOG_WARNING, "%s: only zeros were seen: its scale stays 1",
                record->points[point]);
    if (clip.rule != FP8_CLIP_NONE)
        clip_scale(&s, record->histograms + point * FP8_RECORD_BINS, recipe, clip);
    *out = s;
    return FP8_OK;
}

fp8_status fp8_scales_create(fp8_scale **out, const fp8_record *record,
                             const fp8_checkpoint *source, const fp8_points *points,
                             const fp8_recipe *recipe, fp8_clip clip) {
    fp8_scale *scales = calloc(fp8_points_num_slots(points), sizeof *scales);
    const int32_t heads = (int32_t)fp8_num_slots(points->num_layers);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!scales) return FP8_FAIL(FP8_ENOMEM, "calibration scales");
    FP8_TRY(check_record(record, source));
    for (int64_t i = 0; i < points->count; i++) {
        const int64_t at = find_point(record, points->names[i], i);
        if (at < 0) {
            st = FP8_FAIL(FP8_EDATA, "calibration record: no point '%s'%s", points->names[i],
                          points->slots[i] < heads ? ""
                          : ": calibrate with 'run --kv-heads' for scales by head");
            goto done;
        }
        FP8_TRY(fp8_scale_of_point(&scales[points->slots[i]], record, at, recipe,
                                   points->slots[i] < heads ? clip : (fp8_clip){0}));
    }
    *out = scales;
    scales = NULL;
done:
    free(scales);
    return st;
}
