/* formats/safetensors*.c: every malformation refused with a line that says what; what the reference
 * accepts; the writer's placement, determinism and duties. With arguments it serves
 * test_safetensors_python.py:
 *   --bad FOLDER     writes each malformed file as FOLDER/NAME
 *   --write FOLDER   writes good files of random shapes and every dtype
 *   --list FILE...   of each: "= FILE" and "name dtype shape crc32" a tensor, or "! message" */
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "formats/file.h"
#include "formats/safetensors_impl.h"
#include "tests/check.h"

#define TEXT(s) (s), sizeof(s) - 1
#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) TEXT("{\"w\":" ENTRY(dtype, shape, offsets) "}")
#define GOOD ENTRY("F32", "[2,2]", "[0,16]")
#define NAME_64 "0123456789012345678901234567890123456789012345678901234567890123"
#define NAME_512 NAME_64 NAME_64 NAME_64 NAME_64 NAME_64 NAME_64 NAME_64 NAME_64

enum { REAL = -1, RAW = -2 }; /* header length: as it is; no length and no data at all */

static const struct bad_file {
    const char *name, *header;
    size_t header_len;
    int64_t length; /* written into the file, or REAL, RAW */
    size_t data;    /* bytes after the header */
    const char *message;
} bad[] = {
    {"empty file", TEXT(""), RAW, 0, "0 bytes, too short for the 8-byte header length"},
    {"seven bytes", TEXT("\x02\0\0\0\0\0\0"), RAW, 0, "7 bytes, too short"},
    {"header too large", TEXT("{}"), 100000001, 0, "header of 100000001 bytes, at most 100000000"},
    {"header length negative", TEXT("{}"), INT64_MIN, 0, "header of 9223372036854775808 bytes"},
    {"header cut", TEXT("{}"), 3, 0, "header of 3 bytes, but only 2 follow its length"},
    {"header length without header", TEXT(""), 2, 0, "header of 2 bytes, but only 0 follow"},
    {"header empty", TEXT(""), REAL, 0, "header: line 1, column 1: the document is empty"},
    {"header cut in JSON", TEXT("{\"w\":" GOOD "}"), 20, 100, "header: line 1, column 21: "},
    {"header not UTF-8", TEXT("{\"w\xff\":" GOOD "}"), REAL, 16, "byte 0xff does not begin"},
    {"header with BOM", TEXT("\xef\xbb\xbf{\"w\":" GOOD "}"), REAL, 16, "byte order mark"},
    {"header an array", TEXT("[]"), REAL, 0, "expected object, found array"},
    {"header null", TEXT("null"), REAL, 0, "expected object, found null"},
    {"header not JSON", TEXT("hello"), REAL, 0, "expected a value, found 'h'"},
    {"header and more", TEXT("{\"w\":" GOOD "}x"), REAL, 16, "found 'x'"},
    {"header padded with NUL", TEXT("{\"w\":" GOOD "}\0\0"), REAL, 16, "found byte 0x00"},
    {"header trailing comma", TEXT("{\"w\":" GOOD ",}"), REAL, 16, "expected a key, found '}'"},
    {"entry an array", TEXT("{\"w\":[1]}"), REAL, 0,
     "'w': header: line 1, column 6: a tensor: expected object, found array"},
    {"entry null", TEXT("{\"w\":null}"), REAL, 0, "expected object, found null"},
    {"dtype unknown", ONE("F8", "[1]", "[0,1]"), REAL, 1, "'w': unknown dtype 'F8'"},
    {"dtype in small letters", ONE("f32", "[1]", "[0,4]"), REAL, 4, "unknown dtype 'f32'"},
    {"dtype with control characters", ONE("F\\u001b[2J", "[1]", "[0,4]"), REAL, 4,
     "unknown dtype 'F?[2J'"},
    {"dtype a number", TEXT("{\"w\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}"), REAL, 4,
     "dtype: expected string, found integer"},
    {"dtype missing", TEXT("{\"w\":{\"shape\":[1],\"data_offsets\":[0,1]}}"), REAL, 1,
     "'w': dtype is missing"},
    {"shape missing", TEXT("{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}"), REAL, 1,
     "'w': shape is missing"},
    {"offsets missing", TEXT("{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}"), REAL, 1,
     "'w': data_offsets is missing"},
    {"entry empty", TEXT("{\"w\":{}}"), REAL, 0, "'w': dtype is missing"},
    {"shape a number", ONE("U8", "1", "[0,1]"), REAL, 1, "shape: expected array, found integer"},
    {"shape negative", ONE("U8", "[-1]", "[0,1]"), REAL, 1,
     "'w': header: line 1, column 29: shape: expected an integer from 0 to 2^63-1"},
    {"shape fractional", ONE("U8", "[1.0]", "[0,1]"), REAL, 1, "shape: expected an integer"},
    {"shape above 64 bits", ONE("U8", "[18446744073709551616]", "[0,1]"), REAL, 1,
     "shape: expected an integer"},
    {"shape of strings", ONE("U8", "[\"1\"]", "[0,1]"), REAL, 1, "shape: expected an integer"},
    {"shape nested", ONE("U8", "[[1]]", "[0,1]"), REAL, 1, "shape: expected an integer"},
    {"rank above the cap", ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), REAL, 1,
     "shape: more than 8 dimensions"},
    {"offsets a string", ONE("F32", "[2,2]", "\"0,16\""), REAL, 16,
     "data_offsets: expected array, found string"},
    {"offsets of one", ONE("F32", "[2,2]", "[0]"), REAL, 16,
     "data_offsets[1]: expected an integer, found end of array"},
    {"offsets of three", ONE("F32", "[2,2]", "[0,16,32]"), REAL, 16,
     "data_offsets: expected end of array, found integer"},
    {"offset negative", ONE("F32", "[2,2]", "[-16,0]"), REAL, 16,
     "data_offsets[0]: expected 0 to 9223372036854775807, found -16"},
    {"offset fractional", ONE("F32", "[2,2]", "[0,16.0]"), REAL, 16,
     "data_offsets[1]: expected an integer, found real number"},
    {"offset above 64 bits", ONE("F32", "[2,2]", "[0,18446744073709551632]"), REAL, 16,
     "data_offsets[1]: expected an integer, found real number"},
    {"offset above 63 bits", ONE("F32", "[2,2]", "[0,18446744073709551615]"), REAL, 16,
     "data_offsets[1]: expected 0 to 9223372036854775807, found 18446744073709551615"},
    {"end before begin", ONE("F32", "[2,2]", "[16,0]"), REAL, 16,
     "'w': data_offsets [16,0) end before they begin"},
    {"first offset", ONE("F32", "[2,2]", "[4,20]"), REAL, 20,
     "'w': data_offsets [4,20) leave a hole after 0"},
    {"hole", TEXT("{\"v\":" GOOD ",\"w\":" ENTRY("F32", "[2,2]", "[17,33]") "}"), REAL, 33,
     "'w': data_offsets [17,33) leave a hole after 16"},
    {"overlap", TEXT("{\"v\":" GOOD ",\"w\":" ENTRY("F32", "[2,2]", "[15,31]") "}"), REAL, 31,
     "'w': data_offsets [15,31) overlap 'v', which ends at 16"},
    {"same bytes twice", TEXT("{\"v\":" GOOD ",\"w\":" GOOD "}"), REAL, 16,
     "'w': data_offsets [0,16) overlap 'v', which ends at 16"},
    {"empty tensor inside another", TEXT("{\"v\":" GOOD ",\"w\":" ENTRY("U8", "[0]", "[8,8]") "}"),
     REAL, 16, "'w': data_offsets [8,8) overlap 'v'"},
    {"size too large", ONE("F8_E4M3", "[4,8]", "[0,64]"), REAL, 64,
     "'w': data_offsets [0,64) but F8_E4M3 [4, 8] needs 32 bytes"},
    {"size too small", ONE("F32", "[]", "[0,2]"), REAL, 2,
     "'w': data_offsets [0,2) but F32 [] needs 4 bytes"},
    {"empty tensor with bytes", ONE("F32", "[2,0]", "[0,8]"), REAL, 8,
     "'w': data_offsets [0,8) but F32 [2, 0] needs 0 bytes"},
    {"shape overflows", ONE("U8", "[4294967296,4294967296]", "[0,0]"), REAL, 0,
     "'w': shape [4294967296, 4294967296] has more than 2^63-1 elements"},
    {"bytes overflow", ONE("F64", "[4611686018427387904]", "[0,0]"), REAL, 0,
     "'w': 4611686018427387904 elements of F64 overflow"},
    {"half a byte", ONE("F4", "[3]", "[0,2]"), REAL, 2,
     "'w': 3 elements of F4 do not fill whole bytes"},
    {"six bits", ONE("F6_E2M3", "[2]", "[0,1]"), REAL, 1,
     "'w': 2 elements of F6_E2M3 do not fill whole bytes"},
    {"data cut", TEXT("{\"w\":" GOOD "}"), REAL, 15,
     "truncated: tensors need 16 bytes of data, the file has 15"},
    {"data missing", TEXT("{\"w\":" GOOD "}"), REAL, 0, "truncated: tensors need 16 bytes"},
    {"trailing bytes", TEXT("{\"w\":" GOOD "}"), REAL, 17, "1 bytes follow the last tensor's data"},
    {"trailing bytes without tensors", TEXT("{}"), REAL, 4,
     "4 bytes follow the last tensor's data"},
    {"duplicate tensor", TEXT("{\"w\":" GOOD ",\"w\":" GOOD "}"), REAL, 16,
     "header: line 1, column 58: duplicate key 'w'"},
    {"duplicate field",
     TEXT("{\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"shape\":[4],\"data_offsets\":[0,16]}}"),
     REAL, 16, "'w': header: line 1, column 35: duplicate key 'shape'"},
    {"duplicate in metadata", TEXT("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), REAL, 0,
     "duplicate key 'a'"},
    {"metadata an array", TEXT("{\"__metadata__\":[]}"), REAL, 0,
     "__metadata__: expected object, found array"},
    {"metadata of numbers", TEXT("{\"__metadata__\":{\"a\":1}}"), REAL, 0,
     "__metadata__ value: expected string, found integer"},
    {"metadata with NUL", TEXT("{\"__metadata__\":{\"a\":\"x\\u0000y\"}}"), REAL, 0,
     "__metadata__ holds a NUL character"},
    {"name with a new line", TEXT("{\"w\\n\":" GOOD "}"), REAL, 16,
     "tensor name 'w?' holds a control character"},
    {"name with NUL", TEXT("{\"w\\u0000x\":" GOOD "}"), REAL, 16, "tensor name 'w?x' holds"},
    {"name with DEL", TEXT("{\"w\\u007f\":" GOOD "}"), REAL, 16, "tensor name 'w?' holds"},
    {"name with C1", TEXT("{\"w\xc2\x9b\":" GOOD "}"), REAL, 16, "tensor name 'w?' holds"},
    {"name too long", TEXT("{\"" NAME_512 NAME_512 "x\":" GOOD "}"), REAL, 16,
     "has 1025 bytes, at most 1024 are allowed"},
    {"name lone surrogate", TEXT("{\"\\ud800\":" GOOD "}"), REAL, 16, "lone surrogate \\ud800"},
    {"nesting",
     TEXT("{\"w\":{\"x\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["), REAL, 0,
     "more than 64 levels of nesting"},
};
enum { NUM_BAD = sizeof bad / sizeof *bad };

/* The whole file of a row; free(). */
static unsigned char *make_bad(const struct bad_file *b, size_t *len) {
    const uint64_t length = b->length == REAL ? b->header_len : (uint64_t)b->length;
    const size_t prefix = b->length == RAW ? 0 : 8;
    unsigned char *bytes = malloc(prefix + b->header_len + b->data + 1);

    if (!bytes) exit(1);
    *len = prefix + b->header_len + b->data;
    for (size_t i = 0; i < prefix; i++) bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + prefix, b->header, b->header_len);
    memset(bytes + prefix + b->header_len, 0x40, b->data);
    return bytes;
}

static void test_bad(void) {
    for (int i = 0; i < NUM_BAD; i++) {
        size_t len = 0;
        unsigned char *bytes = make_bad(&bad[i], &len);
        unsigned char *exact = malloc(len ? len : 1); /* so that a sanitizer sees its end */
        fp8_safetensors *s = NULL;

        check_case = bad[i].name;
        memcpy(exact, bytes, len);
        CHECK_STATUS(fp8_safetensors_open_memory(&s, "t.safetensors", exact, len), FP8_EFORMAT);
        CHECK(s == NULL);
        if (!strstr(fp8_last_message(), bad[i].message) ||
            strncmp(fp8_last_message(), "t.safetensors: ", 15) != 0) {
            fprintf(stderr, "message: %s\n", fp8_last_message());
            CHECK(!"message");
        }
        fp8_safetensors_close(s);
        free(exact);
        free(bytes);
    }
}

static void test_accepted(void) {
    static const struct {
        const char *name, *header;
        size_t header_len, data;
        int64_t count;
    } cases[] = {
        {"no tensors", TEXT("{}"), 0, 0},
        {"metadata alone", TEXT("{\"__metadata__\":{\"format\":\"pt\"}}"), 0, 0},
        {"metadata last", TEXT("{\"w\":" GOOD ",\"__metadata__\":{}}"), 16, 1},
        {"scalar", ONE("F32", "[]", "[0,4]"), 4, 1},
        {"zero size", ONE("F32", "[2,0]", "[0,0]"), 0, 1},
        {"zero sizes",
         TEXT("{\"b\":" ENTRY("F32", "[0]", "[0,0]") ",\"a\":" ENTRY("F32", "[0]", "[0,0]") "}"), 0,
         2},
        {"zero at the end", TEXT("{\"z\":" ENTRY("U8", "[0]", "[16,16]") ",\"w\":" GOOD "}"), 16,
         2},
        {"white space around", TEXT(" \t\r\n{\"w\":" GOOD "}  \n"), 16, 1},
        {"extra keys",
         TEXT("{\"w\":{\"x\":{\"y\":[1,null]},\"dtype\":\"F32\",\"shape\":[2,2],"
              "\"data_offsets\":[0,16],\"z\":1e3}}"), 16, 1},
        {"rank 8", ONE("U8", "[1,1,1,1,2,1,1,1]", "[0,2]"), 2, 1},
        {"any order", TEXT("{\"w\":" ENTRY("F32", "[2,2]", "[16,32]") ",\"v\":" GOOD "}"), 32, 2},
        {"longest name", TEXT("{\"" NAME_512 NAME_512 "\":" GOOD "}"), 16, 1},
        {"empty name", TEXT("{\"\":" GOOD "}"), 16, 1},
        {"UTF-8 name", TEXT("{\"\xce\xbb\\u00e9\":" GOOD "}"), 16, 1},
        {"unaligned",
         TEXT("{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"w\":" ENTRY("F32", "[2,2]", "[1,17]") "}"),
         17, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct bad_file as = {cases[i].name, cases[i].header, cases[i].header_len, REAL,
                                    cases[i].data, ""};
        size_t len = 0;
        unsigned char *bytes = make_bad(&as, &len);
        fp8_safetensors *s = NULL;

        check_case = cases[i].name;
        CHECK_STATUS(fp8_safetensors_open_memory(&s, "t", bytes, len), FP8_OK);
        CHECK(s && fp8_safetensors_count(s) == cases[i].count);
        for (int64_t k = 0, at = 0; s && k < cases[i].count; k++) { /* by offset, no holes */
            const fp8_st_entry *e = fp8_safetensors_at(s, k);
            CHECK((unsigned char *)e->tensor.data == bytes + 8 + cases[i].header_len + at);
            CHECK(fp8_safetensors_find(s, e->name) == e && e->tensor.place == FP8_PLACE_CPU);
            at += (int64_t)e->bytes;
        }
        CHECK(!s || !fp8_safetensors_find(s, "absent"));
        fp8_safetensors_close(s);
        free(bytes);
    }
}

/* ---- the writer ---------------------------------------------------------------------------- */

enum { MAX_SPECS = 64 };

typedef struct set {
    fp8_st_spec specs[MAX_SPECS];
    char names[MAX_SPECS][48];
    unsigned char *data[MAX_SPECS];
    size_t bytes[MAX_SPECS];
    int64_t n;
} set;

static const fp8_st_pair metadata[] = {
    {"format", "pt"}, {"quote\"\\/\n\t\x01", "\xce\xbb \xf0\x9f\x98\x80"}, {"", ""}};
enum { NUM_METADATA = 3 };

/* Every dtype once, then random ones; names with quotes, backslashes and UTF-8 among them. */
static void make_set(set *s, int64_t n, uint64_t seed) {
    static const int64_t sizes[] = {0, 1, 2, 3, 4, 7, 8, 16, 31, 64, 65};
    static const char *const odd[] = {"\xce\xbb.weight", "quote\"d", "back\\slash", "a b/c'"};

    s->n = n;
    for (int64_t i = 0; i < n; i++) {
        fp8_st_spec *spec = &s->specs[i];
        *spec = (fp8_st_spec){.name = s->names[i]};
        if (i < 4) snprintf(s->names[i], sizeof s->names[i], "%s", odd[i]);
        else snprintf(s->names[i], sizeof s->names[i], "t%03x.%lld",
                      (unsigned)(check_random(&seed) & 0xfff), (long long)i);
        spec->dtype = (fp8_dtype)(i < FP8_NUM_DTYPES ? (uint64_t)i
                                                     : check_random(&seed) % FP8_NUM_DTYPES);
        spec->ndim = (int32_t)(check_random(&seed) % 5);
        for (int32_t d = 0; d < spec->ndim; d++)
            spec->shape[d] = sizes[check_random(&seed) % (sizeof sizes / sizeof *sizes)];
        if (spec->ndim > 3) spec->shape[3] = 2;
        if (fp8_dtype_size(spec->dtype) == 0) { /* whole bytes */
            if (spec->ndim == 0) spec->ndim = 1;
            spec->shape[spec->ndim - 1] = 4 * (int64_t)(check_random(&seed) % 9);
        }
        CHECK_STATUS(fp8_shape_bytes(&s->bytes[i], spec->dtype, spec->shape, spec->ndim), FP8_OK);
        s->data[i] = malloc(s->bytes[i] + 1);
        for (size_t k = 0; k < s->bytes[i]; k++) s->data[i][k] = (unsigned char)check_random(&seed);
    }
}

static void free_set(set *s) {
    for (int64_t i = 0; i < s->n; i++) free(s->data[i]);
}

/* Writes the set with its specs rotated by `turn`, the data in another order still. */
static void write_set(const set *s, const char *path, int64_t turn) {
    fp8_st_spec specs[MAX_SPECS];
    fp8_st_writer *w = NULL;

    for (int64_t i = 0; i < s->n; i++) specs[i] = s->specs[(i + turn) % s->n];
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, s->n, metadata, NUM_METADATA), FP8_OK);
    for (int64_t i = s->n - 1; w && i >= 0; i--) {
        const int64_t from = (i + turn) % s->n;
        CHECK_STATUS(fp8_st_writer_put(w, i, s->data[from], s->bytes[from]), FP8_OK);
    }
    if (w) CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
}

/* The written file read back: same tensors, each aligned, pages at page starts. */
static void check_set(const set *s, const char *path) {
    fp8_safetensors *in = NULL;
    int64_t has_page = 0;

    CHECK_STATUS(fp8_safetensors_open(&in, path), FP8_OK);
    if (!in) return;
    CHECK(fp8_safetensors_count(in) == s->n && strcmp(fp8_safetensors_path(in), path) == 0);
    CHECK(fp8_safetensors_metadata_count(in) == NUM_METADATA);
    for (int64_t i = 0; i < NUM_METADATA; i++) {
        const char *key = NULL, *value = NULL;
        fp8_safetensors_metadata_at(in, i, &key, &value);
        CHECK(strcmp(key, metadata[i].key) == 0 && strcmp(value, metadata[i].value) == 0);
        CHECK(fp8_safetensors_metadata(in, metadata[i].key) == value);
    }
    CHECK(!fp8_safetensors_metadata(in, "absent"));
    for (int64_t i = 0; i < s->n; i++) has_page |= s->bytes[i] >= 4096;
    for (int64_t i = 0; i < s->n; i++) {
        const fp8_st_spec *want = &s->specs[i];
        const fp8_st_entry *e = fp8_safetensors_find(in, want->name);
        size_t align;
        CHECK(e != NULL);
        if (!e) continue;
        CHECK(e->tensor.dtype == want->dtype && e->tensor.ndim == want->ndim);
        CHECK(memcmp(e->tensor.shape, want->shape, sizeof want->shape) == 0);
        CHECK(e->bytes == s->bytes[i] && memcmp(e->tensor.data, s->data[i], e->bytes) == 0);
        align = fp8_dtype_size(want->dtype);
        if (has_page && e->bytes % 4096 == 0) align = 4096;
        CHECK(align == 0 || (uintptr_t)e->tensor.data % align == 0); /* mappings begin at pages */
    }
    fp8_safetensors_close(in);
}

static int same_files(const char *a, const char *b) {
    fp8_file fa = {0}, fb = {0};
    int same;
    CHECK_STATUS(fp8_file_map(&fa, a), FP8_OK);
    CHECK_STATUS(fp8_file_map(&fb, b), FP8_OK);
    same = fa.bytes == fb.bytes && memcmp(fa.data, fb.data, fa.bytes) == 0;
    fp8_file_unmap(&fa);
    fp8_file_unmap(&fb);
    return same;
}

static void test_round_trip(const char *root) {
    char *a = fp8_path_join(root, "a.safetensors"), *b = fp8_path_join(root, "b.safetensors");
    static const int64_t counts[] = {0, 1, 2, 5, FP8_NUM_DTYPES, MAX_SPECS};

    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (uint64_t seed = 1; seed <= 20; seed++) {
            char name[64];
            set s;
            snprintf(name, sizeof name, "%d tensors, seed %d", (int)counts[c], (int)seed);
            check_case = name;
            make_set(&s, counts[c], seed);
            write_set(&s, a, 0);
            check_set(&s, a);
            write_set(&s, b, (int64_t)seed);
            CHECK(same_files(a, b)); /* the order of the specs does not matter */
            free_set(&s);
            check_case = "";
        }
    CHECK(unlink(a) == 0 && unlink(b) == 0);
    free(a);
    free(b);
}

/* The layout as written down, byte for byte. */
static void test_layout(const char *root) {
    static const fp8_st_spec specs[] = {{"b.fp8", FP8_DTYPE_E4M3, 1, {3}},
                                        {"a.scale", FP8_DTYPE_F32, 0, {0}},
                                        {"c\"", FP8_DTYPE_BF16, 2, {1, 2}}};
    static const fp8_st_pair pairs[] = {{"format", "pt"}};
    static const char want[] =
        "\xd8\0\0\0\0\0\0\0"
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a.scale\":" ENTRY("F32", "[]", "[0,4]") ","
        "\"c\\\"\":" ENTRY("BF16", "[1,2]", "[4,8]") ","
        "\"b.fp8\":" ENTRY("F8_E4M3", "[3]", "[8,11]") "}      "
        "SSSSBBBBfp8";
    char *path = fp8_path_join(root, "layout.safetensors");
    fp8_st_writer *w = NULL;
    fp8_file f = {0};

    check_case = "layout";
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, 3, pairs, 1), FP8_OK);
    CHECK(!fp8_path_exists(path));
    CHECK_STATUS(fp8_st_writer_put(w, 2, "BBBB", 4), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 0, "fp8", 3), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 1, "SSSS", 4), FP8_OK);
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
    CHECK(f.bytes == sizeof want - 1 && memcmp(f.data, want, f.bytes) == 0);
    fp8_file_unmap(&f);
    CHECK(unlink(path) == 0);
    free(path);
}

static void test_writer_refuses(const char *root) {
    static const struct {
        const char *name;
        fp8_st_spec specs[2];
        int64_t num_specs;
        fp8_st_pair pairs[2];
        int64_t num_pairs;
        const char *message;
    } cases[] = {
        {"same name", {{"w", FP8_DTYPE_U8, 0, {0}}, {"w", FP8_DTYPE_F32, 0, {0}}}, 2, {{0}}, 0,
         "two tensors are named 'w'"},
        {"reserved name", {{"__metadata__", FP8_DTYPE_U8, 0, {0}}}, 1, {{0}}, 0, "__metadata__"},
        {"control character", {{"a\nb", FP8_DTYPE_U8, 0, {0}}}, 1, {{0}}, 0, "'a?b' holds"},
        {"not UTF-8", {{"a\xff", FP8_DTYPE_U8, 0, {0}}}, 1, {{0}}, 0, "'a?' holds"},
        {"long name", {{NAME_512 NAME_512 "x", FP8_DTYPE_U8, 0, {0}}}, 1, {{0}}, 0, "1025 bytes"},
        {"negative size", {{"w", FP8_DTYPE_U8, 1, {-1}}}, 1, {{0}}, 0, "'w': dimension 0 is -1"},
        {"rank", {{"w", FP8_DTYPE_U8, 9, {1}}}, 1, {{0}}, 0, "'w': rank 9"},
        {"overflow", {{"w", FP8_DTYPE_F32, 1, {INT64_MAX}}}, 1, {{0}}, 0, "'w': "},
        {"half a byte", {{"w", FP8_DTYPE_F4, 1, {3}}}, 1, {{0}}, 0, "'w': 3 elements of F4"},
        {"dtype", {{"w", FP8_NUM_DTYPES, 1, {3}}}, 1, {{0}}, 0, "'w': unknown dtype"},
        {"same key", {{0}}, 0, {{"k", "1"}, {"k", "2"}}, 2, "metadata 'k' is given twice"},
        {"value not UTF-8", {{0}}, 0, {{"k", "\xff"}}, 1, "metadata 'k' is not UTF-8"},
        {"key not UTF-8", {{0}}, 0, {{"\xc3", ""}}, 1, "metadata '?' is not UTF-8"},
        {"negative count", {{0}}, -1, {{0}}, 0, "-1 tensors"},
    };
    char *path = fp8_path_join(root, "refused.safetensors");

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_st_writer *w = NULL;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_st_writer_create(&w, path, cases[i].specs, cases[i].num_specs,
                                          cases[i].pairs, cases[i].num_pairs), FP8_EINVAL);
        CHECK(w == NULL && strstr(fp8_last_message(), cases[i].message));
    }
    free(path);
}

/* What a writer owes: each tensor once and whole, nothing left behind, the old file kept. */
static void test_writer_duties(const char *root) {
    static const fp8_st_spec specs[] = {{"a", FP8_DTYPE_U8, 1, {4}}, {"b", FP8_DTYPE_U8, 1, {0}}};
    char *path = fp8_path_join(root, "duties.safetensors");
    char *below = fp8_path_join(root, "missing/x.safetensors");
    fp8_st_writer *w = NULL;
    fp8_file f = {0};

    check_case = "duties";
    CHECK_STATUS(fp8_file_write(path, "old", 3), FP8_OK);
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, 2, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 0, "123", 3), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "duties.safetensors: 'a': expected 4 bytes, found 3"));
    CHECK_STATUS(fp8_st_writer_put(w, -1, "1234", 4), FP8_EINVAL);
    CHECK_STATUS(fp8_st_writer_put(w, 2, "1234", 4), FP8_EINVAL);
    CHECK_STATUS(fp8_st_writer_put(w, 0, "1234", 4), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 0, "1234", 4), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'a' is put twice"));
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'b' was never put"));
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, 2, NULL, 0), FP8_OK);
    fp8_st_writer_abort(w);
    fp8_st_writer_abort(NULL);
    CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
    CHECK(f.bytes == 3 && memcmp(f.data, "old", 3) == 0);
    fp8_file_unmap(&f);
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, 2, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 1, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put_part(w, 0, 2, "34", 2), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put_part(w, 0, 2, "345", 3), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'a': bytes 2 to 5 of 4, of which 2 are there"));
    CHECK_STATUS(fp8_st_writer_put_part(w, 0, 0, "12", 2), FP8_OK);
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, 2, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put(w, 1, NULL, 0), FP8_OK);
    CHECK_STATUS(fp8_st_writer_put_part(w, 0, 1, "2", 1), FP8_OK);
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'a' was never put whole"));
    CHECK_STATUS(fp8_st_writer_create(&w, below, specs, 2, NULL, 0), FP8_ENOTFOUND);
    CHECK(w == NULL && unlink(path) == 0);
    free(below);
    free(path);
}

static void test_files(const char *root) {
    static const char *const names[] = {
        "models/sample-1m/model.safetensors", "models/llama-11m/model-00001-of-00002.safetensors",
        "fixtures/llama/reference.safetensors", "fixtures/qwen3_moe/model.safetensors"};
    char *missing = fp8_path_join(root, "missing.safetensors");
    fp8_safetensors *s = NULL;

    check_case = "files";
    CHECK_STATUS(fp8_safetensors_open(&s, missing), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_safetensors_open(&s, root), FP8_EIO);
    free(missing);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *path = check_data(names[i]);
        check_case = names[i];
        if (!path) continue;
        CHECK_STATUS(fp8_safetensors_open(&s, path), FP8_OK);
        CHECK(s && fp8_safetensors_count(s) > 0);
        fp8_safetensors_close(s);
    }
}

/* ---- for test_safetensors_python.py -------------------------------------------------------- */

static int serve_bad(const char *folder) {
    for (int i = 0; i < NUM_BAD; i++) {
        size_t len = 0;
        unsigned char *bytes = make_bad(&bad[i], &len);
        char *path = fp8_path_join(folder, bad[i].name);
        CHECK_STATUS(fp8_file_write(path, bytes, len), FP8_OK);
        free(path);
        free(bytes);
    }
    return CHECK_DONE();
}

static int serve_write(const char *folder) {
    for (uint64_t seed = 100; seed < 110; seed++) {
        char name[32];
        char *path;
        set s;
        snprintf(name, sizeof name, "%d.safetensors", (int)seed);
        path = fp8_path_join(folder, name);
        make_set(&s, MAX_SPECS, seed);
        write_set(&s, path, 0);
        free_set(&s);
        free(path);
    }
    return CHECK_DONE();
}

static void list_file(const char *path) {
    fp8_safetensors *s = NULL;
    if (fp8_safetensors_open(&s, path) != FP8_OK) {
        printf("! %s\n", fp8_last_message());
        return;
    }
    printf("= %s\n", path);
    for (int64_t i = 0; i < fp8_safetensors_count(s); i++) {
        const fp8_st_entry *e = fp8_safetensors_at(s, i);
        char shape[256];
        printf("%s\t%s\t%s\t%lu\n", e->name, fp8_dtype_name(e->tensor.dtype),
               fp8_shape_text(shape, sizeof shape, e->tensor.shape, e->tensor.ndim),
               crc32_z(0, e->tensor.data, e->bytes));
    }
    fp8_safetensors_close(s);
}

int main(int argc, char **argv) {
    char root[] = "/tmp/fp8-test-safetensors-XXXXXX";

    if (argc == 3 && strcmp(argv[1], "--bad") == 0) return serve_bad(argv[2]);
    if (argc == 3 && strcmp(argv[1], "--write") == 0) return serve_write(argv[2]);
    if (argc > 2 && strcmp(argv[1], "--list") == 0) {
        for (int i = 2; i < argc; i++) list_file(argv[i]);
        return 0;
    }
    if (!mkdtemp(root)) return 1;
    test_bad();
    test_accepted();
    test_round_trip(root);
    test_layout(root);
    test_writer_refuses(root);
    test_writer_duties(root);
    test_files(root);
    check_case = "nothing left behind";
    CHECK(rmdir(root) == 0);
    return CHECK_DONE();
}
