/* formats/file.c: mapping, and files that appear whole or not at all. */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/file.h"
#include "formats/new_file.h"
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

/* What a killed process left is removed; what a living one writes is left alone. */
static void test_partial(void) {
    char *path = fp8_path_join(root, "p.bin"), *left = fp8_path_join(root, "p.bin.fp8-partial");
    fp8_path_lock *l = NULL, *second = NULL;
    fp8_new_file f, g;
    FILE *old;

    check_case = "partial";
    old = fopen(left, "w");
    CHECK(old && fputs("left by a killed process, and longer", old) > 0 && fclose(old) == 0);
    CHECK_STATUS(fp8_file_write(path, "x", 1), FP8_OK);
    CHECK(count_names(root) == 1);
    CHECK_STATUS(fp8_new_file_create(&f, path), FP8_OK);
    CHECK_STATUS(fp8_new_file_create(&g, path), FP8_EEXIST);
    CHECK(strstr(fp8_last_message(), "/p.bin: another process is writing it"));
    CHECK_STATUS(fp8_new_file_write(&f, 0, "yz", 2), FP8_OK);
    CHECK_STATUS(fp8_new_file_commit(&f), FP8_OK);
    CHECK_STATUS(fp8_path_lock_take(&l, path), FP8_OK);
    CHECK_STATUS(fp8_path_lock_take(&second, path), FP8_EEXIST);
    CHECK(second == NULL && count_names(root) == 2);
    fp8_path_lock_release(l);
    fp8_path_lock_release(NULL);
    CHECK_STATUS(fp8_path_lock_take(&l, path), FP8_OK);
    fp8_path_lock_release(l);
    CHECK(unlink(path) == 0 && count_names(root) == 0);
    free(path);
    free(left);
}

/* As a SIGBUS handler would: zeros from the lost page on, and no commit any more. The last test. */
static void test_lost(void) {
    enum { BYTES = 5 * 4096 + 17 };
    char *path = fp8_path_join(root, "lost.bin"), *other = fp8_path_join(root, "other.bin");
    unsigned char *ones = malloc(BYTES);
    fp8_file f, g;

    check_case = "lost";
    memset(ones, 1, BYTES);
    CHECK_STATUS(fp8_file_write(path, ones, BYTES), FP8_OK);
    CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
    CHECK_STATUS(fp8_file_map(&g, path), FP8_OK);
    CHECK(fp8_file_lost(ones) == 0);
    CHECK_STATUS(fp8_file_check_lost(), FP8_OK);
    fp8_file_unmap(&g);
    CHECK(truncate(path, 4096) == 0);
    CHECK_STATUS(fp8_file_write(other, f.data + 4096, 4096), FP8_EIO); /* write() says EFAULT */
    CHECK(strstr(fp8_last_message(), "/lost.bin: became shorter"));
    CHECK(f.data[4095] == 1 && f.data[4096] == 0 && f.data[BYTES - 1] == 0);
    fp8_file_unmap(&f);
    CHECK_STATUS(fp8_file_write(other, "x", 1), FP8_EIO);
    CHECK(strstr(fp8_last_message(), "/lost.bin: became shorter"));
    CHECK(unlink(path) == 0 && count_names(root) == 0);
    free(ones);
    free(path);
    free(other);
}

int main(void) {
    if (!mkdtemp(root)) {
        fprintf(stderr, "%s: %s\n", root, strerror(errno));
        return 1;
    }
    test_write_and_map();
    test_failures();
    test_paths();
    test_partial();
    test_lost();
    CHECK(rmdir(root) == 0);
    return CHECK_DONE();
}
