#include "formats/gzip.h"

#include <stdlib.h>
#include <zlib.h>

enum { WINDOW_GZIP = 15 + 16 }; /* zlib: the largest window, a gzip header and trailer expected */

/* zlib counts in unsigned int. */
static uInt piece(size_t n) { return n < ((size_t)1 << 30) ? (uInt)n : (uInt)1 << 30; }

int fp8_gzip_is(const unsigned char *data, size_t bytes) {
    return bytes >= 2 && data[0] == 0x1f && data[1] == 0x8b;
}

typedef struct output {
    char *data;
    size_t len, cap;
} output;

static fp8_status make_room(output *o, const char *name, size_t max_bytes) {
    size_t cap = o->cap ? 2 * o->cap : (size_t)1 << 16;
    char *data;

    if (o->len < o->cap) return FP8_OK;
    if (cap > max_bytes + 1) cap = max_bytes + 1; /* one more, to see that there is more */
    data = realloc(o->data, cap);
    if (!data) return FP8_FAIL(FP8_ENOMEM, "%s: %zu bytes of text", name, cap);
    o->data = data;
    o->cap = cap;
    return FP8_OK;
}

/* One member from *at on. */
static fp8_status inflate_member(output *o, z_stream *z, const char *name,
                                 const unsigned char *data, size_t bytes, size_t *at,
                                 size_t max_bytes) {
    int result = Z_OK;
    fp8_status st = FP8_OK;

    while (result != Z_STREAM_END) {
        const uInt in = piece(bytes - *at);
        uInt out;
        FP8_TRY(make_room(o, name, max_bytes));
        out = piece(o->cap - o->len);
        z->next_in = (z_const Bytef *)(data + *at);
        z->avail_in = in;
        z->next_out = (Bytef *)o->data + o->len;
        z->avail_out = out;
        result = inflate(z, Z_NO_FLUSH);
        *at += in - z->avail_in;
        o->len += out - z->avail_out;
        if (result == Z_MEM_ERROR) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: inflating", name));
        if (result == Z_DATA_ERROR || result == Z_NEED_DICT)
            FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: gzip data is damaged near byte %zu: %s", name, *at,
                             z->msg ? z->msg : "no reason given"));
        if (o->len > max_bytes)
            FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: gzip data is more than %zu bytes of text, the most "
                             "that is read", name, max_bytes));
        if (result != Z_STREAM_END && *at == bytes && z->avail_out > 0)
            FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: gzip data is truncated after byte %zu", name, bytes));
    }
done:
    return st;
}

fp8_status fp8_gzip_inflate(char **out, size_t *len, const char *name, const unsigned char *data,
                            size_t bytes, size_t max_bytes) {
    output o = {0};
    z_stream z = {0};
    size_t at = 0;
    int open = 0;
    fp8_status st = FP8_OK;

    *out = NULL;
    *len = 0;
    open = inflateInit2(&z, WINDOW_GZIP) == Z_OK;
    if (!open) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: inflating", name));
    do {
        FP8_TRY(inflate_member(&o, &z, name, data, bytes, &at, max_bytes));
        while (at < bytes && data[at] == 0) at++; /* padding of tapes and block devices */
        if (at < bytes && !fp8_gzip_is(data + at, bytes - at))
            FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: %zu bytes behind the gzip data, from byte %zu", name,
                             bytes - at, at));
    } while (at < bytes && inflateReset(&z) == Z_OK);
    *out = o.data;
    *len = o.len;
    o.data = NULL;
done:
    if (open) inflateEnd(&z);
    free(o.data);
    return st;
}
