/* formats/gzip.h - a gzip file into memory. Private. */
#ifndef FP8_FORMATS_GZIP_H
#define FP8_FORMATS_GZIP_H
#include <stddef.h>

#include "core/status.h"

#define FP8_GZIP_MAX_BYTES ((size_t)4 << 30)

int fp8_gzip_is(const unsigned char *data, size_t bytes); /* by its first two bytes */

/* *out = all members of the file one after the other (free()). name is for messages. FP8_EDATA:
 * truncated, damaged, something behind the last member that is not zero, more than max_bytes. */
FP8_NODISCARD fp8_status fp8_gzip_inflate(char **out, size_t *len, const char *name,
                                          const unsigned char *data, size_t bytes,
                                          size_t max_bytes);
#endif
