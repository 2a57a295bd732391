/* core/arena.h - many small host objects of one lifetime. Not thread-safe. */
#ifndef FP8_CORE_ARENA_H
#define FP8_CORE_ARENA_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_arena {
    struct fp8_arena_block *head; /* {0} is an empty, usable arena */
} fp8_arena;

/* 16-byte aligned, zeroed; NULL when memory is out (or bytes overflow). bytes 0 gives a valid
 * pointer. Freed only by fp8_arena_free. */
void *fp8_arena_alloc(fp8_arena *a, size_t bytes);

/* NUL-terminated copy of `len` bytes (which may hold NULs). */
char *fp8_arena_copy(fp8_arena *a, const char *text, size_t len);

void fp8_arena_free(fp8_arena *a); /* back to {0} */

#ifdef __cplusplus
}
#endif
#endif
