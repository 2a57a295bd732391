#include "calib/weight_stage.h"

#include <stdlib.h>

#include "quant/cast.h"

enum { ALIGN_BYTES = 256 };

struct fp8_weight_stage {
    fp8_device *d;
    void *x;              /* device: the tensors of a group, one after the other */
    fp8_amax_slot *slots; /* device [most] */
    uint8_t *codes;       /* device: of one tensor */
    float *descales;      /* device [most channels] */
    float *scale;         /* device [1] */
    fp8_amax_slot *host_slots;
    float *host_descales;
    const void **at; /* [most] where each tensor of the group lies */
    const fp8_weight *group;
    fp8_scale shared;
};

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

int64_t fp8_weights_group_end(const fp8_weights *w, int64_t begin) {
    int64_t end = begin + 1;
    while (end < w->count && w->data[end].group == w->data[begin].group) end++;
    return end;
}

/* The largest of everything a group or a tensor needs. */
typedef struct extent {
    int64_t members, elements, channels;
    size_t bytes;
} extent;

static extent measure(const fp8_weights *w) {
    extent most = {1, 1, 1, 1};
    for (int64_t begin = 0, end; begin < w->count; begin = end) {
        size_t bytes = 0;
        end = fp8_weights_group_end(w, begin);
        for (int64_t i = begin; i < end; i++) {
            const fp8_weight *x = &w->data[i];
            if (!x->resident) bytes += aligned(x->entry->bytes);
            if (x->rows * x->cols > most.elements) most.elements = x->rows * x->cols;
            if (x->channels > most.channels) most.channels = x->channels;
        }
        if (bytes > most.bytes) most.bytes = bytes;
        if (end - begin > most.members) most.members = end - begin;
    }
    return most;
}

fp8_status fp8_weight_stage_create(fp8_weight_stage **out, fp8_device *d,
                                   const fp8_weights *weights) {
    const extent most = measure(weights);
    const size_t members = (size_t)most.members;
    const size_t descale_bytes = (size_t)most.channels * sizeof(float);
    fp8_weight_stage *s = calloc(1, sizeof *s);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "weight buffers");
    s->d = d;
    s->at = calloc(members, sizeof *s->at);
    s->host_slots = calloc(members, sizeof *s->host_slots);
    s->host_descales = malloc(descale_bytes);
    if (!s->at || !s->host_slots || !s->host_descales) {
        st = FP8_FAIL(FP8_ENOMEM, "weight buffers");
        goto done;
    }
    FP8_TRY(fp8_device_alloc(d, &s->x, most.bytes));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->slots, members * sizeof *s->slots));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->codes, (size_t)most.elements));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->descales, descale_bytes));
    FP8_TRY(fp8_device_alloc(d, (void **)&s->scale, sizeof *s->scale));
    *out = s;
    s = NULL;
done:
    fp8_weight_stage_destroy(s);
    return st;
}

void fp8_weight_stage_destroy(fp8_weight_stage *s) {
    if (!s) return;
    fp8_device_free(s->d, s->x);
    fp8_device_free(s->d, s->slots);
    fp8_device_free(s->d, s->codes);
    fp8_device_free(s->d, s->descales);
    fp8_device_free(s->d, s->scale);
    free(s->host_slots);
    free(s->host_descales);
    free(s->at);
    free(s);
}

/* What a model holds serves as it is; on the CPU the mapping itself, unless the file has the tensor
 * at an odd place. */
static fp8_status bring(fp8_weight_stage *s, int64_t i, size_t *offset) {
    const fp8_st_entry *e = s->group[i].entry;
    const uintptr_t element = fp8_dtype_size(e->tensor.dtype);
    unsigned char *to = (unsigned char *)s->x + *offset;

    s->at[i] = s->group[i].resident;
    if (s->at[i]) return FP8_OK;

    if (fp8_device_place(s->d) == FP8_PLACE_CPU && (uintptr_t)e->tensor.data % element == 0) {
        s->at[i] = e->tensor.data;
        return FP8_OK;
    }
    s->at[i] = to;
    *offset += aligned(e->bytes);
    return fp8_device_upload(s->d, to, e->tensor.data, e->bytes);
}

fp8_status fp8_weight_stage_load(fp8_weight_stage *s, const fp8_weights *weights, int64_t begin,
                                 int64_t end, int allow_nonfinite) {
    const int64_t count = end - begin;
    const size_t slot_bytes = (size_t)count * sizeof *s->slots;
    size_t offset = 0;
    float amax = 0;
    fp8_status st = FP8_OK;

    s->group = weights->data + begin;
    FP8_TRY(fp8_device_fill(s->d, s->slots, 0, slot_bytes));
    for (int64_t i = 0; i < count; i++) {
        const fp8_weight *w = &s->group[i];
        FP8_TRY(bring(s, i, &offset));
        FP8_TRY(fp8_observe(s->d, s->slots + i, s->at[i], w->entry->tensor.dtype, w->rows, w->cols,
                            w->cols, NULL));
    }
    FP8_TRY(fp8_device_download(s->d, s->host_slots, s->slots, slot_bytes));
    for (int64_t i = 0; i < count; i++) {
        if (s->host_slots[i].amax > amax) amax = s->host_slots[i].amax;
        if (s->host_slots[i].nonfinite == 0 || allow_nonfinite) continue;
        st = FP8_FAIL(FP8_EDATA, "%s.weight: %u values are NaN or infinite", s->group[i].name,
                      s->host_slots[i].nonfinite);
        goto done;
    }
    s->shared = fp8_scale_of(amax);
    FP8_TRY(fp8_device_upload(s->d, s->scale, &s->shared.scale, sizeof *s->scale));
done:
    return st;
}

fp8_scale fp8_weight_stage_scale(const fp8_weight_stage *s, int64_t i) {
    fp8_scale scale = s->shared;
    scale.amax = scale.amax_without_first = s->host_slots[i].amax;
    scale.nonfinite = s->host_slots[i].nonfinite;
    return scale;
}

const void *fp8_weight_stage_data(const fp8_weight_stage *s, int64_t i) { return s->at[i]; }

fp8_status fp8_weight_stage_quantize(fp8_weight_stage *s, int64_t i, fp8_scheme scheme,
                                     const uint8_t **codes, const float **descales) {
    const fp8_weight *w = &s->group[i];
    const fp8_dtype from = w->entry->tensor.dtype;
    fp8_status st = FP8_OK;

    *codes = s->codes;
    *descales = s->host_descales;
    if (scheme == FP8_SCHEME_DYNAMIC) {
        FP8_TRY(fp8_quantize_groups(s->d, s->codes, FP8_DTYPE_E4M3, s->descales, s->at[i], from,
                                    w->rows, w->cols, w->in_out ? 1 : 0));
        FP8_TRY(fp8_device_download(s->d, s->host_descales, s->descales,
                                    (size_t)w->channels * sizeof(float)));
    } else {
        FP8_TRY(fp8_quantize(s->d, s->codes, FP8_DTYPE_E4M3, s->at[i], from, w->rows * w->cols,
                             s->scale));
        s->host_descales[0] = s->shared.descale;
    }
done:
    return st;
}
