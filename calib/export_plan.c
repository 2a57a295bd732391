#include "calib/export_plan.h"

#include <string.h>

/* A plan being made. */
typedef struct maker {
    fp8_export_plan plan;
    const fp8_dialect_row *dialect;
    const fp8_points *points;
    const fp8_scale *scales;
    const float *heads;
    const fp8_quant_config *quant;
} maker;

enum { MOST_SCALES = 5 }; /* beside one weight: its own, the input's, k, v, q */
static const int64_t ones[] = {1};

static fp8_status add(maker *m, const char *name, fp8_dtype dtype, int32_t ndim,
                      const int64_t *shape, const void *data, int64_t group) {
    fp8_export_plan *p = &m->plan;
    fp8_st_spec *spec = &p->specs[p->count];
    size_t bytes = 0;
    fp8_status st = fp8_shape_bytes(&bytes, dtype, shape, ndim);

    if (st != FP8_OK) return st;
    p->bytes += bytes;
    spec->name = name;
    spec->dtype = dtype;
    spec->ndim = ndim;
    for (int32_t i = 0; i < ndim; i++) spec->shape[i] = shape[i];
    p->data[p->count] = data;
    p->groups[p->count++] = group;
    return FP8_OK;
}

/* A tensor named by the dialect, F32 but for a weight's; value NULL: comes later, of a weight. */
static fp8_status add_descale(maker *m, const char *pattern, const char *module, int32_t ndim,
                              const int64_t *shape, const float *value, int64_t group) {
    char text[512];
    char *name;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(text, sizeof text, pattern, module));
    name = fp8_arena_copy(&m->plan.arena, text, strlen(text));
    if (!name) return FP8_FAIL(FP8_ENOMEM, "'%s'", text);
    m->plan.from_record[m->plan.count] = value != NULL;
    FP8_TRY(add(m, name, value ? FP8_DTYPE_F32
                               : fp8_weight_descale_dtype(m->quant->scheme, m->quant->bf16_scales),
                ndim, shape, value, group));
done:
    return st;
}

static fp8_status add_attention(maker *m, int32_t layer, int64_t group) {
    const struct { const char *pattern; fp8_point point; int wanted; } seen[] = {
        {m->dialect->k_descale, FP8_POINT_K, 1},
        {m->dialect->v_descale, FP8_POINT_V, 1},
        {m->dialect->q_descale, FP8_POINT_Q, m->quant->attention != FP8_ATTENTION_NONE}};
    const char *module = m->points->modules[layer];
    const int64_t layers = m->points->num_layers, heads = m->points->kv_heads;
    const int64_t by_head[] = {heads, 1, 1};
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
        const int32_t slot = fp8_point_slot(layers, layer, seen[i].point);
        const int32_t head = fp8_point_head_slot(layers, heads, layer, seen[i].point, 0);
        if (heads && seen[i].point != FP8_POINT_Q)
            FP8_TRY(add_descale(m, seen[i].pattern, module, 3, by_head,
                                m->heads + head - (int32_t)fp8_num_slots(layers), group));
        else if (seen[i].wanted)
            FP8_TRY(add_descale(m, seen[i].pattern, module, m->dialect->one_ndim, ones,
                                &m->scales[slot].descale, group));
    }
done:
    return st;
}

/* With scheme NONE, or where it is kept, the weight is copied. */
static fp8_status add_weight(maker *m, const fp8_weight *w, int64_t *codes_at) {
    const fp8_scheme scheme = w->keep ? FP8_SCHEME_NONE : m->quant->scheme;
    const fp8_tensor *t = &w->entry->tensor;
    int64_t shape[2], count;
    int32_t ndim;
    fp8_status st = FP8_OK;

    *codes_at = m->plan.count;
    if (scheme == FP8_SCHEME_NONE) {
        FP8_TRY(add(m, w->entry->name, t->dtype, t->ndim, t->shape, t->data, w->entry_idx));
    } else {
        st = fp8_descale_shape(shape, &ndim, &count, m->quant->dialect, scheme, w->rows, w->cols,
                               w->in_out);
        if (st != FP8_OK) return FP8_FAIL(st, "'%s': %s", w->name, fp8_last_message());
        FP8_TRY(add(m, w->entry->name, FP8_DTYPE_E4M3, t->ndim, t->shape, NULL, w->entry_idx));
        FP8_TRY(add_descale(m, m->dialect->weight_descale, w->name, ndim, shape, NULL,
                            w->entry_idx));
    }
    if (scheme == FP8_SCHEME_TENSOR)
        FP8_TRY(add_descale(m, m->dialect->input_descale, w->name, m->dialect->one_ndim, ones,
                            &m->scales[w->input_slot].descale, w->entry_idx));
    if (m->quant->kv_fp8 && w->kv_layer >= 0)
        FP8_TRY(add_attention(m, w->kv_layer, w->entry_idx));
done:
    return st;
}

static fp8_status reserve(fp8_export_plan *p, int64_t num_tensors, int64_t num_weights) {
    const size_t n = (size_t)(num_tensors + MOST_SCALES * num_weights);
    p->specs = fp8_arena_alloc(&p->arena, n * sizeof *p->specs);
    p->groups = fp8_arena_alloc(&p->arena, n * sizeof *p->groups);
    p->data = fp8_arena_alloc(&p->arena, n * sizeof *p->data);
    p->from_record = fp8_arena_alloc(&p->arena, n);
    p->codes_at = fp8_arena_alloc(&p->arena, (size_t)num_weights * sizeof *p->codes_at);
    return p->specs && p->groups && p->data && p->from_record && p->codes_at
               ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "plan of %zu tensors", n);
}

fp8_status fp8_export_plan_create(fp8_export_plan *out, const fp8_checkpoint *source,
                                  const fp8_weights *weights, const fp8_points *points,
                                  const fp8_scale *scales, const float *heads,
                                  const fp8_quant_config *quant) {
    const int64_t count = fp8_checkpoint_count(source);
    maker m = {.dialect = fp8_dialect_get(quant->dialect), .points = points, .scales = scales,
               .heads = heads, .quant = quant};
    int64_t *weight_of = NULL; /* [count]: index of a tensor's weight, -1: it is copied */
    fp8_status st = FP8_OK;

    *out = (fp8_export_plan){0};
    FP8_TRY(reserve(&m.plan, count, weights->count));
    weight_of = fp8_arena_alloc(&m.plan.arena, (size_t)count * sizeof *weight_of);
    if (!weight_of) {
        st = FP8_FAIL(FP8_ENOMEM, "plan of %lld tensors", (long long)count);
        goto done;
    }
    memset(weight_of, -1, (size_t)count * sizeof *weight_of);
    for (int64_t i = 0; i < weights->count; i++) weight_of[weights->data[i].entry_idx] = i;
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(source, i);
        const int64_t at = weight_of[i];
        if (at >= 0)
            FP8_TRY(add_weight(&m, &weights->data[at], &m.plan.codes_at[at]));
        else
            FP8_TRY(add(&m, e->name, e->tensor.dtype, e->tensor.ndim, e->tensor.shape,
                        e->tensor.data, i));
    }
    *out = m.plan;
    m.plan = (fp8_export_plan){0};
done:
    fp8_export_plan_free(&m.plan);
    return st;
}

void fp8_export_plan_free(fp8_export_plan *p) {
    fp8_arena_free(&p->arena);
    *p = (fp8_export_plan){0};
}
