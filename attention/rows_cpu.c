#include "attention/rows_cpu.h"

#include <string.h>

#include "core/half.h"
#include "core/mathfn.h"
#include "quant/quant.h"

static const void *element(const void *base, fp8_dtype dtype, int64_t index) {
    return (const uint8_t *)base + index * (int64_t)fp8_dtype_size(dtype);
}

/* ---- quantizing ------------------------------------------------------------------------------ */

/* x[i] = the value of e4m3(x[i] * scale), in integers where comparisons would keep the loop from
 * becoming vectors: three mantissa bits, or below 2^-6 a multiple of 2^-9, which is the spacing of
 * floats at 2^14; magnitudes saturate at 448, NaN stays. */
FP8_VECTOR static void round_row(float *x, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = fp8_f32_bits(x[i] * scale), sign = bits & 0x80000000u;
        const uint32_t raw = bits & 0x7fffffffu, is_nan = raw > 0x7f800000u;
        const uint32_t mag = raw < 0x43e00000u ? raw : 0x43e00000u;
        const uint32_t normal = (mag + 0x7ffffu + ((mag >> 20) & 1u)) & 0xfff00000u;
        const uint32_t small = fp8_f32_bits((fp8_bits_f32(mag) + 16384.0f) - 16384.0f);
        const uint32_t rounded = mag < 0x3c800000u ? small : normal;
        x[i] = fp8_bits_f32(sign | (is_nan ? raw : rounded));
    }
}

/* max |x| over the finite ones, as bits, which order like the values. */
FP8_VECTOR static uint32_t finite_amax(const float *x, int64_t n, uint32_t amax) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t mag = fp8_f32_bits(x[i]) & 0x7fffffffu;
        const uint32_t finite = mag < 0x7f800000u ? mag : 0u;
        amax = finite > amax ? finite : amax;
    }
    return amax;
}

/* ---- current descales ------------------------------------------------------------------------ */

static int64_t group_count(const fp8_attention_options *o) {
    if (o->granularity == FP8_DESCALE_TENSOR) return 1;
    return o->granularity == FP8_DESCALE_HEAD ? o->num_kv_heads : o->num_seqs * o->num_kv_heads;
}

/* Descales of three tensors, then the amax of every (tensor, sequence, KV head) and a row. */
int64_t attention_cpu_descales(const fp8_attention_options *o) {
    if (o->quantize != FP8_QUANTIZE_CURRENT) return 0;
    return CPU_OPERANDS * (group_count(o) + o->num_seqs * o->num_kv_heads);
}

typedef struct amax_job {
    const cpu_operand *all;
    const fp8_attention_options *o;
    const attention_tile_kernels *kernels;
    float *amax; /* [CPU_OPERANDS, num_seqs, num_kv_heads] */
} amax_job;

/* In pieces of a row that fit a buffer. */
static uint32_t row_amax(const amax_job *j, const cpu_operand *x, int64_t row, uint32_t amax) {
    float piece[256];
    for (int64_t c = 0; c < x->d; c += 256) {
        const int64_t n = x->d - c < 256 ? x->d - c : 256;
        j->kernels->widen(piece, element(x->data, x->dtype, row + c), x->dtype, n);
        amax = finite_amax(piece, n, amax);
    }
    return amax;
}

static fp8_status measure_units(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const amax_job *j = ctx;
    const int64_t heads = j->o->num_kv_heads, units = j->o->num_seqs * heads;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const cpu_operand *x = &j->all[i / units];
        const int64_t seq = i % units / heads, first_head = i % heads * x->group;
        int64_t start, tokens;
        uint32_t amax = 0;
        if (!x->quantize) continue;
        tokens = attention_sequence(x->starts, x->lengths, seq, x->total, x->longest, &start);
        for (int64_t t = start; t < start + tokens; t++)
            for (int64_t h = first_head; h < first_head + x->group; h++)
                amax = row_amax(j, x, attention_offset(x->strides, seq, t, h), amax);
        j->amax[i] = fp8_bits_f32(amax);
    }
    return FP8_OK;
}

static fp8_status measure(cpu_operand *all, const fp8_attention_options *o, float *current,
                          const attention_tile_kernels *kernels, fp8_pool *pool) {
    const int64_t units = o->num_seqs * o->num_kv_heads, groups = group_count(o);
    amax_job j = {all, o, kernels, current + CPU_OPERANDS * groups};
    fp8_status st;

    FP8_TRY(fp8_parallel_for(pool, CPU_OPERANDS * units, 1, measure_units, &j));
    for (int i = 0; i < CPU_OPERANDS; i++) {
        float *descales = current + i * groups;
        if (!all[i].quantize) continue;
        memset(descales, 0, (size_t)groups * sizeof *descales);
        for (int64_t u = 0; u < units; u++) {
            const int64_t at =
                attention_descale_index(o, u / o->num_kv_heads, u % o->num_kv_heads);
            if (j.amax[i * units + u] > descales[at]) descales[at] = j.amax[i * units + u];
        }
        for (int64_t g = 0; g < groups; g++) descales[g] = attention_descale_of(descales[g]);
        all[i].descales = descales;
    }
done:
    return st;
}

/* ---- operands -------------------------------------------------------------------------------- */

static void describe(cpu_operand *x, const fp8_attention_options *o, const float *descales) {
    x->quantize = x->dtype != FP8_DTYPE_E4M3 && o->quantize != FP8_QUANTIZE_NOT;
    x->descales = x->dtype == FP8_DTYPE_E4M3 || o->quantize == FP8_QUANTIZE_GIVEN ? descales : NULL;
}

fp8_status attention_cpu_operands(cpu_operand *all, const fp8_attention_options *o,
                                  const fp8_attention_io *io, float *current,
                                  const attention_tile_kernels *kernels, fp8_pool *pool) {
    all[CPU_Q] = (cpu_operand){.data = io->q, .dtype = o->q_dtype, .strides = o->q, .d = o->d_qk,
                               .group = o->num_heads / o->num_kv_heads, .starts = io->q_starts,
                               .lengths = io->q_lengths, .total = io->total_q,
                               .longest = o->max_q};
    all[CPU_K] = (cpu_operand){.data = io->k, .dtype = o->kv_dtype, .strides = o->k, .d = o->d_qk,
                               .group = 1, .starts = io->kv_starts, .lengths = io->kv_lengths,
                               .total = io->total_kv, .longest = o->max_kv};
    all[CPU_V] = all[CPU_K];
    all[CPU_V].data = io->v;
    all[CPU_V].strides = o->v;
    all[CPU_V].d = o->d_v;
    describe(&all[CPU_Q], o, io->q_descale);
    describe(&all[CPU_K], o, io->k_descale);
    describe(&all[CPU_V], o, io->v_descale);
    if (o->quantize != FP8_QUANTIZE_CURRENT) return FP8_OK;
    return measure(all, o, current, kernels, pool);
}

float attention_cpu_descale(const cpu_operand *x, const fp8_attention_options *o, int64_t seq,
                            int64_t kv_head) {
    return x->descales ? x->descales[attention_descale_index(o, seq, kv_head)] : 1.0f;
}

void attention_cpu_load(const cpu_operand *x, const fp8_attention_options *o,
                        const attention_tile_kernels *kernels, int64_t seq, int64_t token,
                        int64_t head, float *out) {
    const int64_t at = attention_offset(x->strides, seq, token, head);
    kernels->widen(out, element(x->data, x->dtype, at), x->dtype, x->d);
    if (x->quantize)
        round_row(out, x->d, 1.0f / attention_cpu_descale(x, o, seq, head / x->group));
}

void attention_cpu_store(void *base, fp8_dtype dtype, int64_t at, const float *x, int64_t n,
                         float scale) {
    switch (dtype) {
    case FP8_DTYPE_F32: memcpy((float *)base + at, x, (size_t)n * sizeof *x); break;
    case FP8_DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) ((uint16_t *)base)[at + i] = fp8_f32_to_bf16(x[i]);
        break;
    case FP8_DTYPE_F16:
        for (int64_t i = 0; i < n; i++) ((uint16_t *)base)[at + i] = fp8_f32_to_f16(x[i]);
        break;
    default:
        for (int64_t i = 0; i < n; i++)
            ((uint8_t *)base)[at + i] = fp8_from_f32(FP8_DTYPE_E4M3, x[i] * scale);
    }
}
