/* The engine: greedy ids of many requests together are those of each alone, whatever the lengths,
 * the budget of a step, joins and leaves; memory and pages come back; every refusal. */
#include "model/engine.h"
#include "model/model_impl.h"
#include "tests/engine_follow.h"
#include "tests/model_fixture.h"

static fp8_device *cpu;

enum { PROMPTS = 7, NEW = 12, CONTEXT = 128 };

/* Prompt p of a fixture: a piece of its ids. */
static void prompt_of(const fixture *f, int p, const int32_t **ids, int64_t *n) {
    static const int64_t lengths[PROMPTS] = {9, 1, 23, 40, 2, 17, 31};
    *ids = f->ids + 3 * p;
    *n = lengths[p];
}

/* The ids that the model makes of each prompt, one request at a time. */
static int alone(fp8_model *m, const fixture *f, int32_t want[PROMPTS][NEW]) {
    for (int p = 0; p < PROMPTS; p++) {
        const int32_t *ids;
        fp8_ids made = {0};
        int64_t n;
        prompt_of(f, p, &ids, &n);
        CHECK_STATUS(fp8_model_generate(m, &made, ids, n, NEW, 1, NULL, NULL), FP8_OK);
        CHECK(made.count == NEW);
        if (made.count == NEW) memcpy(want[p], made.data, sizeof want[p]);
        fp8_ids_free(&made);
    }
    return check_failures == 0;
}

static int64_t submit(fp8_engine *e, const fixture *f, int p, int64_t max_new) {
    fp8_request q = {.max_new = max_new, .ignore_eos = 1};
    int64_t id = 0;
    prompt_of(f, p, &q.prompt, &q.num_prompt);
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_OK);
    return id;
}

/* All of a request's ids; it must have ended as `how`. */
static void collect(fp8_engine *e, int64_t id, const int32_t *want, int64_t n,
                    fp8_request_state how) {
    int32_t got[CONTEXT];
    fp8_request_state state = FP8_REQUEST_WAITING;
    int64_t count = 0, all = 0;

    do { /* two at a time: poll goes on where it ended */
        CHECK_STATUS(fp8_engine_poll(e, id, got + all, 2, &count, &state), FP8_OK);
        all += count;
    } while (count == 2 && all < n);
    CHECK(state == how);
    CHECK(all == n);
    for (int64_t i = 0; i < n && i < all; i++) CHECK(got[i] == want[i]);
    CHECK_STATUS(fp8_engine_poll(e, id, got, 1, &count, &state), FP8_ENOTFOUND);
}

/* Requests come one every other step, more than fit at once, prompts in pieces of the budget. */
static void check_together(fp8_model *m, const fixture *f, const fp8_engine_options *o,
                           int32_t want[PROMPTS][NEW]) {
    fp8_engine *e = NULL;
    fp8_engine_stats stats;
    int64_t ids[PROMPTS], running = 1, steps = 0;
    int next = 0;

    CHECK_STATUS(fp8_engine_create(&e, m, o), FP8_OK);
    if (!e) return;
    while ((running || next < PROMPTS) && steps < 1000) {
        if (next < PROMPTS && steps % 2 == 0) {
            ids[next] = submit(e, f, next, NEW - next % 3);
            next++;
        }
        CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
        steps++;
    }
    for (int p = 0; p < PROMPTS; p++)
        collect(e, ids[p], want[p], NEW - p % 3, FP8_REQUEST_FULL);
    fp8_engine_get_stats(e, &stats);
    CHECK(stats.free_pages == stats.num_pages && !stats.running && !stats.waiting);
    CHECK(stats.prompt_tokens == 9 + 1 + 23 + 40 + 2 + 17 + 31);
    CHECK(stats.new_tokens == 7 * NEW - 6 && stats.decode_steps > 0);
    CHECK(stats.steps > stats.decode_steps || o->step_tokens == 1);
    fp8_engine_destroy(e);
}

static const fp8_engine_options shapes[] = {
    {.max_context = CONTEXT},
    {.max_context = CONTEXT, .max_seqs = 3, .page_size = 128},
    {.max_context = CONTEXT, .join = FP8_ENGINE_JOIN_ALWAYS},
    {.max_context = CONTEXT, .max_seqs = 4, .step_tokens = 4}, /* as many tokens as sequences */
    {.max_context = CONTEXT, .max_seqs = 2, .step_tokens = 5, .max_requests = PROMPTS},
    {.max_context = CONTEXT, .max_seqs = 1, .step_tokens = 1, .num_pages = 1,
     .max_requests = PROMPTS},
    {.max_context = CONTEXT, .max_seqs = 4, .step_tokens = 16, .num_pages = 3},
    {.max_context = CONTEXT, .ahead = FP8_ENGINE_AHEAD_ALWAYS},
    {.max_context = CONTEXT, .max_seqs = 4, .step_tokens = 4, .ahead = FP8_ENGINE_AHEAD_ALWAYS},
    {.max_context = CONTEXT, .max_seqs = 3, .step_tokens = 20, .ahead = FP8_ENGINE_AHEAD_ALWAYS},
};

static void test_fixture(const char *name, fp8_compute compute) {
    const fp8_model_options options = {.compute = compute, .max_tokens = FIXTURE_TOKENS};
    int32_t want[PROMPTS][NEW];
    fp8_model *m = NULL;
    fixture f;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
    if (m && alone(m, &f, want))
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_together(m, &f, &shapes[i], want);
    fp8_model_destroy(m);
    fixture_close(&f);
}

/* All layers as chains. They round in other places than the model's own forward: an id that is not
 * the highest there is nearly level with it (in deviations of the row; measured: 0.42). */
static void check_chained(fp8_model *m, const fixture *f) {
    static const double most_below = 0.8;
    fp8_engine_options o = {.max_context = CONTEXT, .max_seqs = 1, .max_requests = PROMPTS,
                            .join = FP8_ENGINE_JOIN_ALWAYS, .chain = FP8_ENGINE_CHAIN_ALWAYS};
    int32_t want[PROMPTS][NEW];
    follow_tally t = {0};
    fp8_engine *e = NULL;

    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
    if (!e) return;
    for (int64_t i = 0; i < m->config.num_layers; i++)
        CHECK(m->layers[i].chain && m->layers[i].projects == (i + 1 < m->config.num_layers));
    for (int p = 0; p < PROMPTS; p++) {
        const int64_t id = submit(e, f, p, NEW);
        fp8_request_state state;
        int64_t running = 1, count;
        while (running) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
        CHECK_STATUS(fp8_engine_poll(e, id, want[p], NEW, &count, &state), FP8_OK);
    }
    fp8_engine_destroy(e);
    for (int p = 0; p < PROMPTS; p++) {
        const int32_t *ids;
        int64_t n;
        prompt_of(f, p, &ids, &n);
        follow_ids(&t, m, ids, n, want[p], NEW);
    }
    printf("%s: of %lld ids %lld the highest, the worst %.3f below\n", check_case,
           (long long)t.all, (long long)t.highest, t.below);
    CHECK(4 * t.highest >= 3 * t.all && t.below <= most_below);
    for (int i = 0; i < 3; i++) {
        o.max_seqs = i == 1 ? 3 : 4;
        o.step_tokens = i == 2 ? 4 : 20;
        check_together(m, f, &o, want);
    }
}

/* An FP8 checkpoint with FP8 keys and values: the engine's ids do not depend on who else is in. */
static void test_fp8(const char *name, float weight_amax) {
    const fp8_model_options options = {.max_tokens = FIXTURE_TOKENS};
    int32_t want[PROMPTS][NEW];
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    const char *folder;
    fixture f;
    tiny t;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    fixture_weight_amax = weight_amax;
    fixture_quantized(&t, &f, TINY_STATIC, "");
    t.attention = "dpa";
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m && alone(m, &f, want))
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            check_together(m, &f, &shapes[i], want);
    if (m && weight_amax > 0) check_chained(m, &f);
    fixture_weight_amax = 0;
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
    fixture_close(&f);
}

/* ---- ways to end, and refusals --------------------------------------------------------------- */

typedef struct listener {
    int32_t ids[NEW];
    int64_t count, stop_after;
} listener;

static int listen_to(void *ctx, int32_t id) {
    listener *l = ctx;
    l->ids[l->count++] = id;
    return l->count == l->stop_after;
}

static void test_ends(fp8_model *m, const fixture *f, int32_t want[PROMPTS][NEW],
                      fp8_engine_ahead ahead) {
    const fp8_engine_options o = {.max_context = CONTEXT, .max_seqs = 2, .ahead = ahead};
    listener heard = {.stop_after = 3};
    fp8_request q = {.max_new = NEW, .ignore_eos = 1, .on = listen_to, .ctx = &heard};
    fp8_engine *e = NULL;
    fp8_engine_stats stats;
    fp8_request_state state;
    int64_t told, stopped, canceled, dropped, running = 1, count;
    int32_t ids[4];

    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
    if (!e) return;
    prompt_of(f, 0, &q.prompt, &q.num_prompt);
    CHECK_STATUS(fp8_engine_submit(e, &q, &told), FP8_OK);
    q.on = NULL;
    q.stop_ids = &want[0][2];
    q.num_stop_ids = 1;
    CHECK_STATUS(fp8_engine_submit(e, &q, &stopped), FP8_OK);
    canceled = submit(e, f, 2, NEW);
    dropped = submit(e, f, 3, NEW);
    CHECK_STATUS(fp8_engine_cancel(e, dropped), FP8_OK); /* it still waits */
    for (int i = 0; i < 100 && running; i++) {
        CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
        if (i == 5) CHECK_STATUS(fp8_engine_cancel(e, canceled), FP8_OK);
    }
    CHECK(heard.count == 3 && memcmp(heard.ids, want[0], sizeof(int32_t[3])) == 0);
    collect(e, told, want[0], 3, FP8_REQUEST_STOPPED);
    for (count = 0; count < 2 && want[0][count] != want[0][2];) count++; /* may come earlier */
    collect(e, stopped, want[0], count, FP8_REQUEST_STOPPED);
    CHECK_STATUS(fp8_engine_poll(e, dropped, ids, 4, &count, &state), FP8_OK);
    CHECK(count == 0 && state == FP8_REQUEST_CANCELED);
    CHECK_STATUS(fp8_engine_poll(e, canceled, ids, 4, &count, &state), FP8_OK);
    CHECK(state == FP8_REQUEST_CANCELED && count > 0 && ids[0] == want[2][0]);
    CHECK_STATUS(fp8_engine_cancel(e, 999), FP8_ENOTFOUND);
    CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK); /* nothing to do */
    CHECK(running == 0);
    fp8_engine_get_stats(e, &stats);
    CHECK(stats.free_pages == stats.num_pages);
    fp8_engine_destroy(e);
}

static void test_refusals(fp8_model *m, const fixture *f) {
    const fp8_engine_options good = {.max_context = CONTEXT, .max_seqs = 2, .num_pages = 1,
                                     .max_requests = 2};
    const fp8_engine_options bad[] = {
        {.max_seqs = -1}, {.max_seqs = 4, .step_tokens = 3}, {.step_tokens = 1 << 20},
        {.max_context = 1}, {.page_size = 32}, {.num_pages = -5}, {.max_requests = -1},
    };
    const char *sanitized = getenv("FP8_SANITIZED");
    const int32_t outside = FIXTURE_VOCAB;
    fp8_request q = {.prompt = f->ids, .num_prompt = 9, .max_new = NEW};
    fp8_engine *e = NULL;
    int64_t id;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_STATUS(fp8_engine_create(&e, m, &bad[i]), FP8_EINVAL);
        CHECK(e == NULL);
    }
    CHECK_STATUS(fp8_engine_create(&e, m, &(fp8_engine_options){.kv = FP8_ENGINE_KV_FP8}),
                 FP8_EUNSUPPORTED);
    if (!sanitized || *sanitized != '1') { /* a sanitizer's allocator does not say no */
        CHECK_STATUS(fp8_engine_create(&e, m, &(fp8_engine_options){.num_pages = INT32_MAX}),
                     FP8_ENOMEM);
        CHECK(e == NULL);
    }
    CHECK_STATUS(fp8_engine_create(&e, m, &good), FP8_OK);
    if (!e) return;
    q.max_new = CONTEXT;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL); /* the context */
    q.max_new = 60;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL); /* the pool */
    q.max_new = 0;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL);
    q.max_new = 4;
    q.prompt = &outside;
    q.num_prompt = 1;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL);
    q.prompt = f->ids;
    q.sampling.temperature = -1;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL);
    q.sampling.temperature = 0;
    q.num_prompt = 0;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_EINVAL);
    q.num_prompt = 3;
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_OK);
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_OK);
    CHECK_STATUS(fp8_engine_submit(e, &q, &id), FP8_ENOMEM); /* max_requests */
    fp8_engine_destroy(e); /* with two in it */
}

/* A head in codes: the ids are nearly always the same, and always the same among themselves. */
static void test_head(fp8_model *m, const fixture *f, int32_t want[PROMPTS][NEW]) {
    const fp8_engine_options o = {.max_context = CONTEXT, .fp8_head = 1};
    int32_t got[2][PROMPTS][NEW];
    fp8_request_state state;
    int64_t same = 0, count;

    for (int k = 0; k < 2; k++) {
        fp8_engine *e = NULL;
        int64_t ids[PROMPTS], running = 1;
        CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
        if (!e) return;
        for (int p = 0; p < PROMPTS; p++) ids[p] = submit(e, f, p, NEW);
        for (int i = 0; i < 100 && running; i++) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
        for (int p = 0; p < PROMPTS; p++) {
            CHECK_STATUS(fp8_engine_poll(e, ids[p], got[k][p], NEW, &count, &state), FP8_OK);
            CHECK(count == NEW);
        }
        fp8_engine_destroy(e);
    }
    CHECK(memcmp(got[0], got[1], sizeof got[0]) == 0);
    for (int p = 0; p < PROMPTS; p++) same += got[0][p][0] == want[p][0];
    CHECK(same >= PROMPTS - 2);
}

/* More prompts than a step takes pieces of: the others follow in the next. */
static void test_crowd(const fixture *f, int32_t want[PROMPTS][NEW]) {
    enum { CROWD = 70, TAKEN = 64, LENGTH = 9, MADE = 3 };
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 1024};
    const fp8_engine_options o = {.max_context = CONTEXT, .max_seqs = CROWD};
    int64_t ids[CROWD], running = 0;
    fp8_engine *e = NULL;
    fp8_model *m = NULL;
    fp8_engine_stats stats;

    CHECK_STATUS(fp8_model_load(&m, cpu, f->checkpoint, &options), FP8_OK);
    if (m) CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
    for (int i = 0; e && i < CROWD; i++) ids[i] = submit(e, f, 0, MADE);
    for (int i = 0; e && i < 2; i++) {
        CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
        fp8_engine_get_stats(e, &stats);
        CHECK(stats.prompt_tokens == (i ? CROWD : TAKEN) * LENGTH && running == CROWD);
        CHECK(stats.new_tokens == (i ? TAKEN + CROWD : TAKEN));
    }
    for (int i = 0; e && i < 4 && running; i++) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
    for (int i = 0; e && i < CROWD; i++) collect(e, ids[i], want[0], MADE, FP8_REQUEST_FULL);
    fp8_engine_destroy(e);
    fp8_model_destroy(m);
}

static void test_llama(void) {
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = FIXTURE_TOKENS};
    int32_t want[PROMPTS][NEW];
    fp8_model *m = NULL;
    fixture f;

    check_case = "ends";
    if (!fixture_open(&f, "llama")) return;
    CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
    if (m && alone(m, &f, want)) {
        test_ends(m, &f, want, FP8_ENGINE_AHEAD_NEVER);
        test_ends(m, &f, want, FP8_ENGINE_AHEAD_ALWAYS);
        test_refusals(m, &f);
        test_head(m, &f, want);
        check_case = "crowd";
        test_crowd(&f, want);
    }
    fp8_model_destroy(m);
    fixture_close(&f);
}

int main(void) {
    static const char *const names[] = {
        "llama", "llama-mha-bias", "llama3-rope", "llama-rope-linear", "mistral-window", "qwen2",
        "qwen3", "gemma", "gemma-odd", "gpt2", "gemma2", "gemma3", "phi3", "phi3-partial-rotary",
        "opt", "llama-yarn", "mixtral", "qwen2_moe", "qwen3_moe",
    };
    static const char *const chained[] = {"llama", "llama-mha-bias", "mistral-window", "qwen2",
                                          "qwen3", "gemma", "phi3"};

    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    for (size_t i = 0; cpu && i < sizeof names / sizeof *names; i++)
        test_fixture(names[i], FP8_COMPUTE_F32);
    test_fixture("llama", FP8_COMPUTE_BF16);
    test_fp8("llama", 0);
    test_fp8("gemma", 0);
    for (size_t i = 0; i < sizeof chained / sizeof *chained; i++) test_fp8(chained[i], 4);
    test_llama();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
