/* The vocabulary of a BPE model: tokens by id, ids by text, merges by pair. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

tok_shown tok_show(uni_text s) {
    tok_shown shown;
    fp8_utf8_show(shown.text, s.data, s.len);
    return shown;
}

/* ---- ids by text ---------------------------------------------------------------------------- */

/* The slot of text: where it is, or where it would be with that tag. */
static tok_slot *slot_of(const tok_vocab *v, const char *text, size_t len, uint32_t *tag) {
    const uint64_t hash = fp8_hash(&v->key, text, len);
    uint32_t at = (uint32_t)hash & v->slot_mask;

    *tag = (uint32_t)(hash >> 32);
    for (; v->slots[at].id >= 0; at = (at + 1) & v->slot_mask) {
        const tok_token *t = &v->tokens[v->slots[at].id];
        if (v->slots[at].tag == *tag && t->len == len && memcmp(t->text, text, len) == 0) break;
    }
    return &v->slots[at];
}

int32_t tok_vocab_find(const tok_vocab *v, const char *text, size_t len) {
    uint32_t tag;
    return slot_of(v, text, len, &tag)->id;
}

fp8_status tok_vocab_grow(tok_vocab *v, int64_t size) {
    tok_token *tokens;
    if (size <= v->size) return FP8_OK;
    tokens = realloc(v->tokens, (size_t)size * sizeof *tokens);
    if (!tokens) return FP8_FAIL(FP8_ENOMEM, "a vocabulary of %lld ids", (long long)size);
    for (int64_t i = v->size; i < size; i++) tokens[i] = (tok_token){.added = -1};
    v->tokens = tokens;
    v->size = size;
    return FP8_OK;
}

static fp8_status place_tokens(tok_vocab *v, const char *name, const tok_entry *entries,
                               int64_t num_entries) {
    uint32_t slots = 16;
    int32_t last = -1;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < num_entries; i++)
        if (entries[i].id > last) last = entries[i].id;
    FP8_TRY(tok_vocab_grow(v, (int64_t)last + 1));
    while (slots < 2 * (uint64_t)num_entries) slots *= 2; /* at most half full */
    v->slots = malloc(slots * sizeof *v->slots);
    if (!v->slots) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "a vocabulary of %u slots", slots));
    for (uint32_t i = 0; i < slots; i++) v->slots[i] = (tok_slot){0, -1};
    v->slot_mask = slots - 1;
    v->key = fp8_hash_random_key();
    for (int64_t i = 0; i < num_entries; i++) {
        const uni_text text = entries[i].text;
        tok_token *t = &v->tokens[entries[i].id];
        tok_slot *slot;
        uint32_t tag;
        if (t->text)
            FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: model.vocab: id %d is of '%s' and of '%s'", name,
                             entries[i].id, tok_show((uni_text){t->text, t->len}).text,
                             tok_show(text).text));
        t->text = text.data;
        t->len = (uint32_t)text.len;
        slot = slot_of(v, text.data, text.len, &tag); /* empty: JSON keys come once */
        *slot = (tok_slot){tag, entries[i].id};
    }
done:
    return st;
}

/* ---- merges by pair ------------------------------------------------------------------------- */

static fp8_status find_part(int32_t *id, const tok_vocab *v, const char *name, int64_t rank,
                            uni_text part) {
    *id = tok_vocab_find(v, part.data, part.len);
    if (*id >= 0) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "%s: model.merges[%lld]: '%s' is not in the vocabulary", name,
                    (long long)rank, tok_show(part).text);
}

static fp8_status place_merges(tok_vocab *v, const char *name, const tok_rule *rules,
                               int64_t num_rules) {
    uint64_t slots = 16;
    uni_buf whole = {0};
    fp8_status st = FP8_OK;

    for (v->merge_shift = 60; slots < 2 * (uint64_t)num_rules; v->merge_shift--) slots *= 2;
    v->merges = malloc(slots * sizeof *v->merges);
    if (!v->merges) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%lld merges", (long long)num_rules));
    for (uint64_t i = 0; i < slots; i++) v->merges[i] = (tok_merge){TOK_NO_PAIR, TOK_NO_RANK, -1};
    for (int64_t i = 0; i < num_rules; i++) {
        int32_t a, b, id;
        uint64_t pair;
        FP8_TRY(find_part(&a, v, name, i, rules[i].a));
        FP8_TRY(find_part(&b, v, name, i, rules[i].b));
        whole.len = 0;
        FP8_TRY(uni_buf_append(&whole, rules[i].a.data, rules[i].a.len));
        FP8_TRY(uni_buf_append(&whole, rules[i].b.data, rules[i].b.len));
        FP8_TRY(find_part(&id, v, name, i, (uni_text){whole.data, whole.len}));
        pair = TOK_PAIR(a, b); /* listed twice: the last holds */
        v->merges[tok_merge_slot(v, pair)] = (tok_merge){pair, (uint32_t)i, id};
    }
done:
    uni_buf_free(&whole);
    return st;
}

/* ---- both ----------------------------------------------------------------------------------- */

fp8_status tok_vocab_build(tok_vocab *v, const char *name, const tok_entry *entries,
                           int64_t num_entries, const tok_rule *rules, int64_t num_rules) {
    char text[8];
    fp8_status st = FP8_OK;

    FP8_TRY(place_tokens(v, name, entries, num_entries));
    FP8_TRY(place_merges(v, name, rules, num_rules));
    for (int32_t i = 0; i < TOK_DIRECT; i++)
        v->of_char[i] = tok_vocab_find(v, text, uni_encode(i, text));
    for (int i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i & 0xff);
        v->of_byte[i] = tok_vocab_find(v, text, 6);
    }
done:
    return st;
}

void tok_vocab_free(tok_vocab *v) {
    free(v->tokens);
    free(v->slots);
    free(v->merges);
}
