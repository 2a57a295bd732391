/* calib/compensate.h - private: compensated rounding under way, and what its files do for each
 * other. */
#ifndef FP8_CALIB_COMPENSATE_H
#define FP8_CALIB_COMPENSATE_H
#include "calib/calib.h"
#include "calib/hessian.h"
#include "calib/points.h"
#include "calib/scales.h"
#include "calib/solver.h"
#include "calib/weight_stage.h"

/* One weight as it was rounded; codes NULL: it was not, and is to be rounded plainly. */
typedef struct fp8_rounded {
    uint8_t *codes;  /* as the tensor lies on disk */
    float *descales; /* 1, a channel, or a square: of the scheme */
} fp8_rounded;

struct fp8_rounding {
    fp8_rounded *weights; /* [count], in the order of fp8_weights_of_model */
    int64_t count;
    fp8_scale *scales; /* [num_slots]: in place of those from the record */
    int64_t num_slots;
    double loss; /* summed over weights, each as a share of plain rounding's */
    int64_t num_rounded;
};

typedef struct fp8_compensation {
    fp8_device *d;
    fp8_model *models[2]; /* the BF16 one, the quantized one */
    const fp8_checkpoint *source;
    fp8_checkpoint *plain; /* what the quantized model was loaded from */
    const fp8_samples *samples;
    const fp8_calib_options *calib;
    const fp8_export_options *options;
    const fp8_rounding_options *how;
    const fp8_model_config *config;
    fp8_dtype type; /* of activations */
    fp8_points points;
    fp8_weights weights;
    fp8_hessian *hessian;
    char *streams[2];      /* device [tokens of all samples, hidden_size]: entering `layer` */
    int32_t *starts;       /* [batch + 1] */
    void *x;               /* device: a step's input of the BF16 model */
    fp8_amax_slot *slots;  /* device [3]: of Q, K, V */
    double *angles;        /* [kv_heads, pairs] of the layer; NULL: not turned */
    int64_t steps, layer;
    fp8_rounding *out;
} fp8_compensation;

enum { FP8_DENSE = 0, FP8_CODED = 1 }; /* index in models and streams */

/* Runs step `step` of model `which` from its stream through the layer until tap says stop
 * (FP8_ECANCELED, which is not passed on); `to` as fp8_model_forward_part has it. */
FP8_NODISCARD fp8_status fp8_compensation_run(fp8_compensation *j, int which, int64_t step,
                                              void *to, const fp8_tap *tap);

/* Rows of activations of a point, from all over the samples, on the host. */
typedef struct fp8_rows {
    fp8_point point;
    float *x; /* [count, width]; free() */
    int64_t count, width;
} fp8_rows;

/* Of model `which` in the layer, up to some thousands, num points in the order the forward passes
 * them. with_amax: joins j->slots[i] with what point i shows in every step, sampled or not. */
FP8_NODISCARD fp8_status fp8_compensation_rows(fp8_compensation *j, int which, fp8_rows *rows,
                                               int num, int with_amax);

/* *s = the scale of least sum over x of metric[column] (x - qdq(x))^2, of amax * 2^(i/16), i = -4
 * .. 15; amax itself where none is better. metric NULL: 1. The recipe's margin holds. */
FP8_NODISCARD fp8_status fp8_search_scale(fp8_scale *s, const fp8_rows *x, const double *metric,
                                          float amax, const fp8_recipe *recipe, fp8_pool *pool);

/* energy[c] += sum over w's outputs of w[., c]^2, c an input. */
FP8_NODISCARD fp8_status fp8_compensation_column_energy(double *energy, const fp8_weight *w,
                                                        fp8_pool *pool);
/* Weights [begin, end), one group, into j->out and the quantized model. input_descale as
 * fp8_model_set_codes has it. */
FP8_NODISCARD fp8_status fp8_compensation_round(fp8_compensation *j, int64_t begin, int64_t end,
                                                fp8_solver *solver, float input_descale);

/* Weights [begin, end), one group, into j->out: rounded to nearest by the scale of least squared
 * error, of amax * 2^(i/16), i = 0 .. 15, each for what shares it. */
FP8_NODISCARD fp8_status fp8_compensation_nearest(fp8_compensation *j, int64_t begin, int64_t end);

/* Scales of Q, K and V in the layer, as the quantized model has them, into it and into j->out. */
FP8_NODISCARD fp8_status fp8_compensation_kv(fp8_compensation *j);
#endif
