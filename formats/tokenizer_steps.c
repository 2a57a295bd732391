/* The parts of tokenizer.json compiled into flat lists of steps, or refused by name. */
#include <string.h>

#include "formats/tokenizer_impl.h"

static int is(uni_text s, const char *text) {
    return s.data && s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static fp8_status unsupported(const fp8_tokenizer *t, const char *part, const tok_spec *spec) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %s of type '%s' is not supported", t->name, part,
                    spec->type.data ? tok_show(spec->type).text : "(none given)");
}

static fp8_status missing(const fp8_tokenizer *t, const char *part, const tok_spec *spec,
                          const char *field) {
    return FP8_FAIL(FP8_EFORMAT, "%s: %s %s: '%s' is missing or empty", t->name, part,
                    tok_show(spec->type).text, field);
}

static fp8_status too_many(const fp8_tokenizer *t, const char *part) {
    return FP8_FAIL(FP8_EUNSUPPORTED, "%s: the %s has more than %d steps", t->name, part,
                    TOK_MAX_STEPS);
}

/* {"String": ...} of Replace and Split. */
static fp8_status need_literal(const fp8_tokenizer *t, const char *part, const tok_spec *spec) {
    if (spec->regex.data)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %s %s: regex '%s' is not supported", t->name, part,
                        tok_show(spec->type).text, spec->regex.data);
    return spec->string.len ? FP8_OK : missing(t, part, spec, "pattern");
}

/* Each part of a Sequence in turn. */
typedef fp8_status (*add_fn)(fp8_tokenizer *t, const tok_spec *spec);
static fp8_status add_each(fp8_tokenizer *t, const tok_spec *spec, add_fn add) {
    fp8_status st = FP8_OK;
    for (const tok_spec *p = spec->parts; p && st == FP8_OK; p = p->next) st = add(t, p);
    return st;
}

/* ---- normalizer ----------------------------------------------------------------------------- */

fp8_status tok_add_normalizer(fp8_tokenizer *t, const tok_spec *spec) {
    static const char part[] = "normalizer";
    tok_norm *step = &t->norm[t->num_norm];
    fp8_status st = FP8_OK;

    if (!spec) return FP8_OK;
    if (is(spec->type, "Sequence")) return add_each(t, spec, tok_add_normalizer);
    if (t->num_norm == TOK_MAX_STEPS) return too_many(t, part);
    if (is(spec->type, "NFC")) {
        *step = (tok_norm){.kind = TOK_NORM_NFC};
    } else if (is(spec->type, "Prepend")) {
        if (!spec->prepend.data) FP8_TRY(missing(t, part, spec, "prepend"));
        *step = (tok_norm){.kind = TOK_NORM_PREPEND, .content = spec->prepend};
    } else if (is(spec->type, "Replace")) {
        FP8_TRY(need_literal(t, part, spec));
        if (!spec->content.data) FP8_TRY(missing(t, part, spec, "content"));
        *step = (tok_norm){TOK_NORM_REPLACE, spec->string, spec->content};
    } else {
        FP8_TRY(unsupported(t, part, spec));
    }
    t->num_norm++;
done:
    return st;
}

/* ---- pre-tokenizer -------------------------------------------------------------------------- */

static fp8_status add_step(fp8_tokenizer *t, tok_pre step) {
    if (t->num_pre == TOK_MAX_STEPS) return too_many(t, "pre_tokenizer");
    t->pre[t->num_pre++] = step;
    return FP8_OK;
}

/* How a Split's behavior cuts around a match; -1 = not one of ours. */
static int cut_of(uni_text behavior) {
    if (is(behavior, "Isolated")) return TOK_CUT_BEFORE | TOK_CUT_AFTER;
    if (is(behavior, "MergedWithPrevious")) return TOK_CUT_AFTER;
    if (is(behavior, "MergedWithNext")) return TOK_CUT_BEFORE;
    if (is(behavior, "Removed")) return TOK_CUT_BEFORE | TOK_CUT_DROP;
    return -1;
}

/* The known regexes match a text from end to end: cutting out the matches (Isolated) and dropping
 * what is between them (Removed, inverted) are the same. */
static fp8_status add_regex_split(fp8_tokenizer *t, const tok_spec *spec) {
    const tok_scan_fn scan = tok_scan_find(spec->regex);
    const int inverted = spec->invert == 1;

    if (!scan)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: pre_tokenizer Split: regex '%s' is not supported",
                        t->name, spec->regex.data);
    if (!is(spec->behavior, inverted ? "Removed" : "Isolated"))
        return FP8_FAIL(FP8_EUNSUPPORTED,
                        "%s: pre_tokenizer Split: behavior '%s', invert %d with a regex is not "
                        "supported",
                        t->name, spec->behavior.data ? tok_show(spec->behavior).text : "(none)",
                        inverted);
    return add_step(t, (tok_pre){.kind = TOK_PRE_SCAN, .scan = scan});
}

static fp8_status add_split(fp8_tokenizer *t, const tok_spec *spec) {
    const int cut = cut_of(spec->behavior);
    fp8_status st = FP8_OK;

    if (spec->regex.data) return add_regex_split(t, spec);
    FP8_TRY(need_literal(t, "pre_tokenizer", spec));
    if (cut < 0 || spec->invert == 1)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED,
                         "%s: pre_tokenizer Split: behavior '%s', invert %d is not supported",
                         t->name, spec->behavior.data ? tok_show(spec->behavior).text : "(none)",
                         spec->invert == 1));
    FP8_TRY(add_step(t, (tok_pre){.kind = TOK_PRE_LITERAL, .literal = spec->string, .cut = cut}));
done:
    return st;
}

/* Files of before prepend_scheme have add_prefix_space alone; false means never. */
static fp8_status read_scheme(tok_prepend *out, const fp8_tokenizer *t, const char *part,
                              const tok_spec *spec) {
    const uni_text s = spec->prepend_scheme;

    *out = TOK_PREPEND_ALWAYS;
    if (is(s, "first")) *out = TOK_PREPEND_FIRST;
    else if (is(s, "never")) *out = TOK_PREPEND_NEVER;
    else if (s.data && !is(s, "always"))
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: %s Metaspace: prepend_scheme '%s'", t->name, part,
                        tok_show(s).text);
    if (spec->add_prefix_space != 0) return FP8_OK;
    if (s.data && *out != TOK_PREPEND_NEVER)
        return FP8_FAIL(FP8_EFORMAT,
                        "%s: %s Metaspace: add_prefix_space is false but prepend_scheme '%s'",
                        t->name, part, tok_show(s).text);
    *out = TOK_PREPEND_NEVER;
    return FP8_OK;
}

static fp8_status add_metaspace(fp8_tokenizer *t, const tok_spec *spec) {
    tok_pre step = {.kind = TOK_PRE_METASPACE, .literal = spec->replacement};
    fp8_status st = FP8_OK;

    if (!spec->replacement.len) FP8_TRY(missing(t, "pre_tokenizer", spec, "replacement"));
    FP8_TRY(read_scheme(&step.prepend, t, "pre_tokenizer", spec));
    FP8_TRY(add_step(t, step));
    if (spec->split != 0) {
        step = (tok_pre){.kind = TOK_PRE_LITERAL, .literal = spec->replacement};
        step.cut = TOK_CUT_BEFORE;
        FP8_TRY(add_step(t, step));
    }
done:
    return st;
}

static fp8_status add_byte_level(fp8_tokenizer *t, const tok_spec *spec) {
    fp8_status st = FP8_OK;
    if (spec->add_prefix_space == 1)
        FP8_TRY(add_step(t, (tok_pre){.kind = TOK_PRE_PREFIX_SPACE}));
    if (spec->use_regex != 0)
        FP8_TRY(add_step(t, (tok_pre){.kind = TOK_PRE_SCAN, .scan = tok_scan_gpt2()}));
    FP8_TRY(add_step(t, (tok_pre){.kind = TOK_PRE_BYTES}));
done:
    return st;
}

static fp8_status add_digits(fp8_tokenizer *t, const tok_spec *spec) {
    const tok_scan_fn scan = spec->individual_digits == 1 ? tok_scan_one_digit : tok_scan_digits;
    return add_step(t, (tok_pre){.kind = TOK_PRE_SCAN, .scan = scan});
}

fp8_status tok_add_pre_tokenizer(fp8_tokenizer *t, const tok_spec *spec) {
    static const struct {
        const char *type;
        add_fn add;
    } known[] = {{"Split", add_split},
                 {"ByteLevel", add_byte_level},
                 {"Metaspace", add_metaspace},
                 {"Digits", add_digits}};

    if (!spec) return FP8_OK;
    if (is(spec->type, "Sequence")) return add_each(t, spec, tok_add_pre_tokenizer);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is(spec->type, known[i].type)) return known[i].add(t, spec);
    return unsupported(t, "pre_tokenizer", spec);
}

/* ---- post-processor ------------------------------------------------------------------------- */

static fp8_status find_special(const fp8_ids **out, const fp8_tokenizer *t, const tok_spec *spec,
                               uni_text id) {
    const tok_special *s = spec->specials;

    while (s && !(s->id.len == id.len && memcmp(s->id.data, id.data, id.len) == 0)) s = s->next;
    if (!s)
        return FP8_FAIL(FP8_EFORMAT, "%s: post_processor: '%s' is not in special_tokens", t->name,
                        tok_show(id).text);
    for (int64_t i = 0; i < s->ids.count; i++)
        if (!tok_token_of(t, s->ids.data[i]))
            return FP8_FAIL(FP8_EFORMAT, "%s: post_processor: id %d of '%s' is no token", t->name,
                            s->ids.data[i], tok_show(id).text);
    *out = &s->ids;
    return FP8_OK;
}

/* What is before the text in this template goes before what is there already, and so behind. */
static fp8_status add_template(fp8_tokenizer *t, const tok_spec *spec) {
    fp8_ids before = {0};
    const fp8_ids *ids = NULL;
    int num_texts = 0;
    fp8_status st = FP8_OK;

    for (const tok_piece *p = spec->single; p; p = p->next) {
        if (p->is_sequence) {
            if (++num_texts > 1 || !is(p->id, "A"))
                FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED,
                                 "%s: post_processor: a template for one text holds sequence '%s'",
                                 t->name, num_texts > 1 ? "twice" : tok_show(p->id).text));
            continue;
        }
        FP8_TRY(find_special(&ids, t, spec, p->id));
        FP8_TRY(fp8_ids_append(num_texts ? &t->suffix : &before, ids->data, ids->count));
    }
    if (num_texts == 0)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: post_processor: single holds no Sequence", t->name));
    FP8_TRY(fp8_ids_append(&before, t->prefix.data, t->prefix.count));
    fp8_ids_free(&t->prefix);
    t->prefix = before;
    before = (fp8_ids){0};
done:
    fp8_ids_free(&before);
    return st;
}

fp8_status tok_add_post_processor(fp8_tokenizer *t, const tok_spec *spec) {
    if (!spec || is(spec->type, "ByteLevel")) return FP8_OK; /* ByteLevel: offsets only */
    if (is(spec->type, "Sequence")) return add_each(t, spec, tok_add_post_processor);
    if (is(spec->type, "TemplateProcessing")) return add_template(t, spec);
    return unsupported(t, "post_processor", spec);
}

/* ---- decoder -------------------------------------------------------------------------------- */

fp8_status tok_add_decoder(fp8_tokenizer *t, const tok_spec *spec) {
    static const char part[] = "decoder";
    tok_dec step = {.pattern = {0}};
    fp8_status st = FP8_OK;

    if (!spec) return FP8_OK;
    t->has_decoder = 1;
    if (is(spec->type, "Sequence")) return add_each(t, spec, tok_add_decoder);
    if (t->num_dec == TOK_MAX_STEPS) return too_many(t, part);
    if (is(spec->type, "ByteLevel")) {
        step.kind = TOK_DEC_BYTES;
    } else if (is(spec->type, "ByteFallback")) {
        step.kind = TOK_DEC_BYTE_FALLBACK;
    } else if (is(spec->type, "Fuse")) {
        step.kind = TOK_DEC_FUSE;
    } else if (is(spec->type, "Replace")) {
        FP8_TRY(need_literal(t, part, spec));
        if (!spec->content.data) FP8_TRY(missing(t, part, spec, "content"));
        step = (tok_dec){TOK_DEC_REPLACE, .pattern = spec->string, .content = spec->content};
    } else if (is(spec->type, "Strip")) {
        if (!spec->content.len) FP8_TRY(missing(t, part, spec, "content"));
        step = (tok_dec){TOK_DEC_STRIP, .content = spec->content};
        step.start = spec->start;
        step.stop = spec->stop;
    } else if (is(spec->type, "Metaspace")) {
        if (!spec->replacement.len) FP8_TRY(missing(t, part, spec, "replacement"));
        step = (tok_dec){TOK_DEC_METASPACE, .pattern = spec->replacement};
        FP8_TRY(read_scheme(&step.prepend, t, part, spec));
    } else {
        FP8_TRY(unsupported(t, part, spec));
    }
    t->dec[t->num_dec++] = step;
done:
    return st;
}
