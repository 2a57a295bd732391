/* The backend over pages: a plan picks a kernel, with one that appends beside it, and holds what
 * blocks send each other, or, with a given split, the counters of parts; a run makes tensor maps
 * where the pages have moved and launches once. */
#include <stdlib.h>
#include <string.h>

#include "attention/append_impl.h"
#include "attention/decode_pages.h"
#include "core/cuda_check.h"
#include "core/tensor_map.h"

enum {
    ALIGN = 256,          /* bytes; of each part of the workspace */
    EMPTY_REGISTERS = 64, /* the kernel of other architectures, empty, has fewer */
    SMALL_BLOCK = 8,      /* rows */
    ITEM_COST = 1,        /* tiles: what the end of an item takes (docs/NOTES.md) */
    SHORT_ITEM_COST = 2   /* where there are more of them than blocks */
};
static const double log2_e = 1.4426950408889634;

/* What tensor maps are made from. */
typedef struct pages_place {
    const void *k, *v;
    int64_t num_pages, k_page, v_page;
} pages_place;

typedef struct pages_state {
    fp8_tensor_map_encode encode;
    const decode_pages_kernel *kernel, *appender; /* of one shape; appender NULL: there is none */
    int32_t blocks;
    int32_t *arrived; /* device: args.arrived */
    float *exchange;  /* device: args.exchange */
    size_t stats_at;  /* in the workspace, after the sums */
    pages_place mapped;
    decode_pages_args args; /* what every run has in common, and the maps */
} pages_state;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ---- plan ------------------------------------------------------------------------------------ */

static const decode_pages_kernel *find_in(const decode_pages_kernel *all, int count,
                                          const fp8_decode_options *o, int32_t rows) {
    for (int i = 0; i < count; i++)
        if (all[i].kv_dtype == (int32_t)o->kv_dtype && all[i].d_qk == o->d_qk &&
            all[i].d_v == o->d_v && all[i].page_size == o->page_size && all[i].rows == rows)
            return &all[i];
    return NULL;
}

/* The kernel with blocks of 8 rows, or where a KV head has more, of 16 if there is one; the one of
 * that shape that appends. */
static void find_kernels(pages_state *f, const fp8_decode_options *o) {
    const int codes = o->kv_dtype == FP8_DTYPE_E4M3;
    const int64_t rows = o->max_q * (o->num_heads / o->num_kv_heads);
    int count;
    const decode_pages_kernel *all =
        codes ? decode_pages_kernels(&count) : decode_pages16_kernels(&count);

    if (rows > SMALL_BLOCK) f->kernel = find_in(all, count, o, 2 * SMALL_BLOCK);
    if (!f->kernel) f->kernel = find_in(all, count, o, SMALL_BLOCK);
    if (!f->kernel) return;
    all = codes ? decode_append_kernels(&count) : decode_append16_kernels(&count);
    f->appender = find_in(all, count, o, f->kernel->rows);
}

static const void *entry_of(const decode_pages_kernel *k) {
    return k->entry ? (const void *)k->entry : (const void *)k->append_entry;
}

/* Room for the kernel's shared memory on the current device, and for all of a grid at once. */
static fp8_status prepare_kernel(const decode_pages_kernel *k) {
    struct cudaFuncAttributes a;
    fp8_status st = FP8_OK;
    int blocks;

    FP8_TRY_CUDA(cudaFuncGetAttributes(&a, entry_of(k)));
    if (a.numRegs < EMPTY_REGISTERS)
        return FP8_FAIL(FP8_EUNSUPPORTED, "this build holds no sm_90a code");
    FP8_TRY_CUDA(cudaFuncSetAttribute(entry_of(k), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)k->shared_bytes));
    FP8_TRY_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry_of(k), k->threads,
                                                               k->shared_bytes));
    if (blocks < k->blocks_per_sm)
        st = FP8_FAIL(FP8_EUNSUPPORTED, "a multiprocessor holds %d blocks, expected %d", blocks,
                      k->blocks_per_sm);
done:
    return st;
}

/* Both kernels, and their grid. */
static fp8_status prepare(pages_state *f, fp8_device *d) {
    fp8_status st = FP8_OK;
    int sms;

    (void)fp8_device_stream(d); /* makes the device current */
    FP8_TRY(prepare_kernel(f->kernel));
    if (f->appender) FP8_TRY(prepare_kernel(f->appender));
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(d)));
    f->blocks = sms * f->kernel->blocks_per_sm;
done:
    return st;
}

static void fill_args(decode_pages_args *a, const fp8_decode_options *o,
                      const decode_pages_kernel *k, int64_t split_keys) {
    const int32_t group = o->num_heads / o->num_kv_heads;
    const double cap = (double)o->softcap, scale = (double)o->scale * log2_e;

    a->q_token = o->q_token;
    a->o_token = o->o_token;
    a->num_heads = o->num_heads;
    a->num_kv_heads = o->num_kv_heads;
    a->group = group;
    a->most_q = (int32_t)o->max_q;
    a->row_blocks = (int32_t)ceil_div(o->max_q * group, k->rows);
    a->unit_tiles = (int32_t)(split_keys / k->tile);
    a->causal = o->mask != FP8_MASK_NONE;
    a->window_left = o->window_left < 0 || o->window_left > DECODE_PAGES_NO_WINDOW
                         ? DECODE_PAGES_NO_WINDOW
                         : (int32_t)o->window_left;
    a->alibi = o->alibi;
    a->off_by_one = o->sink == FP8_SINK_OFF_BY_ONE;
    a->descale_by_head = o->granularity == FP8_DESCALE_HEAD;
    a->early = o->early;
    a->q_dtype = (int32_t)o->q_dtype;
    a->o_dtype = (int32_t)o->o_dtype;
    a->softcap = o->softcap;
    a->scale = (float)(o->softcap != 0 ? 2 * scale / cap : scale);
}

/* Without a given split: two slots a block, in memory of the plan. */
static fp8_status open_exchange(decode_part *part, pages_state *f) {
    const int64_t shape[3] = {2 * (int64_t)f->blocks, f->kernel->rows * (part->options.d_v / 4),
                              DECODE_PAGES_UNIT_FLOATS * (int64_t)sizeof(float)};
    int64_t bytes;
    fp8_status st;

    FP8_TRY(fp8_shape_count(&bytes, shape, 3));
    FP8_TRY(fp8_device_alloc(part->device, (void **)&f->exchange, (size_t)bytes));
    FP8_TRY(fp8_device_fill(part->device, f->exchange, DECODE_PAGES_UNSENT_BYTE, (size_t)bytes));
    f->args.exchange = f->exchange;
done:
    return st;
}

/* With one: a slot a part of every item, in the workspace, and counters. */
static fp8_status open_parts(decode_part *part, pages_state *f, int64_t split_keys) {
    const fp8_decode_options *o = &part->options;
    const int64_t items = o->num_seqs * f->args.row_blocks * o->num_kv_heads;
    const int64_t slots = items * (ceil_div(o->max_kv, split_keys) + 1);
    const int64_t sums[3] = {slots, f->kernel->rows, o->d_v * (int64_t)sizeof(float)};
    const int64_t stats[3] = {slots, f->kernel->rows, 2 * (int64_t)sizeof(float)};
    const size_t counters = (size_t)items * sizeof *f->arrived;
    int64_t sums_bytes, stats_bytes;
    fp8_status st;

    FP8_TRY(fp8_shape_count(&sums_bytes, sums, 3));
    FP8_TRY(fp8_shape_count(&stats_bytes, stats, 3));
    f->stats_at = (size_t)ceil_div(sums_bytes, ALIGN) * ALIGN;
    part->workspace_bytes = f->stats_at + (size_t)stats_bytes + ALIGN;
    FP8_TRY(fp8_device_alloc(part->device, (void **)&f->arrived, counters));
    FP8_TRY(fp8_device_fill(part->device, f->arrived, 0, counters));
    f->args.arrived = f->arrived;
done:
    return st;
}

static fp8_status pages_open(decode_part *part) {
    const fp8_decode_options *o = &part->options;
    pages_state *f = calloc(1, sizeof *f);
    fp8_status st;

    if (!f) return FP8_FAIL(FP8_ENOMEM, "decode over pages: plan");
    part->state = f;
    find_kernels(f, o);
    if (!f->kernel)
        return FP8_FAIL(FP8_EUNSUPPORTED, "no kernel for pages of %s, d %d and %d",
                        fp8_dtype_name(o->kv_dtype), o->d_qk, o->d_v);
    FP8_TRY(fp8_tensor_map_encoder(&f->encode));
    FP8_TRY(prepare(f, part->device));
    part->split_keys = ceil_div(o->split_keys, f->kernel->tile) * f->kernel->tile;
    part->blocks = f->blocks;
    fill_args(&f->args, o, f->kernel, part->split_keys);
    if (part->split_keys) FP8_TRY(open_parts(part, f, part->split_keys));
    else FP8_TRY(open_exchange(part, f));
done:
    return st;
}

static void pages_close(decode_part *part) {
    pages_state *f = part->state;
    if (f) fp8_device_free(part->device, f->arrived);
    if (f) fp8_device_free(part->device, f->exchange);
    free(f);
    part->state = NULL;
}

/* ---- tensor maps ----------------------------------------------------------------------------- */

/* Dimensions from the innermost on, and strides of all but that. */
typedef struct map_shape {
    cuuint32_t rank;
    cuuint64_t dims[4], strides[3]; /* elements */
    int32_t box, pitch;             /* rows, bytes; 1 of what is further out */
} map_shape;

static fp8_status make_map(const pages_state *f, CUtensorMap *map, const char *name,
                           const void *data, fp8_dtype dtype, map_shape x) {
    const CUtensorMapDataType type = dtype == FP8_DTYPE_E4M3   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                     : dtype == FP8_DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const uint64_t size = (uint64_t)fp8_dtype_size(dtype);
    const cuuint32_t boxes[4] = {(uint32_t)x.pitch / (uint32_t)size, (uint32_t)x.box, 1, 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    CUresult r;

    for (int i = 0; i < 3; i++) x.strides[i] *= size;
    r = f->encode(map, type, x.rank, (void *)(uintptr_t)data, x.dims, x.strides, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE,
                  x.pitch == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS)
        return FP8_FAIL(FP8_ECUDA, "decode over pages: tensor map of %s: driver error %d", name,
                        (int)r);
    return FP8_OK;
}

/* Once for pages that stay where they are. */
static fp8_status refresh_maps(pages_state *f, const fp8_decode_options *o,
                               const fp8_kv_pages *p) {
    const decode_pages_kernel *k = f->kernel;
    const pages_place now = {p->k, p->v, p->num_pages, p->k_page, p->v_page};
    const uint64_t heads = (uint64_t)o->num_kv_heads, pages = (uint64_t)p->num_pages;
    const uint64_t size = (uint64_t)o->page_size, d = (uint64_t)o->d_qk, d_v = (uint64_t)o->d_v;
    fp8_status st = FP8_OK;

    if (f->mapped.k == now.k && f->mapped.v == now.v && f->mapped.num_pages == now.num_pages &&
        f->mapped.k_page == now.k_page && f->mapped.v_page == now.v_page)
        return FP8_OK;
    f->mapped.num_pages = 0; /* none, should this fail */
    for (int i = 0; i < DECODE_PAGES_QUARTERS; i++) {
        const uint64_t tokens = size / DECODE_PAGES_QUARTERS * (uint64_t)(i + 1);
        const map_shape of_k = {4, {d, tokens, heads, pages}, {d, size * d, (uint64_t)p->k_page},
                                k->span, k->k_pitch};
        const map_shape of_v = {3, {tokens, heads * d_v, pages}, {size, (uint64_t)p->v_page},
                                o->d_v, k->v_pitch};
        FP8_TRY(make_map(f, f->args.k_map + i, "k", p->k, o->kv_dtype, of_k));
        FP8_TRY(make_map(f, f->args.v_map + i, "v", p->v, o->kv_dtype, of_v));
    }
    f->mapped = now;
done:
    return st;
}

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_places(const fp8_decode_io *io) {
    const int64_t size = (int64_t)fp8_dtype_size(io->pages.dtype);
    const struct {
        const char *name;
        uintptr_t at;
    } all[] = {{"o", (uintptr_t)io->o},
               {"q", (uintptr_t)io->q},
               {"pages.k", (uintptr_t)io->pages.k},
               {"pages.v", (uintptr_t)io->pages.v},
               {"bytes of pages.k_page", (uintptr_t)(io->pages.k_page * size)},
               {"bytes of pages.v_page", (uintptr_t)(io->pages.v_page * size)}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].at % DECODE_PAGES_VECTOR)
            return FP8_FAIL(FP8_EINVAL, "decode over pages: %s is %#llx, expected a multiple of %d",
                            all[i].name, (unsigned long long)all[i].at, DECODE_PAGES_VECTOR);
    return FP8_OK;
}

/* What an item counts for beside its tiles: more where blocks have several. */
static int32_t item_cost_of(const fp8_decode_options *o, const fp8_kv_batch *b, int32_t row_blocks,
                            int32_t blocks) {
    return b->num_seqs * row_blocks * o->num_kv_heads > blocks ? SHORT_ITEM_COST : ITEM_COST;
}

static void bind_run(decode_pages_args *a, const fp8_decode_options *o, const fp8_decode_io *io,
                     int32_t blocks) {
    const fp8_kv_batch *b = &io->batch;
    const int64_t room = b->max_pages * o->page_size;
    const int codes = o->kv_dtype == FP8_DTYPE_E4M3;

    a->o = io->o;
    a->q = io->q;
    a->page_table = b->page_table;
    a->kv_lengths = b->kv_lengths;
    a->q_starts = b->q_starts;
    a->q_descale = o->q_dtype == FP8_DTYPE_E4M3 ? io->q_descale : NULL;
    a->k_descale = codes ? io->pages.k_descale : NULL;
    a->v_descale = codes ? io->pages.v_descale : NULL;
    a->o_scale = o->o_dtype == FP8_DTYPE_E4M3 ? io->o_scale : NULL;
    a->alibi_slopes = io->alibi_slopes;
    a->sink = o->sink == FP8_SINK_LEARNABLE ? io->sink : NULL;
    a->lse = o->want_lse ? io->lse : NULL;
    a->max_pages = b->max_pages;
    a->num_pages = (int32_t)io->pages.num_pages;
    a->num_seqs = (int32_t)b->num_seqs;
    a->total_q = (int32_t)b->total_q;
    a->max_q = (int32_t)b->max_q;
    a->max_kv = (int32_t)(b->max_kv < room ? b->max_kv : room);
    a->item_cost = item_cost_of(o, b, a->row_blocks, blocks);
}

/* Without a given split blocks wait for each other (decode_pages_exchange.cuh). A cooperative
 * launch sees to it that all of them can be there, but begins none before there is room for all:
 * with `early` it is left out. NOTE: the kernels before end by themselves, those behind are not
 * started before each block is there; nothing else may be in the way (attention/decode.h). */
static fp8_status launch_pages(pages_state *f, const decode_pages_kernel *k,
                               decode_append_args *append, fp8_stream stream) {
    cudaLaunchAttribute how[2] = {
        {.id = cudaLaunchAttributeProgrammaticStreamSerialization,
         .val.programmaticStreamSerializationAllowed = 1},
        {.id = cudaLaunchAttributeCooperative,
         .val.cooperative = f->exchange != NULL && !f->args.early}};
    const cudaLaunchConfig_t config = {.gridDim = {(unsigned)f->blocks, 1, 1},
                                       .blockDim = {(unsigned)k->threads, 1, 1},
                                       .dynamicSmemBytes = k->shared_bytes,
                                       .stream = stream,
                                       .attrs = how,
                                       .numAttrs = sizeof how / sizeof *how};
    void *args[] = {&f->args, append};
    fp8_status st;

    FP8_TRY_CUDA(cudaLaunchKernelExC(&config, entry_of(k), args));
    FP8_TRY(fp8_cuda_launched(append ? "append and decode over pages" : "decode over pages",
                              stream));
done:
    return st;
}

/* append: NULL: none. */
static fp8_status run_kernel(decode_part *part, const decode_pages_kernel *k,
                             const fp8_decode_io *io, decode_append_args *append,
                             void *workspace) {
    pages_state *f = part->state;
    const fp8_decode_options *o = &part->options;
    uint8_t *base = (uint8_t *)workspace + (uintptr_t)-(intptr_t)(uintptr_t)workspace % ALIGN;
    fp8_status st;

    FP8_TRY(check_places(io));
    FP8_TRY(refresh_maps(f, o, &io->pages));
    bind_run(&f->args, o, io, f->blocks);
    if (part->workspace_bytes) {
        f->args.parts = (float *)(void *)base;
        f->args.part_stats = (float *)(void *)(base + f->stats_at);
    }
    FP8_TRY(launch_pages(f, k, append, fp8_device_stream(part->device)));
done:
    return st;
}

static fp8_status pages_run(decode_part *part, const fp8_decode_io *io, void *workspace) {
    const pages_state *f = part->state;
    return run_kernel(part, f->kernel, io, NULL, workspace);
}

static int has_strides(const fp8_append_heads *h) {
    return h->token_stride <= INT32_MAX && h->head_stride <= INT32_MAX;
}

/* One token a sequence, nothing that is of all rows, and no ALiBi, whose slopes take registers. */
static int pages_appends(const decode_part *part, const fp8_decode_io *io,
                         const fp8_kv_append *a) {
    const pages_state *f = part->state;
    return f->appender && !part->options.alibi && io->batch.max_q == 1 && a->k.x && !a->q.amax &&
           !a->k.amax && !a->v.amax && append_fits_units(&io->pages, a) && has_strides(&a->q) &&
           has_strides(&a->k) && has_strides(&a->v);
}

static decode_append_heads append_heads_of(const fp8_append_heads *h) {
    return (decode_append_heads){h->x, h->norm_weight, (int32_t)h->token_stride,
                                 (int32_t)h->head_stride};
}

static decode_append_args append_args_of(const fp8_kv_append *a, const fp8_kv_pages *p) {
    return (decode_append_args){
        .q = append_heads_of(&a->q),
        .k = append_heads_of(&a->k),
        .v = append_heads_of(&a->v),
        .positions = a->positions,
        .cos = a->cos,
        .sin = a->sin,
        .q_descale = a->q_dtype == FP8_DTYPE_E4M3 ? a->q_descale : NULL,
        .k_pages = p->k,
        .v_pages = p->v,
        .k_page = p->k_page,
        .v_page = p->v_page,
        .num_positions = (int32_t)attention_clamp(a->num_positions, 0, INT32_MAX),
        .rotary_dim = a->rotary_dim,
        .halves = a->rope == FP8_ROPE_HALVES,
        .dtype = (int32_t)a->dtype,
        .norm = (int32_t)a->norm,
        .rounded = a->rounded,
        .eps = a->eps};
}

static fp8_status pages_append_run(decode_part *part, const fp8_decode_io *io,
                                   const fp8_kv_append *append, void *workspace) {
    const pages_state *f = part->state;
    decode_append_args args = append_args_of(append, &io->pages);
    return run_kernel(part, f->appender, io, &args, workspace);
}

const decode_backend decode_backend_pages = {
    FP8_DECODE_PAGES, "pages", decode_pages_check, pages_open, pages_close, pages_run,
    pages_appends, pages_append_run,
};
