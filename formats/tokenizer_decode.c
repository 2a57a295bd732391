/* Ids to text: the tokens' texts as a list of strings, which each decoder rewrites in turn. */
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

/* ---- the byte-level alphabet ---------------------------------------------------------------- */

/* Printable Latin-1 stands for itself; the 68 other bytes are U+0100 on, in their order. */
static int stands_for_itself(int c) {
    return (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xff && c != 0xad);
}

int32_t tok_byte_char(int byte) {
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100 + byte;
    return byte == 0xad ? 0x143 : 0x121 + (byte - 0x7f);
}

int tok_char_byte(int32_t cp) {
    if (cp < 0x100) return stands_for_itself(cp) ? cp : -1;
    if (cp <= 0x120) return cp - 0x100;
    if (cp < 0x143) return cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}

/* ---- lists of strings ----------------------------------------------------------------------- */

typedef struct strings {
    uni_buf text;
    size_t *ends; /* string i is text[ends[i - 1] .. ends[i]) */
    size_t count, cap;
} strings;

static uni_text string_at(const strings *s, size_t i) {
    const size_t begin = i ? s->ends[i - 1] : 0;
    return (uni_text){s->text.data + begin, s->ends[i] - begin};
}

/* What was appended to text since the last end becomes a string. */
static fp8_status end_string(strings *s) {
    if (s->count == s->cap) {
        const size_t cap = s->cap ? 2 * s->cap : 64;
        size_t *ends = realloc(s->ends, cap * sizeof *ends);
        if (!ends) return FP8_FAIL(FP8_ENOMEM, "decoding %zu tokens", s->count);
        s->ends = ends;
        s->cap = cap;
    }
    s->ends[s->count++] = s->text.len;
    return FP8_OK;
}

static void free_strings(strings *s) {
    uni_buf_free(&s->text);
    free(s->ends);
}

/* ---- decoders ------------------------------------------------------------------------------- */

/* Appends the bytes a token of the byte-level alphabet stands for; any other token as it is. */
static fp8_status append_bytes(uni_buf *out, uni_text token) {
    const size_t begin = out->len;
    fp8_status st = uni_buf_reserve(out, token.len);
    if (st != FP8_OK) return st;
    for (size_t at = 0; at < token.len;) {
        const int byte = tok_char_byte(uni_next(token.data, &at));
        if (byte < 0) {
            out->len = begin;
            return uni_buf_append(out, token.data, token.len);
        }
        out->data[out->len++] = (char)byte;
    }
    return st;
}

/* ByteLevel: all tokens' bytes are one string, lossily. */
static fp8_status decode_bytes(strings *out, const strings *in) {
    uni_buf bytes = {0};
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < in->count; i++) FP8_TRY(append_bytes(&bytes, string_at(in, i)));
    FP8_TRY(uni_append_lossy(&out->text, bytes.data, bytes.len));
    FP8_TRY(end_string(out));
done:
    uni_buf_free(&bytes);
    return st;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0xNN>", or -1. */
static int fallback_byte(uni_text s) {
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>') return -1;
    if (hex_digit(s.data[3]) < 0 || hex_digit(s.data[4]) < 0) return -1;
    return hex_digit(s.data[3]) * 16 + hex_digit(s.data[4]);
}

/* ByteFallback: a run of <0xNN> is one string of these bytes, or one U+FFFD a byte where the run
 * as a whole is not UTF-8. */
static fp8_status decode_byte_fallback(strings *out, const strings *in) {
    size_t i = 0;
    fp8_status st = FP8_OK;

    while (i < in->count) {
        const size_t begin = out->text.len;
        size_t run = 0;
        for (int byte; i < in->count && (byte = fallback_byte(string_at(in, i))) >= 0; i++, run++) {
            const char c = (char)byte;
            FP8_TRY(uni_buf_append(&out->text, &c, 1));
        }
        if (run && fp8_utf8_prefix(out->text.data + begin, run) < run) {
            out->text.len = begin;
            for (; run; run--) FP8_TRY(uni_buf_append(&out->text, "\xef\xbf\xbd", 3));
        }
        if (out->text.len > begin) FP8_TRY(end_string(out));
        if (i == in->count) break;
        FP8_TRY(uni_buf_append(&out->text, string_at(in, i).data, string_at(in, i).len));
        FP8_TRY(end_string(out));
        i++;
    }
done:
    return st;
}

/* s without up to start (stop) copies of content at its beginning (end). */
static uni_text strip(uni_text s, uni_text content, int64_t start, int64_t stop) {
    for (; start > 0 && s.len >= content.len; start--) {
        if (memcmp(s.data, content.data, content.len) != 0) break;
        s.data += content.len;
        s.len -= content.len;
    }
    for (; stop > 0 && s.len >= content.len; stop--) {
        if (memcmp(s.data + s.len - content.len, content.data, content.len) != 0) break;
        s.len -= content.len;
    }
    return s;
}

/* The decoders that take one string to one string. */
static fp8_status decode_each(strings *out, const tok_dec *d, const strings *in) {
    const uni_text space = {" ", 1};
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < in->count; i++) {
        uni_text s = string_at(in, i), content = d->content;
        if (d->kind == TOK_DEC_STRIP) {
            s = strip(s, d->content, d->start, d->stop);
            FP8_TRY(uni_buf_append(&out->text, s.data, s.len));
        } else {
            if (d->kind == TOK_DEC_METASPACE) content = space;
            if (d->kind == TOK_DEC_METASPACE && i == 0 && d->prepend != TOK_PREPEND_NEVER)
                content.len = 0; /* the one that encoding has put before the text */
            FP8_TRY(tok_append_replaced(&out->text, s, d->pattern, content));
        }
        FP8_TRY(end_string(out));
    }
done:
    return st;
}

static fp8_status decode_step(strings *out, const tok_dec *d, const strings *in) {
    fp8_status st = FP8_OK;
    switch (d->kind) {
    case TOK_DEC_BYTES: return decode_bytes(out, in);
    case TOK_DEC_BYTE_FALLBACK: return decode_byte_fallback(out, in);
    case TOK_DEC_FUSE:
        st = uni_buf_append(&out->text, in->text.data, in->text.len);
        return st == FP8_OK ? end_string(out) : st;
    default: return decode_each(out, d, in);
    }
}

/* ---- decode --------------------------------------------------------------------------------- */

const tok_token *tok_token_of(const fp8_tokenizer *t, int32_t id) {
    if (id < 0 || id >= t->vocab.size || !t->vocab.tokens[id].text) return NULL;
    return &t->vocab.tokens[id];
}

static fp8_status collect_tokens(strings *out, const fp8_tokenizer *t, const int32_t *ids,
                                 int64_t count, int skip_special) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < count; i++) {
        const tok_token *token = tok_token_of(t, ids[i]);
        const tok_added *added;
        if (!token)
            FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: id %d at position %lld is not in the vocabulary",
                             t->name, ids[i], (long long)i));
        added = token->added < 0 ? NULL : &t->added[token->added];
        if (added && added->special && skip_special) continue;
        if (!t->has_decoder && out->count) FP8_TRY(uni_buf_append(&out->text, " ", 1));
        if (added) FP8_TRY(uni_buf_append(&out->text, added->pattern.data, added->pattern.len));
        else FP8_TRY(uni_buf_append(&out->text, token->text, token->len));
        FP8_TRY(end_string(out));
    }
done:
    return st;
}

fp8_status fp8_tokenizer_decode(const fp8_tokenizer *t, char **out, size_t *len,
                                const int32_t *ids, int64_t count, int skip_special) {
    strings now = {0}, next = {0};
    fp8_status st = FP8_OK;

    *out = NULL;
    *len = 0;
    FP8_TRY(uni_buf_reserve(&now.text, 1)); /* strings may all be empty: no offset of NULL */
    FP8_TRY(uni_buf_reserve(&next.text, 1));
    FP8_TRY(collect_tokens(&now, t, ids, count, skip_special));
    for (int i = 0; i < t->num_dec; i++) {
        const strings swap = now;
        FP8_TRY(decode_step(&next, &t->dec[i], &now));
        now = next;
        next = swap;
        next.text.len = next.count = 0;
    }
    FP8_TRY(uni_buf_append(&now.text, "", 1));
    *out = now.text.data;
    *len = now.text.len - 1;
    now.text = (uni_buf){0};
done:
    free_strings(&now);
    free_strings(&next);
    return st;
}
