/* Fuzz target of formats/tokenizer*.c.
 *
 * The input is a tokenizer.json, a byte 0xff (which JSON never holds) and a text to encode; what it
 * encodes to is decoded. A corpus of small tokenizer.json files finds more. */
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *cut = size ? memchr(data, 0xff, size) : NULL;
    const size_t json_len = cut ? (size_t)(cut - data) : size;
    const char *text = cut ? (const char *)cut + 1 : "Some 1234 text's\r\n \xc3\xa9<s>";
    const size_t len = cut ? size - json_len - 1 : strlen(text);
    fp8_tokenizer *t = NULL;
    fp8_ids ids = {0};
    char *back = NULL;
    size_t back_len = 0;

    if (tok_load(&t, "fuzz", (const char *)data, json_len) == FP8_OK &&
        fp8_tokenizer_encode(t, &ids, text, len, FP8_SPECIAL_ADD) == FP8_OK &&
        fp8_tokenizer_decode(t, &back, &back_len, ids.data, ids.count, 0) != FP8_OK)
        abort(); /* what encoding gives is in the vocabulary */
    free(back);
    fp8_ids_free(&ids);
    fp8_tokenizer_close(t);
    return 0;
}
