/* Joined Linears: the outputs of the parts side by side, parts that go on from the joined memory,
 * and what cannot be joined. */
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

static fp8_device *cpu;

enum { IN = 48, TOKENS = 5, PARTS = 3, ALL = 32 + 16 + 24 };
static const int64_t outs[PARTS] = {32, 16, 24};

typedef struct kind {
    const char *name;
    fp8_dtype weight;
    fp8_input_scaling input;
    int descales; /* 0, 1, or one an output */
    int bias;
} kind;
static const kind kinds[] = {
    {"dense", FP8_DTYPE_BF16, FP8_INPUT_DENSE, 0, 0},
    {"dense with biases", FP8_DTYPE_BF16, FP8_INPUT_DENSE, 0, 1},
    {"static", FP8_DTYPE_E4M3, FP8_INPUT_STATIC, 1, 0},
    {"a scale a token, one an output", FP8_DTYPE_E4M3, FP8_INPUT_DYNAMIC, 2, 1},
};

static fp8_linear *make(const kind *k, int64_t out, uint64_t *seed, float descale,
                        float input_descale) {
    static uint16_t weight[64 * IN], bias[64];
    static float descales[64];
    fp8_linear_spec s = {.name = "part", .in = IN, .out = out, .compute = FP8_DTYPE_BF16,
                         .input = k->input, .input_descale = input_descale,
                         .weight_descale = descales,
                         .num_weight_descales = k->descales == 2 ? out : k->descales};
    fp8_linear *l = NULL;

    for (int64_t i = 0; i < out * IN; i++)
        if (k->weight == FP8_DTYPE_BF16) weight[i] = fp8_f32_to_bf16(check_normal(seed));
        else ((uint8_t *)weight)[i] = fp8_from_f32(FP8_DTYPE_E4M3, 20 * check_normal(seed));
    for (int64_t i = 0; i < out; i++) {
        descales[i] = k->descales == 2 ? descale * (float)(1 + i % 3) : descale;
        bias[i] = fp8_f32_to_bf16(check_normal(seed));
    }
    s.weight = fp8_tensor_view(weight, k->weight, FP8_PLACE_CPU, out, IN);
    if (k->bias) {
        s.bias = fp8_tensor_view(bias, FP8_DTYPE_BF16, FP8_PLACE_CPU, out, 1);
        s.bias.ndim = 1;
    }
    CHECK_STATUS(fp8_linear_create(&l, cpu, &s), FP8_OK);
    return l;
}

static void run(const fp8_linear *l, const uint16_t *x, uint16_t *y) {
    static char workspace[1 << 16];
    const fp8_tensor in = fp8_tensor_view((void *)(uintptr_t)x, FP8_DTYPE_BF16, FP8_PLACE_CPU,
                                          TOKENS, IN);
    const fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_BF16, FP8_PLACE_CPU, TOKENS,
                                           fp8_linear_out(l));
    CHECK_STATUS(fp8_linear_forward(l, &out, &in, NULL, FP8_ACCUMULATE_EXACT, workspace,
                                    sizeof workspace), FP8_OK);
}

static void test_kind(const kind *k) {
    fp8_linear *parts[PARTS], *joined = NULL;
    uint16_t x[TOKENS * IN], want[PARTS][TOKENS * 32], got[TOKENS * ALL], again[TOKENS * 32];
    uint64_t seed = 3;
    int64_t at = 0;

    check_case = k->name;
    for (int i = 0; i < TOKENS * IN; i++) x[i] = fp8_f32_to_bf16(check_normal(&seed));
    for (int i = 0; i < PARTS; i++) {
        parts[i] = make(k, outs[i], &seed, 0.01f, 0.02f);
        run(parts[i], x, want[i]);
    }
    CHECK_STATUS(fp8_linear_join(&joined, parts, PARTS), FP8_OK);
    if (!joined) goto done;
    CHECK(fp8_linear_out(joined) == ALL && fp8_linear_in(joined) == IN);
    run(joined, x, got);
    for (int i = 0; i < PARTS; at += outs[i++]) {
        for (int t = 0; t < TOKENS; t++)
            CHECK(memcmp(got + t * ALL + at, want[i] + t * outs[i],
                         (size_t)outs[i] * sizeof *got) == 0);
        run(parts[i], x, again); /* from the joined memory */
        CHECK(memcmp(again, want[i], (size_t)(TOKENS * outs[i]) * sizeof *again) == 0);
    }
done:
    for (int i = 0; i < PARTS; i++) fp8_linear_destroy(parts[i]);
    fp8_linear_destroy(joined);
}

/* The second part differs in one way; after the refusal both run as before. */
static void refuse(const kind *a, const kind *b, float descale, float input_descale) {
    uint64_t seed = 4;
    fp8_linear *parts[2] = {make(a, 16, &seed, 0.01f, 0.02f),
                            make(b, 16, &seed, descale, input_descale)};
    uint16_t x[TOKENS * IN] = {0}, y[TOKENS * 16];
    fp8_linear *joined = NULL;

    CHECK_STATUS(fp8_linear_join(&joined, parts, 2), FP8_EUNSUPPORTED);
    CHECK(joined == NULL);
    run(parts[0], x, y);
    run(parts[1], x, y);
    fp8_linear_destroy(parts[0]);
    fp8_linear_destroy(parts[1]);
}

static void test_refusals(void) {
    fp8_linear *none = NULL;

    check_case = "refusals";
    refuse(&kinds[2], &kinds[2], 0.011f, 0.02f); /* weight descales */
    refuse(&kinds[2], &kinds[2], 0.01f, 0.021f); /* input descales */
    refuse(&kinds[2], &kinds[3], 0.01f, 0.02f);
    refuse(&kinds[0], &kinds[1], 0.01f, 0.02f); /* a bias */
    refuse(&kinds[0], &kinds[2], 0.01f, 0.02f);
    CHECK_STATUS(fp8_linear_join(&none, &none, 0), FP8_EINVAL);
    CHECK_STATUS(fp8_linear_join(&none, &none, FP8_LINEAR_MAX_JOINED + 1), FP8_EINVAL);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    if (!cpu) return CHECK_DONE();
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) test_kind(&kinds[i]);
    test_refusals();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
