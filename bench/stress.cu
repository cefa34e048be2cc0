/* Looks for wrong bytes: 8 threads with 4 streams each fill blocks with patterns and check them, in kernels.
 *
 *   cargo build --release -p tilework-c
 *   nvcc -O2 -std=c++17 -arch=native -Icrates/tilework-c/include bench/stress.cu -o stress \
 *        -Ltarget/release -ltilework -Xlinker -rpath=$PWD/target/release
 *   ./stress 600                              seconds
 *   ./stress 5 --longest 1048576              the longest block, bytes: for compute-sanitizer
 *   ./stress 5 --threads 1 --streams 1        fewer of them
 *   ./stress 5 --steady --careless            no trims, limits, ends of executions, groups; other users untold of: must fail
 *
 * Every block, 512 B to 256 MiB, is filled with a pattern of its own on one stream. Before it is freed a kernel compares
 * every word; the free does not wait for it, and often a kernel that idles is queued before it. Some blocks are checked
 * by another stream of the thread, some by another thread, which frees them; record_stream tells, or for half of them
 * free_on. Each thread has a group, too, that is evicted, discarded, prefetched and restored while work on its blocks is queued on several
 * streams, and that a limit may send away; every second thread's is constant. Beside that: trims, ends of executions, limits that come and go, requests
 * beyond them. `--seed` makes other choices. Prints a line a minute and one at the end. Exit code 1 when a word was wrong or anything failed.
 */
#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include <tilework.h>

// Blocks that a thread has at most.
constexpr size_t BLOCKS = 48;
// And in its group.
constexpr size_t MEMBERS = 6;
// Bytes of evicted groups that are kept in pinned memory: what exceeds them goes to ordinary memory.
constexpr uint64_t PINNED = 256 << 20;
constexpr uint64_t GIB = 1ull << 30;

#define CUDA(call)                                                                                  \
    do {                                                                                            \
        cudaError_t code = (call);                                                                  \
        if (code != cudaSuccess) {                                                                  \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #call, cudaGetErrorString(code));        \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)

static void must(tilework_status status, const char *what) {
    if (status == TILEWORK_STATUS_OK) return;
    fprintf(stderr, "%s: %s\n", what, tilework_last_error());
    exit(1);
}
#define DONE(call) must((call), #call)

// What the GPU counts.
struct Found {
    unsigned long long wrong, checked;
    // Of the first wrong word: where, what was expected, what was there.
    unsigned long long address;
    unsigned expected, seen;
};

__device__ unsigned pattern(unsigned seed, unsigned long long word) {
    unsigned x = seed ^ (unsigned)word * 2654435761u ^ (unsigned)(word >> 32);
    x ^= x >> 16;
    return x * 0x45d9f3bu;
}

__global__ void fill(unsigned *block, unsigned long long words, unsigned seed) {
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < words; i += gridDim.x * (unsigned long long)blockDim.x)
        block[i] = pattern(seed, i);
}

__global__ void check(const unsigned *block, unsigned long long words, unsigned seed, Found *found) {
    unsigned wrong = 0;
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < words; i += gridDim.x * (unsigned long long)blockDim.x) {
        unsigned seen = block[i], expected = pattern(seed, i);
        if (seen == expected) continue;
        unsigned long long address = (unsigned long long)(block + i);
        if (!wrong++ && !atomicCAS(&found->address, 0ull, address)) {
            found->expected = expected;
            found->seen = seen;
        }
    }
    if (wrong) atomicAdd(&found->wrong, (unsigned long long)wrong);
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(&found->checked, words);
}

// Keeps a stream busy, so that what is queued behind it runs long after it was freed.
__global__ void idle(long long cycles) {
    for (long long began = clock64(); clock64() - began < cycles;) {
    }
}

struct Block {
    uint64_t address, bytes;
    int home;  // of the thread's streams, the one it was requested for
    unsigned seed;
    unsigned long long words() const { return bytes / 4; }
};

// A block on its way to another thread, once `filled` has passed.
struct Parcel {
    Block block;
    cudaEvent_t filled;
};

static tilework_manager *manager;
static Found *found;
static uint64_t longest = 256 << 20;
static int thread_count = 8, stream_count = 4;
static bool careless, steady;
static uint64_t seed;
static std::mutex counter;
static std::vector<Parcel> parcels;
static std::atomic<bool> stop{false};
static std::atomic<uint64_t> blocks, crossings, handed, told, refused, trims, limits, visits, evictions;

static int grid(const Block &block) {
    unsigned long long needed = (block.words() + 255) / 256;
    return (int)(needed < 1056 ? needed : 1056);
}

class Worker {
    std::mt19937_64 random;
    std::vector<cudaStream_t> streams;
    std::vector<Block> mine;
    uint32_t group = 0;
    bool grouped = false;
    std::vector<Block> members;
    // Whether the group's contents stay as they are, and whether they were given up.
    bool constant, discarded = false;

    uint64_t below(uint64_t n) { return random() % n; }
    cudaStream_t any() { return streams[below(stream_count)]; }

    void look(const Block &block, cudaStream_t stream) {
        if (below(6) == 0) idle<<<1, 1, 0, stream>>>(1'000'000);
        check<<<grid(block), 256, 0, stream>>>((const unsigned *)block.address, block.words(), block.seed, found);
        CUDA(cudaGetLastError());
    }

    // Orders `stream` behind what is queued on `before` now.
    void follow(cudaStream_t stream, cudaStream_t before) {
        cudaEvent_t event;
        CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        CUDA(cudaEventRecord(event, before));
        CUDA(cudaStreamWaitEvent(stream, event, 0));
        CUDA(cudaEventDestroy(event));
    }

    // Checks a block that another stream filled on `user`, and frees it.
    void look_elsewhere(const Block &block, cudaStream_t user) {
        bool at_free = below(2);
        if (!careless && !at_free) DONE(tilework_record_stream(manager, block.address, user));
        look(block, user);
        if (careless || !at_free) {
            DONE(tilework_free(manager, block.address));
        } else {
            DONE(tilework_free_on(manager, block.address, user));
            told++;
        }
    }

    Block drawn(uint64_t most) {
        double part = std::uniform_real_distribution<>(0, 1)(random);
        Block block{};
        block.bytes = (uint64_t)(512 * std::pow(most / 512.0, part));
        block.home = (int)below(stream_count);
        block.seed = (unsigned)random();
        return block;
    }

    void write(const Block &block) {
        fill<<<grid(block), 256, 0, streams[block.home]>>>((unsigned *)block.address, block.words(), block.seed);
        CUDA(cudaGetLastError());
    }

    void request() {
        Block block = drawn(longest);
        tilework_status status = tilework_alloc(manager, block.bytes, streams[block.home], &block.address);
        if (status == TILEWORK_STATUS_OUT_OF_MEMORY) {
            refused++;
            while (mine.size() > BLOCKS / 4) release(below(mine.size()));
            return;
        }
        must(status, "tilework_alloc");
        blocks++;
        write(block);
        mine.push_back(block);
    }

    // Brings the group back for a stream of the thread's, looks at its blocks there, changes some, and sends it away with all
    // that still queued.
    void visit() {
        // Others may send it away for want of memory, but not while it is pinned.
        DONE(tilework_pin(manager, group));
        cudaStream_t user = any();
        tilework_status status = tilework_restore(manager, group, user, nullptr);
        if (status == TILEWORK_STATUS_OUT_OF_MEMORY) {
            refused++;
            DONE(tilework_unpin(manager, group));
            return;
        }
        must(status, "tilework_restore");
        visits++;
        for (Block &block : members) {
            cudaStream_t home = streams[block.home];
            if (discarded) {
                write(block);
            } else if (below(2)) {
                follow(user, home);
                look(block, user);
                follow(home, user);
            } else {
                look(block, home);
            }
            if (!constant && below(4) == 0) {
                block.seed = (unsigned)random();
                write(block);
            }
        }
        discarded = false;
        if (!members.empty() && below(4) == 0) {
            size_t at = below(members.size());
            follow(user, streams[members[at].home]);
            look_elsewhere(members[at], user);
            members.erase(members.begin() + at);
        }
        if (members.size() < MEMBERS) {
            Block block = drawn(longest / 8);
            status = tilework_alloc_for(manager, group, block.bytes, streams[block.home], &block.address);
            if (status == TILEWORK_STATUS_OUT_OF_MEMORY) {
                refused++;
            } else {
                must(status, "tilework_alloc_for");
                write(block);
                members.push_back(block);
            }
        }
        DONE(tilework_unpin(manager, group));
        switch (below(6)) {
        case 0: return;
        case 1:
            discarded = !constant;
            if (discarded) DONE(tilework_discard(manager, group, nullptr));
            break;
        case 2:
            DONE(tilework_evict(manager, group, nullptr));
            status = tilework_prefetch(manager, group);
            if (status != TILEWORK_STATUS_OUT_OF_MEMORY) must(status, "tilework_prefetch");
            break;
        default: DONE(tilework_evict(manager, group, nullptr));
        }
        evictions++;
    }

    Block take(size_t at) {
        Block block = mine[at];
        mine[at] = mine.back();
        mine.pop_back();
        return block;
    }

    void release(size_t at) {
        Block block = take(at);
        cudaStream_t home = streams[block.home];
        if (below(3) == 0) {
            cudaStream_t user = any();
            follow(user, home);
            look_elsewhere(block, user);
            crossings++;
        } else {
            look(block, home);
            DONE(tilework_free(manager, block.address));
        }
    }

    void hand_over(size_t at) {
        Parcel parcel{take(at), nullptr};
        CUDA(cudaEventCreateWithFlags(&parcel.filled, cudaEventDisableTiming));
        CUDA(cudaEventRecord(parcel.filled, streams[parcel.block.home]));
        std::lock_guard<std::mutex> guard(counter);
        parcels.push_back(parcel);
    }

    void collect() {
        Parcel parcel;
        {
            std::lock_guard<std::mutex> guard(counter);
            if (parcels.empty()) return;
            parcel = parcels.front();
            parcels.erase(parcels.begin());
        }
        cudaStream_t user = any();
        CUDA(cudaStreamWaitEvent(user, parcel.filled, 0));
        CUDA(cudaEventDestroy(parcel.filled));
        look_elsewhere(parcel.block, user);
        handed++;
    }

public:
    explicit Worker(uint64_t seed) : random(seed), constant(seed % 2) {}

    void run() {
        streams.resize(stream_count);
        for (auto &stream : streams) CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        char name[32];
        snprintf(name, sizeof name, "of thread %p", (void *)this);
        tilework_status status = tilework_group(manager, name, &group);
        // Only where the device maps memory.
        grouped = status != TILEWORK_STATUS_UNSUPPORTED;
        if (grouped) {
            must(status, "tilework_group");
            DONE(tilework_set_constant(manager, group, constant));
            DONE(tilework_unpin(manager, group));
        }
        for (uint64_t step = 0; !stop; step++) {
            bool full = mine.size() >= BLOCKS || (mine.size() > BLOCKS / 2 && below(2));
            if (full && below(4) == 0) hand_over(below(mine.size()));
            else if (full) release(below(mine.size()));
            else request();
            if (below(4) == 0) collect();
            // Work does not pile up without end.
            if (step % 256 == 0) CUDA(cudaStreamSynchronize(any()));
            if (steady) continue;
            if (grouped && below(100) == 0) visit();
            if (below(500) == 0) DONE(tilework_end_of_execution(manager));
            if (below(20'000) == 0) {
                DONE(tilework_trim(manager, nullptr));
                trims++;
            }
            if (below(5'000) == 0) {
                // Most of the time there is none.
                tilework_status status = tilework_set_limit(manager, below(3) ? 0 : (1 + below(8)) * (longest * 8));
                // Refused below what groups hold that are pinned.
                if (status != TILEWORK_STATUS_IN_USE) must(status, "tilework_set_limit");
                limits++;
            }
        }
        while (!mine.empty()) release(mine.size() - 1);
    }

    void end() {
        if (grouped) DONE(tilework_restore(manager, group, streams[0], nullptr));
        for (const Block &block : members) {
            if (discarded) write(block);
            look(block, streams[block.home]);
            DONE(tilework_free(manager, block.address));
        }
        for (auto stream : streams) CUDA(cudaStreamSynchronize(stream));
        if (grouped) DONE(tilework_remove_group(manager, group));
        for (auto stream : streams) {
            CUDA(cudaStreamSynchronize(stream));
            DONE(tilework_forget_stream(manager, stream));
            CUDA(cudaStreamDestroy(stream));
        }
    }

    void drain() {
        for (;;) {
            {
                std::lock_guard<std::mutex> guard(counter);
                if (parcels.empty()) return;
            }
            collect();
        }
    }
};

static Found counted(cudaStream_t stream) {
    Found now;
    CUDA(cudaMemcpyAsync(&now, found, sizeof now, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    return now;
}

static Found report(double seconds, cudaStream_t stream) {
    Found now = counted(stream);
    tilework_figures figures{};
    figures.size = sizeof figures;
    DONE(tilework_stats(manager, &figures));
    printf("%6.1f s: %llu wrong words of %.1f GiB checked; %llu blocks, %llu checked by a second stream, %llu by a second thread, "
           "%llu freed on that; groups %llu visited, %llu sent away; %llu refused, %llu trims, %llu limits, %llu driver calls; peak live %.2f GiB, peak held %.2f GiB\n",
           seconds, now.wrong, now.checked * 4.0 / GIB, (unsigned long long)blocks, (unsigned long long)crossings,
           (unsigned long long)handed, (unsigned long long)told, (unsigned long long)visits, (unsigned long long)evictions, (unsigned long long)refused, (unsigned long long)trims, (unsigned long long)limits,
           (unsigned long long)figures.device_calls, (double)figures.peak_live / GIB, (double)figures.peak_held / GIB);
    fflush(stdout);
    return now;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 60;
    for (int n = 2; n < argc; n++) {
        auto number = [&] { return n + 1 < argc ? strtoull(argv[++n], nullptr, 10) : 0; };
        if (!strcmp(argv[n], "--longest")) longest = number();
        else if (!strcmp(argv[n], "--threads")) thread_count = (int)number();
        else if (!strcmp(argv[n], "--streams")) stream_count = (int)number();
        else if (!strcmp(argv[n], "--seed")) seed = number();
        else if (!strcmp(argv[n], "--steady")) steady = true;
        else if (!strcmp(argv[n], "--careless")) careless = true;
        else return fprintf(stderr, "unknown: %s\n", argv[n]), 2;
    }
    if (longest < 512 || thread_count < 1 || stream_count < 1) return fprintf(stderr, "a number is too small\n"), 2;
    cudaDeviceProp gpu;
    CUDA(cudaGetDeviceProperties(&gpu, 0));
    CUDA(cudaMalloc(&found, sizeof *found));
    CUDA(cudaMemset(found, 0, sizeof *found));
    cudaStream_t watcher;
    CUDA(cudaStreamCreateWithFlags(&watcher, cudaStreamNonBlocking));
    tilework_options options{};
    options.size = sizeof options;
    options.device = "cuda:0";
    DONE(tilework_create(&options, &manager));
    DONE(tilework_set_hosting(manager, PINNED, nullptr));
    printf("%s, %d threads of %d streams, blocks of 512 to %llu bytes%s\n", gpu.name, thread_count, stream_count,
           (unsigned long long)longest, careless ? ", careless" : "");

    using Clock = std::chrono::steady_clock;
    auto began = Clock::now();
    auto passed = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
    std::vector<Worker> workers;
    for (int n = 0; n < thread_count; n++) workers.emplace_back(seed * 1000 + n);
    std::vector<std::thread> threads;
    for (auto &worker : workers) threads.emplace_back([&worker] { worker.run(); });
    for (double next = 60; passed() < seconds;) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        if (passed() < next) continue;
        report(passed(), watcher);
        next += 60;
    }
    stop = true;
    for (auto &thread : threads) thread.join();
    // What was on its way when the others stopped, and groups that a limit keeps away.
    DONE(tilework_set_limit(manager, 0));
    workers[0].drain();
    for (auto &worker : workers) worker.end();
    CUDA(cudaDeviceSynchronize());
    Found last = report(passed(), watcher);
    if (last.wrong)
        printf("the first: at %#llx %#x was expected and %#x seen\n", last.address, last.expected, last.seen);
    CUDA(cudaFree(found));
    CUDA(cudaStreamDestroy(watcher));
    DONE(tilework_destroy(manager));
    return last.wrong != 0;
}
