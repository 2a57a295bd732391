/* calib/weight_stream.c: tensors longer than a piece, by 1, 2, 16 threads, against plain loops. */
#include <string.h>
#include <sys/stat.h>

#include "calib/calib.h"
#include "calib/weight_stream.h"
#include "check.h"
#include "core/half.h"
#include "formats/formats.h"
#include "quant/cast.h"

/* More than two pieces of 1 << 19 elements, one row more or less than a piece or a square, members
 * of a group of several dtypes, a row wider than a piece, and something to copy in pieces. */
static const fp8_st_spec specs[] = {
    {"a.self_attn.q_proj.weight", FP8_DTYPE_BF16, 2, {1025, 1031}},
    {"a.self_attn.k_proj.weight", FP8_DTYPE_F16, 2, {129, 1031}},
    {"a.self_attn.v_proj.weight", FP8_DTYPE_F32, 2, {127, 1031}},
    {"a.mlp.gate_proj.weight", FP8_DTYPE_BF16, 2, {513, 1024}},
    {"a.mlp.up_proj.weight", FP8_DTYPE_BF16, 2, {512, 1024}},
    {"a.mlp.down_proj.weight", FP8_DTYPE_BF16, 2, {2, (1 << 19) + 1}},
    {"b.one.weight", FP8_DTYPE_F32, 2, {1, 1}},
    {"a.norm.weight", FP8_DTYPE_BF16, 1, {3}},
    {"a.table", FP8_DTYPE_F32, 2, {1500, 1024}}};
enum { COUNT = sizeof specs / sizeof *specs, NUM_WEIGHTS = 7 };
static const int group_of[NUM_WEIGHTS] = {0, 0, 0, 1, 1, 2, 3};

static char folder[] = "/tmp/test_weight_stream.XXXXXX";

static const char *file(const char *name) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int64_t count_of(const fp8_st_spec *s) {
    return s->shape[0] * (s->ndim > 1 ? s->shape[1] : 1);
}

/* NaN or Inf at element `at` of the tensors that `bad` names; -1: none. */
static void write_source(const char *path, unsigned bad) {
    fp8_st_writer *w = NULL;
    uint64_t random = 11;

    CHECK_STATUS(fp8_st_writer_create(&w, path, specs, COUNT, NULL, 0), FP8_OK);
    for (int64_t i = 0; w && i < COUNT; i++) {
        const int64_t n = count_of(&specs[i]);
        const size_t size = fp8_dtype_size(specs[i].dtype);
        unsigned char *data = malloc((size_t)n * size);
        for (int64_t k = 0; k < n; k++) {
            float x = check_normal(&random) * (float)(i + 1);
            uint16_t half;
            if (k % 100003 == 7) x = k % 2 ? -0.0f : 300.0f * (float)(COUNT - i);
            if ((bad >> i & 1) && k % 400000 == 399999) x = k % 3 ? NAN : -INFINITY;
            half = specs[i].dtype == FP8_DTYPE_F16 ? fp8_f32_to_f16(x) : fp8_f32_to_bf16(x);
            memcpy(data + (size_t)k * size, size == 4 ? (void *)&x : (void *)&half, size);
        }
        CHECK_STATUS(fp8_st_writer_put(w, i, data, (size_t)n * size), FP8_OK);
        free(data);
    }
    CHECK_STATUS(fp8_st_writer_commit(w), FP8_OK);
}

static float value(const fp8_st_entry *e, int64_t i) {
    const unsigned char *p = e->tensor.data;
    uint16_t half;
    float f;

    if (e->tensor.dtype == FP8_DTYPE_F32) {
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
    memcpy(&half, p + 2 * i, sizeof half);
    return e->tensor.dtype == FP8_DTYPE_BF16 ? fp8_bf16_to_f32(half) : fp8_f16_to_f32(half);
}

static float amax_of(const fp8_st_entry *e, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    float amax = 0;
    for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) {
            const float a = fabsf(value(e, r * e->tensor.shape[1] + c));
            if (isfinite(a) && a > amax) amax = a;
        }
    return amax;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows and columns that share a scale begin at multiples of these; 0: all of them. */
static void check_weight(const fp8_checkpoint *source, const fp8_checkpoint *written, int w,
                         int64_t row_step, int64_t col_step) {
    const fp8_st_entry *x = fp8_checkpoint_find(source, specs[w].name);
    const fp8_st_entry *q = fp8_checkpoint_find(written, specs[w].name), *s;
    const int64_t rows = specs[w].shape[0], cols = specs[w].shape[1];
    int64_t wrong = 0, square = 0;
    char name[256];

    snprintf(name, sizeof name, "%s_scale", specs[w].name);
    s = fp8_checkpoint_find(written, name);
    CHECK(x && q && s && q->tensor.dtype == FP8_DTYPE_E4M3);
    if (!x || !q || !s) return;
    if (!row_step) row_step = rows;
    if (!col_step) col_step = cols;
    for (int64_t r = 0; r < rows; r += row_step)
        for (int64_t c = 0; c < cols; c += col_step, square++) {
            const int64_t r1 = least(r + row_step, rows), c1 = least(c + col_step, cols);
            float amax = amax_of(x, r, r1, c, c1), descale;
            for (int i = 0; row_step == rows && col_step == cols && i < NUM_WEIGHTS; i++) {
                const fp8_st_entry *other = fp8_checkpoint_find(source, specs[i].name);
                if (group_of[i] != group_of[w] || i == w) continue;
                amax = fmaxf(amax, amax_of(other, 0, specs[i].shape[0], 0, specs[i].shape[1]));
            }
            memcpy(&descale, (const char *)s->tensor.data + 4 * square, sizeof descale);
            wrong += descale != (amax > 0 ? amax / 448.0f : 1.0f);
            for (int64_t i = r; i < r1; i++)
                for (int64_t k = c; k < c1; k++) {
                    const int64_t at = i * cols + k;
                    const float scale = amax > 0 ? 448.0f / amax : 1.0f;
                    wrong += ((const uint8_t *)q->tensor.data)[at] !=
                             fp8_from_f32(FP8_DTYPE_E4M3, value(x, at) * scale);
                }
        }
    CHECK(wrong == 0);
}

static int same_bytes(const char *a, const char *b) {
    fp8_file x = {0}, y = {0};
    int same;

    CHECK_STATUS(fp8_file_map(&x, a), FP8_OK);
    CHECK_STATUS(fp8_file_map(&y, b), FP8_OK);
    same = x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0;
    fp8_file_unmap(&x);
    fp8_file_unmap(&y);
    return same;
}

static int same_tensors(const char *a, const char *b) {
    fp8_safetensors *x = NULL, *y = NULL;
    int same;

    CHECK_STATUS(fp8_safetensors_open(&x, a), FP8_OK);
    CHECK_STATUS(fp8_safetensors_open(&y, b), FP8_OK);
    same = x && y && fp8_safetensors_count(x) == fp8_safetensors_count(y);
    for (int64_t i = 0; same && i < fp8_safetensors_count(x); i++) {
        const fp8_st_entry *e = fp8_safetensors_at(x, i), *f = fp8_safetensors_find(y, e->name);
        same = f && e->bytes == f->bytes && memcmp(e->tensor.data, f->tensor.data, e->bytes) == 0;
    }
    fp8_safetensors_close(x);
    fp8_safetensors_close(y);
    return same;
}

static const struct {
    const char *name;
    fp8_scheme scheme;
    int64_t row_step, col_step;
} schemes[] = {{"tensor-dynamic", FP8_SCHEME_TENSOR_DYNAMIC, 0, 0},
               {"dynamic", FP8_SCHEME_DYNAMIC, 1, 0},
               {"block", FP8_SCHEME_BLOCK, 128, 128}};

static fp8_status export(const char *out, const char *source, int32_t threads,
                         fp8_export_options *o) {
    fp8_export_result result;
    fp8_checkpoint *c = NULL;
    fp8_device *d = NULL;
    fp8_status st = FP8_OK;

    FP8_TRY(fp8_device_create(&d, "cpu", threads));
    FP8_TRY(fp8_checkpoint_open(&c, source));
    st = fp8_export(&result, out, c, d, NULL, o);
done:
    fp8_checkpoint_close(c);
    fp8_device_destroy(d);
    return st;
}

static void test_schemes(const char *source) {
    static const int32_t threads[] = {1, 2, 16};

    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
            char out[64], first[300], other[300];
            fp8_export_options o = {.scheme = schemes[i].scheme, .force = 1};
            fp8_checkpoint *c = NULL, *written = NULL;
            check_case = schemes[i].name;
            snprintf(out, sizeof out, "out-%d", threads[t]);
            CHECK_STATUS(export(file(out), source, threads[t], &o), FP8_OK);
            snprintf(first, sizeof first, "%s/model.safetensors", file("out-1"));
            snprintf(other, sizeof other, "%s/model.safetensors", file(out));
            CHECK(same_bytes(first, other));
            if (t != 2) continue;
            CHECK_STATUS(fp8_checkpoint_open(&c, source), FP8_OK);
            CHECK_STATUS(fp8_checkpoint_open(&written, file(out)), FP8_OK);
            for (int w = 0; w < NUM_WEIGHTS; w++)
                check_weight(c, written, w, schemes[i].row_step, schemes[i].col_step);
            for (int k = NUM_WEIGHTS; k < COUNT; k++) {
                const fp8_st_entry *a = fp8_checkpoint_find(c, specs[k].name);
                const fp8_st_entry *b = fp8_checkpoint_find(written, specs[k].name);
                CHECK(a && b && a->bytes == b->bytes &&
                      memcmp(a->tensor.data, b->tensor.data, a->bytes) == 0);
            }
            fp8_checkpoint_close(c);
            fp8_checkpoint_close(written);
        }
}

/* The way of a device, on the host: one thread drives, others write. */
static void test_ship(const char *source) {
    for (int32_t threads = 2; threads <= 17; threads += 15)
        for (size_t i = 0; i < 2; i++) {
            fp8_export_options o = {.scheme = schemes[i].scheme, .force = 1};
            const fp8_quant_config quant = {.scheme = schemes[i].scheme};
            const fp8_progress silent = {0};
            fp8_weight_stream s = {.scheme = schemes[i].scheme, .progress = &silent};
            const fp8_checkpoint_writer_options how = {.force = 1};
            fp8_points points = {0};
            fp8_weights weights = {0};
            fp8_export_plan plan = {0};
            fp8_checkpoint *c = NULL;
            char want[300], got[300];
            check_case = "ship";
            CHECK_STATUS(export(file("streamed"), source, 2, &o), FP8_OK);
            CHECK_STATUS(fp8_checkpoint_open(&c, source), FP8_OK);
            CHECK_STATUS(fp8_weights_of_file(&weights, c, &o), FP8_OK);
            CHECK_STATUS(fp8_export_plan_create(&plan, c, &weights, &points, NULL, NULL, &quant),
                         FP8_OK);
            CHECK_STATUS(fp8_checkpoint_writer_create(&s.writer, file("shipped"), plan.specs,
                                                      plan.groups, plan.count, NULL, 0, &how),
                         FP8_OK);
            CHECK_STATUS(fp8_device_create(&s.d, "cpu", 1), FP8_OK);
            CHECK_STATUS(fp8_pool_create(&s.writers, threads), FP8_OK);
            s.plan = &plan;
            s.weights = &weights;
            CHECK_STATUS(fp8_weight_ship_run(&s), FP8_OK);
            CHECK_STATUS(fp8_checkpoint_writer_commit(s.writer), FP8_OK);
            snprintf(want, sizeof want, "%s/model.safetensors", file("streamed"));
            snprintf(got, sizeof got, "%s/model.safetensors", file("shipped"));
            CHECK(same_tensors(want, got));
            fp8_pool_destroy(s.writers);
            fp8_device_destroy(s.d);
            fp8_export_plan_free(&plan);
            fp8_weights_free(&weights);
            fp8_checkpoint_close(c);
        }
}

/* The first bad tensor is named with all its bad values, however many threads meet others. */
static void test_not_finite(void) {
    char source[256], first[512] = "";

    snprintf(source, sizeof source, "%s", file("nan.safetensors"));
    write_source(source, 1u << 0 | 1u << 3 | 1u << 5);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        for (int32_t threads = 1; threads <= 16; threads *= 4) {
            fp8_export_options o = {.scheme = schemes[i].scheme};
            check_case = schemes[i].name;
            CHECK_STATUS(export(file("bad"), source, threads, &o), FP8_EDATA);
            CHECK(strstr(fp8_last_message(), " values are NaN or infinite"));
            if (threads == 1) snprintf(first, sizeof first, "%s", fp8_last_message());
            CHECK(strcmp(first, fp8_last_message()) == 0);
            CHECK(!fp8_path_exists(file("bad")) && !fp8_path_exists(file("bad.fp8-partial")));
            o.allow_nonfinite = 1;
            CHECK_STATUS(export(file("bad"), source, threads, &o), FP8_OK);
            o.force = 1;
            CHECK_STATUS(export(file("bad"), source, threads, &o), FP8_OK);
            CHECK(fp8_path_exists(file("bad")));
            if (fp8_path_exists(file("bad"))) {
                char command[300];
                snprintf(command, sizeof command, "rm -r %s", file("bad"));
                CHECK(system(command) == 0);
            }
        }
}

typedef struct watcher {
    int64_t calls, last, total, stop_at;
} watcher;

static int watch(void *ctx, const char *phase, int64_t done, int64_t total) {
    watcher *w = ctx;
    CHECK(strcmp(phase, "writing") == 0 && done >= w->last && done <= total);
    w->last = done;
    w->total = total;
    return ++w->calls == w->stop_at;
}

static void test_progress(const char *source) {
    watcher w = {0};
    fp8_export_options o = {.scheme = FP8_SCHEME_TENSOR_DYNAMIC, .progress = {watch, &w}};

    check_case = "progress";
    CHECK_STATUS(export(file("told"), source, 2, &o), FP8_OK);
    CHECK(w.last == w.total && w.total > 0);
    check_case = "stopped";
    for (int64_t at = 1; at < 4; at++) {
        w = (watcher){.stop_at = at};
        CHECK_STATUS(export(file("stopped"), source, 2, &o), FP8_ECANCELED);
        CHECK(!fp8_path_exists(file("stopped")) && !fp8_path_exists(file("stopped.fp8-partial")));
    }
}

/* A file without the wait for the disk is the same file. */
static void test_no_sync(const char *source) {
    char a[300], b[300];
    fp8_export_options o = {.scheme = FP8_SCHEME_DYNAMIC};

    check_case = "no sync";
    fp8_file_set_sync(0);
    CHECK_STATUS(export(file("unsynced"), source, 2, &o), FP8_OK);
    fp8_file_set_sync(1);
    CHECK_STATUS(export(file("synced"), source, 2, &o), FP8_OK);
    snprintf(a, sizeof a, "%s/model.safetensors", file("unsynced"));
    snprintf(b, sizeof b, "%s/model.safetensors", file("synced"));
    CHECK(same_bytes(a, b));
}

int main(void) {
    char command[64];
    const char *source;

    CHECK(mkdtemp(folder) != NULL);
    source = strdup(file("source.safetensors"));
    write_source(source, 0);
    test_schemes(source);
    test_ship(source);
    test_not_finite();
    test_progress(source);
    test_no_sync(source);
    free((void *)(uintptr_t)source);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    return CHECK_DONE();
}
