/* formats/json_impl.h - what the parser's files share. Private to formats/json*.c. */
#ifndef FP8_FORMATS_JSON_IMPL_H
#define FP8_FORMATS_JSON_IMPL_H
#include <locale.h>

#include "formats/hash.h"
#include "formats/json.h"

/* What may come next. */
typedef enum json_state {
    JSON_VALUE,        /* after ':' or ',' or at the start */
    JSON_VALUE_OR_END, /* after '[' */
    JSON_KEY,          /* after ',' in an object */
    JSON_KEY_OR_END,   /* after '{' */
    JSON_COMMA_OR_END, /* after a value */
    JSON_DONE
} json_state;

/* Growing bytes: strings without their escapes, numbers for strtod. */
typedef struct json_text {
    char *data;
    size_t len, cap;
} json_text;

/* The keys of all open objects, in the order read: a stack, since the innermost object closes
 * first. Each is in the chain of its bucket, newest at the head, so closing an object pops its
 * keys from heads only. */
typedef struct json_key_slot {
    uint64_t hash;
    size_t begin;   /* of the token in the source */
    uint32_t next;  /* older key of the same bucket, NO_KEY at the end */
    uint32_t depth; /* of its object */
} json_key_slot;

typedef struct json_keys {
    json_key_slot *slots;
    uint32_t *buckets; /* num_buckets heads, a power of two */
    uint32_t num, cap, num_buckets;
    fp8_hash_key key;
} json_keys;

struct fp8_json {
    char *name;
    const unsigned char *src;
    size_t len, at;
    fp8_status failed;
    json_state state;
    int32_t depth, max_depth;
    char *open;       /* [max_depth] '{' or '[' */
    json_text text;   /* the current token */
    json_text other;  /* an older key, to compare with */
    json_keys keys;
    locale_t locale;  /* "C", made when the first real number comes */
};

/* Out of memory, also remembered as the parser's state. */
fp8_status json_fail_memory(fp8_json *j);

/* "'x'", "byte 0x01", "end of file": what stands at `at`. */
const char *json_found(const fp8_json *j, size_t at, char buf[16]);

/* json_lex.c. A string token with its opening quote at j->src[at], decoded into *out (terminated);
 * *end is just past the closing quote. */
fp8_status json_scan_string(fp8_json *j, size_t at, json_text *out, size_t *end);
/* A number that begins at j->at ('-' or a digit): fills type, values and end of *e. */
fp8_status json_scan_number(fp8_json *j, fp8_json_event *e);

/* json_keys.c. Adds the key in j->text, whose token begins at `begin`, to the innermost object:
 * FP8_EFORMAT when that has it already. */
fp8_status json_keys_add(fp8_json *j, size_t begin);
void json_keys_close(fp8_json *j); /* forgets the keys of the innermost object */
void json_keys_free(json_keys *k);
#endif
