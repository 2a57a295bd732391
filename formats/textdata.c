/* Text data: plain or JSONL, either gzipped. All of it is in memory: mapped, or inflated. */
#include "formats/textdata.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/file.h"
#include "formats/gzip.h"
#include "formats/json.h"
#include "formats/utf8.h"

struct fp8_text {
    char *name, *field;
    fp8_file file;
    char *inflated;   /* what the file holds, when gzipped */
    const char *data; /* NULL until the first sample is asked for */
    size_t len, at;
    int64_t line; /* number of the line at `at`, from 1 */
    int is_lines, is_over;
    char *sample; /* the last one of JSONL */
};

static int ends_with(const char *path, const char *end) {
    const size_t n = strlen(path), m = strlen(end);
    return n >= m && memcmp(path + n - m, end, m) == 0;
}

static char *copy(const char *text) {
    char *p = malloc(strlen(text) + 1);
    return p ? strcpy(p, text) : NULL;
}

static fp8_status create(fp8_text **out, const char *name, const char *field) {
    fp8_text *t = calloc(1, sizeof *t);

    *out = t;
    if (!t) return FP8_FAIL(FP8_ENOMEM, "%s", name);
    t->name = copy(name);
    t->field = copy(field ? field : "text");
    t->line = 1;
    return t->name && t->field ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%s", name);
}

fp8_status fp8_text_open(fp8_text **out, const char *path, const char *field) {
    fp8_text *t = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(create(&t, path, field));
    t->is_lines = ends_with(path, ".jsonl") || ends_with(path, ".jsonl.gz") ||
                  ends_with(path, ".json.gz");
    FP8_TRY(fp8_file_map(&t->file, path));
    *out = t;
    t = NULL;
done:
    fp8_text_close(t);
    return st;
}

fp8_status fp8_text_open_memory(fp8_text **out, const char *name, const char *text, size_t len) {
    fp8_text *t = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(create(&t, name, NULL));
    t->data = len ? text : "";
    t->len = len;
    *out = t;
    t = NULL;
done:
    fp8_text_close(t);
    return st;
}

void fp8_text_close(fp8_text *t) {
    if (!t) return;
    fp8_file_unmap(&t->file);
    free(t->inflated);
    free(t->sample);
    free(t->field);
    free(t->name);
    free(t);
}

int fp8_text_is_lines(const fp8_text *t) { return t->is_lines; }

/* ---- samples --------------------------------------------------------------------------------- */

static fp8_status find_data(fp8_text *t) {
    if (t->data) return FP8_OK;
    if (fp8_gzip_is(t->file.data, t->file.bytes)) {
        const fp8_status st = fp8_gzip_inflate(&t->inflated, &t->len, t->name, t->file.data,
                                               t->file.bytes, FP8_GZIP_MAX_BYTES);
        t->data = t->inflated;
        return st;
    }
    t->data = (const char *)t->file.data;
    t->len = t->file.bytes;
    return FP8_OK;
}

static fp8_status check_utf8(const char *name, const char *text, size_t len) {
    const size_t good = fp8_utf8_prefix(text, len);
    if (good == len) return FP8_OK;
    return FP8_FAIL(FP8_EDATA, "%s: byte %zu (0x%02x) is not UTF-8", name, good,
                    (unsigned char)text[good]);
}

/* The string `field` of one JSON object, copied. name says where it is. */
static fp8_status read_object(char **sample, size_t *len, const char *name, const char *field,
                              const char *line, size_t line_len) {
    fp8_json *j = NULL;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_open(&j, name, line, line_len, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "a sample", &e));
    for (;;) {
        int found;
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        found = fp8_json_is(&e, field);
        FP8_TRY(fp8_json_next(j, &e));
        if (!found) {
            FP8_TRY(fp8_json_skip(j, &e, NULL));
            continue;
        }
        if (e.type != FP8_JSON_STRING)
            FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: field '%s': expected string, found %s", name, field,
                             fp8_json_type_name(e.type)));
        *sample = malloc(e.len + 1);
        if (!*sample) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: %zu bytes", name, e.len));
        memcpy(*sample, e.text, e.len + 1);
        *len = e.len;
    }
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "a sample", &e));
    if (!*sample) FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: field '%s' is missing", name, field));
done:
    fp8_json_close(j);
    return st;
}

static int is_blank(const char *line, size_t len) {
    size_t n = 0;
    while (n < len && (line[n] == ' ' || line[n] == '\t' || line[n] == '\r')) n++;
    return n == len;
}

/* A line that fails stays: the next call fails in the same way. */
static fp8_status next_line(fp8_text *t, const char **text, size_t *len) {
    char where[512];
    fp8_status st = FP8_OK;

    free(t->sample);
    t->sample = NULL;
    while (t->at < t->len && !t->sample) {
        const char *line = t->data + t->at;
        const char *end = memchr(line, '\n', t->len - t->at);
        const size_t line_len = end ? (size_t)(end - line) : t->len - t->at;
        if (!is_blank(line, line_len)) {
            snprintf(where, sizeof where, "%s: line %lld", t->name, (long long)t->line);
            FP8_TRY(check_utf8(where, line, line_len));
            FP8_TRY(read_object(&t->sample, len, where, t->field, line, line_len));
        }
        t->at += line_len + (end != NULL);
        t->line++;
    }
    *text = t->sample;
done:
    return st;
}

fp8_status fp8_text_next(fp8_text *t, const char **text, size_t *len) {
    fp8_status st = FP8_OK;

    *text = NULL;
    *len = 0;
    FP8_TRY(find_data(t));
    if (t->is_lines) return next_line(t, text, len);
    if (t->is_over) return FP8_OK;
    FP8_TRY(check_utf8(t->name, t->data, t->len));
    *text = t->data;
    *len = t->len;
    t->is_over = 1;
done:
    return st;
}
