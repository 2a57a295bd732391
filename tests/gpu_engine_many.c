/* Many sequences at once, of trained models whose heads have kernels over pages: every id is the
 * highest of the model's own forward over the same tokens, or nearly level with it. With 256
 * sequences of nearly one length attention takes whole items; with lengths far apart it cuts
 * them. Folders given as arguments are served too, 64 sequences at once: FP8 checkpoints with
 * static scales, whose layers are chains then. */
#include "model/engine.h"
#include "tests/engine_follow.h"

enum { PROMPTS = 8, COPIES = 32, FEW_COPIES = 8, NEW = 24, CONTEXT = 512, MOST_PROMPT = 400 };

/* Of logits, in deviations of their row. */
static const double MOST_BELOW = 0.3, MOST_BELOW_FP8 = 0.8;

static fp8_device *gpu;

typedef struct job {
    int32_t prompt[PROMPTS][MOST_PROMPT];
    int64_t lengths[PROMPTS];
} job;

/* Prompts are what the model itself goes on with after a few ids: text it knows. */
static void make_prompts(job *j, fp8_model *m, int64_t step, uint64_t *seed) {
    const int64_t vocab = fp8_model_get_config(m)->vocab_size;
    for (int p = 0; p < PROMPTS; p++) {
        fp8_ids made = {0};
        const int64_t n = 24 + step * p;
        for (int i = 0; i < 4; i++)
            j->prompt[p][i] = (int32_t)(check_random(seed) % (uint64_t)vocab);
        CHECK_STATUS(fp8_model_generate(m, &made, j->prompt[p], 4, n - 4, 1, NULL, NULL), FP8_OK);
        CHECK(made.count == n - 4);
        j->lengths[p] = n;
        if (made.count == n - 4)
            memcpy(j->prompt[p] + 4, made.data, (size_t)(n - 4) * sizeof(int32_t));
        fp8_ids_free(&made);
    }
}

static void run(fp8_model *m, const job *j, int copies, const char *name, double most_below) {
    const fp8_engine_options o = {.max_seqs = PROMPTS * copies, .max_context = CONTEXT};
    fp8_engine_stats stats;
    int64_t ids[PROMPTS * COPIES], running = 1, count;
    static int32_t got[PROMPTS * COPIES][NEW];
    fp8_request_state state;
    follow_tally t = {0};
    fp8_engine *e = NULL;

    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
    if (!e) return;
    for (int r = 0; r < PROMPTS * copies; r++) {
        const fp8_request q = {.prompt = j->prompt[r % PROMPTS],
                               .num_prompt = j->lengths[r % PROMPTS], .max_new = NEW,
                               .ignore_eos = 1};
        CHECK_STATUS(fp8_engine_submit(e, &q, &ids[r]), FP8_OK);
    }
    for (int i = 0; i < 1000 && running; i++) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
    for (int r = 0; r < PROMPTS * copies; r++) {
        const int p = r % PROMPTS; /* the first copies come first */
        CHECK_STATUS(fp8_engine_poll(e, ids[r], got[r], NEW, &count, &state), FP8_OK);
        CHECK(count == NEW && state == FP8_REQUEST_FULL);
        if (r == p || memcmp(got[r], got[p], sizeof got[r]) != 0)
            follow_ids(&t, m, j->prompt[p], j->lengths[p], got[r], NEW);
    }
    fp8_engine_get_stats(e, &stats);
    printf("%s, %s: of %lld ids %lld the highest, the worst %.3f below; %lld launches a step\n",
           check_case, name, (long long)t.all, (long long)t.highest, t.below,
           (long long)stats.launches);
    CHECK(4 * t.highest >= 3 * t.all);
    CHECK(t.below <= most_below);
    fp8_engine_destroy(e);
}

static void check_model(const char *folder, fp8_weight_form weights, int copies) {
    const fp8_model_options options = {.max_tokens = 2048, .weights = weights};
    const int dense = copies == COPIES && weights == FP8_FORM_AS_STORED;
    const double most = dense ? MOST_BELOW : MOST_BELOW_FP8;
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    uint64_t seed = 11;
    static job even, apart;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, gpu, c, &options), FP8_OK);
    if (m) {
        make_prompts(&even, m, 1, &seed);
        run(m, &even, copies, "even", most);
        make_prompts(&apart, m, 50, &seed);
        run(m, &apart, copies, "apart", most);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"models/gemma-7m", "models/llama-11m"};
    int found = 0;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *folder = check_data(names[i]);
        if (!folder) continue;
        found++;
        check_case = names[i];
        check_model(folder, FP8_FORM_AS_STORED, COPIES);
        check_model(folder, FP8_FORM_QUANTIZED, COPIES);
    }
    for (int i = 1; i < argc; i++, found++) {
        check_case = argv[i];
        check_model(argv[i], FP8_FORM_AS_STORED, FEW_COPIES);
    }
    fp8_device_destroy(gpu);
    return found ? CHECK_DONE() : TEST_SKIP;
}
