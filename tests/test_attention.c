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
        if (p->mask == CAUSAL && j > last) prob[j] = -INFINITY;
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

/* Sequences in any order with gaps between them, lengths apart; and the same sequences, of equal
 * lengths, as a batch without starts: the bytes of the packed run. */
static void test_starts_and_lengths(void) {
    const problem p = {"gaps", 4, 2, 24, 16, 3, {5, 5, 5}, {9, 9, 9}, CAUSAL, 3, F32, F32, F32,
                       0, 2};
    static const int32_t q_starts[3] = {10, 0, 4}, kv_starts[3] = {0, 20, 10};
    static const int32_t lengths[3] = {5, 3, 5};
    fp8_attention_options o;
    fp8_device *d = NULL;
    float *want;
    buffers b;

    check_case = p.name;
    buffers_init(&b, &p, 10);
    o = options_of(&p, &b);
    want = zeroed(b.total_q * b.o_stride, sizeof *want);
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    CHECK_STATUS(run(&p, &b, 2), FP8_OK);
    memcpy(want, b.o, (size_t)(b.total_q * b.o_stride) * sizeof *want);
    for (int i = 0; i < 2; i++) {
        fp8_attention_plan *plan = NULL;
        fp8_attention_io io = io_of(&b);
        float *got = b.o;
        void *workspace;

        memset(b.o, 0, (size_t)(b.total_q * b.o_stride) * sizeof *want);
        o.layout = i == 0 ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
        CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
        workspace = zeroed((int64_t)fp8_attention_workspace_size(plan), 1);
        if (i == 0) {
            io.q_starts = io.kv_starts = NULL;
            io.total_q = io.total_kv = 0;
        } else {
            memcpy((int32_t *)b.q_starts, q_starts, sizeof q_starts);
            memcpy((int32_t *)b.kv_starts, kv_starts, sizeof kv_starts);
            io.q_lengths = lengths;
            io.kv_lengths = lengths;
        }
        CHECK_STATUS(fp8_attention_run(plan, &io, workspace, fp8_attention_workspace_size(plan)),
                     FP8_OK);
        if (i == 0)
            CHECK(memcmp(got, want, (size_t)(b.total_q * b.o_stride) * sizeof *want) == 0);
        else /* rows 3 and 9 are in no sequence; a first query sees one key */
            for (int c = 0; c < 64; c++) {
                const int64_t key = (c / 32) * 16 + c % 16; /* its KV head's value */
                CHECK(got[3 * b.o_stride + c] == 0.0f && got[9 * b.o_stride + c] == 0.0f);
                CHECK(got[10 * b.o_stride + c] == b.v.value[key]);
                CHECK(got[4 * b.o_stride + c] == b.v.value[10 * b.v.stride + key]);
                CHECK(got[c] == b.v.value[20 * b.v.stride + key]);
            }
        free(workspace);
        fp8_attention_plan_destroy(plan);
    }
    free(want);
    fp8_device_destroy(d);
    buffers_free(&b);
}

/* ---- planning -------------------------------------------------------------------------------- */

static fp8_attention_options small_options(void) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = 4;
    o.num_kv_heads = 2;
    o.d_qk = o.d_v = 8;
    o.num_seqs = 1;
    o.max_q = o.max_kv = 4;
    o.q_dtype = o.kv_dtype = o.o_dtype = F32;
    return o;
}

static void test_bad_options(void) {
    const fp8_attention_options good = small_options();
    fp8_attention_options o[40];
    fp8_attention_plan *plan = NULL;
    fp8_device *d = NULL;
    int n = 0;

    for (int i = 0; i < 40; i++) o[i] = good;
    o[n++].num_heads = 3;
    o[n++].num_kv_heads = 0;
    o[n++].num_heads = -4;
    o[n++].d_qk = 0;
    o[n++].d_v = -1;
    o[n++].num_seqs = -1;
    o[n++].max_q = -1;
    o[n++].max_kv = (int64_t)1 << 31;
    o[n++].window_left = -2;
    o[n++].window_right = -2;
    o[n++].scale = NAN;
    o[n++].softcap = -1.0f;
    o[n++].softcap = INFINITY;
    o[n++].promote_keys = -1;
    o[n++].q_dtype = BF16; /* with F32 keys */
    o[n++].q_dtype = FP8_DTYPE_E5M2;
    o[n++].kv_dtype = FP8_DTYPE_E5M2;
    o[n++].o_dtype = FP8_DTYPE_E5M2;
    o[n++].backend = (fp8_attention_backend)99;
    o[n++].layout = FP8_NUM_LAYOUTS;
    o[n++].layout = FP8_LAYOUT_T3HD; /* 4 and 2 heads */
    o[n++].mask = (fp8_attention_mask)9;
    o[n++].mask_shape = (fp8_attention_bias_shape)9;
    o[n++].bias = (fp8_attention_bias)9;
    o[n++].bias_shape = (fp8_attention_bias_shape)-1;
    o[n++].sink = (fp8_attention_sink)9;
    o[n++].granularity = (fp8_attention_granularity)9;
    o[n++].quantize = (fp8_attention_quantize)9;
    o[n++].precision = (fp8_attention_precision)9;
    o[n].bias = FP8_BIAS_PRE_SCALE;
    o[n++].bias_dtype = E4M3;
    o[n].q_dtype = o[n].kv_dtype = E4M3;
    o[n++].quantize = FP8_QUANTIZE_GIVEN;
    o[n++].has_strides = 1; /* all of them 0 */
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "bad option %d", i);
        check_case = name;
        CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[i]), FP8_EINVAL);
        CHECK(!plan && !strchr(fp8_last_message(), '\n'));
    }
    check_case = "sizes beyond 2^63";
    o[0] = good;
    o[0].num_seqs = o[0].max_q = INT32_MAX;
    o[0].num_heads = INT32_MAX - 1;
    o[0].num_kv_heads = 1;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_EOVERFLOW);
    check_case = "a mask beyond 2^63";
    o[0] = good;
    o[0].num_heads = o[0].num_kv_heads = 1;
    o[0].d_qk = o[0].d_v = 1;
    o[0].max_q = o[0].max_kv = o[0].num_seqs = INT32_MAX / 2;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_OK);
    fp8_attention_plan_destroy(plan);
    o[0].mask = FP8_MASK_ARBITRARY;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_EOVERFLOW);
    check_case = "strides beyond 2^63";
    o[0] = good;
    o[0].has_strides = 1;
    o[0].q = o[0].k = o[0].v = o[0].o = (fp8_strides){0, 32, 8};
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_OK);
    fp8_attention_plan_destroy(plan);
    o[0].k.head = INT64_MAX - 3;
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o[0]), FP8_EOVERFLOW);
    CHECK_STATUS(fp8_attention_plan_create(&plan, NULL, &good), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, NULL), FP8_EINVAL);
    fp8_attention_plan_destroy(NULL);
    fp8_device_destroy(d);
}

/* Strides that let elements of a tensor share a place, in any order of the dimensions. */
static void test_bad_strides(void) {
    static const struct {
        const char *name;
        fp8_strides x; /* [2, 4, 4, 8] */
        fp8_status want;
    } cases[] = {
        {"bshd", {128, 32, 8}, FP8_OK},        {"sbhd", {32, 64, 8}, FP8_OK},
        {"bhsd", {128, 8, 32}, FP8_OK},        {"heads overlap", {128, 32, 7}, FP8_EINVAL},
        {"tokens overlap", {128, 31, 8}, FP8_EINVAL}, {"batches", {127, 32, 8}, FP8_EINVAL},
        {"tokens in heads", {128, 8, 31}, FP8_EINVAL}, {"no batch", {0, 32, 8}, FP8_EINVAL},
        {"negative", {128, -32, 8}, FP8_EINVAL},
    };
    fp8_device *d = NULL;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_attention_options o = small_options();
        fp8_attention_plan *plan = NULL;
        check_case = cases[i].name;
        o.num_kv_heads = 4;
        o.num_seqs = 2;
        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.has_strides = 1;
        for (int x = 0; x < 4; x++) {
            fp8_strides *const all[4] = {&o.q, &o.k, &o.v, &o.o};
            for (int y = 0; y < 4; y++) *all[y] = (fp8_strides){128, 32, 8};
            *all[x] = cases[i].x;
            CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), cases[i].want);
            fp8_attention_plan_destroy(plan);
        }
    }
    fp8_device_destroy(d);
}

static void test_bad_run(void) {
    const problem p = {"run", 2, 1, 8, 8, 1, {4}, {4}, NONE, 0, F32, E4M3, E4M3, 0, 0};
    fp8_attention_options o;
    fp8_attention_plan *plan = NULL, *uniform = NULL;
    fp8_attention_io good, bad[12];
    fp8_device *d = NULL;
    void *workspace;
    size_t bytes;
    buffers b;
    int n = 0;

    check_case = "bad run";
    buffers_init(&b, &p, 9);
    o = options_of(&p, &b);
    good = io_of(&b);
    CHECK_STATUS(fp8_device_create(&d, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_attention_plan_create(&plan, d, &o), FP8_OK);
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    CHECK_STATUS(fp8_attention_plan_create(&uniform, d, &o), FP8_OK);
    bytes = fp8_attention_workspace_size(plan);
    workspace = zeroed((int64_t)bytes, 1);
    for (int i = 0; i < 12; i++) bad[i] = good;
    bad[n++].o = NULL;
    bad[n++].q = NULL;
    bad[n++].k = NULL;
    bad[n++].v = NULL;
    bad[n++].q_descale = NULL;
    bad[n++].v_descale = NULL;
    bad[n++].q_starts = NULL;
    bad[n++].kv_starts = NULL;
    bad[n++].total_q = -1;
    bad[n++].total_kv = -1;
    for (int i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "bad run %d", i);
        check_case = name;
        CHECK_STATUS(fp8_attention_run(plan, &bad[i], workspace, bytes), FP8_EINVAL);
        if (i < 6) CHECK_STATUS(fp8_attention_run(uniform, &bad[i], workspace, bytes), FP8_EINVAL);
        else CHECK_STATUS(fp8_attention_run(uniform, &bad[i], workspace, bytes), FP8_OK);
    }
    check_case = "lengths without padding";
    bad[n] = good;
    bad[n].kv_lengths = b.kv_starts;
    CHECK_STATUS(fp8_attention_run(uniform, &bad[n], workspace, bytes), FP8_EINVAL);
    check_case = "workspace";
    CHECK_STATUS(fp8_attention_run(plan, &good, NULL, bytes), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(plan, &good, workspace, bytes - 1), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(NULL, &good, workspace, bytes), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_run(plan, &good, workspace, bytes), FP8_OK);
    free(workspace);
    fp8_attention_plan_destroy(plan);
    fp8_attention_plan_destroy(uniform);
    fp8_device_destroy(d);
    buffers_free(&b);
}

static void test_selection(void) {
    fp8_attention_options o = small_options();
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
    test_starts_and_lengths();
    test_bad_options();
    test_bad_strides();
    test_bad_run();
    test_selection();
    return CHECK_DONE();
}
