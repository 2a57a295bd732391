/* Which weights stay on the device when it is not to hold more than so much. */
#include <stdio.h>

#include "core/log.h"
#include "model/model_impl.h"

/* What the products' libraries take beside their operands, with room to spare. */
enum { WORKSPACE_BYTES = 96 << 20 };

static size_t bytes_of(const fp8_checkpoint *c, const char *module) {
    char name[FP8_NAME_BYTES + 32];
    const fp8_st_entry *e;

    snprintf(name, sizeof name, "%s.weight", module);
    e = fp8_checkpoint_find(c, name);
    return e ? e->bytes : 0;
}

/* Embedding, positions and output layer. */
static size_t ends_bytes(const fp8_model *m, const fp8_checkpoint *c, const char *prefix) {
    const fp8_family *f = m->family;
    char module[FP8_NAME_BYTES];
    size_t bytes = 0;

    snprintf(module, sizeof module, "%s%s", prefix, f->embed);
    bytes += bytes_of(c, module);
    if (f->positions) {
        snprintf(module, sizeof module, "%s%s", prefix, f->positions);
        bytes += bytes_of(c, module);
    }
    if (!m->config.tie_embeddings) bytes += bytes_of(c, fp8_family_lm_head(prefix));
    return bytes;
}

static size_t scratch_bytes(const fp8_model *m) {
    const fp8_model_config *c = &m->config;
    const int64_t width = 2 * (c->hidden_size + c->num_heads * c->head_dim +
                               c->num_kv_heads * c->head_dim + c->intermediate_size);
    return (size_t)(m->max_tokens * width) * fp8_dtype_size(m->type) + WORKSPACE_BYTES;
}

static fp8_status check_weight(const fp8_model *m, const fp8_linear_info *info,
                               const fp8_st_entry *e) {
    if (e && e->tensor.dtype == m->type && !info->in_out && info->expert == FP8_NO_EXPERT)
        return FP8_OK;
    return FP8_FAIL(FP8_EUNSUPPORTED, "'%s': weights that are on the device only while their layer "
                    "is run are %s, kept [out, in], and of no mixture", info->name,
                    fp8_dtype_name(m->type));
}

fp8_status fp8_model_fit_memory(fp8_model *m, const fp8_checkpoint *c, const char *prefix,
                                const fp8_linear_info *linears, int64_t count) {
    const size_t row = 2 * (size_t)m->config.hidden_size * fp8_dtype_size(m->type);
    const size_t fixed = ends_bytes(m, c, prefix) + scratch_bytes(m);
    size_t layers = 0, place, least;
    fp8_status st = FP8_OK;

    if (m->memory_bytes == 0) return FP8_OK;
    FP8_TRY(fp8_layer_store_create(&m->store, m->device, m->config.num_layers));
    for (int64_t i = 0; i < count; i++) {
        char name[FP8_NAME_BYTES + 32];
        const fp8_st_entry *e;
        snprintf(name, sizeof name, "%s.weight", linears[i].name);
        e = fp8_checkpoint_find(c, name);
        FP8_TRY(check_weight(m, &linears[i], e));
        FP8_TRY(fp8_layer_store_add(m->store, linears[i].layer, e));
        layers += e->bytes;
    }
    place = fp8_layer_store_place_bytes(m->store);
    /* one more place's worth for whoever quantizes or measures weights meanwhile */
    least = fixed + 3 * place + row * (size_t)m->max_tokens;
    if (layers + fixed + place <= m->memory_bytes) {
        fp8_layer_store_destroy(m->store);
        m->store = NULL;
        return FP8_OK;
    }
    if (least > m->memory_bytes)
        FP8_TRY(FP8_FAIL(FP8_EINVAL, "%zu bytes of device memory: expected at least %zu for two "
                         "layers at a time and %lld tokens a step", m->memory_bytes, least,
                         (long long)m->max_tokens));
    m->layers_tokens = (int64_t)((m->memory_bytes - fixed - 3 * place) / row);
    fp8_log(FP8_LOG_INFO, "two of %lld layers on the device at a time, %lld tokens through each",
            (long long)m->config.num_layers, (long long)m->layers_tokens);
    st = fp8_layer_store_place(m->store);
done:
    return st;
}
