/* quant/gemm_tune.h - which algorithm cuBLASLt runs. Its own first guess is used for a product that
 * was never timed; fp8_gemm_tune times the candidates once, and what it finds is kept by the
 * process and in a cache file, so that a service neither times anything nor depends on a guess.
 *
 * A product's choice is looked up by device name, compute capability, cuBLASLt version, sizes,
 * dtypes, scaling, accumulation and what is fused; for a number of rows that was not timed the next
 * larger timed one serves, up to twice as many (16 for fewer than 8). Neither the look-up nor
 * fp8_gemm_run ever times, writes a file or waits.
 *
 * The file is text, one choice a line. FP8_GEMM_CACHE=path in the environment opens it FOR_UPDATE
 * when the first product runs on CUDA; a bad one is then a warning. Without that variable and
 * without fp8_gemm_cache_open there is no file: nothing is written to a place that nobody named.
 * A choice is given to cuBLASLt only after cuBLASLt has checked it against the product.
 *
 * Thread-safe. */
#ifndef FP8_QUANT_GEMM_TUNE_H
#define FP8_QUANT_GEMM_TUNE_H
#include "quant/gemm.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum fp8_cache_mode {
    FP8_CACHE_READ,      /* choices come from the file; it is never written */
    FP8_CACHE_FOR_UPDATE /* the file may be missing; fp8_gemm_tune adds what it finds to it */
} fp8_cache_mode;

/* Joins the choices in the file to those of the process; newer ones replace older ones. On an error
 * nothing is joined. FP8_EIO, FP8_ENOTFOUND (READ), FP8_EFORMAT: path, line, what is wrong. */
FP8_NODISCARD fp8_status fp8_gemm_cache_open(const char *path, fp8_cache_mode mode);

/* Writes all choices of the process to `path`, by a temporary file beside it that replaces it.
 * FP8_EIO, FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_gemm_cache_save(const char *path);

/* Forgets all choices, and the file. */
void fp8_gemm_cache_clear(void);
int64_t fp8_gemm_cache_count(void);

/* What a tuning found; all 0 where cuBLASLt has no part in the product. */
typedef struct fp8_gemm_tuned {
    int32_t candidates;
    double first_us, best_us; /* median time of cuBLASLt's first guess, and of the choice */
} fp8_gemm_tuned;

/* Times cuBLASLt's candidates for fp8_gemm_run(d, g, workspace, workspace_bytes) with a cold L2
 * cache and keeps the fastest; cuBLASLt's first guess stays unless another is 1 % faster. The
 * product is made on scratch: of g's pointers only a and b are read, where they are not NULL (else
 * they too are scratch, random numbers); of the others it counts whether they are NULL. Waits;
 * allocates device memory for the scratch and twice the L2 cache, and frees it. On the CPU there is
 * nothing to do. tuned may be NULL. FP8_EINVAL, also while the stream is being captured;
 * FP8_EUNSUPPORTED, FP8_ENOMEM, FP8_ECUDA, FP8_EIO (the cache file). */
FP8_NODISCARD fp8_status fp8_gemm_tune(fp8_device *d, const fp8_gemm *g, void *workspace,
                                       size_t workspace_bytes, fp8_gemm_tuned *tuned);

/* The same for who must not get another result than without: a candidate is kept only if it gives
 * the first guess's bits (the beginning, middle and end of D, of random numbers: another order of
 * sums shows there). A product that was timed before stays as it is. */
FP8_NODISCARD fp8_status fp8_gemm_tune_same_bits(fp8_device *d, const fp8_gemm *g, void *workspace,
                                                 size_t workspace_bytes, fp8_gemm_tuned *tuned);

#ifdef __cplusplus
}
#endif
#endif
