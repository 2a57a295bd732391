/* Calibration, export, report and evaluation on CUDA against the CPU: the same checkpoint bytes
 * from the same record, and figures as close as BF16 sums in another order allow. */
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 8, SAMPLES = 32 };

static const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ, .data_name = "built-in"};
static const fp8_export_options fixed = {.scheme = FP8_SCHEME_TENSOR, .kv_fp8 = 1,
                                         .attention = FP8_ATTENTION_DPA,
                                         .recipe = FP8_RECIPE_DEFAULT};
static const fp8_export_options dynamic = {.scheme = FP8_SCHEME_DYNAMIC,
                                           .recipe = FP8_RECIPE_DEFAULT};
static const fp8_export_options tensor_dynamic = {.scheme = FP8_SCHEME_TENSOR_DYNAMIC,
                                                  .recipe = FP8_RECIPE_DEFAULT};

static fp8_record *calibrate(const sample *s, const char *path) {
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    fp8_calib_options options = calib;
    fp8_record *r = NULL;
    options.record_path = path;
    CHECK_STATUS(fp8_calibrate(&r, s->m, s->c, &data, &options), FP8_OK);
    fp8_samples_free(&data);
    if (!r) exit(1);
    return r;
}

/* A sum in another order moves a BF16 value by an ulp, 2^-8, here and there; layers add up. */
static void check_histories(const fp8_record *cpu, const fp8_record *gpu) {
    int shown = 0;
    check_case = "histories";
    CHECK(gpu->num_points == cpu->num_points && gpu->steps == cpu->steps);
    for (int64_t i = 0; i < cpu->num_points; i++)
        for (int64_t step = 0; step < cpu->steps; step++) {
            const int64_t at = i * cpu->steps_total + step;
            const float a = cpu->amax[at], b = gpu->amax[at];
            const float c = cpu->amax_without_first[at], d = gpu->amax_without_first[at];
            if (fabsf(a - b) <= 0.03f * a && fabsf(c - d) <= 0.03f * c) continue;
            if (shown++ < 10)
                fprintf(stderr, "%s, step %lld: CPU %g %g, CUDA %g %g\n", cpu->points[i],
                        (long long)step, (double)a, (double)c, (double)b, (double)d);
        }
    CHECK(shown == 0);
}

static void check_export(const sample *cpu, const sample *gpu, const fp8_record *r,
                         const fp8_export_options *options, const char *name) {
    char a[64], b[64];
    fp8_export_result result;
    check_case = name;
    snprintf(a, sizeof a, "%s-cpu", name);
    snprintf(b, sizeof b, "%s-cuda", name);
    CHECK_STATUS(fp8_export(&result, sample_file(a), cpu->c, cpu->d, r, options), FP8_OK);
    CHECK_STATUS(fp8_export(&result, sample_file(b), gpu->c, gpu->d, r, options), FP8_OK);
    snprintf(a, sizeof a, "%s-cpu/model.safetensors", name);
    snprintf(b, sizeof b, "%s-cuda/model.safetensors", name);
    CHECK(sample_same_file(sample_file(a), sample_file(b)));
}

/* Begun before the record is there, with the weights as the model holds them, and forwards on the
 * device meanwhile; then stopped half way. */
static void check_background(const sample *gpu, const fp8_record *r) {
    fp8_export_job *j = NULL;
    fp8_export_result result;
    fp8_record *other;
    check_case = "background";
    CHECK_STATUS(fp8_export_begin(&j, sample_file("background"), gpu->c, gpu->d, gpu->m, 1, &fixed),
                 FP8_OK);
    other = calibrate(gpu, NULL);
    CHECK_STATUS(fp8_export_finish(j, &result, r), FP8_OK);
    CHECK(sample_same_file(sample_file("fixed-cpu/model.safetensors"),
                           sample_file("background/model.safetensors")));
    check_case = "background, stopped";
    CHECK_STATUS(fp8_export_begin(&j, sample_file("stopped"), gpu->c, gpu->d, gpu->m, 1, &fixed),
                 FP8_OK);
    fp8_export_abort(j);
    CHECK(!fp8_path_exists(sample_file("stopped")));
    CHECK(!fp8_path_exists(sample_file("stopped.fp8-partial")));
    fp8_record_destroy(other);
}

/* Sizes around the pieces of a large upload, from odd addresses. */
static void check_upload(fp8_device *d) {
    static const size_t sizes[] = {(8 << 20) - 1, 8 << 20, (8 << 20) + 1, (200 << 20) + 4097};
    const size_t most = sizes[3] + 16;
    unsigned char *x = malloc(most), *back = malloc(most);
    void *there = NULL;
    uint64_t random = 5;
    check_case = "large uploads";
    for (size_t i = 0; i + 8 <= most; i += 8) {
        const uint64_t v = check_random(&random);
        memcpy(x + i, &v, 8);
    }
    CHECK_STATUS(fp8_device_alloc(d, &there, most), FP8_OK);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        CHECK_STATUS(fp8_device_fill(d, there, 0x5a, most), FP8_OK);
        CHECK_STATUS(fp8_device_upload(d, (char *)there + 3, x + i, sizes[i]), FP8_OK);
        CHECK_STATUS(fp8_device_download(d, back, there, most), FP8_OK);
        CHECK(memcmp(back + 3, x + i, sizes[i]) == 0);
        CHECK(back[2] == 0x5a && back[3 + sizes[i]] == 0x5a);
    }
    fp8_device_free(d, there);
    free(x);
    free(back);
}

static const fp8_report_row *find(const fp8_report *r, const char *name) {
    for (int64_t i = 0; i < r->count; i++)
        if (strcmp(r->rows[i].name, name) == 0) return &r->rows[i];
    return NULL;
}

/* Weights are the same numbers: sums in another order. Activations are those of each forward. */
static void check_reports(const sample *cpu, const sample *gpu, const fp8_record *r,
                          const fp8_export_options *options) {
    fp8_samples data = sample_samples(SEQ, SAMPLES);
    fp8_report a, b;
    CHECK_STATUS(fp8_report_create(&a, cpu->m, cpu->c, r, &data, &calib, options, 2), FP8_OK);
    CHECK_STATUS(fp8_report_create(&b, gpu->m, gpu->c, r, &data, &calib, options, 2), FP8_OK);
    CHECK(a.count == b.count);
    for (int64_t i = 0; i < a.count; i++) {
        const fp8_report_row *x = &a.rows[i], *y = find(&b, x->name);
        check_case = x->name;
        CHECK(y && x->is_weight == y->is_weight && x->scale == y->scale);
        if (!y) continue;
        CHECK(fabs(x->sqnr_db - y->sqnr_db) < (x->is_weight ? 1e-6 : 0.5));
        CHECK(fabs(x->clipped - y->clipped) < (x->is_weight ? 1e-12 : 1e-3));
        CHECK(!x->is_weight || x->p999_over_max == y->p999_over_max);
    }
    fp8_report_free(&a);
    fp8_report_free(&b);
    fp8_samples_free(&data);
}

static void check_evaluation(const sample *cpu, const sample *gpu) {
    fp8_samples data = sample_samples(1 << 20, 0); /* the whole text */
    sample fp8_cpu = sample_open(sample_file("fixed-cpu"), 0, 2048, FP8_COMPUTE_BF16);
    sample fp8_gpu = sample_open_on("cuda", sample_file("fixed-cpu"), 0, 2048, FP8_COMPUTE_BF16);
    fp8_model *const on_cpu[] = {cpu->m, fp8_cpu.m}, *const on_gpu[] = {gpu->m, fp8_gpu.m};
    fp8_eval_result a[2], b[2];
    check_case = "evaluation";
    CHECK_STATUS(fp8_evaluate(a, on_cpu, 2, data.ids, data.num_ids, 256, 0, NULL), FP8_OK);
    CHECK_STATUS(fp8_evaluate(b, on_gpu, 2, data.ids, data.num_ids, 256, 0, NULL), FP8_OK);
    for (int i = 0; i < 2; i++) {
        fprintf(stderr, "%s: CPU %.4f, CUDA %.4f; KL %.4f, %.4f\n", i ? "FP8" : "BF16",
                a[i].perplexity, b[i].perplexity, a[i].kl, b[i].kl);
        CHECK(a[i].tokens == b[i].tokens);
        CHECK(fabs(b[i].perplexity / a[i].perplexity - 1) < (i ? 0.01 : 0.003));
    }
    CHECK(b[1].kl > 0 && b[1].kl < 0.06);
    sample_close(&fp8_cpu);
    sample_close(&fp8_gpu);
    fp8_samples_free(&data);
}

int main(void) {
    fp8_device *d = check_gpu();
    sample cpu, gpu;
    fp8_record *on_cpu = NULL, *on_gpu = NULL, *again = NULL;

    if (!d) return TEST_SKIP;
    fp8_device_destroy(d);
    sample_begin();
    cpu = sample_open(NULL, 0, 2048, FP8_COMPUTE_BF16);
    gpu = sample_open_on("cuda", NULL, 0, 2048, FP8_COMPUTE_BF16);
    on_cpu = calibrate(&cpu, sample_file("cpu"));
    on_gpu = calibrate(&gpu, sample_file("cuda"));
    again = calibrate(&gpu, sample_file("cuda-again"));
    check_histories(on_cpu, on_gpu);
    check_case = "two runs on CUDA";
    CHECK(sample_same_file(sample_file("cuda"), sample_file("cuda-again")));
    check_export(&cpu, &gpu, on_cpu, &fixed, "fixed");
    check_background(&gpu, on_cpu);
    check_upload(gpu.d);
    check_export(&cpu, &gpu, NULL, &dynamic, "dynamic");
    check_export(&cpu, &gpu, NULL, &tensor_dynamic, "tensor-dynamic");
    check_reports(&cpu, &gpu, on_cpu, &fixed);
    check_reports(&cpu, &gpu, on_cpu, &dynamic);
    check_evaluation(&cpu, &gpu);
    fp8_record_destroy(on_cpu);
    fp8_record_destroy(on_gpu);
    fp8_record_destroy(again);
    sample_close(&cpu);
    sample_close(&gpu);
    sample_done();
    return CHECK_DONE();
}
