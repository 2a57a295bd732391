/* Planning: options checked, backends asked in order of preference, reasons kept; and the checks of
 * a run that every backend relies on. */
#include "attention/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attention_impl.h"
#include "core/log.h"

/* What a build without CUDA has instead of the three. */
#if !FP8_CUDA
static fp8_status no_cuda(const fp8_attention_plan *p, char about[ATTENTION_REASON_BYTES]) {
    (void)p;
    (void)about;
    return FP8_FAIL(FP8_EUNSUPPORTED, "this build is without CUDA");
}
static const attention_backend attention_backend_flash = {
    FP8_BACKEND_FLASH, "flash", "FP8_FLASH_ATTN", no_cuda, NULL, NULL, NULL,
};
static const attention_backend attention_backend_fused = {
    FP8_BACKEND_FUSED, "fused", "FP8_FUSED_ATTN", no_cuda, NULL, NULL, NULL,
};
static const attention_backend attention_backend_unfused = {
    FP8_BACKEND_UNFUSED, "unfused", "FP8_UNFUSED_ATTN", no_cuda, NULL, NULL, NULL,
};
#endif

/* In order of preference. */
static const attention_backend *const backends[ATTENTION_NUM_BACKENDS] = {
    &attention_backend_flash,
    &attention_backend_fused,
    &attention_backend_unfused,
    &attention_backend_cpu,
};

const char *fp8_attention_backend_name(fp8_attention_backend b) {
    if (b == FP8_BACKEND_AUTO) return "auto";
    for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++)
        if (backends[i]->id == b) return backends[i]->name;
    return "?";
}

/* ---- options --------------------------------------------------------------------------------- */

static int heads_ok(const fp8_attention_options *o) {
    return o->num_heads > 0 && o->num_kv_heads > 0 && o->num_heads % o->num_kv_heads == 0;
}

static int operand_ok(const fp8_attention_options *o, fp8_dtype t) {
    return t == o->dtype || t == FP8_DTYPE_E4M3;
}

static fp8_status check_sizes(const fp8_attention_options *o) {
    const int64_t d = (int64_t)o->d_qk + o->d_v;
    fp8_status st = FP8_OK;
    int64_t count;

    if (!heads_ok(o))
        return FP8_FAIL(FP8_EINVAL, "attention: %d heads over %d KV heads, expected a multiple",
                        o->num_heads, o->num_kv_heads);
    if (o->d_qk <= 0 || o->d_v <= 0)
        return FP8_FAIL(FP8_EINVAL, "attention: head sizes d_qk %d, d_v %d, expected positive ones",
                        o->d_qk, o->d_v);
    if (o->num_seqs < 0 || o->max_q < 0 || o->max_kv < 0)
        return FP8_FAIL(FP8_EINVAL, "attention: num_seqs %lld, max_q %lld, max_kv %lld",
                        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv);
    if (o->num_seqs > INT32_MAX || o->max_q > INT32_MAX || o->max_kv > INT32_MAX)
        return FP8_FAIL(FP8_EINVAL,
                        "attention: num_seqs %lld, max_q %lld, max_kv %lld, expected below 2^31 as "
                        "starts are 32-bit",
                        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv);
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){o->num_seqs, o->max_q, o->num_heads, d}, 4));
    FP8_TRY(fp8_shape_count(&count, (int64_t[]){o->num_seqs, o->max_kv, o->num_kv_heads, d}, 4));
done:
    return st;
}

static fp8_status check_options(const fp8_attention_options *o) {
    fp8_status st = check_sizes(o);
    if (st != FP8_OK) return st;
    if (o->mask != FP8_MASK_NONE && o->mask != FP8_MASK_CAUSAL)
        return FP8_FAIL(FP8_EINVAL, "attention: mask %d is not known", (int)o->mask);
    if (o->window < 0 || (o->window > 0 && o->mask != FP8_MASK_CAUSAL))
        return FP8_FAIL(FP8_EINVAL, "attention: window %lld%s", (long long)o->window,
                        o->window < 0 ? ", expected 0 or more" : " needs the causal mask");
    if (!isfinite(o->scale))
        return FP8_FAIL(FP8_EINVAL, "attention: scale %g", (double)o->scale);
    if (o->dtype != FP8_DTYPE_BF16 && o->dtype != FP8_DTYPE_F32)
        return FP8_FAIL(FP8_EINVAL, "attention: dtype %s, expected BF16 or F32",
                        fp8_dtype_name(o->dtype));
    if (!operand_ok(o, o->q_dtype) || !operand_ok(o, o->kv_dtype))
        return FP8_FAIL(FP8_EINVAL, "attention: q_dtype %s, kv_dtype %s, expected %s or F8_E4M3",
                        fp8_dtype_name(o->q_dtype), fp8_dtype_name(o->kv_dtype),
                        fp8_dtype_name(o->dtype));
    if (o->backend != FP8_BACKEND_AUTO && fp8_attention_backend_name(o->backend)[0] == '?')
        return FP8_FAIL(FP8_EINVAL, "attention: backend %d is not known", (int)o->backend);
    return FP8_OK;
}

/* ---- environment ----------------------------------------------------------------------------- */

/* *on = 0 when the variable is "0". */
static fp8_status read_switch(const char *name, int *on) {
    const char *text = name ? getenv(name) : NULL;
    *on = 1;
    if (!text || !*text || strcmp(text, "1") == 0) return FP8_OK;
    if (strcmp(text, "0") != 0)
        return FP8_FAIL(FP8_EINVAL, "environment: %s='%s', expected 0 or 1", name, text);
    *on = 0;
    return FP8_OK;
}

static fp8_status read_preference(fp8_attention_backend *out) {
    const char *text = getenv("FP8_ATTENTION_BACKEND");
    *out = FP8_BACKEND_AUTO;
    if (!text || !*text || strcmp(text, "auto") == 0) return FP8_OK;
    for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++) {
        if (strcmp(text, backends[i]->name) != 0) continue;
        *out = backends[i]->id;
        return FP8_OK;
    }
    return FP8_FAIL(FP8_EINVAL,
                    "environment: FP8_ATTENTION_BACKEND='%s', expected auto, flash, fused, unfused "
                    "or cpu",
                    text);
}

/* ---- selection ------------------------------------------------------------------------------- */

/* Asks one backend; FP8_EUNSUPPORTED with the reason as the message when it does not serve or is
 * not wanted. What served is in `about`. */
static fp8_status consider(fp8_attention_plan *p, const attention_backend *b,
                           char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;
    int on;

    if (p->options.backend != FP8_BACKEND_AUTO && p->options.backend != b->id)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the options ask for %s",
                        fp8_attention_backend_name(p->options.backend));
    st = read_switch(b->switch_name, &on);
    if (st != FP8_OK) return st;
    if (!on) return FP8_FAIL(FP8_EUNSUPPORTED, "switched off by %s=0", b->switch_name);
    st = b->check(p, about);
    if (st != FP8_OK || p->chosen) return st;
    st = b->open(p);
    if (st == FP8_OK) p->chosen = b;
    else b->close(p);
    return st;
}

static void add_reason(fp8_attention_plan *p, const attention_backend *b, const char *about,
                       const char *text) {
    const size_t used = strlen(p->reasons);
    snprintf(p->reasons + used, sizeof p->reasons - used, "%s%s: %s%s%s", used ? "\n" : "", b->name,
             about, *about ? ": " : "", text);
}

/* Walks the backends, the preferred one first, and leaves a line for each. */
static fp8_status select_backend(fp8_attention_plan *p) {
    fp8_attention_backend first;
    fp8_status st = read_preference(&first);

    if (st != FP8_OK) return st;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++) {
            char about[ATTENTION_REASON_BYTES] = "";
            if ((backends[i]->id == first) != (round == 0)) continue;
            st = consider(p, backends[i], about);
            if (st != FP8_OK && st != FP8_EUNSUPPORTED) return st;
            if (st != FP8_OK) add_reason(p, backends[i], about, fp8_last_message());
            else if (p->chosen == backends[i]) add_reason(p, backends[i], about, "serves");
            else add_reason(p, backends[i], about, "would serve, but comes later");
        }
    }
    return p->chosen ? FP8_OK
                     : FP8_FAIL(FP8_EUNSUPPORTED, "attention: no backend serves:\n%s", p->reasons);
}

static void log_plan(const fp8_attention_plan *p) {
    const fp8_attention_options *o = &p->options;
    fp8_log(FP8_LOG_INFO, "attention: %s", p->chosen->name);
    if (!fp8_log_enabled(FP8_LOG_DETAIL)) return;
    fp8_log(FP8_LOG_DETAIL,
            "attention: heads %d/%d, d %d/%d, %lld sequences up to %lld x %lld%s, %s, window %lld, "
            "scale %g, O %s, Q %s, K and V %s%s, workspace %zu bytes",
            o->num_heads, o->num_kv_heads, o->d_qk, o->d_v, (long long)o->num_seqs,
            (long long)o->max_q, (long long)o->max_kv, o->uniform ? " (uniform)" : "",
            o->mask == FP8_MASK_CAUSAL ? "causal" : "no mask", (long long)o->window,
            (double)o->scale, fp8_dtype_name(o->dtype), fp8_dtype_name(o->q_dtype),
            fp8_dtype_name(o->kv_dtype), o->quantize_p ? ", P in E4M3" : "", p->workspace_bytes);
    fp8_log(FP8_LOG_DETAIL, "attention: %s", p->reasons);
}

static void default_stride(int64_t *stride, int64_t heads, int64_t d) {
    if (*stride == 0) *stride = heads * d;
}

static void resolve_defaults(fp8_attention_options *o) {
    if (o->scale == 0.0f) o->scale = 1.0f / sqrtf((float)o->d_qk);
    default_stride(&o->o_stride, o->num_heads, o->d_v);
    default_stride(&o->q_stride, o->num_heads, o->d_qk);
    default_stride(&o->k_stride, o->num_kv_heads, o->d_qk);
    default_stride(&o->v_stride, o->num_kv_heads, o->d_v);
}

fp8_status fp8_attention_plan_create(fp8_attention_plan **out, fp8_device *d,
                                     const fp8_attention_options *options) {
    fp8_status st = FP8_OK;
    fp8_attention_plan *p = NULL;

    if (!out || !d || !options)
        return FP8_FAIL(FP8_EINVAL, "attention plan: out=%p device=%p options=%p", (void *)out,
                        (void *)d, (const void *)options);
    *out = NULL;
    FP8_TRY(check_options(options));
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "attention plan");
    p->options = *options;
    p->device = d;
    resolve_defaults(&p->options);
    FP8_TRY(select_backend(p));
    log_plan(p);
    *out = p;
    p = NULL;
done:
    fp8_attention_plan_destroy(p);
    return st;
}

void fp8_attention_plan_destroy(fp8_attention_plan *p) {
    if (!p) return;
    if (p->chosen) p->chosen->close(p);
    free(p);
}

fp8_attention_backend fp8_attention_plan_backend(const fp8_attention_plan *p) {
    return p->chosen->id;
}

const char *fp8_attention_plan_reasons(const fp8_attention_plan *p) { return p->reasons; }

size_t fp8_attention_workspace_size(const fp8_attention_plan *p) { return p->workspace_bytes; }

/* ---- run ------------------------------------------------------------------------------------- */

static fp8_status check_rows(const char *name, const void *x, int64_t rows, int64_t stride,
                             int64_t heads, int64_t d) {
    if (rows < 0) return FP8_FAIL(FP8_EINVAL, "attention: %lld rows of %s", (long long)rows, name);
    if (rows > 0 && !x) return FP8_FAIL(FP8_EINVAL, "attention: %s is NULL", name);
    if (rows > 0 && stride < heads * d)
        return FP8_FAIL(FP8_EINVAL, "attention: %s_stride %lld, expected %lld x %lld or more", name,
                        (long long)stride, (long long)heads, (long long)d);
    return FP8_OK;
}

static fp8_status check_descales(const fp8_attention_options *o, const fp8_attention_io *io) {
    if (o->q_dtype == FP8_DTYPE_E4M3 && !io->q_descale)
        return FP8_FAIL(FP8_EINVAL, "attention: Q is E4M3 and q_descale is NULL");
    if (o->kv_dtype == FP8_DTYPE_E4M3 && (!io->k_descale || !io->v_descale))
        return FP8_FAIL(FP8_EINVAL, "attention: K, V are E4M3 and k_descale=%p v_descale=%p",
                        (const void *)io->k_descale, (const void *)io->v_descale);
    return FP8_OK;
}

/* What a uniform plan was promised. */
static fp8_status check_promise(const fp8_attention_options *o, const fp8_attention_io *io) {
    if (io->total_q < o->num_seqs * o->max_q || io->total_kv < o->num_seqs * o->max_kv)
        return FP8_FAIL(FP8_EINVAL,
                        "attention: uniform, %lld x %lld queries and x %lld keys, but %lld and "
                        "%lld rows",
                        (long long)o->num_seqs, (long long)o->max_q, (long long)o->max_kv,
                        (long long)io->total_q, (long long)io->total_kv);
    if (io->o_stride != o->o_stride || io->q_stride != o->q_stride ||
        io->k_stride != o->k_stride || io->v_stride != o->v_stride)
        return FP8_FAIL(FP8_EINVAL,
                        "attention: uniform, strides of O, Q, K, V %lld %lld %lld %lld, but the "
                        "plan was made for %lld %lld %lld %lld",
                        (long long)io->o_stride, (long long)io->q_stride, (long long)io->k_stride,
                        (long long)io->v_stride, (long long)o->o_stride, (long long)o->q_stride,
                        (long long)o->k_stride, (long long)o->v_stride);
    return FP8_OK;
}

static fp8_status check_io(const fp8_attention_options *o, const fp8_attention_io *io) {
    fp8_status st = FP8_OK;

    FP8_TRY(check_rows("q", io->q, io->total_q, io->q_stride, o->num_heads, o->d_qk));
    FP8_TRY(check_rows("o", io->o, io->total_q, io->o_stride, o->num_heads, o->d_v));
    FP8_TRY(check_rows("k", io->k, io->total_kv, io->k_stride, o->num_kv_heads, o->d_qk));
    FP8_TRY(check_rows("v", io->v, io->total_kv, io->v_stride, o->num_kv_heads, o->d_v));
    FP8_TRY(check_descales(o, io));
    if (!io->q_starts || !io->kv_starts)
        return FP8_FAIL(FP8_EINVAL, "attention: q_starts=%p kv_starts=%p",
                        (const void *)io->q_starts, (const void *)io->kv_starts);
    if (o->uniform) FP8_TRY(check_promise(o, io));
done:
    return st;
}

fp8_status fp8_attention_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace,
                             size_t workspace_bytes) {
    fp8_status st;

    if (!p || !io)
        return FP8_FAIL(FP8_EINVAL, "attention: plan=%p io=%p", (void *)p, (const void *)io);
    st = check_io(&p->options, io);
    if (st != FP8_OK) return st;
    if (p->workspace_bytes > 0 && (!workspace || workspace_bytes < p->workspace_bytes))
        return FP8_FAIL(FP8_EINVAL, "attention: workspace %p of %zu bytes, expected %zu", workspace,
                        workspace_bytes, p->workspace_bytes);
    if (p->options.num_seqs == 0 || io->total_q == 0) return FP8_OK;
    return p->chosen->run(p, io, workspace);
}
