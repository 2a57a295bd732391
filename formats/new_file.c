#include "formats/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

fp8_status fp8_fail_errno(const char *file, int line, const char *path, const char *doing) {
    const int missing = errno == ENOENT || errno == ENOTDIR;
    return fp8_fail(missing ? FP8_ENOTFOUND : FP8_EIO, file, line, "%s: cannot %s: %s", path, doing,
                    strerror(errno));
}

char *fp8_temporary_name(const char *path) {
    static atomic_uint counter;
    const unsigned n = atomic_fetch_add(&counter, 1u);
    const size_t bytes = strlen(path) + 48;
    char *name = malloc(bytes);
    if (name) snprintf(name, bytes, "%s.tmp-%ld-%u", path, (long)getpid(), n);
    return name;
}

char *fp8_path_folder(const char *path) {
    const char *end = path + strlen(path);
    char *folder;

    while (end > path + 1 && end[-1] == '/') end--; /* "a/b/" lies in "a" */
    while (end > path && end[-1] != '/') end--;
    if (end == path) return strdup(".");
    while (end > path + 1 && end[-1] == '/') end--; /* but keep "/" */
    folder = malloc((size_t)(end - path) + 1);
    if (!folder) return NULL;
    memcpy(folder, path, (size_t)(end - path));
    folder[end - path] = '\0';
    return folder;
}

fp8_status fp8_sync_folder(const char *folder) {
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fp8_status st = FP8_OK;

    if (fd < 0) return FP8_FAIL_ERRNO(folder, "open");
    /* EINVAL: a file system that cannot sync folders, as some network ones */
    if (fsync(fd) != 0 && errno != EINVAL) st = FP8_FAIL_ERRNO(folder, "sync");
    close(fd);
    return st;
}

static void release(fp8_new_file *f) {
    if (f->fd >= 0) close(f->fd);
    free(f->temporary);
    free(f->path);
    *f = (fp8_new_file){.fd = -1};
}

fp8_status fp8_new_file_create(fp8_new_file *f, const char *path) {
    fp8_status st = FP8_OK;

    *f = (fp8_new_file){.path = strdup(path), .fd = -1};
    do { /* a name that a killed process of the same id left behind is passed over */
        free(f->temporary);
        f->temporary = f->path ? fp8_temporary_name(path) : NULL;
        if (!f->temporary) {
            st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path);
            break;
        }
        f->fd = open(f->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (f->fd < 0 && errno == EEXIST);
    if (st == FP8_OK && f->fd < 0) st = FP8_FAIL_ERRNO(path, "create");
    if (st != FP8_OK) release(f);
    return st;
}

fp8_status fp8_new_file_write(const fp8_new_file *f, int64_t offset, const void *data,
                              size_t bytes) {
    const char *p = data;

    while (bytes > 0) { /* Linux writes 2 GiB at most at once */
        const ssize_t n = pwrite(f->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return FP8_FAIL_ERRNO(f->path, "write");
        p += n;
        offset += n;
        bytes -= (size_t)n;
    }
    return FP8_OK;
}

fp8_status fp8_new_file_commit(fp8_new_file *f) {
    char *folder = fp8_path_folder(f->path);
    fp8_status st = FP8_OK;
    int closed;

    if (!folder) st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for its folder's name", f->path);
    if (st == FP8_OK && fsync(f->fd) != 0) st = FP8_FAIL_ERRNO(f->path, "sync");
    closed = close(f->fd); /* a network file system may report a failed write only now */
    f->fd = -1;
    if (st == FP8_OK && closed != 0) st = FP8_FAIL_ERRNO(f->path, "close");
    if (st == FP8_OK && rename(f->temporary, f->path) != 0) st = FP8_FAIL_ERRNO(f->path, "rename");
    if (st != FP8_OK) unlink(f->temporary);
    else st = fp8_sync_folder(folder);
    free(folder);
    release(f);
    return st;
}

void fp8_new_file_abort(fp8_new_file *f) {
    if (f->temporary) unlink(f->temporary);
    release(f);
}
