#include "formats/json_text.h"

#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fp8_json_text_add(fp8_json_text *t, const char *bytes, size_t len) {
    if (t->failed) return;
    if (len >= t->cap - t->len) { /* one more for the terminator */
        const size_t cap = 2 * t->cap + len + 256;
        char *data = realloc(t->data, cap);
        if (!data) {
            t->failed = 1;
            return;
        }
        t->data = data;
        t->cap = cap;
    }
    memcpy(t->data + t->len, bytes, len);
    t->len += len;
    t->data[t->len] = '\0';
}

void fp8_json_text_printf(fp8_json_text *t, const char *fmt, ...) {
    char text[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof text) t->failed = 1;
    else fp8_json_text_add(t, text, (size_t)n);
}

void fp8_json_text_string(fp8_json_text *t, const char *text) {
    cJSON *item = cJSON_CreateStringReference(text);
    char *escaped = item ? cJSON_PrintUnformatted(item) : NULL;

    if (escaped) fp8_json_text_add(t, escaped, strlen(escaped));
    else t->failed = 1;
    cJSON_free(escaped);
    cJSON_Delete(item);
}
