/* calib/gptq.h - private: weights rounded to E4M3 with the error of each carried on to those that
 * are still to be rounded, so that what the Linear makes of its input changes least.
 *
 * Of row w of a weight and the input's H = sum x x^T the loss is (w - q) H (w - q)^T. With
 * H = L L^T (Cholesky) it is the sum over k of (sum over i >= k of (w - q)_i L_ik)^2: from the last
 * input to the first each q_k is rounded once, at
 *     w_k + sum over i > k of (w - q)_i L_ik / L_kk.
 * That is GPTQ (Frantar et al., 2023), which does the same with the factor of H's inverse in the
 * other direction, and Babai's nearest plane. Rows do not see each other, so bytes are the same for
 * any number of threads. */
#ifndef FP8_CALIB_GPTQ_H
#define FP8_CALIB_GPTQ_H
#include <stdint.h>

#include "core/threads.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_gptq fp8_gptq; /* H, damped and factored */

typedef struct fp8_gptq_options {
    double damping; /* of H's mean diagonal, added to all of it; > 0 */
    int act_order;  /* inputs of the largest H_kk are rounded first, while most can still answer */
} fp8_gptq_options;
#define FP8_GPTQ_OPTIONS {0.01, 1}

/* hessian [cols, cols], symmetric, finite, semidefinite: read only. Damping is doubled until the
 * factorization succeeds. An input that was always 0 is rounded plainly. FP8_EDATA: not finite, or
 * not semidefinite; FP8_ENOMEM: 4 cols^2 bytes kept, 8 cols^2 while it works. */
FP8_NODISCARD fp8_status fp8_gptq_create(fp8_gptq **out, const double *hessian, int64_t cols,
                                         const fp8_gptq_options *options, fp8_pool *pool);
void fp8_gptq_destroy(fp8_gptq *g); /* NULL is fine */

/* order [n]: place k of the factor is input order[k], of the smallest H_kk first (act_order), or
 * the last input first; diagonal: H_kk, `stride` apart. FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_gptq_order(int64_t *order, const double *diagonal, int64_t stride,
                                        int64_t n, int act_order);

/* Which scale an element has: number r / row_span * ceil(cols / col_span) + c / col_span. */
typedef struct fp8_gptq_scales {
    const float *scales, *descales;
    int64_t row_span, col_span;
} fp8_gptq_scales;

/* codes [rows, cols] = E4M3 of w [rows, cols]. A row whose loss would not fall below that of plain
 * rounding, cast(w * scale), is rounded plainly. loss[2] (may be NULL) = sum over rows of plain
 * rounding's loss and of what is left of it, under the damped H. */
FP8_NODISCARD fp8_status fp8_gptq_round(uint8_t *codes, double *loss, const fp8_gptq *g,
                                        const float *w, int64_t rows, const fp8_gptq_scales *s,
                                        fp8_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
