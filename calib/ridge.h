/* calib/ridge.h - private: weights that come nearest to what a Linear made of its exact input, now
 * that it is given another one: for each row w
 *     t = argmin  sum over tokens (w x - t q)^2 + r |t - w|^2
 *       = (w C^T + r w) (H + r I)^-1,   H = sum q q^T, C = sum q x^T,
 * r = ridge * mean diagonal of H. x: the BF16 model's input; q: the quantized model's, codes. What
 * of q's error follows from q itself (a value that is hardly ever different, layers before that
 * were off) is undone by that, the rest is noise that t listens to less. Host, F64. */
#ifndef FP8_CALIB_RIDGE_H
#define FP8_CALIB_RIDGE_H
#include <stdint.h>

#include "core/threads.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_ridge fp8_ridge;

/* hessian, cross [cols, cols] as fp8_hessian_read gives them; cross is kept, the caller's. ridge >
 * 0: doubled until H + r I can be factored. FP8_EDATA: not finite, H not semidefinite. */
FP8_NODISCARD fp8_status fp8_ridge_create(fp8_ridge **out, const double *hessian,
                                          const double *cross, int64_t cols, double ridge,
                                          fp8_pool *pool);
void fp8_ridge_destroy(fp8_ridge *r); /* NULL is fine */

/* t [rows, cols] from w [rows, cols]; may be the same. The same bits for any number of threads. */
FP8_NODISCARD fp8_status fp8_ridge_solve(float *t, const fp8_ridge *r, const float *w,
                                         int64_t rows, fp8_pool *pool);

#ifdef __cplusplus
}
#endif
#endif
