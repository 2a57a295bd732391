#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json_text.h"
#include "formats/names.h"
#include "formats/new_file.h"
#include "formats/safetensors_impl.h"
#include "formats/utf8.h"

/* Page of the usual memory and file systems: tensors that begin at one are read with direct I/O and
 * copied to a device without a bounce. */
enum { PAGE = 4096 };

typedef struct st_slot {
    char *name;
    fp8_st_spec spec; /* its name points to the copy above */
    size_t bytes, begin;
    atomic_size_t filled;
    atomic_int written; /* whole, or its first part came */
} st_slot;

struct fp8_st_writer {
    fp8_new_file file;
    st_slot *slots; /* in spec order */
    int64_t num_slots;
    size_t data_start; /* in the file */
};

/* ---- placement ----------------------------------------------------------------------------- */

static int by_placement(const void *pa, const void *pb) {
    const st_slot *a = *(st_slot *const *)pa, *b = *(st_slot *const *)pb;
    const int pages_a = a->bytes % PAGE == 0, pages_b = b->bytes % PAGE == 0;
    const size_t align_a = fp8_dtype_size(a->spec.dtype), align_b = fp8_dtype_size(b->spec.dtype);

    if (pages_a != pages_b) return pages_b - pages_a;
    if (align_a != align_b) return align_a > align_b ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Offsets without holes. Whole pages come first and keep each other at page starts; the rest falls
 * in alignment and each size is a multiple of its alignment, so no tensor needs padding. */
static fp8_status place(fp8_st_writer *w, st_slot **order, int *has_page) {
    size_t at = 0;
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < w->num_slots; i++) order[i] = &w->slots[i];
    if (w->num_slots > 0) qsort(order, (size_t)w->num_slots, sizeof *order, by_placement);
    for (int64_t i = 0; i < w->num_slots; i++) {
        order[i]->begin = at;
        *has_page |= order[i]->bytes >= PAGE;
        FP8_TRY(fp8_add_size(&at, at, order[i]->bytes));
        if (at > INT64_MAX) return FP8_FAIL(FP8_EOVERFLOW, "tensors of more than 2^63-1 bytes");
    }
done:
    return st;
}

/* ---- the header ---------------------------------------------------------------------------- */

fp8_status fp8_st_check_specs(const fp8_st_spec *specs, int64_t num_specs) {
    fp8_names names = {0};
    fp8_status st;

    FP8_TRY(fp8_names_create(&names, num_specs));
    for (int64_t i = 0; i < num_specs; i++) {
        const char *name = specs[i].name;
        size_t bytes;
        FP8_TRY(fp8_st_check_name(FP8_EINVAL, name, strlen(name)));
        if (strcmp(name, "__metadata__") == 0)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "a tensor may not be named __metadata__"));
        if (fp8_names_add(&names, name, i) >= 0)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "two tensors are named '%s'", name));
        if (fp8_shape_bytes(&bytes, specs[i].dtype, specs[i].shape, specs[i].ndim) != FP8_OK)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "'%s': %s", name, fp8_last_message()));
    }
done:
    fp8_names_free(&names);
    return st;
}

fp8_status fp8_st_check_metadata(const fp8_st_pair *metadata, int64_t num_metadata) {
    fp8_names names = {0};
    char shown[FP8_SHOWN_BYTES];
    fp8_status st;

    FP8_TRY(fp8_names_create(&names, num_metadata));
    for (int64_t i = 0; i < num_metadata; i++) {
        const char *key = metadata[i].key, *value = metadata[i].value;
        fp8_utf8_show(shown, key, strlen(key));
        if (fp8_utf8_prefix(key, strlen(key)) != strlen(key) ||
            fp8_utf8_prefix(value, strlen(value)) != strlen(value))
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "metadata '%s' is not UTF-8", shown));
        if (fp8_names_add(&names, key, i) >= 0)
            FP8_TRY(FP8_FAIL(FP8_EINVAL, "metadata '%s' is given twice", shown));
    }
done:
    fp8_names_free(&names);
    return st;
}

static fp8_status copy_specs(fp8_st_writer *w, const fp8_st_spec *specs) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < w->num_slots; i++) {
        st_slot *slot = &w->slots[i];
        slot->spec = specs[i];
        slot->spec.name = slot->name = strdup(specs[i].name);
        if (!slot->name) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "no memory for the tensors' names"));
        FP8_TRY(fp8_shape_bytes(&slot->bytes, specs[i].dtype, specs[i].shape, specs[i].ndim));
    }
done:
    return st;
}

static void add_entry(fp8_json_text *t, const st_slot *slot) {
    fp8_json_text_string(t, slot->name);
    fp8_json_text_printf(t, ":{\"dtype\":\"%s\",\"shape\":[", fp8_dtype_name(slot->spec.dtype));
    for (int32_t d = 0; d < slot->spec.ndim; d++)
        fp8_json_text_printf(t, "%s%lld", d ? "," : "", (long long)slot->spec.shape[d]);
    fp8_json_text_printf(t, "],\"data_offsets\":[%zu,%zu]}", slot->begin,
                         slot->begin + slot->bytes);
}

static void add_metadata(fp8_json_text *t, const fp8_st_pair *metadata, int64_t n) {
    fp8_json_text_printf(t, "\"__metadata__\":{");
    for (int64_t i = 0; i < n; i++) {
        if (i) fp8_json_text_printf(t, ",");
        fp8_json_text_string(t, metadata[i].key);
        fp8_json_text_printf(t, ":");
        fp8_json_text_string(t, metadata[i].value);
    }
    fp8_json_text_printf(t, "}");
}

/* Length, JSON and the spaces after which the data begins at a multiple of `align`. */
static fp8_status build_header(const fp8_st_writer *w, st_slot *const *order,
                               const fp8_st_pair *metadata, int64_t num_metadata, size_t align,
                               fp8_json_text *t) {
    uint64_t length;

    fp8_json_text_add(t, "\0\0\0\0\0\0\0\0{", 9);
    if (num_metadata > 0) add_metadata(t, metadata, num_metadata);
    for (int64_t i = 0; i < w->num_slots; i++) {
        if (i > 0 || num_metadata > 0) fp8_json_text_printf(t, ",");
        add_entry(t, order[i]);
    }
    fp8_json_text_printf(t, "}");
    while (t->len % align && !t->failed) fp8_json_text_add(t, " ", 1);
    if (t->failed) return FP8_FAIL(FP8_ENOMEM, "no memory for the header");
    length = t->len - 8;
    if (length > FP8_ST_MAX_HEADER)
        return FP8_FAIL(FP8_EINVAL, "header of %llu bytes, at most %d are allowed",
                        (unsigned long long)length, FP8_ST_MAX_HEADER);
    for (int i = 0; i < 8; i++) t->data[i] = (char)(unsigned char)(length >> (8 * i));
    return FP8_OK;
}

/* ---- the writer ---------------------------------------------------------------------------- */

/* Checks everything and decides where it goes, before anything is on disk. */
static fp8_status plan(fp8_st_writer *w, const fp8_st_spec *specs, const fp8_st_pair *metadata,
                       int64_t num_metadata, fp8_json_text *header) {
    st_slot **order = calloc((size_t)w->num_slots + 1, sizeof *order);
    int has_page = 0;
    fp8_status st = FP8_OK;

    w->slots = calloc((size_t)w->num_slots + 1, sizeof *w->slots);
    if (!order || !w->slots) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "no memory for the tensors"));
    FP8_TRY(fp8_st_check_specs(specs, w->num_slots));
    FP8_TRY(fp8_st_check_metadata(metadata, num_metadata));
    FP8_TRY(copy_specs(w, specs));
    FP8_TRY(place(w, order, &has_page));
    FP8_TRY(build_header(w, order, metadata, num_metadata, has_page ? PAGE : 8, header));
    w->data_start = header->len;
done:
    free(order);
    return st;
}

fp8_status fp8_st_writer_create(fp8_st_writer **out, const char *path, const fp8_st_spec *specs,
                                int64_t num_specs, const fp8_st_pair *metadata,
                                int64_t num_metadata) {
    fp8_json_text header = {0};
    fp8_st_writer *w = NULL;
    fp8_status st;

    *out = NULL;
    if (num_specs < 0 || num_metadata < 0)
        return FP8_FAIL(FP8_EINVAL, "%s: %lld tensors, %lld metadata", path, (long long)num_specs,
                        (long long)num_metadata);
    w = calloc(1, sizeof *w);
    if (!w) return FP8_FAIL(FP8_ENOMEM, "%s: no memory to write it", path);
    w->num_slots = num_specs;
    w->file.fd = -1;
    st = plan(w, specs, metadata, num_metadata, &header);
    if (st != FP8_OK) FP8_TRY(FP8_FAIL(st, "%s: %s", path, fp8_last_message()));
    FP8_TRY(fp8_new_file_create(&w->file, path));
    FP8_TRY(fp8_new_file_write(&w->file, 0, header.data, header.len));
    *out = w;
    w = NULL;
done:
    free(header.data);
    fp8_st_writer_abort(w);
    return st;
}

static fp8_status check_index(const fp8_st_writer *w, int64_t i) {
    if (i >= 0 && i < w->num_slots) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: tensor %lld of %lld", w->file.path, (long long)i,
                    (long long)w->num_slots);
}

fp8_status fp8_st_writer_put(fp8_st_writer *w, int64_t i, const void *data, size_t bytes) {
    fp8_status st = check_index(w, i);
    st_slot *slot;

    if (st != FP8_OK) return st;
    slot = &w->slots[i];
    if (atomic_load(&slot->written))
        return FP8_FAIL(FP8_EINVAL, "%s: '%s' is put twice", w->file.path, slot->name);
    if (bytes != slot->bytes)
        return FP8_FAIL(FP8_EINVAL, "%s: '%s': expected %zu bytes, found %zu", w->file.path,
                        slot->name, slot->bytes, bytes);
    return fp8_st_writer_put_part(w, i, 0, data, bytes);
}

fp8_status fp8_st_writer_put_part(fp8_st_writer *w, int64_t i, size_t offset, const void *data,
                                  size_t bytes) {
    fp8_status st = check_index(w, i);
    st_slot *slot;

    if (st != FP8_OK) return st;
    slot = &w->slots[i];
    if (offset > slot->bytes || bytes > slot->bytes - offset ||
        bytes > slot->bytes - atomic_load(&slot->filled))
        return FP8_FAIL(FP8_EINVAL, "%s: '%s': bytes %zu to %zu of %zu, of which %zu are there",
                        w->file.path, slot->name, offset, offset + bytes, slot->bytes,
                        atomic_load(&slot->filled));
    st = fp8_new_file_write(&w->file, (int64_t)(w->data_start + slot->begin + offset), data, bytes);
    if (st != FP8_OK) return st;
    atomic_fetch_add(&slot->filled, bytes);
    atomic_store(&slot->written, 1);
    return FP8_OK;
}

static int is_whole(st_slot *slot) {
    return atomic_load(&slot->written) && atomic_load(&slot->filled) == slot->bytes;
}

static void release(fp8_st_writer *w) {
    for (int64_t i = 0; w->slots && i < w->num_slots; i++) free(w->slots[i].name);
    free(w->slots);
    free(w);
}

fp8_status fp8_st_writer_commit(fp8_st_writer *w) {
    fp8_status st = FP8_OK;

    for (int64_t i = 0; i < w->num_slots && st == FP8_OK; i++)
        if (!is_whole(&w->slots[i]))
            st = FP8_FAIL(FP8_EINVAL, "%s: '%s' was never put%s", w->file.path, w->slots[i].name,
                          atomic_load(&w->slots[i].written) ? " whole" : "");
    if (st != FP8_OK) {
        fp8_st_writer_abort(w);
        return st;
    }
    st = fp8_new_file_commit(&w->file);
    release(w);
    return st;
}

void fp8_st_writer_abort(fp8_st_writer *w) {
    if (!w) return;
    fp8_new_file_abort(&w->file);
    release(w);
}
