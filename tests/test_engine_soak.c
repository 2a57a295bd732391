/* An engine under random traffic: requests of many lengths join, leave, are canceled, are refused.
 * What each makes is held against what it made alone; whenever nothing is left to do, all pages are
 * free and the process holds as much memory as before, and with FP8_GPU_ALONE the GPU, too, which
 * counts the memory of all programs on it. Runs for FP8_SOAK_SECONDS (default 2) on
 * FP8_SOAK_DEVICE (default cpu). */
#include <malloc.h>
#include <time.h>

#include "model/engine.h"
#include "tests/model_fixture.h"

enum { KINDS = 24, MOST_PROMPT = 40, MOST_NEW = 30, LIVE = 12, CONTEXT = 80, BUSY_STEPS = 400,
       LONGEST_DRAIN = 2000 };

/* A request, and what it makes alone. */
typedef struct kind {
    fp8_request request;
    int32_t prompt[MOST_PROMPT], want[MOST_NEW], stop;
    int64_t count;
    fp8_request_state state;
} kind;

typedef struct live {
    const kind *kind;
    int64_t id, count;
    int32_t got[MOST_NEW];
    int canceled;
} live;

typedef struct soak {
    fp8_device *gpu; /* NULL: its memory is not looked at */
    fp8_engine *e;
    kind kinds[KINDS];
    live live[LIVE];
    uint64_t random;
    int64_t served, canceled, refused, ids, same;
    size_t memory; /* the most the process held when all was done, in the first half of the time */
    size_t left;   /* likewise the least that the GPU had free */
    int settled;   /* the second half: no more than that; a driver's own lists have grown */
} soak;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t draw(soak *s, int64_t least, int64_t most) {
    return least + (int64_t)(check_random(&s->random) % (uint64_t)(most - least + 1));
}

/* ---- requests -------------------------------------------------------------------------------- */

static void make_kind(soak *s, kind *k, int i) {
    k->request = (fp8_request){.prompt = k->prompt, .num_prompt = draw(s, 1, MOST_PROMPT),
                               .max_new = draw(s, 1, MOST_NEW), .ignore_eos = i % 2};
    for (int j = 0; j < MOST_PROMPT; j++) k->prompt[j] = (int32_t)draw(s, 0, FIXTURE_VOCAB - 1);
    if (i % 4 == 3)
        k->request.sampling = (fp8_sampling){0.8f, (int32_t)draw(s, 0, 40), 0.95f, (uint64_t)i};
    k->stop = (int32_t)draw(s, 0, FIXTURE_VOCAB - 1);
    k->request.stop_ids = &k->stop;
    k->request.num_stop_ids = i % 3 == 0;
}

static void run_alone(soak *s, kind *k) {
    int64_t id = 0, running = 1;

    CHECK_STATUS(fp8_engine_submit(s->e, &k->request, &id), FP8_OK);
    for (int i = 0; i < 2 * CONTEXT && running; i++)
        CHECK_STATUS(fp8_engine_step(s->e, &running), FP8_OK);
    CHECK_STATUS(fp8_engine_poll(s->e, id, k->want, MOST_NEW, &k->count, &k->state), FP8_OK);
    CHECK(k->state == FP8_REQUEST_FULL || k->state == FP8_REQUEST_STOPPED);
}

/* One that no engine takes. */
static void submit_bad(soak *s) {
    static const int32_t outside = FIXTURE_VOCAB, below = -1;
    fp8_request bad = s->kinds[draw(s, 0, KINDS - 1)].request;
    fp8_request_state state;
    int64_t id = 0, count;

    switch (draw(s, 0, 7)) {
    case 0: bad.prompt = &outside; bad.num_prompt = 1; break;
    case 1: bad.prompt = &below; bad.num_prompt = 1; break;
    case 2: bad.max_new = CONTEXT; break;
    case 3: bad.max_new = 0; break;
    case 4: bad.num_prompt = 0; break;
    case 5: bad.sampling.temperature = -1; break;
    case 6: bad.sampling.top_p = 2; break;
    default:
        CHECK_STATUS(fp8_engine_poll(s->e, INT64_MAX, NULL, 0, &count, &state), FP8_ENOTFOUND);
        CHECK_STATUS(fp8_engine_cancel(s->e, INT64_MAX), FP8_ENOTFOUND);
        return;
    }
    CHECK_STATUS(fp8_engine_submit(s->e, &bad, &id), FP8_EINVAL);
    CHECK(id == 0);
    s->refused++;
}

static void submit_some(soak *s) {
    for (int i = 0; i < LIVE; i++) {
        live *l = &s->live[i];
        if (l->kind || draw(s, 0, 3)) continue;
        *l = (live){.kind = &s->kinds[draw(s, 0, KINDS - 1)]};
        CHECK_STATUS(fp8_engine_submit(s->e, &l->kind->request, &l->id), FP8_OK);
    }
    if (draw(s, 0, 9) == 0) submit_bad(s);
}

/* ---- what comes back ------------------------------------------------------------------------- */

static void settle(soak *s, live *l, fp8_request_state state) {
    const kind *k = l->kind;
    int64_t n = 0;

    while (n < l->count && n < k->count && l->got[n] == k->want[n]) n++;
    s->ids += l->count;
    s->same += n;
    s->served++;
    s->canceled += state == FP8_REQUEST_CANCELED;
    CHECK(state == k->state || (l->canceled && state == FP8_REQUEST_CANCELED));
    CHECK(state == FP8_REQUEST_CANCELED || l->count == k->count || n < l->count);
    l->kind = NULL;
}

static void poll_all(soak *s) {
    for (int i = 0; i < LIVE; i++) {
        live *l = &s->live[i];
        const int64_t room = draw(s, 0, 3) ? MOST_NEW - l->count : draw(s, 0, MOST_NEW - l->count);
        fp8_request_state state = FP8_REQUEST_WAITING;
        int64_t count = 0;
        if (!l->kind) continue;
        CHECK_STATUS(fp8_engine_poll(s->e, l->id, l->got + l->count, room, &count, &state), FP8_OK);
        l->count += count;
        if (state > FP8_REQUEST_RUNNING) settle(s, l, state);
    }
}

static void cancel_some(soak *s) {
    live *l = &s->live[draw(s, 0, LIVE - 1)];
    if (!l->kind || draw(s, 0, 19)) return;
    l->canceled = 1;
    CHECK_STATUS(fp8_engine_cancel(s->e, l->id), FP8_OK);
}

/* After the first half of the time the GPU has no less free than it had then. */
static void check_gpu_memory(soak *s) {
    size_t left = 0, all = 0;

    if (!s->gpu) return;
    CHECK_STATUS(fp8_device_memory(s->gpu, &left, &all), FP8_OK);
    if (!s->settled && (!s->left || left < s->left)) s->left = left;
    if (left < s->left) fprintf(stderr, "%zu bytes free on the GPU, %zu before\n", left, s->left);
    CHECK(left >= s->left);
}

/* Everything ends; then all is as it was. */
static void drain(soak *s) {
    fp8_engine_stats stats;
    int64_t running = 1, left = 1;
    size_t held;

    for (int i = 0; i < LONGEST_DRAIN && (running || left); i++) {
        CHECK_STATUS(fp8_engine_step(s->e, &running), FP8_OK);
        poll_all(s);
        left = 0;
        for (int j = 0; j < LIVE; j++) left += s->live[j].kind != NULL;
    }
    CHECK(running == 0 && left == 0);
    fp8_engine_get_stats(s->e, &stats);
    CHECK(stats.free_pages == stats.num_pages && stats.running == 0 && stats.waiting == 0);
    held = mallinfo2().uordblks;
    if (!s->settled && held > s->memory) s->memory = held;
    if (held > s->memory + 4096)
        fprintf(stderr, "%zu bytes held, %zu before\n", held, s->memory);
    CHECK(held <= s->memory + 4096);
    check_gpu_memory(s);
}

/* ---- main ------------------------------------------------------------------------------------ */

static void run(soak *s, fp8_model *m, double seconds, int exact) {
    const fp8_engine_options o = {.max_context = CONTEXT, .max_seqs = 6, .step_tokens = 7,
                                  .num_pages = 9, .max_requests = LIVE,
                                  .ahead = FP8_ENGINE_AHEAD_ALWAYS};
    const double begin = now();

    CHECK_STATUS(fp8_engine_create(&s->e, m, &o), FP8_OK);
    if (!s->e) return;
    for (int i = 0; i < KINDS; i++) {
        make_kind(s, &s->kinds[i], i);
        run_alone(s, &s->kinds[i]);
    }
    do {
        for (int i = 0; i < BUSY_STEPS && !check_failures; i++) {
            int64_t running;
            if (draw(s, 0, 2)) submit_some(s);
            cancel_some(s);
            CHECK_STATUS(fp8_engine_step(s->e, &running), FP8_OK);
            if (draw(s, 0, 1)) poll_all(s);
        }
        s->settled = now() - begin > seconds / 2;
        drain(s);
    } while (now() - begin < seconds && !check_failures);
    printf("%.0f s: %lld requests ended, %lld of them canceled, %lld refused; %lld ids, %lld as "
           "alone\n", now() - begin, (long long)s->served, (long long)s->canceled,
           (long long)s->refused, (long long)s->ids, (long long)s->same);
    CHECK(s->served > 0 && s->canceled > 0 && s->refused > 0);
    CHECK(exact ? s->same == s->ids : 10 * s->same >= 9 * s->ids);
    fp8_engine_destroy(s->e);
}

int main(void) {
    const fp8_model_options options = {.max_tokens = FIXTURE_TOKENS};
    const char *seconds = getenv("FP8_SOAK_SECONDS"), *where = getenv("FP8_SOAK_DEVICE");
    static soak s = {.random = 6};
    fp8_device *device = NULL;
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    const char *folder;
    fixture f;
    tiny t;

    if (!fixture_open(&f, "llama")) return TEST_SKIP;
    if (fp8_device_create(&device, where ? where : "cpu", 1) != FP8_OK) {
        fprintf(stderr, "skipped: %s\n", fp8_last_message());
        fixture_close(&f);
        return TEST_SKIP;
    }
    fixture_quantized(&t, &f, TINY_STATIC, "");
    t.attention = "dpa";
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, device, c, &options), FP8_OK);
    if (fp8_device_place(device) == FP8_PLACE_CUDA && getenv("FP8_GPU_ALONE")) s.gpu = device;
    if (m) run(&s, m, seconds ? atof(seconds) : 2, fp8_device_place(device) == FP8_PLACE_CPU);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
    fixture_close(&f);
    fp8_device_destroy(device);
    return CHECK_DONE();
}
