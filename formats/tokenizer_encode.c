/* Text to ids, depth first: every piece goes through the remaining steps before the next is cut. */
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

/* ---- literals and normalizers --------------------------------------------------------------- */

size_t tok_find(uni_text s, uni_text pattern, size_t from) {
    while (s.len - from >= pattern.len) {
        const char *at = memchr(s.data + from, pattern.data[0], s.len - from - pattern.len + 1);
        if (!at) break;
        from = (size_t)(at - s.data);
        if (memcmp(at, pattern.data, pattern.len) == 0) return from;
        from++;
    }
    return s.len;
}

fp8_status tok_append_replaced(uni_buf *out, uni_text s, uni_text pattern, uni_text content) {
    fp8_status st = FP8_OK;
    for (size_t at = 0, found; at < s.len; at = found + pattern.len) {
        found = tok_find(s, pattern, at);
        FP8_TRY(uni_buf_append(out, s.data + at, found - at));
        if (found == s.len) break;
        FP8_TRY(uni_buf_append(out, content.data, content.len));
    }
done:
    return st;
}

static fp8_status normalize_step(uni_buf *out, const tok_norm *step, uni_text s) {
    fp8_status st = FP8_OK;
    switch (step->kind) {
    case TOK_NORM_NFC: st = uni_append_nfc(out, s.data, s.len); break;
    case TOK_NORM_REPLACE: st = tok_append_replaced(out, s, step->pattern, step->content); break;
    case TOK_NORM_PREPEND:
        if (s.len) st = uni_buf_append(out, step->content.data, step->content.len);
        if (st == FP8_OK) st = uni_buf_append(out, s.data, s.len);
        break;
    }
    return st;
}

fp8_status tok_normalize(const fp8_tokenizer *t, uni_buf *out, uni_buf *spare, uni_text s) {
    fp8_status st = FP8_OK;

    for (int i = 0; i < t->num_norm; i++) {
        const uni_buf swap = *out;
        *out = *spare;
        *spare = swap; /* s may lie in what is now spare */
        out->len = 0;
        FP8_TRY(normalize_step(out, &t->norm[i], s));
        s = (uni_text){out->data, out->len};
    }
done:
    return st;
}

/* ---- pre-tokenizer steps -------------------------------------------------------------------- */

typedef struct encoder {
    const fp8_tokenizer *t;
    fp8_ids *ids;
    tok_bpe bpe;
    uni_buf normalized, spare;
    uni_buf of_step[TOK_MAX_STEPS]; /* the text a step has made */
} encoder;

static fp8_status take_piece(encoder *e, int step, uni_text s, int first);

static fp8_status cut_by_scan(encoder *e, int step, uni_text s, int first) {
    const tok_scan_fn scan = e->t->pre[step].scan;
    fp8_status st = FP8_OK;
    for (size_t at = 0, end; at < s.len; at = end) {
        end = scan(s, at);
        FP8_TRY(take_piece(e, step + 1, (uni_text){s.data + at, end - at}, first && at == 0));
    }
done:
    return st;
}

static fp8_status cut_at_literal(encoder *e, int step, uni_text s, int first) {
    const tok_pre *p = &e->t->pre[step];
    size_t begin = 0;
    fp8_status st = FP8_OK;

    for (size_t from = 0, found; (found = tok_find(s, p->literal, from)) < s.len;) {
        const size_t after = found + p->literal.len;
        if (p->cut & TOK_CUT_BEFORE) {
            FP8_TRY(take_piece(e, step + 1, (uni_text){s.data + begin, found - begin},
                               first && begin == 0));
            begin = p->cut & TOK_CUT_DROP ? after : found;
        }
        if ((p->cut & TOK_CUT_AFTER) && begin < after) {
            FP8_TRY(take_piece(e, step + 1, (uni_text){s.data + begin, after - begin},
                               first && begin == 0));
            begin = after;
        }
        from = after;
    }
    FP8_TRY(take_piece(e, step + 1, (uni_text){s.data + begin, s.len - begin},
                       first && begin == 0));
done:
    return st;
}

static int begins_with(uni_text s, uni_text start) {
    return s.len >= start.len && memcmp(s.data, start.data, start.len) == 0;
}

/* The steps that write the piece anew. */
static fp8_status rewrite(uni_buf *out, const tok_pre *p, uni_text s, int first) {
    const uni_text space = {" ", 1};
    fp8_status st = FP8_OK;
    int prepend;

    switch (p->kind) {
    case TOK_PRE_PREFIX_SPACE:
        if (!begins_with(s, space)) FP8_TRY(uni_buf_append(out, " ", 1));
        FP8_TRY(uni_buf_append(out, s.data, s.len));
        break;
    case TOK_PRE_METASPACE:
        prepend = p->prepend == TOK_PREPEND_ALWAYS || (p->prepend == TOK_PREPEND_FIRST && first);
        if (prepend && !begins_with(s, space) && !begins_with(s, p->literal))
            FP8_TRY(uni_buf_append(out, p->literal.data, p->literal.len));
        FP8_TRY(tok_append_replaced(out, s, space, p->literal));
        break;
    default: /* TOK_PRE_BYTES: two bytes at most, the alphabet ends below U+0180 */
        FP8_TRY(uni_buf_reserve(out, 2 * s.len));
        for (size_t i = 0; i < s.len; i++)
            out->len += uni_encode(tok_byte_char((unsigned char)s.data[i]), out->data + out->len);
        break;
    }
done:
    return st;
}

/* A piece at `step`: through the rest of the steps into ids. first: it begins the whole text. */
static fp8_status take_piece(encoder *e, int step, uni_text s, int first) {
    const fp8_tokenizer *t = e->t;
    uni_buf *out;
    fp8_status st = FP8_OK;

    if (s.len == 0) return FP8_OK;
    if (step == t->num_pre) return tok_bpe_word(&t->vocab, &e->bpe, e->ids, s.data, s.len);
    if (t->pre[step].kind == TOK_PRE_SCAN) return cut_by_scan(e, step, s, first);
    if (t->pre[step].kind == TOK_PRE_LITERAL) return cut_at_literal(e, step, s, first);
    out = &e->of_step[step];
    out->len = 0;
    FP8_TRY(rewrite(out, &t->pre[step], s, first));
    FP8_TRY(take_piece(e, step + 1, (uni_text){out->data, out->len}, first));
done:
    return st;
}

/* ---- added tokens --------------------------------------------------------------------------- */

typedef fp8_status (*segment_fn)(encoder *e, uni_text s, int first);

/* Added tokens become their ids, what is between them goes to `rest`. */
static fp8_status cut_added(encoder *e, const tok_matcher *m, uni_text s, int first,
                            segment_fn rest) {
    const tok_added *found;
    size_t done_to = 0, at = 0, begin = 0, end = 0;
    fp8_status st = FP8_OK;

    while ((found = tok_matcher_next(m, s, at, done_to, &begin, &end, &at))) {
        if (done_to < begin)
            FP8_TRY(rest(e, (uni_text){s.data + done_to, begin - done_to}, first && done_to == 0));
        FP8_TRY(fp8_ids_push(e->ids, found->id));
        done_to = end;
    }
    if (done_to < s.len)
        FP8_TRY(rest(e, (uni_text){s.data + done_to, s.len - done_to}, first && done_to == 0));
done:
    return st;
}

static fp8_status pre_tokenize(encoder *e, uni_text s, int first) {
    return take_piece(e, 0, s, first);
}

static fp8_status normalize(encoder *e, uni_text s, int first) {
    if (e->t->num_norm) {
        const fp8_status st = tok_normalize(e->t, &e->normalized, &e->spare, s);
        if (st != FP8_OK) return st;
        s = (uni_text){e->normalized.data, e->normalized.len};
    }
    return cut_added(e, &e->t->normalized, s, first, pre_tokenize);
}

fp8_status fp8_tokenizer_encode(const fp8_tokenizer *t, fp8_ids *ids, const char *text, size_t len,
                                fp8_special special) {
    const int64_t count = ids->count;
    const size_t good = fp8_utf8_prefix(text, len);
    encoder e = {.t = t, .ids = ids};
    fp8_status st = FP8_OK;

    if (good < len)
        FP8_TRY(FP8_FAIL(FP8_EDATA, "text is not UTF-8 at byte %zu (0x%02x)", good,
                         (unsigned char)text[good]));
    if (special == FP8_SPECIAL_ADD) FP8_TRY(fp8_ids_append(ids, t->prefix.data, t->prefix.count));
    FP8_TRY(cut_added(&e, &t->plain, (uni_text){text, len}, 1, normalize));
    if (special == FP8_SPECIAL_ADD) FP8_TRY(fp8_ids_append(ids, t->suffix.data, t->suffix.count));
done:
    tok_bpe_free(&e.bpe);
    uni_buf_free(&e.normalized);
    uni_buf_free(&e.spare);
    for (int i = 0; i < TOK_MAX_STEPS; i++) uni_buf_free(&e.of_step[i]);
    if (st != FP8_OK) ids->count = count;
    return st;
}
