/* calib/convert_source.h - private: an FP8 checkpoint as tensors with roles. */
#ifndef FP8_CALIB_CONVERT_SOURCE_H
#define FP8_CALIB_CONVERT_SOURCE_H
#include <stdint.h>

#include "core/arena.h"
#include "formats/formats.h"

typedef struct fp8_coded {
    const char *name; /* the Linear's */
    const fp8_st_entry *entry;
    float *descales; /* [count] */
    int64_t count, rows, cols;
    fp8_scheme scheme; /* TENSOR, DYNAMIC (by channel) or BLOCK: what the descales cover; all equal
                        * ones count as TENSOR */
    int in_out, has_input;
    float input_descale;
    int64_t group; /* index of the first weight that shares a scale with it */
} fp8_coded;

typedef enum fp8_kv_role { FP8_KV_K, FP8_KV_V, FP8_KV_Q, FP8_NUM_KV_ROLES } fp8_kv_role;

typedef struct fp8_kv_scale {
    const char *module; /* the attention's */
    fp8_kv_role role;
    float *descales; /* [count]: 1, or one a head */
    int64_t count;
} fp8_kv_scale;

/* What becomes of tensor i of the checkpoint. */
typedef struct fp8_role {
    enum { FP8_ROLE_COPY, FP8_ROLE_WEIGHT, FP8_ROLE_KV, FP8_ROLE_CONSUMED } kind;
    int64_t at; /* in weights or kv */
} fp8_role;

typedef struct fp8_convert_source {
    const fp8_checkpoint *checkpoint;
    char *config_path;
    fp8_quant_config quant;
    int64_t kv_heads; /* 0: config.json is of a model that is not known */
    int in_out;       /* weights are kept [in, out] */
    fp8_coded *weights;
    fp8_kv_scale *kv;
    fp8_role *roles; /* [tensors of the checkpoint] */
    int64_t num_weights, num_kv;
    fp8_arena arena;
} fp8_convert_source;

/* All scales read and checked. FP8_EINVAL: not FP8. On failure *out is empty. */
FP8_NODISCARD fp8_status fp8_convert_source_open(fp8_convert_source *out,
                                                 const fp8_checkpoint *checkpoint);
void fp8_convert_source_close(fp8_convert_source *s); /* {0} is fine */
const char *fp8_kv_pattern(const fp8_dialect_row *row, fp8_kv_role role); /* may be NULL */
#endif
