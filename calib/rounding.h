/* calib/rounding.h - other codes than those of plain rounding by amax; Linears that have none. */
#ifndef FP8_CALIB_ROUNDING_H
#define FP8_CALIB_ROUNDING_H
#include <stdint.h>

#include "calib/calibrate.h"
#include "calib/export.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- what stays as it is --------------------------------------------------------------------- */

/* One choice: all Linears of a layer that read one input. */
typedef struct fp8_kept {
    int32_t layer;
    fp8_point point;
    double gain;   /* KL of the whole FP8 model less KL with these kept, nats a token */
    double share;  /* of the elements of all Linears */
    int chosen;
} fp8_kept;

typedef struct fp8_keep {
    fp8_kept *choices; /* most gain a byte first */
    int64_t count;
    char **names; /* Linears of those that were chosen: for fp8_export_options.keep */
    int64_t num_names;
    double kl;    /* of the whole FP8 model */
    double share; /* of all elements, that is kept */
} fp8_keep;

/* Which Linears cost most: m, the source's BF16 model, against its export with `options` (plain
 * rounding) in which one layer's Linears of one input are m's, for each of them; KL over up to
 * `windows` windows of calib->seq ids from the samples. Chosen are those of most gain a byte until
 * `percent` of the Linears' elements are used; none that gains nothing. scratch as
 * fp8_rounding_create has it; on the device a third model beside m and the FP8 one. (4 layers + 1)
 * x 2 forwards over the windows. FP8_EINVAL: percent not in 0 .. 100; FP8_EUNSUPPORTED: m is not
 * whole on the device; FP8_ECANCELED. */
FP8_NODISCARD fp8_status fp8_keep_create(fp8_keep **out, fp8_model *m, const fp8_checkpoint *source,
                                         const char *scratch, const fp8_record *record,
                                         const fp8_samples *samples,
                                         const fp8_calib_options *calib,
                                         const fp8_export_options *options, double percent,
                                         int64_t windows);
void fp8_keep_destroy(fp8_keep *k); /* NULL is fine */

/* ---- compensated rounding -------------------------------------------------------------------- */

typedef enum fp8_round_target {
    FP8_ROUND_TO_OUTPUT, /* weights are first moved to those that give the BF16 model's output on
                          * the quantized model's inputs (calib/ridge.h) */
    FP8_ROUND_TO_WEIGHT  /* the error of rounding alone is compensated */
} fp8_round_target;

typedef struct fp8_rounding_options {
    double damping;     /* added to the diagonal of H, of its mean */
    int act_order;      /* inputs of most energy are rounded first */
    fp8_round_target target;
    double ridge;       /* ROUND_TO_OUTPUT: what holds a weight where it was, as much as so many
                         * tokens of inputs that have nothing to do with each other */
    int search_scales;  /* static scales of inputs, Q, K and V of least error, not of amax */
    int turn;           /* with FP8 attention: queries and keys in the basis that costs them least,
                         * where the model allows it (calib/turn.h) */
} fp8_rounding_options;
#define FP8_ROUNDING_OPTIONS {0.01, 1, FP8_ROUND_TO_OUTPUT, 24576, 1, 1}

/* Codes and scales for m's weights by error compensation (GPTQ, calib/gptq.h), layer after layer,
 * inputs being those of a model whose earlier layers are rounded already. m: the source's BF16
 * model, whole on its device; record: of its calibration (NULL where the scheme needs none);
 * scratch: a folder that is made, with the export by plain rounding in it, and removed. Beside both
 * models it takes, on the device, 2 residual streams (tokens of all samples x hidden_size) and
 * 8 in^2 + 8 in * batch * seq bytes of the widest input; for its factors 20 in^2 more there (on the
 * CPU 24 in^2); on the host the codes. What does not take part is rounded plainly: the down Linears
 * of experts; with scheme BLOCK weights kept [in, out]. Starts at the first layer again after an
 * interruption. The same bytes for any number of CPU threads; devices differ. FP8_EINVAL: options;
 * FP8_EUNSUPPORTED: m is not whole on the device; FP8_ECANCELED; else as fp8_export and the model's
 * forward. */
FP8_NODISCARD fp8_status fp8_rounding_create(fp8_rounding **out, fp8_model *m,
                                             const fp8_checkpoint *source, const char *scratch,
                                             const fp8_record *record, const fp8_samples *samples,
                                             const fp8_calib_options *calib,
                                             const fp8_export_options *options,
                                             const fp8_rounding_options *how);
/* Codes by plain rounding, with the scales of least squared error of the weights instead of those
 * of amax: of amax * 2^(i/16), i = 0 .. 15, each for all that share it (tensors of a group, a
 * channel, a square); nothing is clipped. Host. What does not take part: with scheme BLOCK weights
 * kept [in, out]. FP8_EINVAL: scheme NONE. */
FP8_NODISCARD fp8_status fp8_rounding_search(fp8_rounding **out, fp8_device *d,
                                             const fp8_model_config *config,
                                             const fp8_checkpoint *source, const fp8_record *record,
                                             const fp8_export_options *options);
void fp8_rounding_destroy(fp8_rounding *r); /* NULL is fine */
/* Mean over the weights of (loss of rounding) / (loss of rounding the same weights plainly). */
double fp8_rounding_loss(const fp8_rounding *r);

#ifdef __cplusplus
}
#endif
#endif
