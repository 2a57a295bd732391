/* examples/serve_loop.c - requests that arrive over time on a thread of their own, ids streamed to
 * a callback while others run; a request is cut short, and one is canceled:
 * cc serve_loop.c $(pkg-config --cflags --libs fp8rt) -lpthread
 * ./a.out MODEL-FP8 auto|cpu|cuda */
#include <fp8/engine.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { REQUESTS = 12, NEW = 24, CUT = 5, CANCELED = 7 };

#define TRY(call)                                                                                  \
    if ((call) != FP8_OK) return fprintf(stderr, "%s\n", fp8_last_error()), 1

typedef struct client {
    fp8_engine *engine;
    int64_t id[REQUESTS];
    int heard[REQUESTS]; /* ids that its callback was given */
    atomic_int submitted;
} client;

typedef struct listener {
    client *c;
    int request;
} listener;
static listener listeners[REQUESTS];

/* On the thread that steps. Nonzero ends the request. */
static int hear(void *ctx, int32_t id) {
    const listener *l = ctx;
    (void)id;
    return ++l->c->heard[l->request] == 10 && l->request == CUT;
}

static void *arrive(void *ctx) {
    client *c = ctx;
    for (int i = 0; i < REQUESTS; i++) {
        const struct timespec pause = {0, 2000000};
        int32_t prompt[8];
        listeners[i] = (listener){c, i};
        for (int t = 0; t < 8; t++) prompt[t] = 3 + (i * 31 + t * 7) % 200;
        const fp8_request request = {.prompt = prompt, .num_prompt = 1 + i % 8, .max_new = NEW,
                                     .ignore_eos = 1, .on = hear, .ctx = &listeners[i],
                                     .sampling = {.temperature = 0.8f, .top_p = 0.95f,
                                                  .seed = (uint64_t)i}};
        if (fp8_engine_submit(c->engine, &request, &c->id[i]) != FP8_OK) exit(1);
        if (i == CANCELED && fp8_engine_cancel(c->engine, c->id[i]) != FP8_OK) exit(1);
        atomic_fetch_add(&c->submitted, 1);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(int argc, char **argv) {
    static client c;
    fp8_device *device = NULL;
    fp8_checkpoint *checkpoint = NULL;
    fp8_model *model = NULL;
    pthread_t thread;
    int64_t running = 0;
    fp8_engine_stats stats;

    if (argc != 3) return fprintf(stderr, "usage: %s MODEL-FP8 DEVICE\n", argv[0]), 2;
    TRY(fp8_device_create(&device, argv[2], 0));
    TRY(fp8_checkpoint_open(&checkpoint, argv[1]));
    TRY(fp8_model_load(&model, device, checkpoint, NULL));
    const fp8_engine_options options = {.max_seqs = 4, .max_context = 64, .max_requests = REQUESTS};
    TRY(fp8_engine_create(&c.engine, model, &options));
    if (pthread_create(&thread, NULL, arrive, &c) != 0) return 1;
    do { /* a server would wait for work here when there is none */
        TRY(fp8_engine_step(c.engine, &running));
    } while (running || atomic_load(&c.submitted) < REQUESTS);
    pthread_join(thread, NULL);

    for (int i = 0; i < REQUESTS; i++) {
        int32_t ids[NEW];
        fp8_request_state state;
        int64_t made;
        TRY(fp8_engine_poll(c.engine, c.id[i], ids, NEW, &made, &state));
        printf("request %d: %lld ids, %s\n", i, (long long)made,
               state == FP8_REQUEST_FULL      ? "full"
               : state == FP8_REQUEST_STOPPED ? "stopped"
                                              : "canceled");
    }
    fp8_engine_get_stats(c.engine, &stats);
    printf("%lld steps, %lld of %lld pages free\n", (long long)stats.steps,
           (long long)stats.free_pages, (long long)stats.num_pages);
    fp8_engine_destroy(c.engine);
    fp8_model_destroy(model);
    fp8_checkpoint_close(checkpoint);
    fp8_device_destroy(device);
    return 0;
}
