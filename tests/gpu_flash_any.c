/* The flash backend with terms of the scores (arbitrary mask, biases, ALiBi, softcap, sink) and
 * with head sizes of every kind, FP8 and 16 bits, Q and K rotated or not, against the formula in
 * double on sampled rows: cells drawn at random; caps and sinks that are far from 1; masks that
 * leave nothing. Operands hold NaN outside the sequences, biases where no row looks. Skipped off
 * sm_90. */
#include "flash_cases.h"

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define E4M3 FP8_DTYPE_E4M3

/* ---- cells ----------------------------------------------------------------------------------- */

static const int32_t sizes[][2] = {{64, 64},   {96, 96},  {128, 128}, {192, 128}, {192, 192},
                                   {256, 256}, {16, 16},  {80, 80},   {64, 128},  {128, 64},
                                   {176, 96},  {256, 32}, {72, 72},   {40, 136}};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes, NUM_EVEN = NUM_SIZES - 2 }; /* of 16 */

static void draw_terms(fp8_attention_options *o, uint64_t *s) {
    o->mask = (fp8_attention_mask)sweep_below(s, 4);
    o->mask_shape = (fp8_attention_bias_shape)sweep_below(s, 4);
    o->window_left = SWEEP_PICK(s, -1, -1, -1, 0, 40, 200);
    o->window_right = SWEEP_PICK(s, -1, -1, -1, 0, 5, 130);
    o->bias = (fp8_attention_bias)sweep_below(s, 4);
    o->bias_shape = (fp8_attention_bias_shape)sweep_below(s, 4);
    o->bias_dtype = (fp8_dtype)SWEEP_PICK(s, FP8_DTYPE_F32, BF16, F16);
    o->softcap = (float)SWEEP_PICK(s, 0, 0, 1, 30);
    o->sink = (fp8_attention_sink)SWEEP_PICK(s, 0, 0, 1, 2);
}

static void draw_types(fp8_attention_options *o, int codes, uint64_t *s) {
    o->q_dtype = o->kv_dtype = (fp8_dtype)SWEEP_PICK(s, BF16, F16);
    o->o_dtype = (fp8_dtype)SWEEP_PICK(s, BF16, BF16, F16, E4M3);
    o->quantize_p = codes;
    if (!codes) return;
    o->granularity = (fp8_attention_granularity)sweep_below(s, 3);
    o->quantize = (fp8_attention_quantize)sweep_below(s, 3);
    if (o->quantize == FP8_QUANTIZE_NOT) o->q_dtype = o->kv_dtype = E4M3;
    else o->hadamard = o->d_qk % 32 == 0 && sweep_below(s, 2);
}

static fp8_attention_options draw_cell(int i, uint64_t *s) {
    const int codes = i % 2, size = i / 2 % (codes ? NUM_EVEN : NUM_SIZES);
    const int32_t kv = (int32_t)SWEEP_PICK(s, 1, 2), group = (int32_t)SWEEP_PICK(s, 1, 1, 3);
    fp8_attention_options o =
        base_options(kv * group, kv, 64, 1 + sweep_below(s, 3),
                     SWEEP_PICK(s, 1, 63, 64, 127, 128, 129, 200, 300),
                     SWEEP_PICK(s, 1, 2, 64, 65, 127, 128, 129, 256, 383, 500), BF16, BF16);

    o.d_qk = sizes[size][0];
    o.d_v = sizes[size][1];
    o.layout = (fp8_attention_layout)sweep_below(s, FP8_NUM_LAYOUTS);
    if (o.d_qk != o.d_v || group > 1 || o.max_q != o.max_kv)
        o.layout = (fp8_attention_layout)SWEEP_PICK(s, FP8_LAYOUT_THD_THD_THD,
                                                    FP8_LAYOUT_BSHD_BSHD_BSHD,
                                                    FP8_LAYOUT_SBHD_SBHD_SBHD,
                                                    FP8_LAYOUT_BHSD_BHSD_BHSD);
    o.padding = !fp8_attention_layout_is_packed(o.layout) && sweep_below(s, 2);
    o.want_amax = (int)sweep_below(s, 2);
    draw_types(&o, codes, s);
    if (o.d_v % 16 && o.o_dtype == E4M3) o.o_dtype = BF16;
    draw_terms(&o, s);
    return o;
}

/* Where no row of the case looks the bias is NaN: none of it may come near. */
static void spoil_bias(sweep_case *c) {
    fp8_attention_options o;
    fp8_attention_io io = sweep_host_io(c);
    uint8_t *seen;
    int64_t n;

    if (!c->buffer[SWEEP_BIAS].data) return;
    n = (int64_t)(c->buffer[SWEEP_BIAS].bytes / fp8_dtype_size(c->o.bias_dtype));
    seen = calloc((size_t)n + 1, 1);
    if (!seen || attention_resolve_options(&o, &c->o) != FP8_OK ||
        attention_resolve_io(&io, &o, &io) != FP8_OK)
        abort();
    for (int64_t s = 0; s < o.num_seqs; s++) {
        int64_t begin, lo, hi;
        const int64_t s_q = attention_sequence(io.q_starts, io.q_lengths, s, io.total_q, o.max_q,
                                               &begin);
        const int64_t s_kv = attention_sequence(io.kv_starts, io.kv_lengths, s, io.total_kv,
                                                o.max_kv, &begin);
        for (int64_t i = 0; i < s_q * o.num_heads; i++) {
            const int64_t token = i / o.num_heads, head = i % o.num_heads;
            attention_visible(&o, token, s_q, s_kv, &lo, &hi);
            if (lo < hi)
                memset(seen + attention_bias_offset(&o, o.bias_shape, s, head, token, lo), 1,
                       (size_t)(hi - lo));
        }
    }
    for (int64_t i = 0; i < n; i++)
        if (!seen[i]) sweep_store(c->buffer[SWEEP_BIAS].data, o.bias_dtype, i, NAN);
    free(seen);
}

static void test_cells(fp8_device *gpu, int cells) {
    double worst[2] = {0, 0};
    for (int i = 0; i < cells; i++) {
        uint64_t seed = (uint64_t)i * 59 + 3;
        const fp8_attention_options o = draw_cell(i, &seed);
        sweep_case c;
        double error;

        check_case = i % 2 ? "cell, codes" : "cell, 16 bits";
        case_open(&c, &o, seed);
        spoil_bias(&c);
        error = check_run(gpu, &c, seed);
        if (o.o_dtype != E4M3 && error > worst[i % 2]) worst[i % 2] = error;
        sweep_free(&c);
    }
    fprintf(stderr, "%d cells: relative L2 up to %.2e in 16 bits, %.2e in codes\n", cells, worst[0],
            worst[1]);
}

/* ---- values far from 1 ----------------------------------------------------------------------- */

/* Caps from 1/8 to what bends nothing; sinks far above and below every score. */
static void test_extremes(fp8_device *gpu) {
    static const float caps[] = {0.125f, 1, 50, 1e4f, 1e30f}, sinks[] = {-1e4f, -30, 0, 30, 1e4f};
    for (int i = 0; i < 2 * 5 * 5; i++) {
        uint64_t seed = (uint64_t)i * 7 + 1;
        const int codes = i % 2;
        fp8_attention_options o = base_options(2, 1, i / 2 % 2 ? 64 : 128, 2, 130, 200,
                                               codes ? E4M3 : BF16, BF16);
        sweep_case c;
        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.padding = i % 3 == 0;
        o.softcap = caps[i / 2 % 5];
        o.sink = FP8_SINK_LEARNABLE;
        o.bias = i / 10 % 2 ? FP8_BIAS_ALIBI : FP8_BIAS_NONE;
        o.mask = i / 10 % 3 == 1 ? FP8_MASK_CAUSAL_BOTTOM_RIGHT : FP8_MASK_NONE;
        check_case = "extremes";
        case_open(&c, &o, seed);
        for (int h = 0; h < 2; h++)
            ((float *)c.buffer[SWEEP_SINK].data)[h] = sinks[(i / 10 + h) % 5];
        (void)check_run(gpu, &c, seed);
        sweep_free(&c);
    }
}

/* Everything masked out, in all rows or but for one key. */
static void test_hidden(fp8_device *gpu) {
    for (int i = 0; i < 2 * 3 * 2; i++) {
        const int codes = i % 2, sink = i / 2 % 3, one = i / 6;
        fp8_attention_options o =
            base_options(1, 1, 64, 1, 150, 260, codes ? E4M3 : F16, BF16);
        sweep_case c;
        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.mask = FP8_MASK_ARBITRARY;
        o.sink = (fp8_attention_sink)sink;
        check_case = "hidden";
        case_open(&c, &o, (uint64_t)i + 5);
        memset(c.buffer[SWEEP_MASK].data, 7, c.buffer[SWEEP_MASK].bytes);
        for (int t = 0; one && t < 150; t += 2) ((uint8_t *)c.buffer[SWEEP_MASK].data)[t * 261] = 0;
        (void)check_run(gpu, &c, 9);
        sweep_free(&c);
    }
}

/* `quick`: what a checking tool can bear. */
int main(int argc, char **argv) {
    const int quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    fp8_device *gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    test_hidden(gpu);
    test_extremes(gpu);
    test_cells(gpu, quick ? 60 : 700);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
