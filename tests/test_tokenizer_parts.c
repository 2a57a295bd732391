/* formats/tokenizer*: refusals, small texts, scanners, decoders, Unicode. */
#include <string.h>

#include "formats/tokenizer_impl.h"
#include "tests/check.h"

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

/* ---- files made here ------------------------------------------------------------------------ */

/* A tokenizer.json: what is given, and a small vocabulary unless a model is given. */
static fp8_status load(fp8_tokenizer **t, const char *parts, const char *model) {
    static const char small[] =
        "{\"type\":\"BPE\",\"unk_token\":\"?\",\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\"ab\":3,"
        "\"abb\":4,\" \":5,\"<0xC3>\":6,\"<0xA9>\":7},\"merges\":[\"a b\",[\"ab\",\"b\"]],"
        "\"byte_fallback\":true,\"fuse_unk\":true}";
    char text[4096];
    snprintf(text, sizeof text, "{%s%s\"model\":%s}", parts, *parts ? "," : "",
             model ? model : small);
    return tok_load(t, "t.json", text, strlen(text));
}

static void test_refusals(void) {
    static const struct {
        const char *name, *parts, *model;
        fp8_status want;
        const char *message; /* part of it */
    } cases[] = {
        {"ok", "", NULL, FP8_OK, ""},
        {"unknown keys", "\"x\":{\"y\":[1]},\"truncation\":{\"max_length\":2}", NULL, FP8_OK, ""},
        {"version", "\"version\":\"2.0\"", NULL, FP8_EUNSUPPORTED, "version '2.0'"},
        {"model", "", "{\"type\":\"Unigram\",\"vocab\":[[\"a\",0.5]]}", FP8_EUNSUPPORTED,
         "'Unigram'"},
        {"no merges", "", "{\"vocab\":{}}", FP8_EFORMAT, "model.merges is missing"},
        {"no vocab", "", "{\"merges\":[]}", FP8_EFORMAT, "model.vocab is missing"},
        {"empty", "", "{\"vocab\":{},\"merges\":[]}", FP8_OK, ""},
        {"merges first", "", "{\"merges\":[\"a b\"],\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}}", FP8_OK,
         ""},
        {"id range", "", "{\"vocab\":{\"a\":16777216},\"merges\":[]}", FP8_EFORMAT,
         "id of 'a': expected an integer from 0 to 16777215"},
        {"id negative", "", "{\"vocab\":{\"a\":-1},\"merges\":[]}", FP8_EFORMAT, "id of 'a'"},
        {"id real", "", "{\"vocab\":{\"a\":1.5},\"merges\":[]}", FP8_EFORMAT, "id of 'a'"},
        {"id twice", "", "{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}", FP8_EFORMAT,
         "id 1 is of 'a' and of 'b'"},
        {"token twice", "", "{\"vocab\":{\"a\":1,\"a\":2},\"merges\":[]}", FP8_EFORMAT,
         "duplicate key 'a'"},
        {"merge part", "", "{\"vocab\":{\"a\":1},\"merges\":[[\"a\",\"b\"]]}", FP8_EFORMAT,
         "merges[0]: 'b' is not in the vocabulary"},
        {"merge result", "", "{\"vocab\":{\"a\":1,\"b\":0},\"merges\":[\"a b\"]}", FP8_EFORMAT,
         "merges[0]: 'ab' is not in the vocabulary"},
        {"merge of one", "", "{\"vocab\":{\"a\":1},\"merges\":[\"a\"]}", FP8_EFORMAT,
         "merges[0]: expected two tokens"},
        {"merge of three", "", "{\"vocab\":{\"a\":1},\"merges\":[\"a a a\"]}", FP8_EFORMAT,
         "merges[0]: expected two tokens"},
        {"merge of nothing", "", "{\"vocab\":{\"a\":1},\"merges\":[\"a \"]}", FP8_EFORMAT,
         "merges[0]: '' is not in the vocabulary"},
        {"triple", "", "{\"vocab\":{\"a\":1},\"merges\":[[\"a\",\"a\",\"a\"]]}", FP8_EFORMAT,
         "a pair of merges"},
        {"dropout", "", "{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}", FP8_EUNSUPPORTED,
         "model.dropout"},
        {"no dropout", "", "{\"dropout\":0.0,\"vocab\":{},\"merges\":[]}", FP8_OK, ""},
        {"prefix", "", "{\"continuing_subword_prefix\":\"##\",\"vocab\":{},\"merges\":[]}",
         FP8_EUNSUPPORTED, "model.continuing_subword_prefix"},
        {"suffix", "", "{\"end_of_word_suffix\":\"</w>\",\"vocab\":{},\"merges\":[]}",
         FP8_EUNSUPPORTED, "model.end_of_word_suffix"},
        {"added id", "\"added_tokens\":[{\"id\":7,\"content\":\"a\"}]", NULL, FP8_EFORMAT,
         "'a' has id 7, but 1 in model.vocab"},
        {"added id taken", "\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]", NULL, FP8_EFORMAT,
         "id 1 of 'x' is 'a' already"},
        {"added twice",
         "\"added_tokens\":[{\"id\":9,\"content\":\"x\"},{\"id\":9,\"content\":\"y\"}]", NULL,
         FP8_EFORMAT, "id 9 of 'y' is 'x' already"},
        {"one content",
         "\"added_tokens\":[{\"id\":9,\"content\":\"x\"},{\"id\":10,\"content\":\"x\"}]", NULL,
         FP8_EFORMAT, "ids 9 and 10 are both 'x'"},
        {"added range", "\"added_tokens\":[{\"id\":16777216,\"content\":\"x\"}]", NULL,
         FP8_EFORMAT, "added_tokens: id"},
        {"added no id", "\"added_tokens\":[{\"content\":\"x\"}]", NULL, FP8_EFORMAT,
         "added_tokens[0]: id is missing"},
        {"normalizer", "\"normalizer\":{\"type\":\"Lowercase\"}", NULL, FP8_EUNSUPPORTED,
         "normalizer of type 'Lowercase'"},
        {"normalizer in sequence",
         "\"normalizer\":{\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"NFKC\"}],"
         "\"type\":\"Sequence\"}",
         NULL, FP8_EUNSUPPORTED, "normalizer of type 'NFKC'"},
        {"normalizer regex",
         "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"\"}",
         NULL, FP8_EUNSUPPORTED, "regex ' {2,}'"},
        {"empty pattern",
         "\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}",
         NULL, FP8_EFORMAT, "'pattern' is missing or empty"},
        {"pre-tokenizer", "\"pre_tokenizer\":{\"type\":\"Whitespace\"}", NULL, FP8_EUNSUPPORTED,
         "pre_tokenizer of type 'Whitespace'"},
        {"regex",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}|\\\\s+\"},"
         "\"behavior\":\"Isolated\",\"invert\":false}",
         NULL, FP8_EUNSUPPORTED, "regex '\\p{N}{1,3}|\\s+' is not supported"},
        {"behavior",
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},"
         "\"behavior\":\"Contiguous\",\"invert\":false}",
         NULL, FP8_EUNSUPPORTED, "behavior 'Contiguous'"},
        {"scheme",
         "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\","
         "\"prepend_scheme\":\"last\"}",
         NULL, FP8_EUNSUPPORTED, "prepend_scheme 'last'"},
        {"scheme against prefix",
         "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\","
         "\"prepend_scheme\":\"first\",\"add_prefix_space\":false}",
         NULL, FP8_EFORMAT, "add_prefix_space is false"},
        {"post-processor", "\"post_processor\":{\"type\":\"BertProcessing\"}", NULL,
         FP8_EUNSUPPORTED, "post_processor of type 'BertProcessing'"},
        {"template token",
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
         "{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
         "\"special_tokens\":{}}",
         NULL, FP8_EFORMAT, "'<s>' is not in special_tokens"},
        {"template id",
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
         "{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
         "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[8],\"tokens\":[\"<s>\"]}}}",
         NULL, FP8_EFORMAT, "id 8 of '<s>' is no token"},
        {"template of B",
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":"
         "{\"id\":\"B\",\"type_id\":0}}],\"special_tokens\":{}}",
         NULL, FP8_EUNSUPPORTED, "sequence 'B'"},
        {"template of nothing",
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],"
         "\"special_tokens\":{}}",
         NULL, FP8_EFORMAT, "single holds no Sequence"},
        {"decoder", "\"decoder\":{\"type\":\"WordPiece\"}", NULL, FP8_EUNSUPPORTED,
         "decoder of type 'WordPiece'"},
        {"no type", "\"decoder\":{}", NULL, FP8_EUNSUPPORTED, "decoder of type '(none given)'"},
        {"normalizer is text", "\"normalizer\":\"NFC\"", NULL, FP8_EFORMAT,
         "normalizer: expected object or null, found string"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_tokenizer *t = NULL;
        check_case = cases[i].name;
        CHECK_STATUS(load(&t, cases[i].parts, cases[i].model), cases[i].want);
        if (cases[i].want != FP8_OK && !strstr(fp8_last_message(), cases[i].message)) {
            fprintf(stderr, "[%s] %s\n", check_case, fp8_last_message());
            check_failures++;
        }
        CHECK((t != NULL) == (cases[i].want == FP8_OK));
        fp8_tokenizer_close(t);
    }
}

/* ---- small texts ---------------------------------------------------------------------------- */

static void test_small(void) {
    static const struct {
        const char *text;
        size_t len;
        int32_t ids[8];
        int64_t count;
    } cases[] = {
        {"", 0, {0}, 0},           {"a", 1, {1}, 1},
        {"abb", 3, {4}, 1},        {"aab", 3, {1, 3}, 2},
        {"xab", 3, {0, 3}, 2},     {"xyab", 4, {0, 3}, 2}, /* fused */
        {"a\0b", 3, {1, 0, 2}, 3}, {"\xc3\xa9", 2, {6, 7}, 2},
        {"x\xc3\xa9", 3, {6, 7, 0}, 3}, /* bytes do not bring a pending unknown out */
        {"\xc3\xa8", 2, {0}, 1}, /* not all of its bytes are tokens */
    };
    fp8_tokenizer *t = NULL;
    fp8_ids got = {0};

    check_case = "small";
    CHECK_STATUS(load(&t, "", NULL), FP8_OK);
    CHECK(fp8_tokenizer_vocab_size(t) == 8);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_ids want = {(int32_t *)(uintptr_t)cases[i].ids, cases[i].count, 8};
        got.count = 0;
        CHECK_STATUS(fp8_tokenizer_encode(t, &got, cases[i].text, cases[i].len, FP8_SPECIAL_ADD),
                     FP8_OK);
        CHECK(same_ids(&got, &want));
    }
    got.count = 1; /* failing appends nothing */
    CHECK_STATUS(fp8_tokenizer_encode(t, &got, "ab\xed\xa0\x80", 5, FP8_SPECIAL_ADD), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "byte 2 (0xed)") && got.count == 1);
    CHECK_STATUS(fp8_tokenizer_encode(t, &got, "a\xc3", 2, FP8_SPECIAL_ADD), FP8_EDATA);
    fp8_ids_free(&got);
    fp8_tokenizer_close(t);
}

static void test_special(void) {
    static const char template[] =
        "\"added_tokens\":[{\"id\":10,\"content\":\"<s>\",\"special\":true},"
        "{\"id\":12,\"content\":\"</s>\",\"special\":true},{\"id\":9,\"content\":\"<s\"}],"
        "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
        "{\"type\":\"TemplateProcessing\",\"single\":["
        "{\"SpecialToken\":{\"id\":\"b\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
        "{\"SpecialToken\":{\"id\":\"e\",\"type_id\":0}}],"
        "\"special_tokens\":{\"b\":{\"id\":\"b\",\"ids\":[10,9],\"tokens\":[\"<s>\",\"<s\"]},"
        "\"e\":{\"id\":\"e\",\"ids\":[12],\"tokens\":[\"</s>\"]}}},"
        "{\"type\":\"TemplateProcessing\",\"single\":["
        "{\"SpecialToken\":{\"id\":\"e\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],"
        "\"special_tokens\":{\"e\":{\"id\":\"e\",\"ids\":[12],\"tokens\":[\"</s>\"]}}}]}";
    static const int32_t want[] = {12, 10, 9, 1, 10, 9, 2, 12}, hole[] = {11}, beyond[] = {1, 13};
    const fp8_ids all = {(int32_t *)(uintptr_t)want, 8, 8};
    const fp8_ids inner = {(int32_t *)(uintptr_t)want + 3, 4, 4};
    const int32_t *prefix = NULL;
    fp8_tokenizer *t = NULL;
    fp8_ids got = {0};
    char *text = NULL;
    size_t len = 0;

    check_case = "special";
    CHECK_STATUS(load(&t, template, NULL), FP8_OK);
    CHECK(fp8_tokenizer_vocab_size(t) == 13);
    CHECK(fp8_tokenizer_prefix(t, &prefix) == 3 && memcmp(prefix, want, 12) == 0);
    CHECK_STATUS(fp8_tokenizer_encode(t, &got, "a<s><sb", 7, FP8_SPECIAL_ADD), FP8_OK);
    CHECK(same_ids(&got, &all));
    got.count = 0;
    CHECK_STATUS(fp8_tokenizer_encode(t, &got, "a<s><sb", 7, FP8_SPECIAL_NONE), FP8_OK);
    CHECK(same_ids(&got, &inner));
    CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, want, 8, 1), FP8_OK);
    CHECK(strcmp(text, "<s a <s b") == 0 && len == 9); /* no decoder: joined by spaces */
    free(text);
    CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, want, 0, 1), FP8_OK);
    CHECK(len == 0 && text[0] == 0);
    free(text);
    CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, hole, 1, 0), FP8_EDATA);
    CHECK(text == NULL);
    CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, beyond, 2, 0), FP8_EDATA);
    CHECK(strstr(fp8_last_message(), "id 13 at position 1"));
    fp8_ids_free(&got);
    fp8_tokenizer_close(t);
}

/* ---- Unicode -------------------------------------------------------------------------------- */

static void test_unicode(void) {
    static const struct {
        const char *text, *nfc;
    } forms[] = {{"", ""},
                 {"caf\xc3\xa9", "caf\xc3\xa9"},
                 {"e\xcc\x81", "\xc3\xa9"},
                 {"\xe2\x84\xab", "\xc3\x85"},                             /* angstrom */
                 {"a\xcc\x95\xcc\x80", "\xc3\xa0\xcc\x95"},               /* marks in order */
                 {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"}, /* Hangul */
                 {"\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc"}}; /* excluded: stays apart */
    static const struct {
        const char *bytes, *text;
    } broken[] = {{"a\xff" "b", "a\xef\xbf\xbd" "b"},
                  {"\xe2\x82", "\xef\xbf\xbd"},
                  {"\xe2\x82" "A", "\xef\xbf\xbd" "A"},
                  {"\xf0\x9f\x98", "\xef\xbf\xbd"},
                  {"\xf0\x9f\x98\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac"},
                  {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                  {"\xc0\x80", "\xef\xbf\xbd\xef\xbf\xbd"}};
    static const struct {
        int32_t cp;
        uint32_t class;
    } classes[] = {{'a', UNI_LOWER},      {'A', UNI_UPPER},      {0x1c5, UNI_UPPER},
                   {0x2b0, UNI_CASELESS}, {0x4e00, UNI_CASELESS}, {0x301, UNI_MARK},
                   {'7', UNI_DIGIT},      {0x2167, UNI_NUMBER},   {0xb2, UNI_NUMBER},
                   {'_', UNI_PUNCT},      {'+', UNI_SYMBOL},      {' ', UNI_BLANK},
                   {'\t', UNI_BLANK},     {'\r', UNI_LINE},       {'\n', UNI_LINE},
                   {0x85, UNI_BLANK},     {0xa0, UNI_BLANK},      {0x2028, UNI_BLANK},
                   {0x180e, UNI_REST},    {0x1c, UNI_REST},       {0, UNI_REST},
                   {0xfeff, UNI_REST},    {0xe000, UNI_REST},     {0x10ffff, UNI_REST},
                   {0x2ebf0, UNI_CASELESS}, {0x1c89, UNI_UPPER},  {0x897, UNI_MARK}};
    uni_buf out = {0};

    check_case = "NFC";
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        out.len = 0;
        CHECK_STATUS(uni_append_nfc(&out, forms[i].text, strlen(forms[i].text)), FP8_OK);
        CHECK(out.len == strlen(forms[i].nfc) &&
              (out.len == 0 || memcmp(out.data, forms[i].nfc, out.len) == 0));
    }
    check_case = "U+FFFD";
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        out.len = 0;
        CHECK_STATUS(uni_append_lossy(&out, broken[i].bytes, strlen(broken[i].bytes)), FP8_OK);
        CHECK(out.len == strlen(broken[i].text) && memcmp(out.data, broken[i].text, out.len) == 0);
    }
    check_case = "classes";
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        CHECK(uni_class(classes[i].cp) == classes[i].class);
    for (int i = 0; i < 256; i++) CHECK(tok_char_byte(tok_byte_char(i)) == i);
    uni_buf_free(&out);
}

/* ---- scanners ------------------------------------------------------------------------------- */

#define SPACES "|\\s+(?!\\S)|\\s+"
#define SHORT "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD_1                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define WORD_2                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define CASED_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+" SPACES
#define CL100K_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+" SPACES
#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" CL100K_TAIL
#define QWEN2 SHORT "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" CL100K_TAIL
#define NEMO WORD_1 "|" WORD_2 "|\\p{N}" CASED_TAIL
#define O200K WORD_1 SHORT "?|" WORD_2 SHORT "?|\\p{N}{1,3}" CASED_TAIL

/* Pieces as Oniguruma cuts them (by Split of `tokenizers` 0.23.3). */
static void test_scanners(void) {
    static const struct {
        const char *regex, *text, *pieces;
    } cases[] = {
        {GPT2, "I'll they'RE it's 12345  a\r\n\r\n b",
         "I|'ll| they|'|RE| it|'s| 12345| | a|\r\n\r\n| b"},
        {GPT2, "   \t x  ", "   \t| x|  "},
        {LLAMA3, "I'LL they'Re it'\xc5\xbfx 12345  a\r\n\r\n b",
         "I|'LL| they|'Re| it|'\xc5\xbf|x| |123|45| | a|\r\n\r\n| b"},
        {LLAMA3, " \n \n  x! \r\n\n?", " \n \n| | x|!| \r\n\n|?"},
        {LLAMA3, "x!?\r\n\ny", "x|!?\r\n\n|y"},
        {LLAMA3, "\tfoo(bar) \xc2\xa0\xc2\x85y\xcc\x81z",
         "\tfoo|(bar|)| \xc2\xa0|\xc2\x85y|\xcc\x81z"},
        {QWEN2, "x'D 123 \xd9\xa3\xe2\x85\xa7 a", "x|'D| |1|2|3| |\xd9\xa3|\xe2\x85\xa7| a"},
        {NEMO, "HTTPServer fooBar don't\xcc\x81X 12 /a/\n/b",
         "HTTPServer| foo|Bar| don|'t\xcc\x81|X| |1|2| /|a|/\n/|b"},
        {NEMO, "\xe6\x97\xa5" "AB \xcc\x81" "AB \xcc\x81" "ab \xc7\x85X",
         "\xe6\x97\xa5|AB| \xcc\x81|AB| \xcc\x81" "ab| \xc7\x85X"},
        {NEMO, "\xcc\x81" "AB\xcc\x81", "\xcc\x81" "AB\xcc\x81"},
        {NEMO, "\xcc\x81" "AB", "\xcc\x81|AB"},
        {NEMO, "\xcc\x81!!", "\xcc\x81|!!"},
        {O200K, "HTTPServer's DON'T 12345!\n/x  y", "HTTPServer's| DON'T| |123|45|!\n/|x| | y"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uni_text text = {cases[i].text, strlen(cases[i].text)};
        const tok_scan_fn scan =
            tok_scan_find((uni_text){cases[i].regex, strlen(cases[i].regex)});
        char pieces[256] = "";
        check_case = cases[i].text;
        CHECK(scan != NULL);
        for (size_t at = 0, end; scan && at < text.len; at = end) {
            end = scan(text, at);
            CHECK(end > at && end <= text.len);
            if (end <= at) break;
            snprintf(pieces + strlen(pieces), sizeof pieces - strlen(pieces), "%s%.*s",
                     at ? "|" : "", (int)(end - at), text.data + at);
        }
        CHECK(strcmp(pieces, cases[i].pieces) == 0);
    }
}

/* ---- decoders ------------------------------------------------------------------------------- */

static void test_decoders(void) {
#define BYTE_FALLBACK "{\"type\":\"ByteFallback\"}"
#define METASPACE(scheme)                                                                          \
    "{\"type\":\"Metaspace\",\"replacement\":\"b\",\"prepend_scheme\":\"" scheme "\"}"
#define STRIP(start, stop)                                                                         \
    "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":"    \
    "\"a\",\"start\":" start ",\"stop\":" stop "}]}"
#define BYTES "{\"type\":\"ByteLevel\",\"use_regex\":true}"
    static const char model[] = "{\"vocab\":{\"a\":1,\"b\":2,\"ab\":3,\"abb\":4,\" \":5,"
                                "\"<0xC3>\":6,\"<0xA9>\":7,\"\xc3\x83\":8,\"\xc2\xa9\":9,"
                                "\"\xc4\xa0\":10,\"\xc3\x83 \":11},\"merges\":[]}";
    static const struct {
        const char *decoder;
        int32_t ids[6];
        int64_t count;
        const char *want;
    } cases[] = {
        {BYTE_FALLBACK, {6, 7, 1}, 3, "\xc3\xa9" "a"},
        {BYTE_FALLBACK, {1, 6}, 2, "a\xef\xbf\xbd"},
        {BYTE_FALLBACK, {6, 6, 7, 2, 6, 7}, 6,
         "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" "b\xc3\xa9"}, /* a run is right or wrong as one */
        {METASPACE("first"), {4, 4}, 2, "aa  "},
        {METASPACE("always"), {2, 2}, 2, " "},
        {METASPACE("never"), {4, 2}, 2, "a   "},
        {STRIP("1", "0"), {1, 1, 2}, 3, "ab"},
        {STRIP("5", "5"), {1, 1, 2, 1}, 4, "b"},
        {STRIP("9", "9"), {1, 1}, 2, ""},
        {BYTES, {8, 9, 10, 1}, 4, "\xc3\xa9 a"},
        {BYTES, {8, 8, 1, 9}, 4, "\xef\xbf\xbd\xef\xbf\xbd" "a\xef\xbf\xbd"},
        {BYTES, {11, 9}, 2, "\xc3\x83 \xef\xbf\xbd"}, /* a space is no byte: the token as it is */
        {BYTES, {0}, 0, ""},
    };
    char parts[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_tokenizer *t = NULL;
        char *text = NULL;
        size_t len = 0;
        snprintf(parts, sizeof parts, "\"decoder\":%s", cases[i].decoder);
        check_case = cases[i].decoder;
        CHECK_STATUS(load(&t, parts, model), FP8_OK);
        CHECK_STATUS(fp8_tokenizer_decode(t, &text, &len, cases[i].ids, cases[i].count, 1),
                     FP8_OK);
        CHECK(text && strcmp(text, cases[i].want) == 0 && len == strlen(text));
        free(text);
        fp8_tokenizer_close(t);
    }
}

int main(void) {
    fp8_tokenizer *t = NULL;

    test_unicode();
    test_scanners();
    test_decoders();
    test_refusals();
    test_small();
    test_special();
    check_case = "open";
    CHECK_STATUS(fp8_tokenizer_open(&t, "/nonexistent/tokenizer.json"), FP8_ENOTFOUND);
    fp8_tokenizer_close(NULL);
    return CHECK_DONE();
}
