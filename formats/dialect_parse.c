/* formats/dialect_parse.c - quantization_config as others write it: tolerant to keys we do not
 * know, strict in what the known ones mean. Here compressed-tensors and what all share. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect_pattern.h"
#include "formats/dialect_reader.h"
#include "formats/file.h"
#include "formats/new_file.h"

static const char mx_format[] = "mxfp8-quantized";

fp8_status fp8_qr_refuse(const fp8_quant_reader *r, const char *what, const char *found) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: quantization_config: %s '%s' is not supported", r->name,
                    what, found);
}

/* ---- small readers --------------------------------------------------------------------------- */

fp8_status fp8_qr_wrong_type(fp8_quant_reader *r, const fp8_json_event *e, const char *what,
                             const char *expected) {
    return fp8_json_fail(r->json, e->begin, "%s: expected %s, found %s", what, expected,
                         fp8_json_type_name(e->type));
}

/* A string, fit to print; "" for null. */
fp8_status fp8_qr_text(fp8_quant_reader *r, const char *what, char buf[FP8_SHOWN_BYTES]) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    buf[0] = '\0';
    if (e.type == FP8_JSON_STRING) fp8_utf8_show(buf, e.text, e.len);
    else if (e.type != FP8_JSON_NULL) st = fp8_qr_wrong_type(r, &e, what, "a string");
done:
    return st;
}

/* Every member of the object that has just been opened goes to `fn`. */
fp8_status fp8_qr_members(fp8_quant_reader *r, fp8_qr_member_fn fn, void *ctx) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    for (;;) {
        FP8_TRY(fp8_json_key(r->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(fn(r, &e, ctx));
    }
done:
    return st;
}

/* An object, or null, which counts as absent. */
fp8_status fp8_qr_object(fp8_quant_reader *r, const char *what, int *present, fp8_qr_member_fn fn,
                         void *ctx) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    *present = e.type != FP8_JSON_NULL;
    if (!*present) return FP8_OK;
    if (e.type != FP8_JSON_OBJECT) return fp8_qr_wrong_type(r, &e, what, "an object");
    FP8_TRY(fp8_qr_members(r, fn, ctx));
done:
    return st;
}

fp8_status fp8_qr_skip(fp8_quant_reader *r) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(r->json, &e);
    return st != FP8_OK ? st : fp8_json_skip(r->json, &e, NULL);
}

/* ---- arguments of a kind of tensor ----------------------------------------------------------- */

static fp8_status read_dynamic(fp8_quant_reader *r, fp8_quant_args *a) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];

    FP8_TRY(fp8_json_next(r->json, &e));
    a->dynamic = e.type == FP8_JSON_TRUE;
    if (e.type == FP8_JSON_STRING)
        return fp8_qr_refuse(r, "dynamic", fp8_utf8_show(text, e.text, e.len));
    if (e.type != FP8_JSON_TRUE && e.type != FP8_JSON_FALSE)
        return fp8_qr_wrong_type(r, &e, "dynamic", "true or false");
done:
    return st;
}

/* "128x128" of [128, 128], or of that very string. */
static fp8_status read_block(fp8_quant_reader *r, char buf[FP8_SHOWN_BYTES]) {
    int64_t side[2] = {0, 0};
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    buf[0] = '\0';
    if (e.type == FP8_JSON_STRING) fp8_utf8_show(buf, e.text, e.len);
    if (e.type == FP8_JSON_NULL || e.type == FP8_JSON_STRING) goto done;
    if (e.type != FP8_JSON_ARRAY) return fp8_qr_wrong_type(r, &e, "block_structure", "an array");
    for (int i = 0; i < 2; i++)
        FP8_TRY(fp8_json_get_int(r->json, "block_structure", 1, INT32_MAX, &side[i]));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_ARRAY_END, "block_structure", &e));
    snprintf(buf, FP8_SHOWN_BYTES, "%dx%d", (int)side[0], (int)side[1]);
done:
    return st;
}

static fp8_status read_group_size(fp8_quant_reader *r, int64_t *out) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    if (e.type == FP8_JSON_NULL) return FP8_OK;
    if (e.type != FP8_JSON_INT) return fp8_qr_wrong_type(r, &e, "group_size", "an integer");
    *out = e.i64;
done:
    return st;
}

static fp8_status read_args(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    fp8_quant_args *a = ctx;
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];
    int64_t bits = 0;
    int symmetric = 0;

    if (fp8_json_is(key, "num_bits")) {
        FP8_TRY(fp8_json_get_int(r->json, "num_bits", 1, 64, &bits));
        snprintf(text, sizeof text, "%d", (int)bits);
        if (bits != 8) return fp8_qr_refuse(r, "num_bits", text);
    } else if (fp8_json_is(key, "type")) {
        FP8_TRY(fp8_qr_text(r, "type", text));
        if (strcmp(text, "float") != 0) return fp8_qr_refuse(r, "type", text);
        a->has_type = 1;
    } else if (fp8_json_is(key, "symmetric")) {
        FP8_TRY(fp8_json_get_bool(r->json, "symmetric", &symmetric));
        if (!symmetric) return fp8_qr_refuse(r, "symmetric", "false");
    } else if (fp8_json_is(key, "strategy")) {
        FP8_TRY(fp8_qr_text(r, "strategy", a->strategy));
    } else if (fp8_json_is(key, "dynamic")) {
        FP8_TRY(read_dynamic(r, a));
    } else if (fp8_json_is(key, "block_structure")) {
        FP8_TRY(read_block(r, a->block));
    } else if (fp8_json_is(key, "scale_dtype")) {
        FP8_TRY(fp8_qr_text(r, "scale_dtype", a->scale_dtype));
    } else if (fp8_json_is(key, "group_size")) {
        FP8_TRY(read_group_size(r, &a->group_size));
    } else {
        FP8_TRY(fp8_qr_skip(r));
    }
done:
    return st;
}

/* Absent arguments are left to the caller; those that are there must say what they are. */
static fp8_status check_args(const fp8_quant_reader *r, const char *what, const fp8_quant_args *a) {
    if (!a->present || (a->has_type && *a->strategy)) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: %s: %s is missing", r->name, what,
                    a->has_type ? "strategy" : "type");
}

/* ---- config_groups --------------------------------------------------------------------------- */

static fp8_status read_targets(fp8_quant_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];
    int linear = 0;

    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_ARRAY, "targets", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_STRING) return fp8_qr_wrong_type(r, &e, "targets", "strings");
        linear = fp8_json_is(&e, "Linear");
        if (!linear) return fp8_qr_refuse(r, "targets", fp8_utf8_show(text, e.text, e.len));
    }
    if (!linear) return fp8_qr_refuse(r, "targets", "[]");
done:
    return st;
}

static fp8_status read_group(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];
    int outputs = 0;

    (void)ctx;
    if (fp8_json_is(key, "targets")) {
        FP8_TRY(read_targets(r));
    } else if (fp8_json_is(key, "weights")) {
        FP8_TRY(fp8_qr_object(r, "weights", &r->weights.present, read_args, &r->weights));
    } else if (fp8_json_is(key, "input_activations")) {
        FP8_TRY(fp8_qr_object(r, "input_activations", &r->inputs.present, read_args, &r->inputs));
    } else if (fp8_json_is(key, "output_activations")) {
        fp8_quant_args unused = {0};
        FP8_TRY(fp8_qr_object(r, "output_activations", &outputs, read_args, &unused));
        if (outputs) return fp8_qr_refuse(r, "output_activations", unused.strategy);
    } else if (fp8_json_is(key, "format")) {
        FP8_TRY(fp8_qr_text(r, "format", text));
        if (*text && strcmp(text, "float-quantized") != 0 && strcmp(text, mx_format) != 0)
            return fp8_qr_refuse(r, "format", text);
    } else {
        FP8_TRY(fp8_qr_skip(r));
    }
done:
    return st;
}

static fp8_status read_groups(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    int present = 0;

    (void)key, (void)ctx;
    if (++r->num_groups > 1)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: quantization_config: more than one config group is not supported",
                        r->name);
    return fp8_qr_object(r, "config_groups", &present, read_group, NULL);
}

/* ---- the rest of the object ------------------------------------------------------------------ */

fp8_status fp8_qr_ignore(fp8_quant_reader *r) {
    fp8_quant_config *q = r->out;
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];

    FP8_TRY(fp8_json_next(r->json, &e));
    if (e.type == FP8_JSON_NULL) return FP8_OK;
    if (e.type != FP8_JSON_ARRAY) return fp8_qr_wrong_type(r, &e, "ignore", "an array");
    r->has_ignore = 1;
    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_STRING || strlen(e.text) != e.len)
            return fp8_qr_wrong_type(r, &e, "ignore", "strings");
        if (strncmp(e.text, "re:", 3) == 0 && !fp8_pattern_ok(e.text + 3))
            return fp8_qr_refuse(r, "ignore pattern", fp8_utf8_show(text, e.text, e.len));
        char **list = realloc(q->ignore, ((size_t)q->num_ignore + 1) * sizeof *list);
        if (!list) return FP8_FAIL(FP8_ENOMEM, "%s: ignore list", r->name);
        q->ignore = list;
        list[q->num_ignore] = strdup(e.text);
        if (!list[q->num_ignore++]) return FP8_FAIL(FP8_ENOMEM, "%s: ignore list", r->name);
    }
done:
    return st;
}

/* Members of transform_config: whatever they are, they turn weights and activations. */
static fp8_status read_transform(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    char text[FP8_SHOWN_BYTES];
    (void)ctx;
    return fp8_qr_refuse(r, "transform_config", fp8_utf8_show(text, key->text, key->len));
}

static fp8_status read_sparsity(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];

    (void)ctx;
    if (!fp8_json_is(key, "format")) return fp8_qr_skip(r);
    FP8_TRY(fp8_qr_text(r, "format", text));
    if (*text && strcmp(text, "dense") != 0) return fp8_qr_refuse(r, "sparsity_config", text);
done:
    return st;
}

static fp8_status read_schemes(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    int present = 0;

    (void)ctx;
    if (fp8_json_is(key, "config_groups"))
        return fp8_qr_object(r, "config_groups", &present, read_groups, NULL);
    if (fp8_json_is(key, "kv_cache_scheme"))
        return fp8_qr_object(r, "kv_cache_scheme", &r->kv.present, read_args, &r->kv);
    if (fp8_json_is(key, "transform_config"))
        return fp8_qr_object(r, "transform_config", &present, read_transform, NULL);
    if (fp8_json_is(key, "sparsity_config"))
        return fp8_qr_object(r, "sparsity_config", &present, read_sparsity, NULL);
    return fp8_json_is(key, "ignore") ? fp8_qr_ignore(r) : fp8_qr_skip(r);
}

/* Read first: what the other keys mean depends on these. */
static fp8_status read_method(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    (void)ctx;
    if (fp8_json_is(key, "quant_method")) return fp8_qr_text(r, "quant_method", r->method);
    if (fp8_json_is(key, "format")) return fp8_qr_text(r, "format", r->format);
    if (fp8_json_is(key, "quantization_status"))
        return fp8_qr_text(r, "quantization_status", r->status);
    return fp8_qr_skip(r);
}

/* "quantization" is hf_quant_config.json's, which names its producer instead of a method. */
static fp8_status read_top(fp8_quant_reader *r, const fp8_json_event *key, void *ctx) {
    const fp8_qr_member_fn fn = *(const fp8_qr_member_fn *)ctx;
    int is_side = 0;
    fp8_status st = FP8_OK;

    if (fp8_json_is(key, "quantization_config"))
        return fp8_qr_object(r, "quantization_config", &r->present, fn, NULL);
    if (!r->is_side || !fp8_json_is(key, "quantization")) return fp8_qr_skip(r);
    FP8_TRY(fp8_qr_object(r, "quantization", &is_side, fn, NULL));
    r->present |= is_side;
done:
    return st;
}

/* One pass over the document; the members of quantization_config go to `fn`. */
static fp8_status pass(fp8_quant_reader *r, const char *json, size_t len, fp8_qr_member_fn fn) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_open(&r->json, r->name, json, len, NULL));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_OBJECT, "the configuration", &e));
    FP8_TRY(fp8_qr_members(r, read_top, &fn));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_END, "the configuration", &e));
done:
    fp8_json_close(r->json);
    r->json = NULL;
    return st;
}

/* ---- meaning --------------------------------------------------------------------------------- */

static fp8_status judge_method(const fp8_quant_reader *r) {
    const char *ours = fp8_dialect_get(FP8_DIALECT_COMPRESSED_TENSORS)->method;

    if (strcmp(r->method, ours) != 0) return fp8_qr_refuse(r, "quant_method", r->method);
    if (!*r->format)
        return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: format is missing", r->name);
    if (strcmp(r->format, "float-quantized") != 0 && strcmp(r->format, "dense") != 0 &&
        strcmp(r->format, mx_format) != 0)
        return fp8_qr_refuse(r, "format", r->format);
    if (*r->status && strcmp(r->status, "compressed") != 0)
        return fp8_qr_refuse(r, "quantization_status", r->status);
    return FP8_OK;
}

static int is(const fp8_quant_args *a, const char *strategy, int dynamic) {
    return a->present && a->dynamic == dynamic && strcmp(a->strategy, strategy) == 0;
}

static fp8_status judge_blocks(const fp8_quant_reader *r) {
    char size[32];

    if (strcmp(r->weights.block, "128x128") != 0)
        return fp8_qr_refuse(r, "block_structure", r->weights.block);
    snprintf(size, sizeof size, "%lld", (long long)r->inputs.group_size);
    return r->inputs.group_size == FP8_DIALECT_BLOCK ? FP8_OK
                                                     : fp8_qr_refuse(r, "group_size", size);
}

/* Weights and inputs by 32 columns, with exponents as scales. */
static fp8_status judge_mx(const fp8_quant_reader *r) {
    const fp8_quant_args *both[] = {&r->weights, &r->inputs};
    char size[32];

    if (strcmp(r->format, mx_format) != 0) return fp8_qr_refuse(r, "format", r->format);
    for (int i = 0; i < 2; i++) {
        snprintf(size, sizeof size, "%lld", (long long)both[i]->group_size);
        if (both[i]->group_size != FP8_DIALECT_MX) return fp8_qr_refuse(r, "group_size", size);
        if (strcmp(both[i]->scale_dtype, "torch.uint8") != 0)
            return fp8_qr_refuse(r, "scale_dtype", both[i]->scale_dtype);
    }
    return FP8_OK;
}

static fp8_status judge_schemes(fp8_quant_reader *r) {
    const fp8_quant_args *w = &r->weights, *x = &r->inputs;
    const int dense = strcmp(r->format, "dense") == 0;
    fp8_status st = FP8_OK;

    FP8_TRY(check_args(r, "weights", w));
    FP8_TRY(check_args(r, "input_activations", x));
    FP8_TRY(check_args(r, "kv_cache_scheme", &r->kv));
    if (r->num_groups == 0 && r->kv.present) r->out->scheme = FP8_SCHEME_NONE;
    else if (dense) return fp8_qr_refuse(r, "format", r->format);
    else if (is(w, "tensor", 0) && is(x, "tensor", 0)) r->out->scheme = FP8_SCHEME_TENSOR;
    else if (is(w, "channel", 0) && is(x, "token", 1)) r->out->scheme = FP8_SCHEME_DYNAMIC;
    else if (is(w, "tensor", 0) && is(x, "token", 1)) r->out->scheme = FP8_SCHEME_TENSOR_DYNAMIC;
    else if (is(w, "group", 0) && is(x, "group", 1)) {
        r->out->scheme = FP8_SCHEME_MX;
        FP8_TRY(judge_mx(r));
    } else if (is(w, "block", 0) && is(x, "group", 1)) {
        r->out->scheme = FP8_SCHEME_BLOCK;
        FP8_TRY(judge_blocks(r));
    } else
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: quantization_config: weights by %s%s with inputs by %s%s are not "
                        "supported (supported: tensor with tensor, channel or tensor with dynamic "
                        "token, block with dynamic group, MXFP8)",
                        r->name, w->dynamic ? "dynamic " : "", w->present ? w->strategy : "none",
                        x->dynamic ? "dynamic " : "", x->present ? x->strategy : "none");
    r->out->kv_fp8 = r->kv.present;
    r->out->kv_per_head = is(&r->kv, "attn_head", 0);
    if (r->kv.present && !r->out->kv_per_head && !is(&r->kv, "tensor", 0))
        return fp8_qr_refuse(r, "kv_cache_scheme", r->kv.dynamic ? "dynamic" : r->kv.strategy);
done:
    return st;
}

static fp8_status read_compressed_tensors(fp8_quant_reader *r, const char *json, size_t len) {
    fp8_status st = FP8_OK;

    FP8_TRY(judge_method(r));
    FP8_TRY(pass(r, json, len, read_schemes));
    FP8_TRY(judge_schemes(r));
done:
    return st;
}

static fp8_status parse(fp8_quant_config *out, const char *name, const char *json, size_t len,
                        int is_side) {
    fp8_status st = FP8_OK;
    fp8_quant_reader r = {.name = name, .out = out, .is_side = is_side};

    memset(out, 0, sizeof *out);
    FP8_TRY(pass(&r, json, len, read_method));
    if (!r.present) return FP8_OK;
    if (!*r.method && !is_side)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: quant_method is missing", name));
    if (is_side || strcmp(r.method, fp8_dialect_get(FP8_DIALECT_MODELOPT)->method) == 0) {
        FP8_TRY(pass(&r, json, len, fp8_qr_modelopt_member));
        FP8_TRY(fp8_qr_modelopt_judge(&r));
    } else if (strcmp(r.method, fp8_dialect_get(FP8_DIALECT_FP8)->method) == 0) {
        FP8_TRY(pass(&r, json, len, fp8_qr_fp8_member));
        FP8_TRY(fp8_qr_fp8_judge(&r));
    } else {
        FP8_TRY(read_compressed_tensors(&r, json, len));
    }
done:
    if (st != FP8_OK) fp8_quant_config_free(out);
    return st;
}

fp8_status fp8_quant_config_parse(fp8_quant_config *out, const char *name, const char *json,
                                  size_t len) {
    return parse(out, name, json, len, 0);
}

static fp8_status load(fp8_quant_config *out, const char *path, int is_side) {
    fp8_file file = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(parse(out, path, (const char *)file.data, file.bytes, is_side));
done:
    fp8_file_unmap(&file);
    return st;
}

fp8_status fp8_quant_config_load(fp8_quant_config *out, const char *config_json) {
    char *folder = NULL, *side = NULL;
    fp8_status st = FP8_OK;

    memset(out, 0, sizeof *out);
    FP8_TRY(load(out, config_json, 0));
    if (out->scheme != FP8_SCHEME_NONE || out->kv_fp8) return FP8_OK;
    folder = fp8_path_folder(config_json);
    if (folder) side = fp8_path_join(folder, "hf_quant_config.json");
    if (!side) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "path of hf_quant_config.json"));
    if (fp8_path_exists(side)) FP8_TRY(load(out, side, 1));
done:
    free(folder);
    free(side);
    return st;
}
