/* Making a chain of Linears, and running it: in one launch (chain_cuda.c), or step by step, when
 * the codes between two steps lie in the workspace by turns, as a step's product or the norm behind
 * it leaves them. */
#include "quant/chain.h"

#include <stdlib.h>
#include <string.h>

#include "quant/chain_impl.h"
#include "quant/cuda_ops.h"

enum { ALIGN_BYTES = 256 };

/* Columns of what a step's product leaves. */
static int64_t width_of(const fp8_chain_step *s) {
    return fp8_gemm_is_gated(s->activation) ? s->linear->out / 2 : s->linear->out;
}

/* ---- checks ---------------------------------------------------------------------------------- */

static fp8_status check_linear(const fp8_device *d, const fp8_linear *l, int32_t i) {
    if (!l) return FP8_FAIL(FP8_EINVAL, "chain: step %d has no Linear", i);
    if (l->device != d)
        return FP8_FAIL(FP8_EINVAL, "chain: step %d, %s: a Linear of another device", i, l->name);
    if (l->weight_dtype != FP8_DTYPE_E4M3 || l->operand != FP8_DTYPE_E4M3)
        return FP8_FAIL(FP8_EUNSUPPORTED, "chain: step %d, %s: weights kept as %s that meet %s, "
                        "expected F8_E4M3 both", i, l->name, fp8_dtype_name(l->weight_dtype),
                        fp8_dtype_name(l->operand));
    if (l->weight_is_kn || l->in_blocks)
        return FP8_FAIL(FP8_EUNSUPPORTED, "chain: step %d, %s: weights %s, expected [out, in] with "
                        "one descale or one an output", i, l->name,
                        l->in_blocks ? "in blocks" : "[in, out]");
    if (l->input != FP8_INPUT_STATIC)
        return FP8_FAIL(FP8_EUNSUPPORTED, "chain: step %d, %s: an input without a static scale", i,
                        l->name);
    if (l->compute != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "chain: step %d, %s computes in %s, expected BF16", i,
                        l->name, fp8_dtype_name(l->compute));
    return FP8_OK;
}

/* What a step does with its product. */
static fp8_status check_step(const fp8_chain_step *s, int32_t i, int last) {
    const int acts = s->activation != FP8_GEMM_IDENTITY;
    const char *wrong = NULL;

    if ((int)s->activation < FP8_GEMM_IDENTITY || s->activation > FP8_GEMM_GEGLU_TANH)
        wrong = "has an activation that is none";
    else if (acts && (s->adds || last))
        wrong = s->adds ? "adds what an activation makes" : "is the last and has an activation";
    else if (fp8_gemm_is_gated(s->activation) && s->linear->out % 2)
        wrong = "has gate and up of an odd number of outputs together";
    else if (s->norm_weight && (!s->adds || last))
        wrong = last ? "is the last and has a norm" : "has a norm and does not add";
    else if (s->adds && !last && !s->norm_weight)
        wrong = "adds, is not the last and has no norm";
    else if (s->norm_bias && (!s->norm_weight || s->norm != FP8_NORM_LAYER))
        wrong = "has a norm's bias without FP8_NORM_LAYER";
    if (wrong) return FP8_FAIL(FP8_EINVAL, "chain: step %d, %s, %s", i, s->linear->name, wrong);
    return FP8_OK;
}

/* Steps beside each other, and beside the residual stream. */
static fp8_status check_fit(const fp8_chain_step *steps, int32_t count) {
    const fp8_chain_step *adds = NULL;

    for (int32_t i = 0; i < count; i++) {
        const fp8_chain_step *s = &steps[i];
        if (i > 0 && s->linear->in != width_of(s - 1))
            return FP8_FAIL(FP8_EINVAL, "chain: step %d, %s, reads %lld, and the one before makes "
                            "%lld", i, s->linear->name, (long long)s->linear->in,
                            (long long)width_of(s - 1));
        if (s->adds && adds && adds->linear->out != s->linear->out)
            return FP8_FAIL(FP8_EINVAL, "chain: step %d, %s, adds %lld to a residual stream of "
                            "%lld", i, s->linear->name, (long long)s->linear->out,
                            (long long)adds->linear->out);
        if (s->adds) adds = s;
    }
    return FP8_OK;
}

static fp8_status check_steps(const fp8_device *d, const fp8_chain_step *steps, int32_t count) {
    fp8_status st = FP8_OK;

    if (count < 1 || count > FP8_CHAIN_MAX_STEPS || !steps)
        return FP8_FAIL(FP8_EINVAL, "chain: %d steps, expected 1 to %d", count,
                        (int)FP8_CHAIN_MAX_STEPS);
    for (int32_t i = 0; i < count; i++) {
        FP8_TRY(check_linear(d, steps[i].linear, i));
        FP8_TRY(check_step(&steps[i], i, i == count - 1));
    }
    FP8_TRY(check_fit(steps, count));
done:
    return st;
}

/* ---- making ---------------------------------------------------------------------------------- */

/* c->launch, or c->why. */
static fp8_status make_launch(fp8_chain *c) {
    const char *wanted = getenv("FP8_CHAIN");

    c->why = "one launch is made on CUDA alone";
    if (!FP8_ON_CUDA(c->device)) return FP8_OK;
    c->why = "FP8_CHAIN=1 is not in the environment, and steps apart take no longer";
    if (!wanted || strcmp(wanted, "1") != 0) return FP8_OK;
    return FP8_CUDA_CALL(chain_launch_create(c));
}

fp8_status fp8_chain_create(fp8_chain **out, fp8_device *d, const fp8_chain_step *steps,
                            int32_t count) {
    fp8_chain *c = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    FP8_TRY(check_steps(d, steps, count));
    c = calloc(1, sizeof *c);
    if (!c) {
        st = FP8_FAIL(FP8_ENOMEM, "chain of %d steps", count);
        goto done;
    }
    c->device = d;
    c->count = count;
    memcpy(c->steps, steps, (size_t)count * sizeof *steps);
    FP8_TRY(make_launch(c));
    *out = c;
    c = NULL;
done:
    fp8_chain_destroy(c);
    return st;
}

void fp8_chain_destroy(fp8_chain *c) {
#if FP8_CUDA
    if (c && c->launch) chain_launch_destroy(c);
#endif
    free(c);
}

int fp8_chain_is_one_launch(const fp8_chain *c, int64_t tokens, const char **why) {
    const char *reason = NULL;

    if (!c->launch) reason = c->why;
    else if (tokens < 1 || tokens > FP8_CHAIN_MAX_TOKENS) reason = "tokens: 1 to 128 of them";
    if (why) *why = reason;
    return !reason;
}

/* ---- the workspace --------------------------------------------------------------------------- */

/* Byte offsets: what steps 1 and 3, and what step 2 reads; the products' own. */
typedef struct layout {
    size_t codes[2], scratch, bytes;
} layout;

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at = (begin + bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return begin;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Step i's call, and the type it leaves; `h` is what it adds to, if it adds. */
static fp8_linear_call call_of(const fp8_chain *c, int32_t i, const fp8_tensor *h, fp8_dtype *y) {
    const fp8_chain_step *s = &c->steps[i];

    *y = s->adds || i == c->count - 1 ? FP8_DTYPE_BF16 : FP8_DTYPE_E4M3;
    return (fp8_linear_call){.activation = s->activation, .residual = s->adds ? h : NULL};
}

static layout layout_of(const fp8_chain *c, int64_t tokens) {
    const fp8_tensor h = {.dtype = FP8_DTYPE_BF16};
    size_t codes[2] = {0, 0}, scratch = 0, at = 0;
    layout w;

    for (int32_t i = 0; i < c->count; i++) {
        const fp8_linear *l = c->steps[i].linear;
        fp8_dtype y;
        const fp8_linear_call call = call_of(c, i, &h, &y);
        if (i > 0) codes[i % 2] = larger(codes[i % 2], (size_t)tokens * (size_t)l->in);
        scratch = larger(scratch, fp8_linear_apply_workspace_size(l, tokens, y, &call));
    }
    w.codes[0] = claim(&at, codes[0]);
    w.codes[1] = claim(&at, codes[1]);
    w.scratch = claim(&at, scratch);
    w.bytes = at;
    return w;
}

/* Of so many tokens, one launch's or the steps'. */
static size_t bytes_of(const fp8_chain *c, int64_t tokens) {
    if (fp8_chain_is_one_launch(c, tokens, NULL))
        return (size_t)FP8_CUDA_CALL(chain_launch_workspace(c, tokens));
    return tokens > 0 ? layout_of(c, tokens).bytes : 0;
}

size_t fp8_chain_workspace_size(const fp8_chain *c, int64_t max_tokens) {
    const int64_t most = max_tokens < FP8_CHAIN_MAX_TOKENS ? max_tokens : FP8_CHAIN_MAX_TOKENS;
    return larger(bytes_of(c, most), bytes_of(c, max_tokens));
}

/* ---- running --------------------------------------------------------------------------------- */

static fp8_status check_rows(const fp8_chain *c, const char *name, const fp8_tensor *t,
                             fp8_dtype type, int64_t tokens, int64_t width) {
    char shape[128];

    if (!t) return FP8_FAIL(FP8_EINVAL, "chain: no %s", name);
    if (t->ndim == 2 && t->dtype == type && t->place == fp8_device_place(c->device) &&
        t->shape[0] == tokens && t->shape[1] == width && (t->data || tokens == 0))
        return FP8_OK;
    return FP8_FAIL(FP8_EINVAL, "chain: %s is %s %s%s, expected %s [%lld, %lld] in the place of "
                    "the device", name, fp8_dtype_name(t->dtype),
                    fp8_shape_text(shape, sizeof shape, t->shape, t->ndim),
                    t->data ? "" : " without data", fp8_dtype_name(type), (long long)tokens,
                    (long long)width);
}

static fp8_status check_call(const fp8_chain *c, const fp8_chain_call *call) {
    const fp8_chain_step *last = &c->steps[c->count - 1];
    const int64_t tokens = call->x && call->x->ndim == 2 ? call->x->shape[0] : 0;
    size_t want;
    fp8_status st;

    FP8_TRY(check_rows(c, "x", call->x, FP8_DTYPE_E4M3, tokens, c->steps[0].linear->in));
    for (int32_t i = 0; i < c->count; i++)
        if (c->steps[i].adds)
            FP8_TRY(check_rows(c, "h", call->h, FP8_DTYPE_BF16, tokens, c->steps[i].linear->out));
    if (!last->adds)
        FP8_TRY(check_rows(c, "y", call->y, FP8_DTYPE_BF16, tokens, last->linear->out));
    want = bytes_of(c, tokens);
    if (call->workspace_bytes < want || (want && !call->workspace) ||
        (uintptr_t)call->workspace % ALIGN_BYTES)
        return FP8_FAIL(FP8_EINVAL, "chain: workspace of %zu bytes at %p, expected %zu on %d for "
                        "%lld tokens", call->workspace_bytes, call->workspace, want,
                        (int)ALIGN_BYTES, (long long)tokens);
done:
    return st;
}

/* Codes of norm(h) as `next` reads them. */
static fp8_status run_norm(const fp8_chain *c, const fp8_chain_step *s, const fp8_tensor *h,
                           const fp8_sink *sink) {
    const fp8_norm n = {.kind = s->norm, .eps = s->eps, .dtype = FP8_DTYPE_BF16,
                        .rows = h->shape[0], .cols = h->shape[1], .x = h->data,
                        .weight = s->norm_weight, .bias = s->norm_bias};
    return fp8_produce_norm(c->device, sink, &n, FP8_LAUNCH_OVERLAP);
}

/* Step i of the codes at *x, which are then those of the step behind it. */
static fp8_status run_step(const fp8_chain *c, const fp8_chain_call *call, const layout *at,
                           int32_t i, fp8_tensor *x) {
    const fp8_chain_step *s = &c->steps[i];
    const int last = i == c->count - 1;
    char *const base = call->workspace;
    const float *descale;
    fp8_linear_call linear;
    fp8_status st = FP8_OK;
    fp8_sink own, next = {0};
    fp8_tensor codes, y;
    fp8_dtype type;

    linear = call_of(c, i, call->h, &type);
    FP8_TRY(fp8_linear_sink(s->linear, &own, &linear.x_descale, NULL, NULL));
    if (!last) {
        codes = fp8_tensor_view(base + at->codes[(i + 1) % 2], FP8_DTYPE_E4M3, x->place,
                                x->shape[0], c->steps[i + 1].linear->in);
        FP8_TRY(fp8_linear_sink(c->steps[i + 1].linear, &next, &descale, codes.data, NULL));
    }
    if (type == FP8_DTYPE_E4M3) linear.y_scale = next.scale;
    y = s->adds ? *call->h : last ? *call->y : codes;
    FP8_TRY(fp8_linear_apply(s->linear, &y, x, &linear, base + at->scratch,
                             call->workspace_bytes - at->scratch));
    if (last) goto done;
    if (s->adds) FP8_TRY(run_norm(c, s, call->h, &next));
    *x = codes;
done:
    return st;
}

fp8_status fp8_chain_run(const fp8_chain *c, const fp8_chain_call *call) {
    fp8_status st = FP8_OK;
    fp8_tensor x;
    layout at;

    FP8_TRY(check_call(c, call));
    x = *call->x;
    if (x.shape[0] == 0) goto done;
    if (fp8_chain_is_one_launch(c, x.shape[0], NULL))
        return FP8_CUDA_CALL(chain_launch_run(c, call));
    at = layout_of(c, x.shape[0]);
    for (int32_t i = 0; i < c->count; i++) FP8_TRY(run_step(c, call, &at, i, &x));
done:
    return st;
}
