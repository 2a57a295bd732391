/* The engine on CUDA: with and without graphs, alone and together, against the model's own greedy
 * generation. Products of other row counts sum in another order, so a near tie of two logits may
 * fall the other way and all after it differs: ids are counted up to there. */
#include "model/engine.h"
#include "tests/model_fixture.h"

static fp8_device *gpu;

enum { PROMPTS = 7, NEW = 12, CONTEXT = 128 };

static const int64_t lengths[PROMPTS] = {9, 1, 23, 40, 2, 17, 31};

typedef struct tally {
    int64_t same, all;
} tally;

static void count_same(tally *t, const int32_t *got, const int32_t *want) {
    int64_t n = 0;
    while (n < NEW && got[n] == want[n]) n++;
    t->same += n;
    t->all += NEW;
}

static void alone(fp8_model *m, const fixture *f, int32_t want[PROMPTS][NEW]) {
    for (int p = 0; p < PROMPTS; p++) {
        fp8_ids made = {0};
        CHECK_STATUS(fp8_model_generate(m, &made, f->ids + 3 * p, lengths[p], NEW, 1, NULL, NULL),
                     FP8_OK);
        CHECK(made.count == NEW);
        if (made.count == NEW) memcpy(want[p], made.data, sizeof want[p]);
        fp8_ids_free(&made);
    }
}

static void together(fp8_model *m, const fixture *f, const fp8_engine_options *o,
                     int32_t got[PROMPTS][NEW]) {
    fp8_engine *e = NULL;
    fp8_engine_stats stats;
    fp8_request_state state;
    int64_t ids[PROMPTS], running = 1, count;

    CHECK_STATUS(fp8_engine_create(&e, m, o), FP8_OK);
    if (!e) return;
    for (int p = 0; p < PROMPTS; p++) {
        const fp8_request q = {.prompt = f->ids + 3 * p, .num_prompt = lengths[p], .max_new = NEW,
                               .ignore_eos = 1};
        CHECK_STATUS(fp8_engine_submit(e, &q, &ids[p]), FP8_OK);
        CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
    }
    for (int i = 0; i < 1000 && running; i++) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
    for (int p = 0; p < PROMPTS; p++) {
        CHECK_STATUS(fp8_engine_poll(e, ids[p], got[p], NEW, &count, &state), FP8_OK);
        CHECK(count == NEW && state == FP8_REQUEST_FULL);
    }
    fp8_engine_get_stats(e, &stats);
    CHECK(stats.free_pages == stats.num_pages);
    CHECK(o->no_graphs ? stats.replays == 0 : stats.replays == stats.steps);
    fp8_engine_destroy(e);
}

static void check_model(const fixture *f, const fp8_checkpoint *c, const char *what) {
    static const fp8_engine_options shapes[] = {
        {.max_context = CONTEXT, .max_requests = PROMPTS},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .no_graphs = 1},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 3, .step_tokens = 20},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 1, .step_tokens = 8},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 4, .step_tokens = 4},
    };
    const fp8_model_options options = {.max_tokens = FIXTURE_TOKENS};
    static int32_t want[PROMPTS][NEW], got[PROMPTS][NEW], again[PROMPTS][NEW];
    fp8_model *m = NULL;

    CHECK_STATUS(fp8_model_load(&m, gpu, c, &options), FP8_OK);
    if (!m) return;
    alone(m, f, want);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tally t = {0};
        together(m, f, &shapes[i], got);
        together(m, f, &shapes[i], again);
        CHECK(memcmp(got, again, sizeof got) == 0);
        for (int p = 0; p < PROMPTS; p++) count_same(&t, got[p], want[p]);
        printf("%-16s %-6s shape %zu: %lld of %lld ids\n", check_case, what, i, (long long)t.same,
               (long long)t.all);
        CHECK(4 * t.same >= 3 * t.all);
    }
    fp8_model_destroy(m);
}

int main(void) {
    static const char *const names[] = {"llama", "mistral-window", "qwen3", "gemma", "gpt2",
                                        "gemma2", "gemma3", "phi3"};
    int found = 0;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fp8_checkpoint *c = NULL;
        const char *folder;
        fixture f;
        tiny t;
        check_case = names[i];
        if (!fixture_open(&f, names[i])) continue;
        found++;
        check_model(&f, f.checkpoint, "BF16");
        fixture_quantized(&t, &f, TINY_STATIC, "");
        t.attention = "dpa";
        folder = tiny_write(&t);
        CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
        if (c) check_model(&f, c, "FP8");
        fp8_checkpoint_close(c);
        tiny_remove(folder);
        tiny_free(&t);
        fixture_close(&f);
    }
    fp8_device_destroy(gpu);
    return found ? CHECK_DONE() : TEST_SKIP;
}
