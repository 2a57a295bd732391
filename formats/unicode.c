#include "formats/unicode.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "formats/utf8.h"

/* ---- buffer --------------------------------------------------------------------------------- */

fp8_status uni_buf_reserve(uni_buf *b, size_t more) {
    size_t cap = b->cap ? b->cap : 256;
    char *data;

    if (more <= b->cap - b->len) return FP8_OK;
    if (more > SIZE_MAX / 4 - b->len)
        return FP8_FAIL(FP8_EOVERFLOW, "text: %zu + %zu bytes", b->len, more);
    while (cap < b->len + more) cap *= 2;
    data = realloc(b->data, cap);
    if (!data) return FP8_FAIL(FP8_ENOMEM, "text: %zu bytes", cap);
    b->data = data;
    b->cap = cap;
    return FP8_OK;
}

fp8_status uni_buf_append(uni_buf *b, const char *data, size_t len) {
    const fp8_status st = uni_buf_reserve(b, len);
    if (st == FP8_OK && len) {
        memcpy(b->data + b->len, data, len);
        b->len += len;
    }
    return st;
}

void uni_buf_free(uni_buf *b) {
    free(b->data);
    *b = (uni_buf){0};
}

/* ---- UTF-8 ---------------------------------------------------------------------------------- */

/* Length of the maximal ill-formed part at p: the longest beginning of some sequence, or 1 byte. */
static size_t ill_formed_length(const unsigned char *p, size_t left) {
    static const unsigned char tail[3] = {0x80, 0x80, 0x80};
    unsigned char whole[4] = {p[0]};
    size_t n = 1;

    for (; n < 3 && n < left; n++) { /* is p[0 .. n] the beginning of a sequence? */
        whole[n] = p[n];
        memcpy(whole + n + 1, tail, 3 - n);
        if (fp8_utf8_length(whole, 4) <= n) break;
    }
    return n;
}

fp8_status uni_append_lossy(uni_buf *out, const char *s, size_t len) {
    fp8_status st = FP8_OK;
    while (len && st == FP8_OK) {
        const size_t good = fp8_utf8_prefix(s, len);
        st = uni_buf_append(out, s, good);
        s += good;
        len -= good;
        if (len && st == FP8_OK) {
            const size_t bad = ill_formed_length((const unsigned char *)s, len);
            st = uni_buf_append(out, "\xef\xbf\xbd", 3);
            s += bad;
            len -= bad;
        }
    }
    return st;
}

size_t uni_encode(int32_t cp, char out[4]) {
    return (size_t)utf8proc_encode_char(cp, (utf8proc_uint8_t *)out);
}

/* ---- classes -------------------------------------------------------------------------------- */

/* What Unicode 15.1 and 16.0 added, for an older utf8proc: ids must not depend on its version. */
static const struct {
    int32_t first, last;
    uint32_t cls;
} added[] = {
    {0x897, 0x897, UNI_MARK}, {0x1b4e, 0x1b4f, UNI_PUNCT}, {0x1b7f, 0x1b7f, UNI_PUNCT},
    {0x1c89, 0x1c89, UNI_UPPER}, {0x1c8a, 0x1c8a, UNI_LOWER}, {0x2427, 0x2429, UNI_SYMBOL},
    {0x2ffc, 0x2fff, UNI_SYMBOL}, {0x31e4, 0x31e5, UNI_SYMBOL}, {0x31ef, 0x31ef, UNI_SYMBOL},
    {0xa7cb, 0xa7cc, UNI_UPPER}, {0xa7cd, 0xa7cd, UNI_LOWER}, {0xa7da, 0xa7da, UNI_UPPER},
    {0xa7db, 0xa7db, UNI_LOWER}, {0xa7dc, 0xa7dc, UNI_UPPER}, {0x105c0, 0x105f3, UNI_CASELESS},
    {0x10d40, 0x10d49, UNI_DIGIT}, {0x10d4a, 0x10d4f, UNI_CASELESS},
    {0x10d50, 0x10d65, UNI_UPPER}, {0x10d69, 0x10d6d, UNI_MARK}, {0x10d6e, 0x10d6e, UNI_PUNCT},
    {0x10d6f, 0x10d6f, UNI_CASELESS}, {0x10d70, 0x10d85, UNI_LOWER},
    {0x10d8e, 0x10d8f, UNI_SYMBOL}, {0x10ec2, 0x10ec4, UNI_CASELESS},
    {0x10efc, 0x10efc, UNI_MARK}, {0x11380, 0x11389, UNI_CASELESS},
    {0x1138b, 0x1138b, UNI_CASELESS}, {0x1138e, 0x1138e, UNI_CASELESS},
    {0x11390, 0x113b5, UNI_CASELESS}, {0x113b7, 0x113b7, UNI_CASELESS},
    {0x113b8, 0x113c0, UNI_MARK}, {0x113c2, 0x113c2, UNI_MARK}, {0x113c5, 0x113c5, UNI_MARK},
    {0x113c7, 0x113ca, UNI_MARK}, {0x113cc, 0x113d0, UNI_MARK}, {0x113d1, 0x113d1, UNI_CASELESS},
    {0x113d2, 0x113d2, UNI_MARK}, {0x113d3, 0x113d3, UNI_CASELESS}, {0x113d4, 0x113d5, UNI_PUNCT},
    {0x113d7, 0x113d8, UNI_PUNCT}, {0x113e1, 0x113e2, UNI_MARK}, {0x116d0, 0x116e3, UNI_DIGIT},
    {0x11bc0, 0x11be0, UNI_CASELESS}, {0x11be1, 0x11be1, UNI_PUNCT},
    {0x11bf0, 0x11bf9, UNI_DIGIT}, {0x11f5a, 0x11f5a, UNI_MARK}, {0x13460, 0x143fa, UNI_CASELESS},
    {0x16100, 0x1611d, UNI_CASELESS}, {0x1611e, 0x1612f, UNI_MARK}, {0x16130, 0x16139, UNI_DIGIT},
    {0x16d40, 0x16d6c, UNI_CASELESS}, {0x16d6d, 0x16d6f, UNI_PUNCT},
    {0x16d70, 0x16d79, UNI_DIGIT}, {0x18cff, 0x18cff, UNI_CASELESS},
    {0x1cc00, 0x1ccef, UNI_SYMBOL}, {0x1ccf0, 0x1ccf9, UNI_DIGIT}, {0x1cd00, 0x1ceb3, UNI_SYMBOL},
    {0x1e5d0, 0x1e5ed, UNI_CASELESS}, {0x1e5ee, 0x1e5ef, UNI_MARK},
    {0x1e5f0, 0x1e5f0, UNI_CASELESS}, {0x1e5f1, 0x1e5fa, UNI_DIGIT},
    {0x1e5ff, 0x1e5ff, UNI_PUNCT}, {0x1f8b2, 0x1f8bb, UNI_SYMBOL}, {0x1f8c0, 0x1f8c1, UNI_SYMBOL},
    {0x1fa89, 0x1fa89, UNI_SYMBOL}, {0x1fa8f, 0x1fa8f, UNI_SYMBOL},
    {0x1fabe, 0x1fabe, UNI_SYMBOL}, {0x1fac6, 0x1fac6, UNI_SYMBOL},
    {0x1fadc, 0x1fadc, UNI_SYMBOL}, {0x1fadf, 0x1fadf, UNI_SYMBOL},
    {0x1fae9, 0x1fae9, UNI_SYMBOL}, {0x1fbcb, 0x1fbef, UNI_SYMBOL},
    {0x2ebf0, 0x2ee5d, UNI_CASELESS},
};

static uint32_t added_class(int32_t cp) {
    size_t lo = 0, hi = sizeof added / sizeof *added;
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (cp > added[mid].last) lo = mid + 1;
        else hi = mid;
    }
    return lo < sizeof added / sizeof *added && cp >= added[lo].first ? added[lo].cls : UNI_REST;
}

uint32_t uni_class(int32_t cp) {
    static const uint16_t of_category[] = {
        [UTF8PROC_CATEGORY_LU] = UNI_UPPER,    [UTF8PROC_CATEGORY_LT] = UNI_UPPER,
        [UTF8PROC_CATEGORY_LL] = UNI_LOWER,    [UTF8PROC_CATEGORY_LM] = UNI_CASELESS,
        [UTF8PROC_CATEGORY_LO] = UNI_CASELESS, [UTF8PROC_CATEGORY_MN] = UNI_MARK,
        [UTF8PROC_CATEGORY_MC] = UNI_MARK,     [UTF8PROC_CATEGORY_ME] = UNI_MARK,
        [UTF8PROC_CATEGORY_ND] = UNI_DIGIT,    [UTF8PROC_CATEGORY_NL] = UNI_NUMBER,
        [UTF8PROC_CATEGORY_NO] = UNI_NUMBER,   [UTF8PROC_CATEGORY_PC] = UNI_PUNCT,
        [UTF8PROC_CATEGORY_PD] = UNI_PUNCT,    [UTF8PROC_CATEGORY_PS] = UNI_PUNCT,
        [UTF8PROC_CATEGORY_PE] = UNI_PUNCT,    [UTF8PROC_CATEGORY_PI] = UNI_PUNCT,
        [UTF8PROC_CATEGORY_PF] = UNI_PUNCT,    [UTF8PROC_CATEGORY_PO] = UNI_PUNCT,
        [UTF8PROC_CATEGORY_SM] = UNI_SYMBOL,   [UTF8PROC_CATEGORY_SC] = UNI_SYMBOL,
        [UTF8PROC_CATEGORY_SK] = UNI_SYMBOL,   [UTF8PROC_CATEGORY_SO] = UNI_SYMBOL,
        [UTF8PROC_CATEGORY_ZS] = UNI_BLANK,    [UTF8PROC_CATEGORY_ZL] = UNI_BLANK,
        [UTF8PROC_CATEGORY_ZP] = UNI_BLANK,    [UTF8PROC_CATEGORY_CC] = UNI_REST,
        [UTF8PROC_CATEGORY_CF] = UNI_REST,     [UTF8PROC_CATEGORY_CS] = UNI_REST,
        [UTF8PROC_CATEGORY_CO] = UNI_REST};
    utf8proc_category_t category;

    if (cp == '\r' || cp == '\n') return UNI_LINE;
    if ((cp >= '\t' && cp <= '\f') || cp == 0x85) return UNI_BLANK; /* the spaces among Cc */
    category = utf8proc_category(cp);
    return category == UTF8PROC_CATEGORY_CN ? added_class(cp) : of_category[category];
}

int uni_is_word(int32_t cp) {
    if (uni_class(cp) & (UNI_L | UNI_MARK | UNI_DIGIT)) return 1;
    if (cp == 0x200c || cp == 0x200d) return 1;
    if ((cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
        (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189))
        return 1; /* Other_Alphabetic beyond marks: letters in circles and squares */
    return utf8proc_category(cp) == UTF8PROC_CATEGORY_NL ||
           utf8proc_category(cp) == UTF8PROC_CATEGORY_PC;
}

/* ---- NFC ------------------------------------------------------------------------------------ */

/* Sorts cp[0 .. n) stably by combining class. By counting: a run of marks may be a whole text. */
static fp8_status sort_marks(int32_t *cp, size_t n) {
    size_t starts[256 + 1] = {0};
    int32_t *sorted;
    int in_order = 1;

    for (size_t i = 0; i < n; i++) {
        const int class = utf8proc_get_property(cp[i])->combining_class;
        in_order &= !i || utf8proc_get_property(cp[i - 1])->combining_class <= class;
        starts[class + 1]++;
    }
    if (in_order) return FP8_OK;
    sorted = malloc(n * sizeof *sorted);
    if (!sorted) return FP8_FAIL(FP8_ENOMEM, "normalizing %zu combining marks", n);
    for (int i = 0; i < 256; i++) starts[i + 1] += starts[i];
    for (size_t i = 0; i < n; i++)
        sorted[starts[utf8proc_get_property(cp[i])->combining_class]++] = cp[i];
    memcpy(cp, sorted, n * sizeof *sorted);
    free(sorted);
    return FP8_OK;
}

/* The canonical decomposition of one character, at cp[n]; cp has room for it. */
static size_t decompose(int32_t *cp, size_t n, int32_t c) {
    int boundary = 0;
    const utf8proc_ssize_t got =
        utf8proc_decompose_char(c, cp + n, 4, UTF8PROC_STABLE | UTF8PROC_COMPOSE, &boundary);
    return n + (size_t)got;
}

fp8_status uni_append_nfc(uni_buf *out, const char *s, size_t len) {
    fp8_status st = FP8_OK;
    int32_t *cp = NULL;
    size_t num_chars = 0, n = 0, first = 0;

    while (first < len && (unsigned char)s[first] < 0xcc) first++; /* below U+0300: NFC as it is */
    if (first == len) return uni_buf_append(out, s, len);
    for (size_t i = 0; i < len; i++) num_chars += ((unsigned char)s[i] & 0xc0) != 0x80;
    cp = malloc(num_chars * 4 * sizeof *cp); /* no canonical decomposition is longer than 4 */
    if (!cp) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "normalizing %zu characters", num_chars));
    for (size_t at = 0; at < len;) n = decompose(cp, n, uni_next(s, &at));
    for (size_t i = 0, run; i < n; i = run + 1) {
        for (run = i; run < n && utf8proc_get_property(cp[run])->combining_class; run++) continue;
        if (run - i > 1) FP8_TRY(sort_marks(cp + i, run - i));
    }
    n = (size_t)utf8proc_normalize_utf32(cp, (utf8proc_ssize_t)n,
                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    FP8_TRY(uni_buf_reserve(out, n * 4));
    for (size_t i = 0; i < n; i++) out->len += uni_encode(cp[i], out->data + out->len);
done:
    free(cp);
    return st;
}
