/* attention/scores_cpu.h - private: what the CPU backend does to a tile's scores beside scaling
 * them: mask, bias, softcap, ALiBi. */
#ifndef FP8_ATTENTION_SCORES_CPU_H
#define FP8_ATTENTION_SCORES_CPU_H
#include "attention/attention_impl.h"
#include "attention/tile_cpu.h"

/* Rows of one KV head of one sequence: row r of the tile is query first_row + r, token (first_row +
 * r) / group, head r % group of the group. */
typedef struct cpu_scores {
    const fp8_attention_options *options;
    const void *bias;
    const uint8_t *mask;
    const float *slopes; /* NULL: the usual ones */
    int64_t seq, kv_head, group, first_row, s_q, s_kv;
} cpu_scores;

int attention_cpu_adjusts(const fp8_attention_options *o); /* 0: there is nothing to do */

/* An attention_tile's adjust; ctx is a cpu_scores. */
void attention_cpu_adjust(const void *ctx, attention_tile *t, int64_t first, int64_t keys);
#endif
