/* One Linear of several that share their input: their outputs side by side. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/linear_impl.h"

static size_t weight_bytes(const fp8_linear *l) {
    return (size_t)(l->out * l->in) * fp8_dtype_size(l->weight_dtype);
}

static size_t bias_bytes(const fp8_linear *l) {
    return (size_t)l->out * fp8_dtype_size(l->bias_dtype);
}

static fp8_status check_pair(const fp8_linear *a, const fp8_linear *b) {
    if (a->device != b->device || a->in != b->in || a->compute != b->compute ||
        a->operand != b->operand || a->weight_dtype != b->weight_dtype)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s and %s: inputs or types differ", a->name, b->name);
    if (a->input != b->input ||
        (a->input == FP8_INPUT_STATIC && a->input_descale != b->input_descale))
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s and %s: scales of their inputs differ", a->name,
                        b->name);
    if (a->weight_is_kn || b->weight_is_kn || a->in_blocks || b->in_blocks ||
        a->input == FP8_INPUT_DELAYED)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: weights [in, out] or in blocks, or delayed scaling",
                        b->name);
    if (!a->bias != !b->bias || (a->bias && a->bias_dtype != b->bias_dtype))
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s and %s: biases differ in kind", a->name, b->name);
    if ((a->num_weight_descales > 1) != (b->num_weight_descales > 1) ||
        !a->weight_descale != !b->weight_descale)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s and %s: scales of their weights differ in kind",
                        a->name, b->name);
    return FP8_OK;
}

/* One descale for all serves only where it is the same. */
static fp8_status check_descale(const fp8_linear *a, const fp8_linear *b) {
    fp8_status st = FP8_OK;
    float x, y;

    if (!a->weight_descale || a->num_weight_descales > 1) return FP8_OK;
    FP8_TRY(fp8_device_download(a->device, &x, a->weight_descale, sizeof x));
    FP8_TRY(fp8_device_download(a->device, &y, b->weight_descale, sizeof y));
    if (x != y)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s and %s: weight descales %g and %g", a->name, b->name,
                        (double)x, (double)y);
done:
    return st;
}

/* Copies of what the parts have, one after the other; *out NULL where they have nothing. */
static fp8_status gather(void **out, fp8_device *d, void *const *from, const size_t *bytes,
                         int32_t count) {
    fp8_status st = FP8_OK;
    size_t all = 0, at = 0;

    *out = NULL;
    if (!from[0]) return FP8_OK;
    for (int32_t i = 0; i < count; i++) all += bytes[i];
    FP8_TRY(fp8_device_alloc(d, out, all));
    for (int32_t i = 0; i < count; at += bytes[i++])
        FP8_TRY(fp8_device_copy(d, (char *)*out + at, from[i], bytes[i]));
done:
    return st;
}

static fp8_status gather_all(fp8_linear *made, fp8_linear *const *parts, int32_t count) {
    const int by_output = parts[0]->num_weight_descales > 1;
    void *weights[FP8_LINEAR_MAX_JOINED], *biases[FP8_LINEAR_MAX_JOINED];
    void *descales[FP8_LINEAR_MAX_JOINED];
    size_t wb[FP8_LINEAR_MAX_JOINED], bb[FP8_LINEAR_MAX_JOINED], db[FP8_LINEAR_MAX_JOINED];
    fp8_status st = FP8_OK;
    void *descale = NULL;

    for (int32_t i = 0; i < count; i++) {
        weights[i] = parts[i]->weight;
        biases[i] = parts[i]->bias;
        descales[i] = parts[i]->weight_descale;
        wb[i] = weight_bytes(parts[i]);
        bb[i] = bias_bytes(parts[i]);
        db[i] = (size_t)parts[i]->num_weight_descales * sizeof(float);
    }
    FP8_TRY(gather(&made->weight, made->device, weights, wb, count));
    FP8_TRY(gather(&made->bias, made->device, biases, bb, count));
    FP8_TRY(gather(&descale, made->device, descales, db, by_output ? count : 1));
    made->weight_descale = descale;
done:
    return st;
}

/* The input's scale is the first part's, in memory of its own. */
static fp8_status copy_pair(fp8_linear *made, const fp8_linear *part) {
    const size_t bytes = 2 * FP8_PAIR_STEP * sizeof(float);
    fp8_status st = FP8_OK;
    void *pair = NULL;

    made->input_pair = NULL;
    if (!part->input_pair) return FP8_OK;
    FP8_TRY(fp8_device_alloc(made->device, &pair, bytes));
    made->input_pair = pair;
    FP8_TRY(fp8_device_copy(made->device, pair, part->input_pair,
                            (FP8_PAIR_STEP + 1) * sizeof(float)));
done:
    return st;
}

fp8_status fp8_linear_join(fp8_linear **out, fp8_linear *const *parts, int32_t count) {
    fp8_linear *made = NULL;
    fp8_status st = FP8_OK;
    size_t at = 0;

    *out = NULL;
    if (count < 1 || count > FP8_LINEAR_MAX_JOINED)
        return FP8_FAIL(FP8_EINVAL, "%d Linears to join, expected 1 to %d", count,
                        (int)FP8_LINEAR_MAX_JOINED);
    for (int32_t i = 1; i < count; i++) {
        FP8_TRY(check_pair(parts[0], parts[i]));
        FP8_TRY(check_descale(parts[0], parts[i]));
    }
    made = malloc(sizeof *made);
    if (!made) return FP8_FAIL(FP8_ENOMEM, "%s, joined", parts[0]->name);
    *made = *parts[0];
    made->weight = made->bias = NULL;
    made->weight_descale = NULL;
    made->borrowed = 0;
    FP8_TRY(copy_pair(made, parts[0]));
    for (int32_t i = 1; i < count; i++) {
        made->out += parts[i]->out;
        if (parts[0]->num_weight_descales > 1)
            made->num_weight_descales += parts[i]->num_weight_descales;
    }
    FP8_TRY(gather_all(made, parts, count));
    FP8_TRY(fp8_device_sync(made->device));
    for (int32_t i = 0; i < count; at += weight_bytes(parts[i++])) {
        if (!parts[i]->borrowed) fp8_device_free(made->device, parts[i]->weight);
        parts[i]->weight = (char *)made->weight + at;
        parts[i]->borrowed = 1;
    }
    *out = made;
    made = NULL;
done:
    fp8_linear_destroy(made);
    return st;
}
