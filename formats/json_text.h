/* formats/json_text.h - JSON that goes out, as growing text: for headers of a hundred thousand
 * entries, where a tree of nodes is a waste. A failure is kept until the end. Private. */
#ifndef FP8_FORMATS_JSON_TEXT_H
#define FP8_FORMATS_JSON_TEXT_H
#include <stddef.h>

#include "core/status.h"

typedef struct fp8_json_text {
    char *data; /* terminated once anything was added; free() */
    size_t len, cap;
    int failed; /* out of memory: what follows is ignored */
} fp8_json_text;

void fp8_json_text_add(fp8_json_text *t, const char *bytes, size_t len);
/* Up to 255 bytes at once. */
void fp8_json_text_printf(fp8_json_text *t, const char *fmt, ...) FP8_PRINTF(2, 3);
void fp8_json_text_string(fp8_json_text *t, const char *text); /* quotes and escapes it */
#endif
