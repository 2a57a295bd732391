#include "calib/observer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/points.h"
#include "core/half.h"

/* One step in flight. */
typedef struct stage {
    fp8_observer *owner;
    fp8_amax_slot *slots, *row; /* [num_slots] on the device; its copy in pinned host memory */
    fp8_magnitudes *counts, *copies; /* likewise, of the histograms; NULL: not gathered */
    unsigned char *joined;      /* [num_slots], host: figures of values that were not yet rounded */
    uint8_t *first;             /* [max_tokens] on the device: 1 where a sequence begins */
    fp8_event *done;
} stage;

struct fp8_observer {
    fp8_device *d;
    int64_t num_layers, kv_heads, max_tokens;
    size_t num_slots; /* with those of heads */
    int64_t depth;
    int rounds; /* the compute type is BF16 */
    int64_t opened, sent, collected;
    uint8_t *first; /* [max_tokens], host */
    stage *stages; /* [depth] */
};

/* A pair of histograms a stage, so that a step's counts come with its row and an interrupted record
 * has those of its own rows alone. */
static fp8_status allocate_histograms(fp8_observer *o) {
    const size_t bytes = fp8_num_slots(o->num_layers) * sizeof(fp8_magnitudes);
    fp8_status st = FP8_OK;

    for (stage *s = o->stages; s < o->stages + o->depth; s++) {
        FP8_TRY(fp8_device_alloc(o->d, (void **)&s->counts, bytes));
        FP8_TRY(fp8_device_alloc_host(o->d, (void **)&s->copies, bytes));
    }
done:
    return st;
}

fp8_status fp8_observer_create(fp8_observer **out, fp8_device *d, int64_t num_layers,
                               int64_t kv_heads, fp8_compute compute, int64_t max_tokens,
                               int64_t depth, int histograms) {
    const size_t num_slots = fp8_num_slots(num_layers) + (size_t)(2 * kv_heads * num_layers);
    const size_t row_bytes = num_slots * sizeof(fp8_amax_slot);
    fp8_status st = FP8_OK;
    fp8_observer *o = calloc(1, sizeof *o);

    *out = NULL;
    if (!o) return FP8_FAIL(FP8_ENOMEM, "observer");
    o->d = d;
    o->num_layers = num_layers;
    o->kv_heads = kv_heads;
    o->num_slots = num_slots;
    o->max_tokens = max_tokens;
    o->depth = depth;
    o->rounds = compute == FP8_COMPUTE_BF16;
    o->first = malloc((size_t)max_tokens);
    o->stages = calloc((size_t)depth, sizeof *o->stages);
    if (!o->first || !o->stages) {
        st = FP8_FAIL(FP8_ENOMEM, "observer of %lld tokens", (long long)max_tokens);
        goto done;
    }
    for (stage *s = o->stages; s < o->stages + o->depth; s++) {
        s->owner = o;
        s->joined = calloc(fp8_num_slots(num_layers), 1);
        if (!s->joined) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "observer of %lld layers",
                                         (long long)num_layers));
        FP8_TRY(fp8_device_alloc(d, (void **)&s->slots, row_bytes));
        FP8_TRY(fp8_device_alloc_host(d, (void **)&s->row, row_bytes));
        FP8_TRY(fp8_device_alloc(d, (void **)&s->first, (size_t)max_tokens));
        FP8_TRY(fp8_event_create(d, &s->done));
    }
    if (histograms) FP8_TRY(allocate_histograms(o));
    *out = o;
    o = NULL;
done:
    fp8_observer_destroy(o);
    return st;
}

void fp8_observer_destroy(fp8_observer *o) {
    if (!o) return;
    for (stage *s = o->stages; s && s < o->stages + o->depth; s++) {
        fp8_device_free(o->d, s->slots); /* waits, so that no copy into `row` is under way */
        fp8_device_free(o->d, s->counts);
        fp8_device_free(o->d, s->first);
        fp8_device_free_host(o->d, s->row);
        fp8_device_free_host(o->d, s->copies);
        fp8_event_destroy(s->done);
        free(s->joined);
    }
    free(o->stages);
    free(o->first);
    free(o);
}

/* K and V are looked at once more, a head at a time. */
static int has_heads(const fp8_observer *o, fp8_point point) {
    return o->kv_heads > 0 && (point == FP8_POINT_K || point == FP8_POINT_V);
}

/* Without histograms and heads, which need the values. */
static fp8_amax_slot *slot_of(void *ctx, int32_t layer, fp8_point point, const uint8_t **first) {
    const stage *s = ctx;
    const int32_t slot = fp8_point_slot(s->owner->num_layers, layer, point);

    if (slot < 0 || s->counts || has_heads(s->owner, point)) return NULL;
    s->joined[slot] = 1;
    *first = s->first;
    return s->slots + slot;
}

/* The largest of rounded values is the largest value, rounded; one that rounds to infinity would
 * have been counted as such. */
static void round_joined(const fp8_observer *o, const stage *s) {
    const size_t count = fp8_num_slots(o->num_layers);

    for (size_t i = 0; o->rounds && i < count; i++) {
        fp8_amax_slot *slot = &s->row[i];
        if (!s->joined[i]) continue;
        slot->amax = fp8_round_bf16(slot->amax);
        slot->amax_without_first = fp8_round_bf16(slot->amax_without_first);
        slot->nonfinite += isinf(slot->amax) != 0;
    }
}

static fp8_status observe_heads(const stage *s, int32_t layer, fp8_point point,
                                const fp8_tensor *x) {
    const fp8_observer *o = s->owner;
    const int64_t rows = x->shape[0], cols = fp8_tensor_count(x) / rows, dim = cols / o->kv_heads;
    fp8_status st = FP8_OK;

    for (int64_t h = 0; h < o->kv_heads; h++) {
        const int32_t slot = fp8_point_head_slot(o->num_layers, o->kv_heads, layer, point, h);
        const char *from = (const char *)x->data + (size_t)(h * dim) * fp8_dtype_size(x->dtype);
        FP8_TRY(fp8_observe(o->d, s->slots + slot, from, x->dtype, rows, dim, cols, s->first));
    }
done:
    return st;
}

static fp8_status observe(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    const stage *s = ctx;
    const fp8_observer *o = s->owner;
    const int32_t slot = fp8_point_slot(o->num_layers, layer, point);
    if (slot < 0) return FP8_OK;
    const int64_t rows = x->shape[0], cols = fp8_tensor_count(x) / rows;
    fp8_status st = FP8_OK;
    if (!s->counts)
        FP8_TRY(fp8_observe(o->d, s->slots + slot, x->data, x->dtype, rows, cols, cols, s->first));
    else
        FP8_TRY(fp8_observe_magnitudes(o->d, s->slots + slot, s->counts + slot, x->data, x->dtype,
                                       rows, cols, cols, s->first));
    if (has_heads(o, point)) FP8_TRY(observe_heads(s, layer, point, x));
done:
    return st;
}

fp8_status fp8_observer_open(fp8_observer *o, fp8_tap *tap, const fp8_batch *batch) {
    const size_t row_bytes = o->num_slots * sizeof(fp8_amax_slot);
    const size_t bins_bytes = fp8_num_slots(o->num_layers) * sizeof(fp8_magnitudes);
    stage *s = &o->stages[o->opened % o->depth];
    fp8_status st = FP8_OK;

    if (o->opened - o->collected >= o->depth)
        return FP8_FAIL(FP8_EINVAL, "observer: %lld steps are in flight already",
                        (long long)o->depth);
    if (batch->num_tokens > o->max_tokens)
        return FP8_FAIL(FP8_EINVAL, "observer: %lld tokens in a step made for %lld",
                        (long long)batch->num_tokens, (long long)o->max_tokens);
    memset(o->first, 0, (size_t)batch->num_tokens);
    for (int64_t i = 0; i < batch->num_seqs; i++) o->first[batch->starts[i]] = 1;
    FP8_TRY(fp8_device_upload(o->d, s->first, o->first, (size_t)batch->num_tokens));
    FP8_TRY(fp8_device_fill(o->d, s->slots, 0, row_bytes));
    if (s->counts) FP8_TRY(fp8_device_fill(o->d, s->counts, 0, bins_bytes));
    memset(s->joined, 0, fp8_num_slots(o->num_layers));
    *tap = (fp8_tap){.on = observe, .ctx = s, .slot = slot_of};
    o->opened++;
done:
    return st;
}

fp8_status fp8_observer_send(fp8_observer *o) {
    const size_t row_bytes = o->num_slots * sizeof(fp8_amax_slot);
    const size_t bins_bytes = fp8_num_slots(o->num_layers) * sizeof(fp8_magnitudes);
    const stage *s = &o->stages[o->sent % o->depth];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_download_async(o->d, s->row, s->slots, row_bytes));
    if (s->counts) FP8_TRY(fp8_device_download_async(o->d, s->copies, s->counts, bins_bytes));
    FP8_TRY(fp8_event_record(s->done));
    o->sent++;
done:
    return st;
}

fp8_status fp8_observer_launch(fp8_observer *o, fp8_model *m, const fp8_batch *batch) {
    fp8_tap tap;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_observer_open(o, &tap, batch));
    FP8_TRY(fp8_model_forward(m, batch, NULL, &tap, FP8_LOGITS_NONE, NULL));
    FP8_TRY(fp8_observer_send(o));
done:
    return st;
}

fp8_status fp8_observer_collect(fp8_observer *o, const fp8_amax_slot **row,
                                const fp8_magnitudes **bins) {
    const stage *s = &o->stages[o->collected % o->depth];
    fp8_status st = FP8_OK;

    *row = NULL;
    *bins = NULL;
    if (o->collected == o->sent) return FP8_FAIL(FP8_EINVAL, "observer: no step is in flight");
    FP8_TRY(fp8_event_wait(s->done));
    round_joined(o, s);
    *row = s->row;
    *bins = s->copies;
    o->collected++;
done:
    return st;
}
