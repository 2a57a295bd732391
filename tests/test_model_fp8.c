/* The FP8 forward. Its oracle is the dense forward of the values the FP8 weights stand for, with
 * a tap that quantizes and dequantizes every activation where an FP8 model does. */
#include "tests/model_fixture.h"

static fp8_device *cpu;

/* ---- the oracle ------------------------------------------------------------------------------ */

typedef struct simulation {
    tiny_scheme scheme;
    float descales[FIXTURE_MAX_LAYERS][FP8_NUM_POINTS]; /* 0: left alone */
} simulation;

static void round_trip(float *x, int64_t n, float scale, float descale) {
    for (int64_t i = 0; i < n; i++)
        x[i] = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, x[i] * scale)) * descale;
}

/* The forward goes on with what the tap leaves in the tensor. */
static fp8_status quantize_point(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    const simulation *s = ctx;
    const int64_t cols = x->shape[1], n = x->shape[0] * cols;
    float *data = x->data;
    float descale;

    if (point == FP8_POINT_HIDDEN || point == FP8_POINT_LM_HEAD_INPUT) return FP8_OK;
    descale = s->descales[layer][point];
    if (descale == 0.0f) return FP8_OK;
    if (s->scheme == TINY_STATIC) round_trip(data, n, 1.0f / descale, descale);
    for (int64_t r = 0; s->scheme != TINY_STATIC && r < x->shape[0]; r++) {
        float amax = 0.0f;
        for (int64_t c = 0; c < cols; c++) amax = fmaxf(amax, fabsf(data[r * cols + c]));
        if (amax > 0.0f)
            round_trip(data + r * cols, cols, FP8_E4M3_MAX / amax, amax / FP8_E4M3_MAX);
    }
    return FP8_OK;
}

/* Descales as fixture_quantized writes them; queries only for FP8 attention. */
static simulation simulate(const fixture *f, tiny_scheme scheme, int queries) {
    static fp8_model_config config;
    fp8_linear_info *linears = NULL;
    simulation s = {.scheme = scheme};
    int64_t count = 0;

    CHECK_STATUS(fp8_config_load(&config, f->folder), FP8_OK);
    CHECK_STATUS(fp8_model_list_linears(&linears, &count, &config, f->checkpoint), FP8_OK);
    for (int64_t i = 0; i < count; i++)
        s.descales[linears[i].layer][linears[i].input] =
            (float)fixture_find_amax(f, linears[i].name) / FP8_E4M3_MAX;
    for (int64_t l = 0; scheme == TINY_STATIC && l < config.num_layers; l++) {
        s.descales[l][FP8_POINT_Q] = queries ? 16.0f / FP8_E4M3_MAX : 0.0f;
        s.descales[l][FP8_POINT_K] = (float)f->k_amax[l] / FP8_E4M3_MAX;
        s.descales[l][FP8_POINT_V] = (float)f->v_amax[l] / FP8_E4M3_MAX;
    }
    free(linears);
    return s;
}

/* Logits [94, 512] of what is in `t`, over the fixture's ids. */
static void run(tiny *t, const fixture *f, fp8_compute compute, const fp8_tap *tap, float *out) {
    const fp8_model_options options = {.compute = compute, .max_tokens = FIXTURE_TOKENS};
    const fp8_batch batch = fixture_batch(f);
    const char *folder = tiny_write(t);
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;

    memset(out, 0, FIXTURE_TOKENS * FIXTURE_VOCAB * sizeof *out);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) {
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, tap, FP8_LOGITS_ALL, &logits), FP8_OK);
        memcpy(out, logits.data, FIXTURE_TOKENS * FIXTURE_VOCAB * sizeof *out);
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
}

/* ---- every family ---------------------------------------------------------------------------- */

static float oracle[FIXTURE_TOKENS * FIXTURE_VOCAB], got[FIXTURE_TOKENS * FIXTURE_VOCAB];

static void compare(const char *what, const float *want, double low, double high) {
    const double error = check_relative_l2(got, want, FIXTURE_TOKENS * FIXTURE_VOCAB);
    if (getenv("VERBOSE")) printf("%-16s %-28s %.2e\n", check_case, what, error);
    if (error >= low && error <= high) return;
    fprintf(stderr, "[%s] %s: %.3g off, expected %g to %g\n", check_case, what, error, low, high);
    check_failures++;
}

/* An ulp of difference moves an activation to the next code now and then: 1/16 of one element of
 * thousands. P in E4M3 is beyond the oracle; BF16 adds its own error (fixtures: 2.5 % at most). */
static void test_family(const char *name, tiny_scheme scheme, const char *strip) {
    static const char *const modes[] = {"none", "dpa", "mha"};
    const int num_modes = scheme == TINY_STATIC ? 3 : 1;
    fixture f;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    for (int i = 0; i < num_modes; i++) {
        simulation s = simulate(&f, scheme, i > 0);
        const fp8_tap tap = {.on = quantize_point, .ctx = &s};
        tiny fp8, dense;

        fixture_quantized(&fp8, &f, scheme, strip);
        fixture_quantized(&dense, &f, scheme, strip);
        for (int64_t k = dense.count - 1; k >= 0; k--) {
            char *end = strstr(dense.tensors[k].name, ".weight_scale"), module[256];
            if (!end) continue;
            snprintf(module, sizeof module, "%.*s", (int)(end - dense.tensors[k].name),
                     dense.tensors[k].name);
            tiny_dequantize(&dense, module, strcmp(name, "gpt2") == 0);
        }
        dense.scheme = TINY_DENSE;
        fixture_set_config(&dense, &f);
        fp8.attention = modes[i];
        run(&dense, &f, FP8_COMPUTE_F32, &tap, oracle);
        run(&fp8, &f, FP8_COMPUTE_F32, NULL, got);
        compare(modes[i], oracle, 0.0, i == 0 ? 2e-2 : 0.15);
        compare("against no quantization", f.logits, 0.02, 0.4);
        run(&fp8, &f, FP8_COMPUTE_BF16, NULL, got);
        compare("in BF16", oracle, 1e-3, 0.2);
        tiny_free(&fp8);
        tiny_free(&dense);
    }
    fixture_close(&f);
}

/* Without its prefix GPT-2 is the same model. */
static void test_prefix(void) {
    fixture f;
    tiny t;

    check_case = "gpt2 without transformer.";
    if (!fixture_open(&f, "gpt2")) return;
    fixture_quantized(&t, &f, TINY_DENSE, "transformer.");
    run(&t, &f, FP8_COMPUTE_F32, NULL, got);
    compare("logits", f.logits, 0.0, 1e-5);
    tiny_free(&t);
    fixture_close(&f);
}

/* ---- attention modes ------------------------------------------------------------------------- */

static const int32_t tiny_ids[] = {0, 5, 9, 63, 17, 17, 40, 2, 33, 8, 61, 12, 29, 3, 50, 31, 7};
enum { TINY_LEN = sizeof tiny_ids / sizeof *tiny_ids };

static void tiny_run(tiny *t, float *out, fp8_attention_mode *mode) {
    static const int32_t starts[] = {0, TINY_LEN};
    const fp8_batch batch = {tiny_ids, TINY_LEN, starts, 1};
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 64};
    const char *folder = tiny_write(t);
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) {
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
        memcpy(out, logits.data, TINY_LEN * TINY_VOCAB * sizeof *out);
        *mode = fp8_model_get_quant(m)->attention;
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
}

/* MHA is DPA whose output is quantized with o_proj's own scale: the same numbers. Query scales
 * without metadata ask for DPA. */
static void test_modes(void) {
    static const struct {
        const char *metadata;
        fp8_attention_mode want;
        int same_as_dpa;
    } cases[] = {
        {"dpa", FP8_ATTENTION_DPA, 1},
        {"mha", FP8_ATTENTION_MHA, 1},
        {NULL, FP8_ATTENTION_DPA, 1},
        {"none", FP8_ATTENTION_NONE, 0},
    };
    static float logits[4][TINY_LEN * TINY_VOCAB];
    tiny t;

    check_case = "attention modes";
    tiny_make(&t, TINY_STATIC, FP8_DTYPE_BF16);
    for (int i = 0; i < 4; i++) {
        fp8_attention_mode mode = FP8_ATTENTION_NONE;
        t.attention = cases[i].metadata;
        tiny_run(&t, logits[i], &mode);
        CHECK(mode == cases[i].want);
        CHECK((memcmp(logits[0], logits[i], sizeof logits[0]) == 0) == cases[i].same_as_dpa);
    }
    tiny_free(&t);
}

/* Linears of one group with scales of their own are quantized each by itself; a scale may be a
 * scalar, BF16 or F16. */
static void test_scales(void) {
    static float first[TINY_LEN * TINY_VOCAB], second[TINY_LEN * TINY_VOCAB];
    fp8_attention_mode mode;
    tiny_tensor *x;
    tiny t;

    check_case = "scales";
    tiny_make(&t, TINY_STATIC, FP8_DTYPE_BF16);
    x = tiny_find(&t, "model.layers.0.self_attn.k_proj.input_scale");
    tiny_set(x, 0, 0.0078125f);
    tiny_run(&t, first, &mode);
    for (int as = 0; as < 2; as++) {
        x->spec.dtype = as ? FP8_DTYPE_BF16 : FP8_DTYPE_F16;
        x->spec.ndim = as ? 0 : 2;
        x->spec.shape[1] = 1;
        x->bytes = 2;
        tiny_set(x, 0, 0.0078125f);
        tiny_run(&t, second, &mode);
        CHECK(memcmp(first, second, sizeof first) == 0);
    }
    tiny_set(x, 0, 1e-4f); /* saturates: it does reach k_proj, and k_proj alone */
    tiny_run(&t, second, &mode);
    CHECK(check_relative_l2(second, first, TINY_LEN * TINY_VOCAB) > 1e-3);
    CHECK(check_relative_l2(second, first, TINY_LEN * TINY_VOCAB) < 0.3);
    tiny_free(&t);
}

int main(void) {
    static const char *const names[] = {"llama",          "llama-mha-bias", "llama3-rope",
                                        "mistral-window", "qwen2",          "qwen3",
                                        "gemma",          "gemma-odd",      "gpt2",
                                        "gemma2",         "gemma3",         "phi3",
                                        "opt",            "phi3-longrope",  "phi3-partial-rotary"};
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    if (!cpu) return 1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        test_family(names[i], TINY_STATIC, "");
        test_family(names[i], TINY_DYNAMIC, "");
        test_family(names[i], TINY_TENSOR_DYNAMIC, "");
    }
    test_family("gpt2", TINY_STATIC, "transformer.");
    test_prefix();
    test_modes();
    test_scales();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
