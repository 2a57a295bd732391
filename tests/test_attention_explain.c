/* What attention says of itself: verdicts for devices here and described, the configuration in
 * words, what FP8_DEBUG's levels log, and what FP8_SYNC=1 reports. */
#include <string.h>

#include "attention/attention.h"
#include "check.h"
#include "core/log.h"

static fp8_device *cpu;

static fp8_attention_options plain_options(void) {
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    o.num_heads = o.num_kv_heads = 8;
    o.d_qk = o.d_v = 128;
    o.num_seqs = 2;
    o.max_q = o.max_kv = 256;
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    return o;
}

static const fp8_attention_verdict *of(const fp8_attention_verdict *v, fp8_attention_backend b) {
    for (int i = 0; i < FP8_ATTENTION_BACKENDS; i++)
        if (v[i].backend == b) return &v[i];
    return NULL;
}

/* ---- verdicts -------------------------------------------------------------------------------- */

/* cuDNN's FP8 before 9.19: wrong over many tiles of narrow heads. */
static void test_narrow_heads(void) {
    static const struct {
        size_t cudnn;
        int32_t d;
        int64_t seqs, tokens;
        int serves;
    } cases[] = {{91400, 64, 2, 1024, 1}, {91400, 64, 2, 1025, 0}, {91400, 128, 2, 4096, 1},
                 {91400, 96, 3, 640, 1},  {91400, 96, 3, 641, 0},  {91900, 64, 2, 4096, 1}};
    check_case = "narrow heads";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fp8_attention_target t = {FP8_PLACE_CUDA, 90, cases[i].cudnn, "NVIDIA H200"};
        fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
        fp8_attention_options o = plain_options();
        fp8_attention_backend chosen;
        o.d_qk = o.d_v = cases[i].d;
        o.num_seqs = cases[i].seqs;
        o.max_q = o.max_kv = cases[i].tokens;
        o.q_dtype = o.kv_dtype = o.o_dtype = FP8_DTYPE_E4M3;
        o.quantize_p = 1;
        o.precision = FP8_ATTENTION_FAST;
        o.backend = FP8_BACKEND_FUSED;
        CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &t, &o), FP8_OK);
        CHECK(of(v, FP8_BACKEND_FUSED)->serves == cases[i].serves);
    }
}

/* Which comes first on Hopper: the one that measured faster. */
static void test_order(void) {
    const fp8_attention_target hopper = {FP8_PLACE_CUDA, 90, 91900, "NVIDIA H200"};
    static const struct {
        const char *name;
        int codes; /* 2: with E4M3 out and fast sums, as cuDNN has it */
        int32_t d_qk, d_v;
        fp8_attention_bias bias;
        fp8_dtype bias_dtype;
        float softcap;
        fp8_attention_sink sink;
        fp8_attention_backend want;
    } cases[] = {
        {"plain", 0, 128, 128, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
        {"softcap", 0, 128, 128, 0, FP8_DTYPE_F32, 30, 0, FP8_BACKEND_FUSED},
        {"sink", 0, 128, 128, 0, FP8_DTYPE_F32, 0, FP8_SINK_LEARNABLE, FP8_BACKEND_FUSED},
        {"ALiBi", 0, 128, 128, FP8_BIAS_ALIBI, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
        {"bias, F32", 0, 128, 128, FP8_BIAS_POST_SCALE, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
        {"bias, BF16", 0, 128, 128, FP8_BIAS_POST_SCALE, FP8_DTYPE_BF16, 0, 0, FP8_BACKEND_FUSED},
        {"pre-scale", 0, 128, 128, FP8_BIAS_PRE_SCALE, FP8_DTYPE_BF16, 0, 0, FP8_BACKEND_FLASH},
        {"d 96", 0, 96, 96, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FUSED},
        {"192/128", 0, 192, 128, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
        {"codes, bias", 1, 128, 128, FP8_BIAS_POST_SCALE, FP8_DTYPE_BF16, 0, 0, FP8_BACKEND_FLASH},
        {"codes, softcap", 1, 128, 128, 0, FP8_DTYPE_F32, 30, 0, FP8_BACKEND_FLASH},
        {"codes, d 96", 1, 96, 96, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
        {"codes, d 96, fast", 2, 96, 96, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FUSED},
        {"codes, d 192, fast", 2, 192, 192, 0, FP8_DTYPE_F32, 0, 0, FP8_BACKEND_FLASH},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
        fp8_attention_options o = plain_options();
        fp8_attention_backend chosen;
        check_case = cases[i].name;
        o.d_qk = cases[i].d_qk;
        o.d_v = cases[i].d_v;
        o.bias = cases[i].bias;
        o.bias_dtype = cases[i].bias_dtype;
        o.softcap = cases[i].softcap;
        o.sink = cases[i].sink;
        if (cases[i].codes) o.q_dtype = o.kv_dtype = FP8_DTYPE_E4M3;
        o.quantize_p = cases[i].codes > 0;
        if (cases[i].codes == 2) o.o_dtype = FP8_DTYPE_E4M3;
        if (cases[i].codes == 2) o.precision = FP8_ATTENTION_FAST;
        CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_OK);
        CHECK(chosen == cases[i].want);
    }
}

static void test_described(void) {
    const fp8_attention_target hopper = {FP8_PLACE_CUDA, 90, 91900, "NVIDIA H200"};
    const fp8_attention_target turing = {FP8_PLACE_CUDA, 75, 91900, "NVIDIA T4"};
    fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
    fp8_attention_options o = plain_options();
    fp8_attention_backend chosen;

    check_case = "BF16 on Hopper";
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_FUSED || chosen == FP8_BACKEND_FLASH);
    CHECK(of(v, FP8_BACKEND_FUSED)->serves && of(v, FP8_BACKEND_UNFUSED)->serves);
    CHECK(strstr(of(v, FP8_BACKEND_FUSED)->reason, "cuDNN 9.19.0"));
    CHECK(strstr(of(v, FP8_BACKEND_UNFUSED)->reason, "would serve, but comes later"));
    CHECK(!of(v, FP8_BACKEND_CPU)->serves);
    CHECK(strcmp(of(v, FP8_BACKEND_CPU)->reason, "the data is on NVIDIA H200") == 0);
    check_case = "BF16 on Turing";
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &turing, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_UNFUSED);
    CHECK(strstr(of(v, FP8_BACKEND_FLASH)->reason, "compute capability 75"));
    CHECK(strstr(of(v, FP8_BACKEND_FUSED)->reason, "compute capability 75"));
    check_case = "forced";
    o.backend = FP8_BACKEND_FLASH;
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &turing, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_AUTO);
    CHECK(strcmp(of(v, FP8_BACKEND_UNFUSED)->reason, "the options ask for flash") == 0);
    check_case = "FP8 on Hopper";
    o = plain_options();
    o.layout = FP8_LAYOUT_THD_THD_THD;
    o.q_dtype = o.kv_dtype = FP8_DTYPE_E4M3;
    o.quantize_p = 1;
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_FLASH);
    check_case = "switched off";
    setenv("FP8_FLASH_ATTN", "0", 1);
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_OK);
    CHECK(chosen != FP8_BACKEND_FLASH);
    CHECK(strcmp(of(v, FP8_BACKEND_FLASH)->reason, "switched off by FP8_FLASH_ATTN=0") == 0);
    unsetenv("FP8_FLASH_ATTN");
    check_case = "preferred";
    setenv("FP8_ATTENTION_BACKEND", "unfused", 1);
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_UNFUSED && v[0].backend == FP8_BACKEND_UNFUSED);
    unsetenv("FP8_ATTENTION_BACKEND");
}

/* A verdict on a device is what its plan says. */
static void test_here(void) {
    const fp8_attention_options o = plain_options();
    fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
    fp8_attention_plan *plan = NULL;
    fp8_attention_backend chosen;
    char lines[4096] = "";

    check_case = "as its plan says";
    CHECK_STATUS(fp8_attention_explain(&chosen, v, cpu, NULL, &o), FP8_OK);
    CHECK_STATUS(fp8_attention_plan_create(&plan, cpu, &o), FP8_OK);
    CHECK(chosen == FP8_BACKEND_CPU && fp8_attention_plan_backend(plan) == chosen);
    for (int i = 0; i < FP8_ATTENTION_BACKENDS; i++) {
        snprintf(lines + strlen(lines), sizeof lines - strlen(lines), "%s%s: %s", i ? "\n" : "",
                 fp8_attention_backend_name(v[i].backend), v[i].reason);
        CHECK(!strchr(v[i].reason, '\n'));
    }
    CHECK(strcmp(lines, fp8_attention_plan_reasons(plan)) == 0);
    fp8_attention_plan_destroy(plan);
}

static void test_bad_questions(void) {
    const fp8_attention_target hopper = {FP8_PLACE_CUDA, 90, 91900, "NVIDIA H200"};
    fp8_attention_options o = plain_options();
    fp8_attention_verdict v[FP8_ATTENTION_BACKENDS];
    fp8_attention_backend chosen;
    char text[16];

    check_case = "bad questions";
    CHECK_STATUS(fp8_attention_explain(NULL, v, cpu, NULL, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_explain(&chosen, NULL, cpu, NULL, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, NULL, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_explain(&chosen, v, cpu, NULL, NULL), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_describe(NULL, 16, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_describe(text, 0, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_describe(text, sizeof text, &o), FP8_OK); /* cut */
    CHECK(strlen(text) == sizeof text - 1);
    o.num_heads = 7;
    o.num_kv_heads = 2;
    CHECK_STATUS(fp8_attention_explain(&chosen, v, NULL, &hopper, &o), FP8_EINVAL);
    CHECK_STATUS(fp8_attention_describe(text, sizeof text, &o), FP8_EINVAL);
}

/* ---- words ----------------------------------------------------------------------------------- */

static void test_describe(void) {
    fp8_attention_options o = plain_options();
    char text[2048];

    check_case = "describe";
    o.q_dtype = FP8_DTYPE_BF16;
    o.kv_dtype = FP8_DTYPE_E4M3;
    o.mask = FP8_MASK_ARBITRARY;
    o.mask_shape = FP8_BIAS_B1SS;
    o.window_left = 7;
    o.bias = FP8_BIAS_POST_SCALE;
    o.bias_shape = FP8_BIAS_1HSS;
    o.bias_dtype = FP8_DTYPE_F16;
    o.softcap = 30;
    o.sink = FP8_SINK_LEARNABLE;
    o.padding = o.want_lse = o.want_amax = o.quantize_p = 1;
    o.granularity = FP8_DESCALE_HEAD;
    o.quantize = FP8_QUANTIZE_CURRENT;
    o.precision = FP8_ATTENTION_FAST;
    CHECK_STATUS(fp8_attention_describe(text, sizeof text, &o), FP8_OK);
    CHECK(strcmp(text,
                 "shape: 2 sequences, up to 256 queries and 256 keys, 8 heads over 8 KV heads, "
                 "d 128\n"
                 "layout: bshd_bshd_bshd, padded, with lengths; strides (batch, token, head) q "
                 "262144 1024 128 k 262144 1024 128 v 262144 1024 128 o 262144 1024 128\n"
                 "mask: arbitrary, b1ss\n"
                 "window: left 7, right no bound\n"
                 "bias: post-scale, 1hss, F16\n"
                 "scale: 0.0883883\n"
                 "softcap: 30\n"
                 "sink: learnable\n"
                 "in: Q BF16, K and V F8_E4M3, quantized to F8_E4M3 by this call's amax; descales "
                 "per KV head\n"
                 "out: O BF16, LSE, amax of P and O\n"
                 "precision: Q K^T of F8_E4M3 by F8_E4M3, softmax F32, P F8_E4M3 by V F8_E4M3, "
                 "sums as the tensor cores keep them") == 0);
}

/* Lines of a level and more urgent. */
typedef struct heard {
    int lines, newlines;
    char text[8192];
} heard;

static void hear(void *ctx, fp8_log_level level, const char *line) {
    heard *h = ctx;
    (void)level;
    h->lines++;
    h->newlines += strchr(line, '\n') != NULL;
    snprintf(h->text + strlen(h->text), sizeof h->text - strlen(h->text), "%s\n", line);
}

static void test_levels(void) {
    const fp8_attention_options o = plain_options();
    static heard h[3];
    for (int level = 0; level < 3; level++) {
        fp8_attention_plan *plan = NULL;
        fp8_log_set(hear, &h[level], (fp8_log_level)level);
        CHECK_STATUS(fp8_attention_plan_create(&plan, cpu, &o), FP8_OK);
        fp8_attention_plan_destroy(plan);
    }
    fp8_log_set(NULL, NULL, FP8_LOG_WARNING);
    check_case = "levels";
    CHECK(h[0].lines == 0);
    CHECK(h[1].lines == 1 && strcmp(h[1].text, "attention: cpu\n") == 0);
    CHECK(h[2].lines > 10 && h[2].newlines == 0);
    CHECK(strstr(h[2].text, "attention: shape: 2 sequences"));
    CHECK(strstr(h[2].text, "attention: precision: "));
    CHECK(strstr(h[2].text, "attention: device: CPU"));
    CHECK(strstr(h[2].text, "attention: fused: "));
    check_case = "a preference that is not met";
    h[0] = (heard){0};
    fp8_log_set(hear, &h[0], FP8_LOG_WARNING);
    for (int i = 0; i < 2; i++) {
        fp8_attention_plan *plan = NULL;
        setenv("FP8_ATTENTION_BACKEND", i ? "fused" : "cpu", 1);
        CHECK_STATUS(fp8_attention_plan_create(&plan, cpu, &o), FP8_OK);
        CHECK(h[0].lines == i);
        fp8_attention_plan_destroy(plan);
    }
    CHECK(strstr(h[0].text, "FP8_ATTENTION_BACKEND=fused does not serve, cpu does: "));
    unsetenv("FP8_ATTENTION_BACKEND");
    fp8_log_set(NULL, NULL, FP8_LOG_WARNING);
}

/* ---- lengths that lie ------------------------------------------------------------------------ */

typedef struct lie {
    const char *name;
    int packed;
    int32_t starts[3], lengths[2];
    int has_lengths;
    const char *want; /* NULL: no lie */
} lie;

static void test_lies(int checked) {
    static const lie lies[] = {
        {"packed, true", 1, {0, 3, 8}, {0}, 0, NULL},
        {"apart, true", 1, {4, 0, 0}, {4, 2}, 1, NULL},
        {"padded, true", 0, {0}, {0, 5}, 1, NULL},
        {"beyond the plan", 1, {0, 6, 8}, {0}, 0, "sequence 0 has 6 keys, the plan 0 to 5"},
        {"falling", 1, {0, 4, 2}, {0}, 0, "sequence 1 has -2 keys, the plan 0 to 5"},
        {"before the rows", 1, {-1, 4, 8}, {0}, 0, "keys of sequence 0 start at -1 of 8 rows"},
        {"behind the rows", 1, {0, 9, 9}, {2, 0}, 1, "keys of sequence 1 start at 9 of 8 rows"},
        {"over the edge", 1, {0, 5, 8}, {2, 4}, 1, "keys of sequence 1 end at 5 + 4, beyond 8"},
        {"padded, too long", 0, {0}, {3, 6}, 1, "sequence 1 has 6 keys, the plan 0 to 5"},
        {"padded, negative", 0, {0}, {-3, 5}, 1, "sequence 0 has -3 keys, the plan 0 to 5"},
    };
    static float x[2 * 5 * 8];
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const lie *l = &lies[i];
        const int32_t q_starts[3] = {0, 1, 2};
        float o_rows[2 * 8];
        fp8_attention_options o = plain_options();
        fp8_attention_plan *plan = NULL;
        void *workspace;
        fp8_attention_io io = {.o = o_rows, .q = x, .k = x, .v = x, .total_q = 2, .total_kv = 8};

        check_case = l->name;
        o.num_heads = o.num_kv_heads = 1;
        o.d_qk = o.d_v = 8;
        o.max_q = 1;
        o.max_kv = 5;
        o.q_dtype = o.kv_dtype = o.o_dtype = FP8_DTYPE_F32;
        o.padding = !l->packed;
        if (l->packed) {
            o.layout = FP8_LAYOUT_THD_THD_THD;
            io.q_starts = q_starts;
            io.kv_starts = l->starts;
        }
        if (l->has_lengths) io.kv_lengths = l->lengths;
        if (checked) setenv("FP8_SYNC", "1", 1);
        CHECK_STATUS(fp8_attention_plan_create(&plan, cpu, &o), FP8_OK);
        unsetenv("FP8_SYNC");
        workspace = malloc(fp8_attention_workspace_size(plan));
        CHECK_STATUS(fp8_attention_run(plan, &io, workspace, fp8_attention_workspace_size(plan)),
                     checked && l->want ? FP8_EINVAL : FP8_OK);
        if (checked && l->want) CHECK(strstr(fp8_last_message(), l->want));
        free(workspace);
        fp8_attention_plan_destroy(plan);
    }
}

int main(void) {
    unsetenv("FP8_DEBUG");
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 1), FP8_OK);
    if (!cpu) return 1;
    test_narrow_heads();
    test_order();
    test_described();
    test_here();
    test_bad_questions();
    test_describe();
    test_levels();
    test_lies(0);
    test_lies(1);
    fp8_device_destroy(cpu);
    return CHECK_DONE();
}
