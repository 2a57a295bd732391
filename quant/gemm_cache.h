/* quant/gemm_cache.h - private: the choices of algorithms that were timed, in memory and as text.
 * The same in every build: it knows nothing of CUDA. */
#ifndef FP8_QUANT_GEMM_CACHE_H
#define FP8_QUANT_GEMM_CACHE_H
#include "core/dtype.h"
#include "core/status.h"

enum { FP8_ALGO_WORDS = 8, FP8_ALGO_DEVICE_BYTES = 64 };

/* What a choice depends on. m, batch >= 1, k, n >= 1. */
typedef struct fp8_algo_key {
    char device[FP8_ALGO_DEVICE_BYTES];
    int32_t capability;
    int64_t library; /* cublasLtGetVersion() */
    int64_t m, n, k, batch;
    fp8_dtype a, b, d;
    fp8_dtype bias, residual; /* FP8_NUM_DTYPES = none */
    int32_t b_is_kn, scaling, fast, gelu, amax; /* scaling: fp8_lt_scaling */
} fp8_algo_key;

typedef struct fp8_algo {
    uint64_t words[FP8_ALGO_WORDS]; /* cublasLtMatmulAlgo_t */
    int64_t workspace_bytes, ns;    /* what it needs; the time that was measured */
} fp8_algo;

typedef struct fp8_algo_entry {
    fp8_algo_key key;
    fp8_algo algo;
} fp8_algo_entry;

typedef struct fp8_algo_list {
    fp8_algo_entry *items;
    int64_t count, capacity;
} fp8_algo_list;

/* An entry with the same key is replaced. FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_algo_list_put(fp8_algo_list *l, const fp8_algo_entry *e);
void fp8_algo_list_free(fp8_algo_list *l);

/* The entry for key, or for the smallest m above key's that is at most twice it, or 16. NULL. */
const fp8_algo_entry *fp8_algo_list_find(const fp8_algo_list *l, const fp8_algo_key *key);

/* Adds the entries of a file's text. `name` is for messages. FP8_EFORMAT, FP8_ENOMEM. */
FP8_NODISCARD fp8_status fp8_algo_list_parse(fp8_algo_list *l, const char *name, const char *text,
                                             size_t bytes);

/* Sorts l and makes the file's text of it: free(*text). */
FP8_NODISCARD fp8_status fp8_algo_list_print(fp8_algo_list *l, char **text, size_t *bytes);

/* ---- those of the process -------------------------------------------------------------------- */

/* 1 when found. Opens $FP8_GEMM_CACHE the first time. */
int fp8_algo_find(const fp8_algo_key *key, fp8_algo_entry *out);

/* Keeps it, and joins it to the file that is open for update. */
FP8_NODISCARD fp8_status fp8_algo_keep(const fp8_algo_entry *e);

/* Goes up whenever an answer of fp8_algo_find may have changed. */
uint64_t fp8_algo_generation(void);
#endif
