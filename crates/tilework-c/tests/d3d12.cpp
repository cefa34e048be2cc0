// Uses the library on a Direct3D 12 device and a queue of its own, as an execution provider does. Needs Windows or what
// stands for it. Says what went wrong on stderr, and in one line what was done if all is well; ends with 0 then.

#include <d3d12.h>
#include <dxgi1_4.h>
#include <windows.h>
#include <wrl/client.h>

#include <functional>
#include <set>
#include <vector>

#include "check.h"

using Microsoft::WRL::ComPtr;

#define WORKS(call) CHECK(SUCCEEDED(call))

static const uint64_t MIB = 1 << 20;

// A buffer and an offset in it, bytes.
struct Place {
    ID3D12Resource *buffer;
    uint64_t offset;
};

struct Commands {
    ComPtr<ID3D12CommandAllocator> allocator;
    ComPtr<ID3D12GraphicsCommandList> list;
};

static ComPtr<IDXGIAdapter1> adapter;
static ComPtr<ID3D12Device> device;
static ComPtr<ID3D12CommandQueue> queue;
static bool tiled;

static ComPtr<ID3D12CommandQueue> new_queue(D3D12_COMMAND_LIST_TYPE type) {
    D3D12_COMMAND_QUEUE_DESC desc = {};
    desc.Type = type;
    ComPtr<ID3D12CommandQueue> made;
    WORKS(device->CreateCommandQueue(&desc, IID_PPV_ARGS(&made)));
    return made;
}

static ComPtr<ID3D12Fence> new_fence() {
    ComPtr<ID3D12Fence> made;
    WORKS(device->CreateFence(0, D3D12_FENCE_FLAG_NONE, IID_PPV_ARGS(&made)));
    return made;
}

static void open_device() {
    ComPtr<IDXGIFactory1> factory;
    WORKS(CreateDXGIFactory1(IID_PPV_ARGS(&factory)));
    WORKS(factory->EnumAdapters1(0, &adapter));
    WORKS(D3D12CreateDevice(adapter.Get(), D3D_FEATURE_LEVEL_11_0, IID_PPV_ARGS(&device)));
    D3D12_FEATURE_DATA_D3D12_OPTIONS options = {};
    WORKS(device->CheckFeatureSupport(D3D12_FEATURE_D3D12_OPTIONS, &options, sizeof options));
    tiled = options.TiledResourcesTier > 0;
    queue = new_queue(D3D12_COMMAND_LIST_TYPE_DIRECT);
}

static ComPtr<ID3D12Resource> new_buffer(D3D12_HEAP_TYPE type, uint64_t bytes) {
    D3D12_HEAP_PROPERTIES heap = {};
    heap.Type = type;
    D3D12_RESOURCE_DESC desc = {};
    desc.Dimension = D3D12_RESOURCE_DIMENSION_BUFFER;
    desc.Width = bytes;
    desc.Height = desc.DepthOrArraySize = desc.MipLevels = 1;
    desc.SampleDesc.Count = 1;
    desc.Layout = D3D12_TEXTURE_LAYOUT_ROW_MAJOR;
    D3D12_RESOURCE_STATES state = type == D3D12_HEAP_TYPE_UPLOAD     ? D3D12_RESOURCE_STATE_GENERIC_READ
                                  : type == D3D12_HEAP_TYPE_READBACK ? D3D12_RESOURCE_STATE_COPY_DEST
                                                                     : D3D12_RESOURCE_STATE_COMMON;
    ComPtr<ID3D12Resource> made;
    WORKS(device->CreateCommittedResource(&heap, D3D12_HEAP_FLAG_NONE, &desc, state, nullptr, IID_PPV_ARGS(&made)));
    return made;
}

static uint32_t *words_of(const ComPtr<ID3D12Resource> &buffer) {
    void *words;
    WORKS(buffer->Map(0, nullptr, &words));
    return static_cast<uint32_t *>(words);
}

static uint32_t word(uint64_t index, uint32_t seed) {
    return static_cast<uint32_t>(index * 2654435761u) ^ seed;
}

// A buffer that the device reads, full of words of this seed.
static ComPtr<ID3D12Resource> new_upload(uint64_t bytes, uint32_t seed) {
    ComPtr<ID3D12Resource> buffer = new_buffer(D3D12_HEAP_TYPE_UPLOAD, bytes);
    uint32_t *words = words_of(buffer);
    for (uint64_t i = 0; i < bytes / 4; i++) words[i] = word(i, seed);
    return buffer;
}

static void check_words(const ComPtr<ID3D12Resource> &readback, uint64_t offset, uint64_t bytes, uint32_t seed) {
    const uint32_t *words = words_of(readback) + offset / 4;
    for (uint64_t i = 0; i < bytes / 4; i++) CHECK(words[i] == word(i, seed));
}

// Executes one copy in a list of its own: there every buffer begins in the state COMMON. To be kept until it has run.
static Commands copy(const ComPtr<ID3D12CommandQueue> &on, Place to, Place from, uint64_t bytes) {
    D3D12_COMMAND_LIST_TYPE type =
        on == queue ? D3D12_COMMAND_LIST_TYPE_DIRECT : D3D12_COMMAND_LIST_TYPE_COMPUTE;
    Commands made;
    WORKS(device->CreateCommandAllocator(type, IID_PPV_ARGS(&made.allocator)));
    WORKS(device->CreateCommandList(0, type, made.allocator.Get(), nullptr, IID_PPV_ARGS(&made.list)));
    // Memory that one block had may be another's now, in another buffer.
    D3D12_RESOURCE_BARRIER barrier = {};
    barrier.Type = D3D12_RESOURCE_BARRIER_TYPE_ALIASING;
    made.list->ResourceBarrier(1, &barrier);
    made.list->CopyBufferRegion(to.buffer, to.offset, from.buffer, from.offset, bytes);
    WORKS(made.list->Close());
    ID3D12CommandList *lists[] = {made.list.Get()};
    on->ExecuteCommandLists(1, lists);
    return made;
}

static void wait(ID3D12Fence *fence, uint64_t value) {
    // Without an event it returns when the fence has the value.
    WORKS(fence->SetEventOnCompletion(value, nullptr));
    CHECK(fence->GetCompletedValue() >= value);
}

// Waits until the manager's queue has passed what is on it.
static void finish(tilework_manager *manager) {
    void *fence;
    uint64_t value;
    DONE(tilework_d3d12_ready(manager, &fence, &value));
    wait(static_cast<ID3D12Fence *>(fence), value);
}

static tilework_d3d12_parts parts() {
    return {sizeof(tilework_d3d12_parts), device.Get(), queue.Get(), adapter.Get()};
}

static tilework_options options() {
    tilework_options options = {};
    options.size = sizeof options;
    options.heap_bytes = 4 * MIB;
    return options;
}

static tilework_manager *create() {
    tilework_options how = options();
    tilework_d3d12_parts on = parts();
    tilework_manager *manager = nullptr;
    DONE(tilework_create_on_d3d12(&how, &on, &manager));
    return manager;
}

static tilework_figures figures(tilework_manager *manager) {
    tilework_figures figures = {};
    figures.size = sizeof figures;
    DONE(tilework_stats(manager, &figures));
    return figures;
}

static uint64_t alloc(tilework_manager *manager, uint64_t bytes) {
    uint64_t address;
    DONE(tilework_alloc(manager, bytes, nullptr, &address));
    return address;
}

static tilework_d3d12_slice find(tilework_manager *manager, uint64_t address) {
    tilework_d3d12_slice slice;
    DONE(tilework_d3d12_find(manager, address, &slice));
    return slice;
}

static Place place(const tilework_d3d12_slice &slice) {
    return {static_cast<ID3D12Resource *>(slice.resource), slice.offset};
}

static ULONG references(IUnknown *object) {
    object->AddRef();
    return object->Release();
}

// Everything is queued before anything runs: blocks are stitched, freed and given back meanwhile.
static void what_is_queued_finds_its_memory() {
    enum { ROUNDS = 6 };
    const uint64_t large_bytes = 5 * MIB, holes[] = {3 * MIB, 2 * MIB, 3 * MIB, 2 * MIB};
    tilework_manager *manager = create();
    ComPtr<ID3D12Resource> relay = new_buffer(D3D12_HEAP_TYPE_DEFAULT, large_bytes);
    ComPtr<ID3D12Resource> readback = new_buffer(D3D12_HEAP_TYPE_READBACK, ROUNDS * large_bytes);
    ComPtr<ID3D12Fence> gate = new_fence();
    WORKS(queue->Wait(gate.Get(), 1));
    std::vector<ComPtr<ID3D12Resource>> uploads;
    std::vector<Commands> queued;
    std::set<uint64_t> ranges;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uploads.push_back(new_upload(large_bytes, round));
        Place upload = {uploads.back().Get(), 0};
        uint64_t small[4];
        for (int i = 0; i < 4; i++) small[i] = alloc(manager, holes[i]);
        DONE(tilework_free(manager, small[0]));
        DONE(tilework_free(manager, small[2]));
        uint64_t held = figures(manager).held;
        uint64_t large = alloc(manager, large_bytes);
        // Of the free 6 MiB no 5 are side by side.
        CHECK((figures(manager).held == held) == tiled);

        tilework_d3d12_slice slice = find(manager, large), within = find(manager, large + 70000);
        CHECK(within.resource == slice.resource && within.range == slice.range);
        CHECK(within.offset == slice.offset + 70000 && within.gpu_address == slice.gpu_address + 70000);
        CHECK(slice.gpu_address == place(slice).buffer->GetGPUVirtualAddress() + slice.offset);
        // All was given back in between, and a range is never used again.
        CHECK(ranges.insert(slice.range).second);

        queued.push_back(copy(queue, place(slice), upload, large_bytes));
        queued.push_back(copy(queue, {relay.Get(), 0}, place(slice), large_bytes));
        DONE(tilework_free(manager, large));
        // Into what took its place.
        uint64_t other = alloc(manager, large_bytes - MIB);
        queued.push_back(copy(queue, place(find(manager, other)), upload, large_bytes - MIB));
        queued.push_back(copy(queue, {readback.Get(), round * large_bytes}, {relay.Get(), 0}, large_bytes));
        DONE(tilework_free(manager, other));
        DONE(tilework_free(manager, small[1]));
        DONE(tilework_free(manager, small[3]));
        DONE(tilework_end_of_execution(manager));
        DONE(tilework_trim(manager, nullptr));
        CHECK(figures(manager).held == 0);
    }
    WORKS(gate->Signal(1));
    finish(manager);
    for (uint32_t round = 0; round < ROUNDS; round++) check_words(readback, round * large_bytes, large_bytes, round);
    DONE(tilework_destroy(manager));
}

// A queue that waits for what it is told to finds what was mapped, and memory waits for what the manager is told of.
static void another_queue_is_ordered_by_fences() {
    const uint64_t bytes = 3 * MIB;
    tilework_manager *manager = create();
    ComPtr<ID3D12CommandQueue> other = new_queue(D3D12_COMMAND_LIST_TYPE_COMPUTE);
    ComPtr<ID3D12Fence> gate = new_fence(), done = new_fence();
    ComPtr<ID3D12Resource> upload = new_upload(bytes, 77), readback = new_buffer(D3D12_HEAP_TYPE_READBACK, bytes);
    WORKS(queue->Wait(gate.Get(), 1));
    uint64_t block = alloc(manager, bytes);
    Place at = place(find(manager, block));
    void *fence;
    uint64_t value;
    DONE(tilework_d3d12_ready(manager, &fence, &value));
    WORKS(other->Wait(static_cast<ID3D12Fence *>(fence), value));
    Commands in = copy(other, at, {upload.Get(), 0}, bytes), out = copy(other, {readback.Get(), 0}, at, bytes);
    WORKS(other->Signal(done.Get(), 1));
    ULONG before = references(done.Get());
    DONE(tilework_d3d12_used_by(manager, done.Get(), 1));
    CHECK(references(done.Get()) > before);
    DONE(tilework_free(manager, block));
    DONE(tilework_trim(manager, nullptr));
    // Half a moment, in which it must not happen.
    Sleep(50);
    CHECK(done->GetCompletedValue() == 0);
    WORKS(gate->Signal(1));
    wait(done.Get(), 1);
    check_words(readback, 0, bytes, 77);
    DONE(tilework_destroy(manager));
    CHECK(references(done.Get()) == before);
}

static void what_is_evicted_comes_back() {
    const uint64_t bytes = 3 * MIB;
    tilework_manager *manager = create();
    ComPtr<ID3D12Resource> upload = new_upload(bytes, 5), readback = new_buffer(D3D12_HEAP_TYPE_READBACK, bytes);
    uint64_t block = alloc(manager, bytes), moved = 1;
    Place at = place(find(manager, block));
    Commands in = copy(queue, at, {upload.Get(), 0}, bytes);
    DONE(tilework_d3d12_make_resident(manager, &moved));
    CHECK(moved == 0);
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == figures(manager).held && moved >= bytes);
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == 0);
    DONE(tilework_d3d12_make_resident(manager, &moved));
    CHECK(moved == figures(manager).held);
    Commands out = copy(queue, {readback.Get(), 0}, at, bytes);
    finish(manager);
    check_words(readback, 0, bytes, 5);
    DONE(tilework_d3d12_evict(manager, nullptr));
    DONE(tilework_d3d12_make_resident(manager, nullptr));
    DONE(tilework_destroy(manager));
}

static uint64_t hold(tilework_manager *manager, uint64_t address, uint64_t bytes) {
    uint64_t reference = 0;
    DONE(tilework_d3d12_hold(manager, address, bytes, &reference));
    CHECK(reference);
    return reference;
}

// What somebody refers to is resident and stays, until it is let go as often; all else goes.
static void what_is_held_is_not_evicted() {
    const tilework_status wrong = TILEWORK_STATUS_INVALID_ARGUMENT, unknown = TILEWORK_STATUS_UNKNOWN_ADDRESS;
    const uint64_t bytes = 3 * MIB;
    tilework_manager *manager = create(), *another = create();
    ComPtr<ID3D12Resource> upload = new_upload(bytes, 6), readback = new_buffer(D3D12_HEAP_TYPE_READBACK, bytes);
    uint64_t output = alloc(manager, bytes), other = alloc(manager, 4 * bytes), moved, none = 77;
    Place at = place(find(manager, output));
    Commands in = copy(queue, at, {upload.Get(), 0}, bytes);
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == figures(manager).held);

    uint64_t first = hold(manager, output, bytes), second = hold(manager, output + 70000, bytes - 70000);
    CHECK(first != second);
    // All but what is referred to is brought back, and goes again.
    uint64_t rest;
    DONE(tilework_d3d12_make_resident(manager, &rest));
    CHECK(rest > 0 && rest + bytes <= figures(manager).held);
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == rest);
    Commands out = copy(queue, {readback.Get(), 0}, at, bytes);
    finish(manager);
    check_words(readback, 0, bytes, 6);

    // A number is good once, and with its own manager.
    REFUSED(tilework_d3d12_let_go(another, first), wrong, "no reference");
    DONE(tilework_d3d12_let_go(manager, first));
    REFUSED(tilework_d3d12_let_go(manager, first), wrong, "no reference");
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == 0);
    DONE(tilework_d3d12_let_go(manager, second));
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved + rest == figures(manager).held);

    REFUSED(tilework_d3d12_hold(nullptr, output, bytes, &none), wrong, "handle");
    REFUSED(tilework_d3d12_hold(manager, output, bytes, nullptr), wrong, "null");
    REFUSED(tilework_d3d12_hold(manager, output, 0, &none), wrong, "zero bytes");
    REFUSED(tilework_d3d12_hold(manager, 0, bytes, &none), unknown, "bytes from 0x0");
    REFUSED(tilework_d3d12_hold(manager, output, UINT64_MAX, &none), unknown, "not all of");
    CHECK(none == 77);
    REFUSED(tilework_d3d12_let_go(nullptr, first), wrong, "handle");
    REFUSED(tilework_d3d12_let_go(manager, 0), wrong, "no reference 0");
    // What was refused refers to nothing.
    DONE(tilework_d3d12_make_resident(manager, nullptr));
    DONE(tilework_d3d12_evict(manager, &moved));
    CHECK(moved == figures(manager).held);

    // It keeps no block from being freed, and is let go all the same.
    uint64_t freed = hold(manager, output, bytes);
    DONE(tilework_free(manager, output));
    DONE(tilework_free(manager, other));
    DONE(tilework_trim(manager, nullptr));
    CHECK(figures(manager).held == 0);
    DONE(tilework_d3d12_let_go(manager, freed));
    // What is not let go ends with the manager.
    uint64_t left = hold(manager, alloc(manager, bytes), bytes);
    DONE(tilework_destroy(manager));
    REFUSED(tilework_d3d12_let_go(manager, left), wrong, "destroyed");
    REFUSED(tilework_d3d12_let_go(another, left), wrong, "no reference");
    DONE(tilework_destroy(another));
}

// Contents of a group go to the host and come back to the same place, in order with the queue.
static void a_group_goes_and_comes() {
    const uint64_t bytes = 3 * MIB;
    tilework_manager *manager = create();
    ComPtr<ID3D12Resource> upload = new_upload(bytes, 9), readback = new_buffer(D3D12_HEAP_TYPE_READBACK, bytes);
    uint32_t group;
    uint64_t block;
    if (!tiled) {
        REFUSED(tilework_group(manager, "weights", &group), TILEWORK_STATUS_UNSUPPORTED, "cannot map memory");
        DONE(tilework_destroy(manager));
        return;
    }
    DONE(tilework_group(manager, "weights", &group));
    DONE(tilework_alloc_for(manager, group, bytes, nullptr, &block));
    tilework_d3d12_slice before = find(manager, block);
    Commands in = copy(queue, place(before), {upload.Get(), 0}, bytes);
    DONE(tilework_unpin(manager, group));
    DONE(tilework_evict(manager, group, nullptr));
    CHECK(figures(manager).kept >= bytes);
    DONE(tilework_trim(manager, nullptr));
    CHECK(figures(manager).held == 0);
    DONE(tilework_restore(manager, group, nullptr, nullptr));
    tilework_d3d12_slice after = find(manager, block);
    CHECK(after.resource == before.resource && after.offset == before.offset && after.range == before.range);
    Commands out = copy(queue, {readback.Get(), 0}, place(after), bytes);
    finish(manager);
    check_words(readback, 0, bytes, 9);
    DONE(tilework_destroy(manager));
}

enum { THREADS = 4, TURNS = 24 };
static const uint64_t TURN_BYTES = MIB + MIB / 2;

struct Worker {
    tilework_manager *manager;
    uint32_t seed;
    ComPtr<ID3D12Resource> upload, readback;
    std::vector<Commands> queued;
};

static DWORD WINAPI take_turns(void *data) {
    Worker *worker = static_cast<Worker *>(data);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint64_t bytes = (turn + worker->seed) % 3 ? TURN_BYTES : TURN_BYTES / 2, block;
        void *stream = reinterpret_cast<void *>(static_cast<uintptr_t>(1 + worker->seed % 2));
        DONE(tilework_alloc(worker->manager, bytes, stream, &block));
        Place at = place(find(worker->manager, block));
        worker->queued.push_back(copy(queue, at, {worker->upload.Get(), 0}, bytes));
        worker->queued.push_back(copy(queue, {worker->readback.Get(), turn * TURN_BYTES}, at, bytes));
        DONE(tilework_free(worker->manager, block));
        if (turn % 8 == 7) DONE(tilework_trim(worker->manager, nullptr));
    }
    return 0;
}

static void threads_share_the_queue() {
    tilework_manager *manager = create();
    Worker workers[THREADS];
    HANDLE threads[THREADS];
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = {manager, i, new_upload(TURN_BYTES, i), new_buffer(D3D12_HEAP_TYPE_READBACK, TURNS * TURN_BYTES), {}};
        CHECK(threads[i] = CreateThread(nullptr, 0, take_turns, &workers[i], 0, nullptr));
    }
    CHECK(WaitForMultipleObjects(THREADS, threads, true, INFINITE) == WAIT_OBJECT_0);
    finish(manager);
    for (uint32_t i = 0; i < THREADS; i++) {
        CloseHandle(threads[i]);
        for (uint32_t turn = 0; turn < TURNS; turn++) {
            uint64_t bytes = (turn + i) % 3 ? TURN_BYTES : TURN_BYTES / 2;
            check_words(workers[i].readback, turn * TURN_BYTES, bytes, i);
        }
    }
    DONE(tilework_destroy(manager));
}

static void mistakes_are_errors() {
    const tilework_status wrong = TILEWORK_STATUS_INVALID_ARGUMENT;
    tilework_manager *none = nullptr;
    tilework_options how = options();
    tilework_d3d12_parts on = parts();
    REFUSED(tilework_create_on_d3d12(nullptr, &on, &none), wrong, "options are null");
    REFUSED(tilework_create_on_d3d12(&how, nullptr, &none), wrong, "parts are null");
    REFUSED(tilework_create_on_d3d12(&how, &on, nullptr), wrong, "null");
    on.size = 8;
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "sizeof(tilework_d3d12_parts)");
    on = parts();
    on.device = nullptr;
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "the device is null");
    on.device = queue.Get();
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "the device is no ID3D12Device");
    on = parts();
    on.queue = nullptr;
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "the queue is null");
    on.queue = device.Get();
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "the queue is no ID3D12CommandQueue");
    ComPtr<ID3D12CommandQueue> copies = new_queue(D3D12_COMMAND_LIST_TYPE_COPY);
    on.queue = copies.Get();
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), TILEWORK_STATUS_DEVICE_FAILED, "direct or a compute queue");
    on = parts();
    on.adapter = device.Get();
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "the adapter is no IDXGIAdapter3");
    on = parts();
    how.device = "vulkan";
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), wrong, "\"d3d12\"");
    how.device = "d3d12";
    REFUSED(tilework_create(&how, &none), TILEWORK_STATUS_UNSUPPORTED, "tilework_create_on_d3d12");
    how.manager = "bucketized";
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), TILEWORK_STATUS_UNSUPPORTED, "bucketized");
    CHECK(!none);

    // Named, and without an adapter.
    how.manager = "tiled";
    on.adapter = nullptr;
    tilework_manager *manager = nullptr;
    DONE(tilework_create_on_d3d12(&how, &on, &manager));
    const char *kind, *why;
    DONE(tilework_serving(manager, &kind, &why));
    CHECK(!strcmp(kind, tiled ? "tiled" : "placed"));
    CHECK(!strcmp(why, tiled ? "tiled serves, since the device d3d12 maps tiles"
                             : "the device d3d12 cannot map tiles: the manager placed serves in place of tiled"));
    uint64_t block = alloc(manager, 1000), value;
    void *fence;
    tilework_d3d12_slice slice;
    REFUSED(tilework_d3d12_find(manager, 0, &slice), TILEWORK_STATUS_UNKNOWN_ADDRESS, "0x0");
    REFUSED(tilework_d3d12_find(manager, block + (1ull << 40), &slice), TILEWORK_STATUS_UNKNOWN_ADDRESS, "no address");
    REFUSED(tilework_d3d12_find(manager, block, nullptr), wrong, "null");
    REFUSED(tilework_d3d12_find(nullptr, block, &slice), wrong, "handle");
    REFUSED(tilework_d3d12_ready(manager, nullptr, &value), wrong, "null");
    REFUSED(tilework_d3d12_ready(manager, &fence, nullptr), wrong, "null");
    REFUSED(tilework_d3d12_used_by(manager, nullptr, 1), wrong, "the fence is null");
    REFUSED(tilework_d3d12_used_by(manager, queue.Get(), 1), wrong, "the fence is no ID3D12Fence");
    REFUSED(tilework_alloc(manager, UINT64_MAX, nullptr, &value), wrong, "exceeds");
    DONE(tilework_destroy(manager));
    REFUSED(tilework_d3d12_find(manager, block, &slice), wrong, "destroyed");

    how = options();
    how.device = "null";
    DONE(tilework_create(&how, &manager));
    REFUSED(tilework_d3d12_ready(manager, &fence, &value), wrong, "not d3d12");
    REFUSED(tilework_d3d12_hold(manager, block, 1, &value), wrong, "not d3d12");
    REFUSED(tilework_d3d12_let_go(manager, 1), wrong, "not d3d12");
    DONE(tilework_destroy(manager));
}

// Nothing that is Direct3D's stays behind, and the program's is let go.
static void check_that_nothing_is_left(const char *name, const std::function<void()> &test) {
    ULONG devices = references(device.Get()), queues = references(queue.Get());
    test();
    if (references(device.Get()) != devices || references(queue.Get()) != queues) {
        fprintf(stderr, "%s: the device has %lu references and had %lu, the queue %lu and had %lu\n", name,
                references(device.Get()), devices, references(queue.Get()), queues);
        exit(1);
    }
}

// The last: the process has no device afterwards.
static void a_removed_device_says_so() {
    tilework_manager *manager = create(), *none = nullptr;
    alloc(manager, MIB);
    // What is executed while it is recorded costs the device, by Direct3D's rules.
    Commands open;
    WORKS(device->CreateCommandAllocator(D3D12_COMMAND_LIST_TYPE_DIRECT, IID_PPV_ARGS(&open.allocator)));
    WORKS(device->CreateCommandList(0, D3D12_COMMAND_LIST_TYPE_DIRECT, open.allocator.Get(), nullptr,
                                    IID_PPV_ARGS(&open.list)));
    ID3D12CommandList *lists[] = {open.list.Get()};
    queue->ExecuteCommandLists(1, lists);
    CHECK(FAILED(device->GetDeviceRemovedReason()));
    tilework_options how = options();
    tilework_d3d12_parts on = parts();
    REFUSED(tilework_create_on_d3d12(&how, &on, &none), TILEWORK_STATUS_DEVICE_FAILED, "was removed");
    CHECK(!none);
    REFUSED(tilework_d3d12_evict(manager, nullptr), TILEWORK_STATUS_DEVICE_FAILED, "was removed");
    DONE(tilework_destroy(manager));
}

int main() {
    open_device();
    check_that_nothing_is_left("queued", what_is_queued_finds_its_memory);
    check_that_nothing_is_left("another queue", another_queue_is_ordered_by_fences);
    check_that_nothing_is_left("evicted", what_is_evicted_comes_back);
    check_that_nothing_is_left("held", what_is_held_is_not_evicted);
    check_that_nothing_is_left("a group", a_group_goes_and_comes);
    check_that_nothing_is_left("threads", threads_share_the_queue);
    check_that_nothing_is_left("mistakes", mistakes_are_errors);
    a_removed_device_says_so();
    printf("%s memory: all right\n", tiled ? "tiled" : "placed");
    return 0;
}
