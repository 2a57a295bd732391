/* Added tokens in a text: leftmost, then longest. */
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

/* ---- building ------------------------------------------------------------------------------- */

static int compare_texts(uni_text a, uni_text b) {
    const size_t n = a.len < b.len ? a.len : b.len;
    const int order = memcmp(a.data, b.data, n);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_items(const void *a, const void *b) {
    return compare_texts((*(const tok_added *const *)a)->pattern,
                         (*(const tok_added *const *)b)->pattern);
}

fp8_status tok_matcher_build(tok_matcher *m, const char *name, const tok_added *added,
                             int32_t num_added, int normalized) {
    fp8_status st = FP8_OK;

    if (num_added == 0) return FP8_OK;
    m->items = malloc((size_t)num_added * sizeof *m->items);
    if (!m->items) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%d added tokens", num_added));
    for (int32_t i = 0; i < num_added; i++) {
        if (!added[i].normalized != !normalized || added[i].pattern.len == 0) continue;
        m->items[m->count++] = &added[i];
        m->begins[(unsigned char)added[i].pattern.data[0]] = 1;
    }
    qsort(m->items, (size_t)m->count, sizeof *m->items, compare_items);
    for (int32_t i = 1; i < m->count; i++)
        if (compare_items(&m->items[i - 1], &m->items[i]) == 0)
            FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: added_tokens: ids %d and %d are both '%s'", name,
                             m->items[i - 1]->id, m->items[i]->id,
                             tok_show(m->items[i]->pattern).text));
done:
    return st;
}

void tok_matcher_free(tok_matcher *m) { free(m->items); }

/* ---- searching ------------------------------------------------------------------------------ */

/* Items of [lo, hi) share their first `depth` bytes: the first one whose next byte is >= byte. An
 * item that ends there sorts before all of them. */
static int32_t lower_bound(const tok_matcher *m, int32_t lo, int32_t hi, size_t depth, int byte) {
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        const uni_text p = m->items[mid]->pattern;
        if (p.len == depth || (unsigned char)p.data[depth] < byte) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static const tok_added *longest_at(const tok_matcher *m, uni_text s, size_t at) {
    const tok_added *found = NULL;
    int32_t lo = 0, hi = m->count;

    for (size_t depth = 0; lo < hi; depth++) {
        int byte;
        if (m->items[lo]->pattern.len == depth && depth > 0) found = m->items[lo];
        if (at + depth == s.len) break;
        byte = (unsigned char)s.data[at + depth];
        lo = lower_bound(m, lo, hi, depth, byte);
        hi = lower_bound(m, lo, hi, depth, byte + 1);
    }
    return found;
}

/* Is the character before / at `at` one of \w? */
static int word_before(uni_text s, size_t at) {
    if (at == 0) return 0;
    do at--;
    while (((unsigned char)s.data[at] & 0xc0) == 0x80);
    return uni_is_word(uni_next(s.data, &at));
}

static int word_at(uni_text s, size_t at) {
    return at < s.len && uni_is_word(uni_next(s.data, &at));
}

static size_t spaces_before(uni_text s, size_t at, size_t floor) {
    while (at > floor) {
        size_t begin = at - 1, next;
        while (((unsigned char)s.data[begin] & 0xc0) == 0x80) begin--;
        next = begin;
        if (!(uni_class(uni_next(s.data, &next)) & UNI_SPACE)) break;
        at = begin;
    }
    return at;
}

static size_t spaces_after(uni_text s, size_t at) {
    for (size_t next = at; at < s.len; at = next)
        if (!(uni_class(uni_next(s.data, &next)) & UNI_SPACE)) break;
    return at;
}

const tok_added *tok_matcher_next(const tok_matcher *m, uni_text s, size_t at, size_t floor,
                                  size_t *begin, size_t *end, size_t *resume) {
    if (m->count == 0) return NULL;
    while (at < s.len) {
        const tok_added *found = NULL;
        if (m->begins[(unsigned char)s.data[at]]) found = longest_at(m, s, at);
        if (!found) {
            at++;
            continue;
        }
        *begin = at;
        *end = at += found->pattern.len;
        *resume = at;
        if (found->single_word && (word_before(s, *begin) || word_at(s, *end)))
            continue; /* passed over whole: nothing is looked for inside it */
        if (found->lstrip) *begin = spaces_before(s, *begin, floor);
        if (found->rstrip) *end = spaces_after(s, *end);
        return found;
    }
    return NULL;
}
