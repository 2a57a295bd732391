/* quant/produce.h on the CPU: every producer against its formula in double, with all kinds of
 * sinks, hostile values and odd sizes; the same bytes on any number of threads. */
#include "tests/produce_cases.h"

static fp8_device *one, *many;

static const struct {
    int64_t rows, cols;
} sizes[] = {{0, 8},   {1, 1},    {3, 15},   {5, 16},  {33, 64},   {9, 127},
             {8, 128}, {10, 129}, {17, 511}, {8, 512}, {14, 1040}, {2, 40000}};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes };

static void test_norm(void) {
    for (size_t s = 0; s < NUM_SIZES; s++)
        for (int k = 0; k < NUM_NORM_CASES; k++)
            for (int o = 0; o < NUM_SINK_SHAPES; o++) {
                check_case = sink_shapes[o].name;
                if (sizes[s].cols > 20000 && o > 2) continue;
                run_norm(many, produce_types[(o + k) % NUM_PRODUCE_TYPES], &norm_cases[k],
                         &sink_shapes[o], sizes[s].rows, sizes[s].cols, 0, (o + k) % 2);
            }
}

static void test_act(void) {
    for (size_t s = 0; s < NUM_SIZES; s++)
        for (int act = 0; act < 4; act++)
            for (int o = 0; o < NUM_SINK_SHAPES; o++) {
                check_case = sink_shapes[o].name;
                if (sizes[s].cols > 20000 && o > 2) continue;
                run_act(many, produce_types[(o + act) % NUM_PRODUCE_TYPES], (fp8_activation)act,
                        o % 2, act % 2, &sink_shapes[o], sizes[s].rows, sizes[s].cols, 0,
                        (o / 2 + act) % 2);
            }
}

static void test_cast(void) {
    check_case = "cast";
    for (size_t s = 0; s < NUM_SIZES; s++)
        for (int o = 0; o < NUM_SINK_SHAPES; o++)
            run_cast(many, one, produce_types[o % NUM_PRODUCE_TYPES], &sink_shapes[o],
                     sizes[s].rows, sizes[s].cols, 0);
}

static void test_qkv(void) {
    check_case = "qkv";
    for (int k = 0; k < NUM_QKV_CASES; k++)
        for (int t = 0; t < NUM_PRODUCE_TYPES; t++) run_qkv(many, &qkv_cases[k], produce_types[t]);
}

/* One thread and three: the same bytes. */
static void test_threads(void) {
    enum { ROWS = 300, COLS = 777 };
    static uint16_t x[ROWS * COLS], w[COLS];
    static uint8_t codes[2][ROWS * COLS];
    static float descale[2][ROWS];
    uint64_t seed = 5;

    check_case = "threads";
    for (int i = 0; i < ROWS * COLS; i++) x[i] = fp8_f32_to_bf16(check_normal(&seed));
    for (int i = 0; i < COLS; i++) w[i] = fp8_f32_to_bf16(check_normal(&seed));
    for (int i = 0; i < 2; i++) {
        const fp8_norm n = {.kind = FP8_NORM_RMS, .eps = 1e-5f, .dtype = FP8_DTYPE_BF16,
                            .rows = ROWS, .cols = COLS, .x = x, .weight = w};
        const fp8_sink out = {.codes = codes[i], .code = FP8_DTYPE_E4M3,
                              .scaling = FP8_SINK_TOKEN, .descale = descale[i]};
        CHECK_STATUS(fp8_produce_norm(i ? many : one, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    }
    CHECK(memcmp(codes[0], codes[1], sizeof codes[0]) == 0);
    CHECK(memcmp(descale[0], descale[1], sizeof descale[0]) == 0);
}

static void test_refusals(void) {
    float x[64] = {0}, w[8] = {0}, descale[8];
    uint8_t codes[64];
    fp8_norm n = {.kind = FP8_NORM_RMS, .dtype = FP8_DTYPE_F32, .rows = 2, .cols = 8, .x = x,
                  .weight = w};
    fp8_sink out = {.codes = codes, .code = FP8_DTYPE_BF16};
    fp8_qkv q = {.dtype = FP8_DTYPE_F32, .code = FP8_DTYPE_E4M3, .tokens = 1, .dim = 8,
                 .rotary_dim = 8, .q = {.heads = 1, .x = x}};

    check_case = "refusals";
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_EINVAL);
    out = (fp8_sink){.codes = codes, .code = FP8_DTYPE_E4M3, .scaling = FP8_SINK_TOKEN};
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_EINVAL);
    out.descale = descale;
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_OK);
    out.codes_stride = 7;
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_EINVAL);
    out.codes_stride = 0;
    n.residual = x;
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_EINVAL); /* no h */
    n.residual = NULL;
    n.weight = NULL;
    CHECK_STATUS(fp8_produce_norm(one, &out, &n, FP8_LAUNCH_ORDERED), FP8_EINVAL);
    CHECK_STATUS(fp8_produce_cast(one, &out, NULL, FP8_DTYPE_F32, 2, 8, 0, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_produce_cast(one, &out, x, FP8_DTYPE_I32, 2, 8, 0, FP8_LAUNCH_ORDERED),
                 FP8_EINVAL);
    CHECK_STATUS(fp8_produce_qkv(one, &q, FP8_LAUNCH_ORDERED), FP8_EINVAL); /* no tables */
    q.rotary_dim = 0;
    CHECK_STATUS(fp8_produce_qkv(one, &q, FP8_LAUNCH_ORDERED), FP8_OK);
    q.dim = FP8_HEAD_DIM_MAX + 1;
    CHECK_STATUS(fp8_produce_qkv(one, &q, FP8_LAUNCH_ORDERED), FP8_EINVAL);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&one, "cpu", 1), FP8_OK);
    CHECK_STATUS(fp8_device_create(&many, "cpu", 3), FP8_OK);
    test_norm();
    test_act();
    test_cast();
    test_qkv();
    run_all_places(many);
    test_threads();
    test_refusals();
    fp8_device_free(many, twin_pool);
    fp8_device_destroy(one);
    fp8_device_destroy(many);
    return CHECK_DONE();
}
