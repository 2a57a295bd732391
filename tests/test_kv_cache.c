/* Sizes and strides of a paged cache, what of its geometry is refused, and the law of the table:
 * pages moved, forked and freed without a byte of them copied. */
#include "decode_cases.h"

static fp8_device *device;

static const fp8_kv_pages good = {.dtype = FP8_DTYPE_E4M3, .num_kv_heads = 8, .d_qk = 192,
                                  .d_v = 128, .page_size = 64, .num_pages = 1000};

static void test_layout(void) {
    fp8_kv_pages p = good;
    fp8_kv_layout x;

    check_case = "layout";
    CHECK_STATUS(fp8_kv_pages_layout(&x, &p), FP8_OK);
    CHECK(x.k_head == 64 * 192 && x.k_page == 8 * 64 * 192);
    CHECK(x.v_head == 64 * 128 && x.v_page == 8 * 64 * 128);
    CHECK(x.k_page_bytes == 8 * 64 * 192 && x.k_bytes == 1000u * 8 * 64 * 192);
    CHECK(x.v_page_bytes == 8 * 64 * 128 && x.v_bytes == 1000u * 8 * 64 * 128);
    p.dtype = FP8_DTYPE_BF16;
    p.k_page = p.v_page = 8 * 64 * (192 + 128); /* K and V of a page side by side */
    CHECK_STATUS(fp8_kv_pages_layout(&x, &p), FP8_OK);
    CHECK(x.k_page == p.k_page && x.v_page == p.k_page);
    CHECK(x.k_page_bytes == 2u * 8 * 64 * 192);
    CHECK(x.k_bytes == 2u * (999u * 8 * 64 * 320 + 8 * 64 * 192));
    CHECK(x.v_bytes == 2u * (999u * 8 * 64 * 320 + 8 * 64 * 128));
}

static void test_refusals(void) {
    fp8_kv_layout x;
    CHECK_STATUS(fp8_kv_pages_layout(NULL, &good), FP8_EINVAL);
    CHECK_STATUS(fp8_kv_pages_layout(&x, NULL), FP8_EINVAL);
#define REFUSE(field, value, status)                                                               \
    do {                                                                                           \
        fp8_kv_pages p = good;                                                                     \
        check_case = #field " " #value;                                                            \
        p.field = value;                                                                           \
        CHECK_STATUS(fp8_kv_pages_layout(&x, &p), status);                                         \
    } while (0)
    REFUSE(dtype, FP8_DTYPE_E5M2, FP8_EINVAL);
    REFUSE(num_kv_heads, 0, FP8_EINVAL);
    REFUSE(d_qk, 0, FP8_EINVAL);
    REFUSE(d_v, 1025, FP8_EINVAL);
    REFUSE(page_size, 65, FP8_EINVAL);
    REFUSE(num_pages, 0, FP8_EINVAL);
    REFUSE(num_pages, (int64_t)1 << 31, FP8_EINVAL);
    REFUSE(k_page, 8 * 64 * 192 - 1, FP8_EINVAL);
    REFUSE(v_page, -5, FP8_EINVAL);
    REFUSE(v_page, INT64_MAX / 2, FP8_EOVERFLOW);
    REFUSE(granularity, FP8_DESCALE_BATCH_HEAD, FP8_EINVAL);
#undef REFUSE
}

static void test_identity(void) {
    int32_t table[6];
    check_case = "identity";
    fp8_kv_identity_table(table, 2, 3);
    for (int i = 0; i < 6; i++) CHECK(table[i] == i);
}

static uint8_t *attend(const decode_problem *p) {
    decode_result r;
    uint8_t *bytes;
    CHECK_STATUS(decode_problem_run(&r, device, p, FP8_DECODE_CPU), FP8_OK);
    bytes = r.bytes;
    r.bytes = NULL;
    decode_result_free(&r);
    return bytes;
}

/* A page moved to a spare one, its number with it, and the old one scribbled over: the same bytes.
 * A sequence forked: its fork sees what it sees. */
static void test_table(void) {
    const decode_case c = {"table", OPT(4, 2, 64, 64, 64, BF16, E4M3, BF16, CAUSAL), IN_ORDER, 2,
                           {{1, 150}, {1, 150}}};
    decode_problem p;
    uint8_t *before, *after;
    int32_t *table;
    size_t k, v, half;

    check_case = c.name;
    decode_problem_init(&p, &c, 8);
    table = (int32_t *)(uintptr_t)p.batch.page_table;
    k = (size_t)p.pages.k_page;
    v = (size_t)p.pages.v_page;
    before = attend(&p);
    memcpy((uint8_t *)p.pages.k + 7 * k, (uint8_t *)p.pages.k + k, 2 * 64 * 64);
    memcpy((uint8_t *)p.pages.v + 7 * v, (uint8_t *)p.pages.v + v, 2 * 64 * 64);
    memset((uint8_t *)p.pages.k + k, 0x7f, 2 * 64 * 64);
    memset((uint8_t *)p.pages.v + v, 0x7f, 2 * 64 * 64);
    table[1] = 7;
    after = attend(&p);
    CHECK(memcmp(before, after, p.o_bytes) == 0);
    free(after);
    for (int i = 0; i < 3; i++) table[p.batch.max_pages + i] = table[i];
    half = (size_t)p.o.o_token * 2;
    memcpy((uint8_t *)p.q + half, p.q, half);
    after = attend(&p);
    CHECK(memcmp(after, after + half, half) == 0);
    CHECK(memcmp(after, before, half) == 0);
    free(before);
    free(after);
    decode_problem_free(&p);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&device, "cpu", 2), FP8_OK);
    if (!device) return CHECK_DONE();
    test_layout();
    test_refusals();
    test_identity();
    test_table();
    fp8_device_destroy(device);
    return CHECK_DONE();
}
