/* A part of tokenizer.json as it is written: keys come in any order, and "type", which says what
 * the others mean, may come last. So every field a part can have is read first, by one table. */
#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer_impl.h"

static fp8_status copy_text(uni_text *out, fp8_arena *a, const fp8_json_event *e) {
    out->data = fp8_arena_copy(a, e->text, e->len);
    out->len = e->len;
    return out->data ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "tokenizer.json: a string");
}

static fp8_status read_text(uni_text *out, fp8_json *j, fp8_arena *a, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_expect(j, FP8_JSON_STRING, what, &e);
    return st == FP8_OK ? copy_text(out, a, &e) : st;
}

/* ---- templates ------------------------------------------------------------------------------ */

/* {"Sequence" | "SpecialToken": {"id": "A", "type_id": 0}} */
static fp8_status read_piece(tok_piece *p, fp8_json *j, fp8_arena *a) {
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_key(j, &e));
    p->is_sequence = fp8_json_is(&e, "Sequence");
    if (!p->is_sequence && !fp8_json_is(&e, "SpecialToken"))
        FP8_TRY(fp8_json_fail(j, e.begin, "a template's piece: expected Sequence or SpecialToken"));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "a template's piece", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_json_is(&e, "id")) {
            FP8_TRY(read_text(&p->id, j, a, "id of a template's piece"));
            continue;
        }
        FP8_TRY(fp8_json_next(j, &e));
        FP8_TRY(fp8_json_skip(j, &e, NULL));
    }
    if (!p->id.data) FP8_TRY(fp8_json_fail(j, e.begin, "a template's piece has no id"));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT_END, "a template's piece", &e));
done:
    return st;
}

static fp8_status read_single(tok_spec *spec, fp8_json *j, fp8_arena *a) {
    tok_piece **end = &spec->single;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(j, FP8_JSON_ARRAY, "single", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_OBJECT)
            FP8_TRY(fp8_json_fail(j, e.begin, "single: expected an object, found %s",
                                  fp8_json_type_name(e.type)));
        *end = fp8_arena_alloc(a, sizeof **end);
        if (!*end) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "a template"));
        FP8_TRY(read_piece(*end, j, a));
        end = &(*end)->next;
    }
done:
    return st;
}

/* [1, 2] into an arena's copy. */
static fp8_status read_ids(fp8_ids *out, fp8_json *j, fp8_arena *a) {
    fp8_ids ids = {0};
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(j, FP8_JSON_ARRAY, "ids of a special token", &e));
    for (;;) {
        FP8_TRY(fp8_json_next(j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_INT || e.i64 < 0 || e.i64 >= TOK_MAX_IDS)
            FP8_TRY(fp8_json_fail(j, e.begin, "ids of a special token: expected 0 to %d",
                                  TOK_MAX_IDS - 1));
        FP8_TRY(fp8_ids_push(&ids, (int32_t)e.i64));
    }
    out->data = fp8_arena_alloc(a, (size_t)ids.count * sizeof *ids.data);
    if (!out->data) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "a special token"));
    if (ids.count) memcpy(out->data, ids.data, (size_t)ids.count * sizeof *ids.data);
    out->count = out->cap = ids.count;
done:
    fp8_ids_free(&ids);
    return st;
}

/* {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, ...} */
static fp8_status read_specials(tok_spec *spec, fp8_json *j, fp8_arena *a) {
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "special_tokens", &e));
    for (;;) {
        tok_special *s = fp8_arena_alloc(a, sizeof *s);
        if (!s) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "a special token"));
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(copy_text(&s->id, a, &e));
        FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "a special token", &e));
        for (;;) {
            FP8_TRY(fp8_json_key(j, &e));
            if (e.type == FP8_JSON_OBJECT_END) break;
            if (fp8_json_is(&e, "ids")) {
                FP8_TRY(read_ids(&s->ids, j, a));
                continue;
            }
            FP8_TRY(fp8_json_next(j, &e));
            FP8_TRY(fp8_json_skip(j, &e, NULL));
        }
        s->next = spec->specials;
        spec->specials = s;
    }
done:
    return st;
}

/* ---- any part ------------------------------------------------------------------------------- */

typedef enum field_kind { TEXT, INTEGER, PATTERN, PARTS, SINGLE, SPECIALS } field_kind;
static const struct {
    const char *key;
    field_kind kind;
    size_t offset; /* TEXT, INTEGER: in tok_spec */
} fields[] = {{"type", TEXT, offsetof(tok_spec, type)},
              {"pattern", PATTERN, 0},
              {"content", TEXT, offsetof(tok_spec, content)},
              {"prepend", TEXT, offsetof(tok_spec, prepend)},
              {"replacement", TEXT, offsetof(tok_spec, replacement)},
              {"prepend_scheme", TEXT, offsetof(tok_spec, prepend_scheme)},
              {"behavior", TEXT, offsetof(tok_spec, behavior)},
              {"add_prefix_space", INTEGER, offsetof(tok_spec, add_prefix_space)},
              {"use_regex", INTEGER, offsetof(tok_spec, use_regex)},
              {"split", INTEGER, offsetof(tok_spec, split)},
              {"invert", INTEGER, offsetof(tok_spec, invert)},
              {"individual_digits", INTEGER, offsetof(tok_spec, individual_digits)},
              {"start", INTEGER, offsetof(tok_spec, start)},
              {"stop", INTEGER, offsetof(tok_spec, stop)},
              {"normalizers", PARTS, 0},
              {"pretokenizers", PARTS, 0},
              {"decoders", PARTS, 0},
              {"processors", PARTS, 0},
              {"single", SINGLE, 0},
              {"special_tokens", SPECIALS, 0}};
enum { NUM_FIELDS = sizeof fields / sizeof *fields };

/* {"String": " "} or {"Regex": "\\s"} */
static fp8_status read_pattern(tok_spec *spec, fp8_json *j, fp8_arena *a) {
    fp8_json_event e;
    int is_regex;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT, "pattern", &e));
    FP8_TRY(fp8_json_key(j, &e));
    is_regex = fp8_json_is(&e, "Regex");
    if (!is_regex && !fp8_json_is(&e, "String"))
        FP8_TRY(fp8_json_fail(j, e.begin, "pattern: expected String or Regex"));
    FP8_TRY(read_text(is_regex ? &spec->regex : &spec->string, j, a, "pattern"));
    FP8_TRY(fp8_json_expect(j, FP8_JSON_OBJECT_END, "pattern", &e));
done:
    return st;
}

/* A flag, or a count. */
static fp8_status read_integer(int64_t *out, fp8_json *j, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    if (st != FP8_OK) return st;
    switch (e.type) {
    case FP8_JSON_NULL: *out = -1; return FP8_OK;
    case FP8_JSON_TRUE: *out = 1; return FP8_OK;
    case FP8_JSON_FALSE: *out = 0; return FP8_OK;
    case FP8_JSON_INT:
        *out = e.i64;
        if (e.i64 >= 0) return FP8_OK;
        break;
    default: break;
    }
    return fp8_json_fail(j, e.begin, "%s: expected true, false or a count, found %s", what,
                         fp8_json_type_name(e.type));
}

static fp8_status read_optional_text(uni_text *out, fp8_json *j, fp8_arena *a, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    if (st != FP8_OK || e.type == FP8_JSON_NULL) return st;
    if (e.type == FP8_JSON_STRING) return copy_text(out, a, &e);
    return fp8_json_fail(j, e.begin, "%s: expected string, found %s", what,
                         fp8_json_type_name(e.type));
}

static fp8_status read_object(tok_spec **out, fp8_json *j, fp8_arena *a);

static fp8_status read_parts(tok_spec *spec, fp8_json *j, fp8_arena *a, const char *what) {
    tok_spec **end = &spec->parts;
    fp8_json_event e;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_json_expect(j, FP8_JSON_ARRAY, what, &e));
    for (;;) {
        FP8_TRY(fp8_json_next(j, &e));
        if (e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_OBJECT)
            FP8_TRY(fp8_json_fail(j, e.begin, "%s: expected an object, found %s", what,
                                  fp8_json_type_name(e.type)));
        FP8_TRY(read_object(end, j, a));
        end = &(*end)->next;
    }
done:
    return st;
}

static fp8_status read_field(tok_spec *spec, size_t i, fp8_json *j, fp8_arena *a) {
    char *const at = (char *)spec + fields[i].offset;
    switch (fields[i].kind) {
    case TEXT: return read_optional_text((uni_text *)at, j, a, fields[i].key);
    case INTEGER: return read_integer((int64_t *)at, j, fields[i].key);
    case PATTERN: return read_pattern(spec, j, a);
    case PARTS: return read_parts(spec, j, a, fields[i].key);
    case SINGLE: return read_single(spec, j, a);
    case SPECIALS: return read_specials(spec, j, a);
    }
    return FP8_OK;
}

/* After the object's opening brace. */
static fp8_status read_object(tok_spec **out, fp8_json *j, fp8_arena *a) {
    tok_spec *spec = fp8_arena_alloc(a, sizeof *spec);
    fp8_json_event e;
    size_t i;
    fp8_status st = FP8_OK;

    if (!spec) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "tokenizer.json: an object"));
    spec->add_prefix_space = spec->use_regex = spec->split = spec->invert = -1;
    spec->individual_digits = spec->start = spec->stop = -1;
    for (;;) {
        FP8_TRY(fp8_json_key(j, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        for (i = 0; i < NUM_FIELDS && !fp8_json_is(&e, fields[i].key);) i++;
        if (i < NUM_FIELDS) {
            FP8_TRY(read_field(spec, i, j, a));
        } else {
            FP8_TRY(fp8_json_next(j, &e));
            FP8_TRY(fp8_json_skip(j, &e, NULL));
        }
    }
    *out = spec;
done:
    return st;
}

fp8_status tok_spec_read(tok_spec **out, fp8_json *j, fp8_arena *a, const char *what) {
    fp8_json_event e;
    const fp8_status st = fp8_json_next(j, &e);

    *out = NULL;
    if (st != FP8_OK || e.type == FP8_JSON_NULL) return st;
    if (e.type == FP8_JSON_OBJECT) return read_object(out, j, a);
    return fp8_json_fail(j, e.begin, "%s: expected object or null, found %s", what,
                         fp8_json_type_name(e.type));
}
