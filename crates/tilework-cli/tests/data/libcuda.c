// As much of a driver as opening GPUs takes, and allocating without mapping: GPUS says how many there are, MAPS=1 that
// they map memory, BROKEN=1 that they do not open, DEADLY=1 that counting them ends the process. Memory is the host's; streams do at once what they are told.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DO(name) int name(void) { return 0; }

static int number(const char *variable) {
    const char *value = getenv(variable);
    return value ? atoi(value) : 0;
}

int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuDeviceGetCount(int *count) {
    if (number("DEADLY")) {
        fputs("last words of the driver\n", stderr);
        abort();
    }
    *count = number("GPUS");
    return 0;
}
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)4 << 30; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)3 << 30; *total = (size_t)4 << 30; return 0; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return number("BROKEN") ? 999 : 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: *value = 9; break;                // compute capability
    case 76: *value = 0; break;
    case 102: *value = number("MAPS"); break;  // virtual memory management
    default: *value = 0;
    }
    return 0;
}

int cuMemGetAllocationGranularity(size_t *bytes, const void *prop, int option) { *bytes = (size_t)2 << 20; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    *address = (uint64_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
    return *address ? 0 : 2;
}
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
int cuMemsetD8_v2(uint64_t address, unsigned char value, size_t bytes) {
    memset((void *)address, value, bytes);
    return 0;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) { memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) { memcpy(to, (void *)from, bytes); return 0; }

DO(cuInit) DO(cuGetErrorName) DO(cuGetErrorString)
DO(cuDevicePrimaryCtxRelease_v2) DO(cuCtxGetCurrent) DO(cuCtxPushCurrent_v2)
DO(cuCtxPopCurrent_v2) DO(cuCtxSynchronize)
DO(cuMemAddressReserve) DO(cuMemAddressFree) DO(cuMemCreate) DO(cuMemRelease) DO(cuMemMap) DO(cuMemUnmap)
DO(cuMemSetAccess) DO(cuMemGetAccess)
DO(cuMemcpyHtoDAsync_v2) DO(cuMemcpyDtoHAsync_v2) DO(cuMemHostRegister_v2) DO(cuMemHostUnregister) DO(cuPointerGetAttribute)
DO(cuStreamCreate) DO(cuStreamDestroy_v2) DO(cuStreamSynchronize) DO(cuStreamQuery)
DO(cuStreamGetCtx) DO(cuStreamWaitEvent) DO(cuStreamIsCapturing) DO(cuThreadExchangeStreamCaptureMode)
DO(cuEventCreate) DO(cuEventRecord) DO(cuEventQuery) DO(cuEventSynchronize) DO(cuEventDestroy_v2) DO(cuLaunchHostFunc)
