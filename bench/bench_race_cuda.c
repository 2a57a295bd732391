/* Contenders in turns: graphs of several calls, replayed between two events. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <time.h>

#include "bench/bench_impl.h"
#include "core/cuda_check.h"
#include "core/graph.h"

enum { MAX_CALLS = 64, HOST_CALLS = 8, HOST_REPEATS = 7 };
static const double replay_ms = 0.33; /* so that the events' own microseconds do not count */

typedef struct lane {
    fp8_graph *graph;
    int32_t calls;
    float *ms;
} lane;

typedef struct race {
    fp8_device *device;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    lane *lanes;
} race;

static double now_us(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_float(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int by_double(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The calling thread's time for a call, with nothing in the queue before them. */
static fp8_status time_host(const race *r, bench_contender *c) {
    double us[HOST_REPEATS];
    fp8_status st = FP8_OK;
    for (int i = 0; i < HOST_REPEATS; i++) {
        double begin;
        FP8_TRY_CUDA(cudaStreamSynchronize(r->stream));
        begin = now_us();
        for (int k = 0; k < HOST_CALLS; k++) FP8_TRY(c->call(c->ctx));
        us[i] = (now_us() - begin) / HOST_CALLS;
    }
    FP8_TRY_CUDA(cudaStreamSynchronize(r->stream));
    qsort(us, HOST_REPEATS, sizeof *us, by_double);
    c->host_us = us[HOST_REPEATS / 2];
done:
    return st;
}

static fp8_status choose_calls(const race *r, const bench_contender *c, int32_t *calls) {
    float ms = 0;
    fp8_status st;
    FP8_TRY(c->call(c->ctx));
    FP8_TRY_CUDA(cudaEventRecord(r->begin, r->stream));
    FP8_TRY(c->call(c->ctx));
    FP8_TRY_CUDA(cudaEventRecord(r->end, r->stream));
    FP8_TRY_CUDA(cudaEventSynchronize(r->end));
    FP8_TRY_CUDA(cudaEventElapsedTime(&ms, r->begin, r->end));
    *calls = ms > 0 ? (int32_t)(replay_ms / (double)ms) + 1 : MAX_CALLS;
    if (*calls > MAX_CALLS) *calls = MAX_CALLS;
done:
    return st;
}

static fp8_status capture(const race *r, const bench_contender *c, lane *l) {
    fp8_status st, called = FP8_OK;

    FP8_TRY(fp8_graph_begin(r->device));
    for (int32_t i = 0; i < l->calls && called == FP8_OK; i++) called = c->call(c->ctx);
    st = fp8_graph_end(r->device, &l->graph);
    if (called != FP8_OK) st = called;
done:
    return st;
}

static fp8_status prepare(const race *r, bench_contender *c, lane *l, int64_t rounds) {
    fp8_status st;
    l->ms = calloc((size_t)rounds, sizeof *l->ms);
    if (!l->ms) return FP8_FAIL(FP8_ENOMEM, "bench: %lld rounds", (long long)rounds);
    FP8_TRY(choose_calls(r, c, &l->calls));
    FP8_TRY(time_host(r, c));
    FP8_TRY(capture(r, c, l));
    FP8_TRY(fp8_graph_launch(l->graph));
    FP8_TRY_CUDA(cudaStreamSynchronize(r->stream));
done:
    return st;
}

static fp8_status replay(const race *r, lane *l, int64_t round) {
    fp8_status st = FP8_OK;
    FP8_TRY_CUDA(cudaEventRecord(r->begin, r->stream));
    FP8_TRY(fp8_graph_launch(l->graph));
    FP8_TRY_CUDA(cudaEventRecord(r->end, r->stream));
    FP8_TRY_CUDA(cudaEventSynchronize(r->end));
    FP8_TRY_CUDA(cudaEventElapsedTime(&l->ms[round], r->begin, r->end));
    l->ms[round] /= (float)l->calls;
done:
    return st;
}

static void summarize(bench_contender *c, lane *l, int64_t rounds) {
    qsort(l->ms, (size_t)rounds, sizeof *l->ms, by_float);
    c->ms = (double)l->ms[rounds / 2];
    c->ms_low = (double)l->ms[rounds / 5];
    c->ms_high = (double)l->ms[rounds - 1 - rounds / 5];
}

static void free_lanes(lane *lanes, int32_t count) {
    for (int32_t i = 0; lanes && i < count; i++) {
        fp8_graph_destroy(lanes[i].graph);
        free(lanes[i].ms);
    }
    free(lanes);
}

fp8_status bench_race(fp8_device *d, bench_contender *all, int32_t count,
                      const fp8_bench_options *options, double *mhz) {
    const int64_t rounds = options->rounds;
    race r = {.device = d, .stream = fp8_device_stream(d)};
    fp8_status st = FP8_OK;

    if (count == 0) return FP8_OK;
    r.lanes = calloc((size_t)count, sizeof *r.lanes);
    if (!r.lanes) return FP8_FAIL(FP8_ENOMEM, "bench: %d contenders", count);
    FP8_TRY_CUDA(cudaEventCreate(&r.begin));
    FP8_TRY_CUDA(cudaEventCreate(&r.end));
    for (int32_t i = 0; i < count; i++) FP8_TRY(prepare(&r, &all[i], &r.lanes[i], rounds));
    for (int64_t round = 0; round < rounds; round++)
        for (int32_t i = 0; i < count; i++) {
            if (options->interrupted && options->interrupted())
                FP8_TRY(FP8_FAIL(FP8_ECANCELED, "bench: interrupted"));
            FP8_TRY(replay(&r, &r.lanes[i], round));
        }
    *mhz = bench_sm_clock(fp8_device_index(d));
    for (int32_t i = 0; i < count; i++) summarize(&all[i], &r.lanes[i], rounds);
done:
    free_lanes(r.lanes, count);
    if (r.begin) (void)cudaEventDestroy(r.begin);
    if (r.end) (void)cudaEventDestroy(r.end);
    return st;
}
