/* The fused backend: cuDNN's attention forward in BF16, F16 and FP8. A plan holds a compiled graph
 * (fused_graph_cuda.c) and a few constants on the device; a run binds pointers. Lengths and starts
 * go through a kernel before it, and rows without a key through one after it (fused.cu). */
#include <string.h>
#include <stdlib.h>

#include "attention/fused.h"
#include "attention/fused_graph.h"
#include "attention/masks.h"
#include "core/cuda_check.h"

enum { ALIGN = 256, VECTOR = 16 };

/* P in (0, 1] is scaled by a power of two before it is rounded to E4M3: 2^8, as our own kernels
 * do, leaves 448 / 256 of room and 17 binades. */
static const float p_scale = 256.0f;

/* Parts of the workspace before cuDNN's own. */
enum {
    PART_Q_LENGTH,
    PART_KV_LENGTH,
    PART_Q, /* offsets, also the next three */
    PART_K,
    PART_V,
    PART_O,
    PART_STATS,
    PART_KEPT,
    NUM_PARTS
};

typedef struct fused_state {
    fused_graph *graph;
    cudnn_pack pack;
    float *constants;      /* device: scale and descale of P, sinks of 0, default slopes */
    size_t at[NUM_PARTS], at_cudnn; /* parts of the workspace */
} fused_state;

size_t attention_cudnn_version(void) { return cudnnGetVersion(); }

/* ---- plan ------------------------------------------------------------------------------------ */

static int has_lengths(const fp8_attention_options *o) {
    return o->padding || fp8_attention_layout_is_packed(o->layout);
}

static size_t place(size_t *end, size_t bytes) {
    const size_t at = *end;
    *end += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

/* Parts that a run does not need have no bytes. */
static size_t lay_out(fused_state *f, const fp8_attention_options *o) {
    const size_t b = (size_t)o->num_seqs;
    const int packed = fp8_attention_layout_is_packed(o->layout);
    const size_t lengths = has_lengths(o) ? b * sizeof(int32_t) : 0;
    const size_t offsets = has_lengths(o) ? (b + 1) * sizeof(int64_t) : 0;
    const size_t row = (size_t)o->num_heads * (size_t)o->d_v;
    const size_t rows = b * (size_t)o->num_heads * (size_t)o->max_q;
    size_t end = 0;

    f->at[PART_Q_LENGTH] = place(&end, lengths);
    f->at[PART_KV_LENGTH] = place(&end, lengths);
    for (int i = PART_Q; i <= PART_O; i++) f->at[i] = place(&end, offsets);
    f->at[PART_STATS] = place(&end, packed && o->want_lse ? rows * sizeof(float) : 0);
    f->at[PART_KEPT] = place(&end, has_lengths(o) ? FUSED_KEPT_HEADER + row : 0);
    f->at_cudnn = place(&end, (size_t)f->graph->graph.workspace_bytes);
    return end + ALIGN;
}

/* constants[0, 1] = scale and descale of P, then num_heads zeros, then num_heads slopes. */
static fp8_status upload_constants(fused_state *f, const fp8_attention_plan *p) {
    const int32_t heads = p->options.num_heads;
    const size_t bytes = (2 + 2 * (size_t)heads) * sizeof(float);
    float *host = calloc(1, bytes);
    fp8_status st;

    if (!host) return FP8_FAIL(FP8_ENOMEM, "fused attention: constants of %d heads", heads);
    host[0] = p_scale;
    host[1] = 1.0f / p_scale;
    fp8_attention_alibi_slopes(host + 2 + heads, heads);
    FP8_TRY(fp8_device_alloc(p->device, (void **)&f->constants, bytes));
    FP8_TRY(fp8_device_upload(p->device, f->constants, host, bytes));
done:
    free(host);
    return st;
}

static fp8_status fused_open(fp8_attention_plan *p) {
    fused_state *f = calloc(1, sizeof *f);
    fused_config config;
    fp8_status st;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "fused attention plan");
    p->state = f;
    attention_fused_configure(&config, &p->options, fp8_device_index(p->device));
    FP8_TRY(attention_fused_acquire(&f->graph, &config));
    FP8_TRY(upload_constants(f, p));
    p->workspace_bytes = lay_out(f, &p->options);
done:
    return st;
}

static void fused_close(fp8_attention_plan *p) {
    fused_state *f = p->state;
    if (!f) return;
    cudnn_pack_free(&f->pack);
    attention_fused_release(f->graph);
    fp8_device_free(p->device, f->constants);
    free(f);
    p->state = NULL;
}

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_alignment(const fp8_attention_io *io) {
    const uintptr_t all = (uintptr_t)io->q | (uintptr_t)io->k | (uintptr_t)io->v |
                          (uintptr_t)io->o | (uintptr_t)io->bias;
    if (all % VECTOR == 0) return FP8_OK;
    return FP8_FAIL(FP8_EINVAL,
                    "attention: fused: q=%p k=%p v=%p o=%p bias=%p, expected %d-byte alignment",
                    io->q, io->k, io->v, io->o, io->bias, VECTOR);
}

static void fill_view(fused_view *v, const fused_state *f, const fp8_attention_options *o,
                      const fp8_attention_io *io, uint8_t *base) {
    *v = (fused_view){.options = *o, .io = *io};
    if (!o->want_lse) v->io.lse = NULL;
    v->q_length = (int32_t *)(void *)(base + f->at[PART_Q_LENGTH]);
    v->kv_length = (int32_t *)(void *)(base + f->at[PART_KV_LENGTH]);
    v->q_offset = (int64_t *)(void *)(base + f->at[PART_Q]);
    v->k_offset = (int64_t *)(void *)(base + f->at[PART_K]);
    v->v_offset = (int64_t *)(void *)(base + f->at[PART_V]);
    v->o_offset = (int64_t *)(void *)(base + f->at[PART_O]);
    v->kept = base + f->at[PART_KEPT];
    if (fp8_attention_layout_is_packed(o->layout))
        v->stats = (float *)(void *)(base + f->at[PART_STATS]);
}

static void *mutable(const void *x) { return (void *)(uintptr_t)x; } /* cuDNN takes no const */

/* Those that the graph does not bind are not looked at. */
static void fill_slots(void *slots[FUSED_NUM_SLOTS], const fused_state *f, const fused_view *v) {
    const fp8_attention_options *o = &v->options;
    const fp8_attention_io *io = &v->io;

    memset(slots, 0, FUSED_NUM_SLOTS * sizeof *slots);
    slots[FUSED_Q] = mutable(io->q);
    slots[FUSED_K] = mutable(io->k);
    slots[FUSED_V] = mutable(io->v);
    slots[FUSED_O] = io->o;
    slots[FUSED_STATS] = v->stats ? mutable(v->stats) : io->lse;
    slots[FUSED_Q_LENGTH] = v->q_length;
    slots[FUSED_KV_LENGTH] = v->kv_length;
    slots[FUSED_Q_OFFSET] = v->q_offset;
    slots[FUSED_K_OFFSET] = v->k_offset;
    slots[FUSED_V_OFFSET] = v->v_offset;
    slots[FUSED_O_OFFSET] = v->o_offset;
    slots[FUSED_BIAS] = mutable(io->bias);
    slots[FUSED_SLOPES] =
        io->alibi_slopes ? mutable(io->alibi_slopes) : f->constants + 2 + o->num_heads;
    slots[FUSED_SINK] = o->sink == FP8_SINK_LEARNABLE ? mutable(io->sink) : f->constants + 2;
    slots[FUSED_Q_DESCALE] = mutable(io->q_descale);
    slots[FUSED_K_DESCALE] = mutable(io->k_descale);
    slots[FUSED_V_DESCALE] = mutable(io->v_descale);
    slots[FUSED_P_SCALE] = f->constants;
    slots[FUSED_P_DESCALE] = f->constants + 1;
    slots[FUSED_O_SCALE] = mutable(io->o_scale);
    slots[FUSED_P_AMAX] = io->amax_s;
    slots[FUSED_O_AMAX] = io->amax_o;
}

static fp8_status fused_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace) {
    fused_state *f = p->state;
    const fp8_attention_options *o = &p->options;
    const fp8_stream stream = fp8_device_stream(p->device);
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)(uintptr_t)workspace % ALIGN;
    void *slots[FUSED_NUM_SLOTS];
    fused_view v;
    fp8_status st;

    if (io->total_q == 0) return FP8_OK;
    FP8_TRY(check_alignment(io));
    fill_view(&v, f, o, io, base);
    if (io->total_kv > 0) {
        fill_slots(slots, f, &v);
        if (has_lengths(o)) FP8_TRY(attention_fused_prepare(&v, stream));
        FP8_TRY(attention_fused_execute(f->graph, &f->pack, stream, slots, base + f->at_cudnn));
    } else if (o->want_amax) {
        FP8_TRY(fp8_device_fill(p->device, io->amax_s, 0, sizeof *io->amax_s));
        FP8_TRY(fp8_device_fill(p->device, io->amax_o, 0, sizeof *io->amax_o));
    }
    if (attention_fused_unfinished(o))
        FP8_TRY(attention_fused_finish(&v, has_lengths(o) && io->total_kv > 0, stream));
done:
    return st;
}

const attention_backend attention_backend_fused = {
    FP8_BACKEND_FUSED, "fused",     "FP8_FUSED_ATTN", attention_fused_check,
    fused_open,        fused_close, fused_run,
};
