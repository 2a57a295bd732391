/* core/dtype.h - the one table of element types: safetensors name, bits, what kind it is. */
#ifndef FP8_CORE_DTYPE_H
#define FP8_CORE_DTYPE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(enumerator, safetensors string, bits per element, kind): the order is that of the safetensors
 * enum (ascending alignment), which its writers sort by. */
#define FP8_DTYPE_MAP(X)                                                                           \
    X(BOOL, "BOOL", 8, UINT)                                                                       \
    X(F4, "F4", 4, FLOAT)                                                                          \
    X(F6_E2M3, "F6_E2M3", 6, FLOAT)                                                                \
    X(F6_E3M2, "F6_E3M2", 6, FLOAT)                                                                \
    X(U8, "U8", 8, UINT)                                                                           \
    X(I8, "I8", 8, INT)                                                                            \
    X(E5M2, "F8_E5M2", 8, FLOAT)                                                                   \
    X(E4M3, "F8_E4M3", 8, FLOAT)                                                                   \
    X(E8M0, "F8_E8M0", 8, FLOAT)                                                                   \
    X(E4M3FNUZ, "F8_E4M3FNUZ", 8, FLOAT)                                                           \
    X(E5M2FNUZ, "F8_E5M2FNUZ", 8, FLOAT)                                                           \
    X(I16, "I16", 16, INT)                                                                         \
    X(U16, "U16", 16, UINT)                                                                        \
    X(F16, "F16", 16, FLOAT)                                                                       \
    X(BF16, "BF16", 16, FLOAT)                                                                     \
    X(I32, "I32", 32, INT)                                                                         \
    X(U32, "U32", 32, UINT)                                                                        \
    X(F32, "F32", 32, FLOAT)                                                                       \
    X(C64, "C64", 64, COMPLEX)                                                                     \
    X(F64, "F64", 64, FLOAT)                                                                       \
    X(I64, "I64", 64, INT)                                                                         \
    X(U64, "U64", 64, UINT)

typedef enum fp8_dtype {
#define X(name, text, bits, kind) FP8_DTYPE_##name,
    FP8_DTYPE_MAP(X)
#undef X
        FP8_NUM_DTYPES
} fp8_dtype;

typedef enum fp8_dtype_kind {
    FP8_KIND_UINT,
    FP8_KIND_INT,
    FP8_KIND_FLOAT,
    FP8_KIND_COMPLEX
} fp8_dtype_kind;

const char *fp8_dtype_name(fp8_dtype t);    /* the safetensors string, "BF16"; "?" if unknown */
int32_t fp8_dtype_bits(fp8_dtype t);        /* bits an element; 0 if unknown */
fp8_dtype_kind fp8_dtype_kind_of(fp8_dtype t);
size_t fp8_dtype_size(fp8_dtype t);         /* bytes an element; 0 for the sub-byte types */

/* Exact, case-sensitive match of `len` bytes. FP8_ENOTFOUND leaves *out alone. */
FP8_NODISCARD fp8_status fp8_dtype_parse(fp8_dtype *out, const char *text, size_t len);

#ifdef __cplusplus
}
#endif
#endif
