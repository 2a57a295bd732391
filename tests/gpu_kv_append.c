/* Appending to a paged cache on the GPU: the formula in double and every byte of the pages, ordered
 * and overlapping launches, the same bytes twice, odd alignments, lengths and tables that lie, and
 * a captured graph replayed with other ones. `gpu_kv_append few` leaves some of the cases. */
#include <string.h>

#include "append_cases.h"
#include "core/graph.h"

static fp8_device *gpu;

static void test_cases(int step) {
    for (int i = 0; i < NUM_APPEND_CASES; i += step)
        for (int how = FP8_LAUNCH_ORDERED; how <= FP8_LAUNCH_OVERLAP; how++) {
            append_problem p, again;
            check_case = append_cases[i].name;
            append_problem_init(&p, &append_cases[i], (uint64_t)i + 5);
            append_problem_init(&again, &append_cases[i], (uint64_t)i + 5);
            CHECK_STATUS(append_problem_run(&p, gpu, (fp8_launch)how), FP8_OK);
            CHECK_STATUS(append_problem_run(&again, gpu, (fp8_launch)how), FP8_OK);
            append_check(&p);
            for (int k = MEM_K; k <= MEM_AMAX; k++)
                CHECK(memcmp(p.host[k], again.host[k], p.bytes[k]) == 0);
            append_problem_free(&p);
            append_problem_free(&again);
        }
}

/* As many rows as are taken by blocks that stay: the formula, the same bytes twice and overlapping,
 * and those of the kernel that also observes. */
static void check_many(const append_case *c, uint64_t seed) {
    append_problem p, again, observed;
    append_problem *const all[] = {&p, &again, &observed};
    check_case = c->name;
    for (int k = 0; k < 3; k++) {
        append_problem_init(all[k], c, seed);
        all[k]->unobserved = k < 2;
        CHECK_STATUS(append_problem_run(all[k], gpu, k == 1 ? FP8_LAUNCH_OVERLAP
                                                            : FP8_LAUNCH_ORDERED), FP8_OK);
    }
    append_check(&p);
    for (int k = MEM_K; k <= MEM_Q; k++) {
        CHECK(memcmp(p.host[k], again.host[k], p.bytes[k]) == 0);
        CHECK(memcmp(p.host[k], observed.host[k], p.bytes[k]) == 0);
    }
    for (int k = 0; k < 3; k++) append_problem_free(all[k]);
}

/* Those of the table, and sequences that are many and short. */
static void test_many(int step) {
    append_case c = append_many[1];
    uint64_t state = 1;

    for (int i = 0; i < NUM_APPEND_MANY; i += step) check_many(&append_many[i], (uint64_t)i + 9);
    c.name = "many, short";
    for (c.num_seqs = 32; c.num_seqs <= APPEND_MAX_SEQS; c.num_seqs += 19) {
        for (int s = 0; s < c.num_seqs; s++) {
            c.length[s].q = (int32_t)(check_random(&state) % (uint64_t)(9000 / c.num_seqs));
            c.length[s].kv = c.length[s].q + (int32_t)(check_random(&state) % 150);
        }
        check_many(&c, state);
    }
}

/* Ragged prefill of many short sequences, all places of a page. */
static void test_ragged(uint64_t seeds) {
    append_case c = {"ragged", 8, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1, 0, 0, 0, 1, 0,
                     DECODE_MAX_SEQS, {{0, 0}}};
    for (uint64_t seed = 0; seed < seeds; seed++) {
        uint64_t state = seed;
        append_problem p;
        check_case = "ragged";
        c.page_size = seed % 2 ? 128 : 64;
        c.kv_dtype = seed % 3 == 2 ? BF16 : E4M3;
        for (int s = 0; s < DECODE_MAX_SEQS; s++) {
            c.length[s].q = (int32_t)(check_random(&state) % (seed % 4 ? 40 : 300));
            c.length[s].kv = c.length[s].q + (int32_t)(check_random(&state) % 150);
        }
        append_problem_init(&p, &c, seed);
        CHECK_STATUS(append_problem_run(&p, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
        append_check(&p);
        append_problem_free(&p);
    }
}

/* F32, and only some of the parts. */
static void test_parts(void) {
    const append_case c = {"F32", 4, 2, 40, 24, 64, F32, F32, F32, 40, HALVES, 1, 0, 0, 0, 0, 0,
                           PREFILL};
    append_problem p;
    check_case = c.name;
    append_problem_init(&p, &c, 3);
    CHECK_STATUS(append_problem_run(&p, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
    append_check(&p);
    append_problem_free(&p);
    for (int i = 1; i < 6; i += 4) {
        check_case = "Q alone";
        append_problem_init(&p, &append_cases[i], 3);
        CHECK_STATUS(append_upload(&p, gpu), FP8_OK);
        p.a.k.x = p.a.v.x = NULL;
        CHECK_STATUS(fp8_kv_append_run(gpu, &p.pages, &p.batch, &p.a, FP8_LAUNCH_ORDERED), FP8_OK);
        for (int k = MEM_INPUTS; k < MEM_COUNT; k++)
            CHECK_STATUS(fp8_device_download(gpu, p.host[k], p.device[k], p.bytes[k]), FP8_OK);
        for (int k = MEM_K; k <= MEM_V; k++)
            for (size_t b = 0; b < p.bytes[k]; b++) CHECK(((uint8_t *)p.host[k])[b] == PATTERN);
        CHECK(((fp8_amax_slot *)p.host[MEM_AMAX])->amax > 0.0f);
        for (int k = 0; k < MEM_COUNT; k++) fp8_device_free(gpu, p.device[k]);
        append_problem_free(&p);
    }
}

/* What points outside is not written. */
static void test_hostile(void) {
    static const int which[] = {1, 5, NUM_APPEND_CASES - 2}; /* decoding, prefill, decoding */
    for (int n = 0; n < 3; n++) {
        const int i = which[n];
        append_problem p;
        int32_t *lengths, *table, *starts;
        check_case = "hostile";
        append_problem_init(&p, &append_cases[i], 4);
        lengths = p.host[MEM_LENGTHS];
        table = p.host[MEM_TABLE];
        starts = p.host[MEM_STARTS];
        for (int s = 0; s < p.c->num_seqs; s++) lengths[s] = s % 2 ? INT32_MAX - s : INT32_MIN + s;
        CHECK_STATUS(append_problem_run(&p, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
        for (int k = MEM_K; k <= MEM_V; k++)
            for (size_t b = 0; b < p.bytes[k]; b++) CHECK(((uint8_t *)p.host[k])[b] == PATTERN);
        for (int s = 0; s < p.c->num_seqs; s++) lengths[s] = p.c->length[s].kv;
        for (int64_t j = 0; j < p.c->num_seqs * p.batch.max_pages; j++)
            table[j] = j % 2 ? (int32_t)p.pages.num_pages : INT32_MIN;
        CHECK_STATUS(append_problem_run(&p, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
        for (int k = MEM_K; k <= MEM_V; k++)
            for (size_t b = 0; b < p.bytes[k]; b++) CHECK(((uint8_t *)p.host[k])[b] == PATTERN);
        for (int s = 0; s <= p.c->num_seqs; s++) starts[s] = (s - 2) * (1 << 28);
        CHECK_STATUS(append_problem_run(&p, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
        append_problem_free(&p);
    }
}

/* Replayed with other lengths and pages, a graph gives what a call with them gives. */
static void test_graph(int which) {
    const append_case *c = &append_cases[which];
    fp8_graph *graph = NULL;
    append_problem p, fresh;
    int32_t *lengths, *table;

    check_case = "graph";
    append_problem_init(&p, c, 11);
    append_problem_init(&fresh, c, 11);
    CHECK_STATUS(append_upload(&p, gpu), FP8_OK);
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    CHECK_STATUS(fp8_kv_append_run(gpu, &p.pages, &p.batch, &p.a, FP8_LAUNCH_ORDERED), FP8_OK);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    lengths = fresh.host[MEM_LENGTHS];
    table = fresh.host[MEM_TABLE];
    for (int s = 0; s < c->num_seqs; s++)
        if (lengths[s] > c->length[s].q) lengths[s]--;
    for (int64_t j = 0; j + 1 < fresh.batch.max_pages; j += 2) {
        const int32_t swapped = table[j];
        table[j] = table[j + 1];
        table[j + 1] = swapped;
    }
    *(float *)fresh.host[MEM_V_DESCALE] *= 1.5f;
    for (int k = MEM_TABLE; k <= MEM_V_DESCALE; k++)
        CHECK_STATUS(fp8_device_upload(gpu, p.device[k], fresh.host[k], p.bytes[k]), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    for (int k = MEM_INPUTS; k < MEM_COUNT; k++)
        CHECK_STATUS(fp8_device_download(gpu, p.host[k], p.device[k], p.bytes[k]), FP8_OK);
    CHECK_STATUS(append_problem_run(&fresh, gpu, FP8_LAUNCH_ORDERED), FP8_OK);
    for (int k = MEM_K; k <= MEM_Q; k++)
        CHECK(memcmp(p.host[k], fresh.host[k], p.bytes[k]) == 0);
    fp8_graph_destroy(graph);
    for (int k = 0; k < MEM_COUNT; k++) fp8_device_free(gpu, p.device[k]);
    append_problem_free(&p);
    append_problem_free(&fresh);
}

int main(int argc, char **argv) {
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    test_cases(few ? 5 : 1);
    test_many(few ? 3 : 1);
    test_ragged(few ? 2 : 12);
    test_parts();
    test_hostile();
    test_graph(1);
    test_graph(5);
    test_graph(NUM_APPEND_CASES - 2);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
