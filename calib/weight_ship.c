/* One thread drives the device, the others write:
 *
 *   driver   load g0 | amax g0, scale | codes, downloads of g0 | load g1 | amax g1 ...
 *   device           |  observe       | quantize | copy copy   |        ...
 *   writers                                        wait for a copy, write it, give its room back
 *
 * A parcel is at most PARCEL_BYTES of a tensor, in pinned memory or (a copy) in the source itself.
 * The driver waits where all parcels are on their way, the writers where none is. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "calib/weight_stream.h"

enum { PARCEL_BYTES = 4 << 20, NUM_PARCELS = 24 };

typedef struct parcel {
    void *host;       /* pinned */
    fp8_event *here;  /* recorded behind the copy into it */
    const void *data; /* host, or a part of the source */
    int64_t spec;
    size_t offset, bytes;
    struct parcel *next;
} parcel;

typedef struct job {
    const fp8_weight_stream *s;
    fp8_weight_stage *stage;
    parcel parcels[NUM_PARCELS];
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t freed, sent;
    parcel *free, *first, *last; /* unused; on their way, the oldest first */
    int closed, failed;          /* nothing more comes; nobody goes on */
    int driven;                  /* worker 0 alone */
    size_t done_bytes;
} job;

/* ---- parcels --------------------------------------------------------------------------------- */

/* NULL: a writer failed. */
static parcel *take_free(job *j) {
    parcel *p = NULL;

    pthread_mutex_lock(&j->lock);
    while (!j->free && !j->failed) pthread_cond_wait(&j->freed, &j->lock);
    if (!j->failed) {
        p = j->free;
        j->free = p->next;
        p->next = NULL;
    }
    pthread_mutex_unlock(&j->lock);
    return p;
}

static void send(job *j, parcel *p) {
    pthread_mutex_lock(&j->lock);
    if (j->last) j->last->next = p;
    else j->first = p;
    j->last = p;
    pthread_cond_signal(&j->sent);
    pthread_mutex_unlock(&j->lock);
}

/* NULL: nothing more comes. */
static parcel *receive(job *j) {
    parcel *p = NULL;

    pthread_mutex_lock(&j->lock);
    while (!j->first && !j->closed && !j->failed) pthread_cond_wait(&j->sent, &j->lock);
    if (!j->failed && j->first) {
        p = j->first;
        j->first = p->next;
        if (!j->first) j->last = NULL;
    }
    pthread_mutex_unlock(&j->lock);
    return p;
}

static void give_back(job *j, parcel *p, size_t done) {
    pthread_mutex_lock(&j->lock);
    p->next = j->free;
    j->free = p;
    j->done_bytes += done;
    pthread_cond_signal(&j->freed);
    pthread_mutex_unlock(&j->lock);
}

static void close_all(job *j, int failed) {
    pthread_mutex_lock(&j->lock);
    j->closed = 1;
    j->failed |= failed;
    pthread_cond_broadcast(&j->freed);
    pthread_cond_broadcast(&j->sent);
    pthread_mutex_unlock(&j->lock);
}

/* ---- writers --------------------------------------------------------------------------------- */

static fp8_status write_parcels(job *j) {
    fp8_status st = FP8_OK;

    for (parcel *p; (p = receive(j)) != NULL;) {
        if (p->data == p->host) FP8_TRY(fp8_event_wait(p->here));
        else fp8_file_soon(p->data, p->bytes);
        FP8_TRY(fp8_checkpoint_writer_put_part(j->s->writer, p->spec, p->offset, p->data,
                                               p->bytes));
        if (p->data != p->host) fp8_file_drop(p->data, p->bytes);
        give_back(j, p, p->bytes);
    }
done:
    return st;
}

/* ---- the driver ------------------------------------------------------------------------------ */

static fp8_status tell(job *j) {
    size_t done;

    pthread_mutex_lock(&j->lock);
    done = j->done_bytes;
    pthread_mutex_unlock(&j->lock);
    return fp8_weight_stream_tell(j->s, done);
}

/* All bytes of a tensor: on the device, or (to be copied) in the source. */
static fp8_status send_tensor(job *j, int64_t spec, const unsigned char *data, int on_device) {
    const fp8_st_spec *s = &j->s->plan->specs[spec];
    size_t bytes = 0;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_shape_bytes(&bytes, s->dtype, s->shape, s->ndim));
    if (bytes == 0) FP8_TRY(fp8_checkpoint_writer_put(j->s->writer, spec, data, 0));
    for (size_t at = 0; at < bytes; at += PARCEL_BYTES) {
        const size_t n = bytes - at < PARCEL_BYTES ? bytes - at : PARCEL_BYTES;
        parcel *p = take_free(j);
        if (!p) return FP8_OK;
        p->spec = spec;
        p->offset = at;
        p->bytes = n;
        p->data = on_device ? p->host : data + at;
        if (on_device) {
            st = fp8_device_download_async(j->s->d, p->host, data + at, n);
            if (st == FP8_OK) st = fp8_event_record(p->here);
            if (st != FP8_OK) return st; /* the parcel is not missed: nobody goes on */
        }
        send(j, p);
        FP8_TRY(tell(j));
    }
done:
    return st;
}

static size_t bytes_of_descales(const fp8_st_spec *s) {
    size_t n = sizeof(float);
    for (int32_t i = 0; i < s->ndim; i++) n *= (size_t)s->shape[i];
    return n;
}

static fp8_status send_group(job *j, int64_t first) {
    const fp8_weight_stream *s = j->s;
    const fp8_weights *all = s->weights;
    const int64_t end = fp8_weights_group_end(all, first);
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_weight_stage_load(j->stage, all, first, end, s->allow_nonfinite));
    for (int64_t i = first; i < end; i++) {
        const int64_t at = s->plan->codes_at[i];
        const uint8_t *codes = NULL;
        const float *descales = NULL;
        FP8_TRY(fp8_weight_stage_quantize(j->stage, i - first, s->scheme, &codes, &descales));
        FP8_TRY(fp8_checkpoint_writer_put(s->writer, at + 1, descales,
                                          bytes_of_descales(&s->plan->specs[at + 1])));
        FP8_TRY(send_tensor(j, at, codes, 1));
        if (!all->data[i].resident) fp8_file_drop(all->data[i].entry->tensor.data,
                                                  all->data[i].entry->bytes);
    }
done:
    return st;
}

/* Tensors in the order of the plan, a group where its first member stands. */
static fp8_status send_all(job *j) {
    const fp8_export_plan *plan = j->s->plan;
    const fp8_weights *all = j->s->weights;
    int64_t *group_at = calloc((size_t)plan->count + 1, sizeof *group_at); /* 1 + its first */
    unsigned char *sent = calloc((size_t)all->count + 1, 1);
    fp8_status st = FP8_OK;

    if (!group_at || !sent) FP8_TRY(FP8_FAIL(FP8_ENOMEM, "order of %zu tensors",
                                             (size_t)plan->count));
    for (int64_t first = 0, end; first < all->count; first = end) {
        end = fp8_weights_group_end(all, first);
        for (int64_t i = first; i < end; i++) group_at[plan->codes_at[i]] = 1 + first;
    }
    for (int64_t i = 0; i < plan->count; i++) {
        const int64_t first = group_at[i] - 1;
        if (fp8_weight_stream_copies(j->s, i)) FP8_TRY(send_tensor(j, i, plan->data[i], 0));
        if (first < 0 || sent[first]) continue;
        sent[first] = 1;
        FP8_TRY(send_group(j, first));
    }
done:
    free(group_at);
    free(sent);
    return st;
}

/* ---- the whole ------------------------------------------------------------------------------- */

/* Worker 0 is the caller's thread; it may get the part of one that was slow to wake up, too. */
static fp8_status take_part(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    job *j = ctx;
    const int drives = worker == 0 && !j->driven;
    fp8_status st;

    (void)begin, (void)end;
    if (drives) j->driven = 1;
    st = drives ? send_all(j) : write_parcels(j);
    if (drives || st != FP8_OK) close_all(j, st != FP8_OK);
    return st;
}

static void release(job *j) {
    for (int i = 0; i < NUM_PARCELS; i++) {
        fp8_event_destroy(j->parcels[i].here);
        fp8_device_free_host(j->s->d, j->parcels[i].host); /* waits for what still comes */
    }
    fp8_weight_stage_destroy(j->stage);
    pthread_cond_destroy(&j->freed);
    pthread_cond_destroy(&j->sent);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

fp8_status fp8_weight_ship_run(const fp8_weight_stream *s) {
    job *j = calloc(1, sizeof *j);
    fp8_status st = FP8_OK;

    if (!j) return FP8_FAIL(FP8_ENOMEM, "writing from a device");
    j->s = s;
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->freed, NULL);
    pthread_cond_init(&j->sent, NULL);
    for (int i = 0; i < NUM_PARCELS; i++) {
        parcel *p = &j->parcels[i];
        FP8_TRY(fp8_device_alloc_host(s->d, &p->host, PARCEL_BYTES));
        FP8_TRY(fp8_event_create(s->d, &p->here));
        p->next = j->free;
        j->free = p;
    }
    FP8_TRY(fp8_weight_stage_create(&j->stage, s->d, s->weights));
    if (fp8_pool_threads(s->writers) < 2)
        FP8_TRY(FP8_FAIL(FP8_EINVAL, "writing from a device takes 2 threads"));
    st = fp8_parallel_for(s->writers, fp8_pool_threads(s->writers), 1, take_part, j);
    if (st == FP8_OK) st = tell(j);
done:
    release(j);
    return st;
}
