/* Compiled graphs and cuDNN handles, kept for the process: both take long to make. A handle a CUDA
 * device is never given back; graphs are looked up by configuration. */
#include "attention/fused_graph.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/cuda_check.h"
#include "core/log.h"

enum { MAX_DEVICES = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static fused_graph *graphs;
static int64_t clock_now;

/* A handle runs for one thread at a time: its stream is part of it. */
static struct {
    pthread_mutex_t running;
    cudnnHandle_t handle;
} devices[MAX_DEVICES];
static pthread_once_t devices_once = PTHREAD_ONCE_INIT;

static void init_devices(void) {
    for (int i = 0; i < MAX_DEVICES; i++) (void)pthread_mutex_init(&devices[i].running, NULL);
}

/* With `lock` held. */
static fp8_status handle_of(cudnnHandle_t *out, int64_t device) {
    fp8_status st = FP8_OK;
    cudnnStatus_t status;

    (void)pthread_once(&devices_once, init_devices);
    if (device < 0 || device >= MAX_DEVICES)
        return FP8_FAIL(FP8_EUNSUPPORTED, "CUDA device %lld, expected below %d", (long long)device,
                        MAX_DEVICES);
    FP8_TRY_CUDA(cudaSetDevice((int)device));
    if (!devices[device].handle) {
        status = cudnnCreate(&devices[device].handle);
        if (status != CUDNN_STATUS_SUCCESS)
            st = FP8_FAIL(FP8_EUNSUPPORTED, "cudnnCreate: %s", cudnnGetErrorString(status));
    }
    *out = devices[device].handle;
done:
    return st;
}

/* ---- compiled graphs, with `lock` held ------------------------------------------------------- */

static fused_graph *find(const fused_config *config) {
    for (fused_graph *g = graphs; g; g = g->next)
        if (memcmp(&g->config, config, sizeof *config) == 0) return g;
    return NULL;
}

/* The link to the least recently used graph that nobody uses, when there are more than enough. */
static fused_graph **find_surplus(void) {
    fused_graph **oldest = NULL;
    int64_t idle = 0;
    for (fused_graph **at = &graphs; *at; at = &(*at)->next) {
        if ((*at)->users > 0) continue;
        idle++;
        if (!oldest || (*at)->last_use < (*oldest)->last_use) oldest = at;
    }
    return idle > FUSED_KEPT ? oldest : NULL;
}

static void drop_surplus(void) {
    fused_graph **at = find_surplus(), *g = at ? *at : NULL;
    if (!g) return;
    *at = g->next;
    cudnn_graph_free(&g->graph);
    free(g);
}

static fp8_status compile(fused_graph **out, const fused_config *config) {
    cudnnHandle_t handle = NULL;
    fused_graph *g = calloc(1, sizeof *g);
    fp8_status st;

    if (!g) return FP8_FAIL(FP8_ENOMEM, "cuDNN graph");
    g->config = *config;
    FP8_TRY(handle_of(&handle, config->device));
    FP8_TRY(attention_fused_build(g, handle));
    fp8_log(FP8_LOG_DETAIL, "attention: cuDNN engine %lld, %d operations, workspace %lld bytes",
            (long long)g->graph.engine, g->graph.num_ops, (long long)g->graph.workspace_bytes);
    g->next = graphs;
    graphs = g;
    *out = g;
    g = NULL;
done:
    if (g) cudnn_graph_free(&g->graph);
    free(g);
    return st;
}

fp8_status attention_fused_acquire(fused_graph **out, const fused_config *config) {
    fp8_status st = FP8_OK;
    pthread_mutex_lock(&lock);
    *out = find(config);
    if (!*out) FP8_TRY(compile(out, config));
    (*out)->users++;
    (*out)->last_use = ++clock_now;
done:
    pthread_mutex_unlock(&lock);
    return st;
}

void attention_fused_release(fused_graph *g) {
    if (!g) return;
    pthread_mutex_lock(&lock);
    g->users--;
    drop_surplus();
    pthread_mutex_unlock(&lock);
}

/* ---- running --------------------------------------------------------------------------------- */

fp8_status attention_fused_execute(fused_graph *g, cudnn_pack *pack, fp8_stream stream,
                                   void *const slots[FUSED_NUM_SLOTS], void *workspace) {
    const int64_t device = g->config.device;
    void *pointers[CUDNN_PACK_MAX];
    fp8_status st;

    for (int64_t i = 0; i < g->num_bound; i++)
        pointers[i] = g->slots[i] < 0 ? (void *)&g->scalars[i] : slots[g->slots[i]];
    pthread_mutex_lock(&devices[device].running);
    st = cudnn_graph_run(&g->graph, devices[device].handle, stream, pack, g->num_bound, g->uids,
                         pointers, workspace);
    pthread_mutex_unlock(&devices[device].running);
    return st;
}

/* ---- configuration --------------------------------------------------------------------------- */

static int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

/* Bounds around the diagonal; those that mask nothing are left out, as engines differ by them. */
static void configure_band(fused_config *c, const fp8_attention_options *o) {
    const int varying = c->padding != 0;
    const int square = !varying && o->max_q == o->max_kv;
    const int causal = o->mask == FP8_MASK_CAUSAL || o->mask == FP8_MASK_CAUSAL_BOTTOM_RIGHT;
    c->bottom_right = o->mask != FP8_MASK_CAUSAL;
    c->right = causal ? 0 : o->window_right;
    c->left = o->window_left;
    if (c->bottom_right && !varying && c->right >= o->max_q - 1) c->right = -1;
    if (!c->bottom_right && c->right >= o->max_kv - 1) c->right = -1;
    if (c->left >= o->max_kv + o->max_q) c->left = -1;
    c->left = c->left < 0 ? -1 : lower(c->left, INT32_MAX / 4);
    if (square || (c->left < 0 && c->right < 0)) c->bottom_right = 0;
}

void attention_fused_configure(fused_config *out, const fp8_attention_options *o, int32_t device) {
    const int b_of_bias = o->bias_shape == FP8_BIAS_BHSS || o->bias_shape == FP8_BIAS_B1SS;
    const int h_of_bias = o->bias_shape == FP8_BIAS_BHSS || o->bias_shape == FP8_BIAS_1HSS;
    fused_config c = {
        .device = device,
        .num_seqs = o->num_seqs,
        .num_heads = o->num_heads,
        .num_kv_heads = o->num_kv_heads,
        .s_q = o->max_q,
        .s_kv = o->max_kv,
        .d_qk = o->d_qk,
        .d_v = o->d_v,
        .q = o->q,
        .k = o->k,
        .v = o->v,
        .o = o->o,
        .in = o->q_dtype,
        .out = o->o_dtype,
        .padding = o->padding || fp8_attention_layout_is_packed(o->layout),
        .alibi = o->bias == FP8_BIAS_ALIBI,
        .sink = o->sink != FP8_SINK_NONE,
        .stats = o->want_lse,
        .amax = o->want_amax,
        .scale = (double)o->scale,
        .softcap = (double)o->softcap,
    };
    configure_band(&c, o);
    if (o->bias == FP8_BIAS_POST_SCALE) {
        c.bias = (int64_t)o->bias_dtype + 1;
        c.bias_batch = b_of_bias ? o->num_seqs : 1;
        c.bias_heads = h_of_bias ? o->num_heads : 1;
    }
    *out = c;
}
