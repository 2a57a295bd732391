/* formats/hash.h - SipHash-1-3: a keyed hash for names that come from files, so that nobody can
 * prepare names that all collide. Private. */
#ifndef FP8_FORMATS_HASH_H
#define FP8_FORMATS_HASH_H
#include <stddef.h>
#include <stdint.h>

typedef struct fp8_hash_key {
    uint64_t k[2];
} fp8_hash_key;

fp8_hash_key fp8_hash_random_key(void); /* from the system; never fails */
uint64_t fp8_hash(const fp8_hash_key *key, const void *data, size_t bytes);
#endif
