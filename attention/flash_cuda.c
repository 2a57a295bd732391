/* The flash backend: our attention for Hopper. In FP8 a run makes codes of what is in BF16 or F16
 * and writes V transposed, both into the workspace (flash_prologue.cu), then attends (flash.cu,
 * over long sequences flash_wide.cu); in 16 bits it attends (flash16.cu). Terms of the scores and
 * other head sizes have kernels of their own (flash_any.cu, flash16_any.cu). Lengths are read on
 * the device; what a plan fixes are the tensor maps. Here a run is bound and launched, and the
 * plan opened and closed; its other parts: flash_state.h. */
#include <stdlib.h>
#include <string.h>

#include "attention/flash_state.h"
#include "core/cuda_check.h"

enum { ALIGN = 256 }; /* bytes; of each part of the workspace */

/* ---- plan ------------------------------------------------------------------------------------ */

static fp8_status add_part(flash_places *w, size_t *at, int64_t count, int64_t size) {
    const int64_t shape[2] = {count, size};
    fp8_status st = FP8_OK;
    int64_t bytes;

    FP8_TRY(fp8_shape_count(&bytes, shape, 2));
    *at = w->bytes;
    if (__builtin_add_overflow(w->bytes, ((size_t)bytes + ALIGN - 1) / ALIGN * ALIGN, &w->bytes))
        st = FP8_FAIL(FP8_EOVERFLOW, "flash attention: workspace of 2^64 bytes");
done:
    return st;
}

static fp8_status place_parts(flash_state *f, const fp8_attention_options *o) {
    flash_places *w = &f->places;
    const flash_prologue *p = &f->prologue;
    fp8_status st = FP8_OK;

    FP8_TRY(add_part(w, &w->counters, p->num_counters, sizeof(int32_t)));
    FP8_TRY(add_part(w, &w->pieces, f->params.split > 0 ? f->num_sms : 0,
                     (int64_t)flash_wide_rows(o) * (o->d_v + 8) * (int64_t)sizeof(float)));
    for (int i = 0; i < 3; i++) {
        const flash_operand *x = &p->x[i];
        const int current = !x->is_codes && o->quantize == FP8_QUANTIZE_CURRENT;
        FP8_TRY(add_part(w, &w->amax[i], current ? p->num_descales : 0, sizeof(uint32_t)));
        FP8_TRY(add_part(w, &w->made[i], current ? p->num_descales : 0, sizeof(float)));
        FP8_TRY(add_part(w, &w->codes[i], x->blocks, (int64_t)FLASH_TILE * p->part));
    }
    w->bytes += ALIGN; /* to align the start */
done:
    return st;
}

/* Makes room for the kernel that will serve. */
static fp8_status prepare(const flash_state *f, const fp8_attention_options *o) {
    const int f16 = o->q_dtype == FP8_DTYPE_F16;
    if (f->any && f->is_16) return attention_flash16_any_prepare(f->sizes, f16);
    if (f->any) return attention_flash_any_prepare(f->sizes);
    if (f->is_16) return attention_flash16_prepare(o->d_v, f16);
    if (f->wide) return attention_flash_wide_prepare(&f->params, o->d_v);
    return attention_flash_prepare(o->d_v, f->params.v_as_is);
}

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_io(const fp8_attention_io *io) {
    const struct {
        const char *name;
        const void *data;
    } all[] = {{"o", io->o}, {"q", io->q}, {"k", io->k}, {"v", io->v}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if ((uintptr_t)all[i].data % FLASH_VECTOR)
            return FP8_FAIL(FP8_EINVAL, "flash attention: %s at %p, expected a multiple of %d",
                            all[i].name, all[i].data, FLASH_VECTOR);
    if (io->total_q > INT32_MAX || io->total_kv > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL, "flash attention: total_q %lld, total_kv %lld, expected below "
                                    "2^31",
                        (long long)io->total_q, (long long)io->total_kv);
    return FP8_OK;
}

/* One operand's share of a run; *descale becomes what the attention reads. */
static void bind_operand(flash_operand *x, const flash_places *w, int i, uint8_t *workspace,
                         const void *from, const float **descale, int current) {
    x->from = from;
    x->codes = workspace + w->codes[i];
    x->descale = *descale;
    if (x->is_codes || !current) return;
    x->amax = (uint32_t *)(void *)(workspace + w->amax[i]);
    x->made = (float *)(void *)(workspace + w->made[i]);
    *descale = x->made;
}

static void bind_terms(flash_terms *t, const fp8_attention_options *o,
                       const fp8_attention_io *io) {
    const int has_bias = o->bias == FP8_BIAS_PRE_SCALE || o->bias == FP8_BIAS_POST_SCALE;
    const int even = o->max_kv % 2 == 0;
    t->mask = o->mask == FP8_MASK_ARBITRARY ? io->mask : NULL;
    t->bias = has_bias ? io->bias : NULL;
    t->slopes = io->alibi_slopes;
    t->sink = o->sink == FP8_SINK_LEARNABLE ? io->sink : NULL;
    t->mask_pairs = even && (uintptr_t)t->mask % 2 == 0;
    t->bias_pairs = even && (uintptr_t)t->bias % (2 * fp8_dtype_size(o->bias_dtype)) == 0;
}

/* Of the codes, and of their amax, what is left to the attention. */
static void bind_later(flash_state *f, flash_prologue *p) {
    flash_later *l = &f->later;

    for (int i = 0; i < 3; i++) p->x[i].observed = p->x[i].amax ? p->x[i].blocks : 0;
    if (l->groups == 0) return;
    l->made = p->next_item + p->num_counters - l->groups;
    l->seen = l->made - l->groups;
    l->next = l->seen - 1;
    l->prologue = *p;
    for (int i = 0; i < 3; i++) {
        p->x[i].blocks = p->x[i].blocks / l->groups * l->first;
        if (l->observes) p->x[i].observed = p->x[i].blocks;
    }
}

static void bind_run(flash_state *f, flash_prologue *p, const fp8_attention_options *o,
                     const fp8_attention_io *io, uint8_t *workspace) {
    flash_params *a = &f->params;
    const int current = o->quantize == FP8_QUANTIZE_CURRENT;

    a->o = io->o;
    a->o_scale = o->o_dtype == FP8_DTYPE_E4M3 ? io->o_scale : NULL;
    a->lse = o->want_lse ? io->lse : NULL;
    p->amax_s = a->amax_s = o->want_amax ? io->amax_s : NULL;
    p->amax_o = a->amax_o = o->want_amax ? io->amax_o : NULL;
    p->next_item = a->next_item = (int32_t *)(void *)(workspace + f->places.counters);
    a->arrived = a->next_item + 1;
    a->pieces = (float *)(void *)(workspace + f->places.pieces);
    bind_terms(&a->terms, o, io);
    p->x[0].starts = a->q_starts = io->q_starts;
    p->x[0].lengths = a->q_lengths = io->q_lengths;
    p->x[0].total = a->total_q = io->total_q;
    p->x[1].starts = p->x[2].starts = a->kv_starts = io->kv_starts;
    p->x[1].lengths = p->x[2].lengths = a->kv_lengths = io->kv_lengths;
    p->x[1].total = p->x[2].total = a->total_kv = io->total_kv;
    if (f->is_16) return;
    a->q_descale = io->q_descale;
    a->k_descale = io->k_descale;
    a->v_descale = io->v_descale;
    bind_operand(&p->x[0], &f->places, 0, workspace, io->q, &a->q_descale, current);
    bind_operand(&p->x[1], &f->places, 1, workspace, io->k, &a->k_descale, current);
    bind_operand(&p->x[2], &f->places, 2, workspace, io->v, &a->v_descale, current);
    bind_later(f, p);
}

/* Codes, V transposed, and what the attention starts from. Rotated Q and K have launches of their
 * own, after the one that clears their amax. */
static fp8_status prepare_operands(flash_prologue *p, const fp8_attention_options *o,
                                   int32_t num_sms, const flash_queue *to) {
    flash_prologue rotated;
    fp8_status st;

    if (!o->hadamard) return attention_flash_prologue(p, to);
    p->beside = p->x[2].blocks > 0;
    rotated = *p;
    rotated.part = attention_hadamard_block(o->d_qk);
    for (int i = 0; i < 2; i++) {
        rotated.x[i].blocks = p->x[i].blocks * p->part / rotated.part;
        p->x[i].blocks = p->x[i].observed = 0;
    }
    FP8_TRY(attention_flash_prologue(p, to));
    if (p->backwards) FP8_TRY(attention_flash_rotate(&rotated, 1, num_sms, to));
    FP8_TRY(attention_flash_rotate(&rotated, 0, num_sms, to));
done:
    return st;
}

static fp8_status attend(const flash_state *f, const fp8_attention_options *o,
                         const flash_queue *to) {
    const flash_params *a = &f->params;
    const int32_t blocks = f->num_sms < a->num_items ? f->num_sms : a->num_items;
    const int f16 = o->q_dtype == FP8_DTYPE_F16;
    if (f->any && f->is_16)
        return attention_flash16_any_launch(a, f->sizes, f16, blocks, to);
    if (f->any) return attention_flash_any_launch(a, f->sizes, blocks, to);
    if (f->is_16) return attention_flash16_launch(a, o->d_v, f16, blocks, to);
    if (f->wide)
        return attention_flash_wide_launch(a, &f->order, &f->later, o->d_v, blocks, to);
    return attention_flash_launch(a, o->d_v, blocks, to);
}

static fp8_status enqueue(const flash_state *f, const fp8_attention_options *o, flash_prologue *p,
                          const flash_queue *to) {
    fp8_status st = FP8_OK;
    if (!f->is_static) FP8_TRY(prepare_operands(p, o, f->num_sms, to));
    FP8_TRY(attend(f, o, to));
done:
    return st;
}

/* Where a run has several launches. What they are given is not looked at yet. */
static fp8_status make_steps(flash_state *f, const fp8_attention_options *o) {
    static uint8_t somewhere[1]; /* in the workspace's place */
    const fp8_attention_io nothing = {0};
    flash_prologue p = f->prologue;
    flash_queue to = {0};
    fp8_status st = FP8_OK;

    if (f->is_static || f->params.num_items == 0) return FP8_OK;
    FP8_TRY(flash_steps_create(&f->steps));
    to.steps = f->steps;
    bind_run(f, &p, o, &nothing, somewhere);
    FP8_TRY(enqueue(f, o, &p, &to));
    FP8_TRY(flash_steps_finish(f->steps));
done:
    return st;
}

static fp8_status flash_run(fp8_attention_plan *plan, const fp8_attention_io *io,
                            void *workspace) {
    flash_state *f = plan->state;
    const fp8_attention_options *o = &plan->options;
    flash_queue to = {fp8_device_stream(plan->device), NULL};
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)(uintptr_t)workspace % ALIGN;
    flash_prologue p = f->prologue;
    int captured = 1;
    fp8_status st;

    FP8_TRY(check_io(io));
    bind_run(f, &p, o, io, base);
    if (f->is_static) f->params.next_item = NULL;
    if (f->params.num_items == 0) { /* amax is written all the same */
        memset(p.x, 0, sizeof p.x);
        return attention_flash_prologue(&p, &to);
    }
    FP8_TRY(attention_flash_refresh_maps(f, &p, o, io, base));
    if (f->steps) FP8_TRY(flash_steps_captured(&captured, to.stream));
    if (captured) return enqueue(f, o, &p, &to);
    to.steps = f->steps;
    flash_steps_begin(f->steps);
    FP8_TRY(enqueue(f, o, &p, &to));
    FP8_TRY(flash_steps_launch(f->steps, to.stream));
done:
    return st;
}

/* ---- plan: open and close -------------------------------------------------------------------- */

static fp8_status flash_open(fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    flash_state *f = calloc(1, sizeof *f);
    fp8_status st = FP8_OK;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "flash attention plan");
    p->state = f;
    f->is_16 = flash_is_16(o);
    f->wide = flash_wide_rows(o) > 0;
    f->any = flash_is_any(o);
    f->sizes = flash_any_sizes(o);
    attention_flash_fill(f, o);
    FP8_TRY_CUDA(cudaSetDevice(fp8_device_index(p->device)));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&f->num_sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(p->device)));
    attention_flash_plan_items(f, o);
    FP8_TRY(place_parts(f, o));
    FP8_TRY(prepare(f, o));
    FP8_TRY(fp8_tensor_map_encoder(&f->encode));
    FP8_TRY(make_steps(f, o));
    p->workspace_bytes = f->places.bytes;
done:
    return st;
}

static void flash_close(fp8_attention_plan *p) {
    flash_state *f = p->state;
    if (f) flash_steps_destroy(f->steps);
    free(p->state);
    p->state = NULL;
}

const attention_backend attention_backend_flash = {
    FP8_BACKEND_FLASH, "flash",     "FP8_FLASH_ATTN", attention_flash_check,
    flash_open,        flash_close, flash_run,
};
