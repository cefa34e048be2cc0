// As much of the CUDA runtime as PyTorch needs to make tensors on "GPUs" whose memory is the host's: there is
// no kernel and no work that is still under way. Preloaded by the tests in place of the real one.

#include <stdlib.h>
#include <string.h>

#define DO(name, arguments, body) \
    int name arguments { body; return 0; }

static _Thread_local int current;

// The stream that is being captured, if one is.
static void *captured;
static int captures;
static unsigned long long capture;

DO(cudaGetDevice, (int *device), *device = current)
DO(cudaSetDevice, (int device), current = device)
DO(cudaGetDeviceCount, (int *count), *count = 2)
DO(cudaGetDeviceProperties, (char *properties, int device), memset(properties, 0, 1008); (void)device)
DO(cudaDeviceGetAttribute, (int *value), *value = 0)
DO(cudaDriverGetVersion, (int *version), *version = 13000)
DO(cudaRuntimeGetVersion, (int *version), *version = 13000)
DO(cudaGetDriverEntryPointByVersion, (const char *name, void **function, unsigned version, unsigned long long flags, int *result),
   (void)name; (void)version; (void)flags; *function = NULL; if (result) *result = 1)
DO(cudaGetLastError, (void), )
DO(cudaPeekAtLastError, (void), )
DO(cudaDeviceSynchronize, (void), )
DO(cudaDeviceCanAccessPeer, (int *can), *can = 0)
DO(cudaDeviceEnablePeerAccess, (void), )
DO(cudaDeviceGetStreamPriorityRange, (int *least, int *most), *least = *most = 0)
DO(cudaStreamCreateWithPriority, (void **stream), *stream = malloc(1))
DO(cudaStreamIsCapturing, (void *stream, int *status), *status = captures && stream == captured)
DO(cudaStreamGetCaptureInfo, (void *stream, int *status, unsigned long long *id),
   *status = captures && stream == captured; if (id) *id = capture)
DO(cudaStreamBeginCapture, (void *stream), captured = stream; captures = 1; capture++)
DO(cudaStreamEndCapture, (void *stream, void **graph), (void)stream; captures = 0; *graph = malloc(1))
DO(cudaGraphInstantiate, (void **executable), *executable = malloc(1))
DO(cudaGraphInstantiateWithFlags, (void **executable), *executable = malloc(1))
DO(cudaGraphGetNodes, (void *graph, void *nodes, size_t *count), (void)graph; (void)nodes; *count = 1)
DO(cudaGraphLaunch, (void), )
DO(cudaGraphDestroy, (void *graph), free(graph))
DO(cudaGraphExecDestroy, (void *executable), free(executable))
DO(cudaLaunchKernel, (void), )
DO(cudaStreamSynchronize, (void), )
DO(cudaStreamQuery, (void), )
DO(cudaStreamWaitEvent, (void), )
DO(cudaEventCreateWithFlags, (void **event), *event = malloc(1))
DO(cudaEventRecord, (void), )
DO(cudaEventRecordWithFlags, (void), )
DO(cudaEventQuery, (void), )
DO(cudaEventSynchronize, (void), )
DO(cudaEventDestroy, (void *event), free(event))
DO(cudaThreadExchangeStreamCaptureMode, (void), )
DO(cudaMalloc, (void **to, size_t bytes), *to = malloc(bytes))
DO(cudaFree, (void *pointer), free(pointer))
DO(cudaHostAlloc, (void **to, size_t bytes), *to = malloc(bytes))
DO(cudaFreeHost, (void *pointer), free(pointer))
DO(cudaMemGetInfo, (size_t *unused, size_t *total), *unused = (size_t)3 << 30; *total = (size_t)4 << 30)
DO(cudaMemcpyAsync, (void *to, const void *from, size_t bytes), memcpy(to, from, bytes))
DO(cudaMemcpyPeerAsync, (void *to, int there, const void *from, int here, size_t bytes),
   (void)there; (void)here; memcpy(to, from, bytes))
DO(cudaMemsetAsync, (void *at, int value, size_t bytes), memset(at, value, bytes))
