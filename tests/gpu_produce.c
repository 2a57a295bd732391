/* quant/produce.h, lookup.h, delayed.h and the turned cast on CUDA, by the cases of the CPU tests:
 * every size around pieces, teams and tiles, rows aligned and not, hostile values, nothing written
 * beside the result; the same bytes in every run and in an overlapping launch. Arguments: `few`, a
 * third of the rows' cases; `shapes`, many and long rows alone. */
#include "tests/lookup_cases.h"

static fp8_device *cpu, *gpu;
static int few; /* a third of the cases: for the sanitizers */

static const struct {
    int64_t rows, cols;
} sizes[] = {{0, 8},    {1, 1},     {3, 15},    {5, 16},    {33, 64},    {9, 127},    {64, 128},
             {10, 129}, {17, 248},  {7, 256},   {130, 264}, {257, 520},  {14, 1040},  {600, 768},
             {255, 96}, {520, 3072}, {3, 8192}, {2, 8200},  {513, 4096}, {2, 16384},  {2, 16392},
             {1, 24576}, {520, 2880}, {2, 32768}, {1, 32776}, {1, 40001}};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes };

/* Large cases with few of the combinations, small ones with all. */
static int skipped(size_t s, int combination) {
    const int64_t n = sizes[s].rows * sizes[s].cols;
    const int one_of = n > 200000 ? 5 : 1;
    return (combination + (int)s) % (few ? 3 * one_of : one_of) != 0;
}

static void test_rows(void) {
    for (size_t s = 0; s < NUM_SIZES; s++)
        for (int o = 0; o < NUM_SINK_SHAPES; o++) {
            const int64_t rows = sizes[s].rows, cols = sizes[s].cols;
            const size_t skew = (s + (size_t)o) % 6 == 5; /* by one element: not aligned */
            check_case = sink_shapes[o].name;
            for (int k = 0; k < NUM_NORM_CASES; k++)
                if (!skipped(s, o + k))
                    run_norm(gpu, produce_types[(o + k + (int)s) % 4 % NUM_PRODUCE_TYPES],
                             &norm_cases[k], &sink_shapes[o], rows, cols, skew, (o + k) % 2);
            for (int act = 0; act < 4; act++)
                if (!skipped(s, o + act))
                    run_act(gpu, produce_types[(o + act + (int)s) % 4 % NUM_PRODUCE_TYPES],
                            (fp8_activation)act, (o + (int)s) % 2, act % 2, &sink_shapes[o], rows,
                            cols, skew, (o / 2 + act) % 2);
            if (!skipped(s, o))
                run_cast(gpu, cpu, produce_types[(o + (int)s) % NUM_PRODUCE_TYPES],
                         &sink_shapes[o], rows, cols, skew);
        }
}

/* More rows than are on the GPU at once, and few long ones, in the modes with a kernel of their
 * own. */
static void test_shapes(void) {
    static const struct {
        int64_t rows, cols;
    } many[] = {{3300, 264}, {1601, 1096}, {3, 24576}, {33, 14336}};
    static const norm_case norms[] = {{FP8_NORM_RMS, 0, 0, 0, 0, 0},
                                      {FP8_NORM_RMS_PLUS, 0, 0, 0, 0, 0},
                                      {FP8_NORM_LAYER, 0, 0, 1, 0, 0}};

    check_case = "many or long rows";
    for (int i = 0; i < (few ? 1 : 4); i++) {
        for (int o = 0; o < 3; o++) /* static, token, groups */
            for (int k = 0; k < 3; k++)
                if (i == 0 || (o + k) % 3 != 1)
                    run_norm(gpu, FP8_DTYPE_BF16, &norms[k], &sink_shapes[o], many[i].rows,
                             many[i].cols, 0, k != 2);
        for (int act = 0; act < 3; act++)
            run_act(gpu, FP8_DTYPE_BF16, (fp8_activation)act, act != 2, act == 1, &sink_shapes[1],
                    many[i].rows, many[i].cols, 0, 1);
    }
}

static void test_qkv(void) {
    check_case = "qkv";
    for (int k = 0; k < NUM_QKV_CASES; k++)
        for (int t = 0; t < NUM_PRODUCE_TYPES; t++) run_qkv(gpu, &qkv_cases[k], produce_types[t]);
}

/* A norm, its activation and its cast one after the other, in place of each other, ten times
 * ordered and overlapping: the same bytes. */
static void test_chain(void) {
    enum { ROWS = 37, COLS = 1024, N = ROWS * COLS };
    twin x = twin_make(gpu, N * 2, 0), w = twin_make(gpu, COLS * 2, 0);
    twin stream = twin_make(gpu, N * 2, 0), y = twin_make(gpu, N * 2, 0);
    twin codes = twin_make(gpu, N, 0), descale = twin_make(gpu, ROWS * 4, 0);
    static uint8_t kept[N + ROWS * 4];

    check_case = "chain";
    fill_real(&x, FP8_DTYPE_BF16, ROWS, COLS, COLS, 0, 91);
    fill_real(&w, FP8_DTYPE_BF16, 1, COLS, COLS, 0, 92);
    for (int round = 0; round < 10; round++) {
        const fp8_launch how = round % 2 ? FP8_LAUNCH_OVERLAP : FP8_LAUNCH_ORDERED;
        const fp8_norm n = {.kind = FP8_NORM_RMS, .eps = 1e-5f, .dtype = FP8_DTYPE_BF16,
                            .rows = ROWS, .cols = COLS, .x = stream.dev, .residual = y.dev,
                            .h = stream.dev, .weight = w.dev};
        const fp8_act a = {.act = FP8_ACT_SILU, .dtype = FP8_DTYPE_BF16, .rows = ROWS,
                           .cols = COLS, .x = y.dev, .up = stream.dev};
        const fp8_sink values = {.dense = y.dev};
        const fp8_sink out = {.codes = codes.dev, .code = FP8_DTYPE_E4M3,
                              .scaling = FP8_SINK_TOKEN, .descale = (float *)(void *)descale.dev};

        CHECK_STATUS(fp8_device_copy(gpu, stream.dev, x.dev, x.bytes), FP8_OK);
        CHECK_STATUS(fp8_device_copy(gpu, y.dev, x.dev, x.bytes), FP8_OK);
        for (int i = 0; i < 8; i++) {
            CHECK_STATUS(fp8_produce_norm(gpu, &values, &n, how), FP8_OK);
            CHECK_STATUS(fp8_produce_act(gpu, &values, &a, how), FP8_OK);
        }
        CHECK_STATUS(fp8_produce_cast(gpu, &out, y.dev, FP8_DTYPE_BF16, ROWS, COLS, 0, how),
                     FP8_OK);
        twin_down(&codes), twin_down(&descale);
        if (round == 0) {
            memcpy(kept, codes.host, N);
            memcpy(kept + N, descale.host, ROWS * 4);
        }
        CHECK(memcmp(kept, codes.host, N) == 0 && memcmp(kept + N, descale.host, ROWS * 4) == 0);
    }
    twin_free(&x), twin_free(&w), twin_free(&stream), twin_free(&y), twin_free(&codes);
    twin_free(&descale);
}

int main(int argc, char **argv) {
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    test_shapes();
    if (argc > 1 && strcmp(argv[1], "shapes") == 0) goto done;
    test_rows();
    test_qkv();
    run_all_places(gpu);
    test_chain();
    run_all_embeds(gpu);
    run_all_tops(gpu);
    run_all_delayed(gpu);
    run_all_transposed(gpu);
done:
    CHECK_STATUS(fp8_device_sync(gpu), FP8_OK);
    fp8_device_free(gpu, twin_pool);
    fp8_device_destroy(gpu);
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
