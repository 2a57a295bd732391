/* The order of pieces lets all threads work all the time with two groups under way:
 *
 *   amax of group 0 | amax of group 1 | codes of group 0 | amax of group 2 | codes of group 1 ...
 *
 * Pieces are handed out in this order, so whoever waits for a group's amax waits for pieces that
 * others are at already. */
#include "calib/weight_stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "quant/cast.h"

/* 1 MiB of BF16 and the 512 KiB of its codes stay in a core's second cache from the first look at
 * them to the last. Copies are no work for it: longer pieces, fewer calls. */
enum { PIECE_ELEMENTS = 1 << 19, COPY_BYTES = 4 << 20, BAND = FP8_DIALECT_BLOCK };

typedef struct piece {
    enum { PIECE_COPY, PIECE_AMAX, PIECE_CODES } kind;
    int64_t at;         /* spec (COPY) or weight */
    int64_t begin, end; /* bytes (COPY), elements, or rows where `by_rows` */
} piece;

/* A group of weights, kept at its first member. */
typedef struct group_state {
    int64_t left; /* amax pieces to come */
    fp8_scale scale;
} group_state;

typedef struct scratch {
    uint8_t *codes;
    float *descales;
    unsigned char *aligned; /* a piece of a source that the file has at an odd place */
    size_t codes_bytes, descales_bytes, aligned_bytes;
} scratch;

typedef struct job {
    const fp8_weight_stream *s;
    fp8_device *inline_device; /* runs where it is called */
    int shared;                /* weights of a group share one scale: amax comes first */
    piece *pieces;
    int64_t count, room;
    int64_t *group_of;   /* [weights]: the first of its group */
    group_state *groups; /* [weights] */
    fp8_amax_slot *slots; /* [weights] */
    scratch *scratches;  /* [threads] */
    pthread_mutex_t lock; /* of groups and slots */
    pthread_cond_t ready;
    int failed; /* nobody waits for a group any more */
    atomic_size_t done_bytes;
} job;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- the list of pieces ---------------------------------------------------------------------- */

static fp8_status add(job *j, piece p) {
    if (j->count == j->room) {
        const int64_t room = j->room ? 2 * j->room : 256;
        piece *grown = realloc(j->pieces, (size_t)room * sizeof *grown);
        if (!grown) return FP8_FAIL(FP8_ENOMEM, "list of %lld pieces", (long long)room);
        j->pieces = grown;
        j->room = room;
    }
    j->pieces[j->count++] = p;
    return FP8_OK;
}

/* [0, n) in pieces of `step`; one, empty, of nothing. */
static fp8_status cut(job *j, int kind, int64_t at, int64_t n, int64_t step) {
    fp8_status st = FP8_OK;
    int64_t begin = 0;

    do {
        piece p = {.at = at, .begin = begin, .end = min64(n, begin + step)};
        p.kind = kind == PIECE_COPY ? PIECE_COPY : kind == PIECE_AMAX ? PIECE_AMAX : PIECE_CODES;
        FP8_TRY(add(j, p));
        begin = p.end;
    } while (begin < n);
done:
    return st;
}

static fp8_status cut_codes(job *j, int64_t at) {
    const fp8_weight *w = &j->s->weights->data[at];
    const int64_t rows = max64(1, PIECE_ELEMENTS / w->cols);

    if (j->shared) return cut(j, PIECE_CODES, at, w->rows * w->cols, PIECE_ELEMENTS);
    if (j->s->scheme == FP8_SCHEME_BLOCK)
        return cut(j, PIECE_CODES, at, w->rows, (rows + BAND - 1) / BAND * BAND);
    if (j->s->scheme != FP8_SCHEME_MX && j->s->scheme != FP8_SCHEME_DYNAMIC)
        return cut(j, PIECE_CODES, at, w->rows, w->rows);
    /* a channel of an [in, out] weight is a column: it goes through all rows */
    return cut(j, PIECE_CODES, at, w->rows, w->in_out ? w->rows : rows);
}

static fp8_status cut_group(job *j, int64_t first, int kind) {
    const fp8_weights *all = j->s->weights;
    const int64_t end = fp8_weights_group_end(all, first);
    const int64_t before = j->count;
    fp8_status st = FP8_OK;

    for (int64_t i = first; i < end; i++) {
        const fp8_weight *w = &all->data[i];
        if (kind == PIECE_CODES) FP8_TRY(cut_codes(j, i));
        else FP8_TRY(cut(j, PIECE_AMAX, i, w->rows * w->cols, PIECE_ELEMENTS));
    }
    if (kind == PIECE_AMAX) j->groups[first].left = j->count - before;
done:
    return st;
}

/* Tensors in the order of the plan, a group where its first member stands: shards open and close in
 * turn. */
static fp8_status list_pieces(job *j) {
    const fp8_export_plan *plan = j->s->plan;
    const fp8_weights *all = j->s->weights;
    const int64_t num_weights = j->s->scheme == FP8_SCHEME_NONE ? 0 : all->count;
    int64_t *weight_of = calloc((size_t)plan->count + 1, sizeof *weight_of); /* 1 + its index */
    int64_t held = -1; /* the group whose amax is listed, but not its codes */
    unsigned char *listed = calloc((size_t)all->count + 1, 1);
    fp8_status st = FP8_OK;

    if (!weight_of || !listed) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "list of pieces"));
    for (int64_t i = 0; i < num_weights; i++) {
        weight_of[plan->codes_at[i]] = 1 + i;
        j->group_of[i] = i > 0 && all->data[i - 1].group == all->data[i].group ? j->group_of[i - 1]
                                                                               : i;
    }
    for (int64_t i = 0; i < plan->count; i++) {
        const int64_t first = weight_of[i] ? j->group_of[weight_of[i] - 1] : -1;
        if (fp8_weight_stream_copies(j->s, i)) {
            const fp8_st_spec *spec = &plan->specs[i];
            size_t bytes = 0;
            FP8_TRY(fp8_shape_bytes(&bytes, spec->dtype, spec->shape, spec->ndim));
            FP8_TRY(cut(j, PIECE_COPY, i, (int64_t)bytes, COPY_BYTES));
        }
        if (first < 0 || listed[first] || plan->data[plan->codes_at[first]]) continue;
        listed[first] = 1;
        if (j->shared) FP8_TRY(cut_group(j, first, PIECE_AMAX));
        if (held >= 0) FP8_TRY(cut_group(j, held, PIECE_CODES));
        held = first;
    }
    if (held >= 0) FP8_TRY(cut_group(j, held, PIECE_CODES));
done:
    free(weight_of);
    free(listed);
    return st;
}

/* ---- one piece ------------------------------------------------------------------------------- */

static fp8_status reserve(void *buffer, size_t *have, size_t want, const char *name) {
    void **p = buffer;
    if (*have >= want) return FP8_OK;
    free(*p);
    *have = 0;
    *p = malloc(want);
    if (!*p) return FP8_FAIL(FP8_ENOMEM, "'%s': %zu bytes", name, want);
    *have = want;
    return FP8_OK;
}

/* *x = elements [begin, begin + n) of the weight, aligned. */
static fp8_status source_of(scratch *own, const fp8_weight *w, int64_t begin, int64_t n,
                            const void **x) {
    const size_t element = fp8_dtype_size(w->entry->tensor.dtype), bytes = (size_t)n * element;
    const unsigned char *from = w->entry->tensor.data;
    fp8_status st = FP8_OK;

    from += (size_t)begin * element;
    fp8_file_soon(from, bytes);
    *x = from;
    if ((uintptr_t)from % element == 0) return FP8_OK;
    FP8_TRY(reserve(&own->aligned, &own->aligned_bytes, bytes, w->name));
    memcpy(own->aligned, from, bytes);
    *x = own->aligned;
done:
    return st;
}

static fp8_status put_part(job *j, int64_t spec, size_t offset, const void *data, size_t bytes) {
    const fp8_status st = fp8_checkpoint_writer_put_part(j->s->writer, spec, offset, data, bytes);
    if (st == FP8_OK) atomic_fetch_add(&j->done_bytes, bytes);
    return st;
}

static fp8_status copy_piece(job *j, const piece *p) {
    const unsigned char *from = j->s->plan->data[p->at];
    const size_t begin = (size_t)p->begin, bytes = (size_t)(p->end - p->begin);
    fp8_status st = FP8_OK;

    fp8_file_soon(from + begin, bytes);
    FP8_TRY(put_part(j, p->at, begin, from + begin, bytes));
    fp8_file_drop(from + begin, bytes);
done:
    return st;
}

/* Adds what a part of weight `at` holds; FP8_EDATA at a value that may not be. */
static fp8_status join_slot(job *j, int64_t at, const fp8_amax_slot *found) {
    fp8_amax_slot *slot = &j->slots[at];

    pthread_mutex_lock(&j->lock);
    if (found->amax > slot->amax) slot->amax = found->amax;
    slot->nonfinite += found->nonfinite;
    pthread_mutex_unlock(&j->lock);
    if (found->nonfinite == 0 || j->s->allow_nonfinite) return FP8_OK;
    return FP8_FAIL(FP8_EDATA, "'%s.weight' is not finite", j->s->weights->data[at].name);
}

/* The last piece of a group makes its scale. */
static fp8_status finish_group(job *j, int64_t first) {
    const int64_t end = fp8_weights_group_end(j->s->weights, first);
    group_state *g = &j->groups[first];
    float amax = 0, descale;
    int last;
    fp8_status st = FP8_OK;

    pthread_mutex_lock(&j->lock);
    last = g->left == 1;
    for (int64_t i = first; last && i < end; i++)
        if (j->slots[i].amax > amax) amax = j->slots[i].amax;
    if (last) g->scale = fp8_scale_of(amax);
    descale = g->scale.descale;
    g->left--;
    if (last) pthread_cond_broadcast(&j->ready);
    pthread_mutex_unlock(&j->lock);
    for (int64_t i = first; last && i < end; i++)
        FP8_TRY(put_part(j, j->s->plan->codes_at[i] + 1, 0, &descale, sizeof descale));
done:
    return st;
}

static fp8_status amax_piece(job *j, scratch *own, const piece *p) {
    const fp8_weight *w = &j->s->weights->data[p->at];
    const int64_t n = p->end - p->begin;
    fp8_amax_slot found = {0};
    const void *x;
    fp8_status st = FP8_OK;

    FP8_TRY(source_of(own, w, p->begin, n, &x));
    FP8_TRY(fp8_observe(j->inline_device, &found, x, w->entry->tensor.dtype, 1, n, n, NULL));
    FP8_TRY(join_slot(j, p->at, &found));
    FP8_TRY(finish_group(j, j->group_of[p->at]));
done:
    return st;
}

/* The scale of the group; 0 when it will never be there: whoever failed says why. */
static int wait_for(job *j, int64_t first, float *scale) {
    int ready;

    pthread_mutex_lock(&j->lock);
    while (j->groups[first].left > 0 && !j->failed) pthread_cond_wait(&j->ready, &j->lock);
    *scale = j->groups[first].scale.scale;
    ready = j->groups[first].left == 0;
    pthread_mutex_unlock(&j->lock);
    return ready;
}

static fp8_status quantize_flat(job *j, scratch *own, const piece *p) {
    const fp8_weight *w = &j->s->weights->data[p->at];
    const int64_t n = p->end - p->begin;
    const void *x;
    float scale;
    fp8_status st = FP8_OK;

    if (!wait_for(j, j->group_of[p->at], &scale)) return FP8_OK;
    FP8_TRY(source_of(own, w, p->begin, n, &x));
    FP8_TRY(reserve(&own->codes, &own->codes_bytes, (size_t)n, w->name));
    FP8_TRY(fp8_quantize(j->inline_device, own->codes, FP8_DTYPE_E4M3, x, w->entry->tensor.dtype, n,
                         &scale));
    FP8_TRY(put_part(j, j->s->plan->codes_at[p->at], (size_t)p->begin, own->codes, (size_t)n));
done:
    return st;
}

/* What shares a descale. */
static fp8_weight_grid grid_of(const job *j, const fp8_weight *w) {
    const fp8_grid_rule rule = j->s->bf16_scales ? FP8_GRID_BF16 : FP8_GRID_MX;

    switch (j->s->scheme) {
    case FP8_SCHEME_BLOCK: return (fp8_weight_grid){BAND, BAND, rule};
    case FP8_SCHEME_MX: return (fp8_weight_grid){1, FP8_DIALECT_MX, rule};
    case FP8_SCHEME_DYNAMIC:
        return (fp8_weight_grid){w->in_out ? w->rows : 1, w->in_out ? 1 : w->cols, rule};
    case FP8_SCHEME_NONE:
    case FP8_SCHEME_TENSOR:
    case FP8_SCHEME_TENSOR_DYNAMIC:
    case FP8_NUM_SCHEMES: break;
    }
    return (fp8_weight_grid){w->rows, w->cols, rule};
}

/* Rows with scales of their own: channels or rectangles; all of a weight kept [in, out]. */
static fp8_status quantize_rows(job *j, scratch *own, const piece *p) {
    const fp8_weight *w = &j->s->weights->data[p->at];
    const fp8_dtype from = w->entry->tensor.dtype;
    const int64_t rows = p->end - p->begin, n = rows * w->cols;
    const fp8_weight_grid grid = grid_of(j, w);
    const int64_t first = fp8_weight_grid_count(&grid, p->begin, w->cols);
    const int64_t count = fp8_weight_grid_count(&grid, rows, w->cols);
    const fp8_dtype type = fp8_weight_descale_dtype(j->s->scheme, j->s->bf16_scales);
    const size_t size = fp8_dtype_size(type), bytes = (size_t)count * sizeof(float);
    fp8_amax_slot found = {0};
    const void *x;
    fp8_status st = FP8_OK;

    FP8_TRY(source_of(own, w, p->begin * w->cols, n, &x));
    FP8_TRY(reserve(&own->codes, &own->codes_bytes, (size_t)n, w->name));
    FP8_TRY(reserve(&own->descales, &own->descales_bytes, bytes, w->name));
    FP8_TRY(fp8_observe(j->inline_device, &found, x, from, 1, n, n, NULL));
    FP8_TRY(join_slot(j, p->at, &found));
    if (j->s->scheme == FP8_SCHEME_MX || j->s->bf16_scales)
        FP8_TRY(fp8_quantize_grid(NULL, own->codes, own->descales, x, from, rows, w->cols, &grid));
    else if (j->s->scheme == FP8_SCHEME_BLOCK)
        FP8_TRY(fp8_quantize_squares(NULL, own->codes, own->descales, x, from, rows, w->cols,
                                     j->s->ue8m0));
    else
        FP8_TRY(fp8_quantize_groups(j->inline_device, own->codes, FP8_DTYPE_E4M3, own->descales, x,
                                    from, rows, w->cols, w->in_out ? 1 : 0));
    FP8_TRY(put_part(j, j->s->plan->codes_at[p->at], (size_t)(p->begin * w->cols), own->codes,
                     (size_t)n));
    fp8_descales_pack(own->descales, type, own->descales, count);
    FP8_TRY(put_part(j, j->s->plan->codes_at[p->at] + 1, (size_t)first * size, own->descales,
                     (size_t)count * size));
done:
    return st;
}

static fp8_status codes_piece(job *j, scratch *own, const piece *p) {
    const fp8_weight *w = &j->s->weights->data[p->at];
    const int64_t row = j->shared ? 1 : w->cols;
    const size_t element = fp8_dtype_size(w->entry->tensor.dtype);
    const unsigned char *from = w->entry->tensor.data;
    fp8_status st = FP8_OK;

    if (j->shared) FP8_TRY(quantize_flat(j, own, p));
    else FP8_TRY(quantize_rows(j, own, p));
    fp8_file_drop(from + (size_t)(p->begin * row) * element,
                  (size_t)((p->end - p->begin) * row) * element);
done:
    return st;
}

static fp8_status run_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    job *j = ctx;
    scratch *own = &j->scratches[worker];
    fp8_status st = FP8_OK;

    for (int64_t i = begin; i < end; i++) {
        const piece *p = &j->pieces[i];
        if (p->kind == PIECE_COPY) FP8_TRY(copy_piece(j, p));
        if (p->kind == PIECE_AMAX) FP8_TRY(amax_piece(j, own, p));
        if (p->kind == PIECE_CODES) FP8_TRY(codes_piece(j, own, p));
        if (worker == 0) FP8_TRY(fp8_weight_stream_tell(j->s, atomic_load(&j->done_bytes)));
    }
done:
    if (st != FP8_OK) {
        pthread_mutex_lock(&j->lock);
        j->failed = 1;
        pthread_cond_broadcast(&j->ready);
        pthread_mutex_unlock(&j->lock);
    }
    return st;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Whoever found the first bad value, the first bad tensor is told: its pieces had been handed out
 * before those of any later group. They may not all have been looked at. */
static fp8_status name_nonfinite(const job *j) {
    const fp8_weights *all = j->s->weights;
    int64_t i = 0;
    fp8_amax_slot found = {0};
    fp8_status st = FP8_OK;

    while (j->slots[i].nonfinite == 0) i++;
    for (int64_t begin = 0, n; begin < all->data[i].rows * all->data[i].cols; begin += n) {
        const void *x;
        n = min64(PIECE_ELEMENTS, all->data[i].rows * all->data[i].cols - begin);
        FP8_TRY(source_of(j->scratches, &all->data[i], begin, n, &x));
        FP8_TRY(fp8_observe(j->inline_device, &found, x, all->data[i].entry->tensor.dtype, 1, n, n,
                            NULL));
    }
    st = FP8_FAIL(FP8_EDATA, "%s.weight: %u values are NaN or infinite", all->data[i].name,
                  found.nonfinite);
done:
    return st;
}

fp8_status fp8_weight_stream_run(const fp8_weight_stream *s) {
    const size_t n = (size_t)s->weights->count + 1;
    const int32_t threads = fp8_pool_threads(fp8_device_pool(s->d));
    job j = {.s = s, .lock = PTHREAD_MUTEX_INITIALIZER, .ready = PTHREAD_COND_INITIALIZER};
    fp8_status st = FP8_OK;

    j.shared = !s->bf16_scales && (s->scheme == FP8_SCHEME_TENSOR ||
                                   s->scheme == FP8_SCHEME_TENSOR_DYNAMIC);
    j.group_of = calloc(n, sizeof *j.group_of);
    j.groups = calloc(n, sizeof *j.groups);
    j.slots = calloc(n, sizeof *j.slots);
    j.scratches = calloc((size_t)threads, sizeof *j.scratches);
    if (!j.group_of || !j.groups || !j.slots || !j.scratches)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "streams of %zu weights", n - 1));
    FP8_TRY(fp8_device_create(&j.inline_device, "cpu", 1));
    FP8_TRY(list_pieces(&j));
    st = fp8_parallel_for(fp8_device_pool(s->d), j.count, 1, run_piece, &j);
    if (st == FP8_OK) st = fp8_weight_stream_tell(s, atomic_load(&j.done_bytes));
    if (st == FP8_EDATA) st = name_nonfinite(&j);
done:
    for (int32_t i = 0; j.scratches && i < threads; i++) {
        free(j.scratches[i].codes);
        free(j.scratches[i].descales);
        free(j.scratches[i].aligned);
    }
    fp8_device_destroy(j.inline_device);
    pthread_cond_destroy(&j.ready);
    pthread_mutex_destroy(&j.lock);
    free(j.pieces);
    free(j.group_of);
    free(j.groups);
    free(j.slots);
    free(j.scratches);
    return st;
}
