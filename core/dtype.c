#include "core/dtype.h"

#include <string.h>

static const struct {
    const char *name;
    int32_t bits;
    fp8_dtype_kind kind;
} table[FP8_NUM_DTYPES] = {
#define X(name, text, bits, kind) {text, bits, FP8_KIND_##kind},
    FP8_DTYPE_MAP(X)
#undef X
};

static int known(fp8_dtype t) { return (unsigned)t < (unsigned)FP8_NUM_DTYPES; }

const char *fp8_dtype_name(fp8_dtype t) { return known(t) ? table[t].name : "?"; }

int32_t fp8_dtype_bits(fp8_dtype t) { return known(t) ? table[t].bits : 0; }

fp8_dtype_kind fp8_dtype_kind_of(fp8_dtype t) { return known(t) ? table[t].kind : FP8_KIND_UINT; }

size_t fp8_dtype_size(fp8_dtype t) {
    const int32_t bits = fp8_dtype_bits(t);
    return bits % 8 ? 0 : (size_t)bits / 8;
}

fp8_status fp8_dtype_parse(fp8_dtype *out, const char *text, size_t len) {
    for (int t = 0; t < FP8_NUM_DTYPES; t++)
        if (strlen(table[t].name) == len && memcmp(table[t].name, text, len) == 0) {
            *out = (fp8_dtype)t;
            return FP8_OK;
        }
    return FP8_FAIL(FP8_ENOTFOUND, "unknown dtype of %zu bytes", len); /* text may be hostile */
}
