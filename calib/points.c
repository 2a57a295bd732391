#include "calib/points.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_A_LAYER = FP8_POINT_SHARED_DOWN_INPUT - FP8_POINT_QKV_INPUT + 1 };

size_t fp8_num_slots(int64_t num_layers) { return (size_t)num_layers * SLOTS_A_LAYER + 1; }

int32_t fp8_point_slot(int64_t num_layers, int32_t layer, fp8_point point) {
    if (point == FP8_POINT_LM_HEAD_INPUT) return (int32_t)(num_layers * SLOTS_A_LAYER);
    if (point < FP8_POINT_QKV_INPUT || point > FP8_POINT_SHARED_DOWN_INPUT) return -1;
    return layer * SLOTS_A_LAYER + (int32_t)(point - FP8_POINT_QKV_INPUT);
}

size_t fp8_points_num_slots(const fp8_points *p) {
    return fp8_num_slots(p->num_layers) + (size_t)(2 * p->kv_heads * p->num_layers);
}

int32_t fp8_point_head_slot(int64_t num_layers, int64_t kv_heads, int32_t layer, fp8_point point,
                            int64_t head) {
    const int64_t plane = 2 * layer + (point == FP8_POINT_V);
    return (int32_t)((int64_t)fp8_num_slots(num_layers) + plane * kv_heads + head);
}

const char *fp8_points_slot_name(const fp8_points *p, int32_t slot) {
    for (int64_t i = 0; i < p->count; i++)
        if (p->slots[i] == slot) return p->names[i];
    return "?";
}

static fp8_status add(fp8_points *p, const char *module, const char *suffix, int32_t slot) {
    const size_t bytes = strlen(module) + strlen(suffix) + 1;
    char *name = fp8_arena_alloc(&p->arena, bytes);
    if (!name) return FP8_FAIL(FP8_ENOMEM, "names of the calibration points");
    snprintf(name, bytes, "%s%s", module, suffix);
    p->names[p->count] = name;
    p->slots[p->count++] = slot;
    return FP8_OK;
}

static fp8_status add_attention(fp8_points *p, int32_t layer) {
    static const struct { const char *suffix; fp8_point point; } seen[] = {
        {".q", FP8_POINT_Q}, {".k", FP8_POINT_K}, {".v", FP8_POINT_V}};
    fp8_status st = FP8_OK;
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
        FP8_TRY(add(p, p->modules[layer], seen[i].suffix,
                    fp8_point_slot(p->num_layers, layer, seen[i].point)));
done:
    return st;
}

static fp8_status name_attentions(fp8_points *p, const fp8_model_config *config,
                                  const fp8_checkpoint *source) {
    fp8_status st = FP8_OK;
    char name[256];
    for (int32_t i = 0; i < p->num_layers; i++) {
        FP8_TRY(fp8_model_attention_name(name, sizeof name, config, source, i));
        p->modules[i] = fp8_arena_copy(&p->arena, name, strlen(name));
        if (!p->modules[i]) return FP8_FAIL(FP8_ENOMEM, "names of the attention modules");
    }
done:
    return st;
}

fp8_status fp8_points_create(fp8_points *out, const fp8_model_config *config,
                             const fp8_checkpoint *source) {
    fp8_status st = FP8_OK;
    fp8_points p = {.num_layers = config->num_layers};
    size_t most;

    *out = (fp8_points){0};
    FP8_TRY(fp8_model_list_linears(&p.linears, &p.num_linears, config, source));
    most = (size_t)(p.num_linears + 3 * p.num_layers + 1);
    p.names = fp8_arena_alloc(&p.arena, most * sizeof *p.names);
    p.slots = fp8_arena_alloc(&p.arena, most * sizeof *p.slots);
    p.modules = fp8_arena_alloc(&p.arena, (size_t)p.num_layers * sizeof *p.modules);
    if (!p.names || !p.slots || !p.modules) {
        st = FP8_FAIL(FP8_ENOMEM, "%zu calibration points", most);
        goto done;
    }
    FP8_TRY(name_attentions(&p, config, source));
    for (int64_t i = 0; i < p.num_linears; i++) {
        const fp8_linear_info *l = &p.linears[i];
        if (l->kind == FP8_LINEAR_O) FP8_TRY(add_attention(&p, l->layer));
        FP8_TRY(add(&p, l->name, ".input", fp8_point_slot(p.num_layers, l->layer, l->input)));
    }
    FP8_TRY(add(&p, "lm_head", ".input",
                fp8_point_slot(p.num_layers, -1, FP8_POINT_LM_HEAD_INPUT)));
    *out = p;
    p = (fp8_points){0};
done:
    fp8_points_free(&p);
    return st;
}

fp8_status fp8_points_add_heads(fp8_points *p, int64_t kv_heads) {
    const int64_t count = p->count, more = 2 * kv_heads * p->num_layers;
    const char **names = fp8_arena_alloc(&p->arena, (size_t)(count + more) * sizeof *names);
    int32_t *slots = fp8_arena_alloc(&p->arena, (size_t)(count + more) * sizeof *slots);
    fp8_status st = FP8_OK;

    if (!names || !slots)
        return FP8_FAIL(FP8_ENOMEM, "%lld calibration points", (long long)(count + more));
    memcpy(names, p->names, (size_t)count * sizeof *names);
    memcpy(slots, p->slots, (size_t)count * sizeof *slots);
    p->names = names;
    p->slots = slots;
    p->kv_heads = kv_heads;
    for (int64_t i = 0; i < more; i++) {
        const int32_t layer = (int32_t)(i / (2 * kv_heads));
        const int is_value = i / kv_heads % 2 != 0;
        char suffix[32];
        snprintf(suffix, sizeof suffix, ".%c.%lld", is_value ? 'v' : 'k',
                 (long long)(i % kv_heads));
        FP8_TRY(add(p, p->modules[layer], suffix,
                    fp8_point_head_slot(p->num_layers, kv_heads, layer,
                                        is_value ? FP8_POINT_V : FP8_POINT_K, i % kv_heads)));
    }
done:
    return st;
}

void fp8_points_free(fp8_points *p) {
    free(p->linears);
    fp8_arena_free(&p->arena);
    *p = (fp8_points){0};
}
