/* calib/solver.cu - what compensated rounding does on CUDA between its matrix products.
 *
 * Computes   symmetric sums in another order, widened; the Cholesky factor of a panel and its
 *            inverse; weights rounded a panel at a time, each error carried on within the panel
 * Shapes     sums [n, n], n to 16384; weights [rows, n]; panels of 64
 * Bound      panels are latency: 64 dependent steps of one block, some 0.1 ms; n / 64 of them. A
 *            weight's panel: 64 x 63 / 2 multiply-adds a row, about 10 us for any number of rows
 *            that fits; what crosses panels is a product of cuBLASLt
 * Tiling     factor: one block of 256. round: a thread a row, its panel's sums in registers, the
 *            panel of the factor in shared memory, read by all threads at once
 * Numerics   F64 up to the factor, which is kept in F32; sums in another order than the host's:
 *            codes that stand between two values may differ
 */
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "calib/solver_kernels.h"
#include "core/cuda_check.h"

enum { PANEL = FP8_SOLVER_PANEL, THREADS = 256, ROWS = 64, PITCH = PANEL + 1 };
static const size_t PANEL_BYTES = 2 * (size_t)PANEL * PITCH * sizeof(double);

static unsigned blocks_for(int64_t n) {
    const int64_t blocks = (n + THREADS - 1) / THREADS, most = 1 << 20;
    return (unsigned)(blocks < most ? blocks : most);
}

/* ---- sums ------------------------------------------------------------------------------------ */

static __global__ void inspect_kernel(float *diagonal, int32_t *bad, const float *h,
                                      const float *c, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    int32_t found = 0;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n * n; i += step) {
        found += !isfinite(h[i]) + (c && !isfinite(c[i]));
        if (i % (n + 1) == 0) diagonal[i / (n + 1)] = h[i];
    }
    if (found) atomicAdd(bad, found);
}

static __global__ void fill_kernel(double *a, const float *h, const int32_t *order, int64_t n,
                                   double factor, double more) {
    const int64_t step = (int64_t)gridDim.x * THREADS;

    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < n * n; at += step) {
        const int64_t i = at / n, k = at % n;
        const int64_t row = order ? order[i] : i, col = order ? order[k] : k;
        const int64_t from = row > col ? row * n + col : col * n + row;
        a[at] = (double)h[from] * factor + (i == k ? more : 0.0);
    }
}

static __global__ void widen_kernel(double *out, const float *in, int64_t n, double factor) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        out[i] = (double)in[i] * factor;
}

static __global__ void narrow_kernel(float *out, const double *in, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        out[i] = (float)in[i];
}

/* ---- the factor ------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(THREADS)
factor_kernel(double *a, int64_t lda, double *inverse, int32_t width, int32_t *failed) {
    extern __shared__ double shared[];
    double(*s)[PITCH] = reinterpret_cast<double(*)[PITCH]>(shared);
    double(*x)[PITCH] = s + PANEL;

    for (int i = threadIdx.x; i < PANEL * PANEL; i += THREADS) {
        const int r = i / PANEL, c = i % PANEL;
        s[r][c] = r < width && c <= r ? a[r * lda + c] : r == c ? 1.0 : 0.0;
        x[r][c] = r == c ? 1.0 : 0.0;
    }
    for (int k = 0; k < PANEL; k++) {
        __syncthreads();
        const double pivot = s[k][k]; /* of all threads alike */
        if (!(pivot > 0)) {
            if (threadIdx.x == 0) *failed = 1;
            return;
        }
        const double root = sqrt(pivot);
        __syncthreads();
        for (int i = k + (int)threadIdx.x; i < PANEL; i += THREADS)
            s[i][k] = i == k ? root : s[i][k] / root;
        for (int c = threadIdx.x; c <= k; c += THREADS) x[k][c] /= root;
        __syncthreads();
        for (int i = threadIdx.x; i < (PANEL - 1 - k) * PANEL; i += THREADS) {
            const int r = k + 1 + i / PANEL, c = i % PANEL;
            if (c > k && c <= r) s[r][c] -= s[r][k] * s[c][k];
            if (c <= k) x[r][c] -= s[r][k] * x[k][c];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < PANEL * PANEL; i += THREADS) {
        const int r = i / PANEL, c = i % PANEL;
        if (r < width && c <= r) a[r * lda + c] = s[r][c];
        inverse[i] = r < width && c < width ? x[r][c] : 0.0;
    }
}

static __global__ void copy_kernel(double *to, int64_t ldd, const double *from, int64_t rows,
                                   int64_t width) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < rows * width; i += step)
        to[i / width * ldd + i % width] = from[i];
}

static __global__ void keep_kernel(float *factor, double *pivots, const double *a, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * THREADS;

    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < n * n; at += step) {
        const int64_t i = at / n, k = at % n;
        const double pivot = a[k * n + k];
        factor[at] = k < i ? (float)(a[at] / pivot) : 0.0f;
        if (i == k) pivots[k] = pivot * pivot;
    }
}

/* ---- rounding -------------------------------------------------------------------------------- */

static __device__ inline uint8_t encode(float x) {
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

static __device__ inline float decode(uint8_t code) {
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

static __device__ inline int64_t scale_at(const fp8_solver_weight &w, int64_t r, int64_t k) {
    return r / w.row_span * w.across + w.order[k] / w.col_span;
}

static __global__ void permute_kernel(fp8_solver_weight w, const float *from) {
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < w.rows * w.n; i += step)
        w.w[i] = from[i / w.n * w.n + w.order[i % w.n]];
}

static __global__ void plain_kernel(fp8_solver_weight w) {
    const int64_t step = (int64_t)gridDim.x * THREADS;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < w.rows * w.n; i += step) {
        const int64_t at = scale_at(w, i / w.n, i % w.n);
        const uint8_t code = encode(__fmul_rn(w.w[i], w.scales[at]));
        w.codes[0][i] = code;
        w.errors[i] = __fsub_rn(w.w[i], __fmul_rn(decode(code), w.descales[at]));
    }
}

/* A block a row; the same order of sums every time. */
static __global__ void __launch_bounds__(THREADS) plain_loss_kernel(fp8_solver_weight w) {
    __shared__ double part[THREADS];
    const int64_t row = blockIdx.x;
    double sum = 0;

    for (int64_t k = threadIdx.x; k < w.n; k += THREADS) {
        const double miss = (double)w.errors[row * w.n + k] + (double)w.moved[row * w.n + k];
        sum += miss * miss * w.pivots[k];
    }
    part[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) w.losses[0][row] = part[0];
}

/* Shared memory: the panel of the factor, and the rows' weights, which their errors replace. */
static __global__ void __launch_bounds__(ROWS)
round_kernel(fp8_solver_weight w, const float *factor, int64_t left, int32_t width) {
    __shared__ float f[PANEL][PANEL], tile[ROWS][PITCH];
    __shared__ double pivots[PANEL];
    const int64_t first = (int64_t)blockIdx.x * ROWS, row = first + threadIdx.x;
    const bool mine = row < w.rows;
    float moved[PANEL];
    double loss = 0;

    for (int i = threadIdx.x; i < PANEL * PANEL; i += ROWS) {
        const int r = i / PANEL, c = i % PANEL;
        f[r][c] = r < width && c < width ? factor[(left + r) * w.n + left + c] : 0.0f;
        if (r == 0) pivots[c] = c < width ? w.pivots[left + c] : 0.0;
    }
    for (int r = 0; r < ROWS; r++)
        tile[r][threadIdx.x] = first + r < w.rows && threadIdx.x < width
                                   ? w.moved[(first + r) * w.n + left + threadIdx.x] : 0.0f;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PANEL; k++) moved[k] = tile[threadIdx.x][k];
    __syncthreads();
    for (int r = 0; r < ROWS; r++)
        tile[r][threadIdx.x] = first + r < w.rows && threadIdx.x < width
                                   ? w.w[(first + r) * w.n + left + threadIdx.x] : 0.0f;
    __syncthreads();
#pragma unroll
    for (int k = PANEL - 1; k >= 0; k--) {
        float error = 0.0f;
        if (mine && k < width) {
            const int64_t at = scale_at(w, row, left + k);
            const float x = tile[threadIdx.x][k];
            const uint8_t code = encode(__fmul_rn(__fadd_rn(x, moved[k]), w.scales[at]));
            error = __fsub_rn(x, __fmul_rn(decode(code), w.descales[at]));
            const double miss = (double)error + (double)moved[k];
            loss += miss * miss * pivots[k];
            w.codes[1][row * w.n + left + k] = code;
        }
        tile[threadIdx.x][k] = error;
#pragma unroll
        for (int c = 0; c < k; c++) moved[c] = fmaf(error, f[k][c], moved[c]);
    }
    if (mine) w.losses[1][row] += loss;
    __syncthreads();
    for (int r = 0; r < ROWS; r++)
        if (first + r < w.rows) w.errors[(first + r) * PANEL + threadIdx.x] = tile[r][threadIdx.x];
}

static __global__ void select_kernel(uint8_t *out, fp8_solver_weight w, const int32_t *places) {
    const int64_t step = (int64_t)gridDim.x * THREADS;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < w.rows * w.n; i += step) {
        const int64_t r = i / w.n;
        const uint8_t *codes = w.losses[1][r] < w.losses[0][r] ? w.codes[1] : w.codes[0];
        out[i] = codes[r * w.n + places[i % w.n]];
    }
}

/* ---- launchers ------------------------------------------------------------------------------- */

fp8_status fp8_solver_inspect(fp8_device *d, float *diagonal, int32_t *bad, const float *h,
                              const float *c, int64_t n) {
    const fp8_stream stream = fp8_device_stream(d);
    inspect_kernel<<<blocks_for(n * n), THREADS, 0, stream>>>(diagonal, bad, h, c, n);
    return fp8_cuda_launched("solver, inspect", stream);
}

fp8_status fp8_solver_fill(fp8_device *d, double *a, const float *h, const int32_t *order,
                           int64_t n, double factor, double more) {
    const fp8_stream stream = fp8_device_stream(d);
    fill_kernel<<<blocks_for(n * n), THREADS, 0, stream>>>(a, h, order, n, factor, more);
    return fp8_cuda_launched("solver, fill", stream);
}

fp8_status fp8_solver_widen(fp8_device *d, double *out, const float *in, int64_t n,
                            double factor) {
    const fp8_stream stream = fp8_device_stream(d);
    widen_kernel<<<blocks_for(n), THREADS, 0, stream>>>(out, in, n, factor);
    return fp8_cuda_launched("solver, widen", stream);
}

fp8_status fp8_solver_narrow(fp8_device *d, float *out, const double *in, int64_t n) {
    const fp8_stream stream = fp8_device_stream(d);
    narrow_kernel<<<blocks_for(n), THREADS, 0, stream>>>(out, in, n);
    return fp8_cuda_launched("solver, narrow", stream);
}

fp8_status fp8_solver_factor_panel(fp8_device *d, double *a, int64_t lda, double *inverse,
                                   int32_t width, int32_t *failed) {
    const fp8_stream stream = fp8_device_stream(d);
    fp8_status st = FP8_OK;

    FP8_TRY_CUDA(cudaFuncSetAttribute(factor_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)PANEL_BYTES));
    factor_kernel<<<1, THREADS, PANEL_BYTES, stream>>>(a, lda, inverse, width, failed);
    st = fp8_cuda_launched("solver, panel", stream);
done:
    return st;
}

fp8_status fp8_solver_copy_rows(fp8_device *d, double *to, int64_t ldd, const double *from,
                                int64_t rows, int64_t width) {
    const fp8_stream stream = fp8_device_stream(d);
    if (rows * width == 0) return FP8_OK;
    copy_kernel<<<blocks_for(rows * width), THREADS, 0, stream>>>(to, ldd, from, rows, width);
    return fp8_cuda_launched("solver, copy", stream);
}

fp8_status fp8_solver_keep(fp8_device *d, float *factor, double *pivots, const double *a,
                           int64_t n) {
    const fp8_stream stream = fp8_device_stream(d);
    keep_kernel<<<blocks_for(n * n), THREADS, 0, stream>>>(factor, pivots, a, n);
    return fp8_cuda_launched("solver, keep", stream);
}

fp8_status fp8_solver_permute(fp8_device *d, const fp8_solver_weight *w, const float *from) {
    const fp8_stream stream = fp8_device_stream(d);
    permute_kernel<<<blocks_for(w->rows * w->n), THREADS, 0, stream>>>(*w, from);
    return fp8_cuda_launched("solver, permute", stream);
}

fp8_status fp8_solver_plain(fp8_device *d, const fp8_solver_weight *w) {
    const fp8_stream stream = fp8_device_stream(d);
    plain_kernel<<<blocks_for(w->rows * w->n), THREADS, 0, stream>>>(*w);
    return fp8_cuda_launched("solver, plain", stream);
}

fp8_status fp8_solver_plain_loss(fp8_device *d, const fp8_solver_weight *w) {
    const fp8_stream stream = fp8_device_stream(d);
    plain_loss_kernel<<<(unsigned)w->rows, THREADS, 0, stream>>>(*w);
    return fp8_cuda_launched("solver, loss", stream);
}

fp8_status fp8_solver_round_panel(fp8_device *d, const fp8_solver_weight *w, const float *factor,
                                  int64_t left, int64_t right) {
    const fp8_stream stream = fp8_device_stream(d);
    const unsigned blocks = (unsigned)((w->rows + ROWS - 1) / ROWS);
    round_kernel<<<blocks, ROWS, 0, stream>>>(*w, factor, left, (int32_t)(right - left));
    return fp8_cuda_launched("solver, round", stream);
}

fp8_status fp8_solver_select(fp8_device *d, uint8_t *out, const fp8_solver_weight *w,
                             const int32_t *places) {
    const fp8_stream stream = fp8_device_stream(d);
    select_kernel<<<blocks_for(w->rows * w->n), THREADS, 0, stream>>>(out, *w, places);
    return fp8_cuda_launched("solver, select", stream);
}
