#define _GNU_SOURCE /* renameat2, nftw */
#include "formats/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"
#include "formats/file.h"
#include "formats/new_file.h"

#define PUT_ASIDE ".fp8-old"

/* A process that was killed in fp8_folder_swap has left the old folder aside. */
static fp8_status finish_swap(const char *path) {
    char *old = fp8_name_beside(path, PUT_ASIDE);
    fp8_status st = FP8_OK;

    if (!old) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for a name", path);
    if (fp8_path_is_dir(old) && fp8_path_is_dir(path)) st = fp8_folder_remove(old);
    else if (fp8_path_is_dir(old) && rename(old, path) != 0) st = FP8_FAIL_ERRNO(path, "restore");
    free(old);
    return st;
}

fp8_status fp8_folder_create(char **temporary, int *fd, const char *path) {
    char *parent = fp8_path_folder(path), *name = fp8_name_beside(path, FP8_PARTIAL);
    fp8_status st = FP8_OK;

    *temporary = NULL;
    *fd = -1;
    if (!parent || !name) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path));
    if (!fp8_path_is_dir(parent))
        FP8_TRY(FP8_FAIL(FP8_ENOTFOUND, "%s: there is no folder '%s' to hold it", path, parent));
    FP8_TRY(fp8_take_name(fd, name, path, 1));
    st = finish_swap(path);
    if (st != FP8_OK) {
        rmdir(name);
        close(*fd);
        *fd = -1;
        goto done;
    }
    *temporary = name;
    name = NULL;
done:
    free(name);
    free(parent);
    return st;
}

fp8_status fp8_folder_swap(const char *temporary, const char *path, char **old) {
    fp8_status st;

    *old = fp8_name_beside(path, PUT_ASIDE);
    if (!*old) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for a name", path);
    if (rename(path, *old) != 0) return FP8_FAIL_ERRNO(path, "put aside");
    if (rename(temporary, path) == 0) return FP8_OK;
    st = FP8_FAIL_ERRNO(path, "replace");
    if (rename(*old, path) != 0)
        st = FP8_FAIL(FP8_EIO, "%s: cannot be restored (%s) and is now '%s'", path, strerror(errno),
                      *old);
    return st;
}

/* Two names change places; on return *old is where the old folder is. */
static fp8_status exchange(const char *temporary, const char *path, char **old) {
    *old = strdup(temporary);
    if (!*old) return FP8_FAIL(FP8_ENOMEM, "%s: no memory for a name", path);
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) return FP8_OK;
    if (errno != EINVAL && errno != ENOSYS) return FP8_FAIL_ERRNO(path, "replace");
    free(*old);
    return fp8_folder_swap(temporary, path, old);
}

/* A rename that never replaces, also where the file system cannot promise that. */
static fp8_status rename_new(const char *temporary, const char *path) {
    int failed = renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_NOREPLACE);

    if (failed && (errno == EINVAL || errno == ENOSYS)) {
        if (fp8_path_exists(path)) errno = EEXIST;
        else failed = rename(temporary, path);
    }
    if (!failed) return FP8_OK;
    if (errno == EEXIST || errno == ENOTEMPTY)
        return FP8_FAIL(FP8_EEXIST, "%s: exists already", path);
    return FP8_FAIL_ERRNO(path, "rename");
}

/* Out of the way of the next process, which takes the temporary name for a killed one's. */
static fp8_status keep(const char *temporary, const char *path, fp8_status why) {
    enum { MAX_KEPT = 1000 };
    const size_t bytes = strlen(path) + 32;
    char *name = malloc(bytes), reason[1024];
    int n = 0, failed = 1;

    snprintf(reason, sizeof reason, "%s", fp8_last_message());
    do {
        if (name) snprintf(name, bytes, "%s.kept-%d", path, ++n);
        failed = !name || fp8_path_exists(name) || rename(temporary, name) != 0;
    } while (failed && name && n < MAX_KEPT);
    why = FP8_FAIL(why, "%s (the new folder is kept as '%s')", reason, failed ? temporary : name);
    free(name);
    return why;
}

fp8_status fp8_folder_publish(const char *temporary, const char *path, int replace) {
    char *parent = fp8_path_folder(path), *old = NULL;
    /* What is replaced gets the temporary name until it is removed: it is locked like that. */
    const int held = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fp8_status st = fp8_sync_folder(temporary);

    if (st == FP8_OK && !parent) st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path);
    if (held >= 0) flock(held, LOCK_EX | LOCK_NB);
    if (st == FP8_OK)
        st = replace && fp8_path_exists(path) ? exchange(temporary, path, &old)
                                              : rename_new(temporary, path);
    if (st != FP8_OK) {
        st = keep(temporary, path, st);
        goto done;
    }
    if (old && fp8_folder_remove(old) != FP8_OK) /* the new one is in its place: no failure */
        fp8_log(FP8_LOG_WARNING, "%s: replaced, but the old one stays at '%s': %s", path, old,
                fp8_last_message());
    st = fp8_sync_folder(parent);
done:
    if (held >= 0) close(held);
    free(old);
    free(parent);
    return st;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

fp8_status fp8_folder_remove(const char *path) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0)
        return FP8_FAIL_ERRNO(path, "remove");
    return FP8_OK;
}
