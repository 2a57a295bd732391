/* Ranges by NVTX's headers, which load what listens by themselves. A toolkit without: none. */
#include "core/range.h"

#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#define HAVE_NVTX 1
#endif
#endif

#ifdef HAVE_NVTX
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wstrict-prototypes"
#include <nvtx3/nvToolsExt.h>
#pragma GCC diagnostic pop

void fp8_range_begin(const char *name) { (void)nvtxRangePushA(name); }
void fp8_range_end(void) { (void)nvtxRangePop(); }
#else
void fp8_range_begin(const char *name) { (void)name; }
void fp8_range_end(void) {}
#endif
