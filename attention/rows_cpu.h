/* attention/rows_cpu.h - private: rows of Q, K, V into F32 for the CPU backend, quantized on the
 * way where the options ask for it, and rows of O out of F32. */
#ifndef FP8_ATTENTION_ROWS_CPU_H
#define FP8_ATTENTION_ROWS_CPU_H
#include "attention/attention_impl.h"
#include "attention/tile_cpu.h"

/* Q, K or V. A row comes out as what its codes stand for, without the descale. */
typedef struct cpu_operand {
    const void *data;
    fp8_dtype dtype;
    fp8_strides strides;
    int64_t d, group; /* group: heads that share a KV head */
    int quantize;
    const float *descales; /* NULL: as good as 1 */
    const int32_t *starts, *lengths;
    int64_t total, longest;
} cpu_operand;

enum { CPU_Q, CPU_K, CPU_V, CPU_OPERANDS };

/* Floats of `current` below. */
int64_t attention_cpu_descales(const fp8_attention_options *o);

/* Fills all[CPU_OPERANDS]. With FP8_QUANTIZE_CURRENT it measures the amax of what is to be
 * quantized, and `current` holds the descales. */
fp8_status attention_cpu_operands(cpu_operand *all, const fp8_attention_options *o,
                                  const fp8_attention_io *io, float *current,
                                  const attention_tile_kernels *kernels, fp8_pool *pool);

/* Of KV head `kv_head` of sequence `seq`. */
float attention_cpu_descale(const cpu_operand *x, const fp8_attention_options *o, int64_t seq,
                            int64_t kv_head);

/* out[d] = row (seq, token, head); token counts from the sequence's begin on. */
void attention_cpu_load(const cpu_operand *x, const fp8_attention_options *o,
                        const attention_tile_kernels *kernels, int64_t seq, int64_t token,
                        int64_t head, float *out);

/* base[at .. at + n) = x, rounded once; E4M3: of x * scale. */
void attention_cpu_store(void *base, fp8_dtype dtype, int64_t at, const float *x, int64_t n,
                         float scale);
#endif
