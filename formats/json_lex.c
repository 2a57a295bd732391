#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json_impl.h"
#include "formats/utf8.h"

/* ---- strings ------------------------------------------------------------------------------- */

static fp8_status append(fp8_json *j, json_text *t, const void *bytes, size_t len) {
    if (len >= t->cap - t->len) { /* one more for the terminator */
        const size_t cap = 2 * t->cap + len + 64;
        char *data = realloc(t->data, cap);
        if (!data) return json_fail_memory(j);
        t->data = data;
        t->cap = cap;
    }
    memcpy(t->data + t->len, bytes, len);
    t->len += len;
    t->data[t->len] = '\0';
    return FP8_OK;
}

/* Four hex digits at `at`, or -1. */
static int32_t hex4(const fp8_json *j, size_t at) {
    int32_t v = 0;
    if (j->len - at < 4) return -1;
    for (size_t i = at; i < at + 4; i++) {
        const int c = j->src[i], low = c | 0x20;
        if (c >= '0' && c <= '9') v = v * 16 + (c - '0');
        else if (low >= 'a' && low <= 'f') v = v * 16 + (low - 'a' + 10);
        else return -1;
    }
    return v;
}

/* \uXXXX at `at`, with its second half where it is a surrogate pair. */
static fp8_status scan_unicode(fp8_json *j, size_t at, uint32_t *code, size_t *end) {
    const int32_t high = hex4(j, at + 2);
    int32_t low = -1;

    if (high < 0) return fp8_json_fail(j, at, "expected four hex digits after \\u");
    *code = (uint32_t)high;
    *end = at + 6;
    if (high < 0xd800 || high > 0xdfff) return FP8_OK;
    if (j->len - *end >= 6 && j->src[*end] == '\\' && j->src[*end + 1] == 'u')
        low = hex4(j, *end + 2);
    if (high > 0xdbff || low < 0xdc00 || low > 0xdfff)
        return fp8_json_fail(j, at, "lone surrogate \\u%04x", (unsigned)high);
    *code = 0x10000u + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    *end += 6;
    return FP8_OK;
}

static size_t encode_utf8(uint32_t c, unsigned char out[4]) {
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (unsigned char)(0xc0 | c >> 6);
        out[1] = (unsigned char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (unsigned char)(0xe0 | c >> 12);
        out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xf0 | c >> 18);
    out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (c & 63));
    return 4;
}

/* The escape whose backslash is at `at`. */
static fp8_status scan_escape(fp8_json *j, size_t at, json_text *out, size_t *end) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    unsigned char utf8[4];
    uint32_t code = 0;
    const char *simple;
    fp8_status st;
    char found[16];

    if (j->len - at < 2) return fp8_json_fail(j, at, "string is not closed");
    if (j->src[at + 1] == 'u') {
        st = scan_unicode(j, at, &code, end);
        if (st != FP8_OK) return st;
        return append(j, out, utf8, encode_utf8(code, utf8));
    }
    simple = memchr(from, j->src[at + 1], sizeof from - 1);
    if (!simple)
        return fp8_json_fail(j, at, "unknown escape: \\ and then %s", json_found(j, at + 1, found));
    *end = at + 2;
    return append(j, out, to + (simple - from), 1);
}

static int is_plain(unsigned char c) { return c >= 0x20 && c < 0x80 && c != '"' && c != '\\'; }

/* Just past the bytes from `at` on that stand for themselves. */
static fp8_status scan_plain(fp8_json *j, size_t at, size_t *end) {
    for (;;) {
        size_t n;
        while (at < j->len && is_plain(j->src[at])) at++;
        if (at == j->len || j->src[at] < 0x80) break;
        n = fp8_utf8_length(j->src + at, j->len - at);
        if (n == 0)
            return fp8_json_fail(j, at, "byte 0x%02x does not begin a UTF-8 character", j->src[at]);
        at += n;
    }
    *end = at;
    return FP8_OK;
}

fp8_status json_scan_string(fp8_json *j, size_t at, json_text *out, size_t *end) {
    const size_t begin = at++;
    fp8_status st = FP8_OK;

    out->len = 0;
    for (;;) {
        const size_t run = at;
        FP8_TRY(scan_plain(j, at, &at));
        FP8_TRY(append(j, out, j->src + run, at - run));
        if (at == j->len) return fp8_json_fail(j, begin, "string is not closed");
        if (j->src[at] == '"') break;
        if (j->src[at] != '\\')
            return fp8_json_fail(j, at, "control character 0x%02x in a string", j->src[at]);
        FP8_TRY(scan_escape(j, at, out, &at));
    }
    *end = at + 1;
done:
    return st;
}

/* ---- numbers ------------------------------------------------------------------------------- */

static int is_digit(const fp8_json *j, size_t at) {
    return at < j->len && j->src[at] >= '0' && j->src[at] <= '9';
}

static fp8_status scan_digits(fp8_json *j, size_t *at, const char *where) {
    char found[16];
    if (!is_digit(j, *at))
        return fp8_json_fail(j, *at, "expected a digit %s, found %s", where,
                             json_found(j, *at, found));
    while (is_digit(j, *at)) (*at)++;
    return FP8_OK;
}

/* The extent of the number at j->at by the grammar of RFC 8259, and whether it is an integer. */
static fp8_status scan_extent(fp8_json *j, size_t *end, int *integer) {
    size_t at = j->at;
    fp8_status st = FP8_OK;

    *integer = 1;
    at += j->src[at] == '-';
    if (is_digit(j, at) && j->src[at] == '0' && is_digit(j, at + 1))
        return fp8_json_fail(j, j->at, "a number may not begin with a zero");
    FP8_TRY(scan_digits(j, &at, "after '-'"));
    if (at < j->len && j->src[at] == '.') {
        *integer = 0;
        at++;
        FP8_TRY(scan_digits(j, &at, "after '.'"));
    }
    if (at < j->len && (j->src[at] | 0x20) == 'e') {
        *integer = 0;
        at++;
        at += at < j->len && (j->src[at] == '+' || j->src[at] == '-');
        FP8_TRY(scan_digits(j, &at, "in the exponent"));
    }
    *end = at;
done:
    return st;
}

/* Whether digits [at, end) fit: then *out is their value. */
static int fits_u64(const fp8_json *j, size_t at, size_t end, uint64_t *out) {
    uint64_t v = 0;
    for (; at < end; at++)
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(j->src[at] - '0'), &v))
            return 0;
    *out = v;
    return 1;
}

/* strtod reads the decimal point of the calling program's locale: lend this thread the C one. */
static fp8_status parse_real(fp8_json *j, size_t end, double *out) {
    locale_t old;
    fp8_status st;

    if (!j->locale) j->locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!j->locale) return json_fail_memory(j);
    j->text.len = 0;
    st = append(j, &j->text, j->src + j->at, end - j->at);
    if (st != FP8_OK) return st;
    old = uselocale(j->locale);
    *out = strtod(j->text.data, NULL);
    uselocale(old);
    if (isinf(*out)) return fp8_json_fail(j, j->at, "number does not fit in a double");
    return FP8_OK;
}

fp8_status json_scan_number(fp8_json *j, fp8_json_event *e) {
    const int negative = j->src[j->at] == '-';
    const uint64_t limit = (uint64_t)INT64_MAX + (uint64_t)negative;
    uint64_t v = 0;
    int integer;
    fp8_status st = scan_extent(j, &e->end, &integer);

    if (st != FP8_OK) return st;
    integer = integer && fits_u64(j, j->at + (size_t)negative, e->end, &v);
    if (integer && v <= limit) {
        e->type = FP8_JSON_INT;
        e->i64 = negative ? (int64_t)(0 - v) : (int64_t)v;
        e->f64 = negative && v == 0 ? -0.0 : (double)e->i64;
        return FP8_OK;
    }
    if (integer && !negative) {
        e->type = FP8_JSON_UINT;
        e->u64 = v;
        e->f64 = (double)v;
        return FP8_OK;
    }
    e->type = FP8_JSON_REAL;
    return parse_real(j, e->end, &e->f64);
}
