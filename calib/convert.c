/* One FP8 dialect into another, or into BF16: tensors stream from the source's mapping in its
 * order, a weight followed by its scales. */
#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"
#include "calib/convert_source.h"
#include "calib/export_files.h"
#include "calib/requantize.h"
#include "core/half.h"

/* What tensor i of the output is made of. */
typedef struct item {
    enum { ITEM_COPY, ITEM_CODES, ITEM_DESCALES, ITEM_INPUT, ITEM_KV } kind;
    const void *data; /* COPY */
    int64_t at;       /* weight or KV scale */
} item;

typedef struct job {
    fp8_convert_source s;
    const fp8_convert_options *options;
    const fp8_dialect_row *to;
    fp8_pool *pool;
    fp8_quant_config quant; /* of the output; its list points into the source's or the arena */
    fp8_st_spec *specs;
    int64_t *groups;
    item *items;
    int64_t count;
    size_t bytes, done_bytes;
    float *values, *descales, *group_amax; /* group_amax [weights]: -1 until it is known */
    void *codes;
    fp8_checkpoint_writer *writer;
    fp8_convert_result *result;
} job;

/* ---- what is written ------------------------------------------------------------------------- */

/* Schemes in the order of what they keep, for dialects that lack the source's. */
static fp8_scheme nearest(fp8_dialect to, fp8_scheme from) {
    static const fp8_scheme order[FP8_NUM_SCHEMES][3] = {
        [FP8_SCHEME_NONE] = {FP8_SCHEME_NONE, FP8_SCHEME_NONE, FP8_SCHEME_NONE},
        [FP8_SCHEME_TENSOR] = {FP8_SCHEME_TENSOR, FP8_SCHEME_TENSOR_DYNAMIC, FP8_SCHEME_BLOCK},
        [FP8_SCHEME_TENSOR_DYNAMIC] = {FP8_SCHEME_TENSOR_DYNAMIC, FP8_SCHEME_DYNAMIC,
                                       FP8_SCHEME_BLOCK},
        [FP8_SCHEME_DYNAMIC] = {FP8_SCHEME_DYNAMIC, FP8_SCHEME_BLOCK, FP8_SCHEME_TENSOR_DYNAMIC},
        [FP8_SCHEME_BLOCK] = {FP8_SCHEME_BLOCK, FP8_SCHEME_DYNAMIC, FP8_SCHEME_TENSOR_DYNAMIC},
        [FP8_SCHEME_MX] = {FP8_SCHEME_MX, FP8_SCHEME_BLOCK, FP8_SCHEME_DYNAMIC},
    };
    for (int i = 0; i < 3; i++)
        if (fp8_dialect_has(to, order[from][i])) return order[from][i];
    return from;
}

/* Which KV scales there will be. */
static fp8_status decide_kv(job *j) {
    const fp8_convert_options *o = j->options;
    fp8_quant_config *q = &j->quant;

    q->kv_fp8 = j->s.quant.kv_fp8 && j->to->k_descale && o->kv != FP8_KV_SCALES_NONE;
    q->kv_per_head = q->kv_fp8 && (o->kv == FP8_KV_SCALES_HEAD ||
                                   (j->s.quant.kv_per_head && j->to->kv_per_head &&
                                    o->kv == FP8_KV_SCALES_KEEP));
    if (o->kv == FP8_KV_SCALES_HEAD && j->s.kv_heads == 0)
        return FP8_FAIL(FP8_EINVAL, "%s: KV scales by head need num_key_value_heads of a model "
                        "that is known", j->s.config_path);
    for (int64_t i = 0; i < j->s.num_kv; i++) {
        const fp8_kv_scale *k = &j->s.kv[i];
        if (k->role == FP8_KV_Q) j->result->q_left_out += !q->kv_fp8 || !j->to->q_descale;
        else if (!q->kv_fp8) j->result->kv_left_out++;
        else j->result->kv_merged += k->count > 1 && !q->kv_per_head;
    }
    return FP8_OK;
}

static fp8_status check_inputs(const job *j) {
    if (j->quant.scheme != FP8_SCHEME_TENSOR) return FP8_OK;
    for (int64_t i = 0; i < j->s.num_weights; i++)
        if (!j->s.weights[i].has_input)
            return FP8_FAIL(FP8_EINVAL, "'%s': scheme tensor needs static input scales, which %s "
                            "does not have: calibrate the BF16 model with 'fp8calib run'",
                            j->s.weights[i].name, fp8_checkpoint_path(j->s.checkpoint));
    return FP8_OK;
}

/* Modules that one entry of the source's list means, by name: other dialects spell patterns in
 * other ways. */
static fp8_status expand(job *j, char *entry) {
    const fp8_quant_config one = {
        .dialect = j->s.quant.dialect, .ignore = &entry, .num_ignore = 1};
    const int64_t count = fp8_checkpoint_count(j->s.checkpoint);
    fp8_quant_config *q = &j->quant;

    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(j->s.checkpoint, i);
        const size_t len = strlen(e->name);
        char *module;
        if (e->tensor.ndim != 2 || len < 8 || strcmp(e->name + len - 7, ".weight") != 0) continue;
        module = fp8_arena_copy(&j->s.arena, e->name, len - 7);
        if (!module) return FP8_FAIL(FP8_ENOMEM, "ignore list");
        if (!fp8_quant_config_ignores(&one, module)) continue;
        q->ignore[q->num_ignore++] = module;
    }
    return FP8_OK;
}

static fp8_status decide_ignore(job *j) {
    const fp8_quant_config *from = &j->s.quant;
    const size_t room = (size_t)from->num_ignore * (size_t)(fp8_checkpoint_count(j->s.checkpoint) +
                                                            1);
    char name[1200];
    fp8_status st = FP8_OK;

    j->quant.ignore = from->ignore;
    j->quant.num_ignore = from->num_ignore;
    if (j->quant.dialect == from->dialect) return FP8_OK;
    j->quant.num_ignore = 0;
    j->quant.ignore = fp8_arena_alloc(&j->s.arena, room * sizeof *j->quant.ignore);
    if (!j->quant.ignore) return FP8_FAIL(FP8_ENOMEM, "ignore list");
    for (int32_t i = 0; i < from->num_ignore; i++) {
        char *entry = from->ignore[i];
        st = fp8_dialect_format(name, sizeof name, "%s.weight", entry);
        if (st == FP8_OK && strcmp(entry, "lm_head") != 0 &&
            !fp8_checkpoint_find(j->s.checkpoint, name))
            FP8_TRY(expand(j, entry));
        else j->quant.ignore[j->quant.num_ignore++] = entry;
    }
done:
    return st;
}

static fp8_status decide(job *j) {
    const fp8_convert_options *o = j->options;
    char *value = NULL;
    fp8_status st = FP8_OK;

    if (o->to_bf16) {
        for (int64_t i = 0; i < j->s.num_kv; i++)
            if (j->s.kv[i].role == FP8_KV_Q) j->result->q_left_out++;
            else j->result->kv_left_out++;
        return FP8_OK;
    }
    j->to = fp8_dialect_get(o->dialect);
    j->quant.dialect = o->dialect;
    j->quant.ue8m0 = o->ue8m0;
    j->quant.scheme = o->scheme < FP8_NUM_SCHEMES ? o->scheme
                                                  : nearest(o->dialect, j->s.quant.scheme);
    if ((j->quant.scheme == FP8_SCHEME_NONE) != (j->s.num_weights == 0))
        return FP8_FAIL(FP8_EINVAL, "%s: scheme %s into scheme %s: weights are neither quantized "
                        "nor dequantized here", fp8_checkpoint_path(j->s.checkpoint),
                        fp8_scheme_name(j->s.quant.scheme), fp8_scheme_name(j->quant.scheme));
    if (o->ue8m0 && j->quant.scheme != FP8_SCHEME_BLOCK)
        return FP8_FAIL(FP8_EINVAL, "power-of-two scales go with scheme block, found %s",
                        fp8_scheme_name(j->quant.scheme));
    j->result->scheme = j->quant.scheme;
    FP8_TRY(decide_kv(j));
    FP8_TRY(check_inputs(j));
    FP8_TRY(decide_ignore(j));
    FP8_TRY(fp8_quant_config_print(&value, &j->quant)); /* whether it can be said */
done:
    free(value);
    return st;
}

/* ---- the plan -------------------------------------------------------------------------------- */

static fp8_status add(job *j, const char *name, fp8_dtype dtype, int32_t ndim,
                      const int64_t *shape, int64_t group, item what) {
    fp8_st_spec *spec = &j->specs[j->count];
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_shape_bytes(&bytes, dtype, shape, ndim));
    j->bytes += bytes;
    *spec = (fp8_st_spec){.name = name, .dtype = dtype, .ndim = ndim};
    for (int32_t i = 0; i < ndim; i++) spec->shape[i] = shape[i];
    j->groups[j->count] = group;
    j->items[j->count++] = what;
done:
    return st;
}

/* A scale by the dialect's name. */
static fp8_status add_scale(job *j, const char *pattern, const char *module, int32_t ndim,
                            const int64_t *shape, int64_t group, item what) {
    const fp8_dtype dtype = what.kind == ITEM_DESCALES
                                ? fp8_weight_descale_dtype(j->quant.scheme, 0) : FP8_DTYPE_F32;
    char text[1200], *name;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(text, sizeof text, pattern, module));
    name = fp8_arena_copy(&j->s.arena, text, strlen(text));
    if (!name) return FP8_FAIL(FP8_ENOMEM, "'%s'", text);
    FP8_TRY(add(j, name, dtype, ndim, shape, group, what));
done:
    return st;
}

static fp8_status add_weight(job *j, int64_t at, int64_t group) {
    static const int64_t ones[] = {1};
    const fp8_coded *w = &j->s.weights[at];
    const fp8_tensor *t = &w->entry->tensor;
    const item codes = {ITEM_CODES, NULL, at};
    int64_t shape[2], count;
    int32_t ndim;
    fp8_status st = FP8_OK;

    if (j->options->to_bf16)
        return add(j, w->entry->name, FP8_DTYPE_BF16, t->ndim, t->shape, group, codes);
    st = fp8_descale_shape(shape, &ndim, &count, j->quant.dialect, j->quant.scheme, w->rows,
                           w->cols, w->in_out);
    if (st != FP8_OK) return FP8_FAIL(st, "'%s': %s", w->name, fp8_last_message());
    FP8_TRY(add(j, w->entry->name, FP8_DTYPE_E4M3, t->ndim, t->shape, group, codes));
    FP8_TRY(add_scale(j, j->to->weight_descale, w->name, ndim, shape, group,
                      (item){ITEM_DESCALES, NULL, at}));
    if (j->quant.scheme == FP8_SCHEME_TENSOR)
        FP8_TRY(add_scale(j, j->to->input_descale, w->name, j->to->one_ndim, ones, group,
                          (item){ITEM_INPUT, NULL, at}));
    else j->result->inputs_left_out += w->has_input;
done:
    return st;
}

static fp8_status add_kv(job *j, int64_t at, int64_t group) {
    const fp8_kv_scale *k = &j->s.kv[at];
    const char *pattern = j->options->to_bf16 || !j->quant.kv_fp8 ? NULL
                                                                  : fp8_kv_pattern(j->to, k->role);
    const int by_head = j->quant.kv_per_head && k->role != FP8_KV_Q;
    const int64_t shape[] = {by_head ? j->s.kv_heads ? j->s.kv_heads : k->count : 1, 1, 1};

    if (!pattern) return FP8_OK;
    return add_scale(j, pattern, k->module, by_head ? 3 : j->to->one_ndim, shape, group,
                     (item){ITEM_KV, NULL, at});
}

static fp8_status plan(job *j) {
    const int64_t count = fp8_checkpoint_count(j->s.checkpoint);
    const size_t n = (size_t)(count + 2 * j->s.num_weights) + 1;
    fp8_status st = FP8_OK;

    j->specs = fp8_arena_alloc(&j->s.arena, n * sizeof *j->specs);
    j->groups = fp8_arena_alloc(&j->s.arena, n * sizeof *j->groups);
    j->items = fp8_arena_alloc(&j->s.arena, n * sizeof *j->items);
    if (!j->specs || !j->groups || !j->items) return FP8_FAIL(FP8_ENOMEM, "plan of %zu tensors", n);
    for (int64_t i = 0; i < count; i++) {
        const fp8_role *role = &j->s.roles[i];
        const fp8_st_entry *e = fp8_checkpoint_at(j->s.checkpoint, i);
        if (role->kind == FP8_ROLE_WEIGHT) FP8_TRY(add_weight(j, role->at, i));
        else if (role->kind == FP8_ROLE_KV) FP8_TRY(add_kv(j, role->at, i));
        else if (role->kind == FP8_ROLE_COPY)
            FP8_TRY(add(j, e->name, e->tensor.dtype, e->tensor.ndim, e->tensor.shape, i,
                        (item){ITEM_COPY, e->tensor.data, 0}));
    }
done:
    return st;
}

/* ---- writing --------------------------------------------------------------------------------- */

static fp8_status put(job *j, int64_t i, const void *data) {
    const fp8_progress *p = &j->options->progress;
    const fp8_st_spec *spec = &j->specs[i];
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_shape_bytes(&bytes, spec->dtype, spec->shape, spec->ndim));
    FP8_TRY(fp8_checkpoint_writer_put(j->writer, i, data, bytes));
    j->done_bytes += bytes;
    if (p->on && p->on(p->ctx, "writing", (int64_t)j->done_bytes, (int64_t)j->bytes))
        st = FP8_FAIL(FP8_ECANCELED, "writing stopped after %zu of %zu bytes", j->done_bytes,
                      j->bytes);
done:
    return st;
}

/* The codes of a group stay all together or not at all: its members have one scale. */
static int keeps(const job *j, const fp8_coded *w) {
    const int alone = j->quant.scheme != FP8_SCHEME_TENSOR &&
                      j->quant.scheme != FP8_SCHEME_TENSOR_DYNAMIC;

    if (alone) return fp8_coded_keeps(w, j->quant.scheme, j->quant.ue8m0);
    for (int64_t i = w->group; i < j->s.num_weights; i++)
        if (j->s.weights[i].group == w->group &&
            !fp8_coded_keeps(&j->s.weights[i], FP8_SCHEME_TENSOR, 0))
            return 0;
    return 1;
}

static fp8_status find_group_amax(job *j, const fp8_coded *w, float *out) {
    float *amax = &j->group_amax[w->group], one;
    fp8_status st = FP8_OK;

    if (*amax < 0) {
        *amax = 0;
        for (int64_t i = w->group; i < j->s.num_weights; i++) {
            if (j->s.weights[i].group != w->group) continue;
            FP8_TRY(fp8_coded_values(j->values, &one, j->pool, &j->s.weights[i]));
            if (one > *amax) *amax = one;
        }
    }
    *out = *amax;
done:
    return st;
}

static fp8_status put_bf16(job *j, int64_t i, const fp8_coded *w) {
    uint16_t *to = j->codes;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_coded_values(j->values, NULL, j->pool, w));
    for (int64_t k = 0; k < w->rows * w->cols; k++) to[k] = fp8_f32_to_bf16(j->values[k]);
    FP8_TRY(put(j, i, to));
    j->result->dequantized++;
done:
    return st;
}

/* Codes and, next in the plan, their descales. */
static fp8_status put_weight(job *j, int64_t i) {
    const fp8_coded *w = &j->s.weights[j->items[i].at];
    const fp8_scheme scheme = j->quant.scheme;
    const fp8_st_spec *own = &j->specs[i + 1];
    int64_t count = 1;
    float amax = 0;
    fp8_status st = FP8_OK;

    if (j->options->to_bf16) return put_bf16(j, i, w);
    for (int32_t k = 0; k < own->ndim; k++) count *= own->shape[k];
    if (keeps(j, w)) {
        fp8_coded_spread(j->descales, count, w);
        FP8_TRY(put(j, i, w->entry->tensor.data));
        j->result->kept++;
    } else {
        if (scheme == FP8_SCHEME_TENSOR || scheme == FP8_SCHEME_TENSOR_DYNAMIC)
            FP8_TRY(find_group_amax(j, w, &amax));
        FP8_TRY(fp8_coded_values(j->values, NULL, j->pool, w));
        FP8_TRY(fp8_coded_quantize(j->codes, j->descales, j->pool, j->values, w, scheme,
                                   j->quant.ue8m0, amax));
        FP8_TRY(put(j, i, j->codes));
        j->result->requantized++;
    }
    fp8_descales_pack(j->descales, own->dtype, j->descales, count);
    FP8_TRY(put(j, i + 1, j->descales));
done:
    return st;
}

static fp8_status put_kv(job *j, int64_t i) {
    const fp8_kv_scale *k = &j->s.kv[j->items[i].at];
    const int64_t count = j->specs[i].ndim ? j->specs[i].shape[0] : 1;
    float most = 0;

    for (int64_t n = 0; n < k->count; n++) most = k->descales[n] > most ? k->descales[n] : most;
    for (int64_t n = 0; n < count; n++) j->descales[n] = k->count == count ? k->descales[n] : most;
    return put(j, i, j->descales);
}

/* Scratch for the largest weight. */
static fp8_status reserve(job *j) {
    int64_t most = FP8_MAX_LAYERS; /* heads, too */

    for (int64_t i = 0; i < j->s.num_weights; i++) {
        const fp8_coded *w = &j->s.weights[i];
        if (w->rows * w->cols > most) most = w->rows * w->cols;
    }
    for (int64_t i = 0; i < j->s.num_kv; i++)
        if (j->s.kv[i].count > most) most = j->s.kv[i].count;
    if (j->s.kv_heads > most) most = j->s.kv_heads;
    j->values = malloc((size_t)most * sizeof *j->values);
    j->descales = malloc((size_t)most * sizeof *j->descales);
    j->codes = malloc((size_t)most * sizeof(uint16_t));
    j->group_amax = malloc((size_t)(j->s.num_weights + 1) * sizeof *j->group_amax);
    if (!j->values || !j->descales || !j->codes || !j->group_amax)
        return FP8_FAIL(FP8_ENOMEM, "scratch of %lld weights", (long long)most);
    for (int64_t i = 0; i < j->s.num_weights; i++) j->group_amax[i] = -1;
    return FP8_OK;
}

static fp8_status put_all(job *j) {
    fp8_status st = FP8_OK;

    FP8_TRY(reserve(j));
    for (int64_t i = 0; i < j->count; i++) {
        const item *x = &j->items[i];
        if (x->kind == ITEM_COPY) FP8_TRY(put(j, i, x->data));
        if (x->kind == ITEM_CODES) FP8_TRY(put_weight(j, i));
        if (x->kind == ITEM_INPUT) FP8_TRY(put(j, i, &j->s.weights[x->at].input_descale));
        if (x->kind == ITEM_KV) FP8_TRY(put_kv(j, i));
    }
done:
    return st;
}

static fp8_status create_writer(job *j, const char *out) {
    static const char attention[] = "fp8calib.attention";
    const fp8_st_pair ours[] = {{"format", "pt"}, {attention, "none"}};
    const int tells = fp8_checkpoint_metadata(j->s.checkpoint, attention) != NULL;
    const fp8_checkpoint_writer_options how = {j->options->max_shard_bytes, j->options->force, 0};

    return fp8_export_writer(&j->writer, out, j->s.checkpoint, j->specs, j->groups, j->count, ours,
                             tells && j->result->q_left_out ? 2 : 1, &how);
}

static fp8_status finish(job *j, const char *out) {
    fp8_checkpoint_writer *finished = j->writer;
    fp8_checkpoint *written = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_export_config(j->writer, j->s.config_path,
                              j->options->to_bf16 ? NULL : &j->quant));
    FP8_TRY(fp8_export_companions(j->writer, j->s.checkpoint));
    j->writer = NULL; /* the commit frees it whatever it returns */
    FP8_TRY(fp8_checkpoint_writer_commit(finished));
    FP8_TRY(fp8_checkpoint_open(&written, out)); /* and so what was written is checked once */
    j->result->source_bytes = fp8_checkpoint_bytes(j->s.checkpoint);
    j->result->output_bytes = fp8_checkpoint_bytes(written);
done:
    fp8_checkpoint_close(written);
    return st;
}

fp8_status fp8_convert(fp8_convert_result *result, const char *out, const fp8_checkpoint *source,
                       fp8_device *d, const fp8_convert_options *options) {
    job j = {.options = options, .pool = fp8_device_pool(d), .result = result};
    fp8_status st = FP8_OK;

    *result = (fp8_convert_result){0};
    FP8_TRY(fp8_export_check_output(out, source));
    FP8_TRY(fp8_convert_source_open(&j.s, source));
    FP8_TRY(decide(&j));
    FP8_TRY(plan(&j));
    FP8_TRY(create_writer(&j, out));
    FP8_TRY(put_all(&j));
    FP8_TRY(finish(&j, out));
done:
    fp8_checkpoint_writer_abort(j.writer);
    fp8_convert_source_close(&j.s);
    free(j.values);
    free(j.descales);
    free(j.codes);
    free(j.group_amax);
    return st;
}
