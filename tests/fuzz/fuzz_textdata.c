/* Fuzz target of formats/iddata_npy.c and gzip.c.
 *
 * What a .npy header claims must lie in the file; gzip stays below its limit. */
#include <stdlib.h>

#include "formats/gzip.h"
#include "formats/iddata_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { MAX_BYTES = 1 << 20 };
    id_array a;
    char *text = NULL;
    size_t len = 0;

    if (fp8_gzip_is(data, size)) {
        if (fp8_gzip_inflate(&text, &len, "fuzz", data, size, MAX_BYTES) == FP8_OK &&
            len > MAX_BYTES)
            abort();
        free(text);
    } else if (id_array_from_npy(&a, "fuzz", data, size) == FP8_OK) {
        const size_t bytes = (size_t)a.rows * (size_t)a.cols * a.element_bytes;
        if (a.data < data || a.data + bytes != data + size) abort();
    }
    return 0;
}
