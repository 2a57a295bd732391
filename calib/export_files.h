/* calib/export_files.h - private: what goes beside the weights of a checkpoint that is written from
 * another, and its metadata. */
#ifndef FP8_CALIB_EXPORT_FILES_H
#define FP8_CALIB_EXPORT_FILES_H
#include "formats/formats.h"

/* Tokenizer and generation files of the source, as they are. */
FP8_NODISCARD fp8_status fp8_export_companions(fp8_checkpoint_writer *w,
                                               const fp8_checkpoint *source);
/* config.json (its text at config_path) with the quantization_config of `quant` in the place of its
 * own, and what else the dialect wants; quant NULL: without one. config_path NULL, of a lone file:
 * that value alone, as quantization_config.json. */
FP8_NODISCARD fp8_status fp8_export_config(fp8_checkpoint_writer *w, const char *config_path,
                                           const fp8_quant_config *quant);
/* A writer whose metadata is the source's and `ours`, ours where both have a key. */
FP8_NODISCARD fp8_status fp8_export_writer(fp8_checkpoint_writer **out, const char *folder,
                                           const fp8_checkpoint *source, const fp8_st_spec *specs,
                                           const int64_t *groups, int64_t count,
                                           const fp8_st_pair *ours, int64_t num_ours,
                                           const fp8_checkpoint_writer_options *how);
/* FP8_EINVAL when the folder `out` is that of the source. */
FP8_NODISCARD fp8_status fp8_export_check_output(const char *out, const fp8_checkpoint *source);
#endif
