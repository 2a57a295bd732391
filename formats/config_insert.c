/* formats/config_insert.c - one key put into config.json as text: what else is in the file, known
 * to us or not, keeps its bytes. */
#include "formats/config.h"

#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "formats/json.h"
#include "formats/json_layout.h"

static const char KEY[] = "quantization_config", LABEL[] = "\"quantization_config\": ";

typedef struct place {
    size_t begin, end;   /* these bytes are replaced (none, when the key is new) */
    size_t open;         /* just past the object's '{' */
    size_t first;        /* of the first key; past `open`, where there is one */
    size_t brace;        /* of the closing '}' */
    int is_new;
} place;

/* Finds where the value goes, checking the whole document on the way. */
static fp8_status find_place(place *p, const char *name, const char *json, size_t len) {
    fp8_status st = FP8_OK;
    fp8_json *j = NULL;
    fp8_json_event e;
    size_t end = 0;

    memset(p, 0, sizeof *p);
    p->is_new = 1;
    FP8_TRY(fp8_json_open(&j, name, json, len, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "the configuration", &e));
    p->open = p->begin = p->end = e.end;
    for (;;) {
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        const int ours = fp8_json_is(&e, KEY);
        if (!p->first) p->first = e.begin;
        FP8_TRY(fp8_json_next(j, &e));
        const size_t begin = e.begin;
        FP8_TRY(fp8_json_skip(j, &e, &end));
        if (!ours && !p->is_new) continue;
        p->is_new = !ours;
        p->begin = ours ? begin : end;
        p->end = end;
    }
    p->brace = e.begin;
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "the configuration", &e));
done:
    fp8_json_close(j);
    return st;
}

/* The file's own style, by the space before its first key or, of an empty object, its brace. */
static fp8_json_style style_of(const char *json, const place *p) {
    fp8_json_style style = {NULL, "  ", 2};
    const size_t until = p->first ? p->first : p->brace;

    for (size_t i = p->open; i < until; i++) {
        if (json[i] != '\n') continue;
        style.newline = i > 0 && json[i - 1] == '\r' ? "\r\n" : "\n";
        if (!p->first) continue;
        style.unit = json + i + 1;
        style.unit_len = until - (i + 1);
    }
    return style;
}

/* dst NULL counts. Everything between the bytes that stay. */
static size_t write_piece(char *dst, const place *p, const fp8_json_style *style,
                          const char *value) {
    size_t at = 0;

    if (p->is_new) {
        const int follows = p->first != 0;
        if (follows && dst) dst[at] = ',';
        at += (size_t)follows;
        if (follows || style->newline) at += fp8_json_break(dst ? dst + at : NULL, style, 1);
        if (dst) memcpy(dst + at, LABEL, sizeof LABEL - 1);
        at += sizeof LABEL - 1;
    }
    return at + fp8_json_layout(dst ? dst + at : NULL, value, strlen(value), style, 1);
}

static fp8_status check_value(const char *value) {
    fp8_status st = FP8_OK;
    fp8_json *j = NULL;
    fp8_json_event e;

    FP8_TRY(fp8_json_open(&j, KEY, value, strlen(value), NULL));
    FP8_TRY(fp8_json_next(j, &e));
    FP8_TRY(fp8_json_skip(j, &e, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "the value", &e));
done:
    fp8_json_close(j);
    return st;
}

fp8_status fp8_config_insert(char **out, size_t *out_len, const char *name, const char *json,
                             size_t len, const char *value) {
    fp8_status st = FP8_OK;
    fp8_json_style style;
    char *text = NULL;
    size_t piece, total;
    place p;

    *out = NULL;
    *out_len = 0;
    FP8_TRY(check_value(value));
    FP8_TRY(find_place(&p, name, json, len));
    style = style_of(json, &p);
    piece = write_piece(NULL, &p, &style, value);
    FP8_TRY(fp8_add_size(&total, len - (p.end - p.begin), piece));
    text = malloc(total + 1);
    if (!text) return FP8_FAIL(FP8_ENOMEM, "%s: %zu bytes", name, total + 1);
    memcpy(text, json, p.begin);
    write_piece(text + p.begin, &p, &style, value);
    memcpy(text + p.begin + piece, json + p.end, len - p.end);
    text[total] = '\0';
    *out = text;
    *out_len = total;
done:
    return st;
}

/* ---- removal --------------------------------------------------------------------------------- */

/* [*begin, *end) is the member with what parts it from its neighbour; empty when it is absent. */
static fp8_status find_member(size_t *begin, size_t *end, const char *name, const char *json,
                              size_t len) {
    fp8_status st = FP8_OK;
    fp8_json *j = NULL;
    fp8_json_event e;
    size_t before = 0, after = 0; /* ends of the value before this one, and of this one */
    int is_first = 1, was_ours = 0;

    *begin = *end = 0;
    FP8_TRY(fp8_json_open(&j, name, json, len, NULL));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "the configuration", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(j, &e));
        if (was_ours) *end = e.begin; /* it was the first: up to the next key or the brace */
        if (e.type == FP8_JSON_OBJECT_END) break;
        const int ours = fp8_json_is(&e, KEY);
        const size_t key = e.begin;
        FP8_TRY(fp8_json_next(j, &e));
        FP8_TRY(fp8_json_skip(j, &e, &after));
        if (ours) {
            *begin = is_first ? key : before;
            *end = after;
        }
        was_ours = ours && is_first;
        is_first = 0;
        before = after;
    }
    FP8_TRY(fp8_json_expect(j, FP8_JSON_END, "the configuration", &e));
done:
    fp8_json_close(j);
    return st;
}

fp8_status fp8_config_remove(char **out, size_t *out_len, const char *name, const char *json,
                             size_t len) {
    fp8_status st = FP8_OK;
    size_t begin, end;

    *out = NULL;
    *out_len = 0;
    FP8_TRY(find_member(&begin, &end, name, json, len));
    *out = malloc(len - (end - begin) + 1);
    if (!*out) return FP8_FAIL(FP8_ENOMEM, "%s: %zu bytes", name, len + 1);
    memcpy(*out, json, begin);
    memcpy(*out + begin, json + end, len - end);
    *out_len = len - (end - begin);
    (*out)[*out_len] = '\0';
done:
    return st;
}
