#include "formats/names.h"

#include <stdlib.h>
#include <string.h>

struct fp8_name_slot {
    const char *name; /* NULL: free */
    uint64_t hash;
    int64_t number;
};

fp8_status fp8_names_create(fp8_names *n, int64_t count) {
    size_t num_slots = 16;

    while (num_slots / 2 <= (size_t)count) num_slots *= 2;
    *n = (fp8_names){.num_slots = num_slots, .key = fp8_hash_random_key()};
    n->slots = calloc(num_slots, sizeof *n->slots);
    if (!n->slots)
        return FP8_FAIL(FP8_ENOMEM, "no memory for a table of %lld names", (long long)count);
    return FP8_OK;
}

void fp8_names_free(fp8_names *n) {
    free(n->slots);
    *n = (fp8_names){0};
}

/* The slot of `name`, or the free one where it would go. */
static struct fp8_name_slot *slot_of(const fp8_names *n, const char *name, uint64_t hash) {
    size_t at = hash & (n->num_slots - 1);
    while (n->slots[at].name &&
           (n->slots[at].hash != hash || strcmp(n->slots[at].name, name) != 0))
        at = (at + 1) & (n->num_slots - 1);
    return &n->slots[at];
}

int64_t fp8_names_find(const fp8_names *n, const char *name) {
    const struct fp8_name_slot *slot;
    if (!n->slots) return -1;
    slot = slot_of(n, name, fp8_hash(&n->key, name, strlen(name)));
    return slot->name ? slot->number : -1;
}

int64_t fp8_names_add(fp8_names *n, const char *name, int64_t number) {
    const uint64_t hash = fp8_hash(&n->key, name, strlen(name));
    struct fp8_name_slot *slot = slot_of(n, name, hash);
    if (slot->name) return slot->number;
    *slot = (struct fp8_name_slot){name, hash, number};
    return -1;
}
