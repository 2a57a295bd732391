/* formats/config_insert: one key goes in, laid out as the file is; every other byte stays. */
#include <string.h>

#include "formats/config.h"
#include "formats/file.h"
#include "tests/check.h"

#define PRETTY_2                                                                                   \
    "{\n    \"bits\": 8,\n    \"list\": [\n      \"a:b, {\\\"\",\n      2\n    ],\n"               \
    "    \"none\": {}\n  }"

static void test_insert(void) {
    static const char value[] = "{\"bits\":8,\r\n\t\"list\" : [\"a:b, {\\\"\", 2 ], \"none\": { }}";
    static const char flat[] = "{\"bits\": 8, \"list\": [\"a:b, {\\\"\", 2], \"none\": {}}";
    static const struct {
        const char *name, *before, *after; /* the file is before + after */
        const char *lead, *want;           /* lead + laid-out value goes in; NULL: flat */
    } cases[] = {
        {"two spaces", "{\n  \"a\": 1,\n  \"b\": [\n    2\n  ]", "\n}\n",
         ",\n  \"quantization_config\": ", PRETTY_2},
        {"no last newline", "{\n  \"a\": 1", "\n}", ",\n  \"quantization_config\": ", PRETTY_2},
        {"space before the brace", "{\n  \"a\": 1", " \n \n}", ",\n  \"quantization_config\": ",
         PRETTY_2},
        {"no indent", "{\n\"a\": 1", "\n}", ",\n\"quantization_config\": ",
         "{\n\"bits\": 8,\n\"list\": [\n\"a:b, {\\\"\",\n2\n],\n\"none\": {}\n}"},
        {"tabs", "{\n\t\"a\": {\"x\": \"}\"}", "\n}", ",\n\t\"quantization_config\": ",
         "{\n\t\t\"bits\": 8,\n\t\t\"list\": [\n\t\t\t\"a:b, {\\\"\",\n\t\t\t2\n\t\t],\n\t\t"
         "\"none\": {}\n\t}"},
        {"CRLF", "{\r\n \"a\": 1", "\r\n}\r\n", ",\r\n \"quantization_config\": ",
         "{\r\n  \"bits\": 8,\r\n  \"list\": [\r\n   \"a:b, {\\\"\",\r\n   2\r\n  ],\r\n  "
         "\"none\": {}\r\n }"},
        {"one line", "{\"a\": 1, \"b\": [2, 3]", "}", ", \"quantization_config\": ", NULL},
        {"one line, newline after", "{ \"a\": 1", " }\n", ", \"quantization_config\": ", NULL},
        {"empty", "{", "}", "\"quantization_config\": ", NULL},
        {"empty, broken", "{", "\n}", "\n  \"quantization_config\": ", PRETTY_2},
        {"replaced last", "{\n  \"a\": 1,\n  \"quantization_config\": ", "\n}", "", PRETTY_2},
        {"replaced first", "{\n  \"quantization_config\":\t", ",\n  \"a\": {\"b\": 2} }", "",
         PRETTY_2},
        {"replaced, one line", "{\"a\": {\"quantization_config\": 3}, \"quantization_config\":",
         " , \"b\": 2}", "", NULL},
    };
    static const char *const old_values[] = {"null", "{\n \"x\": [1, {\"y\": 2}]}", "17", "\"}\""};
    char json[1024], want[2048];

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int replaces = *cases[i].lead == '\0';
        for (int k = 0; k < (replaces ? 4 : 1); k++) {
            char *out = NULL;
            size_t len = 0;
            check_case = cases[i].name;
            snprintf(json, sizeof json, "%s%s%s", cases[i].before, replaces ? old_values[k] : "",
                     cases[i].after);
            snprintf(want, sizeof want, "%s%s%s%s", cases[i].before, cases[i].lead,
                     cases[i].want ? cases[i].want : flat, cases[i].after);
            CHECK_STATUS(fp8_config_insert(&out, &len, "c", json, strlen(json), value), FP8_OK);
            if (!out || strcmp(out, want) != 0) fprintf(stderr, "got:\n%s\n", out ? out : "NULL");
            CHECK(out && len == strlen(want) && strcmp(out, want) == 0);
            free(out);
        }
    }
}

/* Twice is as good as once, and taking out what was put in gives the file back. */
static void test_insert_fixtures(void) {
    static const char *const files[] = {"fixtures/llama/config.json",
                                        "fixtures/gemma/config_v4.json",
                                        "models/gpt2-3m/config.json"};
    static const char value[] = "{\"quant_method\": \"compressed-tensors\", \"ignore\": [\"x\"]}";

    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *path = check_data(files[i]), *same;
        char *once = NULL, *twice = NULL;
        size_t len = 0, len2 = 0, begin = 0, end = 0;
        fp8_model_config c;
        fp8_file f = {0};

        check_case = files[i];
        if (!path) return;
        CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
        same = (const char *)f.data;
        CHECK_STATUS(fp8_config_insert(&once, &len, "c", same, f.bytes, value), FP8_OK);
        CHECK_STATUS(fp8_config_insert(&twice, &len2, "c", once, len, value), FP8_OK);
        CHECK(len == len2 && memcmp(once, twice, len) == 0);
        CHECK_STATUS(fp8_config_parse(&c, "c", once, len), FP8_OK);
        CHECK(c.has_quantization == 1);
        while (begin < f.bytes && once[begin] == same[begin]) begin++;
        while (end < f.bytes - begin && once[len - 1 - end] == same[f.bytes - 1 - end]) end++;
        CHECK(begin + end == f.bytes); /* one piece went in, nothing else moved */
        free(once);
        free(twice);
        fp8_file_unmap(&f);
    }
}

static void test_insert_refusals(void) {
    static const struct {
        const char *json, *value;
    } cases[] = {
        {"[]", "{}"},  {"", "{}"}, {"{\"a\": 1", "{}"}, {"{\"a\": 1, \"a\": 2}", "{}"},
        {"{}x", "{}"}, {"{}", ""}, {"{}", "{"},         {"{}", "{} {}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *out = NULL;
        size_t len = 0;
        check_case = cases[i].json;
        CHECK_STATUS(fp8_config_insert(&out, &len, "c", cases[i].json, strlen(cases[i].json),
                                       cases[i].value), FP8_EFORMAT);
        CHECK(out == NULL);
    }
}

static void test_remove(void) {
    static const struct {
        const char *json, *want;
    } cases[] = {
        {"{}", "{}"},
        {"{\"a\": 1}", "{\"a\": 1}"},
        {"{\"quantization_config\": {\"a\": [1]}}", "{}"},
        {"{\"quantization_config\": 1, \"b\": 2}", "{\"b\": 2}"},
        {"{\n  \"a\": 1,\n  \"quantization_config\": {},\n  \"b\": 2\n}\n",
         "{\n  \"a\": 1,\n  \"b\": 2\n}\n"},
        {"{\n  \"a\": 1,\n  \"quantization_config\": {}\n}", "{\n  \"a\": 1\n}"},
        {"{\"a\": {\"quantization_config\": 1}}", "{\"a\": {\"quantization_config\": 1}}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = NULL;
        size_t len = 0;
        check_case = cases[i].json;
        CHECK_STATUS(fp8_config_remove(&text, &len, "c", cases[i].json, strlen(cases[i].json)),
                     FP8_OK);
        CHECK(text && strcmp(text, cases[i].want) == 0 && len == strlen(cases[i].want));
        free(text);
    }
}

int main(void) {
    test_remove();
    test_insert();
    test_insert_fixtures();
    test_insert_refusals();
    return CHECK_DONE();
}
