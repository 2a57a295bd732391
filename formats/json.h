/* formats/json.h - a strict pull parser for JSON that comes from outside.
 *
 * Strict: RFC 8259, UTF-8 checked (also in escapes: lone surrogates are refused), duplicate keys
 * of one object refused, depth and size capped, nothing after the value but white space. Integers
 * that fit are exact in 64 bits; strings may hold NUL and carry their length. One thread a parser.
 * A failed parser stays failed: each later call returns the same status. */
#ifndef FP8_FORMATS_JSON_H
#define FP8_FORMATS_JSON_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_json_type {
    FP8_JSON_END,  /* the document is over */
    FP8_JSON_OBJECT,
    FP8_JSON_OBJECT_END,
    FP8_JSON_ARRAY,
    FP8_JSON_ARRAY_END,
    FP8_JSON_KEY,
    FP8_JSON_STRING,
    FP8_JSON_INT,  /* no fraction, no exponent, fits int64: i64, f64 */
    FP8_JSON_UINT, /* likewise, above INT64_MAX, fits uint64: u64, f64 */
    FP8_JSON_REAL, /* every other number: f64, finite (what overflows a double is refused) */
    FP8_JSON_TRUE,
    FP8_JSON_FALSE,
    FP8_JSON_NULL
} fp8_json_type;

typedef struct fp8_json_event {
    fp8_json_type type;
    const char *text; /* KEY, STRING: unescaped, NUL-terminated as well; until the next call */
    size_t len;
    int64_t i64;
    uint64_t u64;
    double f64;
    size_t begin, end; /* byte offsets of the token in the source, quotes included */
} fp8_json_event;

typedef struct fp8_json fp8_json;

typedef struct fp8_json_options {
    int32_t max_depth;    /* 0: 64 */
    size_t max_bytes;     /* 0: 1 GiB */
} fp8_json_options;

/* bytes stays the caller's and must outlive the parser. name is for messages ("config.json").
 * options may be NULL. FP8_EFORMAT (too large, a byte order mark), FP8_EINVAL (a negative depth),
 * FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_json_open(fp8_json **out, const char *name, const char *bytes,
                                       size_t len, const fp8_json_options *options);
void fp8_json_close(fp8_json *j);

/* The next token. FP8_EFORMAT: "name: line 3, column 14: expected ..., found ...". */
FP8_NODISCARD fp8_status fp8_json_next(fp8_json *j, fp8_json_event *e);

/* Having just read `e` (a value's first token, not a KEY), skips the rest of that value, checking
 * it all the same. *end (may be NULL) = byte offset just past the value. */
FP8_NODISCARD fp8_status fp8_json_skip(fp8_json *j, const fp8_json_event *e, size_t *end);

/* Next token must be of `type`; what names the thing for the message ("added_tokens[3].id"). */
FP8_NODISCARD fp8_status fp8_json_expect(fp8_json *j, fp8_json_type type, const char *what,
                                         fp8_json_event *e);

/* Inside an object: *e = its next KEY, or OBJECT_END. Inside an array use fp8_json_next. */
FP8_NODISCARD fp8_status fp8_json_key(fp8_json *j, fp8_json_event *e);

/* Value readers for "the value that comes now"; each names `what` on a type mismatch.
 * fp8_json_get_int: lo <= value <= hi. fp8_json_get_number accepts INT, UINT, REAL. */
FP8_NODISCARD fp8_status fp8_json_get_int(fp8_json *j, const char *what, int64_t lo, int64_t hi,
                                          int64_t *out);
FP8_NODISCARD fp8_status fp8_json_get_number(fp8_json *j, const char *what, double *out);
FP8_NODISCARD fp8_status fp8_json_get_bool(fp8_json *j, const char *what, int *out);

/* FP8_EFORMAT with "name: line l, column c: " before the text, at source offset `at`. */
fp8_status fp8_json_fail(fp8_json *j, size_t at, const char *fmt, ...) FP8_PRINTF(3, 4);

int fp8_json_is(const fp8_json_event *e, const char *text); /* KEY or STRING equal to a C string */
const char *fp8_json_type_name(fp8_json_type t);            /* "object", "integer", ... */

#ifdef __cplusplus
}
#endif
#endif
