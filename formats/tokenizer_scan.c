/* The regexes that tokenizers split by, each as a scanner: the whole text is covered, so the next
 * piece always begins where the last one ended. */
#include <string.h>

#include "formats/tokenizer_impl.h"

/* ---- matching classes ----------------------------------------------------------------------- */

/* Class of the character at `at`, *next = the offset after it; 0 at the end. */
static uint32_t class_at(uni_text t, size_t at, size_t *next) {
    *next = at;
    return at < t.len ? uni_class(uni_next(t.data, next)) : 0;
}

/* [set]* */
static size_t skip(uni_text t, size_t at, uint32_t set) {
    size_t next;
    while (class_at(t, at, &next) & set) at = next;
    return at;
}

/* [set]{0,max} */
static size_t skip_most(uni_text t, size_t at, uint32_t set, int max) {
    size_t next;
    for (; max > 0 && (class_at(t, at, &next) & set); max--) at = next;
    return at;
}

/* 's|'t|'re|'ve|'m|'ll|'d, in any case when fold. Its end, or `at`. U+017F, the long s, is an s in
 * another case: Unicode's simple folding has no other character that folds to one of these. */
static size_t contraction(uni_text t, size_t at, int fold) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (at == t.len || t.data[at] != '\'') return at;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const size_t n = strlen(ends[i]);
        size_t same = 0;
        while (same < n && at + 1 + same < t.len) {
            const char c = t.data[at + 1 + same];
            if (c != ends[i][same] && !(fold && (c | 0x20) == ends[i][same])) break;
            same++;
        }
        if (same == n) return at + 1 + n;
    }
    if (fold && t.len - at >= 3 && memcmp(t.data + at, "'\xc5\xbf", 3) == 0) return at + 3;
    return at;
}

/* \s+(?!\S)|\s+ at a space: all of the run, but its last character when something follows. */
static size_t spaces(uni_text t, size_t at) {
    size_t end = at, last = at, next;
    while (class_at(t, end, &next) & UNI_SPACE) {
        last = end;
        end = next;
    }
    return end == t.len || last == at ? end : last;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ at a space: through the last CR or LF of the run, if there is one. */
static size_t lines_or_spaces(uni_text t, size_t at) {
    const size_t end = skip(t, at, UNI_SPACE);
    for (size_t i = end; i > at; i--)
        if (t.data[i - 1] == '\n' || t.data[i - 1] == '\r') return i;
    return spaces(t, at);
}

enum { SYMBOLS = UNI_ALL & ~(UNI_SPACE | UNI_L | UNI_N) }; /* [^\s\p{L}\p{N}] */

/* ---- GPT-2 ---------------------------------------------------------------------------------- */

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t scan_gpt2(uni_text t, size_t at) {
    const size_t short_end = contraction(t, at, 0);
    const size_t begin = at + (t.data[at] == ' ');
    size_t next;
    const uint32_t class = class_at(t, begin, &next);

    if (short_end > at) return short_end;
    if (class & UNI_L) return skip(t, next, UNI_L);
    if (class & UNI_N) return skip(t, next, UNI_N);
    if (class & SYMBOLS) return skip(t, next, SYMBOLS);
    return spaces(t, at);
}

/* ---- Llama-3, Qwen2 ------------------------------------------------------------------------- */

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}|
 *  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t scan_cl100k(uni_text t, size_t at, int max_digits) {
    const size_t short_end = contraction(t, at, 1);
    size_t next, after;
    const uint32_t class = class_at(t, at, &next);

    if (short_end > at) return short_end;
    if (class & UNI_L) return skip(t, next, UNI_L);
    if (class & UNI_N) return skip_most(t, next, UNI_N, max_digits - 1);
    if (!(class & UNI_LINE) && (class_at(t, next, &after) & UNI_L)) return skip(t, after, UNI_L);
    if (t.data[at] == ' ' && (class_at(t, next, &after) & SYMBOLS)) next = after;
    else if (class & UNI_SPACE) return lines_or_spaces(t, at);
    return skip(t, skip(t, next, SYMBOLS), UNI_LINE);
}

static size_t scan_llama3(uni_text t, size_t at) { return scan_cl100k(t, at, 3); }
static size_t scan_qwen2(uni_text t, size_t at) { return scan_cl100k(t, at, 1); }

/* ---- Mistral Nemo, GPT-4o: words begin where the case rises --------------------------------- */

enum {
    RISING = UNI_UPPER | UNI_CASELESS | UNI_MARK,
    FALLING = UNI_LOWER | UNI_CASELESS | UNI_MARK
};

/* [RISING]*[FALLING]+, and where that fails and alone is set [RISING]+, at `at`; its end, or `at`.
 * Where no lower-case letter follows the rising run, the last falling one in it ends the word. */
static size_t cased_word(uni_text t, size_t at, int alone) {
    size_t run = at, falling = at, next;
    uint32_t class;

    while ((class = class_at(t, run, &next)) & RISING) {
        run = next;
        if (class & FALLING) falling = next;
    }
    if (class & FALLING) return skip(t, run, FALLING);
    return falling > at || !alone ? falling : run;
}

/* [^\r\n\p{L}\p{N}]?[RISING]*[FALLING]+|[^\r\n\p{L}\p{N}]?[RISING]+[FALLING]* at `at`; its end, or
 * `at`. A mark is what comes before a word if that matches the first form, else a word itself. */
static size_t prefixed_word(uni_text t, size_t at) {
    size_t next, end;
    const uint32_t class = class_at(t, at, &next);

    if (class & UNI_L) return cased_word(t, at, 1);
    if (class & (UNI_N | UNI_LINE)) return at;
    end = cased_word(t, next, !(class & UNI_MARK));
    return end > next || (class & UNI_MARK) ? end : at;
}

/* prefixed_word, then (?i:'s|'t|'re|'ve|'m|'ll|'d)? where `contractions`|\p{N}{1,max_digits}|
 *  ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t scan_cased(uni_text t, size_t at, int contractions, int max_digits) {
    const size_t word = prefixed_word(t, at);
    size_t next, after;
    const uint32_t class = class_at(t, at, &next);

    if (word > at) return contractions ? contraction(t, word, 1) : word;
    if (class & UNI_N) return skip_most(t, next, UNI_N, max_digits - 1);
    if (t.data[at] == ' ' && (class_at(t, next, &after) & SYMBOLS)) next = after;
    else if (class & UNI_SPACE) return lines_or_spaces(t, at);
    next = skip(t, next, SYMBOLS);
    while (next < t.len && strchr("\r\n/", t.data[next]) && t.data[next]) next++;
    return next;
}

static size_t scan_nemo(uni_text t, size_t at) { return scan_cased(t, at, 0, 1); }
static size_t scan_o200k(uni_text t, size_t at) { return scan_cased(t, at, 1, 3); }

/* ---- digits --------------------------------------------------------------------------------- */

size_t tok_scan_one_digit(uni_text t, size_t at) {
    size_t next;
    if (class_at(t, at, &next) & UNI_N) return next;
    return skip(t, at, UNI_ALL & ~UNI_N);
}

size_t tok_scan_digits(uni_text t, size_t at) {
    size_t next;
    const uint32_t class = class_at(t, at, &next);
    return skip(t, next, class & UNI_N ? UNI_N : UNI_ALL & ~UNI_N);
}

/* ---- by name -------------------------------------------------------------------------------- */

tok_scan_fn tok_scan_gpt2(void) { return scan_gpt2; }

/* How files spell the parts. Possessive quantifiers and \s*[\r\n] for \s*[\r\n]+ change nothing:
 * what they would give back cannot match what follows, and \s* ends at the run's last CR or LF. */
#define SPACES "|\\s+(?!\\S)|\\s+"
#define LINES_SPACES "|\\s*[\\r\\n]+" SPACES
#define GPT2_TAIL "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+" SPACES
#define SHORT "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define CL100K(digits)                                                                             \
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" LINES_SPACES
#define BEFORE "[^\\r\\n\\p{L}\\p{N}]?"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(short, digits)                                                                       \
    BEFORE UPPER "*" LOWER "+" short "|" BEFORE UPPER "+" LOWER "*" short "|" digits               \
                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" LINES_SPACES

tok_scan_fn tok_scan_find(uni_text regex) {
    static const struct {
        const char *regex;
        tok_scan_fn scan;
    } known[] = {
        {"'s|'t|'re|'ve|'m|'ll|'d" GPT2_TAIL, scan_gpt2},
        {"'(?:[sdmt]|ll|ve|re)" GPT2_TAIL, scan_gpt2},
        {SHORT CL100K("\\p{N}{1,3}"), scan_llama3},
        {"'(?i:[sdmt]|ll|ve|re)" CL100K("\\p{N}{1,3}"), scan_llama3},
        {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}|"
         " ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]" SPACES,
         scan_llama3},
        {SHORT CL100K("\\p{N}"), scan_qwen2},
        {CASED("", "\\p{N}"), scan_nemo},
        {CASED(SHORT "?", "\\p{N}{1,3}"), scan_o200k},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].regex) == regex.len &&
            memcmp(known[i].regex, regex.data, regex.len) == 0)
            return known[i].scan;
    return NULL;
}
