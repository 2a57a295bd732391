/* Which algorithm a call of cuBLASLt uses: one that was timed (quant/gemm_tune.h), else the
 * heuristic's first. Kept by the process for each combination of everything that it may depend on.
 * Split-K partial sums are reduced in F32 only. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "quant/gemm_lt_cuda.h"

enum {
    NUM_BUCKETS = 1024,
    MAX_ALIGNMENT = 256,
    TMA_ALIGNMENT = 16,
    FEW_ROWS = 16, /* up to here the heuristic is asked about ASKED_ROWS instead: what it proposes
                    * for so few is not made for them */
    ASKED_ROWS = 32,
    RETRIES = 8
};

/* All that the choice may depend on; compared as bytes, so zeroed before it is filled. */
typedef struct lt_key {
    int64_t m, n, k, lda, ldb, ldd, ldr, batch, a_stride, b_stride, d_stride, r_stride;
    size_t workspace_bytes;
    int32_t a_dtype, b_dtype, c_dtype, d_dtype, bias_dtype, b_is_kn, scaling, fast, has_bias;
    int32_t has_residual, gelu, has_amax, has_scale, device;
    uint32_t a_alignment, b_alignment, c_alignment, d_alignment, bias_alignment, reserved;
} lt_key;

typedef struct lt_choice {
    struct lt_choice *next;
    lt_key key;
    uint64_t generation; /* of the timed choices it was made from */
    cublasLtMatmulAlgo_t algo;
    int found;
} lt_choice;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards it */
static lt_choice *buckets[NUM_BUCKETS];

/* FNV-1a */
static size_t bucket_of(const lt_key *key) {
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 32) % NUM_BUCKETS;
}

static lt_choice *entry_of(const lt_key *key) {
    lt_choice *c = buckets[bucket_of(key)];
    while (c && memcmp(&c->key, key, sizeof *key) != 0) c = c->next;
    return c;
}

/* 1 when the choice for this key is known. */
static int look_up(const lt_key *key, uint64_t generation, cublasLtMatmulAlgo_t *algo,
                   int *found) {
    const lt_choice *c;

    pthread_mutex_lock(&lock);
    c = entry_of(key);
    if (c && c->generation != generation) c = NULL;
    if (c) {
        *algo = c->algo;
        *found = c->found;
    }
    pthread_mutex_unlock(&lock);
    return c != NULL;
}

/* Without memory it is merely not remembered. */
static void remember(const lt_key *key, uint64_t generation, const cublasLtMatmulAlgo_t *algo,
                     int found) {
    lt_choice *c;

    pthread_mutex_lock(&lock);
    c = entry_of(key);
    if (!c) {
        c = malloc(sizeof *c);
        if (c) {
            c->key = *key;
            c->next = buckets[bucket_of(key)];
            buckets[bucket_of(key)] = c;
        }
    }
    if (c) {
        c->generation = generation;
        c->algo = *algo;
        c->found = found;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static uint32_t alignment_of(const void *p) {
    uint32_t a = MAX_ALIGNMENT;
    while ((uintptr_t)p % a != 0) a /= 2;
    return a;
}

static void make_key(lt_key *key, const fp8_lt_call *c, int32_t device) {
    const fp8_gemm *g = c->g;
    const int batched = g->batch > 1;

    memset(key, 0, sizeof *key);
    key->m = g->m;
    key->n = g->n;
    key->k = g->k;
    key->lda = g->lda;
    key->ldb = g->ldb;
    key->ldd = c->ldd;
    key->ldr = c->residual ? c->ldr : 0;
    key->batch = batched ? g->batch : 1;
    key->a_stride = batched ? g->a_stride : 0;
    key->b_stride = batched ? g->b_stride : 0;
    key->d_stride = batched ? c->d_stride : 0;
    key->r_stride = batched && c->residual ? c->r_stride : 0;
    key->workspace_bytes = c->workspace_bytes;
    key->a_dtype = (int32_t)g->a_dtype;
    key->b_dtype = (int32_t)g->b_dtype;
    key->c_dtype = (int32_t)c->c_dtype;
    key->d_dtype = (int32_t)c->d_dtype;
    key->bias_dtype = c->bias ? (int32_t)c->bias_dtype : 0;
    key->b_is_kn = g->b_is_kn != 0;
    key->scaling = (int32_t)c->scaling;
    key->fast = g->accumulate == FP8_ACCUMULATE_FAST;
    key->has_bias = c->bias != NULL;
    key->has_residual = c->residual != NULL;
    key->gelu = c->gelu;
    key->has_amax = c->d_amax != NULL;
    key->has_scale = c->d_scale != NULL;
    key->device = device;
    key->a_alignment = alignment_of(g->a);
    key->b_alignment = alignment_of(g->b);
    key->c_alignment = alignment_of(c->residual ? c->residual : c->d);
    key->d_alignment = alignment_of(c->d);
    key->bias_alignment = c->bias ? alignment_of(c->bias) : 0;
}

static int rows_on_16(const void *p, fp8_dtype t, int64_t ld, int64_t batch, int64_t stride) {
    const int64_t size = (int64_t)fp8_dtype_size(t);
    return alignment_of(p) >= TMA_ALIGNMENT && ld * size % TMA_ALIGNMENT == 0 &&
           (batch == 1 || stride * size % TMA_ALIGNMENT == 0);
}

int fp8_lt_key(fp8_algo_key *key, const fp8_device *d, const fp8_lt_call *c) {
    const fp8_gemm *g = c->g;
    const int64_t batch = g->batch > 1 ? g->batch : 1;

    memset(key, 0, sizeof *key);
    if (!rows_on_16(g->a, g->a_dtype, g->lda, batch, g->a_stride) ||
        !rows_on_16(g->b, g->b_dtype, g->ldb, batch, g->b_stride) ||
        !rows_on_16(c->d, c->d_dtype, c->ldd, batch, c->d_stride) ||
        (c->residual && !rows_on_16(c->residual, c->c_dtype, c->ldr, batch, c->r_stride)) ||
        (c->bias && alignment_of(c->bias) < TMA_ALIGNMENT) ||
        strlen(fp8_device_name(d)) >= sizeof key->device)
        return 0;
    memcpy(key->device, fp8_device_name(d), strlen(fp8_device_name(d)));
    key->capability = fp8_device_capability(d);
    key->library = (int64_t)cublasLtGetVersion();
    key->m = g->m;
    key->n = g->n;
    key->k = g->k;
    key->batch = batch;
    key->a = g->a_dtype;
    key->b = g->b_dtype;
    key->d = c->d_dtype;
    key->bias = c->bias ? c->bias_dtype : FP8_NUM_DTYPES;
    key->residual = c->residual ? c->c_dtype : FP8_NUM_DTYPES;
    key->b_is_kn = g->b_is_kn != 0;
    key->scaling = (int32_t)c->scaling;
    key->fast = g->accumulate == FP8_ACCUMULATE_FAST;
    key->gelu = c->gelu;
    key->amax = c->d_amax != NULL;
    return 1;
}

/* ---- candidates ------------------------------------------------------------------------------ */

static fp8_status set_preference(cublasLtMatmulPreferenceOpaque_t *p, const fp8_lt_call *c) {
    const uint64_t bytes = c->workspace_bytes;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } all[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(c->g->b)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(c->g->a)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(c->residual ? c->residual
                                                                              : c->d)},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(c->d)},
    };
    fp8_status st = FP8_OK;

    LT_TRY(cublasLtMatmulPreferenceInit(p));
    LT_TRY(cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                &bytes, sizeof bytes));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        LT_TRY(cublasLtMatmulPreferenceSetAttribute(p, all[i].name, &all[i].value,
                                                    sizeof all[i].value));
done:
    return st;
}

fp8_status fp8_lt_candidates(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                             cublasLtMatmulHeuristicResult_t *out, int most, int *count) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasStatus_t status;
    fp8_status st = FP8_OK;
    int returned = 0;

    *count = 0;
    FP8_TRY(set_preference(&preference, c));
    memset(out, 0, (size_t)most * sizeof *out);
    status = cublasLtMatmulAlgoGetHeuristic(handle, &p->op, &p->weights, &p->input, &p->addend,
                                            &p->result, &preference, most, out, &returned);
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED &&
        status != CUBLAS_STATUS_INVALID_VALUE) {
        st = FP8_FAIL(FP8_ECUDA, "cublasLtMatmulAlgoGetHeuristic: %s",
                      cublasLtGetStatusString(status));
        goto done;
    }
    if (status != CUBLAS_STATUS_SUCCESS) goto done;
    for (int i = 0; i < returned; i++)
        if (out[i].state == CUBLAS_STATUS_SUCCESS) out[(*count)++] = out[i];
done:
    return st;
}

/* ---- the choice ------------------------------------------------------------------------------ */

static void log_choice(const fp8_lt_call *c, const char *what) {
    static const char *const scalings[] = {"no", "scalar", "outer-vector", "block"};
    const fp8_gemm *g = c->g;
    if (!fp8_log_enabled(FP8_LOG_DETAIL)) return;
    fp8_log(FP8_LOG_DETAIL,
            "cuBLASLt: %s x %s -> %s m=%lld n=%lld k=%lld batch=%lld, %s descales, "
            "%s accumulation%s%s%s%s: %s",
            fp8_dtype_name(g->a_dtype), fp8_dtype_name(g->b_dtype), fp8_dtype_name(c->d_dtype),
            (long long)g->m, (long long)g->n, (long long)g->k, (long long)g->batch,
            scalings[c->scaling], g->accumulate == FP8_ACCUMULATE_FAST ? "fast" : "exact",
            c->bias ? ", bias" : "", c->gelu ? ", gelu" : "", c->residual ? ", residual" : "",
            c->d_amax ? ", amax" : "", what);
}

/* Does cuBLASLt take this algorithm for this call? */
static int is_usable(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                     const cublasLtMatmulAlgo_t *algo) {
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    return cublasLtMatmulAlgoCheck(handle, &p->op, &p->weights, &p->input, &p->addend, &p->result,
                                   algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= c->workspace_bytes;
}

/* 1 and *algo when a timed choice serves. */
static int timed_choice(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                        const fp8_lt_call *c, cublasLtMatmulAlgo_t *algo) {
    fp8_algo_entry entry;
    fp8_algo_key key;

    if (!fp8_lt_key(&key, d, c) || !fp8_algo_find(&key, &entry)) return 0;
    memcpy(algo, entry.algo.words, sizeof *algo);
    if (is_usable(handle, p, c, algo)) return 1;
    if (entry.key.m == c->g->m)
        fp8_log(FP8_LOG_WARNING, "gemm cache: cuBLASLt does not take the choice for m=%lld n=%lld "
                "k=%lld with a workspace of %zu bytes", (long long)c->g->m, (long long)c->g->n,
                (long long)c->g->k, c->workspace_bytes);
    return 0;
}

/* The heuristic's first, for few rows of FP8 the first that it has for more and that takes them. */
static fp8_status guess(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                        cublasLtMatmulAlgo_t *algo, int *found) {
    const int fp8 = fp8_dtype_size(c->g->a_dtype) == 1;
    cublasLtMatmulHeuristicResult_t best;
    fp8_gemm more = *c->g;
    fp8_lt_call asked = *c;
    fp8_lt_problem padded;
    fp8_status st = FP8_OK;

    more.m = ASKED_ROWS;
    asked.g = &more;
    *found = 0;
    if (fp8 && c->g->m <= FEW_ROWS) {
        FP8_TRY(fp8_lt_make_problem(&padded, &asked));
        FP8_TRY(fp8_lt_candidates(handle, &padded, &asked, &best, 1, found));
        if (*found && !is_usable(handle, p, c, &best.algo)) *found = 0;
    }
    if (!*found) FP8_TRY(fp8_lt_candidates(handle, p, c, &best, 1, found));
    *algo = best.algo;
done:
    return st;
}

fp8_status fp8_lt_choose(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                         const fp8_lt_call *c, cublasLtMatmulAlgo_t *algo, int *found) {
    const uint64_t generation = fp8_algo_generation();
    fp8_status st = FP8_OK;
    lt_key key;

    make_key(&key, c, fp8_device_index(d));
    if (look_up(&key, generation, algo, found)) goto done;
    *found = timed_choice(d, handle, p, c, algo);
    if (*found) log_choice(c, "an algorithm that was timed");
    else {
        FP8_TRY(guess(handle, p, c, algo, found));
        log_choice(c, *found ? "the heuristic's first" : "no algorithm");
    }
    remember(&key, generation, algo, *found);
done:
    return st;
}

fp8_status fp8_lt_retry(fp8_device *d, cublasLtHandle_t handle, fp8_lt_problem *p,
                        const fp8_lt_call *c, int *found) {
    cublasLtMatmulHeuristicResult_t all[RETRIES];
    fp8_status st;
    int count = 0;
    lt_key key;

    *found = 0;
    FP8_TRY(fp8_lt_candidates(handle, p, c, all, RETRIES, &count));
    for (int i = 0; i < count && !*found; i++) {
        st = fp8_lt_matmul(handle, p, c, &all[i].algo, fp8_device_stream(d));
        if (st == FP8_EUNSUPPORTED) continue;
        FP8_TRY(st);
        *found = 1;
        all[0] = all[i];
    }
    if (!*found)
        fp8_log(FP8_LOG_WARNING, "gemm: m=%lld n=%lld k=%lld, %s x %s -> %s: %s",
                (long long)c->g->m, (long long)c->g->n, (long long)c->g->k,
                fp8_dtype_name(c->g->a_dtype), fp8_dtype_name(c->g->b_dtype),
                fp8_dtype_name(c->d_dtype), fp8_last_message());
    make_key(&key, c, fp8_device_index(d));
    remember(&key, fp8_algo_generation(), &all[0].algo, *found);
    st = FP8_OK;
done:
    return st;
}
