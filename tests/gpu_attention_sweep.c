/* The sweep of attention_sweep.h, NaN and Inf among the operands, on the unfused backend: its
 * bounds are those of BF16 P and FP8 sums, wide ones; gpu_attention_options.c has narrow ones. */
#include "attention_sweep.h"

enum { NUM_CASES = 500 };

/* O of values of about 1: P in BF16, scores of FP8 sums. quantize_p: P may flip by one code. */
static const sweep_bounds bounds = {.o = 6e-2, .lse = 1.5e-2, .flip = 0.5, .flips = 1.0};

static fp8_status run_on(fp8_device *gpu, sweep_case *c) {
    fp8_attention_plan *plan = NULL;
    void *dev[SWEEP_SLOTS] = {NULL}, *workspace = NULL;
    fp8_attention_io io;
    size_t bytes;
    fp8_status st;

    FP8_TRY(fp8_attention_plan_create(&plan, gpu, &c->o));
    for (int i = 0; i < SWEEP_SLOTS; i++) {
        if (!c->buffer[i].data) continue;
        FP8_TRY(fp8_device_alloc(gpu, &dev[i], c->buffer[i].bytes));
        FP8_TRY(fp8_device_upload(gpu, dev[i], c->buffer[i].data, c->buffer[i].bytes));
    }
    bytes = fp8_attention_workspace_size(plan);
    FP8_TRY(fp8_device_alloc(gpu, &workspace, bytes));
    FP8_TRY(fp8_device_fill(gpu, workspace, 0xff, bytes));
    io = sweep_io(c, dev);
    FP8_TRY(fp8_attention_run(plan, &io, workspace, bytes));
    for (int i = SWEEP_O; i <= SWEEP_AMAX; i++)
        if (c->buffer[i].data)
            FP8_TRY(fp8_device_download(gpu, c->buffer[i].data, dev[i], c->buffer[i].bytes));
done:
    for (int i = 0; i < SWEEP_SLOTS; i++) fp8_device_free(gpu, dev[i]);
    fp8_device_free(gpu, workspace);
    fp8_attention_plan_destroy(plan);
    return st;
}

int main(void) {
    fp8_device *gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (uint64_t i = 0; i < NUM_CASES; i++) {
        sweep_case c;
        char name[32];
        snprintf(name, sizeof name, "case %llu", (unsigned long long)i);
        check_case = name;
        sweep_draw(&c, i);
        sweep_expect(&c);
        c.o.backend = FP8_BACKEND_UNFUSED;
        sweep_poison(&c);
        CHECK_STATUS(run_on(gpu, &c), FP8_OK);
        sweep_compare(&c, &bounds);
        sweep_free(&c);
    }
    check_case = "";
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
