#define _GNU_SOURCE /* renameat2, nftw */
#include "formats/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/log.h"
#include "formats/file.h"
#include "formats/new_file.h"

fp8_status fp8_folder_create(char **temporary, const char *path) {
    char *parent = fp8_path_folder(path), *name = NULL;
    fp8_status st = FP8_OK;
    int made;

    *temporary = NULL;
    if (!parent) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path));
    if (!fp8_path_is_dir(parent))
        FP8_TRY(FP8_FAIL(FP8_ENOTFOUND, "%s: there is no folder '%s' to hold it", path, parent));
    do { /* a name that a killed process of the same id left behind is passed over */
        free(name);
        name = fp8_temporary_name(path);
        if (!name) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path));
        made = mkdir(name, 0777) == 0;
    } while (!made && errno == EEXIST);
    if (!made) FP8_TRY(FP8_FAIL_ERRNO(name, "create"));
    *temporary = name;
    name = NULL;
done:
    free(name);
    free(parent);
    return st;
}

fp8_status fp8_folder_swap(const char *temporary, const char *path, char **old) {
    fp8_status st;

    *old = fp8_temporary_name(path);
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
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
        *old = strdup(temporary);
        return *old ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%s: no memory for a name", path);
    }
    if (errno != EINVAL && errno != ENOSYS) return FP8_FAIL_ERRNO(path, "replace");
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

fp8_status fp8_folder_publish(const char *temporary, const char *path, int replace) {
    char *parent = fp8_path_folder(path), *old = NULL;
    fp8_status st = fp8_sync_folder(temporary);

    if (st == FP8_OK && !parent) st = FP8_FAIL(FP8_ENOMEM, "%s: no memory for its name", path);
    if (st == FP8_OK)
        st = replace && fp8_path_exists(path) ? exchange(temporary, path, &old)
                                              : rename_new(temporary, path);
    if (st != FP8_OK) {
        st = FP8_FAIL(st, "%s (the new folder stays at '%s')", fp8_last_message(), temporary);
        goto done;
    }
    if (old && fp8_folder_remove(old) != FP8_OK) /* the new one is in its place: no failure */
        fp8_log(FP8_LOG_WARNING, "%s: replaced, but the old one stays at '%s': %s", path, old,
                fp8_last_message());
    st = fp8_sync_folder(parent);
done:
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
