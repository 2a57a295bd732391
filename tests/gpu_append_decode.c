/* The append and attention over pages in one call, on the GPU: the bytes of one after the other in
 * O, LSE and every page, in one launch where that is promised; lengths, tables and starts that lie;
 * a captured graph replayed with others. `gpu_append_decode few` leaves what a sanitizer gets
 * through in seconds. */
#include "append_pair.h"

static fp8_device *gpu;
static int hopper;

static void test_drawn(int count, int step) {
    for (int n = 0; n < count; n += step) {
        pair_problem x;
        char name[128];
        pair_draw(&x, n);
        snprintf(name, sizeof name, "drawn %d: %d/%d heads, d %d, page %d, %s, %s over %s", n,
                 x.c.heads, x.c.kv_heads, x.c.d_qk, x.c.page_size, fp8_dtype_name(x.c.dtype),
                 fp8_dtype_name(x.c.q_dtype), fp8_dtype_name(x.c.kv_dtype));
        check_case = name;
        CHECK(pair_check(gpu, &x) == hopper);
        pair_free(&x);
    }
}

/* What makes it two launches. */
static void test_two(void) {
    static const append_case several = {"several tokens", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128,
                                        HALVES, 0, 0, 0, 0, 0, 0, 3, {{2, 70}, {1, 9}, {8, 200}}};
    static const append_case wide = {"d 192", 4, 2, 192, 128, 64, BF16, E4M3, E4M3, 64, HALVES, 0,
                                     0, 0, 0, 0, 0, DECODING};
    static const append_case odd = {"odd gaps", 4, 2, 64, 64, 64, BF16, E4M3, E4M3, 64, HALVES, 0,
                                    0, 0, 0, 0, 3, DECODING};
    static const append_case *const all[] = {&several, &wide, &odd};
    const fp8_decode_options o = FP8_DECODE_OPTIONS;
    pair_problem x;

    for (int i = 0; i < 3; i++) {
        check_case = all[i]->name;
        pair_init(&x, all[i], o, 9);
        CHECK(!pair_check(gpu, &x));
        pair_free(&x);
    }
    check_case = "slots for amax";
    pair_usual(&x, 5);
    x.amax = 1;
    CHECK(!pair_check(gpu, &x));
    pair_free(&x);
}

/* Many short sequences and few long ones: items of several blocks, several items of a block. */
static void test_long(void) {
    append_case c = {"long", 8, 2, 128, 128, 64, BF16, E4M3, BF16, 128, HALVES, 1, 0, 0, 0, 0, 0, 6,
                     {{1, 20000}, {1, 1}, {1, 9001}, {1, 4096}, {1, 4097}, {1, 0}}};
    fp8_decode_options o = FP8_DECODE_OPTIONS;

    for (int i = 0; i < 4; i++) {
        pair_problem x;
        check_case = c.name;
        c.kv_heads = i % 2 ? 8 : 2;
        o.split_keys = i / 2 ? 1024 : 0;
        pair_init(&x, &c, o, (uint64_t)i);
        CHECK(pair_check(gpu, &x) == hopper);
        pair_free(&x);
    }
}

static void test_hostile(void) {
    for (int i = 0; i < 4; i++) {
        pair_problem x;
        int32_t *lengths, *table, *starts;
        pair_usual(&x, 30 + (uint64_t)i);
        lengths = x.p.host[MEM_LENGTHS];
        table = x.p.host[MEM_TABLE];
        starts = x.p.host[MEM_STARTS];
        check_case = i == 0 ? "lengths" : i == 1 ? "tables" : i == 2 ? "starts" : "beyond max_kv";
        for (int s = 0; s < x.c.num_seqs && i == 0; s++)
            lengths[s] = s % 3 == 0 ? INT32_MAX - s : s % 3 == 1 ? INT32_MIN + s : lengths[s];
        for (int64_t j = 0; j < x.c.num_seqs * x.p.batch.max_pages && i == 1; j++)
            if (j % 3) table[j] = j % 2 ? (int32_t)x.p.pages.num_pages : INT32_MIN;
        for (int s = 0; s <= x.c.num_seqs && i == 2; s++)
            starts[s] = s < 3 ? 2 * s - 3 : s < 5 ? 3 : s < 6 ? 4 : 900;
        if (i == 3) x.o.max_kv = x.p.batch.max_kv = 100; /* and tables have room for more */
        CHECK(pair_check(gpu, &x) == hopper);
        pair_free(&x);
    }
}

/* Replayed with other lengths, pages and positions, a graph gives what calls with them give. */
static void test_graph(int n) {
    pair_problem x;
    pair_run r;
    pair_result got, want;
    fp8_graph *graph = NULL;
    int32_t *lengths, *table;

    check_case = "graph";
    memset(&got, 0, sizeof got);
    pair_draw(&x, n);
    CHECK_STATUS(pair_open(&r, gpu, &x), FP8_OK);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    CHECK_STATUS(pair_call(&r, &x, 1), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    lengths = x.p.host[MEM_LENGTHS];
    table = x.p.host[MEM_TABLE];
    for (int s = 0; s < x.c.num_seqs; s++) {
        int32_t *row = table + s * x.p.batch.max_pages;
        const int32_t first = row[0];
        if (lengths[s] > 1) lengths[s] -= s % 3;
        if (lengths[s] <= x.c.page_size) continue;
        row[0] = row[1];
        row[1] = first;
    }
    *(float *)x.p.host[MEM_K_DESCALE] *= 1.5f;
    for (int k = MEM_POSITIONS; k <= MEM_V; k++) /* pages, too, as they were */
        CHECK_STATUS(fp8_device_upload(gpu, x.p.device[k], x.p.host[k], x.p.bytes[k]), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, r.o, 0xff, r.o_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, r.lse, 0xff, r.lse_bytes), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    CHECK_STATUS(pair_fetch(&got, &r, &x), FP8_OK);
    fp8_graph_destroy(graph);
    pair_close(&r, &x);
    CHECK_STATUS(pair_result_of(&want, gpu, &x, 0), FP8_OK);
    pair_same(&got, &want);
    pair_result_free(&got);
    pair_result_free(&want);
    pair_free(&x);
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    hopper = fp8_device_capability(gpu) == 90;
    test_drawn(few ? 24 : 168, few ? 5 : 1);
    test_hostile();
    if (few) goto done;
    test_two();
    test_long();
    for (int n = 0; n < 4; n++) test_graph(n);
done:
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
