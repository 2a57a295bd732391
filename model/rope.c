/* Rotary position tables, as transformers makes them: frequencies and angles in F32, cos and sin
 * rounded to the compute type. */
#include <math.h>
#include <stdlib.h>

#include "core/half.h"
#include "model/model_impl.h"

static const double two_pi = 6.283185307179586;

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between blend. */
static float llama3_frequency(const fp8_rope_config *r, float frequency) {
    const float wavelength = (float)two_pi / frequency;
    const float original = (float)r->original_max_position, factor = (float)r->factor;
    const float low = (float)r->low_freq_factor, high = (float)r->high_freq_factor;
    float smooth;

    if (wavelength > original / low) return frequency / factor;
    if (wavelength < original / high) return frequency;
    smooth = (original / wavelength - low) / (high - low);
    return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

/* YaRN: the element that makes `rotations` full turns within the original length. */
static double yarn_element(const fp8_rope_config *r, int64_t dim, double rotations) {
    const double original = (double)r->original_max_position;
    return (double)dim * log(original / (rotations * two_pi)) / (2.0 * log(r->theta));
}

/* Fast elements stay, slow ones are stretched, those on the ramp between blend. */
static void yarn_frequencies(float *out, const fp8_rope_config *r, int64_t dim) {
    double low = yarn_element(r, dim, r->beta_fast), high = yarn_element(r, dim, r->beta_slow);

    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, (double)(dim - 1));
    if (high <= low && high >= low) high += 0.001;
    for (int64_t i = 0; i < dim / 2; i++) {
        const float turns = powf((float)r->theta, (float)(2 * i) / (float)dim);
        const float ramp = ((float)i - (float)low) / (float)(high - low);
        const float stay = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
        out[i] = 1.0f / ((float)r->factor * turns) * (1.0f - stay) + 1.0f / turns * stay;
    }
}

int64_t fp8_rope_key(const fp8_rope_config *rope, int64_t length) {
    if (rope->type == FP8_ROPE_LONGROPE) return length > rope->original_max_position;
    if (rope->type != FP8_ROPE_DYNAMIC) return 0;
    return length > rope->original_max_position ? length : rope->original_max_position;
}

/* Dynamic: the base grows with the length, so that the slowest element just fits into it. */
static float base_of(const fp8_rope_config *r, int64_t dim, int64_t key) {
    double stretch;
    if (r->type != FP8_ROPE_DYNAMIC || dim <= 2) return (float)r->theta;
    stretch = r->factor * (double)key / (double)r->original_max_position - (r->factor - 1.0);
    return (float)(r->theta * pow(stretch, (double)dim / (double)(dim - 2)));
}

void fp8_rope_frequencies(float *out, const fp8_rope_config *rope, int64_t dim, int64_t key) {
    const float *factors = key ? rope->long_factor : rope->short_factor;
    const float base = base_of(rope, dim, key);

    if (rope->type == FP8_ROPE_YARN) {
        yarn_frequencies(out, rope, dim);
        return;
    }
    for (int64_t i = 0; i < dim / 2; i++) {
        const float turns = powf(base, (float)(2 * i) / (float)dim), f = 1.0f / turns;
        out[i] = rope->type == FP8_ROPE_LINEAR     ? f / (float)rope->factor
                 : rope->type == FP8_ROPE_LLAMA3   ? llama3_frequency(rope, f)
                 : rope->type == FP8_ROPE_LONGROPE ? 1.0f / (factors[i] * turns)
                                                   : f;
    }
}

typedef struct table_job {
    float *cos, *sin;
    const float *frequencies;
    float factor;
    int64_t half;
    int bf16;
} table_job;

static fp8_status fill_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const table_job *j = ctx;
    (void)worker;
    for (int64_t p = begin; p < end; p++)
        for (int64_t i = 0; i < j->half; i++) {
            const float angle = (float)p * j->frequencies[i];
            const float c = (float)cos((double)angle) * j->factor;
            const float s = (float)sin((double)angle) * j->factor;
            j->cos[p * j->half + i] = j->bf16 ? fp8_round_bf16(c) : c;
            j->sin[p * j->half + i] = j->bf16 ? fp8_round_bf16(s) : s;
        }
    return FP8_OK;
}

static fp8_status make_table(fp8_model *m, fp8_rope_table *t, const fp8_rope_config *rope,
                             int64_t positions, int64_t key) {
    const int64_t half = m->config.rotary_dim / 2;
    const int scaled = rope->type == FP8_ROPE_YARN || rope->type == FP8_ROPE_LONGROPE;
    fp8_status st = FP8_OK;
    float *frequencies = NULL, *host = NULL;
    size_t bytes = 0;
    table_job job;

    FP8_TRY(fp8_mul_size(&bytes, (size_t)positions, (size_t)half * 2 * sizeof(float)));
    frequencies = malloc((size_t)half * sizeof *frequencies);
    host = malloc(bytes);
    if (!frequencies || !host) {
        st = FP8_FAIL(FP8_ENOMEM, "RoPE tables of %lld positions", (long long)positions);
        goto done;
    }
    fp8_rope_frequencies(frequencies, rope, m->config.rotary_dim, key);
    job = (table_job){host, host + positions * half, frequencies,
                      scaled ? (float)rope->attention_factor : 1.0f, half,
                      m->type == FP8_DTYPE_BF16};
    FP8_TRY(fp8_parallel_for(fp8_device_pool(m->device), positions, 64, fill_rows, &job));
    t->positions = 0;
    FP8_TRY(fp8_buffer_reserve(m->device, &t->memory, bytes));
    FP8_TRY(fp8_device_upload(m->device, t->memory.data, host, bytes));
    t->cos = t->memory.data;
    t->sin = t->cos + positions * half;
    t->positions = positions;
    t->key = key;
done:
    free(frequencies);
    free(host);
    return st;
}

static fp8_status extend(fp8_model *m, fp8_rope_table *t, const fp8_rope_config *rope,
                         int64_t positions) {
    if (rope->type == FP8_ROPE_NONE || positions <= t->positions) return FP8_OK;
    return make_table(m, t, rope, positions, t->positions ? t->key : fp8_rope_key(rope, 1));
}

fp8_status fp8_rope_extend(fp8_model *m, int64_t positions) {
    fp8_status st = FP8_OK;
    FP8_TRY(extend(m, &m->rope, &m->config.rope, positions));
    FP8_TRY(extend(m, &m->rope_local, &m->config.rope_local, positions));
done:
    return st;
}

static fp8_status fit(fp8_model *m, fp8_rope_table *t, const fp8_rope_config *rope,
                      int64_t length) {
    const int64_t key = fp8_rope_key(rope, length);
    if (rope->type == FP8_ROPE_NONE || key == t->key) return FP8_OK;
    return make_table(m, t, rope, t->positions, key);
}

fp8_status fp8_rope_fit(fp8_model *m, int64_t length) {
    fp8_status st = FP8_OK;
    FP8_TRY(fit(m, &m->rope, &m->config.rope, length));
    FP8_TRY(fit(m, &m->rope_local, &m->config.rope_local, length));
done:
    return st;
}
