#include "calib/export_background.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Writers: one copies 1.5 to 2 GB/s into the page cache, the link brings 50. */
enum { MAX_WRITERS = 8, MESSAGE_BYTES = 1024, TICK_MS = 100 };

struct fp8_export_background {
    fp8_weight_stream stream;
    fp8_progress progress; /* of the stream: keeps count and says when to stop */
    fp8_device *d;
    pthread_t thread;
    int started;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t ended;
    int stop, finished;
    size_t done_bytes;
    fp8_status status;
    char message[MESSAGE_BYTES];
};

fp8_status fp8_export_ship(const fp8_weight_stream *s) {
    const int32_t threads = fp8_pool_threads(fp8_device_pool(s->d));
    fp8_weight_stream own = *s;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_pool_create(&own.writers, 1 + (threads < MAX_WRITERS ? threads : MAX_WRITERS)));
    st = fp8_weight_ship_run(&own);
done:
    fp8_pool_destroy(own.writers);
    return st;
}

static int keep_count(void *ctx, const char *phase, int64_t done, int64_t total) {
    fp8_export_background *b = ctx;
    int stop;

    (void)phase, (void)total;
    pthread_mutex_lock(&b->lock);
    b->done_bytes = (size_t)done;
    stop = b->stop;
    pthread_mutex_unlock(&b->lock);
    return stop;
}

static void *run(void *ctx) {
    fp8_export_background *b = ctx;
    const fp8_status st = fp8_export_ship(&b->stream);

    pthread_mutex_lock(&b->lock);
    b->status = st;
    if (st != FP8_OK) snprintf(b->message, sizeof b->message, "%s", fp8_last_message());
    b->finished = 1;
    pthread_cond_broadcast(&b->ended);
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

fp8_status fp8_export_background_start(fp8_export_background **out, const fp8_weight_stream *s) {
    fp8_export_background *b = calloc(1, sizeof *b);
    char spec[32] = "cpu";
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!b) return FP8_FAIL(FP8_ENOMEM, "writing in the background");
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->ended, NULL);
    if (fp8_device_place(s->d) == FP8_PLACE_CUDA)
        snprintf(spec, sizeof spec, "cuda:%d", (int)fp8_device_index(s->d));
    FP8_TRY(fp8_device_sync(s->d)); /* the weights are all there */
    FP8_TRY(fp8_device_create(&b->d, spec, fp8_pool_threads(fp8_device_pool(s->d))));
    b->progress = (fp8_progress){keep_count, b};
    b->stream = *s;
    b->stream.d = b->d;
    b->stream.no_scales = 1;
    b->stream.progress = &b->progress;
    if (pthread_create(&b->thread, NULL, run, b) != 0)
        FP8_TRY(FP8_FAIL(FP8_ENOMEM, "a thread to write in the background"));
    b->started = 1;
    *out = b;
    b = NULL;
done:
    fp8_export_background_stop(b);
    return st;
}

static void wait_a_tick(fp8_export_background *b) {
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += TICK_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    (void)pthread_cond_timedwait(&b->ended, &b->lock, &until);
}

fp8_status fp8_export_background_join(fp8_export_background *b, const fp8_progress *progress,
                                      size_t total) {
    fp8_status st;

    pthread_mutex_lock(&b->lock);
    while (!b->finished) {
        const int64_t done = (int64_t)b->done_bytes;
        int stop;
        pthread_mutex_unlock(&b->lock);
        stop = progress->on && progress->on(progress->ctx, "writing", done, (int64_t)total);
        pthread_mutex_lock(&b->lock);
        b->stop |= stop;
        if (!b->finished) wait_a_tick(b);
    }
    st = b->status == FP8_OK ? FP8_OK : FP8_FAIL(b->status, "%s", b->message);
    pthread_mutex_unlock(&b->lock);
    return st;
}

void fp8_export_background_stop(fp8_export_background *b) {
    if (!b) return;
    pthread_mutex_lock(&b->lock);
    b->stop = 1;
    pthread_mutex_unlock(&b->lock);
    if (b->started) pthread_join(b->thread, NULL);
    fp8_device_destroy(b->d);
    pthread_cond_destroy(&b->ended);
    pthread_mutex_destroy(&b->lock);
    free(b);
}
