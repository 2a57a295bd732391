/* Planning: backends asked in order of preference, reasons kept. What options and operands must be
 * is attention_checks.c's. */
#include "attention/attention.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attention_impl.h"
#include "core/log.h"

/* What a build without CUDA has instead of the three: their verdicts alone. */
#if !FP8_CUDA
static const attention_backend attention_backend_flash = {
    FP8_BACKEND_FLASH, "flash", "FP8_FLASH_ATTN", attention_flash_check, NULL, NULL, NULL,
};
static const attention_backend attention_backend_fused = {
    FP8_BACKEND_FUSED, "fused", "FP8_FUSED_ATTN", attention_fused_check, NULL, NULL, NULL,
};
static const attention_backend attention_backend_unfused = {
    FP8_BACKEND_UNFUSED, "unfused", "FP8_UNFUSED_ATTN", attention_unfused_check, NULL, NULL, NULL,
};
static size_t attention_cudnn_version(void) { return 0; }
#endif

/* In order of preference. */
static const attention_backend *const backends[ATTENTION_NUM_BACKENDS] = {
    &attention_backend_flash,
    &attention_backend_fused,
    &attention_backend_unfused,
    &attention_backend_cpu,
};

const attention_backend *attention_backend_at(int32_t i) { return backends[i]; }

const char *fp8_attention_backend_name(fp8_attention_backend b) {
    if (b == FP8_BACKEND_AUTO) return "auto";
    for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++)
        if (backends[i]->id == b) return backends[i]->name;
    return "?";
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

static attention_target target_of(const fp8_device *d) {
    const int cuda = fp8_device_place(d) == FP8_PLACE_CUDA;
    return (attention_target){fp8_device_place(d), fp8_device_capability(d),
                              cuda ? attention_cudnn_version() : 0, fp8_device_name(d)};
}

/* Asks one backend; FP8_EUNSUPPORTED with the reason as the message when it does not serve or is
 * not wanted. What served is in `about`. */
static fp8_status consider(fp8_attention_plan *p, const attention_backend *b,
                           const attention_target *t, char about[ATTENTION_REASON_BYTES]) {
    fp8_status st;
    int on;

    if (p->options.backend != FP8_BACKEND_AUTO && p->options.backend != b->id)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the options ask for %s",
                        fp8_attention_backend_name(p->options.backend));
    st = read_switch(b->switch_name, &on);
    if (st != FP8_OK) return st;
    if (!on) return FP8_FAIL(FP8_EUNSUPPORTED, "switched off by %s=0", b->switch_name);
    if (!b->open) return FP8_FAIL(FP8_EUNSUPPORTED, "this build is without CUDA");
    st = b->check(&p->options, t, about);
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
    const attention_target target = target_of(p->device);
    fp8_attention_backend first;
    fp8_status st = read_preference(&first);

    if (st != FP8_OK) return st;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++) {
            char about[ATTENTION_REASON_BYTES] = "";
            if ((backends[i]->id == first) != (round == 0)) continue;
            st = consider(p, backends[i], &target, about);
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
            "attention: heads %d/%d, d %d/%d, %lld sequences up to %lld x %lld, %s%s, mask %d, "
            "window %lld %lld, scale %g, Q %s, K and V %s, O %s%s, workspace %zu bytes",
            o->num_heads, o->num_kv_heads, o->d_qk, o->d_v, (long long)o->num_seqs,
            (long long)o->max_q, (long long)o->max_kv, fp8_attention_layout_name(o->layout),
            o->padding ? " with lengths" : "", (int)o->mask, (long long)o->window_left,
            (long long)o->window_right, (double)o->scale, fp8_dtype_name(o->q_dtype),
            fp8_dtype_name(o->kv_dtype), fp8_dtype_name(o->o_dtype),
            o->quantize_p ? ", P in E4M3" : "", p->workspace_bytes);
    fp8_log(FP8_LOG_DETAIL, "attention: %s", p->reasons);
}

fp8_status fp8_attention_plan_create(fp8_attention_plan **out, fp8_device *d,
                                     const fp8_attention_options *options) {
    fp8_status st = FP8_OK;
    fp8_attention_plan *p = NULL;

    if (!out || !d || !options)
        return FP8_FAIL(FP8_EINVAL, "attention plan: out=%p device=%p options=%p", (void *)out,
                        (void *)d, (const void *)options);
    *out = NULL;
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "attention plan");
    FP8_TRY(attention_resolve_options(&p->options, options));
    p->device = d;
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

fp8_status fp8_attention_run(fp8_attention_plan *p, const fp8_attention_io *io, void *workspace,
                             size_t workspace_bytes) {
    fp8_attention_io resolved;
    fp8_status st;

    if (!p || !io)
        return FP8_FAIL(FP8_EINVAL, "attention: plan=%p io=%p", (void *)p, (const void *)io);
    st = attention_resolve_io(&resolved, &p->options, io);
    if (st != FP8_OK) return st;
    if (p->workspace_bytes > 0 && (!workspace || workspace_bytes < p->workspace_bytes))
        return FP8_FAIL(FP8_EINVAL, "attention: workspace %p of %zu bytes, expected %zu", workspace,
                        workspace_bytes, p->workspace_bytes);
    if ((p->options.num_seqs == 0 || resolved.total_q == 0) && !p->options.want_amax) return FP8_OK;
    return p->chosen->run(p, &resolved, workspace);
}
