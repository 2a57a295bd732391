/* quant/linear.h on CUDA against the same layer on the CPU: sizes that FP8 kernels take, others. */
#include <string.h>

#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { MAX_IN = 192, MAX_OUT = 128, MAX_TOKENS = 65 };

typedef struct linear_case {
    const char *name;
    int64_t in, out;
    fp8_dtype weight;
    fp8_weight_layout layout;
    int per_channel;
    fp8_input_scaling input;
    fp8_dtype compute, bias; /* bias FP8_DTYPE_BOOL: none */
} linear_case;

#define OI FP8_WEIGHT_OUT_IN
#define IO FP8_WEIGHT_IN_OUT
#define B16 FP8_DTYPE_BF16
#define B32 FP8_DTYPE_F32
#define W8 FP8_DTYPE_E4M3
#define NONE FP8_DTYPE_BOOL
static const linear_case cases[] = {
    {"bf16", 96, 64, B16, OI, 0, FP8_INPUT_DENSE, B16, B16},
    {"bf16 odd", 67, 45, B16, OI, 0, FP8_INPUT_DENSE, B16, B16},
    {"gpt2", 67, 45, FP8_DTYPE_F32, IO, 0, FP8_INPUT_DENSE, B16, FP8_DTYPE_F32},
    {"f32", 67, 45, FP8_DTYPE_F16, OI, 0, FP8_INPUT_DENSE, B32, FP8_DTYPE_F16},
    {"weight only", 96, 64, W8, OI, 1, FP8_INPUT_DENSE, B16, B16},
    {"weight only f32", 67, 45, W8, OI, 0, FP8_INPUT_DENSE, B32, NONE},
    {"static tensor", 192, 128, W8, OI, 0, FP8_INPUT_STATIC, B16, NONE},
    {"static tensor bias", 192, 128, W8, OI, 0, FP8_INPUT_STATIC, B16, B16},
    {"static channel", 192, 128, W8, OI, 1, FP8_INPUT_STATIC, B16, B16},
    {"static f32", 192, 128, W8, OI, 0, FP8_INPUT_STATIC, B32, FP8_DTYPE_F32},
    {"dynamic channel", 192, 128, W8, OI, 1, FP8_INPUT_DYNAMIC, B16, B16},
    {"dynamic tensor", 192, 128, W8, OI, 0, FP8_INPUT_DYNAMIC, B16, NONE},
    {"dynamic tensor bias", 192, 128, W8, OI, 0, FP8_INPUT_DYNAMIC, B16, B16},
    {"dynamic tensor f32", 192, 128, W8, OI, 0, FP8_INPUT_DYNAMIC, B32, FP8_DTYPE_F32},
    {"dynamic tensor [in, out]", 192, 128, W8, IO, 0, FP8_INPUT_DYNAMIC, B16, B16},
    {"dynamic [in, out]", 192, 128, W8, IO, 1, FP8_INPUT_DYNAMIC, B16, B16},
    {"static odd", 67, 45, W8, OI, 0, FP8_INPUT_STATIC, B16, B16},
    {"dynamic tensor odd", 67, 45, W8, OI, 0, FP8_INPUT_DYNAMIC, B16, B16},
    {"dynamic odd [in, out]", 67, 45, W8, IO, 1, FP8_INPUT_DYNAMIC, B16, B16},
    {"e5m2 static", 192, 128, FP8_DTYPE_E5M2, OI, 0, FP8_INPUT_STATIC, B16, NONE},
};

static fp8_device *cpu, *gpu;
static float x[MAX_TOKENS * MAX_IN], w[MAX_IN * MAX_OUT], bias[MAX_OUT], descale[MAX_OUT];
_Alignas(16) static uint8_t x_raw[sizeof x], w_raw[sizeof w], bias_raw[sizeof bias];

static void convert(void *out, fp8_dtype t, const float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float v = values[i];
        if (t == FP8_DTYPE_F32) ((float *)out)[i] = v;
        else if (t == FP8_DTYPE_BF16) ((uint16_t *)out)[i] = fp8_f32_to_bf16(v);
        else if (t == FP8_DTYPE_F16) ((uint16_t *)out)[i] = fp8_f32_to_f16(v);
        else ((uint8_t *)out)[i] = fp8_from_f32(t, v * 64.0f);
    }
}

/* y [tokens, out] in F32 as the layer on device d makes it; with codes quantized ahead if asked. */
static void forward(fp8_device *d, const linear_case *c, const fp8_linear_spec *spec,
                    int64_t tokens, int ahead, float *y) {
    const fp8_place place = fp8_device_place(d);
    const size_t size = fp8_dtype_size(c->compute);
    const size_t x_bytes = (size_t)(tokens * c->in) * size;
    const size_t y_bytes = (size_t)(tokens * c->out) * size;
    _Alignas(16) static uint8_t y_raw[4 * MAX_TOKENS * MAX_OUT];
    void *dx = NULL, *dy = NULL, *codes = NULL, *scales = NULL, *workspace = NULL;
    fp8_linear *l = NULL;
    fp8_tensor in, out;
    size_t bytes;

    CHECK_STATUS(fp8_linear_create(&l, d, spec), FP8_OK);
    if (!l) return;
    bytes = fp8_linear_workspace_size(l, MAX_TOKENS);
    CHECK_STATUS(fp8_device_alloc(d, &dx, x_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &dy, y_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &codes, (size_t)(tokens * c->in)), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &scales, (size_t)tokens * 4), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, dx, x_raw, x_bytes), FP8_OK);
    in = fp8_tensor_view(dx, c->compute, place, tokens, c->in);
    out = fp8_tensor_view(dy, c->compute, place, tokens, c->out);
    if (ahead) {
        CHECK_STATUS(fp8_linear_quantize_input(l, codes, scales, &in), FP8_OK);
        in.data = codes;
        in.dtype = FP8_DTYPE_E4M3;
    }
    CHECK_STATUS(fp8_linear_forward(l, &out, &in, ahead ? scales : NULL, FP8_ACCUMULATE_EXACT,
                                    workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_download(d, y_raw, dy, y_bytes), FP8_OK);
    for (int64_t i = 0; i < tokens * c->out; i++)
        y[i] = c->compute == FP8_DTYPE_F32 ? ((float *)(void *)y_raw)[i]
                                           : fp8_bf16_to_f32(((uint16_t *)(void *)y_raw)[i]);
    fp8_device_free(d, dx);
    fp8_device_free(d, dy);
    fp8_device_free(d, codes);
    fp8_device_free(d, scales);
    fp8_device_free(d, workspace);
    fp8_linear_destroy(l);
}

/* Both round the same sums: BF16 outputs differ where a sum lies near a tie (a unit is 2^-8, so
 * well below 4e-3 in L2); F32 ones by Hopper's FP8 accumulation, 1e-3, or by the order of F32
 * sums. */
static void test_case(const linear_case *c) {
    static const int64_t tokens[] = {1, 7, 16, MAX_TOKENS};
    static float want[MAX_TOKENS * MAX_OUT], got[MAX_TOKENS * MAX_OUT];
    const int kn = c->layout == IO;
    const fp8_linear_spec spec = {
        .name = c->name, .in = c->in, .out = c->out, .layout = c->layout,
        .weight = fp8_tensor_view(w_raw, c->weight, FP8_PLACE_CPU, kn ? c->in : c->out,
                                  kn ? c->out : c->in),
        .weight_descale = descale,
        .num_weight_descales = fp8_dtype_size(c->weight) > 1 ? 0 : c->per_channel ? c->out : 1,
        .input = c->input, .input_descale = 0.01f, .compute = c->compute,
        .bias = c->bias == NONE ? (fp8_tensor){0}
                                : fp8_tensor_view(bias_raw, c->bias, FP8_PLACE_CPU, c->out, -1)};
    const double bound = c->compute == FP8_DTYPE_BF16 ? 4e-3 : 1e-3;

    check_case = c->name;
    convert(x_raw, c->compute, x, MAX_TOKENS * c->in);
    convert(w_raw, c->weight, w, c->in * c->out);
    if (c->bias != NONE) convert(bias_raw, c->bias, bias, c->out);
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        for (int ahead = 0; ahead <= (c->input != FP8_INPUT_DENSE); ahead++) {
            double error;
            forward(cpu, c, &spec, tokens[i], ahead, want);
            forward(gpu, c, &spec, tokens[i], ahead, got);
            error = check_relative_l2(got, want, tokens[i] * c->out);
            if (error <= bound) continue;
            fprintf(stderr, "[%s] %lld tokens: relative error %.3g, expected at most %.3g\n",
                    c->name, (long long)tokens[i], error, bound);
            check_failures++;
        }
}

int main(void) {
    uint64_t seed = 8;
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    for (int i = 0; i < MAX_TOKENS * MAX_IN; i++) x[i] = check_normal(&seed);
    for (int i = 0; i < MAX_IN * MAX_OUT; i++) w[i] = check_normal(&seed);
    for (int i = 0; i < MAX_OUT; i++) bias[i] = check_normal(&seed);
    for (int i = 0; i < MAX_OUT; i++) descale[i] = (float)(0.01 + 0.02 * check_uniform(&seed));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) test_case(&cases[i]);
    fp8_device_destroy(cpu);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
