/* The host half of a chain's kernel (chain.cu): what it takes, how steps are cut into tiles, its
 * counters and tensor maps. */
#include <stdlib.h>

#include "core/cuda_check.h"
#include "quant/chain_cuda.h"
#include "quant/skinny_cuda.h"

enum { VECTOR = 16, ALIGN_BYTES = 256, FLIGHT = 5 /* units */ };

struct chain_launch {
    chain_stage steps[FP8_CHAIN_MAX_STEPS]; /* all but what a call brings */
    uint32_t *counters;
    int32_t blocks;
};

/* ---- what it takes --------------------------------------------------------------------------- */

static const char *refusal(const fp8_chain_step *s) {
    const fp8_linear *l = s->linear;
    const int64_t most = INT32_MAX / FP8_CHAIN_MAX_TOKENS;

    if (l->in % VECTOR || l->out % VECTOR) return "a Linear's in or out is off 16";
    if ((uintptr_t)l->weight % VECTOR) return "weights off 16 bytes";
    if (l->in > most || l->out > most) return "a Linear is too large";
    if (s->norm_weight && l->out > CHAIN_MAX_COLUMNS) return "a norm of more than 16384 columns";
    if ((uintptr_t)s->norm_weight % VECTOR || (uintptr_t)s->norm_bias % VECTOR)
        return "norm weights off 16 bytes";
    return NULL;
}

/* *blocks = multiprocessors of the device; *why the kernel cannot run there. */
static fp8_status look_at(const fp8_chain *c, int32_t *blocks, const char **why) {
    fp8_status st = FP8_OK;
    int sms = 0;

    (void)fp8_device_stream(c->device); /* makes it current */
    *why = "not a GPU of compute capability 9.0";
    if (fp8_device_capability(c->device) != 90) goto done;
    *why = "this build holds no sm_90a code";
    st = chain_available();
    if (st == FP8_EUNSUPPORTED) st = FP8_OK;
    else if (st == FP8_OK) *why = NULL;
    if (st != FP8_OK || *why) goto done;
    FP8_TRY_CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount,
                                        fp8_device_index(c->device)));
    *blocks = sms;
    for (int32_t i = 0; i < c->count && !*why; i++) *why = refusal(&c->steps[i]);
done:
    return st;
}

/* ---- tiles ----------------------------------------------------------------------------------- */

static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Bytes of W that the busiest block reads, and what else takes as long: x from the L2 cache (of 32
 * tokens), the store of a tile, a plane of sums. */
static int64_t cost_of(const chain_stage *s, int32_t rows, int32_t splits, int32_t blocks) {
    const int64_t tokens = 32, store = 12 << 10, plane = 8 << 10;
    const int64_t passes = up(up(s->out, rows), blocks / splits);

    return passes * (up(s->units, splits) * CHAIN_BLOCK_K * (rows + tokens) + store) +
           (splits - 1) * plane;
}

static void choose_tile(chain_stage *s, int adds, int32_t blocks) {
    const int32_t most = adds ? CHAIN_MAX_SPLITS : 1;
    int64_t least = INT64_MAX;

    for (int32_t splits = 1; splits <= most && splits <= s->units && splits <= blocks; splits++)
        for (int32_t rows = CHAIN_MAX_ROWS; rows > 0; rows -= CHAIN_ROW_STEP) {
            const int64_t cost = cost_of(s, rows, splits, blocks);
            if (cost >= least) continue;
            least = cost;
            s->rows = rows;
            s->splits = splits;
        }
    s->tiles = (int32_t)up(s->out, s->rows);
}

/* ---- what does not change -------------------------------------------------------------------- */

static fp8_status fill_stage(chain_launch *launch, const fp8_chain *c, int32_t i,
                             fp8_tensor_map_encode encode) {
    const fp8_chain_step *step = &c->steps[i];
    const int gated = fp8_gemm_is_gated(step->activation);
    const fp8_linear *l = step->linear;
    chain_stage *s = &launch->steps[i];

    s->x_descale = l->input_pair;
    s->w_descale = l->weight_descale;
    s->w_vector = l->num_weight_descales > 1;
    s->bias = l->bias;
    s->bias_dtype = l->bias_dtype;
    s->norm_weight = step->norm_weight;
    s->norm_bias = step->norm_bias;
    s->norm = step->norm;
    s->eps = step->eps;
    s->activation = step->activation;
    s->out = (int32_t)l->out;
    s->columns = gated ? s->out / 2 : s->out;
    s->units = (int32_t)fp8_blocks_of(l->in);
    choose_tile(s, step->adds, launch->blocks);
    if (i + 1 < c->count)
        s->code_scale = c->steps[i + 1].linear->input_pair + FP8_PAIR_STEP;
    if (gated)
        return skinny_make_gated_map(encode, &s->w_map, l->weight, l->out, l->in, l->in, s->rows);
    return skinny_make_map(encode, &s->w_map, l->name, l->weight, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                           l->out, l->in, l->in, s->rows, CHAIN_BLOCK_K,
                           CU_TENSOR_MAP_SWIZZLE_128B);
}

fp8_status chain_launch_create(fp8_chain *c) {
    fp8_tensor_map_encode encode = NULL;
    chain_launch *launch = NULL;
    fp8_status st = FP8_OK;
    int32_t blocks = 0;

    FP8_TRY(look_at(c, &blocks, &c->why));
    if (c->why) goto done;
    launch = calloc(1, sizeof *launch);
    if (!launch) {
        st = FP8_FAIL(FP8_ENOMEM, "chain: %zu bytes", sizeof *launch);
        goto done;
    }
    launch->blocks = blocks;
    FP8_TRY(fp8_tensor_map_encoder(&encode));
    for (int32_t i = 0; i < c->count; i++) FP8_TRY(fill_stage(launch, c, i, encode));
    FP8_TRY(fp8_device_alloc(c->device, (void **)&launch->counters,
                             CHAIN_COUNTERS * sizeof *launch->counters));
    FP8_TRY(fp8_device_fill(c->device, launch->counters, 0,
                            CHAIN_COUNTERS * sizeof *launch->counters));
    c->launch = launch;
    launch = NULL;
done:
    if (launch) fp8_device_free(c->device, launch->counters);
    free(launch);
    return st;
}

void chain_launch_destroy(fp8_chain *c) {
    if (c->launch) fp8_device_free(c->device, c->launch->counters);
    free(c->launch);
    c->launch = NULL;
}

/* ---- run ------------------------------------------------------------------------------------- */

static size_t claim(size_t *at, size_t bytes) {
    const size_t begin = *at;
    *at = (begin + bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return begin;
}

/* Offsets: sums, then the codes that each step but the last leaves. */
static size_t lay_out(const fp8_chain *c, int64_t tokens, size_t codes[FP8_CHAIN_MAX_STEPS]) {
    size_t at = 0, sums = 0;

    for (int32_t i = 0; i < c->count; i++) {
        const chain_stage *s = &c->launch->steps[i];
        const size_t bytes = (size_t)(s->splits * tokens * s->out) * sizeof(float);
        if (c->steps[i].adds && bytes > sums) sums = bytes;
    }
    (void)claim(&at, sums);
    for (int32_t i = 0; i + 1 < c->count; i++)
        codes[i] = claim(&at, (size_t)(tokens * c->launch->steps[i].columns));
    return at;
}

size_t chain_launch_workspace(const fp8_chain *c, int64_t max_tokens) {
    size_t codes[FP8_CHAIN_MAX_STEPS];
    return lay_out(c, max_tokens < FP8_CHAIN_MAX_TOKENS ? max_tokens : FP8_CHAIN_MAX_TOKENS,
                   codes);
}

fp8_status chain_launch_run(const fp8_chain *c, const fp8_chain_call *call) {
    const int64_t tokens = call->x->shape[0];
    const chain_launch *l = c->launch;
    const void *x = call->x->data;
    fp8_tensor_map_encode encode = NULL;
    size_t codes[FP8_CHAIN_MAX_STEPS];
    const size_t bytes = lay_out(c, tokens, codes);
    chain_args a = {.sums = call->workspace, .counters = l->counters, .count = c->count,
                    .tokens = (int32_t)tokens, .flight = FLIGHT};
    fp8_status st;

    if (call->workspace_bytes < bytes) {
        st = FP8_FAIL(FP8_EINVAL, "chain: workspace of %zu bytes, expected %zu",
                      call->workspace_bytes, bytes);
        goto done;
    }
    FP8_TRY(fp8_tensor_map_encoder(&encode));
    for (int32_t i = 0; i < c->count; i++) {
        chain_stage *s = &a.steps[i];
        const int64_t in = c->steps[i].linear->in;

        *s = l->steps[i];
        FP8_TRY(skinny_make_map(encode, &s->x_map, "x", x, CU_TENSOR_MAP_DATA_TYPE_UINT8, tokens,
                                in, in, chain_kernel_tokens(tokens), CHAIN_BLOCK_K,
                                CU_TENSOR_MAP_SWIZZLE_128B));
        if (c->steps[i].adds) s->h = call->h->data;
        else if (i + 1 == c->count) s->y = call->y->data;
        if (i + 1 < c->count) x = s->codes = (uint8_t *)call->workspace + codes[i];
    }
    FP8_TRY(chain_start(c->device, &a, l->blocks));
done:
    return st;
}
