/* formats/utf8.h - the one check of UTF-8 well-formedness (Unicode 15, table 3-7), and names from
 * files made fit to print. Private. */
#ifndef FP8_FORMATS_UTF8_H
#define FP8_FORMATS_UTF8_H
#include <stddef.h>

/* Bytes of the well-formed sequence that begins at p, with `left` >= 1 bytes to read: 1 to 4, or 0
 * where it is ill-formed or cut: stray and overlong bytes, surrogates, above U+10FFFF. */
size_t fp8_utf8_length(const unsigned char *p, size_t left);

/* Bytes at the start of text that are well-formed; len when all are. */
size_t fp8_utf8_prefix(const char *text, size_t len);

/* Bytes at the start of text that are well-formed and no control characters (U+0000 to U+001F,
 * U+007F to U+009F); len when all are. */
size_t fp8_utf8_printable(const char *text, size_t len);

enum { FP8_SHOWN_BYTES = 128 };
/* text for a message: what does not print becomes '?', what does not fit "...". Returns buf. */
const char *fp8_utf8_show(char buf[FP8_SHOWN_BYTES], const char *text, size_t len);
#endif
