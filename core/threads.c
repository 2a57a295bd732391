#define _GNU_SOURCE /* sched_getaffinity */
#include "core/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024, MESSAGE_BYTES = 1024 };

struct fp8_pool {
    pthread_mutex_t lock;
    pthread_cond_t start, finished;
    int32_t num_threads, num_spawned, busy;
    uint64_t job; /* counts jobs; a worker runs each once */
    int quit;
    pthread_t *threads;
    /* the job at hand */
    fp8_range_fn fn;
    void *ctx;
    int64_t n, grain;
    atomic_llong next;
    fp8_status status;
    char message[MESSAGE_BYTES];
};

typedef struct worker_arg {
    fp8_pool *pool;
    int32_t index;
} worker_arg;

static void record_failure(fp8_pool *p, fp8_status st) {
    pthread_mutex_lock(&p->lock);
    if (p->status == FP8_OK) {
        const char *from = fp8_last_message();
        size_t i = 0;
        for (; from[i] && i + 1 < sizeof p->message; i++) p->message[i] = from[i];
        p->message[i] = '\0';
        p->status = st;
    }
    pthread_mutex_unlock(&p->lock);
    atomic_store(&p->next, p->n); /* no new pieces */
}

static void work(fp8_pool *p, int32_t worker) {
    for (;;) {
        const int64_t begin = atomic_fetch_add(&p->next, p->grain);
        const int64_t end = p->n - begin < p->grain ? p->n : begin + p->grain;
        fp8_status st;
        if (begin >= p->n) return;
        st = p->fn(p->ctx, begin, end, worker);
        if (st != FP8_OK) record_failure(p, st);
    }
}

static void *worker_main(void *arg) {
    fp8_pool *p = ((worker_arg *)arg)->pool;
    const int32_t index = ((worker_arg *)arg)->index;
    uint64_t seen = 0;

    free(arg);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && p->job == seen) pthread_cond_wait(&p->start, &p->lock);
        if (p->quit) break;
        seen = p->job;
        pthread_mutex_unlock(&p->lock);
        work(p, index);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0) pthread_cond_signal(&p->finished);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int32_t available_processors(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

fp8_status fp8_pool_create(fp8_pool **out, int32_t threads) {
    fp8_pool *p;

    *out = NULL;
    if (threads < 0 || threads > MAX_THREADS)
        return FP8_FAIL(FP8_EINVAL, "%d threads, expected 0 to %d", threads, MAX_THREADS);
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "thread pool");
    p->num_threads = threads ? threads : available_processors();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finished, NULL);
    p->threads = calloc((size_t)p->num_threads, sizeof *p->threads);
    for (int32_t i = 1; p->threads && i < p->num_threads; i++) {
        worker_arg *arg = malloc(sizeof *arg);
        if (!arg) break;
        *arg = (worker_arg){p, i};
        if (pthread_create(&p->threads[p->num_spawned], NULL, worker_main, arg) != 0) {
            free(arg);
            break;
        }
        p->num_spawned++;
    }
    if (!p->threads || p->num_spawned != p->num_threads - 1) {
        fp8_pool_destroy(p);
        return FP8_FAIL(FP8_ENOMEM, "cannot start %d threads", threads);
    }
    *out = p;
    return FP8_OK;
}

void fp8_pool_destroy(fp8_pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->quit = 1;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->num_spawned; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->start);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

int32_t fp8_pool_threads(const fp8_pool *p) { return p ? p->num_threads : 1; }

static fp8_status run_in_place(int64_t n, int64_t grain, fp8_range_fn fn, void *ctx) {
    for (int64_t begin = 0; begin < n; begin += grain) {
        const fp8_status st = fn(ctx, begin, n - begin < grain ? n : begin + grain, 0);
        if (st != FP8_OK) return st;
    }
    return FP8_OK;
}

fp8_status fp8_parallel_for(fp8_pool *p, int64_t n, int64_t grain, fp8_range_fn fn, void *ctx) {
    if (n < 0 || grain <= 0)
        return FP8_FAIL(FP8_EINVAL, "parallel_for: n=%lld grain=%lld", (long long)n,
                        (long long)grain);
    if (!p || p->num_threads == 1 || n <= grain) return run_in_place(n, grain, fn, ctx);

    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    p->grain = grain;
    atomic_store(&p->next, 0);
    p->status = FP8_OK;
    p->busy = p->num_spawned;
    p->job++;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);

    work(p, 0);

    pthread_mutex_lock(&p->lock);
    while (p->busy > 0) pthread_cond_wait(&p->finished, &p->lock);
    pthread_mutex_unlock(&p->lock);
    if (p->status != FP8_OK) return FP8_FAIL(p->status, "%s", p->message);
    return FP8_OK;
}
