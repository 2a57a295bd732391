/* formats/file_guard.c - what happens when a mapped file loses its end: its pages turn into zeros
 * and nothing made from them is committed. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "formats/file_guard.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/file.h"

/* A signal handler walks this list while other threads change it: entries are only ever added, at
 * the head, and used again once `begin` is 0. */
typedef struct mapping {
    atomic_uintptr_t begin, end;
    char *path;
    struct mapping *next;
} mapping;

static _Atomic(mapping *) mappings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all but the handler */
static atomic_uintptr_t lost_at;                         /* the first address that was lost */
static char *lost_path;                                  /* of a lost file unmapped since */
static atomic_uintptr_t page_bytes;

static mapping *find(uintptr_t address) {
    for (mapping *m = atomic_load(&mappings); m; m = m->next) {
        const uintptr_t begin = atomic_load(&m->begin);
        if (begin && address >= begin && address < atomic_load(&m->end)) return m;
    }
    return NULL;
}

static mapping *unused(void) {
    mapping *m = atomic_load(&mappings);

    while (m && atomic_load(&m->begin)) m = m->next;
    if (m) return m;
    m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->next = atomic_load(&mappings);
    atomic_store(&mappings, m);
    return m;
}

fp8_status fp8_file_watch(const fp8_file *f, const char *path) {
    char *name = strdup(path);
    mapping *m;

    pthread_mutex_lock(&lock);
    m = name ? unused() : NULL;
    if (m) {
        m->path = name;
        atomic_store(&page_bytes, (uintptr_t)sysconf(_SC_PAGESIZE));
        atomic_store(&m->end, (uintptr_t)f->data + f->bytes);
        atomic_store(&m->begin, (uintptr_t)f->data);
    }
    pthread_mutex_unlock(&lock);
    if (m) return FP8_OK;
    free(name);
    return FP8_FAIL(FP8_ENOMEM, "%s: no memory to map it", path);
}

void fp8_file_unwatch(const fp8_file *f) {
    mapping *m;

    pthread_mutex_lock(&lock);
    m = find((uintptr_t)f->data);
    if (m && find(atomic_load(&lost_at)) == m && !lost_path) lost_path = m->path;
    else if (m) free(m->path);
    if (m) {
        m->path = NULL;
        atomic_store(&m->begin, 0);
    }
    pthread_mutex_unlock(&lock);
}

int fp8_file_is_watched(const void *data, size_t bytes) {
    const mapping *m = find((uintptr_t)data);
    return m && bytes <= atomic_load(&m->end) - (uintptr_t)data;
}

/* All from the lost page to the end of the file: there is no use in any of it. */
int fp8_file_lost(const void *address) {
    const uintptr_t at = (uintptr_t)address, page = atomic_load(&page_bytes);
    const mapping *m = find(at);
    uintptr_t none = 0, from;

    if (!m) return 0;
    from = at / page * page;
    if (mmap((void *)from, atomic_load(&m->end) - from, PROT_READ,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return 0;
    atomic_compare_exchange_strong(&lost_at, &none, at);
    return 1;
}

fp8_status fp8_file_check_lost(void) {
    const uintptr_t at = atomic_load(&lost_at);
    const mapping *m;
    const char *path;
    fp8_status st;

    if (!at) return FP8_OK;
    pthread_mutex_lock(&lock);
    m = find(at);
    path = lost_path ? lost_path : m ? m->path : "a file";
    st = FP8_FAIL(FP8_EIO, "%s: became shorter, or unreadable, while it was read", path);
    pthread_mutex_unlock(&lock);
    return st;
}
