/* model/layer_store.h - private: the weights of layers that are on the device only while they are
 * run, for models larger than it. Two places hold a layer each; while one is run the next one's
 * weights come into the other, on a stream of their own. */
#ifndef FP8_MODEL_LAYER_STORE_H
#define FP8_MODEL_LAYER_STORE_H
#include "core/device.h"
#include "formats/formats.h"

typedef struct fp8_layer_store fp8_layer_store;

FP8_NODISCARD fp8_status fp8_layer_store_create(fp8_layer_store **out, fp8_device *d,
                                                int64_t num_layers);
void fp8_layer_store_destroy(fp8_layer_store *s); /* NULL is fine; waits */

/* Before place(): a weight of that layer, as the checkpoint has it. */
FP8_NODISCARD fp8_status fp8_layer_store_add(fp8_layer_store *s, int64_t layer,
                                             const fp8_st_entry *entry);
/* After all: the places are made. */
FP8_NODISCARD fp8_status fp8_layer_store_place(fp8_layer_store *s);
/* Where the weight lies while its layer is held; NULL: it was not added. */
void *fp8_layer_store_find(const fp8_layer_store *s, int64_t layer, const fp8_st_entry *entry);

/* Bytes of one place with what has been added so far. */
size_t fp8_layer_store_place_bytes(const fp8_layer_store *s);

/* The layer's weights are there when it returns; what was in their place has been run. */
FP8_NODISCARD fp8_status fp8_layer_store_enter(fp8_layer_store *s, int64_t layer);
/* The layer's last kernel is on the stream; `next` comes into the other place meanwhile (-1: none
 * is known). */
FP8_NODISCARD fp8_status fp8_layer_store_leave(fp8_layer_store *s, int64_t layer, int64_t next);
#endif
