/* formats/record: there and back bit for bit, resume checks, one bad file a rule. */
#include <string.h>

#include "formats/record.h"
#include "formats/safetensors.h"
#include "tests/check.h"

static const char *const POINTS[] = {"model.layers.10.self_attn.k", "model.layers.2.self_attn.k",
                                     "model.layers.2.mlp.up_proj.input"};
static const char RECIPE[] = "{\"batch\": 4, \"seq\": 512, \"data\": \"text\"}";

static const char *path_of(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "test_record_%d_%s", (int)getpid(), name);
    return path;
}

static fp8_record *make(int64_t num_points, int64_t steps, int64_t total) {
    fp8_record *r = NULL;

    CHECK_STATUS(fp8_record_create(&r, POINTS, num_points, total, RECIPE), FP8_OK);
    r->steps = steps;
    r->source_bytes = 123456789012345u;
    r->source_mtime = -5;
    r->source_crc32 = 0xfedcba98u;
    for (int64_t p = 0; p < num_points; p++)
        for (int64_t i = 0; i < steps; i++) {
            r->amax[p * total + i] = (float)p + 0x1p-149f * (float)(i + 1);
            r->amax_without_first[p * total + i] = i == 1 ? INFINITY : 0.0f;
            r->nonfinite[p * total + i] = 0xffffffffu - (uint32_t)(p + i);
        }
    for (int64_t i = 0; i < steps; i++) r->tokens[i] = i << 40;
    return r;
}

static void compare(const fp8_record *a, const fp8_record *b) {
    const int64_t total = a->steps_total;

    CHECK(a->num_points == b->num_points && a->steps == b->steps && total == b->steps_total);
    CHECK(a->source_bytes == b->source_bytes && a->source_mtime == b->source_mtime);
    CHECK(a->source_crc32 == b->source_crc32 && strcmp(a->recipe, b->recipe) == 0);
    for (int64_t p = 0; p < a->num_points; p++) CHECK(strcmp(a->points[p], b->points[p]) == 0);
    const size_t cells = (size_t)(a->num_points * total);
    CHECK(memcmp(a->amax, b->amax, cells * 4) == 0);
    CHECK(memcmp(a->amax_without_first, b->amax_without_first, cells * 4) == 0);
    CHECK(memcmp(a->nonfinite, b->nonfinite, cells * 4) == 0);
    CHECK(memcmp(a->tokens, b->tokens, (size_t)total * 8) == 0);
    CHECK(!a->histograms == !b->histograms);
    if (!a->histograms || !b->histograms) return;
    CHECK(memcmp(a->histograms, b->histograms, (size_t)a->num_points * FP8_RECORD_BINS * 8) == 0);
}

static void test_round_trip(void) {
    static const struct {
        const char *name;
        int64_t points, steps, total;
        int histograms;
    } cases[] = {
        {"usual", 3, 5, 7, 0}, {"done", 3, 7, 7, 0},      {"nothing done", 2, 0, 9, 0},
        {"one", 1, 1, 1, 0},   {"no points", 0, 3, 3, 0}, {"no steps", 3, 0, 0, 0},
        {"histograms", 3, 5, 7, 1}, {"histograms of none", 0, 3, 3, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_record *r = make(cases[i].points, cases[i].steps, cases[i].total), *back = NULL;
        const char *path = path_of("round");
        check_case = cases[i].name;
        if (cases[i].histograms) {
            CHECK_STATUS(fp8_record_add_histograms(r), FP8_OK);
            CHECK_STATUS(fp8_record_add_histograms(r), FP8_EINVAL);
            for (int64_t k = 0; k < r->num_points * FP8_RECORD_BINS; k++)
                r->histograms[k] = (k % 7) << 40;
        }
        CHECK_STATUS(fp8_record_save(r, path), FP8_OK);
        CHECK_STATUS(fp8_record_load(&back, path), FP8_OK);
        if (back) compare(r, back);
        if (back) CHECK_STATUS(fp8_record_check(back, r, path), FP8_OK);
        fp8_record_destroy(back);
        fp8_record_destroy(r);
        unlink(path);
    }
    fp8_record_destroy(NULL);
}

static void test_create(void) {
    static const char *const twice[] = {"a", "b", "a"}, *const empty[] = {""},
                                              *const broken[] = {"a\nb"};
    fp8_record *r = NULL;

    check_case = "create";
    CHECK_STATUS(fp8_record_create(&r, twice, 3, 1, "{}"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, empty, 1, 1, "{}"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, broken, 1, 1, "{}"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, POINTS, -1, 1, "{}"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, POINTS, 1, -1, "{}"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, POINTS, 1, 1, "{"), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, POINTS, 1, 1, ""), FP8_EINVAL);
    CHECK_STATUS(fp8_record_create(&r, POINTS, 3, INT64_MAX, "{}"), FP8_EOVERFLOW);
    CHECK(r == NULL);
    r = make(1, 1, 1);
    r->steps = 2;
    CHECK_STATUS(fp8_record_save(r, path_of("bad")), FP8_EINVAL);
    r->steps = 1;
    CHECK_STATUS(fp8_record_save(r, "no/such/folder/x"), FP8_ENOTFOUND);
    CHECK(access(path_of("bad"), F_OK) != 0);
    fp8_record_destroy(r);
}

static void test_check(void) {
    fp8_record *a = make(3, 2, 4), *b = make(3, 4, 4);
    fp8_record *fewer = make(2, 2, 4), *more = make(3, 2, 5);
    char *recipe = b->recipe, other[] = "{\"batch\": 8, \"seq\": 512}", point[] = "x";

    check_case = "check";
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_OK);
    CHECK_STATUS(fp8_record_check(fewer, b, "r"), FP8_EDATA);
    CHECK_STATUS(fp8_record_check(more, b, "r"), FP8_EDATA);
    b->source_crc32++;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "r: made from another checkpoint") != NULL);
    b->source_crc32--;
    b->source_mtime++;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    b->source_mtime--;
    b->source_bytes++;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    b->source_bytes--;
    b->recipe = other;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    CHECK(strcmp(fp8_last_message(),
                 "r: made with another recipe: '{\"batch\": 4, \"seq\": 512, \"data\": \"text\"}', "
                 "now '{\"batch\": 8, \"seq\": 512}'") == 0);
    b->recipe = recipe;
    recipe = b->points[2];
    b->points[2] = point;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    b->points[2] = recipe;
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_OK);
    CHECK_STATUS(fp8_record_add_histograms(a), FP8_OK);
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_EDATA);
    CHECK_STATUS(fp8_record_check(b, a, "r"), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "no histograms") != NULL);
    CHECK_STATUS(fp8_record_add_histograms(b), FP8_OK);
    CHECK_STATUS(fp8_record_check(a, b, "r"), FP8_OK);
    fp8_record_destroy(a);
    fp8_record_destroy(b);
    fp8_record_destroy(fewer);
    fp8_record_destroy(more);
}

/* ---- bad files ------------------------------------------------------------------------------- */

/* A record of one point "k" and two steps, as a list of parts that a case may change. */
typedef struct parts {
    fp8_st_spec specs[8];
    const void *data[8];
    int64_t num_specs;
    fp8_st_pair metadata[8];
    int64_t num_metadata;
} parts;

static const float HISTORY[2] = {1.0f, INFINITY}, ZERO[3];
static const int64_t TOKENS[2] = {512, 0};

static void good(parts *p) {
    const parts g = {
        {{"k.amax_history", FP8_DTYPE_F32, 1, {2}},
         {"k.amax_history_without_first", FP8_DTYPE_F32, 1, {2}},
         {"k.nonfinite", FP8_DTYPE_U32, 1, {2}},
         {"tokens", FP8_DTYPE_I64, 1, {2}},
         {"recipe", FP8_DTYPE_U8, 1, {2}}},
        {HISTORY, ZERO, ZERO, TOKENS, "{}"},
        5,
        {{"format", "fp8calib.record"}, {"version", "1"}, {"source_bytes", "77"},
         {"source_mtime", "-8"}, {"source_crc32", "4294967295"}, {"steps_done", "2"},
         {"steps_total", "3"}, {"points", "k"}},
        8,
    };
    *p = g;
}

static fp8_status load(const parts *p) {
    const char *path = path_of("parts");
    fp8_st_writer *w = NULL;
    fp8_record *r = NULL;
    fp8_status st;

    CHECK_STATUS(fp8_st_writer_create(&w, path, p->specs, p->num_specs, p->metadata,
                                      p->num_metadata), FP8_OK);
    for (int64_t i = 0; i < p->num_specs; i++) {
        size_t bytes = 0;
        CHECK_STATUS(fp8_shape_bytes(&bytes, p->specs[i].dtype, p->specs[i].shape,
                                     p->specs[i].ndim), FP8_OK);
        CHECK_STATUS(fp8_st_writer_put(w, i, p->data[i], bytes), FP8_OK);
    }
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    st = fp8_record_load(&r, path);
    CHECK((st == FP8_OK) == (r != NULL));
    fp8_record_destroy(r);
    unlink(path);
    return st;
}

static void test_bad_metadata(void) {
    static const struct {
        const char *key, *value; /* NULL: left out */
        const char *says;
    } cases[] = {
        {"format", NULL, "no 'format' in the metadata: not a calibration record"},
        {"format", "pt", "format: expected 'fp8calib.record', found 'pt'"},
        {"version", "2", "version: expected '1', found '2'"},
        {"version", NULL, "no 'version'"},
        {"source_bytes", "-1", "source_bytes: expected an integer from 0"},
        {"source_bytes", "", "source_bytes"},
        {"source_bytes", "7 ", "found '7 '"},
        {"source_bytes", " 7", "source_bytes"},
        {"source_bytes", "+7", "source_bytes"},
        {"source_bytes", "0x7", "source_bytes"},
        {"source_bytes", "9223372036854775808", "source_bytes"},
        {"source_mtime", "-", "source_mtime"},
        {"source_mtime", "1.5", "source_mtime"},
        {"source_mtime", NULL, "no 'source_mtime'"},
        {"source_crc32", "4294967296", "source_crc32"},
        {"steps_done", "4", "steps_done: expected an integer from 0 to 3, found '4'"},
        {"steps_done", "1", "'k.amax_history': expected F32 [1], found F32 [2]"},
        {"steps_total", "1", "steps_done: expected an integer from 0 to 1, found '2'"},
        {"steps_total", NULL, "no 'steps_total'"},
        {"points", NULL, "no 'points'"},
        {"points", "", "0 points need 2 tensors, the file has 5"},
        {"points", "k\nl", "2 points need 8 tensors, the file has 5"},
        {"points", "k\n", "2 points need 8"},
        {"points", "l", "'l.amax_history' is missing"},
    };
    parts p;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].says;
        good(&p);
        for (int64_t k = 0; k < p.num_metadata; k++)
            if (strcmp(p.metadata[k].key, cases[i].key) == 0) {
                p.metadata[k].value = cases[i].value;
                if (!cases[i].value) p.metadata[k] = p.metadata[--p.num_metadata];
            }
        CHECK_STATUS(load(&p), FP8_EFORMAT);
        if (!strstr(fp8_last_message(), cases[i].says))
            fprintf(stderr, "message: %s\n", fp8_last_message());
        CHECK(strstr(fp8_last_message(), cases[i].says) != NULL);
    }
}

static void test_bad_tensors(void) {
    static const int64_t counts[2 * FP8_RECORD_BINS] = {INT64_MAX / FP8_RECORD_BINS};
    static const int64_t negative_count[FP8_RECORD_BINS] = {0, 0, -1};
    static const int64_t large_count[FP8_RECORD_BINS] = {0, INT64_MAX / FP8_RECORD_BINS + 1};
    static const float nan_row[2] = {0.0f, NAN}, negative[2] = {-1.0f, 0.0f},
                       minus_inf[2] = {0.0f, -INFINITY};
    static const int64_t lost[2] = {1, -1};
    static const struct {
        const char *name;
        int at;
        fp8_st_spec spec; /* name NULL: as it was */
        const void *data;
        fp8_status want;
        const char *says;
    } cases[] = {
        {"good", 0, {0}, NULL, FP8_OK, ""},
        {"NaN", 0, {0}, nan_row, FP8_EFORMAT, "'k.amax_history'[1]: nan is no amax"},
        {"negative", 1, {0}, negative, FP8_EFORMAT, "'k.amax_history_without_first'[0]: -1"},
        {"-Inf", 0, {0}, minus_inf, FP8_EFORMAT, "'k.amax_history'[1]: -inf"},
        {"tokens", 3, {0}, lost, FP8_EFORMAT, "'tokens'[1]: -1 is negative"},
        {"dtype", 2, {"k.nonfinite", FP8_DTYPE_I32, 1, {2}}, ZERO, FP8_EFORMAT,
         "'k.nonfinite': expected U32 [2], found I32 [2]"},
        {"rows", 1, {"k.amax_history_without_first", FP8_DTYPE_F32, 1, {3}}, ZERO, FP8_EFORMAT,
         "expected F32 [2], found F32 [3]"},
        {"rank", 1, {"k.amax_history_without_first", FP8_DTYPE_F32, 2, {1, 2}}, ZERO, FP8_EFORMAT,
         "found F32 [1, 2]"},
        {"name", 3, {"token", FP8_DTYPE_I64, 1, {2}}, TOKENS, FP8_EFORMAT, "'tokens' is missing"},
        {"recipe", 4, {0}, "{]", FP8_EFORMAT, "recipe: line 1"},
        {"NUL", 4, {0}, "1\0", FP8_EFORMAT, "recipe: holds a NUL byte"},
        {"recipe dtype", 4, {"recipe", FP8_DTYPE_I8, 1, {2}}, "{}", FP8_EFORMAT,
         "'recipe': expected U8"},
        {"no recipe", 4, {"recipes", FP8_DTYPE_U8, 1, {2}}, "{}", FP8_EFORMAT,
         "'recipe' is missing"},
        {"histograms", 5, {"histograms", FP8_DTYPE_I64, 2, {1, 2048}}, counts, FP8_OK, ""},
        {"histograms flat", 5, {"histograms", FP8_DTYPE_I64, 1, {2048}}, counts, FP8_EFORMAT,
         "'histograms': expected I64 [1, 2048], found I64 [2048]"},
        {"histograms of two", 5, {"histograms", FP8_DTYPE_I64, 2, {2, 2048}}, counts, FP8_EFORMAT,
         "found I64 [2, 2048]"},
        {"histograms narrow", 5, {"histograms", FP8_DTYPE_I64, 2, {1, 2047}}, counts, FP8_EFORMAT,
         "found I64 [1, 2047]"},
        {"histograms dtype", 5, {"histograms", FP8_DTYPE_F32, 2, {1, 2048}}, counts, FP8_EFORMAT,
         "found F32 [1, 2048]"},
        {"count negative", 5, {"histograms", FP8_DTYPE_I64, 2, {1, 2048}}, negative_count,
         FP8_EFORMAT, "'histograms'[0, 2]: -1 is no count"},
        {"count large", 5, {"histograms", FP8_DTYPE_I64, 2, {1, 2048}}, large_count, FP8_EFORMAT,
         "'histograms'[0, 1]: 4503599627370496 is no count"},
        {"one more", 5, {"x", FP8_DTYPE_U8, 1, {1}}, "", FP8_EFORMAT,
         "1 points need 5 tensors, the file has 6"},
    };
    static const char *const spare[] = {"x", "y", "z"};
    fp8_record *r = NULL;
    parts p;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int at = cases[i].at;
        check_case = cases[i].name;
        good(&p);
        if (cases[i].spec.name) p.specs[at] = cases[i].spec;
        if (cases[i].data) p.data[at] = cases[i].data;
        if (at == p.num_specs) p.num_specs++;
        CHECK_STATUS(load(&p), cases[i].want);
        if (cases[i].want == FP8_OK) continue;
        if (!strstr(fp8_last_message(), cases[i].says))
            fprintf(stderr, "message: %s\n", fp8_last_message());
        CHECK(strstr(fp8_last_message(), cases[i].says) != NULL);
    }
    check_case = "one point twice, tensors enough";
    good(&p);
    p.metadata[7].value = "k\nk";
    for (; p.num_specs < 8; p.num_specs++) {
        p.specs[p.num_specs] = (fp8_st_spec){spare[p.num_specs - 5], FP8_DTYPE_F32, 1, {2}};
        p.data[p.num_specs] = ZERO;
    }
    CHECK_STATUS(load(&p), FP8_EFORMAT);
    CHECK(strstr(fp8_last_message(), "point 'k' is given twice") != NULL);
    CHECK_STATUS(fp8_record_load(&r, "no/such/file"), FP8_ENOTFOUND);
    CHECK(r == NULL);
}

int main(void) {
    test_round_trip();
    test_create();
    test_check();
    test_bad_metadata();
    test_bad_tensors();
    return CHECK_DONE();
}
