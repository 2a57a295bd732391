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
 * every mapping, reading what someone has cut off meanwhile raises SIGBUS: see fp8_file_lost. */
typedef struct fp8_file {
    const unsigned char *data;
    size_t bytes;
} fp8_file;

/* FP8_ENOTFOUND (no such file), FP8_EIO (not a regular file, or the system's reason). */
FP8_NODISCARD fp8_status fp8_file_map(fp8_file *out, const char *path);
void fp8_file_unmap(fp8_file *f); /* back to {0}; {0} is fine */

/* For a SIGBUS handler (si_addr; async-signal-safe). 1: the address lies in a mapped file, which
 * has zeros from there on now, so that the reader may go on; every later commit of a file or folder
 * by this process fails, as fp8_file_check_lost does. 0: it does not, and nothing is done. */
int fp8_file_lost(const void *address);
/* FP8_EIO, naming the file, once fp8_file_lost has returned 1. */
FP8_NODISCARD fp8_status fp8_file_check_lost(void);

/* For one who reads a mapping once, from one end to the other. _soon: this part will be read now;
 * its pages are entered at one go. _drop: it has been; its whole pages leave this process's memory
 * (not the system's cache: reading brings them back). Nothing happens to what is no part of a
 * mapped file. */
void fp8_file_soon(const void *data, size_t bytes);
void fp8_file_drop(const void *data, size_t bytes);

/* Whether files and folders wait, when they are committed, until they are on the disk (fsync): they
 * do unless this was called with 0. Process-wide. Without it they appear whole or not at all just
 * the same, for every process; but a machine that loses power soon after may lose them. */
void fp8_file_set_sync(int on);

/* Writes bytes to a sibling temporary file, fsync, rename: `path` is replaced whole or left. */
FP8_NODISCARD fp8_status fp8_file_write(const char *path, const void *data, size_t bytes);

/* One process at a time: holds "PATH.lock" until it is released, which removes it; what a killed
 * process left is taken over. FP8_EEXIST when another process holds it, FP8_ENOTFOUND (no such
 * folder), FP8_EIO, FP8_ENOMEM. */
typedef struct fp8_path_lock fp8_path_lock;
FP8_NODISCARD fp8_status fp8_path_lock_take(fp8_path_lock **out, const char *path);
void fp8_path_lock_release(fp8_path_lock *l); /* NULL is fine */

/* "dir/name" into an allocated string (free()); dir "" or NULL gives a copy of name. NULL: no
 * memory. */
char *fp8_path_join(const char *dir, const char *name);
/* Removes a folder and all in it; links are removed, not followed. FP8_EIO. */
FP8_NODISCARD fp8_status fp8_folder_remove(const char *path);
int fp8_path_is_dir(const char *path);
int fp8_path_exists(const char *path);

#ifdef __cplusplus
}
#endif
#endif
