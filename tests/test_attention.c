/* The CPU backend against the formula in double over a table of shapes; plans; hostile starts. */
#include "attention_problem.h"

/* ---- the formula, in double ------------------------------------------------------------------ */

/* One output row: P from the scores, then P V. `p` has room for s_kv. */
static void reference_row(const problem *p, const buffers *b, int seq, int64_t i, int head,
                          double *prob, double *out) {
    const int64_t s_kv = p->s_kv[seq], last = i + s_kv - p->s_q[seq];
    const int kv_head = head / (p->heads / p->kv_heads);
    const float *q = b->q.value + (b->q_starts[seq] + i) * b->q.stride + head * p->d_qk;
    double max = -INFINITY, sum = 0;

    for (int64_t j = 0; j < s_kv; j++) {
        const float *k = b->k.value + (b->kv_starts[seq] + j) * b->k.stride + kv_head * p->d_qk;
        double dot = 0;
        for (int c = 0; c < p->d_qk; c++) dot += (double)q[c] * (double)k[c];
        prob[j] = dot / sqrt(p->d_qk) * (double)b->q_descale * (double)b->k_descale;
        if (p->mask == FP8_MASK_CAUSAL && j > last) prob[j] = -INFINITY;
        if (p->window > 0 && j <= last - p->window) prob[j] = -INFINITY;
        if (prob[j] > max) max = prob[j];
    }
    for (int c = 0; c < p->d_v; c++) out[c] = 0;
    for (int64_t j = 0; j < s_kv; j++) {
        const float *v = b->v.value + (b->kv_starts[seq] + j) * b->v.stride + kv_head * p->d_v;
        double e = prob[j] == -INFINITY ? 0.0 : exp(prob[j] - max);
        sum += e;
        if (p->quantize_p) e = e4m3_value(e4m3_code(256.0 * e)) / 256.0;
        for (int c = 0; c < p->d_v; c++) out[c] += e * (double)v[c];
    }
    for (int c = 0; c < p->d_v; c++) out[c] = sum > 0 ? out[c] * (double)b->v_descale / sum : 0;
}

/* [total_q, heads, d_v], packed; the caller frees. */
static float *reference(const problem *p, const buffers *b) {
    float *want = zeroed(b->total_q * p->heads * p->d_v, sizeof *want);
    double *prob = zeroed(b->max_kv, sizeof *prob), *out = zeroed(p->d_v, sizeof *out);
    for (int seq = 0; seq < p->num_seqs; seq++)
        for (int64_t i = 0; i < p->s_q[seq]; i++)
            for (int h = 0; h < p->heads; h++) {
                float *row = want + ((b->q_starts[seq] + i) * p->heads + h) * p->d_v;
                reference_row(p, b, seq, i, h, prob, out);
                for (int c = 0; c < p->d_v; c++) row[c] = (float)out[c];
            }
    free(prob);
    free(out);
    return want;
}

/* O without its gaps, as F32; checks on the way that the gaps were left alone. */
static float *output(const problem *p, const buffers *b) {
    const int64_t row = p->heads * p->d_v;
    float *got = zeroed(b->total_q * row, sizeof *got);
    for (int64_t t = 0; t < b->total_q; t++)
        for (int64_t c = 0; c < b->o_stride; c++) {
            const int64_t at = t * b->o_stride + c;
            const float x = p->dtype == FP8_DTYPE_F32 ? ((float *)b->o)[at]
                                                      : fp8_bf16_to_f32(((uint16_t *)b->o)[at]);
            if (c < row) got[t * row + c] = x;
            else CHECK(x == 0.0f);
        }
    return got;
}

/* Plans and runs on a device with `threads`; returns the plan's status. */
static fp8_status run(const problem *p, const buffers *b, int threads) {
    const fp8_attention_options o = options_of(p, b);
    const fp8_attention_io io = io_of(b);
    fp8_attention_plan *plan = NULL;
    fp8_device *d = NULL;
    void *workspace = NULL;
    size_t bytes;
    fp8_status st;

    FP8_TRY(fp8_device_create(&d, "cpu", threads));
    FP8_TRY(fp8_attention_plan_create(&plan, d, &o));
    CHECK(fp8_attention_plan_backend(plan) == FP8_BACKEND_CPU);
    bytes = fp8_attention_workspace_size(plan);
    workspace = zeroed((int64_t)bytes, 1);
    FP8_TRY(fp8_attention_run(plan, &io, workspace, bytes));
done:
    free(workspace);
    fp8_attention_plan_destroy(plan);
    fp8_device_destroy(d);
    return st;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* F32: products of 24-bit factors summed in F32 in blocks of 64 keep about 2^-22. BF16 output adds
 * its own rounding, 2^-9 at most and 2^-9/sqrt(3) on average. quantize_p: a p whose exponential
 * differs in its last bit may fall on the other side of a tie and move by 2^-4 of itself: rare. */
static double bound_of(const problem *p) {
    if (p->dtype == FP8_DTYPE_BF16) return 2.0e-3;
    return p->quantize_p ? 1.0e-4 : 1.0e-6;
}

static void test_shapes(void) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const problem *p = &shapes[i];
        float *want, *got;
        double err;
        buffers b;

        check_case = p->name;
        buffers_init(&b, p, 1000 + i);
        CHECK_STATUS(run(p, &b, 2), FP8_OK);
        want = reference(p, &b);
        got = output(p, &b);
        err = check_relative_l2(got, want, b.total_q * p->heads * p->d_v);
        CHECK(err <= bound_of(p));
        if (!(err <= bound_of(p)))
            fprintf(stderr, "  relative L2 %.3g, bound %.3g\n", err, bound_of(p));
        free(want);
        free(got);
        buffers_free(&b);
    }
}

/* Bytes equal for 1 and 3 threads and from run to run. */
static void test_threads(void) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const problem *p = &shapes[i];
        buffers a, b;
        check_case = p->name;
        buffers_init(&a, p, 7);
        buffers_init(&b, p, 7);
        CHECK_STATUS(run(p, &a, 1), FP8_OK);
        CHECK_STATUS(run(p, &b, 3), FP8_OK);
        CHECK(memcmp(a.o, b.o,
                     (size_t)(a.total_q * a.o_stride) * fp8_dtype_size(p->dtype)) == 0);
        buffers_free(&a);
        buffers_free(&b);
    }
}

/* A query decoded alone gives the bytes it gave as the last row of its prompt. */
static void test_rows_alone(int64_t window) {
    const problem whole = {"alone", 4,      2,   40,  24,  1, {200}, {200},
                           CAUSAL,  window, F32, F32, F32, 0, 0};
    problem last = whole;
    buffers a, b;
    check_case = "rows alone";
    buffers_init(&a, &whole, 3);
    CHECK_STATUS(run(&whole, &a, 1), FP8_OK);
    b = a;
    last.s_q[0] = 1;
    b.q.data = (float *)a.q.data + 199 * a.q.stride;
    b.q_starts[1] = 1;
    b.total_q = b.max_q = 1;
    b.o = zeroed(b.o_stride, sizeof(float));
    CHECK_STATUS(run(&last, &b, 1), FP8_OK);
    CHECK(memcmp(b.o, (float *)a.o + 199 * a.o_stride, (size_t)a.o_stride * sizeof(float)) == 0);
    free(b.o);
    buffers_free(&a);
}

/* Every code as V of one key: the output is the code's value times the descale. */
static void test_all_codes(void) {
    const problem p = {"codes", 1, 1, 8, 256, 1, {1}, {1}, NONE, 0, F32, F32, E4M3, 0, 0};
    buffers b;
    check_case = "all codes of V";
    buffers_init(&b, &p, 4);
    for (int c = 0; c < 256; c++) ((uint8_t *)b.v.data)[c] = (uint8_t)c;
    CHECK_STATUS(run(&p, &b, 1), FP8_OK);
    for (int c = 0; c < 256; c++) {
        const float want = (float)e4m3_value(c) * b.v_descale;
        const float got = ((float *)b.o)[c];
        CHECK(got == want || (isnan(got) && isnan(want)));
    }
    buffers_free(&b);
}

static int count_nan(const float *x, int64_t n) {
    int count = 0;
    for (int64_t i = 0; i < n; i++) count += isnan(x[i]);
    return count;
}

/* NaN and Inf: a bad query spoils its own row, a bad key only the rows that see it. */
static void test_non_finite(void) {
    const problem p = {"hostile", 1, 1, 16, 16, 1, {70}, {70}, CAUSAL, 0, F32, F32, F32, 0, 0};
    static const struct {
        const char *name;
        float bad;
        int in_key;
        int64_t token;
        int rows; /* spoilt */
    } cases[] = {{"NaN in Q", NAN, 0, 5, 1},
                 {"Inf in Q", INFINITY, 0, 5, 1},
                 {"NaN in K", NAN, 1, 66, 4},
                 {"huge Q", 3.0e38f, 0, 60, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        operand *x;
        buffers b;
        check_case = cases[i].name;
        buffers_init(&b, &p, 5);
        x = cases[i].in_key ? &b.k : &b.q;
        for (int64_t c = 0; c < 16; c++)
            ((float *)x->data)[cases[i].token * x->stride + c] = cases[i].bad;
        CHECK_STATUS(run(&p, &b, 1), FP8_OK);
        for (int64_t t = 0; t < cases[i].token; t++)
            CHECK(count_nan((float *)b.o + t * 16, 16) == 0);
        CHECK(count_nan(b.o, 70 * 16) <= cases[i].rows * 16);
        if (isnan(cases[i].bad)) CHECK(count_nan(b.o, 70 * 16) == cases[i].rows * 16);
        buffers_free(&b);
    }
}

/* Scores so large that only the subtraction of the maximum saves the exponential. */
static void test_large_scores(void) {
    const problem p = {"large", 1, 1, 8, 8, 1, {3}, {130}, NONE, 0, F32, F32, F32, 0, 0};
    float *want, *got;
    buffers b;
    check_case = "scores of a million";
    buffers_init(&b, &p, 6);
    for (int64_t i = 0; i < b.k.rows * b.k.stride; i++)
        ((float *)b.k.data)[i] = b.k.value[i] = b.k.value[i] * 0x1p20f;
    CHECK_STATUS(run(&p, &b, 1), FP8_OK);
    want = reference(&p, &b);
    got = output(&p, &b);
    CHECK(check_relative_l2(got, want, 24) <= 1e-6);
    free(want);
    free(got);
    buffers_free(&b);
}

/* Starts that lie: nothing outside the buffers is touched (ASan would tell). */
static void test_hostile_starts(void) {
    static const int32_t cases[][4] = {{0, 100, 200, 300},        {-50, 4, 8, 12},
                                       {0, 8, 4, 12},             {12, 12, 12, 12},
                                       {INT32_MIN, INT32_MAX, 0, 5}, {INT32_MAX, 0, -1, 3},
                                       {3, 7, 9, 11}};
    const problem p = {"starts", 2,    1, 8,   8,   3,   {4, 4, 4}, {4, 4, 4},
                       CAUSAL,   0, F32, F32, F32, 0, 0};
    enum { NUM = sizeof cases / sizeof *cases };
    check_case = "hostile starts";
    for (int i = 0; i < NUM * NUM; i++) {
        buffers b;
        buffers_init(&b, &p, 8);
        for (int s = 0; s < 4; s++) {
            b.q_starts[s] = cases[i / NUM][s];
            b.kv_starts[s] = cases[i % NUM][s];
        }
        CHECK_STATUS(run(&p, &b, 2), FP8_OK);
        if (i / NUM == 6) CHECK(((float *)b.o)[0] == 0.0f && ((float *)b.o)[11 * 16] == 0.0f);
        buffers_free(&b);
    }
}

/* ---- planning -------------------------------------------------------------------------------- */

static void test_bad_options(void) {
    const fp8_attention_options good = {.num_heads = 4, .num_kv_heads = 2, .d_qk = 8, .d_v = 8,
                                        .num_seqs = 1, .max_q = 4, .max_kv = 4, .dtype = F32,
                                        .q_dtype = F32, .kv_dtype = F32};
    fp8_attention_options o[15];
    fp8_attention_plan *plan = NULL;
    fp8_device *d = NULL;
    int n = 0;

    for (int i = 0; i < 15; i++) o[i] = good;
    o[n++].num_heads = 3;
    o[n++].num_kv_heads = 0;
    o[n++].num_heads = -4;
    o[n++].d_qk = 0;
    o[n++].d_v = -1;
    o[n++].num_seqs = -1;
    o[n++].max_q = -1;
    o[n++].max_kv = (int64_t)1 << 31;
    o[n++].window = -1;
    o[n++].window = 5; /* without the causal mask */
    o[n++].scale = NAN;
    o[n++].dtype = FP8_DTYPE_F16;
    o[n++].q_dtype = BF16;
    o[n++].kv_dtype = FP8_DTYPE_E5M2;
    o[n++].backend = (fp8_attention_backend)99;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "bad option %d", i);
        check_case = name;
        CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[i]), FP8_EINVAL);
        CHECK(!plan);
    }
    check_case = "sizes beyond 2^63";
    o[0] = good;
    o[0].num_seqs = o[0].max_q = INT32_MAX;
    o[0].num_heads = INT32_MAX - 1;
    o[0].num_kv_heads = 1;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_EOVERFLOW);
    CHECK_STATUS(fp8_attention_plan_create(&plan, NULL, &good), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, NULL), FP8_EINVAL);
    fp8_attention_plan_destroy(NULL);
    fp8_device_destroy(d);
}

static void test_bad_run(void) {
    const problem p = {"run", 2, 1, 8, 8, 1, {4}, {4}, NONE, 0, F32, E4M3, E4M3, 0, 0};
    fp8_attention_options o;
    fp8_attention_plan *plan = NULL;
    fp8_attention_io good, bad[13];
    fp8_device *d = NULL;
    void *workspace;
    size_t bytes;
    buffers b;
    int n = 0;

    check_case = "bad run";
    buffers_init(&b, &p, 9);
    o = options_of(&p, &b);
    o.uniform = 1;
    good = io_of(&b);
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    bytes = fp8_attention_workspace_size(plan);
    workspace = zeroed((int64_t)bytes, 1);
    for (int i = 0; i < 13; i++) bad[i] = good;
    bad[n++].o = NULL;
    bad[n++].k = NULL;
    bad[n++].q_stride = 15;
    bad[n++].o_stride = 15;
    bad[n++].v_stride = 7;
    bad[n++].total_q = -1;
    bad[n++].q_starts = NULL;
    bad[n++].kv_starts = NULL;
    bad[n++].q_descale = NULL;
    bad[n++].v_descale = NULL;
    bad[n++].total_q = 3; /* uniform promises 4 */
    bad[n++].total_kv = 3;
    bad[n++].q_stride = 24; /* the plan was made for packed rows */
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "bad run %d", i);
        check_case = name;
        CHECK_STATUS(fp8_attention_run(plan, &bad[i], workspace, bytes), FP8_EINVAL);
    }
    check_case = "workspace";
    CHECK_STATUS(fp8_attention_run(plan, &good, NULL, bytes), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(plan, &good, workspace, bytes - 1), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(NULL, &good, workspace, bytes), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(plan, &good, workspace, bytes), FP8_OK);
    free(workspace);
    fp8_attention_plan_destroy(plan);
    fp8_device_destroy(d);
    buffers_free(&b);
}

static void test_selection(void) {
    fp8_attention_options o = {.num_heads = 1, .num_kv_heads = 1, .d_qk = 8, .d_v = 8,
                               .num_seqs = 1, .max_q = 1, .max_kv = 1, .dtype = F32,
                               .q_dtype = F32, .kv_dtype = F32};
    fp8_attention_plan *plan = NULL;
    fp8_device *d = NULL;

    check_case = "selection";
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    CHECK(strstr(fp8_attention_plan_reasons(plan), "cpu: CPU, 1 thread"));
    CHECK(strstr(fp8_attention_plan_reasons(plan), "fused: "));
    CHECK(strstr(fp8_attention_plan_reasons(plan), "\nunfused: "));
    fp8_attention_plan_destroy(plan);
    o.backend = FP8_BACKEND_UNFUSED;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "cpu: the options ask for unfused"));
    o.backend = FP8_BACKEND_CPU;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    fp8_attention_plan_destroy(plan);
    o.backend = FP8_BACKEND_AUTO;

    check_case = "environment";
    setenv("FP8_FUSED_ATTN", "0", 1);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    CHECK(strstr(fp8_attention_plan_reasons(plan), "fused: switched off by FP8_FUSED_ATTN=0"));
    fp8_attention_plan_destroy(plan);
    setenv("FP8_FUSED_ATTN", "yes", 1);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_EINVAL);
    unsetenv("FP8_FUSED_ATTN");
    setenv("FP8_ATTENTION_BACKEND", "cpu", 1);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    CHECK(strncmp(fp8_attention_plan_reasons(plan), "cpu: ", 5) == 0);
    fp8_attention_plan_destroy(plan);
    setenv("FP8_ATTENTION_BACKEND", "cudnn", 1);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_EINVAL);
    unsetenv("FP8_ATTENTION_BACKEND");
    CHECK(strcmp(fp8_attention_backend_name(FP8_BACKEND_UNFUSED), "unfused") == 0);
    CHECK(strcmp(fp8_attention_backend_name(FP8_BACKEND_AUTO), "auto") == 0);
    fp8_device_destroy(d);
}

int main(void) {
    test_shapes();
    test_threads();
    test_rows_alone(0);
    test_rows_alone(100);
    test_all_codes();
    test_non_finite();
    test_large_scores();
    test_hostile_starts();
    test_bad_options();
    test_bad_run();
    test_selection();
    return CHECK_DONE();
}
