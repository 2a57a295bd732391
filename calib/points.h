/* calib/points.h - private: what a calibration observes. A slot is one tensor seen by the forward
 * (8 a layer, not all of them in use, and the lm_head's input); a point is a name of the record.
 * Linears that share an input share its slot, and their points its history. */
#ifndef FP8_CALIB_POINTS_H
#define FP8_CALIB_POINTS_H
#include <stdint.h>

#include "core/arena.h"
#include "model/model.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_points {
    fp8_linear_info *linears; /* wiring order */
    int64_t num_linears, num_layers;
    /* In wiring order: "<linear>.input", "<attention>.q", .k, .v, "lm_head.input". */
    const char **names; /* [count] */
    int32_t *slots;     /* [count] */
    int64_t count;
    int64_t kv_heads;     /* keys and values have a slot a head, too; 0: they do not */
    const char **modules; /* [num_layers]: attention modules */
    fp8_arena arena;
} fp8_points;

FP8_NODISCARD fp8_status fp8_points_create(fp8_points *out, const fp8_model_config *config,
                                           const fp8_checkpoint *source);
/* Adds "<attention>.k.0" and so on, one a head of keys and one of values, after all others. */
FP8_NODISCARD fp8_status fp8_points_add_heads(fp8_points *p, int64_t kv_heads);
void fp8_points_free(fp8_points *p); /* {0} is fine */

size_t fp8_num_slots(int64_t num_layers); /* without those of heads */
size_t fp8_points_num_slots(const fp8_points *p);
/* Slot of a head of K or V. */
int32_t fp8_point_head_slot(int64_t num_layers, int64_t kv_heads, int32_t layer, fp8_point point,
                            int64_t head);

/* Slot of a tap; -1 when it is not observed. */
int32_t fp8_point_slot(int64_t num_layers, int32_t layer, fp8_point point);

/* The first point, in wiring order, of a slot. */
const char *fp8_points_slot_name(const fp8_points *p, int32_t slot);

#ifdef __cplusplus
}
#endif
#endif
