/* Token ids from files: raw, NumPy or safetensors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/file.h"
#include "formats/iddata_impl.h"
#include "formats/safetensors.h"
#include "formats/textdata.h"

/* ---- any integers to ids --------------------------------------------------------------------- */

/* Element i, sign-extended: a negative one is above every vocabulary. */
static uint64_t element(const id_array *a, int64_t i) {
    const unsigned char *p = a->data + (size_t)i * a->element_bytes;
    uint64_t v = 0;

    for (size_t b = a->element_bytes; b-- > 0;) v = v << 8 | p[b];
    if (a->is_signed && a->element_bytes < 8 && v >> (8 * a->element_bytes - 1))
        v |= UINT64_MAX << (8 * a->element_bytes);
    return v;
}

static fp8_status wrong_id(const id_array *a, const char *path, int64_t i, int64_t vocab_size) {
    char id[32], sequence[40] = "";
    const uint64_t v = element(a, i);

    if (a->is_signed) snprintf(id, sizeof id, "%lld", (long long)v);
    else snprintf(id, sizeof id, "%llu", (unsigned long long)v);
    if (a->rows > 1)
        snprintf(sequence, sizeof sequence, " of sequence %lld", (long long)(i / a->cols));
    return FP8_FAIL(FP8_EDATA, "%s: id %s at position %lld%s: expected 0 to %lld", path, id,
                    (long long)(i % a->cols), sequence, (long long)vocab_size - 1);
}

static fp8_status convert(fp8_id_data *out, const char *path, const id_array *a,
                          int64_t vocab_size) {
    const int64_t count = a->rows * a->cols; /* of bytes that are there: does not overflow */
    fp8_status st = FP8_OK;

    if (count == 0) FP8_TRY(FP8_FAIL(FP8_EDATA, "%s: no ids in it", path));
    out->ids.data = malloc((size_t)count * sizeof *out->ids.data);
    out->starts = malloc(((size_t)a->rows + 1) * sizeof *out->starts);
    if (!out->ids.data || !out->starts)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "%s: %lld ids", path, (long long)count));
    for (int64_t i = 0; i < count; i++) {
        const uint64_t id = element(a, i);
        if (id >= (uint64_t)vocab_size) FP8_TRY(wrong_id(a, path, i, vocab_size));
        out->ids.data[i] = (int32_t)id;
    }
    for (int64_t i = 0; i <= a->rows; i++) out->starts[i] = i * a->cols;
    out->ids.count = out->ids.cap = count;
    out->num_seqs = a->rows;
done:
    return st;
}

/* ---- files ----------------------------------------------------------------------------------- */

static fp8_status load_raw(fp8_id_data *out, const char *path, int64_t vocab_size) {
    fp8_file file = {0};
    id_array a = {.rows = 1, .element_bytes = vocab_size <= 65536 ? 2 : 4};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_file_map(&file, path));
    if (file.bytes % a.element_bytes != 0)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT,
                         "%s: %zu bytes: expected ids of %zu bytes each (vocabulary of %lld)", path,
                         file.bytes, a.element_bytes, (long long)vocab_size));
    a.data = file.data;
    a.cols = (int64_t)(file.bytes / a.element_bytes);
    FP8_TRY(convert(out, path, &a, vocab_size));
done:
    fp8_file_unmap(&file);
    return st;
}

static fp8_status load_npy(fp8_id_data *out, const char *path, int64_t vocab_size) {
    fp8_file file = {0};
    id_array a;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(id_array_from_npy(&a, path, file.data, file.bytes));
    FP8_TRY(convert(out, path, &a, vocab_size));
done:
    fp8_file_unmap(&file);
    return st;
}

static fp8_status load_safetensors(fp8_id_data *out, const char *path, int64_t vocab_size) {
    fp8_safetensors *file = NULL;
    const fp8_st_entry *entry;
    const fp8_tensor *x;
    fp8_dtype_kind kind;
    id_array a;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_safetensors_open(&file, path));
    entry = fp8_safetensors_find(file, "input_ids");
    if (!entry && fp8_safetensors_count(file) == 1) entry = fp8_safetensors_at(file, 0);
    if (!entry)
        FP8_TRY(FP8_FAIL(FP8_EFORMAT, "%s: no tensor 'input_ids' among %lld", path,
                         (long long)fp8_safetensors_count(file)));
    x = &entry->tensor;
    kind = fp8_dtype_kind_of(x->dtype);
    if ((kind != FP8_KIND_UINT && kind != FP8_KIND_INT) || x->dtype == FP8_DTYPE_BOOL)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: '%s' is %s: expected integers", path, entry->name,
                         fp8_dtype_name(x->dtype)));
    if (x->ndim != 1 && x->ndim != 2)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: '%s' has %d dimensions: expected 1 or 2", path,
                         entry->name, x->ndim));
    a = (id_array){x->data, x->ndim == 2 ? x->shape[0] : 1, x->shape[x->ndim - 1],
                   fp8_dtype_size(x->dtype), kind == FP8_KIND_INT};
    FP8_TRY(convert(out, path, &a, vocab_size));
done:
    fp8_safetensors_close(file);
    return st;
}

fp8_status fp8_id_data_load(fp8_id_data *out, const char *path, int64_t vocab_size) {
    static const struct {
        const char *end;
        fp8_status (*load)(fp8_id_data *out, const char *path, int64_t vocab_size);
    } kinds[] = {{".bin", load_raw}, {".npy", load_npy}, {".safetensors", load_safetensors}};
    const size_t len = strlen(path);
    fp8_status st = FP8_OK;

    *out = (fp8_id_data){0};
    if (vocab_size < 1 || vocab_size > INT32_MAX)
        FP8_TRY(FP8_FAIL(FP8_EINVAL, "%s: a vocabulary of %lld ids", path, (long long)vocab_size));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const size_t n = strlen(kinds[i].end);
        if (len < n || strcmp(path + len - n, kinds[i].end) != 0) continue;
        FP8_TRY(kinds[i].load(out, path, vocab_size));
        return FP8_OK;
    }
    FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "%s: expected .bin, .npy or .safetensors", path));
done:
    fp8_id_data_free(out);
    return st;
}

void fp8_id_data_free(fp8_id_data *d) {
    fp8_ids_free(&d->ids);
    free(d->starts);
    *d = (fp8_id_data){0};
}
