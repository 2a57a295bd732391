/* formats/new_file.h - a file that appears whole or not at all: written under a temporary name
 * beside its path, then renamed. Private. */
#ifndef FP8_FORMATS_NEW_FILE_H
#define FP8_FORMATS_NEW_FILE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

typedef struct fp8_new_file {
    char *path, *temporary;
    int fd;
} fp8_new_file;

/* FP8_ENOTFOUND (no such folder), FP8_EIO, FP8_ENOMEM; then there is nothing to abort. */
FP8_NODISCARD fp8_status fp8_new_file_create(fp8_new_file *f, const char *path);

/* Bytes at an offset, in any order. Safe from several threads. */
FP8_NODISCARD fp8_status fp8_new_file_write(const fp8_new_file *f, int64_t offset,
                                            const void *data, size_t bytes);

/* fsync, rename, fsync of the folder. Releases f whatever it returns. */
FP8_NODISCARD fp8_status fp8_new_file_commit(fp8_new_file *f);
void fp8_new_file_abort(fp8_new_file *f); /* removes the temporary file */

/* "path.tmp-PID-N" with a new N at each call; free(). NULL: memory. */
char *fp8_temporary_name(const char *path);

/* The folder part of a path, "." when it has none; free(). NULL: memory. */
char *fp8_path_folder(const char *path);

/* fsync of a folder, so that names in it survive a crash. */
FP8_NODISCARD fp8_status fp8_sync_folder(const char *folder);

/* "path: cannot open: No such file or directory" from errno: FP8_ENOTFOUND for ENOENT and ENOTDIR,
 * else FP8_EIO. */
#define FP8_FAIL_ERRNO(path, doing) fp8_fail_errno(__FILE__, __LINE__, (path), (doing))
fp8_status fp8_fail_errno(const char *file, int line, const char *path, const char *doing);
#endif
