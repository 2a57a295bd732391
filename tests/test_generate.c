/* Generation: the KV cache gives the numbers of the whole forward, however the prompt is cut;
 * greedy ids are the oracle's; and every way to stop. */
#include "tests/model_fixture.h"

static fp8_device *cpu;

/* ---- the cache against the whole forward ----------------------------------------------------- */

/* Feeds ids [n] through a cache in pieces (`cuts`, the last one repeated); the largest relative
 * L2 of a piece's last logits row against `want` [n, vocab]. */
static double cached_error(fp8_model *m, const int32_t *ids, int64_t n, const float *want,
                           const int64_t *cuts, int num_cuts) {
    const int64_t vocab = fp8_model_get_config(m)->vocab_size;
    fp8_kv_cache *cache = NULL;
    double worst = 0.0;
    int64_t at = 0;

    CHECK_STATUS(fp8_kv_cache_create(&cache, m, n), FP8_OK);
    for (int i = 0; cache && at < n; i++) {
        const int64_t cut = cuts[i < num_cuts ? i : num_cuts - 1];
        const int64_t len = n - at < cut ? n - at : cut;
        const int32_t starts[] = {0, (int32_t)len};
        const fp8_batch batch = {ids + at, len, starts, 1};
        fp8_tensor logits;
        if (fp8_model_forward(m, &batch, cache, NULL, FP8_LOGITS_LAST, &logits) != FP8_OK) break;
        at += len;
        CHECK(fp8_kv_cache_length(cache) == at);
        worst = fmax(worst, check_relative_l2(logits.data, want + (at - 1) * vocab, vocab));
    }
    CHECK(at == n);
    fp8_kv_cache_destroy(cache);
    return worst;
}

static const struct {
    const char *name;
    int64_t cuts[4];
    int count;
} cuttings[] = {
    {"one by one", {1}, 1},
    {"prompt, then one by one", {9, 1}, 2},
    {"uneven", {5, 1, 17, 3}, 4},
    {"all at once", {1000}, 1},
};

static void check_cache(fp8_model *m, const int32_t *ids, int64_t n, double bound) {
    const int64_t vocab = fp8_model_get_config(m)->vocab_size;
    const int32_t starts[] = {0, (int32_t)n};
    const fp8_batch batch = {ids, n, starts, 1};
    float *want = malloc((size_t)(n * vocab) * sizeof *want);
    fp8_tensor logits;

    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    memcpy(want, logits.data, (size_t)(n * vocab) * sizeof *want);
    for (size_t i = 0; i < sizeof cuttings / sizeof *cuttings; i++) {
        const double error = cached_error(m, ids, n, want, cuttings[i].cuts, cuttings[i].count);
        if (!(error <= bound))
            fprintf(stderr, "[%s] %s: %.3g off\n", check_case, cuttings[i].name, error);
        CHECK(error <= bound);
    }
    free(want);
}

/* ---- fixtures and models --------------------------------------------------------------------- */

/* Mean negative log-likelihood of sequence 0. */
static void check_nll(fp8_model *m, const fixture *f) {
    static const int32_t starts[] = {0, FIXTURE_LEN};
    const fp8_batch batch = {f->ids, FIXTURE_LEN, starts, 1};
    float nll[FIXTURE_LEN];
    fp8_tensor logits;
    double sum = 0.0;

    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    CHECK_STATUS(fp8_model_score(m, &logits, NULL, f->ids + 1, nll, NULL, NULL), FP8_OK);
    for (int i = 0; i < FIXTURE_LEN - 1; i++) sum += (double)nll[i];
    CHECK(fabs(sum / (FIXTURE_LEN - 1) - f->nll) <= 1e-5 * f->nll);
}

static const char *const fixtures[] = {
    "llama", "llama-mha-bias", "llama3-rope", "llama-rope-linear", "mistral-window",
    "qwen2", "qwen3",          "gemma",       "gemma-odd",         "gpt2",
    "gemma2", "gemma3", "phi3", "phi3-longrope", "phi3-partial-rotary", "opt", "llama-yarn",
    "llama-rope-dynamic", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe-normtopk",
};

/* Frequencies that follow the length: what went through a cache in pieces is not one forward. */
static int follows_length(const fp8_model *m) {
    const fp8_rope_type type = fp8_model_get_config(m)->rope.type;
    return type == FP8_ROPE_DYNAMIC || type == FP8_ROPE_LONGROPE;
}

static void test_fixture(const char *name) {
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = FIXTURE_TOKENS};
    fp8_model *m = NULL;
    fp8_ids ids = {0};
    fixture f;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
    if (m) {
        if (!follows_length(m)) check_cache(m, f.ids, FIXTURE_LEN, 1e-5);
        check_nll(m, &f);
        CHECK_STATUS(fp8_model_generate(m, &ids, f.ids, FIXTURE_PROMPT, FIXTURE_GREEDY, 1, NULL,
                                        NULL), FP8_OK);
        CHECK(ids.count == FIXTURE_GREEDY);
        for (int64_t i = 0; i < ids.count; i++) CHECK(ids.data[i] == f.greedy[i]);
    }
    fp8_ids_free(&ids);
    fp8_model_destroy(m);
    fixture_close(&f);
}

static int32_t best_of(const float *x) {
    int32_t best = 0;
    for (int32_t i = 1; i < FIXTURE_VOCAB; i++) best = x[i] > x[best] ? i : best;
    return best;
}

/* Generation across the length at which longrope takes its other factors: every id is that of a
 * forward of all before it, and a cache that is to cross it by itself is refused. */
static void test_longrope(void) {
    enum { NEW = 40 };
    static const int32_t starts[] = {0, 30};
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = FIXTURE_TOKENS};
    int32_t all[FIXTURE_PROMPT + NEW];
    fp8_kv_cache *cache = NULL;
    fp8_model *m = NULL;
    fp8_ids ids = {0};
    fp8_tensor logits;
    fixture f;

    check_case = "longrope";
    if (!fixture_open(&f, "phi3-longrope")) return;
    CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
    if (!m) goto done;
    CHECK_STATUS(fp8_model_generate(m, &ids, f.ids, FIXTURE_PROMPT, NEW, 1, NULL, NULL), FP8_OK);
    CHECK(ids.count == NEW);
    memcpy(all, f.ids, FIXTURE_PROMPT * sizeof *all);
    for (int32_t i = 0; i < ids.count; i++) {
        const int32_t n = FIXTURE_PROMPT + i, whole[] = {0, n};
        const fp8_batch batch = {all, n, whole, 1};
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_LAST, &logits), FP8_OK);
        CHECK(ids.data[i] == best_of(logits.data));
        all[n] = ids.data[i];
    }
    CHECK_STATUS(fp8_kv_cache_create(&cache, m, 100), FP8_OK);
    for (int i = 0; cache && i < 2; i++) {
        const fp8_batch batch = {f.ids, 30, starts, 1};
        CHECK_STATUS(fp8_model_forward(m, &batch, cache, NULL, FP8_LOGITS_NONE, NULL),
                     i == 0 ? FP8_OK : FP8_EINVAL);
    }
    CHECK(strstr(fp8_last_message(), "longrope: 30 cached tokens") != NULL);
done:
    fp8_kv_cache_destroy(cache);
    fp8_ids_free(&ids);
    fp8_model_destroy(m);
    fixture_close(&f);
}

/* Trained models; reference.json's greedy_fp32. */
static void test_trained(void) {
    static const int32_t prompt[] = {0, 499, 996, 531, 369, 847, 1530, 345};
    static const struct {
        const char *path;
        int32_t want[12];
    } cases[] = {
        {"models/sample-1m", {270, 996, 201, 223, 996, 324, 223, 401, 996, 327, 260, 285}},
        {"models/gpt2-3m", {270, 996, 1530, 531, 369, 1043, 201, 923, 270, 996, 1530, 531}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_model_options options = {.compute = FP8_COMPUTE_F32,
                                           .max_tokens = 5}; /* two pieces */
        const char *path = check_data(cases[i].path);
        fp8_checkpoint *c = NULL;
        fp8_model *m = NULL;
        fp8_ids ids = {0};

        check_case = cases[i].path;
        if (!path) continue;
        CHECK_STATUS(fp8_checkpoint_open(&c, path), FP8_OK);
        if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
        if (m) CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 8, 12, 1, NULL, NULL), FP8_OK);
        CHECK(ids.count == 12 && memcmp(ids.data, cases[i].want, sizeof cases[i].want) == 0);
        fp8_ids_free(&ids);
        fp8_model_destroy(m);
        fp8_checkpoint_close(c);
    }
}

/* ---- stopping -------------------------------------------------------------------------------- */

static int stop_after(void *ctx, int32_t id) {
    (void)id;
    return --*(int *)ctx <= 0;
}

/* A model whose config calls `eos` an EOS id. */
static fp8_model *load_with_eos(tiny *t, int32_t eos, fp8_checkpoint **c, char *folder,
                                size_t bytes) {
    char config[2048];
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 64};
    fp8_model *m = NULL;
    char *at;

    snprintf(config, sizeof config, "%s", tiny_config);
    at = strstr(config, "\"eos_token_id\": 1");
    snprintf(at, sizeof config - (size_t)(at - config), "\"eos_token_id\": [1, %d]}", eos);
    tiny_set_config(t, config);
    snprintf(folder, bytes, "%s", tiny_write(t));
    CHECK_STATUS(fp8_checkpoint_open(c, folder), FP8_OK);
    if (*c) CHECK_STATUS(fp8_model_load(&m, cpu, *c, &options), FP8_OK);
    return m;
}

static void test_stopping(void) {
    static const int32_t prompt[] = {5, 9, 63};
    fp8_checkpoint *c = NULL;
    fp8_model *m;
    fp8_ids all = {0}, ids = {0};
    char folder[256];
    int64_t first = 0;
    int calls = 4;
    tiny t;

    check_case = "stopping";
    tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
    m = load_with_eos(&t, 2, &c, folder, sizeof folder);
    if (m) {
        CHECK_STATUS(fp8_model_generate(m, &all, prompt, 3, 20, 1, NULL, NULL), FP8_OK);
        CHECK(all.count == 20);
        CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 3, 20, 1, stop_after, &calls), FP8_OK);
        CHECK(ids.count == 4 && memcmp(ids.data, all.data, 4 * sizeof *ids.data) == 0);
        CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 3, 0, 0, NULL, NULL), FP8_OK);
        CHECK(ids.count == 4); /* appends, here nothing */
        CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 0, 5, 0, NULL, NULL), FP8_EINVAL);
        CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 3, -1, 0, NULL, NULL), FP8_EINVAL);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    if (all.count == 20) { /* now the 6th id it gave ends it, and is not given */
        c = NULL;
        m = load_with_eos(&t, all.data[5], &c, folder, sizeof folder);
        while (all.data[first] != all.data[5] && all.data[first] != 1) first++;
        ids.count = 0;
        if (m) CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 3, 20, 0, NULL, NULL), FP8_OK);
        CHECK(ids.count == first);
        ids.count = 0;
        if (m) CHECK_STATUS(fp8_model_generate(m, &ids, prompt, 3, 20, 1, NULL, NULL), FP8_OK);
        CHECK(ids.count == 20);
        fp8_model_destroy(m);
        fp8_checkpoint_close(c);
        tiny_remove(folder);
    }
    fp8_ids_free(&all);
    fp8_ids_free(&ids);
    tiny_free(&t);
}

/* ---- caches that do not fit ------------------------------------------------------------------ */

static const int32_t tiny_ids[] = {0, 5, 9, 63, 17, 17, 40, 2, 33, 8, 61, 12, 29, 3, 50, 31, 7};
enum { TINY_LEN = sizeof tiny_ids / sizeof *tiny_ids };

static void test_caches(tiny_scheme scheme) {
    static const int32_t s17[] = {0, 17}, s1[] = {0, 1}, two[] = {0, 8, 17};
    const fp8_batch all = {tiny_ids, 17, s17, 1}, single = {tiny_ids, 1, s1, 1};
    const fp8_batch pair = {tiny_ids, 17, two, 2};
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 64};
    fp8_kv_cache *cache = NULL, *foreign = NULL;
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL, *other = NULL;
    const char *folder;
    tiny t;

    check_case = scheme == TINY_STATIC ? "caches of codes" : "caches";
    tiny_make(&t, scheme, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&other, cpu, c, &options), FP8_OK);
    if (m && other) {
        /* An ulp in a sum may move an activation to the next code, a step of 1/16. */
        check_cache(m, tiny_ids, TINY_LEN, scheme == TINY_STATIC ? 1e-2 : 1e-5);
        CHECK_STATUS(fp8_kv_cache_create(&cache, m, 0), FP8_EINVAL);
        CHECK_STATUS(fp8_kv_cache_create(&cache, m, 17), FP8_OK);
        CHECK_STATUS(fp8_kv_cache_create(&foreign, other, 17), FP8_OK);
        CHECK_STATUS(fp8_model_forward(m, &single, foreign, NULL, FP8_LOGITS_NONE, NULL),
                     FP8_EINVAL);
        CHECK_STATUS(fp8_model_forward(m, &pair, cache, NULL, FP8_LOGITS_NONE, NULL), FP8_EINVAL);
        CHECK_STATUS(fp8_model_forward(m, &all, cache, NULL, FP8_LOGITS_NONE, NULL), FP8_OK);
        CHECK(fp8_kv_cache_length(cache) == 17);
        CHECK_STATUS(fp8_model_forward(m, &single, cache, NULL, FP8_LOGITS_NONE, NULL), FP8_EINVAL);
        CHECK(fp8_kv_cache_length(cache) == 17);
        fp8_kv_cache_clear(cache);
        CHECK_STATUS(fp8_model_forward(m, &single, cache, NULL, FP8_LOGITS_NONE, NULL), FP8_OK);
        CHECK(fp8_kv_cache_length(cache) == 1);
    }
    fp8_kv_cache_destroy(cache);
    fp8_kv_cache_destroy(foreign);
    fp8_model_destroy(m);
    fp8_model_destroy(other);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

/* Learned positions end; rotary ones go on past max_position_embeddings (512 in the fixture). */
static void test_positions(void) {
    static const struct {
        const char *fixture;
        int64_t max_new;
        fp8_status want;
    } cases[] = {
        {"gpt2", 248, FP8_OK}, /* 9 + 248 - 1 = 256 positions */
        {"gpt2", 249, FP8_EINVAL},
        {"llama", 520, FP8_OK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_model_options options = {.compute = FP8_COMPUTE_BF16, .max_tokens = 64};
        fp8_model *m = NULL;
        fp8_ids ids = {0};
        fixture f;

        check_case = cases[i].fixture;
        if (!fixture_open(&f, cases[i].fixture)) continue;
        CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
        if (m) CHECK_STATUS(fp8_model_generate(m, &ids, f.ids, FIXTURE_PROMPT, cases[i].max_new, 1,
                                               NULL, NULL), cases[i].want);
        CHECK(ids.count == (cases[i].want == FP8_OK ? cases[i].max_new : 0));
        fp8_ids_free(&ids);
        fp8_model_destroy(m);
        fixture_close(&f);
    }
}

/* The cache's length counts: the 257th position of 256 is refused wherever it comes from. */
static void test_learned_positions(void) {
    static const int32_t starts[] = {0, 64};
    const fp8_model_options options = {.compute = FP8_COMPUTE_BF16, .max_tokens = 64};
    fp8_kv_cache *cache = NULL;
    fp8_model *m = NULL;
    fixture f;

    check_case = "learned positions";
    if (!fixture_open(&f, "gpt2")) return;
    CHECK_STATUS(fp8_model_load(&m, cpu, f.checkpoint, &options), FP8_OK);
    if (m) CHECK_STATUS(fp8_kv_cache_create(&cache, m, 1000), FP8_OK);
    for (int i = 0; cache && i < 5; i++) {
        const fp8_batch batch = {f.ids, 64, starts, 1}; /* both sequences' ids, as one */
        CHECK_STATUS(fp8_model_forward(m, &batch, cache, NULL, FP8_LOGITS_NONE, NULL),
                     i < 4 ? FP8_OK : FP8_EINVAL);
    }
    fp8_kv_cache_destroy(cache);
    fp8_model_destroy(m);
    fixture_close(&f);
}

/* ---- scores ---------------------------------------------------------------------------------- */

static void test_scores(void) {
    static const int32_t starts[] = {0, TINY_LEN - 1};
    const fp8_batch batch = {tiny_ids, TINY_LEN - 1, starts, 1};
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 64};
    float nll[TINY_LEN], kl[TINY_LEN];
    uint8_t top1[TINY_LEN];
    int32_t wrong[TINY_LEN];
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    const char *folder;
    fp8_tensor logits, other;
    tiny t;

    check_case = "scores";
    tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) {
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
        CHECK_STATUS(fp8_model_score(m, &logits, &logits, tiny_ids + 1, nll, kl, top1), FP8_OK);
        for (int r = 0; r < TINY_LEN - 1; r++) {
            const float *x = (const float *)logits.data + r * TINY_VOCAB;
            double sum = 0.0;
            for (int i = 0; i < TINY_VOCAB; i++) sum += exp((double)x[i]);
            CHECK(fabs(log(sum) - (double)x[tiny_ids[r + 1]] - (double)nll[r]) < 1e-5);
            CHECK(kl[r] == 0.0f && top1[r] == 1);
        }
        memcpy(wrong, tiny_ids, sizeof wrong);
        wrong[3] = TINY_VOCAB;
        other = logits;
        other.shape[0]--;
        CHECK_STATUS(fp8_model_score(m, &logits, NULL, wrong, nll, NULL, NULL), FP8_EINVAL);
        CHECK_STATUS(fp8_model_score(m, &logits, NULL, tiny_ids, nll, kl, NULL), FP8_EINVAL);
        CHECK_STATUS(fp8_model_score(m, &logits, NULL, NULL, nll, NULL, NULL), FP8_EINVAL);
        CHECK_STATUS(fp8_model_score(m, &logits, &other, tiny_ids, nll, kl, NULL), FP8_EINVAL);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

int main(void) {
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    if (!cpu) return 1;
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) test_fixture(fixtures[i]);
    test_longrope();
    test_trained();
    test_stopping();
    test_caches(TINY_DENSE);
    test_caches(TINY_STATIC);
    test_positions();
    test_learned_positions();
    test_scores();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
