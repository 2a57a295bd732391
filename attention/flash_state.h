/* attention/flash_state.h - private: the plan of the flash backend, and the parts of its host half:
 * flash_params_cuda.c (what kernels are told), flash_items_cuda.c (what blocks work on, in which
 * order), flash_maps_cuda.c (tensor maps), flash_cuda.c (a run, and the plan as a whole). */
#ifndef FP8_ATTENTION_FLASH_STATE_H
#define FP8_ATTENTION_FLASH_STATE_H
#include "attention/flash.h"
#include "core/tensor_map.h"

/* Where the parts of the workspace begin. */
typedef struct flash_places {
    size_t counters, pieces, amax[3], made[3], codes[3]; /* a part not needed: 0 bytes */
    size_t bytes;
} flash_places;

/* What tensor maps are made from, beside the options. */
typedef struct flash_operands {
    const void *q, *k, *v, *workspace;
    int64_t total_q, total_kv;
} flash_operands;

typedef struct flash_state {
    fp8_tensor_map_encode encode;
    int32_t num_sms;
    int is_16;
    int wide; /* flash_wide.cu */
    int any;  /* flash_any.cu or flash16_any.cu */
    flash_sizes sizes; /* of the kernel */
    int is_static; /* items of alike lengths, given out by their index: no launch before */
    flash_steps *steps; /* of a run of several launches; NULL: one */
    flash_places places;
    flash_operands mapped;   /* of the maps in params: those of the last run */
    flash_order order;       /* of the items, where V comes as it lies; else there is none */
    flash_params params;     /* what every run has in common */
    flash_prologue prologue; /* likewise */
    flash_later later;       /* what of it is left to flash_wide.cu */
} flash_state;

static inline int64_t flash_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Queries of an item. */
static inline int32_t flash_rows_of_tile(const fp8_attention_options *o) {
    const int32_t wide = flash_wide_rows(o);
    if (flash_is_any(o)) return FLASH_BLOCK_M;
    return flash_is_16(o) ? FLASH16_ROWS(o->d_v) : wide > 0 ? wide : FLASH_BLOCK_M;
}

/* params and prologue: what all runs have in common, but what the next one settles. */
void attention_flash_fill(flash_state *f, const fp8_attention_options *o);

/* After fill: whether a launch goes before, which items are shared, in which order they are taken,
 * which codes are made later, and how many counters all that takes. */
void attention_flash_plan_items(flash_state *f, const fp8_attention_options *o);

/* Maps in params anew where something has moved since the last run: three cost 1 us of the host's
 * time. */
FP8_NODISCARD fp8_status attention_flash_refresh_maps(flash_state *f, const flash_prologue *p,
                                                      const fp8_attention_options *o,
                                                      const fp8_attention_io *io,
                                                      const void *workspace);
#endif
