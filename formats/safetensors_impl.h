/* formats/safetensors_impl.h - what reader, writer and tests share. Private. */
#ifndef FP8_FORMATS_SAFETENSORS_IMPL_H
#define FP8_FORMATS_SAFETENSORS_IMPL_H
#include "formats/safetensors.h"

enum {
    FP8_ST_MAX_HEADER = 100000000, /* as the reference implementation */
    FP8_ST_MAX_NAME = 1024
};

/* Opens the bytes of a whole file that are in memory already: the caller's, must outlive *out.
 * name stands for the path. */
FP8_NODISCARD fp8_status fp8_safetensors_open_memory(fp8_safetensors **out, const char *name,
                                                     const void *bytes, size_t len);

/* The bytes after the header, and those of the whole file. */
const unsigned char *fp8_safetensors_data(const fp8_safetensors *s, size_t *bytes);
size_t fp8_safetensors_file_bytes(const fp8_safetensors *s);

/* What a writer asks of its arguments. FP8_EINVAL: names, duplicates, shapes, UTF-8. */
FP8_NODISCARD fp8_status fp8_st_check_specs(const fp8_st_spec *specs, int64_t num_specs);
FP8_NODISCARD fp8_status fp8_st_check_metadata(const fp8_st_pair *metadata, int64_t num_metadata);

/* `fault` (FP8_EFORMAT: a file's, FP8_EINVAL: the caller's) for a tensor name that is too long,
 * holds a control character or is not UTF-8. */
FP8_NODISCARD fp8_status fp8_st_check_name(fp8_status fault, const char *name, size_t len);
#endif
