/* One sequence's keys and values: for each layer a plane of K, then one of V, [capacity]
 * [kv_heads * head_dim] of the compute type, or E4M3 codes where the checkpoint has FP8 keys and
 * values. */
#include <stdlib.h>

#include "model/model_impl.h"

enum { PLANE_ALIGN = 256 }; /* as memory of its own would be */

fp8_status fp8_kv_cache_create(fp8_kv_cache **out, fp8_model *m, int64_t capacity) {
    const int64_t width = m->config.num_kv_heads * m->config.head_dim;
    fp8_kv_cache *c = NULL;
    fp8_status st = FP8_OK;
    size_t bytes = 0;
    void *data = NULL;

    *out = NULL;
    if (capacity < 1 || capacity > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "a cache of %lld tokens, expected 1 to 2^31-1",
                        (long long)capacity);
    c = calloc(1, sizeof *c);
    if (!c) return FP8_FAIL(FP8_ENOMEM, "KV cache");
    c->model = m;
    c->capacity = capacity;
    c->row_bytes = (size_t)width * fp8_dtype_size(m->quant.kv_fp8 ? FP8_DTYPE_E4M3 : m->type);
    FP8_TRY(fp8_mul_size(&bytes, c->row_bytes, (size_t)capacity));
    FP8_TRY(fp8_add_size(&bytes, bytes, PLANE_ALIGN - 1));
    c->plane_bytes = bytes / PLANE_ALIGN * PLANE_ALIGN;
    FP8_TRY(fp8_mul_size(&bytes, c->plane_bytes, 2 * (size_t)m->config.num_layers));
    FP8_TRY(fp8_rope_extend(m, capacity));
    FP8_TRY(fp8_device_alloc(m->device, &data, bytes));
    c->data = data;
    *out = c;
    c = NULL;
done:
    fp8_kv_cache_destroy(c);
    return st;
}

void fp8_kv_cache_destroy(fp8_kv_cache *c) {
    if (!c) return;
    fp8_device_free(c->model->device, c->data);
    free(c);
}

int64_t fp8_kv_cache_length(const fp8_kv_cache *c) { return c->length; }
void fp8_kv_cache_clear(fp8_kv_cache *c) { c->length = c->intended = 0; }
