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
