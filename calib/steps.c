#include "calib/steps.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

fp8_status fp8_steps_check(const fp8_samples *samples, const fp8_calib_options *options) {
    const int64_t batch = options->batch, seq = options->seq;
    if (batch < 1 || seq < 1 || batch > INT32_MAX / seq)
        return FP8_FAIL(FP8_EINVAL, "calibration steps of %lld samples of %lld tokens: expected "
                        "1 to %d tokens", (long long)batch, (long long)seq, INT32_MAX);
    if (samples->count < 1) return FP8_FAIL(FP8_EDATA, "no calibration samples");
    for (int64_t i = 0; i < samples->count; i++) {
        const int64_t n = samples->starts[i + 1] - samples->starts[i];
        if (n < 1 || n > seq)
            return FP8_FAIL(FP8_EINVAL, "calibration sample %lld: expected 1 to %lld ids, found "
                            "%lld", (long long)i, (long long)seq, (long long)n);
    }
    return FP8_OK;
}

int64_t fp8_steps_count(const fp8_samples *samples, int64_t batch) {
    return (samples->count + batch - 1) / batch;
}

void fp8_steps_batch(fp8_batch *out, int32_t *starts, const fp8_samples *samples, int64_t batch,
                     int64_t step) {
    const int64_t begin = step * batch, left = samples->count - begin;
    const int64_t *at = samples->starts + begin;

    out->num_seqs = left < batch ? left : batch;
    out->ids = samples->ids + at[0];
    out->num_tokens = at[out->num_seqs] - at[0];
    for (int64_t i = 0; i <= out->num_seqs; i++) starts[i] = (int32_t)(at[i] - at[0]);
    out->starts = starts;
}

fp8_status fp8_source_identify(fp8_record *r, const fp8_checkpoint *source) {
    r->source_bytes = fp8_checkpoint_bytes(source);
    r->source_mtime = 0;
    for (int32_t i = 0; i < fp8_checkpoint_num_shards(source); i++) {
        const char *path = fp8_safetensors_path(fp8_checkpoint_shard(source, i));
        struct stat info;
        if (stat(path, &info) != 0) return FP8_FAIL(FP8_EIO, "%s: %s", path, strerror(errno));
        if ((int64_t)info.st_mtime > r->source_mtime) r->source_mtime = (int64_t)info.st_mtime;
    }
    return fp8_checkpoint_fingerprint(source, &r->source_crc32);
}
