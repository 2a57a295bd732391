/* formats/tokenizer_impl.h - private: what a tokenizer is made of, and which file does what.
 *
 *   tokenizer.json -> tokenizer_load.c (model, added tokens) + tokenizer_spec.c (the other parts as
 *   written) -> tokenizer_steps.c (compiled to the flat lists below)
 *   text -> tokenizer_encode.c: added tokens cut out -> normalizer -> pre-tokenizer steps
 *   (tokenizer_scan.c: the known regexes) -> tokenizer_bpe.c -> ids; back: tokenizer_decode.c */
#ifndef FP8_FORMATS_TOKENIZER_IMPL_H
#define FP8_FORMATS_TOKENIZER_IMPL_H
#include "core/arena.h"
#include "formats/hash.h"
#include "formats/json.h"
#include "formats/tokenizer.h"
#include "formats/unicode.h"
#include "formats/utf8.h"

/* Ids and merge ranks are below this: they share 64-bit keys with positions. */
enum { TOK_MAX_IDS = 1 << 24 };

/* ---- model: vocabulary and merges (tokenizer_vocab.c) --------------------------------------- */

typedef struct tok_token {
    const char *text; /* NULL: no token has this id */
    uint32_t len;
    int32_t added; /* index into fp8_tokenizer.added, or -1 */
} tok_token;

typedef struct tok_slot {
    uint32_t tag; /* high half of the text's hash: tokens are rarely looked at in vain */
    int32_t id;   /* -1: empty */
} tok_slot;

/* Merging ids a and b (TOK_PAIR) makes id; the lowest rank goes first. */
typedef struct tok_merge {
    uint64_t pair;
    uint32_t rank;
    int32_t id;
} tok_merge;
#define TOK_PAIR(a, b) ((uint64_t)(uint32_t)(a) << 32 | (uint32_t)(b))
#define TOK_NO_PAIR UINT64_MAX /* an empty slot: its rank is TOK_NO_RANK */
#define TOK_NO_RANK UINT32_MAX

enum { TOK_UNK_NONE = -1, TOK_UNK_MISSING = -2 }; /* MISSING: named, but not in the vocabulary */
enum { TOK_DIRECT = 0x180 }; /* code points of the byte-level alphabet, and Latin, lie below */

typedef struct tok_vocab {
    tok_token *tokens; /* [size] by id, added ones too */
    int64_t size;
    fp8_hash_key key;
    tok_slot *slots; /* open addressing by text; the model's own tokens */
    uint32_t slot_mask;
    tok_merge *merges; /* open addressing by pair */
    int merge_shift;   /* 64 - log2(slots) */
    int32_t of_char[TOK_DIRECT]; /* id of the one-character token, or -1 */
    int32_t of_byte[256];        /* id of <0x00> .. <0xFF>, or -1 */
    int32_t unk;                 /* TOK_UNK_NONE: characters in no token are dropped */
    int fuse_unk, byte_fallback, ignore_merges;
} tok_vocab;

/* Tokens are given by growing lists as the file has them; texts must outlive the vocabulary. */
typedef struct tok_entry {
    uni_text text;
    int32_t id;
} tok_entry;
typedef struct tok_rule {
    uni_text a, b;
} tok_rule;

/* name is for messages. FP8_EFORMAT: an id of two tokens, a merge of or into an unknown token. */
FP8_NODISCARD fp8_status tok_vocab_build(tok_vocab *v, const char *name, const tok_entry *entries,
                                         int64_t num_entries, const tok_rule *rules,
                                         int64_t num_rules);
FP8_NODISCARD fp8_status tok_vocab_grow(tok_vocab *v, int64_t size); /* ids < size exist */
void tok_vocab_free(tok_vocab *v);
int32_t tok_vocab_find(const tok_vocab *v, const char *text, size_t len); /* id or -1 */

/* The slot of a pair: where it is, or where it would be. */
static inline uint64_t tok_merge_slot(const tok_vocab *v, uint64_t pair) {
    const uint64_t mask = UINT64_MAX >> v->merge_shift;
    uint64_t at = pair * UINT64_C(0x9e3779b97f4a7c15) >> v->merge_shift;
    while (v->merges[at].pair != pair && v->merges[at].pair != TOK_NO_PAIR) at = (at + 1) & mask;
    return at;
}

/* ---- BPE (tokenizer_bpe.c) ------------------------------------------------------------------ */

typedef struct tok_symbol {
    int32_t id, prev, next; /* -1: none */
    uint32_t rank;          /* of merging with next; TOK_NO_RANK: does not merge */
    int32_t merged;         /* the id that gives */
} tok_symbol;

typedef struct tok_bpe { /* scratch of one caller; {0} is empty */
    tok_symbol *symbols;
    uint64_t *heap; /* rank << 32 | position, smallest first */
    size_t cap, num_symbols, num_heap;
} tok_bpe;

FP8_NODISCARD fp8_status tok_bpe_word(const tok_vocab *v, tok_bpe *scratch, fp8_ids *ids,
                                      const char *word, size_t len);
void tok_bpe_free(tok_bpe *scratch);

/* ---- added tokens (tokenizer_added.c) ------------------------------------------------------- */

typedef struct tok_added {
    uni_text pattern; /* what is searched for: the content, normalized where `normalized` */
    int32_t id;
    int single_word, lstrip, rstrip, normalized, special;
} tok_added;

/* Patterns in byte order, to be narrowed down byte by byte. */
typedef struct tok_matcher {
    const tok_added **items;
    int32_t count;
    unsigned char begins[256]; /* some pattern begins with this byte */
} tok_matcher;

/* FP8_EFORMAT: two tokens of one pattern. items are freed by tok_matcher_free. */
FP8_NODISCARD fp8_status tok_matcher_build(tok_matcher *m, const char *name,
                                           const tok_added *added, int32_t num_added,
                                           int normalized);
void tok_matcher_free(tok_matcher *m);

/* The next token found in s from `at` on, leftmost, longest: *begin, *end = what it covers, with
 * the spaces it strips (not before `floor`); *resume = where the search goes on. NULL: none. */
const tok_added *tok_matcher_next(const tok_matcher *m, uni_text s, size_t at, size_t floor,
                                  size_t *begin, size_t *end, size_t *resume);

/* ---- steps (tokenizer_steps.c) -------------------------------------------------------------- */

typedef enum tok_norm_kind { TOK_NORM_NFC, TOK_NORM_PREPEND, TOK_NORM_REPLACE } tok_norm_kind;
typedef struct tok_norm {
    tok_norm_kind kind;
    uni_text pattern, content; /* PREPEND: content */
} tok_norm;

/* End of the piece that begins at `at` < text.len. */
typedef size_t (*tok_scan_fn)(uni_text text, size_t at);
tok_scan_fn tok_scan_gpt2(void);                /* what ByteLevel with use_regex splits by */
tok_scan_fn tok_scan_find(uni_text regex);      /* by the exact text of a Split regex, or NULL */
size_t tok_scan_one_digit(uni_text text, size_t at); /* Digits, individual_digits */
size_t tok_scan_digits(uni_text text, size_t at);    /* Digits */

typedef enum tok_pre_kind {
    TOK_PRE_SCAN,         /* cut by a scanner */
    TOK_PRE_LITERAL,      /* cut at a literal */
    TOK_PRE_PREFIX_SPACE, /* " " before a piece that does not begin with it */
    TOK_PRE_METASPACE,    /* " " -> replacement, and one in front by the scheme */
    TOK_PRE_BYTES         /* each byte -> its character of the byte-level alphabet */
} tok_pre_kind;
typedef enum tok_prepend { TOK_PREPEND_NEVER, TOK_PREPEND_FIRST, TOK_PREPEND_ALWAYS } tok_prepend;
enum { TOK_CUT_BEFORE = 1, TOK_CUT_AFTER = 2, TOK_CUT_DROP = 4 };
typedef struct tok_pre {
    tok_pre_kind kind;
    tok_scan_fn scan;
    uni_text literal; /* also METASPACE's replacement */
    int cut;          /* LITERAL: TOK_CUT_* */
    tok_prepend prepend;
} tok_pre;

typedef enum tok_dec_kind {
    TOK_DEC_BYTES,
    TOK_DEC_REPLACE,
    TOK_DEC_BYTE_FALLBACK,
    TOK_DEC_FUSE,
    TOK_DEC_STRIP,
    TOK_DEC_METASPACE
} tok_dec_kind;
typedef struct tok_dec {
    tok_dec_kind kind;
    uni_text pattern, content; /* METASPACE: pattern is the replacement */
    int64_t start, stop;       /* STRIP: so many at either end */
    tok_prepend prepend;
} tok_dec;

enum { TOK_MAX_STEPS = 16 };

struct fp8_tokenizer {
    char *name; /* path, for messages */
    fp8_arena arena;
    tok_vocab vocab;
    tok_added *added;
    int32_t num_added;
    tok_matcher plain, normalized;
    tok_norm norm[TOK_MAX_STEPS];
    int num_norm;
    tok_pre pre[TOK_MAX_STEPS];
    int num_pre;
    tok_dec dec[TOK_MAX_STEPS];
    int num_dec, has_decoder;
    fp8_ids prefix, suffix; /* what the post-processor puts around a text */
};

const tok_token *tok_token_of(const fp8_tokenizer *t, int32_t id); /* or NULL */

/* *out = s through the normalizer (out and spare are overwritten). */
FP8_NODISCARD fp8_status tok_normalize(const fp8_tokenizer *t, uni_buf *out, uni_buf *spare,
                                       uni_text s);
/* Appends s with pattern (not empty) replaced. */
FP8_NODISCARD fp8_status tok_append_replaced(uni_buf *out, uni_text s, uni_text pattern,
                                             uni_text content);
size_t tok_find(uni_text s, uni_text pattern, size_t from); /* offset, or s.len */
int32_t tok_byte_char(int byte);  /* code point of a byte in the byte-level alphabet */
int tok_char_byte(int32_t cp);    /* back, or -1 */

/* ---- parts as written (tokenizer_spec.c) ---------------------------------------------------- */

typedef struct tok_piece { /* of a template */
    struct tok_piece *next;
    uni_text id; /* special token, or "A" / "B" */
    int is_sequence;
} tok_piece;
typedef struct tok_special {
    struct tok_special *next;
    uni_text id;
    fp8_ids ids; /* allocated from the arena: data, count */
} tok_special;

/* A normalizer, pre-tokenizer, decoder or post-processor: the fields any of them has. A field that
 * is null or missing: data NULL, or -1. */
typedef struct tok_spec {
    struct tok_spec *next, *parts; /* parts: of a Sequence */
    uni_text type, string, regex;  /* pattern: {"String": ...} or {"Regex": ...} */
    uni_text content, prepend, replacement, prepend_scheme, behavior;
    int64_t add_prefix_space, use_regex, split, invert, individual_digits, start, stop;
    tok_piece *single;
    tok_special *specials;
} tok_spec;

/* Reads the value that comes now; *out = NULL for null. what: "normalizer", for messages. */
FP8_NODISCARD fp8_status tok_spec_read(tok_spec **out, fp8_json *j, fp8_arena *a,
                                       const char *what);

/* spec may be NULL. FP8_EUNSUPPORTED names what we do not implement. */
FP8_NODISCARD fp8_status tok_add_normalizer(fp8_tokenizer *t, const tok_spec *spec);
FP8_NODISCARD fp8_status tok_add_pre_tokenizer(fp8_tokenizer *t, const tok_spec *spec);
FP8_NODISCARD fp8_status tok_add_post_processor(fp8_tokenizer *t, const tok_spec *spec);
FP8_NODISCARD fp8_status tok_add_decoder(fp8_tokenizer *t, const tok_spec *spec);

/* tokenizer.json in memory; name is for messages. */
FP8_NODISCARD fp8_status tok_load(fp8_tokenizer **out, const char *name, const char *bytes,
                                  size_t len);

/* A token for a message, as a value: several fit into one call. */
typedef struct tok_shown {
    char text[FP8_SHOWN_BYTES];
} tok_shown;
tok_shown tok_show(uni_text s);
#endif
