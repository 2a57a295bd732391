/* formats/json_layout.h - private: JSON text laid out anew, tokens kept byte for byte. */
#ifndef FP8_FORMATS_JSON_LAYOUT_H
#define FP8_FORMATS_JSON_LAYOUT_H
#include <stddef.h>

typedef struct fp8_json_style {
    const char *newline; /* "\n", "\r\n"; NULL: everything in one line, {"a": 1, "b": [2, 3]} */
    const char *unit;    /* one level of indentation */
    size_t unit_len;     /* its bytes: unit may point into a file */
} fp8_json_style;

/* Writes `value` (valid JSON) to dst with every member and element on a line of its own, as the
 * inside of `depth` levels: the first line is not indented, nothing follows the last. Returns the
 * bytes; dst NULL only counts them. */
size_t fp8_json_layout(char *dst, const char *value, size_t len, const fp8_json_style *style,
                       int depth);

/* Newline and `depth` levels of indentation; a blank in a one-line style. */
size_t fp8_json_break(char *dst, const fp8_json_style *style, int depth);
#endif
