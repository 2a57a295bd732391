/* quant/composed.h on the CPU against the formulas in double: norm, Linears and MLPs, dense,
 * static and with a scale a token, gated and not, with residuals; the other scalings against the
 * steps done singly; and what is refused. */
#include "tests/produce_check.h"

enum { IN = 160, INNER = 192, OUT = 80, MAX_ROWS = 9 };
static fp8_device *cpu;

/* A Linear and its weights as doubles [out, in]. */
typedef struct layer {
    fp8_linear *l;
    fp8_input_scaling input;
    float input_descale;
    int64_t in, out;
    double *w;
} layer;

static layer make_layer(fp8_input_scaling input, int64_t in, int64_t out, fp8_dtype compute,
                        uint64_t seed) {
    layer x = {.input = input, .input_descale = 0.03125f, .in = in, .out = out};
    const int quantized = input != FP8_INPUT_DENSE;
    const fp8_dtype type = quantized ? FP8_DTYPE_E4M3 : compute;
    const float weight_descale = 0.01f;
    unsigned char *data = malloc((size_t)(in * out) * 4);
    fp8_linear_spec spec = {.name = "layer", .in = in, .out = out, .input = input,
                            .input_descale = x.input_descale, .compute = compute};

    x.w = malloc((size_t)(in * out) * sizeof *x.w);
    for (int64_t i = 0; i < in * out; i++) {
        const float v = check_normal(&seed) * 0.3f;
        if (quantized) {
            data[i] = fp8_from_f32(FP8_DTYPE_E4M3, v / weight_descale);
            x.w[i] = (double)fp8_to_f32(FP8_DTYPE_E4M3, data[i]) * (double)weight_descale;
        } else {
            put_real(data, type, i, v);
            x.w[i] = (double)real_at(data, type, i);
        }
    }
    spec.weight = fp8_tensor_view(data, type, FP8_PLACE_CPU, out, in);
    spec.weight_descale = quantized ? &weight_descale : NULL;
    spec.num_weight_descales = quantized;
    CHECK_STATUS(fp8_linear_create(&x.l, cpu, &spec), FP8_OK);
    free(data);
    return x;
}

static void free_layer(layer *x) {
    fp8_linear_destroy(x->l);
    free(x->w);
}

/* y = W q(x), q as the layer quantizes one row. */
static void apply(const layer *l, double *y, const double *x, fp8_dtype compute) {
    double q[INNER], amax = 0, scale = 1;

    for (int64_t i = 0; i < l->in; i++) amax = fmax(amax, fabs(x[i]));
    if (l->input == FP8_INPUT_STATIC) scale = 1 / (double)l->input_descale;
    if (l->input == FP8_INPUT_DYNAMIC && amax > 0) scale = 448 / amax;
    for (int64_t i = 0; i < l->in; i++)
        q[i] = l->input == FP8_INPUT_DENSE
                   ? (double)round_real((float)x[i], compute)
                   : (double)fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3,
                                                                     (float)(x[i] * scale))) /
                         scale;
    for (int64_t o = 0; o < l->out; o++) {
        double sum = 0;
        for (int64_t i = 0; i < l->in; i++) sum += l->w[o * l->in + i] * q[i];
        y[o] = (double)round_real((float)sum, compute);
    }
}

/* The norm's rows and what they must become. */
typedef struct rows {
    unsigned char x[MAX_ROWS * IN * 4], residual[MAX_ROWS * IN * 4], w[IN * 4];
    double normed[MAX_ROWS][IN];
} rows;

static fp8_norm make_rows(rows *r, int64_t count, int residual, fp8_dtype type, uint64_t seed) {
    const fp8_norm n = {.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = type, .rows = count,
                        .cols = IN, .x = r->x, .weight = r->w,
                        .residual = residual ? r->residual : NULL,
                        .h = residual ? r->x : NULL};
    for (int64_t i = 0; i < IN; i++) put_real(r->w, type, i, 1 + 0.2f * check_normal(&seed));
    for (int64_t t = 0; t < count; t++) {
        double h[IN], square = 0;
        for (int64_t i = 0; i < IN; i++) {
            put_real(r->x, type, t * IN + i, 3 * check_normal(&seed));
            put_real(r->residual, type, t * IN + i, check_normal(&seed));
            h[i] = (double)real_at(r->x, type, t * IN + i);
            if (residual)
                h[i] = (double)round_real((float)h[i] + real_at(r->residual, type, t * IN + i),
                                          type);
            square += h[i] * h[i];
        }
        for (int64_t i = 0; i < IN; i++)
            r->normed[t][i] = h[i] / sqrt(square / IN + 1e-6) * (double)real_at(r->w, type, i);
    }
    return n;
}

/* Codes on a boundary may fall the other way, and a BF16 too: a few of some hundred terms each. */
static void check_close(const void *got, const double *want, int64_t n, fp8_dtype type) {
    float g[MAX_ROWS * INNER], w[MAX_ROWS * INNER];
    for (int64_t i = 0; i < n; i++) {
        g[i] = real_at(got, type, i);
        w[i] = (float)want[i];
    }
    CHECK(check_relative_l2(g, w, n) < (type == FP8_DTYPE_F32 ? 2e-3 : 6e-3));
}

static void test_norm_linear(fp8_input_scaling input, fp8_dtype type, int64_t count,
                             int residual) {
    static rows r;
    layer a = make_layer(input, IN, OUT, type, 1), b = make_layer(input, IN, INNER, type, 2);
    const fp8_linear *const linears[] = {a.l, b.l};
    const fp8_norm n = make_rows(&r, count, residual, type, 3);
    unsigned char y0[MAX_ROWS * OUT * 4], y1[MAX_ROWS * INNER * 4];
    double want0[MAX_ROWS * OUT] = {0}, want1[MAX_ROWS * INNER] = {0};
    const fp8_tensor ys[] = {fp8_tensor_view(y0, type, FP8_PLACE_CPU, count, OUT),
                             fp8_tensor_view(y1, type, FP8_PLACE_CPU, count, INNER)};
    const size_t bytes = fp8_norm_linear_workspace_size(linears, 2, count);
    void *workspace = malloc(bytes + 1);

    CHECK_STATUS(fp8_norm_linear(cpu, ys, &n, linears, 2, FP8_ACCUMULATE_EXACT, workspace, bytes),
                 FP8_OK);
    for (int64_t t = 0; t < count; t++) {
        apply(&a, want0 + t * OUT, r.normed[t], type);
        apply(&b, want1 + t * INNER, r.normed[t], type);
    }
    check_close(y0, want0, count * OUT, type);
    check_close(y1, want1, count * INNER, type);
    if (count > 0)
        CHECK_STATUS(fp8_norm_linear(cpu, ys, &n, linears, 2, FP8_ACCUMULATE_EXACT, workspace,
                                     bytes - 1), FP8_EINVAL);
    free(workspace);
    free_layer(&a), free_layer(&b);
}

static void test_norm_mlp(fp8_input_scaling input, fp8_dtype type, int64_t count, int gated) {
    static rows r;
    layer gate = make_layer(input, IN, INNER, type, 4), up = make_layer(input, IN, INNER, type, 5);
    layer down = make_layer(input, INNER, OUT, type, 6);
    const fp8_mlp mlp = {gated ? gate.l : NULL, up.l, down.l, FP8_ACT_SILU};
    const fp8_norm n = make_rows(&r, count, 1, type, 7);
    unsigned char y[MAX_ROWS * OUT * 4];
    double want[MAX_ROWS * OUT] = {0}, before[MAX_ROWS * OUT] = {0};
    const fp8_tensor out = fp8_tensor_view(y, type, FP8_PLACE_CPU, count, OUT);
    const size_t bytes = fp8_norm_mlp_workspace_size(&mlp, count, gated);
    uint64_t seed = 8;
    void *workspace = malloc(bytes + 1);

    for (int64_t i = 0; i < count * OUT && gated; i++) {
        put_real(y, type, i, 2 * check_normal(&seed));
        before[i] = (double)real_at(y, type, i);
    }
    CHECK_STATUS(fp8_norm_mlp(cpu, &out, &n, &mlp, gated ? &out : NULL, FP8_ACCUMULATE_EXACT,
                              workspace, bytes), FP8_OK);
    for (int64_t t = 0; t < count; t++) {
        double g[INNER], u[INNER];
        apply(&up, u, r.normed[t], type);
        apply(gated ? &gate : &up, g, r.normed[t], type);
        for (int64_t i = 0; i < INNER; i++)
            g[i] = g[i] / (1 + exp(-g[i])) * (gated ? u[i] : 1);
        apply(&down, want + t * OUT, g, type);
    }
    for (int64_t i = 0; i < count * OUT; i++) want[i] += before[i];
    check_close(y, want, count * OUT, type);
    free(workspace);
    free_layer(&gate), free_layer(&up), free_layer(&down);
}

/* A scale a call, and one a token and group: the bytes that norm and Linear give one by one. */
static void test_steps(fp8_input_scaling input) {
    enum { ROWS = 7 };
    static rows r;
    const int blocks = input == FP8_INPUT_GROUPS;
    uint16_t w[OUT * IN], n_out[ROWS * IN], y[ROWS * OUT], want[ROWS * OUT];
    fp8_linear_spec spec = {.name = "layer", .in = IN, .out = OUT, .input = input,
                            .compute = FP8_DTYPE_BF16,
                            .weight_scaling = blocks ? FP8_WEIGHT_BLOCKS : FP8_WEIGHT_CHANNEL};
    const fp8_norm n = make_rows(&r, ROWS, 0, FP8_DTYPE_BF16, 9);
    const fp8_sink values = {.dense = n_out};
    const fp8_tensor x = fp8_tensor_view(n_out, FP8_DTYPE_BF16, FP8_PLACE_CPU, ROWS, IN);
    const fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_BF16, FP8_PLACE_CPU, ROWS, OUT);
    const fp8_tensor wanted = fp8_tensor_view(want, FP8_DTYPE_BF16, FP8_PLACE_CPU, ROWS, OUT);
    const fp8_linear *l = NULL;
    fp8_linear *made = NULL;
    void *workspace = malloc(1 << 20);
    uint64_t seed = 10;

    check_case = blocks ? "groups" : "current";
    for (int i = 0; i < OUT * IN; i++) w[i] = fp8_f32_to_bf16(check_normal(&seed));
    spec.weight = fp8_tensor_view(w, FP8_DTYPE_BF16, FP8_PLACE_CPU, OUT, IN);
    CHECK_STATUS(fp8_linear_create(&made, cpu, &spec), FP8_OK);
    l = made;
    CHECK(fp8_norm_linear_workspace_size(&l, 1, ROWS) <= 1 << 20);
    CHECK_STATUS(fp8_norm_linear(cpu, &out, &n, &l, 1, FP8_ACCUMULATE_EXACT, workspace, 1 << 20),
                 FP8_OK);
    if (blocks) { /* unrounded codes, as the composed call makes them */
        uint8_t codes[ROWS * IN];
        float descales[2 * 8];
        const float *used = NULL;
        fp8_sink sink;
        const fp8_tensor c = fp8_tensor_view(codes, FP8_DTYPE_E4M3, FP8_PLACE_CPU, ROWS, IN);
        CHECK_STATUS(fp8_linear_sink(l, &sink, &used, codes, descales), FP8_OK);
        sink.descale_group_stride = 8;
        CHECK_STATUS(fp8_produce_norm(cpu, &sink, &n, FP8_LAUNCH_ORDERED), FP8_OK);
        CHECK_STATUS(fp8_linear_forward(l, &wanted, &c, used, FP8_ACCUMULATE_EXACT, workspace,
                                        1 << 20), FP8_OK);
    } else {
        CHECK_STATUS(fp8_produce_norm(cpu, &values, &n, FP8_LAUNCH_ORDERED), FP8_OK);
        CHECK_STATUS(fp8_linear_forward(l, &wanted, &x, NULL, FP8_ACCUMULATE_EXACT, workspace,
                                        1 << 20), FP8_OK);
    }
    CHECK(memcmp(y, want, sizeof y) == 0);
    fp8_linear_destroy(made);
    free(workspace);
}

static void test_refusals(void) {
    static rows r;
    layer a = make_layer(FP8_INPUT_DYNAMIC, IN, OUT, FP8_DTYPE_BF16, 1);
    layer b = make_layer(FP8_INPUT_DENSE, IN, OUT, FP8_DTYPE_BF16, 2);
    const fp8_linear *const linears[] = {a.l, b.l};
    fp8_norm n = make_rows(&r, 1, 0, FP8_DTYPE_BF16, 3);
    const fp8_mlp mlp = {NULL, a.l, b.l, FP8_ACT_SILU}; /* down takes IN, up makes OUT */
    unsigned char y[OUT * 4], workspace[4096];
    const fp8_tensor out = fp8_tensor_view(y, FP8_DTYPE_BF16, FP8_PLACE_CPU, 1, OUT);

    check_case = "refusals";
    CHECK_STATUS(fp8_norm_linear(cpu, &out, &n, linears, 2, FP8_ACCUMULATE_EXACT, workspace,
                                 sizeof workspace), FP8_EINVAL);
    CHECK_STATUS(fp8_norm_linear(cpu, &out, &n, linears, 0, FP8_ACCUMULATE_EXACT, workspace,
                                 sizeof workspace), FP8_EINVAL);
    CHECK_STATUS(fp8_norm_mlp(cpu, &out, &n, &mlp, NULL, FP8_ACCUMULATE_EXACT, workspace,
                              sizeof workspace), FP8_EINVAL);
    n.dtype = FP8_DTYPE_F32;
    CHECK_STATUS(fp8_norm_linear(cpu, &out, &n, linears, 1, FP8_ACCUMULATE_EXACT, workspace,
                                 sizeof workspace), FP8_EINVAL);
    free_layer(&a), free_layer(&b);
}

int main(void) {
    static const fp8_input_scaling inputs[] = {FP8_INPUT_DENSE, FP8_INPUT_STATIC,
                                               FP8_INPUT_DYNAMIC};
    static const fp8_dtype types[] = {FP8_DTYPE_F32, FP8_DTYPE_BF16};
    static const int64_t counts[] = {0, 1, 9};

    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    for (int i = 0; i < 3; i++)
        for (int t = 0; t < 2; t++)
            for (int c = 0; c < 3; c++)
                for (int flag = 0; flag < 2; flag++) {
                    check_case = "norm_linear";
                    test_norm_linear(inputs[i], types[t], counts[c], flag);
                    check_case = "norm_mlp";
                    test_norm_mlp(inputs[i], types[t], counts[c], flag);
                }
    test_steps(FP8_INPUT_CURRENT);
    test_steps(FP8_INPUT_GROUPS);
    test_refusals();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
