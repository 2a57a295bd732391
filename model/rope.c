/* Rotary position tables, as transformers makes them: frequencies and angles in F32, cos and sin
 * rounded to the compute type. */
#include <math.h>
#include <stdlib.h>

#include "core/half.h"
#include "model/model_impl.h"

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between blend. */
static float llama3_frequency(const fp8_rope_config *r, float frequency) {
    const float wavelength = 6.283185307179586f / frequency;
    const float original = (float)r->original_max_position, factor = (float)r->factor;
    const float low = (float)r->low_freq_factor, high = (float)r->high_freq_factor;
    float smooth;

    if (wavelength > original / low) return frequency / factor;
    if (wavelength < original / high) return frequency;
    smooth = (original / wavelength - low) / (high - low);
    return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

void fp8_rope_frequencies(float *out, const fp8_rope_config *rope, int64_t dim) {
    for (int64_t i = 0; i < dim / 2; i++) {
        const float f = 1.0f / powf((float)rope->theta, (float)(2 * i) / (float)dim);
        out[i] = rope->type == FP8_ROPE_LINEAR   ? f / (float)rope->factor
                 : rope->type == FP8_ROPE_LLAMA3 ? llama3_frequency(rope, f)
                                                 : f;
    }
}

typedef struct table_job {
    float *cos, *sin;
    const float *frequencies;
    int64_t half;
    int bf16;
} table_job;

static fp8_status fill_rows(void *ctx, int64_t begin, int64_t end, int32_t worker) {
    const table_job *j = ctx;
    (void)worker;
    for (int64_t p = begin; p < end; p++)
        for (int64_t i = 0; i < j->half; i++) {
            const float angle = (float)p * j->frequencies[i];
            const float c = (float)cos((double)angle), s = (float)sin((double)angle);
            j->cos[p * j->half + i] = j->bf16 ? fp8_round_bf16(c) : c;
            j->sin[p * j->half + i] = j->bf16 ? fp8_round_bf16(s) : s;
        }
    return FP8_OK;
}

fp8_status fp8_rope_extend(fp8_model *m, int64_t positions) {
    const int64_t half = m->config.head_dim / 2;
    fp8_status st = FP8_OK;
    float *frequencies = NULL, *host = NULL;
    size_t bytes = 0;
    table_job job;

    if (m->config.rope.type == FP8_ROPE_NONE || positions <= m->rope_positions) return FP8_OK;
    FP8_TRY(fp8_mul_size(&bytes, (size_t)positions, (size_t)half * 2 * sizeof(float)));
    frequencies = malloc((size_t)half * sizeof *frequencies);
    host = malloc(bytes);
    if (!frequencies || !host) {
        st = FP8_FAIL(FP8_ENOMEM, "RoPE tables of %lld positions", (long long)positions);
        goto done;
    }
    fp8_rope_frequencies(frequencies, &m->config.rope, m->config.head_dim);
    job = (table_job){host, host + positions * half, frequencies, half, m->type == FP8_DTYPE_BF16};
    FP8_TRY(fp8_parallel_for(fp8_device_pool(m->device), positions, 64, fill_rows, &job));
    m->rope_positions = 0;
    FP8_TRY(fp8_buffer_reserve(m->device, &m->rope, bytes));
    FP8_TRY(fp8_device_upload(m->device, m->rope.data, host, bytes));
    m->rope_cos = m->rope.data;
    m->rope_sin = m->rope_cos + positions * half;
    m->rope_positions = positions;
done:
    free(frequencies);
    free(host);
    return st;
}
