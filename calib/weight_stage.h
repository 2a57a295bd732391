/* calib/weight_stage.h - private: which weights are quantized, and the device buffers that do it a
 * group at a time (a group's tensors share one scale: q, k, v; gate and up). */
#ifndef FP8_CALIB_WEIGHT_STAGE_H
#define FP8_CALIB_WEIGHT_STAGE_H
#include <stdint.h>

#include "calib/calib.h"
#include "calib/points.h"
#include "calib/scales.h"
#include "core/threads.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_weight {
    const char *name; /* the Linear's; the tensor is name.weight */
    const fp8_st_entry *entry;
    int64_t entry_idx;
    int64_t rows, cols; /* as stored */
    int64_t channels;   /* output channels: rows; cols where the weight is kept [in, out] */
    int in_out;
    int32_t group;
    int32_t input_slot; /* -1: no calibration */
    int keep;           /* stays as it is */
    int32_t kv_layer;   /* the layer whose k, v, q scales lie beside this weight; -1 */
    const void *resident; /* the tensor in the place of the device, where a model holds it; NULL */
} fp8_weight;

typedef struct fp8_weights {
    fp8_weight *data; /* equal groups are neighbours */
    int64_t count;
    char **ignore; /* modules left as they are */
    int32_t num_ignore;
    fp8_arena arena;
} fp8_weights;

/* The Linears of a model. FP8_EUNSUPPORTED: not BF16, F16 or F32 ("already quantized" for FP8). */
FP8_NODISCARD fp8_status fp8_weights_of_model(fp8_weights *out, const fp8_points *points,
                                              const fp8_checkpoint *source);
/* Without config.json: every 2-D floating tensor named *.weight that include and exclude admit and
 * that is not known to stay (embeddings, lm_head, routers, vision towers: a list of patterns).
 * Groups by name: q_proj, k_proj, v_proj of one module, and gate_proj, up_proj. */
FP8_NODISCARD fp8_status fp8_weights_of_file(fp8_weights *out, const fp8_checkpoint *source,
                                             const fp8_export_options *options);
/* Marks the weights of these Linears, which join the ignore list. FP8_EINVAL: a name that is none
 * of theirs; a group of which some are kept and others not. */
FP8_NODISCARD fp8_status fp8_weights_keep(fp8_weights *w, const char *const *names, int64_t count);
void fp8_weights_free(fp8_weights *w); /* {0} is fine */
/* Looks for the weights, which are those of a model, in the memory of that model. */
void fp8_weights_find_resident(fp8_weights *w, const fp8_points *points, const fp8_model *m);
void fp8_weights_ignore_all(fp8_weights *w); /* all that are in it join the ignore list */
int64_t fp8_weights_group_end(const fp8_weights *w, int64_t begin); /* past begin's group */

/* One descale a square of 128 x 128 of x [rows, cols] (F32, BF16, F16; host), row-major;
 * codes = cast(x / descale) as x * scale. A square of zeros has descale 1; ue8m0: descales rounded
 * up to powers of two. On the host whatever the device, so that bytes are the same. */
FP8_NODISCARD fp8_status fp8_quantize_squares(fp8_pool *pool, uint8_t *codes, float *descales,
                                              const void *x, fp8_dtype from, int64_t rows,
                                              int64_t cols, int ue8m0);

/* One descale a rectangle of row_span x col_span, row-major, by a rule of others. On the host.
 *   MX    the power of two 2^k, k the least with amax / 2^k below 448 (compressed-tensors' MXFP8:
 *         k + 1 from exactly 448 on; amax 0: 2^-127); codes = e4m3(x / 2^k)
 *   BF16  descale = bf16(amax / 448), 2^-7 for 0; codes = e4m3(bf16(x / descale)): what
 *         compressed-tensors makes of a BF16 model. FP8_EUNSUPPORTED: weights of another type */
typedef enum fp8_grid_rule { FP8_GRID_MX, FP8_GRID_BF16 } fp8_grid_rule;
typedef struct fp8_weight_grid {
    int64_t row_span, col_span;
    fp8_grid_rule rule;
} fp8_weight_grid;
int64_t fp8_weight_grid_count(const fp8_weight_grid *g, int64_t rows, int64_t cols);
FP8_NODISCARD fp8_status fp8_quantize_grid(fp8_pool *pool, uint8_t *codes, float *descales,
                                           const void *x, fp8_dtype from, int64_t rows,
                                           int64_t cols, const fp8_weight_grid *grid);

/* The scale of weights of that amax; ue8m0: with a descale rounded up to a power of two. */
fp8_scale fp8_weight_scale_of(float amax, int ue8m0);

typedef struct fp8_weight_stage fp8_weight_stage;

FP8_NODISCARD fp8_status fp8_weight_stage_create(fp8_weight_stage **out, fp8_device *d,
                                                 const fp8_weights *weights);
void fp8_weight_stage_destroy(fp8_weight_stage *s); /* NULL is fine */

/* Brings weights [begin, end), one group, to the device and finds their common scale. FP8_EDATA
 * names a tensor with NaN or infinite values, unless allowed. */
FP8_NODISCARD fp8_status fp8_weight_stage_load(fp8_weight_stage *s, const fp8_weights *weights,
                                               int64_t begin, int64_t end, int allow_nonfinite);
/* Of the loaded group: its scale (amax and nonfinite: of weight i alone), and where i lies. */
fp8_scale fp8_weight_stage_scale(const fp8_weight_stage *s, int64_t i);
const void *fp8_weight_stage_data(const fp8_weight_stage *s, int64_t i);

/* Weight i of the loaded group, not by BLOCK or MX: its codes in the device's place, until
 * the next call on its stream, and its descales on the host, until the next call ([1];
 * DYNAMIC [channels]). */
FP8_NODISCARD fp8_status fp8_weight_stage_quantize(fp8_weight_stage *s, int64_t i,
                                                   fp8_scheme scheme, const uint8_t **codes,
                                                   const float **descales);

#ifdef __cplusplus
}
#endif
#endif
