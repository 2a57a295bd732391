/* A batch on its way to the device: checked, laid out in host memory that async copies can use, and
 * sent in one copy. Two host slots take turns, each with an event that says when it was read. */
#include "model/inputs_cuda.h"
#include "model/model_impl.h"

static size_t slot_ints(int64_t tokens, int64_t seqs) {
    return (size_t)(2 * tokens + 2 * seqs + 3); /* ids, positions; starts, last; kv_starts */
}

fp8_status fp8_inputs_create(fp8_model *m) {
    const size_t bytes = slot_ints(m->max_tokens, m->max_tokens) * sizeof(int32_t);
    fp8_status st = FP8_OK;
    void *p = NULL;

    for (int i = 0; i < 2; i++) {
        FP8_TRY(fp8_device_alloc_host(m->device, &p, bytes));
        m->inputs.host[i] = p;
        FP8_TRY(fp8_event_create(m->device, &m->inputs.sent[i]));
    }
    FP8_TRY(fp8_model_alloc(m, &p, bytes));
    m->inputs.ids = p;
done:
    return st;
}

void fp8_inputs_destroy(fp8_model *m) {
    for (int i = 0; i < 2; i++) {
        fp8_device_free_host(m->device, m->inputs.host[i]);
        fp8_event_destroy(m->inputs.sent[i]);
    }
}

static fp8_status check_starts(const fp8_model *m, const fp8_batch *b, int64_t past) {
    if (b->starts[0] != 0 || b->starts[b->num_seqs] != b->num_tokens)
        return FP8_FAIL(FP8_EINVAL, "starts run from %d to %d, expected 0 to %lld", b->starts[0],
                        b->starts[b->num_seqs], (long long)b->num_tokens);
    for (int64_t s = 0; s < b->num_seqs; s++) {
        const int64_t len = (int64_t)b->starts[s + 1] - b->starts[s];
        if (len <= 0)
            return FP8_FAIL(FP8_EINVAL, "sequence %lld has %lld tokens", (long long)s,
                            (long long)len);
        if (m->positions.data && past + len > m->config.max_position)
            return FP8_FAIL(FP8_EINVAL, "sequence %lld has %lld positions, the model learned %lld",
                            (long long)s, (long long)(past + len),
                            (long long)m->config.max_position);
    }
    return FP8_OK;
}

static fp8_status check_batch(const fp8_model *m, const fp8_batch *b, int64_t past) {
    if (!b || !b->ids || !b->starts)
        return FP8_FAIL(FP8_EINVAL, "batch: NULL ids or starts");
    if (b->num_tokens < 1 || b->num_tokens > m->max_tokens)
        return FP8_FAIL(FP8_EINVAL, "a batch of %lld tokens, expected 1 to %lld",
                        (long long)b->num_tokens, (long long)m->max_tokens);
    if (b->num_seqs < 1 || b->num_seqs > b->num_tokens)
        return FP8_FAIL(FP8_EINVAL, "a batch of %lld sequences with %lld tokens",
                        (long long)b->num_seqs, (long long)b->num_tokens);
    for (int64_t t = 0; t < b->num_tokens; t++)
        if (b->ids[t] < 0 || b->ids[t] >= m->config.vocab_size)
            return FP8_FAIL(FP8_EINVAL, "ids[%lld] is %d, the vocabulary has %lld", (long long)t,
                            b->ids[t], (long long)m->config.vocab_size);
    return check_starts(m, b, past);
}

/* Lays the batch out at `host`; the device pointers follow the same layout. */
static void fill(fp8_inputs *in, int32_t *host, const fp8_batch *b, int64_t past) {
    int32_t *positions = host + b->num_tokens, *starts = positions + b->num_tokens;
    int32_t *last = starts + b->num_seqs + 1, *kv_starts = last + b->num_seqs;

    for (int64_t t = 0; t < b->num_tokens; t++) host[t] = b->ids[t];
    for (int64_t s = 0; s < b->num_seqs; s++) {
        for (int32_t t = b->starts[s]; t < b->starts[s + 1]; t++)
            positions[t] = (int32_t)past + t - b->starts[s];
        starts[s] = b->starts[s];
        last[s] = b->starts[s + 1] - 1;
    }
    starts[b->num_seqs] = (int32_t)b->num_tokens;
    kv_starts[0] = 0;
    kv_starts[1] = (int32_t)(past + b->num_tokens);

    in->positions = in->ids + (positions - host);
    in->starts = in->ids + (starts - host);
    in->last = in->ids + (last - host);
    in->kv_starts = in->ids + (kv_starts - host);
}

fp8_status fp8_inputs_send(fp8_model *m, const fp8_batch *batch, int64_t past) {
    fp8_inputs *in = &m->inputs;
    const int turn = in->turn;
    fp8_status st = FP8_OK;
    size_t bytes;

    FP8_TRY(check_batch(m, batch, past));
    bytes = slot_ints(batch->num_tokens, batch->num_seqs) * sizeof(int32_t);
    FP8_TRY(fp8_event_wait(in->sent[turn]));
    fill(in, in->host[turn], batch, past);
#if FP8_CUDA
    if (fp8_device_place(m->device) == FP8_PLACE_CUDA)
        FP8_TRY(fp8_inputs_copy_cuda(m->device, in->ids, in->host[turn], bytes));
    else
#endif
        FP8_TRY(fp8_device_upload(m->device, in->ids, in->host[turn], bytes));
    FP8_TRY(fp8_event_record(in->sent[turn]));
    in->turn = !turn;
done:
    return st;
}
