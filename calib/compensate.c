/* Compensated rounding of a whole model, a layer at a time, its inputs in the order of the forward:
 *
 *     two residual streams, all samples: of the BF16 model, and of the quantized one
 *     for each layer:  QKV input   H, C of both inputs -> q, k, v: weights that answer to what came
 *                                  before, rounded with compensation; scales of Q, K, V
 *                      O input     likewise, behind the attention of quantized Q, K, V
 *                      UP input    gate, up
 *                      DOWN input  down
 *                      both streams through the layer
 *
 * Every forward through a layer stops at the point it was made for. */
#include <stdlib.h>
#include <string.h>

#include "calib/compensate.h"
#include "calib/plain_model.h"
#include "calib/steps.h"
#include "calib/turn.h"
#include "core/log.h"

/* ---- forwards -------------------------------------------------------------------------------- */

static char *stream_at(const fp8_compensation *j, int which, int64_t step) {
    const int64_t token = j->samples->starts[step * j->calib->batch];
    return j->streams[which] + (size_t)(token * j->config->hidden_size) * fp8_dtype_size(j->type);
}

fp8_status fp8_compensation_run(fp8_compensation *j, int which, int64_t step, void *to,
                                const fp8_tap *tap) {
    fp8_batch batch;
    fp8_status st;

    fp8_steps_batch(&batch, j->starts, j->samples, j->calib->batch, step);
    st = fp8_model_forward_part(j->models[which], &batch, stream_at(j, which, step), to, j->layer,
                                  j->layer + 1, tap);
    return st == FP8_ECANCELED && tap ? FP8_OK : st;
}

static fp8_status embed(fp8_compensation *j) {
    fp8_batch batch;
    fp8_status st = FP8_OK;

    for (int64_t step = 0; step < j->steps; step++)
        for (int which = 0; which < 2; which++) {
            fp8_steps_batch(&batch, j->starts, j->samples, j->calib->batch, step);
            FP8_TRY(fp8_model_forward_part(j->models[which], &batch, NULL,
                                             stream_at(j, which, step), 0, 0, NULL));
        }
done:
    return st;
}

static fp8_status advance(fp8_compensation *j) {
    fp8_status st = FP8_OK;
    for (int64_t step = 0; step < j->steps; step++)
        for (int which = 0; which < 2; which++)
            FP8_TRY(fp8_compensation_run(j, which, step, stream_at(j, which, step), NULL));
done:
    return st;
}

typedef struct catcher {
    fp8_compensation *j;
    fp8_point point;
    int which;
} catcher;

/* The BF16 model's input is kept for the quantized model's, which comes next. */
static fp8_status catch_input(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    const catcher *c = ctx;
    fp8_compensation *j = c->j;
    const int target = j->how->target == FP8_ROUND_TO_OUTPUT;
    const size_t bytes = (size_t)fp8_tensor_count(x) * fp8_dtype_size(x->dtype);
    fp8_status st = FP8_OK;

    (void)layer;
    if (point != c->point) return FP8_OK;
    FP8_TRY(c->which == FP8_DENSE ? fp8_device_copy(j->d, j->x, x->data, bytes)
                                  : fp8_hessian_add(j->hessian, target ? j->x : NULL, x->data,
                                                    x->shape[0]));
    st = FP8_ECANCELED;
done:
    return st;
}

/* H and C of an input, over all steps. */
static fp8_status gather(fp8_compensation *j, fp8_point point) {
    const int first = j->how->target == FP8_ROUND_TO_OUTPUT ? FP8_DENSE : FP8_CODED;
    fp8_status st = FP8_OK;

    for (int64_t step = 0; step < j->steps; step++)
        for (int which = first; which <= FP8_CODED; which++) {
            catcher c = {j, point, which};
            const fp8_tap tap = {.on = catch_input, .ctx = &c};
            FP8_TRY(fp8_compensation_run(j, which, step, NULL, &tap));
        }
done:
    return st;
}

/* ---- a layer --------------------------------------------------------------------------------- */

/* Whether weight i takes part: it reads `point` of this layer, and what that shows are inputs of
 * its own. Of an expert's down Linear it does not: each token brings those of all its experts. */
static int takes_part(const fp8_compensation *j, int64_t i, fp8_point point) {
    const fp8_linear_info *l = &j->points.linears[i];
    const int blocks_turned = j->options->scheme == FP8_SCHEME_BLOCK && l->in_out;
    return l->layer == j->layer && l->input == point && !blocks_turned &&
           !j->weights.data[i].keep &&
           !(l->kind == FP8_LINEAR_DOWN && l->expert >= 0);
}

/* The scale of an input of least error in what the Linears make of it, their columns taken by
 * themselves. */
static fp8_status search_input(fp8_compensation *j, fp8_point point, int64_t in) {
    const int32_t slot = fp8_point_slot(j->points.num_layers, (int32_t)j->layer, point);
    fp8_rows rows = {.point = point};
    double *energy = calloc((size_t)in, sizeof *energy);
    fp8_scale *s = &j->out->scales[slot];
    fp8_status st = FP8_OK;

    if (!energy) return FP8_FAIL(FP8_ENOMEM, "scale of %lld inputs", (long long)in);
    for (int64_t i = 0; i < j->weights.count; i++)
        if (takes_part(j, i, point))
            FP8_TRY(fp8_compensation_column_energy(energy, &j->weights.data[i],
                                                   fp8_device_pool(j->d)));
    FP8_TRY(fp8_compensation_rows(j, FP8_CODED, &rows, 1, 0));
    FP8_TRY(fp8_search_scale(s, &rows, energy, s->amax, &j->options->recipe,
                             fp8_device_pool(j->d)));
done:
    free(rows.x);
    free(energy);
    return st;
}

/* All Linears of the layer that read `point`. */
static fp8_status round_point(fp8_compensation *j, fp8_point point) {
    const int32_t slot = fp8_point_slot(j->points.num_layers, (int32_t)j->layer, point);
    const int is_static = j->options->scheme == FP8_SCHEME_TENSOR;
    const fp8_gptq_options options = {j->how->damping, j->how->act_order};
    const double ridge = j->how->target == FP8_ROUND_TO_OUTPUT
                             ? j->how->ridge / (double)j->samples->num_ids : 0;
    fp8_solver *solver = NULL;
    int64_t first = 0, in;
    float descale;
    fp8_status st = FP8_OK;

    while (first < j->weights.count && !takes_part(j, first, point)) first++;
    if (first == j->weights.count) return FP8_OK;
    in = j->points.linears[first].in;
    if (is_static && j->how->search_scales) FP8_TRY(search_input(j, point, in));
    descale = is_static ? j->out->scales[slot].descale : 0;
    FP8_TRY(fp8_hessian_begin(j->hessian, in, j->options->scheme, is_static ? descale : 1));
    FP8_TRY(gather(j, point));
    FP8_TRY(fp8_solver_create(&solver, j->d, j->hessian, in, &options, ridge));
    for (int64_t begin = first, end; begin < j->weights.count; begin = end) {
        end = fp8_weights_group_end(&j->weights, begin);
        if (takes_part(j, begin, point))
            FP8_TRY(fp8_compensation_round(j, begin, end, solver, descale));
    }
done:
    fp8_solver_destroy(solver);
    return st;
}

/* Queries and keys may be turned where RoPE is the only thing between their weights and the
 * products: no bias that would have to turn along, no norm of the heads. */
static int can_turn(const fp8_compensation *j) {
    const fp8_model_config *c = j->config;
    return j->how->turn && j->options->attention != FP8_ATTENTION_NONE && !c->qkv_bias &&
           !c->qk_norm && c->rope.type != FP8_ROPE_NONE && c->rotary_dim >= 2;
}

static fp8_status find_turn(fp8_compensation *j) {
    const fp8_model_config *c = j->config;
    fp8_rows rows[2] = {{.point = FP8_POINT_Q}, {.point = FP8_POINT_K}};
    fp8_status st = FP8_OK;

    if (!j->angles) return FP8_OK;
    FP8_TRY(fp8_compensation_rows(j, FP8_DENSE, rows, 2, 0));
    FP8_TRY(fp8_turn_angles(j->angles, rows[0].x, rows[1].x, rows[0].count, c->num_heads,
                            c->num_kv_heads, c->head_dim, c->rotary_dim / 2,
                            fp8_device_pool(j->d)));
done:
    free(rows[0].x);
    free(rows[1].x);
    return st;
}

enum { POINTS = 5 };

/* Points [0, done) of the layer are done. */
static fp8_status tell(const fp8_compensation *j, int64_t done) {
    const fp8_progress *p = &j->calib->progress;
    const int64_t layers = j->config->num_layers, now = j->layer * POINTS + done;

    if (!p->on || !p->on(p->ctx, "rounding", now, layers * POINTS)) return FP8_OK;
    return FP8_FAIL(FP8_ECANCELED, "compensated rounding stopped in layer %lld of %lld",
                    (long long)j->layer, (long long)layers);
}

static fp8_status round_layer(fp8_compensation *j) {
    static const fp8_point points[POINTS] = {FP8_POINT_QKV_INPUT, FP8_POINT_O_INPUT,
                                             FP8_POINT_UP_INPUT, FP8_POINT_DOWN_INPUT,
                                             FP8_POINT_SHARED_DOWN_INPUT};
    const fp8_export_options *o = j->options;
    const int kv = o->kv_fp8 || o->attention != FP8_ATTENTION_NONE;
    fp8_status st = FP8_OK;

    FP8_TRY(find_turn(j));
    for (int64_t i = 0; i < POINTS; i++) {
        FP8_TRY(round_point(j, points[i]));
        if (i == 0 && kv && (j->how->search_scales || j->angles)) FP8_TRY(fp8_compensation_kv(j));
        if (i == POINTS - 1) FP8_TRY(advance(j));
        FP8_TRY(tell(j, i + 1));
    }
done:
    return st;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static fp8_status check(const fp8_compensation *j) {
    const fp8_rounding_options *how = j->how;
    if (!(how->damping > 0 && how->damping <= 1e6) || !(how->ridge > 0 && how->ridge <= 1e12))
        return FP8_FAIL(FP8_EINVAL, "compensated rounding: damping %g, ridge %g: expected more "
                        "than 0", how->damping, how->ridge);
    if (j->options->scheme == FP8_SCHEME_NONE)
        return FP8_FAIL(FP8_EINVAL, "compensated rounding: scheme none rounds no weights");
    if (j->options->scheme == FP8_SCHEME_MX)
        return FP8_FAIL(FP8_EINVAL, "compensated rounding: scheme mxfp8 is rounded plainly");
    return fp8_steps_check(j->samples, j->calib);
}

static fp8_status create_result(fp8_compensation *j, const fp8_record *record) {
    fp8_rounding *r = calloc(1, sizeof *r);
    fp8_scale *scales = NULL;
    fp8_status st = FP8_OK;

    j->out = r;
    if (!r) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    r->count = j->weights.count;
    r->num_slots = (int64_t)fp8_num_slots(j->points.num_layers);
    r->weights = calloc((size_t)r->count + 1, sizeof *r->weights);
    r->scales = calloc((size_t)r->num_slots, sizeof *r->scales);
    if (!r->weights || !r->scales) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    if (!record) return FP8_OK;
    FP8_TRY(fp8_scales_create(&scales, record, j->source, &j->points, &j->options->recipe,
                              j->options->clip));
    memcpy(r->scales, scales, (size_t)r->num_slots * sizeof *scales);
done:
    free(scales);
    return st;
}

static fp8_status allocate(fp8_compensation *j) {
    const fp8_model_config *c = j->config;
    const int64_t tokens = j->calib->batch * j->calib->seq;
    const size_t size = fp8_dtype_size(j->type);
    int64_t widest = 1;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < j->points.num_linears; i++)
        if (j->points.linears[i].in > widest) widest = j->points.linears[i].in;
    for (int i = 0; i < 2; i++)
        FP8_TRY(fp8_device_alloc(j->d, (void **)&j->streams[i],
                                 (size_t)(j->samples->num_ids * c->hidden_size) * size));
    FP8_TRY(fp8_device_alloc(j->d, &j->x, (size_t)(tokens * widest) * size));
    FP8_TRY(fp8_device_alloc(j->d, (void **)&j->slots, 3 * sizeof *j->slots));
    FP8_TRY(fp8_hessian_create(&j->hessian, j->d, j->type, widest, tokens));
    j->starts = malloc((size_t)(j->calib->batch + 1) * sizeof *j->starts);
    if (can_turn(j)) j->angles = calloc((size_t)(c->num_kv_heads * c->head_dim), sizeof *j->angles);
    if (!j->starts || (can_turn(j) && !j->angles))
        st = FP8_FAIL(FP8_ENOMEM, "compensated rounding");
done:
    return st;
}

static void drop(fp8_compensation *j) {
    fp8_model_destroy(j->models[FP8_CODED]);
    fp8_checkpoint_close(j->plain);
    fp8_hessian_destroy(j->hessian);
    fp8_device_free(j->d, j->streams[0]);
    fp8_device_free(j->d, j->streams[1]);
    fp8_device_free(j->d, j->x);
    fp8_device_free(j->d, j->slots);
    free(j->starts);
    free(j->angles);
    fp8_weights_free(&j->weights);
    fp8_points_free(&j->points);
}

static fp8_status round_layers(fp8_compensation *j) {
    fp8_status st = FP8_OK;

    FP8_TRY(embed(j));
    for (j->layer = 0; j->layer < j->config->num_layers; j->layer++) FP8_TRY(round_layer(j));
done:
    return st;
}

fp8_status fp8_rounding_create(fp8_rounding **out, fp8_model *m, const fp8_checkpoint *source,
                               const char *scratch, const fp8_record *record,
                               const fp8_samples *samples, const fp8_calib_options *calib,
                               const fp8_export_options *options,
                               const fp8_rounding_options *how) {
    fp8_compensation j = {.d = fp8_model_device(m), .models = {m, NULL}, .source = source,
                          .samples = samples, .calib = calib, .options = options, .how = how,
                          .config = fp8_model_get_config(m)};
    const fp8_model_options as_m = {.compute = fp8_model_compute(m),
                                    .max_tokens = calib->batch * calib->seq};
    fp8_status st = FP8_OK, removed = FP8_OK;

    *out = NULL;
    j.type = fp8_model_compute(m) == FP8_COMPUTE_F32 ? FP8_DTYPE_F32 : FP8_DTYPE_BF16;
    FP8_TRY(check(&j));
    j.steps = fp8_steps_count(samples, calib->batch);
    FP8_TRY(fp8_points_create(&j.points, j.config, source));
    FP8_TRY(fp8_weights_of_model(&j.weights, &j.points, source));
    FP8_TRY(fp8_weights_keep(&j.weights, options->keep, options->num_keep));
    FP8_TRY(create_result(&j, record));
    FP8_TRY(fp8_plain_model_load(&j.plain, &j.models[FP8_CODED], j.d, scratch, source, record,
                                 options, &as_m));
    FP8_TRY(allocate(&j));
    FP8_TRY(round_layers(&j));
    *out = j.out;
    j.out = NULL;
done:
    drop(&j); /* the quantized model reads the codes of j.out */
    fp8_rounding_destroy(j.out);
    if (fp8_path_exists(scratch)) removed = fp8_folder_remove(scratch);
    return st != FP8_OK ? st : removed;
}

fp8_status fp8_rounding_search(fp8_rounding **out, fp8_device *d, const fp8_model_config *config,
                               const fp8_checkpoint *source, const fp8_record *record,
                               const fp8_export_options *options) {
    fp8_compensation j = {.d = d, .source = source, .options = options, .config = config};
    fp8_status st = FP8_OK;

    *out = NULL;
    if (options->scheme == FP8_SCHEME_MX)
        return FP8_FAIL(FP8_EINVAL, "scheme mxfp8 is rounded plainly");
    if (options->scheme == FP8_SCHEME_NONE)
        return FP8_FAIL(FP8_EINVAL, "scales of weights: scheme none quantizes none");
    FP8_TRY(fp8_points_create(&j.points, config, source));
    FP8_TRY(fp8_weights_of_model(&j.weights, &j.points, source));
    FP8_TRY(fp8_weights_keep(&j.weights, options->keep, options->num_keep));
    FP8_TRY(create_result(&j, record));
    for (int64_t begin = 0, end; begin < j.weights.count; begin = end) {
        const fp8_weight *w = &j.weights.data[begin];
        end = fp8_weights_group_end(&j.weights, begin);
        if (w->keep || (options->scheme == FP8_SCHEME_BLOCK && w->in_out)) continue;
        FP8_TRY(fp8_compensation_nearest(&j, begin, end));
    }
    *out = j.out;
    j.out = NULL;
done:
    drop(&j);
    fp8_rounding_destroy(j.out);
    return st;
}

void fp8_rounding_destroy(fp8_rounding *r) {
    if (!r) return;
    for (int64_t i = 0; r->weights && i < r->count; i++) {
        free(r->weights[i].codes);
        free(r->weights[i].descales);
    }
    free(r->weights);
    free(r->scales);
    free(r);
}

double fp8_rounding_loss(const fp8_rounding *r) {
    return r->num_rounded ? r->loss / (double)r->num_rounded : 1;
}
