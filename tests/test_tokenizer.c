/* formats/tokenizer*: every fixture both ways, whole texts, long words. Parts: _parts.c. */
#include <string.h>
#include <time.h>

#include "core/threads.h"
#include "formats/file.h"
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "formats/tokenizer_impl.h"
#include "tests/check.h"

static const char *const kinds[] = {"gpt2",   "gpt2-string-merges",   "llama3",
                                    "qwen2",  "llama2-bytefallback", "metaspace",
                                    "gemma"};
enum { NUM_KINDS = sizeof kinds / sizeof *kinds };

static fp8_tokenizer *open_data(const char *relative) {
    fp8_tokenizer *t = NULL;
    const char *path = check_data(relative);
    if (path) CHECK_STATUS(fp8_tokenizer_open(&t, path), FP8_OK);
    return t;
}

static fp8_tokenizer *open_kind(const char *kind) {
    char relative[128];
    snprintf(relative, sizeof relative, "fixtures/tokenizers/%s/tokenizer.json", kind);
    return open_data(relative);
}

/* ---- fixtures: cases.json is [{"text", "ids", "decoded"}] ----------------------------------- */

typedef struct test_case {
    uni_buf text, decoded;
    fp8_ids ids;
} test_case;

/* The case that begins now; 0 at the end of the list. */
static int read_case(fp8_json *j, test_case *c) {
    fp8_json_event e;
    c->text.len = c->decoded.len = 0;
    c->ids.count = 0;
    CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
    if (e.type != FP8_JSON_OBJECT) return 0;
    for (;;) {
        if (fp8_json_key(j, &e) != FP8_OK || e.type == FP8_JSON_OBJECT_END) return 1;
        if (fp8_json_is(&e, "ids")) {
            CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
            while (fp8_json_next(j, &e) == FP8_OK && e.type == FP8_JSON_INT)
                CHECK_STATUS(fp8_ids_push(&c->ids, (int32_t)e.i64), FP8_OK);
        } else {
            uni_buf *b = fp8_json_is(&e, "text") ? &c->text : &c->decoded;
            CHECK_STATUS(fp8_json_next(j, &e), FP8_OK);
            CHECK_STATUS(uni_buf_append(b, e.text, e.len), FP8_OK);
        }
    }
}

static int same_ids(const fp8_ids *got, const fp8_ids *want) {
    if (got->count == want->count &&
        (got->count == 0 || memcmp(got->data, want->data, (size_t)got->count * 4) == 0))
        return 1;
    fprintf(stderr, "[%s] %lld ids, want %lld:", check_case, (long long)got->count,
            (long long)want->count);
    for (int64_t i = 0; i < got->count && i < 20; i++) fprintf(stderr, " %d", got->data[i]);
    fprintf(stderr, "\n");
    return 0;
}

static void test_kind(const char *kind) {
    char relative[128], name[64];
    fp8_tokenizer *t = open_kind(kind);
    fp8_file file = {0};
    fp8_json *j = NULL;
    fp8_json_event e;
    test_case c = {{0}, {0}, {0}};
    fp8_ids got = {0};
    int num_cases = 0, num_failed = check_failures;

    snprintf(relative, sizeof relative, "fixtures/tokenizers/%s/cases.json", kind);
    CHECK_STATUS(fp8_file_map(&file, check_data(relative)), FP8_OK);
    CHECK_STATUS(fp8_json_open(&j, relative, (const char *)file.data, file.bytes, NULL), FP8_OK);
    CHECK_STATUS(fp8_json_expect(j, FP8_JSON_ARRAY, "cases", &e), FP8_OK);
    for (; read_case(j, &c) && check_failures < num_failed + 10; num_cases++) {
        char *text = NULL;
        size_t len = 0;
        snprintf(name, sizeof name, "%s case %d", kind, num_cases);
        check_case = name;
        got.count = 0;
        CHECK_STATUS(fp8_tokenizer_encode(t, &got, c.text.data, c.text.len, FP8_SPECIAL_ADD),
                     FP8_OK);
        CHECK(same_ids(&got, &c.ids));
        CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, c.ids.data, c.ids.count, 1), FP8_OK);
        CHECK(len == c.decoded.len && (len == 0 || memcmp(text, c.decoded.data, len) == 0));
        CHECK(text && text[len] == 0);
        free(text);
    }
    CHECK(num_cases == 242);
    fp8_json_close(j);
    fp8_file_unmap(&file);
    uni_buf_free(&c.text);
    uni_buf_free(&c.decoded);
    fp8_ids_free(&c.ids);
    fp8_ids_free(&got);
    fp8_tokenizer_close(t);
}

/* ---- long texts ----------------------------------------------------------------------------- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A megabyte of one word: nothing may take time quadratic in it. */
static void test_long_words(const char *kind) {
    static const char *const units[] = {"a", "ab", " ", "\n", "'", "\xe7\x9a\x84",
                                        "\xcc\x81\xcc\x96", "<", "1"};
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES + 8), *back = NULL;
    fp8_tokenizer *t = open_kind(kind);
    fp8_ids ids = {0};
    size_t len = 0;

    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const size_t n = strlen(units[i]), bytes = BYTES / n * n;
        const double begin = seconds();
        for (size_t at = 0; at < bytes; at += n) memcpy(text + at, units[i], n);
        ids.count = 0;
        CHECK_STATUS(fp8_tokenizer_encode(t, &ids, text, bytes, FP8_SPECIAL_ADD), FP8_OK);
        CHECK_STATUS(fp8_tokenizer_decode(t, &back, &len, ids.data, ids.count, 1), FP8_OK);
        if (i != 2 && i != 6) /* 2: Metaspace takes one space for its own; 6: NFC reorders */
            CHECK(len == bytes && memcmp(back, text, len) == 0);
        CHECK(seconds() - begin < 5); /* measured: 0.05 */
        free(back);
    }
    fp8_ids_free(&ids);
    fp8_tokenizer_close(t);
    free(text);
}

static fp8_status encode_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    void **const args = ctx; /* tokenizer, file, wanted ids */
    const fp8_file *file = args[1];
    const fp8_ids *want = args[2];
    fp8_status st = FP8_OK;
    (void)worker;

    for (int64_t i = begin; i < end && st == FP8_OK; i++) {
        fp8_ids got = {0};
        st = fp8_tokenizer_encode(args[0], &got, (const char *)file->data, 100000,
                                  FP8_SPECIAL_ADD);
        if (st == FP8_OK && !same_ids(&got, want)) st = FP8_FAIL(FP8_EDATA, "threads differ");
        fp8_ids_free(&got);
    }
    return st;
}

/* Ids of `tokenizers` 0.23.3 over all of WikiText-2 test, as count and FNV-1a of their bytes. */
static void test_wikitext(void) {
    fp8_file file = {0};
    fp8_tokenizer *t = open_data("models/sample-1m/tokenizer.json");
    fp8_ids ids = {0};
    fp8_pool *pool = NULL;
    void *args[] = {t, &file, &ids};
    char *back = NULL;
    size_t len = 0;
    uint32_t hash = 2166136261u;

    check_case = "WikiText-2";
    CHECK_STATUS(fp8_file_map(&file, check_data("text/wikitext2_test.txt")), FP8_OK);
    CHECK_STATUS(fp8_tokenizer_encode(t, &ids, (const char *)file.data, file.bytes,
                                      FP8_SPECIAL_ADD), FP8_OK);
    for (int64_t i = 0; i < 4 * ids.count; i++)
        hash = (hash ^ ((const unsigned char *)ids.data)[i]) * 16777619u;
    CHECK(ids.count == 491233 && hash == 1236200817u);
    CHECK_STATUS(fp8_tokenizer_decode(t, &back, &len, ids.data, ids.count, 1), FP8_OK);
    CHECK(len == file.bytes && memcmp(back, file.data, len) == 0);
    free(back);
    ids.count = 0;
    CHECK_STATUS(fp8_tokenizer_encode(t, &ids, (const char *)file.data, 100000, FP8_SPECIAL_ADD),
                 FP8_OK);
    CHECK_STATUS(fp8_pool_create(&pool, 4), FP8_OK);
    CHECK_STATUS(fp8_parallel_for(pool, 8, 1, encode_range, args), FP8_OK);
    fp8_pool_destroy(pool);
    fp8_ids_free(&ids);
    fp8_tokenizer_close(t);
    fp8_file_unmap(&file);
}

int main(void) {
    if (!check_data("fixtures/tokenizers")) {
        fprintf(stderr, "skipped: no fixtures\n");
        return TEST_SKIP;
    }
    for (size_t i = 0; i < NUM_KINDS; i++) test_kind(kinds[i]);
    for (size_t i = 0; i < NUM_KINDS; i++) {
        check_case = kinds[i];
        test_long_words(kinds[i]);
    }
    test_wikitext();
    return CHECK_DONE();
}
