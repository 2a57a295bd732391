/* Weights in another form than the checkpoint has them: codes as the values they stand for, values
 * as codes. */
#include "model/model_impl.h"

/* `bytes` of a host array in the place of the device; *out NULL: nothing was given. */
static fp8_status place(fp8_device *d, void **out, const void *from, size_t bytes) {
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!bytes) return FP8_OK;
    FP8_TRY(fp8_device_alloc(d, out, bytes));
    FP8_TRY(fp8_device_upload(d, *out, from, bytes));
done:
    return st;
}

static fp8_status dequantize(fp8_device *d, void *values, fp8_dtype type, const uint8_t *codes,
                             const float *descales, const fp8_linear_spec *s) {
    const fp8_tensor *w = &s->weight;
    const int32_t axis = s->layout == FP8_WEIGHT_IN_OUT;

    if (s->num_weight_descales > 1)
        return fp8_dequantize_groups(d, values, type, codes, w->dtype, descales, w->shape[0],
                                     w->shape[1], axis);
    return fp8_dequantize(d, values, type, codes, w->dtype, fp8_tensor_count(w), descales);
}

fp8_status fp8_model_values(fp8_model *m, void **values, const fp8_linear_spec *s, int scaled) {
    const size_t count = (size_t)fp8_tensor_count(&s->weight);
    void *codes = NULL, *descales = NULL;
    fp8_status st = FP8_OK;

    *values = NULL;
    FP8_TRY(place(m->device, &codes, s->weight.data, count));
    FP8_TRY(place(m->device, &descales, s->weight_descale,
                  (size_t)s->num_weight_descales * sizeof(float)));
    FP8_TRY(fp8_device_alloc(m->device, values, count * fp8_dtype_size(m->type)));
    if (scaled) FP8_TRY(dequantize(m->device, *values, m->type, codes, descales, s));
    else
        FP8_TRY(fp8_dequantize(m->device, *values, m->type, codes, s->weight.dtype, (int64_t)count,
                               NULL));
    FP8_TRY(fp8_device_sync(m->device));
done:
    fp8_device_free(m->device, codes);
    fp8_device_free(m->device, descales);
    if (st != FP8_OK) {
        fp8_device_free(m->device, *values);
        *values = NULL;
    }
    return st;
}

/* NULL, or why the checkpoint's weights cannot take the form. */
static const char *refuse(const fp8_model *m, const fp8_linear_spec *s) {
    const int codes = s->weight.dtype == FP8_DTYPE_E4M3 || s->weight.dtype == FP8_DTYPE_E5M2;

    if (m->weights == FP8_FORM_QUANTIZED)
        return codes || s->layout == FP8_WEIGHT_OUT_IN ? NULL : "weights [in, out]";
    if (m->weights == FP8_FORM_CAST && m->config.num_experts) return "experts";
    if (!codes) return m->weights == FP8_FORM_CAST ? "no scales to cast them by" : NULL;
    if (s->weight_scaling == FP8_WEIGHT_BLOCKS) return "scales of 128 x 128 blocks";
    return s->layout == FP8_WEIGHT_IN_OUT && fp8_device_place(m->device) == FP8_PLACE_CUDA
               ? "weights [in, out] on CUDA" : NULL;
}

fp8_status fp8_model_reform(fp8_model *m, fp8_linear_spec *s, void **values) {
    const int codes = s->input != FP8_INPUT_DENSE;
    const char *why = m->weights == FP8_FORM_AS_STORED ? NULL : refuse(m, s);
    fp8_status st = FP8_OK;

    *values = NULL;
    if (m->weights != FP8_FORM_AS_STORED && m->store) why = "a model in memory for two layers";
    if (why) return FP8_FAIL(FP8_EUNSUPPORTED, "'%s': weights in another form: %s", s->name, why);
    if (m->weights == FP8_FORM_QUANTIZED && !codes) {
        s->weight_scaling = FP8_WEIGHT_CHANNEL;
        s->input = FP8_INPUT_DYNAMIC;
        s->borrow_weight = 0;
    }
    if (m->weights == FP8_FORM_CAST) {
        s->borrow_weight = 0; /* the codes are written */
        return fp8_model_values(m, values, s, 0);
    }
    if (m->weights != FP8_FORM_VALUES || !codes) return FP8_OK;
    FP8_TRY(fp8_model_values(m, values, s, 1));
    s->weight = fp8_tensor_view(*values, m->type, fp8_device_place(m->device), s->weight.shape[0],
                                s->weight.shape[1]);
    s->weight_descale = NULL;
    s->num_weight_descales = 0;
    s->input = FP8_INPUT_DENSE;
    s->borrow_weight = 0;
done:
    return st;
}
