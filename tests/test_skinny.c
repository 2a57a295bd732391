/* How quant/skinny.c cuts products: within shared memory and the cluster, every tile once. */
#include "quant/skinny.h"
#include "quant/skinny_wide.h"
#include "tests/check.h"

static void check_tile(int64_t m, int64_t n, int64_t k, int32_t sms, fp8_gemm_activation act) {
    const fp8_gemm g = {.m = m, .n = n, .k = k, .activation = act};
    const skinny_tile t = skinny_choose(&g, sms);
    const int64_t tiles = (n + t.rows - 1) / t.rows;
    const int64_t units = (k + SKINNY_BLOCK_K - 1) / SKINNY_BLOCK_K;
    const size_t room = (t.resident > 1 ? 113u : 227u) * 1024u;
    static char name[96];

    snprintf(name, sizeof name, "m=%lld n=%lld k=%lld sms=%d act=%d", (long long)m, (long long)n,
             (long long)k, sms, act);
    check_case = name;
    CHECK(t.tokens >= m && (t.tokens == 8 || t.tokens / 2 < m));
    CHECK(t.splits >= 1 && t.splits <= SKINNY_MAX_SPLITS && t.splits <= units);
    CHECK(t.stages >= 3 && t.stages <= SKINNY_MAX_STAGES);
    CHECK(skinny_shared_bytes(&t) <= room);
    CHECK(t.clusters >= 1 && t.clusters <= tiles && (t.splits == 1 || t.clusters == tiles));
    CHECK(t.rows >= SKINNY_MIN_ROWS && t.rows <= SKINNY_ROWS && t.rows % SKINNY_ROW_STEP == 0);
    CHECK(t.lead >= 0 && t.ahead >= 0 && t.gated == fp8_gemm_is_gated(act));
    CHECK(t.bound >= 0 && t.bound <= t.stages && (!t.gated || t.splits == 1));
}

static void test_all(void) {
    static const int64_t sizes[] = {1, 127, 128, 129, 3072, 4096, 6144, 12288, 24576, 28672,
                                    49152, 1 << 20};
    static const int32_t sms[] = {1, 114, 132, 144};
    enum { N = sizeof sizes / sizeof *sizes };

    for (int64_t m = 1; m <= SKINNY_MAX_TOKENS; m++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                check_tile(m, sizes[i], sizes[j], sms[(i + j) % 4], FP8_GEMM_IDENTITY);
                if (m <= SKINNY_GATED_TOKENS)
                    check_tile(m, sizes[i], sizes[j], sms[(i + j) % 4], FP8_GEMM_SWIGLU);
            }
}

/* The Linears of Gemma 7B on 132 multiprocessors. */
static void test_known(void) {
    static const struct {
        const char *name;
        int64_t m, n, k;
        int32_t splits, clusters, lead;
    } rows[] = {{"qkv", 1, 12288, 3072, 2, 110, 2},
                {"o", 16, 3072, 4096, 4, 24, 4},
                {"gate, up", 32, 49152, 3072, 1, 256, SKINNY_RELEASE_AT_START},
                {"gate, up of Llama 8B", 8, 28672, 4096, 1, 256, SKINNY_RELEASE_AT_START},
                {"gate, up, 128 tokens", 128, 49152, 3072, 1, 132, 8},
                {"down", 32, 3072, 24576, 8, 24, 2},
                {"down of Llama 8B", 16, 4096, 14336, 6, 32, 6},
                {"o of Llama 8B", 4, 4096, 4096, 6, 32, SKINNY_RELEASE_AT_START},
                {"down of Llama 8B, 32 tokens", 17, 4096, 14336, 4, 52, 8},
                {"gate, up of Llama 8B, 32 tokens", 32, 28672, 4096, 1, 256, 16}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const fp8_gemm g = {.m = rows[i].m, .n = rows[i].n, .k = rows[i].k};
        const skinny_tile t = skinny_choose(&g, 132);
        check_case = rows[i].name;
        CHECK(t.splits == rows[i].splits);
        CHECK(t.clusters == rows[i].clusters);
        CHECK(t.lead == rows[i].lead);
    }
}

static int pays(int64_t m, int64_t n, int64_t k, const void *residual) {
    const fp8_gemm g = {.m = m, .n = n, .k = k, .d_dtype = FP8_DTYPE_BF16, .residual = residual};
    return skinny_pays(&g);
}

static int gated_pays(int64_t m, int64_t n, int64_t k) {
    const fp8_gemm g = {.m = m, .n = n, .k = k, .d_dtype = FP8_DTYPE_E4M3,
                        .activation = FP8_GEMM_SWIGLU};
    return skinny_pays(&g);
}

static void test_pays(void) {
    check_case = "pays";
    CHECK(pays(1, 3072, 4096, NULL) && pays(32, 28672, 4096, NULL));
    CHECK(pays(64, 28672, 4096, NULL) && !pays(1, 1024, 1024, NULL));
    CHECK(pays(64, 6144, 4096, NULL) && pays(33, 4096, 4096, NULL));
    CHECK(pays(33, 3072, 3072, NULL) && !pays(32, 3072, 3072, NULL));
    CHECK(pays(64, 256000, 3072, NULL) && !pays(65, 256000, 3072, NULL));
    CHECK(pays(32, 4096, 4096, &check_case) && pays(33, 4096, 4096, &check_case));
    CHECK(pays(64, 3072, 24576, &check_case) && !pays(65, 3072, 24576, &check_case));
    CHECK(gated_pays(64, 49152, 3072) && gated_pays(64, 28672, 4096));
    CHECK(gated_pays(1, 49152, 3072) && !gated_pays(65, 49152, 3072));
    CHECK(gated_pays(64, 16384, 3072) && !gated_pays(64, 4096, 2048));
    CHECK(gated_pays(33, 37888, 3584)); /* by 80 rows */
    CHECK(gated_pays(32, 17408, 4096) && !gated_pays(33, 17408, 4096)); /* a round too empty */
    CHECK(!gated_pays(32, 49154, 3072)); /* for wide tiles */
}

/* Who serves from 33 to 64 tokens, and by what cut where none was measured. */
static void test_more(void) {
    static const struct {
        const char *name;
        int64_t m, n, k;
        int is_short;
        int32_t rows, splits, clusters;
    } rows[] = {{"Gemma q k v", 64, 12288, 3072, 0, 112, 1, 110},
                {"Llama q k v", 33, 6144, 4096, 1, 96, 3, 0},
                {"Gemma down", 64, 3072, 24576, 1, 128, 4, 0},
                {"Qwen2 q k v", 64, 4608, 3584, 1, 96, 4, 0},
                {"Qwen2 down", 40, 3584, 18944, 1, 128, 4, 0},
                {"a down that was not measured", 64, 5120, 20480, 1, 128, 3, 0},
                {"Qwen2 gate, up", 64, 37888, 3584, 0, 96, 1, 132},
                {"an output layer", 64, 256000, 3072, 0, 128, 1, 125}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const fp8_gemm g = {.m = rows[i].m, .n = rows[i].n, .k = rows[i].k};
        const skinny_tile t = skinny_choose(&g, 132);
        const wide_tile w = wide_choose(&g, 132);
        check_case = rows[i].name;
        CHECK(skinny_is_short(&g) == rows[i].is_short);
        CHECK((rows[i].is_short ? w.rows : t.rows) == rows[i].rows);
        CHECK((rows[i].is_short ? w.splits : t.splits) == rows[i].splits);
        CHECK(rows[i].is_short || (t.clusters == rows[i].clusters && t.resident == 1));
    }
}

/* Wide tiles: what is compiled, within shared memory, with room for the sums. */
static void check_wide(const fp8_gemm *g, int32_t sms) {
    static const int32_t few[] = {96, 112, 128, 192, 224}, many[] = {96, 112};
    const wide_tile t = wide_choose(g, sms);
    const int64_t units = (g->k + WIDE_BLOCK_K - 1) / WIDE_BLOCK_K;
    static char name[96];
    int compiled = 0;

    snprintf(name, sizeof name, "wide m=%lld n=%lld k=%lld sms=%d act=%d", (long long)g->m,
             (long long)g->n, (long long)g->k, sms, g->activation);
    check_case = name;
    for (int i = 0; i < (g->m > 64 ? 2 : 5); i++) compiled += (g->m > 64 ? many : few)[i] == t.rows;
    CHECK(compiled == 1 && t.tokens == (g->m > 64 ? 128 : 64));
    CHECK(t.splits >= 1 && t.splits <= WIDE_MAX_SPLITS && t.splits <= units);
    CHECK(t.x_stages >= 1 && t.x_stages <= t.stages && t.stages >= 2);
    CHECK(t.stages <= WIDE_MAX_STAGES && t.lead >= 0);
    CHECK(wide_shared_bytes(&t) <= (t.resident > 1 ? 113u : 227u) * 1024u);
    CHECK(wide_sums_bytes(&t) <= wide_ring_bytes(&t));
    if (fp8_gemm_is_gated(g->activation)) CHECK(t.splits == 1 && wide_gates(&t));
}

static void test_wide(void) {
    static const int64_t sizes[] = {2, 128, 130, 3072, 4096, 6144, 14336, 24576, 28672, 49152};
    static const int32_t sms[] = {1, 114, 132, 144};
    enum { N = sizeof sizes / sizeof *sizes };

    for (int64_t m = 1; m <= WIDE_MAX_TOKENS; m += 7)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++)
                for (int act = 0; act <= FP8_GEMM_GEGLU_TANH; act++) {
                    const fp8_gemm g = {.m = m, .n = sizes[i], .k = sizes[j],
                                        .activation = (fp8_gemm_activation)act};
                    check_wide(&g, sms[(i + j + act) % 4]);
                }
}

int main(void) {
    test_all();
    test_pays();
    test_more();
    test_wide();
    test_known();
    return CHECK_DONE();
}
