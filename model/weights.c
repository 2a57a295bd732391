/* Weights from a checkpoint: every tensor the wiring needs is found by name, its shape and dtype
 * checked against the config, and put where the forward wants it. What the wiring does not need
 * (rotary inv_freq, GPT-2's attention masks) is not looked at. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "model/model_impl.h"

/* ---- tensors by name ------------------------------------------------------------------------- */

/* `cols` < 0: a vector. */
static fp8_status find(const fp8_checkpoint *c, const char *name, int64_t rows, int64_t cols,
                       const fp8_st_entry **out) {
    const fp8_st_entry *e = fp8_checkpoint_find(c, name);
    const fp8_tensor want = fp8_tensor_view(NULL, FP8_DTYPE_BF16, FP8_PLACE_CPU, rows, cols);
    char expected[64], found[160];

    if (!e) return FP8_FAIL(FP8_ENOTFOUND, "%s: no tensor '%s'", fp8_checkpoint_path(c), name);
    if (e->tensor.ndim != want.ndim ||
        memcmp(e->tensor.shape, want.shape, (size_t)want.ndim * sizeof *want.shape) != 0)
        return FP8_FAIL(FP8_EFORMAT, "'%s': expected shape %s as config.json says, found %s", name,
                        fp8_shape_text(expected, sizeof expected, want.shape, want.ndim),
                        fp8_shape_text(found, sizeof found, e->tensor.shape, e->tensor.ndim));
    *out = e;
    return FP8_OK;
}

static int is_dense(fp8_dtype t) {
    return t == FP8_DTYPE_BF16 || t == FP8_DTYPE_F16 || t == FP8_DTYPE_F32;
}

static fp8_status check_dense(const fp8_st_entry *e) {
    if (is_dense(e->tensor.dtype)) return FP8_OK;
    return FP8_FAIL(FP8_EFORMAT, "'%s': expected BF16, F16 or F32, found %s", e->name,
                    fp8_dtype_name(e->tensor.dtype));
}

/* One element of a dense tensor that need not be aligned. */
static float element(const fp8_tensor *t, int64_t i) {
    const unsigned char *p = t->data;
    uint16_t half;
    float f;

    if (t->dtype == FP8_DTYPE_F32) {
        memcpy(&f, p + i * 4, sizeof f);
        return f;
    }
    memcpy(&half, p + i * 2, sizeof half);
    return t->dtype == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
}

static int is_aligned(const fp8_tensor *t) {
    return (uintptr_t)t->data % fp8_dtype_size(t->dtype) == 0;
}

/* ---- the source behind an upload ------------------------------------------------------------- */

enum { DROP_BYTES = 4 << 20 };

static fp8_status drop_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const fp8_st_entry *e = ctx;
    const size_t at = (size_t)begin * DROP_BYTES, to = (size_t)end * DROP_BYTES;

    (void)worker;
    fp8_file_drop((const char *)e->tensor.data + at, (to < e->bytes ? to : e->bytes) - at);
    return FP8_OK;
}

/* What the device has leaves this process's memory by all threads: else its end does that with one
 * (17 GB of entered pages: half a second). */
static fp8_status drop_source(const fp8_model *m, const fp8_st_entry *e) {
    const int64_t pieces = (int64_t)((e->bytes + DROP_BYTES - 1) / DROP_BYTES);

    if (fp8_device_place(m->device) == FP8_PLACE_CPU || m->store) return FP8_OK;
    return fp8_parallel_for(fp8_device_pool(m->device), pieces, 1, drop_piece,
                            (void *)(uintptr_t)e);
}

/* ---- dense tensors --------------------------------------------------------------------------- */

/* *out = the tensor in the compute type, in the device's place; on the CPU the mapping itself where
 * it fits. */
static fp8_status load_dense(fp8_model *m, const fp8_checkpoint *c, const char *name, int64_t rows,
                             int64_t cols, fp8_tensor *out) {
    const fp8_place place = fp8_device_place(m->device);
    const fp8_st_entry *e = NULL;
    fp8_status st = FP8_OK;
    void *data = NULL, *host = NULL;
    int64_t n;
    size_t bytes;

    FP8_TRY(find(c, name, rows, cols, &e));
    FP8_TRY(check_dense(e));
    *out = fp8_tensor_view(e->tensor.data, m->type, place, rows, cols);
    n = fp8_tensor_count(out);
    bytes = (size_t)n * fp8_dtype_size(m->type);
    if (e->tensor.dtype == m->type) {
        if (place == FP8_PLACE_CPU && is_aligned(&e->tensor)) goto done;
        FP8_TRY(fp8_model_alloc(m, &data, bytes));
        FP8_TRY(fp8_device_upload(m->device, data, e->tensor.data, bytes));
        FP8_TRY(drop_source(m, e));
    } else {
        host = malloc(bytes ? bytes : 1);
        if (!host) {
            st = FP8_FAIL(FP8_ENOMEM, "'%s': %zu bytes", name, bytes);
            goto done;
        }
        for (int64_t i = 0; i < n; i++) {
            if (m->type == FP8_DTYPE_F32) ((float *)host)[i] = element(&e->tensor, i);
            else ((uint16_t *)host)[i] = fp8_f32_to_bf16(element(&e->tensor, i));
        }
        FP8_TRY(fp8_model_alloc(m, &data, bytes));
        FP8_TRY(fp8_device_upload(m->device, data, host, bytes));
    }
    out->data = data;
done:
    free(host);
    return st;
}

/* Descales of a tensor by its dialect's name: 1, or `channels` of them; *out is allocated. */
static fp8_status load_descales(const fp8_checkpoint *c, const char *pattern, const char *module,
                                int64_t channels, float **out, int64_t *count) {
    char name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(name, sizeof name, pattern, module));
    FP8_TRY(fp8_descales_load(out, count, c, name, channels));
done:
    return st;
}

static fp8_status load_block_descales(const fp8_checkpoint *c, const char *pattern,
                                      const fp8_linear_info *info, float **out, int64_t *count) {
    char name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_dialect_format(name, sizeof name, pattern, info->name));
    FP8_TRY(fp8_block_descales_load(out, count, c, name, info->out, info->in));
done:
    return st;
}

static fp8_status load_descale(const fp8_checkpoint *c, const char *pattern, const char *module,
                               float *out) {
    float *one = NULL;
    int64_t count = 0;
    const fp8_status st = load_descales(c, pattern, module, 1, &one, &count);
    if (st == FP8_OK) *out = one[0];
    free(one);
    return st;
}

/* ---- Linears --------------------------------------------------------------------------------- */

/* A Linear as it lies on disk. */
typedef struct disk_linear {
    const fp8_linear_info *info;
    const fp8_st_entry *entry; /* of the weight */
    fp8_tensor weight, bias; /* bias.data NULL: none */
    float *descales;         /* NULL: dense */
    int64_t num_descales;
    fp8_input_scaling input;
    float input_descale;
} disk_linear;

static int has_bias(const fp8_model_config *c, fp8_linear_kind kind) {
    switch (kind) {
    case FP8_LINEAR_Q:
    case FP8_LINEAR_K:
    case FP8_LINEAR_V:
    case FP8_LINEAR_QKV: return c->qkv_bias;
    case FP8_LINEAR_O: return c->o_bias;
    case FP8_LINEAR_GATE_UP:
    case FP8_LINEAR_GATE:
    case FP8_LINEAR_UP:
    case FP8_LINEAR_DOWN: return c->mlp_bias;
    }
    return 0;
}

static fp8_status read_linear(const fp8_model *m, const fp8_checkpoint *c,
                              const fp8_linear_info *info, disk_linear *out) {
    static const fp8_input_scaling inputs[FP8_NUM_SCHEMES] = {
        [FP8_SCHEME_TENSOR] = FP8_INPUT_STATIC,
        [FP8_SCHEME_DYNAMIC] = FP8_INPUT_DYNAMIC,
        [FP8_SCHEME_TENSOR_DYNAMIC] = FP8_INPUT_DYNAMIC,
        [FP8_SCHEME_BLOCK] = FP8_INPUT_GROUPS,
    };
    const fp8_dialect_row *row = fp8_dialect_get(m->quant.dialect);
    const int quantized = m->quant.scheme != FP8_SCHEME_NONE &&
                          !fp8_quant_config_ignores(&m->quant, info->name);
    const fp8_st_entry *e = NULL;
    char name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    *out = (disk_linear){.info = info, .input = FP8_INPUT_DENSE};
    snprintf(name, sizeof name, "%s.weight", info->name);
    FP8_TRY(info->in_out ? find(c, name, info->in, info->out, &e)
                         : find(c, name, info->out, info->in, &e));
    out->weight = e->tensor;
    out->entry = e;
    if (quantized) {
        if (e->tensor.dtype != FP8_DTYPE_E4M3 && e->tensor.dtype != FP8_DTYPE_E5M2)
            return FP8_FAIL(FP8_EFORMAT, "'%s': expected F8_E4M3 as quantization_config says, "
                            "found %s", name, fp8_dtype_name(e->tensor.dtype));
        if (m->quant.scheme == FP8_SCHEME_MX)
            return FP8_FAIL(FP8_EUNSUPPORTED, "'%s': MXFP8 is not run here; 'fp8calib convert' "
                            "makes it another scheme, or BF16", name);
        out->input = inputs[m->quant.scheme];
        if (out->input == FP8_INPUT_GROUPS && info->in_out)
            return FP8_FAIL(FP8_EUNSUPPORTED, "'%s': dialect %s: weights in blocks are not run "
                            "where they are kept [in, out]", name, row->name);
        if (out->input == FP8_INPUT_GROUPS)
            FP8_TRY(load_block_descales(c, row->weight_descale, info, &out->descales,
                                        &out->num_descales));
        else
            FP8_TRY(load_descales(c, row->weight_descale, info->name, info->out, &out->descales,
                                  &out->num_descales));
        if (out->input == FP8_INPUT_STATIC)
            FP8_TRY(load_descale(c, row->input_descale, info->name, &out->input_descale));
    } else FP8_TRY(check_dense(e));
    if (has_bias(&m->config, info->kind)) {
        snprintf(name, sizeof name, "%s.bias", info->name);
        FP8_TRY(find(c, name, info->out, -1, &e));
        FP8_TRY(check_dense(e));
        out->bias = e->tensor;
    }
done:
    return st;
}

/* Output channels [begin, end) of a weight, packed and aligned: the mapping itself where that is so
 * already, else a copy (*copy, free()). */
static fp8_status slice_weight(const disk_linear *l, int64_t begin, int64_t end, fp8_tensor *out,
                               void **copy) {
    const int64_t rows = l->weight.shape[0], cols = l->weight.shape[1], n = end - begin;
    const size_t size = fp8_dtype_size(l->weight.dtype);
    const int by_column = l->info->in_out && n != cols;
    const unsigned char *from = l->weight.data;

    *out = l->weight;
    if (l->info->in_out) out->shape[1] = n;
    else {
        out->shape[0] = n;
        from += (size_t)(begin * cols) * size;
        out->data = (void *)(uintptr_t)from;
    }
    if (!by_column && is_aligned(out)) return FP8_OK;
    *copy = malloc((size_t)fp8_tensor_count(out) * size);
    if (!*copy) return FP8_FAIL(FP8_ENOMEM, "'%s.weight'", l->info->name);
    if (!by_column) memcpy(*copy, from, (size_t)fp8_tensor_count(out) * size);
    for (int64_t r = 0; by_column && r < rows; r++)
        memcpy((unsigned char *)*copy + (size_t)(r * n) * size,
               from + (size_t)(r * cols + begin) * size, (size_t)n * size);
    out->data = *copy;
    return FP8_OK;
}

/* The same where the weight will lie while its layer is run; [out, in]. */
static void borrow_place(const fp8_model *m, const disk_linear *l, int64_t begin, int64_t end,
                         fp8_tensor *out) {
    const size_t row = (size_t)l->weight.shape[1] * fp8_dtype_size(l->weight.dtype);
    unsigned char *at = fp8_layer_store_find(m->store, l->info->layer, l->entry);

    *out = l->weight;
    out->place = fp8_device_place(m->device);
    out->shape[0] = end - begin;
    out->data = at + (size_t)begin * row;
}

/* A bias or descale list is cut alongside. */
static fp8_status make_linear(fp8_model *m, const disk_linear *l, int64_t begin, int64_t end,
                              fp8_linear **out) {
    const int blocks = l->input == FP8_INPUT_GROUPS;
    const int64_t side = FP8_DIALECT_BLOCK, across = (l->info->in + side - 1) / side;
    const int64_t first = blocks ? begin / side * across : begin; /* of many descales */
    const int64_t count = blocks ? (end - begin + side - 1) / side * across : end - begin;
    void *weight_copy = NULL, *bias_copy = NULL, *values = NULL;
    fp8_linear *made = NULL;
    fp8_status st = FP8_OK;
    fp8_linear_spec spec = {
        .name = l->info->name,
        .in = l->info->in,
        .out = end - begin,
        .layout = l->info->in_out ? FP8_WEIGHT_IN_OUT : FP8_WEIGHT_OUT_IN,
        .weight_scaling = blocks ? FP8_WEIGHT_BLOCKS : FP8_WEIGHT_AS_GIVEN,
        .weight_descale = l->num_descales > 1 ? l->descales + first : l->descales,
        .num_weight_descales = l->num_descales > 1 ? count : l->num_descales,
        .input = l->input,
        .input_descale = l->input_descale,
        .bias = l->bias,
        .compute = m->type,
    };

    if (blocks && (begin % side || (end % side && end < l->info->out)))
        return FP8_FAIL(FP8_EUNSUPPORTED, "'%s': rows %lld to %lld are a part of their own, but "
                        "its scales are of blocks of %d rows", l->info->name, (long long)begin,
                        (long long)end, FP8_DIALECT_BLOCK);
    if (m->store) {
        borrow_place(m, l, begin, end, &spec.weight);
        spec.borrow_weight = 1;
    } else {
        FP8_TRY(slice_weight(l, begin, end, &spec.weight, &weight_copy));
        spec.borrow_weight = !weight_copy && fp8_device_place(m->device) == FP8_PLACE_CPU;
    }
    if (l->bias.data) {
        const size_t size = fp8_dtype_size(l->bias.dtype), bytes = (size_t)(end - begin) * size;
        spec.bias.shape[0] = end - begin;
        bias_copy = malloc(bytes);
        if (!bias_copy) {
            st = FP8_FAIL(FP8_ENOMEM, "'%s.bias'", l->info->name);
            goto done;
        }
        memcpy(bias_copy, (const char *)l->bias.data + (size_t)begin * size, bytes);
        spec.bias.data = bias_copy;
    }
    FP8_TRY(fp8_model_reform(m, &spec, &values));
    FP8_TRY(fp8_linear_create(&made, m->device, &spec));
    fp8_linear_destroy(*out);
    *out = made;
    if (m->weights == FP8_FORM_CAST) {
        FP8_TRY(fp8_model_own(m, values));
        m->layers[l->info->layer].values[out - m->layers[l->info->layer].linears] = values;
        values = NULL;
    }
done:
    fp8_device_free(m->device, values);
    free(weight_copy);
    free(bias_copy);
    return st;
}

/* Where the wiring looks for it, in place of what is there; fused ones are taken apart, so that the
 * wiring knows one form only. */
static fp8_status place_linear(fp8_model *m, const disk_linear *l) {
    const fp8_linear_info *info = l->info;
    const int64_t q = m->config.num_heads * m->config.head_dim;
    const int64_t kv = m->config.num_kv_heads * m->config.head_dim;
    fp8_layer *layer = &m->layers[info->layer];
    fp8_linear **linears = layer->linears;
    fp8_status st = FP8_OK;

    if (info->expert != FP8_NO_EXPERT) {
        const int64_t at = info->expert == FP8_SHARED_EXPERT ? m->config.num_experts : info->expert;
        FP8_TRY(make_linear(m, l, 0, info->out,
                            &layer->mixture.experts[at][info->kind - FP8_LINEAR_GATE]));
    } else if (info->kind == FP8_LINEAR_GATE_UP) {
        FP8_TRY(make_linear(m, l, 0, info->out / 2, &linears[FP8_LINEAR_GATE]));
        FP8_TRY(make_linear(m, l, info->out / 2, info->out, &linears[FP8_LINEAR_UP]));
    } else if (info->kind != FP8_LINEAR_QKV) {
        FP8_TRY(make_linear(m, l, 0, info->out, &linears[info->kind]));
    } else {
        FP8_TRY(make_linear(m, l, 0, q, &linears[FP8_LINEAR_Q]));
        FP8_TRY(make_linear(m, l, q, q + kv, &linears[FP8_LINEAR_K]));
        FP8_TRY(make_linear(m, l, q + kv, q + 2 * kv, &linears[FP8_LINEAR_V]));
    }
done:
    return st;
}

static fp8_status load_linear(fp8_model *m, const fp8_checkpoint *c, const fp8_linear_info *info) {
    fp8_status st = FP8_OK;
    disk_linear l = {0};

    FP8_TRY(read_linear(m, c, info, &l));
    FP8_TRY(place_linear(m, &l));
    FP8_TRY(drop_source(m, l.entry));
done:
    free(l.descales);
    return st;
}

fp8_status fp8_model_set_codes(fp8_model *m, const fp8_checkpoint *c, const fp8_linear_info *info,
                               const uint8_t *codes, const float *descales,
                               float input_descale) {
    fp8_status st = FP8_OK;
    disk_linear l = {0};

    FP8_TRY(read_linear(m, c, info, &l));
    if (input_descale > 0) l.input_descale = input_descale;
    if (l.input == FP8_INPUT_DENSE) {
        st = FP8_FAIL(FP8_EINVAL, "'%s.weight' is not quantized: it has no codes", info->name);
        goto done;
    }
    if (m->store) FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "'%s': a model in memory for two layers keeps "
                                   "its codes", info->name));
    FP8_TRY(fp8_device_sync(m->device)); /* a forward may be under way with the old ones */
    l.weight.data = (void *)(uintptr_t)codes;
    memcpy(l.descales, descales, (size_t)l.num_descales * sizeof *descales);
    FP8_TRY(place_linear(m, &l));
    FP8_TRY(drop_source(m, l.entry));
done:
    free(l.descales);
    return st;
}

static void exchange(fp8_linear **a, fp8_linear **b) {
    fp8_linear *t = *a;
    *a = *b;
    *b = t;
}

fp8_status fp8_model_exchange_linears(fp8_model *a, fp8_model *b, int64_t layer,
                                      fp8_point point) {
    const fp8_linear_kind firsts[] = {FP8_LINEAR_Q, FP8_LINEAR_O, FP8_LINEAR_GATE, FP8_LINEAR_DOWN};
    const fp8_linear_kind lasts[] = {FP8_LINEAR_V, FP8_LINEAR_O, FP8_LINEAR_UP, FP8_LINEAR_DOWN};
    const int at = point == FP8_POINT_QKV_INPUT ? 0 : point == FP8_POINT_O_INPUT ? 1
                   : point == FP8_POINT_UP_INPUT ? 2 : point == FP8_POINT_DOWN_INPUT ? 3 : -1;
    const int64_t experts = a->config.num_experts + (a->config.shared_size > 0);
    fp8_layer *x, *y;
    fp8_status st = FP8_OK;

    if (a->device != b->device || layer < 0 || layer >= a->config.num_layers ||
        a->config.num_layers != b->config.num_layers || at < 0)
        return FP8_FAIL(FP8_EINVAL, "no Linears of layer %lld to exchange", (long long)layer);
    if (a->store || b->store)
        return FP8_FAIL(FP8_EUNSUPPORTED, "a model in memory for two layers keeps its Linears");
    FP8_TRY(fp8_device_sync(a->device));
    x = &a->layers[layer];
    y = &b->layers[layer];
    for (int k = (int)firsts[at]; k <= (int)lasts[at]; k++) {
        exchange(&x->linears[k], &y->linears[k]);
        for (int64_t e = 0; x->mixture.experts && k >= FP8_LINEAR_GATE && e < experts; e++)
            exchange(&x->mixture.experts[e][k - FP8_LINEAR_GATE],
                     &y->mixture.experts[e][k - FP8_LINEAR_GATE]);
    }
    fp8_layer_share_inputs(x);
    fp8_layer_share_inputs(y);
done:
    return st;
}

const void *fp8_model_weight(const fp8_model *m, const fp8_linear_info *info,
                             const fp8_st_entry *entry) {
    const fp8_linear *l = m->layers[info->layer].linears[info->kind];

    if (info->expert != FP8_NO_EXPERT || info->in_out || !l || m->store) return NULL;
    return fp8_linear_dense_weight(l, entry->tensor.dtype);
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* NAME.weight and, for a LayerNorm, NAME.bias. */
static fp8_status load_norm(fp8_model *m, const fp8_checkpoint *c, const char *module, int64_t size,
                            fp8_tensor *weight, fp8_tensor *bias) {
    char name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    snprintf(name, sizeof name, "%s.weight", module);
    FP8_TRY(load_dense(m, c, name, size, -1, weight));
    if (bias && m->family->norm == FP8_NORM_LAYER) {
        snprintf(name, sizeof name, "%s.bias", module);
        FP8_TRY(load_dense(m, c, name, size, -1, bias));
    }
done:
    return st;
}

/* scale and descale of Q, K and V; Q's are 1 where Q stays as it is. */
static fp8_status load_kv_scales(fp8_model *m, const fp8_checkpoint *c, const char *module,
                                 float **out) {
    const fp8_dialect_row *row = fp8_dialect_get(m->quant.dialect);
    float descales[3] = {1.0f, 1.0f, 1.0f};
    fp8_status st = FP8_OK;

    if (m->quant.kv_per_head)
        return FP8_FAIL(FP8_EUNSUPPORTED, "%s: dialect %s: KV scales by head are not run here; "
                        "'fp8calib convert --kv-scales tensor' makes them one a layer", module,
                        row->name);
    if (m->quant.attention != FP8_ATTENTION_NONE)
        FP8_TRY(load_descale(c, row->q_descale, module, &descales[0]));
    FP8_TRY(load_descale(c, row->k_descale, module, &descales[1]));
    FP8_TRY(load_descale(c, row->v_descale, module, &descales[2]));
    FP8_TRY(fp8_model_place_kv_scales(m, descales, out));
done:
    return st;
}

/* Router, gate of the shared expert, and room for the experts, who come with the other Linears. */
static fp8_status load_mixture(fp8_model *m, const fp8_checkpoint *c, const char *prefix,
                               int64_t index) {
    const fp8_family *f = m->family;
    const int64_t hidden = m->config.hidden_size, count = m->config.num_experts;
    fp8_mixture *x = &m->layers[index].mixture;
    char module[FP8_NAME_BYTES], name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    x->experts = calloc((size_t)count + 1, sizeof *x->experts);
    x->tokens = calloc((size_t)count, sizeof *x->tokens);
    if (!x->experts || !x->tokens)
        return FP8_FAIL(FP8_ENOMEM, "%lld experts", (long long)count);
    fp8_family_layer_name(module, f, prefix, index, f->router);
    snprintf(name, sizeof name, "%s.weight", module);
    FP8_TRY(load_dense(m, c, name, count, hidden, &x->router));
    if (m->config.shared_size > 0) {
        fp8_family_layer_name(module, f, prefix, index, f->shared_gate);
        snprintf(name, sizeof name, "%s.weight", module);
        FP8_TRY(load_dense(m, c, name, 1, hidden, &x->shared_gate));
    }
done:
    return st;
}

static fp8_status load_layer(fp8_model *m, const fp8_checkpoint *c, const char *prefix,
                             int64_t index) {
    const fp8_family *f = m->family;
    const fp8_model_config *config = &m->config;
    fp8_layer *layer = &m->layers[index];
    char module[FP8_NAME_BYTES];
    fp8_status st = FP8_OK;

    fp8_family_layer_name(module, f, prefix, index, f->norm1);
    FP8_TRY(load_norm(m, c, module, config->hidden_size, &layer->norm1, &layer->norm1_bias));
    fp8_family_layer_name(module, f, prefix, index, f->norm2);
    FP8_TRY(load_norm(m, c, module, config->hidden_size, &layer->norm2, &layer->norm2_bias));
    if (config->layer_is_mixed[index]) FP8_TRY(load_mixture(m, c, prefix, index));
    if (f->norm1_after) {
        fp8_family_layer_name(module, f, prefix, index, f->norm1_after);
        FP8_TRY(load_norm(m, c, module, config->hidden_size, &layer->norm1_after, NULL));
        fp8_family_layer_name(module, f, prefix, index, f->norm2_after);
        FP8_TRY(load_norm(m, c, module, config->hidden_size, &layer->norm2_after, NULL));
    }
    if (config->qk_norm && f->q_norm) {
        fp8_family_layer_name(module, f, prefix, index, f->q_norm);
        FP8_TRY(load_norm(m, c, module, config->head_dim, &layer->q_norm, NULL));
        fp8_family_layer_name(module, f, prefix, index, f->k_norm);
        FP8_TRY(load_norm(m, c, module, config->head_dim, &layer->k_norm, NULL));
    }
    if (m->quant.kv_fp8) {
        fp8_family_layer_name(module, f, prefix, index, f->attention);
        FP8_TRY(load_kv_scales(m, c, module, &layer->kv_scales));
    }
done:
    return st;
}

/* 1 when the Linears may take one quantized input: all dynamic, or all static with one descale. */
static int shares_input(fp8_linear *const *linears, int first, int last) {
    const fp8_linear *one = NULL;
    for (int k = first; k <= last; k++) {
        const fp8_linear *l = linears[k];
        if (!l) continue;
        if (!one) one = l;
        if (fp8_linear_input_scaling(l) != fp8_linear_input_scaling(one)) return 0;
        if (fp8_linear_input_scaling(l) == FP8_INPUT_STATIC &&
            fp8_linear_input_descale(l) != fp8_linear_input_descale(one))
            return 0;
    }
    return one && fp8_linear_input_scaling(one) != FP8_INPUT_DENSE;
}

void fp8_layer_share_inputs(fp8_layer *layer) {
    layer->share_qkv = shares_input(layer->linears, FP8_LINEAR_Q, FP8_LINEAR_V);
    layer->share_up = shares_input(layer->linears, FP8_LINEAR_GATE, FP8_LINEAR_UP);
}

/* How attention and format are written down: in our metadata; a checkpoint of another tool that has
 * query scales asks for FP8 attention by them. */
static fp8_status read_attention_mode(fp8_model *m, const fp8_checkpoint *c, const char *prefix) {
    const char *mode = fp8_checkpoint_metadata(c, "fp8calib.attention");
    const char *format = fp8_checkpoint_metadata(c, "fp8calib.format");
    char module[FP8_NAME_BYTES], name[FP8_NAME_BYTES + 32];
    fp8_status st = FP8_OK;

    if (format && fp8_fp8_format_parse(&m->quant.format, format) != FP8_OK)
        return FP8_FAIL(FP8_EFORMAT, "%s: metadata fp8calib.format: '%s' is unknown",
                        fp8_checkpoint_path(c), format);
    if (mode && fp8_attention_mode_parse(&m->quant.attention, mode) != FP8_OK)
        return FP8_FAIL(FP8_EFORMAT, "%s: metadata fp8calib.attention: '%s' is unknown",
                        fp8_checkpoint_path(c), mode);
    if (!mode && m->quant.kv_fp8 && fp8_dialect_get(m->quant.dialect)->q_descale) {
        fp8_family_layer_name(module, m->family, prefix, 0, m->family->attention);
        FP8_TRY(fp8_dialect_format(name, sizeof name,
                                   fp8_dialect_get(m->quant.dialect)->q_descale, module));
        if (fp8_checkpoint_find(c, name)) m->quant.attention = FP8_ATTENTION_DPA;
    }
    if (m->quant.attention != FP8_ATTENTION_NONE && !m->quant.kv_fp8)
        return FP8_FAIL(FP8_EFORMAT, "%s: attention '%s' needs the k and v scales of a "
                        "kv_cache_scheme, found none", fp8_checkpoint_path(c),
                        fp8_attention_mode_name(m->quant.attention));
done:
    return st;
}

static fp8_status load_ends(fp8_model *m, const fp8_checkpoint *c, const char *prefix) {
    const fp8_family *f = m->family;
    const int64_t hidden = m->config.hidden_size, vocab = m->config.vocab_size;
    char name[FP8_NAME_BYTES];
    fp8_status st = FP8_OK;

    snprintf(name, sizeof name, "%s%s.weight", prefix, f->embed);
    FP8_TRY(load_dense(m, c, name, vocab, hidden, &m->embed));
    if (f->positions) {
        snprintf(name, sizeof name, "%s%s.weight", prefix, f->positions);
        FP8_TRY(load_dense(m, c, name, m->config.max_position + f->position_offset, hidden,
                           &m->positions));
        m->positions.data = (char *)m->positions.data +
                            (size_t)(f->position_offset * hidden) * fp8_dtype_size(m->type);
        m->positions.shape[0] = m->config.max_position;
    }
    snprintf(name, sizeof name, "%s%s", prefix, f->final_norm);
    FP8_TRY(load_norm(m, c, name, hidden, &m->final_norm, &m->final_norm_bias));
    /* Tied means tied: transformers uses the embedding even where a lm_head.weight lies beside
     * it. */
    m->lm_head = m->embed;
    if (!m->config.tie_embeddings) {
        snprintf(name, sizeof name, "%s.weight", fp8_family_lm_head(prefix));
        FP8_TRY(load_dense(m, c, name, vocab, hidden, &m->lm_head));
    }
done:
    return st;
}

fp8_status fp8_model_load_weights(fp8_model *m, const fp8_checkpoint *c) {
    const char *prefix = fp8_family_prefix(m->family, c);
    fp8_linear_info *linears = NULL;
    fp8_status st = FP8_OK;
    int64_t count = 0;

    m->layers = calloc((size_t)m->config.num_layers, sizeof *m->layers);
    if (!m->layers)
        return FP8_FAIL(FP8_ENOMEM, "%lld layers", (long long)m->config.num_layers);
    FP8_TRY(read_attention_mode(m, c, prefix));
    FP8_TRY(load_ends(m, c, prefix));
    for (int64_t i = 0; i < m->config.num_layers; i++) FP8_TRY(load_layer(m, c, prefix, i));
    FP8_TRY(fp8_model_list_linears(&linears, &count, &m->config, c));
    FP8_TRY(fp8_model_fit_memory(m, c, prefix, linears, count));
    for (int64_t i = 0; i < count; i++) FP8_TRY(load_linear(m, c, &linears[i]));
    for (int64_t i = 0; i < m->config.num_layers; i++) fp8_layer_share_inputs(&m->layers[i]);
done:
    free(linears);
    return st;
}
