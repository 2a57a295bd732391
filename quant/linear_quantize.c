/* Weights into FP8 when a Linear is made, in the place of the device: amax, scales by the rule of
 * recipe.h, codes. Not for the hot path: blocks are observed and cast one by one. */
#include "quant/delayed.h"
#include "quant/linear_impl.h"
#include "quant/produce.h"

/* Amax, scales and what fp8_delayed_update needs for `count` parts of a weight. */
typedef struct weight_scales {
    fp8_amax_slot *slots;
    float *history, *scale;
    int64_t *steps;
} weight_scales;

static fp8_status make_ones(fp8_device *d, float **out, int64_t count) {
    const float one = 1;
    void *p = NULL;
    fp8_status st;

    FP8_TRY(fp8_device_alloc(d, &p, (size_t)count * sizeof one));
    *out = p;
    FP8_TRY(fp8_device_upload(d, p, &one, sizeof one));
    for (int64_t have = 1; have < count; have *= 2)
        FP8_TRY(fp8_device_copy(d, *out + have, p, (size_t)(count - have < have ? count - have
                                                                                : have) *
                                                       sizeof one));
done:
    return st;
}

static fp8_status make_zeros(fp8_device *d, void **out, size_t bytes) {
    fp8_status st;
    FP8_TRY(fp8_device_alloc(d, out, bytes));
    FP8_TRY(fp8_device_fill(d, *out, 0, bytes));
done:
    return st;
}

static fp8_status make_scales(fp8_device *d, weight_scales *s, float **descale, int64_t count) {
    const size_t n = (size_t)count;
    void *slots = NULL, *history = NULL, *steps = NULL;
    fp8_status st;

    st = make_zeros(d, &slots, n * sizeof *s->slots);
    s->slots = slots;
    FP8_TRY(st);
    st = make_zeros(d, &history, n * sizeof *s->history);
    s->history = history;
    FP8_TRY(st);
    st = make_zeros(d, &steps, n * sizeof *s->steps);
    s->steps = steps;
    FP8_TRY(st);
    FP8_TRY(make_ones(d, &s->scale, count));
    FP8_TRY(make_ones(d, descale, count));
done:
    return st;
}

/* The part of a weight [out, in] with index i: all of it, or a block. */
typedef struct weight_part {
    int64_t at, rows, cols; /* at: its first element */
} weight_part;

static weight_part part_at(int64_t out, int64_t in, int64_t count, int64_t ld, int64_t i) {
    const int64_t row = i / ld * FP8_GEMM_BLOCK, col = i % ld * FP8_GEMM_BLOCK;
    weight_part p = {0, out, in};

    if (count == 1) return p;
    p.at = row * in + col;
    p.rows = out - row < FP8_GEMM_BLOCK ? out - row : FP8_GEMM_BLOCK;
    p.cols = in - col < FP8_GEMM_BLOCK ? in - col : FP8_GEMM_BLOCK;
    return p;
}

/* Parts [count], or blocks with ld of them a row of blocks, of which some may lie past `in`. */
static fp8_status quantize_parts(fp8_device *d, uint8_t *codes, float **descale, const char *w,
                                 fp8_dtype dtype, int64_t out, int64_t in, int64_t count,
                                 int64_t ld) {
    const fp8_recipe recipe = {FP8_AMAX_MOST_RECENT, 0, 1};
    const int64_t size = (int64_t)fp8_dtype_size(dtype);
    weight_scales s = {0};
    fp8_delayed state;
    fp8_status st;

    FP8_TRY(make_scales(d, &s, descale, count));
    for (int64_t i = 0; i < count; i++) {
        const weight_part p = part_at(out, in, count, ld, i);
        if (p.cols > 0) FP8_TRY(fp8_observe(d, &s.slots[i], w + p.at * size, dtype, p.rows, p.cols,
                                            in, NULL));
    }
    state = (fp8_delayed){count, 1, s.slots, s.history, s.steps, s.scale, *descale};
    FP8_TRY(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED));
    for (int64_t i = 0; i < count; i++) {
        const weight_part p = part_at(out, in, count, ld, i);
        const fp8_sink sink = {.codes = codes + p.at, .codes_stride = in, .code = FP8_DTYPE_E4M3,
                               .scale = s.scale + i};
        if (p.cols > 0) FP8_TRY(fp8_produce_cast(d, &sink, w + p.at * size, dtype, p.rows, p.cols,
                                                 in, FP8_LAUNCH_ORDERED));
    }
done:
    fp8_device_free(d, s.slots);
    fp8_device_free(d, s.history);
    fp8_device_free(d, s.steps);
    fp8_device_free(d, s.scale);
    return st;
}

fp8_status fp8_linear_quantize_weight(fp8_device *d, void **codes, float **descale,
                                      const void *weight, fp8_dtype dtype, int64_t out, int64_t in,
                                      fp8_weight_scaling scaling) {
    const int64_t ld = fp8_up_to_4(fp8_blocks_of(in));
    const int blocks = scaling == FP8_WEIGHT_BLOCKS;
    void *p = NULL;
    fp8_status st;

    *codes = NULL;
    *descale = NULL;
    FP8_TRY(fp8_device_alloc(d, codes, (size_t)(out * in)));
    if (scaling == FP8_WEIGHT_CHANNEL) {
        FP8_TRY(fp8_device_alloc(d, &p, (size_t)out * sizeof **descale));
        *descale = p;
        FP8_TRY(fp8_quantize_groups(d, *codes, FP8_DTYPE_E4M3, *descale, weight, dtype, out, in,
                                    0));
    } else
        FP8_TRY(quantize_parts(d, *codes, descale, weight, dtype, out, in,
                               blocks ? fp8_blocks_of(out) * ld : 1, ld));
    FP8_TRY(fp8_device_sync(d));
done:
    return st;
}

fp8_status fp8_linear_recast(const fp8_linear *l, const void *values, fp8_dtype dtype) {
    if (l->weight_dtype != FP8_DTYPE_E4M3 && l->weight_dtype != FP8_DTYPE_E5M2)
        return FP8_FAIL(FP8_EINVAL, "%s: weights of %s, expected codes", l->name,
                        fp8_dtype_name(l->weight_dtype));
    return fp8_quantize(l->device, l->weight, l->weight_dtype, values, dtype, l->out * l->in, NULL);
}
