/* formats/dialect_parse.c - quantization_config as others write it: tolerant to keys we do not
 * know, strict in what the known ones mean. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/dialect.h"
#include "formats/dialect_pattern.h"
#include "formats/json.h"
#include "formats/utf8.h"

/* What decides of "weights", "input_activations", "kv_cache_scheme". */
typedef struct args {
    int present, dynamic, has_type;
    char strategy[FP8_SHOWN_BYTES];
} args;

typedef struct reader {
    fp8_json *json;
    const char *name;
    char method[FP8_SHOWN_BYTES], format[FP8_SHOWN_BYTES], status[FP8_SHOWN_BYTES];
    int num_groups, present; /* present: the key is there and not null */
    args weights, inputs, kv;
    fp8_quant_config *out;
} reader;

/* Handles the value of `key`, which is good until the value is read. */
typedef fp8_status (*member_fn)(reader *r, const fp8_json_event *key, void *ctx);

static fp8_status refuse(const reader *r, const char *what, const char *found) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: quantization_config: %s '%s' is not supported", r->name,
                    what, found);
}

/* ---- small readers --------------------------------------------------------------------------- */

static fp8_status wrong_type(reader *r, const fp8_json_event *e, const char *what,
                             const char *expected) {
    return fp8_json_fail(r->json, e->begin, "%s: expected %s, found %s", what, expected,
                         fp8_json_type_name(e->type));
}

/* A string, fit to print; "" for null. */
static fp8_status read_text(reader *r, const char *what, char buf[FP8_SHOWN_BYTES]) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    buf[0] = '\0';
    if (e.type == FP8_JSON_STRING) fp8_utf8_show(buf, e.text, e.len);
    else if (e.type != FP8_JSON_NULL) st = wrong_type(r, &e, what, "a string");
done:
    return st;
}

/* Every member of the object that has just been opened goes to `fn`. */
static fp8_status read_members(reader *r, member_fn fn, void *ctx) {
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
static fp8_status read_object(reader *r, const char *what, int *present, member_fn fn, void *ctx) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    *present = e.type != FP8_JSON_NULL;
    if (!*present) return FP8_OK;
    if (e.type != FP8_JSON_OBJECT) return wrong_type(r, &e, what, "an object");
    FP8_TRY(read_members(r, fn, ctx));
done:
    return st;
}

static fp8_status skip_value(reader *r) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(r->json, &e);
    return st != FP8_OK ? st : fp8_json_skip(r->json, &e, NULL);
}

/* ---- arguments of a kind of tensor ----------------------------------------------------------- */

static fp8_status read_dynamic(reader *r, args *a) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];

    FP8_TRY(fp8_json_next(r->json, &e));
    a->dynamic = e.type == FP8_JSON_TRUE;
    if (e.type == FP8_JSON_STRING) return refuse(r, "dynamic", fp8_utf8_show(text, e.text, e.len));
    if (e.type != FP8_JSON_TRUE && e.type != FP8_JSON_FALSE)
        return wrong_type(r, &e, "dynamic", "true or false");
done:
    return st;
}

static fp8_status read_args(reader *r, const fp8_json_event *key, void *ctx) {
    args *a = ctx;
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];
    int64_t bits = 0;
    int symmetric = 0;

    if (fp8_json_is(key, "num_bits")) {
        FP8_TRY(fp8_json_get_int(r->json, "num_bits", 1, 64, &bits));
        snprintf(text, sizeof text, "%d", (int)bits);
        if (bits != 8) return refuse(r, "num_bits", text);
    } else if (fp8_json_is(key, "type")) {
        FP8_TRY(read_text(r, "type", text));
        if (strcmp(text, "float") != 0) return refuse(r, "type", text);
        a->has_type = 1;
    } else if (fp8_json_is(key, "symmetric")) {
        FP8_TRY(fp8_json_get_bool(r->json, "symmetric", &symmetric));
        if (!symmetric) return refuse(r, "symmetric", "false");
    } else if (fp8_json_is(key, "strategy")) {
        FP8_TRY(read_text(r, "strategy", a->strategy));
    } else if (fp8_json_is(key, "dynamic")) {
        FP8_TRY(read_dynamic(r, a));
    } else {
        FP8_TRY(skip_value(r));
    }
done:
    return st;
}

/* Absent arguments are left to the caller; those that are there must say what they are. */
static fp8_status check_args(const reader *r, const char *what, const args *a) {
    if (!a->present || (a->has_type && *a->strategy)) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: %s: %s is missing", r->name, what,
                    a->has_type ? "strategy" : "type");
}

/* ---- config_groups --------------------------------------------------------------------------- */

static fp8_status read_targets(reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];
    int linear = 0;

    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_ARRAY, "targets", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_STRING) return wrong_type(r, &e, "targets", "strings");
        linear = fp8_json_is(&e, "Linear");
        if (!linear) return refuse(r, "targets", fp8_utf8_show(text, e.text, e.len));
    }
    if (!linear) return refuse(r, "targets", "[]");
done:
    return st;
}

static fp8_status read_group(reader *r, const fp8_json_event *key, void *ctx) {
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];
    int outputs = 0;

    (void)ctx;
    if (fp8_json_is(key, "targets")) {
        FP8_TRY(read_targets(r));
    } else if (fp8_json_is(key, "weights")) {
        FP8_TRY(read_object(r, "weights", &r->weights.present, read_args, &r->weights));
    } else if (fp8_json_is(key, "input_activations")) {
        FP8_TRY(read_object(r, "input_activations", &r->inputs.present, read_args, &r->inputs));
    } else if (fp8_json_is(key, "output_activations")) {
        args unused = {0};
        FP8_TRY(read_object(r, "output_activations", &outputs, read_args, &unused));
        if (outputs) return refuse(r, "output_activations", unused.strategy);
    } else if (fp8_json_is(key, "format")) {
        FP8_TRY(read_text(r, "format", text));
        if (*text && strcmp(text, "float-quantized") != 0) return refuse(r, "format", text);
    } else {
        FP8_TRY(skip_value(r));
    }
done:
    return st;
}

static fp8_status read_groups(reader *r, const fp8_json_event *key, void *ctx) {
    int present = 0;

    (void)key, (void)ctx;
    if (++r->num_groups > 1)
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: quantization_config: more than one config group is not supported",
                        r->name);
    return read_object(r, "config_groups", &present, read_group, NULL);
}

/* ---- the rest of the object ------------------------------------------------------------------ */

static fp8_status read_ignore(reader *r) {
    fp8_quant_config *q = r->out;
    fp8_status st = FP8_OK;
    fp8_json_event e;
    char text[FP8_SHOWN_BYTES];

    FP8_TRY(fp8_json_next(r->json, &e));
    if (e.type == FP8_JSON_NULL) return FP8_OK;
    if (e.type != FP8_JSON_ARRAY) return wrong_type(r, &e, "ignore", "an array");
    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_STRING || strlen(e.text) != e.len)
            return wrong_type(r, &e, "ignore", "strings");
        if (strncmp(e.text, "re:", 3) == 0 && !fp8_pattern_ok(e.text + 3))
            return refuse(r, "ignore pattern", fp8_utf8_show(text, e.text, e.len));
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
static fp8_status read_transform(reader *r, const fp8_json_event *key, void *ctx) {
    char text[FP8_SHOWN_BYTES];
    (void)ctx;
    return refuse(r, "transform_config", fp8_utf8_show(text, key->text, key->len));
}

static fp8_status read_sparsity(reader *r, const fp8_json_event *key, void *ctx) {
    fp8_status st = FP8_OK;
    char text[FP8_SHOWN_BYTES];

    (void)ctx;
    if (!fp8_json_is(key, "format")) return skip_value(r);
    FP8_TRY(read_text(r, "format", text));
    if (*text && strcmp(text, "dense") != 0) return refuse(r, "sparsity_config", text);
done:
    return st;
}

static fp8_status read_schemes(reader *r, const fp8_json_event *key, void *ctx) {
    int present = 0;

    (void)ctx;
    if (fp8_json_is(key, "config_groups"))
        return read_object(r, "config_groups", &present, read_groups, NULL);
    if (fp8_json_is(key, "kv_cache_scheme"))
        return read_object(r, "kv_cache_scheme", &r->kv.present, read_args, &r->kv);
    if (fp8_json_is(key, "transform_config"))
        return read_object(r, "transform_config", &present, read_transform, NULL);
    if (fp8_json_is(key, "sparsity_config"))
        return read_object(r, "sparsity_config", &present, read_sparsity, NULL);
    return fp8_json_is(key, "ignore") ? read_ignore(r) : skip_value(r);
}

/* Read first: what the other keys mean depends on these. */
static fp8_status read_method(reader *r, const fp8_json_event *key, void *ctx) {
    (void)ctx;
    if (fp8_json_is(key, "quant_method")) return read_text(r, "quant_method", r->method);
    if (fp8_json_is(key, "format")) return read_text(r, "format", r->format);
    if (fp8_json_is(key, "quantization_status"))
        return read_text(r, "quantization_status", r->status);
    return skip_value(r);
}

static fp8_status read_top(reader *r, const fp8_json_event *key, void *ctx) {
    if (!fp8_json_is(key, "quantization_config")) return skip_value(r);
    return read_object(r, "quantization_config", &r->present, *(const member_fn *)ctx, NULL);
}

/* One pass over the document; the members of quantization_config go to `fn`. */
static fp8_status pass(reader *r, const char *json, size_t len, member_fn fn) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_open(&r->json, r->name, json, len, NULL));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_OBJECT, "the configuration", &e));
    FP8_TRY(read_members(r, read_top, &fn));
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_END, "the configuration", &e));
done:
    fp8_json_close(r->json);
    r->json = NULL;
    return st;
}

/* ---- meaning --------------------------------------------------------------------------------- */

static fp8_status judge_method(const reader *r) {
    const char *ours = fp8_dialect_get(FP8_DIALECT_COMPRESSED_TENSORS)->name;

    if (!*r->method || (strcmp(r->method, ours) == 0 && !*r->format))
        return FP8_FAIL(FP8_EFORMAT, "%s: quantization_config: %s is missing", r->name,
                        *r->method ? "format" : "quant_method");
    if (strcmp(r->method, ours) != 0) return refuse(r, "quant_method", r->method);
    if (strcmp(r->format, "float-quantized") != 0) return refuse(r, "format", r->format);
    if (*r->status && strcmp(r->status, "compressed") != 0)
        return refuse(r, "quantization_status", r->status);
    return FP8_OK;
}

static int is(const args *a, const char *strategy, int dynamic) {
    return a->present && a->dynamic == dynamic && strcmp(a->strategy, strategy) == 0;
}

static fp8_status judge_schemes(reader *r) {
    const args *w = &r->weights, *x = &r->inputs;
    fp8_status st = FP8_OK;

    FP8_TRY(check_args(r, "weights", w));
    FP8_TRY(check_args(r, "input_activations", x));
    FP8_TRY(check_args(r, "kv_cache_scheme", &r->kv));
    if (is(w, "tensor", 0) && is(x, "tensor", 0)) r->out->scheme = FP8_SCHEME_TENSOR;
    else if (is(w, "channel", 0) && is(x, "token", 1)) r->out->scheme = FP8_SCHEME_DYNAMIC;
    else if (is(w, "tensor", 0) && is(x, "token", 1)) r->out->scheme = FP8_SCHEME_TENSOR_DYNAMIC;
    else
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: quantization_config: weights by %s%s with inputs by %s%s are not "
                        "supported (supported: tensor with tensor, channel or tensor with dynamic "
                        "token)",
                        r->name, w->dynamic ? "dynamic " : "", w->present ? w->strategy : "none",
                        x->dynamic ? "dynamic " : "", x->present ? x->strategy : "none");
    r->out->kv_fp8 = r->kv.present;
    if (r->kv.present && !is(&r->kv, "tensor", 0))
        return refuse(r, "kv_cache_scheme", r->kv.dynamic ? "dynamic" : r->kv.strategy);
done:
    return st;
}

fp8_status fp8_quant_config_parse(fp8_quant_config *out, const char *name, const char *json,
                                  size_t len) {
    fp8_status st = FP8_OK;
    reader r = {.name = name, .out = out};

    memset(out, 0, sizeof *out);
    FP8_TRY(pass(&r, json, len, read_method));
    if (!r.present) return FP8_OK;
    FP8_TRY(judge_method(&r));
    FP8_TRY(pass(&r, json, len, read_schemes));
    FP8_TRY(judge_schemes(&r));
done:
    if (st != FP8_OK) fp8_quant_config_free(out);
    return st;
}
