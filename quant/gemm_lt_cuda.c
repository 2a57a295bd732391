/* One product through cuBLASLt. Row-major D = A B^T is column-major D^T = B A^T, so cuBLASLt's A is
 * our B (weights, transposed) and its B our A (activations): the layout its FP8 kernels want.
 *
 * Descriptors are plain structs on the stack. */
#include <pthread.h>

#include "quant/gemm_lt_cuda.h"

/* ---- a handle a device ----------------------------------------------------------------------- */

enum { MAX_DEVICES = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards it */
static cublasLtHandle_t handles[MAX_DEVICES];

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

/* ---- descriptors ----------------------------------------------------------------------------- */

static cudaDataType_t cuda_type(fp8_dtype t) {
    switch (t) {
    case FP8_DTYPE_BF16: return CUDA_R_16BF;
    case FP8_DTYPE_F16: return CUDA_R_16F;
    case FP8_DTYPE_E4M3: return CUDA_R_8F_E4M3;
    case FP8_DTYPE_E5M2: return CUDA_R_8F_E5M2;
    default: return CUDA_R_32F;
    }
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

typedef struct op_attribute {
    cublasLtMatmulDescAttributes_t name;
    const void *value;
    size_t bytes;
} op_attribute;

static fp8_status set_all(fp8_lt_problem *p, const op_attribute *all, size_t count) {
    fp8_status st = FP8_OK;
    for (size_t i = 0; i < count; i++)
        LT_TRY(cublasLtMatmulDescSetAttribute(&p->op, all[i].name, all[i].value, all[i].bytes));
done:
    return st;
}

#if CUBLAS_VERSION >= 120900
static fp8_status set_scale_modes(fp8_lt_problem *p, const fp8_lt_call *c) {
    const int outer = c->scaling == FP8_LT_OUTER;
    const int32_t weights = outer ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                  : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    const int32_t input = outer ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    const op_attribute all[] = {
        {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &weights, sizeof weights},
        {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &input, sizeof input},
    };
    return set_all(p, all, sizeof all / sizeof *all);
}
#else
static fp8_status set_scale_modes(fp8_lt_problem *p, const fp8_lt_call *c) {
    (void)p, (void)c;
    return FP8_OK; /* never asked for: fp8_lt_run says there is no algorithm */
}
#endif

static fp8_status set_scales(fp8_lt_problem *p, const fp8_lt_call *c) {
    const op_attribute all[] = {
        {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &c->b_descale, sizeof c->b_descale},
        {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &c->a_descale, sizeof c->a_descale},
        {CUBLASLT_MATMUL_DESC_D_SCALE_POINTER, &c->d_scale, sizeof c->d_scale},
        {CUBLASLT_MATMUL_DESC_AMAX_D_POINTER, &c->d_amax, sizeof c->d_amax},
    };
    const int wanted[] = {c->scaling != FP8_LT_NONE && c->b_descale,
                          c->scaling != FP8_LT_NONE && c->a_descale, c->d_scale != NULL,
                          c->d_amax != NULL};
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (wanted[i]) FP8_TRY(set_all(p, &all[i], 1));
    if (c->scaling == FP8_LT_OUTER || c->scaling == FP8_LT_BLOCKS) FP8_TRY(set_scale_modes(p, c));
done:
    return st;
}

static fp8_status set_epilogue(fp8_lt_problem *p, const fp8_lt_call *c) {
    const cublasLtEpilogue_t epilogue =
        c->gelu ? (c->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
                : (c->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT);
    const cudaDataType_t bias_type = cuda_type(c->bias_dtype);
    const op_attribute all[] = {
        {CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue},
        {CUBLASLT_MATMUL_DESC_BIAS_POINTER, &c->bias, sizeof c->bias},
        {CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type},
    };
    return set_all(p, all, c->bias ? 3 : 1);
}

fp8_status fp8_lt_make_problem(fp8_lt_problem *p, const fp8_lt_call *c) {
    const fp8_gemm *g = c->g;
    const int64_t batch = g->batch > 1 ? g->batch : 1;
    const cublasOperation_t weights_op = g->b_is_kn ? CUBLAS_OP_N : CUBLAS_OP_T;
    const int8_t fast = g->accumulate == FP8_ACCUMULATE_FAST && fp8_dtype_size(g->a_dtype) == 1;
    const op_attribute all[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &weights_op, sizeof weights_op},
        {CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast},
    };
    fp8_status st = FP8_OK;

    LT_TRY(cublasLtMatmulDescInit(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    FP8_TRY(set_all(p, all, sizeof all / sizeof *all));
    FP8_TRY(set_scales(p, c));
    FP8_TRY(set_epilogue(p, c));
    FP8_TRY(make_matrix(&p->weights, g->b_dtype, g->b_is_kn ? g->n : g->k,
                        g->b_is_kn ? g->k : g->n, g->ldb, batch, g->b_stride));
    FP8_TRY(make_matrix(&p->input, g->a_dtype, g->k, g->m, g->lda, batch, g->a_stride));
    FP8_TRY(make_matrix(&p->addend, c->c_dtype, g->n, g->m, c->residual ? c->ldr : c->ldd, batch,
                        c->residual ? c->r_stride : c->d_stride));
    FP8_TRY(make_matrix(&p->result, c->d_dtype, g->n, g->m, c->ldd, batch, c->d_stride));
done:
    return st;
}

/* ---- the call -------------------------------------------------------------------------------- */

/* C without a residual: D where it may be, which it may not in place of an FP8 D (measured: cuBLAS
 * 13.1, H200, 2026-11-21: "an unsupported value or parameter"). beta is 0, so it is not read. */
static const void *addend_of(const fp8_lt_call *c) {
    if (c->residual) return c->residual;
    return c->d_dtype == c->c_dtype ? c->d : NULL;
}

fp8_status fp8_lt_matmul(cublasLtHandle_t handle, fp8_lt_problem *p, const fp8_lt_call *c,
                         const cublasLtMatmulAlgo_t *algo, fp8_stream stream) {
    const float beta = c->residual ? 1 : 0;
    const cublasStatus_t status =
        cublasLtMatmul(handle, &p->op, &c->alpha, c->g->b, &p->weights, c->g->a, &p->input, &beta,
                       addend_of(c), &p->addend, c->d, &p->result, algo, c->workspace,
                       c->workspace_bytes, stream);

    if (status == CUBLAS_STATUS_SUCCESS) return FP8_OK;
    if (status == CUBLAS_STATUS_INVALID_VALUE || status == CUBLAS_STATUS_NOT_SUPPORTED)
        return FP8_FAIL(FP8_EUNSUPPORTED, "cublasLtMatmul: %s", cublasLtGetStatusString(status));
    return FP8_FAIL(FP8_ECUDA, "cublasLtMatmul: %s", cublasLtGetStatusString(status));
}

fp8_status fp8_lt_run(fp8_device *d, const fp8_lt_call *call, int *found) {
    const int new_mode = call->scaling == FP8_LT_OUTER || call->scaling == FP8_LT_BLOCKS;
    cublasLtHandle_t handle = NULL;
    cublasLtMatmulAlgo_t algo;
    fp8_lt_problem p;
    fp8_status st = FP8_OK;

    *found = 0;
    if (new_mode && CUBLAS_VERSION < 120900) goto done;
    FP8_TRY(get_handle(d, &handle));
    FP8_TRY(fp8_lt_make_problem(&p, call));
    if (call->tuning) FP8_TRY(fp8_lt_time(d, handle, &p, call));
    FP8_TRY(fp8_lt_choose(d, handle, &p, call, &algo, found));
    if (!*found) goto done;
    st = fp8_lt_matmul(handle, &p, call, &algo, fp8_device_stream(d));
    if (st == FP8_EUNSUPPORTED) st = fp8_lt_retry(d, handle, &p, call, found);
done:
    return st;
}
