/* Every architecture from end to end on the CPU: calibrated, written as FP8, read back and run; and
 * the text part of a multimodal model, whatever its names and its config.json look like. */
#include "calib/calib.h"
#include "core/log.h"
#include "tests/model_fixture.h"
#include "tests/sample_model.h"

static fp8_device *cpu;
static char last_warning[512];

static void keep_warning(void *ctx, fp8_log_level level, const char *line) {
    (void)ctx;
    (void)level;
    snprintf(last_warning, sizeof last_warning, "%s", line);
}

/* Logits [94, 512] of a folder, over the fixture's ids; 0 when it cannot be run. */
static int run(const char *folder, const fixture *f, fp8_compute compute, float *out) {
    const fp8_model_options options = {.compute = compute, .max_tokens = FIXTURE_TOKENS};
    const fp8_batch batch = fixture_batch(f);
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;
    const int before = check_failures;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    if (check_failures == before)
        memcpy(out, logits.data, FIXTURE_TOKENS * FIXTURE_VOCAB * sizeof *out);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    return check_failures == before;
}

static float got[FIXTURE_TOKENS * FIXTURE_VOCAB];

/* Tokens of each mixture: every choice of every token is counted once. */
static void check_experts(const fp8_model *m) {
    const fp8_model_config *c = fp8_model_get_config(m);
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const int64_t *tokens = fp8_model_expert_tokens(m, layer);
        int64_t sum = 0;
        CHECK((tokens != NULL) == (c->layer_is_mixed[layer] != 0));
        for (int64_t e = 0; tokens && e < c->num_experts; e++) sum += tokens[e];
        CHECK(!tokens || sum == FIXTURE_TOKENS * c->experts_per_token);
    }
    CHECK(fp8_model_expert_tokens(m, c->num_layers) == NULL);
}

/* Engines want one input scale for all gate and up of a layer's experts, and one for all down; and
 * one weight scale for the gate and up of an expert. */
static void check_expert_scales(const fp8_checkpoint *c, const fixture *f) {
    static const struct {
        const char *first, *other;
    } pairs[] = {
        {"0.w1.input_scale", "3.w3.input_scale"},
        {"0.w2.input_scale", "2.w2.input_scale"},
        {"1.w1.weight_scale", "1.w3.weight_scale"},
    };
    for (size_t i = 0; strstr(f->folder, "mixtral") && i < sizeof pairs / sizeof *pairs; i++) {
        const fp8_st_entry *e[2];
        for (int k = 0; k < 2; k++) {
            char name[128];
            snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%s",
                     k ? pairs[i].other : pairs[i].first);
            e[k] = fp8_checkpoint_find(c, name);
        }
        CHECK(e[0] && e[1] && memcmp(e[0]->tensor.data, e[1]->tensor.data, sizeof(float)) == 0);
    }
}

/* What is no Linear of ours is declared as left alone, and is as it was. */
static void check_written(const char *folder, const fixture *f, int is_static) {
    fp8_quant_config quant = {0};
    fp8_checkpoint *c = NULL;
    char path[4200];
    fp8_file json = {0};

    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_STATUS(fp8_file_map(&json, path), FP8_OK);
    CHECK_STATUS(fp8_quant_config_parse(&quant, path, (const char *)json.data, json.bytes), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    for (int64_t i = 0; c && i < fp8_checkpoint_count(f->checkpoint); i++) {
        const fp8_st_entry *was = fp8_checkpoint_at(f->checkpoint, i);
        const fp8_st_entry *is = fp8_checkpoint_find(c, was->name);
        char module[256];
        CHECK(is != NULL);
        if (!is || was->tensor.ndim != 2 || strstr(was->name, "embed")) continue;
        snprintf(module, sizeof module, "%.*s", (int)(strlen(was->name) - 7), was->name);
        CHECK(fp8_quant_config_ignores(&quant, module) == (is->tensor.dtype != FP8_DTYPE_E4M3));
        if (is->tensor.dtype != FP8_DTYPE_E4M3)
            CHECK(is->bytes == was->bytes && !memcmp(is->tensor.data, was->tensor.data, is->bytes));
    }
    if (c && is_static) check_expert_scales(c, f);
    fp8_checkpoint_close(c);
    fp8_quant_config_free(&quant);
    fp8_file_unmap(&json);
}

/* Calibrates and writes the checkpoint in `source` to `out`. */
static void export_to(const char *out, const char *source, const fixture *f) {
    const fp8_calib_options how = {.batch = 2, .seq = 512, .data_name = "fixture"};
    const fp8_export_options options = {.scheme = FP8_SCHEME_TENSOR,
                                        .kv_fp8 = 1,
                                        .attention = FP8_ATTENTION_DPA,
                                        .recipe = {FP8_AMAX_MAX, 0, 1024},
                                        .force = 1};
    sample s = sample_open(source, 0, 1024, FP8_COMPUTE_BF16);
    fp8_export_result result;
    fp8_id_data ids = {0};
    fp8_samples samples = {0};
    fp8_record *r = NULL;
    char path[4200];

    snprintf(path, sizeof path, "%s/reference.safetensors", f->folder);
    CHECK_STATUS(fp8_id_data_load(&ids, path, FIXTURE_VOCAB), FP8_OK);
    CHECK_STATUS(fp8_samples_from_ids(&samples, &ids, how.seq, 0), FP8_OK);
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &samples, &how), FP8_OK);
    check_experts(s.m);
    if (r) CHECK_STATUS(fp8_export(&result, out, s.c, s.d, r, &options), FP8_OK);
    fp8_record_destroy(r);
    fp8_samples_free(&samples);
    fp8_id_data_free(&ids);
    sample_close(&s);
}

/* FP8 costs these random models 3 to 35 %; where it flips an expert, more. */
static void test_run(const char *name) {
    const char *out = sample_file("run");
    double error;
    fixture f;

    check_case = name;
    if (!fixture_open(&f, name)) return;
    export_to(out, f.folder, &f);
    check_written(out, &f, 1);
    if (run(out, &f, FP8_COMPUTE_BF16, got)) {
        error = check_relative_l2(got, f.logits, FIXTURE_TOKENS * FIXTURE_VOCAB);
        if (getenv("VERBOSE")) printf("%-20s FP8 logits %.3g off\n", name, error);
        CHECK(error > 0.01 && error < (fixture_is_mixed(&f) ? 0.8 : 0.45));
    }
    fixture_close(&f);
}

static fp8_status export_plain(const char *out, const char *source, fp8_scheme scheme) {
    const fp8_export_options options = {.scheme = scheme, .force = 1};
    fp8_export_result result;
    fp8_checkpoint *c = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_checkpoint_open(&c, source));
    FP8_TRY(fp8_export(&result, out, c, cpu, NULL, &options));
done:
    fp8_checkpoint_close(c);
    return st;
}

/* An expert that is not there is named, whoever looks for it; nothing is written. */
static void test_missing_expert(void) {
    static const char *const names[][2] = {
        {"mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight"},
        {"qwen2_moe", "model.layers.0.mlp.experts.5.down_proj.weight"},
        {"qwen2_moe", "model.layers.1.mlp.shared_expert.up_proj.weight"},
        {"qwen3_moe", "model.layers.0.mlp.gate.weight"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const fp8_model_options options = {.max_tokens = FIXTURE_TOKENS};
        const char *folder, *out = sample_file("no-expert");
        fp8_checkpoint *c = NULL;
        fp8_model *m = NULL;
        tiny_tensor *x;
        fixture f;
        tiny t;

        check_case = names[i][1];
        if (!fixture_open(&f, names[i][0])) continue;
        fixture_quantized(&t, &f, TINY_DENSE, "");
        x = tiny_find(&t, names[i][1]);
        CHECK(x != NULL);
        if (x) x->name[0] = 'n'; /* "nodel.layers..." */
        folder = tiny_write(&t);
        CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
        CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_ENOTFOUND);
        CHECK(strstr(fp8_last_message(), names[i][1]) != NULL);
        if (i < 3) {
            CHECK_STATUS(export_plain(out, folder, FP8_SCHEME_DYNAMIC), FP8_ENOTFOUND);
            CHECK(strstr(fp8_last_message(), names[i][1]) != NULL);
            CHECK(!fp8_path_exists(out));
        }
        fp8_model_destroy(m);
        fp8_checkpoint_close(c);
        tiny_remove(folder);
        tiny_free(&t);
        fixture_close(&f);
    }
}

/* ---- multimodal ------------------------------------------------------------------------------ */

/* The fixture under other names, with a tower beside it; its config.json inside text_config. */
static void wrap(tiny *t, const fixture *f, const char *prefix, const char *head,
                 const char *outside) {
    char path[4200], text[8192];
    fp8_file json = {0};

    memset(t, 0, sizeof *t);
    for (int64_t i = 0; i < fp8_checkpoint_count(f->checkpoint); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(f->checkpoint, i);
        char name[192];
        tiny_tensor *x;
        if (strncmp(e->name, "model.", 6) == 0)
            snprintf(name, sizeof name, "%s%s", prefix, e->name + 6);
        else snprintf(name, sizeof name, "%s.weight", head);
        x = tiny_add(t, name, e->tensor.dtype, e->tensor.shape[0],
                     e->tensor.ndim > 1 ? e->tensor.shape[1] : -1);
        memcpy(x->data, e->tensor.data, e->bytes);
    }
    tiny_add_random(t, "vision_tower.layers.0.fc1.weight", FP8_DTYPE_BF16, 24, 8, 1.0f, 0.0f);
    snprintf(path, sizeof path, "%s/config.json", f->folder);
    CHECK_STATUS(fp8_file_map(&json, path), FP8_OK);
    snprintf(text, sizeof text,
             "{\"hidden_size\": 3, \"text_config\": %.*s, \"model_type\": \"some_vl\", %s"
             "\"vision_config\": {\"hidden_size\": 8, \"model_type\": \"tower\"}}",
             (int)json.bytes, (const char *)json.data, outside);
    tiny_set_config(t, text);
    fp8_file_unmap(&json);
}

static void test_multimodal(void) {
    static const struct {
        const char *fixture, *prefix, *head;
    } cases[] = {
        {"gemma3", "language_model.model.", "language_model.lm_head"},
        {"llama", "language_model.model.", "language_model.lm_head"},
        {"llama", "model.language_model.", "lm_head"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *out = sample_file("multimodal"), *folder;
        fp8_checkpoint *c = NULL;
        static fp8_model_config config;
        fixture f;
        tiny t;

        check_case = cases[i].prefix;
        if (!fixture_open(&f, cases[i].fixture)) continue;
        wrap(&t, &f, cases[i].prefix, cases[i].head, "\"eos_token_id\": [7, 8], ");
        folder = tiny_write(&t);
        CHECK_STATUS(fp8_config_load(&config, folder), FP8_OK);
        CHECK(config.multimodal && config.hidden_size == 64 && config.eos_ids[0] == 1);
        CHECK(run(folder, &f, FP8_COMPUTE_F32, got));
        CHECK(check_relative_l2(got, f.logits, FIXTURE_TOKENS * FIXTURE_VOCAB) <= 1e-5);
        last_warning[0] = 0;
        export_to(out, folder, &f);
        CHECK(strstr(last_warning, "a multimodal model: its text part is quantized") != NULL);
        CHECK_STATUS(fp8_checkpoint_open(&c, out), FP8_OK);
        if (c) {
            const fp8_st_entry *e = fp8_checkpoint_find(c, "vision_tower.layers.0.fc1.weight");
            CHECK(e && e->tensor.dtype == FP8_DTYPE_BF16);
        }
        if (run(out, &f, FP8_COMPUTE_BF16, got))
            CHECK(check_relative_l2(got, f.logits, FIXTURE_TOKENS * FIXTURE_VOCAB) < 0.3);
        fp8_checkpoint_close(c);
        tiny_remove(folder);
        tiny_free(&t);
        fixture_close(&f);
    }
}

/* ---- schemes without calibration ------------------------------------------------------------- */

static void test_schemes(void) {
    static const struct {
        const char *name;
        fp8_scheme scheme;
    } cases[] = {
        {"phi3", FP8_SCHEME_DYNAMIC},     {"opt", FP8_SCHEME_TENSOR_DYNAMIC},
        {"mixtral", FP8_SCHEME_DYNAMIC},  {"mixtral", FP8_SCHEME_BLOCK},
        {"qwen2_moe", FP8_SCHEME_BLOCK},  {"gemma3", FP8_SCHEME_BLOCK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *out = sample_file("scheme");
        fixture f;

        check_case = cases[i].name;
        if (!fixture_open(&f, cases[i].name)) continue;
        CHECK_STATUS(export_plain(out, f.folder, cases[i].scheme), FP8_OK);
        check_written(out, &f, 0);
        if (run(out, &f, FP8_COMPUTE_BF16, got)) {
            const double bound = fixture_is_mixed(&f) ? 0.8 : 0.45;
            const double error =
                check_relative_l2(got, f.logits, FIXTURE_TOKENS * FIXTURE_VOCAB);
            CHECK(error > 0.005 && error < bound);
        }
        fixture_close(&f);
    }
}

/* One layer whose fused tensors are the others one upon the other. */
enum { SIDE = 128, VOCAB = 64 };
static void make_pair(tiny *fused, tiny *apart) {
    static const char config[] =
        "{\"model_type\": \"%s\", \"hidden_size\": 128, \"intermediate_size\": 256,"
        " \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1,"
        " \"head_dim\": 128, \"vocab_size\": 64, \"max_position_embeddings\": 64,"
        " \"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true}";
    static const struct {
        const char *fused, *apart;
        int64_t begin, rows, of, cols; /* rows [begin, begin + rows) of the fused tensor's `of` */
    } parts[] = {
        {"self_attn.qkv_proj", "self_attn.q_proj", 0, 256, 512, 128},
        {"self_attn.qkv_proj", "self_attn.k_proj", 256, 128, 512, 128},
        {"self_attn.qkv_proj", "self_attn.v_proj", 384, 128, 512, 128},
        {"mlp.gate_up_proj", "mlp.gate_proj", 0, 256, 512, 128},
        {"mlp.gate_up_proj", "mlp.up_proj", 256, 256, 512, 128},
        {"self_attn.o_proj", "self_attn.o_proj", 0, 128, 128, 256},
        {"mlp.down_proj", "mlp.down_proj", 0, 128, 128, 256},
    };
    tiny *both[2] = {fused, apart};
    char text[512], name[128];

    for (int k = 0; k < 2; k++) {
        tiny *t = both[k];
        memset(t, 0, sizeof *t);
        snprintf(text, sizeof text, config, k ? "llama" : "phi3");
        tiny_set_config(t, text);
        t->seed = 7;
        tiny_add_random(t, "model.embed_tokens.weight", FP8_DTYPE_BF16, VOCAB, SIDE, 1.0f, 0.0f);
        tiny_add_random(t, "model.norm.weight", FP8_DTYPE_BF16, SIDE, -1, 0.1f, 1.0f);
        tiny_add_random(t, "model.layers.0.input_layernorm.weight", FP8_DTYPE_BF16, SIDE, -1, 0.1f,
                        1.0f);
        tiny_add_random(t, "model.layers.0.post_attention_layernorm.weight", FP8_DTYPE_BF16, SIDE,
                        -1, 0.1f, 1.0f);
    }
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const size_t row_bytes = (size_t)parts[i].cols * 2;
        tiny_tensor *x;
        snprintf(name, sizeof name, "model.layers.0.%s.weight", parts[i].fused);
        if (!tiny_find(fused, name))
            tiny_add_random(fused, name, FP8_DTYPE_BF16, parts[i].of, parts[i].cols, 0.1f, 0.0f);
        snprintf(text, sizeof text, "model.layers.0.%s.weight", parts[i].apart);
        x = tiny_add(apart, text, FP8_DTYPE_BF16, parts[i].rows, parts[i].cols);
        memcpy(x->data, tiny_find(fused, name)->data + (size_t)parts[i].begin * row_bytes,
               x->bytes);
    }
}

static int run_pair(const char *folder, float *out) {
    static const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 63}, starts[] = {0, 9};
    const fp8_model_options options = {.compute = FP8_COMPUTE_BF16, .max_tokens = 16};
    const fp8_batch batch = {ids, 9, starts, 1};
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    fp8_tensor logits;
    const int before = check_failures;

    CHECK_STATUS(fp8_checkpoint_open(&c, folder), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, &options), FP8_OK);
    if (m) CHECK_STATUS(fp8_model_forward(m, &batch, NULL, NULL, FP8_LOGITS_ALL, &logits), FP8_OK);
    if (check_failures == before) memcpy(out, logits.data, 9 * VOCAB * sizeof *out);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    return check_failures == before;
}

/* Block scales of a fused tensor go with its parts where these end on a block, so that they are
 * those of the parts alone; where they do not (the fixture), it is refused. */
static void test_fused_blocks(void) {
    static float one[9 * VOCAB], other[9 * VOCAB];
    const char *out = sample_file("blocks"), *folders[2];
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;
    tiny t[2];
    fixture f;

    check_case = "fused tensors in blocks";
    make_pair(&t[0], &t[1]);
    folders[0] = tiny_write(&t[0]);
    CHECK_STATUS(export_plain(out, folders[0], FP8_SCHEME_BLOCK), FP8_OK);
    CHECK(run_pair(out, one));
    tiny_remove(folders[0]);
    folders[1] = tiny_write(&t[1]);
    CHECK_STATUS(export_plain(out, folders[1], FP8_SCHEME_BLOCK), FP8_OK);
    CHECK(run_pair(out, other));
    tiny_remove(folders[1]);
    CHECK(one[0] != 0 && memcmp(one, other, sizeof one) == 0);
    tiny_free(&t[0]);
    tiny_free(&t[1]);

    if (!fixture_open(&f, "phi3")) return;
    CHECK_STATUS(export_plain(out, f.folder, FP8_SCHEME_BLOCK), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&c, out), FP8_OK);
    if (c) CHECK_STATUS(fp8_model_load(&m, cpu, c, NULL), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "its scales are of blocks of 128 rows") != NULL);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
    fixture_close(&f);
}

int main(void) {
    static const char *const names[] = {
        "llama-rope-dynamic", "llama-yarn", "gemma2", "gemma3", "phi3", "phi3-longrope",
        "phi3-partial-rotary", "opt", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe-normtopk",
    };
    if (!check_data("fixtures/gemma2")) return TEST_SKIP;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 0), FP8_OK);
    if (!cpu) return 1;
    sample_begin();
    fp8_log_set(keep_warning, NULL, FP8_LOG_WARNING);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) test_run(names[i]);
    test_missing_expert();
    test_multimodal();
    test_schemes();
    test_fused_blocks();
    sample_done();
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
