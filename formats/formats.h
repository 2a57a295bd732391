/* formats/formats.h - everything that is read from or written to disk. No CUDA, no arithmetic on
 * weights. Whatever comes from outside is checked whole before any of it is used; whatever goes out
 * appears whole or not at all. */
#ifndef FP8_FORMATS_FORMATS_H
#define FP8_FORMATS_FORMATS_H
#include "formats/checkpoint.h"
#include "formats/config.h"
#include "formats/descales.h"
#include "formats/dialect.h"
#include "formats/file.h"
#include "formats/json.h"
#include "formats/lint.h"
#include "formats/record.h"
#include "formats/safetensors.h"
#include "formats/textdata.h"
#include "formats/tokenizer.h"
#endif
