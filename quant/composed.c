/* Composed calls: producers and Linears in order, over one workspace. */
#include "quant/composed.h"

enum { ALIGN_BYTES = 256 };

/* ---- the workspace --------------------------------------------------------------------------- */

/* Byte offsets. The input of Linears lies at `input` as codes or values, its descales apart; gate
 * and up (an MLP's alone) and the Linears' own scratch behind. */
typedef struct layout {
    size_t input, descales, gate, up, scratch, bytes;
} layout;

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at = (begin + bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return begin;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* 1 when `l` takes values: a dense one, and one whose scale needs all of them first. */
static int takes_values(const fp8_linear *l) {
    const fp8_input_scaling s = fp8_linear_input_scaling(l);
    return s == FP8_INPUT_DENSE || s == FP8_INPUT_CURRENT;
}

static size_t input_bytes(const fp8_linear *l, int64_t tokens) {
    const size_t element = takes_values(l) ? fp8_dtype_size(fp8_linear_compute(l)) : 1;
    return (size_t)tokens * (size_t)fp8_linear_in(l) * element;
}

static size_t descale_bytes(const fp8_linear *l, int64_t tokens) {
    return takes_values(l) ? 0 : (size_t)fp8_linear_num_descales(l, tokens) * sizeof(float);
}

static layout layout_of(const fp8_linear *const *linears, int32_t count, const fp8_mlp *mlp,
                        int adds, int64_t tokens) {
    size_t at = 0, input = input_bytes(linears[0], tokens), scratch = 0, inner = 0;
    size_t descales = descale_bytes(linears[0], tokens);
    layout w = {0};

    for (int32_t i = 0; i < count; i++)
        scratch = larger(scratch, fp8_linear_workspace_size(linears[i], tokens));
    if (mlp) {
        const fp8_dtype type = fp8_linear_compute(mlp->up);
        const fp8_tensor residual = {.dtype = type};
        const fp8_linear_call last = {.residual = adds ? &residual : NULL};
        input = larger(input, input_bytes(mlp->down, tokens));
        descales = larger(descales, descale_bytes(mlp->down, tokens));
        scratch = larger(scratch, fp8_linear_apply_workspace_size(mlp->down, tokens, type, &last));
        inner = (size_t)tokens * (size_t)fp8_linear_out(mlp->up) * fp8_dtype_size(type);
    }
    w.input = claim(&at, input);
    w.descales = claim(&at, descales);
    w.gate = claim(&at, mlp && mlp->gate ? inner : 0);
    w.up = claim(&at, inner);
    w.scratch = claim(&at, scratch);
    w.bytes = at;
    return w;
}

static fp8_status check_workspace(const char *what, const void *workspace, size_t found,
                                  size_t expected, int64_t tokens) {
    if (found >= expected && (workspace || expected == 0)) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: workspace of %zu bytes, expected %zu for %lld tokens", what,
                    found, expected, (long long)tokens);
}

/* ---- an input and who takes it --------------------------------------------------------------- */

/* A call under way. */
typedef struct call {
    fp8_device *d;
    char *base;
    layout at;
    size_t bytes;
    fp8_accumulate accumulate;
    int64_t tokens;
} call;

typedef struct input {
    fp8_sink sink;
    fp8_tensor x;
    const float *x_descale;
} input;

/* Where the input of `l` goes, by codes or by values. */
static fp8_status open_input(const call *c, input *in, const fp8_linear *l) {
    uint8_t *const to = (uint8_t *)c->base + c->at.input;
    float *const descales = (float *)(void *)(c->base + c->at.descales);
    const int values = takes_values(l);
    fp8_status st = FP8_OK;

    *in = (input){.sink = {.dense = to}};
    if (!values) FP8_TRY(fp8_linear_sink(l, &in->sink, &in->x_descale, to, descales));
    if (fp8_linear_input_scaling(l) == FP8_INPUT_GROUPS)
        in->sink.descale_group_stride = (c->tokens + 3) / 4 * 4;
    in->x = fp8_tensor_view(to, values ? fp8_linear_compute(l) : FP8_DTYPE_E4M3,
                            fp8_device_place(c->d), c->tokens, fp8_linear_in(l));
done:
    return st;
}

static fp8_status run_linear(const call *c, const fp8_linear *l, const fp8_tensor *y,
                             const input *in) {
    return fp8_linear_forward(l, y, &in->x, in->x_descale, c->accumulate, c->base + c->at.scratch,
                              c->bytes - c->at.scratch);
}

/* Whether codes made for `a` are what `b` takes. */
static int same_input(const fp8_linear *a, const fp8_linear *b) {
    const fp8_input_scaling scaling = fp8_linear_input_scaling(a);
    const float *descale = NULL;
    fp8_sink x, y;

    if (scaling != fp8_linear_input_scaling(b)) return 0;
    if (scaling == FP8_INPUT_STATIC)
        return !(fp8_linear_input_descale(a) < fp8_linear_input_descale(b)) &&
               !(fp8_linear_input_descale(a) > fp8_linear_input_descale(b));
    if (scaling != FP8_INPUT_DELAYED) return 1;
    return fp8_linear_sink(a, &x, &descale, NULL, NULL) == FP8_OK &&
           fp8_linear_sink(b, &y, &descale, NULL, NULL) == FP8_OK && x.scale == y.scale;
}

/* All as the first one takes its input. */
static fp8_status check_shared(const fp8_linear *const *linears, int32_t count,
                               const fp8_norm *norm) {
    for (int32_t i = 0; i < count; i++) {
        const fp8_linear *l = linears[i];
        if (fp8_linear_in(l) != norm->cols || fp8_linear_compute(l) != norm->dtype)
            return FP8_FAIL(FP8_EINVAL, "Linear %d of %d takes %lld %s, the norm has %lld %s", i,
                            count, (long long)fp8_linear_in(l),
                            fp8_dtype_name(fp8_linear_compute(l)), (long long)norm->cols,
                            fp8_dtype_name(norm->dtype));
        if (!same_input(linears[0], l))
            return FP8_FAIL(FP8_EINVAL, "Linear %d of %d quantizes its input in another way than "
                            "the first", i, count);
    }
    return FP8_OK;
}

static fp8_status norm_and_linears(const call *c, const fp8_tensor *ys, const fp8_norm *norm,
                                   const fp8_linear *const *linears, int32_t count) {
    fp8_status st = FP8_OK;
    input in;

    FP8_TRY(open_input(c, &in, linears[0]));
    FP8_TRY(fp8_produce_norm(c->d, &in.sink, norm, FP8_LAUNCH_OVERLAP));
    for (int32_t i = 0; i < count; i++) FP8_TRY(run_linear(c, linears[i], &ys[i], &in));
done:
    return st;
}

/* ---- the calls ------------------------------------------------------------------------------- */

size_t fp8_norm_linear_workspace_size(const fp8_linear *const *linears, int32_t count,
                                      int64_t max_tokens) {
    return count > 0 && max_tokens > 0 ? layout_of(linears, count, NULL, 0, max_tokens).bytes : 0;
}

fp8_status fp8_norm_linear(fp8_device *d, const fp8_tensor *ys, const fp8_norm *norm,
                           const fp8_linear *const *linears, int32_t count,
                           fp8_accumulate accumulate, void *workspace, size_t workspace_bytes) {
    call c = {.d = d, .base = workspace, .bytes = workspace_bytes, .accumulate = accumulate,
              .tokens = norm->rows};
    fp8_status st = FP8_OK;

    if (count < 1) return FP8_FAIL(FP8_EINVAL, "norm_linear: %d Linears", count);
    FP8_TRY(check_shared(linears, count, norm));
    if (norm->rows <= 0) goto done;
    c.at = layout_of(linears, count, NULL, 0, norm->rows);
    FP8_TRY(check_workspace("norm_linear", workspace, workspace_bytes, c.at.bytes, norm->rows));
    FP8_TRY(norm_and_linears(&c, ys, norm, linears, count));
done:
    return st;
}

/* The Linears behind the norm: gate and up, or up. */
static int32_t first_linears(const fp8_mlp *mlp, const fp8_linear *out[2]) {
    out[0] = mlp->gate ? mlp->gate : mlp->up;
    out[1] = mlp->up;
    return mlp->gate ? 2 : 1;
}

size_t fp8_norm_mlp_workspace_size(const fp8_mlp *mlp, int64_t max_tokens, int adds) {
    const fp8_linear *first[2];
    const int32_t count = first_linears(mlp, first);
    return max_tokens > 0 ? layout_of(first, count, mlp, adds, max_tokens).bytes : 0;
}

fp8_status fp8_norm_mlp(fp8_device *d, const fp8_tensor *y, const fp8_norm *norm,
                        const fp8_mlp *mlp, const fp8_tensor *residual,
                        fp8_accumulate accumulate, void *workspace, size_t workspace_bytes) {
    const int64_t width = fp8_linear_out(mlp->up);
    const fp8_linear *first[2];
    const int32_t count = first_linears(mlp, first);
    call c = {.d = d, .base = workspace, .bytes = workspace_bytes, .accumulate = accumulate,
              .tokens = norm->rows};
    fp8_linear_call last = {.accumulate = accumulate, .residual = residual};
    fp8_act act = {.act = mlp->act, .dtype = norm->dtype, .rows = norm->rows, .cols = width};
    fp8_status st = FP8_OK;
    fp8_tensor inner[2];
    input in;

    FP8_TRY(check_shared(first, count, norm));
    if (fp8_linear_in(mlp->down) != width || fp8_linear_compute(mlp->down) != norm->dtype ||
        (mlp->gate && fp8_linear_out(mlp->gate) != width))
        return FP8_FAIL(FP8_EINVAL, "norm_mlp: gate, up and down do not fit: up makes %lld, down "
                        "takes %lld", (long long)width, (long long)fp8_linear_in(mlp->down));
    if (norm->rows <= 0) goto done;
    c.at = layout_of(first, count, mlp, residual != NULL, norm->rows);
    FP8_TRY(check_workspace("norm_mlp", workspace, workspace_bytes, c.at.bytes, norm->rows));
    for (int i = 0; i < 2; i++)
        inner[i] = fp8_tensor_view(c.base + (i ? c.at.up : c.at.gate), norm->dtype,
                                   fp8_device_place(d), norm->rows, width);
    FP8_TRY(norm_and_linears(&c, inner + 2 - count, norm, first, count));
    FP8_TRY(open_input(&c, &in, mlp->down));
    act.x = inner[2 - count].data;
    act.up = mlp->gate ? inner[1].data : NULL;
    act.rounded = norm->rounded && takes_values(mlp->down);
    FP8_TRY(fp8_produce_act(d, &in.sink, &act, FP8_LAUNCH_OVERLAP));
    last.x_descale = in.x_descale;
    FP8_TRY(fp8_linear_apply(mlp->down, y, &in.x, &last, c.base + c.at.scratch,
                             c.bytes - c.at.scratch));
done:
    return st;
}
