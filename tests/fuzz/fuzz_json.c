/* Fuzz target of formats/json.c.
 *
 * Beyond memory errors it holds the parser to its word: tokens lie in order inside the document,
 * text is terminated UTF-8, brackets match, a failure stays, skipping and reading agree. */
#include <math.h>
#include <stdlib.h>

#include "formats/json.h"
#include "formats/utf8.h"

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

#define MUST(cond) ((cond) ? (void)0 : abort())

static const fp8_json_options options = {.max_depth = 16};

static void check_event(const fp8_json_event *e, size_t *at, int *depth, size_t size) {
    MUST(*at <= e->begin && e->begin <= e->end && e->end <= size);
    *at = e->end;
    *depth += e->type == FP8_JSON_OBJECT || e->type == FP8_JSON_ARRAY;
    *depth -= e->type == FP8_JSON_OBJECT_END || e->type == FP8_JSON_ARRAY_END;
    MUST(*depth >= 0 && *depth <= options.max_depth);
    if (e->type == FP8_JSON_KEY || e->type == FP8_JSON_STRING)
        MUST(e->text[e->len] == '\0' && fp8_utf8_prefix(e->text, e->len) == e->len);
    if (e->type == FP8_JSON_REAL) MUST(isfinite(e->f64));
}

static fp8_status read_all(const char *text, size_t size) {
    fp8_json *j = NULL;
    fp8_json_event e = {.type = FP8_JSON_NULL};
    size_t at = 0;
    int depth = 0;
    fp8_status st = fp8_json_open(&j, "fuzz", text, size, &options);

    while (st == FP8_OK && e.type != FP8_JSON_END) {
        st = fp8_json_next(j, &e);
        if (st == FP8_OK) check_event(&e, &at, &depth, size);
    }
    MUST(st != FP8_OK || depth == 0);
    MUST(st == FP8_OK || st == FP8_EFORMAT);
    if (st != FP8_OK && j) MUST(fp8_json_next(j, &e) == st);
    fp8_json_close(j);
    return st;
}

static fp8_status skip_all(const char *text, size_t size) {
    fp8_json *j = NULL;
    fp8_json_event e;
    size_t end = 0;
    fp8_status st = fp8_json_open(&j, "fuzz", text, size, &options);

    if (st == FP8_OK) st = fp8_json_next(j, &e);
    if (st == FP8_OK) st = fp8_json_skip(j, &e, &end);
    MUST(st != FP8_OK || (end > e.begin && end <= size));
    fp8_json_close(j);
    return st;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    char *text = malloc(size ? size : 1); /* so that its end is watched */
    if (!text) return 0;
    for (size_t i = 0; i < size; i++) text[i] = (char)data[i];
    MUST(read_all(text, size) == skip_all(text, size));
    free(text);
    return 0;
}
