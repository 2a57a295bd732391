/* tokenizer.json: read whole in any order of keys, then put together in the order that its parts
 * need one another: vocabulary, merges, normalizer, added tokens, the rest. */
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "formats/file.h"
#include "formats/tokenizer_impl.h"

/* What the file says, before it is put together. Texts lie in the tokenizer's arena. */
typedef struct draft {
    fp8_tokenizer *t;
    fp8_json *j;
    tok_entry *entries;
    int64_t num_entries, cap_entries;
    tok_rule *rules;
    int64_t num_rules, cap_rules;
    int64_t cap_added;
    int has_model, has_vocab, has_merges;
    uni_text model_type, unk;
    tok_spec *normalizer, *pre_tokenizer, *post_processor, *decoder;
} draft;

/* Room for one more element of a growing array of elements of `bytes`. */
static fp8_status grow(void *array, int64_t count, int64_t *cap, size_t bytes) {
    void **const p = array;
    const int64_t more = *cap ? 2 * *cap : 1024;
    void *data;

    if (count < *cap) return FP8_OK;
    data = realloc(*p, (size_t)more * bytes);
    if (!data) return FP8_FAIL(FP8_ENOMEM, "tokenizer.json: %lld elements", (long long)more);
    *p = data;
    *cap = more;
    return FP8_OK;
}

static fp8_status keep_text(draft *d, uni_text *out, const char *text, size_t len) {
    out->data = fp8_arena_copy(&d->t->arena, text, len);
    out->len = len;
    return out->data ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%s: a token", d->t->name);
}

/* The value that comes now, whatever it is. */
static fp8_status skip_value(fp8_json *j) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);
    return st == FP8_OK ? fp8_json_skip(j, &e, NULL) : st;
}

/* ---- model ---------------------------------------------------------------------------------- */

/* {"token": id, ...}; another model's vocabulary, an array, is passed over: its type refuses it. */
static fp8_status read_vocab(draft *d) {
    fp8_json *j = d->j;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    d->has_vocab = 1;
    FP8_TRY(fp8_json_next(j, &e));
    if (e.type != FP8_JSON_OBJECT) return fp8_json_skip(j, &e, NULL);
    for (;;) {
        tok_entry *entry;
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(grow(&d->entries, d->num_entries, &d->cap_entries, sizeof *d->entries));
        entry = &d->entries[d->num_entries];
        FP8_TRY(keep_text(d, &entry->text, e.text, e.len));
        FP8_TRY(fp8_json_next(j, &e));
        if (e.type != FP8_JSON_INT || e.i64 < 0 || e.i64 >= TOK_MAX_IDS)
            FP8_TRY(fp8_json_fail(j, e.begin, "id of '%s': expected an integer from 0 to %d",
                                  tok_show(entry->text).text, TOK_MAX_IDS - 1));
        entry->id = (int32_t)e.i64;
        d->num_entries++;
    }
done:
    return st;
}

/* "a b" */
static fp8_status read_string_rule(draft *d, const fp8_json_event *e, tok_rule *rule) {
    const char *space = memchr(e->text, ' ', e->len);
    const size_t at = space ? (size_t)(space - e->text) : 0;
    uni_text whole;
    fp8_status st = FP8_OK;

    if (!space || memchr(space + 1, ' ', e->len - at - 1))
        FP8_TRY(fp8_json_fail(d->j, e->begin, "merges[%lld]: expected two tokens with one space "
                              "between them", (long long)d->num_rules));
    FP8_TRY(keep_text(d, &whole, e->text, e->len));
    rule->a = (uni_text){whole.data, at};
    rule->b = (uni_text){whole.data + at + 1, whole.len - at - 1};
done:
    return st;
}

/* ["a", "b"], after its bracket */
static fp8_status read_pair_rule(draft *d, tok_rule *rule) {
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_STRING, "a pair of merges", &e));
    FP8_TRY(keep_text(d, &rule->a, e.text, e.len));
    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_STRING, "a pair of merges", &e));
    FP8_TRY(keep_text(d, &rule->b, e.text, e.len));
    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_ARRAY_END, "a pair of merges", &e));
done:
    return st;
}

static fp8_status read_merges(draft *d) {
    static const char header[] = "#version";
    fp8_json_event e;
    fp8_status st = FP8_OK;

    d->has_merges = 1;
    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_ARRAY, "merges", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(d->j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        FP8_TRY(grow(&d->rules, d->num_rules, &d->cap_rules, sizeof *d->rules));
        if (e.type == FP8_JSON_STRING) {
            if (e.len >= sizeof header - 1 && memcmp(e.text, header, sizeof header - 1) == 0)
                continue; /* the first line of a merges.txt that was taken over */
            FP8_TRY(read_string_rule(d, &e, &d->rules[d->num_rules]));
        } else if (e.type == FP8_JSON_ARRAY) {
            FP8_TRY(read_pair_rule(d, &d->rules[d->num_rules]));
        } else {
            FP8_TRY(fp8_json_fail(d->j, e.begin, "merges[%lld]: expected string or pair, found %s",
                                  (long long)d->num_rules, fp8_json_type_name(e.type)));
        }
        if (++d->num_rules > TOK_MAX_IDS)
            FP8_TRY(fp8_json_fail(d->j, e.begin, "merges: more than %d", TOK_MAX_IDS));
    }
done:
    return st;
}

/* null or a string into *out (data NULL: null). */
static fp8_status read_text_or_null(draft *d, const char *what, uni_text *out) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(d->j, &e);

    if (st != FP8_OK || e.type == FP8_JSON_NULL) return st;
    if (e.type == FP8_JSON_STRING) return keep_text(d, out, e.text, e.len);
    return fp8_json_fail(d->j, e.begin, "%s: expected string or null, found %s", what,
                         fp8_json_type_name(e.type));
}

static fp8_status read_flag_or_null(draft *d, const char *what, int *out) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(d->j, &e);

    if (st != FP8_OK) return st;
    *out = e.type == FP8_JSON_TRUE;
    if (e.type == FP8_JSON_TRUE || e.type == FP8_JSON_FALSE || e.type == FP8_JSON_NULL)
        return FP8_OK;
    return fp8_json_fail(d->j, e.begin, "%s: expected true, false or null, found %s", what,
                         fp8_json_type_name(e.type));
}

/* Features of BPE we do not have: they must be null, "" or 0. */
static fp8_status read_unused(draft *d, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(d->j, &e);

    if (st != FP8_OK || e.type == FP8_JSON_NULL) return st;
    if (e.type == FP8_JSON_STRING && e.len == 0) return FP8_OK;
    if ((e.type == FP8_JSON_INT || e.type == FP8_JSON_REAL) && e.f64 == 0) return FP8_OK;
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: model.%s is not supported", d->t->name, what);
}

static fp8_status read_model_field(draft *d, const fp8_json_event *key) {
    static const char *const unused[] = {"dropout", "continuing_subword_prefix",
                                         "end_of_word_suffix"};
    tok_vocab *v = &d->t->vocab;

    if (fp8_json_is(key, "type")) return read_text_or_null(d, "model.type", &d->model_type);
    if (fp8_json_is(key, "vocab")) return read_vocab(d);
    if (fp8_json_is(key, "merges")) return read_merges(d);
    if (fp8_json_is(key, "unk_token")) return read_text_or_null(d, "model.unk_token", &d->unk);
    if (fp8_json_is(key, "fuse_unk")) return read_flag_or_null(d, "model.fuse_unk", &v->fuse_unk);
    if (fp8_json_is(key, "byte_fallback"))
        return read_flag_or_null(d, "model.byte_fallback", &v->byte_fallback);
    if (fp8_json_is(key, "ignore_merges"))
        return read_flag_or_null(d, "model.ignore_merges", &v->ignore_merges);
    for (size_t i = 0; i < sizeof unused / sizeof *unused; i++)
        if (fp8_json_is(key, unused[i])) return read_unused(d, unused[i]);
    return skip_value(d->j);
}

static fp8_status read_model(draft *d) {
    fp8_json_event e;
    fp8_status st = FP8_OK;

    d->has_model = 1;
    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_OBJECT, "model", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(d->j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(read_model_field(d, &e));
    }
done:
    return st;
}

/* ---- added tokens --------------------------------------------------------------------------- */

static fp8_status read_added_token(draft *d, tok_added *added) {
    const struct {
        const char *key;
        int *flag;
    } flags[] = {{"single_word", &added->single_word}, {"lstrip", &added->lstrip},
                 {"rstrip", &added->rstrip},           {"normalized", &added->normalized},
                 {"special", &added->special}};
    const size_t num_flags = sizeof flags / sizeof *flags;
    int64_t id = -1;
    size_t i;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    *added = (tok_added){.id = -1};
    for (;;) {
        FP8_TRY(fp8_json_key(d->j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        for (i = 0; i < num_flags && !fp8_json_is(&e, flags[i].key);) i++;
        if (i < num_flags) {
            FP8_TRY(fp8_json_get_bool(d->j, flags[i].key, flags[i].flag));
        } else if (fp8_json_is(&e, "id")) {
            FP8_TRY(fp8_json_get_int(d->j, "added_tokens: id", 0, TOK_MAX_IDS - 1, &id));
        } else if (fp8_json_is(&e, "content")) {
            FP8_TRY(read_text_or_null(d, "added_tokens: content", &added->pattern));
        } else {
            FP8_TRY(skip_value(d->j));
        }
    }
    if (id < 0 || !added->pattern.data)
        FP8_TRY(fp8_json_fail(d->j, e.begin, "added_tokens[%d]: %s is missing", d->t->num_added,
                              id < 0 ? "id" : "content"));
    added->id = (int32_t)id;
done:
    return st;
}

static fp8_status read_added(draft *d) {
    fp8_tokenizer *t = d->t;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_next(d->j, &e));
    if (e.type == FP8_JSON_NULL) return FP8_OK;
    if (e.type != FP8_JSON_ARRAY)
        FP8_TRY(fp8_json_fail(d->j, e.begin, "added_tokens: expected array, found %s",
                              fp8_json_type_name(e.type)));
    for (;;) {
        FP8_TRY(fp8_json_next(d->j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_OBJECT)
            FP8_TRY(fp8_json_fail(d->j, e.begin, "added_tokens[%d]: expected object, found %s",
                                  t->num_added, fp8_json_type_name(e.type)));
        if (t->num_added == TOK_MAX_IDS)
            FP8_TRY(fp8_json_fail(d->j, e.begin, "added_tokens: more than %d", TOK_MAX_IDS));
        FP8_TRY(grow(&t->added, t->num_added, &d->cap_added, sizeof *t->added));
        FP8_TRY(read_added_token(d, &t->added[t->num_added]));
        if (t->added[t->num_added].pattern.len) t->num_added++; /* an empty one matches nothing */
    }
done:
    return st;
}

/* Gives an added token its place among the ids: the model's own, or one that is free. */
static fp8_status place_added(fp8_tokenizer *t, int32_t i) {
    const tok_added *added = &t->added[i];
    const int32_t id = tok_vocab_find(&t->vocab, added->pattern.data, added->pattern.len);
    tok_token *token;
    fp8_status st = FP8_OK;

    if (id >= 0 && id != added->id)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: added_tokens: '%s' has id %d, but %d in model.vocab",
                         t->name, tok_show(added->pattern).text, added->id, id));
    FP8_TRY(tok_vocab_grow(&t->vocab, (int64_t)added->id + 1));
    token = &t->vocab.tokens[added->id];
    if (token->added >= 0 || (id < 0 && token->text))
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: added_tokens: id %d of '%s' is '%s' already", t->name,
                         added->id, tok_show(added->pattern).text,
                         tok_show((uni_text){token->text, token->len}).text));
    token->text = added->pattern.data;
    token->len = (uint32_t)added->pattern.len;
    token->added = i;
done:
    return st;
}

/* The pattern of a `normalized` token is searched for in normalized text, so it is normalized too.
 * It is also what decoding starts from, for the decoder undoes what the normalizer did. */
static fp8_status normalize_added(draft *d, tok_added *added) {
    uni_buf out = {0}, spare = {0};
    fp8_status st = FP8_OK;

    FP8_TRY(tok_normalize(d->t, &out, &spare, added->pattern));
    FP8_TRY(keep_text(d, &added->pattern, out.data, out.len));
done:
    uni_buf_free(&out);
    uni_buf_free(&spare);
    return st;
}

static fp8_status build_added(draft *d) {
    fp8_tokenizer *t = d->t;
    int64_t size = 0;
    fp8_status st = FP8_OK;

    for (int32_t i = 0; i < t->num_added; i++)
        if (t->added[i].id >= size) size = (int64_t)t->added[i].id + 1;
    FP8_TRY(tok_vocab_grow(&t->vocab, size));
    for (int32_t i = 0; i < t->num_added; i++) {
        FP8_TRY(place_added(t, i));
        if (t->added[i].normalized && t->num_norm) FP8_TRY(normalize_added(d, &t->added[i]));
    }
    FP8_TRY(tok_matcher_build(&t->plain, t->name, t->added, t->num_added, 0));
    FP8_TRY(tok_matcher_build(&t->normalized, t->name, t->added, t->num_added, 1));
done:
    return st;
}

/* ---- the whole file ------------------------------------------------------------------------- */

/* Training's limits on length: a calibration text is never cut or padded. */
static fp8_status read_ignored(draft *d, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(d->j, &e);

    if (st != FP8_OK || e.type == FP8_JSON_NULL) return st;
    fp8_log(FP8_LOG_INFO, "%s: %s is ignored", d->t->name, what);
    return fp8_json_skip(d->j, &e, NULL);
}

static fp8_status read_version(draft *d) {
    fp8_json_event e;
    const fp8_status st = fp8_json_expect(d->j, FP8_JSON_STRING, "version", &e);

    if (st != FP8_OK || fp8_json_is(&e, "1.0")) return st;
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: version '%s' (expected '1.0')", d->t->name,
                    tok_show((uni_text){e.text, e.len}).text);
}

static fp8_status read_part(draft *d, const fp8_json_event *key) {
    fp8_arena *a = &d->t->arena;

    if (fp8_json_is(key, "version")) return read_version(d);
    if (fp8_json_is(key, "truncation")) return read_ignored(d, "truncation");
    if (fp8_json_is(key, "padding")) return read_ignored(d, "padding");
    if (fp8_json_is(key, "added_tokens")) return read_added(d);
    if (fp8_json_is(key, "model")) return read_model(d);
    if (fp8_json_is(key, "normalizer"))
        return tok_spec_read(&d->normalizer, d->j, a, "normalizer");
    if (fp8_json_is(key, "pre_tokenizer"))
        return tok_spec_read(&d->pre_tokenizer, d->j, a, "pre_tokenizer");
    if (fp8_json_is(key, "post_processor"))
        return tok_spec_read(&d->post_processor, d->j, a, "post_processor");
    if (fp8_json_is(key, "decoder")) return tok_spec_read(&d->decoder, d->j, a, "decoder");
    return skip_value(d->j);
}

static fp8_status read_file(draft *d) {
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_OBJECT, "tokenizer.json", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(d->j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(read_part(d, &e));
    }
    FP8_TRY(fp8_json_expect(d->j, FP8_JSON_END, "tokenizer.json", &e));
done:
    return st;
}

static fp8_status build(draft *d) {
    static const char bpe[] = "BPE";
    fp8_tokenizer *t = d->t;
    const uni_text type = d->model_type;
    fp8_status st = FP8_OK;

    if (type.data && !(type.len == 3 && memcmp(type.data, bpe, 3) == 0))
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: model of type '%s' is not supported", t->name,
                         tok_show(type).text));
    if (!d->has_vocab || !d->has_merges)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: %s is missing", t->name,
                         !d->has_model   ? "model"
                         : !d->has_vocab ? "model.vocab"
                                         : "model.merges"));
    FP8_TRY(tok_vocab_build(&t->vocab, t->name, d->entries, d->num_entries, d->rules,
                            d->num_rules));
    t->vocab.unk = TOK_UNK_NONE;
    if (d->unk.data) {
        t->vocab.unk = tok_vocab_find(&t->vocab, d->unk.data, d->unk.len);
        if (t->vocab.unk < 0) t->vocab.unk = TOK_UNK_MISSING;
    }
    FP8_TRY(tok_add_normalizer(t, d->normalizer));
    FP8_TRY(build_added(d));
    FP8_TRY(tok_add_pre_tokenizer(t, d->pre_tokenizer));
    FP8_TRY(tok_add_post_processor(t, d->post_processor));
    FP8_TRY(tok_add_decoder(t, d->decoder));
done:
    return st;
}

fp8_status tok_load(fp8_tokenizer **out, const char *name, const char *bytes, size_t len) {
    draft d = {0};
    fp8_status st = FP8_OK;

    *out = NULL;
    d.t = calloc(1, sizeof *d.t);
    if (!d.t) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: a tokenizer", name));
    d.t->name = fp8_arena_copy(&d.t->arena, name, strlen(name));
    if (!d.t->name) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: a tokenizer", name));
    FP8_TRY(fp8_json_open(&d.j, name, bytes, len, NULL));
    FP8_TRY(read_file(&d));
    FP8_TRY(build(&d));
    *out = d.t;
    d.t = NULL;
done:
    fp8_json_close(d.j);
    free(d.entries);
    free(d.rules);
    fp8_tokenizer_close(d.t);
    return st;
}
