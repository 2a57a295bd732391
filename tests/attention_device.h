/* tests/attention_device.h - an attention problem of attention_problem.h on a device, and its
 * output back. Shared by the GPU tests. */
#ifndef FP8_TESTS_ATTENTION_DEVICE_H
#define FP8_TESTS_ATTENTION_DEVICE_H
#include "attention_problem.h"

/* Everything of a problem on the GPU. */
typedef struct device_buffers {
    void *q, *k, *v, *o, *q_starts, *kv_starts, *descales, *workspace;
} device_buffers;

static inline void *upload(fp8_device *d, const void *x, size_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(d, &p, bytes), FP8_OK);
    if (p) CHECK_STATUS(fp8_device_upload(d, p, x, bytes), FP8_OK);
    return p;
}

static inline void upload_operands(device_buffers *g, fp8_device *d, const problem *p,
                                   const buffers *b) {
    const float descales[3] = {b->q_descale, b->k_descale, b->v_descale};
    const size_t starts = (size_t)(p->num_seqs + 1) * sizeof(int32_t);
    g->q = upload(d, b->q.data, (size_t)(b->q.rows * b->q.stride) * fp8_dtype_size(p->q_dtype));
    g->k = upload(d, b->k.data, (size_t)(b->k.rows * b->k.stride) * fp8_dtype_size(p->kv_dtype));
    g->v = upload(d, b->v.data, (size_t)(b->v.rows * b->v.stride) * fp8_dtype_size(p->kv_dtype));
    g->o = upload(d, b->o, (size_t)(b->total_q * b->o_stride) * fp8_dtype_size(p->dtype));
    g->q_starts = upload(d, b->q_starts, starts);
    g->kv_starts = upload(d, b->kv_starts, starts);
    g->descales = upload(d, descales, sizeof descales);
}

static inline void free_buffers(device_buffers *g, fp8_device *d) {
    void *all[] = {g->q, g->k, g->v, g->o, g->q_starts, g->kv_starts, g->descales, g->workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(d, all[i]);
}

/* Plans, runs and fetches O into b->o. The CPU device takes the same way. */
static inline fp8_status run_on(fp8_device *d, const problem *p, buffers *b,
                                const fp8_attention_options *o) {
    fp8_attention_io io = io_of(b);
    fp8_attention_plan *plan = NULL;
    device_buffers g = {0};
    size_t bytes;
    fp8_status st;

    FP8_TRY(fp8_attention_plan_create(&plan, d, o));
    bytes = fp8_attention_workspace_size(plan);
    upload_operands(&g, d, p, b);
    FP8_TRY(fp8_device_alloc(d, &g.workspace, bytes));
    FP8_TRY(fp8_device_fill(d, g.workspace, 0xff, bytes)); /* NaN: nothing stale may help */
    io.q = g.q;
    io.k = g.k;
    io.v = g.v;
    io.o = g.o;
    io.q_starts = g.q_starts;
    io.kv_starts = g.kv_starts;
    io.q_descale = g.descales;
    io.k_descale = (float *)g.descales + 1;
    io.v_descale = (float *)g.descales + 2;
    FP8_TRY(fp8_attention_run(plan, &io, g.workspace, bytes));
    FP8_TRY(fp8_device_download(
        d, b->o, g.o, (size_t)(b->total_q * b->o_stride) * fp8_dtype_size(p->dtype)));
done:
    free_buffers(&g, d);
    fp8_attention_plan_destroy(plan);
    return st;
}

/* O of b, BF16, as F32; the caller frees. */
static inline float *widened(const buffers *b) {
    const int64_t n = b->total_q * b->o_stride;
    float *x = zeroed(n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = fp8_bf16_to_f32(((uint16_t *)b->o)[i]);
    return x;
}

/* O starts as NaN wherever a run must write, as 0 in the gaps that it must leave. */
static inline void poison(const problem *p, buffers *b) {
    for (int64_t t = 0; t < b->total_q; t++)
        for (int64_t c = 0; c < b->o_stride; c++)
            ((uint16_t *)b->o)[t * b->o_stride + c] = c < p->heads * p->d_v ? 0x7fc0 : 0;
}
#endif
