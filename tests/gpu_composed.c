/* quant/composed.h on CUDA against the same calls on the CPU, which test_composed holds against the
 * formulas: a norm and two Linears, and MLPs, of every way to scale an input, gated and not, with
 * residuals apart and in place; the same bytes twice; a workspace that is too small. */
#include "tests/produce_check.h"

enum { IN = 272, INNER = 400, OUT = 144, WIDEST = 400, MAX_ROWS = 130, PLACES = 5 };
static fp8_device *devices[2]; /* CPU, CUDA */

static const struct way {
    const char *name;
    fp8_input_scaling input;
    fp8_weight_scaling weight;
} ways[] = {
    {"dense", FP8_INPUT_DENSE, FP8_WEIGHT_AS_GIVEN},
    {"static", FP8_INPUT_STATIC, FP8_WEIGHT_AS_GIVEN},
    {"token", FP8_INPUT_DYNAMIC, FP8_WEIGHT_AS_GIVEN},
    {"current", FP8_INPUT_CURRENT, FP8_WEIGHT_AS_GIVEN},
    {"delayed", FP8_INPUT_DELAYED, FP8_WEIGHT_AS_GIVEN},
    {"groups", FP8_INPUT_GROUPS, FP8_WEIGHT_BLOCKS},
};
enum { NUM_WAYS = sizeof ways / sizeof *ways };

static float *delayed[2]; /* of each device: scale, descale */

static int serves(const struct way *w) {
    return w->weight != FP8_WEIGHT_BLOCKS || fp8_device_capability(devices[1]) == 90;
}

/* The same layer on both. */
static void make_layers(fp8_linear *out[2], const struct way *w, int64_t in, int64_t outs,
                        fp8_dtype compute, uint64_t seed) {
    const fp8_dtype type = w->input == FP8_INPUT_DENSE ? compute : FP8_DTYPE_E4M3;
    unsigned char *data = malloc((size_t)(in * outs) * 4);
    float descales[16];
    fp8_linear_spec spec = {.name = w->name, .in = in, .out = outs, .weight_scaling = w->weight,
                            .input = w->input, .input_descale = 0.03125f, .compute = compute};

    for (int i = 0; i < 16; i++) descales[i] = 0.01f * (float)(1 + i % 3);
    for (int64_t i = 0; i < in * outs; i++) {
        const float v = check_normal(&seed) * 0.3f;
        if (type == FP8_DTYPE_E4M3) data[i] = fp8_from_f32(type, v * 100.0f);
        else put_real(data, type, i, v);
    }
    spec.weight = fp8_tensor_view(data, type, FP8_PLACE_CPU, outs, in);
    if (type == FP8_DTYPE_E4M3) {
        spec.weight_descale = descales;
        spec.num_weight_descales =
            w->weight == FP8_WEIGHT_BLOCKS ? (in + 127) / 128 * ((outs + 127) / 128) : 1;
    }
    for (int d = 0; d < 2; d++) {
        if (w->input == FP8_INPUT_DELAYED) {
            spec.delayed_scale = delayed[d];
            spec.delayed_descale = delayed[d] + 1;
        }
        CHECK_STATUS(fp8_linear_create(&out[d], devices[d], &spec), FP8_OK);
    }
    free(data);
}

static void free_layers(fp8_linear *l[2]) {
    fp8_linear_destroy(l[0]);
    fp8_linear_destroy(l[1]);
}

/* Tensors of a call: x, its residual, the norm's weight, and two outputs; twice on the host, the
 * first of them the CPU's to work in. */
typedef struct tensors {
    unsigned char *host[2][PLACES];
    void *gpu[PLACES];
    size_t bytes[PLACES];
} tensors;
enum { X, RESIDUAL, WEIGHT, Y0, Y1 };

static void make_tensors(tensors *t, fp8_dtype type, int64_t rows, uint64_t seed) {
    const int64_t counts[PLACES] = {rows * IN, rows * IN, IN, rows * WIDEST, rows * WIDEST};
    const float sizes[PLACES] = {3.0f, 1.0f, 0.2f, 2.0f, 2.0f};

    for (int i = 0; i < PLACES; i++) {
        t->bytes[i] = (size_t)counts[i] * fp8_dtype_size(type);
        for (int k = 0; k < 2; k++) t->host[k][i] = calloc(t->bytes[i] + 4, 1);
        for (int64_t e = 0; e < counts[i]; e++)
            put_real(t->host[0][i], type, e, sizes[i] * check_normal(&seed) + (i == WEIGHT));
        CHECK_STATUS(fp8_device_alloc(devices[1], &t->gpu[i], t->bytes[i] + 16), FP8_OK);
        CHECK_STATUS(fp8_device_upload(devices[1], t->gpu[i], t->host[0][i], t->bytes[i]), FP8_OK);
    }
}

static void *place_of(const tensors *t, int d, int which) {
    return d ? t->gpu[which] : t->host[0][which];
}

static void download(tensors *t, int which, size_t bytes) {
    CHECK_STATUS(fp8_device_download(devices[1], t->host[1][which], t->gpu[which], bytes), FP8_OK);
}

static void compare_bytes(tensors *t, int which, fp8_dtype type, int64_t count) {
    const size_t bytes = (size_t)count * fp8_dtype_size(type);
    download(t, which, bytes);
    CHECK(memcmp(t->host[0][which], t->host[1][which], bytes) == 0);
}

/* Of what both made, the relative L2 of the difference. One quantizing: a code at the middle
 * between two falls either way, one of some hundred terms. Two: gate and up are BF16, and one that
 * rounds the other way moves codes behind it by a step, and where it is a row's largest the scale
 * and so all the row's codes; that is as much as quantizing itself does, 2^-5 of a value. */
enum { ONE, TWO };
static void compare(tensors *t, int which, fp8_dtype type, int64_t count, int quantizings) {
    static float got[MAX_ROWS * WIDEST], want[MAX_ROWS * WIDEST];
    const double bound = quantizings == TWO ? 0.03125 : type == FP8_DTYPE_F32 ? 2e-3 : 6e-3;
    double error;

    download(t, which, (size_t)count * fp8_dtype_size(type));
    for (int64_t i = 0; i < count; i++) {
        want[i] = real_at(t->host[0][which], type, i);
        got[i] = real_at(t->host[1][which], type, i);
        CHECK(isfinite(got[i]));
    }
    error = check_relative_l2(got, want, count);
    CHECK(error < bound);
    if (!(error < bound)) fprintf(stderr, "%lld values: %g, want < %g\n", (long long)count, error,
                                  bound);
}

static void free_tensors(tensors *t) {
    for (int i = 0; i < PLACES; i++) {
        fp8_device_free(devices[1], t->gpu[i]);
        for (int k = 0; k < 2; k++) free(t->host[k][i]);
    }
}

static fp8_norm norm_of(const tensors *t, int d, fp8_dtype type, int64_t rows, int residual) {
    return (fp8_norm){.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = type, .rows = rows, .cols = IN,
                      .x = place_of(t, d, X), .weight = place_of(t, d, WEIGHT),
                      .residual = residual ? place_of(t, d, RESIDUAL) : NULL,
                      .h = residual ? place_of(t, d, X) : NULL};
}

static void test_norm_linear(const struct way *w, fp8_dtype type, int64_t rows, int residual) {
    fp8_linear *a[2], *b[2];
    tensors t;

    make_layers(a, w, IN, OUT, type, 1), make_layers(b, w, IN, INNER, type, 2);
    make_tensors(&t, type, rows, 3);
    for (int d = 0; d < 2; d++) {
        const fp8_linear *const linears[] = {a[d], b[d]};
        const fp8_place place = fp8_device_place(devices[d]);
        const fp8_tensor ys[] = {fp8_tensor_view(place_of(&t, d, Y0), type, place, rows, OUT),
                                 fp8_tensor_view(place_of(&t, d, Y1), type, place, rows, INNER)};
        const fp8_norm n = norm_of(&t, d, type, rows, residual);
        const size_t bytes = fp8_norm_linear_workspace_size(linears, 2, rows);
        void *workspace = NULL;
        CHECK_STATUS(fp8_device_alloc(devices[d], &workspace, bytes + 1), FP8_OK);
        CHECK_STATUS(fp8_norm_linear(devices[d], ys, &n, linears, 2, FP8_ACCUMULATE_EXACT,
                                     workspace, bytes), FP8_OK);
        if (rows > 0)
            CHECK_STATUS(fp8_norm_linear(devices[d], ys, &n, linears, 2, FP8_ACCUMULATE_EXACT,
                                         workspace, bytes - 1), FP8_EINVAL);
        CHECK_STATUS(fp8_device_sync(devices[d]), FP8_OK);
        fp8_device_free(devices[d], workspace);
    }
    compare(&t, Y0, type, rows * OUT, ONE);
    compare(&t, Y1, type, rows * INNER, ONE);
    compare_bytes(&t, X, type, rows * IN); /* h */
    free_tensors(&t);
    free_layers(a), free_layers(b);
}

/* Where the residual of an MLP's result is. */
enum { NONE, APART, IN_PLACE };

static void run_mlp(const tensors *t, int d, fp8_linear *const gate[2], fp8_linear *const up[2],
                    fp8_linear *const down[2], fp8_dtype type, int64_t rows, int residual) {
    const fp8_mlp mlp = {gate ? gate[d] : NULL, up[d], down[d],
                         gate ? FP8_ACT_SILU : FP8_ACT_GELU_TANH};
    const fp8_place place = fp8_device_place(devices[d]);
    const fp8_tensor y = fp8_tensor_view(place_of(t, d, Y0), type, place, rows, OUT);
    const fp8_tensor other = fp8_tensor_view(place_of(t, d, Y1), type, place, rows, OUT);
    const fp8_tensor *const adds[] = {NULL, &other, &y};
    const fp8_norm n = norm_of(t, d, type, rows, 1);
    const size_t bytes = fp8_norm_mlp_workspace_size(&mlp, rows, residual != NONE);
    void *workspace = NULL;

    CHECK_STATUS(fp8_device_alloc(devices[d], &workspace, bytes + 1), FP8_OK);
    CHECK_STATUS(fp8_norm_mlp(devices[d], &y, &n, &mlp, adds[residual], FP8_ACCUMULATE_EXACT,
                              workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_sync(devices[d]), FP8_OK);
    fp8_device_free(devices[d], workspace);
}

static void test_norm_mlp(const struct way *w, fp8_dtype type, int64_t rows, int gated,
                          int residual) {
    fp8_linear *gate[2], *up[2], *down[2];
    tensors t, again;

    make_layers(gate, w, IN, INNER, type, 4), make_layers(up, w, IN, INNER, type, 5);
    make_layers(down, w, INNER, OUT, type, 6);
    make_tensors(&t, type, rows, 7), make_tensors(&again, type, rows, 7);
    for (int d = 0; d < 2; d++)
        run_mlp(&t, d, gated ? gate : NULL, up, down, type, rows, residual);
    run_mlp(&again, 1, gated ? gate : NULL, up, down, type, rows, residual);
    compare(&t, Y0, type, rows * OUT, w->input == FP8_INPUT_DENSE ? ONE : TWO);
    compare_bytes(&t, X, type, rows * IN);
    memcpy(again.host[0][Y0], t.host[1][Y0], t.bytes[Y0]); /* the same bytes twice */
    compare_bytes(&again, Y0, type, rows * OUT);
    free_tensors(&t), free_tensors(&again);
    free_layers(gate), free_layers(up), free_layers(down);
}

int main(void) {
    static const int64_t counts[] = {0, 1, 9, 64, MAX_ROWS};
    static const float scales[] = {24.0f, 1.0f / 24.0f};

    devices[1] = check_gpu();
    if (!devices[1]) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&devices[0], "cpu", 0), FP8_OK);
    for (int d = 0; d < 2; d++) {
        CHECK_STATUS(fp8_device_alloc(devices[d], (void **)&delayed[d], sizeof scales), FP8_OK);
        CHECK_STATUS(fp8_device_upload(devices[d], delayed[d], scales, sizeof scales), FP8_OK);
    }
    for (int i = 0; i < NUM_WAYS; i++) {
        if (!serves(&ways[i])) continue;
        check_case = ways[i].name;
        for (int c = 0; c < 5; c++) {
            const fp8_dtype type = c % 2 && ways[i].input != FP8_INPUT_DENSE ? FP8_DTYPE_F32
                                                                              : FP8_DTYPE_BF16;
            test_norm_linear(&ways[i], type, counts[c], c % 2);
            for (int k = 0; k < 3; k++) {
                test_norm_mlp(&ways[i], type, counts[c], k % 2, k);
                test_norm_mlp(&ways[i], FP8_DTYPE_BF16, counts[c], 1 - k % 2, k);
            }
        }
    }
    for (int d = 0; d < 2; d++) fp8_device_free(devices[d], delayed[d]);
    fp8_device_destroy(devices[1]);
    fp8_device_destroy(devices[0]);
    return CHECK_DONE();
}
