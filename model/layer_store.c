/*   main stream    | layer 0 ......... | layer 1 ......... | layer 2
 *   place 0        | layer 0           |        layer 2 comes
 *   place 1        |  layer 1 comes    | layer 1
 */
#include "model/layer_store.h"

#include <stdio.h>
#include <stdlib.h>

enum { NUM_PLACES = 2, ALIGN_BYTES = 256 };

typedef struct member {
    const fp8_st_entry *entry;
    int64_t layer;
    size_t offset;
} member;

typedef struct place {
    unsigned char *data;
    int64_t holds;    /* a layer; -1: none */
    fp8_event *run;   /* on the main stream, behind the layer's last kernel */
    fp8_event *there; /* on the side stream, behind its last weight */
} place;

struct fp8_layer_store {
    fp8_device *d, *side;
    int64_t num_layers, count, room;
    member *members;
    size_t *bytes; /* [num_layers] */
    place places[NUM_PLACES];
};

fp8_status fp8_layer_store_create(fp8_layer_store **out, fp8_device *d, int64_t num_layers) {
    fp8_layer_store *s = calloc(1, sizeof *s);
    char spec[32] = "cpu";
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "layers that come and go");
    s->d = d;
    s->num_layers = num_layers;
    for (int i = 0; i < NUM_PLACES; i++) s->places[i].holds = -1;
    s->bytes = calloc((size_t)num_layers, sizeof *s->bytes);
    if (!s->bytes) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "layers that come and go"));
    if (fp8_device_place(d) == FP8_PLACE_CUDA)
        snprintf(spec, sizeof spec, "cuda:%d", (int)fp8_device_index(d));
    FP8_TRY(fp8_device_create(&s->side, spec, fp8_pool_threads(fp8_device_pool(d))));
    for (int i = 0; i < NUM_PLACES; i++) {
        FP8_TRY(fp8_event_create(d, &s->places[i].run));
        FP8_TRY(fp8_event_create(s->side, &s->places[i].there));
    }
    *out = s;
    s = NULL;
done:
    fp8_layer_store_destroy(s);
    return st;
}

void fp8_layer_store_destroy(fp8_layer_store *s) {
    if (!s) return;
    for (int i = 0; i < NUM_PLACES; i++) {
        fp8_device_free(s->d, s->places[i].data);
        fp8_event_destroy(s->places[i].run);
        fp8_event_destroy(s->places[i].there);
    }
    fp8_device_destroy(s->side);
    free(s->members);
    free(s->bytes);
    free(s);
}

fp8_status fp8_layer_store_add(fp8_layer_store *s, int64_t layer, const fp8_st_entry *entry) {
    if (s->count == s->room) {
        const int64_t room = s->room ? 2 * s->room : 64;
        member *grown = realloc(s->members, (size_t)room * sizeof *grown);
        if (!grown) return FP8_FAIL(FP8_ENOMEM, "list of %lld weights", (long long)room);
        s->members = grown;
        s->room = room;
    }
    s->members[s->count++] = (member){entry, layer, s->bytes[layer]};
    s->bytes[layer] += (entry->bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return FP8_OK;
}

size_t fp8_layer_store_place_bytes(const fp8_layer_store *s) {
    size_t most = 0;
    for (int64_t i = 0; i < s->num_layers; i++)
        if (s->bytes[i] > most) most = s->bytes[i];
    return most;
}

fp8_status fp8_layer_store_place(fp8_layer_store *s) {
    fp8_status st = FP8_OK;

    for (int i = 0; i < NUM_PLACES; i++)
        FP8_TRY(fp8_device_alloc(s->d, (void **)&s->places[i].data,
                                 fp8_layer_store_place_bytes(s)));
done:
    return st;
}

void *fp8_layer_store_find(const fp8_layer_store *s, int64_t layer, const fp8_st_entry *entry) {
    for (int64_t i = 0; i < s->count; i++)
        if (s->members[i].layer == layer && s->members[i].entry == entry)
            return s->places[layer % NUM_PLACES].data + s->members[i].offset;
    return NULL;
}

/* Begins to bring the layer to its place. */
static fp8_status bring(fp8_layer_store *s, int64_t layer) {
    place *p = &s->places[layer % NUM_PLACES];
    fp8_status st = FP8_OK;

    if (p->holds == layer) return FP8_OK;
    if (p->holds >= 0) FP8_TRY(fp8_event_wait(p->run));
    p->holds = -1;
    for (int64_t i = 0; i < s->count; i++) {
        const member *m = &s->members[i];
        if (m->layer != layer) continue;
        FP8_TRY(fp8_device_upload(s->side, p->data + m->offset, m->entry->tensor.data,
                                  m->entry->bytes));
        fp8_file_drop(m->entry->tensor.data, m->entry->bytes);
    }
    FP8_TRY(fp8_event_record(p->there));
    p->holds = layer;
done:
    return st;
}

fp8_status fp8_layer_store_enter(fp8_layer_store *s, int64_t layer) {
    fp8_status st = FP8_OK;

    FP8_TRY(bring(s, layer));
    FP8_TRY(fp8_event_wait(s->places[layer % NUM_PLACES].there));
done:
    return st;
}

fp8_status fp8_layer_store_leave(fp8_layer_store *s, int64_t layer, int64_t next) {
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_event_record(s->places[layer % NUM_PLACES].run));
    if (next >= 0 && next % NUM_PLACES != layer % NUM_PLACES) FP8_TRY(bring(s, next));
done:
    return st;
}
