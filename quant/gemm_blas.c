/* The inner product of a block by OpenBLAS, for processors without loops of our own (where there
 * are some, they are at 0.8 to 1.0 of its speed at its best and several times it where it mistakes
 * the processor; measured: Xeon with AVX-512, 1 thread, 512x1024x384 F32: 130 GFLOP/s, against
 * OpenBLAS 0.3.21 at 150 told OPENBLAS_CORETYPE=SkylakeX, 26 left to itself).
 *
 * It is called by our workers, each on its own block, so it must not start threads itself: that
 * setting is the process's, and is made when the first product runs here, not before. */
#include "quant/gemm_cpu.h"

#if defined(FP8_OPENBLAS) && FP8_OPENBLAS
#include <cblas.h>
#include <pthread.h>

static pthread_once_t configured = PTHREAD_ONCE_INIT;

static void configure(void) { openblas_set_num_threads(1); }

int fp8_blas_available(void) { return 1; }

void fp8_blas_slab(float *c, int64_t ldc, const float *a, const float *b, int b_is_kn, int64_t ldb,
                   int64_t m, int64_t n, int64_t k, int first) {
    (void)pthread_once(&configured, configure);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, b_is_kn ? CblasNoTrans : CblasTrans, (blasint)m,
                (blasint)n, (blasint)k, 1.0f, a, FP8_TILE_A_STRIDE, b, (blasint)ldb,
                first ? 0.0f : 1.0f, c, (blasint)ldc);
}
#else
int fp8_blas_available(void) { return 0; }

void fp8_blas_slab(float *c, int64_t ldc, const float *a, const float *b, int b_is_kn, int64_t ldb,
                   int64_t m, int64_t n, int64_t k, int first) {
    (void)c, (void)ldc, (void)a, (void)b, (void)b_is_kn, (void)ldb;
    (void)m, (void)n, (void)k, (void)first;
}
#endif
