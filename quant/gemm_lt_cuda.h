/* quant/gemm_lt_cuda.h - private: what the files that call cuBLASLt share. */
#ifndef FP8_QUANT_GEMM_LT_CUDA_H
#define FP8_QUANT_GEMM_LT_CUDA_H
#include <cublasLt.h>

#include "quant/gemm_cache.h"
#include "quant/gemm_cuda.h"

#define LT_TRY(expr)                                                                               \
    do {                                                                                           \
        const cublasStatus_t e_ = (expr);                                                          \
        if (e_ != CUBLAS_STATUS_SUCCESS) {                                                         \
            st = FP8_FAIL(FP8_ECUDA, "%s: %s", #expr, cublasLtGetStatusString(e_));                \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

/* A call as cuBLASLt sees it: plain structs, nothing to free. */
typedef struct fp8_lt_problem {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t weights, input, addend, result; /* its A, B, C and D */
} fp8_lt_problem;

fp8_status fp8_lt_make_problem(fp8_lt_problem *p, const fp8_lt_call *c);

/* FP8_EUNSUPPORTED: nothing was started, cuBLASLt refuses the algorithm or the call. */
fp8_status fp8_lt_matmul(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                         const cublasLtMatmulAlgo_t *algo, fp8_stream stream);

/* The heuristic's candidates, best first by its own estimate; *count 0: none. */
fp8_status fp8_lt_candidates(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                             cublasLtMatmulHeuristicResult_t *out, int most, int *count);

/* What a choice is filed under; 0 when it cannot be: an operand is not on 16 bytes. */
int fp8_lt_key(fp8_algo_key *key, const fp8_device *d, const fp8_lt_call *c);

/* *found = 0: cuBLASLt has none. Remembered by the process. */
fp8_status fp8_lt_choose(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                         const fp8_lt_call *c, cublasLtMatmulAlgo_t *algo, int *found);

/* cuBLASLt refused what was chosen: the heuristic's next that it takes is run and remembered; or
 * *found = 0, and it has none for this call from now on (logged). */
fp8_status fp8_lt_retry(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                        const fp8_lt_call *c, int *found);

/* Times the candidates for this call and keeps the best. */
fp8_status fp8_lt_time(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                       const fp8_lt_call *c);
#endif
