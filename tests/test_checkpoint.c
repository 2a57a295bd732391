/* formats/checkpoint*.c: which paths open, what an index may not say, the fingerprint; writing
 * whole folders, sharded by groups, replaced only when asked. */
#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#include "core/log.h"
#include "formats/checkpoint.h"
#include "formats/file.h"
#include "formats/folder.h"
#include "tests/check.h"

static char root[] = "/tmp/fp8-test-checkpoint-XXXXXX";

/* "root/name" in one of four turning buffers. */
static const char *in_root(const char *name) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ & 3];
    snprintf(path, sizeof paths[0], "%s%s%s", root, *name ? "/" : "", name);
    return path;
}

static int count_names(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    if (!d) return -1;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void write_text(const char *name, const char *text) {
    CHECK_STATUS(fp8_file_write(in_root(name), text, strlen(text)), FP8_OK);
}

/* A file of U8 tensors, one a character of `names`, 3 bytes each. */
static void write_shard(const char *name, const char *names) {
    fp8_st_spec specs[8] = {{0}};
    char texts[8][2] = {{0}};
    const fp8_st_pair metadata = {"shard", name};
    const int64_t n = (int64_t)strlen(names);
    fp8_st_writer *w = NULL;

    for (int64_t i = 0; i < n; i++) {
        texts[i][0] = names[i];
        specs[i] = (fp8_st_spec){.name = texts[i], .dtype = FP8_DTYPE_U8, .ndim = 1, .shape = {3}};
    }
    CHECK_STATUS(fp8_st_writer_create(&w, in_root(name), specs, n, &metadata, 1), FP8_OK);
    for (int64_t i = 0; w && i < n; i++) CHECK_STATUS(fp8_st_writer_put(w, i, "xyz", 3), FP8_OK);
    if (w) CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
}

/* ---- open ---------------------------------------------------------------------------------- */

static void test_bad_index(void) {
    static const struct {
        const char *name, *index;
        fp8_status want;
        const char *message;
    } cases[] = {
        {"empty", "", FP8_EFORMAT, "bad/i.index.json: line 1, column 1: the document is empty"},
        {"array", "[]", FP8_EFORMAT, "the index: expected object, found array"},
        {"no map", "{}", FP8_EFORMAT, "bad/i.index.json: weight_map names no tensor"},
        {"empty map", "{\"weight_map\":{}}", FP8_EFORMAT, "weight_map names no tensor"},
        {"map an array", "{\"weight_map\":[\"a\"]}", FP8_EFORMAT, "expected object, found array"},
        {"value a number", "{\"weight_map\":{\"a\":1}}", FP8_EFORMAT,
         "weight_map: expected string, found integer"},
        {"value null", "{\"weight_map\":{\"a\":null}}", FP8_EFORMAT, "expected string, found null"},
        {"no name", "{\"weight_map\":{\"a\":\"\"}}", FP8_EFORMAT,
         "line 1, column 20: weight_map: '' is not the name of a file beside it"},
        {"absolute", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", FP8_EFORMAT,
         "'/etc/passwd' is not the name"},
        {"below", "{\"weight_map\":{\"a\":\"x/one\"}}", FP8_EFORMAT, "'x/one' is not the name"},
        {"above", "{\"weight_map\":{\"a\":\"../one\"}}", FP8_EFORMAT, "'../one' is not the name"},
        {"dots", "{\"weight_map\":{\"a\":\"..\"}}", FP8_EFORMAT, "'..' is not the name"},
        {"backslash", "{\"weight_map\":{\"a\":\"x\\\\one\"}}", FP8_EFORMAT, "'x\\one' is not"},
        {"NUL", "{\"weight_map\":{\"a\":\"one\\u0000/x\"}}", FP8_EFORMAT, "'one?/x' is not"},
        {"new line", "{\"weight_map\":{\"a\":\"one\\n\"}}", FP8_EFORMAT, "'one?' is not"},
        {"tensor name", "{\"weight_map\":{\"a\\n\":\"one\"}}", FP8_EFORMAT,
         "weight_map: tensor name 'a?' holds a control character"},
        {"duplicate tensor", "{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", FP8_EFORMAT,
         "duplicate key 'a'"},
        {"shard missing", "{\"weight_map\":{\"a\":\"one\",\"z\":\"gone\"}}", FP8_ENOTFOUND,
         "bad/gone: cannot open: No such file or directory"},
        {"shard a folder", "{\"weight_map\":{\"a\":\".\"}}", FP8_EIO, "found a folder"},
        {"shard malformed", "{\"weight_map\":{\"a\":\"junk\"}}", FP8_EFORMAT,
         "bad/junk: header of"},
        {"tensor not there", "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"x\":\"one\"}}",
         FP8_EFORMAT, "weight_map puts 'x' into 'one', which holds no such tensor"},
        {"tensor in the other", "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}", FP8_EFORMAT,
         "weight_map puts 'b' into 'two', which holds no such tensor"},
        {"tensor in both", "{\"weight_map\":{\"a\":\"one\",\"b\":\"again\"}}", FP8_EFORMAT,
         "bad/one: 'b' is in '"},
    };
    CHECK(mkdir(in_root("bad"), 0777) == 0);
    write_shard("bad/one", "ab");
    write_shard("bad/two", "c");
    write_shard("bad/again", "bd");
    write_text("bad/junk", "not a safetensors file");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_checkpoint *c = NULL;
        check_case = cases[i].name;
        write_text("bad/i.index.json", cases[i].index);
        CHECK_STATUS(fp8_checkpoint_open(&c, in_root("bad/i.index.json")), cases[i].want);
        if (c || !strstr(fp8_last_message(), cases[i].message)) {
            fprintf(stderr, "message: %s\n", fp8_last_message());
            CHECK(!"message");
        }
        fp8_checkpoint_close(c);
    }
}

static void check_opens(const char *path, const char *folder, int32_t num_shards,
                        const char *names) {
    fp8_checkpoint *c = NULL;
    char *sibling;

    CHECK_STATUS(fp8_checkpoint_open(&c, path), FP8_OK);
    if (!c) return;
    CHECK(strcmp(fp8_checkpoint_path(c), path) == 0);
    CHECK(strcmp(fp8_checkpoint_folder(c), folder) == 0);
    CHECK(fp8_checkpoint_num_shards(c) == num_shards);
    CHECK(fp8_checkpoint_count(c) == (int64_t)strlen(names));
    for (int64_t i = 0; i < fp8_checkpoint_count(c); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(c, i);
        CHECK(e->name[0] == names[i] && e->name[1] == '\0');
        CHECK(fp8_checkpoint_find(c, e->name) == e && memcmp(e->tensor.data, "xyz", 3) == 0);
    }
    CHECK(!fp8_checkpoint_find(c, "absent"));
    CHECK(fp8_checkpoint_metadata(c, "shard") && !fp8_checkpoint_metadata(c, "absent"));
    CHECK_STATUS(fp8_checkpoint_sibling(&sibling, c, "config.json"), FP8_OK);
    CHECK(sibling && fp8_path_exists(sibling));
    free(sibling);
    CHECK_STATUS(fp8_checkpoint_sibling(&sibling, c, "absent.json"), FP8_OK);
    CHECK(sibling == NULL);
    CHECK_STATUS(fp8_checkpoint_sibling(&sibling, c, "."), FP8_OK);
    CHECK(sibling == NULL);
    CHECK(fp8_checkpoint_bytes(c) > 0);
    fp8_checkpoint_close(c);
}

static void test_paths(void) {
    fp8_checkpoint *c = NULL;

    check_case = "paths";
    CHECK(mkdir(in_root("m"), 0777) == 0);
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("m")), FP8_ENOTFOUND);
    CHECK(strstr(fp8_last_message(), "/m: expected model.safetensors.index.json"));
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("gone")), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("gone.index.json")), FP8_ENOTFOUND);
    write_text("m/config.json", "{}");
    write_shard("m/odd.safetensors", "o");
    check_opens(in_root("m"), in_root("m"), 1, "o");
    check_opens(in_root("m/odd.safetensors"), in_root("m"), 1, "o");
    write_shard("m/second.safetensors", "pq");
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("m")), FP8_ENOTFOUND);
    CHECK(strstr(fp8_last_message(), "found 2 of those"));
    write_shard("m/model.safetensors", "m");
    check_opens(in_root("m"), in_root("m"), 1, "m");
    /* shards go by name, whatever the order of the map; unlisted tensors of a listed shard count */
    write_text("m/model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":1e99999,\"total_size2\":-1},\"weight_map\":"
               "{\"q\":\"second.safetensors\",\"o\":\"odd.safetensors\"},\"more\":[]}");
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("m")), FP8_EFORMAT); /* 1e99999 is no number */
    write_text("m/model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":\"much\"},\"weight_map\":"
               "{\"q\":\"second.safetensors\",\"o\":\"odd.safetensors\"},\"more\":[]}");
    check_opens(in_root("m"), in_root("m"), 2, "opq");
    check_opens(in_root("m/model.safetensors.index.json"), in_root("m"), 2, "opq");
    check_opens(in_root("m/model.safetensors"), in_root("m"), 1, "m");
}

static void test_shared_models(void) {
    static const struct {
        const char *path;
        int32_t num_shards;
    } cases[] = {{"models/llama-11m", 2}, {"models/sample-1m", 1}, {"fixtures/mixtral", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = check_data(cases[i].path);
        fp8_checkpoint *c = NULL;
        uint32_t crc = 0, again = 1;
        check_case = cases[i].path;
        if (!path) continue;
        CHECK_STATUS(fp8_checkpoint_open(&c, path), FP8_OK);
        if (!c) continue;
        CHECK(fp8_checkpoint_num_shards(c) == cases[i].num_shards);
        CHECK_STATUS(fp8_checkpoint_fingerprint(c, &crc), FP8_OK);
        CHECK_STATUS(fp8_checkpoint_fingerprint(c, &again), FP8_OK);
        CHECK(crc == again && crc != 0);
        fp8_checkpoint_close(c);
    }
}

/* ---- write --------------------------------------------------------------------------------- */

enum { NUM_SPECS = 9 };
static const fp8_st_spec specs[NUM_SPECS] = {
    {"0.w", FP8_DTYPE_E4M3, 2, {40, 25}}, {"0.w_scale", FP8_DTYPE_F32, 0, {0}},
    {"1.w", FP8_DTYPE_E4M3, 2, {40, 25}}, {"1.w_scale", FP8_DTYPE_F32, 0, {0}},
    {"2.w", FP8_DTYPE_E4M3, 2, {40, 25}}, {"2.w_scale", FP8_DTYPE_F32, 0, {0}},
    {"norm", FP8_DTYPE_BF16, 1, {500}},   {"none", FP8_DTYPE_F32, 1, {0}},
    {"huge", FP8_DTYPE_BF16, 1, {4000}},
};
static const fp8_st_pair metadata[] = {{"format", "pt"}};
static const int64_t groups[NUM_SPECS] = {0, 0, 1, 1, 2, 2, 3, 4, 5};

static size_t fill(int64_t i, unsigned char *data) {
    size_t bytes = 0;
    CHECK_STATUS(fp8_shape_bytes(&bytes, specs[i].dtype, specs[i].shape, specs[i].ndim), FP8_OK);
    for (size_t k = 0; k < bytes; k++) data[k] = (unsigned char)(17 * i + (int64_t)k);
    return bytes;
}

static void put_all(fp8_checkpoint_writer *w, int backwards) {
    unsigned char data[8000];
    for (int64_t k = 0; w && k < NUM_SPECS; k++) {
        const int64_t i = backwards ? NUM_SPECS - 1 - k : k;
        const size_t bytes = fill(i, data);
        CHECK_STATUS(fp8_checkpoint_writer_put(w, i, data, bytes), FP8_OK);
    }
}

static int32_t shard_of(const fp8_checkpoint *c, const char *name) {
    int32_t i = 0;
    while (i < fp8_checkpoint_num_shards(c) &&
           !fp8_safetensors_find(fp8_checkpoint_shard(c, i), name))
        i++;
    return i;
}

static void check_written(const char *folder, int32_t num_shards, const int32_t *shards) {
    fp8_checkpoint *c = NULL;
    unsigned char data[8000];

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (!c) return;
    CHECK(fp8_checkpoint_num_shards(c) == num_shards && fp8_checkpoint_count(c) == NUM_SPECS);
    CHECK(strcmp(fp8_checkpoint_metadata(c, "format"), "pt") == 0);
    for (int64_t i = 0; i < NUM_SPECS; i++) {
        const fp8_st_entry *e = fp8_checkpoint_find(c, specs[i].name);
        const size_t bytes = fill(i, data);
        CHECK(e && e->bytes == bytes && memcmp(e->tensor.data, data, bytes) == 0);
        CHECK(shard_of(c, specs[i].name) == shards[i]);
    }
    fp8_checkpoint_close(c);
}

static void test_shards(void) {
    static const struct {
        const char *name;
        size_t max_bytes;
        int grouped;
        int32_t num_shards, shards[NUM_SPECS];
    } cases[] = {
        {"one file", 0, 1, 1, {0}},
        {"two groups fit", 2008, 1, 3, {0, 0, 0, 0, 1, 1, 1, 1, 2}},
        {"a byte short", 2007, 1, 4, {0, 0, 1, 1, 2, 2, 2, 2, 3}},
        {"none fits with another", 2003, 1, 5, {0, 0, 1, 1, 2, 2, 3, 3, 4}},
        {"each group alone", 1, 1, 6, {0, 0, 1, 1, 2, 2, 3, 4, 5}},
        {"no groups", 1004, 0, 5, {0, 0, 1, 1, 2, 2, 3, 3, 4}},
        {"each alone", 1, 0, 9, {0, 1, 2, 3, 4, 5, 6, 7, 8}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_checkpoint_writer_options o = {.max_shard_bytes = cases[i].max_bytes};
        fp8_checkpoint_writer *w = NULL;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), specs,
                                                  cases[i].grouped ? groups : NULL, NUM_SPECS,
                                                  metadata, 1, &o), FP8_OK);
        put_all(w, (int)i & 1);
        CHECK(!fp8_path_exists(in_root("out")));
        if (w) CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
        check_written(in_root("out"), cases[i].num_shards, cases[i].shards);
        CHECK(count_names(in_root("out")) == cases[i].num_shards + (cases[i].num_shards > 1));
        CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
    }
}

/* In parts, from the end and from both shards in turn: the same files as whole. */
static void test_parts(void) {
    static const fp8_st_spec two[] = {{"b", FP8_DTYPE_U8, 1, {5}}, {"a", FP8_DTYPE_U8, 1, {2}}};
    const fp8_checkpoint_writer_options o = {.max_shard_bytes = 1};
    fp8_checkpoint_writer *w = NULL;
    fp8_checkpoint *c = NULL;
    const fp8_st_entry *e;

    check_case = "parts";
    CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), two, NULL, 2, NULL, 0, &o),
                 FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 6, "", 0), FP8_EINVAL);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 4, "12", 2), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "/out: 'b': expected at most 5 bytes, found 6"));
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 3, "45", 2), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 1, 1, "y", 1), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 1, "23", 2), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 0, "1", 1), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 0, 0, "1", 1), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'b' is put twice"));
    CHECK_STATUS(fp8_checkpoint_writer_put_part(w, 1, 0, "x", 1), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("out")), FP8_OK);
    e = fp8_checkpoint_find(c, "b");
    CHECK(e && e->bytes == 5 && memcmp(e->tensor.data, "12345", 5) == 0);
    e = fp8_checkpoint_find(c, "a");
    CHECK(e && e->bytes == 2 && memcmp(e->tensor.data, "xy", 2) == 0);
    fp8_checkpoint_close(c);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

static void test_index_text(void) {
    static const fp8_st_spec two[] = {{"b\"", FP8_DTYPE_U8, 1, {5}}, {"a", FP8_DTYPE_U8, 1, {2}}};
    static const char want[] = "{\n  \"metadata\": {\n    \"total_size\": 7\n  },\n"
                               "  \"weight_map\": {\n"
                               "    \"a\": \"model-00002-of-00002.safetensors\",\n"
                               "    \"b\\\"\": \"model-00001-of-00002.safetensors\"\n  }\n}\n";
    const fp8_checkpoint_writer_options o = {.max_shard_bytes = 1};
    fp8_checkpoint_writer *w = NULL;
    fp8_file f = {0};

    check_case = "index text";
    CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), two, NULL, 2, NULL, 0, &o),
                 FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, 0, "12345", 5), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, 1, "12", 2), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
    CHECK_STATUS(fp8_file_map(&f, in_root("out/model.safetensors.index.json")), FP8_OK);
    CHECK(f.bytes == sizeof want - 1 && memcmp(f.data, want, f.bytes) == 0);
    fp8_file_unmap(&f);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

static fp8_status begin(fp8_checkpoint_writer **w, const char *folder, int force) {
    const fp8_checkpoint_writer_options o = {.force = force};
    return fp8_checkpoint_writer_create(w, folder, specs, groups, NUM_SPECS, metadata, 1, &o);
}

static void test_existing(void) {
    fp8_checkpoint_writer *w = NULL;

    check_case = "existing";
    CHECK_STATUS(begin(&w, in_root("gone/out"), 0), FP8_ENOTFOUND);
    CHECK(strstr(fp8_last_message(), "/gone' to hold it"));
    CHECK_STATUS(begin(&w, "", 0), FP8_EINVAL);
    write_text("file", "x");
    CHECK_STATUS(begin(&w, in_root("file"), 0), FP8_EEXIST);
    CHECK_STATUS(begin(&w, in_root("file"), 1), FP8_EEXIST);
    CHECK(strstr(fp8_last_message(), "/file: expected a folder to replace, found a regular file"));
    CHECK(symlink("nowhere", in_root("dangling")) == 0);
    CHECK_STATUS(begin(&w, in_root("dangling"), 1), FP8_EEXIST);
    CHECK(mkdir(in_root("photos"), 0777) == 0);
    write_text("photos/cat.jpg", "x");
    CHECK_STATUS(begin(&w, in_root("photos"), 1), FP8_EEXIST);
    CHECK(strstr(fp8_last_message(), "/photos: a folder with files but no .safetensors"));
    CHECK(mkdir(in_root("out"), 0777) == 0);
    CHECK_STATUS(begin(&w, in_root("out"), 0), FP8_EEXIST);
    CHECK_STATUS(begin(&w, in_root("out//"), 1), FP8_OK); /* empty: replaced */
    put_all(w, 0);
    CHECK_STATUS(fp8_checkpoint_writer_add(w, "old.json", "{}", 2), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
    CHECK(mkdir(in_root("out/inner"), 0777) == 0);
    write_text("out/inner/x", "x");
    CHECK(symlink(in_root("photos"), in_root("out/inner/link")) == 0);
    CHECK(symlink("out", in_root("link")) == 0);
    CHECK_STATUS(begin(&w, in_root("link"), 1), FP8_OK); /* the folder it points to */
    CHECK(fp8_path_exists(in_root("out/old.json")));     /* kept until the commit */
    put_all(w, 1);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
    CHECK(count_names(in_root("out")) == 1 && fp8_path_exists(in_root("link/model.safetensors")));
    CHECK(fp8_path_exists(in_root("photos/cat.jpg"))); /* links are not followed */
    CHECK(unlink(in_root("dangling")) == 0 && unlink(in_root("link")) == 0);
    CHECK(unlink(in_root("file")) == 0);
    CHECK_STATUS(fp8_folder_remove(in_root("photos")), FP8_OK);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

static void test_duties(void) {
    static const fp8_st_spec twice[] = {{"a", FP8_DTYPE_U8, 0, {0}}, {"a", FP8_DTYPE_U8, 0, {0}}};
    static const char *const bad_names[] = {"", ".", "..", "a/b", "model.safetensors",
                                            "model.safetensors.index.json", "config.json"};
    fp8_checkpoint_writer *w = NULL;
    char *late, temporary[256];

    check_case = "duties";
    CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), twice, NULL, 2, NULL, 0, NULL),
                 FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "two tensors are named 'a'"));
    CHECK_STATUS(begin(&w, in_root("out"), 0), FP8_OK);
    snprintf(temporary, sizeof temporary, "%s", fp8_checkpoint_writer_folder(w));
    CHECK(fp8_path_is_dir(temporary));
    CHECK_STATUS(fp8_checkpoint_writer_add(w, "config.json", "{}", 2), FP8_OK);
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++)
        CHECK_STATUS(fp8_checkpoint_writer_add(w, bad_names[i], "{}", 2), FP8_EINVAL);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, -1, "", 0), FP8_EINVAL);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, NUM_SPECS, "", 0), FP8_EINVAL);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, 1, "123", 3), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "/out: '0.w_scale': expected 4 bytes, found 3"));
    CHECK_STATUS(fp8_checkpoint_writer_put(w, 1, "1234", 4), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_put(w, 1, "1234", 4), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "'0.w_scale' is put twice"));
    late = fp8_path_join(temporary, "record.safetensors"); /* another writer's file */
    CHECK_STATUS(fp8_file_write(late, "x", 1), FP8_OK);
    free(late);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_EINVAL);
    CHECK(strstr(fp8_last_message(), "/out: '0.w' was never put"));
    CHECK(!fp8_path_exists(temporary));
    CHECK_STATUS(begin(&w, in_root("out"), 0), FP8_OK);
    put_all(w, 0);
    fp8_checkpoint_writer_abort(w);
    fp8_checkpoint_writer_abort(NULL);
    CHECK(count_names(root) == 0);
}

/* Somebody makes the folder while we write: it is not replaced, and our work is not lost. */
static void test_late_comer(void) {
    fp8_checkpoint_writer *w = NULL;
    char temporary[256];

    check_case = "late comer";
    CHECK_STATUS(begin(&w, in_root("out"), 0), FP8_OK);
    snprintf(temporary, sizeof temporary, "%s", fp8_checkpoint_writer_folder(w));
    put_all(w, 0);
    CHECK(mkdir(in_root("out"), 0777) == 0);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_EEXIST);
    CHECK(strstr(fp8_last_message(), "/out: exists already (the new folder is kept as '"));
    CHECK(!fp8_path_exists(temporary)); /* a name that the next writer clears */
    snprintf(temporary, sizeof temporary, "%s.kept-1", in_root("out"));
    CHECK(strstr(fp8_last_message(), temporary));
    CHECK(count_names(in_root("out")) == 0);
    check_written(temporary, 1, (const int32_t[NUM_SPECS]){0});
    CHECK_STATUS(fp8_folder_remove(temporary), FP8_OK);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

static void test_no_tensors(void) {
    fp8_checkpoint_writer *w = NULL;
    fp8_checkpoint *c = NULL;

    check_case = "no tensors";
    CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), NULL, NULL, 0, NULL, 0, NULL),
                 FP8_OK);
    CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&c, in_root("out")), FP8_OK);
    CHECK(c && fp8_checkpoint_count(c) == 0);
    fp8_checkpoint_close(c);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

/* The way of file systems without an exchange of two names. */
static void test_swap(void) {
    char *old = NULL;

    check_case = "swap";
    CHECK(mkdir(in_root("new"), 0777) == 0 && mkdir(in_root("out"), 0777) == 0);
    write_text("new/n", "");
    write_text("out/o", "");
    CHECK_STATUS(fp8_folder_swap(in_root("new"), in_root("out"), &old), FP8_OK);
    CHECK(fp8_path_exists(in_root("out/n")) && !fp8_path_exists(in_root("new")));
    CHECK_STATUS(fp8_folder_remove(old), FP8_OK);
    free(old);
    CHECK_STATUS(fp8_folder_swap(in_root("new"), in_root("out"), &old), FP8_ENOTFOUND);
    CHECK(fp8_path_exists(in_root("out/n")) && !fp8_path_exists(old)); /* restored */
    free(old);
    CHECK_STATUS(fp8_folder_swap(in_root("new"), in_root("gone"), &old), FP8_ENOTFOUND);
    free(old);
    CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
}

/* Samples cover start and end and cross shards; the size counts too. */
static void test_fingerprint(void) {
    enum { BYTES = 5000011 };
    static const int64_t at[] = {0, 65535, BYTES / 2, BYTES - 1};
    unsigned char *data = calloc(1, BYTES);
    uint32_t first = 0;

    check_case = "fingerprint";
    for (int turn = 0; turn < 7 && data; turn++) {
        const int64_t bytes = turn == 6 ? BYTES - 1 : BYTES, half = turn == 5 ? 1234567 : 0;
        const fp8_st_spec parts[] = {{"a", FP8_DTYPE_U8, 1, {bytes - half}},
                                     {"b", FP8_DTYPE_U8, 1, {half}}};
        const fp8_checkpoint_writer_options o = {.max_shard_bytes = 1};
        fp8_checkpoint_writer *w = NULL;
        fp8_checkpoint *c = NULL;
        uint32_t crc = 0;

        memset(data, 7, BYTES);
        if (turn >= 1 && turn <= 4) data[at[turn - 1]] = 8;
        CHECK_STATUS(fp8_checkpoint_writer_create(&w, in_root("out"), parts, NULL, 2, NULL, 0, &o),
                     FP8_OK);
        CHECK_STATUS(fp8_checkpoint_writer_put(w, 0, data, (size_t)(bytes - half)), FP8_OK);
        CHECK_STATUS(fp8_checkpoint_writer_put(w, 1, data, (size_t)half), FP8_OK);
        CHECK_STATUS(fp8_checkpoint_writer_commit(w), FP8_OK);
        CHECK_STATUS(fp8_checkpoint_open(&c, in_root("out")), FP8_OK);
        CHECK_STATUS(fp8_checkpoint_fingerprint(c, &crc), FP8_OK);
        if (turn == 0) first = crc;
        else CHECK((crc == first) == (turn == 5 || turn == 3)); /* the middle is between samples */
        fp8_checkpoint_close(c);
        CHECK_STATUS(fp8_folder_remove(in_root("out")), FP8_OK);
    }
    free(data);
}

int main(void) {
    if (!mkdtemp(root)) return 1;
    test_bad_index();
    test_paths();
    check_case = "";
    CHECK_STATUS(fp8_folder_remove(in_root("bad")), FP8_OK);
    CHECK_STATUS(fp8_folder_remove(in_root("m")), FP8_OK);
    test_shared_models();
    test_shards();
    test_parts();
    test_index_text();
    test_existing();
    test_duties();
    test_late_comer();
    test_no_tensors();
    test_swap();
    test_fingerprint();
    check_case = "nothing left behind";
    CHECK(rmdir(root) == 0);
    return CHECK_DONE();
}
