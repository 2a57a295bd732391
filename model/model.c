/* A model's life: config, weights, scratch. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "model/model_impl.h"

enum { DEFAULT_MAX_TOKENS = 4096 };

fp8_status fp8_buffer_reserve(fp8_device *d, fp8_buffer *b, size_t bytes) {
    fp8_status st = FP8_OK;

    if (bytes <= b->bytes && b->data) return FP8_OK;
    fp8_device_free(d, b->data);
    *b = (fp8_buffer){0};
    FP8_TRY(fp8_device_alloc(d, &b->data, bytes));
    b->bytes = bytes;
done:
    return st;
}

fp8_status fp8_model_own(fp8_model *m, void *memory) {
    if (m->num_owned == m->cap_owned) {
        const int64_t cap = m->cap_owned ? 2 * m->cap_owned : 64;
        void **grown = realloc(m->owned, (size_t)cap * sizeof *grown);
        if (!grown) return FP8_FAIL(FP8_ENOMEM, "list of %lld buffers", (long long)cap);
        m->owned = grown;
        m->cap_owned = cap;
    }
    m->owned[m->num_owned++] = memory;
    return FP8_OK;
}

fp8_status fp8_model_alloc(fp8_model *m, void **out, size_t bytes) {
    fp8_status st = FP8_OK;
    void *memory = NULL;

    *out = NULL;
    FP8_TRY(fp8_device_alloc(m->device, &memory, bytes));
    FP8_TRY(fp8_model_own(m, memory));
    *out = memory;
    memory = NULL;
done:
    fp8_device_free(m->device, memory);
    return st;
}

static fp8_status upload_kv_scales(fp8_model *m, const float descales[3], float *to) {
    float host[FP8_KV_SCALE_FLOATS] = {0};

    for (int i = 0; i < 3; i++) {
        host[2 * i * FP8_SCALE_STEP] = 1.0f / descales[i];
        host[(2 * i + 1) * FP8_SCALE_STEP] = descales[i];
    }
    return fp8_device_upload(m->device, to, host, sizeof host);
}

fp8_status fp8_model_place_kv_scales(fp8_model *m, const float descales[3], float **out) {
    fp8_status st = FP8_OK;
    void *data = NULL;

    FP8_TRY(fp8_model_alloc(m, &data, FP8_KV_SCALE_FLOATS * sizeof(float)));
    FP8_TRY(upload_kv_scales(m, descales, data));
    *out = data;
done:
    return st;
}

fp8_status fp8_model_set_kv_descales(fp8_model *m, int64_t layer, const float descales[3]) {
    float *to = layer >= 0 && layer < m->config.num_layers ? m->layers[layer].kv_scales : NULL;
    fp8_status st = FP8_OK;

    if (!to)
        return FP8_FAIL(FP8_EINVAL, "layer %lld has no FP8 keys and values", (long long)layer);
    FP8_TRY(fp8_device_sync(m->device));
    FP8_TRY(upload_kv_scales(m, descales, to));
done:
    return st;
}

/* ---- load ------------------------------------------------------------------------------------ */

static fp8_status read_config(fp8_model *m, const fp8_checkpoint *c, const char *config_json) {
    fp8_status st = FP8_OK;
    fp8_file file = {0};
    char *beside = NULL;
    const char *path = config_json;

    if (!path) {
        beside = fp8_path_join(fp8_checkpoint_folder(c), "config.json");
        if (!beside) return FP8_FAIL(FP8_ENOMEM, "path of config.json");
        path = beside;
    }
    FP8_TRY(fp8_file_map(&file, path));
    FP8_TRY(fp8_config_parse(&m->config, path, (const char *)file.data, file.bytes));
    FP8_TRY(fp8_quant_config_load(&m->quant, path));
done:
    fp8_file_unmap(&file);
    free(beside);
    return st;
}

static fp8_status choose_ops(fp8_model *m) {
    m->ops = fp8_ops_cpu();
    if (fp8_device_place(m->device) == FP8_PLACE_CPU) return FP8_OK;
    if (m->type != FP8_DTYPE_BF16)
        return FP8_FAIL(FP8_EUNSUPPORTED, "compute in F32 on %s: only the CPU does that",
                        fp8_device_name(m->device));
#if FP8_CUDA
    m->ops = fp8_ops_cuda();
#endif
    return FP8_OK;
}

fp8_status fp8_model_load(fp8_model **out, fp8_device *d, const fp8_checkpoint *c,
                          const fp8_model_options *options) {
    const fp8_model_options o = options ? *options : (fp8_model_options){0};
    fp8_model *m = NULL;
    fp8_status st = FP8_OK;

    *out = NULL;
    if (o.max_tokens < 0 || o.max_tokens > INT32_MAX / 4)
        return FP8_FAIL(FP8_EINVAL, "max_tokens %lld, expected 0 to %d", (long long)o.max_tokens,
                        INT32_MAX / 4);
    m = calloc(1, sizeof *m);
    if (!m) return FP8_FAIL(FP8_ENOMEM, "model");
    m->device = d;
    m->type = o.compute == FP8_COMPUTE_F32 ? FP8_DTYPE_F32 : FP8_DTYPE_BF16;
    m->max_tokens = o.max_tokens ? o.max_tokens : DEFAULT_MAX_TOKENS;
    m->memory_bytes = o.memory_bytes;
    m->weights = o.weights;
    FP8_TRY(choose_ops(m));
    FP8_TRY(read_config(m, c, o.config_json));
    m->family = fp8_family_of(m->config.arch);
    m->embed_multiplier = 1.0f;
    if (m->family->scale_embeddings) { /* the multiplier itself is of the compute type */
        const float root = (float)sqrt((double)m->config.hidden_size);
        m->embed_multiplier = m->type == FP8_DTYPE_BF16 ? fp8_round_bf16(root) : root;
    }
    FP8_TRY(fp8_model_load_weights(m, c));
    FP8_TRY(fp8_model_create_scratch(m));
    *out = m;
    m = NULL;
done:
    fp8_model_destroy(m);
    return st;
}

static void destroy_linears(fp8_layer *l) {
    for (int k = 0; k < FP8_NUM_LINEAR_KINDS; k++) fp8_linear_destroy(l->linears[k]);
    fp8_chain_destroy(l->chain);
    fp8_linear_destroy(l->joined_qkv);
    fp8_linear_destroy(l->joined_up);
}

void fp8_model_destroy(fp8_model *m) {
    if (!m) return;
    fp8_plans_destroy(m);
    for (int64_t i = 0; m->layers && i < m->config.num_layers; i++)
        fp8_mixture_destroy(m, &m->layers[i].mixture);
    for (int64_t i = 0; m->layers && i < m->config.num_layers; i++)
        destroy_linears(&m->layers[i]);
    fp8_layer_store_destroy(m->store);
    for (int64_t i = 0; i < m->num_owned; i++) fp8_device_free(m->device, m->owned[i]);
    fp8_inputs_destroy(m);
    fp8_device_free(m->device, m->rope.memory.data);
    fp8_device_free(m->device, m->rope_local.memory.data);
    fp8_device_free(m->device, m->shared.data);
    fp8_device_free(m->device, m->logits.data);
    fp8_device_free(m->device, m->scores.data);
    fp8_quant_config_free(&m->quant);
    free(m->layers);
    free(m->owned);
    free(m);
}

const fp8_model_config *fp8_model_get_config(const fp8_model *m) { return &m->config; }
const fp8_quant_config *fp8_model_get_quant(const fp8_model *m) { return &m->quant; }
fp8_device *fp8_model_device(const fp8_model *m) { return m->device; }
int64_t fp8_model_layers_tokens(const fp8_model *m) { return m->store ? m->layers_tokens : 0; }
int64_t fp8_model_max_tokens(const fp8_model *m) { return m->max_tokens; }

fp8_compute fp8_model_compute(const fp8_model *m) {
    return m->type == FP8_DTYPE_F32 ? FP8_COMPUTE_F32 : FP8_COMPUTE_BF16;
}
