/* fp8_block_forward on the CPU against the formula in double: GPT-2, Llama, Qwen and Gemma blocks,
 * dense and FP8, attention in the compute type and in E4M3, everything at a store and singly; the
 * same block under a tap; and what is refused. */
#include "tests/block_check.h"

static fp8_device *cpu;

/* Values of the tapped points, counted. */
static fp8_status count_point(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    int *seen = ctx;
    CHECK(layer == 0 && x->ndim == 2 && x->dtype == FP8_DTYPE_F32);
    seen[point]++;
    return FP8_OK;
}

static void test_tap(void) {
    static const fp8_point points[] = {FP8_POINT_HIDDEN, FP8_POINT_QKV_INPUT, FP8_POINT_Q,
                                       FP8_POINT_K, FP8_POINT_V, FP8_POINT_O_INPUT,
                                       FP8_POINT_UP_INPUT, FP8_POINT_DOWN_INPUT};
    static block_data b;
    static double want[MAX_TOKENS * HIDDEN];
    static float got[MAX_TOKENS * HIDDEN];
    int seen[FP8_NUM_POINTS] = {0};
    const fp8_tap tap = {.on = count_point, .ctx = seen};
    fp8_block *block = NULL;
    fp8_block_spec spec;

    check_case = "tap";
    make_block_data(&b, &block_cases[4], FP8_DTYPE_F32);
    ref_block(&b, want, 1);
    ref_block(&b, want, 0);
    spec = block_spec_of(cpu, &b, FP8_BACKEND_AUTO);
    CHECK_STATUS(fp8_block_create(&block, cpu, &spec), FP8_OK);
    CHECK_STATUS(block_run(cpu, &b, block, &tap, 1, got), FP8_OK);
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) CHECK(seen[points[i]] == 1);
    CHECK(block_error(&b, got, want) < 5e-3);
    fp8_block_destroy(block);
    block_spec_free(cpu, &spec);
}

static void refuse(const fp8_block_spec *s) {
    fp8_block *block = NULL;
    CHECK_STATUS(fp8_block_create(&block, cpu, s), FP8_EINVAL);
    CHECK(block == NULL);
}

static void test_pages_refused(const block_data *b, fp8_block *block) {
    const int32_t table[SEQ_PAGES] = {0}, starts[2] = {0, 2}, length = 2;
    const fp8_tensor x = block_vector(cpu, b, b->x, 2, HIDDEN);
    const fp8_kv_pages pages = block_pages(cpu, b);
    const fp8_kv_batch batch = {1, table, SEQ_PAGES, &length, starts, 2, 2, 2};
    fp8_kv_pages odd = pages;
    fp8_kv_batch few = batch;

    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, b->positions, &pages, &batch), FP8_OK);
    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, NULL, &pages, &batch), FP8_EINVAL);
    odd.dtype = FP8_DTYPE_E4M3;
    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, b->positions, &odd, &batch), FP8_EINVAL);
    odd = pages, odd.num_kv_heads = 3;
    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, b->positions, &odd, &batch), FP8_EINVAL);
    odd = pages, odd.page_size = 10;
    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, b->positions, &odd, &batch), FP8_EINVAL);
    few.total_q = 1;
    CHECK_STATUS(fp8_block_forward_pages(block, &x, &x, b->positions, &pages, &few), FP8_EINVAL);
    fp8_device_free(cpu, pages.k);
    fp8_device_free(cpu, pages.v);
    fp8_device_free(cpu, x.data);
}

static void test_refused(void) {
    static block_data b;
    static float x[MAX_TOKENS * HIDDEN];
    const int32_t starts[2] = {0, 5};
    fp8_tensor t = fp8_tensor_view(x, FP8_DTYPE_F32, FP8_PLACE_CPU, 5, HIDDEN);
    fp8_tensor other = t;
    fp8_block_batch batch = {starts, NULL, 1, 5, 1};
    fp8_block *block = NULL;
    fp8_block_spec s, wrong;
    fp8_linear_spec current;

    check_case = "refused";
    make_block_data(&b, &block_cases[2], FP8_DTYPE_F32);
    ref_block(&b, (double[MAX_TOKENS * HIDDEN]){0}, 1);
    s = block_spec_of(cpu, &b, FP8_BACKEND_AUTO);
    wrong = s, wrong.num_kv_heads = 3, refuse(&wrong);
    wrong = s, wrong.head_dim = 8, refuse(&wrong);
    wrong = s, wrong.max_tokens = 0, refuse(&wrong);
    wrong = s, wrong.compute = FP8_DTYPE_F16, refuse(&wrong);
    wrong = s, wrong.compute = FP8_DTYPE_BF16, refuse(&wrong);
    wrong = s, wrong.norm2.data = NULL, refuse(&wrong);
    wrong = s, wrong.norm1.shape[0] = 8, refuse(&wrong);
    wrong = s, wrong.down = s.up, refuse(&wrong);
    wrong = s, wrong.o = NULL, refuse(&wrong);
    wrong = s, wrong.rotary_dim = 18, refuse(&wrong);
    wrong = s, wrong.joined_qkv = s.up, refuse(&wrong);
    wrong = s, wrong.joined_up = s.joined_qkv, refuse(&wrong);
    wrong = s, wrong.k_descale = 1, refuse(&wrong);
    wrong = s, wrong.q_descale = wrong.k_descale = wrong.v_descale = NAN, refuse(&wrong);
    current = (fp8_linear_spec){.name = "o", .in = HIDDEN, .out = HIDDEN, .weight_scaling =
                                FP8_WEIGHT_TENSOR, .input = FP8_INPUT_CURRENT,
                                .compute = FP8_DTYPE_F32, .weight = fp8_tensor_view(b.w[W_O],
                                FP8_DTYPE_F32, FP8_PLACE_CPU, HIDDEN, HIDDEN)};
    wrong = s;
    CHECK_STATUS(fp8_linear_create(&wrong.o, cpu, &current), FP8_OK);
    refuse(&wrong);
    fp8_linear_destroy(wrong.o);

    s.rotary_dim = DIM;
    CHECK_STATUS(fp8_block_create(&block, cpu, &s), FP8_OK);
    CHECK_STATUS(fp8_block_forward(block, &t, &t, &batch, NULL), FP8_EINVAL); /* no positions */
    batch.positions = b.positions;
    CHECK_STATUS(fp8_block_forward(block, &t, &t, &batch, NULL), FP8_OK);
    CHECK(fp8_block_backend(block) == FP8_BACKEND_CPU);
    batch.max_len = 4;
    CHECK_STATUS(fp8_block_forward(block, &t, &t, &batch, NULL), FP8_EINVAL);
    batch.max_len = 5;
    other.shape[0] = 4;
    CHECK_STATUS(fp8_block_forward(block, &other, &t, &batch, NULL), FP8_EINVAL);
    t.shape[0] = MAX_TOKENS + 1;
    CHECK_STATUS(fp8_block_forward(block, &t, &t, &batch, NULL), FP8_EINVAL);
    test_pages_refused(&b, block);
    fp8_block_destroy(block);
    block_spec_free(cpu, &s);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (int i = 0; i < NUM_BLOCK_CASES; i++) {
        const int fp8 = block_cases[i].input != FP8_INPUT_DENSE;
        /* F32: a code beside a boundary falls the other way now and then. */
        check_block(cpu, &block_cases[i], FP8_DTYPE_F32, FP8_BACKEND_AUTO, fp8 ? 5e-3 : 2e-6);
        check_block(cpu, &block_cases[i], FP8_DTYPE_BF16, FP8_BACKEND_AUTO, block_bound_bf16(fp8));
    }
    test_tap();
    test_refused();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
