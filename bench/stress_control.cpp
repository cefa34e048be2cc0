/* Takes the place of libtilework under bench/stress.cu, to tell what a tool finds there from what it finds in Tilework.
 *
 *   g++ -O2 -std=c++17 -shared -fPIC -Icrates/tilework-c/include -I$CUDA/include bench/stress_control.cpp -o control/libtilework.so -lcuda
 *   CONTROL=grow LD_LIBRARY_PATH=control compute-sanitizer --tool initcheck ./stress 4 --longest 1048576
 *
 * There is no Tilework in it. Blocks lie side by side in one range, in the order of their requests, and no address is used
 * twice, so that frees, streams, groups, limits and trims mean nothing. CONTROL says what is behind the addresses: malloc, one
 * cuMemAlloc; whole, handles that are all mapped before the first block; grow, handles that are mapped as blocks reach them,
 * while kernels of other threads run, as any allocator does that maps memory; shrink, as whole, and beside every block a handle is mapped and
 * unmapped at an address that no kernel ever sees. When the range is full, memory is out.
 */
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include <cuda.h>
#include <tilework.h>

constexpr uint64_t TILE = 2 << 20, WHOLE = 1ull << 30, ALL = 6ull << 30;

static std::mutex counter;
static uint64_t base, next, mapped, bytes, calls;
// Where a handle is mapped and unmapped, if anywhere.
static CUdeviceptr aside;

static void must(CUresult code, const char *what) {
    if (code == CUDA_SUCCESS) return;
    fprintf(stderr, "%s: %d\n", what, (int)code);
    exit(1);
}
#define DONE(call) must((call), #call)

static CUmemGenericAllocationHandle map(CUdeviceptr address) {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemAccessDesc access{prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    DONE(cuMemCreate(&handle, TILE, &prop, 0));
    DONE(cuMemMap(address, TILE, 0, handle, 0));
    DONE(cuMemSetAccess(address, TILE, &access, 1));
    calls += 3;
    return handle;
}

static void map_until(uint64_t end) {
    for (; mapped < end; mapped += TILE) map(base + mapped);
}

static void unmap(CUdeviceptr address, CUmemGenericAllocationHandle handle) {
    DONE(cuMemUnmap(address, TILE));
    DONE(cuMemRelease(handle));
    calls += 2;
}

extern "C" {
tilework_status tilework_create(const tilework_options *, tilework_manager **out) {
    const char *how = getenv("CONTROL") ? getenv("CONTROL") : "malloc";
    bool shrinks = !strcmp(how, "shrink");
    bytes = shrinks || !strcmp(how, "whole") ? WHOLE : ALL;
    CUdeviceptr address;
    if (!strcmp(how, "malloc")) {
        DONE(cuMemAlloc(&address, bytes));
        mapped = bytes;
    } else {
        DONE(cuMemAddressReserve(&address, bytes, TILE, 0, 0));
    }
    base = address;
    if (bytes == WHOLE) map_until(bytes);
    if (shrinks) DONE(cuMemAddressReserve(&aside, TILE, TILE, 0, 0));
    // Never looked at.
    *out = (tilework_manager *)&base;
    return TILEWORK_STATUS_OK;
}

tilework_status tilework_alloc(tilework_manager *, uint64_t wanted, void *, uint64_t *out) {
    std::lock_guard<std::mutex> guard(counter);
    uint64_t end = next + (wanted + 511) / 512 * 512;
    if (end > bytes) return TILEWORK_STATUS_OUT_OF_MEMORY;
    map_until(end);
    if (aside) unmap(aside, map(aside));
    *out = base + next;
    next = end;
    return TILEWORK_STATUS_OK;
}

tilework_status tilework_stats(tilework_manager *, tilework_figures *out) {
    std::lock_guard<std::mutex> guard(counter);
    out->device_calls = calls;
    return TILEWORK_STATUS_OK;
}

tilework_status tilework_free(tilework_manager *, uint64_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_free_on(tilework_manager *, uint64_t, void *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_record_stream(tilework_manager *, uint64_t, void *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_forget_stream(tilework_manager *, void *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_group(tilework_manager *, const char *, uint32_t *out) { return *out = 0, TILEWORK_STATUS_OK; }
tilework_status tilework_alloc_for(tilework_manager *manager, uint32_t, uint64_t wanted, void *stream, uint64_t *out) {
    return tilework_alloc(manager, wanted, stream, out);
}
tilework_status tilework_evict(tilework_manager *, uint32_t, uint64_t *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_discard(tilework_manager *, uint32_t, uint64_t *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_restore(tilework_manager *, uint32_t, void *, uint64_t *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_prefetch(tilework_manager *, uint32_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_set_constant(tilework_manager *, uint32_t, bool) { return TILEWORK_STATUS_OK; }
tilework_status tilework_pin(tilework_manager *, uint32_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_unpin(tilework_manager *, uint32_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_remove_group(tilework_manager *, uint32_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_set_hosting(tilework_manager *, uint64_t, const char *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_end_of_execution(tilework_manager *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_trim(tilework_manager *, uint64_t *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_set_limit(tilework_manager *, uint64_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_destroy(tilework_manager *) { return TILEWORK_STATUS_OK; }
const char *tilework_last_error(void) { return "the control has run out"; }
}
