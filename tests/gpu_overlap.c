/* Layers of few tokens whose kernels start before those before them have ended: norms, casts and
 * activations let the next product fill its ring before they wait themselves. From the same stream
 * the same bytes as one kernel after the other, in every replay of a graph. */
#include <string.h>

#include "core/graph.h"
#include "core/half.h"
#include "quant/quant.h"
#include "tests/check.h"

enum { LINEARS = 4, LAYERS = 6, REPLAYS = 30, MAX_TOKENS = 32, PERIOD = 4194301 };

static fp8_device *gpu;

typedef struct layer_case {
    const char *name;
    int64_t tokens, n[LINEARS], k[LINEARS]; /* q k v, o, gate and up, down */
    int by_token, at_store;                 /* a scale a token; SwiGLU at the store */
} layer_case;

static const layer_case cases[] = {
    {"1 token", 1, {3072, 2048, 8192, 2048}, {2048, 2048, 2048, 4096}, 0, 1},
    {"8 tokens, SwiGLU apart", 8, {3072, 2048, 8192, 2048}, {2048, 2048, 2048, 4096}, 0, 0},
    {"5 tokens, a token's scales", 5, {2048, 1536, 6144, 1536}, {1536, 1536, 1536, 3072}, 1, 0},
    {"32 tokens", 32, {3072, 2048, 8192, 2048}, {2048, 2048, 2048, 4096}, 0, 1},
    {"sizes that were searched", 16, {6144, 4096, 28672, 4096}, {4096, 4096, 4096, 14336}, 0, 1},
};

typedef struct problem {
    const layer_case *c;
    uint8_t *weights, *codes, *inner; /* inner: what down reads */
    uint16_t *stream, *y, *norm_weight;
    float *scales; /* multiplier of codes, descales of x and W at 4 and 8; a token's from 16 on */
    size_t stream_bytes, weight_bytes;
} problem;

static void *room(size_t bytes) {
    void *p = NULL;
    CHECK_STATUS(fp8_device_alloc(gpu, &p, bytes), FP8_OK);
    return p;
}

static void upload_normal(uint16_t *to, int64_t count, float scale, float offset, uint64_t seed) {
    uint16_t *host = malloc((size_t)count * 2);
    for (int64_t i = 0; i < count; i++)
        host[i] = fp8_f32_to_bf16(offset + scale * check_normal(&seed));
    CHECK_STATUS(fp8_device_upload(gpu, to, host, (size_t)count * 2), FP8_OK);
    free(host);
}

static int64_t layer_codes(const layer_case *c) {
    int64_t sum = 0;
    for (int i = 0; i < LINEARS; i++) sum += c->n[i] * c->k[i];
    return sum;
}

static problem make(const layer_case *c) {
    float scales[16] = {[0] = 16.0f, [4] = 1.0f / 16.0f, [8] = 0.01f};
    problem p = {.c = c, .stream_bytes = (size_t)(c->tokens * c->k[0]) * 2};
    uint64_t seed = 7;
    uint8_t *host;

    p.weight_bytes = (size_t)layer_codes(c); /* every layer's begin a little further */
    host = malloc(p.weight_bytes + 4096 * LAYERS);
    for (size_t i = 0; i < p.weight_bytes + 4096 * LAYERS; i++)
        host[i] = i < PERIOD ? fp8_from_f32(FP8_DTYPE_E4M3, check_normal(&seed) * 3.0f)
                             : host[i - PERIOD];
    p.weights = room(p.weight_bytes + 4096 * LAYERS);
    CHECK_STATUS(fp8_device_upload(gpu, p.weights, host, p.weight_bytes + 4096 * LAYERS), FP8_OK);
    free(host);
    p.codes = room((size_t)(MAX_TOKENS * c->k[3]));
    p.inner = room((size_t)(MAX_TOKENS * c->k[3]));
    p.stream = room(p.stream_bytes);
    p.y = room((size_t)(c->tokens * c->n[2]) * 2);
    p.norm_weight = room((size_t)c->k[0] * 2);
    p.scales = room((16 + MAX_TOKENS) * sizeof(float));
    upload_normal(p.norm_weight, c->k[0], 0.2f, 1.0f, 5);
    CHECK_STATUS(fp8_device_upload(gpu, p.scales, scales, sizeof scales), FP8_OK);
    return p;
}

static void drop(problem *p) {
    void *all[] = {p->weights, p->codes, p->inner, p->stream, p->y, p->norm_weight, p->scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(gpu, all[i]);
}

/* What this Linear reads. */
static void make_input(const problem *p, int i, fp8_launch how) {
    const layer_case *c = p->c;
    const int64_t k = c->k[i];
    fp8_sink sink = {.codes = i == 3 ? p->inner : p->codes, .code = FP8_DTYPE_E4M3,
                     .scale = p->scales};
    const fp8_norm norm = {.kind = FP8_NORM_RMS, .eps = 1e-6f, .dtype = FP8_DTYPE_BF16,
                           .rows = c->tokens, .cols = k, .x = p->stream, .weight = p->norm_weight};
    const fp8_act act = {.act = FP8_ACT_SILU, .dtype = FP8_DTYPE_BF16, .rows = c->tokens,
                         .cols = k, .x = p->y, .up = p->y + k, .x_stride = 2 * k,
                         .up_stride = 2 * k};

    if (c->by_token) {
        sink.scaling = FP8_SINK_TOKEN;
        sink.descale = p->scales + 16;
    }
    if (i == 1)
        CHECK_STATUS(fp8_produce_cast(gpu, &sink, p->y, FP8_DTYPE_BF16, c->tokens, k, c->n[0],
                                      how), FP8_OK);
    else if (i == 3) {
        if (!c->at_store) CHECK_STATUS(fp8_produce_act(gpu, &sink, &act, how), FP8_OK);
    } else CHECK_STATUS(fp8_produce_norm(gpu, &sink, &norm, how), FP8_OK);
}

static void run_linear(const problem *p, int64_t layer, int i, fp8_launch how) {
    const layer_case *c = p->c;
    fp8_gemm g = {.m = c->tokens, .n = c->n[i], .k = c->k[i], .lda = c->k[i], .ldb = c->k[i],
                  .ldd = c->n[i], .a = i == 3 ? p->inner : p->codes,
                  .b = p->weights + 4096 * layer, .d = p->y, .a_dtype = FP8_DTYPE_E4M3,
                  .b_dtype = FP8_DTYPE_E4M3, .d_dtype = FP8_DTYPE_BF16, .alpha = 1.0f,
                  .a_descale = p->scales + (c->by_token ? 16 : 4), .b_descale = p->scales + 8,
                  .a_descale_count = c->by_token ? c->tokens : 1, .b_descale_count = 1,
                  .backend = FP8_GEMM_SKINNY, .launch = how};

    for (int j = 0; j < i; j++) g.b = (const uint8_t *)g.b + c->n[j] * c->k[j];
    if (i % 2) {
        g.d = p->stream;
        g.residual = p->stream;
        g.residual_dtype = FP8_DTYPE_BF16;
        g.ldr = g.n;
    } else if (i == 2 && c->at_store) {
        g.activation = FP8_GEMM_SWIGLU;
        g.d = p->inner;
        g.d_dtype = FP8_DTYPE_E4M3;
        g.d_scale = p->scales;
        g.ldd = g.n / 2;
    }
    CHECK_STATUS(fp8_gemm_run(gpu, &g, NULL, 0), FP8_OK);
}

static void run_layers(const problem *p, fp8_launch how) {
    for (int64_t layer = 0; layer < LAYERS; layer++)
        for (int i = 0; i < LINEARS; i++) {
            make_input(p, i, how);
            run_linear(p, layer, i, how);
        }
}

/* Streams that differ from replay to replay: what is read too soon is another one's. */
static void fill_stream(const problem *p, uint64_t replay) {
    upload_normal(p->stream, p->c->tokens * p->c->k[0], 1.0f, 0.0f, 100 + replay % 5);
}

static void test_case(const layer_case *c) {
    problem p = make(c);
    uint8_t *want[5], *got = malloc(p.stream_bytes);
    fp8_graph *graph = NULL;
    int64_t wrong = 0;

    check_case = c->name;
    for (uint64_t i = 0; i < 5; i++) {
        want[i] = malloc(p.stream_bytes);
        fill_stream(&p, i);
        run_layers(&p, FP8_LAUNCH_ORDERED);
        CHECK_STATUS(fp8_device_download(gpu, want[i], p.stream, p.stream_bytes), FP8_OK);
        CHECK(i == 0 || memcmp(want[i], want[i - 1], p.stream_bytes) != 0);
    }
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    run_layers(&p, FP8_LAUNCH_OVERLAP);
    CHECK_STATUS(fp8_graph_end(gpu, &graph), FP8_OK);
    for (uint64_t i = 0; i < REPLAYS; i++) {
        fill_stream(&p, i);
        CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
        CHECK_STATUS(fp8_device_download(gpu, got, p.stream, p.stream_bytes), FP8_OK);
        wrong += memcmp(got, want[i % 5], p.stream_bytes) != 0;
    }
    if (wrong > 0) fprintf(stderr, "[%s] %d of %d replays differ\n", c->name, (int)wrong, REPLAYS);
    CHECK(wrong == 0);
    for (int i = 0; i < 5; i++) free(want[i]);
    free(got);
    fp8_graph_destroy(graph);
    drop(&p);
}

int main(void) {
    gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) test_case(&cases[i]);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
