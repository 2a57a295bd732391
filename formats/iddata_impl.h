/* formats/iddata_impl.h - private: integers as a file has them. */
#ifndef FP8_FORMATS_IDDATA_IMPL_H
#define FP8_FORMATS_IDDATA_IMPL_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* [rows, cols] little-endian integers in someone's buffer, row-major, perhaps not aligned. */
typedef struct id_array {
    const unsigned char *data;
    int64_t rows, cols;
    size_t element_bytes; /* 1, 2, 4, 8 */
    int is_signed;
} id_array;

/* A .npy file of 1 or 2 dimensions. FP8_EFORMAT, FP8_EUNSUPPORTED (big-endian, not integers,
 * Fortran order, other ranks). */
FP8_NODISCARD fp8_status id_array_from_npy(id_array *out, const char *name,
                                           const unsigned char *data, size_t bytes);
#endif
