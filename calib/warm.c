#include "calib/warm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/log.h"
#include "quant/quant.h"

/* Products of Linears from which on timing pays: 0.3 s of an H200. */
static const double worth_flops = 2e14;

struct fp8_warm {
    pthread_t thread;
    fp8_model_config config;
    int64_t tokens;
    char spec[32]; /* of the device */
    char failure[512];
};

typedef struct shape {
    int64_t n, k;
} shape;

enum { NUM_SHAPES = 5 };

/* q; k and v; o; gate and up; down. */
static void list_shapes(shape out[NUM_SHAPES], const fp8_model_config *c) {
    const int64_t q = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    const shape all[NUM_SHAPES] = {{q, c->hidden_size},
                                   {kv, c->hidden_size},
                                   {c->hidden_size, q},
                                   {c->intermediate_size, c->hidden_size},
                                   {c->hidden_size, c->intermediate_size}};
    for (int i = 0; i < NUM_SHAPES; i++) out[i] = all[i];
}

static fp8_gemm product_of(shape s, int64_t tokens) {
    return (fp8_gemm){.m = tokens, .n = s.n, .k = s.k, .lda = s.k, .ldb = s.k, .ldd = s.n,
                      .a_dtype = FP8_DTYPE_BF16, .b_dtype = FP8_DTYPE_BF16,
                      .d_dtype = FP8_DTYPE_BF16, .alpha = 1};
}

static fp8_status tune(const fp8_warm *w, fp8_device *d) {
    shape shapes[NUM_SHAPES];
    size_t bytes = 0;
    void *workspace = NULL;
    fp8_status st = FP8_OK;

    list_shapes(shapes, &w->config);
    for (int i = 0; i < NUM_SHAPES; i++) {
        const fp8_gemm g = product_of(shapes[i], w->tokens);
        const size_t wanted = fp8_gemm_workspace_size(d, &g);
        if (wanted > bytes) bytes = wanted;
    }
    FP8_TRY(fp8_device_alloc(d, &workspace, bytes));
    for (int i = 0; i < NUM_SHAPES; i++) {
        const fp8_gemm g = product_of(shapes[i], w->tokens);
        if (i == 1 && shapes[1].n == shapes[0].n) continue;
        FP8_TRY(fp8_gemm_tune_same_bits(d, &g, workspace, bytes, NULL));
    }
done:
    fp8_device_free(d, workspace);
    return st;
}

static void *run(void *ctx) {
    fp8_warm *w = ctx;
    fp8_device *d = NULL;
    fp8_status st;

    FP8_TRY(fp8_device_create(&d, w->spec, 1));
    FP8_TRY(tune(w, d));
done:
    if (st != FP8_OK) snprintf(w->failure, sizeof w->failure, "%s", fp8_last_message());
    fp8_device_destroy(d);
    return NULL;
}

static double flops_of(const fp8_model_config *c, int64_t tokens) {
    shape shapes[NUM_SHAPES];
    double elements = 0;

    list_shapes(shapes, c);
    for (int i = 0; i < NUM_SHAPES; i++) elements += (double)shapes[i].n * (double)shapes[i].k;
    return 2 * elements * (double)c->num_layers * (double)tokens;
}

fp8_status fp8_warm_start(fp8_warm **out, fp8_device *d, const fp8_model_config *c, int64_t tokens,
                          int64_t all) {
    fp8_warm *w = NULL;

    *out = NULL;
    if (fp8_device_place(d) != FP8_PLACE_CUDA || flops_of(c, all) < worth_flops) return FP8_OK;
    w = calloc(1, sizeof *w);
    if (!w) return FP8_FAIL(FP8_ENOMEM, "a thread that warms up");
    w->config = *c;
    w->tokens = tokens < all ? tokens : all;
    snprintf(w->spec, sizeof w->spec, "cuda:%d", (int)fp8_device_index(d));
    if (pthread_create(&w->thread, NULL, run, w) != 0) {
        free(w);
        return FP8_FAIL(FP8_ENOMEM, "a thread that warms up");
    }
    *out = w;
    return FP8_OK;
}

void fp8_warm_end(fp8_warm *w) {
    if (!w) return;
    pthread_join(w->thread, NULL);
    if (w->failure[0])
        fp8_log(FP8_LOG_WARNING, "cuBLASLt's first guesses are used: %s", w->failure);
    free(w);
}
