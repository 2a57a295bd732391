/* The parts of the benchmarks that need no GPU: shapes, random data, the check of sampled rows
 * against the oracle, and the writers of tables. */
#include <string.h>

#include "bench/bench_impl.h"
#include "check.h"
#include "core/half.h"
#include "quant/quant.h"

/* ---- shapes ---------------------------------------------------------------------------------- */

static void test_shapes(void) {
    static const char *const bad[] = {"",
                                      "1,2,3",
                                      "1,4,3,64,9,none",
                                      "0,4,2,64,9,none",
                                      "1,4,2,64,9",
                                      "1,4,2,64,9,full",
                                      "1,4,2,64,9,none,bias,bias",
                                      "1,4,2,64/,9,none",
                                      "1/2,4,2,64,9,none",
                                      "1,4,2,64,99999999999,none",
                                      "1,4,2,64,9,non"};
    bench_shape x;
    CHECK_STATUS(bench_parse_shape(&x, "2,6,3,192/128,5/70,causal_br,bias"), FP8_OK);
    CHECK(x.b == 2 && x.h == 6 && x.h_kv == 3 && x.d_qk == 192 && x.d_v == 128 && x.s_q == 5 &&
          x.s_kv == 70 && x.mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT && x.bias == 1);
    CHECK(bench_flops(&x) == 2.0 * 2 * 6 * 5 * 70 * (192 + 128) / 2);
    CHECK_STATUS(bench_parse_shape(&x, "1,1,1,64,8,none"), FP8_OK);
    CHECK(x.s_q == 8 && x.s_kv == 8 && x.bias == 0 && bench_scores(&x) == 64);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check_case = bad[i];
        CHECK_STATUS(bench_parse_shape(&x, bad[i]), FP8_EINVAL);
    }
}

/* ---- data ------------------------------------------------------------------------------------ */

static void test_normal(fp8_pool *pool) {
    enum { N = 300007 };
    uint16_t *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    double sum = 0, squares = 0, most = 0;
    float amax = 0, again = 0;

    check_case = "normal";
    CHECK_STATUS(bench_normal(x, N, 5, 1, &amax, pool), FP8_OK);
    CHECK_STATUS(bench_normal(y, N, 5, 1, &again, NULL), FP8_OK);
    CHECK(memcmp(x, y, N * sizeof *x) == 0 && amax == again); /* whatever the threads */
    for (int i = 0; i < N; i++) {
        const double v = (double)fp8_bf16_to_f32(x[i]);
        sum += v;
        squares += v * v;
        most = fmax(most, fabs(v));
    }
    CHECK(fabs(sum / N) < 0.01 && fabs(squares / N - 1) < 0.01);
    CHECK(most == (double)amax && amax > 3 && amax < 5);
    CHECK_STATUS(bench_normal(y, N, 6, 4, &again, pool), FP8_OK);
    squares = 0;
    for (int i = 0; i < N; i++) squares += pow((double)fp8_bf16_to_f32(y[i]), 2);
    CHECK(fabs(squares / N - 7.5) < 0.1); /* mean of 1, 4, 9, 16 */
    free(x);
    free(y);
}

/* ---- sampled rows ---------------------------------------------------------------------------- */

static void *filled(int64_t n, fp8_dtype dtype, uint64_t seed) {
    uint8_t *x = malloc((size_t)n * fp8_dtype_size(dtype));
    for (int64_t i = 0; i < n; i++) {
        const float v = check_normal(&seed);
        if (dtype == FP8_DTYPE_E4M3) x[i] = fp8_from_f32(dtype, v * 16.0f);
        else ((uint16_t *)(void *)x)[i] = fp8_f32_to_bf16(v);
    }
    return x;
}

/* O by the oracle, in BF16, checked: rounding is all that is left; then spoiled. */
static void test_rows(const char *shape, fp8_dtype dtype, fp8_pool *pool) {
    const int fp8 = dtype == FP8_DTYPE_E4M3;
    const float descale = fp8 ? 0.0625f : 1.0f;
    fp8_attention_options o = FP8_ATTENTION_OPTIONS;
    bench_operands a = {.dtype = dtype};
    bench_shape x;
    bench_error e;
    int64_t n, rows;
    double *want;
    uint16_t *got, *bias;

    check_case = shape;
    CHECK_STATUS(bench_parse_shape(&x, shape), FP8_OK);
    n = x.b * x.s_q * x.h * x.d_v;
    rows = x.b * x.s_q * x.h;
    want = malloc((size_t)n * sizeof *want);
    got = malloc((size_t)n * sizeof *got);
    bias = filled(x.h * x.s_q * x.s_kv, FP8_DTYPE_BF16, 4);
    a.shape = &x;
    a.q = filled(x.b * x.s_q * x.h * x.d_qk, dtype, 1);
    a.k = filled(x.b * x.s_kv * x.h_kv * x.d_qk, dtype, 2);
    a.v = filled(x.b * x.s_kv * x.h_kv * x.d_v, dtype, 3);
    a.q_descale = a.k_descale = a.v_descale = descale;
    a.bias = x.bias ? bias : NULL;
    o.num_heads = (int32_t)x.h;
    o.num_kv_heads = (int32_t)x.h_kv;
    o.d_qk = (int32_t)x.d_qk;
    o.d_v = (int32_t)x.d_v;
    o.num_seqs = x.b;
    o.max_q = x.s_q;
    o.max_kv = x.s_kv;
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    o.mask = x.mask;
    o.q_dtype = o.kv_dtype = dtype;
    o.bias = x.bias ? FP8_BIAS_POST_SCALE : FP8_BIAS_NONE;
    o.bias_shape = FP8_BIAS_1HSS;
    o.bias_dtype = FP8_DTYPE_BF16;
    {
        const fp8_attention_io io = {.o = got, .q = a.q, .k = a.k, .v = a.v, .bias = bias,
                                     .q_descale = &descale, .k_descale = &descale,
                                     .v_descale = &descale};
        CHECK_STATUS(fp8_attention_reference(want, NULL, NULL, &o, &io), FP8_OK);
    }
    for (int64_t i = 0; i < n; i++) got[i] = fp8_f32_to_bf16((float)want[i]);
    CHECK_STATUS(bench_check_rows(&e, got, FP8_DTYPE_BF16, 1.0f, &a, rows, pool), FP8_OK);
    CHECK(e.rows == rows && e.relative_l2 > 1e-4 && e.relative_l2 < 3e-3 && e.mae <= e.absmax);
    for (int64_t i = 0; i < n; i++) got[i] = fp8_f32_to_bf16((float)want[i] * 1.1f);
    CHECK_STATUS(bench_check_rows(&e, got, FP8_DTYPE_BF16, 1.0f, &a, rows, pool), FP8_OK);
    CHECK(fabs(e.relative_l2 - 0.1) < 3e-3);
    for (int64_t i = 0; i < n; i++) got[i] = 0x7fc0; /* NaN: no bound is met */
    CHECK_STATUS(bench_check_rows(&e, got, FP8_DTYPE_BF16, 1.0f, &a, rows, pool), FP8_OK);
    CHECK(!(e.relative_l2 <= 1e30) && !(e.absmax <= 1e30));
    free((void *)(uintptr_t)a.q);
    free((void *)(uintptr_t)a.k);
    free((void *)(uintptr_t)a.v);
    free(bias);
    free(want);
    free(got);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static char *text_of(const char *path) {
    static char text[8192];
    FILE *f = fopen(path, "rb");
    text[0] = 0;
    CHECK(f);
    if (!f) return text;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

static int count(const char *text, const char *what) {
    int n = 0;
    for (; (text = strstr(text, what)); text += strlen(what)) n++;
    return n;
}

static void test_table(void) {
    static const fp8_bench_column columns[] = {{"ms", 4}, {"error", 3}};
    static const char csv[] = "subject,provider,ms,error,note\n"
                              "\"1,2,3\",\"cuDNN\",0.0123456789,,\"\"\n"
                              "\"1,2,3\",\"us\",,,\"not \"\"there\"\"\"\n";
    fp8_bench_table t = {.title = "A & <b>", .columns = columns, .num_columns = 2};
    char folder[] = "/tmp/fp8_bench_XXXXXX", path[64];
    fp8_bench_row *row;
    char *text;

    check_case = "table";
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/t", folder);
    for (int i = 0; i < 100; i++) { /* more than the first room */
        CHECK_STATUS(fp8_bench_add_row(&t, &row, i < 50 ? "1,2,3" : "4,5,6",
                                       i % 2 ? "us" : "cuDNN"),
                     FP8_OK);
        row->value[0] = 0.0123456789 * (i + 1);
        if (i == 1) snprintf(row->note, sizeof row->note, "not \"there\"");
    }
    t.rows[1].value[0] = NAN;
    CHECK_STATUS(fp8_bench_write_csv(&t, path), FP8_OK);
    text = text_of(path);
    CHECK(strncmp(text, csv, strlen(csv)) == 0);
    CHECK(count(text, "\n") == 101);
    t.num_rows = 6;
    CHECK_STATUS(fp8_bench_write_svg(&t, path), FP8_OK);
    text = text_of(path);
    CHECK(strstr(text, "A &amp; &lt;b>") && count(text, "not served") == 1);
    CHECK(count(text, "<rect") == 1 + 5 + 2 && strstr(text, "</svg>\n")); /* ground, bars, legend */
    {
        FILE *f = fopen(path, "w+");
        CHECK(f);
        if (f) CHECK_STATUS(fp8_bench_write_text(&t, f), FP8_OK);
        if (f) fclose(f);
        text = text_of(path);
        CHECK(count(text, "\n") == 3 + 1 + 6 && strstr(text, "not \"there\"") &&
              strstr(text, "0.01235"));
    }
    CHECK_STATUS(fp8_bench_write_csv(&t, "/nowhere/x"), FP8_EIO);
    CHECK_STATUS(fp8_bench_write_svg(&t, "/nowhere/x"), FP8_EIO);
    (void)remove(path);
    (void)remove(folder);
    fp8_bench_table_free(&t);
}

int main(void) {
    fp8_pool *pool = NULL;
    CHECK_STATUS(fp8_pool_create(&pool, 3), FP8_OK);
    test_shapes();
    test_normal(pool);
    test_rows("2,4,2,16,9,none", FP8_DTYPE_BF16, pool);
    test_rows("1,2,1,32/16,7/33,causal_br", FP8_DTYPE_E4M3, pool);
    test_rows("2,2,2,16,20,causal,bias", FP8_DTYPE_BF16, pool);
    test_table();
    fp8_pool_destroy(pool);
    return CHECK_DONE();
}
