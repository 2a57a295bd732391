/* Fuzz target of formats/iddata_npy.c and gzip.c, not part of the build:
 *
 *   clang -std=c11 -g -O1 -D_POSIX_C_SOURCE=200809L -DFP8_CUDA=0 -I. \
 *       -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all tests/fuzz_textdata.c \
 *       formats/{iddata_npy,gzip,utf8}.c core/{status,tensor,dtype}.c -lz -lm -o fuzz_textdata
 *   ./fuzz_textdata -max_len=1024 CORPUS
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
