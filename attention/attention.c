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

static void set_reason(fp8_attention_verdict *v, const char *about, const char *text) {
    snprintf(v->reason, sizeof v->reason, "%s%s%s", about, *about ? ": " : "", text);
}

/* Whether the options and the environment want the backend, and whether it serves them. */
static fp8_status ask(const fp8_attention_plan *p, const attention_backend *b,
                      const attention_target *t, char about[ATTENTION_REASON_BYTES]) {
    const fp8_attention_options *o = &p->options;
    fp8_status st;
    int on;

    if (o->backend != FP8_BACKEND_AUTO && o->backend != b->id)
        return FP8_FAIL(FP8_EUNSUPPORTED, "the options ask for %s",
                        fp8_attention_backend_name(o->backend));
    st = read_switch(b->switch_name, &on);
    if (st != FP8_OK) return st;
    if (!on) return FP8_FAIL(FP8_EUNSUPPORTED, "switched off by %s=0", b->switch_name);
    if (p->device && !b->open) return FP8_FAIL(FP8_EUNSUPPORTED, "this build is without CUDA");
    return b->check(o, t, about);
}

/* One verdict. With a device the backend is opened, if none was before it. */
static fp8_status judge(fp8_attention_plan *p, const attention_backend *b,
                        const attention_target *t, fp8_attention_verdict *v, int first) {
    char about[ATTENTION_REASON_BYTES] = "";
    fp8_status st = ask(p, b, t, about);

    v->backend = b->id;
    if (st == FP8_OK && p->device && first) {
        st = b->open(p);
        if (st == FP8_OK) p->chosen = b;
        else b->close(p);
    }
    v->serves = st == FP8_OK;
    if (st == FP8_EUNSUPPORTED) set_reason(v, about, fp8_last_message());
    else set_reason(v, about, first ? "serves" : "would serve, but comes later");
    return st == FP8_EUNSUPPORTED ? FP8_OK : st;
}

/* Walks the backends, the preferred one first; *chosen is the first that serves. Without a
 * preference that is fused where flash yields to it. */
static fp8_status select_backend(fp8_attention_plan *p, const attention_target *t,
                                 fp8_attention_backend *chosen) {
    fp8_attention_backend first;
    int32_t n = 0;
    fp8_status st;

    *chosen = FP8_BACKEND_AUTO;
    FP8_TRY(read_preference(&first));
    if (first == FP8_BACKEND_AUTO && attention_flash_yields(&p->options)) first = FP8_BACKEND_FUSED;
    for (int i = 0; i < 2 * ATTENTION_NUM_BACKENDS; i++) {
        const attention_backend *b = backends[i % ATTENTION_NUM_BACKENDS];
        fp8_attention_verdict *v = &p->verdicts[n];
        if ((b->id == first) != (i < ATTENTION_NUM_BACKENDS)) continue;
        FP8_TRY(judge(p, b, t, v, *chosen == FP8_BACKEND_AUTO));
        if (v->serves && *chosen == FP8_BACKEND_AUTO) *chosen = b->id;
        n++;
    }
done:
    return st;
}

static void write_reasons(fp8_attention_plan *p) {
    size_t used = 0;
    for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++) {
        const fp8_attention_verdict *v = &p->verdicts[i];
        used += (size_t)snprintf(p->reasons + used, sizeof p->reasons - used, "%s%s: %s",
                                 i ? "\n" : "", fp8_attention_backend_name(v->backend), v->reason);
    }
}

fp8_attention_target fp8_attention_target_of(const fp8_device *d) {
    const int cuda = fp8_device_place(d) == FP8_PLACE_CUDA;
    return (fp8_attention_target){fp8_device_place(d), fp8_device_capability(d),
                                  cuda ? attention_cudnn_version() : 0, fp8_device_name(d)};
}

fp8_status fp8_attention_explain(fp8_attention_backend *chosen,
                                 fp8_attention_verdict verdicts[FP8_ATTENTION_BACKENDS],
                                 fp8_device *d, const fp8_attention_target *target,
                                 const fp8_attention_options *options) {
    fp8_attention_plan *p = NULL;
    fp8_attention_target t;
    fp8_status st;

    if (!chosen || !verdicts || !options || (!d && !target))
        return FP8_FAIL(FP8_EINVAL,
                        "attention: explain: chosen=%p verdicts=%p device=%p target=%p options=%p",
                        (void *)chosen, (void *)verdicts, (void *)d, (const void *)target,
                        (const void *)options);
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "attention plan");
    FP8_TRY(attention_resolve_options(&p->options, options));
    p->device = d;
    t = d ? fp8_attention_target_of(d) : *target;
    FP8_TRY(select_backend(p, &t, chosen));
    memcpy(verdicts, p->verdicts, sizeof p->verdicts);
done:
    fp8_attention_plan_destroy(p);
    return st;
}

/* ---- plans ----------------------------------------------------------------------------------- */

/* A preference that could not be met is said, since another backend serves in silence. */
static void warn_preference(const fp8_attention_plan *p) {
    const fp8_attention_verdict *v = &p->verdicts[0]; /* the preferred one is asked first */
    const char *text = getenv("FP8_ATTENTION_BACKEND");
    if (p->chosen->id == v->backend || !text || !*text || strcmp(text, "auto") == 0) return;
    fp8_log(FP8_LOG_WARNING, "attention: FP8_ATTENTION_BACKEND=%s does not serve, %s does: %s",
            text, p->chosen->name, v->reason);
}

/* Level 1: one line. Level 2: the whole configuration, a line each. */
static void log_plan(const fp8_attention_plan *p, const attention_target *t) {
    char text[2048], *line = text, *end;

    fp8_log(FP8_LOG_INFO, "attention: %s", p->chosen->name);
    if (!fp8_log_enabled(FP8_LOG_DETAIL)) return;
    fp8_log(FP8_LOG_DETAIL, "attention: device: %s, compute capability %d; %s", t->name,
            t->capability, fp8_attention_libraries());
    if (fp8_attention_describe(text, sizeof text, &p->options) == FP8_OK)
        for (; line; line = end ? end + 1 : NULL) {
            end = strchr(line, '\n');
            fp8_log(FP8_LOG_DETAIL, "attention: %.*s", end ? (int)(end - line) : -1, line);
        }
    fp8_log(FP8_LOG_DETAIL, "attention: workspace: %zu bytes", p->workspace_bytes);
    for (int i = 0; i < ATTENTION_NUM_BACKENDS; i++)
        fp8_log(FP8_LOG_DETAIL, "attention: %s: %s",
                fp8_attention_backend_name(p->verdicts[i].backend), p->verdicts[i].reason);
}

fp8_status fp8_attention_plan_create(fp8_attention_plan **out, fp8_device *d,
                                     const fp8_attention_options *options) {
    const char *sync = getenv("FP8_SYNC");
    fp8_attention_backend chosen;
    fp8_attention_plan *p = NULL;
    attention_target target;
    fp8_status st;

    if (!out || !d || !options)
        return FP8_FAIL(FP8_EINVAL, "attention plan: out=%p device=%p options=%p", (void *)out,
                        (void *)d, (const void *)options);
    *out = NULL;
    p = calloc(1, sizeof *p);
    if (!p) return FP8_FAIL(FP8_ENOMEM, "attention plan");
    FP8_TRY(attention_resolve_options(&p->options, options));
    p->device = d;
    p->checked = sync && *sync == '1';
    target = fp8_attention_target_of(d);
    FP8_TRY(select_backend(p, &target, &chosen));
    write_reasons(p);
    if (chosen == FP8_BACKEND_AUTO)
        FP8_TRY(FP8_FAIL(FP8_EUNSUPPORTED, "attention: no backend serves:\n%s", p->reasons));
    warn_preference(p);
    log_plan(p, &target);
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
    st = p->chosen->run(p, &resolved, workspace);
    if (st != FP8_OK || !p->checked) return st;
    return attention_report_lengths(p->device, &p->options, &resolved);
}
