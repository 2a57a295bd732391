/* formats/textdata.c, gzip.c, iddata*.c: texts, lines, gzip and ids, good and malformed. */
#include <string.h>
#include <zlib.h>

#include "formats/file.h"
#include "formats/gzip.h"
#include "formats/safetensors.h"
#include "formats/textdata.h"
#include "tests/check.h"

static char folder[] = "/tmp/fp8-textdata-XXXXXX";

/* Writes a file of the folder; its path in a static buffer. */
static const char *put(const char *name, const void *data, size_t bytes) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    CHECK_STATUS(fp8_file_write(path, data, bytes), FP8_OK);
    return path;
}

/* Appends one gzip member to out; returns the new length. */
static size_t gzip_member(unsigned char *out, size_t len, size_t cap, const char *text,
                          size_t bytes) {
    z_stream z = {0};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    z.next_in = (z_const Bytef *)(uintptr_t)text;
    z.avail_in = (uInt)bytes;
    z.next_out = out + len;
    z.avail_out = (uInt)(cap - len);
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    len = cap - z.avail_out;
    deflateEnd(&z);
    return len;
}

static void check_message(const char *part) {
    if (strstr(fp8_last_message(), part)) return;
    fprintf(stderr, "[%s] '%s', want '%s' in it\n", check_case, fp8_last_message(), part);
    check_failures++;
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* Samples of a file joined by '|' until the end or a failure, whose status is returned. */
static fp8_status read_all(char out[256], const char *path, const char *field) {
    fp8_text *t = NULL;
    const char *text = NULL;
    size_t len = 0, at = 0;
    fp8_status st = fp8_text_open(&t, path, field);

    out[0] = 0;
    while (st == FP8_OK && (st = fp8_text_next(t, &text, &len)) == FP8_OK && text) {
        CHECK(text[len] == 0 || !fp8_text_is_lines(t));
        for (size_t i = 0; i < len && at < 250; i++) out[at++] = text[i] ? text[i] : '0';
        out[at++] = '|';
        out[at] = 0;
    }
    if (st != FP8_OK && t) CHECK(fp8_text_next(t, &text, &len) == st && !text); /* it stays */
    fp8_text_close(t);
    return st;
}

static void test_texts(void) {
    static const struct {
        const char *name, *content, *field, *want;
        fp8_status status;
        const char *message;
    } cases[] = {
        {"a.txt", "one\r\ntwo\n", NULL, "one\r\ntwo\n|", FP8_OK, ""},
        {"empty.txt", "", NULL, "|", FP8_OK, ""},
        {"plain.json", "{\"text\":1}", NULL, "{\"text\":1}|", FP8_OK, ""},
        {"bad.txt", "ab\xc3", NULL, "", FP8_EDATA, "bad.txt: byte 2 (0xc3) is not UTF-8"},
        {"empty.jsonl", "", NULL, "", FP8_OK, ""},
        {"blank.jsonl", "\n \r\n\t\n", NULL, "", FP8_OK, ""},
        {"a.jsonl", "{\"text\":\"a\"}\n\n{\"x\":[{\"text\":1}],\"text\":\"b\\u0000\\n\"}\r\n"
         "{\"text\":\"\"}", NULL, "a|b0\n||", FP8_OK, ""},
        {"field.jsonl", "{\"text\":1,\"content\":\"a\"}\n", "content", "a|", FP8_OK, ""},
        {"lines.json.gz", "{\"text\":\"not gzip\"}", NULL, "not gzip|", FP8_OK, ""},
        {"missing.jsonl", "\n{\"text\":\"a\"}\n{\"tex\":\"b\"}\n{\"text\":\"c\"}\n", NULL, "a|",
         FP8_EFORMAT, "missing.jsonl: line 3: field 'text' is missing"},
        {"number.jsonl", "{\"text\":7}\n", NULL, "", FP8_EFORMAT,
         "line 1: field 'text': expected string, found integer"},
        {"array.jsonl", "[\"a\"]\n", NULL, "", FP8_EFORMAT, "line 1:"},
        {"two.jsonl", "{\"text\":\"a\"} {\"text\":\"b\"}\n", NULL, "", FP8_EFORMAT, "line 1:"},
        {"cut.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b", NULL, "a|", FP8_EFORMAT, "line 2:"},
        {"twice.jsonl", "{\"text\":\"a\",\"text\":\"b\"}\n", NULL, "", FP8_EFORMAT, "line 1:"},
        {"utf8.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n", NULL, "a|", FP8_EDATA,
         "utf8.jsonl: line 2: byte 9 (0xff) is not UTF-8"},
    };
    char got[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n = strlen(cases[i].content);
        unsigned char zipped[1024];
        char name[64];
        check_case = cases[i].name;
        CHECK_STATUS(read_all(got, put(cases[i].name, cases[i].content, n), cases[i].field),
                     cases[i].status);
        CHECK(strcmp(got, cases[i].want) == 0);
        if (cases[i].status != FP8_OK) check_message(cases[i].message);
        snprintf(name, sizeof name, "%s%s", cases[i].name,
                 strstr(cases[i].name, ".gz") ? "" : ".gz"); /* the same, gzipped */
        if (strcmp(cases[i].name, "plain.json") == 0) continue; /* its .gz is lines */
        CHECK_STATUS(read_all(got, put(name, zipped, gzip_member(zipped, 0, sizeof zipped,
                                                                 cases[i].content, n)),
                              cases[i].field),
                     cases[i].status);
        CHECK(strcmp(got, cases[i].want) == 0);
    }
}

static void test_memory(void) {
    fp8_text *t = NULL;
    const char *text = NULL;
    size_t len = 0;

    check_case = "memory";
    CHECK_STATUS(fp8_text_open(&t, "/nonexistent/a.txt", NULL), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_text_open(&t, "/tmp", NULL), FP8_EIO);
    CHECK(t == NULL);
    CHECK_STATUS(fp8_text_open_memory(&t, "m", "a\0b", 3), FP8_OK);
    CHECK(!fp8_text_is_lines(t));
    CHECK_STATUS(fp8_text_next(t, &text, &len), FP8_OK);
    CHECK(len == 3 && text && memcmp(text, "a\0b", 3) == 0);
    CHECK_STATUS(fp8_text_next(t, &text, &len), FP8_OK);
    CHECK(!text && len == 0);
    fp8_text_close(t);
    CHECK_STATUS(fp8_text_open_memory(&t, "m", NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_text_next(t, &text, &len), FP8_OK);
    CHECK(text && len == 0);
    fp8_text_close(t);
    fp8_text_close(NULL);
}

/* ---- gzip ------------------------------------------------------------------------------------ */

static fp8_status inflate_bytes(const unsigned char *data, size_t bytes, size_t max_bytes,
                                size_t *len) {
    char *out = NULL;
    const fp8_status st = fp8_gzip_inflate(&out, len, "g", data, bytes, max_bytes);
    CHECK((out == NULL) == (st != FP8_OK));
    free(out);
    return st;
}

static void test_gzip(void) {
    enum { TEXT = 200000, CAP = 300000 };
    unsigned char *zipped = calloc(1, CAP);
    char *text = malloc(TEXT), *out = NULL;
    uint64_t seed = 1;
    size_t n, one, len = 0;

    check_case = "gzip";
    for (size_t i = 0; i < TEXT; i++) text[i] = (char)check_random(&seed); /* beyond one buffer */
    one = gzip_member(zipped, 0, CAP, text, 1000);
    n = gzip_member(zipped, one, CAP, text + 1000, TEXT - 1000);
    CHECK_STATUS(fp8_gzip_inflate(&out, &len, "g", zipped, n, TEXT), FP8_OK);
    CHECK(len == TEXT && memcmp(out, text, TEXT) == 0);
    free(out);
    CHECK_STATUS(inflate_bytes(zipped, n + 512, TEXT, &len), FP8_OK); /* zeros behind it */
    CHECK_STATUS(inflate_bytes(zipped, n, TEXT - 1, &len), FP8_EDATA);
    check_message("more than 199999 bytes");
    for (size_t cut = 0; cut < n; cut += cut < 40 || n - cut < 20 ? 1 : 997) {
        const fp8_status want = cut == one ? FP8_OK : FP8_EDATA;
        CHECK_STATUS(inflate_bytes(zipped, cut, TEXT, &len), want);
    }
    check_message("truncated");
    zipped[n] = 7;
    CHECK_STATUS(inflate_bytes(zipped, n + 1, TEXT, &len), FP8_EDATA);
    check_message("1 bytes behind the gzip data");
    zipped[n - 5] ^= 1; /* checksum */
    CHECK_STATUS(inflate_bytes(zipped, n, TEXT, &len), FP8_EDATA);
    check_message("damaged");
    free(zipped);
    free(text);
}

/* ---- ids ------------------------------------------------------------------------------------- */

static fp8_status load_ids(char out[128], const char *path, int64_t vocab_size) {
    fp8_id_data d;
    const fp8_status st = fp8_id_data_load(&d, path, vocab_size);

    out[0] = 0;
    for (int64_t i = 0; i < d.num_seqs; i++) {
        for (int64_t k = d.starts[i]; k < d.starts[i + 1]; k++)
            snprintf(out + strlen(out), 128 - strlen(out), "%d ", d.ids.data[k]);
        snprintf(out + strlen(out), 128 - strlen(out), "|");
    }
    if (st != FP8_OK) CHECK(!d.ids.data && !d.starts && d.num_seqs == 0);
    fp8_id_data_free(&d);
    return st;
}

static void test_raw(void) {
    static const unsigned char bytes[] = {1, 0, 0xff, 0xff, 2, 0, 0, 0};
    static const struct {
        size_t len;
        int64_t vocab;
        fp8_status want;
        const char *ids, *message;
    } cases[] = {
        {8, 65536, FP8_OK, "1 65535 2 0 |", ""},
        {8, 65535, FP8_EDATA, "", "id 65535 at position 1: expected 0 to 65534"},
        {4, 65537, FP8_EDATA, "", "id 4294901761 at position 0: expected 0 to 65536"},
        {7, 65536, FP8_EFORMAT, "", "7 bytes: expected ids of 2 bytes each"},
        {6, 65537, FP8_EFORMAT, "", "6 bytes: expected ids of 4 bytes each"},
        {0, 10, FP8_EDATA, "", "no ids"},
        {2, 2, FP8_OK, "1 |", ""},
        {2, 1, FP8_EDATA, "", "id 1 at position 0: expected 0 to 0"},
        {2, 0, FP8_EINVAL, "", "vocabulary of 0"},
    };
    char got[128];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_case = cases[i].message;
        CHECK_STATUS(load_ids(got, put("a.bin", bytes, cases[i].len), cases[i].vocab),
                     cases[i].want);
        CHECK(strcmp(got, cases[i].ids) == 0);
        if (cases[i].want != FP8_OK) check_message(cases[i].message);
    }
    check_case = "names";
    CHECK_STATUS(load_ids(got, put("a.ids", bytes, 8), 9), FP8_EUNSUPPORTED);
    CHECK_STATUS(load_ids(got, "/nonexistent/a.bin", 9), FP8_ENOTFOUND);
    CHECK_STATUS(load_ids(got, "/nonexistent/a.npy", 9), FP8_ENOTFOUND);
    CHECK_STATUS(load_ids(got, "/nonexistent/a.safetensors", 9), FP8_ENOTFOUND);
}

static void test_npy(void) {
    static const unsigned char data[] = {1, 0, 2, 0, 3, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
                                         0xff, 0xff, 0xff, 0xff};
    static const struct {
        int major;
        const char *header;
        size_t data_bytes;
        fp8_status want;
        const char *ids, *message;
    } cases[] = {
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }  \n", 8, FP8_OK,
         "1 2 3 4 |", ""},
        {2, "{'shape': (2, 2), \"fortran_order\": False, 'descr': '<i2'}\n", 8, FP8_OK,
         "1 2 |3 4 |", ""},
        {3, "{'descr':'|u1','fortran_order':False,'shape':(3,2,)}", 6, FP8_OK, "1 0 |2 0 |3 0 |",
         ""},
        {1, "{'descr': '<u4', 'fortran_order': False, 'shape': (1,), }", 4, FP8_EDATA, "",
         "id 131073 at position 0: expected 0 to 9"},
        {1, "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }", 12, FP8_EDATA, "",
         "id -1 at position 1 of sequence 1"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (0,), }", 0, FP8_EDATA, "",
         "no ids"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (9223372036854775807, 0), }", 0,
         FP8_EDATA, "", "no ids"},
        {1, "{'descr': '<u8', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", 0,
         FP8_EFORMAT, "", "0 bytes of data: expected"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (99223372036854775807,), }", 0,
         FP8_EFORMAT, "", "a size below 2^63"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", 9, FP8_EFORMAT, "",
         "9 bytes of data: expected 1 x 4 of 2 bytes"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", 7, FP8_EFORMAT, "",
         "7 bytes of data"},
        {1, "{'descr': '>u2', 'fortran_order': False, 'shape': (4,), }", 8, FP8_EUNSUPPORTED, "",
         "'>u2': expected little-endian"},
        {1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 8, FP8_EUNSUPPORTED, "",
         "'<f4': expected integers"},
        {1, "{'descr': '<i3', 'fortran_order': False, 'shape': (2,), }", 8, FP8_EUNSUPPORTED, "",
         "'<i3'"},
        {1, "{'descr': '<U10', 'fortran_order': False, 'shape': (2,), }", 8, FP8_EUNSUPPORTED, "",
         "'<U10'"},
        {1, "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2,), }", 8, FP8_EFORMAT,
         "", "expected a string, found '[('a', '<i4')], 'for'"},
        {1, "{'descr': '<u2', 'fortran_order': True, 'shape': (2, 2), }", 8, FP8_EUNSUPPORTED, "",
         "Fortran order"},
        {1, "{'descr': '<u2', 'fortran_order': 0, 'shape': (2, 2), }", 8, FP8_EFORMAT, "",
         "True or False"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (), }", 2, FP8_EUNSUPPORTED, "",
         "a scalar"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (1, 2, 2), }", 8, FP8_EUNSUPPORTED,
         "", "1 or 2 dimensions"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4), }", 8, FP8_EFORMAT, "",
         "expected ','"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (-4,), }", 8, FP8_EFORMAT, "",
         "expected a size"},
        {1, "{'descr': '<u2', 'fortran_order': False, }", 8, FP8_EFORMAT, "",
         "'shape' is missing"},
        {1, "{'descr': '<u2', 'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", 8,
         FP8_EFORMAT, "", "each once"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), 'x': 1}", 8, FP8_EFORMAT, "",
         "each once"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), } x", 8, FP8_EFORMAT, "",
         "the end of the header"},
        {1, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,)", 8, FP8_EFORMAT, "",
         "',' or '}'"},
        {1, "{'descr': '<u2", 8, FP8_EFORMAT, "", "a plain string"},
        {1, "", 8, FP8_EFORMAT, "", "'{'"},
        {4, "{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }", 8, FP8_EUNSUPPORTED, "",
         "version 4.0"},
    };
    char got[128];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n = strlen(cases[i].header);
        size_t at = 8;
        unsigned char file[256] = "\x93NUMPY";
        check_case = cases[i].header;
        file[6] = (unsigned char)cases[i].major;
        file[at++] = (unsigned char)n;
        file[at++] = 0;
        if (cases[i].major > 1) at += 2;
        memcpy(file + at, cases[i].header, n);
        memcpy(file + at + n, data, cases[i].data_bytes);
        at += n + cases[i].data_bytes;
        CHECK_STATUS(load_ids(got, put("a.npy", file, at), 10), cases[i].want);
        CHECK(strcmp(got, cases[i].ids) == 0);
        if (cases[i].want != FP8_OK) check_message(cases[i].message);
        for (size_t cut = 0; i < 3 && cut < at; cut++) /* no beginning of a good file is one */
            CHECK_STATUS(load_ids(got, put("a.npy", file, cut), 10), FP8_EFORMAT);
    }
}

static void test_safetensors(void) {
    static const int64_t ids[] = {5, 6, 7, 8, -1, 9};
    static const struct {
        const char *name;
        fp8_st_spec specs[2];
        int64_t num_specs;
        fp8_status want;
        const char *ids, *message;
    } cases[] = {
        {"the only one", {{"x", FP8_DTYPE_I64, 1, {4}}}, 1, FP8_OK, "5 6 7 8 |", ""},
        {"by name", {{"a", FP8_DTYPE_F32, 1, {2}}, {"input_ids", FP8_DTYPE_I64, 2, {2, 2}}}, 2,
         FP8_OK, "5 6 |7 8 |", ""},
        {"u8", {{"x", FP8_DTYPE_U8, 1, {1}}}, 1, FP8_OK, "5 |", ""},
        {"negative", {{"x", FP8_DTYPE_I64, 2, {2, 3}}}, 1, FP8_EDATA, "",
         "id -1 at position 1 of sequence 1: expected 0 to 9"},
        {"unsigned", {{"x", FP8_DTYPE_U64, 1, {6}}}, 1, FP8_EDATA, "",
         "id 18446744073709551615 at position 4"},
        {"float", {{"x", FP8_DTYPE_F32, 1, {2}}}, 1, FP8_EUNSUPPORTED, "", "'x' is F32"},
        {"bool", {{"x", FP8_DTYPE_BOOL, 1, {2}}}, 1, FP8_EUNSUPPORTED, "", "'x' is BOOL"},
        {"scalar", {{"x", FP8_DTYPE_I64, 0, {0}}}, 1, FP8_EUNSUPPORTED, "", "0 dimensions"},
        {"rank 3", {{"x", FP8_DTYPE_I64, 3, {1, 1, 1}}}, 1, FP8_EUNSUPPORTED, "", "3 dimensions"},
        {"empty", {{"x", FP8_DTYPE_I64, 2, {3, 0}}}, 1, FP8_EDATA, "", "no ids"},
        {"none of two", {{"a", FP8_DTYPE_I64, 1, {1}}, {"b", FP8_DTYPE_I64, 1, {1}}}, 2,
         FP8_EFORMAT, "", "no tensor 'input_ids' among 2"},
    };
    char path[256], got[128];

    snprintf(path, sizeof path, "%s/ids.safetensors", folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_st_writer *w = NULL;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_st_writer_create(&w, path, cases[i].specs, cases[i].num_specs, NULL, 0),
                     FP8_OK);
        for (int64_t k = 0; k < cases[i].num_specs; k++) {
            const fp8_st_spec *s = &cases[i].specs[k];
            size_t bytes = 0;
            CHECK_STATUS(fp8_shape_bytes(&bytes, s->dtype, s->shape, s->ndim), FP8_OK);
            CHECK_STATUS(fp8_st_writer_put(w, k, ids, bytes), FP8_OK);
        }
        CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
        CHECK_STATUS(load_ids(got, path, 10), cases[i].want);
        CHECK(strcmp(got, cases[i].ids) == 0);
        if (cases[i].want != FP8_OK) check_message(cases[i].message);
    }
}

int main(void) {
    char command[64];

    if (!mkdtemp(folder)) return 1;
    test_texts();
    test_memory();
    test_gzip();
    test_raw();
    test_npy();
    test_safetensors();
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0);
    return CHECK_DONE();
}
