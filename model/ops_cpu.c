/* The CPU operations: rounding, and the table of all of them. */
#include <assert.h>
#include <math.h>

#include "core/mathfn.h"
#include "model/moe_impl.h"
#include "model/ops.h"
#include "model/score_cpu.h"

enum { PIECE = 32 * 1024 /* elements a worker takes at a time */ };

FP8_VECTOR static void round_piece(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = fp8_round_bf16(x[i]);
}

static fp8_status round_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    (void)worker;
    round_piece((float *)ctx + begin, end - begin);
    return FP8_OK;
}

static fp8_status cpu_round(fp8_device *d, const fp8_tensor *x, fp8_dtype to) {
    assert(x->dtype == FP8_DTYPE_F32);
    if (to == FP8_DTYPE_F32) return FP8_OK;
    return fp8_parallel_for(fp8_device_pool(d), fp8_tensor_count(x), PIECE, round_range, x->data);
}

typedef struct softcap_job {
    float *x, cap;
    int bf16;
} softcap_job;

static fp8_status softcap_range(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const softcap_job *j = ctx;

    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const float inner = j->x[i] / j->cap;
        const float t = tanhf(j->bf16 ? fp8_round_bf16(inner) : inner);
        j->x[i] = j->bf16 ? fp8_round_bf16(fp8_round_bf16(t) * j->cap) : t * j->cap;
    }
    return FP8_OK;
}

static fp8_status cpu_softcap(fp8_device *d, const fp8_tensor *x, float cap, fp8_dtype to) {
    softcap_job j = {x->data, cap, to == FP8_DTYPE_BF16};
    assert(x->dtype == FP8_DTYPE_F32);
    return fp8_parallel_for(fp8_device_pool(d), fp8_tensor_count(x), PIECE, softcap_range, &j);
}

const fp8_ops *fp8_ops_cpu(void) {
    static const fp8_ops ops = {.round = cpu_round,
                                .softcap = cpu_softcap,
                                .score = fp8_score_cpu,
                                .route = fp8_route_cpu,
                                .combine = fp8_combine_cpu};
    return &ops;
}
