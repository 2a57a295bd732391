/* The .npy format, versions 1.0 to 3.0: magic, version, header length, a Python dict literal with
 * exactly the keys descr, fortran_order and shape in any order, data. */
#include <string.h>

#include "core/tensor.h"
#include "formats/iddata_impl.h"
#include "formats/utf8.h"

typedef struct reader {
    const char *name, *p, *end;
} reader;

static fp8_status expected(const reader *r, const char *what) {
    char found[FP8_SHOWN_BYTES];
    const size_t left = (size_t)(r->end - r->p);
    return FP8_FAIL(FP8_EFORMAT, "%s: header: expected %s, found '%s'", r->name, what,
                    fp8_utf8_show(found, r->p, left < 20 ? left : 20));
}

static void skip_spaces(reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n')) r->p++;
}

/* Eats text when it comes next. */
static int accept(reader *r, const char *text) {
    const size_t n = strlen(text);
    skip_spaces(r);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, text, n) != 0) return 0;
    r->p += n;
    return 1;
}

/* ---- values ---------------------------------------------------------------------------------- */

/* '...' or "..." without escapes */
static fp8_status read_string(reader *r, const char **text, size_t *len) {
    const char *close;
    char quote;

    skip_spaces(r);
    if (r->p == r->end || (*r->p != '\'' && *r->p != '"')) return expected(r, "a string");
    quote = *r->p;
    close = memchr(r->p + 1, quote, (size_t)(r->end - r->p) - 1);
    if (!close || memchr(r->p, '\\', (size_t)(close - r->p))) return expected(r, "a plain string");
    *text = r->p + 1;
    *len = (size_t)(close - *text);
    r->p = close + 1;
    return FP8_OK;
}

static fp8_status read_descr(reader *r, id_array *out) {
    char shown[FP8_SHOWN_BYTES];
    const char *text;
    size_t len;
    fp8_status st = FP8_OK;

    FP8_TRY(read_string(r, &text, &len));
    fp8_utf8_show(shown, text, len);
    if (len != 3 || !strchr("<>|=", text[0]))
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: dtype '%s': expected integers", r->name, shown));
    if ((text[1] != 'i' && text[1] != 'u') || !memchr("1248", text[2], 4))
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: dtype '%s': expected integers", r->name, shown));
    out->element_bytes = (size_t)(text[2] - '0');
    out->is_signed = text[1] == 'i';
    if (text[0] != '<' && out->element_bytes > 1)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: dtype '%s': expected little-endian", r->name,
                         shown));
done:
    return st;
}

static fp8_status read_order(reader *r) {
    if (accept(r, "False")) return FP8_OK;
    if (!accept(r, "True")) return expected(r, "True or False");
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: Fortran order: expected C order", r->name);
}

static fp8_status read_size(reader *r, int64_t *out) {
    int64_t v = 0;

    skip_spaces(r);
    if (r->p == r->end || *r->p < '0' || *r->p > '9') return expected(r, "a size");
    for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++) {
        const int digit = *r->p - '0';
        if (v > (INT64_MAX - digit) / 10) return expected(r, "a size below 2^63");
        v = v * 10 + digit;
    }
    *out = v;
    return FP8_OK;
}

/* (n,) or (rows, cols) */
static fp8_status read_shape(reader *r, id_array *out) {
    int64_t sizes[2] = {0};
    int ndim = 0;
    fp8_status st = FP8_OK;

    if (!accept(r, "(")) FP8_TRY(expected(r, "'('"));
    while (!accept(r, ")")) {
        if (ndim == 2)
            FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: expected 1 or 2 dimensions", r->name));
        FP8_TRY(read_size(r, &sizes[ndim++]));
        if (accept(r, ",")) continue;
        if (!accept(r, ")") || ndim == 1) FP8_TRY(expected(r, "','"));
        break;
    }
    if (ndim == 0) FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: a scalar", r->name));
    out->rows = ndim == 2 ? sizes[0] : 1;
    out->cols = sizes[ndim - 1];
done:
    return st;
}

/* ---- header ---------------------------------------------------------------------------------- */

static fp8_status read_dict(reader *r, id_array *out) {
    static const char *const keys[] = {"descr", "fortran_order", "shape"};
    int seen[3] = {0};
    fp8_status st = FP8_OK;

    if (!accept(r, "{")) FP8_TRY(expected(r, "'{'"));
    while (!accept(r, "}")) {
        const char *key;
        size_t len, k = 0;
        FP8_TRY(read_string(r, &key, &len));
        while (k < 3 && (strlen(keys[k]) != len || memcmp(keys[k], key, len) != 0)) k++;
        if (k == 3 || seen[k]++) FP8_TRY(expected(r, "descr, fortran_order and shape, each once"));
        if (!accept(r, ":")) FP8_TRY(expected(r, "':'"));
        if (k == 0) FP8_TRY(read_descr(r, out));
        if (k == 1) FP8_TRY(read_order(r));
        if (k == 2) FP8_TRY(read_shape(r, out));
        if (accept(r, ",")) continue;
        if (!accept(r, "}")) FP8_TRY(expected(r, "',' or '}'"));
        break;
    }
    if (!seen[0] || !seen[1] || !seen[2])
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: header: '%s' is missing", r->name,
                         keys[!seen[0] ? 0 : !seen[1] ? 1 : 2]));
    skip_spaces(r);
    if (r->p < r->end) FP8_TRY(expected(r, "the end of the header"));
done:
    return st;
}

/* The header's bytes: *at = where they begin, *len = how many. */
static fp8_status find_header(size_t *at, size_t *len, const char *name, const unsigned char *data,
                              size_t bytes) {
    static const unsigned char magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
    const size_t fixed = sizeof magic + 2; /* magic and version; the header's length follows */
    size_t length_bytes;

    if (bytes < fixed || memcmp(data, magic, sizeof magic) != 0)
        return FP8_FAIL(FP8_EFORMAT, "%s: no .npy file", name);
    if (data[6] < 1 || data[6] > 3 || data[7] != 0)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: .npy version %d.%d: expected 1.0 to 3.0", name,
                        data[6], data[7]);
    length_bytes = data[6] == 1 ? 2 : 4;
    *at = fixed + length_bytes;
    *len = 0;
    if (bytes < *at) return FP8_FAIL(FP8_EFORMAT, "%s: cut at byte %zu", name, bytes);
    for (size_t i = length_bytes; i-- > 0;) *len = *len << 8 | data[fixed + i];
    if (*len > bytes - *at)
        return FP8_FAIL(FP8_EFORMAT, "%s: header of %zu bytes in a file of %zu", name, *len, bytes);
    return FP8_OK;
}

fp8_status id_array_from_npy(id_array *out, const char *name, const unsigned char *data,
                             size_t bytes) {
    reader r = {.name = name};
    size_t at = 0, len = 0, want = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(find_header(&at, &len, name, data, bytes));
    r.p = (const char *)data + at;
    r.end = r.p + len;
    FP8_TRY(read_dict(&r, out));
    out->data = data + at + len;
    if (fp8_mul_size(&want, (size_t)out->rows, (size_t)out->cols) != FP8_OK ||
        fp8_mul_size(&want, want, out->element_bytes) != FP8_OK || want != bytes - at - len)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: %zu bytes of data: expected %lld x %lld of %zu bytes",
                         name, bytes - at - len, (long long)out->rows, (long long)out->cols,
                         out->element_bytes));
done:
    return st;
}
