#include "formats/config_read.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define X(key) #key,
static const char *const top_keys[] = {FP8_CONFIG_KEYS(X)};
static const char *const rope_keys[] = {FP8_ROPE_KEYS(X)};
#undef X

/* ---- values ---------------------------------------------------------------------------------- */

int fp8_value_has(const fp8_config_value *v) {
    return v->type != FP8_JSON_END && v->type != FP8_JSON_NULL;
}

int fp8_value_is(const fp8_config_value *v, const char *text) {
    return v->type == FP8_JSON_STRING && v->len == strlen(text) && strcmp(v->text, text) == 0;
}

const char *fp8_value_found(const fp8_config_value *v, char buf[FP8_FOUND_BYTES]) {
    const size_t n = FP8_FOUND_BYTES;
    if (v->type == FP8_JSON_STRING) snprintf(buf, n, "'%s'", v->text);
    else if (v->type == FP8_JSON_INT) snprintf(buf, n, "%lld", (long long)v->i64);
    else if (v->type == FP8_JSON_UINT || v->type == FP8_JSON_REAL) snprintf(buf, n, "%g", v->f64);
    else snprintf(buf, n, "%s", fp8_json_type_name(v->type));
    return buf;
}

fp8_status fp8_value_refuse(const fp8_config_reader *r, const fp8_config_value *v) {
    char buf[FP8_FOUND_BYTES];
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %s %s is not supported", r->name, v->key,
                    fp8_value_found(v, buf));
}

fp8_status fp8_value_mismatch(const fp8_config_reader *r, const fp8_config_value *v,
                              const char *expected) {
    char buf[FP8_FOUND_BYTES];
    return fp8_json_fail(r->json, v->at, "%s: expected %s, found %s", v->key, expected,
                         fp8_value_found(v, buf));
}

static fp8_status missing(const fp8_config_reader *r, const fp8_config_value *v) {
    return FP8_FAIL(FP8_EFORMAT, "%s: %s is missing", r->name, v->key);
}

fp8_status fp8_value_int(const fp8_config_reader *r, const fp8_config_value *v, int64_t lo,
                         int64_t fallback, int64_t *out) {
    char expected[64];

    *out = fallback;
    if (!fp8_value_has(v)) return FP8_OK;
    *out = v->i64;
    if (v->type == FP8_JSON_INT && v->i64 >= lo && v->i64 <= INT32_MAX) return FP8_OK;
    snprintf(expected, sizeof expected, "an integer from %lld to 2147483647", (long long)lo);
    return fp8_value_mismatch(r, v, expected);
}

fp8_status fp8_value_size(const fp8_config_reader *r, const fp8_config_value *v, int64_t fallback,
                          int64_t *out) {
    if (!fp8_value_has(v) && fallback == 0) return missing(r, v);
    return fp8_value_int(r, v, 1, fallback, out);
}

fp8_status fp8_value_positive(const fp8_config_reader *r, const fp8_config_value *v,
                              double fallback, double *out) {
    const int number =
        v->type == FP8_JSON_INT || v->type == FP8_JSON_UINT || v->type == FP8_JSON_REAL;

    *out = fallback;
    if (!fp8_value_has(v)) return fallback > 0 ? FP8_OK : missing(r, v);
    *out = v->f64;
    return number && v->f64 > 0 && isfinite(v->f64) ? FP8_OK
                                                    : fp8_value_mismatch(r, v, "a positive number");
}

fp8_status fp8_value_bool(const fp8_config_reader *r, const fp8_config_value *v, int fallback,
                          int *out) {
    *out = fp8_value_has(v) ? v->type == FP8_JSON_TRUE : fallback;
    if (!fp8_value_has(v) || v->type == FP8_JSON_TRUE || v->type == FP8_JSON_FALSE) return FP8_OK;
    return fp8_value_mismatch(r, v, "true or false");
}

/* ---- the document ---------------------------------------------------------------------------- */

static void keep(fp8_config_value *v, const fp8_json_event *e) {
    v->type = e->type;
    v->i64 = e->i64;
    v->f64 = e->f64;
    v->at = e->begin;
    v->len = e->type == FP8_JSON_STRING ? e->len : 0;
    if (e->type == FP8_JSON_STRING) fp8_utf8_show(v->text, e->text, e->len);
}

static int find_key(const char *const *keys, int num, const fp8_json_event *e) {
    for (int i = 0; i < num; i++)
        if (fp8_json_is(e, keys[i])) return i;
    return -1;
}

static fp8_status read_factors(fp8_config_reader *r, int which, int list) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    fp8_config_value v = {.key = list ? "long_factor" : "short_factor"};

    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        keep(&v, &e);
        const int number = e.type == FP8_JSON_INT || e.type == FP8_JSON_REAL;
        if (!number || !(e.f64 > 0) || !(e.f64 < 1e30))
            return fp8_value_mismatch(r, &v, "positive numbers");
        if (r->num_factors[which][list] == FP8_MAX_ROPE_FACTORS)
            return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %s has more than %d entries", r->name, v.key,
                            (int)FP8_MAX_ROPE_FACTORS);
        r->factors[which][list][r->num_factors[which][list]++] = (float)e.f64;
    }
done:
    return st;
}

static fp8_status read_rope(fp8_config_reader *r, int which) {
    fp8_config_value *rope = r->rope[which];
    fp8_status st = FP8_OK;
    fp8_json_event e;

    for (;;) {
        FP8_TRY(fp8_json_key(r->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        const int k = find_key(rope_keys, FP8_NUM_ROPE, &e);
        const int inner = k == FP8_ROPE_full_attention      ? FP8_ROPE_OF_FULL
                          : k == FP8_ROPE_sliding_attention ? FP8_ROPE_OF_SLIDING
                                                            : 0;
        FP8_TRY(fp8_json_next(r->json, &e));
        if (k >= 0) keep(&rope[k], &e);
        if (inner && which == FP8_ROPE_OF_V5 && e.type == FP8_JSON_OBJECT)
            FP8_TRY(read_rope(r, inner));
        else if (k == FP8_ROPE_short_factor && e.type == FP8_JSON_ARRAY)
            FP8_TRY(read_factors(r, which, 0));
        else if (k == FP8_ROPE_long_factor && e.type == FP8_JSON_ARRAY)
            FP8_TRY(read_factors(r, which, 1));
        else FP8_TRY(fp8_json_skip(r->json, &e, NULL));
    }
done:
    return st;
}

static fp8_status read_eos(const fp8_config_reader *r, fp8_config_eos *eos) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    fp8_config_value v = {.key = "eos_token_id"};

    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        keep(&v, &e);
        if (e.type != FP8_JSON_INT || e.i64 < 0 || e.i64 > INT32_MAX)
            return fp8_value_mismatch(r, &v, "token ids");
        if (eos->count == FP8_MAX_EOS)
            return FP8_FAIL(FP8_EUNSUPPORTED, "%s: eos_token_id has more than %d ids", r->name,
                            (int)FP8_MAX_EOS);
        eos->ids[eos->count++] = e.i64;
    }
done:
    return st;
}

static fp8_status read_layer_types(fp8_config_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    fp8_config_value v = {.key = "layer_types"};

    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        keep(&v, &e);
        if (e.type != FP8_JSON_STRING) return fp8_value_mismatch(r, &v, "strings");
        const int slides = fp8_value_is(&v, "sliding_attention");
        if (!slides && !fp8_value_is(&v, "full_attention") && !fp8_value_has(&r->other_layer_type))
            r->other_layer_type = v;
        if (r->num_layer_types < FP8_MAX_LAYERS)
            r->slides[r->num_layer_types] = (uint8_t)slides;
        r->num_layer_types++;
    }
done:
    return st;
}

static fp8_status read_dense_layers(fp8_config_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;
    fp8_config_value v = {.key = "mlp_only_layers"};

    for (;;) {
        FP8_TRY(fp8_json_next(r->json, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        keep(&v, &e);
        if (e.type != FP8_JSON_INT || e.i64 < 0 || e.i64 >= FP8_MAX_LAYERS)
            return fp8_value_mismatch(r, &v, "indices of layers");
        r->is_dense[e.i64] = 1;
    }
done:
    return st;
}

static fp8_status read_value(fp8_config_reader *r, int key) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    FP8_TRY(fp8_json_next(r->json, &e));
    if (key >= 0) keep(&r->top[key], &e);
    if (e.type == FP8_JSON_OBJECT && key == FP8_TOP_rope_parameters)
        FP8_TRY(read_rope(r, FP8_ROPE_OF_V5));
    else if (e.type == FP8_JSON_OBJECT && key == FP8_TOP_rope_scaling)
        FP8_TRY(read_rope(r, FP8_ROPE_OF_V4));
    else if (e.type == FP8_JSON_ARRAY && key == FP8_TOP_eos_token_id) FP8_TRY(read_eos(r, &r->eos));
    else if (e.type == FP8_JSON_ARRAY && key == FP8_TOP_layer_types) FP8_TRY(read_layer_types(r));
    else if (e.type == FP8_JSON_ARRAY && key == FP8_TOP_mlp_only_layers)
        FP8_TRY(read_dense_layers(r));
    else FP8_TRY(fp8_json_skip(r->json, &e, NULL));
done:
    return st;
}

/* The keys of an object whose opening brace was read. */
static fp8_status read_keys(fp8_config_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    for (;;) {
        FP8_TRY(fp8_json_key(r->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(read_value(r, find_key(top_keys, FP8_NUM_TOP, &e)));
    }
done:
    return st;
}

static fp8_status read_outer(fp8_config_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    for (;;) {
        FP8_TRY(fp8_json_key(r->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        const int key = find_key(top_keys, FP8_NUM_TOP, &e);
        FP8_TRY(fp8_json_next(r->json, &e));
        if (key >= 0) keep(&r->outer[key], &e);
        if (key == FP8_TOP_text_config) FP8_TRY(read_keys(r));
        else if (key == FP8_TOP_eos_token_id && e.type == FP8_JSON_ARRAY)
            FP8_TRY(read_eos(r, &r->outer_eos));
        else FP8_TRY(fp8_json_skip(r->json, &e, NULL));
    }
    if (!fp8_value_has(&r->top[FP8_TOP_eos_token_id])) r->eos = r->outer_eos;
done:
    return st;
}

static void inherit(fp8_config_reader *r) {
    static const int keys[] = {FP8_TOP_quantization_config, FP8_TOP_tie_word_embeddings,
                               FP8_TOP_bos_token_id, FP8_TOP_eos_token_id};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!fp8_value_has(&r->top[keys[i]])) r->top[keys[i]] = r->outer[keys[i]];
}

fp8_status fp8_config_read(fp8_config_reader *r) {
    fp8_status st = FP8_OK;
    fp8_json_event e;

    for (int i = 0; i < FP8_NUM_TOP; i++) r->top[i].key = r->outer[i].key = top_keys[i];
    for (int k = 0; k < FP8_NUM_ROPES; k++)
        for (int i = 0; i < FP8_NUM_ROPE; i++) r->rope[k][i].key = rope_keys[i];
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_OBJECT, "the configuration", &e));
    FP8_TRY(r->wrapped ? read_outer(r) : read_keys(r));
    if (r->wrapped) inherit(r);
    FP8_TRY(fp8_json_expect(r->json, FP8_JSON_END, "the configuration", &e));
done:
    return st;
}
