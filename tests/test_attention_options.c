/* Every option: the shared rules against their definition, the oracle against closed forms, the CPU
 * backend against the oracle over a sweep that meets every value of every option. */
#include "attention_sweep.h"

/* ---- rules ----------------------------------------------------------------------------------- */

static void test_sequences(void) {
    static const struct {
        const char *name;
        int32_t starts[3], lengths[2];
        int has_starts, has_lengths;
        int64_t total, longest, want_begin[2], want_length[2];
    } cases[] = {
        {"packed", {0, 4, 9}, {0}, 1, 0, 9, 5, {0, 4}, {4, 5}},
        {"longer than longest", {0, 4, 9}, {0}, 1, 0, 9, 3, {0, 4}, {3, 3}},
        {"beyond the total", {0, 4, 9}, {0}, 1, 0, 7, 5, {0, 4}, {4, 3}},
        {"all beyond", {20, 40, 90}, {0}, 1, 0, 7, 5, {7, 7}, {0, 0}},
        {"falling", {5, 3, 0}, {0}, 1, 0, 7, 5, {5, 3}, {0, 0}},
        {"negative", {-3, 2, -9}, {0}, 1, 0, 7, 5, {0, 2}, {2, 0}},
        {"extremes", {INT32_MIN, INT32_MAX, 0}, {0}, 1, 0, 7, 5, {0, 7}, {5, 0}},
        {"apart", {6, 1, 0}, {3, 4}, 1, 1, 9, 5, {6, 1}, {3, 4}},
        {"apart, beyond", {6, -1, 0}, {9, 4}, 1, 1, 9, 5, {6, 0}, {3, 4}},
        {"apart, negative", {6, 1, 0}, {-1, INT32_MIN}, 1, 1, 9, 5, {6, 1}, {0, 0}},
        {"padded", {0}, {3, 9}, 0, 1, 10, 5, {0, 0}, {3, 5}},
        {"padded, negative", {0}, {-3, 5}, 0, 1, 10, 5, {0, 0}, {0, 5}},
        {"whole", {0}, {0}, 0, 0, 10, 5, {0, 0}, {5, 5}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int32_t *starts = cases[i].has_starts ? cases[i].starts : NULL;
        const int32_t *lengths = cases[i].has_lengths ? cases[i].lengths : NULL;
        check_case = cases[i].name;
        for (int s = 0; s < 2; s++) {
            int64_t begin = -1;
            CHECK(attention_sequence(starts, lengths, s, cases[i].total, cases[i].longest,
                                     &begin) == cases[i].want_length[s]);
            CHECK(begin == cases[i].want_begin[s]);
        }
    }
}

/* attention.h's words, key by key. */
static int sees(const fp8_attention_options *o, int64_t i, int64_t j, int64_t s_q, int64_t s_kv) {
    const int64_t t = o->mask == FP8_MASK_CAUSAL ? i : i + s_kv - s_q;
    const int causal =
        o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    if (causal && j > t) return 0;
    if (o->window_left >= 0 && j < t - o->window_left) return 0;
    return o->window_right < 0 || j <= t + o->window_right;
}

static void test_visible(void) {
    static const int64_t windows[] = {-1, 0, 1, 3, 100}, sizes[] = {0, 1, 2, 5, 9};
    check_case = "keys a query sees";
    for (int n = 0; n < 4 * 5 * 5 * 5 * 5; n++) {
        const fp8_attention_options o = {.mask = (fp8_attention_mask)(n % 4),
                                         .window_left = windows[n / 4 % 5],
                                         .window_right = windows[n / 20 % 5]};
        const int64_t s_q = sizes[n / 100 % 5], s_kv = sizes[n / 500];
        for (int64_t i = 0; i < s_q; i++) {
            int64_t lo, hi;
            attention_visible(&o, i, s_q, s_kv, &lo, &hi);
            CHECK(lo >= 0 && lo <= s_kv && hi >= 0 && hi <= s_kv);
            for (int64_t j = 0; j < s_kv; j++)
                CHECK((j >= lo && j < hi) == sees(&o, i, j, s_q, s_kv));
        }
    }
}

/* The arrays of attention.h, walked in their order: every index is the one before plus 1. */
static void test_indices(void) {
    const fp8_attention_options o = {.num_heads = 6, .num_kv_heads = 3, .num_seqs = 2, .max_q = 4,
                                     .max_kv = 5};
    const fp8_attention_io padded = {.total_q = 8};
    const fp8_attention_io packed = {.q_starts = (const int32_t[]){0, 4, 8}, .total_q = 11};
    int64_t at[4] = {0}, lse = 0, descales[3] = {0};

    check_case = "indices";
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 6; h++)
            for (int64_t i = 0; i < 4; i++) {
                CHECK(attention_lse_offset(&o, &padded, b, h, 0, i) == lse++);
                CHECK(attention_lse_offset(&o, &packed, b, h, 7, i) == h * 11 + 7 + i);
                for (int64_t j = 0; j < 5; j++) {
                    const int first[4] = {b == 0 && h == 0, b == 0, h == 0, 1};
                    for (int s = FP8_BIAS_11SS; s <= FP8_BIAS_BHSS; s++) {
                        const int64_t got =
                            attention_bias_offset(&o, (fp8_attention_bias_shape)s, b, h, i, j);
                        if (first[s]) CHECK(got == at[s]++);
                        else CHECK(got < at[s]);
                    }
                }
            }
    for (int64_t b = 0; b < 2; b++)
        for (int64_t h = 0; h < 3; h++) {
            const int first[3] = {b == 0 && h == 0, b == 0, 1};
            for (int g = FP8_DESCALE_TENSOR; g <= FP8_DESCALE_BATCH_HEAD; g++) {
                fp8_attention_options x = o;
                x.granularity = (fp8_attention_granularity)g;
                if (first[g]) CHECK(attention_descale_index(&x, b, h) == descales[g]++);
                else CHECK(attention_descale_index(&x, b, h) == (g == FP8_DESCALE_HEAD ? h : 0));
            }
        }
    CHECK(attention_offset((fp8_strides){100, 10, 1}, 2, 3, 4) == 234);
}

/* ---- the oracle ------------------------------------------------------------------------------ */

/* One query 1.0 over two keys a and b, values 1 and 0, d 1, scale 0.5: O is P of the first key. */
typedef struct tiny {
    float q, k[2], v[2], bias[4], sink, slope, o[2];
    uint8_t mask[4];
    fp8_attention_options options;
    fp8_attention_io io;
} tiny;

static void tiny_init(tiny *t) {
    const fp8_attention_options start = FP8_ATTENTION_OPTIONS;
    *t = (tiny){.q = 1.0f, .k = {0.25f, 1.5f}, .v = {1.0f, 0.0f}, .bias = {0.75f, -0.5f},
                .sink = 0.3f, .slope = 0.125f, .options = start};
    t->options.num_heads = t->options.num_kv_heads = t->options.d_qk = t->options.d_v = 1;
    t->options.num_seqs = t->options.max_q = 1;
    t->options.max_kv = 2;
    t->options.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    t->options.scale = 0.5f;
    t->options.q_dtype = t->options.kv_dtype = t->options.o_dtype = FP8_DTYPE_F32;
    t->io = (fp8_attention_io){.q = &t->q, .k = t->k, .v = t->v, .bias = t->bias,
                               .mask = t->mask, .sink = &t->sink, .alibi_slopes = &t->slope};
}

static void tiny_check(const char *name, tiny *t, double want_o, double want_lse) {
    double o = NAN, lse = NAN, amax[2];
    check_case = name;
    CHECK_STATUS(fp8_attention_reference(&o, &lse, amax, &t->options, &t->io), FP8_OK);
    CHECK(fabs(o - want_o) <= 1e-15 && (lse == want_lse || fabs(lse - want_lse) <= 1e-15));
    if (!(fabs(o - want_o) <= 1e-15)) fprintf(stderr, "  O %.17g, expected %.17g\n", o, want_o);
    CHECK(amax[1] == fabs(o));
    tiny_init(t);
}

static void test_oracle(void) {
    const double a = 0.125, b = 0.75; /* scores */
    const double one = (double)(1.0f / 448); /* the descale of an amax of 1 */
    tiny t;

    tiny_init(&t);
    tiny_check("plain", &t, 1 / (1 + exp(b - a)), log(exp(a) + exp(b)));
    t.options.bias = FP8_BIAS_PRE_SCALE;
    tiny_check("pre-scale bias", &t, 1 / (1 + exp(b - 0.25 - a - 0.375)),
               log(exp(a + 0.375) + exp(b - 0.25)));
    t.options.bias = FP8_BIAS_POST_SCALE;
    tiny_check("post-scale bias", &t, 1 / (1 + exp(b - 0.5 - a - 0.75)),
               log(exp(a + 0.75) + exp(b - 0.5)));
    t.options.bias = FP8_BIAS_ALIBI; /* the query is the last token: keys at -1 and 0 */
    tiny_check("alibi", &t, 1 / (1 + exp(b - a + 0.125)), log(exp(a - 0.125) + exp(b)));
    t.options.softcap = 0.5f;
    tiny_check("softcap", &t, 1 / (1 + exp(0.5 * tanh(2 * b) - 0.5 * tanh(2 * a))),
               log(exp(0.5 * tanh(2 * a)) + exp(0.5 * tanh(2 * b))));
    t.options.softcap = 0.5f;
    t.options.bias = FP8_BIAS_POST_SCALE;
    tiny_check("softcap, then bias", &t,
               1 / (1 + exp(0.5 * tanh(2 * b) - 1.25 - 0.5 * tanh(2 * a))),
               log(exp(0.5 * tanh(2 * a) + 0.75) + exp(0.5 * tanh(2 * b) - 0.5)));
    t.options.sink = FP8_SINK_OFF_BY_ONE;
    tiny_check("off by one", &t, exp(a) / (1 + exp(a) + exp(b)), log(1 + exp(a) + exp(b)));
    t.options.sink = FP8_SINK_LEARNABLE;
    tiny_check("learnable sink", &t, exp(a) / (exp((double)0.3f) + exp(a) + exp(b)),
               log(exp((double)0.3f) + exp(a) + exp(b)));
    t.options.mask = FP8_MASK_ARBITRARY;
    t.mask[1] = 7;
    tiny_check("masked", &t, 1, a);
    t.options.mask = FP8_MASK_ARBITRARY;
    t.mask[0] = t.mask[1] = 1;
    tiny_check("all masked", &t, 0, -INFINITY);
    t.options.mask = FP8_MASK_ARBITRARY;
    t.options.sink = FP8_SINK_LEARNABLE;
    t.mask[0] = t.mask[1] = 1;
    tiny_check("all masked, sink", &t, 0, (double)0.3f);
    t.options.bias = FP8_BIAS_POST_SCALE;
    t.bias[0] = t.bias[1] = -INFINITY;
    tiny_check("biases of -Inf", &t, 0, -INFINITY);
    t.options.mask = FP8_MASK_CAUSAL;
    tiny_check("top-left", &t, 1, a);
    t.options.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    t.options.window_left = 0;
    tiny_check("window", &t, 0, b);
    t.options.quantize_p = 1; /* 256 exp(a - b) = 137.03 -> 144 */
    tiny_check("P in E4M3", &t, 144.0 / 256 / (1 + exp(a - b)), log(exp(a) + exp(b)));
    t.options.quantize = FP8_QUANTIZE_CURRENT; /* 448, {74.67 -> 72, 448}, {448, 0} */
    tiny_check("current", &t, 448 * one / (1 + exp(224 * one * 376 * (double)(1.5f / 448))),
               log(exp(224 * one * 72 * (double)(1.5f / 448)) +
                   exp(224 * one * 448 * (double)(1.5f / 448))));
}

/* ---- the sweep ------------------------------------------------------------------------------- */

enum { SWEEP_CASES = 1500 };

static fp8_status run_case(sweep_case *c, int threads) {
    const fp8_attention_io io = sweep_host_io(c);
    fp8_attention_plan *plan = NULL;
    fp8_device *d = NULL;
    void *workspace = NULL;
    fp8_status st;

    sweep_poison(c);
    FP8_TRY(fp8_device_create(&d, "cpu", threads));
    FP8_TRY(fp8_attention_plan_create(&plan, d, &c->o));
    workspace = malloc(fp8_attention_workspace_size(plan));
    if (!workspace) abort();
    memset(workspace, 0xff, fp8_attention_workspace_size(plan)); /* NaN: nothing stale may help */
    FP8_TRY(fp8_attention_run(plan, &io, workspace, fp8_attention_workspace_size(plan)));
done:
    free(workspace);
    fp8_attention_plan_destroy(plan);
    fp8_device_destroy(d);
    return st;
}

/* How often each value of an option was met. */
typedef struct coverage {
    int layout[FP8_NUM_LAYOUTS], mask[4], bias[4], bias_shape[4], sink[3], quantize[3],
        granularity[3], q_dtype[FP8_NUM_DTYPES], kv_dtype[FP8_NUM_DTYPES],
        o_dtype[FP8_NUM_DTYPES], quantize_p[2], padding[2], softcap[2], lse[2], amax[2], bad;
} coverage;

static void cover(coverage *n, const sweep_case *c) {
    const fp8_attention_options *o = &c->o;
    if (o->num_seqs == 0 || o->max_q == 0 || o->max_kv == 0) return;
    n->layout[o->layout]++;
    n->mask[o->mask]++;
    n->bias[o->bias]++;
    if (o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE)
        n->bias_shape[o->bias_shape]++;
    n->sink[o->sink]++;
    n->quantize[o->quantize]++;
    n->granularity[o->granularity]++;
    n->q_dtype[o->q_dtype]++;
    n->kv_dtype[o->kv_dtype]++;
    n->o_dtype[o->o_dtype]++;
    n->quantize_p[o->quantize_p]++;
    n->padding[o->padding]++;
    n->softcap[o->softcap > 0]++;
    n->lse[o->want_lse]++;
    n->amax[o->want_amax]++;
    n->bad += c->bad_values;
}

static void check_covered(const int *n, int count) {
    for (int i = 0; i < count; i++) CHECK(n[i] >= 10);
}

static void check_coverage(const coverage *n) {
    static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16, FP8_DTYPE_F16,
                                      FP8_DTYPE_E4M3};
    check_case = "coverage";
    check_covered(n->layout, FP8_NUM_LAYOUTS);
    check_covered(n->mask, 4);
    check_covered(n->bias, 4);
    check_covered(n->bias_shape, 4);
    check_covered(n->sink, 3);
    check_covered(n->quantize, 3);
    check_covered(n->granularity, 3);
    for (int i = 0; i < 4; i++)
        CHECK(n->q_dtype[types[i]] >= 10 && n->kv_dtype[types[i]] >= 10 &&
              n->o_dtype[types[i]] >= 10);
    check_covered(n->quantize_p, 2);
    check_covered(n->padding, 2);
    check_covered(n->softcap, 2);
    check_covered(n->lse, 2);
    check_covered(n->amax, 2);
    CHECK(n->bad >= 10);
}

/* F32 sums of a few hundred terms of about 1, scores up to 20 off by 2^-20: 1e-5 of O. A P on the
 * other side of a tie is 2^-4 of itself off, a few in a hundred thousand. */
static const sweep_bounds bounds = {2e-5, 2e-6, 0.5, 0.01};

static void test_sweep(void) {
    static coverage met;
    for (uint64_t i = 0; i < SWEEP_CASES; i++) {
        char name[32];
        sweep_case c;
        void *once;
        snprintf(name, sizeof name, "case %llu", (unsigned long long)i);
        check_case = name;
        sweep_draw(&c, i);
        cover(&met, &c);
        sweep_expect(&c);
        CHECK_STATUS(run_case(&c, 1), FP8_OK);
        sweep_compare(&c, &bounds);
        once = malloc(c.buffer[SWEEP_O].bytes + 1);
        if (!once) abort();
        memcpy(once, c.buffer[SWEEP_O].data, c.buffer[SWEEP_O].bytes);
        CHECK_STATUS(run_case(&c, 3), FP8_OK);
        CHECK(memcmp(once, c.buffer[SWEEP_O].data, c.buffer[SWEEP_O].bytes) == 0);
        free(once);
        sweep_free(&c);
        if (check_failures > 20) return;
    }
    check_coverage(&met);
}

/* Starts and lengths that lie, at random: the status is OK and no byte outside is touched (ASan
 * tells). */
static void test_lies(void) {
    check_case = "lies";
    for (uint64_t i = 0; i < 300; i++) {
        uint64_t s = i + 99;
        sweep_case c;
        sweep_draw(&c, 5000 + i);
        for (int slot = SWEEP_Q_STARTS; slot <= SWEEP_KV_LENGTHS; slot++) {
            int32_t *x = c.buffer[slot].data;
            for (size_t k = 0; k < c.buffer[slot].bytes / sizeof *x; k++)
                x[k] = (int32_t)SWEEP_PICK(&s, x[k], -1, 1000, INT32_MIN, INT32_MAX,
                                           sweep_below(&s, 200) - 20);
        }
        CHECK_STATUS(run_case(&c, 2), FP8_OK);
        sweep_free(&c);
    }
}

int main(void) {
    test_sequences();
    test_visible();
    test_indices();
    test_oracle();
    test_sweep();
    test_lies();
    return CHECK_DONE();
}
