#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"
#include "calib/compensate.h"
#include "calib/export_background.h"
#include "calib/export_files.h"
#include "core/log.h"

/* One export under way. `source` and what `options` points to are the caller's. */
struct fp8_export_job {
    const fp8_checkpoint *source;
    const fp8_record *record; /* NULL until it is there, if ever */
    int has_record;
    fp8_export_options options;
    fp8_device *d;
    char *out;
    char *config_path; /* NULL: a lone file */
    fp8_file config_text;
    fp8_model_config config;
    fp8_points points;
    fp8_scale *scales; /* [num_slots]: the plan points into them, the record fills them */
    float *heads;      /* likewise the descales of heads */
    fp8_weights weights;
    fp8_export_plan plan;
    fp8_quant_config quant;
    fp8_checkpoint_writer *writer;
    fp8_export_background *background; /* NULL: nothing is written yet */
};
typedef struct fp8_export_job job;

static fp8_status find_config(job *j) {
    const char *given = j->options.config_json;
    if (!given) return fp8_checkpoint_sibling(&j->config_path, j->source, "config.json");
    j->config_path = fp8_path_join(NULL, given);
    return j->config_path ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "path of %s", given);
}

static fp8_status check_options(const job *j) {
    const fp8_export_options *o = &j->options;
    const int wants_record = o->scheme == FP8_SCHEME_TENSOR || o->kv_fp8 ||
                             o->attention != FP8_ATTENTION_NONE;
    const fp8_dialect_row *row = fp8_dialect_get(o->dialect);

    if (o->scheme == FP8_SCHEME_NONE && !o->kv_fp8)
        return FP8_FAIL(FP8_EINVAL, "scheme none quantizes nothing: expected tensor, dynamic, "
                        "tensor-dynamic, block or mxfp8");
    if (o->attention != FP8_ATTENTION_NONE && !row->q_descale)
        return FP8_FAIL(FP8_EINVAL, "dialect %s has no names for query scales: expected attention "
                        "none, found %s", row->name, fp8_attention_mode_name(o->attention));
    if (o->ue8m0 && o->scheme != FP8_SCHEME_BLOCK)
        return FP8_FAIL(FP8_EINVAL, "power-of-two scales go with scheme block, found %s",
                        fp8_scheme_name(o->scheme));
    if (o->bf16_scales && (o->ue8m0 || o->rounding || o->scheme == FP8_SCHEME_MX))
        return FP8_FAIL(FP8_EINVAL, "BF16 scales do not go with powers of two, nor with codes that "
                        "were rounded with compensation");
    if (o->kv_per_head && (!o->kv_fp8 || o->rounding || !j->config_path))
        return FP8_FAIL(FP8_EINVAL, "KV scales by head need FP8 keys and values of a model, "
                        "rounded to nearest");
    if (wants_record && !j->has_record)
        return FP8_FAIL(FP8_EINVAL, "static scales (scheme tensor, FP8 keys and values, FP8 "
                        "attention) need a calibration record; without one: scheme dynamic or "
                        "tensor-dynamic");
    if (j->config_path && (o->num_include || o->num_exclude))
        return FP8_FAIL(FP8_EINVAL, "include and exclude patterns are for a file without "
                        "config.json; found %s", j->config_path);
    if (!j->config_path && j->has_record)
        return FP8_FAIL(FP8_EINVAL, "%s: a calibration record, but no config.json beside it",
                        fp8_checkpoint_path(j->source));
    return fp8_export_check_output(j->out, j->source);
}

static fp8_status read_config(job *j) {
    fp8_status st = FP8_OK;
    FP8_TRY(fp8_file_map(&j->config_text, j->config_path));
    FP8_TRY(fp8_config_parse(&j->config, j->config_path, (const char *)j->config_text.data,
                             j->config_text.bytes));
    if (j->config.has_quantization)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "%s: already quantized: it has a quantization_config",
                      j->config_path);
done:
    return st;
}

/* Codes that compensated rounding has already: data to be copied. */
static fp8_status place_rounded(job *j) {
    const fp8_rounding *r = j->options.rounding;

    if (!r) return FP8_OK;
    if (r->count != j->weights.count)
        return FP8_FAIL(FP8_EINVAL, "compensated rounding of %lld weights, found %lld: it was of "
                        "another model", (long long)r->count, (long long)j->weights.count);
    for (int64_t i = 0; i < r->count; i++) {
        const int64_t at = j->plan.codes_at[i];
        if (!r->weights[i].codes || j->weights.data[i].keep) continue;
        j->plan.data[at] = r->weights[i].codes;
        j->plan.data[at + 1] = r->weights[i].descales;
    }
    return FP8_OK;
}

/* What is written, before anything is. */
static fp8_status decide(job *j, const fp8_model *m) {
    const fp8_export_options *o = &j->options;
    char *value = NULL; /* printed once before anything is written: whether it can be said at all */
    fp8_status st = FP8_OK;

    if (j->config_path) {
        FP8_TRY(read_config(j));
        FP8_TRY(fp8_points_create(&j->points, &j->config, j->source));
        FP8_TRY(fp8_weights_of_model(&j->weights, &j->points, j->source));
        if (j->config.multimodal)
            fp8_log(FP8_LOG_WARNING, "%s: a multimodal model: its text part is quantized, all else "
                    "(%d matrices) stays as it is", fp8_checkpoint_path(j->source),
                    (int)j->weights.num_ignore - 1);
    } else {
        FP8_TRY(fp8_weights_of_file(&j->weights, j->source, o));
    }
    FP8_TRY(fp8_weights_keep(&j->weights, o->keep, o->num_keep));
    if (o->kv_per_head) FP8_TRY(fp8_points_add_heads(&j->points, j->config.num_kv_heads));
    if (m && j->config_path) fp8_weights_find_resident(&j->weights, &j->points, m);
    if (o->scheme == FP8_SCHEME_NONE) fp8_weights_ignore_all(&j->weights);
    j->scales = calloc(fp8_points_num_slots(&j->points), sizeof *j->scales);
    j->heads = calloc(fp8_points_num_slots(&j->points), sizeof *j->heads);
    if (!j->scales || !j->heads) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "scales"));
    j->quant = (fp8_quant_config){
        .dialect = o->dialect, .scheme = o->scheme, .ue8m0 = o->ue8m0,
        .bf16_scales = o->bf16_scales,
        .kv_fp8 = o->kv_fp8 || o->attention != FP8_ATTENTION_NONE,
        .kv_per_head = o->kv_per_head, .attention = o->attention,
        .format = o->format, .ignore = j->weights.ignore, .num_ignore = j->weights.num_ignore};
    FP8_TRY(fp8_export_plan_create(&j->plan, j->source, &j->weights, &j->points, j->scales,
                                   j->heads, &j->quant));
    FP8_TRY(place_rounded(j));
    FP8_TRY(fp8_quant_config_print(&value, &j->quant));
done:
    free(value);
    return st;
}

static fp8_status create_writer(job *j) {
    const fp8_export_options *o = &j->options;
    const char *round = o->rounding && o->rounding->num_rounded ? "gptq" : "nearest";
    const fp8_st_pair ours[] = {{"format", "pt"},
                                {"fp8calib.attention", fp8_attention_mode_name(o->attention)},
                                {"fp8calib.format", fp8_fp8_format_name(o->format)},
                                {"fp8calib.round", round},
                                {"fp8calib.version", FP8_VERSION}};
    const fp8_checkpoint_writer_options how = {o->max_shard_bytes, o->force, j->has_record};

    return fp8_export_writer(&j->writer, j->out, j->source, j->plan.specs, j->plan.groups,
                             j->plan.count, ours, sizeof ours / sizeof *ours, &how);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Squares are quantized on the host whatever the device; codes that are there lie there. */
static int on_host(const job *j) {
    const fp8_export_options *o = &j->options;
    return fp8_device_place(j->d) == FP8_PLACE_CPU || o->scheme == FP8_SCHEME_BLOCK ||
           o->scheme == FP8_SCHEME_MX || o->bf16_scales || o->scheme == FP8_SCHEME_NONE ||
           o->rounding || o->num_keep > 0;
}

static fp8_weight_stream stream_of(job *j) {
    return (fp8_weight_stream){.plan = &j->plan,
                               .weights = &j->weights,
                               .writer = j->writer,
                               .d = j->d,
                               .scheme = j->options.scheme,
                               .ue8m0 = j->options.ue8m0,
                               .bf16_scales = j->options.bf16_scales,
                               .allow_nonfinite = j->options.allow_nonfinite,
                               .progress = &j->options.progress};
}

/* What is left to put when the record is there. */
static fp8_status put_scales(job *j) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->plan.count; i++) {
        const fp8_st_spec *spec = &j->plan.specs[i];
        size_t bytes = 0;
        if (!j->plan.from_record[i]) continue;
        FP8_TRY(fp8_shape_bytes(&bytes, spec->dtype, spec->shape, spec->ndim));
        FP8_TRY(fp8_checkpoint_writer_put(j->writer, i, j->plan.data[i], bytes));
    }
done:
    return st;
}

static fp8_status put_all(job *j) {
    fp8_weight_stream s;
    fp8_status st = FP8_OK;

    if (j->background) {
        FP8_TRY(fp8_export_background_join(j->background, &j->options.progress, j->plan.bytes));
        return put_scales(j);
    }
    FP8_TRY(create_writer(j));
    s = stream_of(j);
    st = on_host(j) ? fp8_weight_stream_run(&s) : fp8_export_ship(&s);
done:
    return st;
}

static fp8_status add_record(const job *j) {
    char *path = NULL;
    fp8_status st = FP8_OK;

    if (!j->record) return FP8_OK;
    path = fp8_path_join(fp8_checkpoint_writer_folder(j->writer), "calibration.safetensors");
    if (!path) return FP8_FAIL(FP8_ENOMEM, "path of the calibration record");
    st = fp8_record_save(j->record, path);
    free(path);
    return st;
}

static fp8_status fill_result(fp8_export_result *result, const job *j) {
    fp8_checkpoint *written = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_checkpoint_open(&written, j->out)); /* and so what was written is checked once */
    for (int64_t i = 0; j->options.scheme != FP8_SCHEME_NONE && i < j->weights.count; i++)
        result->linears += !j->weights.data[i].keep;
    result->source_bytes = fp8_checkpoint_bytes(j->source);
    result->output_bytes = fp8_checkpoint_bytes(written);
done:
    fp8_checkpoint_close(written);
    return st;
}

/* ---- the whole ------------------------------------------------------------------------------- */

fp8_status fp8_export_begin(fp8_export_job **out, const char *folder, const fp8_checkpoint *source,
                            fp8_device *d, const fp8_model *m, int has_record,
                            const fp8_export_options *options) {
    job *j = calloc(1, sizeof *j);
    fp8_weight_stream s;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!j) return FP8_FAIL(FP8_ENOMEM, "export");
    *j = (job){.source = source, .has_record = has_record, .options = *options, .d = d};
    j->out = strdup(folder);
    if (!j->out) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "name of %s", folder));
    FP8_TRY(find_config(j));
    FP8_TRY(check_options(j));
    FP8_TRY(decide(j, m));
    if (m && !on_host(j)) {
        FP8_TRY(create_writer(j));
        s = stream_of(j);
        FP8_TRY(fp8_export_background_start(&j->background, &s));
    }
    *out = j;
    j = NULL;
done:
    fp8_export_abort(j);
    return st;
}

/* The record's scales to where the plan points. */
static fp8_status take_record(job *j, const fp8_record *record) {
    const size_t base = fp8_num_slots(j->points.num_layers);
    fp8_scale *scales = NULL;
    fp8_status st = FP8_OK;

    if (!record != !j->has_record)
        return FP8_FAIL(FP8_EINVAL, "export: begun %s a record", record ? "without" : "with");
    if (!record) return FP8_OK;
    j->record = record;
    FP8_TRY(fp8_scales_create(&scales, record, j->source, &j->points, &j->options.recipe,
                              j->options.clip));
    memcpy(j->scales, scales, fp8_points_num_slots(&j->points) * sizeof *scales);
    if (j->options.rounding) memcpy(j->scales, j->options.rounding->scales, base * sizeof *scales);
    for (size_t i = base; i < fp8_points_num_slots(&j->points); i++)
        j->heads[i - base] = scales[i].descale;
done:
    free(scales);
    return st;
}

fp8_status fp8_export_finish(fp8_export_job *j, fp8_export_result *result,
                             const fp8_record *record) {
    fp8_checkpoint_writer *finished = NULL;
    fp8_status st = FP8_OK;

    *result = (fp8_export_result){0};
    FP8_TRY(take_record(j, record));
    FP8_TRY(put_all(j));
    FP8_TRY(fp8_export_config(j->writer, j->config_path, &j->quant));
    FP8_TRY(fp8_export_companions(j->writer, j->source));
    FP8_TRY(add_record(j));
    finished = j->writer;
    j->writer = NULL; /* the commit frees it whatever it returns */
    FP8_TRY(fp8_checkpoint_writer_commit(finished));
    FP8_TRY(fill_result(result, j));
done:
    fp8_export_abort(j);
    return st;
}

void fp8_export_abort(fp8_export_job *j) {
    if (!j) return;
    fp8_export_background_stop(j->background);
    fp8_checkpoint_writer_abort(j->writer);
    fp8_export_plan_free(&j->plan);
    fp8_weights_free(&j->weights);
    fp8_points_free(&j->points);
    fp8_file_unmap(&j->config_text);
    free(j->scales);
    free(j->heads);
    free(j->config_path);
    free(j->out);
    free(j);
}

fp8_status fp8_export(fp8_export_result *result, const char *out, const fp8_checkpoint *source,
                      fp8_device *d, const fp8_record *record, const fp8_export_options *options) {
    job *j = NULL;
    fp8_status st = FP8_OK;

    *result = (fp8_export_result){0};
    FP8_TRY(fp8_export_begin(&j, out, source, d, NULL, record != NULL, options));
    st = fp8_export_finish(j, result, record);
done:
    return st;
}
