/* formats/file_guard.h - the list of mapped files that fp8_file_lost looks into. Private. */
#ifndef FP8_FORMATS_FILE_GUARD_H
#define FP8_FORMATS_FILE_GUARD_H
#include "formats/file.h"

/* Enters a mapping of at least one byte; FP8_ENOMEM. To be left before it is unmapped. */
FP8_NODISCARD fp8_status fp8_file_watch(const fp8_file *f, const char *path);
void fp8_file_unwatch(const fp8_file *f);
/* 1: [data, data + bytes) lies in one entered mapping. */
int fp8_file_is_watched(const void *data, size_t bytes);
#endif
