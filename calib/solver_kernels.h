/* calib/solver_kernels.h - private: the launches of solver_cuda.c (solver.cu). All pointers are the
 * device's; matrices row-major and packed; asynchronous. */
#ifndef FP8_CALIB_SOLVER_KERNELS_H
#define FP8_CALIB_SOLVER_KERNELS_H
#include <stdint.h>

#include "core/device.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { FP8_SOLVER_PANEL = 64 }; /* columns that a step factors, or rounds */

/* diagonal [n] of h [n, n]; *bad += how many of h, and of c (may be NULL), are not finite. */
FP8_NODISCARD fp8_status fp8_solver_inspect(fp8_device *d, float *diagonal, int32_t *bad,
                                            const float *h, const float *c, int64_t n);
/* a [n, n] F64 = factor * h[order[i], order[k]] + more on the diagonal; of h's two halves the lower
 * one counts, so that a is symmetric to the bit. order NULL: as it lies. */
FP8_NODISCARD fp8_status fp8_solver_fill(fp8_device *d, double *a, const float *h,
                                         const int32_t *order, int64_t n, double factor,
                                         double more);
/* out = (double)in * factor, or the other way round */
FP8_NODISCARD fp8_status fp8_solver_widen(fp8_device *d, double *out, const float *in, int64_t n,
                                          double factor);
FP8_NODISCARD fp8_status fp8_solver_narrow(fp8_device *d, float *out, const double *in, int64_t n);
/* a [width, width], rows `lda` apart, = its Cholesky factor in the lower triangle; inverse [PANEL,
 * PANEL] = the factor's, zeros above and beyond. *failed = 1 where a pivot is not positive. */
FP8_NODISCARD fp8_status fp8_solver_factor_panel(fp8_device *d, double *a, int64_t lda,
                                                 double *inverse, int32_t width, int32_t *failed);
/* rows [rows, width], `ldd` apart, = packed rows from */
FP8_NODISCARD fp8_status fp8_solver_copy_rows(fp8_device *d, double *to, int64_t ldd,
                                              const double *from, int64_t rows, int64_t width);
/* factor[i,k] = a[i,k] / a[k,k] below the diagonal, else 0; pivots[k] = a[k,k]^2 */
FP8_NODISCARD fp8_status fp8_solver_keep(fp8_device *d, float *factor, double *pivots,
                                         const double *a, int64_t n);

/* A weight [rows, n] on its way, columns in the order of the factor. */
typedef struct fp8_solver_weight {
    int64_t rows, n;
    const int32_t *order;          /* [n]: place k is column order[k] */
    const double *pivots;          /* [n] */
    const float *scales, *descales; /* of grid: r / row_span * across + column / col_span */
    int64_t row_span, col_span, across;
    float *w;                      /* [rows, n] in that order */
    uint8_t *codes[2];             /* [rows, n]: plain, compensated */
    float *errors;                 /* [rows, n] of plain rounding, then [rows, PANEL]: for both */
    float *moved;                  /* [rows, n]: what errors ask of a place */
    double *losses[2];             /* [rows]: plain, compensated */
} fp8_solver_weight;

FP8_NODISCARD fp8_status fp8_solver_permute(fp8_device *d, const fp8_solver_weight *w,
                                            const float *from);
/* codes[0] and errors of plain rounding */
FP8_NODISCARD fp8_status fp8_solver_plain(fp8_device *d, const fp8_solver_weight *w);
/* losses[0] += sum over k of (errors + moved)^2 pivots */
FP8_NODISCARD fp8_status fp8_solver_plain_loss(fp8_device *d, const fp8_solver_weight *w);
/* Places [left, right), at most PANEL of them, from the last to the first: codes[1], errors, what
 * they carry to the places of the panel, losses[1]. factor as fp8_solver_keep makes it. */
FP8_NODISCARD fp8_status fp8_solver_round_panel(fp8_device *d, const fp8_solver_weight *w,
                                                const float *factor, int64_t left, int64_t right);
/* out [rows, n] by column: the compensated codes of a row, or, where they lose no less, the plain
 * ones. places: the inverse of order. */
FP8_NODISCARD fp8_status fp8_solver_select(fp8_device *d, uint8_t *out, const fp8_solver_weight *w,
                                           const int32_t *places);

#ifdef __cplusplus
}
#endif
#endif
