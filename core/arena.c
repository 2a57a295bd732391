#include "core/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, BLOCK_BYTES = 64 * 1024 };

struct fp8_arena_block {
    struct fp8_arena_block *next;
    size_t used, cap;
    alignas(ALIGN) unsigned char data[];
};

void *fp8_arena_alloc(fp8_arena *a, size_t bytes) {
    struct fp8_arena_block *b = a->head;
    size_t cap;
    void *p;

    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (!b || b->cap - b->used < bytes) {
        cap = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;
        b = calloc(1, sizeof *b + cap);
        if (!b) return NULL;
        b->cap = cap;
        if (a->head && bytes > BLOCK_BYTES / 4) { /* keep filling the open block */
            b->next = a->head->next;
            a->head->next = b;
        } else {
            b->next = a->head;
            a->head = b;
        }
    }
    p = b->data + b->used;
    b->used += bytes;
    return p;
}

char *fp8_arena_copy(fp8_arena *a, const char *text, size_t len) {
    char *p = len < SIZE_MAX ? fp8_arena_alloc(a, len + 1) : NULL;
    if (p) memcpy(p, text, len); /* the terminator is already zero */
    return p;
}

void fp8_arena_free(fp8_arena *a) {
    for (struct fp8_arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    a->head = NULL;
}
