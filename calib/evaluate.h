/* calib/evaluate.h - how well codes serve, tensor by tensor, and what they cost on a text. */
#ifndef FP8_CALIB_EVALUATE_H
#define FP8_CALIB_EVALUATE_H
#include <stdint.h>

#include "calib/calibrate.h"
#include "calib/export.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- report -------------------------------------------------------------------------------- */

/* One row a weight, and one an activation that has a static scale (an input that several Linears
 * share under the first one's name): how well its E4M3 codes serve it. */
typedef struct fp8_report_row {
    char name[288]; /* "model.layers.0.mlp.up_proj.weight", "...up_proj.input", "...attn.k" */
    int is_weight;  /* else an activation */
    /* amax: a weight's own; of an activation what the recipe takes from the history. scale and
     * descale: as exported; with DYNAMIC those of a weight's largest channel. */
    float amax, amax_without_first, scale, descale;
    double sqnr_db;       /* 10 log10(sum x^2 / sum (x - qdq(x))^2) */
    double clipped;       /* share of elements with |x| * scale > 448 */
    double p999_over_max; /* 99.9 % quantile of |x| / largest |x|, from a histogram */
    uint64_t nonfinite;
} fp8_report_row;

typedef struct fp8_report {
    fp8_report_row *rows; /* worst (lowest SQNR) first */
    int64_t count;
} fp8_report;

/* Weights: all of them, exactly. Activations: a second forward over the first `steps` steps,
 * measured against the scales of the export (steps 0, or record NULL: weights only). */
FP8_NODISCARD fp8_status fp8_report_create(fp8_report *out, fp8_model *m,
                                           const fp8_checkpoint *source, const fp8_record *record,
                                           const fp8_samples *samples,
                                           const fp8_calib_options *calib,
                                           const fp8_export_options *options, int64_t steps);
void fp8_report_free(fp8_report *r);
/* An array of objects; an infinite SQNR is null. free(). */
FP8_NODISCARD fp8_status fp8_report_json(char **out, const fp8_report *r);

/* ---- evaluation ---------------------------------------------------------------------------- */

typedef struct fp8_eval_result {
    double perplexity; /* exp(sum of -log p / tokens) */
    int64_t tokens;    /* predicted */
    double kl, top1;   /* against the first model: mean nats a token, share; 0 and 1 for itself */
} fp8_eval_result;

/* Window i takes ids[i*T .. i*T+T] inclusive: the first T are the input from an empty cache, each
 * predicts the next, so every id but the first is predicted once; the last window is shorter. A
 * forward takes as many windows as the models' max_tokens hold. max_windows 0 = all. out
 * [num_models]. Models must be of one device and one vocabulary size. FP8_EDATA: fewer than 2 ids,
 * vocabularies differ, a likelihood that is not finite. */
FP8_NODISCARD fp8_status fp8_evaluate(fp8_eval_result *out, fp8_model *const *models,
                                      int32_t num_models, const int32_t *ids, int64_t num_ids,
                                      int64_t window, int64_t max_windows,
                                      const fp8_progress *progress);

/* Sums over one window, for errors of differences between models that saw the same. */
typedef struct fp8_window_score {
    double nll, kl; /* nats; kl against the first model, 0 for itself */
    int64_t tokens;
} fp8_window_score;
/* How many windows fp8_evaluate takes. */
int64_t fp8_evaluate_count(int64_t num_ids, int64_t window, int64_t max_windows);
/* The same, and windows [num_models][fp8_evaluate_count()], row-major; may be NULL. */
FP8_NODISCARD fp8_status fp8_evaluate_windows(fp8_eval_result *out, fp8_window_score *windows,
                                              fp8_model *const *models, int32_t num_models,
                                              const int32_t *ids, int64_t num_ids, int64_t window,
                                              int64_t max_windows, const fp8_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
