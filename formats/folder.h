/* formats/folder.h - a folder that appears whole or not at all. Private. Its temporary name is
 * that of formats/new_file.h: reused, and locked while it is written. */
#ifndef FP8_FORMATS_FOLDER_H
#define FP8_FORMATS_FOLDER_H
#include "formats/file.h"

/* Makes an empty folder beside `path`, for fp8_folder_publish to put there; free() *temporary, and
 * close *fd when it is published or removed. FP8_ENOTFOUND (no folder to hold it), FP8_EEXIST
 * (another process is writing it), FP8_EIO, FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_folder_create(char **temporary, int *fd, const char *path);

/* Renames `temporary` to `path` and makes that last. replace: a folder at `path` is exchanged with
 * it in one step (two where the file system cannot) and then removed; else FP8_EEXIST. Where
 * the rename fails the old one stays as it was and the new one is kept: "PATH.kept-N", with the
 * first free N; the message names it. */
FP8_NODISCARD fp8_status fp8_folder_publish(const char *temporary, const char *path, int replace);

/* The two steps: `path` is put aside as *old ("PATH.fp8-old", free()), `temporary` takes its place;
 * undone when the second fails, and by fp8_folder_create where a process was killed between. */
FP8_NODISCARD fp8_status fp8_folder_swap(const char *temporary, const char *path, char **old);
#endif
