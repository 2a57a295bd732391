#include "calib/solver_impl.h"

#include <stdlib.h>

#include "calib/ridge.h"

struct fp8_solver {
    fp8_device *d;
    fp8_gptq *gptq; /* on the host */
    fp8_ridge *ridge;
    double *cross;
    fp8_solver_cuda *cuda; /* on CUDA: instead */
};

static fp8_status create_host(fp8_solver *s, fp8_hessian *h, int64_t cols,
                              const fp8_gptq_options *options, double ridge) {
    const size_t bytes = (size_t)(cols * cols) * sizeof(double);
    double *hessian = malloc(bytes);
    fp8_status st = FP8_OK;

    if (ridge > 0) s->cross = malloc(bytes);
    if (!hessian || (ridge > 0 && !s->cross)) {
        st = FP8_FAIL(FP8_ENOMEM, "products of %lld inputs", (long long)cols);
        goto done;
    }
    FP8_TRY(fp8_hessian_read(h, hessian, s->cross));
    FP8_TRY(fp8_gptq_create(&s->gptq, hessian, cols, options, fp8_device_pool(s->d)));
    if (ridge > 0)
        FP8_TRY(fp8_ridge_create(&s->ridge, hessian, s->cross, cols, ridge,
                                 fp8_device_pool(s->d)));
done:
    free(hessian);
    return st;
}

fp8_status fp8_solver_create(fp8_solver **out, fp8_device *d, fp8_hessian *h, int64_t cols,
                             const fp8_gptq_options *options, double ridge) {
    fp8_solver *s = calloc(1, sizeof *s);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!s) return FP8_FAIL(FP8_ENOMEM, "compensated rounding");
    s->d = d;
#if FP8_CUDA
    if (fp8_device_place(d) == FP8_PLACE_CUDA)
        FP8_TRY(fp8_solver_cuda_create(&s->cuda, d, h, cols, options, ridge));
#endif
    if (!s->cuda) FP8_TRY(create_host(s, h, cols, options, ridge));
    *out = s;
    s = NULL;
done:
    fp8_solver_destroy(s);
    return st;
}

void fp8_solver_destroy(fp8_solver *s) {
    if (!s) return;
#if FP8_CUDA
    fp8_solver_cuda_destroy(s->cuda);
#endif
    fp8_gptq_destroy(s->gptq);
    fp8_ridge_destroy(s->ridge);
    free(s->cross);
    free(s);
}

fp8_status fp8_solver_aim(fp8_solver *s, float *w, int64_t rows) {
#if FP8_CUDA
    if (s->cuda) return fp8_solver_cuda_aim(s->cuda, w, rows);
#endif
    return s->ridge ? fp8_ridge_solve(w, s->ridge, w, rows, fp8_device_pool(s->d)) : FP8_OK;
}

fp8_status fp8_solver_round(uint8_t *codes, double loss[2], fp8_solver *s, const float *w,
                            int64_t rows, const fp8_gptq_scales *grid) {
#if FP8_CUDA
    if (s->cuda) return fp8_solver_cuda_round(codes, loss, s->cuda, w, rows, grid);
#endif
    return fp8_gptq_round(codes, loss, s->gptq, w, rows, grid, fp8_device_pool(s->d));
}
