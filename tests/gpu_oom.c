/* No memory on the GPU: while a model is loaded, and in the middle of a calibration, whose steps
 * before it are kept and resumed. It takes all of the GPU's memory, so it wants it for itself: run
 * with FP8_GPU_ALONE=1, never beside other tests. */
#include "tests/sample_model.h"

enum { SEQ = 64, BATCH = 4, STEPS = 5, MOST_HOGS = 64 };

static fp8_device *gpu;
static void *hogs[MOST_HOGS];
static int num_hogs;

/* Takes all memory but less than 2 MiB, largest pieces first. */
static void take_all(void) {
    for (size_t bytes = (size_t)64 << 30; bytes >= (size_t)2 << 20 && num_hogs < MOST_HOGS;) {
        void *p = NULL;
        if (fp8_device_alloc(gpu, &p, bytes) == FP8_OK) hogs[num_hogs++] = p;
        else bytes /= 2;
    }
}

static void give_all(void) {
    while (num_hogs > 0) fp8_device_free(gpu, hogs[--num_hogs]);
}

static int hog_at(void *ctx, const char *what, int64_t done, int64_t total) {
    (void)total;
    if (strcmp(what, "calibrating") == 0 && done == *(const int64_t *)ctx) take_all();
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
        const fp8_status st = calibrate(&data, cut, 0, (fp8_progress){hog_at, &k});
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
    sample_done();
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
