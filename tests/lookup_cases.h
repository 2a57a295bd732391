/* tests/lookup_cases.h - embedding, top k, delayed scaling and the turned cast against obvious
 * loops: the cases that test_lookup.c runs on the CPU and gpu_produce.c on CUDA. */
#ifndef FP8_TESTS_LOOKUP_CASES_H
#define FP8_TESTS_LOOKUP_CASES_H
#include "tests/produce_cases.h"

/* ---- embedding: bit for bit ------------------------------------------------------------------ */

static inline void run_embed(fp8_device *d, fp8_dtype type, int64_t tokens, int64_t cols,
                             float multiplier, int positioned, size_t skew) {
    enum { VOCAB = 11, POSITIONS = 5 };
    const size_t real = fp8_dtype_size(type), row = (size_t)cols * real;
    twin table = twin_make(d, VOCAB * row, skew * real), pos = twin_make(d, POSITIONS * row, 0);
    twin ids = twin_make(d, (size_t)tokens * 4, 0), at = twin_make(d, (size_t)tokens * 4, 0);
    twin x = twin_make(d, (size_t)tokens * row, skew * real);
    int32_t *id = (int32_t *)(void *)ids.host, *position = (int32_t *)(void *)at.host;
    const fp8_embedding e = {type, tokens, cols, table.dev, (int32_t *)(void *)ids.dev, multiplier,
                             positioned ? pos.dev : NULL, (int32_t *)(void *)at.dev};
    int bad = 0;

    fill_real(&table, type, VOCAB, cols, cols, 1, 51);
    fill_real(&pos, type, POSITIONS, cols, cols, 0, 52);
    for (int64_t i = 0; i < tokens; i++) {
        id[i] = (int32_t)(i * 5 % VOCAB);
        position[i] = (int32_t)(i % POSITIONS);
    }
    twin_up(&ids), twin_up(&at);
    CHECK_STATUS(fp8_embed(d, x.dev, &e, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&x);
    for (int64_t i = 0; i < tokens * cols; i++) {
        const int64_t c = i % cols, from = id[i / cols] * cols + c;
        float v = real_at(table.host, type, from) * multiplier;
        const float got = real_at(x.host, type, i);
        if (positioned)
            v = round_real(v, type) + real_at(pos.host, type, position[i / cols] * cols + c);
        v = round_real(v, type);
        bad += isnan(v) ? !isnan(got) : fp8_f32_bits(got) != fp8_f32_bits(v);
        if (multiplier == 1.0f && !positioned)
            bad += memcmp(x.host + (size_t)i * real, table.host + (size_t)from * real, real) != 0;
    }
    CHECK(bad == 0);
    twin_free(&table), twin_free(&pos), twin_free(&ids), twin_free(&at), twin_free(&x);
}

/* ---- top k ----------------------------------------------------------------------------------- */

typedef enum logits_kind { LOGITS_NORMAL, LOGITS_TIES, LOGITS_RISING, LOGITS_HOSTILE } logits_kind;

/* Does (a, i) stand before (b, j)? */
static inline int before(float a, int64_t i, float b, int64_t j) {
    return a > b || (a == b && i < j);
}

/* By selection: k times the best that stands after the last one. */
static inline int check_top(const float *x, int64_t n, const int32_t *ids, const float *values,
                            int32_t k) {
    float last = INFINITY;
    int64_t last_id = -1;

    for (int32_t i = 0; i < k; i++) {
        int64_t best = -1;
        for (int64_t c = 0; c < n; c++)
            if ((before(last, last_id, x[c], c)) && (best < 0 || before(x[c], c, x[best], best)))
                best = c;
        if (ids[i] != best || (values && values[i] != x[best])) {
            fprintf(stderr, "[%s] rank %d of %d in %lld: got %d (%g), want %lld (%g)\n",
                    check_case, i, k, (long long)n, ids[i], values ? (double)values[i] : 0.0,
                    (long long)best, (double)x[best]);
            return 0;
        }
        last = x[best];
        last_id = best;
    }
    return 1;
}

static inline void run_top(fp8_device *d, fp8_dtype type, logits_kind kind, int64_t rows,
                           int64_t vocab, int64_t gap, int32_t k, size_t skew) {
    static const float odd[] = {NAN, -INFINITY, -0.0f, 0.0f, INFINITY, -NAN, 1e-40f, -3e38f};
    const size_t real = fp8_dtype_size(type);
    const int64_t stride = vocab + gap;
    twin x = twin_make(d, (size_t)(rows * stride) * real, skew * real);
    twin ids = twin_make(d, (size_t)(rows * k) * 4, 0);
    twin values = twin_make(d, (size_t)(rows * k) * 4, 0);
    float *row = calloc((size_t)vocab + 1, sizeof *row);
    uint64_t seed = 61;
    int good = 1;

    for (int64_t i = 0; i < rows * stride; i++) {
        float v = check_normal(&seed) * 4;
        if (kind == LOGITS_TIES) v = (float)(check_random(&seed) % 5);
        if (kind == LOGITS_RISING) v = (float)(i % stride) * 0x1p-10f;
        if (kind == LOGITS_HOSTILE) v = odd[check_random(&seed) % (i / stride % 2 ? 8 : 2)];
        put_real(x.host, type, i, i % stride < vocab ? v : INFINITY);
    }
    twin_up(&x);
    CHECK_STATUS(fp8_top_k(d, (int32_t *)(void *)ids.dev,
                           k % 2 ? (float *)(void *)values.dev : NULL, x.dev, type, rows, vocab,
                           gap ? stride : 0, k, FP8_LAUNCH_ORDERED), FP8_OK);
    twin_down(&ids), twin_down(&values);
    for (int64_t r = 0; r < rows && good; r++) {
        for (int64_t c = 0; c < vocab; c++) {
            const float v = real_at(x.host, type, r * stride + c);
            row[c] = isnan(v) ? -INFINITY : v + 0.0f;
        }
        good = check_top(row, vocab, (int32_t *)(void *)ids.host + r * k,
                         k % 2 ? (float *)(void *)values.host + r * k : NULL, k);
    }
    CHECK(good);
    free(row);
    twin_free(&x), twin_free(&ids), twin_free(&values);
}

static inline void run_all_tops(fp8_device *d) {
    static const struct {
        int64_t rows, vocab;
        int32_t k;
    } tops[] = {{0, 5, 1},    {1, 1, 1},     {3, 7, 7},      {2, 256, 256}, {5, 1000, 1},
                {4, 1023, 5}, {3, 4096, 50}, {2, 32003, 64}, {1, 50257, 1}, {2, 20000, 255}};
    for (size_t i = 0; i < sizeof tops / sizeof *tops; i++)
        for (int kind = 0; kind < 4; kind++)
            for (int t = 0; t < NUM_PRODUCE_TYPES; t++) {
                check_case = "top k";
                run_top(d, produce_types[t], (logits_kind)kind, tops[i].rows, tops[i].vocab,
                        kind % 2 * 3, tops[i].k, (size_t)(t % 2));
            }
}

/* ---- delayed scaling ------------------------------------------------------------------------- */

static inline void run_delayed(fp8_device *d, int64_t count, int64_t length, fp8_recipe recipe,
                               int steps) {
    twin slots = twin_make(d, (size_t)count * sizeof(fp8_amax_slot), 0);
    twin history = twin_make(d, (size_t)(count * length) * 4, 0);
    twin seen = twin_make(d, (size_t)count * 8, 0);
    twin scale = twin_make(d, (size_t)count * 4, 0), descale = twin_make(d, (size_t)count * 4, 0);
    float *past = calloc((size_t)(count * steps) + 1, sizeof *past); /* [count, steps] */
    const fp8_delayed state = {count, length, (fp8_amax_slot *)(void *)slots.dev,
                               (float *)(void *)history.dev, (int64_t *)(void *)seen.dev,
                               (float *)(void *)scale.dev, (float *)(void *)descale.dev};
    float *want = calloc((size_t)count * 2 + 1, sizeof *want);
    fp8_recipe rule = recipe;
    uint64_t seed = 71;

    if (rule.history_len > length) rule.history_len = length;
    for (int64_t i = 0; i < count; i++) {
        ((float *)(void *)scale.host)[i] = ((float *)(void *)descale.host)[i] = 1.0f;
        want[2 * i] = want[2 * i + 1] = 1.0f;
    }
    twin_up(&history), twin_up(&seen), twin_up(&scale), twin_up(&descale);
    for (int s = 0; s < steps; s++) {
        fp8_amax_slot *slot = (fp8_amax_slot *)(void *)slots.host;
        for (int64_t i = 0; i < count; i++) {
            const float amax = check_random(&seed) % 3 ? fabsf(check_normal(&seed)) : 0;
            slot[i] = (fp8_amax_slot){amax, amax / 2, (uint32_t)s, 0};
            past[i * steps + s] = amax;
        }
        twin_up(&slots);
        CHECK_STATUS(fp8_delayed_update(d, &state, &recipe, FP8_DTYPE_E4M3, FP8_LAUNCH_ORDERED),
                     FP8_OK);
        twin_down(&slots), twin_down(&history), twin_down(&seen), twin_down(&scale);
        twin_down(&descale);
        for (int64_t i = 0; i < count; i++) {
            fp8_recipe_scale(&rule, FP8_DTYPE_E4M3,
                             fp8_recipe_amax(&rule, past + i * steps, s + 1), &want[2 * i],
                             &want[2 * i + 1]);
            CHECK(((float *)(void *)scale.host)[i] == want[2 * i]);
            CHECK(((float *)(void *)descale.host)[i] == want[2 * i + 1]);
            CHECK(((float *)(void *)history.host)[i * length + s % length] ==
                  past[i * steps + s]);
            CHECK(((int64_t *)(void *)seen.host)[i] == s + 1);
            CHECK(slot[i].amax == 0 && slot[i].amax_without_first == 0);
            CHECK(slot[i].nonfinite == (uint32_t)s);
        }
    }
    free(past), free(want);
    twin_free(&slots), twin_free(&history), twin_free(&seen), twin_free(&scale);
    twin_free(&descale);
}

static inline void run_all_delayed(fp8_device *d) {
    check_case = "delayed";
    run_delayed(d, 0, 4, (fp8_recipe)FP8_RECIPE_DEFAULT, 1);
    run_delayed(d, 1, 1, (fp8_recipe)FP8_RECIPE_DEFAULT, 4);
    run_delayed(d, 33, 16, (fp8_recipe)FP8_RECIPE_DEFAULT, 40);
    run_delayed(d, 300, 5, (fp8_recipe){FP8_AMAX_MOST_RECENT, 1, 3}, 13);
    run_delayed(d, 7, 100, (fp8_recipe){FP8_AMAX_MAX, 2, 3}, 9);
    run_delayed(d, 5, 70, (fp8_recipe){FP8_AMAX_MOST_RECENT, 0, 1024}, 150);
}

/* ---- the turned cast ------------------------------------------------------------------------- */

static inline void run_transposed(fp8_device *d, fp8_dtype type, fp8_dtype code, int64_t rows,
                                  int64_t cols, int both, size_t skew) {
    const size_t real = fp8_dtype_size(type), n = (size_t)(rows * cols);
    twin x = twin_make(d, n * real, skew * real), turned = twin_make(d, n, skew);
    twin codes = twin_make(d, n, skew), scale = twin_make(d, 4, 0);
    int bad = 0;

    memcpy(scale.host, &(float){-3.5f}, 4);
    twin_up(&scale);
    fill_real(&x, type, rows, cols, cols, 1, 81);
    CHECK_STATUS(fp8_quantize_transposed(d, turned.dev, both ? codes.dev : NULL, code, x.dev, type,
                                         rows, cols, (float *)(void *)scale.dev), FP8_OK);
    twin_down(&turned), twin_down(&codes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const float v = real_at(x.host, type, r * cols + c);
            const uint8_t magnitude = fp8_from_f32(code, fabsf(v * -3.5f)) & 0x7fu;
            const uint8_t want = (uint8_t)(magnitude | (signbit(v) ? 0 : 0x80));
            bad += turned.host[c * rows + r] != want;
            if (both) bad += codes.host[r * cols + c] != want;
        }
    CHECK(bad == 0);
    twin_free(&x), twin_free(&turned), twin_free(&codes), twin_free(&scale);
}

static inline void run_all_transposed(fp8_device *d) {
    static const int64_t sizes[][2] = {{0, 3},     {1, 1},     {16, 16},   {17, 130}, {128, 128},
                                       {256, 384}, {127, 129}, {144, 272}, {3, 500},  {500, 4}};
    check_case = "transposed";
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int t = 0; t < NUM_PRODUCE_TYPES; t++)
            for (int both = 0; both < 2; both++)
                run_transposed(d, produce_types[t], both ? FP8_DTYPE_E5M2 : FP8_DTYPE_E4M3,
                               sizes[i][0], sizes[i][1], both, (size_t)(i + (size_t)t) % 2);
}

static inline void run_all_embeds(fp8_device *d) {
    static const int64_t sizes[][2] = {{0, 8}, {1, 1}, {5, 17}, {64, 512}, {3, 513}, {9, 4096}};
    check_case = "embed";
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int t = 0; t < NUM_PRODUCE_TYPES; t++)
            for (int p = 0; p < 4; p++)
                run_embed(d, produce_types[t], sizes[i][0], sizes[i][1], p % 2 ? 8.9375f : 1.0f,
                          p / 2, (size_t)(i % 2));
}
#endif
