/* calib/solver_impl.h - private: what solver.c and its CUDA half share. */
#ifndef FP8_CALIB_SOLVER_IMPL_H
#define FP8_CALIB_SOLVER_IMPL_H
#include "calib/solver.h"

/* The CUDA half (solver_cuda.c); not there, and not called, in a build without CUDA. */
typedef struct fp8_solver_cuda fp8_solver_cuda;
FP8_NODISCARD fp8_status fp8_solver_cuda_create(fp8_solver_cuda **out, fp8_device *d,
                                                const fp8_hessian *h, int64_t cols,
                                                const fp8_gptq_options *options, double ridge);
void fp8_solver_cuda_destroy(fp8_solver_cuda *s);
FP8_NODISCARD fp8_status fp8_solver_cuda_aim(fp8_solver_cuda *s, float *w, int64_t rows);
FP8_NODISCARD fp8_status fp8_solver_cuda_round(uint8_t *codes, double loss[2], fp8_solver_cuda *s,
                                               const float *w, int64_t rows,
                                               const fp8_gptq_scales *grid);
#endif
