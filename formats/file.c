#define _DEFAULT_SOURCE /* madvise */
#include "formats/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/file_guard.h"
#include "formats/new_file.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

static const unsigned char nothing[1]; /* what an empty file maps to */

fp8_status fp8_file_map(fp8_file *out, const char *path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* do not wait for a FIFO */
    struct stat info;
    void *data = NULL;
    fp8_status st = FP8_OK;

    *out = (fp8_file){NULL, 0};
    if (fd < 0) return FP8_FAIL_ERRNO(path, "open");
    if (fstat(fd, &info) != 0) {
        st = FP8_FAIL_ERRNO(path, "stat");
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        st = FP8_FAIL(FP8_EIO, "%s: expected a regular file, found %s", path,
                      S_ISDIR(info.st_mode) ? "a folder" : "a device, pipe or socket");
        goto done;
    }
    if (info.st_size == 0) {
        out->data = nothing;
        goto done;
    }
    data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        st = FP8_FAIL_ERRNO(path, "map");
        goto done;
    }
    *out = (fp8_file){data, (size_t)info.st_size};
    st = fp8_file_watch(out, path);
    if (st != FP8_OK) {
        munmap(data, out->bytes);
        *out = (fp8_file){NULL, 0};
    }
done:
    close(fd);
    return st;
}

static void advise(const void *data, size_t bytes, int advice) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + bytes) / page * page;

    if (end > begin && fp8_file_is_watched(data, bytes))
        (void)madvise((void *)begin, end - begin, advice); /* an older kernel: no harm done */
}

void fp8_file_soon(const void *data, size_t bytes) { advise(data, bytes, MADV_POPULATE_READ); }
void fp8_file_drop(const void *data, size_t bytes) { advise(data, bytes, MADV_DONTNEED); }

void fp8_file_unmap(fp8_file *f) {
    if (f->bytes > 0) {
        fp8_file_unwatch(f);
        munmap((void *)(uintptr_t)f->data, f->bytes);
    }
    *f = (fp8_file){NULL, 0};
}

fp8_status fp8_file_write(const char *path, const void *data, size_t bytes) {
    fp8_new_file f;
    fp8_status st = fp8_new_file_create(&f, path);

    if (st != FP8_OK) return st;
    st = fp8_new_file_write(&f, 0, data, bytes);
    if (st == FP8_OK) return fp8_new_file_commit(&f);
    fp8_new_file_abort(&f);
    return st;
}

char *fp8_path_join(const char *dir, const char *name) {
    const size_t dir_len = dir ? strlen(dir) : 0, name_len = strlen(name);
    const int slash = dir_len > 0 && dir[dir_len - 1] != '/';
    char *path = malloc(dir_len + (size_t)slash + name_len + 1);

    if (!path) return NULL;
    if (dir_len > 0) memcpy(path, dir, dir_len);
    if (slash) path[dir_len] = '/';
    memcpy(path + dir_len + slash, name, name_len + 1);
    return path;
}

int fp8_path_is_dir(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

int fp8_path_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0;
}
