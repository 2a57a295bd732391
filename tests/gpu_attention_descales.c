/* Current descales of Q, K, V on the GPU (attention/qkv_descales.h) against the formula on the CPU,
 * bit for bit: every granularity, type and layout, odd sizes, NaN and Inf among the values. */
#include "attention/qkv_descales.h"
#include "attention_cell.h"

static const fp8_dtype dtypes[] = {FP8_DTYPE_BF16, FP8_DTYPE_F16, FP8_DTYPE_F32};
static const int sizes[] = {1, 7, 64, 128, 80, 256};

typedef struct tensor {
    int mem, is_q;
    int64_t offset, heads, d, group;
    fp8_strides strides;
} tensor;

static tensor tensor_of(const cell *c, int i) {
    const fp8_attention_options *o = &c->o;
    const int64_t group = o->num_heads / o->num_kv_heads;
    const tensor all[3] = {
        {MEM_Q, 1, c->at.q_offset, o->num_heads, o->d_qk, group, o->q},
        {c->k_mem, 0, c->at.k_offset, o->num_kv_heads, o->d_qk, 1, o->k},
        {c->v_mem, 0, c->at.v_offset, o->num_kv_heads, o->d_v, 1, o->v},
    };
    return all[i];
}

static int64_t descale_at(const fp8_attention_options *o, int64_t s, int64_t kv_head) {
    return o->granularity == FP8_DESCALE_TENSOR  ? 0
           : o->granularity == FP8_DESCALE_HEAD ? kv_head
                                                : s * o->num_kv_heads + kv_head;
}

/* Calls visit for every element that belongs to a sequence. */
#define FOR_ELEMENTS(c, t, s, i, h, e)                                                             \
    for (int64_t s = 0; s < (c)->o.num_seqs; s++)                                                  \
        for (int64_t i = 0; i < ((t)->is_q ? (c)->length[s].q : (c)->length[s].kv); i++)           \
            for (int64_t h = 0; h < (t)->heads; h++)                                               \
                for (int64_t e = 0; e < (t)->d; e++)

static int64_t begin_of(const cell *c, const tensor *t, int64_t s) {
    return t->is_q ? c->q_begin[s] : c->kv_begin[s];
}

static void want_descales(const cell *c, const tensor *t, float *descale, int64_t count) {
    for (int64_t i = 0; i < count; i++) descale[i] = 0;
    FOR_ELEMENTS(c, t, s, i, h, e) {
        const int64_t at = t->offset + cell_at(t->strides, s, begin_of(c, t, s) + i, h) + e;
        const float x = fabsf(element_get(c->host[t->mem], c->o.q_dtype, at));
        float *amax = &descale[descale_at(&c->o, s, h / t->group)];
        if (isfinite(x) && x > *amax) *amax = x;
    }
    for (int64_t i = 0; i < count; i++) descale[i] = descale[i] > 0 ? descale[i] / 448.0f : 1.0f;
}

/* NaN, Inf and zeros among the values. */
static void season(cell *c, const tensor *t, uint64_t *seed) {
    static const float odd[] = {NAN, INFINITY, -INFINITY, -0.0f, 1e-30f, 0.0f};
    int64_t count = 0;
    FOR_ELEMENTS(c, t, s, i, h, e) {
        const int64_t at = t->offset + cell_at(t->strides, s, begin_of(c, t, s) + i, h) + e;
        if (check_random(seed) % 97 == 0)
            element_set(c->host[t->mem], c->o.q_dtype, at, odd[count++ % 6]);
    }
}

static void test_cell(fp8_device *gpu, cell *c) {
    const int64_t count = cell_descales(&c->o);
    const size_t bytes = (size_t)count * sizeof(float);
    void *dev[NUM_MEM] = {NULL}, *descales = NULL;
    float *want = malloc(bytes), *got = malloc(3 * bytes);
    fp8_attention_options o;
    fp8_attention_io raw, io;
    fp8_status st;

    FP8_TRY(cell_upload(c, gpu, dev));
    raw = cell_io(c, dev);
    FP8_TRY(attention_resolve_options(&o, &c->o));
    FP8_TRY(attention_resolve_io(&io, &o, &raw));
    CHECK(attention_descale_count(&o) == count);
    FP8_TRY(fp8_device_alloc(gpu, &descales, 3 * bytes));
    FP8_TRY(fp8_device_fill(gpu, descales, 0xff, 3 * bytes));
    FP8_TRY(attention_current_descales(descales, &o, &io, fp8_device_stream(gpu)));
    FP8_TRY(fp8_device_download(gpu, got, descales, 3 * bytes));
    for (int i = 0; i < 3; i++) {
        const tensor t = tensor_of(c, i);
        want_descales(c, &t, want, count);
        CHECK(memcmp(want, got + i * count, bytes) == 0);
    }
done:
    CHECK_STATUS(st, FP8_OK);
    for (int i = 0; i < NUM_MEM; i++) fp8_device_free(gpu, dev[i]);
    fp8_device_free(gpu, descales);
    free(want);
    free(got);
}

int main(void) {
    static const cell_lengths lengths[] = {{65, 70}, {0, 3}, {130, 129}, {1, 0}};
    fp8_device *gpu = check_gpu();
    uint64_t seed = 7;
    if (!gpu) return TEST_SKIP;
    for (int i = 0; i < 144; i++) {
        fp8_attention_options o = FP8_ATTENTION_OPTIONS;
        char name[96];
        cell c;
        o.layout = (fp8_attention_layout)(i % FP8_NUM_LAYOUTS);
        o.d_qk = o.d_v = sizes[i / 3 % 6];
        o.num_heads = o.num_kv_heads = 3;
        if (!strpbrk(fp8_attention_layout_name(o.layout), "23")) {
            o.num_heads = 6;
            o.d_v = sizes[i % 6];
        }
        o.q_dtype = o.kv_dtype = dtypes[i % 3];
        o.granularity = (fp8_attention_granularity)(i / 16 % 3);
        o.quantize = FP8_QUANTIZE_CURRENT;
        snprintf(name, sizeof name, "%d: %s %s d %d, granularity %d", i,
                 fp8_attention_layout_name(o.layout), fp8_dtype_name(o.q_dtype), o.d_qk,
                 (int)o.granularity);
        check_case = name;
        cell_init(&c, &o, lengths, 4, i / 48 % 2, -1, check_random(&seed));
        for (int t = 0; t < 3 && i % 4 == 3; t++) {
            const tensor x = tensor_of(&c, t);
            season(&c, &x, &seed);
        }
        test_cell(gpu, &c);
        cell_free(&c);
    }
    check_case = "";
    fp8_device_destroy(gpu);
    return CHECK_DONE();
}
