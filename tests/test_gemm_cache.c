/* quant/gemm_cache.h and the file half of gemm_tune.h: round trip, which choice is found, files
 * that are not what they should be. */
#include <string.h>
#include <sys/stat.h>

#include "quant/gemm_cache.h"
#include "quant/gemm_tune.h"
#include "tests/check.h"

#define WORDS                                                                                      \
    "0000000000000001 0000000000000002 0000000000000003 0000000000000004 0000000000000005 "        \
    "0000000000000006 0000000000000007 ffffffffffffffff"
#define MAGIC "fp8calib-gemm-cache 1\n"
#define DEVICE "device 90 130100 NVIDIA H200\n"
#define CHOICE "16 48 64 1 F8_E4M3 F8_E4M3 BF16 BF16 - nk scalar exact gelu - 1024 5500 " WORDS "\n"

static fp8_algo_entry entry_of(int64_t m, int64_t n, uint64_t word) {
    fp8_algo_entry e;
    memset(&e, 0, sizeof e);
    snprintf(e.key.device, sizeof e.key.device, "Some GPU");
    e.key.capability = 90;
    e.key.library = 130100;
    e.key.m = m, e.key.n = n, e.key.k = 128, e.key.batch = 1;
    e.key.a = e.key.b = FP8_DTYPE_E4M3;
    e.key.d = FP8_DTYPE_BF16;
    e.key.bias = e.key.residual = FP8_NUM_DTYPES;
    e.key.scaling = 2;
    e.algo.words[7] = word;
    e.algo.workspace_bytes = 77;
    e.algo.ns = 12345;
    return e;
}

static void test_round_trip(void) {
    fp8_algo_list l = {0}, back = {0};
    char *text = NULL, *again = NULL;
    size_t bytes = 0, again_bytes = 0;

    check_case = "round trip";
    for (int i = 0; i < 300; i++) {
        fp8_algo_entry e = entry_of(1 + i * 7 % 100, 16 + i / 100, (uint64_t)i << 40);
        if (i % 3 == 0) snprintf(e.key.device, sizeof e.key.device, "Other GPU, 80 GB");
        if (i % 5 == 0) e.key.bias = FP8_DTYPE_F16, e.key.amax = 1;
        CHECK_STATUS(fp8_algo_list_put(&l, &e), FP8_OK);
    }
    CHECK_STATUS(fp8_algo_list_print(&l, &text, &bytes), FP8_OK);
    CHECK_STATUS(fp8_algo_list_parse(&back, "memory", text, bytes), FP8_OK);
    CHECK(back.count == l.count);
    CHECK(memcmp(back.items, l.items, (size_t)l.count * sizeof *l.items) == 0);
    CHECK_STATUS(fp8_algo_list_print(&back, &again, &again_bytes), FP8_OK);
    CHECK(again_bytes == bytes && memcmp(again, text, bytes) == 0);
    for (size_t cut = 0; cut < bytes; cut += 1 + cut / 50) { /* never taken for whole */
        fp8_algo_list part = {0};
        CHECK_STATUS(fp8_algo_list_parse(&part, "cut", text, cut), FP8_EFORMAT);
        CHECK(part.count == 0);
    }
    free(text);
    free(again);
    fp8_algo_list_free(&l);
    fp8_algo_list_free(&back);
}

static int64_t found_m(const fp8_algo_list *l, int64_t m) {
    const fp8_algo_entry want = entry_of(m, 64, 0);
    const fp8_algo_entry *e = fp8_algo_list_find(l, &want.key);
    return e ? e->key.m : 0;
}

static void test_find(void) {
    static const int64_t known[] = {16, 64, 100, 4096};
    static const struct { int64_t m, found; } cases[] = {
        {1, 16}, {7, 16}, {8, 16}, {16, 16}, {17, 0}, {31, 0}, {32, 64}, {63, 64}, {64, 64},
        {65, 100}, {100, 100}, {101, 0}, {2047, 0}, {2048, 4096}, {4096, 4096}, {4097, 0}};
    fp8_algo_list l = {0};
    fp8_algo_entry e;

    check_case = "find";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        e = entry_of(known[i], 64, 1);
        CHECK_STATUS(fp8_algo_list_put(&l, &e), FP8_OK);
        CHECK_STATUS(fp8_algo_list_put(&l, &e), FP8_OK); /* replaces itself */
    }
    CHECK(l.count == 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(found_m(&l, cases[i].m) == cases[i].found);
    e = entry_of(64, 64, 1);
    e.key.fast = 1;
    CHECK(!fp8_algo_list_find(&l, &e.key));
    e = entry_of(64, 64, 1);
    e.key.library++;
    CHECK(!fp8_algo_list_find(&l, &e.key));
    e = entry_of(64, 64, 1);
    e.key.device[0] = 's';
    CHECK(!fp8_algo_list_find(&l, &e.key));
    fp8_algo_list_free(&l);
}

static void test_hostile(void) {
    static const struct { const char *name, *text, *says; } cases[] = {
        {"empty", "", "no line 'end"},
        {"other file", "{\"a\": 1}\n", "not a gemm cache"},
        {"newer", "fp8calib-gemm-cache 2\nend 0\n", "not a gemm cache"},
        {"no end", MAGIC DEVICE CHOICE, "no line 'end"},
        {"end without newline", MAGIC "end 0", "no end"},
        {"count", MAGIC DEVICE CHOICE "end 2\n", "count"},
        {"negative count", MAGIC "end -0\n", "count"},
        {"huge count", MAGIC "end 99999999999999999999999999\n", "count"},
        {"more behind", MAGIC "end 0\nend 0\n", "follows"},
        {"no device", MAGIC CHOICE "end 1\n", "before any 'device'"},
        {"device", MAGIC "device 90\nend 0\n", "expected 'device"},
        {"nameless device", MAGIC "device 90 130100 \nend 0\n", "expected 'device"},
        {"capability", MAGIC "device 9.0 130100 X\nend 0\n", "capability"},
        {"long device", MAGIC "device 90 1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nend 0\n", "too long"},
        {"few fields", MAGIC DEVICE "16 48 64\nend 1\n", "fewer"},
        {"many fields", MAGIC DEVICE "16 48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scalar exact - - 1 1 "
                        WORDS " 0\nend 1\n", "more"},
        {"zero size", MAGIC DEVICE "0 48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scalar exact - - 1 1 "
                      WORDS "\nend 1\n", "sizes"},
        {"overflow", MAGIC DEVICE "99999999999999999999 48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scalar"
                     " exact - - 1 1 " WORDS "\nend 1\n", "sizes"},
        {"two spaces", MAGIC DEVICE "16  48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scalar exact - 1 1 "
                       WORDS "\nend 1\n", "sizes"},
        {"dtype", MAGIC DEVICE "16 48 64 1 F8_E4M3 I8 BF16 - - nk scalar exact - - 1 1 " WORDS
                  "\nend 1\n", "dtype"},
        {"word", MAGIC DEVICE "16 48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scale exact - - 1 1 " WORDS
                 "\nend 1\n", "unknown word"},
        {"short hex", MAGIC DEVICE "16 48 64 1 F8_E4M3 F8_E4M3 BF16 - - nk scalar exact - - 1 1 1 "
                      "2 3 4 5 6 7 8\nend 1\n", "not numbers"},
        {"twice", MAGIC DEVICE CHOICE CHOICE "end 2\n", "two choices"},
        {"control", MAGIC "device 90 1 a\tb\nend 0\n", "printable"},
    };
    char line[700];

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_algo_list l = {0};
        check_case = cases[i].name;
        CHECK_STATUS(fp8_algo_list_parse(&l, "file", cases[i].text, strlen(cases[i].text)),
                     FP8_EFORMAT);
        if (!strstr(fp8_last_message(), cases[i].says)) {
            fprintf(stderr, "[%s] %s\n", check_case, fp8_last_message());
            check_failures++;
        }
        CHECK(!strchr(fp8_last_message(), '\n') && l.count == 0);
        fp8_algo_list_free(&l);
    }
    check_case = "long line";
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    { fp8_algo_list l = {0};
      CHECK_STATUS(fp8_algo_list_parse(&l, "file", line, sizeof line), FP8_EFORMAT); }
    check_case = "a NUL";
    { fp8_algo_list l = {0};
      const char nul[] = MAGIC "end 0\0\n";
      CHECK_STATUS(fp8_algo_list_parse(&l, "file", nul, sizeof nul - 1), FP8_EFORMAT); }
}

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static void test_file(void) {
    char path[64], missing[80];
    fp8_algo_entry e = entry_of(32, 64, 9), out;
    struct stat s;

    snprintf(path, sizeof path, "/tmp/test_gemm_cache.%ld", (long)getpid());
    snprintf(missing, sizeof missing, "%s/none", path);
    check_case = "file";
    (void)remove(path);
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_READ), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_FOR_UPDATE), FP8_OK);
    CHECK_STATUS(fp8_gemm_cache_open("", FP8_CACHE_READ), FP8_EINVAL);
    CHECK(stat(path, &s) != 0); /* opening writes nothing */
    CHECK_STATUS(fp8_algo_keep(&e), FP8_OK);
    CHECK(stat(path, &s) == 0);
    fp8_gemm_cache_clear();
    CHECK(fp8_gemm_cache_count() == 0 && !fp8_algo_find(&e.key, &out));
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_READ), FP8_OK);
    CHECK(fp8_gemm_cache_count() == 1 && fp8_algo_find(&e.key, &out));
    CHECK(memcmp(&out, &e, sizeof e) == 0);
    e.key.m = 48;
    CHECK_STATUS(fp8_algo_keep(&e), FP8_OK); /* READ: the file stays */
    fp8_gemm_cache_clear();
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_READ), FP8_OK);
    CHECK(fp8_gemm_cache_count() == 1);
    check_case = "bad file";
    write_text(path, MAGIC DEVICE CHOICE "end 7\n");
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_FOR_UPDATE), FP8_EFORMAT);
    CHECK(strstr(fp8_last_message(), path) && strstr(fp8_last_message(), ":4:"));
    CHECK(fp8_gemm_cache_count() == 1); /* nothing was joined */
    CHECK_STATUS(fp8_gemm_cache_save(missing), FP8_EIO);
    CHECK_STATUS(fp8_gemm_cache_save(path), FP8_OK);
    fp8_gemm_cache_clear();
    CHECK_STATUS(fp8_gemm_cache_open(path, FP8_CACHE_READ), FP8_OK);
    (void)remove(path);
    fp8_gemm_cache_clear();
}

static void test_tune_on_cpu(void) {
    const fp8_gemm g = {.m = 4, .n = 4, .k = 4, .lda = 4, .ldb = 4, .ldd = 4,
                        .a_dtype = FP8_DTYPE_F32, .b_dtype = FP8_DTYPE_F32,
                        .d_dtype = FP8_DTYPE_F32, .alpha = 1};
    fp8_gemm bad = g;
    fp8_gemm_tuned found = {1, 1, 1};
    fp8_device *d = NULL;

    check_case = "tune on the CPU";
    bad.ldd = 3;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_gemm_tune(d, &g, NULL, 0, &found), FP8_OK);
    CHECK(found.candidates == 0 && fp8_gemm_cache_count() == 0);
    CHECK_STATUS(fp8_gemm_tune(d, &bad, NULL, 0, NULL), FP8_EINVAL);
    fp8_device_destroy(d);
}

int main(void) {
    (void)unsetenv("FP8_GEMM_CACHE");
    test_round_trip();
    test_find();
    test_hostile();
    test_file();
    test_tune_on_cpu();
    return CHECK_DONE();
}
