/* One product through cuBLASLt. Row-major D = A B^T is column-major D^T = B A^T, so cuBLASLt's A is
 * our B (weights, transposed) and its B our A (activations): the layout its FP8 kernels want.
 *
 * Descriptors are plain structs on the stack. The heuristic's choice is kept for each combination
 * of everything that it may depend on. Split-K partial sums are reduced in F32 only. */
#include <cublasLt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/log.h"
#include "quant/gemm_cuda.h"

#define LT_TRY(expr)                                                                               \
    do {                                                                                           \
        const cublasStatus_t e_ = (expr);                                                          \
        if (e_ != CUBLAS_STATUS_SUCCESS) {                                                         \
            st = FP8_FAIL(FP8_ECUDA, "%s: %s", #expr, cublasLtGetStatusString(e_));                \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

/* ---- process-wide state: a handle a device, the choices made so far -------------------------- */

enum { MAX_DEVICES = 64, NUM_BUCKETS = 1024, MAX_ALIGNMENT = 256 };

/* All that the choice may depend on; compared as bytes, so zeroed before it is filled. */
typedef struct lt_key {
    int64_t m, n, k, lda, ldb, ldd, batch, a_stride, b_stride, d_stride;
    size_t workspace_bytes;
    int32_t a_dtype, b_dtype, d_dtype, b_is_kn, scaling, fast, has_bias, device;
    uint32_t a_alignment, b_alignment, d_alignment, bias_alignment;
} lt_key;

typedef struct lt_choice {
    struct lt_choice *next;
    lt_key key;
    cublasLtMatmulAlgo_t algo;
    int found;
} lt_choice;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards both */
static cublasLtHandle_t handles[MAX_DEVICES];
static lt_choice *buckets[NUM_BUCKETS];

static fp8_status get_handle(fp8_device *d, cublasLtHandle_t *out) {
    const int32_t device = fp8_device_index(d);
    fp8_status st = FP8_OK;

    pthread_mutex_lock(&lock);
    if (device >= MAX_DEVICES) {
        st = FP8_FAIL(FP8_EUNSUPPORTED, "cuBLASLt on device %d: at most %d", device, MAX_DEVICES);
        goto done;
    }
    if (!handles[device]) LT_TRY(cublasLtCreate(&handles[device]));
    *out = handles[device];
done:
    pthread_mutex_unlock(&lock);
    return st;
}

/* FNV-1a */
static size_t bucket_of(const lt_key *key) {
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 32) % NUM_BUCKETS;
}

/* 1 when the choice for this key is known. */
static int look_up(const lt_key *key, cublasLtMatmulAlgo_t *algo, int *found) {
    const lt_choice *c;

    pthread_mutex_lock(&lock);
    for (c = buckets[bucket_of(key)]; c; c = c->next)
        if (memcmp(&c->key, key, sizeof *key) == 0) break;
    if (c) {
        *algo = c->algo;
        *found = c->found;
    }
    pthread_mutex_unlock(&lock);
    return c != NULL;
}

/* Without memory it is merely not remembered. Two threads may add the same: harmless. */
static void remember(const lt_key *key, const cublasLtMatmulAlgo_t *algo, int found) {
    lt_choice *c = malloc(sizeof *c);
    const size_t bucket = bucket_of(key);

    if (!c) return;
    *c = (lt_choice){.key = *key, .algo = *algo, .found = found};
    pthread_mutex_lock(&lock);
    c->next = buckets[bucket];
    buckets[bucket] = c;
    pthread_mutex_unlock(&lock);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

typedef struct lt_problem {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t weights, input, result; /* cuBLASLt's A, B and D */
} lt_problem;

static cudaDataType_t cuda_type(fp8_dtype t) {
    switch (t) {
    case FP8_DTYPE_BF16: return CUDA_R_16BF;
    case FP8_DTYPE_F16: return CUDA_R_16F;
    case FP8_DTYPE_E4M3: return CUDA_R_8F_E4M3;
    case FP8_DTYPE_E5M2: return CUDA_R_8F_E5M2;
    default: return CUDA_R_32F;
    }
}

static uint32_t alignment_of(const void *p) {
    uint32_t a = MAX_ALIGNMENT;
    while ((uintptr_t)p % a != 0) a /= 2;
    return a;
}

static fp8_status make_matrix(cublasLtMatrixLayoutOpaque_t *m, fp8_dtype t, int64_t rows,
                              int64_t cols, int64_t ld, int64_t batch, int64_t stride) {
    const int32_t count = (int32_t)batch;
    fp8_status st = FP8_OK;

    LT_TRY(cublasLtMatrixLayoutInit(m, cuda_type(t), (uint64_t)rows, (uint64_t)cols, ld));
    if (batch > 1) {
        LT_TRY(cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                                sizeof count));
        LT_TRY(cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &stride, sizeof stride));
    }
done:
    return st;
}

static fp8_status set_op(lt_problem *p, cublasLtMatmulDescAttributes_t attribute, const void *value,
                         size_t bytes) {
    fp8_status st = FP8_OK;
    LT_TRY(cublasLtMatmulDescSetAttribute(&p->op, attribute, value, bytes));
done:
    return st;
}

static fp8_status set_outer(lt_problem *p) {
#if CUBLAS_VERSION >= 120900
    const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    fp8_status st = FP8_OK;
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode, sizeof mode));
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode, sizeof mode));
done:
    return st;
#else
    (void)p;
    return FP8_OK; /* never asked for: fp8_lt_run says there is no algorithm */
#endif
}

static fp8_status set_store(lt_problem *p, const fp8_lt_call *c) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t bias_type = cuda_type(c->d_dtype);
    fp8_status st = FP8_OK;

    if (c->scaling == FP8_LT_OUTER) FP8_TRY(set_outer(p));
    if (c->scaling != FP8_LT_NONE && c->b_descale)
        FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &c->b_descale,
                       sizeof c->b_descale));
    if (c->scaling != FP8_LT_NONE && c->a_descale)
        FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &c->a_descale,
                       sizeof c->a_descale));
    if (!c->bias) goto done;
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &c->bias, sizeof c->bias));
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type));
done:
    return st;
}

static fp8_status make_problem(lt_problem *p, const fp8_lt_call *c) {
    const fp8_gemm *g = c->g;
    const int64_t batch = g->batch > 1 ? g->batch : 1;
    const cublasOperation_t weights_op = g->b_is_kn ? CUBLAS_OP_N : CUBLAS_OP_T;
    const int8_t fast = g->accumulate == FP8_ACCUMULATE_FAST;
    fp8_status st = FP8_OK;

    LT_TRY(cublasLtMatmulDescInit(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_TRANSA, &weights_op, sizeof weights_op));
    FP8_TRY(set_op(p, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    FP8_TRY(set_store(p, c));
    FP8_TRY(make_matrix(&p->weights, g->b_dtype, g->b_is_kn ? g->n : g->k,
                        g->b_is_kn ? g->k : g->n, g->ldb, batch, g->b_stride));
    FP8_TRY(make_matrix(&p->input, g->a_dtype, g->k, g->m, g->lda, batch, g->a_stride));
    FP8_TRY(make_matrix(&p->result, c->d_dtype, g->n, g->m, c->ldd, batch, c->d_stride));
done:
    return st;
}

/* ---- the choice ------------------------------------------------------------------------------ */

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
    key->batch = batched ? g->batch : 1;
    key->a_stride = batched ? g->a_stride : 0;
    key->b_stride = batched ? g->b_stride : 0;
    key->d_stride = batched ? c->d_stride : 0;
    key->workspace_bytes = c->workspace_bytes;
    key->a_dtype = (int32_t)g->a_dtype;
    key->b_dtype = (int32_t)g->b_dtype;
    key->d_dtype = (int32_t)c->d_dtype;
    key->b_is_kn = g->b_is_kn != 0;
    key->scaling = (int32_t)c->scaling;
    key->fast = g->accumulate == FP8_ACCUMULATE_FAST;
    key->has_bias = c->bias != NULL;
    key->device = device;
    key->a_alignment = alignment_of(g->a);
    key->b_alignment = alignment_of(g->b);
    key->d_alignment = alignment_of(c->d);
    key->bias_alignment = c->bias ? alignment_of(c->bias) : 0;
}

static fp8_status set_preference(cublasLtMatmulPreferenceOpaque_t *p, const lt_key *key) {
    const uint64_t bytes = key->workspace_bytes;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } all[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key->b_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key->a_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key->d_alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key->d_alignment},
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

static void log_choice(const lt_key *key, int found) {
    static const char *const scalings[] = {"no", "scalar", "outer-vector"};
    if (!fp8_log_enabled(FP8_LOG_DETAIL)) return;
    fp8_log(FP8_LOG_DETAIL,
            "cuBLASLt: %s x %s -> %s m=%lld n=%lld k=%lld batch=%lld, %s descales, "
            "%s accumulation, %s bias: %s",
            fp8_dtype_name((fp8_dtype)key->a_dtype), fp8_dtype_name((fp8_dtype)key->b_dtype),
            fp8_dtype_name((fp8_dtype)key->d_dtype), (long long)key->m, (long long)key->n,
            (long long)key->k, (long long)key->batch, scalings[key->scaling],
            key->fast ? "fast" : "exact", key->has_bias ? "a" : "no",
            found ? "algorithm chosen" : "no algorithm");
}

static fp8_status choose(cublasLtHandle_t handle, lt_problem *p, const lt_key *key,
                         cublasLtMatmulAlgo_t *algo, int *found) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t best;
    cublasStatus_t status;
    fp8_status st = FP8_OK;
    int count = 0;

    if (look_up(key, algo, found)) goto done;
    FP8_TRY(set_preference(&preference, key));
    memset(&best, 0, sizeof best);
    status = cublasLtMatmulAlgoGetHeuristic(handle, &p->op, &p->weights, &p->input, &p->result,
                                            &p->result, &preference, 1, &best, &count);
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED &&
        status != CUBLAS_STATUS_INVALID_VALUE) {
        st = FP8_FAIL(FP8_ECUDA, "cublasLtMatmulAlgoGetHeuristic: %s",
                      cublasLtGetStatusString(status));
        goto done;
    }
    *found = status == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
    *algo = best.algo;
    remember(key, algo, *found);
    log_choice(key, *found);
done:
    return st;
}

fp8_status fp8_lt_run(fp8_device *d, const fp8_lt_call *call, int *found) {
    const float beta = 0;
    cublasLtHandle_t handle = NULL;
    cublasLtMatmulAlgo_t algo;
    lt_problem p;
    lt_key key;
    fp8_status st = FP8_OK;

    *found = 0;
    if (call->scaling == FP8_LT_OUTER && CUBLAS_VERSION < 120900) goto done;
    FP8_TRY(get_handle(d, &handle));
    FP8_TRY(make_problem(&p, call));
    make_key(&key, call, fp8_device_index(d));
    FP8_TRY(choose(handle, &p, &key, &algo, found));
    if (!*found) goto done;
    LT_TRY(cublasLtMatmul(handle, &p.op, &call->alpha, call->g->b, &p.weights, call->g->a, &p.input,
                          &beta, call->d, &p.result, call->d, &p.result, &algo, call->workspace,
                          call->workspace_bytes, fp8_device_stream(d)));
done:
    return st;
}
