/* Scales by the rules of compressed-tensors: MXFP8 (a power of two for 32 weights of a row) and its
 * BF16 quotients. Values against their definitions; written, read, dequantized, linted, refused. */
#include "calib/weight_stage.h"
#include "core/half.h"
#include "formats/descales.h"
#include "formats/lint.h"
#include "tests/sample_model.h"

enum { ROWS = 9, COLS = 160, NUM = ROWS * COLS };

static fp8_device *cpu;
static float values[NUM];
static uint16_t half[NUM];

/* ---- the rules ------------------------------------------------------------------------------- */

static void check_codes(const uint8_t *codes, const float *descales, const fp8_weight_grid *g) {
    const int64_t wide = (COLS + g->col_span - 1) / g->col_span;
    int bad = 0;

    for (int64_t i = 0; i < NUM && bad < 10; i++) {
        const float d = descales[i / COLS / g->row_span * wide + i % COLS / g->col_span];
        const float exact = values[i] / d; /* of a power of two; else as BF16 */
        const float q = g->rule == FP8_GRID_MX ? exact : fp8_round_bf16(exact);
        bad += codes[i] != fp8_from_f32(FP8_DTYPE_E4M3, q);
    }
    CHECK(bad == 0);
}

static float cell_amax(const fp8_weight_grid *g, int64_t cell) {
    const int64_t wide = (COLS + g->col_span - 1) / g->col_span;
    float amax = 0;
    for (int64_t i = 0; i < NUM; i++)
        if (i / COLS / g->row_span * wide + i % COLS / g->col_span == cell && isfinite(values[i]))
            amax = fmaxf(amax, fabsf(values[i]));
    return amax;
}

static void test_grids(void) {
    static const fp8_weight_grid grids[] = {
        {1, 32, FP8_GRID_MX}, {1, COLS, FP8_GRID_BF16}, {ROWS, COLS, FP8_GRID_BF16},
        {4, 64, FP8_GRID_BF16}, {ROWS, 1, FP8_GRID_BF16}, {128, 128, FP8_GRID_BF16}};
    /* the largest of a group: around 448 and its powers, where rounding up begins, and the ends */
    static const float amaxes[] = {448.0f, 447.0f, 224.0f, 1.75f, 1.7421875f, 3.5f, 0.0f, 3e38f,
                                   1e-38f, 1e-40f, 0x1p-126f, 0x1.fp-120f, 1.0f, 7e-5f};
    static uint8_t codes[NUM];
    static float descales[NUM];

    for (size_t k = 0; k < sizeof grids / sizeof *grids; k++) {
        const fp8_weight_grid *g = &grids[k];
        const int64_t count = fp8_weight_grid_count(g, ROWS, COLS);
        uint64_t seed = 5;
        check_case = g->rule == FP8_GRID_MX ? "MX" : "BF16";
        for (int64_t i = 0; i < NUM; i++) {
            const float amax = amaxes[i / 32 % 14];
            const float v = fp8_round_bf16(tanhf(check_normal(&seed)) * amax);
            values[i] = i % 32 == 7 ? -fp8_round_bf16(amax) : v;
            if (i % 1000 == 3) values[i] = -0.0f;
            half[i] = fp8_f32_to_bf16(values[i]);
        }
        CHECK_STATUS(fp8_quantize_grid(fp8_device_pool(cpu), codes, descales, half, FP8_DTYPE_BF16,
                                       ROWS, COLS, g), FP8_OK);
        for (int64_t i = 0; i < count; i++) {
            const float amax = cell_amax(g, i);
            const float bf16 = fp8_round_bf16(amax / 448.0f);
            const double ratio = (double)amax / (double)descales[i];
            int exponent;
            if (g->rule == FP8_GRID_BF16) {
                CHECK(descales[i] == (bf16 > 0 ? bf16 : 0.0078125f));
                continue;
            }
            CHECK(frexpf(descales[i], &exponent) == 0.5f && ratio < 448);
            CHECK(ratio >= 224 || descales[i] == 0x1p-127f);
        }
        check_codes(codes, descales, g);
    }
    CHECK_STATUS(fp8_quantize_grid(NULL, codes, descales, values, FP8_DTYPE_F32, ROWS, COLS,
                                   &grids[1]), FP8_EUNSUPPORTED);
}

/* Exponents as bytes and back. */
static void test_pack(void) {
    float x[255];
    uint8_t bytes[255];

    check_case = "pack";
    for (int i = 0; i < 255; i++) x[i] = ldexpf(1.0f, i - 127);
    fp8_descales_pack(bytes, FP8_DTYPE_U8, x, 255);
    const fp8_tensor t = fp8_tensor_view(bytes, FP8_DTYPE_U8, FP8_PLACE_CPU, 255, -1);
    for (int i = 0; i < 255; i++) CHECK(bytes[i] == i && fp8_descale_at(&t, i) == x[i]);
    bytes[3] = 255;
    CHECK(isnan(fp8_descale_at(&t, 3)));
}

/* ---- a checkpoint ---------------------------------------------------------------------------- */

static void export_as(const char *name, const fp8_checkpoint *source, fp8_scheme scheme, int bf16) {
    const fp8_export_options options = {.scheme = scheme, .bf16_scales = bf16, .force = 1};
    fp8_export_result result;
    CHECK_STATUS(fp8_export(&result, sample_file(name), source, cpu, NULL, &options), FP8_OK);
    CHECK(result.linears == 28);
}

/* Every weight is code * 2^(byte - 127), to half a step of the source; as BF16 that is exact. */
static void check_mx(const fp8_checkpoint *source) {
    fp8_checkpoint *mx = NULL, *back = NULL;
    fp8_convert_result r;

    CHECK_STATUS(fp8_checkpoint_open(&mx, sample_file("mx")), FP8_OK);
    if (!mx) return;
    CHECK_STATUS(fp8_convert(&r, sample_file("mx-bf16"), mx, cpu,
                             &(fp8_convert_options){.to_bf16 = 1}), FP8_OK);
    CHECK(r.dequantized == 28);
    CHECK_STATUS(fp8_checkpoint_open(&back, sample_file("mx-bf16")), FP8_OK);
    for (int64_t i = 0; back && i < fp8_checkpoint_count(source); i++) {
        const fp8_st_entry *e = fp8_checkpoint_at(source, i);
        const fp8_st_entry *q = fp8_checkpoint_find(mx, e->name);
        const fp8_st_entry *b = fp8_checkpoint_find(back, e->name);
        const fp8_st_entry *s;
        char name[300];
        int bad = 0;

        snprintf(name, sizeof name, "%s_scale", e->name);
        s = fp8_checkpoint_find(mx, name);
        CHECK(q && b && (q->tensor.dtype == FP8_DTYPE_E4M3) == (s != NULL));
        if (!s) continue;
        CHECK(s->tensor.dtype == FP8_DTYPE_U8 && s->tensor.shape[0] == e->tensor.shape[0]);
        CHECK(s->tensor.ndim == 2 && s->tensor.shape[1] == e->tensor.shape[1] / 32);
        for (int64_t k = 0; k < fp8_tensor_count(&e->tensor) && bad < 10; k++) {
            const float d = ldexpf(1.0f, ((uint8_t *)s->tensor.data)[k / 32] - 127);
            const float v = fp8_to_f32(FP8_DTYPE_E4M3, ((uint8_t *)q->tensor.data)[k]) * d;
            const float x = fp8_bf16_to_f32(((uint16_t *)e->tensor.data)[k]);
            bad += fp8_bf16_to_f32(((uint16_t *)b->tensor.data)[k]) != v;
            bad += !(fabsf(x - v) <= fmaxf(fabsf(x) / 16, d / 1024));
        }
        CHECK(bad == 0);
    }
    fp8_checkpoint_close(mx);
    fp8_checkpoint_close(back);
}

static void test_written(const fp8_checkpoint *source) {
    fp8_convert_result r;
    fp8_quant_config q = {0};
    fp8_lint_options lint = {0};
    fp8_lint_report found = {0};
    fp8_checkpoint *mx = NULL;
    fp8_model *m = NULL;

    check_case = "mxfp8";
    export_as("mx", source, FP8_SCHEME_MX, 0);
    check_mx(source);
    CHECK_STATUS(fp8_quant_config_load(&q, sample_file("mx/config.json")), FP8_OK);
    CHECK(q.scheme == FP8_SCHEME_MX && q.dialect == FP8_DIALECT_COMPRESSED_TENSORS);
    fp8_quant_config_free(&q);
    CHECK_STATUS(fp8_checkpoint_open(&mx, sample_file("mx")), FP8_OK);
    if (!mx) return;
    CHECK_STATUS(fp8_lint(&found, mx, &lint), FP8_OK);
    CHECK(found.count == 0);
    fp8_lint_report_free(&found);
    CHECK_STATUS(fp8_model_load(&m, cpu, mx, NULL), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "MXFP8 is not run here") != NULL);

    /* into itself: the same bytes; into blocks: codes made anew */
    CHECK_STATUS(fp8_convert(&r, sample_file("mx2"), mx, cpu,
                             &(fp8_convert_options){.scheme = FP8_NUM_SCHEMES}), FP8_OK);
    CHECK(r.kept == 28 && r.scheme == FP8_SCHEME_MX);
    CHECK(sample_same_file(sample_file("mx/model.safetensors"),
                           sample_file("mx2/model.safetensors")));
    CHECK(sample_same_file(sample_file("mx/config.json"), sample_file("mx2/config.json")));
    CHECK_STATUS(fp8_convert(&r, sample_file("mx-block"), mx, cpu, &(fp8_convert_options){
        .dialect = FP8_DIALECT_DEEPSEEK, .scheme = FP8_NUM_SCHEMES}), FP8_OK);
    CHECK(r.requantized == 28 && r.scheme == FP8_SCHEME_BLOCK);
    fp8_checkpoint_close(mx);
    CHECK_STATUS(fp8_checkpoint_open(&mx, sample_file("mx-block")), FP8_OK);
    if (!mx) return;
    CHECK_STATUS(fp8_convert(&r, sample_file("mx-again"), mx, cpu, &(fp8_convert_options){
        .scheme = FP8_SCHEME_MX}), FP8_OK);
    CHECK(r.kept + r.requantized == 28 && r.scheme == FP8_SCHEME_MX);
    fp8_checkpoint_close(mx);
}

/* Scales as compressed-tensors stores them are run like any others. */
static void test_bf16_scales(const fp8_checkpoint *source) {
    static const fp8_scheme schemes[] = {FP8_SCHEME_DYNAMIC, FP8_SCHEME_BLOCK,
                                         FP8_SCHEME_TENSOR_DYNAMIC};
    for (int i = 0; i < 3; i++) {
        const char up[] = "model.layers.1.mlp.up_proj.weight";
        const fp8_st_entry *x = fp8_checkpoint_find(source, up), *q, *s;
        fp8_checkpoint *c = NULL;
        fp8_model *m = NULL;
        float amax = 0;

        check_case = fp8_scheme_name(schemes[i]);
        export_as("bf16", source, schemes[i], 1);
        CHECK_STATUS(fp8_checkpoint_open(&c, sample_file("bf16")), FP8_OK);
        if (!c) continue;
        q = fp8_checkpoint_find(c, up);
        s = fp8_checkpoint_find(c, "model.layers.1.mlp.up_proj.weight_scale");
        CHECK(s && q && s->tensor.dtype == FP8_DTYPE_BF16);
        if (s && q) { /* the first element's */
            const int64_t rows = i == 0 ? 1 : i == 1 ? 128 : x->tensor.shape[0];
            const float first = fp8_bf16_to_f32(*(uint16_t *)x->tensor.data);
            const float d = fp8_descale_at(&s->tensor, 0);
            for (int64_t k = 0; k < rows * x->tensor.shape[1]; k++)
                amax = fmaxf(amax, fabsf(fp8_bf16_to_f32(((uint16_t *)x->tensor.data)[k])));
            CHECK(d == fp8_round_bf16(amax / 448.0f));
            CHECK(*(uint8_t *)q->tensor.data ==
                  fp8_from_f32(FP8_DTYPE_E4M3, fp8_round_bf16(first / d)));
        }
        CHECK_STATUS(fp8_model_load(&m, cpu, c, NULL), FP8_OK);
        fp8_model_destroy(m);
        fp8_checkpoint_close(c);
    }
}

static void test_refused(const fp8_checkpoint *source) {
    const fp8_export_options both = {.scheme = FP8_SCHEME_BLOCK, .bf16_scales = 1, .ue8m0 = 1};
    fp8_export_result result;
    int64_t shape[2], count;
    int32_t ndim;

    check_case = "refused";
    CHECK_STATUS(fp8_export(&result, sample_file("none"), source, cpu, NULL, &both), FP8_EINVAL);
    CHECK_STATUS(fp8_descale_shape(shape, &ndim, &count, FP8_DIALECT_COMPRESSED_TENSORS,
                                   FP8_SCHEME_MX, 8, 48, 0), FP8_EUNSUPPORTED);
    CHECK(strstr(fp8_last_message(), "multiple of 32 columns, found 48") != NULL);
}

int main(void) {
    fp8_checkpoint *source = NULL;

    sample_begin();
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 2), FP8_OK);
    CHECK_STATUS(fp8_checkpoint_open(&source, sample_path("examples/sample-model")), FP8_OK);
    if (cpu && source) {
        test_grids();
        test_pack();
        test_written(source);
        test_bf16_scales(source);
        test_refused(source);
    }
    fp8_checkpoint_close(source);
    fp8_device_destroy(cpu);
    sample_done();
    return CHECK_DONE();
}
