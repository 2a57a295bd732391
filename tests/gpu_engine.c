/* The engine on CUDA: with and without graphs, alone and together. Its ids are held against the
 * model's own forward over the same tokens: where it took another id than the highest, the two
 * must be nearly level. In BF16 they are nearly always the ids of the model's own generation, which
 * are counted up to the first that differs. With FP8 keys a step over pages rounds P to E4M3, which
 * a model's forward does not: of these untrained models' logits, many are closer than that. */
#include <math.h>
#include <stdlib.h>

#include "model/engine.h"
#include "tests/model_fixture.h"

static fp8_device *gpu;
static int own; /* FP8 products are ours */

/* Of logits, in deviations of their row. */
static const double MOST_BELOW = 0.1, MOST_BELOW_FP8 = 0.8; /* measured: 0, 0.57 */

enum { PROMPTS = 7, NEW = 12, CONTEXT = 128 };

static const int64_t lengths[PROMPTS] = {9, 1, 23, 40, 2, 17, 31};

/* Of a model's ids: how many there are, are the model's own up to the first that differs, are the
 * highest of a forward over the same tokens; and how far below the highest one was, at most, in
 * deviations of that row of logits. */
typedef struct tally {
    int64_t all, same, highest;
    double below;
} tally;

static void count_same(tally *t, const int32_t *got, const int32_t *want) {
    int64_t n = 0;
    while (n < NEW && got[n] == want[n]) n++;
    t->same += n;
    t->all += NEW;
}

/* How far `id` lies below the highest of a row. */
static double below(const float *row, int32_t id) {
    double sum = 0, squares = 0, most = row[0];
    for (int i = 0; i < FIXTURE_VOCAB; i++) {
        sum += row[i];
        squares += (double)row[i] * row[i];
        if (row[i] > most) most = row[i];
    }
    sum /= FIXTURE_VOCAB;
    return (most - row[id]) / sqrt(squares / FIXTURE_VOCAB - sum * sum);
}

/* The ids that followed a prompt, each against the logits of all tokens before it. */
static void follow(fp8_model *m, const int32_t *prompt, int64_t length, const int32_t *got,
                   tally *t) {
    const int64_t tokens = length + NEW - 1;
    int32_t ids[FIXTURE_TOKENS];
    const int32_t starts[2] = {0, (int32_t)tokens};
    const fp8_batch batch = {ids, tokens, starts, 1};
    static float rows[FIXTURE_TOKENS * FIXTURE_VOCAB];
    fp8_tensor logits;

    memcpy(ids, prompt, (size_t)length * sizeof *ids);
    memcpy(ids + length, got, (NEW - 1) * sizeof *ids);
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, rows, logits.data,
                                     (size_t)(tokens * FIXTURE_VOCAB) * sizeof *rows), FP8_OK);
    for (int64_t i = 0; i < NEW; i++) {
        const double d = below(rows + (length - 1 + i) * FIXTURE_VOCAB, got[i]);
        t->highest += d == 0;
        if (d > t->below) t->below = d;
    }
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
                     int32_t got[PROMPTS][NEW], int64_t *launches) {
    const int graphs = !o->no_graphs && !fp8_model_get_config(m)->num_experts;
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
    CHECK(graphs ? stats.replays == stats.steps : stats.replays == 0);
    CHECK(graphs ? stats.early > 0 && stats.early <= stats.launches : stats.launches == 0);
    *launches = stats.launches;
    fp8_engine_destroy(e);
}

/* An engine that does not fit: nothing is left behind (seen with FP8_GPU_ALONE=1 alone: the GPU
 * counts the memory of all programs on it), and the next one serves. */
static void check_too_large(fp8_model *m) {
    const fp8_engine_options o = {.max_context = CONTEXT, .num_pages = INT32_MAX};
    size_t before, after, all;
    fp8_engine *e = NULL;

    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_ENOMEM); /* tables of the model may grow once */
    CHECK_STATUS(fp8_device_memory(gpu, &before, &all), FP8_OK);
    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_ENOMEM);
    CHECK(e == NULL);
    CHECK_STATUS(fp8_device_memory(gpu, &after, &all), FP8_OK);
    if (getenv("FP8_GPU_ALONE")) CHECK(after == before);
}

static void check_model(const fixture *f, const fp8_checkpoint *c, int codes) {
    static const fp8_engine_options shapes[] = {
        {.max_context = CONTEXT, .max_requests = PROMPTS},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .no_graphs = 1},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 3, .step_tokens = 20},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 1, .step_tokens = 8},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 4, .step_tokens = 4},
        {.max_context = CONTEXT, .max_requests = PROMPTS, .max_seqs = 4, .step_tokens = 4,
         .ahead = FP8_ENGINE_AHEAD_ALWAYS},
    };
    static int64_t apart[sizeof shapes / sizeof *shapes]; /* launches, when not own */
    const fp8_model_options options = {.max_tokens = FIXTURE_TOKENS};
    static int32_t want[PROMPTS][NEW], got[PROMPTS][NEW], again[PROMPTS][NEW];
    fp8_model *m = NULL;

    CHECK_STATUS(fp8_model_load(&m, gpu, c, &options), FP8_OK);
    if (!m) return;
    alone(m, f, want);
    check_too_large(m);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tally t = {0};
        int64_t launches = 0;
        together(m, f, &shapes[i], got, &launches);
        if (i == 0) {
            together(m, f, &shapes[i], again, &launches);
            CHECK(memcmp(got, again, sizeof got) == 0);
        }
        if (!own) apart[i] = launches;
        else if (launches) /* activations are at a store */
            CHECK(launches + fp8_model_get_config(m)->num_layers <= apart[i]);
        for (int p = 0; p < PROMPTS; p++) {
            count_same(&t, got[p], want[p]);
            follow(m, f->ids + 3 * p, lengths[p], got[p], &t);
        }
        printf("%-16s %-6s shape %zu: of %lld ids %lld as alone, %lld the highest, the worst "
               "%.3f below\n", check_case, codes ? "FP8" : "BF16", i, (long long)t.all,
               (long long)t.same, (long long)t.highest, t.below);
        if (!codes) CHECK(4 * t.same >= 3 * t.all);
        CHECK(4 * t.highest >= 3 * t.all);
        CHECK(t.below <= (codes ? MOST_BELOW_FP8 : MOST_BELOW));
    }
    fp8_model_destroy(m);
}

static void check_fp8(const fixture *f) {
    /* no amax of experts is given */
    const tiny_scheme scheme = fixture_is_mixed(f) ? TINY_DYNAMIC : TINY_STATIC;
    fp8_checkpoint *c = NULL;
    const char *folder;
    tiny t;

    fixture_quantized(&t, f, scheme, "");
    if (scheme == TINY_STATIC) t.attention = "dpa";
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) check_model(f, c, 1);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

/* q, k, v and gate, up in one product each, by cuBLASLt and by our kernels with their stores. */
static void check_joined(const fixture *f) {
    fixture_weight_amax = 4;
    check_fp8(f);
    setenv("FP8_GEMM_SKINNY", "1", 1);
    own = 1;
    check_fp8(f);
    own = 0;
    unsetenv("FP8_GEMM_SKINNY");
    fixture_weight_amax = 0;
}

int main(void) {
    static const char *const names[] = {"llama", "mistral-window", "qwen3", "gemma", "gpt2",
                                        "gemma2", "gemma3", "phi3", "mixtral"};
    int found = 0;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fixture f;
        check_case = names[i];
        if (!fixture_open(&f, names[i])) continue;
        found++;
        check_model(&f, f.checkpoint, 0);
        check_fp8(&f);
        if (i == 0 || strcmp(names[i], "gemma") == 0) check_joined(&f);
        fixture_close(&f);
    }
    fp8_device_destroy(gpu);
    return found ? CHECK_DONE() : TEST_SKIP;
}
