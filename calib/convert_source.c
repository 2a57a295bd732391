#include "calib/convert_source.h"

#include <stdlib.h>
#include <string.h>

static const char weight_suffix[] = ".weight";

const char *fp8_kv_pattern(const fp8_dialect_row *row, fp8_kv_role role) {
    return role == FP8_KV_K ? row->k_descale : role == FP8_KV_V ? row->v_descale : row->q_descale;
}

static int64_t index_of(const fp8_checkpoint *c, const fp8_st_entry *e, int64_t near) {
    const int64_t count = fp8_checkpoint_count(c);
    int64_t i = near; /* scales mostly lie near by */
    while (fp8_checkpoint_at(c, i) != e) i = (i + 1) % count;
    return i;
}

/* The tensor of a scale is not copied. */
static void consume(fp8_convert_source *s, const char *name, int64_t near) {
    const fp8_st_entry *e = fp8_checkpoint_find(s->checkpoint, name);
    s->roles[index_of(s->checkpoint, e, near)].kind = FP8_ROLE_CONSUMED;
}

static int all_equal(const float *x, int64_t n) {
    for (int64_t i = 1; i < n; i++)
        if (x[i] != x[0]) return 0;
    return 1;
}

/* Descales of the weight w, by the names and shapes of the source's dialect. */
static fp8_status read_descales(fp8_convert_source *s, fp8_coded *w, int64_t at) {
    const fp8_dialect_row *row = fp8_dialect_get(s->quant.dialect);
    const fp8_scheme scheme = s->quant.scheme;
    char name[1200];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(name, sizeof name, row->weight_descale, w->name));
    w->in_out = s->in_out;
    w->scheme = scheme == FP8_SCHEME_TENSOR_DYNAMIC ? FP8_SCHEME_TENSOR : scheme;
    FP8_TRY(fp8_weight_descales_load(&w->descales, &w->count, s->checkpoint, name, scheme, w->rows,
                                     w->cols, w->in_out));
    if (all_equal(w->descales, w->count)) w->scheme = FP8_SCHEME_TENSOR;
    consume(s, name, at);
    if (!row->input_descale) goto done;
    FP8_TRY(fp8_dialect_format(name, sizeof name, row->input_descale, w->name));
    w->has_input = fp8_checkpoint_find(s->checkpoint, name) != NULL;
    if (w->has_input) {
        float *one = NULL;
        int64_t count = 0;
        FP8_TRY(fp8_descales_load(&one, &count, s->checkpoint, name, 1));
        w->input_descale = one[0];
        free(one);
        consume(s, name, at);
    } else if (scheme == FP8_SCHEME_TENSOR) {
        st = FP8_FAIL(FP8_ENOTFOUND, "%s: no tensor '%s'", fp8_checkpoint_path(s->checkpoint),
                      name);
    }
done:
    return st;
}

/* ---- who shares a scale ---------------------------------------------------------------------- */

static const char *last_part(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

static int fused_set(const char *last) {
    static const char *const sets[][3] = {
        {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"w1", "w3"}};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3 && sets[i][k]; k++)
            if (strcmp(last, sets[i][k]) == 0) return i;
    return -1;
}

static int64_t group_of(const fp8_convert_source *s, const fp8_coded *w) {
    const char *last = last_part(w->name);
    const size_t before = (size_t)(last - w->name);
    const int set = fused_set(last);

    for (int64_t k = s->num_weights - 1; set >= 0 && k >= 0; k--) {
        const fp8_coded *x = &s->weights[k];
        const char *x_last = last_part(x->name);
        if ((size_t)(x_last - x->name) == before && memcmp(x->name, w->name, before) == 0 &&
            fused_set(x_last) == set && x->cols == w->cols)
            return x->group;
    }
    return s->num_weights;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

static fp8_status add_weight(fp8_convert_source *s, const fp8_st_entry *e, int64_t at) {
    const size_t len = strlen(e->name), suffix = sizeof weight_suffix - 1;
    fp8_coded *w = &s->weights[s->num_weights];

    if (len <= suffix || strcmp(e->name + len - suffix, weight_suffix) != 0 || e->tensor.ndim != 2)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: '%s' is %s: expected only 2-D tensors named "
                        "*.weight to be FP8", fp8_checkpoint_path(s->checkpoint), e->name,
                        fp8_dtype_name(e->tensor.dtype));
    *w = (fp8_coded){.entry = e, .rows = e->tensor.shape[0], .cols = e->tensor.shape[1]};
    w->name = fp8_arena_copy(&s->arena, e->name, len - suffix);
    if (!w->name) return FP8_FAIL(FP8_ENOMEM, "list of weights");
    w->group = group_of(s, w);
    s->roles[at] = (fp8_role){FP8_ROLE_WEIGHT, s->num_weights++};
    return read_descales(s, w, at);
}

static fp8_status add_kv(fp8_convert_source *s, const fp8_st_entry *e, fp8_kv_role role,
                         const char *suffix, int64_t at) {
    fp8_kv_scale *k = &s->kv[s->num_kv];
    const int64_t heads = role == FP8_KV_Q ? fp8_tensor_count(&e->tensor) : s->kv_heads;

    *k = (fp8_kv_scale){.role = role};
    k->module = fp8_arena_copy(&s->arena, e->name, strlen(e->name) - strlen(suffix));
    if (!k->module) return FP8_FAIL(FP8_ENOMEM, "list of KV scales");
    s->roles[at] = (fp8_role){FP8_ROLE_KV, s->num_kv++};
    return fp8_descales_load(&k->descales, &k->count, s->checkpoint, e->name,
                             heads ? heads : fp8_tensor_count(&e->tensor));
}

/* Scales of attention are known by the ends of their names. */
static fp8_status find_kv(fp8_convert_source *s, const fp8_st_entry *e, int64_t at) {
    const fp8_dialect_row *row = fp8_dialect_get(s->quant.dialect);
    const size_t len = strlen(e->name);

    for (int role = 0; role < FP8_NUM_KV_ROLES; role++) {
        const char *pattern = fp8_kv_pattern(row, (fp8_kv_role)role);
        const char *suffix = pattern ? pattern + strlen("%s") : NULL;
        if (suffix && len > strlen(suffix) && strcmp(e->name + len - strlen(suffix), suffix) == 0)
            return add_kv(s, e, (fp8_kv_role)role, suffix, at);
    }
    return FP8_OK;
}

static fp8_status read_config(fp8_convert_source *s) {
    fp8_model_config config;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_checkpoint_sibling(&s->config_path, s->checkpoint, "config.json"));
    if (!s->config_path)
        return FP8_FAIL(FP8_ENOTFOUND, "%s: no config.json beside it",
                        fp8_checkpoint_path(s->checkpoint));
    FP8_TRY(fp8_quant_config_load(&s->quant, s->config_path));
    if (s->quant.scheme == FP8_SCHEME_NONE && !s->quant.kv_fp8)
        return FP8_FAIL(FP8_EINVAL, "%s: not an FP8 checkpoint", s->config_path);
    st = fp8_config_load(&config, fp8_checkpoint_folder(s->checkpoint));
    if (st == FP8_EUNSUPPORTED) return FP8_OK; /* of another architecture: names tell enough */
    if (st != FP8_OK) return st;
    s->kv_heads = config.num_kv_heads;
    s->in_out = config.arch == FP8_ARCH_GPT2;
done:
    return st;
}

static fp8_status read_tensors(fp8_convert_source *s) {
    const int64_t count = fp8_checkpoint_count(s->checkpoint);
    const size_t n = (size_t)count + 1;
    fp8_status st = FP8_OK;

    s->roles = fp8_arena_alloc(&s->arena, n * sizeof *s->roles);
    s->weights = fp8_arena_alloc(&s->arena, n * sizeof *s->weights);
    s->kv = fp8_arena_alloc(&s->arena, n * sizeof *s->kv);
    if (!s->roles || !s->weights || !s->kv) return FP8_FAIL(FP8_ENOMEM, "list of %zu tensors", n);
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(s->checkpoint, i);
        if (is_fp8(e->tensor.dtype)) FP8_TRY(add_weight(s, e, i));
        else if (s->quant.kv_fp8) FP8_TRY(find_kv(s, e, i));
    }
    if (s->num_weights == 0 && s->quant.scheme != FP8_SCHEME_NONE)
        st = FP8_FAIL(FP8_EFORMAT, "%s: quantization_config says %s, but no tensor is FP8",
                      fp8_checkpoint_path(s->checkpoint),
                      fp8_dialect_get(s->quant.dialect)->name);
    else if (s->num_kv == 0 && s->quant.kv_fp8)
        st = FP8_FAIL(FP8_ENOTFOUND, "%s: a KV cache scheme, but no tensor is named as %s names "
                      "its scales", fp8_checkpoint_path(s->checkpoint),
                      fp8_dialect_get(s->quant.dialect)->name);
done:
    return st;
}

fp8_status fp8_convert_source_open(fp8_convert_source *out, const fp8_checkpoint *checkpoint) {
    fp8_status st = FP8_OK;

    *out = (fp8_convert_source){.checkpoint = checkpoint};
    FP8_TRY(read_config(out));
    FP8_TRY(read_tensors(out));
    return FP8_OK;
done:
    fp8_convert_source_close(out);
    return st;
}

void fp8_convert_source_close(fp8_convert_source *s) {
    for (int64_t i = 0; i < s->num_weights; i++) free(s->weights[i].descales);
    for (int64_t i = 0; i < s->num_kv; i++) free(s->kv[i].descales);
    fp8_quant_config_free(&s->quant);
    fp8_arena_free(&s->arena);
    free(s->config_path);
    *s = (fp8_convert_source){0};
}
