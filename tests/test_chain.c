/* quant/chain.h on the CPU: every kind of step against the formula in double, a token alone and
 * among others, refusals. */
#include "tests/chain_problem.h"

static fp8_device *cpu;

/* Sums of F32 in other orders; sums cancel, so that it is more than 2^-24. */
static const double sums_apart = 1e-6;

static void test_case(const chain_case *c) {
    static const int64_t tokens[] = {1, 3, 33, 130};
    chain_data t = chain_prepare(c, 7);
    chain_on o = chain_open(cpu, &t);
    uint16_t *h = malloc((size_t)t.stream * 2 + 2), *y = malloc((size_t)t.last * 2 + 2);

    check_case = c->name;
    for (size_t i = 0; o.chain && i < sizeof tokens / sizeof *tokens; i++) {
        chain_result r = chain_run_on(&o, 0, tokens[i]);
        for (int64_t k = 0; k < tokens[i] && k < 40; k++) {
            memcpy(h, t.h + k * t.stream, (size_t)t.stream * 2);
            chain_oracle(&t, k, h, y);
            chain_compare_rows(&t, k, r.h + k * t.stream, h, r.y + k * t.last, y, sums_apart);
        }
        for (int64_t k = tokens[i] * t.stream; k < CHAIN_TOKENS * t.stream; k++)
            CHECK(r.h[k] == t.h[k]);
        for (int64_t k = tokens[i] * t.last; k < CHAIN_TOKENS * t.last; k++)
            CHECK(r.y[k] == 0x5a5a);
        chain_result_drop(&r);
    }
    free(h);
    free(y);
    chain_close(&o);
    chain_drop(&t);
}

/* Sizes that only the CPU multiplies. */
static const chain_case odd = {
    "odd sizes", 67, 4,
    {{45, ACT_NO, 1, RMS, 0, 1}, {66, FP8_GEMM_SWIGLU, 0, NO_NORM, 1, 0},
     {45, ACT_NO, 1, PLUS, 0, 0}, {19, ACT_NO, 0, NO_NORM, 0, 0}}, 0};

/* A row of NaN: the one token, whatever is beside it. */
static void test_hostile(void) {
    chain_data t = chain_prepare(&chain_cases[0], 9);
    chain_on o = chain_open(cpu, &t);
    chain_result r = chain_run_on(&o, 0, 8);

    check_case = "hostile codes";
    for (int64_t i = 0; i < 8 * t.stream; i++)
        CHECK(isnan(fp8_bf16_to_f32(r.h[i])) == (i / t.stream == 2));
    for (int64_t i = 0; i < t.stream; i++) CHECK(fp8_bf16_to_f32(r.h[t.stream + i]) == 0);
    chain_result_drop(&r);
    chain_close(&o);
    chain_drop(&t);
}

static void test_launches(void) {
    chain_data t = chain_prepare(&chain_cases[0], 9);
    chain_on o = chain_open(cpu, &t);
    const char *why = NULL;

    check_case = "one launch";
    CHECK(!fp8_chain_is_one_launch(o.chain, 1, &why) && why);
    CHECK(!fp8_chain_is_one_launch(o.chain, 1, NULL));
    CHECK(fp8_chain_workspace_size(o.chain, 0) == 0);
    CHECK(fp8_chain_workspace_size(o.chain, 1) <= fp8_chain_workspace_size(o.chain, 128));
    chain_close(&o);
    chain_drop(&t);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void refuse(const char *name, const fp8_chain_step *steps, int32_t count, fp8_status want) {
    fp8_chain *c = NULL;
    check_case = name;
    CHECK_STATUS(fp8_chain_create(&c, cpu, steps, count), want);
    CHECK(c == NULL);
    fp8_chain_destroy(c);
}

static void test_steps_refused(void) {
    chain_data t = chain_prepare(&chain_cases[0], 9);
    chain_on o = chain_open(cpu, &t);
    const fp8_chain_step *good = o.steps;
    const struct {
        const char *name;
        int at;
        fp8_chain_step step;
    } bad[] = {
        {"no Linear", 1, {0}},
        {"no such activation", 1, {.linear = good[1].linear, .activation = (fp8_gemm_activation)9}},
        {"adds an activation", 1, {.linear = good[1].linear, .activation = FP8_GEMM_SWIGLU,
                                   .adds = 1}},
        {"a last activation", 3, {.linear = good[3].linear, .activation = FP8_GEMM_GELU_TANH}},
        {"a last norm", 3, {.linear = good[3].linear, .adds = 1,
                            .norm_weight = good[0].norm_weight}},
        {"a norm of what is not added", 0, {.linear = good[0].linear,
                                            .norm_weight = good[0].norm_weight}},
        {"adds without a norm", 0, {.linear = good[0].linear, .adds = 1}},
        {"a bias of RMS", 0, {.linear = good[0].linear, .adds = 1,
                              .norm_weight = good[0].norm_weight,
                              .norm_bias = good[0].norm_weight}},
        {"another width", 1, {.linear = good[1].linear, .activation = FP8_GEMM_GELU_TANH}},
        {"another stream", 3, {.linear = good[3].linear, .adds = 1}},
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fp8_chain_step steps[FP8_CHAIN_MAX_STEPS];
        memcpy(steps, good, sizeof steps);
        steps[bad[i].at] = bad[i].step;
        refuse(bad[i].name, steps, 4, FP8_EINVAL);
    }
    refuse("no step", good, 0, FP8_EINVAL);
    refuse("five steps", good, 5, FP8_EINVAL);
    chain_close(&o);
    chain_drop(&t);
}

/* Linears that no chain is made of. */
static void test_linears_refused(void) {
    static uint8_t weight[64 * 64 * 2];
    static const float descales[64];
    fp8_linear_spec good = {.name = "part", .in = 64, .out = 64,
                            .weight = fp8_tensor_view(weight, FP8_DTYPE_E4M3, FP8_PLACE_CPU, 64,
                                                      64),
                            .weight_descale = descales, .num_weight_descales = 1,
                            .input = FP8_INPUT_STATIC, .input_descale = 1,
                            .compute = FP8_DTYPE_BF16};
    fp8_linear_spec bad[5] = {good, good, good, good, good};

    bad[0].input = FP8_INPUT_DYNAMIC;
    bad[1].compute = FP8_DTYPE_F32;
    bad[2].layout = FP8_WEIGHT_IN_OUT;
    bad[3].weight.dtype = FP8_DTYPE_E5M2;
    bad[4].weight.dtype = FP8_DTYPE_BF16, bad[4].num_weight_descales = 0;
    bad[4].input = FP8_INPUT_DENSE;
    for (int i = 0; i < 5; i++) {
        fp8_linear *l = NULL;
        CHECK_STATUS(fp8_linear_create(&l, cpu, &bad[i]), FP8_OK);
        if (l) refuse("another kind", &(fp8_chain_step){.linear = l}, 1, FP8_EUNSUPPORTED);
        fp8_linear_destroy(l);
    }
}

static void test_calls_refused(void) {
    chain_data t = chain_prepare(&chain_cases[0], 9);
    chain_on o = chain_open(cpu, &t);
    const fp8_tensor x = fp8_tensor_view(o.x, FP8_DTYPE_E4M3, FP8_PLACE_CPU, 4, 128);
    const fp8_tensor wide = fp8_tensor_view(o.x, FP8_DTYPE_E4M3, FP8_PLACE_CPU, 4, 144);
    const fp8_tensor h = fp8_tensor_view(o.h, FP8_DTYPE_BF16, FP8_PLACE_CPU, 4, 144);
    const fp8_tensor few = fp8_tensor_view(o.h, FP8_DTYPE_BF16, FP8_PLACE_CPU, 3, 144);
    const fp8_tensor y = fp8_tensor_view(o.y, FP8_DTYPE_BF16, FP8_PLACE_CPU, 4, 208);
    const fp8_tensor real = fp8_tensor_view(o.y, FP8_DTYPE_F32, FP8_PLACE_CPU, 4, 208);
    const fp8_tensor none = fp8_tensor_view(NULL, FP8_DTYPE_E4M3, FP8_PLACE_CPU, 0, 128);
    const fp8_tensor no_h = fp8_tensor_view(NULL, FP8_DTYPE_BF16, FP8_PLACE_CPU, 0, 144);
    const fp8_tensor no_y = fp8_tensor_view(NULL, FP8_DTYPE_BF16, FP8_PLACE_CPU, 0, 208);
    const size_t bytes = fp8_chain_workspace_size(o.chain, 4);
    const fp8_chain_call good = {&x, &h, &y, o.workspace, bytes}, bad[] = {
        {NULL, &h, &y, o.workspace, bytes}, {&wide, &h, &y, o.workspace, bytes},
        {&h, &h, &y, o.workspace, bytes}, {&x, NULL, &y, o.workspace, bytes},
        {&x, &few, &y, o.workspace, bytes}, {&x, &h, NULL, o.workspace, bytes},
        {&x, &h, &real, o.workspace, bytes}, {&x, &h, &y, o.workspace, bytes - 1},
        {&x, &h, &y, NULL, bytes}, {&x, &h, &y, (char *)o.workspace + 16, bytes}};

    check_case = "calls";
    CHECK_STATUS(fp8_chain_run(o.chain, &good), FP8_OK);
    CHECK_STATUS(fp8_chain_run(o.chain, &(fp8_chain_call){&none, &no_h, &no_y, NULL, 0}), FP8_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK_STATUS(fp8_chain_run(o.chain, &bad[i]), FP8_EINVAL);
    chain_close(&o);
    chain_drop(&t);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    if (!cpu) return CHECK_DONE();
    for (size_t i = 0; i < sizeof chain_cases / sizeof *chain_cases; i++)
        test_case(&chain_cases[i]);
    test_case(&odd);
    test_hostile();
    test_launches();
    test_steps_refused();
    test_linears_refused();
    test_calls_refused();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
