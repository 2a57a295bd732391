#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "core/arena.h"
#include "formats/file.h"
#include "formats/json.h"
#include "formats/names.h"
#include "formats/safetensors_impl.h"
#include "formats/utf8.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is used as it lies");

struct fp8_safetensors {
    char *path;
    fp8_file file; /* {0} when opened in memory */
    const unsigned char *data; /* after the header */
    size_t data_bytes, file_bytes;
    fp8_st_entry *entries;
    int64_t num_entries;
    fp8_st_pair *metadata;
    int64_t num_metadata;
    fp8_names names;
    fp8_arena arena; /* the strings */
};

/* A tensor as the header has it, until all are known. */
typedef struct st_item {
    fp8_st_entry entry; /* data unset */
    size_t begin;       /* from the start of the data */
} st_item;

typedef struct st_parser {
    fp8_safetensors *s;
    fp8_json *json; /* messages of the parser begin with "header: line ..." */
    st_item *items;
    size_t cap_items, cap_metadata;
} st_parser;

/* ---- one tensor's entry -------------------------------------------------------------------- */

static fp8_status read_dtype(fp8_json *json, fp8_dtype *out) {
    char shown[FP8_SHOWN_BYTES];
    fp8_json_event e;
    fp8_status st = fp8_json_expect(json, FP8_JSON_STRING, "dtype", &e);

    if (st != FP8_OK || fp8_dtype_parse(out, e.text, e.len) == FP8_OK) return st;
    return FP8_FAIL(FP8_EFORMAT, "unknown dtype '%s'", fp8_utf8_show(shown, e.text, e.len));
}

static fp8_status read_shape(fp8_json *json, fp8_tensor *t) {
    fp8_json_event e;
    fp8_status st = fp8_json_expect(json, FP8_JSON_ARRAY, "shape", &e);

    while (st == FP8_OK) {
        st = fp8_json_next(json, &e);
        if (st != FP8_OK || e.type == FP8_JSON_ARRAY_END) break;
        if (e.type != FP8_JSON_INT || e.i64 < 0)
            return fp8_json_fail(json, e.begin, "shape: expected an integer from 0 to 2^63-1");
        if (t->ndim == FP8_MAX_DIMS)
            return fp8_json_fail(json, e.begin, "shape: more than %d dimensions", FP8_MAX_DIMS);
        t->shape[t->ndim++] = e.i64;
    }
    return st;
}

static fp8_status read_offsets(fp8_json *json, int64_t *begin, int64_t *end) {
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_expect(json, FP8_JSON_ARRAY, "data_offsets", &e));
    FP8_TRY(fp8_json_get_int(json, "data_offsets[0]", 0, INT64_MAX, begin));
    FP8_TRY(fp8_json_get_int(json, "data_offsets[1]", 0, INT64_MAX, end));
    FP8_TRY(fp8_json_expect(json, FP8_JSON_ARRAY_END, "data_offsets", &e));
done:
    return st;
}

static fp8_status check_size(st_item *item, int64_t begin, int64_t end) {
    const fp8_tensor *t = &item->entry.tensor;
    char shape[256];

    if (fp8_shape_bytes(&item->entry.bytes, t->dtype, t->shape, t->ndim) != FP8_OK)
        return FP8_FAIL(FP8_EFORMAT, "%s", fp8_last_message());
    if (end < begin)
        return FP8_FAIL(FP8_EFORMAT, "data_offsets [%lld,%lld) end before they begin",
                        (long long)begin, (long long)end);
    if ((size_t)(end - begin) != item->entry.bytes)
        return FP8_FAIL(FP8_EFORMAT, "data_offsets [%lld,%lld) but %s %s needs %zu bytes",
                        (long long)begin, (long long)end, fp8_dtype_name(t->dtype),
                        fp8_shape_text(shape, sizeof shape, t->shape, t->ndim), item->entry.bytes);
    item->begin = (size_t)begin;
    return FP8_OK;
}

/* The object after a tensor's name. Keys we do not know are passed over, as the reference does. */
static fp8_status read_entry(fp8_json *json, st_item *item) {
    fp8_tensor *t = &item->entry.tensor;
    int64_t begin = 0, end = 0;
    int has_dtype = 0, has_shape = 0, has_offsets = 0;
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_expect(json, FP8_JSON_OBJECT, "a tensor", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_json_is(&e, "dtype")) {
            has_dtype = 1;
            FP8_TRY(read_dtype(json, &t->dtype));
        } else if (fp8_json_is(&e, "shape")) {
            has_shape = 1;
            FP8_TRY(read_shape(json, t));
        } else if (fp8_json_is(&e, "data_offsets")) {
            has_offsets = 1;
            FP8_TRY(read_offsets(json, &begin, &end));
        } else {
            FP8_TRY(fp8_json_next(json, &e));
            FP8_TRY(fp8_json_skip(json, &e, NULL));
        }
    }
    if (!has_dtype || !has_shape || !has_offsets)
        return FP8_FAIL(FP8_EFORMAT, "%s is missing",
                        !has_dtype ? "dtype" : !has_shape ? "shape" : "data_offsets");
    return check_size(item, begin, end);
done:
    return st;
}

fp8_status fp8_st_check_name(fp8_status fault, const char *name, size_t len) {
    char shown[FP8_SHOWN_BYTES];

    fp8_utf8_show(shown, name, len);
    if (len > FP8_ST_MAX_NAME)
        return FP8_FAIL(fault, "tensor name '%s' has %zu bytes, at most %d are allowed", shown, len,
                        FP8_ST_MAX_NAME);
    if (fp8_utf8_printable(name, len) != len)
        return FP8_FAIL(fault, "tensor name '%s' holds a control character or is not UTF-8", shown);
    return FP8_OK;
}

/* ---- the header ---------------------------------------------------------------------------- */

/* The array with room for one element more than `num`; NULL: no memory, and the old one stays. */
static void *grow(void *array, int64_t num, size_t *cap, size_t bytes) {
    const size_t want = *cap ? 2 * *cap : 64;
    void *grown;

    if ((size_t)num < *cap) return array;
    grown = realloc(array, want * bytes);
    if (grown) *cap = want;
    return grown;
}

static fp8_status read_tensor(st_parser *p, const fp8_json_event *key) {
    fp8_safetensors *s = p->s;
    st_item *items;
    char *name;
    fp8_status st = fp8_st_check_name(FP8_EFORMAT, key->text, key->len);

    if (st != FP8_OK) return st;
    name = fp8_arena_copy(&s->arena, key->text, key->len);
    items = grow(p->items, s->num_entries, &p->cap_items, sizeof *items);
    if (items) p->items = items;
    if (!items || !name) return FP8_FAIL(FP8_ENOMEM, "no memory for the tensors' names");
    items[s->num_entries] = (st_item){.entry.name = name};
    st = read_entry(p->json, &items[s->num_entries]);
    if (st != FP8_OK) return FP8_FAIL(st, "'%s': %s", name, fp8_last_message());
    s->num_entries++;
    return FP8_OK;
}

/* Metadata is handed out as C strings. */
static fp8_status copy_text(st_parser *p, const fp8_json_event *e, const char **out) {
    if (memchr(e->text, '\0', e->len))
        return fp8_json_fail(p->json, e->begin, "__metadata__ holds a NUL character");
    *out = fp8_arena_copy(&p->s->arena, e->text, e->len);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "no memory for __metadata__");
}

static fp8_status read_metadata(st_parser *p) {
    fp8_safetensors *s = p->s;
    fp8_st_pair *pairs, pair;
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_expect(p->json, FP8_JSON_OBJECT, "__metadata__", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(p->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        FP8_TRY(copy_text(p, &e, &pair.key));
        FP8_TRY(fp8_json_expect(p->json, FP8_JSON_STRING, "__metadata__ value", &e));
        FP8_TRY(copy_text(p, &e, &pair.value));
        pairs = grow(s->metadata, s->num_metadata, &p->cap_metadata, sizeof *pairs);
        if (!pairs) return FP8_FAIL(FP8_ENOMEM, "no memory for __metadata__");
        s->metadata = pairs;
        pairs[s->num_metadata++] = pair;
    }
done:
    return st;
}

static fp8_status read_header(st_parser *p, const char *text, size_t len) {
    fp8_json_event e;
    fp8_status st;

    FP8_TRY(fp8_json_open(&p->json, "header", text, len, NULL));
    FP8_TRY(fp8_json_expect(p->json, FP8_JSON_OBJECT, "the document", &e));
    for (;;) {
        FP8_TRY(fp8_json_key(p->json, &e));
        if (e.type == FP8_JSON_OBJECT_END) break;
        if (fp8_json_is(&e, "__metadata__")) FP8_TRY(read_metadata(p));
        else FP8_TRY(read_tensor(p, &e));
    }
done:
    return st;
}

/* ---- the whole file ------------------------------------------------------------------------ */

static int by_offset(const void *pa, const void *pb) {
    const st_item *a = pa, *b = pb;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->entry.bytes != b->entry.bytes) return a->entry.bytes < b->entry.bytes ? -1 : 1;
    return strcmp(a->entry.name, b->entry.name);
}

/* Sorted tensors must fill [0, data_bytes) without hole or overlap. */
static fp8_status check_layout(const st_item *items, int64_t n, size_t data_bytes) {
    size_t at = 0;

    for (int64_t i = 0; i < n; i++) {
        const size_t begin = items[i].begin, end = begin + items[i].entry.bytes;
        if (begin > at)
            return FP8_FAIL(FP8_EFORMAT, "'%s': data_offsets [%zu,%zu) leave a hole after %zu",
                            items[i].entry.name, begin, end, at);
        if (begin < at)
            return FP8_FAIL(FP8_EFORMAT, "'%s': data_offsets [%zu,%zu) overlap '%s', which ends "
                            "at %zu", items[i].entry.name, begin, end, items[i - 1].entry.name, at);
        at = end;
    }
    if (at > data_bytes)
        return FP8_FAIL(FP8_EFORMAT, "truncated: tensors need %zu bytes of data, the file has %zu",
                        at, data_bytes);
    if (at < data_bytes)
        return FP8_FAIL(FP8_EFORMAT, "%zu bytes follow the last tensor's data", data_bytes - at);
    return FP8_OK;
}

/* Entries and their index from the sorted items. */
static fp8_status place(fp8_safetensors *s, const st_item *items) {
    fp8_status st = fp8_names_create(&s->names, s->num_entries);

    if (st != FP8_OK) return st;
    s->entries = calloc((size_t)s->num_entries + 1, sizeof *s->entries);
    if (!s->entries) return FP8_FAIL(FP8_ENOMEM, "no memory for the entries");
    for (int64_t i = 0; i < s->num_entries; i++) {
        s->entries[i] = items[i].entry;
        s->entries[i].tensor.data = (void *)(uintptr_t)(s->data + items[i].begin);
        fp8_names_add(&s->names, s->entries[i].name, i); /* JSON has refused duplicates */
    }
    return FP8_OK;
}

static fp8_status parse(fp8_safetensors *s, const unsigned char *bytes, size_t len) {
    st_parser p = {.s = s};
    uint64_t header = 0;
    fp8_status st;

    if (len < 8)
        return FP8_FAIL(FP8_EFORMAT, "%zu bytes, too short for the 8-byte header length", len);
    for (int i = 0; i < 8; i++) header |= (uint64_t)bytes[i] << (8 * i);
    if (header > FP8_ST_MAX_HEADER)
        return FP8_FAIL(FP8_EFORMAT, "header of %llu bytes, at most %d are allowed",
                        (unsigned long long)header, FP8_ST_MAX_HEADER);
    if (header > len - 8)
        return FP8_FAIL(FP8_EFORMAT, "header of %llu bytes, but only %zu follow its length",
                        (unsigned long long)header, len - 8);
    FP8_TRY(read_header(&p, (const char *)bytes + 8, (size_t)header));
    if (s->num_entries > 0) qsort(p.items, (size_t)s->num_entries, sizeof *p.items, by_offset);
    s->data = bytes + 8 + header;
    s->data_bytes = len - 8 - (size_t)header;
    s->file_bytes = len;
    FP8_TRY(check_layout(p.items, s->num_entries, s->data_bytes));
    FP8_TRY(place(s, p.items));
done:
    fp8_json_close(p.json);
    free(p.items);
    return st;
}

fp8_status fp8_safetensors_open_memory(fp8_safetensors **out, const char *name, const void *bytes,
                                       size_t len) {
    fp8_safetensors *s = calloc(1, sizeof *s);
    fp8_status st;

    *out = NULL;
    if (s) s->path = strdup(name);
    if (!s || !s->path) {
        fp8_safetensors_close(s);
        return FP8_FAIL(FP8_ENOMEM, "%s: no memory to open it", name);
    }
    st = parse(s, bytes, len);
    if (st != FP8_OK) {
        fp8_safetensors_close(s);
        return FP8_FAIL(st, "%s: %s", name, fp8_last_message());
    }
    *out = s;
    return FP8_OK;
}

fp8_status fp8_safetensors_open(fp8_safetensors **out, const char *path) {
    fp8_file file = {0};
    fp8_status st;

    *out = NULL;
    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(fp8_safetensors_open_memory(out, path, file.data, file.bytes));
    (*out)->file = file;
    return FP8_OK;
done:
    fp8_file_unmap(&file);
    return st;
}

void fp8_safetensors_close(fp8_safetensors *s) {
    if (!s) return;
    fp8_file_unmap(&s->file);
    fp8_names_free(&s->names);
    fp8_arena_free(&s->arena);
    free(s->entries);
    free(s->metadata);
    free(s->path);
    free(s);
}

/* ---- what it holds ------------------------------------------------------------------------- */

const char *fp8_safetensors_path(const fp8_safetensors *s) { return s->path; }

int64_t fp8_safetensors_count(const fp8_safetensors *s) { return s->num_entries; }

const fp8_st_entry *fp8_safetensors_at(const fp8_safetensors *s, int64_t i) {
    return &s->entries[i];
}

const fp8_st_entry *fp8_safetensors_find(const fp8_safetensors *s, const char *name) {
    const int64_t i = fp8_names_find(&s->names, name);
    return i < 0 ? NULL : &s->entries[i];
}

const unsigned char *fp8_safetensors_data(const fp8_safetensors *s, size_t *bytes) {
    *bytes = s->data_bytes;
    return s->data;
}

size_t fp8_safetensors_file_bytes(const fp8_safetensors *s) { return s->file_bytes; }

const char *fp8_safetensors_metadata(const fp8_safetensors *s, const char *key) {
    for (int64_t i = 0; i < s->num_metadata; i++)
        if (strcmp(s->metadata[i].key, key) == 0) return s->metadata[i].value;
    return NULL;
}

int64_t fp8_safetensors_metadata_count(const fp8_safetensors *s) { return s->num_metadata; }

void fp8_safetensors_metadata_at(const fp8_safetensors *s, int64_t i, const char **key,
                                 const char **value) {
    *key = s->metadata[i].key;
    *value = s->metadata[i].value;
}
