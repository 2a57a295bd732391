#include "calib/histogram.h"

#include <float.h>
#include <math.h>

#include "core/half.h"
#include "formats/record.h"
#include "quant/cast.h"

enum { BF16_OF_A_BIN = 16 }; /* a bin fixes 3 of BF16's 7 mantissa bits */

float fp8_histogram_cut(const int64_t *bins, double percentile) {
    fp8_error_stats stats = {0};
    double edge;

    for (int b = 0; b < FP8_RECORD_BINS; b++) {
        stats.bins[b] = (uint64_t)bins[b];
        stats.count += stats.bins[b];
    }
    edge = fp8_error_quantile(&stats, percentile / 100);
    return edge < (double)FLT_MAX ? (float)edge : FLT_MAX;
}

static double squared_error(float x, const float pair[2]) {
    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, x * pair[0]);
    const double e = (double)x - (double)(fp8_to_f32(FP8_DTYPE_E4M3, code) * pair[1]);
    return e * e;
}

/* ---- searches -------------------------------------------------------------------------------- */

enum { BINS_BELOW = 12 * 8 }; /* 12 octaves of 8 bins */

static uint32_t bin_of(float x) { return fp8_f32_bits(x) >> 20; }
static float edge_of(uint32_t bin) { return fp8_bits_f32((bin + 1) << 20); }
static float value_of(uint32_t bin, uint32_t k) { return fp8_bits_f32(bin << 20 | k << 16); }

typedef double (*cost_fn)(const int64_t *bins, uint32_t last, const float pair[2]);

static float search(const int64_t *bins, const fp8_recipe *recipe, float amax, cost_fn cost) {
    const uint32_t top = bin_of(amax);
    double least;
    float best = amax, pair[2] = {1, 1};

    if (!(amax > 0) || !isfinite(amax)) return amax;
    fp8_recipe_scale(recipe, FP8_DTYPE_E4M3, amax, &pair[0], &pair[1]);
    least = cost(bins, top, pair);
    for (uint32_t bin = top; bin-- > 0 && top - bin <= BINS_BELOW;) {
        const float edge = edge_of(bin);
        double now;
        fp8_recipe_scale(recipe, FP8_DTYPE_E4M3, edge, &pair[0], &pair[1]);
        now = cost(bins, bin, pair);
        if (!(now < least)) continue;
        least = now;
        best = edge;
    }
    return best;
}

static double noise(const int64_t *bins, uint32_t last, const float pair[2]) {
    double sum = 0;

    (void)last;
    for (uint32_t b = 0; b < FP8_RECORD_BINS; b++) {
        double all = 0;
        if (bins[b] == 0) continue;
        for (uint32_t k = 0; k < BF16_OF_A_BIN; k++) all += squared_error(value_of(b, k), pair);
        sum += (double)bins[b] * all / BF16_OF_A_BIN;
    }
    return sum;
}

/* Bins [*begin, end) of one code of `middle`: end. */
static uint32_t same_code(uint32_t begin, uint32_t last, float scale) {
    const uint8_t code = fp8_from_f32(FP8_DTYPE_E4M3, value_of(begin, BF16_OF_A_BIN / 2) * scale);
    uint32_t end = begin + 1;
    while (end <= last &&
           fp8_from_f32(FP8_DTYPE_E4M3, value_of(end, BF16_OF_A_BIN / 2) * scale) == code)
        end++;
    return end;
}

static double divergence(const int64_t *bins, uint32_t last, const float pair[2]) {
    double inside = 0, outside = 0, sum = 0;

    for (uint32_t b = 0; b < FP8_RECORD_BINS; b++)
        *(b <= last ? &inside : &outside) += (double)bins[b];
    if (!(inside > 0)) return INFINITY;
    for (uint32_t begin = 0, end; begin <= last; begin = end) {
        double mass = 0, used = 0;
        end = same_code(begin, last, pair[0]);
        for (uint32_t b = begin; b < end; b++) {
            mass += (double)bins[b];
            used += bins[b] > 0;
        }
        for (uint32_t b = begin; b < end; b++) {
            const double p = ((double)bins[b] + (b == last ? outside : 0)) / (inside + outside);
            const double q = bins[b] > 0 ? mass / used / inside : 0;
            if (p > 0) sum += q > 0 ? p * log(p / q) : INFINITY;
        }
    }
    return sum;
}

float fp8_histogram_mse(const int64_t *bins, const fp8_recipe *recipe, float amax) {
    return search(bins, recipe, amax, noise);
}

float fp8_histogram_entropy(const int64_t *bins, const fp8_recipe *recipe, float amax) {
    return search(bins, recipe, amax, divergence);
}

double fp8_histogram_gain(const int64_t *bins, const float before[2], const float after[2]) {
    double gain = 0;

    for (uint32_t b = 0; b < FP8_RECORD_BINS; b++) {
        double least = INFINITY;
        if (bins[b] == 0) continue;
        for (uint32_t k = 0; k < BF16_OF_A_BIN; k++) {
            const float x = fp8_bits_f32(b << 20 | k << 16);
            least = fmin(least, squared_error(x, before) - squared_error(x, after));
        }
        gain += (double)bins[b] * least;
    }
    return gain;
}
