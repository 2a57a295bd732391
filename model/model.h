/* model/model.h - a decoder transformer from a checkpoint: its forward, with or without a KV
 * cache, BF16, F32 or FP8 as the checkpoint says, on the CPU or CUDA; greedy generation.
 *
 * The wiring of a transformer is written once (model/layer.c, model/forward.c) over operations with
 * a CPU and a CUDA version. One thread drives a model at a time. */
#ifndef FP8_MODEL_MODEL_H
#define FP8_MODEL_MODEL_H
#include <stddef.h>
#include <stdint.h>

#include "core/device.h"
#include "formats/formats.h"
#include "model/block.h"
#include "quant/cast.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct fp8_model fp8_model;

typedef enum fp8_compute {
    FP8_COMPUTE_BF16, /* BF16 residual stream, F32 inside norms, softmax and sums: as HF computes */
    FP8_COMPUTE_F32   /* CPU only: for parity tests */
} fp8_compute;

/* The Linears' weights on the device. */
typedef enum fp8_weight_form {
    FP8_FORM_AS_STORED,
    FP8_FORM_QUANTIZED, /* dense ones become E4M3 with a scale an output channel, their inputs are
                         * quantized with one a token; not those kept [in, out] */
    FP8_FORM_VALUES,    /* codes become the values they stand for, in the compute type, and their
                         * inputs are not quantized; not codes scaled in blocks */
    FP8_FORM_CAST       /* codes are made anew in every pass, of dense values that are kept beside
                         * them: to measure what weights kept in FP8 alone save */
} fp8_weight_form;

typedef struct fp8_model_options {
    fp8_compute compute;
    fp8_weight_form weights;
    int64_t max_tokens; /* most tokens one forward may bring: sizes the scratch. 0: 4096 */
    const char *config_json; /* NULL: config.json beside the checkpoint; else this file's path */
    /* Device memory for the model and what works with it, in bytes. Where its weights do not fit,
     * those of the layers are there only while they are run, two layers at a time: see
     * fp8_model_forward_layers. 0: no limit. */
    size_t memory_bytes;
} fp8_model_options;

/* Loads the weights onto `d` (kept, must outlive the model). `c` must outlive the model too: on
 * the CPU weights stay in its mapping. FP8_ENOTFOUND names a missing tensor, FP8_EFORMAT a
 * tensor of the wrong shape or dtype (expected, found), FP8_EDATA a scale that is not finite and
 * positive; FP8_EUNSUPPORTED: weights that cannot take the form asked for. */
FP8_NODISCARD fp8_status fp8_model_load(fp8_model **out, fp8_device *d, const fp8_checkpoint *c,
                                        const fp8_model_options *options);
void fp8_model_destroy(fp8_model *m);
const fp8_model_config *fp8_model_get_config(const fp8_model *m);
const fp8_quant_config *fp8_model_get_quant(const fp8_model *m);
fp8_device *fp8_model_device(const fp8_model *m);
fp8_compute fp8_model_compute(const fp8_model *m);
int64_t fp8_model_max_tokens(const fp8_model *m); /* most that one forward may bring */

/* Names on disk of the Linears of a layer, in wiring order; what calibration and export work on. */
typedef enum fp8_linear_kind {
    FP8_LINEAR_Q, FP8_LINEAR_K, FP8_LINEAR_V, FP8_LINEAR_QKV, /* GPT-2, Phi-3: one fused QKV */
    FP8_LINEAR_O, FP8_LINEAR_GATE_UP,                         /* Phi-3: both in one, gate first */
    FP8_LINEAR_GATE, FP8_LINEAR_UP, FP8_LINEAR_DOWN           /* GPT-2: UP is c_fc */
} fp8_linear_kind;

/* Where an activation is seen. Layer -1 for LM_HEAD_INPUT. */
typedef enum fp8_point {
    FP8_POINT_HIDDEN,     /* the residual stream entering the layer; layer num_layers: the output
                           * of the final norm */
    FP8_POINT_QKV_INPUT,  /* input of q, k, v */
    FP8_POINT_Q,          /* after q norm and RoPE */
    FP8_POINT_K,
    FP8_POINT_V,
    FP8_POINT_O_INPUT,    /* the attention output */
    FP8_POINT_UP_INPUT,   /* input of gate and up */
    FP8_POINT_DOWN_INPUT, /* of a mixture: [tokens, experts_per_token * expert_size], the experts'
                           * in the order of their indices */
    FP8_POINT_SHARED_DOWN_INPUT, /* of the shared expert, beside a mixture */
    FP8_POINT_LM_HEAD_INPUT,
    FP8_NUM_POINTS
} fp8_point;

enum { FP8_NO_EXPERT = -1, FP8_SHARED_EXPERT = -2 };

typedef struct fp8_linear_info {
    char name[256];   /* "model.layers.0.self_attn.q_proj": + ".weight" is the tensor */
    int32_t layer;
    fp8_linear_kind kind;
    fp8_point input;  /* the point that is its input */
    int in_out;       /* weight is kept [in, out] */
    int64_t in, out;
    int32_t group;    /* Linears of one group share one weight amax: q/k/v, gate/up of a layer, or
                       * of an expert; neighbours in the list */
    int32_t expert;   /* FP8_NO_EXPERT, FP8_SHARED_EXPERT, or which */
} fp8_linear_info;

/* Every Linear that is quantized (lm_head and embeddings are not among them), for the architecture
 * and names of this checkpoint; free(). Needs no loaded model. */
FP8_NODISCARD fp8_status fp8_model_list_linears(fp8_linear_info **out, int64_t *count,
                                                const fp8_model_config *config,
                                                const fp8_checkpoint *c);
/* Name of a layer's attention module ("model.layers.3.self_attn"), where k_scale hangs. */
FP8_NODISCARD fp8_status fp8_model_attention_name(char *buf, size_t bytes,
                                                  const fp8_model_config *config,
                                                  const fp8_checkpoint *c, int32_t layer);

/* The weight of a Linear as the checkpoint has it, bit for bit, in the place of the model's device;
 * NULL where the model keeps it in another form, or only while a layer is run. The model's own. */
const void *fp8_model_weight(const fp8_model *m, const fp8_linear_info *info,
                             const fp8_st_entry *entry);

/* Tokens that each expert of a mixture was given since the model was loaded: [num_experts]; NULL:
 * the layer is none. The model's own memory. */
const int64_t *fp8_model_expert_tokens(const fp8_model *m, int64_t layer);

/* Called as the forward passes each point; x [tokens, width] in the device's place, valid until the
 * call returns (on CUDA: until the stream passes). Anything but FP8_OK ends the forward. */
typedef struct fp8_tap {
    fp8_status (*on)(void *ctx, int32_t layer, fp8_point point, const fp8_tensor *x);
    void *ctx;
    /* NULL, or asked where what makes x can join its figures to a slot, as fp8_observe does but of
     * the values before they are rounded to the compute type: *first [tokens] is as fp8_observe's,
     * in the device's place. A slot: on() is not called for that x. NULL: it is. */
    fp8_amax_slot *(*slot)(void *ctx, int32_t layer, fp8_point point, const uint8_t **first);
} fp8_tap;

typedef struct fp8_kv_cache fp8_kv_cache; /* one sequence's keys and values, all layers */
FP8_NODISCARD fp8_status fp8_kv_cache_create(fp8_kv_cache **out, fp8_model *m, int64_t capacity);
void fp8_kv_cache_destroy(fp8_kv_cache *c);
int64_t fp8_kv_cache_length(const fp8_kv_cache *c);
void fp8_kv_cache_clear(fp8_kv_cache *c);

typedef enum fp8_logits { FP8_LOGITS_NONE, FP8_LOGITS_ALL, FP8_LOGITS_LAST } fp8_logits;

/* Packed sequences. Host arrays. Without a cache each sequence starts at position 0; with one
 * there is one sequence, and it goes on where the cache ends. */
typedef struct fp8_batch {
    const int32_t *ids;     /* [num_tokens] */
    int64_t num_tokens;
    const int32_t *starts;  /* [num_seqs + 1], 0 first, num_tokens last, no empty sequence */
    int64_t num_seqs;
} fp8_batch;

/* *logits (may be NULL with NONE) = F32 [num_tokens or num_seqs, vocab] in the device's place,
 * the model's own memory until its next forward. Asynchronous on CUDA. FP8_EINVAL: batch
 * malformed, more tokens than max_tokens, an id outside the vocabulary, a position past
 * max_position where positions are learned, cache full. */
FP8_NODISCARD fp8_status fp8_model_forward(fp8_model *m, const fp8_batch *batch,
                                           fp8_kv_cache *cache, const fp8_tap *tap,
                                           fp8_logits want, fp8_tensor *logits);

/* Several batches, without a cache and without logits, taken through the layers together: the same
 * values as one forward after another, at the cost of their hidden states (two rows a token), with
 * each layer's weights needed once. taps [count]; after_layer may be NULL, and ends it all with
 * anything but FP8_OK. */
typedef fp8_status (*fp8_layer_fn)(void *ctx, int64_t layer);
FP8_NODISCARD fp8_status fp8_model_forward_layers(fp8_model *m, const fp8_batch *batches,
                                                  int64_t count, const fp8_tap *taps,
                                                  fp8_layer_fn after_layer, void *ctx);
/* 0: all weights are on the device, and forwards are best run one by one. Else: the tokens that
 * one such call may bring within the model's memory_bytes. */
int64_t fp8_model_layers_tokens(const fp8_model *m);

/* A part of it, without a cache: layers [begin, end).
 *   from  in   the residual stream entering `begin`, [tokens, hidden_size] of the compute type,
 *              place of the device; NULL, with begin 0: the embedding of the ids
 *   to    out  likewise, what leaves the layer before `end`; may be `from`; NULL: not wanted */
FP8_NODISCARD fp8_status fp8_model_forward_part(fp8_model *m, const fp8_batch *batch,
                                                const void *from, void *to, int64_t begin,
                                                int64_t end, const fp8_tap *tap);

/* Other codes and descales for a Linear of a quantized model, of the kind and number it was loaded
 * with; the rest comes from `c`, which m was loaded from. Waits. FP8_EINVAL: a Linear that is not
 * quantized; else as fp8_model_load.
 *   codes          as the tensor lies on disk; on the CPU they stay the caller's and must outlive m
 *   input_descale  static inputs: in place of the one it has; 0: that one */
FP8_NODISCARD fp8_status fp8_model_set_codes(fp8_model *m, const fp8_checkpoint *c,
                                             const fp8_linear_info *info, const uint8_t *codes,
                                             const float *descales, float input_descale);
/* Other descales of Q, K and V in a layer with FP8 keys. FP8_EINVAL: a layer without. */
FP8_NODISCARD fp8_status fp8_model_set_kv_descales(fp8_model *m, int64_t layer,
                                                   const float descales[3]);

/* Two models of one source on one device, one of them quantized: the Linears of a layer that read
 * `point` change places; of a mixture, those of all experts. Waits. FP8_EINVAL: another device or
 * shape, no such layer or point; FP8_EUNSUPPORTED: a model in memory for two layers. */
FP8_NODISCARD fp8_status fp8_model_exchange_linears(fp8_model *a, fp8_model *b, int64_t layer,
                                                    fp8_point point);

/* Scores of logits rows, on the device; host arrays out (waits). Each may be NULL but nll.
 *   nll[r]  -log softmax(logits[r])[targets[r]]
 *   kl[r]   KL(softmax(reference[r]) || softmax(logits[r])), needs reference
 *   top1[r] 1 when argmax(logits[r]) == argmax(reference[r]), lowest index on ties */
FP8_NODISCARD fp8_status fp8_model_score(fp8_model *m, const fp8_tensor *logits,
                                         const fp8_tensor *reference, const int32_t *targets,
                                         float *nll, float *kl, uint8_t *top1);

/* Greedy: the highest logit, lowest id on ties, until an EOS id, max_new tokens, or on() says stop
 * (nonzero). The EOS id is not given. on may be NULL. Appends to ids. */
typedef int (*fp8_token_fn)(void *ctx, int32_t id);
FP8_NODISCARD fp8_status fp8_model_generate(fp8_model *m, fp8_ids *ids, const int32_t *prompt,
                                            int64_t num_prompt, int64_t max_new, int ignore_eos,
                                            fp8_token_fn on, void *ctx);

const char *fp8_point_name(fp8_point p); /* "qkv_input" */

#ifdef __cplusplus
}
#endif
#include "model/engine.h" /* many requests at once; stands on all of the above */
#endif
