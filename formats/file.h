/* formats/file.h - whole files read by mmap, and files that appear whole or not at all. */
#ifndef FP8_FORMATS_FILE_H
#define FP8_FORMATS_FILE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#ifdef __cplusplus
extern "C" {
#endif

/* A read-only mapping of a regular file. An empty file maps to a valid pointer and 0 bytes. As with
 * every mapping, a file that someone shortens meanwhile faults where it is read. */
typedef struct fp8_file {
    const unsigned char *data;
    size_t bytes;
} fp8_file;

/* FP8_ENOTFOUND (no such file), FP8_EIO (not a regular file, or the system's reason). */
FP8_NODISCARD fp8_status fp8_file_map(fp8_file *out, const char *path);
void fp8_file_unmap(fp8_file *f); /* back to {0}; {0} is fine */

/* Writes bytes to a sibling temporary file, fsync, rename: `path` is replaced whole or left. */
FP8_NODISCARD fp8_status fp8_file_write(const char *path, const void *data, size_t bytes);

/* "dir/name" into an allocated string (free()); dir "" or NULL gives a copy of name. NULL: no
 * memory. */
char *fp8_path_join(const char *dir, const char *name);
int fp8_path_is_dir(const char *path);
int fp8_path_exists(const char *path);

#ifdef __cplusplus
}
#endif
#endif
