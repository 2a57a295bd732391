#include "formats/json_layout.h"

#include <string.h>

static size_t put(char *dst, size_t at, const char *text, size_t len) {
    if (dst) memcpy(dst + at, text, len);
    return at + len;
}

static char *later(char *dst, size_t at) { return dst ? dst + at : NULL; }

size_t fp8_json_break(char *dst, const fp8_json_style *style, int depth) {
    size_t at = 0;
    if (!style->newline) return put(dst, 0, " ", 1);
    at = put(dst, at, style->newline, strlen(style->newline));
    for (int i = 0; i < depth; i++) at = put(dst, at, style->unit, style->unit_len);
    return at;
}

static size_t space_at(const char *value, size_t len, size_t i) {
    while (i < len && strchr(" \t\r\n", value[i]) && value[i]) i++;
    return i;
}

/* Just past the string that begins at value[i]. */
static size_t string_end(const char *value, size_t i) {
    for (i++; value[i] != '"'; i++) i += value[i] == '\\';
    return i + 1;
}

size_t fp8_json_layout(char *dst, const char *value, size_t len, const fp8_json_style *style,
                       int depth) {
    size_t at = 0;

    for (size_t i = space_at(value, len, 0), next; i < len; i = space_at(value, len, next)) {
        const char c = value[i];
        const size_t inside = space_at(value, len, i + 1);
        const int opens = c == '{' || c == '[', closes = c == '}' || c == ']';
        const int empty = opens && (value[inside] == '}' || value[inside] == ']');

        next = c == '"' ? string_end(value, i) : i + 1;
        if (closes) {
            depth--;
            if (style->newline) at += fp8_json_break(later(dst, at), style, depth);
        }
        at = put(dst, at, value + i, next - i);
        if (empty) {
            at = put(dst, at, value + inside, 1);
            next = inside + 1;
        } else if (opens) {
            depth++;
            if (style->newline) at += fp8_json_break(later(dst, at), style, depth);
        } else if (c == ',') {
            at += fp8_json_break(later(dst, at), style, depth);
        } else if (c == ':') {
            at = put(dst, at, " ", 1);
        }
    }
    return at;
}
