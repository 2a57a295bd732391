/* formats/safetensors.h - one safetensors file: a reader that checks everything first, and a
 * streaming writer.
 *
 * The reader maps the file and validates header, offsets, shapes and sizes before it returns; a
 * handle that opened needs no further check. Read-only and safe from many threads. */
#ifndef FP8_FORMATS_SAFETENSORS_H
#define FP8_FORMATS_SAFETENSORS_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "core/tensor.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_safetensors fp8_safetensors;

typedef struct fp8_st_entry {
    const char *name;  /* NUL-terminated, no control characters, UTF-8 */
    fp8_tensor tensor; /* data points into the mapping (CPU); not necessarily aligned */
    size_t bytes;
} fp8_st_entry;

/* FP8_ENOTFOUND, FP8_EIO, FP8_EFORMAT with one precise line: file, tensor, expected, found.
 * Caps: header 100,000,000 bytes, rank FP8_MAX_DIMS, name 1024 bytes. */
FP8_NODISCARD fp8_status fp8_safetensors_open(fp8_safetensors **out, const char *path);
void fp8_safetensors_close(fp8_safetensors *s);
const char *fp8_safetensors_path(const fp8_safetensors *s);
int64_t fp8_safetensors_count(const fp8_safetensors *s);
const fp8_st_entry *fp8_safetensors_at(const fp8_safetensors *s, int64_t i); /* by file offset */
const fp8_st_entry *fp8_safetensors_find(const fp8_safetensors *s, const char *name); /* or NULL */
/* __metadata__ value or NULL; and by index (0 .. count-1) for copying. */
const char *fp8_safetensors_metadata(const fp8_safetensors *s, const char *key);
int64_t fp8_safetensors_metadata_count(const fp8_safetensors *s);
void fp8_safetensors_metadata_at(const fp8_safetensors *s, int64_t i, const char **key,
                                 const char **value);

/* Writer: the whole header goes out first, then tensors as they come, in any order. */
typedef struct fp8_st_spec {
    const char *name;
    fp8_dtype dtype;
    int32_t ndim;
    int64_t shape[FP8_MAX_DIMS];
} fp8_st_spec;

typedef struct fp8_st_pair {
    const char *key, *value;
} fp8_st_pair;

typedef struct fp8_st_writer fp8_st_writer;

/* Opens a temporary sibling of `path` and writes the header. Placement: tensors whose bytes are a
 * multiple of 4 KiB, then the others, each part by falling alignment and then by name: so all are
 * naturally aligned without a hole. With a tensor of 4 KiB or more the header is padded so that the
 * data, and with it the whole first part, begins at a multiple of 4 KiB in the file (else of 8).
 * Same specs in any order give the same bytes. Strings are copied. FP8_EINVAL: bad or duplicate
 * name, shape, metadata; FP8_EOVERFLOW: over 2^63-1 bytes in all; FP8_ENOTFOUND: no folder to hold
 * it; FP8_EIO; FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_st_writer_create(fp8_st_writer **out, const char *path,
                                              const fp8_st_spec *specs, int64_t num_specs,
                                              const fp8_st_pair *metadata, int64_t num_metadata);
/* Whole data of specs[i]; bytes must match its shape. Each exactly once. */
FP8_NODISCARD fp8_status fp8_st_writer_put(fp8_st_writer *w, int64_t i, const void *data,
                                           size_t bytes);
/* A part of specs[i], from byte `offset` on; parts in any order, none twice. Safe from several
 * threads, for one tensor too. */
FP8_NODISCARD fp8_status fp8_st_writer_put_part(fp8_st_writer *w, int64_t i, size_t offset,
                                                const void *data, size_t bytes);
/* All tensors written: fsync and rename onto `path`. Frees the writer whatever it returns. */
FP8_NODISCARD fp8_status fp8_st_writer_commit(fp8_st_writer *w);
void fp8_st_writer_abort(fp8_st_writer *w); /* removes the temporary file; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
