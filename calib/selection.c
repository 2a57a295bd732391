/* Which weights are quantized. */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "calib/weight_stage.h"

static const char weight_suffix[] = ".weight";

/* Tensors of lone files that stay as they are: embeddings and output layers, routers and their
 * gates, and what lies beside the language model: those that ModelOpt's default leaves, and more.
 */
static const char *const kept[] = {
    "*embed_tokens*", "*embed_positions*", "*embeddings*", "*embed_in.*", "*embed_out.*",
    "wte.*", "*.wte.*", "wpe.*", "*.wpe.*", "*lm_head*", "output.*",
    "*output_layer*", "*router*", "*mlp.gate.weight", "*block_sparse_moe.gate.weight",
    "*shared_expert_gate*", "*conv1d*", "*vision_tower*", "*visual.*", "*embed_vision*",
    "*multi_modal_projector*", "mtp.*"};

static fp8_status refuse_dtype(const fp8_checkpoint *source, const fp8_st_entry *e) {
    const fp8_dtype t = e->tensor.dtype;
    if (t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2 || t == FP8_DTYPE_E4M3FNUZ ||
        t == FP8_DTYPE_E5M2FNUZ)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: already quantized: '%s' is %s",
                        fp8_checkpoint_path(source), e->name, fp8_dtype_name(t));
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: '%s': expected BF16, F16 or F32, found %s",
                    fp8_checkpoint_path(source), e->name, fp8_dtype_name(t));
}

static int is_dense(fp8_dtype t) {
    return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_F32;
}

static int64_t index_of(const fp8_checkpoint *c, const fp8_st_entry *e) {
    int64_t i = 0;
    while (fp8_checkpoint_at(c, i) != e) i++;
    return i;
}

/* `name` + ".weight" in the arena; the caller keeps the Linear's name as its first part. */
static fp8_status add_linear(fp8_weights *out, const fp8_points *points,
                             const fp8_linear_info *l, const fp8_checkpoint *source) {
    char tensor[sizeof l->name + sizeof weight_suffix];
    fp8_weight *w = &out->data[out->count];

    memcpy(tensor, l->name, strlen(l->name));
    memcpy(tensor + strlen(l->name), weight_suffix, sizeof weight_suffix);
    w->entry = fp8_checkpoint_find(source, tensor);
    w->name = l->name;
    if (!w->entry)
        return FP8_FAIL(FP8_ENOTFOUND, "%s: no tensor '%s'", fp8_checkpoint_path(source), tensor);
    if (!is_dense(w->entry->tensor.dtype)) return refuse_dtype(source, w->entry);
    w->rows = l->in_out ? l->in : l->out;
    w->cols = l->in_out ? l->out : l->in;
    if (w->entry->tensor.ndim != 2 || w->entry->tensor.shape[0] != w->rows ||
        w->entry->tensor.shape[1] != w->cols) {
        char found[128];
        fp8_shape_text(found, sizeof found, w->entry->tensor.shape, w->entry->tensor.ndim);
        return FP8_FAIL(FP8_EFORMAT, "%s: '%s': expected [%lld, %lld], found %s",
                        fp8_checkpoint_path(source), tensor, (long long)w->rows,
                        (long long)w->cols, found);
    }
    w->entry_idx = index_of(source, w->entry);
    w->channels = l->out;
    w->in_out = l->in_out;
    w->group = l->group;
    w->input_slot = fp8_point_slot(points->num_layers, l->layer, l->input);
    w->kv_layer = l->kind == FP8_LINEAR_K || l->kind == FP8_LINEAR_QKV ? l->layer : -1;
    out->count++;
    return FP8_OK;
}

static fp8_status ignore(fp8_weights *w, const char *module, size_t len) {
    w->ignore[w->num_ignore] = fp8_arena_copy(&w->arena, module, len);
    if (!w->ignore[w->num_ignore]) return FP8_FAIL(FP8_ENOMEM, "list of ignored modules");
    w->num_ignore++;
    return FP8_OK;
}

/* Room for `count` weights, and for them and lm_head as ignored modules. */
static fp8_status reserve(fp8_weights *w, int64_t count) {
    const size_t n = (size_t)count + 1;
    w->data = fp8_arena_alloc(&w->arena, n * sizeof *w->data);
    w->ignore = fp8_arena_alloc(&w->arena, 2 * n * sizeof *w->ignore);
    return w->data && w->ignore ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "list of %zu weights", n);
}

static int matches(const char *const *patterns, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (fnmatch(patterns[i], name, 0) == 0) return 1;
    return 0;
}

/* lm_head, and every other module with a 2-D weight that is no Linear of ours, for engines that
 * take each Linear they meet for a quantized one: routers, gates, and what lies beside the text
 * part of a multimodal model. Embeddings are no Linears to anybody. */
static fp8_status ignore_others(fp8_weights *w, const fp8_checkpoint *source) {
    static const char *const embeddings[] = {"*embed_tokens.*", "*embed_positions.*", "wte.*",
                                             "*.wte.*", "wpe.*", "*.wpe.*", "lm_head.*"};
    const int64_t count = fp8_checkpoint_count(source);
    uint8_t *ours = fp8_arena_alloc(&w->arena, (size_t)count + 1);
    fp8_status st = FP8_OK;

    if (!ours) return FP8_FAIL(FP8_ENOMEM, "list of %lld tensors", (long long)count);
    memset(ours, 0, (size_t)count + 1);
    for (int64_t i = 0; i < w->count; i++) ours[w->data[i].entry_idx] = 1;
    FP8_TRY(ignore(w, "lm_head", strlen("lm_head")));
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(source, i);
        const size_t len = strlen(e->name), suffix = sizeof weight_suffix - 1;
        if (ours[i] || e->tensor.ndim != 2 || len <= suffix ||
            strcmp(e->name + len - suffix, weight_suffix) != 0 ||
            matches(embeddings, sizeof embeddings / sizeof *embeddings, e->name))
            continue;
        FP8_TRY(ignore(w, e->name, len - suffix));
    }
done:
    return st;
}

fp8_status fp8_weights_of_model(fp8_weights *out, const fp8_points *points,
                                const fp8_checkpoint *source) {
    fp8_weights w = {0};
    fp8_status st = FP8_OK;

    *out = w;
    FP8_TRY(reserve(&w, points->num_linears + fp8_checkpoint_count(source)));
    for (int64_t i = 0; i < points->num_linears; i++)
        FP8_TRY(add_linear(&w, points, &points->linears[i], source));
    FP8_TRY(ignore_others(&w, source));
    *out = w;
    w = (fp8_weights){0};
done:
    fp8_weights_free(&w);
    return st;
}

void fp8_weights_find_resident(fp8_weights *w, const fp8_points *points, const fp8_model *m) {
    for (int64_t i = 0; i < w->count; i++) /* one a Linear, in their order */
        w->data[i].resident = fp8_model_weight(m, &points->linears[i], w->data[i].entry);
}

static int is_chosen(const char *name, const fp8_export_options *o) {
    if (matches(kept, sizeof kept / sizeof *kept, name)) return 0;
    if (o->num_include > 0 && !matches(o->include, (size_t)o->num_include, name)) return 0;
    return !matches(o->exclude, (size_t)o->num_exclude, name);
}

/* Which of the sets of Linears that read one input, and that engines fuse; -1: none. */
static int fused_set(const char *last) {
    static const char *const sets[][3] = {{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}};
    for (int s = 0; s < 2; s++)
        for (int k = 0; k < 3 && sets[s][k]; k++)
            if (strcmp(last, sets[s][k]) == 0) return s;
    return -1;
}

static const char *last_part(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* Without config.json names alone tell who shares a scale: the group of a weight already listed
 * that belongs to the same set of the same module, else the group `own`. */
static int32_t group_of(const fp8_weights *w, const char *name, int64_t cols, int32_t own) {
    const char *last = last_part(name);
    const size_t before = (size_t)(last - name);
    const int set = fused_set(last);

    for (int64_t k = w->count - 1; set >= 0 && k >= 0; k--) {
        const fp8_weight *x = &w->data[k];
        const char *x_last = last_part(x->name);
        if ((size_t)(x_last - x->name) == before && memcmp(x->name, name, before) == 0 &&
            fused_set(x_last) == set && x->cols == cols)
            return x->group;
    }
    return own;
}

static int by_group(const void *a, const void *b) {
    const fp8_weight *x = a, *y = b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    return x->entry_idx < y->entry_idx ? -1 : 1;
}

fp8_status fp8_weights_of_file(fp8_weights *out, const fp8_checkpoint *source,
                               const fp8_export_options *options) {
    const int64_t count = fp8_checkpoint_count(source);
    fp8_weights w = {0};
    fp8_status st = FP8_OK;

    *out = w;
    FP8_TRY(reserve(&w, count));
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(source, i);
        const size_t len = strlen(e->name), suffix = sizeof weight_suffix - 1;
        const int64_t rows = e->tensor.shape[0], cols = e->tensor.shape[1];
        if (len <= suffix || strcmp(e->name + len - suffix, weight_suffix) != 0) continue;
        if (e->tensor.ndim != 2 || rows == 0 || cols == 0) continue;
        if (!is_chosen(e->name, options)) {
            FP8_TRY(ignore(&w, e->name, len - suffix));
            continue;
        }
        if (fp8_dtype_kind_of(e->tensor.dtype) != FP8_KIND_FLOAT) continue;
        if (!is_dense(e->tensor.dtype)) {
            st = refuse_dtype(source, e);
            goto done;
        }
        char *name = fp8_arena_copy(&w.arena, e->name, len - suffix);
        if (!name) {
            st = FP8_FAIL(FP8_ENOMEM, "list of weights");
            goto done;
        }
        const int32_t group = group_of(&w, name, cols, (int32_t)i);
        w.data[w.count++] = (fp8_weight){.name = name, .entry = e, .entry_idx = i, .rows = rows,
                                         .cols = cols, .channels = rows, .group = group,
                                         .input_slot = -1, .kv_layer = -1};
    }
    if (w.count == 0) {
        st = FP8_FAIL(FP8_EDATA, "%s: no 2-D floating tensor named *.weight to quantize",
                      fp8_checkpoint_path(source));
        goto done;
    }
    qsort(w.data, (size_t)w.count, sizeof *w.data, by_group);
    *out = w;
    w = (fp8_weights){0};
done:
    fp8_weights_free(&w);
    return st;
}

fp8_status fp8_weights_keep(fp8_weights *w, const char *const *names, int64_t count) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < count; i++) {
        int64_t at = 0;
        while (at < w->count && strcmp(w->data[at].name, names[i]) != 0) at++;
        if (at == w->count)
            return FP8_FAIL(FP8_EINVAL, "'%s' is to stay as it is, but is no Linear of the model",
                            names[i]);
        if (w->data[at].keep) continue;
        w->data[at].keep = 1;
        FP8_TRY(ignore(w, names[i], strlen(names[i])));
    }
    for (int64_t i = 1; i < w->count; i++)
        if (w->data[i].group == w->data[i - 1].group && w->data[i].keep != w->data[i - 1].keep)
            return FP8_FAIL(FP8_EINVAL, "'%s' and '%s' share scales: one is to stay as it is, one "
                            "is not", w->data[i - 1].name, w->data[i].name);
done:
    return st;
}

/* The names live as long as the weights. */
void fp8_weights_ignore_all(fp8_weights *w) {
    for (int64_t i = 0; i < w->count; i++)
        w->ignore[w->num_ignore++] = (char *)(uintptr_t)w->data[i].name;
}

void fp8_weights_free(fp8_weights *w) {
    fp8_arena_free(&w->arena);
    *w = (fp8_weights){0};
}
