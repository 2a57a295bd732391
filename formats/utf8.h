/* formats/utf8.h - the one check of UTF-8 well-formedness (Unicode 15, table 3-7). Private. */
#ifndef FP8_FORMATS_UTF8_H
#define FP8_FORMATS_UTF8_H
#include <stddef.h>

/* Bytes of the well-formed sequence that begins at p, with `left` >= 1 bytes to read: 1 to 4, or 0
 * where it is ill-formed or cut: stray and overlong bytes, surrogates, above U+10FFFF. */
static inline size_t fp8_utf8_length(const unsigned char *p, size_t left) {
    const unsigned c = p[0];
    unsigned lo = 0x80, hi = 0xbf; /* what the second byte may be */
    size_t n;

    if (c < 0x80) return 1;
    if (c < 0xc2 || c > 0xf4) return 0;
    n = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (n > left) return 0;
    if (c == 0xe0) lo = 0xa0; /* overlong */
    if (c == 0xed) hi = 0x9f; /* surrogates */
    if (c == 0xf0) lo = 0x90; /* overlong */
    if (c == 0xf4) hi = 0x8f; /* above U+10FFFF */
    if (p[1] < lo || p[1] > hi) return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return n;
}

/* Offset of the first byte that is not part of a well-formed sequence; len when all are. */
static inline size_t fp8_utf8_prefix(const char *text, size_t len) {
    size_t at = 0, n;
    for (; at < len; at += n) {
        n = fp8_utf8_length((const unsigned char *)text + at, len - at);
        if (n == 0) break;
    }
    return at;
}
#endif
