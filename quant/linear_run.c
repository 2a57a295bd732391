/* Running a Linear, the same on every device: quantize the input if the layer says so, then one
 * matrix product with descales, bias and what else is asked for at its store. */
#include <string.h>

#include "quant/delayed.h"
#include "quant/gemm_tune.h"
#include "quant/linear_impl.h"
#include "quant/produce.h"

enum { ALIGN_BYTES = 256, MAX_BUCKETS = 32, FIRST_BUCKET = 16 };

static const fp8_linear_call plain_call;

static int is_code(fp8_dtype t) { return t == FP8_DTYPE_E4M3 || t == FP8_DTYPE_E5M2; }

/* What CURRENT scaling keeps in the workspace: one point of delayed scaling with one step. */
typedef struct current_state {
    fp8_amax_slot slot;
    int64_t steps;
    float history, scale, descale;
} current_state;

/* ---- the product and the workspace ----------------------------------------------------------- */

/* Byte offsets into the workspace of a forward over `tokens`. */
typedef struct linear_layout {
    size_t codes, descale, state, values, product, bytes;
} linear_layout;

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at = (begin + bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return begin;
}

int64_t fp8_linear_num_descales(const fp8_linear *l, int64_t tokens) {
    if (l->input == FP8_INPUT_DYNAMIC) return tokens;
    return l->input == FP8_INPUT_GROUPS ? fp8_blocks_of(l->in) * fp8_up_to_4(tokens) : 1;
}

/* Columns of y. */
static int64_t out_of(const fp8_linear *l, const fp8_linear_call *c) {
    return fp8_gemm_is_gated(c->activation) ? l->out / 2 : l->out;
}

/* Everything but the pointers of x, its descale and y. */
static fp8_gemm product_of(const fp8_linear *l, int64_t tokens, fp8_dtype y,
                           const fp8_linear_call *c) {
    fp8_gemm g = {.m = tokens,
                  .n = l->out,
                  .k = l->in,
                  .b = l->weight,
                  .lda = l->in,
                  .ldb = l->weight_is_kn ? l->out : l->in,
                  .ldd = out_of(l, c),
                  .a_dtype = l->operand,
                  .b_dtype = l->weight_dtype,
                  .d_dtype = y,
                  .b_is_kn = l->weight_is_kn,
                  .alpha = 1,
                  .scaling = l->in_blocks ? FP8_GEMM_BLOCKS : FP8_GEMM_ROWS,
                  .b_descale = l->weight_descale,
                  .a_descale_count = l->input == FP8_INPUT_DYNAMIC ? tokens : 1,
                  .b_descale_count = l->num_weight_descales,
                  .a_descale_ld = fp8_up_to_4(tokens),
                  .b_descale_ld = fp8_up_to_4(fp8_blocks_of(l->in)),
                  .bias = l->bias,
                  .bias_dtype = l->bias_dtype,
                  .activation = c->activation,
                  .d_scale = c->y_scale,
                  .d_amax = c->y_amax,
                  .accumulate = c->accumulate,
                  .launch = FP8_LAUNCH_OVERLAP};
    if (c->residual) {
        g.residual = c->residual->data;
        g.residual_dtype = c->residual->dtype;
        g.ldr = l->out;
    }
    return g;
}

static linear_layout layout_of(const fp8_linear *l, int64_t tokens, fp8_dtype y,
                               const fp8_linear_call *c) {
    const size_t elements = (size_t)tokens * (size_t)l->in;
    const int quantizes = l->input != FP8_INPUT_DENSE;
    fp8_gemm g = product_of(l, tokens, y, c);
    linear_layout w = {0};
    size_t at = 0;

    if (c->residual) g.residual = c->residual; /* only its presence counts, not where it lies */
    if (quantizes) { /* whether x comes as codes is not known here: room for both */
        static const float one = 1;
        g.a_descale = &one; /* only its presence counts */
        w.codes = claim(&at, elements);
        w.descale = claim(&at, (size_t)fp8_linear_num_descales(l, tokens) * sizeof(float));
    }
    if (l->input == FP8_INPUT_CURRENT) w.state = claim(&at, sizeof(current_state));
    if (quantizes && l->operand == FP8_DTYPE_BF16) w.values = claim(&at, 2 * elements);
    w.product = claim(&at, fp8_gemm_workspace_size(l->device, &g));
    w.bytes = at;
    return w;
}

size_t fp8_linear_workspace_size(const fp8_linear *l, int64_t max_tokens) {
    return fp8_linear_apply_workspace_size(l, max_tokens, l->compute, &plain_call);
}

size_t fp8_linear_apply_workspace_size(const fp8_linear *l, int64_t max_tokens, fp8_dtype y,
                                       const fp8_linear_call *call) {
    return max_tokens > 0 ? layout_of(l, max_tokens, y, call).bytes : 0;
}

int fp8_linear_gates(const fp8_linear *l, int64_t tokens, fp8_dtype y,
                     const fp8_linear_call *call) {
    const fp8_gemm g = product_of(l, tokens, y, call);
    return tokens > 0 && fp8_gemm_gates(l->device, &g);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_input(const fp8_linear *l, const fp8_tensor *x) {
    char shape[128];
    if (x->ndim == 2 && x->shape[0] >= 0 && x->shape[1] == l->in &&
        x->place == fp8_device_place(l->device))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: input %s, expected [tokens, %lld] in the place of the device",
                    l->name, fp8_shape_text(shape, sizeof shape, x->shape, x->ndim),
                    (long long)l->in);
}

static fp8_status check_codes(const fp8_linear *l, const fp8_tensor *x,
                              const fp8_linear_call *c) {
    if (l->input == FP8_INPUT_DENSE || (!is_code(x->dtype) && x->dtype != l->compute) ||
        (x->dtype == FP8_DTYPE_E5M2 && l->weight_dtype != FP8_DTYPE_E4M3)) {
        if (x->dtype == l->compute) return FP8_OK;
        return FP8_FAIL(FP8_EINVAL, "%s: input of %s, expected %s%s", l->name,
                        fp8_dtype_name(x->dtype), fp8_dtype_name(l->compute),
                        l->input == FP8_INPUT_DENSE ? "" : " or F8_E4M3");
    }
    if (!is_code(x->dtype)) return FP8_OK;
    if (!c->x_descale) return FP8_FAIL(FP8_EINVAL, "%s: codes without their descale", l->name);
    if (c->x_descale_ld && c->x_descale_ld < x->shape[0])
        return FP8_FAIL(FP8_EINVAL, "%s: descales with %lld floats between groups, expected at "
                        "least %lld", l->name, (long long)c->x_descale_ld,
                        (long long)x->shape[0]);
    return FP8_OK;
}

/* `r` beside x: [tokens, cols] in the place of the device. */
static fp8_status check_rows(const fp8_linear *l, const char *what, const fp8_tensor *r,
                             const fp8_tensor *x, int64_t cols) {
    char shape[128];
    if (r->ndim == 2 && r->shape[0] == x->shape[0] && r->shape[1] == cols &&
        r->place == x->place)
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "%s: %s %s %s, expected [%lld, %lld] beside the input", l->name,
                    what, fp8_dtype_name(r->dtype),
                    fp8_shape_text(shape, sizeof shape, r->shape, r->ndim),
                    (long long)x->shape[0], (long long)cols);
}

static fp8_status check_apply(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                              const fp8_linear_call *c) {
    fp8_status st;

    FP8_TRY(check_input(l, x));
    FP8_TRY(check_rows(l, "output", y, x, out_of(l, c)));
    if (c->residual) FP8_TRY(check_rows(l, "residual", c->residual, x, l->out));
    FP8_TRY(check_codes(l, x, c));
done:
    return st;
}

/* ---- the input ------------------------------------------------------------------------------- */

static fp8_status quantize_current(const fp8_linear *l, uint8_t *codes, current_state *s,
                                   const fp8_tensor *x) {
    const fp8_recipe recipe = {FP8_AMAX_MOST_RECENT, 0, 1};
    const fp8_delayed point = {1, 1, &s->slot, &s->history, &s->steps, &s->scale, &s->descale};
    fp8_status st;

    FP8_TRY(fp8_device_fill(l->device, s, 0, sizeof *s));
    FP8_TRY(fp8_device_copy(l->device, &s->scale, l->input_pair, 2 * sizeof s->scale));
    FP8_TRY(fp8_observe(l->device, &s->slot, x->data, x->dtype, x->shape[0], l->in, l->in, NULL));
    FP8_TRY(fp8_delayed_update(l->device, &point, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED));
    FP8_TRY(fp8_quantize(l->device, codes, FP8_DTYPE_E4M3, x->data, x->dtype,
                         x->shape[0] * l->in, &s->scale));
done:
    return st;
}

/* By the sink that a producer before the layer would be given. */
static fp8_status quantize_by_sink(const fp8_linear *l, uint8_t *codes, float *descale,
                                   const float **used, const fp8_tensor *x) {
    fp8_status st;
    fp8_sink sink;

    FP8_TRY(fp8_linear_sink(l, &sink, used, codes, descale));
    if (l->input == FP8_INPUT_GROUPS) sink.descale_group_stride = fp8_up_to_4(x->shape[0]);
    FP8_TRY(fp8_produce_cast(l->device, &sink, x->data, x->dtype, x->shape[0], l->in, 0,
                             FP8_LAUNCH_ORDERED));
done:
    return st;
}

/* codes = the quantized x; *used = where its descale is: `descale` filled in, or the layer's, the
 * caller's, or in `state`. */
static fp8_status quantize_input(const fp8_linear *l, uint8_t *codes, float *descale,
                                 current_state *state, const float **used, const fp8_tensor *x) {
    const int64_t tokens = x->shape[0];

    *used = descale;
    switch (l->input) {
    case FP8_INPUT_STATIC:
        *used = l->input_pair;
        return fp8_quantize(l->device, codes, FP8_DTYPE_E4M3, x->data, x->dtype, tokens * l->in,
                            l->input_pair + FP8_PAIR_STEP);
    case FP8_INPUT_CURRENT:
        *used = &state->descale;
        return quantize_current(l, codes, state, x);
    case FP8_INPUT_DELAYED:
    case FP8_INPUT_GROUPS: return quantize_by_sink(l, codes, descale, used, x);
    default:
        return fp8_quantize_groups(l->device, codes, FP8_DTYPE_E4M3, descale, x->data, x->dtype,
                                   tokens, l->in, 0);
    }
}

fp8_status fp8_linear_sink(const fp8_linear *l, fp8_sink *out, const float **x_descale,
                           uint8_t *codes, float *descales) {
    *out = (fp8_sink){.codes = codes, .code = FP8_DTYPE_E4M3};
    switch (l->input) {
    case FP8_INPUT_STATIC:
        out->scale = l->input_pair + FP8_PAIR_STEP;
        *x_descale = l->input_pair;
        return FP8_OK;
    case FP8_INPUT_DELAYED:
        out->scale = l->delayed_scale;
        out->amax = l->delayed_amax;
        *x_descale = l->delayed_descale;
        return FP8_OK;
    case FP8_INPUT_DYNAMIC:
    case FP8_INPUT_GROUPS:
        out->scaling = l->input == FP8_INPUT_GROUPS ? FP8_SINK_GROUP : FP8_SINK_TOKEN;
        out->descale_row_stride = l->input == FP8_INPUT_GROUPS;
        out->descale = descales;
        *x_descale = descales;
        return FP8_OK;
    default:
        return FP8_FAIL(FP8_EINVAL, "%s: no sink for an input that is %s", l->name,
                        l->input == FP8_INPUT_DENSE ? "not quantized"
                                                    : "scaled by the amax of all of it");
    }
}

fp8_status fp8_linear_quantize_input(const fp8_linear *l, uint8_t *codes, float *descale,
                                     const fp8_tensor *x) {
    const float *used = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(check_input(l, x));
    if (l->input == FP8_INPUT_DENSE || l->input == FP8_INPUT_CURRENT || x->dtype != l->compute) {
        st = FP8_FAIL(FP8_EINVAL, "%s: input of %s to quantize, expected %s", l->name,
                      fp8_dtype_name(x->dtype),
                      l->input == FP8_INPUT_DENSE ? "none"
                      : l->input == FP8_INPUT_CURRENT ? "none: current scaling has no room for "
                                                        "its amax here"
                                                      : fp8_dtype_name(l->compute));
        goto done;
    }
    FP8_TRY(quantize_input(l, codes, descale, NULL, &used, x));
    if (used != descale)
        FP8_TRY(fp8_device_copy(l->device, descale, used, sizeof *descale));
done:
    return st;
}

/* Makes x into what the product takes: fills in g's A and its descale, using the workspace. */
static fp8_status prepare_input(const fp8_linear *l, fp8_gemm *g, const fp8_tensor *x,
                                const fp8_linear_call *c, char *base, const linear_layout *at) {
    const fp8_dtype code = is_code(x->dtype) ? x->dtype : FP8_DTYPE_E4M3;
    fp8_status st = FP8_OK;

    g->a = x->data;
    if (l->input == FP8_INPUT_DENSE) goto done;
    g->a_descale = c->x_descale;
    if (is_code(x->dtype)) {
        if (c->x_descale_ld) g->a_descale_ld = c->x_descale_ld;
    } else {
        FP8_TRY(quantize_input(l, (uint8_t *)base + at->codes,
                               (float *)(void *)(base + at->descale),
                               (current_state *)(void *)(base + at->state), &g->a_descale, x));
        g->a = base + at->codes;
    }
    g->a_dtype = l->operand == FP8_DTYPE_E4M3 ? code : l->operand;
    if (l->operand == FP8_DTYPE_E4M3) goto done;
    FP8_TRY(fp8_dequantize(l->device, base + at->values, l->operand, g->a, code,
                           x->shape[0] * l->in, NULL));
    g->a = base + at->values;
done:
    return st;
}

/* ---- the calls ------------------------------------------------------------------------------- */

fp8_status fp8_linear_apply(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                            const fp8_linear_call *call, void *workspace,
                            size_t workspace_bytes) {
    const fp8_linear_call *c = call ? call : &plain_call;
    char *const base = workspace;
    fp8_status st = FP8_OK;
    linear_layout at;
    fp8_gemm g;

    FP8_TRY(check_apply(l, y, x, c));
    if (x->shape[0] == 0) goto done;
    at = layout_of(l, x->shape[0], y->dtype, c);
    if (workspace_bytes < at.bytes) {
        st = FP8_FAIL(FP8_EINVAL, "%s: workspace of %zu bytes, expected %zu for %lld tokens",
                      l->name, workspace_bytes, at.bytes, (long long)x->shape[0]);
        goto done;
    }
    g = product_of(l, x->shape[0], y->dtype, c);
    g.d = y->data;
    FP8_TRY(prepare_input(l, &g, x, c, base, &at));
    FP8_TRY(fp8_gemm_run(l->device, &g, base + at.product, workspace_bytes - at.product));
done:
    return st;
}

fp8_status fp8_linear_forward(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                              const float *x_descale, fp8_accumulate accumulate, void *workspace,
                              size_t workspace_bytes) {
    const fp8_linear_call call = {.accumulate = accumulate, .x_descale = x_descale};

    if (y->dtype != l->compute)
        return FP8_FAIL(FP8_EINVAL, "%s: output of %s, expected %s", l->name,
                        fp8_dtype_name(y->dtype), fp8_dtype_name(l->compute));
    return fp8_linear_apply(l, y, x, &call, workspace, workspace_bytes);
}

static fp8_status tune_one(const fp8_linear *l, int64_t tokens, fp8_dtype y,
                           const fp8_linear_call *c, char *base, size_t workspace_bytes) {
    const linear_layout at = layout_of(l, tokens, y, c);
    fp8_gemm g = product_of(l, tokens, y, c);

    if (workspace_bytes < at.bytes)
        return FP8_FAIL(FP8_EINVAL, "%s: workspace of %zu bytes, expected %zu for %lld tokens",
                        l->name, workspace_bytes, at.bytes, (long long)tokens);
    if (l->input != FP8_INPUT_DENSE) g.a_descale = l->weight_descale ? l->weight_descale
                                                                     : (const float *)l->weight;
    return fp8_gemm_tune(l->device, &g, base + at.product, workspace_bytes - at.product, NULL);
}

fp8_status fp8_linear_tune(const fp8_linear *l, const int64_t *tokens, int32_t count,
                           int64_t max_tokens, fp8_dtype y, const fp8_linear_call *call,
                           void *workspace, size_t workspace_bytes) {
    const fp8_linear_call *c = call ? call : &plain_call;
    int64_t buckets[MAX_BUCKETS];
    fp8_status st = FP8_OK;

    if (!tokens) {
        count = 0;
        for (int64_t t = FIRST_BUCKET; t < max_tokens && count < MAX_BUCKETS - 1; t *= 2)
            buckets[count++] = t;
        if (max_tokens > 0) buckets[count++] = max_tokens;
        tokens = buckets;
    }
    for (int32_t i = 0; i < count; i++) {
        if (tokens[i] < 1 || tokens[i] > max_tokens) {
            st = FP8_FAIL(FP8_EINVAL, "%s: %lld tokens to tune for, expected 1 to %lld", l->name,
                          (long long)tokens[i], (long long)max_tokens);
            goto done;
        }
        FP8_TRY(tune_one(l, tokens[i], y, c, workspace, workspace_bytes));
    }
done:
    return st;
}
