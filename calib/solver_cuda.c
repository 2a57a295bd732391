/* The solver on CUDA: panels of 64 columns by kernels (solver.cu), all between them by cuBLASLt, in
 * F64 up to the factor and in F32 where codes are made. */
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "calib/solver_impl.h"
#include "calib/solver_kernels.h"
#include "core/log.h"

enum { PANEL = FP8_SOLVER_PANEL, MOST_DOUBLINGS = 16 };

struct fp8_solver_cuda {
    fp8_device *d;
    cublasLtHandle_t lt;
    int64_t n, panels;
    double *a;       /* [n, n]: L of H + r I */
    double *inverse; /* [panels][PANEL, PANEL]: of L's diagonal blocks */
    double *cross;   /* [n, n]; NULL: weights are not aimed */
    double *part;    /* [n, PANEL] */
    double r;
    float *factor; /* [n, n], below the diagonal, as the host's fp8_gptq has it */
    double *pivots;
    int32_t *order, *places; /* [n]: column of a place, place of a column */
    int32_t *flag;
};

/* ---- products -------------------------------------------------------------------------------- */

/* D [m, n] = alpha A [m, k] B + beta D, row-major, rows ld apart; B [n, k], or [k, n] by_rows. */
typedef struct product {
    cudaDataType_t type; /* R_64F | R_32F */
    int64_t m, n, k;
    const void *a, *b;
    void *d;
    int64_t lda, ldb, ldd;
    int by_rows;
    double alpha, beta;
} product;

#define LT(call)                                                                                   \
    do {                                                                                           \
        const cublasStatus_t s_ = (call);                                                          \
        if (s_ != CUBLAS_STATUS_SUCCESS) {                                                         \
            st = FP8_FAIL(FP8_ECUDA, "%s: cuBLASLt status %d", #call, (int)s_);                    \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

/* The bytes on which the pointer and all its rows lie, up to what cuBLASLt asks for. */
static uint32_t alignment_of(const void *p, int64_t ld, int wide) {
    const uint64_t both = (uint64_t)(uintptr_t)p | (uint64_t)ld * (wide ? 8 : 4) | 256;
    return (uint32_t)(both & (~both + 1));
}

/* An algorithm for operands that begin anywhere. */
static fp8_status find_algorithm(const fp8_solver_cuda *s, const product *p,
                                 cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                 cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t d,
                                 cublasLtMatmulHeuristicResult_t *found) {
    const int wide = p->type == CUDA_R_64F;
    const uint32_t align[4] = {alignment_of(p->b, p->ldb, wide), alignment_of(p->a, p->lda, wide),
                               alignment_of(p->d, p->ldd, wide), alignment_of(p->d, p->ldd, wide)};
    static const cublasLtMatmulPreferenceAttributes_t names[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t want = NULL;
    fp8_status st = FP8_OK;
    int count = 0;

    LT(cublasLtMatmulPreferenceCreate(&want));
    for (int i = 0; i < 4; i++)
        LT(cublasLtMatmulPreferenceSetAttribute(want, names[i], &align[i], sizeof align[i]));
    LT(cublasLtMatmulAlgoGetHeuristic(s->lt, desc, a, b, d, d, want, 1, found, &count));
    if (count == 0)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "cuBLASLt has no algorithm for a product of %lld x %lld x "
                      "%lld in F%d", (long long)p->m, (long long)p->n, (long long)p->k,
                      wide ? 64 : 32);
done:
    if (want) (void)cublasLtMatmulPreferenceDestroy(want);
    return st;
}

/* Row-major D = A B^T is column-major D^T = B A^T. */
static fp8_status multiply(const fp8_solver_cuda *s, const product *p) {
    const int wide = p->type == CUDA_R_64F;
    cublasLtMatmulHeuristicResult_t found;
    const float alpha = (float)p->alpha, beta = (float)p->beta;
    const cublasOperation_t op = p->by_rows ? CUBLAS_OP_N : CUBLAS_OP_T;
    cublasLtMatmulDesc_t desc = NULL;
    cublasLtMatrixLayout_t a = NULL, b = NULL, d = NULL;
    fp8_status st = FP8_OK;

    if (p->m == 0 || p->n == 0 || p->k == 0) return FP8_OK;
    LT(cublasLtMatmulDescCreate(&desc, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F, p->type));
    LT(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof op));
    LT(cublasLtMatrixLayoutCreate(&a, p->type, (uint64_t)(p->by_rows ? p->n : p->k),
                                  (uint64_t)(p->by_rows ? p->k : p->n), p->ldb));
    LT(cublasLtMatrixLayoutCreate(&b, p->type, (uint64_t)p->k, (uint64_t)p->m, p->lda));
    LT(cublasLtMatrixLayoutCreate(&d, p->type, (uint64_t)p->n, (uint64_t)p->m, p->ldd));
    FP8_TRY(find_algorithm(s, p, desc, a, b, d, &found));
    LT(cublasLtMatmul(s->lt, desc, wide ? (const void *)&p->alpha : (const void *)&alpha, p->b, a,
                      p->a, b, wide ? (const void *)&p->beta : (const void *)&beta, p->d, d, p->d,
                      d, &found.algo, NULL, 0, fp8_device_stream(s->d)));
done:
    if (a) (void)cublasLtMatrixLayoutDestroy(a);
    if (b) (void)cublasLtMatrixLayoutDestroy(b);
    if (d) (void)cublasLtMatrixLayoutDestroy(d);
    if (desc) (void)cublasLtMatmulDescDestroy(desc);
    return st;
}

/* ---- the factor ------------------------------------------------------------------------------ */

static int64_t width_of(const fp8_solver_cuda *s, int64_t panel) {
    const int64_t left = s->n - panel * PANEL;
    return left < PANEL ? left : PANEL;
}

/* s->a = L L^T, L in its lower triangle; *failed on the host. */
static fp8_status factor(fp8_solver_cuda *s, int32_t *failed) {
    const int64_t n = s->n;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_fill(s->d, s->flag, 0, sizeof *s->flag));
    for (int64_t p = 0; p < s->panels; p++) {
        const int64_t begin = p * PANEL, width = width_of(s, p), end = begin + width;
        double *corner = s->a + begin * n + begin, *below = s->a + end * n + begin;
        double *inverse = s->inverse + p * PANEL * PANEL;
        const product solve = {CUDA_R_64F, n - end, width, width, below, inverse, s->part, n,
                               PANEL, width, 0, 1, 0};
        const product update = {CUDA_R_64F, n - end, n - end, width, below, below,
                                s->a + end * n + end, n, n, n, 0, -1, 1};
        FP8_TRY(fp8_solver_factor_panel(s->d, corner, n, inverse, (int32_t)width, s->flag));
        FP8_TRY(multiply(s, &solve));
        FP8_TRY(fp8_solver_copy_rows(s->d, below, n, s->part, n - end, width));
        FP8_TRY(multiply(s, &update));
    }
    FP8_TRY(fp8_device_download(s->d, failed, s->flag, sizeof *failed));
done:
    return st;
}

/* Of H + what it takes; *added is that. */
static fp8_status factor_damped(fp8_solver_cuda *s, const float *h, double scale,
                                const int32_t *order, double damping, double mean, double *added) {
    int32_t failed = 1;
    fp8_status st = FP8_OK;

    for (int tries = 0; tries < MOST_DOUBLINGS && failed; tries++) {
        if (tries)
            fp8_log(FP8_LOG_WARNING, "compensated rounding: %lld inputs whose products a damping "
                    "of %g does not make definite: doubled", (long long)s->n, damping);
        if (tries) damping *= 2;
        *added = damping * mean;
        FP8_TRY(fp8_solver_fill(s->d, s->a, h, order, s->n, scale, *added));
        FP8_TRY(factor(s, &failed));
    }
    if (failed)
        st = FP8_FAIL(FP8_EDATA, "compensated rounding: the products of %lld inputs are not "
                      "semidefinite", (long long)s->n);
done:
    return st;
}

/* The diagonal of H, its mean, and the order of the inputs. */
static fp8_status look(fp8_solver_cuda *s, const float *h, const float *c, double scale,
                       int act_order, double *mean) {
    const size_t n = (size_t)s->n;
    float *diagonal = malloc(n * sizeof *diagonal), *there = NULL;
    double *wide = malloc(n * sizeof *wide);
    int64_t *order = malloc(n * sizeof *order);
    int32_t *both = malloc(2 * n * sizeof *both), bad = 0;
    fp8_status st = FP8_OK;

    if (!diagonal || !wide || !order || !both)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "order of %lld inputs", (long long)s->n));
    FP8_TRY(fp8_device_alloc(s->d, (void **)&there, n * sizeof *there));
    FP8_TRY(fp8_device_fill(s->d, s->flag, 0, sizeof *s->flag));
    FP8_TRY(fp8_solver_inspect(s->d, there, s->flag, h, c, s->n));
    FP8_TRY(fp8_device_download(s->d, diagonal, there, n * sizeof *diagonal));
    FP8_TRY(fp8_device_download(s->d, &bad, s->flag, sizeof bad));
    if (bad)
        FP8_TRY(FP8_FAIL(FP8_EDATA, "compensated rounding: %d of the products of %lld inputs are "
                         "not finite", (int)bad, (long long)s->n));
    *mean = 0;
    for (size_t i = 0; i < n; i++) {
        wide[i] = (double)diagonal[i] * scale;
        *mean += wide[i] / (double)n;
    }
    if (!(*mean > 0)) *mean = 1; /* nothing but zeros was seen */
    FP8_TRY(fp8_gptq_order(order, wide, 1, s->n, act_order));
    for (size_t k = 0; k < n; k++) {
        both[k] = (int32_t)order[k];
        both[n + (size_t)order[k]] = (int32_t)k;
    }
    FP8_TRY(fp8_device_upload(s->d, s->order, both, n * sizeof *both));
    FP8_TRY(fp8_device_upload(s->d, s->places, both + n, n * sizeof *both));
done:
    fp8_device_free(s->d, there);
    free(diagonal);
    free(wide);
    free(order);
    free(both);
    return st;
}

static fp8_status allocate(fp8_solver_cuda *s, int aims) {
    const size_t n = (size_t)s->n, square = n * n;
    const struct {
        void **out;
        size_t bytes;
    } all[] = {
        {(void **)&s->a, square * sizeof *s->a},
        {(void **)&s->inverse, (size_t)s->panels * PANEL * PANEL * sizeof *s->inverse},
        {(void **)&s->cross, aims ? square * sizeof *s->cross : 0},
        {(void **)&s->part, n * PANEL * sizeof *s->part},
        {(void **)&s->factor, square * sizeof *s->factor},
        {(void **)&s->pivots, n * sizeof *s->pivots},
        {(void **)&s->order, n * sizeof *s->order},
        {(void **)&s->places, n * sizeof *s->places},
        {(void **)&s->flag, sizeof *s->flag},
    };
    fp8_status st = FP8_OK;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].bytes) FP8_TRY(fp8_device_alloc(s->d, all[i].out, all[i].bytes));
    LT(cublasLtCreate(&s->lt));
done:
    return st;
}

fp8_status fp8_solver_cuda_create(fp8_solver_cuda **out, fp8_device *d, const fp8_hessian *h,
                                  int64_t cols, const fp8_gptq_options *options, double ridge) {
    fp8_solver_cuda *s = calloc(1, sizeof *s);
    const float *sums, *cross;
    double scale, mean, damped;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    s->d = d;
    s->n = cols;
    s->panels = (cols + PANEL - 1) / PANEL;
    fp8_hessian_sums(h, &sums, &cross, &scale);
    FP8_TRY(allocate(s, ridge > 0));
    FP8_TRY(look(s, sums, ridge > 0 ? cross : NULL, scale * scale, options->act_order, &mean));
    FP8_TRY(factor_damped(s, sums, scale * scale, s->order, options->damping, mean, &damped));
    FP8_TRY(fp8_solver_keep(d, s->factor, s->pivots, s->a, cols));
    if (ridge > 0) {
        FP8_TRY(factor_damped(s, sums, scale * scale, NULL, ridge, mean, &s->r));
        FP8_TRY(fp8_solver_widen(d, s->cross, cross, cols * cols, scale));
    }
    *out = s;
    s = NULL;
done:
    fp8_solver_cuda_destroy(s);
    return st;
}

void fp8_solver_cuda_destroy(fp8_solver_cuda *s) {
    if (!s) return;
    fp8_device_free(s->d, s->a);
    fp8_device_free(s->d, s->inverse);
    fp8_device_free(s->d, s->cross);
    fp8_device_free(s->d, s->part);
    fp8_device_free(s->d, s->factor);
    fp8_device_free(s->d, s->pivots);
    fp8_device_free(s->d, s->order);
    fp8_device_free(s->d, s->places);
    fp8_device_free(s->d, s->flag);
    if (s->lt) (void)cublasLtDestroy(s->lt);
    free(s);
}

/* ---- aim ------------------------------------------------------------------------------------- */

/* b's columns of panel p = part of them times the inverse of L's corner, or its transpose. */
static fp8_status solve_panel(const fp8_solver_cuda *s, double *b, int64_t rows, int64_t p,
                              int by_rows, double *part) {
    const int64_t width = width_of(s, p);
    double *at = b + p * PANEL;
    const product solve = {CUDA_R_64F, rows, width, width, at, s->inverse + p * PANEL * PANEL, part,
                           s->n, PANEL, width, by_rows, 1, 0};
    fp8_status st = FP8_OK;

    FP8_TRY(multiply(s, &solve));
    FP8_TRY(fp8_solver_copy_rows(s->d, at, s->n, part, rows, width));
done:
    return st;
}

/* z L^T = b, then t L = z, in place of b. */
static fp8_status substitute(const fp8_solver_cuda *s, double *b, int64_t rows, double *part) {
    const int64_t n = s->n;
    fp8_status st = FP8_OK;

    for (int64_t p = 0; p < s->panels; p++) {
        const product update = {CUDA_R_64F, rows, width_of(s, p), p * PANEL, b,
                                s->a + p * PANEL * n, b + p * PANEL, n, n, n, 0, -1, 1};
        FP8_TRY(multiply(s, &update));
        FP8_TRY(solve_panel(s, b, rows, p, 0, part));
    }
    for (int64_t p = s->panels - 1; p >= 0; p--) {
        const int64_t end = p * PANEL + width_of(s, p);
        const product update = {CUDA_R_64F, rows, width_of(s, p), n - end, b + end,
                                s->a + end * n + p * PANEL, b + p * PANEL, n, n, n, 1, -1, 1};
        FP8_TRY(multiply(s, &update));
        FP8_TRY(solve_panel(s, b, rows, p, 1, part));
    }
done:
    return st;
}

fp8_status fp8_solver_cuda_aim(fp8_solver_cuda *s, float *w, int64_t rows) {
    const size_t count = (size_t)(rows * s->n);
    double *from = NULL, *b = NULL, *part = NULL;
    float *there = NULL;
    fp8_status st = FP8_OK;

    if (!s->cross || rows == 0) return FP8_OK;
    FP8_TRY(fp8_device_alloc(s->d, (void **)&there, count * sizeof *there));
    FP8_TRY(fp8_device_alloc(s->d, (void **)&from, count * sizeof *from));
    FP8_TRY(fp8_device_alloc(s->d, (void **)&b, count * sizeof *b));
    FP8_TRY(fp8_device_alloc(s->d, (void **)&part, (size_t)rows * PANEL * sizeof *part));
    FP8_TRY(fp8_device_upload(s->d, there, w, count * sizeof *w));
    FP8_TRY(fp8_solver_widen(s->d, from, there, (int64_t)count, 1));
    FP8_TRY(fp8_device_copy(s->d, b, from, count * sizeof *b));
    const product right = {CUDA_R_64F, rows, s->n, s->n, from, s->cross, b, s->n, s->n, s->n, 0, 1,
                           s->r};
    FP8_TRY(multiply(s, &right));
    FP8_TRY(substitute(s, b, rows, part));
    FP8_TRY(fp8_solver_narrow(s->d, there, b, (int64_t)count));
    FP8_TRY(fp8_device_download(s->d, w, there, count * sizeof *w));
done:
    fp8_device_free(s->d, there);
    fp8_device_free(s->d, from);
    fp8_device_free(s->d, b);
    fp8_device_free(s->d, part);
    return st;
}

/* ---- round ----------------------------------------------------------------------------------- */

/* What all errors of plain rounding would have asked, at once: the factor is 0 above its
 * diagonal. */
static fp8_status round_plainly(const fp8_solver_cuda *s, const fp8_solver_weight *w) {
    const product carry = {CUDA_R_32F, w->rows, s->n, s->n, w->errors, s->factor, w->moved, s->n,
                           s->n, s->n, 1, 1, 0};
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_solver_plain(s->d, w));
    FP8_TRY(multiply(s, &carry));
    FP8_TRY(fp8_solver_plain_loss(s->d, w));
done:
    return st;
}

static fp8_status round_panels(const fp8_solver_cuda *s, const fp8_solver_weight *w) {
    const size_t bytes = (size_t)(w->rows * s->n) * sizeof *w->moved;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_fill(s->d, w->moved, 0, bytes));
    for (int64_t p = s->panels - 1; p >= 0; p--) {
        const int64_t left = p * PANEL, width = width_of(s, p);
        const product carry = {CUDA_R_32F, w->rows, left, width, w->errors, s->factor + left * s->n,
                               w->moved, PANEL, s->n, s->n, 1, 1, 1};
        FP8_TRY(fp8_solver_round_panel(s->d, w, s->factor, left, left + width));
        FP8_TRY(multiply(s, &carry));
    }
done:
    return st;
}

static fp8_status sum_losses(const fp8_solver_cuda *s, const fp8_solver_weight *w, double loss[2]) {
    double *rows = malloc((size_t)w->rows * 2 * sizeof *rows);
    fp8_status st = FP8_OK;

    if (!rows) return FP8_FAIL(FP8_ENOMEM, "losses of %lld rows", (long long)w->rows);
    FP8_TRY(fp8_device_download(s->d, rows, w->losses[0], (size_t)w->rows * 2 * sizeof *rows));
    loss[0] = loss[1] = 0;
    for (int64_t r = 0; r < w->rows; r++) {
        const double plain = rows[r], other = rows[w->rows + r];
        loss[0] += plain;
        loss[1] += other < plain ? other : plain;
    }
done:
    free(rows);
    return st;
}

/* Device memory of one weight; everything hangs on `*room`. */
static fp8_status open_weight(const fp8_solver_cuda *s, fp8_solver_weight *w, char **room,
                              const fp8_gptq_scales *grid) {
    const size_t count = (size_t)(w->rows * s->n), align = 256;
    const size_t num_scales = (size_t)((w->rows + grid->row_span - 1) / grid->row_span * w->across);
    const size_t panel = (size_t)(w->rows * PANEL); /* a panel's errors, however narrow n is */
    const size_t errors = count > panel ? count : panel;
    const size_t bytes[] = {count * sizeof(float), errors * sizeof(float), count * sizeof(float),
                            count, count, (size_t)w->rows * 2 * sizeof(double),
                            num_scales * sizeof(float), num_scales * sizeof(float)};
    size_t at[9] = {0};
    fp8_status st = FP8_OK;

    for (int i = 0; i < 8; i++) at[i + 1] = at[i] + (bytes[i] + align - 1) / align * align;
    FP8_TRY(fp8_device_alloc(s->d, (void **)room, at[8]));
    w->w = (float *)(void *)(*room + at[0]);
    w->errors = (float *)(void *)(*room + at[1]);
    w->moved = (float *)(void *)(*room + at[2]);
    w->codes[0] = (uint8_t *)(*room + at[3]);
    w->codes[1] = (uint8_t *)(*room + at[4]);
    w->losses[0] = (double *)(void *)(*room + at[5]);
    w->losses[1] = w->losses[0] + w->rows;
    w->scales = (float *)(void *)(*room + at[6]);
    w->descales = (float *)(void *)(*room + at[7]);
    FP8_TRY(fp8_device_fill(s->d, w->losses[0], 0, bytes[5]));
    FP8_TRY(fp8_device_upload(s->d, *room + at[6], grid->scales, bytes[6]));
    FP8_TRY(fp8_device_upload(s->d, *room + at[7], grid->descales, bytes[7]));
done:
    return st;
}

fp8_status fp8_solver_cuda_round(uint8_t *codes, double loss[2], fp8_solver_cuda *s,
                                 const float *w, int64_t rows, const fp8_gptq_scales *grid) {
    const size_t count = (size_t)(rows * s->n);
    fp8_solver_weight one = {.rows = rows, .n = s->n, .order = s->order, .pivots = s->pivots,
                             .row_span = grid->row_span, .col_span = grid->col_span,
                             .across = (s->n + grid->col_span - 1) / grid->col_span};
    char *room = NULL;
    fp8_status st = FP8_OK;

    loss[0] = loss[1] = 0;
    if (rows == 0) return FP8_OK;
    FP8_TRY(open_weight(s, &one, &room, grid));
    FP8_TRY(fp8_device_upload(s->d, one.moved, w, count * sizeof *w));
    FP8_TRY(fp8_solver_permute(s->d, &one, one.moved));
    FP8_TRY(round_plainly(s, &one));
    FP8_TRY(round_panels(s, &one));
    FP8_TRY(fp8_solver_select(s->d, (uint8_t *)(void *)one.moved, &one, s->places));
    FP8_TRY(fp8_device_download(s->d, codes, one.moved, count));
    FP8_TRY(sum_losses(s, &one, loss));
done:
    fp8_device_free(s->d, room);
    return st;
}
