#include "core/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/device_impl.h"
#include "core/log.h"

enum { ALIGN_BYTES = 256 };

/* One switch for the whole file: without CUDA no device ever has that place. */
#if FP8_CUDA
#define ON_CUDA(d) ((d)->place == FP8_PLACE_CUDA)
#define CUDA_CALL(call) call
#else
#define ON_CUDA(d) ((void)(d), 0)
#define CUDA_CALL(call) FP8_EUNSUPPORTED
static int32_t fp8_cuda_none(const char **why) {
    *why = "this build is without CUDA";
    return 0;
}
#define fp8_cuda_count fp8_cuda_none
#endif

/* "auto", "cpu", "cuda", "cuda:N" -> place and index; *automatic for "auto". */
static fp8_status parse_spec(const char *spec, fp8_place *place, int32_t *index, int *automatic) {
    *automatic = strcmp(spec, "auto") == 0;
    *place = FP8_PLACE_CPU;
    *index = 0;
    if (*automatic || strcmp(spec, "cpu") == 0) return FP8_OK;
    if (strncmp(spec, "cuda", 4) == 0 && (spec[4] == '\0' || spec[4] == ':')) {
        char *end = NULL;
        const long n = spec[4] ? strtol(spec + 5, &end, 10) : 0;
        if (!end || (end != spec + 5 && *end == '\0' && n >= 0 && n < 1024)) {
            *place = FP8_PLACE_CUDA;
            *index = (int32_t)n;
            return FP8_OK;
        }
    }
    return FP8_FAIL(FP8_EINVAL, "device '%s': expected auto, cpu, cuda or cuda:N", spec);
}

fp8_status fp8_device_create(fp8_device **out, const char *spec, int32_t threads) {
    fp8_status st = FP8_OK;
    fp8_device *d = NULL;
    const char *why = "";
    int automatic = 0;
    int32_t usable = 0;

    *out = NULL;
    d = calloc(1, sizeof *d);
    if (!d) return FP8_FAIL(FP8_ENOMEM, "device");
    FP8_TRY(parse_spec(spec, &d->place, &d->index, &automatic));
    FP8_TRY(fp8_pool_create(&d->pool, threads));
    if (automatic || d->place == FP8_PLACE_CUDA) usable = fp8_cuda_count(&why);
    if (automatic) {
        d->place = usable > 0 ? FP8_PLACE_CUDA : FP8_PLACE_CPU;
        if (!usable) fp8_log(FP8_LOG_INFO, "device auto: the CPU, since %s", why);
    }
    if (d->place == FP8_PLACE_CPU) {
        snprintf(d->name, sizeof d->name, "CPU, %d thread%s", fp8_pool_threads(d->pool),
                 fp8_pool_threads(d->pool) == 1 ? "" : "s");
    } else {
        if (d->index >= usable) {
            st = FP8_FAIL(FP8_EUNSUPPORTED, "device '%s': %d usable CUDA devices%s%s", spec,
                          usable, usable ? "" : ": ", usable ? "" : why);
            d->place = FP8_PLACE_CPU; /* nothing to close */
            goto done;
        }
        FP8_TRY(CUDA_CALL(fp8_cuda_open(d, d->index)));
    }
    *out = d;
    d = NULL;
done:
    fp8_device_destroy(d);
    return st;
}

void fp8_device_destroy(fp8_device *d) {
    if (!d) return;
    if (ON_CUDA(d)) (void)CUDA_CALL((fp8_cuda_close(d), FP8_OK));
    fp8_pool_destroy(d->pool);
    free(d);
}

fp8_place fp8_device_place(const fp8_device *d) { return d->place; }
int32_t fp8_device_index(const fp8_device *d) { return d->index; }
const char *fp8_device_name(const fp8_device *d) { return d->name; }
int32_t fp8_device_capability(const fp8_device *d) { return d->capability; }
fp8_pool *fp8_device_pool(const fp8_device *d) { return d->pool; }

fp8_stream fp8_device_stream(const fp8_device *d) {
    if (ON_CUDA(d)) (void)CUDA_CALL((fp8_cuda_use(d), FP8_OK));
    return d->stream;
}

static fp8_status alloc_aligned(void **out, size_t bytes) {
    const size_t want = bytes ? bytes : 1;
    if (want > SIZE_MAX - ALIGN_BYTES)
        return FP8_FAIL(FP8_ENOMEM, "%zu bytes of host memory", bytes);
    *out = aligned_alloc(ALIGN_BYTES, (want + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES);
    return *out ? FP8_OK : FP8_FAIL(FP8_ENOMEM, "%zu bytes of host memory", bytes);
}

fp8_status fp8_device_alloc(fp8_device *d, void **out, size_t bytes) {
    *out = NULL;
    return ON_CUDA(d) ? CUDA_CALL(fp8_cuda_alloc(d, out, bytes)) : alloc_aligned(out, bytes);
}

void fp8_device_free(fp8_device *d, void *p) {
    if (!p) return;
    if (ON_CUDA(d)) (void)CUDA_CALL((fp8_cuda_free(d, p), FP8_OK));
    else free(p);
}

static fp8_status host_memory(size_t *free_bytes, size_t *all_bytes) {
    const long page = sysconf(_SC_PAGESIZE), all = sysconf(_SC_PHYS_PAGES);
    const long now = sysconf(_SC_AVPHYS_PAGES);

    if (page < 1 || all < 1 || now < 0)
        return FP8_FAIL(FP8_EUNSUPPORTED, "this machine does not tell its memory");
    *free_bytes = (size_t)now * (size_t)page;
    *all_bytes = (size_t)all * (size_t)page;
    return FP8_OK;
}

fp8_status fp8_device_memory(fp8_device *d, size_t *free_bytes, size_t *all_bytes) {
    *free_bytes = *all_bytes = 0;
    return ON_CUDA(d) ? CUDA_CALL(fp8_cuda_memory(d, free_bytes, all_bytes))
                      : host_memory(free_bytes, all_bytes);
}

fp8_status fp8_device_alloc_host(fp8_device *d, void **out, size_t bytes) {
    *out = NULL;
    return ON_CUDA(d) ? CUDA_CALL(fp8_cuda_alloc_host(d, out, bytes)) : alloc_aligned(out, bytes);
}

void fp8_device_free_host(fp8_device *d, void *p) {
    if (!p) return;
    if (ON_CUDA(d)) (void)CUDA_CALL((fp8_cuda_free_host(d, p), FP8_OK));
    else free(p);
}

/* Every copy: nothing to do for 0 bytes; on the CPU all of them are memcpy. */
#define DEFINE_COPY(name, kind)                                                                    \
    fp8_status name(fp8_device *d, void *dst, const void *src, size_t bytes) {                     \
        if (bytes == 0) return FP8_OK;                                                             \
        if (ON_CUDA(d)) return CUDA_CALL(fp8_cuda_copy(d, dst, src, bytes, kind));                 \
        memmove(dst, src, bytes);                                                                  \
        return FP8_OK;                                                                             \
    }
DEFINE_COPY(fp8_device_upload, FP8_COPY_UP)
DEFINE_COPY(fp8_device_download, FP8_COPY_DOWN)
DEFINE_COPY(fp8_device_download_async, FP8_COPY_DOWN_ASYNC)
DEFINE_COPY(fp8_device_copy, FP8_COPY_ON)

fp8_status fp8_device_fill(fp8_device *d, void *dst, int byte, size_t bytes) {
    if (bytes == 0) return FP8_OK;
    if (ON_CUDA(d)) return CUDA_CALL(fp8_cuda_fill(d, dst, byte, bytes));
    memset(dst, byte, bytes);
    return FP8_OK;
}

fp8_status fp8_device_sync(fp8_device *d) {
    return ON_CUDA(d) ? CUDA_CALL(fp8_cuda_sync(d)) : FP8_OK;
}

fp8_status fp8_event_create(fp8_device *d, fp8_event **out) {
    fp8_event *e = calloc(1, sizeof *e);
    fp8_status st = FP8_OK;

    *out = NULL;
    if (!e) return FP8_FAIL(FP8_ENOMEM, "event");
    e->device = d;
    if (ON_CUDA(d)) st = CUDA_CALL(fp8_cuda_event_create(e));
    if (st == FP8_OK) *out = e;
    else free(e);
    return st;
}

fp8_status fp8_event_record(fp8_event *e) {
    return ON_CUDA(e->device) ? CUDA_CALL(fp8_cuda_event_record(e)) : FP8_OK;
}

fp8_status fp8_event_wait(fp8_event *e) {
    return ON_CUDA(e->device) ? CUDA_CALL(fp8_cuda_event_wait(e)) : FP8_OK;
}

void fp8_event_destroy(fp8_event *e) {
    if (!e) return;
    if (ON_CUDA(e->device)) (void)CUDA_CALL((fp8_cuda_event_destroy(e), FP8_OK));
    free(e);
}
