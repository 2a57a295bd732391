/* Parts of model/ that no oracle of the whole sees: RoPE's tables and the choice of attention
 * plans. */
#include "model/model_impl.h"
#include "tests/tiny_checkpoint.h"

static fp8_device *cpu;

/* ---- RoPE ------------------------------------------------------------------------------------ */

/* Wavelengths 2 pi 100^(i/2): 6.28, 62.8, 628, 6283. With low 1, high 4, original 512 those
 * above 512 are stretched, those below 128 stay, none is between; original 1024 puts 628
 * between. */
#define LLAMA3(length)                                                                             \
    {.type = FP8_ROPE_LLAMA3, .theta = 1e4, .factor = 8, .low_freq_factor = 1,                     \
     .high_freq_factor = 4, .original_max_position = length}
#define YARN(whole)                                                                                \
    {.type = FP8_ROPE_YARN, .theta = 1e4, .factor = 4, .original_max_position = 512,               \
     .beta_fast = 32, .beta_slow = 1, .truncate = whole}
#define DYNAMIC                                                                                    \
    {.type = FP8_ROPE_DYNAMIC, .theta = 1e4, .factor = 2, .original_max_position = 32}
#define LONGROPE                                                                                   \
    {.type = FP8_ROPE_LONGROPE, .theta = 1e4, .short_factor = {1, 2, 1, 1},                        \
     .long_factor = {2, 4, 3, 5}}

static void test_frequencies(void) {
    static const struct {
        const char *name;
        fp8_rope_config rope;
        double want[4];
        int64_t key;
    } cases[] = {
        {"default", {.type = FP8_ROPE_DEFAULT, .theta = 1e4}, {1, 0.1, 0.01, 0.001}, 0},
        {"linear", {.type = FP8_ROPE_LINEAR, .theta = 1e4, .factor = 4},
         {0.25, 0.025, 0.0025, 0.00025}, 0},
        {"llama3", LLAMA3(512), {1, 0.1, 0.00125, 0.000125}, 0},
        /* smooth = (1024 / 628.3185 - 1) / 3 = 0.2099155 */
        {"llama3 between", LLAMA3(1024),
         {1, 0.1, 0.01 * (0.2099155 + 0.7900845 / 8), 0.000125}, 0},
        /* 32 turns in 512 at element 0.406, 1 at 1.911: the ramp is from 0 to 2 */
        {"yarn", YARN(1), {1, 0.0625, 0.0025, 0.00025}, 0},
        {"yarn, not truncated", YARN(0), {1, 0.070398637, 0.0025, 0.00025}, 0},
        /* base 1e4 * (2 * 47 / 32 - 1)^(8/6) */
        {"dynamic", DYNAMIC, {1, 0.080214478, 0.0064343625, 0.000516129032}, 47},
        {"dynamic, short", DYNAMIC, {1, 0.1, 0.01, 0.001}, 32},
        {"longrope, short", LONGROPE, {1, 0.05, 0.01, 0.001}, 0},
        {"longrope, long", LONGROPE, {0.5, 0.025, 0.01 / 3, 0.0002}, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float got[4];
        check_case = cases[i].name;
        fp8_rope_frequencies(got, &cases[i].rope, 8, cases[i].key);
        for (int k = 0; k < 4; k++)
            CHECK(fabs((double)got[k] - cases[i].want[k]) <= 1e-6 * cases[i].want[k]);
    }
}

static void test_tables(fp8_model *m, int bf16) {
    const int64_t half = m->config.head_dim / 2;
    float frequencies[8];

    check_case = bf16 ? "tables in BF16" : "tables in F32";
    CHECK(half == 8 && m->rope.positions == 64);
    fp8_rope_frequencies(frequencies, &m->config.rope, m->config.head_dim, 0);
    CHECK_STATUS(fp8_rope_extend(m, 10), FP8_OK); /* shorter: nothing to do */
    CHECK(m->rope.positions == 64);
    CHECK_STATUS(fp8_rope_extend(m, 200), FP8_OK);
    CHECK(m->rope.positions == 200);
    for (int64_t i = 0; i < 200 * half; i++) {
        const float angle = (float)(i / half) * frequencies[i % half];
        const float c = (float)cos((double)angle), s = (float)sin((double)angle);
        CHECK(m->rope.cos[i] == (bf16 ? fp8_round_bf16(c) : c));
        CHECK(m->rope.sin[i] == (bf16 ? fp8_round_bf16(s) : s));
    }
}

/* ---- plans ----------------------------------------------------------------------------------- */

static fp8_attention_plan *plan_of(fp8_model *m, int64_t seqs, int64_t q, int64_t kv,
                                   int64_t window, int uniform) {
    fp8_attention_options options = FP8_ATTENTION_OPTIONS;
    fp8_attention_plan *plan = NULL;
    options.num_heads = 4;
    options.num_kv_heads = 2;
    options.d_qk = options.d_v = 16;
    options.num_seqs = seqs;
    options.max_q = q;
    options.max_kv = kv;
    options.layout = uniform ? FP8_LAYOUT_BSHD_BSHD_BSHD : FP8_LAYOUT_THD_THD_THD;
    options.mask = FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    options.window_left = window - 1;
    options.q_dtype = options.kv_dtype = options.o_dtype = m->type;
    CHECK_STATUS(fp8_plan_get(m, &plan, &options), FP8_OK);
    CHECK(plan && m->workspace.bytes >= fp8_attention_workspace_size(plan));
    return plan;
}

static void test_plans(fp8_model *m) {
    const fp8_attention_plan *first;

    check_case = "plans";
    first = plan_of(m, 2, 20, 20, 0, 0);
    CHECK(plan_of(m, 2, 20, 20, 0, 0) == first);
    CHECK(plan_of(m, 2, 17, 32, 0, 0) == first); /* lengths that vary are rounded up */
    CHECK(plan_of(m, 2, 20, 33, 0, 0) != first);
    CHECK(plan_of(m, 2, 33, 20, 0, 0) != first);
    CHECK(plan_of(m, 3, 20, 20, 0, 0) != first);
    CHECK(plan_of(m, 2, 20, 20, 8, 0) != first);
    CHECK(plan_of(m, 2, 32, 32, 0, 1) != first);
    CHECK(plan_of(m, 2, 31, 31, 0, 1) != plan_of(m, 2, 32, 32, 0, 1)); /* promised ones are exact */
    CHECK(plan_of(m, 1, 1, 100, 0, 0) == plan_of(m, 1, 1, 128, 0, 0));
    CHECK(plan_of(m, 2, 20, 20, 0, 0) == first);
    for (int64_t n = 1; n < FP8_MAX_PLANS; n++) plan_of(m, 5, n, n, 0, 1);
    CHECK(m->plans[0].plan == first && plan_of(m, 2, 20, 20, 0, 0) == first); /* not the oldest */
    for (int64_t n = 1; n <= FP8_MAX_PLANS; n++) plan_of(m, 6, n, n, 0, 1);
    for (int i = 0; i < FP8_MAX_PLANS; i++) CHECK(m->plans[i].options.num_seqs == 6);
}

/* A cache of FP8 keys and values takes a byte an element. */
static void test_cache_bytes(void) {
    fp8_kv_cache *cache = NULL;
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    const char *folder;
    tiny t;

    check_case = "bytes of a cache";
    tiny_make(&t, TINY_STATIC, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, NULL), FP8_OK);
    if (m) CHECK_STATUS(fp8_kv_cache_create(&cache, m, 10), FP8_OK);
    CHECK(cache && cache->row_bytes == 2 * 16);
    fp8_kv_cache_destroy(cache);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

int main(void) {
    static const fp8_compute computes[] = {FP8_COMPUTE_F32, FP8_COMPUTE_BF16};
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    if (!cpu) return 1;
    test_frequencies();
    test_cache_bytes();
    for (int i = 0; i < 2; i++) {
        const fp8_model_options options = {.compute = computes[i], .max_tokens = 64};
        fp8_checkpoint *c = NULL;
        fp8_model *m = NULL;
        const char *folder;
        tiny t;

        tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
        folder = tiny_write(&t);
        CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
        if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
        if (m) {
            test_tables(m, i);
            test_plans(m);
        }
        fp8_model_destroy(m);
        fp8_checkpoint_close(c);
        tiny_remove(folder);
        tiny_free(&t);
    }
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
