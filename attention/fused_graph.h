/* attention/fused_graph.h - private: attention as the operation graph that cuDNN's engines
 * recognise, compiled, and kept for the process by configuration. */
#ifndef FP8_ATTENTION_FUSED_GRAPH_H
#define FP8_ATTENTION_FUSED_GRAPH_H
#include "attention/attention_impl.h"
#include "attention/cudnn_graph.h"

/* What a run binds, by place. Scalars that come after these live in the graph. */
typedef enum fused_slot {
    FUSED_Q,
    FUSED_K,
    FUSED_V,
    FUSED_O,
    FUSED_STATS,    /* F32 [b, h, s_q, 1] */
    FUSED_Q_LENGTH, /* I32 [b], also the next */
    FUSED_KV_LENGTH,
    FUSED_Q_OFFSET, /* I64 [b + 1] elements, also the next three */
    FUSED_K_OFFSET,
    FUSED_V_OFFSET,
    FUSED_O_OFFSET,
    FUSED_BIAS,
    FUSED_SLOPES, /* F32 [h] */
    FUSED_SINK,   /* F32 [h] */
    FUSED_Q_DESCALE, /* F32 [1], all from here on */
    FUSED_K_DESCALE,
    FUSED_V_DESCALE,
    FUSED_P_SCALE,
    FUSED_P_DESCALE,
    FUSED_O_SCALE,
    FUSED_P_AMAX,
    FUSED_O_AMAX,
    FUSED_NUM_SLOTS
} fused_slot;

/* Everything a compiled graph depends on, in members of eight bytes, so that configurations are
 * compared as bytes. */
typedef struct fused_config {
    int64_t device; /* CUDA ordinal */
    int64_t num_seqs, num_heads, num_kv_heads, s_q, s_kv, d_qk, d_v;
    fp8_strides q, k, v, o;
    int64_t in, out;                    /* fp8_dtype */
    int64_t padding;                    /* lengths and offsets are bound */
    int64_t bottom_right, left, right;  /* keys from diagonal - left to + right; -1 = no bound */
    int64_t bias, bias_batch, bias_heads; /* fp8_dtype + 1, 0 = none; sizes 1 or b, 1 or h */
    int64_t alibi, sink, stats, amax;
    double scale, softcap;
} fused_config;

typedef struct fused_graph {
    fused_config config;
    cudnn_graph graph;
    int64_t num_bound;
    int64_t uids[CUDNN_PACK_MAX];
    int32_t slots[CUDNN_PACK_MAX]; /* fused_slot, or -1 for a scalar */
    union {
        float f;
        int32_t i;
    } scalars[CUDNN_PACK_MAX]; /* at the same index */
    int64_t users, last_use;
    struct fused_graph *next;
} fused_graph;

/* The resolved options as a configuration. */
void attention_fused_configure(fused_config *out, const fp8_attention_options *o, int32_t device);

/* Builds and compiles `g` from its config with `handle`. FP8_EUNSUPPORTED in cuDNN's words. */
fp8_status attention_fused_build(fused_graph *g, cudnnHandle_t handle);

/* The compiled graph of a configuration: found, or built and kept. Compiling takes a fraction of a
 * second, so up to FUSED_KEPT graphs that nobody uses any more are kept for the process, the least
 * recently used being dropped first. Thread-safe. A graph in use is never changed. */
enum { FUSED_KEPT = 64 };
fp8_status attention_fused_acquire(fused_graph **out, const fused_config *config);
void attention_fused_release(fused_graph *g);

/* Runs a compiled graph on `stream`; slots: a pointer each, NULL where the graph has none. One
 * handle a CUDA device serves all threads, one at a time. */
fp8_status attention_fused_execute(fused_graph *g, cudnn_pack *pack, fp8_stream stream,
                                   void *const slots[FUSED_NUM_SLOTS], void *workspace);
#endif
