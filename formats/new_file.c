#define _DEFAULT_SOURCE /* flock */
#include "formats/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/file.h"
#include "formats/folder.h"

fp8_status fp8_fail_errno(const char *file, int line, const char *path, const char *doing) {
    const int missing = errno == ENOENT || errno == ENOTDIR;
    return fp8_fail(missing ? FP8_ENOTFOUND : FP8_EIO, file, line, "%s: cannot %s: %s", path, doing,
                    strerror(errno));
}

char *fp8_name_beside(const char *path, const char *suffix) {
    const size_t len = strlen(path), more = strlen(suffix) + 1;
    char *name = malloc(len + more);
    if (!name) return NULL;
    memcpy(name, path, len);
    memcpy(name + len, suffix, more);
    return name;
}

/* ---- the temporary name -------------------------------------------------------------------- */

/* Between opening and locking, the name may have been renamed or removed. -1 and errno: unknown. */
static int is_named(int fd, const char *name) {
    struct stat here, there;
    if (fstat(fd, &here) != 0) return -1;
    if (lstat(name, &there) != 0) return errno == ENOENT ? 0 : -1;
    return here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

/* *made: new and empty, else it was there. *fd -1 and errno where it cannot be opened. Returns 0
 * when it was there and is gone now: then it is to be tried again. */
static int make_or_open(int *fd, int *made, const char *name, int folder) {
    const int common = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;

    *fd = -1;
    if (folder) *made = mkdir(name, 0777) == 0;
    else *made = (*fd = open(name, O_RDWR | O_CREAT | O_EXCL | common, 0666)) >= 0;
    if (*fd >= 0 || (!*made && errno != EEXIST)) return 1;
    *fd = open(name, (folder ? O_RDONLY | O_DIRECTORY : O_RDWR) | common);
    return *fd >= 0 || errno != ENOENT;
}

static fp8_status remove_left(const char *name, int folder) {
    if (folder) return fp8_folder_remove(name);
    return unlink(name) == 0 ? FP8_OK : FP8_FAIL_ERRNO(name, "remove");
}

fp8_status fp8_take_name(int *fd, const char *name, const char *path, int folder) {
    for (;;) {
        int made, locked, mine = 0;
        fp8_status st = FP8_OK;

        if (!make_or_open(fd, &made, name, folder)) continue;
        if (*fd < 0) {
            st = FP8_FAIL_ERRNO(path, "create");
            if (made) rmdir(name);
            return st;
        }
        while ((locked = flock(*fd, LOCK_EX | LOCK_NB)) != 0 && errno == EINTR) {}
        if (locked != 0 && errno == EWOULDBLOCK)
            st = FP8_FAIL(FP8_EEXIST, "%s: another process is writing it", path);
        else if (locked != 0 && !made) /* a file system without locks: whose it is nobody knows */
            st = FP8_FAIL(FP8_EEXIST, "%s: '%s' is in the way: remove it unless another process is "
                          "writing it", path, name);
        if (st == FP8_OK) mine = is_named(*fd, name);
        if (mine == 1 && made) return FP8_OK;
        if (mine == 1) st = remove_left(name, folder);
        if (mine < 0) st = FP8_FAIL_ERRNO(path, "stat");
        if (mine < 0 && made) remove(name);
        close(*fd);
        *fd = -1;
        if (st != FP8_OK) return st;
    }
}

struct fp8_path_lock {
    int fd;
    char *name;
};

fp8_status fp8_path_lock_take(fp8_path_lock **out, const char *path) {
    fp8_path_lock *l = calloc(1, sizeof *l);
    fp8_status st;

    *out = NULL;
    if (l) l->name = fp8_name_beside(path, ".lock");
    if (!l || !l->name) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path));
    FP8_TRY(fp8_take_name(&l->fd, l->name, path, 0));
    *out = l;
    return FP8_OK;
done:
    if (l) free(l->name);
    free(l);
    return st;
}

void fp8_path_lock_release(fp8_path_lock *l) {
    if (!l) return;
    unlink(l->name);
    close(l->fd);
    free(l->name);
    free(l);
}

/* ---- what waits for the disk --------------------------------------------------------------- */

static atomic_int skips_sync;

void fp8_file_set_sync(int on) { atomic_store(&skips_sync, !on); }

int fp8_sync(int fd) { return atomic_load(&skips_sync) ? 0 : fsync(fd); }

/* ---- folders ------------------------------------------------------------------------------- */

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
    if (fp8_sync(fd) != 0 && errno != EINVAL) st = FP8_FAIL_ERRNO(folder, "sync");
    close(fd);
    return st;
}

/* ---- the file ------------------------------------------------------------------------------ */

static void release(fp8_new_file *f) {
    if (f->fd >= 0) close(f->fd);
    free(f->temporary);
    free(f->path);
    *f = (fp8_new_file){.fd = -1};
}

fp8_status fp8_new_file_create(fp8_new_file *f, const char *path) {
    fp8_status st;

    *f = (fp8_new_file){.path = strdup(path), .temporary = fp8_name_beside(path, FP8_PARTIAL),
                        .fd = -1};
    if (!f->path || !f->temporary) st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path);
    else st = fp8_take_name(&f->fd, f->temporary, path, 0);
    if (st != FP8_OK) release(f);
    return st;
}

fp8_status fp8_new_file_write(const fp8_new_file *f, int64_t offset, const void *data,
                              size_t bytes) {
    const char *p = data;

    while (bytes > 0) { /* Linux writes 2 GiB at most at once */
        const ssize_t n = pwrite(f->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EFAULT && fp8_file_lost(p)) return fp8_file_check_lost();
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
    if (st == FP8_OK) st = fp8_file_check_lost();
    if (st == FP8_OK && fp8_sync(f->fd) != 0) st = FP8_FAIL_ERRNO(f->path, "sync");
    /* A network file system may report a failed write only now. A copy is closed: the file stays
     * locked, so the name stays ours, until it is renamed. */
    closed = st == FP8_OK ? close(dup(f->fd)) : 0;
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
