/* calib/turn.h - private: another basis for queries and keys, that costs them less in FP8.
 *
 * RoPE turns the pair (i, i + dim/2) of a head by an angle of its position. Another turn of the
 * pair, the same for the keys and for the queries that meet them, leaves every product q k as it
 * is, and can be put into the rows of the weights. E4M3 rounds with a relative error, so that a
 * product's noise goes with q1^2 k1^2 + q2^2 k2^2: least where a pair's energy is spread over both,
 * most where it lies on one, as it does in pairs that RoPE turns slowly.
 */
#ifndef FP8_CALIB_TURN_H
#define FP8_CALIB_TURN_H
#include <stdint.h>

#include "core/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

/* angles [kv_heads, pairs], each the one of 64 in [0, pi/2) with the least E[q1'^2] E[k1'^2] +
 * E[q2'^2] E[k2'^2], where x1' = x1 cos + x2 sin and x2' = x2 cos - x1 sin, over rows of
 *   q [rows, heads * dim], k [rows, kv_heads * dim]   after RoPE; query head h meets key head
 *   h / (heads / kv_heads). The pairs are (i, i + pairs); dim >= 2 * pairs. */
FP8_NODISCARD fp8_status fp8_turn_angles(double *angles, const float *q, const float *k,
                                         int64_t rows, int64_t heads, int64_t kv_heads,
                                         int64_t dim, int64_t pairs, fp8_pool *pool);

/* Turns rows of w [heads * dim, cols] in place, head h by angles of h / (heads / kv_heads). */
void fp8_turn_rows(float *w, const double *angles, int64_t heads, int64_t kv_heads, int64_t dim,
                   int64_t pairs, int64_t cols);

#ifdef __cplusplus
}
#endif
#endif
