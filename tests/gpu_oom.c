/* No memory on the GPU: while a model is loaded; in the middle of a calibration, which has claimed
 * what it needs and goes on, or keeps the steps before it and is resumed; in the middle of
 * compensated rounding, which ends and leaves nothing behind. It takes all of the GPU's memory, so
 * it wants it for itself: run with FP8_GPU_ALONE=1, never beside other tests. */
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, STEPS = 5, MOST_HOGS = 4096, LEAST_BYTES = 256 };

static fp8_device *gpu;
static void *hogs[MOST_HOGS];
static int num_hogs;

/* Takes all memory, largest pieces first, down to what small allocations would be cut from. */
static void take_all(void) {
    for (size_t bytes = (size_t)64 << 30; bytes >= LEAST_BYTES && num_hogs < MOST_HOGS;) {
        void *p = NULL;
        if (fp8_device_alloc(gpu, &p, bytes) == FP8_OK) hogs[num_hogs++] = p;
        else bytes /= 2;
    }
}

static void give_all(void) {
    while (num_hogs > 0) fp8_device_free(gpu, hogs[--num_hogs]);
}

/* When everything is taken. */
typedef struct moment {
    const char *what;
    int64_t done;
} moment;

static int hog_at(void *ctx, const char *what, int64_t done, int64_t total) {
    const moment *m = ctx;
    (void)total;
    if (strcmp(what, m->what) == 0 && done == m->done) take_all();
    return 0;
}

/* Samples that grow from step to step, so that a later step wants more memory. */
static fp8_samples growing(void) {
    fp8_samples s = sample_samples(SEQ, STEPS * BATCH);
    int64_t at = 0;
    for (int64_t i = 0; i < s.count; i++) {
        const int64_t len = s.starts[i + 1] - s.starts[i], want = (i / BATCH + 1) * len / STEPS;
        memmove(s.ids + at, s.ids + s.starts[i], (size_t)want * sizeof *s.ids);
        s.starts[i] = at;
        at += want;
    }
    s.starts[s.count] = s.num_ids = at;
    return s;
}

static fp8_status calibrate(const fp8_samples *data, const char *record, int resume,
                            fp8_progress progress) {
    const fp8_calib_options options = {.batch = BATCH, .seq = SEQ, .data_name = "built-in",
                                       .record_path = record, .resume = resume,
                                       .progress = progress};
    sample s = sample_open_on("cuda", NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_record *r = NULL;
    const fp8_status st = fp8_calibrate(&r, s.m, s.c, data, &options);

    CHECK((st == FP8_OK) == (r != NULL));
    give_all();
    fp8_record_destroy(r);
    sample_close(&s);
    return st;
}

static void test_load(void) {
    fp8_checkpoint *c = NULL;
    fp8_model *m = NULL;

    check_case = "load";
    CHECK_STATUS(fp8_checkpoint_open(&c, sample_path("examples/sample-model")), FP8_OK);
    if (!c) return;
    take_all();
    CHECK_STATUS(fp8_model_load(&m, gpu, c, NULL), FP8_ENOMEM);
    CHECK(m == NULL && strstr(fp8_last_message(), "bytes") != NULL);
    give_all();
    CHECK_STATUS(fp8_model_load(&m, gpu, c, NULL), FP8_OK);
    fp8_model_destroy(m);
    fp8_checkpoint_close(c);
}

/* Where a step needs no memory of its own it goes on; where it does, the message says how much, and
 * the record is what it would have been. */
static void test_calibration(void) {
    fp8_samples data = growing();
    const fp8_progress none = {0};
    const char *whole = sample_file("whole");
    int failures = 0;

    check_case = "calibration";
    CHECK_STATUS(calibrate(&data, whole, 0, none), FP8_OK);
    for (int64_t k = 1; k < STEPS; k++) {
        const char *cut = sample_file("cut");
        moment then = {"calibrating", k};
        const fp8_status st = calibrate(&data, cut, 0, (fp8_progress){hog_at, &then});
        CHECK(st == FP8_OK || st == FP8_ENOMEM || st == FP8_ECUDA);
        if (st != FP8_OK) printf("step %lld: %s\n", (long long)k, fp8_last_message());
        if (st != FP8_OK) CHECK_STATUS(calibrate(&data, cut, 1, none), FP8_OK);
        failures += st != FP8_OK;
        CHECK(sample_same_file(whole, cut));
        remove(cut);
    }
    printf("%d of %d steps had no memory\n", failures, STEPS - 1);
    fp8_samples_free(&data);
}

/* The checkpoint of compensated rounding in `out`, or what came of it. */
static fp8_status round_all(const sample *s, const fp8_record *r, const fp8_samples *data,
                            const char *out, fp8_progress progress) {
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ, .progress = progress};
    const fp8_rounding_options how = FP8_ROUNDING_OPTIONS;
    fp8_export_options options = {.scheme = FP8_SCHEME_TENSOR, .recipe = FP8_RECIPE_DEFAULT};
    const char *scratch = sample_file("scratch");
    fp8_rounding *rounding = NULL;
    fp8_export_result result;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_rounding_create(&rounding, s->m, s->c, scratch, r, data, &calib, &options, &how));
    options.rounding = rounding;
    FP8_TRY(fp8_export(&result, out, s->c, s->d, r, &options));
done:
    give_all();
    CHECK(!fp8_path_exists(scratch) && (st == FP8_OK) == (rounding != NULL));
    fp8_rounding_destroy(rounding);
    return st;
}

/* Each input's factors are allocated when its turn comes: no memory at the second input of the
 * first layer, in the middle, and at the last one. */
static void test_rounding(void) {
    static const int64_t moments[] = {1, 10, 18};
    fp8_samples data = sample_samples(SEQ, 2 * BATCH);
    const fp8_calib_options calib = {.batch = BATCH, .seq = SEQ};
    sample s = sample_open_on("cuda", NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    fp8_record *r = NULL;

    check_case = "rounding";
    CHECK_STATUS(fp8_calibrate(&r, s.m, s.c, &data, &calib), FP8_OK);
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        moment then = {"rounding", moments[i]};
        const fp8_status st = round_all(&s, r, &data, sample_file("cut"),
                                        (fp8_progress){hog_at, &then});
        CHECK(st == FP8_ENOMEM || st == FP8_ECUDA);
        CHECK(!fp8_path_exists(sample_file("cut")));
        printf("rounding, %lld: %s\n", (long long)moments[i], fp8_last_message());
    }
    CHECK_STATUS(round_all(&s, r, &data, sample_file("after"), (fp8_progress){0}), FP8_OK);
    sample_close(&s);
    s = sample_open_on("cuda", NULL, 0, BATCH * SEQ, FP8_COMPUTE_BF16);
    CHECK_STATUS(round_all(&s, r, &data, sample_file("fresh"), (fp8_progress){0}), FP8_OK);
    CHECK(sample_same_file(sample_file("after/model.safetensors"),
                           sample_file("fresh/model.safetensors")));
    fp8_record_destroy(r);
    fp8_samples_free(&data);
    sample_close(&s);
}

int main(void) {
    if (!getenv("FP8_GPU_ALONE")) {
        fprintf(stderr, "skipped: FP8_GPU_ALONE is not set\n");
        return TEST_SKIP;
    }
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    sample_begin();
    test_load();
    test_calibration();
    test_rounding();
    sample_done();
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
