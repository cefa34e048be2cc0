// As much of a driver as there is before anything runs on a GPU: it knows how many there are.

#include <stdlib.h>

#define DO(name) int name(void) { return 0; }

int cuDeviceGetCount(int *count) {
    *count = atoi(getenv("GPUS"));
    return 0;
}

DO(cuInit) DO(cuDriverGetVersion) DO(cuGetErrorName) DO(cuGetErrorString) DO(cuDeviceGet)
DO(cuDeviceGetName) DO(cuDeviceGetAttribute) DO(cuDeviceTotalMem_v2) DO(cuDeviceCanAccessPeer)
DO(cuDevicePrimaryCtxRetain) DO(cuDevicePrimaryCtxRelease_v2) DO(cuCtxGetCurrent) DO(cuCtxPushCurrent_v2)
DO(cuCtxPopCurrent_v2) DO(cuCtxSynchronize) DO(cuMemGetInfo_v2) DO(cuMemGetAllocationGranularity)
DO(cuMemAddressReserve) DO(cuMemAddressFree) DO(cuMemCreate) DO(cuMemRelease) DO(cuMemMap) DO(cuMemUnmap)
DO(cuMemSetAccess) DO(cuMemAlloc_v2) DO(cuMemFree_v2) DO(cuMemcpyHtoD_v2) DO(cuMemcpyDtoH_v2)
DO(cuMemcpyHtoDAsync_v2) DO(cuMemcpyDtoHAsync_v2) DO(cuMemHostRegister_v2) DO(cuMemHostUnregister) DO(cuPointerGetAttribute)
DO(cuMemsetD8_v2) DO(cuStreamCreate) DO(cuStreamDestroy_v2) DO(cuStreamSynchronize) DO(cuStreamQuery)
DO(cuStreamGetCtx) DO(cuStreamWaitEvent) DO(cuStreamIsCapturing) DO(cuThreadExchangeStreamCaptureMode)
DO(cuEventCreate) DO(cuEventRecord) DO(cuEventQuery) DO(cuEventSynchronize) DO(cuEventDestroy_v2) DO(cuLaunchHostFunc)
