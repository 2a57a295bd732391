#ifdef FP8_FAULTS
#define _GNU_SOURCE /* renameat2 */
#include "core/fault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int __real_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, ...);

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int64_t first, last; /* calls that fail */
static int log_file = -1;
static atomic_llong count;

static void read_environment(void) {
    const char *fault = getenv("FP8_FAULT"), *path = getenv("FP8_FAULT_LOG");
    if (fault) {
        first = last = strtoll(fault, NULL, 10);
        if (strchr(fault, '+')) last = INT64_MAX;
    }
    if (path) log_file = __real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

int fp8_fault_hits(const char *name, int error, const void *caller) {
    int64_t k;

    pthread_once(&once, read_environment);
    k = (int64_t)atomic_fetch_add(&count, 1) + 1;
    if (log_file >= 0)
        dprintf(log_file, "%s %" PRIdPTR "\n", name,
                (intptr_t)caller - (intptr_t)(uintptr_t)__wrap_open);
    if (k < first || k > last) return 0;
    errno = error;
    return 1;
}

#define WRAP(result, name, failed, error, parameters, arguments)                                   \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters {                                                              \
        if (fp8_fault_hits(#name, error, __builtin_return_address(0))) return failed;              \
        return __real_##name arguments;                                                            \
    }
FP8_FAULT_MAP(WRAP)

int __wrap_open(const char *path, int flags, ...) {
    mode_t mode = 0;

    if (flags & O_CREAT) {
        va_list ap;
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    if (fp8_fault_hits("open", EIO, __builtin_return_address(0))) return -1;
    return __real_open(path, flags, mode);
}
#else
extern int fp8_no_faults; /* ISO C has no empty file */
#endif
