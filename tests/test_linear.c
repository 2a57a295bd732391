/* quant/linear.h on the CPU: combinations of weights and input against arithmetic in double, and
 * what must be refused. */
#include <string.h>

#include "core/half.h"
#include "quant/linear.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { IN = 67, OUT = 45, TOKENS = 19 };

typedef struct linear_case {
    const char *name;
    fp8_dtype weight;
    fp8_weight_layout layout;
    int64_t num_descales;
    fp8_input_scaling input;
    fp8_dtype compute, bias; /* bias FP8_DTYPE_BOOL: none */
    int borrow;
} linear_case;

#define OI FP8_WEIGHT_OUT_IN
#define IO FP8_WEIGHT_IN_OUT
#define B16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define F32 FP8_DTYPE_F32
#define E4M3 FP8_DTYPE_E4M3
#define E5M2 FP8_DTYPE_E5M2
#define NONE FP8_DTYPE_BOOL
static const linear_case cases[] = {
    {"bf16", B16, OI, 0, FP8_INPUT_DENSE, B16, B16, 1},
    {"bf16 copied", B16, OI, 0, FP8_INPUT_DENSE, B16, NONE, 0},
    {"gpt2", F32, IO, 0, FP8_INPUT_DENSE, B16, F32, 1},
    {"f16 in f32", F16, OI, 0, FP8_INPUT_DENSE, F32, F16, 0},
    {"weight only", E4M3, OI, 1, FP8_INPUT_DENSE, B16, NONE, 1},
    {"static tensor", E4M3, OI, 1, FP8_INPUT_STATIC, B16, B16, 1},
    {"static channel", E4M3, OI, OUT, FP8_INPUT_STATIC, F32, NONE, 0},
    {"dynamic channel", E4M3, OI, OUT, FP8_INPUT_DYNAMIC, B16, F32, 0},
    {"dynamic, [in, out]", E4M3, IO, OUT, FP8_INPUT_DYNAMIC, F32, F32, 0},
    {"e5m2 without descale", E5M2, OI, 0, FP8_INPUT_STATIC, F32, NONE, 0},
};

/* Everything in F32 beside what the layer is given. */
typedef struct linear_data {
    float w[IN * OUT], descale[OUT], bias[OUT], x[TOKENS * IN];
    uint8_t w_raw[4 * IN * OUT], bias_raw[4 * OUT], x_raw[4 * TOKENS * IN];
} linear_data;

static void convert(fp8_device *d, void *out, fp8_dtype to, float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t half;
        if (to == FP8_DTYPE_F32) ((float *)out)[i] = values[i];
        else if (to == FP8_DTYPE_BF16 || to == FP8_DTYPE_F16) {
            half = to == FP8_DTYPE_BF16 ? fp8_f32_to_bf16(values[i]) : fp8_f32_to_f16(values[i]);
            ((uint16_t *)out)[i] = half;
            values[i] = to == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
        } else {
            CHECK_STATUS(fp8_quantize(d, (uint8_t *)out + i, to, values + i, F32, 1, NULL),
                         FP8_OK);
            values[i] = fp8_to_f32(to, ((uint8_t *)out)[i]);
        }
    }
}

static void make_data(fp8_device *d, linear_data *t, const linear_case *c) {
    uint64_t seed = 3;
    for (int i = 0; i < IN * OUT; i++) t->w[i] = check_normal(&seed);
    for (int i = 0; i < OUT; i++) t->descale[i] = (float)(0.5 + check_uniform(&seed));
    for (int i = 0; i < OUT; i++) t->bias[i] = check_normal(&seed);
    for (int i = 0; i < TOKENS * IN; i++) t->x[i] = check_normal(&seed) * (float)(1 + i / IN);
    convert(d, t->w_raw, c->weight, t->w, IN * OUT);
    if (c->bias != FP8_DTYPE_BOOL) convert(d, t->bias_raw, c->bias, t->bias, OUT);
    convert(d, t->x_raw, c->compute, t->x, TOKENS * IN);
}

static fp8_linear_spec spec_of(linear_data *t, const linear_case *c) {
    const int kn = c->layout == FP8_WEIGHT_IN_OUT;
    fp8_linear_spec s = {.name = c->name, .in = IN, .out = OUT, .layout = c->layout,
                         .weight = fp8_tensor_view(t->w_raw, c->weight, FP8_PLACE_CPU,
                                                   kn ? IN : OUT, kn ? OUT : IN),
                         .weight_descale = t->descale, .num_weight_descales = c->num_descales,
                         .input = c->input, .input_descale = 0.05f, .compute = c->compute,
                         .borrow_weight = c->borrow};
    if (c->bias != FP8_DTYPE_BOOL)
        s.bias = fp8_tensor_view(t->bias_raw, c->bias, FP8_PLACE_CPU, OUT, -1);
    return s;
}

/* x as the product sees it: codes times descale, from the definition. */
static double input_value(const linear_data *t, const linear_case *c, int64_t token, int64_t k) {
    const float x = t->x[token * IN + k];
    float amax = 0, scale = 1.0f / 0.05f, descale = 0.05f;
    if (c->input == FP8_INPUT_DENSE) return (double)x;
    for (int i = 0; i < IN; i++) amax = fmaxf(amax, fabsf(t->x[token * IN + i]));
    if (c->input == FP8_INPUT_DYNAMIC) {
        scale = 448.0f / amax;
        descale = amax / 448.0f;
    }
    return (double)fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, x * scale)) *
           (double)descale;
}

/* Bound: (IN + 4) roundings of the F32 sum and scales, then one to the output type. Weights and
 * bias that the layer rounds to the compute type are rounded here too. */
static void check_output(const linear_data *t, const linear_case *c, const uint8_t *y) {
    const int kn = c->layout == FP8_WEIGHT_IN_OUT, bf16 = c->compute == FP8_DTYPE_BF16;
    const int rounds = bf16 && c->num_descales == 0 && c->input == FP8_INPUT_DENSE;

    for (int64_t i = 0; i < TOKENS; i++)
        for (int64_t j = 0; j < OUT; j++) {
            double sum = 0, magnitude = 0, got, bound;
            const double bias = c->bias == FP8_DTYPE_BOOL ? 0
                                : bf16 ? (double)fp8_round_bf16(t->bias[j])
                                       : (double)t->bias[j];
            for (int64_t k = 0; k < IN; k++) {
                const float w = t->w[kn ? k * OUT + j : j * IN + k];
                const double p = input_value(t, c, i, k) * (double)(rounds ? fp8_round_bf16(w) : w);
                sum += p;
                magnitude += fabs(p);
            }
            if (c->num_descales) {
                const double descale = (double)t->descale[c->num_descales > 1 ? j : 0];
                sum *= descale;
                magnitude *= descale;
            }
            got = bf16 ? (double)fp8_bf16_to_f32(((const uint16_t *)(const void *)y)[i * OUT + j])
                       : (double)((const float *)(const void *)y)[i * OUT + j];
            bound = 0x1p-24 * ((IN + 4) * magnitude + fabs(bias));
            bound += (bf16 ? 0x1p-8 : 0x1p-24) * (fabs(sum + bias) + bound);
            if (fabs(got - (sum + bias)) <= bound) continue;
            if (++check_failures < 10)
                fprintf(stderr, "[%s] [%lld, %lld]: got %.9g, want %.9g +- %.2g\n", check_case,
                        (long long)i, (long long)j, got, sum + bias, bound);
        }
}

static void test_case(fp8_device *d, const linear_case *c) {
    static linear_data t;
    _Alignas(16) static uint8_t y[4 * TOKENS * OUT], again[4 * TOKENS * OUT];
    static uint8_t codes[TOKENS * IN];
    float descale[TOKENS];
    const size_t y_bytes = TOKENS * OUT * fp8_dtype_size(c->compute);
    fp8_linear_spec spec;
    fp8_linear *l = NULL;
    fp8_tensor x, out;
    void *workspace = NULL;
    size_t bytes;

    check_case = c->name;
    make_data(d, &t, c);
    spec = spec_of(&t, c);
    CHECK_STATUS(fp8_linear_create(&l, d, &spec), FP8_OK);
    if (!l) return;
    CHECK(fp8_linear_in(l) == IN && fp8_linear_out(l) == OUT);
    CHECK(fp8_linear_input_scaling(l) == c->input);
    if (!c->borrow) memset(t.w_raw, 0xff, sizeof t.w_raw); /* a copy was taken */
    x = fp8_tensor_view(t.x_raw, c->compute, FP8_PLACE_CPU, TOKENS, IN);
    out = fp8_tensor_view(y, c->compute, FP8_PLACE_CPU, TOKENS, OUT);
    bytes = fp8_linear_workspace_size(l, TOKENS);
    CHECK_STATUS(fp8_device_alloc(d, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_linear_forward(l, &out, &x, NULL, FP8_ACCUMULATE_EXACT, workspace, bytes),
                 FP8_OK);
    check_output(&t, c, y);
    if (c->input != FP8_INPUT_DENSE) { /* the same from codes made ahead */
        const fp8_tensor q = fp8_tensor_view(codes, FP8_DTYPE_E4M3, FP8_PLACE_CPU, TOKENS, IN);
        out.data = again;
        CHECK_STATUS(fp8_linear_quantize_input(l, codes, descale, &x), FP8_OK);
        CHECK_STATUS(fp8_linear_forward(l, &out, &q, descale, FP8_ACCUMULATE_EXACT, workspace,
                                        bytes),
                     FP8_OK);
        CHECK(memcmp(y, again, y_bytes) == 0);
        CHECK_STATUS(fp8_linear_forward(l, &out, &q, NULL, FP8_ACCUMULATE_EXACT, workspace, bytes),
                     FP8_EINVAL);
    }
    CHECK_STATUS(fp8_linear_forward(l, &out, &x, NULL, FP8_ACCUMULATE_EXACT, workspace, bytes - 1),
                 FP8_EINVAL);
    fp8_device_free(d, workspace);
    fp8_linear_destroy(l);
}

/* One dense token needs no scratch at all: what examples/fp8_forward.c relies on. */
static void test_one_token(fp8_device *d) {
    static linear_data t;
    float x[IN], y[OUT];
    const linear_case c = {"one token", FP8_DTYPE_E4M3, FP8_WEIGHT_OUT_IN, 1, FP8_INPUT_DENSE,
                           FP8_DTYPE_F32, FP8_DTYPE_BOOL, 1};
    fp8_linear_spec spec;
    fp8_linear *l = NULL;
    fp8_tensor in = fp8_tensor_view(x, FP8_DTYPE_F32, FP8_PLACE_CPU, 1, IN);
    fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_F32, FP8_PLACE_CPU, 1, OUT);

    check_case = c.name;
    make_data(d, &t, &c);
    spec = spec_of(&t, &c);
    for (int i = 0; i < IN; i++) x[i] = 1;
    CHECK_STATUS(fp8_linear_create(&l, d, &spec), FP8_OK);
    CHECK(fp8_linear_workspace_size(l, 1) == 0);
    CHECK_STATUS(fp8_linear_forward(l, &out, &in, NULL, FP8_ACCUMULATE_EXACT, NULL, 0), FP8_OK);
    in.shape[0] = out.shape[0] = 0;
    CHECK_STATUS(fp8_linear_forward(l, &out, &in, NULL, FP8_ACCUMULATE_EXACT, NULL, 0), FP8_OK);
    in.shape[1] = IN - 1;
    CHECK_STATUS(fp8_linear_forward(l, &out, &in, NULL, FP8_ACCUMULATE_EXACT, NULL, 0), FP8_EINVAL);
    fp8_linear_destroy(l);
}

static void test_refused(fp8_device *d) {
    static linear_data t;
    const linear_case c = cases[5];
    fp8_linear_spec good, bad[8];
    fp8_linear *l = NULL;

    make_data(d, &t, &c);
    good = spec_of(&t, &c);
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].in = IN + 1;
    bad[1].weight.dtype = FP8_DTYPE_I32;
    bad[2].num_weight_descales = 2;
    bad[3].input_descale = 0;
    bad[4].compute = FP8_DTYPE_F16;
    bad[5].bias.shape[0] = OUT - 1;
    bad[6].weight.data = NULL;
    bad[7].weight.dtype = FP8_DTYPE_BF16; /* a static input, and descales, with dense weights */
    for (int i = 0; i < 8; i++) {
        char name[24];
        snprintf(name, sizeof name, "refused %d", i);
        check_case = name;
        CHECK_STATUS(fp8_linear_create(&l, d, &bad[i]), FP8_EINVAL);
        CHECK(l == NULL);
    }
    check_case = "";
    fp8_linear_destroy(NULL);
}

int main(void) {
    fp8_device *d = NULL;
    CHECK_STATUS(fp8_device_create(&d, "cpu", 2), FP8_OK);
    if (!d) return CHECK_DONE();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) test_case(d, &cases[i]);
    test_one_token(d);
    test_refused(d);
    fp8_device_destroy(d);
    return CHECK_DONE();
}
