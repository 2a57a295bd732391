/* calib/export_plan.h - private: every tensor of the checkpoint, before any is written. */
#ifndef FP8_CALIB_EXPORT_PLAN_H
#define FP8_CALIB_EXPORT_PLAN_H
#include <stdint.h>

#include "calib/weight_stage.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_export_plan {
    fp8_st_spec *specs;  /* [count] */
    int64_t *groups;     /* [count]: a weight and its scales are one group */
    const void **data;   /* [count]: where what is copied lies; NULL: comes from quantizing */
    unsigned char *from_record; /* [count]: data is a scale of the record's */
    int64_t *codes_at;   /* [num_weights]: spec of a weight's codes; its descale is the next one */
    int64_t count;
    size_t bytes;        /* of all tensors */
    fp8_arena arena;
} fp8_export_plan;

/* Source tensors in their order, each weight replaced by its codes, weight descale, input descale
 * (with the TENSOR scheme) and, beside the K weight, its layer's k, v and q descales. scales [slot]
 * may be NULL where none of theirs is written; heads [slots of heads]: the descales that stand for
 * them, with KV scales by head. Points into all of its arguments but `quant`. */
FP8_NODISCARD fp8_status fp8_export_plan_create(fp8_export_plan *out, const fp8_checkpoint *source,
                                                const fp8_weights *weights,
                                                const fp8_points *points, const fp8_scale *scales,
                                                const float *heads,
                                                const fp8_quant_config *quant);
void fp8_export_plan_free(fp8_export_plan *p); /* {0} is fine */

#ifdef __cplusplus
}
#endif
#endif
