/* Fuzz target of formats/safetensors.c. The input is a header: its length is
 * put before it and as much data after it as its two last bytes say.
 *
 * What opens must be what the header promises: tensors that fill the data without hole or overlap,
 * each found by its name. */
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors_impl.h"
#include "formats/utf8.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

#define MUST(cond) ((cond) ? (void)0 : abort())

static void check(const fp8_safetensors *s) {
    size_t total = 0, bytes = 0;
    const unsigned char *at = fp8_safetensors_data(s, &total), *end = at + total;

    for (int64_t i = 0; i < fp8_safetensors_count(s); i++) {
        const fp8_st_entry *e = fp8_safetensors_at(s, i);
        MUST(fp8_safetensors_find(s, e->name) == e);
        MUST(fp8_utf8_printable(e->name, strlen(e->name)) == strlen(e->name));
        MUST(e->tensor.data == at && e->bytes <= (size_t)(end - at));
        MUST(fp8_shape_bytes(&bytes, e->tensor.dtype, e->tensor.shape, e->tensor.ndim) == FP8_OK);
        MUST(bytes == e->bytes);
        at += e->bytes;
    }
    MUST(at == end);
    for (int64_t i = 0; i < fp8_safetensors_metadata_count(s); i++) {
        const char *key, *value;
        fp8_safetensors_metadata_at(s, i, &key, &value);
        MUST(fp8_safetensors_metadata(s, key) == value);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    const size_t extra = size < 2 ? 0 : (data[size - 2] | (size_t)data[size - 1] << 8) & 0xfff;
    const size_t header = size < 2 ? size : size - 2;
    fp8_safetensors *s = NULL;
    unsigned char *file = calloc(1, 8 + header + extra); /* exact: its end is watched */
    fp8_status st;

    if (!file) return 0;
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)header >> (8 * i));
    if (header > 0) memcpy(file + 8, data, header);
    st = fp8_safetensors_open_memory(&s, "fuzz", file, 8 + header + extra);
    MUST(st == FP8_OK || st == FP8_EFORMAT);
    if (st == FP8_OK) check(s);
    fp8_safetensors_close(s);
    free(file);
    return 0;
}
