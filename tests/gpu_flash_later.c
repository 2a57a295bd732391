/* Codes that flash_wide.cu makes while it attends (attention/flash_later.cuh): against the formula
 * in double on sampled rows, and byte by byte against the same heads in plans so small that all
 * codes are made before. Skipped off sm_90. */
#include "attention/flash_state.h"
#include "flash_cases.h"

#define BF16 FP8_DTYPE_BF16
#define F16 FP8_DTYPE_F16
#define E4M3 FP8_DTYPE_E4M3

static int is_later(const fp8_attention_plan *p) {
    return p && ((const flash_state *)p->state)->later.groups > 0;
}

static int plans_later(fp8_device *gpu, const fp8_attention_options *all) {
    fp8_attention_options o = *all;
    fp8_attention_plan *plan = NULL;
    int later;
    o.backend = FP8_BACKEND_FLASH;
    CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_OK);
    later = is_later(plan);
    fp8_attention_plan_destroy(plan);
    return later;
}

/* ---- against the formula --------------------------------------------------------------------- */

/* Many queries a KV head, or (i % 3 == 0) few heads of many queries; by scales that are given or
 * come of the data, a tensor's, a head's, a sequence's. Under a mask, with 12 queries a KV head,
 * there is time enough only where it hides little. */
static void test_later(fp8_device *gpu, int i) {
    const int current = i / 2 % 2, alone = i % 8 == 7, longer = i % 3 == 0 && !alone;
    uint64_t seed = (uint64_t)i * 59 + 17;
    const int32_t heads = alone ? 72 : longer ? 12 : 24;
    fp8_attention_options o =
        base_options(heads, alone ? 24 : longer ? 12 : i % 3 == 1 ? 8 : 2, 128,
                     alone ? 1 : longer ? 2 : 3,
                     (longer ? 3100 : 1500) + sweep_below(&seed, 90),
                     (i % 3 == 2 ? 6144 : 4096) + sweep_below(&seed, 200), i % 5 == 3 ? F16 : BF16,
                     (fp8_dtype)SWEEP_PICK(&seed, BF16, F16, E4M3));
    o.want_lse = o.want_amax = 0;
    o.quantize = current ? FP8_QUANTIZE_CURRENT : FP8_QUANTIZE_GIVEN;
    o.quantize_p = 1;
    o.granularity = alone ? FP8_DESCALE_HEAD : (fp8_attention_granularity)((i / 4 + i) % 3);
    o.precision = i % 2 ? FP8_ATTENTION_FAST : FP8_ATTENTION_EXACT;
    if (i / 4 % 2) o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    o.padding = i / 4 == 1;
    if (!longer) flash_set_mask(&o, i / 3 % 5, &seed);
    check_case = "later";
    CHECK(plans_later(gpu, &o) || o.mask != FP8_MASK_NONE || o.window_left >= 0);
    fprintf(stderr, "later: case %d, %s scales, %d KV heads, mask %d: %s, relative L2 %.2e\n", i,
            current ? "current" : "given", o.num_kv_heads,
            longer ? 0 : i / 3 % 5, plans_later(gpu, &o) ? "made later" : "made before",
            check_options(gpu, &o, seed));
}

/* ---- byte by byte ---------------------------------------------------------------------------- */

/* Heads of a part: as many as make a wave of items, so that none is cut between blocks. */
enum { HEADS = 24, PARTS = 4, D = 128 };

typedef struct operands {
    int64_t tokens;
    void *q, *k, *v, *o, *descales; /* [tokens, HEADS, D] each, on the device */
    size_t bytes;                   /* of one */
} operands;

/* Normals out of a table, now and then times a thousand, or no number. */
static void *make_operand(fp8_device *gpu, size_t bytes, fp8_dtype dtype, uint64_t seed) {
    enum { TABLE = 1 << 14 };
    uint16_t table[TABLE], *host = malloc(bytes);
    void *device = NULL;

    if (!host) abort();
    for (int i = 0; i < TABLE; i++)
        sweep_store(table, dtype, i, check_normal(&seed) * (i % 997 ? 1.0f : 1000.0f));
    for (size_t i = 0; i < bytes / 2; i++) host[i] = table[check_random(&seed) % TABLE];
    sweep_store(host, dtype, 5 * D + 3, INFINITY);
    sweep_store(host, dtype, (7 * HEADS + 23) * D + 127, NAN);
    CHECK_STATUS(fp8_device_alloc(gpu, &device, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, device, host, bytes), FP8_OK);
    free(host);
    return device;
}

static void *at_head(void *x, int32_t head) { return (uint16_t *)x + head * D; }

/* Heads [first, first + heads) of all, O into its place. */
static void run_heads(fp8_device *gpu, const fp8_attention_options *all, const operands *x,
                      int32_t first, int32_t heads) {
    const fp8_strides rows = {x->tokens * HEADS * D, HEADS * D, D};
    fp8_attention_options o = *all;
    fp8_attention_plan *plan = NULL;
    fp8_attention_io io = {.o = at_head(x->o, first),
                           .q = at_head(x->q, first),
                           .k = at_head(x->k, first),
                           .v = at_head(x->v, first),
                           .q_descale = x->descales,
                           .k_descale = x->descales,
                           .v_descale = x->descales};
    void *workspace = NULL;
    size_t bytes;

    o.num_heads = o.num_kv_heads = heads;
    o.has_strides = 1;
    o.q = o.k = o.v = o.o = rows;
    CHECK(flash_wide_rows(&o) > 0);
    CHECK_STATUS(fp8_attention_plan_create(&plan, gpu, &o), FP8_OK);
    if (!plan) return;
    CHECK(is_later(plan) == (heads == HEADS));
    CHECK(((const flash_state *)plan->state)->params.split == 0);
    bytes = fp8_attention_workspace_size(plan);
    CHECK_STATUS(fp8_device_alloc(gpu, &workspace, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(gpu, workspace, 0xff, bytes), FP8_OK);
    CHECK_STATUS(fp8_attention_run(plan, &io, workspace, bytes), FP8_OK);
    fp8_device_free(gpu, workspace);
    fp8_attention_plan_destroy(plan);
}

static uint8_t *run_parts(fp8_device *gpu, const fp8_attention_options *o, const operands *x,
                          int32_t parts) {
    uint8_t *out = malloc(x->bytes);
    if (!out) abort();
    CHECK_STATUS(fp8_device_fill(gpu, x->o, 0xff, x->bytes), FP8_OK);
    for (int32_t i = 0; i < parts; i++) run_heads(gpu, o, x, i * HEADS / parts, HEADS / parts);
    CHECK_STATUS(fp8_device_download(gpu, out, x->o, x->bytes), FP8_OK);
    return out;
}

static int64_t differing(const uint8_t *a, const uint8_t *b, size_t bytes) {
    int64_t n = 0;
    for (size_t i = 0; i < bytes; i++) n += a[i] != b[i];
    return n;
}

static void test_bytes(fp8_device *gpu, int64_t tokens, fp8_dtype dtype, int current) {
    float descales[HEADS];
    const size_t bytes = (size_t)tokens * HEADS * D * 2;
    operands x = {.tokens = tokens, .bytes = bytes};
    fp8_attention_options o = base_options(HEADS, HEADS, D, 1, tokens, tokens, dtype, dtype);
    uint8_t *whole, *parts;
    int64_t wrong;

    for (int i = 0; i < HEADS; i++) descales[i] = 0.01f;
    o.want_lse = o.want_amax = 0;
    o.quantize = current ? FP8_QUANTIZE_CURRENT : FP8_QUANTIZE_GIVEN;
    o.granularity = FP8_DESCALE_HEAD;
    o.quantize_p = 1;
    o.layout = FP8_LAYOUT_BSHD_BSHD_BSHD;
    o.backend = FP8_BACKEND_FLASH;
    check_case = "bytes";
    x.q = make_operand(gpu, bytes, dtype, 1);
    x.k = make_operand(gpu, bytes, dtype, 2);
    x.v = make_operand(gpu, bytes, dtype, 3);
    CHECK_STATUS(fp8_device_alloc(gpu, &x.o, bytes), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(gpu, &x.descales, sizeof descales), FP8_OK);
    CHECK_STATUS(fp8_device_upload(gpu, x.descales, descales, sizeof descales), FP8_OK);
    whole = run_parts(gpu, &o, &x, 1);
    parts = run_parts(gpu, &o, &x, PARTS);
    wrong = differing(whole, parts, bytes);
    CHECK(wrong == 0);
    fprintf(stderr, "bytes: %lld tokens, %s, %s scales: %lld of %zu differ\n",
            (long long)tokens, fp8_dtype_name(dtype), current ? "current" : "given",
            (long long)wrong, bytes);
    free(whole);
    free(parts);
    void *all[] = {x.q, x.k, x.v, x.o, x.descales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fp8_device_free(gpu, all[i]);
}

/* A number: that case of test_later alone, which a checking tool can bear; `bytes`: none. */
int main(int argc, char **argv) {
    const int bytes = argc > 1 && strcmp(argv[1], "bytes") == 0;
    const int only = argc > 1 && !bytes ? atoi(argv[1]) : -1;
    fp8_device *gpu = check_hopper();
    if (!gpu) return TEST_SKIP;
    for (int i = 0; i < 20 && !bytes; i++)
        if (only < 0 || i == only) test_later(gpu, i);
    for (int i = 0; i < 4 && only < 0; i++)
        test_bytes(gpu, i % 2 ? 4101 : 4096, i / 2 ? F16 : BF16, i % 2);
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
