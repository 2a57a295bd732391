#include "formats/utf8.h"

#include <string.h>

size_t fp8_utf8_length(const unsigned char *p, size_t left) {
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

size_t fp8_utf8_prefix(const char *text, size_t len) {
    size_t at = 0, n;

    for (; at < len; at += n) {
        n = fp8_utf8_length((const unsigned char *)text + at, len - at);
        if (n == 0) break;
    }
    return at;
}

size_t fp8_utf8_printable(const char *text, size_t len) {
    const unsigned char *p = (const unsigned char *)text;
    size_t at = 0, n;

    for (; at < len; at += n) {
        n = fp8_utf8_length(p + at, len - at);
        if (n == 0 || p[at] < 0x20 || p[at] == 0x7f) break;
        if (p[at] == 0xc2 && p[at + 1] < 0xa0) break;
    }
    return at;
}

const char *fp8_utf8_show(char buf[FP8_SHOWN_BYTES], const char *text, size_t len) {
    size_t at = 0, out = 0;

    while (at < len) {
        const size_t n = fp8_utf8_length((const unsigned char *)text + at, len - at);
        const size_t bytes = n ? n : 1;
        if (out + bytes > FP8_SHOWN_BYTES - 4) { /* room for "..." and the terminator */
            memcpy(buf + out, "...", 3);
            out += 3;
            break;
        }
        if (fp8_utf8_printable(text + at, bytes) == bytes) {
            memcpy(buf + out, text + at, bytes);
            out += bytes;
        } else {
            buf[out++] = '?';
        }
        at += bytes;
    }
    buf[out] = '\0';
    return buf;
}
