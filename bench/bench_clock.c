/* The SM clock, through NVML where the driver has it; nothing is linked. */
#include <dlfcn.h>
#include <stddef.h>

#include "bench/bench_impl.h"

typedef int (*nvml_init)(void);
typedef int (*nvml_handle)(unsigned, void **);
typedef int (*nvml_clock)(void *, int, unsigned *);

enum { NVML_CLOCK_SM = 1 };

double bench_sm_clock(int32_t device) {
    static void *library;
    void *handle = NULL;
    unsigned mhz = 0;
    nvml_init init;
    nvml_handle find;
    nvml_clock read;

    if (!library) library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!library) return 0;
    *(void **)&init = dlsym(library, "nvmlInit_v2"); /* as POSIX writes it */
    *(void **)&find = dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
    *(void **)&read = dlsym(library, "nvmlDeviceGetClockInfo");
    if (!init || !find || !read || init() != 0) return 0;
    if (find((unsigned)device, &handle) != 0) return 0;
    return read(handle, NVML_CLOCK_SM, &mhz) == 0 ? (double)mhz : 0;
}
