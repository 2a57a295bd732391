/* Many sequences at once, of trained models whose heads have kernels over pages: what a prompt
 * makes is what it makes alone, and the same in every copy of it, but for near ties. With 256
 * sequences of nearly one length attention takes whole items; with lengths far apart it cuts
 * them. */
#include <string.h>

#include "model/engine.h"
#include "tests/check.h"

enum { PROMPTS = 8, COPIES = 32, NEW = 24, CONTEXT = 512, MOST_PROMPT = 400 };

static fp8_device *gpu;

typedef struct job {
    int32_t prompt[PROMPTS][MOST_PROMPT], want[PROMPTS][NEW];
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
        CHECK_STATUS(fp8_model_generate(m, &made, j->prompt[p], 4, n - 4 + NEW, 1, NULL, NULL),
                     FP8_OK);
        CHECK(made.count == n - 4 + NEW);
        j->lengths[p] = n;
        if (made.count == n - 4 + NEW) {
            memcpy(j->prompt[p] + 4, made.data, (size_t)(n - 4) * sizeof(int32_t));
            memcpy(j->want[p], made.data + n - 4, sizeof j->want[p]);
        }
        fp8_ids_free(&made);
    }
}

/* `tenths` of the ids: as alone, as the first copy's. */
static void run(fp8_model *m, const job *j, const char *name, int tenths) {
    const fp8_engine_options o = {.max_seqs = PROMPTS * COPIES, .max_context = CONTEXT};
    int64_t ids[PROMPTS * COPIES], running = 1, count, same = 0, alike = 0;
    static int32_t got[PROMPTS * COPIES][NEW];
    fp8_request_state state;
    fp8_engine *e = NULL;

    CHECK_STATUS(fp8_engine_create(&e, m, &o), FP8_OK);
    if (!e) return;
    for (int r = 0; r < PROMPTS * COPIES; r++) {
        const fp8_request q = {.prompt = j->prompt[r % PROMPTS],
                               .num_prompt = j->lengths[r % PROMPTS], .max_new = NEW,
                               .ignore_eos = 1};
        CHECK_STATUS(fp8_engine_submit(e, &q, &ids[r]), FP8_OK);
    }
    for (int i = 0; i < 1000 && running; i++) CHECK_STATUS(fp8_engine_step(e, &running), FP8_OK);
    for (int r = 0; r < PROMPTS * COPIES; r++) {
        int64_t n = 0;
        CHECK_STATUS(fp8_engine_poll(e, ids[r], got[r], NEW, &count, &state), FP8_OK);
        CHECK(count == NEW && state == FP8_REQUEST_FULL);
        while (n < NEW && got[r][n] == j->want[r % PROMPTS][n]) n++;
        same += n;
        for (n = 0; n < NEW && got[r][n] == got[r % PROMPTS][n];) n++;
        alike += n;
    }
    printf("%-10s of %d ids %lld as alone, %lld as the first copy's\n", name,
           PROMPTS * COPIES * NEW, (long long)same, (long long)alike);
    CHECK(10 * same >= tenths * PROMPTS * COPIES * NEW);
    CHECK(10 * alike >= tenths * PROMPTS * COPIES * NEW);
    fp8_engine_destroy(e);
}

static void check_model(const char *folder, fp8_weight_form weights) {
    const fp8_model_options options = {.max_tokens = 2048, .weights = weights};
    const int tenths = weights == FP8_FORM_QUANTIZED ? 6 : 8; /* measured: 7.6, 8.8 */
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    uint64_t seed = 11;
    static job even, apart;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, gpu, c, &options), FP8_OK);
    if (m) {
        make_prompts(&even, m, 1, &seed);
        run(m, &even, "even", tenths);
        make_prompts(&apart, m, 50, &seed);
        run(m, &apart, "apart", tenths);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
}

int main(void) {
    static const char *const names[] = {"models/gemma-7m", "models/llama-11m"};
    int found = 0;

    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *folder = check_data(names[i]);
        if (!folder) continue;
        found++;
        check_case = names[i];
        check_model(folder, FP8_FORM_AS_STORED);
        check_model(folder, FP8_FORM_QUANTIZED);
    }
    fp8_device_destroy(gpu);
    return found ? CHECK_DONE() : TEST_SKIP;
}
