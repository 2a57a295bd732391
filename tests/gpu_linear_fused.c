/* fp8_linear_apply on CUDA: every scaling, what is fused; weights in the caller's memory; tuning;
 * a captured graph with another x in it. */
#include "core/graph.h"
#include "quant/gemm_tune.h"
#include "tests/linear_fused.h"

static fp8_device *gpu;

static int serves(const linear_case *c) {
    return c->scaling != BLOCK || fp8_device_capability(gpu) == 90;
}

static fp8_status captured(const fp8_linear *l, const fp8_tensor *y, const fp8_tensor *x,
                           void *workspace, size_t bytes, fp8_graph **graph) {
    fp8_status st;
    CHECK_STATUS(fp8_graph_begin(gpu), FP8_OK);
    st = fp8_linear_apply(l, y, x, NULL, workspace, bytes);
    CHECK_STATUS(fp8_graph_end(gpu, graph), FP8_OK);
    return st;
}

/* The weights are the caller's, the products tuned, the forward in a graph. */
static void test_graph(const linear_case *c) {
    static linear_data t;
    static uint16_t y_raw[MAX_TOKENS * MAX_OUT];
    linear_buffers b = {0};
    fp8_linear_spec spec;
    fp8_linear *l = NULL;
    fp8_graph *graph = NULL;
    void *weight = NULL, *descales = NULL, *x2;
    fp8_tensor x, y;
    size_t bytes;

    if (!serves(c)) return;
    check_case = c->name;
    linear_prepare(&t, c);
    spec = linear_spec_of(&t, c);
    CHECK_STATUS(fp8_device_alloc(gpu, &weight, sizeof t.w_raw), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, weight, t.w_raw, sizeof t.w_raw), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &descales, sizeof t.descale), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, descales, t.descale, sizeof t.descale), FP8_OK);
    spec.weight.data = weight, spec.weight.place = FP8_PLACE_CUDA, spec.weight_descale = descales;
    spec.borrow_weight = 1;
    CHECK_STATUS(fp8_linear_create(&l, gpu, &spec), FP8_OK);
    bytes = fp8_linear_workspace_size(l, MAX_TOKENS);
    CHECK_STATUS(fp8_device_alloc(gpu, &b.workspace, bytes), FP8_OK);
    b.x = linear_place(gpu, c->compute, t.residual, 17 * c->in); /* other numbers */
    x2 = linear_place(gpu, c->compute, t.x, 17 * c->in);
    CHECK_STATUS(fp8_device_alloc(gpu, &b.y, sizeof y_raw), FP8_OK);
    x = fp8_tensor_view(b.x, c->compute, FP8_PLACE_CUDA, 17, c->in);
    y = fp8_tensor_view(b.y, c->y, FP8_PLACE_CUDA, 17, c->out);
    CHECK_STATUS(fp8_linear_tune(l, NULL, 0, MAX_TOKENS, c->y, NULL, b.workspace, bytes), FP8_OK);
    CHECK(fp8_gemm_cache_count() > 0);
    CHECK_STATUS(fp8_linear_apply(l, &y, &x, NULL, b.workspace, bytes), FP8_OK);
    CHECK_STATUS(captured(l, &y, &x, b.workspace, bytes, &graph), FP8_OK);
    CHECK_STATUS(fp8_device_copy(gpu, b.x, x2, (size_t)(17 * c->in * 2)), FP8_OK);
    if (graph) CHECK_STATUS(fp8_graph_launch(graph), FP8_OK);
    CHECK_STATUS(fp8_device_download(gpu, y_raw, b.y, (size_t)(17 * c->out * 2)), FP8_OK);
    linear_see_x(&t, c, 17);
    for (int64_t i = 0; i < 17 * c->out; i++)
        t.want[i] = linear_value(&t, c, i / c->out, i % c->out);
    linear_check(&t, c, y_raw, 17 * c->out, 1, 1);
    fp8_graph_destroy(graph);
    fp8_linear_destroy(l);
    fp8_gemm_cache_clear();
    fp8_device_free(gpu, weight);
    fp8_device_free(gpu, descales);
    fp8_device_free(gpu, x2);
    linear_free(gpu, &b);
}

int main(void) {
    static const linear_case graphs[] = {
        {"graph, static", 256, 128, W8, TENSOR, STATIC, B16, B16, 1, 0, 0, 0},
        {"graph, token", 256, 128, W8, CHANNEL, TOKEN, B16, B16, 1, 0, 0, 0},
        {"graph, current", 256, 128, W8, TENSOR, CURRENT, B16, B16, 0, 0, 0, 0},
        {"graph, blocks", 256, 128, W8, BLOCK, GROUPS, B16, B16, 0, 0, 0, 0}};
    const char *fixture = check_data("fixtures/llama/model.safetensors");
    gpu = check_gpu();
    if (!gpu) return TEST_SKIP;
    (void)unsetenv("FP8_GEMM_CACHE");
    for (size_t i = 0; i < sizeof linear_cases / sizeof *linear_cases; i++)
        if (serves(&linear_cases[i])) linear_test(gpu, &linear_cases[i]);
    if (fixture) linear_test_fixture(gpu, fixture, fp8_device_capability(gpu) == 90);
    for (size_t i = 0; fp8_device_capability(gpu) >= 89 && i < sizeof graphs / sizeof *graphs; i++)
        test_graph(&graphs[i]);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
