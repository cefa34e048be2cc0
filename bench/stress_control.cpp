/* Takes the place of libtilework under bench/stress.cu, to tell what a tool finds there from what it finds in Tilework.
 *
 *   g++ -O2 -std=c++17 -shared -fPIC -Icrates/tilework-c/include -I$CUDA/include bench/stress_control.cpp -o control/libtilework.so -lcuda
 *   CONTROL=grow LD_LIBRARY_PATH=control compute-sanitizer --tool initcheck ./stress 4 --longest 1048576
 *
 * There is no Tilework in it. Blocks lie side by side in one range, in the order of their requests, and no address is used
 * twice, so that frees, streams, limits and trims mean nothing. CONTROL says what is behind the addresses: malloc, one
 * cuMemAlloc; whole, handles that are all mapped before the first block; grow, handles that are mapped as blocks reach them,
 * while kernels of other threads run, as any allocator does that maps memory. When the range is full, memory is out.
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

static void must(CUresult code, const char *what) {
    if (code == CUDA_SUCCESS) return;
    fprintf(stderr, "%s: %d\n", what, (int)code);
    exit(1);
}
#define DONE(call) must((call), #call)

static void map_until(uint64_t end) {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemAccessDesc access{prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    for (; mapped < end; mapped += TILE) {
        CUmemGenericAllocationHandle handle;
        DONE(cuMemCreate(&handle, TILE, &prop, 0));
        DONE(cuMemMap(base + mapped, TILE, 0, handle, 0));
        DONE(cuMemSetAccess(base + mapped, TILE, &access, 1));
        calls += 3;
    }
}

extern "C" {
tilework_status tilework_create(const tilework_options *, tilework_manager **out) {
    const char *how = getenv("CONTROL") ? getenv("CONTROL") : "malloc";
    bytes = strcmp(how, "whole") ? ALL : WHOLE;
    CUdeviceptr address;
    if (!strcmp(how, "malloc")) {
        DONE(cuMemAlloc(&address, bytes));
        mapped = bytes;
    } else {
        DONE(cuMemAddressReserve(&address, bytes, TILE, 0, 0));
    }
    base = address;
    if (!strcmp(how, "whole")) map_until(bytes);
    // Never looked at.
    *out = (tilework_manager *)&base;
    return TILEWORK_STATUS_OK;
}

tilework_status tilework_alloc(tilework_manager *, uint64_t wanted, void *, uint64_t *out) {
    std::lock_guard<std::mutex> guard(counter);
    uint64_t end = next + (wanted + 511) / 512 * 512;
    if (end > bytes) return TILEWORK_STATUS_OUT_OF_MEMORY;
    map_until(end);
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
tilework_status tilework_end_of_execution(tilework_manager *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_trim(tilework_manager *, uint64_t *) { return TILEWORK_STATUS_OK; }
tilework_status tilework_set_limit(tilework_manager *, uint64_t) { return TILEWORK_STATUS_OK; }
tilework_status tilework_destroy(tilework_manager *) { return TILEWORK_STATUS_OK; }
const char *tilework_last_error(void) { return "the control has run out"; }
}
