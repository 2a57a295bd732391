/* Calibration samples: how texts and id files are cut. */
#include "tests/sample_model.h"

/* ---- id files ------------------------------------------------------------------------------ */

static void test_ids(void) {
    static const struct {
        const char *name;
        int64_t lengths[4]; /* of the sequences; 0 ends */
        int64_t seq, most;
        fp8_status want;
        int64_t pieces[8]; /* lengths wanted; 0 ends */
    } cases[] = {
        {"shorter than seq", {5}, 8, 0, FP8_OK, {5}},
        {"exactly seq", {8}, 8, 0, FP8_OK, {8}},
        {"one more", {9}, 8, 0, FP8_OK, {8, 1}},
        {"three pieces", {17}, 7, 0, FP8_OK, {7, 7, 3}},
        {"sequences are not joined", {3, 9, 1}, 4, 0, FP8_OK, {3, 4, 4, 1, 1}},
        {"at most", {3, 9, 1}, 4, 2, FP8_OK, {3, 4}},
        {"at most more than there is", {3}, 4, 9, FP8_OK, {3}},
        {"one id", {1}, 1, 1, FP8_OK, {1}},
        {"seq 1", {3}, 1, 0, FP8_OK, {1, 1, 1}},
        {"nothing", {0}, 4, 0, FP8_EDATA, {0}},
        {"seq 0", {3}, 0, 0, FP8_EINVAL, {0}},
        {"negative count", {3}, 4, -1, FP8_EINVAL, {0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t starts[8] = {0}, num_seqs = 0, at = 0;
        fp8_id_data data = {.starts = starts};
        fp8_samples s;
        check_case = cases[i].name;
        for (; num_seqs < 4 && cases[i].lengths[num_seqs]; num_seqs++)
            starts[num_seqs + 1] = starts[num_seqs] + cases[i].lengths[num_seqs];
        data.num_seqs = num_seqs;
        for (int32_t id = 0; id < starts[num_seqs]; id++)
            CHECK_STATUS(fp8_ids_push(&data.ids, id), FP8_OK);
        CHECK_STATUS(fp8_samples_from_ids(&s, &data, cases[i].seq, cases[i].most), cases[i].want);
        for (int64_t k = 0; k < s.count; k++) {
            CHECK(s.starts[k] == at);
            CHECK(s.starts[k + 1] - s.starts[k] == cases[i].pieces[k]);
            at = s.starts[k + 1];
        }
        CHECK(s.count == 8 || cases[i].pieces[s.count] == 0);
        CHECK(s.num_ids == at);
        for (int64_t k = 0; k < s.num_ids; k++) CHECK(s.ids[k] == k); /* a prefix, in order */
        fp8_samples_free(&s);
        fp8_ids_free(&data.ids);
    }
}

/* ---- texts --------------------------------------------------------------------------------- */

static fp8_tokenizer *open_tokenizer(void) {
    fp8_tokenizer *t = NULL;
    CHECK_STATUS(fp8_tokenizer_open(&t, sample_path("examples/sample-model/tokenizer.json")),
                 FP8_OK);
    if (!t) exit(1);
    return t;
}

/* Pieces begin with the prefix, and without it are the text's ids in order. */
static void test_plain_text(const fp8_tokenizer *t) {
    static const struct { int64_t seq, most; } cases[] = {{2, 0}, {7, 3}, {64, 0}, {1 << 20, 0}};
    const char *words = "One text, which is encoded once: its pieces join to what it was. 1, 2, 3.";
    const int32_t *prefix = NULL;
    const int64_t num_prefix = fp8_tokenizer_prefix(t, &prefix);
    fp8_ids whole = {0};

    check_case = "plain text";
    CHECK(num_prefix == 1);
    CHECK_STATUS(fp8_tokenizer_encode(t, &whole, words, strlen(words), FP8_SPECIAL_NONE), FP8_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int64_t step = cases[i].seq - num_prefix;
        int64_t want = (whole.count + step - 1) / step, at = 0;
        fp8_text *text = NULL;
        fp8_samples s;
        if (cases[i].most && cases[i].most < want) want = cases[i].most;
        CHECK_STATUS(fp8_text_open_memory(&text, "words", words, strlen(words)), FP8_OK);
        CHECK_STATUS(fp8_samples_from_text(&s, text, t, cases[i].seq, cases[i].most), FP8_OK);
        CHECK(s.count == want);
        for (int64_t k = 0; k < s.count; k++) {
            const int32_t *ids = s.ids + s.starts[k];
            const int64_t n = s.starts[k + 1] - s.starts[k] - num_prefix;
            CHECK(n == step || k == want - 1);
            CHECK(ids[0] == prefix[0]);
            CHECK(memcmp(ids + num_prefix, whole.data + at, (size_t)n * sizeof *ids) == 0);
            at += n;
        }
        CHECK(cases[i].most || at == whole.count);
        fp8_samples_free(&s);
        fp8_text_close(text);
    }
    fp8_ids_free(&whole);
}

static void test_lines(const fp8_tokenizer *t) {
    static const char jsonl[] = "{\"text\": \"first line\"}\n{\"text\": \"\"}\n"
                                "{\"text\": \"the second one, which is longer than the cut\"}\n";
    const char *path = sample_file("lines.jsonl");
    fp8_ids first = {0};
    fp8_text *text = NULL;
    fp8_samples s;

    check_case = "lines";
    CHECK_STATUS(fp8_file_write(path, jsonl, strlen(jsonl)), FP8_OK);
    CHECK_STATUS(fp8_text_open(&text, path, NULL), FP8_OK);
    CHECK_STATUS(fp8_samples_from_text(&s, text, t, 8, 0), FP8_OK);
    CHECK_STATUS(fp8_tokenizer_encode(t, &first, "first line", 10, FP8_SPECIAL_ADD), FP8_OK);
    CHECK(s.count == 2); /* an empty line is no sample */
    CHECK(s.starts[1] == first.count);
    CHECK(memcmp(s.ids, first.data, (size_t)first.count * sizeof *s.ids) == 0);
    CHECK(s.starts[2] - s.starts[1] == 8); /* the rest is dropped */
    CHECK(s.ids[s.starts[1]] == first.data[0]);
    fp8_samples_free(&s);
    fp8_text_close(text);
    fp8_ids_free(&first);
}

static void test_refused(const fp8_tokenizer *t) {
    static const struct {
        const char *name, *text;
        int64_t seq, most;
        fp8_status want;
    } cases[] = {
        {"empty text", "", 16, 0, FP8_EDATA},
        {"no room after the prefix", "words", 1, 0, FP8_EINVAL},
        {"seq 0", "words", 0, 0, FP8_EINVAL},
        {"negative count", "words", 16, -1, FP8_EINVAL},
        {"not UTF-8", "wo\xffrds", 16, 0, FP8_EDATA},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_text *text = NULL;
        fp8_samples s;
        fp8_status st;
        check_case = cases[i].name;
        st = fp8_text_open_memory(&text, "case", cases[i].text, strlen(cases[i].text));
        if (st == FP8_OK)
            st = fp8_samples_from_text(&s, text, t, cases[i].seq, cases[i].most);
        CHECK_STATUS(st, cases[i].want);
        fp8_text_close(text);
    }
}

static void test_builtin(const fp8_tokenizer *t) {
    size_t len = 0;
    const char *text = fp8_builtin_text(&len);
    fp8_ids ids = {0};

    check_case = "built-in text";
    CHECK(len > 12000 && len < 20000 && text[len] == '\0' && strlen(text) == len);
    CHECK_STATUS(fp8_tokenizer_encode(t, &ids, text, len, FP8_SPECIAL_NONE), FP8_OK);
    CHECK(ids.count > 4096);
    fp8_ids_free(&ids);
}

int main(void) {
    fp8_tokenizer *t = NULL;
    test_ids();
    sample_begin();
    t = open_tokenizer();
    test_plain_text(t);
    test_lines(t);
    test_refused(t);
    test_builtin(t);
    fp8_tokenizer_close(t);
    sample_done();
    return CHECK_DONE();
}
