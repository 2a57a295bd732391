/* formats/unicode.h - private: a text buffer, UTF-8, character classes, NFC. The check of
 * well-formedness is utf8.h. */
#ifndef FP8_FORMATS_UNICODE_H
#define FP8_FORMATS_UNICODE_H
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"

/* A view of UTF-8 bytes; owns nothing, may hold NUL. */
typedef struct uni_text {
    const char *data;
    size_t len;
} uni_text;

/* A growing byte buffer; {0} is empty. */
typedef struct uni_buf {
    char *data;
    size_t len, cap;
} uni_buf;
FP8_NODISCARD fp8_status uni_buf_reserve(uni_buf *b, size_t more); /* room for more bytes */
FP8_NODISCARD fp8_status uni_buf_append(uni_buf *b, const char *data, size_t len);
void uni_buf_free(uni_buf *b);

/* Appends s with each maximal ill-formed part as one U+FFFD (Unicode, chapter 3.9, table 3-8). */
FP8_NODISCARD fp8_status uni_append_lossy(uni_buf *out, const char *s, size_t len);

size_t uni_encode(int32_t cp, char out[4]); /* its length */

/* The code point at *at of valid UTF-8; *at moves past it. */
static inline int32_t uni_next(const char *s, size_t *at) {
    const unsigned char *p = (const unsigned char *)s + *at;
    if (p[0] < 0x80) return *at += 1, p[0];
    if (p[0] < 0xe0) return *at += 2, (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    if (p[0] < 0xf0) return *at += 3, (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    *at += 4;
    return (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

/* Classes: every character is in exactly one, so that a set of classes is a mask. White space
 * (White_Space of Unicode) is taken out of its general category, CR and LF out of white space. */
enum {
    UNI_UPPER = 1 << 0,   /* Lu Lt */
    UNI_LOWER = 1 << 1,   /* Ll */
    UNI_CASELESS = 1 << 2, /* Lm Lo */
    UNI_MARK = 1 << 3,    /* Mn Mc Me */
    UNI_DIGIT = 1 << 4,   /* Nd */
    UNI_NUMBER = 1 << 5,  /* Nl No */
    UNI_PUNCT = 1 << 6,   /* P* */
    UNI_SYMBOL = 1 << 7,  /* S* */
    UNI_BLANK = 1 << 8,   /* white space but CR, LF */
    UNI_LINE = 1 << 9,    /* CR LF */
    UNI_REST = 1 << 10,   /* Cc Cf Co Cn */
    UNI_ALL = (1 << 11) - 1,
    UNI_L = UNI_UPPER | UNI_LOWER | UNI_CASELESS,
    UNI_N = UNI_DIGIT | UNI_NUMBER,
    UNI_SPACE = UNI_BLANK | UNI_LINE
};
uint32_t uni_class(int32_t cp);

int uni_is_word(int32_t cp); /* \w: Alphabetic, M, Nd, Pc, Join_Control */

/* Appends the canonical composition of s (valid UTF-8) to out. O(n). By utf8proc's Unicode; Hugging
 * Face's `tokenizers` has the combining classes of Unicode 9, and so leaves about a hundred rare
 * younger marks (U+08CA, U+1AC1 ...) unordered among others. */
FP8_NODISCARD fp8_status uni_append_nfc(uni_buf *out, const char *s, size_t len);
#endif
