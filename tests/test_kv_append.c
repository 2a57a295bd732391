/* Appending to a paged cache on the CPU: the formula in double, every byte of the pages, what then
 * comes out of attention over them, and what is refused. */
#include "append_cases.h"

static fp8_device *device;

static void test_cases(void) {
    for (int i = 0; i < NUM_APPEND_CASES; i++) {
        append_problem p;
        check_case = append_cases[i].name;
        append_problem_init(&p, &append_cases[i], (uint64_t)i + 5);
        CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_OK);
        append_check(&p);
        append_problem_free(&p);
    }
}

static void test_f32(void) {
    const append_case c = {"F32", 4, 2, 40, 24, 64, F32, F32, F32, 40, HALVES, 1, 0, 0, 0, 0, 0,
                           PREFILL};
    append_problem p;
    check_case = c.name;
    append_problem_init(&p, &c, 3);
    CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_OK);
    append_check(&p);
    append_problem_free(&p);
}

/* As fp8_produce_qkv makes them, byte for byte: one sequence that fills pages in their order. */
static void test_producer(void) {
    const append_case c = {"as the producer", 4, 2, 128, 128, 64, BF16, E4M3, E4M3, 128, HALVES, 1,
                           0, 1, 0, 0, 0, 1, {{192, 192}}};
    uint8_t *q = decode_memory(192 * 4 * 128), *k = decode_memory(192 * 2 * 128);
    uint8_t *v = decode_memory(192 * 2 * 128);
    int32_t positions[192], *table;
    float scales[3];
    append_problem p;
    fp8_qkv x;

    check_case = c.name;
    append_problem_init(&p, &c, 4);
    table = p.host[MEM_TABLE];
    for (int i = 0; i < 192; i++) positions[i] = i;
    for (int i = 0; i < 3; i++) {
        table[i] = i;
        scales[i] = 1.0f / *(float *)p.host[MEM_Q_DESCALE + i];
    }
    CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_OK);
    x = (fp8_qkv){.q = {.heads = 4, .x = p.host[MEM_XQ], .norm_weight = p.host[MEM_WQ],
                        .scale = &scales[0], .codes = q},
                  .k = {.heads = 2, .x = p.host[MEM_XK], .norm_weight = p.host[MEM_WK],
                        .scale = &scales[1], .codes = k},
                  .v = {.heads = 2, .x = p.host[MEM_XV], .scale = &scales[2], .codes = v},
                  .dtype = BF16, .code = E4M3, .tokens = 192, .dim = 128, .rotary_dim = 128,
                  .cos = p.host[MEM_COS], .sin = p.host[MEM_SIN], .positions = positions,
                  .norm = FP8_NORM_RMS, .eps = 1e-6f, .rounded = 1};
    CHECK_STATUS(fp8_produce_qkv(device, &x, FP8_LAUNCH_ORDERED), FP8_OK);
    CHECK(memcmp(q, p.host[MEM_Q], 192 * 4 * 128) == 0);
    for (int t = 0; t < 192; t++)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 128; i++) {
                const uint8_t *pk = p.host[MEM_K], *pv = p.host[MEM_V];
                const int page = t / 64 * 2 * 64 * 128;
                const int from = (t * 2 + h) * 128 + i;
                CHECK(pk[page + (h * 64 + t % 64) * 128 + i] == k[from]);
                CHECK(pv[page + (h * 128 + i) * 64 + t % 64] == v[from]);
            }
    free(q);
    free(k);
    free(v);
    append_problem_free(&p);
}

/* What points outside is not written, and FP8_SYNC=1 says so. */
static void test_hostile(void) {
    const append_case c = {"hostile", 2, 1, 64, 64, 64, BF16, E4M3, E4M3, 64, HALVES, 0, 0, 0, 0, 0,
                           0, 3, {{1, 65}, {2, 40}, {1, 9}}};
    append_problem p;
    int32_t *lengths, *table, *starts;

    check_case = c.name;
    append_problem_init(&p, &c, 4);
    lengths = p.host[MEM_LENGTHS];
    table = p.host[MEM_TABLE];
    starts = p.host[MEM_STARTS];
    lengths[0] = INT32_MAX;
    table[p.batch.max_pages] = (int32_t)p.pages.num_pages;
    lengths[2] = INT32_MIN;
    CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_OK);
    for (int k = MEM_K; k <= MEM_V; k++)
        for (size_t i = 0; i < p.bytes[k]; i++) CHECK(((uint8_t *)p.host[k])[i] == PATTERN);
    starts[1] = -7;
    starts[2] = 1 << 30;
    CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_OK);
    setenv("FP8_SYNC", "1", 1);
    CHECK_STATUS(append_problem_run(&p, device, FP8_LAUNCH_ORDERED), FP8_EINVAL);
    unsetenv("FP8_SYNC");
    append_problem_free(&p);
}

static void test_refusals(void) {
    append_problem good;
    append_problem_init(&good, &append_cases[1], 4);
    append_point(&good, good.host);
#define REFUSE(field, value)                                                                       \
    do {                                                                                           \
        append_problem p = good;                                                                   \
        check_case = #field " " #value;                                                            \
        p.field = value;                                                                           \
        CHECK_STATUS(fp8_kv_append_run(device, &p.pages, &p.batch, &p.a, FP8_LAUNCH_ORDERED),      \
                     FP8_EINVAL);                                                                  \
    } while (0)
    REFUSE(pages.page_size, 16);
    REFUSE(pages.k, NULL);
    REFUSE(pages.k_descale, NULL);
    REFUSE(pages.dtype, F16);
    REFUSE(pages.num_pages, 0);
    REFUSE(pages.v_page, 5);
    REFUSE(batch.q_starts, NULL);
    REFUSE(batch.page_table, NULL);
    REFUSE(batch.total_q, -1);
    REFUSE(a.k.x, NULL);
    REFUSE(a.q_out, NULL);
    REFUSE(a.q_descale, NULL);
    REFUSE(a.q_dtype, F16);
    REFUSE(a.dtype, E4M3);
    REFUSE(a.num_heads, 3);
    REFUSE(a.rotary_dim, 7);
    REFUSE(a.rotary_dim, 130);
    REFUSE(a.cos, NULL);
    REFUSE(a.num_positions, 0);
    REFUSE(a.v.norm_weight, good.host[MEM_WK]);
    REFUSE(a.q.head_stride, 3);
    REFUSE(a.rope, (fp8_rope_form)7);
#undef REFUSE
    append_problem_free(&good);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&device, "cpu", 2), FP8_OK);
    if (!device) return CHECK_DONE();
    test_cases();
    test_f32();
    test_producer();
    test_hostile();
    test_refusals();
    fp8_device_destroy(device);
    return CHECK_DONE();
}
