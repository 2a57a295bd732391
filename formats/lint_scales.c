/* formats/lint_scales.c - rules about scales: there, of the right shape and range, equal where
 * engines have only one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/lint_impl.h"

enum { NAME_BYTES = 1200 };

/* ---- a weight's own -------------------------------------------------------------------------- */

/* Loads what scales a weight has; the first failure, its message in fp8_last_message. */
static fp8_status load(const fp8_lint_job *j, const fp8_lint_weight *w, float *weight,
                       float *input) {
    const fp8_dialect_row *row = fp8_dialect_get(j->quant.dialect);
    const int64_t rows = w->entry->tensor.shape[0], cols = w->entry->tensor.shape[1];
    const int in_out = j->has_model && j->model.arch == FP8_ARCH_GPT2;
    char name[NAME_BYTES];
    float *values = NULL;
    int64_t count = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(name, sizeof name, row->weight_descale, w->module));
    FP8_TRY(fp8_weight_descales_load(&values, &count, j->c, name, j->quant.scheme, rows, cols,
                                     in_out));
    if (weight) *weight = values[0];
    if (j->quant.scheme != FP8_SCHEME_TENSOR) goto done;
    free(values);
    values = NULL;
    FP8_TRY(fp8_dialect_format(name, sizeof name, row->input_descale, w->module));
    FP8_TRY(fp8_descales_load(&values, &count, j->c, name, 1));
    if (input) *input = values[0];
done:
    free(values);
    return st;
}

static fp8_status find_failures(fp8_lint_job *j, fp8_status kind) {
    fp8_status st = FP8_OK;

    if (j->unreadable || j->quant.scheme == FP8_SCHEME_NONE) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++)
        if (j->weights[i].is_fp8 && load(j, &j->weights[i], NULL, NULL) == kind)
            FP8_TRY(fp8_lint_find(j, "%s", fp8_last_message()));
done:
    return st;
}

fp8_status fp8_lint_scale_missing(fp8_lint_job *j) { return find_failures(j, FP8_ENOTFOUND); }
fp8_status fp8_lint_scale_shape(fp8_lint_job *j) { return find_failures(j, FP8_EFORMAT); }
fp8_status fp8_lint_scale_value(fp8_lint_job *j) { return find_failures(j, FP8_EDATA); }

fp8_status fp8_lint_scale_dtype(fp8_lint_job *j) {
    fp8_status st = FP8_OK;
    for (int64_t i = 0; i < fp8_checkpoint_count(j->c); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(j->c, i);
        if (e->tensor.dtype == FP8_DTYPE_E8M0)
            FP8_TRY(fp8_lint_find(j, "'%s' is F8_E8M0: expected F32", e->name));
    }
done:
    return st;
}

/* ---- equal where there is one ---------------------------------------------------------------- */

static int is_one_scale(const fp8_lint_job *j) {
    return !j->unreadable && (j->quant.scheme == FP8_SCHEME_TENSOR ||
                              j->quant.scheme == FP8_SCHEME_TENSOR_DYNAMIC);
}

static const fp8_lint_weight *partner(const fp8_lint_job *j, int64_t at) {
    const int64_t first = j->weights[at].first;
    return first < 0 ? NULL : &j->weights[first];
}

static int is_power_of_two(float x) {
    int exponent;
    return frexpf(x, &exponent) == 0.5f;
}

fp8_status fp8_lint_fused_weights(fp8_lint_job *j) {
    fp8_status st = FP8_OK;

    if (!is_one_scale(j)) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i], *first = partner(j, i);
        float a = 1, b = 1;
        if (!first || !w->is_fp8 || !first->is_fp8 || load(j, w, &a, NULL) != FP8_OK ||
            load(j, first, &b, NULL) != FP8_OK || is_power_of_two(a / b))
            continue;
        FP8_TRY(fp8_lint_find(j, "'%s': weight scale %g, but '%s' has %g", w->module, (double)a,
                              first->module, (double)b));
    }
done:
    return st;
}

fp8_status fp8_lint_fused_inputs(fp8_lint_job *j) {
    fp8_status st = FP8_OK;

    if (j->unreadable || j->quant.scheme != FP8_SCHEME_TENSOR) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i], *first = partner(j, i);
        float a = 1, b = 1;
        if (!first || !w->is_fp8 || !first->is_fp8 || load(j, w, NULL, &a) != FP8_OK ||
            load(j, first, NULL, &b) != FP8_OK || a == b)
            continue;
        FP8_TRY(fp8_lint_find(j, "'%s': input scale %g, but '%s' has %g", w->module, (double)a,
                              first->module, (double)b));
    }
done:
    return st;
}

/* ".experts.7.up_proj" -> the length up to and with ".experts.", and the last part; NULL: none. */
static const char *expert_part(const char *module, size_t *holder) {
    const char *at = strstr(module, ".experts."), *last = strrchr(module, '.');
    if (!at) return NULL;
    *holder = (size_t)(at - module) + strlen(".experts.");
    return last;
}

/* 1: gate and up, which share their input; 0: down. */
static int takes_hidden(const char *last) {
    return strcmp(last, ".down_proj") != 0 && strcmp(last, ".w2") != 0;
}

fp8_status fp8_lint_expert_inputs(fp8_lint_job *j) {
    fp8_status st = FP8_OK;
    const char *first[2] = {NULL, NULL}; /* module, of down and of the others */
    float scale[2] = {0, 0};

    if (j->unreadable || j->quant.scheme != FP8_SCHEME_TENSOR) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        const fp8_lint_weight *w = &j->weights[i];
        size_t holder = 0;
        const char *last = expert_part(w->module, &holder);
        const int kind = last ? takes_hidden(last) : 0;
        float x = 0;
        if (!last || !w->is_fp8 || load(j, w, NULL, &x) != FP8_OK) continue;
        if (!first[kind] || strncmp(first[kind], w->module, holder) != 0) {
            first[kind] = w->module; /* of another layer */
            scale[kind] = x;
        } else if (x != scale[kind]) {
            FP8_TRY(fp8_lint_find(j, "'%s': input scale %g, but '%s' has %g", w->module, (double)x,
                                  first[kind], (double)scale[kind]));
        }
    }
done:
    return st;
}

/* ---- KV cache -------------------------------------------------------------------------------- */

/* The attention module of a K projection, fused or not, in buf; 0: w is none. */
static int attention_of(const fp8_lint_weight *w, char buf[NAME_BYTES]) {
    static const char *const ends[] = {".k_proj", ".qkv_proj", ".c_attn"};
    for (int i = 0; i < 3; i++) {
        const size_t n = strlen(w->module), m = strlen(ends[i]);
        if (!fp8_lint_ends_with(w->module, ends[i]) || n - m >= NAME_BYTES) continue;
        memcpy(buf, w->module, n - m);
        buf[n - m] = '\0';
        return 1;
    }
    return 0;
}

/* The K or V scale of an attention module as the dialect names it, or NULL. */
static const fp8_st_entry *kv_scale(const fp8_lint_job *j, const char *pattern,
                                    const char *module) {
    char name[NAME_BYTES + 64];
    if (!pattern || fp8_dialect_format(name, sizeof name, pattern, module) != FP8_OK) return NULL;
    return fp8_checkpoint_find(j->c, name);
}

static fp8_status find_kv(fp8_lint_job *j, int one_sided) {
    const fp8_dialect_row *row = fp8_dialect_get(j->quant.dialect);
    char module[NAME_BYTES];
    fp8_status st = FP8_OK;

    if (j->unreadable || !j->quant.kv_fp8) return FP8_OK;
    for (int64_t i = 0; i < j->num_weights; i++) {
        if (!attention_of(&j->weights[i], module)) continue;
        const int k = kv_scale(j, row->k_descale, module) != NULL;
        const int v = kv_scale(j, row->v_descale, module) != NULL;
        if (!one_sided && !k && !v)
            FP8_TRY(fp8_lint_find(j, "'%s': expected k and v scales, found none", module));
        if (one_sided && k != v)
            FP8_TRY(fp8_lint_find(j, "'%s': expected k and v scales, found only that of %s", module,
                                  k ? "k" : "v"));
    }
done:
    return st;
}

fp8_status fp8_lint_kv_missing(fp8_lint_job *j) { return find_kv(j, 0); }
fp8_status fp8_lint_kv_one_sided(fp8_lint_job *j) { return find_kv(j, 1); }

static int is_kv_name(const char *name) {
    return fp8_lint_ends_with(name, ".k_scale") || fp8_lint_ends_with(name, ".v_scale") ||
           fp8_lint_ends_with(name, ".kv_scale") ||
           fp8_lint_ends_with(name, "k_proj.output_scale") ||
           fp8_lint_ends_with(name, "v_proj.output_scale");
}

fp8_status fp8_lint_kv_undeclared(fp8_lint_job *j) {
    if (j->unreadable || j->quant.kv_fp8) return FP8_OK;
    for (int64_t i = 0; i < fp8_checkpoint_count(j->c); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(j->c, i);
        if (is_kv_name(e->name)) /* one is enough: config.json is at fault */
            return fp8_lint_find(j, "config.json declares no FP8 KV cache, but there is '%s'",
                                 e->name);
    }
    return FP8_OK;
}

fp8_status fp8_lint_kv_name(fp8_lint_job *j) {
    const fp8_dialect_row *row = fp8_dialect_get(j->quant.dialect);
    fp8_status st = FP8_OK;

    if (j->unreadable || !j->quant.kv_fp8) return FP8_OK;
    for (int64_t i = 0; i < fp8_checkpoint_count(j->c); i++) {
        const char *name = fp8_checkpoint_at(j->c, i)->name;
        const int projected = strstr(name, "k_proj.k_scale") || strstr(name, "v_proj.v_scale");
        const int ours = row->k_descale && (fp8_lint_ends_with(name, row->k_descale + 2) ||
                                            fp8_lint_ends_with(name, row->v_descale + 2));
        if (!is_kv_name(name)) continue;
        if (!ours || projected != (j->quant.dialect == FP8_DIALECT_MODELOPT))
            FP8_TRY(fp8_lint_find(j, "'%s': %s names it MODULE%s or MODULE%s", name, row->name,
                                  row->k_descale ? row->k_descale + 2 : "",
                                  row->v_descale ? row->v_descale + 2 : ""));
    }
done:
    return st;
}

fp8_status fp8_lint_kv_range(fp8_lint_job *j) {
    const float most = 0.5f; /* of values up to 224: beyond, a few outliers make the scale */
    fp8_status st = FP8_OK;

    if (j->unreadable || !j->quant.kv_fp8) return FP8_OK;
    for (int64_t i = 0; i < fp8_checkpoint_count(j->c); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(j->c, i);
        if (!is_kv_name(e->name) || !fp8_descale_dtype(e->tensor.dtype)) continue;
        for (int64_t k = 0; k < fp8_tensor_count(&e->tensor); k++) {
            const float x = fp8_descale_at(&e->tensor, k);
            if (!(x > 0 && x <= most)) {
                FP8_TRY(fp8_lint_find(j, "'%s' is %g: expected above 0, at most %g", e->name,
                                      (double)x, (double)most));
                break;
            }
        }
    }
done:
    return st;
}
