/* CUDA attention against the CPU backend: every shape of the table unfused, uniform ones fused too.
 * With an argument: what each backend says to a list of shapes, and nothing else. */
#include "attention_device.h"

static fp8_attention_options uniform_options(const problem *p, const buffers *b) {
    fp8_attention_options o = options_of(p, b);
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    return o;
}

/* ---- against the CPU ------------------------------------------------------------------------- */

/* P and O in BF16 are each 2^-9 / sqrt(3) off on average; codes of P may flip to a neighbour. */
static const double bound = 1e-2;

static void compare(fp8_device *gpu, fp8_device *cpu, const problem *p, buffers *b,
                    const fp8_attention_options *o) {
    const int64_t n = b->total_q * b->o_stride;
    fp8_attention_options plain = *o;
    float *want, *got;
    uint16_t *once;
    double err;

    plain.backend = FP8_BACKEND_CPU;
    CHECK_STATUS(run_on(cpu, p, b, &plain), FP8_OK);
    want = widened(b);
    poison(p, b);
    CHECK_STATUS(run_on(gpu, p, b, o), FP8_OK);
    got = widened(b);
    err = check_relative_l2(got, want, n);
    CHECK(err <= bound);
    fprintf(stderr, "%-24s %-8s relative L2 %.2e\n", p->name,
            fp8_attention_backend_name(o->backend), err);
    once = zeroed(n, sizeof *once); /* and again: the same bytes */
    memcpy(once, b->o, (size_t)n * sizeof *once);
    poison(p, b);
    CHECK_STATUS(run_on(gpu, p, b, o), FP8_OK);
    CHECK(memcmp(once, b->o, (size_t)n * sizeof *once) == 0);
    free(once);
    free(want);
    free(got);
}

static void test_unfused(fp8_device *gpu, fp8_device *cpu) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        problem p = shapes[i];
        fp8_attention_options o;
        buffers b;
        check_case = p.name;
        p.dtype = BF16;
        if (p.q_dtype == F32) p.q_dtype = BF16;
        if (p.kv_dtype == F32) p.kv_dtype = BF16;
        buffers_init(&b, &p, 40 + i);
        o = options_of(&p, &b);
        o.backend = FP8_BACKEND_UNFUSED;
        compare(gpu, cpu, &p, &b, &o);
        buffers_free(&b);
    }
}

/* Slices: more units than fit, one unit whose queries do not fit, and those that leave out what a
 * mask hides: its diagonal is known top-left, and bottom-right where all lengths are. */
static void test_slices(fp8_device *gpu, fp8_device *cpu) {
    static const struct {
        problem p;
        fp8_attention_layout layout;
        fp8_attention_mask mask;
        int64_t left, right;
    } cases[] = {
        {{"slices of units", 24, 24, 16, 16, 1, {4096}, {4096}, NONE, 0, BF16, BF16, BF16, 0, 0},
         FP8_LAYOUT_THD_THD_THD, CAUSAL, -1, -1},
        {{"slices of tokens", 2, 1, 16, 16, 1, {14001}, {14001}, NONE, 0, BF16, BF16, BF16, 0, 0},
         FP8_LAYOUT_THD_THD_THD, CAUSAL, -1, -1},
        {{"triangle", 2, 1, 16, 24, 2, {9001, 70}, {8000, 90}, NONE, 0, BF16, BF16, BF16, 0, 0},
         FP8_LAYOUT_THD_THD_THD, FP8_MASK_CAUSAL, -1, -1},
        {{"band", 2, 2, 16, 16, 2, {7001, 6999}, {7001, 70}, NONE, 0, BF16, E4M3, E4M3, 1, 0},
         FP8_LAYOUT_THD_THD_THD, FP8_MASK_CAUSAL, 100, -1},
        {{"triangle, right", 2, 2, 16, 16, 1, {6001}, {7777}, NONE, 0, BF16, E4M3, E4M3, 1, 0},
         FP8_LAYOUT_BSHD_BSHD_BSHD, CAUSAL, -1, -1},
        {{"band, right", 2, 2, 16, 16, 1, {7777}, {6001}, NONE, 0, BF16, BF16, BF16, 0, 0},
         FP8_LAYOUT_BSHD_BSHD_BSHD, NONE, 300, 50},
        {{"left of a band", 1, 1, 16, 16, 1, {8001}, {9001}, NONE, 0, BF16, BF16, BF16, 0, 0},
         FP8_LAYOUT_BSHD_BSHD_BSHD, NONE, -1, 5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const problem *p = &cases[i].p;
        fp8_attention_options o;
        buffers b;
        check_case = p->name;
        buffers_init(&b, p, 60 + i);
        o = options_of(p, &b);
        o.layout = cases[i].layout;
        o.mask = cases[i].mask;
        o.window_left = cases[i].left;
        o.window_right = cases[i].right;
        o.backend = FP8_BACKEND_UNFUSED;
        compare(gpu, cpu, p, &b, &o);
        buffers_free(&b);
    }
}

static const problem uniform_shapes[] = {
    {"causal 65", 4, 4, 64, 64, 2, {65, 65}, {65, 65}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"causal 512", 6, 6, 64, 64, 2, {512, 512}, {512, 512}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"grouped", 8, 2, 128, 128, 2, {256, 256}, {256, 256}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"one KV head, d 256", 4, 1, 256, 256, 1, {200}, {200}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"no mask", 4, 4, 128, 128, 2, {130, 130}, {130, 130}, NONE, 0, BF16, BF16, BF16, 0, 0},
    {"cross", 4, 4, 64, 64, 1, {64}, {200}, NONE, 0, BF16, BF16, BF16, 0, 0},
    {"chunked prefill", 4, 2, 64, 64, 2, {70, 70}, {200, 200}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"window", 4, 2, 64, 64, 1, {300}, {300}, CAUSAL, 100, BF16, BF16, BF16, 0, 0},
    {"chunked window", 4, 2, 64, 64, 1, {70}, {300}, CAUSAL, 100, BF16, BF16, BF16, 0, 0},
    {"decode", 8, 2, 128, 128, 3, {1, 1, 1}, {200, 200, 200}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"d 192 to 128", 2, 2, 192, 128, 1, {128}, {128}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"strided", 4, 4, 64, 64, 2, {65, 65}, {65, 65}, CAUSAL, 0, BF16, BF16, BF16, 0, 24},
    {"d 20", 2, 2, 20, 20, 1, {65}, {65}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"more queries than keys", 2, 1, 16, 16, 1, {65}, {33}, CAUSAL, 0, BF16, BF16, BF16, 0, 0},
    {"kv codes", 4, 2, 64, 64, 1, {65}, {65}, CAUSAL, 0, BF16, BF16, E4M3, 0, 0},
};
enum { NUM_UNIFORM = sizeof uniform_shapes / sizeof *uniform_shapes };

/* Fused where it serves; a refusal must come with words, and AUTO must then serve otherwise. */
static void test_fused(fp8_device *gpu, fp8_device *cpu) {
    int served = 0;
    for (int i = 0; i < NUM_UNIFORM; i++) {
        const problem *p = &uniform_shapes[i];
        fp8_attention_plan *plan = NULL;
        fp8_attention_options o;
        fp8_status st;
        buffers b;

        check_case = p->name;
        buffers_init(&b, p, 80 + (uint64_t)i);
        o = uniform_options(p, &b);
        o.backend = FP8_BACKEND_FUSED;
        st = fp8_attention_plan_create(&plan, gpu, &o);
        fp8_attention_plan_destroy(plan);
        served += st == FP8_OK;
        if (st == FP8_OK) compare(gpu, cpu, p, &b, &o);
        else CHECK(st == FP8_EUNSUPPORTED && strstr(fp8_last_message(), "fused: cuDNN "));
        o.backend = FP8_BACKEND_AUTO;
        compare(gpu, cpu, p, &b, &o);
        buffers_free(&b);
    }
    check_case = "fused";
    CHECK(served > 0);
    fprintf(stderr, "fused served %d of %d uniform shapes\n", served, NUM_UNIFORM);
}

/* ---- refusals and lies ----------------------------------------------------------------------- */

static void test_refusals(fp8_device *gpu) {
    const problem p = {"F32", 2, 1, 8, 8, 1, {4}, {4}, NONE, 0, F32, F32, F32, 0, 0};
    fp8_attention_plan *plan = NULL;
    fp8_attention_options o;
    buffers b;
    check_case = "F32 by flash";
    buffers_init(&b, &p, 1);
    o = options_of(&p, &b);
    o.backend = FP8_BACKEND_FLASH;
    CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "flash: "));
    buffers_free(&b);
}

/* Starts beyond the buffers: the run must stay inside (compute-sanitizer tells) and succeed. */
static void test_hostile_starts(fp8_device *gpu) {
    static const int32_t cases[][4] = {{0, 100, 200, 300}, {-50, 4, 8, 12},
                                       {0, 8, 4, 12},      {INT32_MIN, INT32_MAX, 0, 5}};
    const problem p = {"starts", 2,    1,    8,    8, 3, {4, 4, 4}, {4, 4, 4},
                       CAUSAL,   0, BF16, BF16, BF16, 0, 0};
    for (int i = 0; i < 16; i++) {
        fp8_attention_options o;
        buffers b;
        check_case = "hostile starts";
        buffers_init(&b, &p, 8);
        o = options_of(&p, &b);
        memcpy(b.q_starts, cases[i / 4], sizeof cases[0]);
        memcpy(b.kv_starts, cases[i % 4], sizeof cases[0]);
        CHECK_STATUS(run_on(gpu, &p, &b, &o), FP8_OK);
        buffers_free(&b);
    }
}

/* ---- reasons --------------------------------------------------------------------------------- */

static void print_reasons(fp8_device *gpu) {
    for (int i = 0; i < NUM_UNIFORM; i++) {
        fp8_attention_plan *plan = NULL;
        fp8_attention_options o;
        buffers b;
        buffers_init(&b, &uniform_shapes[i], 1);
        o = uniform_options(&uniform_shapes[i], &b);
        if (fp8_attention_plan_create(&plan, gpu, &o) == FP8_OK)
            printf("%s: %s, workspace %zu\n%s\n\n", uniform_shapes[i].name,
                   fp8_attention_backend_name(fp8_attention_plan_backend(plan)),
                   fp8_attention_workspace_size(plan), fp8_attention_plan_reasons(plan));
        else printf("%s: none\n%s\n\n", uniform_shapes[i].name, fp8_last_message());
        fp8_attention_plan_destroy(plan);
        buffers_free(&b);
    }
}

int main(int argc, char **argv) {
    fp8_device *gpu = check_gpu(), *cpu = NULL;
    (void)argv;
    if (!gpu) return TEST_SKIP;
    if (argc > 1) {
        print_reasons(gpu);
        fp8_device_destroy(gpu);
        return 0;
    }
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    test_unfused(gpu, cpu);
    test_fused(gpu, cpu);
    test_slices(gpu, cpu);
    test_refusals(gpu);
    test_hostile_starts(gpu);
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
