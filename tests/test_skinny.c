/* How quant/skinny.c cuts products: within shared memory and the cluster, every tile once. */
#include "quant/skinny.h"
#include "tests/check.h"

static void check_tile(int64_t m, int64_t n, int64_t k, int32_t sms) {
    const skinny_tile t = skinny_choose(m, n, k, sms);
    const int64_t tiles = (n + t.rows - 1) / t.rows;
    const int64_t units = (k + SKINNY_BLOCK_K - 1) / SKINNY_BLOCK_K;
    const size_t room = (t.resident > 1 ? 113u : 227u) * 1024u;
    static char name[96];

    snprintf(name, sizeof name, "m=%lld n=%lld k=%lld sms=%d", (long long)m, (long long)n,
             (long long)k, sms);
    check_case = name;
    CHECK(t.tokens >= m && (t.tokens == 8 || t.tokens / 2 < m));
    CHECK(t.splits >= 1 && t.splits <= SKINNY_MAX_SPLITS && t.splits <= units);
    CHECK(t.stages >= 3 && t.stages <= SKINNY_MAX_STAGES);
    CHECK(skinny_shared_bytes(&t) <= room);
    CHECK(t.clusters >= 1 && t.clusters <= tiles && (t.splits == 1 || t.clusters == tiles));
    CHECK(t.rows >= SKINNY_MIN_ROWS && t.rows <= SKINNY_ROWS && t.rows % SKINNY_ROW_STEP == 0);
    CHECK(t.lead >= 0 && t.ahead >= 0);
}

static void test_all(void) {
    static const int64_t sizes[] = {1, 127, 128, 129, 3072, 4096, 6144, 12288, 24576, 28672,
                                    49152, 1 << 20};
    static const int32_t sms[] = {1, 114, 132, 144};
    enum { N = sizeof sizes / sizeof *sizes };

    for (int64_t m = 1; m <= SKINNY_MAX_TOKENS; m++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) check_tile(m, sizes[i], sizes[j], sms[(i + j) % 4]);
}

/* The Linears of Gemma 7B on 132 multiprocessors. */
static void test_known(void) {
    static const struct {
        const char *name;
        int64_t m, n, k;
        int32_t splits, clusters, lead;
    } rows[] = {{"qkv", 1, 12288, 3072, 1, 128, 8},
                {"o", 16, 3072, 4096, 4, 32, SKINNY_RELEASE_AT_START},
                {"gate, up", 32, 49152, 3072, 1, 264, 8},
                {"gate, up of Llama 8B", 8, 28672, 4096, 1, 256, 0},
                {"gate, up, 128 tokens", 128, 49152, 3072, 1, 132, 8},
                {"down", 32, 3072, 24576, 4, 24, 4}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const skinny_tile t = skinny_choose(rows[i].m, rows[i].n, rows[i].k, 132);
        check_case = rows[i].name;
        CHECK(t.splits == rows[i].splits);
        CHECK(t.clusters == rows[i].clusters);
        CHECK(t.lead == rows[i].lead);
    }
}

static void test_pays(void) {
    check_case = "pays";
    CHECK(skinny_pays(1, 3072, 4096) && skinny_pays(32, 28672, 4096));
    CHECK(!skinny_pays(33, 28672, 4096) && !skinny_pays(1, 1024, 1024));
    CHECK(skinny_pays(64, 256000, 3072) && !skinny_pays(65, 256000, 3072));
}

int main(void) {
    test_all();
    test_pays();
    test_known();
    return CHECK_DONE();
}
