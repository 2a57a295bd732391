/* The flash backend over its options, against the formula in double on sampled rows:
 * FlashAttention-3's lengths under every mask in FP8 and BF16; every layout; every type, scale
 * granularity and output; operands that hold NaN outside the sequences; lengths and starts that
 * lie; NaN and Inf; the same bytes twice; a captured graph with changed lengths. Skipped off
 * sm_90. */
#include "core/graph.h"
#include "flash_cases.h"

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define E4M3 FP8_DTYPE_E4M3

/* ---- shards ---------------------------------------------------------------------------------- */

/* Cases shard, shard + shards .. of a part are run, the others are not. */
static int shard, shards = 1;

static int is_left_out(int i) { return i % shards != shard; }

/* ---- FlashAttention-3's lengths -------------------------------------------------------------- */

static const int16_t fa3_lengths[][2] = {
    {1, 1},       {64, 128},   {128, 192},  {256, 256},   {239, 1},     {799, 3},    {113, 203},
    {113, 128},   {128, 217},  {113, 211},  {108, 256},   {256, 512},   {384, 256},  {640, 128},
    {512, 256},   {1024, 1024}, {1023, 1024}, {1024, 1023}, {4096, 4096}, {4224, 4224},
};

/* Masks: none, causal top-left and bottom-right, window both sides, window with any. */
static void test_lengths(fp8_device *gpu, int quick) {
    static const int32_t kv_heads[] = {6, 2, 1}, sizes[] = {64, 128, 256};
    static const char *const mask_names[] = {"none", "top-left", "bottom-right", "window",
                                             "window, any mask"};
    double worst[2][3] = {{0}};
    const int n = (int)(sizeof fa3_lengths / sizeof *fa3_lengths);

    for (int i = 0; i < n * 5 * 3 * 2; i++) {
        const int16_t *s = fa3_lengths[i % n];
        const int mask = i / n % 5, size = i / n / 5 % 3, codes = i / n / 15;
        uint64_t seed = (uint64_t)i * 77 + 5;
        const int kind = (int)sweep_below(&seed, 6);
        fp8_attention_options o = base_options(
            6, kv_heads[kind % 3], sizes[size], s[1] > 2048 ? 1 : 3, s[0], s[1],
            codes ? E4M3 : BF16, sweep_below(&seed, 3) ? BF16 : codes ? E4M3 : F16);
        char name[96];
        double error;

        if (is_left_out(i) || (quick && s[1] > 600)) continue;
        o.layout = kind < 3 ? FP8_LAYOUT_THD_THD_THD : FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.padding = kind >= 3 && sweep_below(&seed, 2);
        o.granularity = FP8_DESCALE_BATCH_HEAD;
        flash_set_mask(&o, mask, &seed);
        snprintf(name, sizeof name, "%d x %d, d %d, %s, %s", s[0], s[1], sizes[size],
                 mask_names[mask], codes ? "E4M3" : "BF16");
        check_case = name;
        error = check_options(gpu, &o, seed);
        if (o.o_dtype == BF16 && error > worst[codes][size]) worst[codes][size] = error;
        check_case = "";
    }
    for (int k = 0; k < 6; k++)
        fprintf(stderr, "lengths: %s d %d: relative L2 up to %.2e\n", k / 3 ? "E4M3" : "BF16",
                sizes[k % 3], worst[k / 3][k % 3]);
}

/* ---- layouts and types ----------------------------------------------------------------------- */

static void test_layouts(fp8_device *gpu) {
    for (int i = 0; i < FP8_NUM_LAYOUTS * 12; i++) {
        uint64_t seed = (uint64_t)i * 31 + 7;
        const fp8_attention_layout l = (fp8_attention_layout)(i % FP8_NUM_LAYOUTS);
        const int codes = i / FP8_NUM_LAYOUTS % 2, stretched = i / FP8_NUM_LAYOUTS / 6;
        const int32_t heads = 2 * (int32_t)(1 + sweep_below(&seed, 2));
        const int32_t d = (int32_t)SWEEP_PICK(&seed, 64, 128, 256);
        fp8_attention_options o =
            base_options(heads, sweep_shares_q(l) ? heads : heads / 2, d, 1 + i % 3,
                         1 + sweep_below(&seed, 300), 0, codes ? E4M3 : BF16, BF16);
        o.layout = l;
        o.max_kv = sweep_shares_q(l) ? o.max_q : 1 + sweep_below(&seed, 400);
        o.padding = !fp8_attention_layout_is_packed(l) && sweep_below(&seed, 2);
        if (stretched && !sweep_shares_q(l) && !sweep_shares_kv(l)) sweep_stretch(&o, &seed);
        flash_set_mask(&o, (int)sweep_below(&seed, 5), &seed);
        check_case = fp8_attention_layout_name(l);
        if (is_left_out(i)) continue;
        (void)check_options(gpu, &o, seed);
    }
}

static void test_types(fp8_device *gpu) {
    static const fp8_dtype in[] = {E4M3, BF16, F16}, out[] = {BF16, F16, E4M3};
    for (int i = 0; i < 3 * 3 * 3 * 3 * 3; i++) {
        uint64_t seed = (uint64_t)i * 13 + 3;
        const fp8_dtype q = in[i % 3], kv = in[i / 3 % 3];
        fp8_attention_options o =
            base_options(4, 2, (int32_t)SWEEP_PICK(&seed, 64, 128, 256), 2,
                         SWEEP_PICK(&seed, 1, 127, 128, 129, 200), 1 + sweep_below(&seed, 300), q,
                         out[i / 9 % 3]);
        o.kv_dtype = kv;
        o.quantize = (fp8_attention_quantize)(i / 27 % 3);
        o.granularity = (fp8_attention_granularity)(i / 81);
        o.quantize_p = q == E4M3 || kv == E4M3 || o.quantize != FP8_QUANTIZE_NOT;
        if (q != kv && q != E4M3 && kv != E4M3) continue;            /* no such options */
        if (q == E4M3 && kv == E4M3 && o.quantize != FP8_QUANTIZE_NOT) continue;
        if (q != kv && o.quantize == FP8_QUANTIZE_NOT) continue;      /* refused: test_refusals */
        if (is_left_out(i)) continue;
        if (i % 2) o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.padding = i % 2 && i % 4 == 1;
        flash_set_mask(&o, (int)sweep_below(&seed, 5), &seed);
        check_case = "types";
        (void)check_options(gpu, &o, seed);
    }
}

/* flash_wide.cu: long sequences of any lengths, promoted more or less often, or not. */
static void test_wide(fp8_device *gpu) {
    static const int32_t sizes[] = {64, 128, 256}, promote[] = {0, 128, 1000, 4096};
    for (int i = 0; i < 24; i++) {
        uint64_t seed = (uint64_t)i * 41 + 11;
        const fp8_dtype out = (fp8_dtype)SWEEP_PICK(&seed, BF16, BF16, F16, E4M3);
        fp8_attention_options o =
            base_options(16, 2, sizes[i % 3], 2, 1024 + sweep_below(&seed, 90),
                         4096 + sweep_below(&seed, 200), E4M3, out);
        o.want_lse = o.want_amax = 0;
        o.precision = i / 3 % 2 ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
        if (o.precision == FP8_ATTENTION_EXACT) o.promote_keys = promote[i / 6 % 4];
        if (i % 2) o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.padding = i % 2 && i % 4 == 1;
        o.granularity = FP8_DESCALE_BATCH_HEAD;
        if (i % 4 == 2) o.scale = 8.0f / sqrtf((float)o.d_v); /* maxima that rise again and again */
        flash_set_mask(&o, i / 3 % 5, &seed);
        check_case = "wide";
        if (is_left_out(i)) continue;
        CHECK(flash_wide_rows(&o) > 0);
        fprintf(stderr, "wide: d %d, mask %d, promoted every %d keys: relative L2 %.2e\n", o.d_v,
                i / 3 % 5, o.precision == FP8_ATTENTION_FAST ? -1 : o.promote_keys,
                check_options(gpu, &o, seed));
    }
}

/* One item a block. */
static void test_wave(fp8_device *gpu) {
    static const int32_t sizes[] = {64, 128, 256}, heads[] = {22, 22, 12};
    for (int i = 0; i < 6; i++) {
        fp8_attention_options o = base_options(heads[i % 3], 2, sizes[i % 3], 1,
                                               i % 3 == 1 ? 1100 : 1400, 4200, E4M3, BF16);
        o.want_lse = o.want_amax = 0;
        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.precision = i / 3 ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
        check_case = "wave";
        if (is_left_out(i)) continue;
        CHECK(flash_wide_rows(&o) > 0);
        fprintf(stderr, "wave: d %d, %s: relative L2 %.2e\n", o.d_v, i / 3 ? "fast" : "promoted",
                check_options(gpu, &o, (uint64_t)i + 1));
    }
}

/* Q and K rotated before flash_wide.cu, whose blocks take up to three items. */
static void test_rotated(fp8_device *gpu) {
    for (int i = 0; i < 2; i++) {
        fp8_attention_options o =
            base_options(12, 2, 128, 3, 1100, 4200, i ? F16 : BF16, BF16);
        o.want_lse = o.want_amax = 0;
        o.quantize = i ? FP8_QUANTIZE_CURRENT : FP8_QUANTIZE_GIVEN;
        o.quantize_p = o.hadamard = 1;
        o.granularity = i ? FP8_DESCALE_BATCH_HEAD : FP8_DESCALE_HEAD;
        o.layout = i ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
        o.padding = i;
        o.precision = i ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
        check_case = "rotated";
        if (is_left_out(i)) continue;
        CHECK(flash_wide_rows(&o) > 0);
        fprintf(stderr, "rotated: %s scales: relative L2 %.2e\n", i ? "current" : "given",
                check_options(gpu, &o, (uint64_t)i + 1));
    }
}

/* flash_wide.cu with V as it lies: items in the plan's order, by their index where there are more
 * of them than it has room for, from the counter where lengths differ. */
static void test_ordered(fp8_device *gpu) {
    for (int i = 0; i < 12; i++) {
        uint64_t seed = (uint64_t)i * 23 + 3;
        const int many = i % 4 == 3; /* 6 tiles of 32 heads of 3 sequences are more than 512 */
        const int64_t keys = 1024 + sweep_below(&seed, i % 3 == 0 || many ? 1 : 1000);
        fp8_attention_options o =
            base_options(many ? 32 : 16, many ? 32 : 16, 128, many ? 3 : 2,
                         i % 3 == 0 || many ? 1024 : 1024 + sweep_below(&seed, 1000), keys, E4M3,
                         (fp8_dtype)SWEEP_PICK(&seed, BF16, E4M3));
        o.want_lse = o.want_amax = 0;
        o.layout = i % 2 ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_SBHD_SBHD_SBHD;
        o.padding = i == 4;
        o.precision = i % 4 < 2 ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
        if (i % 4 == 2) o.promote_keys = 256;
        if (i % 3) o.mask = i % 3 == 1 ? FP8_MASK_CAUSAL : FP8_MASK_CAUSAL_BOTTOM_RIGHT;
        if (i == 5) o.window_left = 300;
        check_case = "ordered";
        if (is_left_out(i)) continue;
        CHECK(flash_wide_rows(&o) > 0 && flash_v_as_is(&o));
        fprintf(stderr, "ordered: %lld by %lld tokens, mask %d: relative L2 %.2e\n",
                (long long)o.max_q, (long long)o.max_kv, (int)o.mask,
                check_options(gpu, &o, seed));
    }
}

/* Nothing but O wanted, all sequences of the plan's lengths: one launch, items by their index;
 * fewer and more of them than blocks, V turned in the kernel and before it. */
static void test_short(fp8_device *gpu) {
    static const int32_t sizes[] = {64, 128, 256};
    for (int i = 0; i < 36; i++) {
        uint64_t seed = (uint64_t)i * 17 + 5;
        const int32_t tokens = (int32_t)SWEEP_PICK(&seed, 1, 128, 300, 512, 1000, 1025);
        fp8_attention_options o =
            base_options(tokens > 512 ? 12 : 20, 4, sizes[i % 3], 4, tokens,
                         tokens + sweep_below(&seed, 140), i % 4 == 3 ? BF16 : E4M3,
                         (fp8_dtype)SWEEP_PICK(&seed, BF16, E4M3));
        o.want_lse = o.want_amax = 0;
        o.layout = i % 2 ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_SBHD_SBHD_SBHD;
        flash_set_mask(&o, i / 3 % 5, &seed);
        check_case = "short";
        if (is_left_out(i)) continue;
        fprintf(stderr, "short: d %d, mask %d, %d tokens: relative L2 %.2e\n", o.d_v, i / 3 % 5,
                tokens, check_options(gpu, &o, seed));
    }
}

/* Without LSE and amax, and nothing at all to do. */
static void test_nothing(fp8_device *gpu) {
    for (int i = 0; i < 2 * 2 * 4; i++) {
        fp8_attention_options o = base_options(2, 1, 64, i / 4 == 1 ? 0 : 2, i / 4 == 2 ? 0 : 5,
                                               i / 4 == 3 ? 0 : 7, i % 2 ? E4M3 : BF16, BF16);
        sweep_case c;
        o.layout = i % 4 / 2 ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
        o.want_lse = 0;
        check_case = "nothing";
        case_open(&c, &o, (uint64_t)i + 1);
        CHECK_STATUS(run_once(gpu, &c), FP8_OK);
        flash_check_all(&c);
        sweep_free(&c);
    }
}

/* ---- lies and bad values --------------------------------------------------------------------- */

/* Starts and lengths that lie: the run stays inside (compute-sanitizer tells) and is right about
 * what it reads them as. */
static void test_lies(fp8_device *gpu) {
    for (uint64_t i = 0; i < 48; i++) {
        uint64_t s = i + 99;
        fp8_attention_options o = base_options(2, 1, (int32_t)SWEEP_PICK(&s, 64, 128, 256), 3, 140,
                                               150, i % 2 ? E4M3 : BF16, BF16);
        sweep_case c;
        o.layout = i / 2 % 2 ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
        o.padding = i / 2 % 2;
        o.mask = (fp8_attention_mask)sweep_below(&s, 3);
        if (i / 4 % 3 == 2) o.quantize = i % 2 ? FP8_QUANTIZE_NOT : FP8_QUANTIZE_CURRENT;
        o.quantize_p |= o.quantize != FP8_QUANTIZE_NOT;
        check_case = "lies";
        if (is_left_out((int)i)) continue;
        case_open(&c, &o, s);
        for (int slot = SWEEP_Q_STARTS; slot <= SWEEP_KV_LENGTHS; slot++) {
            int32_t *x = c.buffer[slot].data;
            for (size_t k = 0; k < c.buffer[slot].bytes / sizeof *x; k++)
                x[k] = (int32_t)SWEEP_PICK(&s, x[k], -1, 1000, INT32_MIN, INT32_MAX,
                                           sweep_below(&s, 300) - 20);
        }
        CHECK_STATUS(run_once(gpu, &c), FP8_OK);
        flash_check_all(&c);
        sweep_free(&c);
    }
}

/* NaN in one query: its row and no other. NaN in one key: the rows that see it. Inf in Q or K:
 * something comes out. */
static void test_bad_values(fp8_device *gpu) {
    for (int i = 0; i < 2 * 3 * 3; i++) {
        const int codes = i % 2, which = i / 2 % 3;
        const int32_t d = i / 6 == 0 ? 64 : i / 6 == 1 ? 128 : 256;
        fp8_attention_options o =
            base_options(1, 1, d, 1, 200, 300, codes ? E4M3 : BF16, BF16);
        const int64_t token = 77, key = 140;
        sweep_case c;
        int64_t bad = 0, good = 0;

        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.mask = FP8_MASK_CAUSAL;
        o.want_amax = 0;
        check_case = "bad values";
        if (is_left_out(i)) continue;
        case_open(&c, &o, (uint64_t)i + 11);
        sweep_store(c.buffer[which == 0 ? SWEEP_Q : SWEEP_K].data, o.q_dtype,
                    (which == 0 ? token : key) * d + 3, which == 2 ? INFINITY : NAN);
        CHECK_STATUS(run_once(gpu, &c), FP8_OK);
        for (int64_t t = 0; t < 200; t++)
            for (int64_t k = 0; k < d; k++) {
                const float x = sweep_load(c.buffer[SWEEP_O].data, BF16, t * d + k);
                const int spoiled = which == 0 ? t == token : t >= key;
                if (spoiled) bad += isnan(x);
                else good += !isnan(x);
            }
        if (which < 2) CHECK(bad == (which == 0 ? 1 : 60) * d);
        CHECK(good == (which == 0 ? 199 : 140) * d);
        sweep_free(&c);
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refusals(fp8_device *gpu) {
    static const char *const names[] = {"q and kv differ", "stride of 8 bytes", "quantize_p",
                                        "no quantize_p",   "F32 out",           "d 72",
                                        "d 264",           "d_v 72 in codes",   "F32 in"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) {
        fp8_attention_options o = base_options(2, 1, 64, 2, 5, 5, i == 3 ? E4M3 : BF16, BF16);
        fp8_attention_plan *plan = NULL;
        o.backend = FP8_BACKEND_FLASH;
        if (i == 0) o.kv_dtype = E4M3, o.quantize_p = 1;
        if (i == 1) {
            o.has_strides = 1;
            o.q = o.o = (fp8_strides){0, 132, 64};
            o.k = o.v = (fp8_strides){0, 64, 64};
        }
        if (i == 2) o.quantize_p = 1;
        if (i == 3) o.quantize_p = 0;
        if (i == 4) o.o_dtype = FP8_DTYPE_F32;
        if (i == 5) o.q_dtype = o.kv_dtype = E4M3, o.quantize_p = 1, o.d_qk = o.d_v = 72;
        if (i == 6) o.d_qk = o.d_v = 264;
        if (i == 7) o.o_dtype = E4M3, o.d_v = 72;
        if (i == 8) o.q_dtype = o.kv_dtype = FP8_DTYPE_F32;
        check_case = names[i];
        CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_EUNSUPPORTED);
        CHECK(strstr(fp8_last_message(), "flash: "));
        fp8_attention_plan_destroy(plan);
    }
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* The plan of a run with every operand, the output and the workspace elsewhere, uncaptured. */
static void test_moved(gpu_run *r, sweep_case *c, const void *want) {
    gpu_run there;
    fp8_attention_plan *own;

    sweep_poison(c);
    CHECK_STATUS(run_open(&there, r->d, c), FP8_OK);
    own = there.plan;
    there.plan = r->plan;
    CHECK_STATUS(run_call(r, c), FP8_OK);
    CHECK_STATUS(run_call(&there, c), FP8_OK);
    CHECK_STATUS(run_fetch(&there, c), FP8_OK);
    CHECK(memcmp(want, c->buffer[SWEEP_O].data, c->buffer[SWEEP_O].bytes) == 0);
    there.plan = own;
    run_close(&there);
}

/* A captured run, replayed with other lengths and scales, gives what an uncaptured one gives. */
static void test_graph(fp8_device *gpu) {
    for (int i = 0; i < 6; i++) {
        fp8_attention_options o = base_options(4, 2, i / 2 == 0 ? 64 : i / 2 == 1 ? 128 : 256, 3,
                                               300, 400, BF16, BF16);
        fp8_graph *graph = NULL;
        gpu_run r = {0};
        sweep_case c;
        void *want;

        o.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
        o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
        o.padding = 1;
        if (i % 2) o.quantize = i == 3 ? FP8_QUANTIZE_GIVEN : FP8_QUANTIZE_CURRENT;
        o.quantize_p = i % 2;
        check_case = "graph";
        if (is_left_out(i)) continue;
        memset(&c, 0, sizeof c);
        c.o = o;
        for (int k = SWEEP_Q_LENGTHS; k <= SWEEP_KV_LENGTHS; k++)
            memcpy(sweep_alloc(&c, (sweep_slot)k, 3, 4), (int32_t[]){200, 0, 31}, 12);
        sweep_make_operands(&c, &(uint64_t){(uint64_t)i});
        sweep_make_descales(&c, &(uint64_t){(uint64_t)i});
        sweep_make_terms(&c, &(uint64_t){(uint64_t)i});
        sweep_poison(&c);
        CHECK_STATUS(run_open(&r, gpu, &c), FP8_OK);
        CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
        CHECK_STATUS(run_call(&r, &c), FP8_OK);
        CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
        CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
        for (int k = SWEEP_Q_LENGTHS; k <= SWEEP_KV_LENGTHS; k++)
            memcpy(c.buffer[k].data, (int32_t[]){7, 300, 129}, 12);
        for (int k = SWEEP_Q_DESCALE; k <= SWEEP_V_DESCALE; k++)
            if (c.buffer[k].data) *(float *)c.buffer[k].data *= 1.5f;
        CHECK_STATUS(run_once(gpu, &c), FP8_OK);
        want = malloc(c.buffer[SWEEP_O].bytes);
        if (!want) abort();
        memcpy(want, c.buffer[SWEEP_O].data, c.buffer[SWEEP_O].bytes);
        for (int k = SWEEP_Q_LENGTHS; k <= SWEEP_V_DESCALE; k++)
            if (c.buffer[k].data)
                CHECK_STATUS(fp8_device_upload(gpu, r.at[k], c.buffer[k].data, c.buffer[k].bytes),
                             FP8_OK);
        for (int k = 0; k < 3; k++) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
        CHECK_STATUS(run_fetch(&r, &c), FP8_OK);
        CHECK(memcmp(want, c.buffer[SWEEP_O].data, c.buffer[SWEEP_O].bytes) == 0);
        (void)flash_compare(&c, SAMPLES, 1);
        test_moved(&r, &c, want);
        free(want);
        fp8_graph_destroy(graph);
        run_close(&r);
        sweep_free(&c);
    }
}

/* ---- parts ----------------------------------------------------------------------------------- */

static void test_all_lengths(fp8_device *gpu) { test_lengths(gpu, 0); }
static void test_quick_lengths(fp8_device *gpu) { test_lengths(gpu, 1); }

/* quick: what a checking tool can bear. */
static const struct {
    const char *name;
    void (*run)(fp8_device *gpu);
    int always, quick;
} parts[] = {
    {"refusals", test_refusals, 1, 1},
    {"nothing", test_nothing, 1, 1},
    {"short", test_short, 1, 0},
    {"ordered", test_ordered, 1, 0},
    {"types", test_types, 1, 1},
    {"layouts", test_layouts, 1, 1},
    {"lies", test_lies, 1, 1},
    {"bad", test_bad_values, 1, 1},
    {"graph", test_graph, 1, 1},
    {"wide", test_wide, 1, 0},
    {"wave", test_wave, 1, 0},
    {"rotated", test_rotated, 1, 0},
    {"lengths", test_all_lengths, 1, 0},
    {"quick-lengths", test_quick_lengths, 0, 1},
};

/* Nothing: everything. `quick`: less. The name of a part: that alone; then K N: its cases K, K + N
 * .. alone. */
int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : "";
    const int quick = strcmp(only, "quick") == 0;
    int found = 0;
    fp8_device *gpu = check_hopper();

    if (!gpu) return TEST_SKIP;
    if (argc > 3) {
        shard = atoi(argv[2]);
        shards = atoi(argv[3]);
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const int wanted = quick ? parts[i].quick : *only ? strcmp(parts[i].name, only) == 0
                                                          : parts[i].always;
        if (!wanted) continue;
        found++;
        parts[i].run(gpu);
    }
    check_case = only;
    CHECK(found > 0);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
