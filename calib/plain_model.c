#include "calib/plain_model.h"

fp8_status fp8_plain_model_load(fp8_checkpoint **plain, fp8_model **m, fp8_device *d,
                                const char *scratch, const fp8_checkpoint *source,
                                const fp8_record *record, const fp8_export_options *options,
                                const fp8_model_options *how) {
    fp8_export_options plainly = *options;
    fp8_export_result result;
    fp8_status st = FP8_OK;

    plainly.force = 1;
    plainly.rounding = NULL;
    plainly.dialect = FP8_DIALECT_COMPRESSED_TENSORS; /* has all schemes; nobody else reads it */
    FP8_TRY(fp8_export(&result, scratch, source, d, record, &plainly));
    FP8_TRY(fp8_checkpoint_open(plain, scratch));
    FP8_TRY(fp8_model_load(m, d, *plain, how));
done:
    return st;
}
