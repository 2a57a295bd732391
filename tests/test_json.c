/* formats/json.c: what is accepted and what it reads as; what is refused, where and with what
 * words; duplicate keys at any size; the speed of a large vocabulary. */
#include <locale.h>
#include <string.h>
#include <time.h>

#include "formats/file.h"
#include "formats/json.h"
#include "tests/check.h"

#define TEXT(s) (s), sizeof(s) - 1

/* Reads everything; *last is the failing call's status or FP8_OK at the end. */
static fp8_status read_all(const char *bytes, size_t len, const fp8_json_options *options,
                           int64_t *num_events) {
    fp8_json *j = NULL;
    fp8_json_event e = {.type = FP8_JSON_NULL};
    fp8_status st = fp8_json_open(&j, "t.json", bytes, len, options);
    int64_t n = 0;

    while (st == FP8_OK && e.type != FP8_JSON_END) {
        st = fp8_json_next(j, &e);
        n++;
        CHECK(st != FP8_OK || (e.begin <= e.end && e.end <= len));
    }
    if (st != FP8_OK && j) CHECK(fp8_json_next(j, &e) == st); /* stays failed */
    if (num_events) *num_events = n;
    fp8_json_close(j);
    return st;
}

static void test_refused(void) {
    static const struct {
        const char *name, *bytes;
        size_t len;
        const char *message;
    } cases[] = {
        {"empty", TEXT(""), "line 1, column 1: the document is empty"},
        {"white space", TEXT(" \n\t\r "), "line 2, column 4: the document is empty"},
        {"byte order mark", TEXT("\xef\xbb\xbf{}"), "line 1, column 1: begins with a byte order"},
        {"trailing", TEXT("{}\n x"), "line 2, column 2: expected the end of the file, found 'x'"},
        {"two values", TEXT("1 2"), "column 3: expected the end of the file, found '2'"},
        {"trailing NUL", TEXT("1\0"), "expected the end of the file, found byte 0x00"},
        {"open object", TEXT("{"), "column 2: expected a key or '}', found the end of the file"},
        {"open array", TEXT("[1"), "expected ',' or ']', found the end of the file"},
        {"array comma", TEXT("[1,]"), "column 4: expected a value, found ']'"},
        {"first comma", TEXT("[,1]"), "column 2: expected a value or ']', found ','"},
        {"object comma", TEXT("{\"a\":1,}"), "column 8: expected a key, found '}'"},
        {"wrong bracket", TEXT("[1}"), "expected ',' or ']', found '}'"},
        {"wrong brace", TEXT("{\"a\":1]"), "expected ',' or '}', found ']'"},
        {"no colon", TEXT("{\"a\" 1}"), "column 6: expected ':' after the key, found '1'"},
        {"no value", TEXT("{\"a\":}"), "column 6: expected a value, found '}'"},
        {"number key", TEXT("{1:2}"), "expected a key or '}', found '1'"},
        {"single quotes", TEXT("{'a':2}"), "expected a key or '}', found '''"},
        {"comment", TEXT("// x\n1"), "expected a value, found '/'"},
        {"word", TEXT("[nul]"), "column 2: expected a value or ']', found 'n'"},
        {"NaN", TEXT("NaN"), "expected a value, found 'N'"},
        {"-Infinity", TEXT("-Infinity"), "expected a digit after '-', found 'I'"},
        {"capital", TEXT("True"), "expected a value, found 'T'"},
        {"longer word", TEXT("truex"), "expected the end of the file, found 'x'"},
        {"plus", TEXT("+1"), "expected a value, found '+'"},
        {"minus", TEXT("-"), "expected a digit after '-', found the end of the file"},
        {"leading zero", TEXT("01"), "column 1: a number may not begin with a zero"},
        {"leading zeros", TEXT("-00.5"), "a number may not begin with a zero"},
        {"bare point", TEXT(".5"), "expected a value, found '.'"},
        {"no fraction", TEXT("1."), "column 3: expected a digit after '.'"},
        {"no exponent", TEXT("1e"), "expected a digit in the exponent"},
        {"exponent sign", TEXT("[1e+]"), "expected a digit in the exponent, found ']'"},
        {"hex", TEXT("0x10"), "expected the end of the file, found 'x'"},
        {"too large", TEXT("[1e999]"), "column 2: number does not fit in a double"},
        {"too small", TEXT("-1e999"), "number does not fit in a double"},
        {"open string", TEXT("[\"abc"), "column 2: string is not closed"},
        {"open escape", TEXT("\"abc\\"), "column 5: string is not closed"},
        {"new line", TEXT("\"a\nb\""), "column 3: control character 0x0a in a string"},
        {"NUL", TEXT("\"a\0b\""), "control character 0x00 in a string"},
        {"escape", TEXT("\"\\x41\""), "unknown escape: \\ and then 'x'"},
        {"short hex", TEXT("\"\\u12\""), "expected four hex digits after \\u"},
        {"cut hex", TEXT("\"\\u1"), "expected four hex digits after \\u"},
        {"signed hex", TEXT("\"\\u+123\""), "expected four hex digits after \\u"},
        {"lone high", TEXT("\"\\ud800\""), "lone surrogate \\ud800"},
        {"lone low", TEXT("\"\\udc00\\ud800\""), "column 2: lone surrogate \\udc00"},
        {"two lows", TEXT("\"\\udc00\\udc00\""), "lone surrogate \\udc00"},
        {"high and no low", TEXT("\"\\ud800\\ue000\""), "lone surrogate \\ud800"},
        {"two highs", TEXT("\"\\ud800\\ud800\""), "lone surrogate \\ud800"},
        {"high and text", TEXT("\"\\ud800abcdef\""), "lone surrogate \\ud800"},
        {"stray byte", TEXT("\"\x80\""), "byte 0x80 does not begin a UTF-8 character"},
        {"overlong 2", TEXT("\"\xc0\xaf\""), "byte 0xc0"},
        {"overlong 3", TEXT("\"\xe0\x9f\xbf\""), "byte 0xe0"},
        {"overlong 4", TEXT("\"\xf0\x8f\xbf\xbf\""), "byte 0xf0"},
        {"surrogate", TEXT("\"\xed\xa0\x80\""), "byte 0xed"},
        {"above U+10FFFF", TEXT("\"\xf4\x90\x80\x80\""), "byte 0xf4"},
        {"0xf5", TEXT("\"\xf5\x80\x80\x80\""), "byte 0xf5"},
        {"cut UTF-8", TEXT("\"\xe2\x82\""), "byte 0xe2"},
        {"cut by the end", TEXT("\"\xe2\x82"), "byte 0xe2"},
        {"UTF-8 outside", TEXT("\xc3\xa9"), "expected a value, found byte 0xc3"},
        {"column in characters", TEXT("[\"\xc3\xa9\xe2\x82\xac\" x"), "line 1, column 7: expected"},
        {"duplicate key", TEXT("{\"a\":1,\n\"a\":2}"), "line 2, column 1: duplicate key 'a'"},
        {"escaped duplicate", TEXT("{\"a\":1,\"\\u0061\":2}"), "duplicate key 'a'"},
        {"duplicate NUL", TEXT("{\"\\u0000\":1,\"\\u0000\":2}"), "duplicate key"},
        {"empty duplicate", TEXT("{\"\":1,\"\":2}"), "duplicate key ''"},
        {"inner duplicate", TEXT("{\"a\":{\"b\":1,\"c\":{\"b\":1},\"b\":2}}"), "duplicate key 'b'"},
        {"outer duplicate", TEXT("{\"a\":{\"b\":1},\"a\":2}"), "duplicate key 'a'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].name;
        CHECK_STATUS(read_all(cases[i].bytes, cases[i].len, NULL, NULL), FP8_EFORMAT);
        CHECK(strncmp(fp8_last_message(), "t.json: line ", 13) == 0);
        if (!strstr(fp8_last_message(), cases[i].message)) {
            fprintf(stderr, "message: %s\n", fp8_last_message());
            CHECK(!"message");
        }
    }
}

static void test_accepted(void) {
    static const struct {
        const char *name, *bytes;
        size_t len;
        int64_t events; /* END included */
    } cases[] = {
        {"object", TEXT("{}"), 3},
        {"array", TEXT(" [ ] \n"), 3},
        {"scalar", TEXT("\t1\r\n"), 2},
        {"words", TEXT("[true,false,null]"), 6},
        {"same key elsewhere", TEXT("{\"a\":{\"a\":1},\"b\":{\"a\":[{\"a\":1},{\"a\":1}]}}"), 22},
        {"keys that differ after NUL", TEXT("{\"a\\u0000b\":1,\"a\\u0000c\":1,\"a\":1}"), 9},
        {"case matters", TEXT("{\"a\":1,\"A\":1}"), 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t n = 0;
        check_case = cases[i].name;
        CHECK_STATUS(read_all(cases[i].bytes, cases[i].len, NULL, &n), FP8_OK);
        CHECK(n == cases[i].events);
    }
}

static void test_numbers(void) {
    static const struct {
        const char *text;
        fp8_json_type type;
        int64_t i64;
        uint64_t u64;
        double f64;
    } cases[] = {
        {"0", FP8_JSON_INT, 0, 0, 0.0},
        {"-0", FP8_JSON_INT, 0, 0, -0.0},
        {"7", FP8_JSON_INT, 7, 0, 7.0},
        {"-12", FP8_JSON_INT, -12, 0, -12.0},
        {"9007199254740993", FP8_JSON_INT, 9007199254740993, 0, 9007199254740992.0},
        {"9223372036854775807", FP8_JSON_INT, INT64_MAX, 0, 0x1p63},
        {"-9223372036854775808", FP8_JSON_INT, INT64_MIN, 0, -0x1p63},
        {"9223372036854775808", FP8_JSON_UINT, 0, (uint64_t)1 << 63, 0x1p63},
        {"18446744073709551615", FP8_JSON_UINT, 0, UINT64_MAX, 0x1p64},
        {"18446744073709551616", FP8_JSON_REAL, 0, 0, 0x1p64},
        {"-9223372036854775809", FP8_JSON_REAL, 0, 0, -0x1p63},
        {"1000000000000000019884624838656", FP8_JSON_REAL, 0, 0, 1e30},
        {"1.0", FP8_JSON_REAL, 0, 0, 1.0},
        {"-0.0", FP8_JSON_REAL, 0, 0, -0.0},
        {"0.1", FP8_JSON_REAL, 0, 0, 0.1},
        {"1e-06", FP8_JSON_REAL, 0, 0, 1e-6},
        {"1E3", FP8_JSON_REAL, 0, 0, 1000.0},
        {"1.5e+2", FP8_JSON_REAL, 0, 0, 150.0},
        {"0e0", FP8_JSON_REAL, 0, 0, 0.0},
        {"1e-999", FP8_JSON_REAL, 0, 0, 0.0},
        {"5e-324", FP8_JSON_REAL, 0, 0, 0x1p-1074},
        {"1.7976931348623157e308", FP8_JSON_REAL, 0, 0, 0x1.fffffffffffffp1023},
        {"2.2250738585072011e-308", FP8_JSON_REAL, 0, 0, 0x0.fffffffffffffp-1022},
        {"9007199254740992.999999999999999999999999999", FP8_JSON_REAL, 0, 0, 9007199254740992.0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_json *j = NULL;
        fp8_json_event e = {.type = FP8_JSON_NULL};
        check_case = cases[i].text;
        CHECK_STATUS(fp8_json_open(&j, "t", cases[i].text, strlen(cases[i].text), NULL), FP8_OK);
        CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
        CHECK(e.type == cases[i].type && e.i64 == cases[i].i64 && e.u64 == cases[i].u64);
        CHECK(memcmp(&e.f64, &cases[i].f64, sizeof e.f64) == 0);
        fp8_json_close(j);
    }
}

static void test_strings(void) {
    static const struct {
        const char *name, *bytes, *want;
        size_t len;
    } cases[] = {
        {"empty", "\"\"", TEXT("")},
        {"plain", "\"abc\"", TEXT("abc")},
        {"escapes", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", TEXT("\"\\/\b\f\n\r\t")},
        {"NUL", "\"a\\u0000b\"", TEXT("a\0b")},
        {"one byte", "\"\\u007F\"", TEXT("\x7f")},
        {"two bytes", "\"\\u0080\\u07ff\"", TEXT("\xc2\x80\xdf\xbf")},
        {"three bytes", "\"\\u0800\\uFFFF\"", TEXT("\xe0\xa0\x80\xef\xbf\xbf")},
        {"around the surrogates", "\"\\ud7ff\\ue000\"", TEXT("\xed\x9f\xbf\xee\x80\x80")},
        {"pairs", "\"\\ud800\\udc00\\uDBFF\\uDFFF\"", TEXT("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")},
        {"raw", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"",
         TEXT("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80")},
        {"raw limits", "\"\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
         TEXT("\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")},
        {"mixed", "\"ab\\ncd\\u00e9ef\"", TEXT("ab\ncd\xc3\xa9" "ef")},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_json *j = NULL;
        fp8_json_event e = {.type = FP8_JSON_NULL};
        check_case = cases[i].name;
        CHECK_STATUS(fp8_json_open(&j, "t", cases[i].bytes, strlen(cases[i].bytes), NULL), FP8_OK);
        CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
        CHECK(e.type == FP8_JSON_STRING && e.len == cases[i].len);
        CHECK(e.text && memcmp(e.text, cases[i].want, e.len + 1) == 0);
        CHECK(e.begin == 0 && e.end == strlen(cases[i].bytes));
        fp8_json_close(j);
    }
}

static void test_readers(void) {
    static const char text[] = "{\"n\": 5, \"x\": 2.5, \"b\": true, "
                               "\"skip\": {\"a\": [1, {\"b\": []}]}, \"list\": [1, \"two\"]}";
    fp8_json *j = NULL;
    fp8_json_event e;
    size_t end = 0;
    int64_t n = 0;
    double x = 0;
    int b = 0;

    check_case = "readers";
    CHECK_STATUS(fp8_json_open(&j, "t", text, sizeof text - 1, NULL), FP8_OK);
    CHECK_STATUS(fp8_json_expect(j, FP8_JSON_OBJECT, "the document", &e), FP8_OK);
    CHECK_STATUS(fp8_json_key(j, &e), FP8_OK);
    CHECK(fp8_json_is(&e, "n") && !fp8_json_is(&e, "nn") && !fp8_json_is(&e, ""));
    CHECK_STATUS(fp8_json_get_int(j, "n", 5, 5, &n), FP8_OK);
    CHECK_STATUS(fp8_json_key(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_get_number(j, "x", &x), FP8_OK);
    CHECK_STATUS(fp8_json_key(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_get_bool(j, "b", &b), FP8_OK);
    CHECK(n == 5 && x == 2.5 && b == 1);
    CHECK_STATUS(fp8_json_key(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_skip(j, &e, &end), FP8_OK);
    CHECK(text[e.begin] == '{' && strncmp(text + end, ", \"list\"", 8) == 0);
    CHECK_STATUS(fp8_json_key(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_expect(j, FP8_JSON_ARRAY, "list", &e), FP8_OK);
    CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
    CHECK_STATUS(fp8_json_skip(j, &e, &end), FP8_OK); /* a scalar: nothing more to read */
    CHECK(end == e.end && e.i64 == 1);
    CHECK_STATUS(fp8_json_get_int(j, "list[1]", 0, 9, &n), FP8_EFORMAT);
    CHECK(strstr(fp8_last_message(),
                 "t: line 1, column 74: list[1]: expected an integer, found string"));
    CHECK_STATUS(fp8_json_next(j, &e), FP8_EFORMAT);
    fp8_json_close(j);
    fp8_json_close(NULL);
}

static void test_reader_failures(void) {
    static const struct {
        const char *text, *message;
        enum { AS_INT, AS_NUMBER, AS_BOOL, AS_KEY, AS_ARRAY } as;
    } cases[] = {
        {"11", "v: expected 0 to 10, found 11", AS_INT},
        {"-1", "v: expected 0 to 10, found -1", AS_INT},
        {"18446744073709551615", "v: expected 0 to 10, found 18446744073709551615", AS_INT},
        {"1.0", "v: expected an integer, found real number", AS_INT},
        {"\"1\"", "v: expected a number, found string", AS_NUMBER},
        {"1", "v: expected true or false, found integer", AS_BOOL},
        {"null", "v: expected true or false, found null", AS_BOOL},
        {"[]", "expected a key of an object, found array", AS_KEY},
        {"{}", "v: expected array, found object", AS_ARRAY},
        {"", "the document is empty", AS_ARRAY},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_json *j = NULL;
        fp8_json_event e;
        int64_t n;
        double x;
        int b;
        fp8_status st = fp8_json_open(&j, "t", cases[i].text, strlen(cases[i].text), NULL);
        check_case = cases[i].message;
        CHECK_STATUS(st, FP8_OK);
        switch (cases[i].as) {
        case AS_INT: st = fp8_json_get_int(j, "v", 0, 10, &n); break;
        case AS_NUMBER: st = fp8_json_get_number(j, "v", &x); break;
        case AS_BOOL: st = fp8_json_get_bool(j, "v", &b); break;
        case AS_KEY: st = fp8_json_key(j, &e); break;
        case AS_ARRAY: st = fp8_json_expect(j, FP8_JSON_ARRAY, "v", &e); break;
        }
        CHECK_STATUS(st, FP8_EFORMAT);
        CHECK(strstr(fp8_last_message(), cases[i].message));
        fp8_json_close(j);
    }
}

static void test_limits(void) {
    enum { DEEP = 100000 };
    const fp8_json_options shallow = {.max_depth = 3}, deep = {.max_depth = DEEP},
                           small = {.max_bytes = 4};
    char *nested = malloc(2 * DEEP);

    check_case = "limits";
    CHECK(nested != NULL);
    if (!nested) return;
    memset(nested, '[', DEEP);
    memset(nested + DEEP, ']', DEEP);
    CHECK_STATUS(read_all(nested, 2 * DEEP, &deep, NULL), FP8_OK);
    CHECK_STATUS(read_all(nested + DEEP - 64, 128, NULL, NULL), FP8_OK);
    CHECK_STATUS(read_all(nested + DEEP - 65, 130, NULL, NULL), FP8_EFORMAT);
    CHECK(strstr(fp8_last_message(), "column 65: more than 64 levels of nesting"));
    CHECK_STATUS(read_all(TEXT("[[[1]]]"), &shallow, NULL), FP8_OK);
    CHECK_STATUS(read_all(TEXT("[[[[]]]]"), &shallow, NULL), FP8_EFORMAT);
    CHECK_STATUS(read_all(TEXT("[12]"), &small, NULL), FP8_OK);
    CHECK_STATUS(read_all(TEXT("[123]"), &small, NULL), FP8_EFORMAT);
    CHECK(strcmp(fp8_last_message(), "t.json: 5 bytes of JSON, at most 4 are read") == 0);
    free(nested);
}

/* A host program may have chosen a locale with a decimal comma. Where none is installed:
 * localedef -i de_DE -f UTF-8 FOLDER/de_DE.UTF-8 && LOCPATH=FOLDER test_json */
static void test_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"};
    fp8_json *j = NULL;
    double x = 0;

    check_case = "locale";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (setlocale(LC_ALL, names[i])) break;
    if (*localeconv()->decimal_point != ',') printf("locale: none here has a decimal comma\n");
    CHECK_STATUS(fp8_json_open(&j, "t", TEXT("0.25"), NULL), FP8_OK);
    CHECK_STATUS(fp8_json_get_number(j, "x", &x), FP8_OK);
    CHECK(x == 0.25);
    fp8_json_close(j);
    setlocale(LC_ALL, "C");
}

/* A vocabulary of n tokens as tokenizer.json prints it; the last key repeats the first if asked. */
static char *make_vocabulary(int n, int duplicate, size_t *len) {
    char *text = malloc((size_t)n * 40 + 64);
    size_t at = 0;
    if (!text) return NULL;
    at += (size_t)sprintf(text, "{\"vocab\": {\n");
    for (int i = 0; i < n; i++)
        at += (size_t)sprintf(text + at, "      \"\xc4\xa0tok%x\\n\": %d%s", i, i,
                              i + 1 < n ? ",\n" : "");
    if (duplicate) at += (size_t)sprintf(text + at, ",\n      \"\xc4\xa0tok0\\u000a\": %d", n);
    at += (size_t)sprintf(text + at, "\n}}\n");
    *len = at;
    return text;
}

static void test_vocabulary(void) {
    enum { TOKENS = 262144 };
    for (int duplicate = 0; duplicate < 2; duplicate++) {
        size_t len = 0;
        char *text = make_vocabulary(TOKENS, duplicate, &len);
        struct timespec a, b;
        double seconds;

        check_case = duplicate ? "vocabulary with a duplicate" : "vocabulary";
        CHECK(text != NULL);
        if (!text) return;
        clock_gettime(CLOCK_MONOTONIC, &a);
        CHECK_STATUS(read_all(text, len, NULL, NULL), duplicate ? FP8_EFORMAT : FP8_OK);
        clock_gettime(CLOCK_MONOTONIC, &b);
        seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
        printf("%s: %d keys, %.1f MB: %.3f s, %.0f MB/s\n", check_case, TOKENS, 1e-6 * (double)len,
               seconds, 1e-6 * (double)len / seconds);
        if (duplicate) CHECK(strstr(fp8_last_message(), "line 262146, column 7: duplicate key"));
        CHECK(seconds < 10); /* a quadratic set would take minutes */
        free(text);
    }
}

static void test_files(void) {
    static const char *const names[] = {"models/llama-11m/tokenizer.json",
                                        "fixtures/tokenizers/llama3/tokenizer.json",
                                        "models/gemma-7m/reference.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *path = check_data(names[i]);
        fp8_file f = {0};
        check_case = names[i];
        if (!path) continue;
        CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
        CHECK_STATUS(read_all((const char *)f.data, f.bytes, NULL, NULL), FP8_OK);
        for (size_t cut = 1; cut <= 64 && cut < f.bytes; cut++) /* every cut is noticed */
            CHECK_STATUS(read_all((const char *)f.data, f.bytes / 64 * cut - 1, NULL, NULL),
                         FP8_EFORMAT);
        fp8_file_unmap(&f);
    }
}

int main(void) {
    test_refused();
    test_accepted();
    test_numbers();
    test_strings();
    test_readers();
    test_reader_failures();
    test_limits();
    test_locale();
    test_vocabulary();
    test_files();
    return CHECK_DONE();
}
