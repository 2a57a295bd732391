/* What a paged cache must be, its sizes, and where a batch asked for more than there is. */
#include "attention/cache.h"

#include <stdlib.h>

#include "attention/cache_impl.h"

enum { MAX_HEAD = 1024 };

/* ---- geometry -------------------------------------------------------------------------------- */

static fp8_status check_geometry(const fp8_kv_pages *p) {
    const int real = p->dtype == FP8_DTYPE_BF16 || p->dtype == FP8_DTYPE_F16 ||
                     p->dtype == FP8_DTYPE_F32;

    if (!real && p->dtype != FP8_DTYPE_E4M3)
        return FP8_FAIL(FP8_EINVAL, "KV pages: dtype %s, expected F8_E4M3, BF16, F16 or F32",
                        fp8_dtype_name(p->dtype));
    if (p->num_kv_heads <= 0)
        return FP8_FAIL(FP8_EINVAL, "KV pages: %d KV heads, expected 1 or more", p->num_kv_heads);
    if (p->d_qk <= 0 || p->d_v <= 0 || p->d_qk > MAX_HEAD || p->d_v > MAX_HEAD)
        return FP8_FAIL(FP8_EINVAL, "KV pages: head sizes d_qk %d, d_v %d, expected 1 to %d",
                        p->d_qk, p->d_v, MAX_HEAD);
    if (p->page_size != 64 && p->page_size != 128)
        return FP8_FAIL(FP8_EINVAL, "KV pages: %d tokens a page, expected 64 or 128",
                        p->page_size);
    if (p->num_pages < 1 || p->num_pages > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "KV pages: %lld pages, expected 1 to 2^31 - 1",
                        (long long)p->num_pages);
    if (p->granularity != FP8_DESCALE_TENSOR && p->granularity != FP8_DESCALE_HEAD)
        return FP8_FAIL(FP8_EINVAL, "KV pages: descales of granularity %d, expected one a tensor "
                                    "or one a head", (int)p->granularity);
    return FP8_OK;
}

/* One of K and V: *stride filled in, bytes of a page and of all. */
static fp8_status size_part(int64_t *stride, size_t *page_bytes, size_t *bytes, const char *name,
                            const fp8_kv_pages *p, int64_t given, int64_t row) {
    const int64_t size = (int64_t)fp8_dtype_size(p->dtype);
    const int64_t page = p->num_kv_heads * row; /* below 2^31 * 2^17 */
    int64_t last;

    if (given != 0 && given < page)
        return FP8_FAIL(FP8_EINVAL, "KV pages: %lld elements from page to page of %s, a page has "
                                    "%lld", (long long)given, name, (long long)page);
    *stride = given ? given : page;
    if (__builtin_mul_overflow(*stride, p->num_pages - 1, &last) ||
        __builtin_add_overflow(last, page, &last) ||
        __builtin_mul_overflow(last, size, &last))
        return FP8_FAIL(FP8_EOVERFLOW, "KV pages: %lld pages of %s, %lld elements apart, reach "
                                       "beyond 2^63 bytes",
                        (long long)p->num_pages, name, (long long)*stride);
    *page_bytes = (size_t)(page * size);
    *bytes = (size_t)last;
    return FP8_OK;
}

fp8_status fp8_kv_pages_layout(fp8_kv_layout *out, const fp8_kv_pages *pages) {
    fp8_kv_layout x = {0};
    fp8_status st;

    if (!out || !pages)
        return FP8_FAIL(FP8_EINVAL, "KV pages: out=%p pages=%p", (void *)out, (const void *)pages);
    FP8_TRY(check_geometry(pages));
    x.k_head = (int64_t)pages->page_size * pages->d_qk;
    x.v_head = (int64_t)pages->page_size * pages->d_v;
    FP8_TRY(size_part(&x.k_page, &x.k_page_bytes, &x.k_bytes, "K", pages, pages->k_page, x.k_head));
    FP8_TRY(size_part(&x.v_page, &x.v_page_bytes, &x.v_bytes, "V", pages, pages->v_page, x.v_head));
    *out = x;
done:
    return st;
}

fp8_status kv_pages_resolve(fp8_kv_pages *out, const fp8_kv_pages *pages) {
    fp8_kv_layout layout;
    fp8_status st;

    FP8_TRY(fp8_kv_pages_layout(&layout, pages));
    if (!pages->k || !pages->v)
        return FP8_FAIL(FP8_EINVAL, "KV pages: k=%p v=%p", pages->k, pages->v);
    if (pages->dtype == FP8_DTYPE_E4M3 && (!pages->k_descale || !pages->v_descale))
        return FP8_FAIL(FP8_EINVAL, "KV pages: E4M3 and k_descale=%p v_descale=%p",
                        (const void *)pages->k_descale, (const void *)pages->v_descale);
    *out = *pages;
    out->k_page = layout.k_page;
    out->v_page = layout.v_page;
done:
    return st;
}

/* ---- batches --------------------------------------------------------------------------------- */

fp8_status kv_batch_check(const fp8_kv_batch *b, int32_t page_size) {
    if (b->num_seqs < 0 || b->max_pages < 0 || b->max_q < 0 || b->max_kv < 0 || b->total_q < 0)
        return FP8_FAIL(FP8_EINVAL,
                        "KV batch: num_seqs %lld, max_pages %lld, max_q %lld, max_kv %lld, "
                        "total_q %lld",
                        (long long)b->num_seqs, (long long)b->max_pages, (long long)b->max_q,
                        (long long)b->max_kv, (long long)b->total_q);
    if (b->num_seqs > INT32_MAX || b->max_pages > INT32_MAX / page_size || b->max_q > INT32_MAX ||
        b->max_kv > INT32_MAX || b->total_q > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL,
                        "KV batch: num_seqs %lld, max_pages %lld of %d, max_q %lld, max_kv %lld, "
                        "total_q %lld, expected below 2^31",
                        (long long)b->num_seqs, (long long)b->max_pages, page_size,
                        (long long)b->max_q, (long long)b->max_kv, (long long)b->total_q);
    if (b->num_seqs > 0 && (!b->kv_lengths || !b->q_starts || (b->max_pages && !b->page_table)))
        return FP8_FAIL(FP8_EINVAL, "KV batch: page_table=%p kv_lengths=%p q_starts=%p",
                        (const void *)b->page_table, (const void *)b->kv_lengths,
                        (const void *)b->q_starts);
    return FP8_OK;
}

void fp8_kv_identity_table(int32_t *table, int64_t num_seqs, int64_t max_pages) {
    for (int64_t i = 0; i < num_seqs * max_pages; i++) table[i] = (int32_t)i;
}

/* ---- FP8_SYNC=1 ------------------------------------------------------------------------------ */

static fp8_status fetch(int32_t **out, fp8_device *d, const int32_t *x, int64_t count) {
    *out = malloc((size_t)count * sizeof **out + 1);
    if (!*out) return FP8_FAIL(FP8_ENOMEM, "KV batch: %lld numbers", (long long)count);
    if (count == 0) return FP8_OK;
    return fp8_device_download(d, *out, x, (size_t)count * sizeof **out);
}

/* Sequence s of a batch whose pointers are on the host. */
static fp8_status report_sequence(const fp8_kv_pages *p, const fp8_kv_batch *b, int64_t s) {
    const int64_t start = b->q_starts[s], n = b->q_starts[s + 1] - start, keys = b->kv_lengths[s];
    const int64_t places = b->max_pages * p->page_size;

    if (start < 0 || n < 0 || n > b->max_q || start + n > b->total_q)
        return FP8_FAIL(FP8_EINVAL,
                        "KV batch: sequence %lld has rows %lld + %lld of %lld, at most %lld of its "
                        "own", (long long)s, (long long)start, (long long)n, (long long)b->total_q,
                        (long long)b->max_q);
    if (keys < 0 || keys > b->max_kv || keys > places)
        return FP8_FAIL(FP8_EINVAL,
                        "KV batch: sequence %lld has %lld keys, the batch 0 to %lld, the table "
                        "room for %lld", (long long)s, (long long)keys, (long long)b->max_kv,
                        (long long)places);
    if (keys > 0 && n > keys)
        return FP8_FAIL(FP8_EINVAL, "KV batch: sequence %lld has %lld tokens in this call and %lld "
                                    "keys in all", (long long)s, (long long)n, (long long)keys);
    for (int64_t j = 0; j * p->page_size < keys; j++) {
        const int64_t page = b->page_table[s * b->max_pages + j];
        if (page < 0 || page >= p->num_pages)
            return FP8_FAIL(FP8_EINVAL, "KV batch: page %lld of sequence %lld is number %lld of "
                                        "%lld", (long long)j, (long long)s, (long long)page,
                            (long long)p->num_pages);
    }
    return FP8_OK;
}

fp8_status kv_batch_report(fp8_device *d, const fp8_kv_pages *pages, const fp8_kv_batch *b) {
    int32_t *table = NULL, *lengths = NULL, *starts = NULL;
    fp8_kv_batch host = *b;
    fp8_status st;

    if (b->num_seqs == 0) return FP8_OK;
    FP8_TRY(fp8_device_sync(d));
    FP8_TRY(fetch(&table, d, b->page_table, b->num_seqs * b->max_pages));
    FP8_TRY(fetch(&lengths, d, b->kv_lengths, b->num_seqs));
    FP8_TRY(fetch(&starts, d, b->q_starts, b->num_seqs + 1));
    host.page_table = table;
    host.kv_lengths = lengths;
    host.q_starts = starts;
    for (int64_t s = 0; s < b->num_seqs; s++) FP8_TRY(report_sequence(pages, &host, s));
done:
    free(table);
    free(lengths);
    free(starts);
    return st;
}
