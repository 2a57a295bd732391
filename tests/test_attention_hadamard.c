/* options.hadamard: the oracle over rotated Q and K against the oracle over Q and K that are
 * rotated here by the definition, each in its layouts; what is refused. The GPU is held to the same
 * formula by gpu_flash_any.c. */
#include <math.h>
#include <string.h>

#include "attention/attention.h"
#include "check.h"

enum { SEQS = 2, MAX_Q = 5, MAX_KV = 9, HEADS = 4, KV_HEADS = 2, MAX_D = 256 };

typedef struct problem {
    fp8_attention_options o;
    fp8_attention_io io;
    float q[SEQS * MAX_Q * HEADS * MAX_D], k[SEQS * MAX_KV * KV_HEADS * MAX_D];
    float v[SEQS * MAX_KV * KV_HEADS * MAX_D];
    double out[SEQS * MAX_Q * HEADS * MAX_D];
} problem;

static const int32_t q_starts[SEQS + 1] = {0, 5, 8}, kv_starts[SEQS + 1] = {0, 2, 11};
static const int32_t q_lengths[SEQS] = {5, 3}, kv_lengths[SEQS] = {2, 9};
static const float descale[1] = {0.01f};

static void fill(float *x, int n, uint64_t *seed) {
    for (int i = 0; i < n; i++)
        x[i] = check_normal(seed) * (check_uniform(seed) < 0.01 ? 30.0f : 1.0f);
}

static void make(problem *p, int32_t d, int packed, fp8_attention_quantize quantize,
                 uint64_t seed) {
    const fp8_attention_options start = FP8_ATTENTION_OPTIONS;
    p->o = start;
    p->o.num_heads = HEADS;
    p->o.num_kv_heads = KV_HEADS;
    p->o.d_qk = p->o.d_v = d;
    p->o.num_seqs = SEQS;
    p->o.max_q = MAX_Q;
    p->o.max_kv = MAX_KV;
    p->o.layout = packed ? FP8_LAYOUT_THD_THD_THD : FP8_LAYOUT_BSHD_BSHD_BSHD;
    p->o.padding = !packed;
    p->o.q_dtype = p->o.kv_dtype = p->o.o_dtype = FP8_DTYPE_F32;
    p->o.quantize = quantize;
    p->o.quantize_p = 1;
    fill(p->q, SEQS * MAX_Q * HEADS * MAX_D, &seed);
    fill(p->k, SEQS * MAX_KV * KV_HEADS * MAX_D, &seed);
    fill(p->v, SEQS * MAX_KV * KV_HEADS * MAX_D, &seed);
    p->io = (fp8_attention_io){.o = p->out, .q = p->q, .k = p->k, .v = p->v,
                               .q_descale = descale, .k_descale = descale, .v_descale = descale};
    if (packed) {
        p->io.q_starts = q_starts;
        p->io.kv_starts = kv_starts;
        p->io.total_q = q_starts[SEQS];
        p->io.total_kv = kv_starts[SEQS];
    } else {
        p->io.q_lengths = q_lengths;
        p->io.kv_lengths = kv_lengths;
    }
}

/* Rows of d, by the definition: H[c][i] = (-1)^popcount(c & i). */
static void rotate(float *x, int rows, int32_t d, int32_t block) {
    float turned[MAX_D];
    for (float *row = x; row < x + rows * d; row += d) {
        for (int32_t c = 0; c < d; c++) {
            double sum = 0;
            for (int32_t i = 0; i < block; i++) {
                int odd = 0;
                for (int32_t bits = c % block & i; bits; bits &= bits - 1) odd ^= 1;
                sum += (double)row[c / block * block + i] * (odd ? -1 : 1);
            }
            turned[c] = (float)(sum / sqrt(block));
        }
        memcpy(row, turned, (size_t)d * sizeof *row);
    }
}

static void test_oracle(void) {
    static const struct {
        const char *name;
        int32_t d, block;
        int packed;
        fp8_attention_quantize quantize;
    } cases[] = {
        {"d 128, packed", 128, 128, 1, FP8_QUANTIZE_CURRENT},
        {"d 128, given descales", 128, 128, 0, FP8_QUANTIZE_GIVEN},
        {"d 256", 256, 128, 0, FP8_QUANTIZE_CURRENT},
        {"d 192", 192, 64, 1, FP8_QUANTIZE_GIVEN},
        {"d 96", 96, 32, 0, FP8_QUANTIZE_CURRENT},
        {"d 64", 64, 64, 1, FP8_QUANTIZE_CURRENT},
        {"d 7", 7, 1, 0, FP8_QUANTIZE_CURRENT},
        {"d 6", 6, 2, 1, FP8_QUANTIZE_CURRENT},
    };
    static problem a, b;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double lse[2][SEQS * MAX_Q * HEADS], worst = 0;
        check_case = cases[i].name;
        make(&a, cases[i].d, cases[i].packed, cases[i].quantize, i + 1);
        make(&b, cases[i].d, cases[i].packed, cases[i].quantize, i + 1);
        memset(a.out, 0, sizeof a.out);
        memset(b.out, 0, sizeof b.out);
        memset(lse, 0, sizeof lse);
        a.o.hadamard = 1;
        rotate(b.q, SEQS * MAX_Q * HEADS, cases[i].d, cases[i].block);
        rotate(b.k, SEQS * MAX_KV * KV_HEADS, cases[i].d, cases[i].block);
        CHECK_STATUS(fp8_attention_reference(a.out, lse[0], NULL, &a.o, &a.io), FP8_OK);
        CHECK_STATUS(fp8_attention_reference(b.out, lse[1], NULL, &b.o, &b.io), FP8_OK);
        for (size_t k = 0; k < sizeof a.out / sizeof *a.out; k++)
            worst = fmax(worst, fabs(a.out[k] - b.out[k]));
        for (size_t k = 0; k < sizeof lse[0] / sizeof *lse[0]; k++)
            if (lse[0][k] != lse[1][k]) worst = fmax(worst, fabs(lse[0][k] - lse[1][k]));
        CHECK(worst <= 1e-9);
    }
}

static void test_refusals(void) {
    static const struct {
        const char *name;
        fp8_dtype q, kv;
        fp8_attention_quantize quantize;
        fp8_status want;
        const char *text;
    } cases[] = {
        {"not quantized", FP8_DTYPE_BF16, FP8_DTYPE_BF16, FP8_QUANTIZE_NOT, FP8_EINVAL,
         "hadamard rotates Q and K"},
        {"codes", FP8_DTYPE_E4M3, FP8_DTYPE_E4M3, FP8_QUANTIZE_NOT, FP8_EINVAL,
         "hadamard rotates Q and K"},
        {"keys in codes", FP8_DTYPE_BF16, FP8_DTYPE_E4M3, FP8_QUANTIZE_CURRENT, FP8_EINVAL,
         "hadamard rotates Q and K"},
        {"the CPU", FP8_DTYPE_BF16, FP8_DTYPE_BF16, FP8_QUANTIZE_CURRENT, FP8_EUNSUPPORTED,
         "cpu: hadamard"},
    };
    fp8_device *cpu = NULL;
    CHECK_STATUS(fp8_device_create(&cpu, "cpu", 1), FP8_OK);
    for (size_t i = 0; cpu && i < sizeof cases / sizeof *cases; i++) {
        fp8_attention_options o = FP8_ATTENTION_OPTIONS;
        fp8_attention_plan *plan = NULL;
        o.num_heads = o.num_kv_heads = 1;
        o.d_qk = o.d_v = 64;
        o.num_seqs = 1;
        o.max_q = o.max_kv = 4;
        o.q_dtype = cases[i].q;
        o.kv_dtype = cases[i].kv;
        o.quantize = cases[i].quantize;
        o.quantize_p = o.hadamard = 1;
        check_case = cases[i].name;
        CHECK_STATUS(fp8_attention_plan_create(&plan, cpu, &o), cases[i].want);
        CHECK(strstr(fp8_last_message(), cases[i].text));
        fp8_attention_plan_destroy(plan);
    }
    fp8_device_destroy(cpu);
}

int main(void) {
    test_oracle();
    test_refusals();
    return CHECK_DONE();
}
