/* tests/block_check.h - what test_block.c and gpu_block.c share: a decoder block of random weights
 * on any device, and the formula in double with the same quantizing of what the Linears and the
 * attention read. */
#ifndef FP8_TESTS_BLOCK_CHECK_H
#define FP8_TESTS_BLOCK_CHECK_H
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "model/model.h"
#include "tests/check.h"

enum { HIDDEN = 64, DIM = 16, INNER = 96, MAX_TOKENS = 160, NUM_WEIGHTS = 7, MAX_WIDTH = 96,
       MAX_VALUES = MAX_TOKENS * HIDDEN }; /* the longest array of all */
enum { W_Q, W_K, W_V, W_O, W_GATE, W_UP, W_DOWN };

typedef struct block_case {
    const char *name;
    fp8_norm_kind norm;
    fp8_activation act;
    int64_t heads, kv_heads, rotary, window;
    int gated, biases, head_norms, norms_after;
    fp8_input_scaling input; /* DENSE, STATIC, DYNAMIC */
    int fp8_attention;
    fp8_block_steps steps;
    int64_t lengths[4]; /* of sequences; 0 ends them */
    int one_descale;    /* of Q, K and V: one product leaves what attention reads */
} block_case;

/* Everything of a case, in values that the compute type holds. */
typedef struct block_data {
    const block_case *c;
    fp8_dtype type;
    int64_t q, kv, tokens, num_seqs, max_len;
    float w[NUM_WEIGHTS][MAX_WIDTH * MAX_WIDTH], bias[NUM_WEIGHTS][MAX_WIDTH];
    float norms[8][HIDDEN]; /* norm1, its bias, norm2, its bias, q, k, after 1, after 2 */
    float x[MAX_TOKENS * HIDDEN];
    float weight_descale[NUM_WEIGHTS], input_amax[NUM_WEIGHTS], kv_amax[3];
    int32_t starts[5], positions[MAX_TOKENS];
} block_data;

static inline float block_round(const block_data *b, float v) {
    return b->type == FP8_DTYPE_BF16 ? fp8_round_bf16(v) : v;
}

static inline void fill_values(const block_data *b, float *x, int64_t n, float mean, float spread,
                               uint64_t *seed) {
    for (int64_t i = 0; i < n; i++) x[i] = block_round(b, mean + spread * check_normal(seed));
}

static inline int64_t block_in(const block_data *b, int i) {
    return i == W_O ? b->q : i == W_DOWN ? INNER : HIDDEN;
}
static inline int64_t block_out(const block_data *b, int i) {
    return i == W_Q ? b->q : i == W_K || i == W_V ? b->kv
                           : i == W_GATE || i == W_UP ? INNER : HIDDEN;
}

static inline void make_block_data(block_data *b, const block_case *c, fp8_dtype type) {
    uint64_t seed = 17;

    *b = (block_data){.c = c, .type = type, .q = c->heads * DIM, .kv = c->kv_heads * DIM};
    for (int s = 0; s < 4 && c->lengths[s]; s++) {
        for (int64_t t = 0; t < c->lengths[s]; t++) b->positions[b->tokens++] = (int32_t)t;
        b->starts[++b->num_seqs] = (int32_t)b->tokens;
        if (c->lengths[s] > b->max_len) b->max_len = c->lengths[s];
    }
    for (int i = 0; i < NUM_WEIGHTS; i++) {
        const int64_t n = block_in(b, i) * block_out(b, i);
        fill_values(b, b->w[i], n, 0, 0.15f, &seed);
        fill_values(b, b->bias[i], block_out(b, i), 0, c->biases ? 0.3f : 0, &seed);
        if (c->input == FP8_INPUT_DENSE) continue;
        b->weight_descale[i] = 0.75f / 448; /* one for all, so that they can be joined */
        for (int64_t k = 0; k < n; k++) /* now the value of its code */
            b->w[i][k] = fp8_to_f32(FP8_DTYPE_E4M3, fp8_from_f32(FP8_DTYPE_E4M3, b->w[i][k] /
                                    b->weight_descale[i])) * b->weight_descale[i];
    }
    for (int i = 0; i < 8; i++) fill_values(b, b->norms[i], HIDDEN, i % 2 ? 0 : 1, 0.1f, &seed);
    fill_values(b, b->norms[5], DIM, 1, 0.1f, &seed);
    fill_values(b, b->norms[7], HIDDEN, 1, 0.1f, &seed);
    fill_values(b, b->x, b->tokens * HIDDEN, 0, 1, &seed);
}

/* ---- the formula ----------------------------------------------------------------------------- */

static inline void ref_norm(double *y, const double *x, int64_t n, fp8_norm_kind kind,
                            const float *w, const float *bias) {
    double mean = 0, square = 0;

    for (int64_t i = 0; i < n && kind == FP8_NORM_LAYER; i++) mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        const double v = (x[i] - mean) / sqrt(square + 1e-5);
        y[i] = v * ((kind == FP8_NORM_RMS_PLUS) + (double)w[i]) + (bias ? (double)bias[i] : 0);
    }
}

/* x as codes of one scale hold it, in place; amax 0: as it is. */
static inline void ref_round_trip(double *x, int64_t n, double amax) {
    const double scale = 448 / amax;
    for (int64_t i = 0; i < n && amax > 0; i++)
        x[i] = (double)fp8_to_f32(FP8_DTYPE_E4M3,
                                  fp8_from_f32(FP8_DTYPE_E4M3, (float)(x[i] * scale))) / scale;
}

static inline double ref_amax(const double *x, int64_t n) {
    double amax = 0;
    for (int64_t i = 0; i < n; i++) amax = fmax(amax, fabs(x[i]));
    return amax;
}

/* y = W q(x) + b of one token; finds amax instead of quantizing when b->c->input's is not known. */
static inline void ref_linear(block_data *b, int which, double *y, const double *x, int finds) {
    const int64_t in = block_in(b, which), out = block_out(b, which);
    double q[MAX_WIDTH];

    memcpy(q, x, (size_t)in * sizeof *q);
    if (finds) b->input_amax[which] = fmaxf(b->input_amax[which], (float)ref_amax(x, in));
    else if (b->c->input != FP8_INPUT_DENSE)
        ref_round_trip(q, in, b->c->input == FP8_INPUT_STATIC ? (double)b->input_amax[which]
                                                               : ref_amax(x, in));
    for (int64_t o = 0; o < out; o++) {
        y[o] = (double)b->bias[which][o];
        for (int64_t i = 0; i < in; i++) y[o] += (double)b->w[which][o * in + i] * q[i];
    }
}

static inline void ref_heads(block_data *b, double *x, int64_t heads, int part, int32_t position,
                             int finds) {
    const int64_t half = b->c->rotary / 2;
    for (int64_t h = 0; h < heads; h++) {
        double *v = x + h * DIM;
        if (b->c->head_norms && part < 2)
            ref_norm(v, v, DIM, b->c->norm == FP8_NORM_RMS_PLUS ? FP8_NORM_RMS_PLUS : FP8_NORM_RMS,
                     b->norms[4 + part], NULL);
        for (int64_t i = 0; i < half && part < 2; i++) {
            const double angle = position * pow(10000, -2.0 * (double)i / (double)b->c->rotary);
            const double p = v[i], q = v[i + half];
            v[i] = p * cos(angle) - q * sin(angle);
            v[i + half] = q * cos(angle) + p * sin(angle);
        }
    }
    if (finds) b->kv_amax[part] = fmaxf(b->kv_amax[part], (float)ref_amax(x, heads * DIM));
    else if (b->c->fp8_attention) ref_round_trip(x, heads * DIM, (double)b->kv_amax[part]);
}

static inline void ref_attend(const block_data *b, double *o, const double *q, const double *k,
                              const double *v, int64_t token, int64_t first) {
    for (int64_t h = 0; h < b->c->heads; h++) {
        const int64_t kv_head = h / (b->c->heads / b->c->kv_heads);
        double p[MAX_TOKENS], sum = 0;
        for (int64_t j = first; j <= token; j++) {
            double s = 0;
            for (int64_t i = 0; i < DIM; i++)
                s += q[h * DIM + i] * k[j * MAX_WIDTH + kv_head * DIM + i];
            p[j] = b->c->window && j + b->c->window <= token ? 0 : exp(s / sqrt(DIM));
            sum += p[j];
        }
        for (int64_t i = 0; i < DIM; i++) {
            o[h * DIM + i] = 0;
            for (int64_t j = first; j <= token; j++)
                o[h * DIM + i] += p[j] / sum * v[j * MAX_WIDTH + kv_head * DIM + i];
        }
    }
}

static inline double ref_act(fp8_activation act, double x) {
    if (act == FP8_ACT_SILU) return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static inline void ref_mlp(block_data *b, double *y, const double *n, int finds) {
    double gate[MAX_WIDTH], up[MAX_WIDTH];
    ref_linear(b, W_UP, up, n, finds);
    if (b->c->gated) ref_linear(b, W_GATE, gate, n, finds);
    for (int i = 0; i < INNER; i++)
        up[i] = b->c->gated ? ref_act(b->c->act, gate[i]) * up[i] : ref_act(b->c->act, up[i]);
    ref_linear(b, W_DOWN, y, up, finds);
}

static inline void ref_add(const block_data *b, double *x, double *y, int after) {
    if (b->c->norms_after) ref_norm(y, y, HIDDEN, b->c->norm, b->norms[6 + after], NULL);
    for (int i = 0; i < HIDDEN; i++) x[i] += y[i];
}

/* out [tokens, HIDDEN] = the block of b->x. finds: nothing is quantized, the amax of all that would
 * be is found. */
static inline void ref_block(block_data *b, double *out, int finds) {
    const int layer = b->c->norm == FP8_NORM_LAYER;
    double *k = calloc(2 * MAX_TOKENS * MAX_WIDTH, sizeof *k), *v = k + MAX_TOKENS * MAX_WIDTH;
    double n[HIDDEN], q[MAX_WIDTH], o[MAX_WIDTH], y[HIDDEN];
    int64_t first = 0;

    for (int64_t t = 0; t < b->tokens; t++) {
        double *x = out + t * HIDDEN;
        if (b->positions[t] == 0) first = t;
        for (int i = 0; i < HIDDEN; i++) x[i] = (double)b->x[t * HIDDEN + i];
        ref_norm(n, x, HIDDEN, b->c->norm, b->norms[0], layer ? b->norms[1] : NULL);
        ref_linear(b, W_Q, q, n, finds);
        ref_linear(b, W_K, k + t * MAX_WIDTH, n, finds);
        ref_linear(b, W_V, v + t * MAX_WIDTH, n, finds);
        ref_heads(b, q, b->c->heads, 0, b->positions[t], finds);
        ref_heads(b, k + t * MAX_WIDTH, b->c->kv_heads, 1, b->positions[t], finds);
        ref_heads(b, v + t * MAX_WIDTH, b->c->kv_heads, 2, b->positions[t], finds);
        ref_attend(b, o, q, k, v, t, first);
        ref_linear(b, W_O, y, o, finds);
        ref_add(b, x, y, 0);
        ref_norm(n, x, HIDDEN, b->c->norm, b->norms[2], layer ? b->norms[3] : NULL);
        ref_mlp(b, y, n, finds);
        ref_add(b, x, y, 1);
    }
    for (int i = 0; i < 3 && finds && b->c->one_descale; i++)
        b->kv_amax[i] = fmaxf(b->kv_amax[i], fmaxf(b->kv_amax[(i + 1) % 3],
                                                   b->kv_amax[(i + 2) % 3]));
    free(k);
}

/* ---- the block ------------------------------------------------------------------------------- */

static inline void *block_host(const block_data *b, const float *x, int64_t n) {
    char *p = calloc(MAX_VALUES, 4);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t h = fp8_f32_to_bf16(x[i]);
        if (b->type == FP8_DTYPE_F32) memcpy(p + 4 * i, &x[i], 4);
        else memcpy(p + 2 * i, &h, 2);
    }
    return p;
}

static inline fp8_tensor block_vector(fp8_device *d, const block_data *b, const float *x,
                                      int64_t rows, int64_t cols) {
    const int64_t n = cols < 0 ? rows : rows * cols;
    void *host = block_host(b, x, n), *place = NULL;
    CHECK_STATUS(fp8_device_alloc(d, &place, (size_t)n * fp8_dtype_size(b->type)), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, place, host, (size_t)n * fp8_dtype_size(b->type)), FP8_OK);
    free(host);
    return fp8_tensor_view(place, b->type, fp8_device_place(d), rows, cols);
}

static inline fp8_linear *block_linear(fp8_device *d, const block_data *b, int i) {
    const int64_t in = block_in(b, i), out = block_out(b, i);
    const int quantized = b->c->input != FP8_INPUT_DENSE;
    void *bias = block_host(b, b->bias[i], out);
    uint8_t *codes = calloc(MAX_VALUES, 1);
    void *dense = block_host(b, b->w[i], in * out);
    fp8_linear_spec s = {.name = "linear", .in = in, .out = out, .input = b->c->input,
                         .input_descale = b->input_amax[i] / 448, .compute = b->type,
                         .weight_descale = quantized ? &b->weight_descale[i] : NULL,
                         .num_weight_descales = quantized};
    fp8_linear *l = NULL;

    for (int64_t k = 0; k < in * out && quantized; k++)
        codes[k] = fp8_from_f32(FP8_DTYPE_E4M3, b->w[i][k] / b->weight_descale[i]);
    s.weight = fp8_tensor_view(quantized ? (void *)codes : dense,
                               quantized ? FP8_DTYPE_E4M3 : b->type, FP8_PLACE_CPU, out, in);
    if (b->c->biases) s.bias = fp8_tensor_view(bias, b->type, FP8_PLACE_CPU, out, -1);
    CHECK_STATUS(fp8_linear_create(&l, d, &s), FP8_OK);
    free(bias);
    free(codes);
    free(dense);
    return l;
}

static inline fp8_block_spec block_spec_of(fp8_device *d, const block_data *b,
                                           fp8_attention_backend backend) {
    const block_case *c = b->c;
    fp8_block_spec s = {.hidden = HIDDEN, .num_heads = c->heads, .num_kv_heads = c->kv_heads,
                        .head_dim = DIM, .max_tokens = MAX_TOKENS, .compute = b->type,
                        .norm = c->norm, .norm_eps = 1e-5f, .act = c->act,
                        .rotary_dim = c->rotary, .rope_theta = 10000, .window = c->window,
                        .steps = c->steps, .backend = backend};

    s.norm1 = block_vector(d, b, b->norms[0], HIDDEN, -1);
    s.norm2 = block_vector(d, b, b->norms[2], HIDDEN, -1);
    if (c->norm == FP8_NORM_LAYER) {
        s.norm1_bias = block_vector(d, b, b->norms[1], HIDDEN, -1);
        s.norm2_bias = block_vector(d, b, b->norms[3], HIDDEN, -1);
    }
    if (c->head_norms) {
        s.q_norm = block_vector(d, b, b->norms[4], DIM, -1);
        s.k_norm = block_vector(d, b, b->norms[5], DIM, -1);
    }
    if (c->norms_after) {
        s.norm1_after = block_vector(d, b, b->norms[6], HIDDEN, -1);
        s.norm2_after = block_vector(d, b, b->norms[7], HIDDEN, -1);
    }
    s.q = block_linear(d, b, W_Q);
    s.k = block_linear(d, b, W_K);
    s.v = block_linear(d, b, W_V);
    s.o = block_linear(d, b, W_O);
    s.gate = c->gated ? block_linear(d, b, W_GATE) : NULL;
    s.up = block_linear(d, b, W_UP);
    s.down = block_linear(d, b, W_DOWN);
    if (c->steps == FP8_BLOCK_AT_STORE) {
        CHECK_STATUS(fp8_linear_join(&s.joined_qkv, (fp8_linear *[]){s.q, s.k, s.v}, 3), FP8_OK);
        if (s.gate)
            CHECK_STATUS(fp8_linear_join(&s.joined_up, (fp8_linear *[]){s.gate, s.up}, 2), FP8_OK);
    }
    if (c->fp8_attention) {
        s.q_descale = b->kv_amax[0] / 448;
        s.k_descale = b->kv_amax[1] / 448;
        s.v_descale = b->kv_amax[2] / 448;
    }
    return s;
}

static inline void block_spec_free(fp8_device *d, fp8_block_spec *s) {
    fp8_tensor *const t[] = {&s->norm1, &s->norm1_bias, &s->norm2, &s->norm2_bias, &s->q_norm,
                             &s->k_norm, &s->norm1_after, &s->norm2_after};
    fp8_linear *const l[] = {s->q, s->k, s->v, s->o, s->gate, s->up, s->down, s->joined_qkv,
                             s->joined_up};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) fp8_device_free(d, t[i]->data);
    for (size_t i = 0; i < sizeof l / sizeof *l; i++) fp8_linear_destroy(l[i]);
}

/* to [n] = values of the compute type. */
static inline void block_download(fp8_device *d, const block_data *b, float *to, const void *from,
                                  int64_t n) {
    const size_t size = fp8_dtype_size(b->type);
    unsigned char *host = malloc((size_t)n * size);

    CHECK_STATUS(fp8_device_download(d, host, from, (size_t)n * size), FP8_OK);
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        if (b->type == FP8_DTYPE_F32) memcpy(&to[i], host + 4 * i, 4);
        else {
            memcpy(&h, host + 2 * i, 2);
            to[i] = fp8_bf16_to_f32(h);
        }
    }
    free(host);
}

static inline int32_t *block_ints(fp8_device *d, const int32_t *x, int64_t n) {
    void *place = NULL;
    CHECK_STATUS(fp8_device_alloc(d, &place, (size_t)n * sizeof *x), FP8_OK);
    CHECK_STATUS(fp8_device_upload(d, place, x, (size_t)n * sizeof *x), FP8_OK);
    return place;
}

/* got [tokens, HIDDEN] = what the block makes of b->x, in place or beside it. */
static inline fp8_status block_run(fp8_device *d, const block_data *b, fp8_block *block,
                                   const struct fp8_tap *tap, int in_place, float *got) {
    const fp8_tensor x = block_vector(d, b, b->x, b->tokens, HIDDEN);
    const fp8_tensor other = block_vector(d, b, b->x, b->tokens, HIDDEN);
    const fp8_tensor y = in_place ? x : other;
    int32_t *starts = block_ints(d, b->starts, 5);
    int32_t *positions = block_ints(d, b->positions, MAX_TOKENS);
    int equal = 1;
    fp8_status st;

    for (int64_t s = 0; s < b->num_seqs; s++)
        equal &= b->starts[s + 1] - b->starts[s] == b->max_len;
    st = fp8_block_forward(block, &y, &x, &(fp8_block_batch){starts, positions, b->num_seqs,
                                                             b->max_len, equal}, tap);
    block_download(d, b, got, y.data, b->tokens * HIDDEN);
    fp8_device_free(d, x.data);
    fp8_device_free(d, other.data);
    fp8_device_free(d, starts);
    fp8_device_free(d, positions);
    return st;
}

/* ---- over pages ------------------------------------------------------------------------------ */

enum { PAGE = 64, SEQ_PAGES = 3 }; /* the longest sequence has MAX_TOKENS */

/* Pages of up to four sequences, with room between what is theirs. */
static inline fp8_kv_pages block_pages(fp8_device *d, const block_data *b) {
    fp8_kv_pages p = {.dtype = b->c->fp8_attention ? FP8_DTYPE_E4M3 : b->type,
                      .num_kv_heads = (int32_t)b->c->kv_heads, .d_qk = DIM, .d_v = DIM,
                      .page_size = PAGE, .num_pages = 4 * SEQ_PAGES};
    fp8_kv_layout lie;

    CHECK_STATUS(fp8_kv_pages_layout(&lie, &p), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &p.k, lie.k_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_alloc(d, &p.v, lie.v_bytes), FP8_OK);
    CHECK_STATUS(fp8_device_fill(d, p.k, 0xff, lie.k_bytes), FP8_OK); /* NaN */
    CHECK_STATUS(fp8_device_fill(d, p.v, 0xff, lie.v_bytes), FP8_OK);
    return p;
}

/* Tokens begin[s] .. end[s] - 1 of each sequence in one forward, to their rows of got. */
static inline void block_piece(fp8_device *d, const block_data *b, fp8_block *block,
                               const fp8_kv_pages *pages, const int32_t *table,
                               const int64_t *begin, const int64_t *end, float *got) {
    static float x[MAX_TOKENS * HIDDEN], y[MAX_TOKENS * HIDDEN];
    int32_t starts[5] = {0}, lengths[4] = {0}, positions[MAX_TOKENS], rows[MAX_TOKENS];
    fp8_kv_batch batch = {.num_seqs = b->num_seqs, .page_table = table, .max_pages = SEQ_PAGES,
                          .max_kv = MAX_TOKENS, .max_q = 1};
    int32_t *places[3];
    fp8_tensor in;
    int64_t n = 0;

    for (int64_t s = 0; s < b->num_seqs; s++) {
        for (int64_t t = begin[s]; t < end[s]; t++, n++) {
            rows[n] = (int32_t)(b->starts[s] + t);
            positions[n] = (int32_t)t;
            memcpy(x + n * HIDDEN, b->x + (int64_t)rows[n] * HIDDEN, HIDDEN * sizeof *x);
        }
        starts[s + 1] = (int32_t)n;
        lengths[s] = (int32_t)end[s];
        if (end[s] - begin[s] > batch.max_q) batch.max_q = end[s] - begin[s];
    }
    batch.total_q = n;
    in = block_vector(d, b, x, n, HIDDEN);
    batch.q_starts = places[0] = block_ints(d, starts, 5);
    batch.kv_lengths = places[1] = block_ints(d, lengths, 4);
    places[2] = block_ints(d, positions, n);
    CHECK_STATUS(fp8_block_forward_pages(block, &in, &in, places[2], pages, &batch), FP8_OK);
    block_download(d, b, y, in.data, n * HIDDEN);
    for (int64_t i = 0; i < n; i++)
        memcpy(got + (int64_t)rows[i] * HIDDEN, y + i * HIDDEN, HIDDEN * sizeof *y);
    fp8_device_free(d, in.data);
    for (int i = 0; i < 3; i++) fp8_device_free(d, places[i]);
}

/* The same tokens over pages: all but the last of a sequence's last five in one piece, two more,
 * then one at a time. */
static inline void block_run_pages(fp8_device *d, const block_data *b, fp8_block *block,
                                   float *got) {
    static const int32_t order[4 * SEQ_PAGES] = {7, 2, 11, 0, 5, 9, 3, 10, 1, 8, 4, 6};
    const int64_t left_after[] = {5, 3, 2, 1, 0};
    fp8_kv_pages pages = block_pages(d, b);
    int32_t *table = block_ints(d, order, 4 * SEQ_PAGES);
    int64_t begin[4] = {0}, end[4] = {0};

    for (size_t i = 0; i < sizeof left_after / sizeof *left_after; i++) {
        for (int64_t s = 0; s < b->num_seqs; s++) {
            const int64_t length = b->starts[s + 1] - b->starts[s];
            begin[s] = end[s];
            end[s] = length > left_after[i] ? length - left_after[i] : 0;
        }
        block_piece(d, b, block, &pages, table, begin, end, got);
    }
    fp8_device_free(d, pages.k);
    fp8_device_free(d, pages.v);
    fp8_device_free(d, table);
}

/* Relative L2 of what the block adds to x. */
static inline double block_error(const block_data *b, const float *got, const double *want) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < b->tokens * HIDDEN; i++) {
        const double w = want[i] - (double)b->x[i], g = (double)got[i] - (double)b->x[i];
        error += (g - w) * (g - w);
        size += w * w;
    }
    return sqrt(error / size);
}

/* On the relative L2 of what a block adds, in BF16. Dense: eight roundings of 2^-9 each between x
 * and what is added. FP8: a value that is off by such a rounding gets the neighbouring code with
 * probability 2^-9 / 2^-3.5, which is off by 2^-3.5: 1.3 % rms for each of the up to eight things
 * that are quantized, in a chain; in F32, where this does not happen, the bound is tight. */
static inline double block_bound_bf16(int fp8) { return fp8 ? 6e-2 : 1e-2; }

static const block_case block_cases[] = {
    {"gpt2", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0, FP8_INPUT_DENSE, 0,
     FP8_BLOCK_AT_STORE, {16, 16, 0, 0}, 0},
    {"gpt2, singly", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0, FP8_INPUT_DENSE, 0,
     FP8_BLOCK_SINGLE, {16, 16, 0, 0}, 0},
    {"gpt2, static", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0, FP8_INPUT_STATIC,
     0, FP8_BLOCK_AT_STORE, {13, 31, 1, 0}, 0},
    {"gpt2, static, singly", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0,
     FP8_INPUT_STATIC, 0, FP8_BLOCK_SINGLE, {13, 31, 1, 0}, 0},
    {"gpt2, FP8 attention", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0,
     FP8_INPUT_STATIC, 1, FP8_BLOCK_AT_STORE, {64, 64, 0, 0}, 0},
    {"gpt2, FP8 attention, singly", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0,
     FP8_INPUT_STATIC, 1, FP8_BLOCK_SINGLE, {13, 31, 1, 0}, 0},
    {"gpt2, FP8 attention, one descale", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 4, 0, 0, 0, 1, 0, 0,
     FP8_INPUT_STATIC, 1, FP8_BLOCK_AT_STORE, {64, 64, 0, 0}, 1},
    {"gpt2, one descale, two heads of keys", FP8_NORM_LAYER, FP8_ACT_GELU_TANH, 4, 2, 0, 0, 0, 1, 0,
     0, FP8_INPUT_STATIC, 1, FP8_BLOCK_AT_STORE, {13, 31, 1, 0}, 1},
    {"llama", FP8_NORM_RMS, FP8_ACT_SILU, 4, 2, DIM, 0, 1, 0, 0, 0, FP8_INPUT_DENSE, 0,
     FP8_BLOCK_AT_STORE, {1, 40, 7, 0}, 0},
    {"llama, static, FP8 attention", FP8_NORM_RMS, FP8_ACT_SILU, 4, 2, DIM, 0, 1, 0, 0, 0,
     FP8_INPUT_STATIC, 1, FP8_BLOCK_AT_STORE, {1, 40, 7, 0}, 0},
    {"llama, a scale a token", FP8_NORM_RMS, FP8_ACT_SILU, 4, 1, DIM / 2, 0, 1, 1, 0, 0,
     FP8_INPUT_DYNAMIC, 0, FP8_BLOCK_AT_STORE, {33, 0, 0, 0}, 0},
    {"qwen3, static", FP8_NORM_RMS, FP8_ACT_SILU, 4, 2, DIM, 0, 1, 0, 1, 0, FP8_INPUT_STATIC, 1,
     FP8_BLOCK_AT_STORE, {20, 20, 20, 0}, 0},
    {"gemma, static, window", FP8_NORM_RMS_PLUS, FP8_ACT_GELU_TANH, 4, 4, DIM, 8, 1, 0, 1, 1,
     FP8_INPUT_STATIC, 0, FP8_BLOCK_AT_STORE, {40, 9, 0, 0}, 0},
};
enum { NUM_BLOCK_CASES = sizeof block_cases / sizeof *block_cases };

/* A case on a device, against the formula: `bound` on the relative L2 of what is added. */
static inline void check_block(fp8_device *d, const block_case *c, fp8_dtype type,
                               fp8_attention_backend backend, double bound) {
    static block_data b;
    static double want[MAX_TOKENS * HIDDEN];
    static float got[MAX_TOKENS * HIDDEN], again[MAX_TOKENS * HIDDEN];
    fp8_block *block = NULL;
    fp8_block_spec spec;
    double error;

    check_case = c->name;
    make_block_data(&b, c, type);
    ref_block(&b, want, 1);
    ref_block(&b, want, 0);
    spec = block_spec_of(d, &b, backend);
    CHECK_STATUS(fp8_block_create(&block, d, &spec), FP8_OK);
    if (block) {
        CHECK_STATUS(block_run(d, &b, block, NULL, 1, got), FP8_OK);
        CHECK(block_error(&b, got, want) < bound);
        CHECK_STATUS(block_run(d, &b, block, NULL, 0, got), FP8_OK);
        CHECK_STATUS(block_run(d, &b, block, NULL, 0, again), FP8_OK);
        CHECK(memcmp(got, again, (size_t)(b.tokens * HIDDEN) * sizeof *got) == 0);
        error = block_error(&b, got, want);
        CHECK(error < bound);
        block_run_pages(d, &b, block, got);
        CHECK(block_error(&b, got, want) < bound);
        if (getenv("VERBOSE") || !(error < bound))
            fprintf(stderr, "%s, %s: %.2e, over pages %.2e (bound %.2e)\n", c->name,
                    fp8_dtype_name(type), error, block_error(&b, got, want), bound);
    }
    fp8_block_destroy(block);
    block_spec_free(d, &spec);
}

#endif
