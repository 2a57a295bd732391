/* model/model_impl.h - private: what a model, a layer and a KV cache are made of, and what the
 * files of model/ do for each other. Every pointer named "place" is in the device's place. */
#ifndef FP8_MODEL_MODEL_IMPL_H
#define FP8_MODEL_MODEL_IMPL_H
#include "attention/append.h"
#include "attention/attention.h"
#include "attention/decode.h"
#include "core/device.h"
#include "model/layer_store.h"
#include "model/model.h"
#include "model/ops.h"
#include "quant/quant.h"

/* ---- families of architectures (family.c) ---------------------------------------------------- */

enum { FP8_NUM_LINEAR_KINDS = FP8_LINEAR_DOWN + 1, FP8_NAME_BYTES = 256 };

/* Names on disk, and the quirks of the forward that config.json does not spell out. NULL: the
 * family has no such thing. A layer's tensor is PREFIX LAYERS "." i "." NAME ".weight". */
typedef struct fp8_family {
    const char *prefixes[4]; /* the first under which the embedding is found */
    const char *embed, *positions, *layers, *final_norm;
    const char *norm1, *norm2, *attention, *q_norm, *k_norm;
    const char *norm1_after, *norm2_after; /* of what attention and the MLP bring, before it is
                                            * added: Gemma 2 and 3 */
    const char *linears[FP8_NUM_LINEAR_KINDS];
    /* Of a mixture: the router's module, the experts' (+ ".7."), gate, up and down of one, and
     * the shared expert with its gate. */
    const char *router, *experts, *expert_linears[3], *shared, *shared_gate;
    fp8_norm_kind norm;
    fp8_weight_layout layout;
    int scale_embeddings; /* times sqrt(hidden_size), rounded to the compute type */
    int64_t position_offset; /* the row of position 0 in the table of positions */
} fp8_family;

const fp8_family *fp8_family_of(fp8_arch arch);
/* The prefix in use; the first one when the embedding is not found at all. */
const char *fp8_family_prefix(const fp8_family *f, const fp8_checkpoint *c);
/* The module of the output layer: "lm_head", or what it is called beside that prefix. */
const char *fp8_family_lm_head(const char *prefix);
/* "model.layers.3.input_layernorm" into buf [FP8_NAME_BYTES]. */
void fp8_family_layer_name(char *buf, const fp8_family *f, const char *prefix, int64_t layer,
                           const char *part);

/* ---- a model --------------------------------------------------------------------------------- */

/* Device memory that grows on demand and is reused; {0} is empty. */
typedef struct fp8_buffer {
    void *data;
    size_t bytes;
} fp8_buffer;

/* A mixture of experts; the shared one, if any, comes after the others. */
typedef struct fp8_mixture {
    fp8_tensor router, shared_gate;   /* [num_experts, hidden], [1, hidden] */
    fp8_linear *(*experts)[3];        /* gate, up, down */
    int64_t *tokens;                  /* [num_experts], host: given so far */
} fp8_mixture;

typedef struct fp8_layer {
    fp8_mixture mixture; /* experts NULL: the MLP is that of `linears` */
    fp8_tensor norm1, norm1_bias, norm2, norm2_bias, q_norm, k_norm; /* data NULL: none */
    fp8_tensor norm1_after, norm2_after;
    fp8_linear *linears[FP8_NUM_LINEAR_KINDS]; /* fused ones are split when loaded */
    int share_qkv, share_up; /* q/k/v, gate/up take one quantized input */
    fp8_linear *joined_qkv, *joined_up; /* the same in one, for steps over pages (and
                                         * fp8_model.joins_sequences); NULL: not made */
    /* Likewise all from attention's output on: o, the MLP, and, if `projects`, the next layer's
     * norm1, q, k and v (layer_chain.c). */
    fp8_chain *chain;
    int projects;
    /* What their codes stand for before the descale, [out, in] of the compute type; NULL but with
     * FP8_FORM_CAST, where codes are made of them in every pass. */
    void *values[FP8_NUM_LINEAR_KINDS];
    /* place: scale and descale of Q, K, V in turn, each on 16 bytes as cuBLASLt wants scalars;
     * NULL without FP8 keys */
    float *kv_scales;
    int one_kv_scale; /* Q, K and V have the same */
} fp8_layer;

enum { FP8_SCALE_STEP = 4, FP8_KV_SCALE_FLOATS = 6 * FP8_SCALE_STEP }; /* of kv_scales */

/* What a forward is given, on its way to the device (inputs.c): [max_tokens] ids, positions, last
 * rows; [max_tokens + 1] starts; [2] starts of the keys of a cached sequence. */
typedef struct fp8_inputs {
    int32_t *host[2]; /* used in turn, so that nothing waits for the previous forward */
    fp8_event *sent[2];
    int turn;
    int32_t *ids, *positions, *starts, *last, *kv_starts; /* place; one allocation, at ids */
} fp8_inputs;

typedef struct fp8_scratch { /* place; [max_tokens, ...] */
    void *x, *y;             /* hidden: the residual stream; a norm's or a block's output */
    void *q, *k, *v, *attn;  /* heads * head_dim */
    void *gate, *up;         /* intermediate */
    void *joined_qkv, *joined_up; /* what joined Linears leave, side by side; NULL: at q, at gate */
    uint8_t *codes;          /* hidden or intermediate: the quantized input of Linears */
    float *descales;         /* of codes: [max_tokens], or one a token and 128 columns */
    uint8_t *q_codes, *k_codes, *v_codes;
    /* of a mixture, as fp8_route has them: router logits, then the shared expert's gate; chosen
     * experts, their weights and rows; the token of a row; [num_experts + 1] */
    float *router, *top_weights;
    int32_t *chosen, *places, *from, *begin;
    /* experts_per_token rows a token: input and output of experts; what their down Linears read,
     * by token; and what the shared expert makes */
    void *expert_rows, *inner, *shared;
} fp8_scratch;

/* Attention plans, found again by what a batch looks like (plans.c). */
enum { FP8_MAX_PLANS = 16 };
typedef struct fp8_plan_slot {
    fp8_attention_plan *plan;
    fp8_attention_options options;
    uint64_t used; /* the tick of its last use: the oldest gives way */
} fp8_plan_slot;

/* cos and sin of a RoPE; place. Two kinds of RoPE depend on how long the longest sequence is:
 * `key` says what the table was made for (fp8_rope_key). */
typedef struct fp8_rope_table {
    float *cos, *sin; /* [positions, rotary_dim / 2], in one buffer */
    fp8_buffer memory;
    int64_t positions, key;
} fp8_rope_table;

/* What the steps of a layer may do at the store of a product. */
typedef enum fp8_steps {
    FP8_STEPS_LATE = 0, /* nothing: a block's result waits in y for the next norm, which adds it;
                         * activation and quantizing are passes of producers */
    FP8_STEPS_AT_STORE, /* activation, residual, and quantizing by a known scale, where they fit */
    FP8_STEPS_SINGLE    /* each a pass of its own, to measure the others against */
} fp8_steps;

struct fp8_model {
    fp8_device *device;
    const fp8_ops *ops;
    const fp8_family *family;
    fp8_model_config config;
    fp8_quant_config quant;
    fp8_dtype type; /* the compute type: BF16 or F32 */
    int64_t max_tokens;
    fp8_steps steps;
    fp8_accumulate accumulate;
    fp8_weight_form weights;
    fp8_attention_backend backend; /* of attention: AUTO, or the one that must serve */
    int quantize_p;                /* these two as fp8_attention_options has them */
    fp8_attention_precision attention_precision;
    int joins_sequences; /* joined_qkv is for passes over whole sequences, too */

    size_t memory_bytes;    /* of the device, at most; 0: no limit */
    fp8_layer_store *store; /* NULL: all weights stay on the device */
    int64_t layers_tokens;  /* with a store: tokens whose hidden states fit beside it */

    fp8_tensor embed, positions, final_norm, final_norm_bias, lm_head;
    fp8_layer *layers;
    float embed_multiplier;

    fp8_rope_table rope, rope_local; /* rope_local: config.rope_local's, where it has a type */

    fp8_inputs inputs;
    fp8_scratch scratch;
    fp8_buffer shared;    /* attention's workspace; then the products', gate and up */
    fp8_buffer workspace; /* the products' */
    size_t inner_bytes, up_bytes; /* of gate and up, of up alone */
    fp8_buffer logits, scores;
    fp8_plan_slot plans[FP8_MAX_PLANS];
    uint64_t tick;

    void **owned; /* place: freed with the model */
    int64_t num_owned, cap_owned;
};

struct fp8_kv_cache {
    fp8_model *model;
    int64_t capacity, length;
    int64_t intended;    /* tokens it is known to get, for RoPE that follows the length */
    size_t row_bytes;    /* one token of K, or of V, of a layer */
    size_t plane_bytes;  /* all tokens of one: capacity rows, and up to 256 bytes of alignment */
    unsigned char *data; /* place; [num_layers][2: K, V] planes [capacity][kv_heads * head_dim] */
};

/* Memory that lives as long as the model. */
FP8_NODISCARD fp8_status fp8_model_alloc(fp8_model *m, void **out, size_t bytes);
/* At least `bytes`; what was in it is lost when it grows. */
FP8_NODISCARD fp8_status fp8_buffer_reserve(fp8_device *d, fp8_buffer *b, size_t bytes);

/* The model's workspaces hold at least so much for products and for attention; those before may
 * have moved, and gate and up with them (scratch.c). */
FP8_NODISCARD fp8_status fp8_model_reserve(fp8_model *m, size_t products, size_t attention);
/* Scratch for codes of the residual stream, a scale a token, where the model has none: for a head
 * in FP8 of real weights. */
FP8_NODISCARD fp8_status fp8_model_make_codes(fp8_model *m);
/* For a joined Linear: workspace, with its gated product's too, and in *room memory for what it
 * leaves. NULL: it leaves that where its parts do. */
FP8_NODISCARD fp8_status fp8_model_make_room(fp8_model *m, const fp8_linear *joined, void **room);

/* Weights of `c` into m, whose config, quant, family and device are set (weights.c). */
FP8_NODISCARD fp8_status fp8_model_load_weights(fp8_model *m, const fp8_checkpoint *c);

/* Makes `s` what m->weights asks for (weight_forms.c). *values: new memory of the device, for
 * FP8_FORM_VALUES what s->weight now is, to be freed when the Linear is made; for _CAST what the
 * codes are to be made of; else NULL. FP8_EUNSUPPORTED. */
FP8_NODISCARD fp8_status fp8_model_reform(fp8_model *m, fp8_linear_spec *s, void **values);
/* *values = new: those of s's codes on the host, times its descales if `scaled`. Waits. */
FP8_NODISCARD fp8_status fp8_model_values(fp8_model *m, void **values, const fp8_linear_spec *s,
                                          int scaled);
/* The model frees `memory` at its end; FP8_ENOMEM: it is still the caller's. */
FP8_NODISCARD fp8_status fp8_model_own(fp8_model *m, void *memory);

/* Makes the store where the weights of these Linears would not all fit (budget.c). FP8_EINVAL: not
 * even two layers do. */
FP8_NODISCARD fp8_status fp8_model_fit_memory(fp8_model *m, const fp8_checkpoint *c,
                                              const char *prefix, const fp8_linear_info *linears,
                                              int64_t count);

FP8_NODISCARD fp8_status fp8_mixture_scratch(fp8_model *m); /* nothing without experts */
void fp8_mixture_destroy(const fp8_model *m, fp8_mixture *x);
size_t fp8_mixture_workspace(const fp8_model *m, const fp8_mixture *x);
/* x [tokens, hidden] = the mixture of x, in place (moe.c); taps DOWN_INPUT, SHARED_DOWN_INPUT.
 * Waits for the device. */
FP8_NODISCARD fp8_status fp8_mixture_run(fp8_model *m, int64_t index, const fp8_tensor *x,
                                         const fp8_tap *tap);

/* When a step over pages runs the chains of its layers, of few enough tokens. */
typedef enum fp8_chains {
    FP8_CHAINS_NEVER = 0,
    FP8_CHAINS_IN_ONE, /* where they are one launch */
    FP8_CHAINS_ALWAYS  /* elsewhere step by step: the same, to test it */
} fp8_chains;

/* A step over pages: all arrays in the device's place, so that the step can be captured; sizes of
 * the host's stay as they are (model/engine.h). */
typedef struct fp8_paged {
    fp8_kv_batch batch;
    const fp8_kv_pages *pages;     /* [num_layers] */
    fp8_decode_plan *const *plans; /* [num_layers]; the model's workspace is large enough */
    int q_codes, o_codes; /* Q goes to attention, its output to the o Linear in E4M3 */
    const fp8_linear *head;        /* makes the logits instead of the model's; NULL: none */
    int joined;                    /* q, k, v and gate, up are one product where they can be */
    fp8_chains chains;             /* of joined ones */
} fp8_paged;

/* A forward under way (forward.c, layer.c). */
typedef struct fp8_pass {
    fp8_model *m;
    fp8_kv_cache *cache;    /* may be NULL */
    const fp8_paged *paged; /* instead of a cache; NULL: none */
    const int32_t *positions; /* place, [tokens] */
    const fp8_tap *tap;   /* may be NULL */
    int64_t tokens, num_seqs, past, max_len;
    int uniform;     /* every sequence has max_len tokens */
    int pending;     /* y holds a block's result that x does not have yet */
    int projected;   /* q, k and v of the layer that comes are there: the chain before made them */
    const int32_t *ids;  /* tokens whose embedding x is once the next norm has put it there; NULL:
                          * x is there */
    const int32_t *from; /* the rows that the next norm is of; NULL: all */
    unsigned joined; /* bits: points whose figures went to the tap's slots, not seen by it yet */
    /* The residual stream; where it goes on once something is added to it, x itself or another;
     * a norm's or a block's output. */
    fp8_tensor x, out, y;
} fp8_pass;

/* Tokens in place [tokens] with their positions, through all layers; *logits [num_last, vocab], F32
 * or the compute type, of the rows `last`, in the model's own memory, which is there already.
 * Nothing is allocated.
 * NOTE: kernels of a step start before those in front of them have ended, and some read what the
 * step was given (lengths, page tables, which rows make an id) before their wait: whatever wrote
 * that, a copy or the step before, must be complete before the first of them starts. So the first,
 * the embedding, does not overlap; if it did it would let the next start only after its wait. */
FP8_NODISCARD fp8_status fp8_model_step(fp8_model *m, const fp8_paged *paged, int64_t tokens,
                                        const int32_t *ids, const int32_t *positions,
                                        const int32_t *last, int64_t num_last,
                                        fp8_tensor *logits);

/* One layer over p->x, tokens and starts in m->inputs; what it brings may be pending after it. */
FP8_NODISCARD fp8_status fp8_layer_forward(fp8_pass *p, int64_t index);
/* p->y = norm of p->x, which has taken what was pending; as transformers rounds it. */
FP8_NODISCARD fp8_status fp8_pass_norm(fp8_pass *p, const fp8_tensor *weight,
                                       const fp8_tensor *bias);
FP8_NODISCARD fp8_status fp8_pass_tap(fp8_pass *p, int64_t layer, fp8_point point,
                                      const fp8_tensor *x);
/* p->x += p->y where that is pending. */
FP8_NODISCARD fp8_status fp8_pass_settle(fp8_pass *p);
/* How a layer's product is called where nobody taps, and the type it leaves; `residual` is what it
 * is given to add, if it adds. */
fp8_linear_call fp8_layer_call(const fp8_model *m, int64_t index, fp8_linear_kind kind,
                               const fp8_tensor *residual, fp8_dtype *y);

/* The same of q, k and v joined, where attention over whole sequences reads what it leaves; else as
 * a step over pages calls it. */
fp8_linear_call fp8_layer_joined_call(const fp8_model *m, int64_t index, fp8_dtype *y);
/* Where a layer's joined_qkv leaves q, k and v side by side. */
fp8_tensor fp8_pass_joined_qkv(const fp8_pass *p, int64_t index);

/* Makes the layer's chain over its joined Linears, and the next layer's, and room for it; leaves it
 * NULL where the layer is of another kind (layer_chain.c). */
FP8_NODISCARD fp8_status fp8_layer_make_chain(fp8_model *m, int64_t index);
/* 1: in this pass fp8_layer_run_chain does what is left of the layer behind attention. */
int fp8_layer_is_chained(const fp8_pass *p, int64_t index);
/* `o`: attention's output, values or codes for the o Linear. */
FP8_NODISCARD fp8_status fp8_layer_run_chain(fp8_pass *p, int64_t index, const fp8_tensor *o);

/* Sets share_qkv and share_up by the layer's Linears (weights.c). */
void fp8_layer_share_inputs(fp8_layer *layer);
/* A layer's kv_scales from the descales of Q, K and V (model.c). */
FP8_NODISCARD fp8_status fp8_model_place_kv_scales(fp8_model *m, const float descales[3],
                                                   float **out);
/* Buffers of the forward for m->max_tokens, once layers and config are there (scratch.c). */
FP8_NODISCARD fp8_status fp8_model_create_scratch(fp8_model *m);

/* logits F32 [rows, vocab] = x lm_head^T, rounded to the compute type (scratch.c). */
FP8_NODISCARD fp8_status fp8_model_lm_head(fp8_model *m, const fp8_tensor *logits,
                                           const fp8_tensor *x);

/* Position tables up to `positions` (rope.c); does nothing when they are there, or not needed. */
FP8_NODISCARD fp8_status fp8_rope_extend(fp8_model *m, int64_t positions);
/* Tables whose frequencies depend on the length of the longest sequence are made for this one. */
FP8_NODISCARD fp8_status fp8_rope_fit(fp8_model *m, int64_t length);
/* Sequences of equal keys have the same frequencies; 0 where the length does not matter. */
int64_t fp8_rope_key(const fp8_rope_config *rope, int64_t length);
/* Frequencies [dim / 2] as transformers computes them, in F32, for sequences of that key. */
void fp8_rope_frequencies(float *out, const fp8_rope_config *rope, int64_t dim, int64_t key);

FP8_NODISCARD fp8_status fp8_inputs_create(fp8_model *m);
void fp8_inputs_destroy(fp8_model *m);
/* Checks the batch and sends it; `past` tokens are in the cache. */
FP8_NODISCARD fp8_status fp8_inputs_send(fp8_model *m, const fp8_batch *batch, int64_t past);

/* A plan for `options`, whose max_q and max_kv may be rounded up; the workspace is large enough. */
FP8_NODISCARD fp8_status fp8_plan_get(fp8_model *m, fp8_attention_plan **out,
                                      const fp8_attention_options *options);
void fp8_plans_destroy(fp8_model *m);
/* What a plan of a layer over such pages is asked for, but for the sizes of its batches; o_codes:
 * its output is to be codes for the o Linear. */
fp8_decode_options fp8_decode_options_of(const fp8_model *m, const fp8_kv_pages *pages,
                                         int64_t window, int o_codes);
/* May attention over pages leave codes for the o Linear? On the CPU it is rounded first. */
int fp8_layer_takes_codes(const fp8_model *m, int64_t index);

#endif
