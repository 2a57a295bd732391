/* model/: every family against its oracle, through the tap and at the logits; and checkpoints
 * that are wrong in one way each. */
#include "tests/model_fixture.h"

static fp8_device *cpu;

/* ---- fixtures -------------------------------------------------------------------------------- */

/* What the tap has seen: amax of each point of each layer, and hidden states of sequence 0. */
typedef struct seen {
    const fixture *f;
    double amax[FIXTURE_MAX_LAYERS][FP8_NUM_POINTS], lm_head;
    double hidden_error; /* largest relative L2 */
    int calls[FP8_NUM_POINTS];
} seen;

static float value_at(const fp8_tensor *x, int64_t i) {
    return x->dtype == FP8_DTYPE_F32 ? ((const float *)x->data)[i]
                                     : fp8_bf16_to_f32(((const uint16_t *)x->data)[i]);
}

/* amax over the last `len` positions of each sequence. */
static double amax_of(const fp8_tensor *x, int64_t len) {
    const int64_t width = x->shape[1];
    double amax = 0.0;
    for (int64_t t = 0; t < x->shape[0]; t++)
        for (int64_t i = 0; t % FIXTURE_LEN >= FIXTURE_LEN - len && i < width; i++)
            amax = fmax(amax, fabs((double)value_at(x, t * width + i)));
    return amax;
}

static void check_hidden(seen *s, int32_t layer, const fp8_tensor *x) {
    const int64_t n = FIXTURE_LEN * x->shape[1];
    float *got = malloc((size_t)n * sizeof *got);
    const fp8_st_entry *e;
    char name[32];

    snprintf(name, sizeof name, "hidden.%d", layer);
    e = fp8_safetensors_find(s->f->reference, name);
    for (int64_t i = 0; i < n; i++) got[i] = value_at(x, i);
    CHECK(e != NULL);
    if (e) s->hidden_error = fmax(s->hidden_error, check_relative_l2(got, e->tensor.data, n));
    free(got);
}

static fp8_status on_point(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    seen *s = ctx;
    const int is_kv = point == FP8_POINT_K || point == FP8_POINT_V;

    s->calls[point]++;
    CHECK(x->ndim == 2 && x->shape[0] == FIXTURE_TOKENS && x->place == FP8_PLACE_CPU);
    if (point == FP8_POINT_HIDDEN) check_hidden(s, layer, x);
    else if (point == FP8_POINT_LM_HEAD_INPUT) s->lm_head = amax_of(x, FIXTURE_LEN);
    else s->amax[layer][point] = amax_of(x, is_kv ? s->f->kv_len[layer] : FIXTURE_LEN);
    return FP8_OK;
}

static void check_near(const char *what, double got, double want, double bound) {
    if (fabs(got - want) <= bound * want) return;
    fprintf(stderr, "[%s] %s: amax %.7g, want %.7g\n", check_case, what, got, want);
    check_failures++;
}

static void check_seen(const seen *s, const fp8_model *m, double bound) {
    const fp8_model_config *c = fp8_model_get_config(m);
    fp8_linear_info *linears = NULL;
    int64_t count = 0;
    int found = 0, named = 0;

    CHECK_STATUS(fp8_model_list_linears(&linears, &count, c, s->f->checkpoint), FP8_OK);
    for (int i = 0; i < s->f->num_amax; i++) {
        const fixture_amax *a = &s->f->amax[i];
        if (strcmp(a->name, "lm_head") == 0) check_near(a->name, s->lm_head, a->value, bound);
        for (int64_t l = 0; l < count; l++) {
            if (strcmp(a->name, linears[l].name) != 0) continue;
            check_near(a->name, s->amax[linears[l].layer][linears[l].input], a->value, bound);
            found++;
        }
    }
    for (int64_t l = 0; l < count; l++) named += linears[l].expert < 0;
    /* lm_head, and the shared experts' gates, are none of ours */
    CHECK(found == named);
    CHECK(found == s->f->num_amax - 1 - (c->shared_size ? (int)c->num_layers : 0));
    for (int64_t l = 0; l < c->num_layers; l++) {
        check_near("k", s->amax[l][FP8_POINT_K], s->f->k_amax[l], bound);
        check_near("v", s->amax[l][FP8_POINT_V], s->f->v_amax[l], bound);
    }
    for (int p = 0; p < FP8_NUM_POINTS; p++)
        CHECK(s->calls[p] == (p == FP8_POINT_HIDDEN          ? c->num_layers + 1
                              : p == FP8_POINT_LM_HEAD_INPUT ? 1
                              : p == FP8_POINT_SHARED_DOWN_INPUT && !c->shared_size
                                  ? 0
                                  : c->num_layers));
    free(linears);
}

static int64_t argmax(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) best = x[i] > x[best] ? i : best;
    return best;
}

static void run_fixture(const fixture *f, fp8_compute compute, const char *config_json) {
    const int exact = compute == FP8_COMPUTE_F32;
    const int mixed = fixture_is_mixed(f);
    const double bound = exact ? 1e-5 : mixed ? 0.15 : 4e-2; /* BF16 flips an expert or two */
    const fp8_model_options options = {.compute = compute, .max_tokens = FIXTURE_TOKENS,
                                       .config_json = config_json};
    const fp8_batch batch = fixture_batch(f);
    seen s = {.f = f};
    const fp8_tap tap = {.on = on_point, .ctx = &s};
    fp8_tensor logits, last;
    fp8_model *m = NULL;
    double error;

    CHECK_STATUS(fp8_model_load(&m, cpu, f->checkpoint, &options), FP8_OK);
    if (!m) return;
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, &tap, FP8_LOGITS_ALL, &logits), FP8_OK);
    CHECK(logits.shape[0] == FIXTURE_TOKENS && logits.shape[1] == FIXTURE_VOCAB);
    error = check_relative_l2(logits.data, f->logits, FIXTURE_TOKENS * FIXTURE_VOCAB);
    if (getenv("VERBOSE"))
        printf("%-20s %s logits %.3g hidden %.3g\n", check_case, exact ? "f32" : "bf16", error,
               s.hidden_error);
    if (!(error <= bound)) fprintf(stderr, "[%s] logits are %.3g off\n", check_case, error);
    CHECK(error <= bound);
    CHECK(s.hidden_error <= bound);
    check_seen(&s, m, exact ? 1e-4 : mixed ? 0.1 : 3e-2);
    for (int64_t t = 0; exact && t < FIXTURE_TOKENS; t++) {
        const float *got = (const float *)logits.data + t * FIXTURE_VOCAB;
        CHECK(argmax(got, FIXTURE_VOCAB) == argmax(f->logits + t * FIXTURE_VOCAB, FIXTURE_VOCAB));
    }
    /* The last rows alone are the same numbers; one row of BF16 strays further than all. */
    CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_LAST, &last), FP8_OK);
    CHECK(last.shape[0] == FIXTURE_SEQS);
    for (int64_t i = 0; i < FIXTURE_SEQS; i++)
        CHECK(check_relative_l2((const float *)last.data + i * FIXTURE_VOCAB,
                                f->logits + ((i + 1) * FIXTURE_LEN - 1) * FIXTURE_VOCAB,
                                FIXTURE_VOCAB) <= (exact ? bound : 1.5 * bound));
    fp8_model_destroy(m);
}

static const char *const fixtures[] = {
    "llama", "llama-mha-bias", "llama3-rope", "llama-rope-linear", "llama-rope-dynamic",
    "llama-yarn", "mistral-window", "qwen2", "qwen3", "gemma", "gemma-odd", "gemma2", "gemma3",
    "phi3", "phi3-longrope", "phi3-partial-rotary", "opt", "gpt2",
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe-normtopk",
};

static int test_fixtures(void) {
    int run = 0;
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        char v4[4200];
        fixture f;
        check_case = fixtures[i];
        if (!fixture_open(&f, fixtures[i])) continue;
        run_fixture(&f, FP8_COMPUTE_F32, NULL);
        run_fixture(&f, FP8_COMPUTE_BF16, NULL);
        snprintf(v4, sizeof v4, "%s/config_v4.json", f.folder);
        if (access(v4, R_OK) == 0) run_fixture(&f, FP8_COMPUTE_F32, v4);
        fixture_close(&f);
        run++;
    }
    return run;
}

/* ---- tiny checkpoints of our own ------------------------------------------------------------- */

/* Logits [n, 64] of the tiny model's folder over `ids`; 0 when something failed. */
static int tiny_logits(const char *folder, fp8_compute compute, const int32_t *ids, int64_t n,
                       float *out) {
    const fp8_model_options options = {.compute = compute, .max_tokens = 64};
    const int32_t starts[] = {0, (int32_t)n};
    const fp8_batch batch = {ids, n, starts, 1};
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;
    const int before = check_failures;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    if (check_failures == before)
        memcpy(out, logits.data, (size_t)(n * TINY_VOCAB) * sizeof *out);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    return check_failures == before;
}

static const int32_t tiny_ids[] = {0, 5, 9, 63, 17, 17, 40, 2, 33, 8, 61, 12, 29, 3, 50, 31, 7};
enum { TINY_LEN = sizeof tiny_ids / sizeof *tiny_ids };

/* The same BF16-exact values stored as BF16, F16 and F32 give the same logits. */
static void test_dtypes(void) {
    static float want[TINY_LEN * TINY_VOCAB], got[TINY_LEN * TINY_VOCAB];
    static const fp8_dtype types[] = {FP8_DTYPE_F16, FP8_DTYPE_F32};
    const char *folder;
    tiny t;

    check_case = "dtypes on disk";
    tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK(tiny_logits(folder, FP8_COMPUTE_F32, tiny_ids, TINY_LEN, want));
    tiny_remove(folder);
    for (int k = 0; k < 2; k++) {
        tiny other;
        tiny_make(&other, TINY_DENSE, types[k]);
        for (int64_t i = 0; i < t.count; i++) {
            const tiny_tensor *from = &t.tensors[i];
            unsigned char *to = other.tensors[i].data;
            const size_t n = from->spec.dtype == FP8_DTYPE_BF16 ? from->bytes / 2 : 0;
            for (size_t e = 0; e < n; e++) {
                const float v = fp8_bf16_to_f32(((uint16_t *)(void *)from->data)[e]);
                const uint16_t h = fp8_f32_to_f16(v);
                if (types[k] == FP8_DTYPE_F32) memcpy(to + 4 * e, &v, sizeof v);
                else memcpy(to + 2 * e, &h, sizeof h);
            }
        }
        folder = tiny_write(&other);
        CHECK(tiny_logits(folder, FP8_COMPUTE_F32, tiny_ids, TINY_LEN, got));
        CHECK(check_relative_l2(got, want, TINY_LEN * TINY_VOCAB) < 1e-5);
        tiny_remove(folder);
        tiny_free(&other);
    }
    tiny_free(&t);
}

/* A header one byte longer puts every tensor at an odd address. */
static void shift_data(const char *folder) {
    char path[300];
    fp8_file f = {0};
    unsigned char *moved;
    uint64_t header;

    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    CHECK_STATUS(fp8_file_map(&f, path), FP8_OK);
    memcpy(&header, f.data, sizeof header);
    moved = malloc(f.bytes + 1);
    memcpy(moved, f.data, 8 + header);
    moved[8 + header] = ' ';
    memcpy(moved + 9 + header, f.data + 8 + header, f.bytes - 8 - header);
    header++;
    memcpy(moved, &header, sizeof header);
    CHECK_STATUS(fp8_file_write(path, moved, f.bytes + 1), FP8_OK);
    fp8_file_unmap(&f);
    free(moved);
}

static void test_misaligned(void) {
    static const struct {
        const char *name;
        tiny_scheme scheme;
        fp8_dtype dtype;
        fp8_compute compute;
    } cases[] = {
        {"odd BF16", TINY_DENSE, FP8_DTYPE_BF16, FP8_COMPUTE_BF16},
        {"odd F32", TINY_DENSE, FP8_DTYPE_F32, FP8_COMPUTE_F32},
        {"odd F16", TINY_DENSE, FP8_DTYPE_F16, FP8_COMPUTE_BF16},
        {"odd FP8, static", TINY_STATIC, FP8_DTYPE_BF16, FP8_COMPUTE_BF16},
        {"odd FP8, dynamic", TINY_DYNAMIC, FP8_DTYPE_BF16, FP8_COMPUTE_F32},
    };
    static float even[TINY_LEN * TINY_VOCAB], odd[TINY_LEN * TINY_VOCAB];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *folder;
        tiny t;

        check_case = cases[i].name;
        tiny_make(&t, cases[i].scheme, cases[i].dtype);
        folder = tiny_write(&t);
        CHECK(tiny_logits(folder, cases[i].compute, tiny_ids, TINY_LEN, even));
        shift_data(folder);
        CHECK(tiny_logits(folder, cases[i].compute, tiny_ids, TINY_LEN, odd));
        CHECK(memcmp(even, odd, sizeof even) == 0);
        tiny_remove(folder);
        tiny_free(&t);
    }
}

/* ---- checkpoints that are wrong in one way --------------------------------------------------- */

static void set_scale(tiny *t, const char *name, float v) {
    memcpy(tiny_find(t, name)->data, &v, sizeof v);
}
static void drop(tiny *t, const char *name) {
    tiny_tensor *x = tiny_find(t, name);
    free(x->data);
    memmove(x, x + 1, (size_t)(&t->tensors[--t->count] - x) * sizeof *x);
}

static void drop_norm(tiny *t) { drop(t, "model.layers.1.input_layernorm.weight"); }
static void drop_linear(tiny *t) { drop(t, "model.layers.1.mlp.up_proj.weight"); }
static void drop_embed(tiny *t) { drop(t, "model.embed_tokens.weight"); }
static void drop_lm_head(tiny *t) { drop(t, "lm_head.weight"); }
static void drop_scale(tiny *t) { drop(t, "model.layers.0.mlp.up_proj.weight_scale"); }
static void drop_input_scale(tiny *t) { drop(t, "model.layers.0.mlp.up_proj.input_scale"); }
static void drop_k_scale(tiny *t) { drop(t, "model.layers.1.self_attn.k_scale"); }
static void drop_q_scale(tiny *t) { drop(t, "model.layers.1.self_attn.q_scale"); }
static void nan_scale(tiny *t) { set_scale(t, "model.layers.1.mlp.gate_proj.weight_scale", NAN); }
static void inf_scale(tiny *t) {
    set_scale(t, "model.layers.1.mlp.gate_proj.input_scale", INFINITY);
}
static void zero_scale(tiny *t) { set_scale(t, "model.layers.0.self_attn.v_scale", 0.0f); }
static void negative_scale(tiny *t) { set_scale(t, "model.layers.0.self_attn.q_scale", -1.0f); }
static void bad_metadata(tiny *t) { t->attention = "sometimes"; }
static void dense_weight(tiny *t) {
    tiny_dequantize(t, "model.layers.0.self_attn.q_proj", 0);
}
static void fp8_undeclared(tiny *t) {
    t->scheme = TINY_DENSE;
    tiny_set_config(t, tiny_config);
}
static void replace(tiny *t, const char *from, const char *to) { /* of one length */
    char *at = strstr(t->config, from);
    CHECK(at && strlen(from) == strlen(to));
    if (at) memcpy(at, to, strlen(to));
}
static void no_kv_scheme(tiny *t) {
    replace(t, "kv_cache_scheme", "kv_cache_unused");
    t->attention = "dpa";
}
static void short_vocab(tiny *t) { replace(t, "\"vocab_size\": 64", "\"vocab_size\": 65"); }
static void swapped_shape(tiny *t) {
    tiny_tensor *x = tiny_find(t, "model.layers.0.mlp.down_proj.weight");
    const int64_t rows = x->spec.shape[0];
    x->spec.shape[0] = x->spec.shape[1];
    x->spec.shape[1] = rows;
}
static void wrong_rank(tiny *t) {
    tiny_tensor *x = tiny_find(t, "model.norm.weight");
    x->spec.ndim = 2;
    x->spec.shape[1] = 1;
}
static void integer_norm(tiny *t) {
    tiny_find(t, "model.norm.weight")->spec.dtype = FP8_DTYPE_I16;
}
static void many_scales(tiny *t) {
    tiny_tensor *x = tiny_find(t, "model.layers.0.mlp.up_proj.weight_scale");
    free(x->data);
    x->bytes = 3 * sizeof(float);
    x->data = calloc(1, x->bytes);
    x->spec.shape[0] = 3;
}

static void test_hostile(void) {
    static const struct {
        const char *name;
        tiny_scheme scheme;
        void (*spoil)(tiny *);
        fp8_status want;
        const char *says;
    } cases[] = {
        {"no norm", TINY_DENSE, drop_norm, FP8_ENOTFOUND, "model.layers.1.input_layernorm.weight"},
        {"no Linear", TINY_DENSE, drop_linear, FP8_ENOTFOUND, "model.layers.1.mlp.up_proj.weight"},
        {"no embedding", TINY_DENSE, drop_embed, FP8_ENOTFOUND, "model.embed_tokens.weight"},
        {"no lm_head", TINY_DENSE, drop_lm_head, FP8_ENOTFOUND, "lm_head.weight"},
        {"vocabulary", TINY_DENSE, short_vocab, FP8_EFORMAT, "expected shape [65, 32]"},
        {"shape", TINY_DENSE, swapped_shape, FP8_EFORMAT, "expected shape [32, 48]"},
        {"rank", TINY_DENSE, wrong_rank, FP8_EFORMAT, "found [32, 1]"},
        {"dtype", TINY_DENSE, integer_norm, FP8_EFORMAT, "found I16"},
        {"no weight scale", TINY_STATIC, drop_scale, FP8_ENOTFOUND, "up_proj.weight_scale"},
        {"no input scale", TINY_STATIC, drop_input_scale, FP8_ENOTFOUND, "up_proj.input_scale"},
        {"no k scale", TINY_STATIC, drop_k_scale, FP8_ENOTFOUND, "layers.1.self_attn.k_scale"},
        {"no q scale", TINY_STATIC, drop_q_scale, FP8_ENOTFOUND, "layers.1.self_attn.q_scale"},
        {"NaN scale", TINY_STATIC, nan_scale, FP8_EDATA, "layers.1.mlp.gate_proj.weight_scale"},
        {"Inf scale", TINY_STATIC, inf_scale, FP8_EDATA, "layers.1.mlp.gate_proj.input_scale"},
        {"zero scale", TINY_STATIC, zero_scale, FP8_EDATA, "layers.0.self_attn.v_scale"},
        {"negative scale", TINY_STATIC, negative_scale, FP8_EDATA, "layers.0.self_attn.q_scale"},
        {"3 scales", TINY_STATIC, many_scales, FP8_EFORMAT, "found [3]"},
        {"metadata", TINY_STATIC, bad_metadata, FP8_EFORMAT, "sometimes"},
        {"dense weight", TINY_STATIC, dense_weight, FP8_EFORMAT, "expected F8_E4M3"},
        {"undeclared FP8", TINY_STATIC, fp8_undeclared, FP8_EFORMAT, "found F8_E4M3"},
        {"attention without kv", TINY_STATIC, no_kv_scheme, FP8_EFORMAT, "kv_cache_scheme"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_checkpoint *c = NULL;
        fp8_model *m = NULL;
        const char *folder;
        tiny t;

        check_case = cases[i].name;
        tiny_make(&t, cases[i].scheme, FP8_DTYPE_BF16);
        cases[i].spoil(&t);
        folder = tiny_write(&t);
        CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
        if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, NULL), cases[i].want);
        if (!strstr(fp8_last_message(), cases[i].says)) {
            fprintf(stderr, "[%s] says: %s\n", check_case, fp8_last_message());
            check_failures++;
        }
        CHECK(m == NULL);
        fp8_checkpoint_close(c);
        tiny_remove(folder);
        tiny_free(&t);
    }
}

/* ---- batches --------------------------------------------------------------------------------- */

static void test_batches(void) {
    static const int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8}, high[1] = {64}, low[1] = {-1};
    static const int32_t s8[] = {0, 8}, s1[] = {0, 1}, s9[] = {0, 9}, shifted[] = {1, 8};
    static const int32_t empty[] = {0, 3, 3, 8}, back[] = {0, 5, 3, 8}, two[] = {0, 3, 8};
    static const struct {
        const char *name;
        fp8_batch batch;
        fp8_status want;
    } cases[] = {
        {"one", {ids, 8, s8, 1}, FP8_OK},
        {"two", {ids, 8, two, 2}, FP8_OK},
        {"no ids", {NULL, 8, s8, 1}, FP8_EINVAL},
        {"no starts", {ids, 8, NULL, 1}, FP8_EINVAL},
        {"no tokens", {ids, 0, s8, 1}, FP8_EINVAL},
        {"no sequences", {ids, 8, s8, 0}, FP8_EINVAL},
        {"more sequences than tokens", {ids, 1, two, 2}, FP8_EINVAL},
        {"too many tokens", {ids, 9, s9, 1}, FP8_EINVAL},
        {"starts at 1", {ids, 8, shifted, 1}, FP8_EINVAL},
        {"an empty sequence", {ids, 8, empty, 3}, FP8_EINVAL},
        {"backwards", {ids, 8, back, 3}, FP8_EINVAL},
        {"id too high", {high, 1, s1, 1}, FP8_EINVAL},
        {"id below 0", {low, 1, s1, 1}, FP8_EINVAL},
    };
    const fp8_model_options options = {.compute = FP8_COMPUTE_BF16, .max_tokens = 8};
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    const char *folder;
    tiny t;

    check_case = "batches";
    tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    for (size_t i = 0; m && i < sizeof cases / sizeof *cases; i++) {
        fp8_tensor logits;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_model_forward(m, &cases[i].batch, NULL, NULL, FP8_LOGITS_ALL, &logits),
                     cases[i].want);
        CHECK_STATUS(fp8_model_forward(m, &cases[i].batch, NULL, NULL, FP8_LOGITS_NONE, NULL),
                     cases[i].want);
    }
    if (m) CHECK_STATUS(fp8_model_forward(m, &cases[0].batch, NULL, NULL, FP8_LOGITS_ALL, NULL),
                        FP8_EINVAL);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

static fp8_status refuse(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x) {
    (void)x;
    ++*(int *)ctx;
    return layer == 1 && point == FP8_POINT_V ? FP8_FAIL(FP8_ECANCELED, "enough") : FP8_OK;
}

/* Packed sequences do not see each other, whatever their order; the tap can stop a forward. */
static void test_packing(void) {
    static float alone[TINY_LEN * TINY_VOCAB];
    const fp8_model_options options = {.compute = FP8_COMPUTE_F32, .max_tokens = 64};
    int32_t ids[2 * TINY_LEN], starts[] = {0, 5, 5 + TINY_LEN, 2 * TINY_LEN};
    const fp8_batch batch = {ids, 2 * TINY_LEN, starts, 3};
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;
    int calls = 0;
    const fp8_tap tap = {.on = refuse, .ctx = &calls};
    const char *folder;
    tiny t;

    check_case = "packing";
    tiny_make(&t, TINY_DENSE, FP8_DTYPE_BF16);
    folder = tiny_write(&t);
    CHECK(tiny_logits(folder, FP8_COMPUTE_F32, tiny_ids, TINY_LEN, alone));
    for (int i = 0; i < 2 * TINY_LEN; i++) ids[i] = (i * 7) % TINY_VOCAB;
    memcpy(ids + 5, tiny_ids, sizeof tiny_ids);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) {
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
        CHECK(check_relative_l2((float *)logits.data + 5 * TINY_VOCAB, alone,
                                TINY_LEN * TINY_VOCAB) < 1e-5);
        CHECK_STATUS(fp8_model_forward(m, &batch, NULL, &tap, FP8_LOGITS_NONE, NULL),
                     FP8_ECANCELED);
        CHECK(calls == 8 + 5); /* all of layer 0, layer 1 up to V */
    }
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    tiny_remove(folder);
    tiny_free(&t);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void test_names(void) {
    static const struct {
        const char *fixture;
        int64_t count;
        const char *first, *attention;
        fp8_linear_kind kind;
        int64_t in, out;
        int in_out;
    } cases[] = {
        {"llama", 14, "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn", FP8_LINEAR_Q,
         64, 64, 0},
        {"gpt2", 8, "transformer.h.0.attn.c_attn", "transformer.h.1.attn", FP8_LINEAR_QKV, 64, 192,
         1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static fp8_model_config config;
        fp8_linear_info *list = NULL;
        int64_t count = 0;
        char name[64];
        fixture f;

        check_case = cases[i].fixture;
        if (!fixture_open(&f, cases[i].fixture)) continue;
        CHECK_STATUS(fp8_config_load(&config, f.folder), FP8_OK);
        CHECK_STATUS(fp8_model_list_linears(&list, &count, &config, f.checkpoint), FP8_OK);
        CHECK(count == cases[i].count);
        if (list) {
            CHECK(strcmp(list[0].name, cases[i].first) == 0 && list[0].kind == cases[i].kind);
            CHECK(list[0].in == cases[i].in && list[0].out == cases[i].out);
            CHECK(list[0].in_out == cases[i].in_out && list[0].input == FP8_POINT_QKV_INPUT);
        }
        for (int64_t a = 0; a < count; a++)
            for (int64_t b = 0; b < count; b++)
                CHECK((list[a].group == list[b].group) ==
                      (list[a].layer == list[b].layer && list[a].input == list[b].input));
        CHECK_STATUS(fp8_model_attention_name(name, sizeof name, &config, f.checkpoint, 1), FP8_OK);
        CHECK(strcmp(name, cases[i].attention) == 0);
        CHECK_STATUS(fp8_model_attention_name(name, 5, &config, f.checkpoint, 1), FP8_EOVERFLOW);
        CHECK_STATUS(fp8_model_attention_name(name, 5, &config, f.checkpoint, 2), FP8_EINVAL);
        free(list);
        fixture_close(&f);
    }
    CHECK(strcmp(fp8_point_name(FP8_POINT_QKV_INPUT), "qkv_input") == 0);
    CHECK(strcmp(fp8_point_name(FP8_NUM_POINTS), "?") == 0);
}

int main(void) {
    int found;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    if (!cpu) return 1;
    found = test_fixtures();
    test_dtypes();
    test_misaligned();
    test_hostile();
    test_batches();
    test_packing();
    test_names();
    fp8_device_destroy(cpu);
    if (!found) fprintf(stderr, "no fixtures found: the oracles were left out\n");
    return CHECK_DONE();
}
