/* formats/file.c: mapping, and files that appear whole or not at all. */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/file.h"
#include "tests/check.h"

static char root[] = "/tmp/fp8-test-file-XXXXXX";

static int count_names(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    if (!d) return -1;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void test_write_and_map(void) {
    static const struct {
        const char *name;
        size_t bytes;
    } cases[] = {{"empty", 0}, {"one", 1}, {"page", 4096}, {"page and one", 4097}, {"odd", 300007}};
    char *path = fp8_path_join(root, "f.bin");

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char *want = malloc(cases[i].bytes + 1);
        fp8_file f = {0};
        check_case = cases[i].name;
        for (size_t k = 0; k < cases[i].bytes; k++) want[k] = (unsigned char)(k * 7 + i);
        CHECK_STATUS(fp8_file_write(path, want, cases[i].bytes), FP8_OK);
        CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
        CHECK(f.data != NULL && f.bytes == cases[i].bytes);
        CHECK(memcmp(f.data, want, f.bytes) == 0);
        fp8_file_unmap(&f);
        CHECK(f.data == NULL && f.bytes == 0);
        fp8_file_unmap(&f);
        CHECK(count_names(root) == 1); /* replaced, nothing left beside it */
        free(want);
    }
    CHECK(unlink(path) == 0);
    free(path);
}

static void test_failures(void) {
    char *missing = fp8_path_join(root, "missing"), *below = fp8_path_join(missing, "f");
    char *folder = fp8_path_join(root, "folder"), *fifo = fp8_path_join(root, "fifo");
    fp8_file f;

    check_case = "failures";
    CHECK(mkdir(folder, 0777) == 0 && mkfifo(fifo, 0666) == 0);
    CHECK_STATUS(fp8_file_map(&f, missing), FP8_ENOTFOUND);
    CHECK(strstr(fp8_last_message(), "/missing: cannot open: No such file or directory"));
    CHECK_STATUS(fp8_file_map(&f, below), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_file_map(&f, folder), FP8_EIO);
    CHECK(strstr(fp8_last_message(), "/folder: expected a regular file, found a folder"));
    CHECK_STATUS(fp8_file_map(&f, fifo), FP8_EIO);
    CHECK_STATUS(fp8_file_write(below, "x", 1), FP8_ENOTFOUND);
    CHECK(strstr(fp8_last_message(), "/missing/f: cannot create: No such file or directory"));
    CHECK_STATUS(fp8_file_write(folder, "x", 1), FP8_EIO);
    CHECK(count_names(root) == 2);
    CHECK(rmdir(folder) == 0 && unlink(fifo) == 0);
    free(missing);
    free(below);
    free(folder);
    free(fifo);
}

static void test_paths(void) {
    static const struct {
        const char *dir, *name, *want;
    } cases[] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"},
                 {NULL, "b", "b"},  {"/", "b", "/b"},   {"a/b", "c/d", "a/b/c/d"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = fp8_path_join(cases[i].dir, cases[i].name);
        check_case = cases[i].want;
        CHECK(path && strcmp(path, cases[i].want) == 0);
        free(path);
    }
    check_case = "paths";
    CHECK(fp8_path_is_dir(root) && fp8_path_exists(root));
    CHECK(!fp8_path_is_dir("/etc/passwd") && fp8_path_exists("/etc/passwd"));
    CHECK(!fp8_path_exists("/nonexistent/x") && !fp8_path_is_dir("/nonexistent/x"));
}

int main(void) {
    if (!mkdtemp(root)) {
        fprintf(stderr, "%s: %s\n", root, strerror(errno));
        return 1;
    }
    test_write_and_map();
    test_failures();
    test_paths();
    CHECK(rmdir(root) == 0);
    return CHECK_DONE();
}
