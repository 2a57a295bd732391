/* The oracle of decoding: keys and values out of their pages, token by token, then the oracle of
 * attention in double. */
#include <stdlib.h>
#include <string.h>

#include "attention/decode_impl.h"

/* K [keys, num_kv_heads, d_qk] and V [keys, num_kv_heads, d_v] of all sequences, packed. */
typedef struct packed_keys {
    int32_t *starts;
    uint8_t *k, *v;
} packed_keys;

/* Key j of sequence s to row `row`. */
static void copy_key(const packed_keys *x, const fp8_decode_io *io, int64_t s, int64_t j,
                     int64_t row) {
    const fp8_kv_pages *p = &io->pages;
    const int64_t size = (int64_t)fp8_dtype_size(p->dtype), heads = p->num_kv_heads;
    const int64_t page = kv_page(&io->batch, s, j, p->page_size, p->num_pages);
    const int64_t token = j % p->page_size;

    for (int64_t h = 0; h < heads; h++) {
        const uint8_t *k = (const uint8_t *)p->k + kv_k_offset(p, page, h, token) * size;
        const uint8_t *v = (const uint8_t *)p->v + kv_v_offset(p, page, h, token) * size;
        memcpy(x->k + (row * heads + h) * p->d_qk * size, k, (size_t)(p->d_qk * size));
        for (int64_t i = 0; i < p->d_v; i++)
            memcpy(x->v + ((row * heads + h) * p->d_v + i) * size, v + i * p->page_size * size,
                   (size_t)size);
    }
}

static fp8_status gather(packed_keys *x, const fp8_decode_io *io) {
    const fp8_kv_batch *b = &io->batch;
    const fp8_kv_pages *p = &io->pages;
    const size_t row = (size_t)p->num_kv_heads * fp8_dtype_size(p->dtype);
    int64_t total = 0;

    x->starts = calloc((size_t)b->num_seqs + 1, sizeof *x->starts);
    if (!x->starts) return FP8_FAIL(FP8_ENOMEM, "decode oracle");
    for (int64_t s = 0; s < b->num_seqs; s++) {
        total += kv_keys(b, s, p->page_size);
        if (total > INT32_MAX)
            return FP8_FAIL(FP8_EOVERFLOW, "decode oracle: more than 2^31 keys in all");
        x->starts[s + 1] = (int32_t)total;
    }
    x->k = malloc((size_t)total * row * (size_t)p->d_qk + 1);
    x->v = malloc((size_t)total * row * (size_t)p->d_v + 1);
    if (!x->k || !x->v) return FP8_FAIL(FP8_ENOMEM, "decode oracle: %lld keys", (long long)total);
    for (int64_t s = 0; s < b->num_seqs; s++)
        for (int64_t j = 0; j < x->starts[s + 1] - x->starts[s]; j++)
            copy_key(x, io, s, j, x->starts[s] + j);
    return FP8_OK;
}

fp8_status fp8_decode_reference(double *o, double *lse, const fp8_decode_options *options,
                                const fp8_decode_io *io) {
    fp8_decode_options resolved;
    fp8_decode_io x;
    fp8_attention_options attention;
    fp8_attention_io operands;
    packed_keys keys = {0};
    fp8_status st;

    if (!o || !options || !io)
        return FP8_FAIL(FP8_EINVAL, "decode oracle: o=%p options=%p io=%p", (void *)o,
                        (const void *)options, (const void *)io);
    FP8_TRY(decode_resolve_options(&resolved, options));
    resolved.want_lse = 0; /* what comes out are the arguments */
    resolved.o_dtype = FP8_DTYPE_F32;
    x = *io;
    x.o = o;
    FP8_TRY(decode_resolve_io(&x, &resolved, &x));
    if (x.batch.num_seqs == 0 || x.batch.total_q == 0) goto done;
    FP8_TRY(gather(&keys, &x));
    attention = decode_as_attention(&resolved);
    attention.num_seqs = x.batch.num_seqs;
    attention.max_q = x.batch.max_q;
    attention.max_kv = x.batch.max_kv;
    operands = (fp8_attention_io){.q = x.q, .k = keys.k, .v = keys.v,
                                  .q_starts = x.batch.q_starts, .kv_starts = keys.starts,
                                  .total_q = x.batch.total_q,
                                  .total_kv = keys.starts[x.batch.num_seqs],
                                  .q_descale = x.q_descale, .k_descale = x.pages.k_descale,
                                  .v_descale = x.pages.v_descale, .sink = x.sink,
                                  .alibi_slopes = x.alibi_slopes};
    FP8_TRY(fp8_attention_reference(o, lse, NULL, &attention, &operands));
done:
    free(keys.starts);
    free(keys.k);
    free(keys.v);
    return st;
}
