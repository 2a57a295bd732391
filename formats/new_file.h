/* formats/new_file.h - a file that appears whole or not at all: written under a temporary name
 * beside its path, then renamed. Private.
 *
 * The temporary name is always the same, "PATH.fp8-partial", and locked (flock) by the process that
 * writes it. What a killed process left under it is therefore known as such, and the next one that
 * writes PATH removes it; one that finds it locked leaves it alone and fails with FP8_EEXIST. */
#ifndef FP8_FORMATS_NEW_FILE_H
#define FP8_FORMATS_NEW_FILE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct fp8_new_file {
    char *path, *temporary;
    int fd;
} fp8_new_file;

/* FP8_ENOTFOUND (no such folder), FP8_EEXIST (another process is writing it), FP8_EIO, FP8_ENOMEM;
 * then there is nothing to abort. */
FP8_NODISCARD fp8_status fp8_new_file_create(fp8_new_file *f, const char *path);

/* Bytes at an offset, in any order. Safe from several threads. */
FP8_NODISCARD fp8_status fp8_new_file_write(const fp8_new_file *f, int64_t offset,
                                            const void *data, size_t bytes);

/* fsync, rename, fsync of the folder. Releases f whatever it returns. */
FP8_NODISCARD fp8_status fp8_new_file_commit(fp8_new_file *f);
void fp8_new_file_abort(fp8_new_file *f); /* removes the temporary file */

/* Takes `name`, in which `path` is built, as a new empty file or folder, removing what a killed
 * process left there. It is this process's while *fd is open. Errors as above, *fd then is -1. */
FP8_NODISCARD fp8_status fp8_take_name(int *fd, const char *name, const char *path, int folder);

/* path and suffix in one string; free(). NULL: memory. */
char *fp8_name_beside(const char *path, const char *suffix);
#define FP8_PARTIAL ".fp8-partial"

/* The folder part of a path, "." when it has none; free(). NULL: memory. */
char *fp8_path_folder(const char *path);

/* fsync of a file, or of a folder, so that names in it survive a crash; -1 and errno. Does nothing
 * after fp8_file_set_sync(0). */
int fp8_sync(int fd);
/* The folder of that path. */
FP8_NODISCARD fp8_status fp8_sync_folder(const char *folder);

/* "path: cannot open: No such file or directory" from errno: FP8_ENOTFOUND for ENOENT and ENOTDIR,
 * else FP8_EIO. */
#define FP8_FAIL_ERRNO(path, doing) fp8_fail_errno(__FILE__, __LINE__, (path), (doing))
fp8_status fp8_fail_errno(const char *file, int line, const char *path, const char *doing);
#endif
