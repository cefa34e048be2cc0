/* Makes a GPU look to Tilework as one whose driver has no virtual memory management, to see what it does there.
 *
 *   cc -Wall -O2 -shared -fPIC bench/no_vmm.c -o libno_vmm.so
 *   LD_PRELOAD=$PWD/libno_vmm.so tilework doctor
 *   LD_PRELOAD=$PWD/libno_vmm.so python3 bench/torch_workloads.py --workload sdxl --steps 3 --allocator tilework
 *   LD_PRELOAD=$PWD/libno_vmm.so python3 bench/ort_gpu.py
 *
 * `doctor` says "virtual memory management: no" of each GPU and that `placed` serves; PyTorch and ONNX Runtime warn of
 * it once, and are served from cuMemAlloc.
 *
 * Tilework finds the driver's functions by dlsym, of which this is another: it finds a cuDeviceGetAttribute that says no,
 * and in place of what creates and maps memory something that refuses, so that a call of these would be seen. CUDA's runtime finds
 * its own by cuGetProcAddress and notices nothing, and PyTorch asks neither for these. For Linux on x86-64.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#ifndef __OPTIMIZE__
#error "build with -O2: dlsym tells by the return address who asks, so the real one must be jumped to, not called"
#endif

enum { MAPS_MEMORY = 102, NOT_SUPPORTED = 801 };

typedef void *find(void *, const char *);
typedef int attribute(int *, int, int);

static attribute *real_attribute;

static int no_attribute(int *value, int which, int device) {
    int code = real_attribute(value, which, device);
    if (code == 0 && which == MAPS_MEMORY) *value = 0;
    return code;
}

static int refuse(void) { return NOT_SUPPORTED; }

void *dlsym(void *handle, const char *name) {
    static find *real;
    if (!real) real = (find *)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
    if (!strcmp(name, "cuDeviceGetAttribute")) {
        real_attribute = (attribute *)real(handle, name);
        return real_attribute ? no_attribute : NULL;
    }
    if (!strcmp(name, "cuMemGetAllocationGranularity") || !strcmp(name, "cuMemAddressReserve") ||
        !strcmp(name, "cuMemCreate") || !strcmp(name, "cuMemMap"))
        return refuse;
    return real(handle, name);
}
