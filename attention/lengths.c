/* FP8_SYNC=1: lengths and starts that a run had to clamp. */
#include <stdlib.h>

#include "attention/attention_impl.h"

/* Copies `count` numbers to the host; *out NULL when there are none. */
static fp8_status fetch(int32_t **out, fp8_device *d, const int32_t *x, int64_t count) {
    *out = NULL;
    if (!x || count == 0) return FP8_OK;
    *out = malloc((size_t)count * sizeof **out);
    if (!*out) return FP8_FAIL(FP8_ENOMEM, "attention: %lld lengths", (long long)count);
    return fp8_device_download(d, *out, x, (size_t)count * sizeof **out);
}

static fp8_status check_sequence(const char *name, int64_t s, int64_t start, int64_t length,
                                 int packed, int64_t total, int64_t longest) {
    if (packed && (start < 0 || start > total))
        return FP8_FAIL(FP8_EINVAL, "attention: %s of sequence %lld start at %lld of %lld rows",
                        name, (long long)s, (long long)start, (long long)total);
    if (length < 0 || length > longest)
        return FP8_FAIL(FP8_EINVAL, "attention: sequence %lld has %lld %s, the plan 0 to %lld",
                        (long long)s, (long long)length, name, (long long)longest);
    if (packed && start + length > total)
        return FP8_FAIL(FP8_EINVAL,
                        "attention: %s of sequence %lld end at %lld + %lld, beyond %lld rows", name,
                        (long long)s, (long long)start, (long long)length, (long long)total);
    return FP8_OK;
}

static fp8_status check_side(fp8_device *d, const char *name, const int32_t *starts,
                             const int32_t *lengths, int64_t n, int64_t total, int64_t longest) {
    int32_t *host_starts = NULL, *host_lengths = NULL;
    fp8_status st;

    FP8_TRY(fetch(&host_starts, d, starts, lengths ? n : n + 1));
    FP8_TRY(fetch(&host_lengths, d, lengths, n));
    for (int64_t s = 0; s < n && (starts || lengths); s++) {
        const int64_t start = starts ? host_starts[s] : 0;
        const int64_t length = lengths ? host_lengths[s] : host_starts[s + 1] - start;
        FP8_TRY(check_sequence(name, s, start, length, starts != NULL, total, longest));
    }
done:
    free(host_starts);
    free(host_lengths);
    return st;
}

fp8_status attention_report_lengths(fp8_device *d, const fp8_attention_options *o,
                                    const fp8_attention_io *io) {
    fp8_status st;
    FP8_TRY(fp8_device_sync(d));
    FP8_TRY(check_side(d, "queries", io->q_starts, io->q_lengths, o->num_seqs, io->total_q,
                       o->max_q));
    FP8_TRY(check_side(d, "keys", io->kv_starts, io->kv_lengths, o->num_seqs, io->total_kv,
                       o->max_kv));
done:
    return st;
}
