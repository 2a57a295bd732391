/* formats/dialect_pattern.h - private: the part of Python's `re` that ignore lists use. */
#ifndef FP8_FORMATS_DIALECT_PATTERN_H
#define FP8_FORMATS_DIALECT_PATTERN_H

/* 1 when the pattern (without "re:") is in the subset: literal characters, `.`, `.*`, `\.`,
 * `[0-9]+`, a `^` in front, a `$` at the end; at most 256 elements. */
int fp8_pattern_ok(const char *pattern);

/* As re.match: at the start of text, not necessarily to its end. Time is elements x text, whatever
 * the pattern. 0 for a pattern that is not in the subset. */
int fp8_pattern_match(const char *pattern, const char *text);
#endif
