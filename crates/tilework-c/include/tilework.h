/* Tilework: memory for models, for C and whatever calls C.
 *
 * Written by cbindgen from crates/tilework-c/src; the words are those of the library's glossary.
 *
 *   tilework_manager *manager;
 *   tilework_options options = {sizeof options, "cuda:0"};
 *   if (tilework_create(&options, &manager)) puts(tilework_last_error());
 *
 * Every function may be called from any thread. None ends the process or prints: what is logged waits for
 * tilework_take_log, once tilework_set_log asks for it. An address is one of the device: a pointer only where the
 * device is "host". Streams are the device's own, such as a cudaStream_t.
 */

#ifndef TILEWORK_H
#define TILEWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A manager.
typedef struct tilework_manager tilework_manager;

// What a function answers. On anything but `TILEWORK_STATUS_OK`, `tilework_last_error` has a sentence.
typedef enum tilework_status {
  // Done.
  TILEWORK_STATUS_OK = 0,
  // A null pointer, a manager that is not there, an unknown name, a size of zero.
  TILEWORK_STATUS_INVALID_ARGUMENT = 1,
  // Physical memory ran out, after everything unused had been given back.
  TILEWORK_STATUS_OUT_OF_MEMORY = 2,
  // No live block begins at the address.
  TILEWORK_STATUS_UNKNOWN_ADDRESS = 3,
  // The device could not be opened, or failed; what had been done was undone.
  TILEWORK_STATUS_DEVICE_FAILED = 4,
  // Not possible here.
  TILEWORK_STATUS_UNSUPPORTED = 5,
  // The process is a child, made by fork from one that had managers: these stay with the parent.
  TILEWORK_STATUS_FORKED = 6,
  // A defect of this library.
  TILEWORK_STATUS_INTERNAL = 7,
  // The group is evicted: restore it first.
  TILEWORK_STATUS_EVICTED = 8,
  // Something is in the way: a pin, a block that is live.
  TILEWORK_STATUS_IN_USE = 9,
  // The host has no room for contents, or could not read them again.
  TILEWORK_STATUS_HOST_FAILED = 10,
} tilework_status;

// Where a group's memory is.
typedef enum tilework_residence {
  // On the device.
  TILEWORK_RESIDENCE_RESIDENT = 0,
  // On the host, or nowhere if it was discarded.
  TILEWORK_RESIDENCE_EVICTED = 1,
  // On the device, its contents on the way.
  TILEWORK_RESIDENCE_ARRIVING = 2,
} tilework_residence;

// How much a line of the log matters.
typedef enum tilework_level {
  // Of no line: nothing is logged.
  TILEWORK_LEVEL_OFF = 0,
  // A failure that no caller could be told.
  TILEWORK_LEVEL_ERROR = 1,
  // Something to know about: what serves in place of what the device cannot, what failed and is tried again.
  TILEWORK_LEVEL_WARNING = 2,
  // What was chosen.
  TILEWORK_LEVEL_INFO = 3,
  // What happened: groups that went and came, memory that lacked, was given back, or is the host's.
  TILEWORK_LEVEL_DEBUG = 4,
} tilework_level;

// How a manager is to be. Set `size` to `sizeof(tilework_options)` and everything else to zero, then what
// is to differ.
typedef struct tilework_options {
  // `sizeof(tilework_options)`: a later version of this structure is longer.
  size_t size;
  // Whose memory: "cuda" or "cuda:0", "cuda:1" and so on, "host", "sim-h200",
  // "sim-d3d12", "null".
  const char *device;
  // Who serves: "auto", also when null, "tiled" or "placed"; no other serves threads and streams. With the first two that is
  // tiled where the device maps tiles, else placed.
  const char *manager;
  // Physical memory that is created at once, bytes; 0 for the default.
  uint64_t heap_bytes;
  // The most physical memory that may be held, bytes; 0 for no limit.
  uint64_t limit_bytes;
  // Executions after which an unused mapping is undone; 0 for the default.
  uint32_t mapping_age;
  // Executions after which an empty heap is released; 0 for the default.
  uint32_t heap_age;
} tilework_options;

// Tells whether requests on `stream`, by the calling thread, go to a pool. It may be called by any thread,
// during any `tilework_alloc` between the pool's begin and end, and must not call the manager.
typedef bool (*tilework_pool_filter)(void *stream, void *user_data);

// What a manager has and had. Set `size` to `sizeof(tilework_figures)` before the call.
typedef struct tilework_figures {
  // `sizeof(tilework_figures)`: as much is written, or what this version of the library has of it; then that is set here.
  size_t size;
  // Bytes requested and not yet freed, and the most there were.
  uint64_t live;
  // See `live`.
  uint64_t peak_live;
  // Bytes of physical memory created and not released, and the most there were.
  uint64_t held;
  // See `held`.
  uint64_t peak_held;
  // Bytes of address space backed by memory; memory mapped twice counts twice.
  uint64_t mapped;
  // Bytes of address space reserved.
  uint64_t reserved;
  // The part of `held` that no stream has, ready for any, bytes.
  uint64_t stock;
  // Bytes freed that wait for the streams that used them.
  uint64_t pending;
  // The part of `held` that the device failed to take back, bytes.
  uint64_t leftover;
  // Blocks live.
  uint64_t blocks;
  // Requests served.
  uint64_t allocations;
  // Blocks freed.
  uint64_t frees;
  // Requests refused for want of memory.
  uint64_t ooms;
  // Requests before which everything unused was given back.
  uint64_t retries;
  // Calls the driver has served.
  uint64_t device_calls;
  // Time in these calls, nanoseconds.
  uint64_t device_ns;
  // Contents of evicted groups on the host, bytes.
  uint64_t kept;
  // Memory of the host that the device uses for want of its own, bytes; not in `held`.
  uint64_t spilled;
  // Groups that were evicted for want of memory.
  uint64_t evictions;
  // Times that everything unused was given back for want of memory.
  uint64_t give_backs;
  // Heaps that were made of the host's memory for want of the device's.
  uint64_t spills;
} tilework_figures;

// What a group has and did. Set `size` to `sizeof(tilework_group_figures)` before the call.
typedef struct tilework_group_figures {
  // `sizeof(tilework_group_figures)`: as much is written.
  size_t size;
  // Where it is.
  enum tilework_residence residence;
  // How often it was pinned and not unpinned since.
  uint32_t pins;
  // Bytes requested and not yet freed, resident or not.
  uint64_t live;
  // Physical memory of the device it has, bytes.
  uint64_t held;
  // Its contents on the host, bytes.
  uint64_t kept;
  // How often it was evicted or discarded.
  uint64_t evictions;
  // How often it was restored.
  uint64_t restores;
  // Bytes copied to the host, ever.
  uint64_t bytes_out;
  // Bytes copied back, ever.
  uint64_t bytes_in;
} tilework_group_figures;

// A program's own Vulkan. Set `size` to `sizeof(tilework_vulkan_parts)` and everything else to zero, then the rest.
typedef struct tilework_vulkan_parts {
  // `sizeof(tilework_vulkan_parts)`: a later version of this structure is longer.
  size_t size;
  // `vkGetInstanceProcAddr`, of the loader.
  const void *get_instance_proc_addr;
  // A `VkInstance`, made for Vulkan 1.2 or later.
  void *instance;
  // The `VkPhysicalDevice`.
  void *physical_device;
  // The `VkDevice` made of it, with the feature `timelineSemaphore`.
  void *device;
  // The `VkQueue` that everything is submitted to, and memory bound on.
  void *queue;
  // The queue's family: one that copies, and binds sparse memory if `sparse` is set.
  uint32_t queue_family;
  // Whether the device was made with `sparseBinding`, `sparseResidencyBuffer` and `sparseResidencyAliased`. Without
  // them memory is placed and not tiled.
  bool sparse;
  // Whether the device was made with `bufferDeviceAddress`: then addresses are the GPU's own.
  bool buffer_addresses;
  // What memory is for. 0: work on the device. 1: upload, written by the host and read by the device. 2: readback,
  // written by the device and read by the host. What the host is to reach is placed, whatever `sparse` says.
  uint32_t usage;
} tilework_vulkan_parts;

// Where an address is.
typedef struct tilework_vulkan_slice {
  // The `VkBuffer` to name in descriptors and copies. It is the manager's.
  uint64_t buffer;
  // Where in the buffer, bytes.
  uint64_t offset;
  // A number of the buffer's that is never another's: what was recorded for a block holds while this and the offset
  // are the same.
  uint64_t range;
  // Where the host sees the address, to the end of its block, while that is allocated; null where memory is for work
  // on the device. What the host writes is seen by later submissions. It must not write before all that used the
  // memory has passed, also work on a block that had the memory before: free such blocks once their work is done.
  void *host;
} tilework_vulkan_slice;

#if defined(_WIN32)
// A program's own Direct3D 12. Set `size` to `sizeof(tilework_d3d12_parts)` and everything else to zero, then the rest.
typedef struct tilework_d3d12_parts {
  // `sizeof(tilework_d3d12_parts)`: a later version of this structure is longer.
  size_t size;
  // The `ID3D12Device`.
  void *device;
  // The `ID3D12CommandQueue` of it that memory is mapped on, direct or compute.
  void *queue;
  // The `IDXGIAdapter3` of the device, by any of its interfaces, which tells how much memory there is; null if that
  // need not be known.
  void *adapter;
} tilework_d3d12_parts;
#endif

#if defined(_WIN32)
// Where an address is.
typedef struct tilework_d3d12_slice {
  // The `ID3D12Resource` to name in descriptors and copies, a buffer. It is the manager's and not counted for the
  // caller: who keeps it longer than the block calls `AddRef`.
  void *resource;
  // Where in the buffer, bytes.
  uint64_t offset;
  // The GPU's address of it.
  uint64_t gpu_address;
  // A number of the buffer's that is never another's, as the pointer may be: what was recorded for a block holds
  // while this and the offset are the same.
  uint64_t range;
} tilework_d3d12_slice;
#endif

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's version, such as "0.1.0".
const char *tilework_version(void);

// Why the last call that failed on this thread did: a sentence, valid until the next one fails. Null when
// none has.
const char *tilework_last_error(void);

// Makes a manager and stores its handle.
//
// # Safety
// `options` must point to the structure, with its `size` set and its texts null or terminated; `out` must
// be null or valid for a write.
enum tilework_status tilework_create(const struct tilework_options *options, tilework_manager **out);

// Gives everything of a manager back. No queued work may use its memory any more. A call that another
// thread has begun is finished first.
enum tilework_status tilework_destroy(tilework_manager *manager);

// Serves a request of `bytes` for work on `stream` and stores its address. The contents are undefined.
// `cudaStreamPerThread` is refused as unsupported: it is another stream in every thread.
//
// # Safety
// `out` must be null or valid for a write.
enum tilework_status tilework_alloc(tilework_manager *manager, uint64_t bytes, void *stream, uint64_t *out);

// Takes a block back, once no work but that queued on its stream uses it.
enum tilework_status tilework_free(tilework_manager *manager, uint64_t address);

// As `tilework_free`, where the last use is queued on another stream than the request's.
enum tilework_status tilework_free_on(tilework_manager *manager, uint64_t address, void *stream);

// Says that work on `stream` uses a block: once freed, it waits for what is queued there then.
enum tilework_status tilework_record_stream(tilework_manager *manager, uint64_t address, void *stream);

// Stores where the live block that contains `address` begins and how long it is. Either place may be null.
//
// # Safety
// `start` and `bytes` must each be null or valid for a write.
enum tilework_status tilework_block_of(tilework_manager *manager,
                                       uint64_t address,
                                       uint64_t *start,
                                       uint64_t *bytes);

// From now on until `tilework_end_pool`, requests that `filter` lets in go to the private pool named by
// the two numbers: its memory serves nobody else until the pool is released. A null filter lets all in.
//
// # Safety
// `filter` must be null or a function as its type says, callable with `user_data` until the pool is ended.
enum tilework_status tilework_begin_pool(tilework_manager *manager,
                                         uint64_t first,
                                         uint64_t second,
                                         tilework_pool_filter filter,
                                         void *user_data);

// Ends what `tilework_begin_pool` began. What was allocated stays.
enum tilework_status tilework_end_pool(tilework_manager *manager, uint64_t first, uint64_t second);

// Gives a private pool up, once for each begin: its memory serves everybody again when its blocks are free
// and no queued work can use it.
enum tilework_status tilework_release_pool(tilework_manager *manager, uint64_t first, uint64_t second);

// Says that a stream is about to be destroyed: what waits for it is waited for now.
enum tilework_status tilework_forget_stream(tilework_manager *manager, void *stream);

// Tells that one execution of the model has ended: the clock by which unused mappings and empty heaps grow
// old and are given back, on a thread of the library's where it is much.
enum tilework_status tilework_end_of_execution(tilework_manager *manager);

// Gives back everything unused now and stores how many bytes of physical memory that was; `released` may be
// null.
//
// # Safety
// `released` must be null or valid for a write.
enum tilework_status tilework_trim(tilework_manager *manager, uint64_t *released);

// Sets the most physical memory that may be held, bytes; 0 for no limit. What is held above it stays until it is unused, or
// its group can be evicted, and memory lacks. Refused below what pinned groups hold. Of a GPU that PyTorch uses its own fraction of
// the memory stays in force, and the lesser counts.
enum tilework_status tilework_set_limit(tilework_manager *manager,
                                        uint64_t limit_bytes);

// Lets memory be on the host, at addresses like any other, where everything else has been tried and nothing is left
// within the limit; or no longer. It is slow to use, and given back like any other memory that is unused.
enum tilework_status tilework_set_spill(tilework_manager *manager,
                                        bool spill);

// To find work that uses a group while it is away. At the addresses of an evicted group there is nothing: a kernel that uses
// them ends with an illegal memory access. With `trap` that holds until `tilework_restore`, for a prefetch does nothing, and the log
// says of each group that is evicted at which addresses it was.
enum tilework_status tilework_set_trap(tilework_manager *manager,
                                       bool trap);

// Lets kernels of the GPU with the ordinal `peer` use the manager's memory, what is allocated and what will be. Where
// the device does not map memory there is nothing to do: CUDA's own calls for peers are enough there.
enum tilework_status tilework_add_peer(tilework_manager *manager,
                                       uint32_t peer);

// Stores who serves, "tiled", or "placed" where the device cannot map tiles or that was asked for, and why, in one sentence. Both are valid
// until this thread asks again. Either place may be null.
//
// # Safety
// `kind` and `why` must each be null or valid for a write.
enum tilework_status tilework_serving(tilework_manager *manager,
                                      const char **kind,
                                      const char **why);

// Stores the manager's figures.
//
// # Safety
// `out` must be null or point to the structure, with its `size` set.
enum tilework_status tilework_stats(tilework_manager *manager, struct tilework_figures *out);

// Makes the peaks start again from what is live and held now.
enum tilework_status tilework_reset_peaks(tilework_manager *manager);

// Begins to write each request and free to a trace, which has its name once the recording is stopped.
//
// # Safety
// `path` must be null or a terminated string.
enum tilework_status tilework_record_start(tilework_manager *manager, const char *path);

// Ends the recording and gives the trace its name.
enum tilework_status tilework_record_stop(tilework_manager *manager);

// Stores the number of the group of this name, which is made if there is none: resident, and pinned once, so that
// nothing is taken from one who does not expect it. Unpin it when it may be evicted.
//
// # Safety
// `name` must be null or a terminated string, `out` null or valid for a write.
enum tilework_status tilework_group(tilework_manager *manager,
                                    const char *name,
                                    uint32_t *out);

// As `tilework_alloc`, of memory that goes and comes with the group. Refused while the group is evicted.
//
// # Safety
// `out` must be null or valid for a write.
enum tilework_status tilework_alloc_for(tilework_manager *manager,
                                        uint32_t group,
                                        uint64_t bytes,
                                        void *stream,
                                        uint64_t *out);

// Says that work on `stream` uses the group's memory: an eviction waits for what is queued there then. The streams
// that its memory was requested or restored for are known.
enum tilework_status tilework_group_used_on(tilework_manager *manager,
                                            uint32_t group,
                                            void *stream);

// Copies the group's contents to the host, gives its physical memory to others and keeps its addresses. Waits for
// the work queued on its streams, and for no other. Stores how many bytes of physical memory that released;
// `released` may be null. Does nothing to a group that is evicted.
//
// # Safety
// `released` must be null or valid for a write.
enum tilework_status tilework_evict(tilework_manager *manager,
                                    uint32_t group,
                                    uint64_t *released);

// As `tilework_evict`, without keeping the contents: they are undefined when the group is restored.
//
// # Safety
// As for `tilework_evict`.
enum tilework_status tilework_discard(tilework_manager *manager, uint32_t group, uint64_t *released);

// Makes the group resident, at the same addresses and with its contents, for which `stream` and the streams of its
// requests wait. Stores the bytes copied; `copied` may be null.
//
// # Safety
// `copied` must be null or valid for a write.
enum tilework_status tilework_restore(tilework_manager *manager,
                                      uint32_t group,
                                      void *stream,
                                      uint64_t *copied);

// Begins to restore the group while the caller goes on; `tilework_restore` ends it.
enum tilework_status tilework_prefetch(tilework_manager *manager, uint32_t group);

// Says that the group's contents do not change any more once they are on the host: what is kept there stays when it is
// restored, and the next eviction copies nothing. A change after the first eviction is lost with the second.
enum tilework_status tilework_set_constant(tilework_manager *manager,
                                           uint32_t group,
                                           bool constant);

// Keeps the group from being evicted, by request or for want of memory, until it is unpinned as often. Under a limit:
// pin, restore, queue the work, unpin.
enum tilework_status tilework_pin(tilework_manager *manager,
                                  uint32_t group);

// Takes one pin away.
enum tilework_status tilework_unpin(tilework_manager *manager, uint32_t group);

// Ends a group of which nothing is live, and that nobody has pinned but its maker.
enum tilework_status tilework_remove_group(tilework_manager *manager, uint32_t group);

// Stores the group's figures.
//
// # Safety
// `out` must be null or point to the structure, with its `size` set.
enum tilework_status tilework_group_stats(tilework_manager *manager,
                                          uint32_t group,
                                          struct tilework_group_figures *out);

// Says where contents of evicted groups are kept from now on: up to `pinned_bytes` in memory that the device copies
// by itself, the fastest way; the rest in ordinary memory if `directory` is null, else in files there that have no
// name and end with the process.
//
// # Safety
// `directory` must be null or a terminated string.
enum tilework_status tilework_set_hosting(tilework_manager *manager,
                                          uint64_t pinned_bytes,
                                          const char *directory);

// Says what is logged from now on, by all managers: a `tilework_level` and what matters more. At first it is
// `TILEWORK_LEVEL_OFF`, which takes nothing. Lines wait for `tilework_take_log`, the last 1024 of them; those that wait
// stay when the level changes. A child made by fork has no log of its parent's.
enum tilework_status tilework_set_log(uint32_t level);

// Takes the oldest line of the log, waiting for one until `wait_ms` milliseconds have passed or the log is off. Stores
// how much it matters, what it is about, such as "tilework::serving", and its text; a null text and
// `TILEWORK_LEVEL_OFF` where there is none. The texts are valid until this thread takes the next line. Each place may be null.
// Nothing of the library waits for whoever takes lines, so he may wait for anything.
//
// # Safety
// `level`, `topic` and `text` must each be null or valid for a write.
enum tilework_status tilework_take_log(uint32_t wait_ms,
                                       enum tilework_level *level,
                                       const char **topic,
                                       const char **text);

// Makes a manager on a Vulkan device of the program's and stores its handle. The options' device may be null, or
// "vulkan".
//
// Memory is mapped and unmapped on the queue, without a wait of the host. A submission that uses blocks waits for
// `tilework_vulkan_ready`, and `tilework_vulkan_used_by` is told of its end; then blocks may be freed while it is
// queued, and later work of the queue uses the memory behind a memory barrier. Streams are names only: there is one
// queue. While another thread may be inside a function of this manager, submit by `tilework_vulkan_submit`.
//
// # Safety
// `options` must point to the structure, with its `size` set and its texts null or terminated. `parts` must point to
// the structure, with its `size` set: all parts null or alive, of one another, as their descriptions say, until
// `tilework_destroy` has returned. `out` must be null or valid for a write.
enum tilework_status tilework_create_on_vulkan(const struct tilework_options *options,
                                               const struct tilework_vulkan_parts *parts,
                                               tilework_manager **out);

// Stores the buffer that a live block's address lies in, and where.
//
// # Safety
// `out` must be null or valid for a write.
enum tilework_status tilework_vulkan_find(tilework_manager *manager,
                                          uint64_t address,
                                          struct tilework_vulkan_slice *out);

// Stores a timeline `VkSemaphore` of the manager's, and the value it has once everything is mapped that was allocated
// so far. A submission that uses blocks waits for it, at all stages.
//
// # Safety
// `semaphore` and `value` must each be null or valid for a write.
enum tilework_status tilework_vulkan_ready(tilework_manager *manager,
                                           uint64_t *semaphore,
                                           uint64_t *value);

// Tells that what was submitted so far has used the manager's memory for the last time when the timeline `VkSemaphore`
// has `value`. What is unmapped from here on waits for it, on the device. Per semaphore the greatest value counts.
//
// # Safety
// `semaphore` must be one of the device's and live until `tilework_destroy` has returned. Something must have been
// submitted that signals the value and waits for nothing that comes after it.
enum tilework_status tilework_vulkan_used_by(tilework_manager *manager,
                                             uint64_t semaphore,
                                             uint64_t value);

// `vkQueueSubmit`, while no other thread of this manager's binds on the queue: `count` structures `VkSubmitInfo` at
// `submits`, and a `VkFence` or 0.
//
// # Safety
// As for `vkQueueSubmit`; who submits to the queue otherwise keeps out of it meanwhile.
enum tilework_status tilework_vulkan_submit(tilework_manager *manager,
                                            uint32_t count,
                                            const void *submits,
                                            uint64_t fence);

#if defined(_WIN32)
// Makes a manager on a Direct3D 12 device of the program's and stores its handle. The options' device may be null, or
// "d3d12". Where the device has no tiled resources, memory is placed and not tiled, and there are no groups. Device, queue
// and adapter are counted (`AddRef`) until `tilework_destroy` has returned.
//
// Memory is mapped and unmapped on the queue, in order with the command lists that are executed on it. There nothing waits
// for anything: a block may be freed as soon as the last list that uses it was handed to `ExecuteCommandLists`, and later
// lists use the memory. Each list has an aliasing barrier that names no resource before it first uses a block. Other
// queues wait for `tilework_d3d12_ready`, and `tilework_d3d12_used_by` is told of their end. Streams are names only:
// there is one queue.
//
// # Safety
// `options` must point to the structure, with its `size` set and its texts null or terminated. `parts` must point to
// the structure, with its `size` set: each part null or alive, the queue made by the device, and the adapter the device's.
// `out` must be null or valid for a write.
enum tilework_status tilework_create_on_d3d12(const struct tilework_options *options,
                                              const struct tilework_d3d12_parts *parts,
                                              tilework_manager **out);
#endif

#if defined(_WIN32)
// Stores the buffer that a live block's address lies in, and where.
//
// # Safety
// `out` must be null or valid for a write.
enum tilework_status tilework_d3d12_find(tilework_manager *manager,
                                         uint64_t address,
                                         struct tilework_d3d12_slice *out);
#endif

#if defined(_WIN32)
// Stores an `ID3D12Fence` of the manager's, and the value it has once the manager's queue has passed all that is on it now,
// the mapping of everything allocated so far included. Another queue waits for it before it uses blocks. The fence is not
// counted for the caller, and always the same: it lives until `tilework_destroy`.
//
// # Safety
// `fence` and `value` must each be null or valid for a write.
enum tilework_status tilework_d3d12_ready(tilework_manager *manager,
                                          void **fence,
                                          uint64_t *value);
#endif

#if defined(_WIN32)
// Tells that what was executed so far on another queue has used the manager's memory for the last time when the
// `ID3D12Fence` has `value`. What is unmapped or given back from here on waits for it, on the device; blocks may be freed
// then. Their memory may be another block's at once, with nothing mapped: the queue that uses it then waits for the fence,
// too (`ID3D12CommandQueue::Wait`), or blocks are freed once the fence has the value. Per fence the greatest value counts.
// The fence is counted (`AddRef`) as long as it is needed.
//
// # Safety
// `fence` must be null, or alive and of the device. Something must have been queued that signals the value and waits for
// nothing that comes after it on the manager's queue.
enum tilework_status tilework_d3d12_used_by(tilework_manager *manager,
                                            void *fence,
                                            uint64_t value);
#endif

#if defined(_WIN32)
// Lets the system have the memory of all that the manager holds, contents kept (`ID3D12Device::Evict`), but for heaps to
// which somebody refers by `tilework_d3d12_hold`, and stores how many bytes that were; `bytes` may be null. The host waits
// until what was queued has passed. Nothing that uses blocks, but those referred to, may be executed before
// `tilework_d3d12_make_resident`. What is evicted already is not evicted again.
//
// # Safety
// `bytes` must be null or valid for a write.
enum tilework_status tilework_d3d12_evict(tilework_manager *manager,
                                          uint64_t *bytes);
#endif

#if defined(_WIN32)
// Brings back all that was evicted, and stores how many bytes that were; `bytes` may be null. It returns once they are
// there. What is resident is left as it is, so that one eviction evicts however often this was called.
//
// # Safety
// `bytes` must be null or valid for a write.
enum tilework_status tilework_d3d12_make_resident(tilework_manager *manager,
                                                  uint64_t *bytes);
#endif

#if defined(_WIN32)
// Refers to the memory behind `bytes` from `address`, and stores the number of the reference: the memory is made resident,
// and `tilework_d3d12_evict` leaves it until `tilework_d3d12_let_go`. For what is used outside of an execution, such as an
// output that is handed on. It keeps neither a block from being freed nor a group from going to the host. Numbers are
// never 0, and none comes twice. What is not let go ends with the manager.
//
// # Safety
// `out` must be null or valid for a write.
enum tilework_status tilework_d3d12_hold(tilework_manager *manager,
                                         uint64_t address,
                                         uint64_t bytes,
                                         uint64_t *out);
#endif

#if defined(_WIN32)
// Takes back a reference that `tilework_d3d12_hold` made, by its number. Refused where the manager has none of this
// number, as when it was let go before.
enum tilework_status tilework_d3d12_let_go(tilework_manager *manager,
                                           uint64_t reference);
#endif

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TILEWORK_H */
