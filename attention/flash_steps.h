/* attention/flash_steps.h - private: the launches of a run of the flash backend, always the same
 * kernels one after the other, as a CUDA graph made with the plan: a run gives the nodes what has
 * changed since the last one, mostly nothing, and launches them all at once. That costs the calling
 * thread less than two launches (docs/NOTES.md). */
#ifndef FP8_ATTENTION_FLASH_STEPS_H
#define FP8_ATTENTION_FLASH_STEPS_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct flash_steps flash_steps;

/* Where launches go: to a stream one by one, or into steps. */
typedef struct flash_queue {
    fp8_stream stream;
    flash_steps *steps; /* NULL: to the stream */
} flash_queue;

/* One launch of a kernel that takes one parameter, of `bytes`. */
typedef struct flash_step {
    const char *name;
    const void *kernel;
    const void *parameter;
    size_t bytes, shared;
    uint32_t blocks, threads;
} flash_step;

/* From create to finish every flash_steps_put adds a step, whose parameter is not looked at yet.
 * Then a run is begin, one put for each of them in the same order, and launch. */
FP8_NODISCARD fp8_status flash_steps_create(flash_steps **out);
FP8_NODISCARD fp8_status flash_steps_finish(flash_steps *s);
void flash_steps_begin(flash_steps *s);
FP8_NODISCARD fp8_status flash_steps_put(flash_steps *s, const flash_step *x);
/* Asynchronous. */
FP8_NODISCARD fp8_status flash_steps_launch(flash_steps *s, fp8_stream stream);
void flash_steps_destroy(flash_steps *s); /* NULL is fine */

/* Whether the stream is being captured: then launches go to it one by one. */
FP8_NODISCARD fp8_status flash_steps_captured(int *out, fp8_stream stream);

#ifdef __cplusplus
}
#endif
#endif
