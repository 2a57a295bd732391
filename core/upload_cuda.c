/* Large copies to a CUDA device: pool threads copy pieces into pinned memory of their own, two each
 * in turn, and the copy engine takes them from there. From pageable memory one thread of the
 * runtime does all of that (4 to 8 GB/s); a link of PCIe 5 takes 50.
 *
 *   thread 0   copy a0 | copy a1 | wait a0, copy a0 | wait a1, copy a1 | ...
 *   thread 1   copy b0 | copy b1 | wait b0, copy b0 | ...
 *   engine            a0 b0 a1 b1 ...
 */
#include <stdlib.h>
#include <string.h>

#include "core/cuda_check.h"
#include "core/device_impl.h"

/* All threads' pieces together; one is at least of LEAST bytes, so that a copy's start (some
 * microseconds) is little of it. */
enum { RING_BYTES = 128 << 20, LEAST_BYTES = 1 << 20, WORTH_BYTES = 8 << 20 };

typedef struct slot {
    void *host;
    cudaEvent_t taken; /* recorded behind the copy out of it */
    int used;
} slot;

struct fp8_upload_ring {
    size_t piece;
    int32_t num_slots; /* two a thread */
    void *memory;
    slot *slots;
    int32_t *turns; /* [threads] */
};

typedef struct upload_job {
    const fp8_device *d;
    fp8_upload_ring *ring;
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
} upload_job;

void fp8_cuda_drop_ring(fp8_upload_ring *r) {
    if (!r) return;
    for (int32_t i = 0; r->slots && i < r->num_slots; i++)
        if (r->slots[i].taken) (void)cudaEventDestroy(r->slots[i].taken);
    if (r->memory) (void)cudaFreeHost(r->memory);
    free(r->slots);
    free(r->turns);
    free(r);
}

static fp8_status make_ring(fp8_upload_ring **out, int32_t threads) {
    const size_t piece = (size_t)RING_BYTES / 2 / (size_t)threads / LEAST_BYTES * LEAST_BYTES;
    fp8_upload_ring *r = calloc(1, sizeof *r);
    fp8_status st = FP8_OK;

    if (!r) return FP8_FAIL(FP8_ENOMEM, "upload buffers");
    r->piece = piece > LEAST_BYTES ? piece : LEAST_BYTES;
    r->num_slots = 2 * threads;
    r->slots = calloc((size_t)r->num_slots, sizeof *r->slots);
    r->turns = calloc((size_t)threads, sizeof *r->turns);
    if (!r->slots || !r->turns) {
        st = FP8_FAIL(FP8_ENOMEM, "upload buffers");
        goto done;
    }
    FP8_TRY_CUDA(cudaMallocHost(&r->memory, r->piece * (size_t)r->num_slots));
    for (int32_t i = 0; i < r->num_slots; i++) {
        r->slots[i].host = (unsigned char *)r->memory + r->piece * (size_t)i;
        FP8_TRY_CUDA(cudaEventCreateWithFlags(&r->slots[i].taken, cudaEventDisableTiming));
    }
    *out = r;
    r = NULL;
done:
    fp8_cuda_drop_ring(r);
    return st;
}

static fp8_status upload_piece(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const upload_job *j = ctx;
    fp8_upload_ring *r = j->ring;
    slot *s = &r->slots[2 * worker + r->turns[worker]];
    const size_t at = (size_t)begin * r->piece;
    const size_t bytes = j->bytes - at < r->piece ? j->bytes - at : r->piece;
    fp8_status st = FP8_OK;

    (void)end;
    r->turns[worker] ^= 1;
    fp8_cuda_use(j->d);
    if (s->used) FP8_TRY_CUDA(cudaEventSynchronize(s->taken));
    memcpy(s->host, j->from + at, bytes);
    FP8_TRY_CUDA(cudaMemcpyAsync(j->to + at, s->host, bytes, cudaMemcpyHostToDevice,
                                 j->d->stream));
    s->used = 1;
    FP8_TRY_CUDA(cudaEventRecord(s->taken, j->d->stream));
done:
    return st;
}

int fp8_cuda_upload_is_large(const fp8_device *d, size_t bytes) {
    return bytes >= WORTH_BYTES && fp8_pool_threads(d->pool) > 1;
}

fp8_status fp8_cuda_upload_large(fp8_device *d, void *dst, const void *src, size_t bytes) {
    upload_job j = {.d = d, .to = dst, .from = src, .bytes = bytes};
    fp8_status st = FP8_OK;

    fp8_cuda_use(d);
    if (!d->ring) FP8_TRY(make_ring(&d->ring, fp8_pool_threads(d->pool)));
    j.ring = d->ring;
    st = fp8_parallel_for(d->pool, (int64_t)((bytes + d->ring->piece - 1) / d->ring->piece), 1,
                          upload_piece, &j);
done:
    return st;
}
