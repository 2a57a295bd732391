/* formats/names.h - name -> number, for as many names as are announced. The strings stay the
 * caller's. Reading is safe from many threads. Private. */
#ifndef FP8_FORMATS_NAMES_H
#define FP8_FORMATS_NAMES_H
#include "core/status.h"
#include "formats/hash.h"

typedef struct fp8_names {
    struct fp8_name_slot *slots; /* open addressing; NULL when empty */
    size_t num_slots;            /* a power of two, more than twice the names */
    fp8_hash_key key;
} fp8_names;

/* Room for `count` names. FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_names_create(fp8_names *n, int64_t count);
void fp8_names_free(fp8_names *n); /* {0} is fine */

/* Number of `name`, or -1. */
int64_t fp8_names_find(const fp8_names *n, const char *name);

/* Adds name -> number (>= 0), unless it is there: returns the number it has already, or -1. */
int64_t fp8_names_add(fp8_names *n, const char *name, int64_t number);
#endif
