#include "formats/lint.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect_reader.h"
#include "formats/file.h"
#include "formats/lint_impl.h"
#include "formats/names.h"

static const char *const engine_names[FP8_NUM_ENGINES] = {"vllm", "sglang", "tensorrt-llm", "hf"};

const char *fp8_lint_engine_name(fp8_lint_engine e) { return engine_names[e]; }

fp8_status fp8_lint_engine_parse(fp8_lint_engine *out, const char *name) {
    for (int i = 0; i < FP8_NUM_ENGINES; i++)
        if (strcmp(name, engine_names[i]) == 0) {
            *out = (fp8_lint_engine)i;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_EINVAL, "engine '%s': expected vllm, sglang, tensorrt-llm or hf", name);
}

int fp8_lint_ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

int fp8_lint_fused_set(const char *module, size_t *holder) {
    static const char *const sets[][3] = {
        {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"w1", "w3"}};
    const char *dot = strrchr(module, '.'), *last = dot ? dot + 1 : module;

    *holder = (size_t)(last - module);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3 && sets[i][k]; k++)
            if (strcmp(last, sets[i][k]) == 0) return i;
    return -1;
}

fp8_status fp8_lint_find(fp8_lint_job *j, const char *fmt, ...) {
    fp8_lint_report *r = j->report;
    fp8_lint_finding *all = realloc(r->findings, ((size_t)r->count + 1) * sizeof *all);
    char text[1600];
    va_list args;

    if (!all) return FP8_FAIL(FP8_ENOMEM, "findings");
    r->findings = all;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    all[r->count] = (fp8_lint_finding){j->rule, strdup(text)};
    if (!all[r->count].text) return FP8_FAIL(FP8_ENOMEM, "findings");
    r->errors += j->rule->is_error;
    r->count++;
    return FP8_OK;
}

/* ---- config.json as text --------------------------------------------------------------------- */

static int is_known(const fp8_json_event *key, const char *const *known) {
    for (; *known; known++)
        if (fp8_json_is(key, *known)) return 1;
    return 0;
}

static void note_strange(fp8_lint_config *out, const fp8_json_event *key,
                         const char *const *known) {
    char shown[FP8_SHOWN_BYTES];
    if (*out->strange || is_known(key, known)) return;
    snprintf(out->strange, sizeof out->strange, "%s", fp8_utf8_show(shown, key->text, key->len));
}

static fp8_status args_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    static const char *const known[] = {"num_bits", "type", "symmetric", "strategy", "dynamic",
                                        "group_size", "block_structure", "actorder", "observer",
                                        "observer_kwargs", NULL};
    note_strange(ctx, key, known);
    return fp8_qr_skip(r);
}

static fp8_status group_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    static const char *const known[] = {"targets", "weights", "input_activations",
                                        "output_activations", NULL};
    int present = 0;

    note_strange(ctx, key, known);
    if (fp8_json_is(key, "weights") || fp8_json_is(key, "input_activations"))
        return fp8_qr_object(r, "arguments", &present, args_member, ctx);
    return fp8_qr_skip(r);
}

static fp8_status groups_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    fp8_lint_config *out = ctx;
    char shown[FP8_SHOWN_BYTES];
    int present = 0;

    if (out->num_groups++ == 0)
        snprintf(out->group, sizeof out->group, "%s", fp8_utf8_show(shown, key->text, key->len));
    return fp8_qr_object(r, "config_groups", &present, group_member, ctx);
}

static fp8_status quant_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    fp8_lint_config *out = ctx;
    char text[FP8_SHOWN_BYTES];
    int present = 0;
    fp8_status st = FP8_OK;

    if (fp8_json_is(key, "config_groups"))
        return fp8_qr_object(r, "config_groups", &present, groups_member, ctx);
    if (!fp8_json_is(key, "quantization_status")) return fp8_qr_skip(r);
    FP8_TRY(fp8_qr_text(r, "quantization_status", text));
    snprintf(out->status, sizeof out->status, "%s", text);
done:
    return st;
}

static fp8_status top_member(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    int present = 0;
    if (!fp8_json_is(key, "quantization_config")) return fp8_qr_skip(r);
    return fp8_qr_object(r, "quantization_config", &present, quant_member, ctx);
}

fp8_status fp8_lint_read_config(fp8_lint_config *out, const char *path) {
    fp8_quant_reader r = {.name = path};
    fp8_file file = {0};
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(fp8_json_open(&r.json, path, (const char *)file.data, file.bytes, NULL));
    FP8_TRY(fp8_json_expect(r.json, FP8_JSON_OBJECT, "the configuration", &e));
    FP8_TRY(fp8_qr_members(&r, top_member, out));
done:
    fp8_json_close(r.json);
    fp8_file_unmap(&file);
    return st;
}

/* ---- what there is --------------------------------------------------------------------------- */

static fp8_status read_configs(fp8_lint_job *j, const char *path) {
    fp8_status st = fp8_quant_config_load(&j->quant, path);

    if (st != FP8_OK) {
        const char *why = fp8_last_message();
        if (st == FP8_EIO || st == FP8_ENOMEM) return st;
        j->unreadable = fp8_arena_copy(&j->arena, why, strlen(why));
        if (!j->unreadable) return FP8_FAIL(FP8_ENOMEM, "message");
    }
    st = fp8_lint_read_config(&j->config, path);
    if (st != FP8_OK && !j->unreadable) return st; /* else the message has said it */
    st = fp8_config_load(&j->model, fp8_checkpoint_folder(j->c));
    j->has_model = st == FP8_OK;
    return FP8_OK; /* of another architecture: names tell the rest */
}

static int is_fp8(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

/* Who is fused with whom: by the name of what holds them, and the set. */
static fp8_status pair_weights(fp8_lint_job *j) {
    fp8_names names = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_names_create(&names, j->num_weights));
    for (int64_t i = 0; i < j->num_weights; i++) {
        size_t holder;
        const int set = fp8_lint_fused_set(j->weights[i].module, &holder);
        char *key;
        j->weights[i].first = -1;
        if (set < 0) continue;
        key = fp8_arena_copy(&j->arena, j->weights[i].module, holder + 1);
        if (!key) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "list of weights"));
        key[holder] = (char)('0' + set);
        j->weights[i].first = fp8_names_add(&names, key, i);
    }
done:
    fp8_names_free(&names);
    return st;
}

static fp8_status list_weights(fp8_lint_job *j) {
    const int64_t count = fp8_checkpoint_count(j->c);

    j->weights = fp8_arena_alloc(&j->arena, (size_t)(count + 1) * sizeof *j->weights);
    if (!j->weights) return FP8_FAIL(FP8_ENOMEM, "list of weights");
    for (int64_t i = 0; i < count; i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(j->c, i);
        fp8_lint_weight *w = &j->weights[j->num_weights];
        if (e->tensor.ndim != 2 || !fp8_lint_ends_with(e->name, ".weight")) continue;
        w->module = fp8_arena_copy(&j->arena, e->name, strlen(e->name) - strlen(".weight"));
        if (!w->module) return FP8_FAIL(FP8_ENOMEM, "list of weights");
        w->entry = e;
        w->is_fp8 = is_fp8(e->tensor.dtype);
        w->ignored = fp8_quant_config_ignores(&j->quant, w->module);
        j->num_weights++;
    }
    return FP8_OK;
}

static fp8_status list_files(fp8_lint_job *j) {
    DIR *dir = opendir(fp8_checkpoint_folder(j->c));

    if (!dir) return FP8_FAIL(FP8_EIO, "%s: cannot list it", fp8_checkpoint_folder(j->c));
    for (const struct dirent *e; (e = readdir(dir));) {
        j->num_files += fp8_lint_ends_with(e->d_name, ".safetensors");
        j->has_index |= strcmp(e->d_name, "model.safetensors.index.json") == 0;
        j->has_side |= strcmp(e->d_name, "hf_quant_config.json") == 0;
    }
    closedir(dir);
    return FP8_OK;
}

static fp8_status apply(fp8_lint_job *j) {
    const unsigned engines = j->options->engines ? j->options->engines : ~0u;
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < fp8_lint_num_rules(); i++) {
        j->rule = fp8_lint_rule_at(i);
        if ((j->rule->engines & engines) != 0) FP8_TRY(fp8_lint_check_at(i)(j));
    }
done:
    return st;
}

fp8_status fp8_lint(fp8_lint_report *out, const fp8_checkpoint *c,
                    const fp8_lint_options *options) {
    static const fp8_lint_options none = {0};
    fp8_lint_job *j = calloc(1, sizeof *j);
    char *path = NULL;
    fp8_status st = FP8_OK;

    *out = (fp8_lint_report){0};
    if (!j) return FP8_FAIL(FP8_ENOMEM, "lint");
    j->c = c;
    j->options = options ? options : &none;
    j->tp = j->options->tp ? j->options->tp : 1;
    j->report = out;
    if (j->tp < 0) FP8_TRY(FP8_FAIL(FP8_EINVAL, "tp %lld", (long long)j->tp));
    FP8_TRY(fp8_checkpoint_sibling(&path, c, "config.json"));
    if (!path)
        FP8_TRY(FP8_FAIL(FP8_ENOTFOUND, "%s: no config.json beside it", fp8_checkpoint_path(c)));
    FP8_TRY(read_configs(j, path));
    if (!j->unreadable && j->quant.scheme == FP8_SCHEME_NONE && !j->quant.kv_fp8) goto done;
    FP8_TRY(list_weights(j));
    FP8_TRY(pair_weights(j));
    FP8_TRY(list_files(j));
    FP8_TRY(apply(j));
done:
    if (st != FP8_OK) fp8_lint_report_free(out);
    fp8_quant_config_free(&j->quant);
    fp8_arena_free(&j->arena);
    free(path);
    free(j);
    return st;
}

void fp8_lint_report_free(fp8_lint_report *r) {
    for (int32_t i = 0; i < r->count; i++) free(r->findings[i].text);
    free(r->findings);
    *r = (fp8_lint_report){0};
}
