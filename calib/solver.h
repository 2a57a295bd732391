/* calib/solver.h - private: the two things that compensated rounding does with the sums of an
 * input: weights aimed at the BF16 model's output (ridge.h), and rounded with their errors carried
 * on (gptq.h). On the host by those two; on CUDA the same, a panel of 64 columns at a time, by
 * matrix products of cuBLASLt and the kernels of solver.cu. Both hold the same formulas; the device
 * sums in another order, so that a code between two values may fall the other way. */
#ifndef FP8_CALIB_SOLVER_H
#define FP8_CALIB_SOLVER_H
#include <stdint.h>

#include "calib/gptq.h"
#include "calib/hessian.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_solver fp8_solver;

/* Of the sums in h, `cols` wide, which may begin anew afterwards. ridge as fp8_ridge_create has
 * it; 0: weights are not aimed. Damping and ridge are doubled until the factor exists. FP8_EDATA:
 * sums that are not finite, or not semidefinite. Host: 24 cols^2 bytes; CUDA: 20 cols^2 on the
 * device. */
FP8_NODISCARD fp8_status fp8_solver_create(fp8_solver **out, fp8_device *d, fp8_hessian *h,
                                           int64_t cols, const fp8_gptq_options *options,
                                           double ridge);
void fp8_solver_destroy(fp8_solver *s); /* NULL is fine */

/* w [rows, cols], host: moved to where it makes of the quantized input what it made of the exact
 * one; nothing without a ridge. CUDA: 28 rows cols bytes on the device meanwhile. */
FP8_NODISCARD fp8_status fp8_solver_aim(fp8_solver *s, float *w, int64_t rows);
/* codes, loss, w, grid: host, as fp8_gptq_round. CUDA: 16 rows cols bytes on the device. */
FP8_NODISCARD fp8_status fp8_solver_round(uint8_t *codes, double loss[2], fp8_solver *s,
                                          const float *w, int64_t rows,
                                          const fp8_gptq_scales *grid);

#ifdef __cplusplus
}
#endif
#endif
