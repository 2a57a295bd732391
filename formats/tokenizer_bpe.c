/* Merging the characters of one word, lowest rank first, leftmost first among equals. A heap over
 * the pairs of a linked list: O(n log n), so that a text without any space may be one word. */
#include <stdlib.h>

#include "formats/tokenizer_impl.h"

/* ---- heap of rank << 32 | position, smallest first ------------------------------------------ */

static void sift_down(uint64_t *heap, size_t n, size_t at) {
    const uint64_t key = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

static uint64_t heap_pop(tok_bpe *b) {
    const uint64_t top = b->heap[0];
    b->heap[0] = b->heap[--b->num_heap];
    if (b->num_heap) sift_down(b->heap, b->num_heap, 0);
    return top;
}

static void heap_push(tok_bpe *b, uint64_t key) {
    size_t at = b->num_heap++;
    for (size_t parent; at && b->heap[parent = (at - 1) / 2] > key; at = parent)
        b->heap[at] = b->heap[parent];
    b->heap[at] = key;
}

/* ---- symbols -------------------------------------------------------------------------------- */

/* Room for the symbols of a word of n bytes. Every merge pushes two pairs and pops one: the heap
 * never holds more than n - 1 pairs of the beginning and one more for each of n - 1 merges. */
static fp8_status reserve(tok_bpe *b, size_t n) {
    tok_symbol *symbols;
    uint64_t *heap;

    if (n <= b->cap) return FP8_OK;
    if (n > INT32_MAX) return FP8_FAIL(FP8_EOVERFLOW, "a word of %zu bytes", n);
    if (n < 2 * b->cap) n = 2 * b->cap;
    symbols = realloc(b->symbols, n * sizeof *symbols);
    if (!symbols) return FP8_FAIL(FP8_ENOMEM, "a word of %zu bytes", n);
    b->symbols = symbols;
    heap = realloc(b->heap, 2 * n * sizeof *heap);
    if (!heap) return FP8_FAIL(FP8_ENOMEM, "a word of %zu bytes", n);
    b->heap = heap;
    b->cap = n;
    return FP8_OK;
}

static void add_symbol(tok_bpe *b, int32_t id) {
    const int32_t at = (int32_t)b->num_symbols++;
    b->symbols[at] = (tok_symbol){.id = id, .prev = at - 1, .next = at + 1, .rank = TOK_NO_RANK};
}

/* The characters of the word as symbols; a character unknown to the vocabulary becomes its bytes
 * (all or none), or the unknown token, a run of them one if fused; with neither it is dropped. */
static fp8_status fill_symbols(const tok_vocab *v, tok_bpe *b, const char *word, size_t len) {
    int unknown = 0; /* an unknown token is still to be added: only a known one brings it out */

    for (size_t at = 0, begin = 0; at < len; begin = at) {
        const int32_t cp = uni_next(word, &at);
        const int32_t id =
            cp < TOK_DIRECT ? v->of_char[cp] : tok_vocab_find(v, word + begin, at - begin);
        size_t known_bytes = 0;

        if (id >= 0) {
            if (unknown) add_symbol(b, v->unk);
            unknown = 0;
            add_symbol(b, id);
            continue;
        }
        while (v->byte_fallback && begin + known_bytes < at &&
               v->of_byte[(unsigned char)word[begin + known_bytes]] >= 0)
            known_bytes++;
        if (begin + known_bytes == at) {
            for (; begin < at; begin++) add_symbol(b, v->of_byte[(unsigned char)word[begin]]);
        } else if (v->unk >= 0) {
            if (unknown && !v->fuse_unk) add_symbol(b, v->unk);
            unknown = 1;
        } else if (v->unk == TOK_UNK_MISSING) {
            return FP8_FAIL(FP8_EDATA, "U+%04X is in no token, nor is the model's unk_token",
                            (unsigned)cp);
        }
    }
    if (unknown) add_symbol(b, v->unk);
    if (b->num_symbols) b->symbols[b->num_symbols - 1].next = -1;
    return FP8_OK;
}

/* Looks up what the symbol at `at` makes with its right neighbour. */
static void rank_pair(const tok_vocab *v, tok_symbol *symbols, int32_t at) {
    tok_symbol *s = &symbols[at];
    const tok_merge *m;

    s->rank = TOK_NO_RANK;
    if (s->next < 0) return;
    m = &v->merges[tok_merge_slot(v, TOK_PAIR(s->id, symbols[s->next].id))];
    s->rank = m->rank; /* of an empty slot: TOK_NO_RANK */
    s->merged = m->id;
}

static uint64_t heap_key(const tok_bpe *b, size_t at) {
    return (uint64_t)b->symbols[at].rank << 32 | at;
}

static void push_pair(const tok_vocab *v, tok_bpe *b, int32_t at) {
    rank_pair(v, b->symbols, at);
    if (b->symbols[at].rank != TOK_NO_RANK) heap_push(b, heap_key(b, (size_t)at));
}

static void merge_symbols(const tok_vocab *v, tok_bpe *b) {
    tok_symbol *symbols = b->symbols;

    b->num_heap = 0;
    for (size_t i = 0; i + 1 < b->num_symbols; i++) {
        rank_pair(v, symbols, (int32_t)i);
        if (symbols[i].rank != TOK_NO_RANK) b->heap[b->num_heap++] = heap_key(b, i);
    }
    for (size_t i = b->num_heap / 2; i-- > 0;) sift_down(b->heap, b->num_heap, i);
    while (b->num_heap) {
        const uint64_t top = heap_pop(b);
        tok_symbol *s = &symbols[(uint32_t)top];
        if (s->rank != (uint32_t)(top >> 32)) continue; /* a neighbour has changed since */
        tok_symbol *right = &symbols[s->next];
        s->id = s->merged;
        s->next = right->next;
        right->rank = TOK_NO_RANK;
        if (s->next >= 0) symbols[s->next].prev = (int32_t)(s - symbols);
        push_pair(v, b, (int32_t)(s - symbols));
        if (s->prev >= 0) push_pair(v, b, s->prev);
    }
}

fp8_status tok_bpe_word(const tok_vocab *v, tok_bpe *b, fp8_ids *ids, const char *word,
                        size_t len) {
    const int32_t whole = v->ignore_merges ? tok_vocab_find(v, word, len) : -1;
    fp8_status st = FP8_OK;

    if (whole >= 0) return fp8_ids_push(ids, whole);
    FP8_TRY(reserve(b, len));
    b->num_symbols = 0;
    FP8_TRY(fill_symbols(v, b, word, len));
    merge_symbols(v, b);
    for (int32_t at = b->num_symbols ? 0 : -1; at >= 0; at = b->symbols[at].next)
        FP8_TRY(fp8_ids_push(ids, b->symbols[at].id));
done:
    return st;
}

void tok_bpe_free(tok_bpe *b) {
    free(b->symbols);
    free(b->heap);
    *b = (tok_bpe){0};
}
