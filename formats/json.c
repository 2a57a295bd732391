#include "formats/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json_impl.h"

enum { DEFAULT_DEPTH = 64, DEFAULT_BYTES = 1 << 30 };

/* ---- open, close, failures ----------------------------------------------------------------- */

fp8_status fp8_json_open(fp8_json **out, const char *name, const char *bytes, size_t len,
                         const fp8_json_options *options) {
    const size_t max_bytes = options && options->max_bytes ? options->max_bytes : DEFAULT_BYTES;
    fp8_json *j = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (options && options->max_depth < 0)
        return FP8_FAIL(FP8_EINVAL, "%s: max_depth is %d", name, options->max_depth);
    if (len > max_bytes)
        return FP8_FAIL(FP8_EFORMAT, "%s: %zu bytes of JSON, at most %zu are read", name, len,
                        max_bytes);
    j = calloc(1, sizeof *j);
    if (!j) goto memory;
    j->src = (const unsigned char *)bytes;
    j->len = len;
    j->max_depth = options && options->max_depth ? options->max_depth : DEFAULT_DEPTH;
    j->name = strdup(name);
    j->open = malloc((size_t)j->max_depth);
    if (!j->name || !j->open) goto memory;
    if (len >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0)
        FP8_TRY(fp8_json_fail(j, 0, "begins with a byte order mark, which JSON does not allow"));
    *out = j;
    return FP8_OK;
memory:
    st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for the JSON parser", name);
done:
    fp8_json_close(j);
    return st;
}

void fp8_json_close(fp8_json *j) {
    if (!j) return;
    if (j->locale) freelocale(j->locale);
    json_keys_free(&j->keys);
    free(j->text.data);
    free(j->other.data);
    free(j->open);
    free(j->name);
    free(j);
}

fp8_status json_fail_memory(fp8_json *j) {
    j->failed = FP8_FAIL(FP8_ENOMEM, "%s: no memory for the JSON parser", j->name);
    return j->failed;
}

fp8_status fp8_json_fail(fp8_json *j, size_t at, const char *fmt, ...) {
    size_t line = 1, column = 1;
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (size_t i = 0; i < at && i < j->len; i++) {
        column += (j->src[i] & 0xc0) != 0x80; /* a character, not each of its bytes */
        if (j->src[i] != '\n') continue;
        line++;
        column = 1;
    }
    j->failed = FP8_FAIL(FP8_EFORMAT, "%s: line %zu, column %zu: %s", j->name, line, column, text);
    return j->failed;
}

const char *json_found(const fp8_json *j, size_t at, char buf[16]) {
    if (at >= j->len) return "the end of the file";
    if (j->src[at] > 0x20 && j->src[at] < 0x7f) snprintf(buf, 16, "'%c'", j->src[at]);
    else snprintf(buf, 16, "byte 0x%02x", j->src[at]);
    return buf;
}

/* ---- the state machine --------------------------------------------------------------------- */

static void skip_space(fp8_json *j) {
    while (j->at < j->len) {
        const unsigned char c = j->src[j->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
        j->at++;
    }
}

/* After a whole value that ends at `end`. */
static fp8_status end_value(fp8_json *j, size_t end) {
    char found[16];

    j->at = end;
    j->state = JSON_COMMA_OR_END;
    if (j->depth > 0) return FP8_OK;
    skip_space(j);
    if (j->at < j->len)
        return fp8_json_fail(j, j->at, "expected the end of the file, found %s",
                             json_found(j, j->at, found));
    j->state = JSON_DONE;
    return FP8_OK;
}

static fp8_status open_container(fp8_json *j, fp8_json_event *e) {
    const int object = j->src[j->at] == '{';

    if (j->depth == j->max_depth)
        return fp8_json_fail(j, j->at, "more than %d levels of nesting", j->max_depth);
    j->open[j->depth++] = object ? '{' : '[';
    j->state = object ? JSON_KEY_OR_END : JSON_VALUE_OR_END;
    e->type = object ? FP8_JSON_OBJECT : FP8_JSON_ARRAY;
    e->end = ++j->at;
    return FP8_OK;
}

static fp8_status close_container(fp8_json *j, fp8_json_event *e) {
    const int object = j->open[j->depth - 1] == '{';

    if (object) json_keys_close(j);
    j->depth--;
    e->type = object ? FP8_JSON_OBJECT_END : FP8_JSON_ARRAY_END;
    e->end = j->at + 1;
    return end_value(j, e->end);
}

static fp8_status read_key(fp8_json *j, fp8_json_event *e) {
    char found[16];
    fp8_status st = FP8_OK;

    if (j->at == j->len || j->src[j->at] != '"')
        return fp8_json_fail(j, j->at, "expected a key%s, found %s",
                             j->state == JSON_KEY_OR_END ? " or '}'" : "",
                             json_found(j, j->at, found));
    FP8_TRY(json_scan_string(j, j->at, &j->text, &e->end));
    FP8_TRY(json_keys_add(j, e->begin));
    e->type = FP8_JSON_KEY;
    e->text = j->text.data;
    e->len = j->text.len;
    j->at = e->end;
    skip_space(j);
    if (j->at == j->len || j->src[j->at] != ':')
        return fp8_json_fail(j, j->at, "expected ':' after the key, found %s",
                             json_found(j, j->at, found));
    j->at++;
    j->state = JSON_VALUE;
done:
    return st;
}

static fp8_status read_word(fp8_json *j, fp8_json_event *e) {
    static const struct {
        const char *text;
        size_t len;
        fp8_json_type type;
    } words[] = {
        {"true", 4, FP8_JSON_TRUE}, {"false", 5, FP8_JSON_FALSE}, {"null", 4, FP8_JSON_NULL}};
    char found[16];

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (j->len - j->at < words[i].len) continue;
        if (memcmp(j->src + j->at, words[i].text, words[i].len) != 0) continue;
        e->type = words[i].type;
        e->end = j->at + words[i].len;
        return end_value(j, e->end);
    }
    return fp8_json_fail(j, j->at, "expected a value%s, found %s",
                         j->state == JSON_VALUE_OR_END ? " or ']'" : "",
                         json_found(j, j->at, found));
}

static fp8_status read_value(fp8_json *j, fp8_json_event *e) {
    const int c = j->at < j->len ? j->src[j->at] : -1;
    fp8_status st = FP8_OK;

    if (c == '{' || c == '[') return open_container(j, e);
    if (c == '"') {
        FP8_TRY(json_scan_string(j, j->at, &j->text, &e->end));
        e->type = FP8_JSON_STRING;
        e->text = j->text.data;
        e->len = j->text.len;
        return end_value(j, e->end);
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        FP8_TRY(json_scan_number(j, e));
        return end_value(j, e->end);
    }
    return read_word(j, e);
done:
    return st;
}

/* Between values of a container: eats the comma, or leaves the closing bracket. */
static fp8_status read_comma(fp8_json *j, int *closing) {
    const int object = j->open[j->depth - 1] == '{';
    const int c = j->at < j->len ? j->src[j->at] : -1;
    char found[16];

    *closing = c == (object ? '}' : ']');
    if (*closing) return FP8_OK;
    if (c != ',')
        return fp8_json_fail(j, j->at, "expected ',' or '%c', found %s", object ? '}' : ']',
                             json_found(j, j->at, found));
    j->at++;
    skip_space(j);
    j->state = object ? JSON_KEY : JSON_VALUE;
    return FP8_OK;
}

fp8_status fp8_json_next(fp8_json *j, fp8_json_event *e) {
    int closing = 0;
    fp8_status st = j->failed;

    memset(e, 0, sizeof *e);
    if (st != FP8_OK) return st;
    skip_space(j);
    if (j->state == JSON_COMMA_OR_END) {
        st = read_comma(j, &closing);
        if (st != FP8_OK) return st;
    } else if (j->state == JSON_KEY_OR_END || j->state == JSON_VALUE_OR_END) {
        closing = j->at < j->len && j->src[j->at] == (j->state == JSON_KEY_OR_END ? '}' : ']');
    }
    e->begin = e->end = j->at;
    if (closing) return close_container(j, e);
    if (j->state == JSON_DONE) return FP8_OK; /* e->type is FP8_JSON_END */
    if (j->state == JSON_KEY || j->state == JSON_KEY_OR_END) return read_key(j, e);
    if (j->at == j->len && j->depth == 0) return fp8_json_fail(j, j->at, "the document is empty");
    return read_value(j, e);
}

/* ---- readers on top ------------------------------------------------------------------------ */

fp8_status fp8_json_skip(fp8_json *j, const fp8_json_event *e, size_t *end) {
    const int32_t depth = j->depth - 1; /* outside the value, if it is a container */
    fp8_json_event inner = *e;
    fp8_status st = j->failed;

    if (st == FP8_OK && (e->type == FP8_JSON_OBJECT || e->type == FP8_JSON_ARRAY))
        do {
            FP8_TRY(fp8_json_next(j, &inner));
        } while (j->depth > depth);
    if (end) *end = inner.end;
done:
    return st;
}

fp8_status fp8_json_expect(fp8_json *j, fp8_json_type type, const char *what, fp8_json_event *e) {
    const fp8_status st = fp8_json_next(j, e);
    if (st != FP8_OK || e->type == type) return st;
    return fp8_json_fail(j, e->begin, "%s: expected %s, found %s", what, fp8_json_type_name(type),
                         fp8_json_type_name(e->type));
}

fp8_status fp8_json_key(fp8_json *j, fp8_json_event *e) {
    const fp8_status st = fp8_json_next(j, e);
    if (st != FP8_OK || e->type == FP8_JSON_KEY || e->type == FP8_JSON_OBJECT_END) return st;
    return fp8_json_fail(j, e->begin, "expected a key of an object, found %s",
                         fp8_json_type_name(e->type));
}

fp8_status fp8_json_get_int(fp8_json *j, const char *what, int64_t lo, int64_t hi, int64_t *out) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    if (st != FP8_OK) return st;
    if (e.type != FP8_JSON_INT && e.type != FP8_JSON_UINT)
        return fp8_json_fail(j, e.begin, "%s: expected an integer, found %s", what,
                             fp8_json_type_name(e.type));
    if (e.type == FP8_JSON_UINT || e.i64 < lo || e.i64 > hi)
        return fp8_json_fail(j, e.begin, "%s: expected %lld to %lld, found %.*s", what,
                             (long long)lo, (long long)hi, (int)(e.end - e.begin),
                             (const char *)j->src + e.begin);
    *out = e.i64;
    return FP8_OK;
}

fp8_status fp8_json_get_number(fp8_json *j, const char *what, double *out) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    if (st != FP8_OK) return st;
    if (e.type != FP8_JSON_INT && e.type != FP8_JSON_UINT && e.type != FP8_JSON_REAL)
        return fp8_json_fail(j, e.begin, "%s: expected a number, found %s", what,
                             fp8_json_type_name(e.type));
    *out = e.f64;
    return FP8_OK;
}

fp8_status fp8_json_get_bool(fp8_json *j, const char *what, int *out) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    if (st != FP8_OK) return st;
    if (e.type != FP8_JSON_TRUE && e.type != FP8_JSON_FALSE)
        return fp8_json_fail(j, e.begin, "%s: expected true or false, found %s", what,
                             fp8_json_type_name(e.type));
    *out = e.type == FP8_JSON_TRUE;
    return FP8_OK;
}

int fp8_json_is(const fp8_json_event *e, const char *text) {
    const size_t len = strlen(text);
    return (e->type == FP8_JSON_KEY || e->type == FP8_JSON_STRING) && e->len == len &&
           memcmp(e->text, text, len) == 0;
}

const char *fp8_json_type_name(fp8_json_type t) {
    switch (t) {
    case FP8_JSON_END: return "the end of the file";
    case FP8_JSON_OBJECT: return "object";
    case FP8_JSON_OBJECT_END: return "end of object";
    case FP8_JSON_ARRAY: return "array";
    case FP8_JSON_ARRAY_END: return "end of array";
    case FP8_JSON_KEY: return "key";
    case FP8_JSON_STRING: return "string";
    case FP8_JSON_INT: return "integer";
    case FP8_JSON_UINT: return "integer above 2^63-1";
    case FP8_JSON_REAL: return "real number";
    case FP8_JSON_TRUE: return "true";
    case FP8_JSON_FALSE: return "false";
    case FP8_JSON_NULL: return "null";
    }
    return "?";
}
