#include <stdlib.h>
#include <string.h>

#include "formats/json_impl.h"
#include "formats/utf8.h"

#define NO_KEY UINT32_MAX

enum { FIRST_KEYS = 64 };

static uint32_t *bucket_of(json_keys *k, uint64_t hash) {
    return &k->buckets[hash & (k->num_buckets - 1)];
}

/* Room for one more key, with no more keys than buckets. */
static fp8_status reserve(fp8_json *j) {
    json_keys *k = &j->keys;
    const uint32_t cap = k->cap ? 2 * k->cap : FIRST_KEYS;
    json_key_slot *slots;
    uint32_t *buckets;

    if (k->num < k->cap) return FP8_OK;
    if (k->cap == 0) k->key = fp8_hash_random_key();
    if (k->cap > UINT32_MAX / 2) return json_fail_memory(j);
    slots = realloc(k->slots, (size_t)cap * sizeof *slots);
    if (!slots) return json_fail_memory(j);
    k->slots = slots;
    buckets = realloc(k->buckets, (size_t)cap * sizeof *buckets);
    if (!buckets) return json_fail_memory(j);
    k->buckets = buckets;
    k->cap = k->num_buckets = cap;
    for (uint32_t i = 0; i < cap; i++) buckets[i] = NO_KEY;
    for (uint32_t i = 0; i < k->num; i++) { /* oldest first keeps the newest at the heads */
        uint32_t *head = bucket_of(k, slots[i].hash);
        slots[i].next = *head;
        *head = i;
    }
    return FP8_OK;
}

/* Whether an earlier key of the same hash really is the key in j->text. */
static fp8_status same_key(fp8_json *j, const json_key_slot *slot, int *same) {
    size_t end;
    const fp8_status st = json_scan_string(j, slot->begin, &j->other, &end);
    *same = st == FP8_OK && j->other.len == j->text.len &&
            memcmp(j->other.data, j->text.data, j->text.len) == 0;
    return st;
}

fp8_status json_keys_add(fp8_json *j, size_t begin) {
    json_keys *k = &j->keys;
    fp8_status st = reserve(j);
    uint32_t *head;
    uint64_t hash;
    int same = 0;

    if (st != FP8_OK) return st;
    hash = fp8_hash(&k->key, j->text.data, j->text.len);
    head = bucket_of(k, hash);
    for (uint32_t i = *head; i != NO_KEY && !same; i = k->slots[i].next) {
        if (k->slots[i].hash != hash || k->slots[i].depth != (uint32_t)j->depth) continue;
        st = same_key(j, &k->slots[i], &same);
        if (st != FP8_OK) return st;
    }
    if (same) {
        char shown[FP8_SHOWN_BYTES];
        return fp8_json_fail(j, begin, "duplicate key '%s'",
                             fp8_utf8_show(shown, j->text.data, j->text.len));
    }
    k->slots[k->num] = (json_key_slot){hash, begin, *head, (uint32_t)j->depth};
    *head = k->num++;
    return FP8_OK;
}

void json_keys_close(fp8_json *j) {
    json_keys *k = &j->keys;
    while (k->num > 0 && k->slots[k->num - 1].depth == (uint32_t)j->depth) {
        k->num--;
        *bucket_of(k, k->slots[k->num].hash) = k->slots[k->num].next;
    }
}

void json_keys_free(json_keys *k) {
    free(k->slots);
    free(k->buckets);
}
