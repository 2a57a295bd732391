/* Q, K, V to codes on the GPU (attention/quantize_qkv.h) against the formula on the CPU, bit for
 * bit: every granularity, given and current scales, layouts, odd strides and sizes. */
#include "attention/quantize_qkv.h"
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

/* Strides of a packed copy in the order of rows. */
static fp8_strides copy_strides(const cell *c, const tensor *t) {
    const int64_t longest = t->is_q ? c->o.max_q : c->o.max_kv;
    return (fp8_strides){c->packed ? 0 : longest * t->heads * t->d, t->heads * t->d, t->d};
}

static int64_t copy_size(const cell *c, const tensor *t) {
    const int64_t packed = t->is_q ? c->total_q : c->total_kv;
    const int64_t padded = c->o.num_seqs * (t->is_q ? c->o.max_q : c->o.max_kv);
    return (c->packed ? packed : padded) * t->heads * t->d;
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

static void check_codes(const cell *c, const tensor *t, const uint8_t *codes,
                        const float *descale) {
    const fp8_strides to = copy_strides(c, t);
    const int64_t size = copy_size(c, t);
    uint8_t *want = malloc((size_t)size + 1);
    int64_t wrong = 0;

    memset(want, 0xff, (size_t)size + 1);
    FOR_ELEMENTS(c, t, s, i, h, e) {
        const int64_t token = begin_of(c, t, s) + i;
        const int64_t at = t->offset + cell_at(t->strides, s, token, h) + e;
        const float x = element_get(c->host[t->mem], c->o.q_dtype, at);
        const float scale = 1.0f / descale[descale_at(&c->o, s, h / t->group)];
        want[cell_at(to, s, token, h) + e] = fp8_from_f32(FP8_DTYPE_E4M3, x * scale);
    }
    for (int64_t i = 0; i < size; i++) {
        const int nan = (want[i] & 0x7f) == 0x7f && (codes[i] & 0x7f) == 0x7f && want[i] != 0xff;
        if (codes[i] != want[i] && !nan && wrong++ < 10)
            fprintf(stderr, "[%s] code %lld: got %02x, want %02x\n", check_case, (long long)i,
                    codes[i], want[i]);
    }
    CHECK(wrong == 0);
    free(want);
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
    const int given = c->o.quantize == FP8_QUANTIZE_GIVEN;
    const int64_t count = cell_descales(&c->o);
    const size_t descale_bytes = (size_t)(count > 0 ? count : 1) * sizeof(float);
    const fp8_stream stream = fp8_device_stream(gpu);
    void *dev[NUM_MEM] = {NULL}, *out[3] = {NULL}, *descales = NULL;
    float *want = malloc(descale_bytes), *got = malloc(3 * descale_bytes);
    fp8_attention_options o;
    fp8_attention_io raw, io;
    attention_codes codes = {0};
    fp8_status st;

    FP8_TRY(cell_upload(c, gpu, dev));
    raw = cell_io(c, dev);
    FP8_TRY(attention_resolve_options(&o, &c->o));
    FP8_TRY(attention_resolve_io(&io, &o, &raw));
    FP8_TRY(fp8_device_alloc(gpu, &descales, 3 * descale_bytes));
    FP8_TRY(fp8_device_fill(gpu, descales, 0xff, 3 * descale_bytes));
    for (int i = 0; i < 3; i++) {
        const tensor t = tensor_of(c, i);
        FP8_TRY(fp8_device_alloc(gpu, &out[i], (size_t)copy_size(c, &t)));
        FP8_TRY(fp8_device_fill(gpu, out[i], 0xff, (size_t)copy_size(c, &t)));
        (i == 0 ? &codes.q_strides : i == 1 ? &codes.k_strides : &codes.v_strides)[0] =
            copy_strides(c, &t);
        (i == 0 ? &codes.q_descale : i == 1 ? &codes.k_descale : &codes.v_descale)[0] =
            given ? (const float *)dev[MEM_Q_DESCALE + i] : (float *)descales + i * count;
    }
    codes.q = out[0];
    codes.k = out[1];
    codes.v = out[2];
    if (!given) FP8_TRY(attention_current_descales(descales, &o, &io, stream));
    FP8_TRY(attention_quantize_qkv(&codes, &o, &io, stream));
    FP8_TRY(fp8_device_download(gpu, got, descales, 3 * descale_bytes));
    for (int i = 0; i < 3; i++) {
        const tensor t = tensor_of(c, i);
        uint8_t *host = malloc((size_t)copy_size(c, &t) + 1);
        FP8_TRY(fp8_device_download(gpu, host, out[i], (size_t)copy_size(c, &t)));
        want_descales(c, &t, want, count);
        if (given) memcpy(want, c->host[MEM_Q_DESCALE + i], (size_t)count * sizeof *want);
        else if (o.max_q > 0 && o.max_kv > 0)
            CHECK(memcmp(want, got + i * count, (size_t)count * sizeof *want) == 0);
        check_codes(c, &t, host, want);
        free(host);
    }
done:
    CHECK_STATUS(st, FP8_OK);
    for (int i = 0; i < NUM_MEM; i++) fp8_device_free(gpu, dev[i]);
    for (int i = 0; i < 3; i++) fp8_device_free(gpu, out[i]);
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
        o.quantize = i / 5 % 2 ? FP8_QUANTIZE_GIVEN : FP8_QUANTIZE_CURRENT;
        snprintf(name, sizeof name, "%d: %s %s d %d, granularity %d, quantize %d", i,
                 fp8_attention_layout_name(o.layout), fp8_dtype_name(o.q_dtype), o.d_qk,
                 (int)o.granularity, (int)o.quantize);
        check_case = name;
        cell_init(&c, &o, lengths, 4, i % 2, -1, check_random(&seed));
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
