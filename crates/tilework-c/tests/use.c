// Uses every function of the library but those for Vulkan, on the device "host", whose addresses are pointers.
// A driver that opens one GPU and maps no memory is where the loader finds it.
// argv[1]: where to record a trace. Says what went wrong on stderr, and nothing if all is well.

#define _DEFAULT_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { BLOCKS = 64, ROUNDS = 20, THREADS = 4 };
#define MIB ((uint64_t)1 << 20)

static tilework_manager *host(uint64_t limit) {
    tilework_options options = {.size = sizeof options, .device = "host", .limit_bytes = limit};
    tilework_manager *manager = NULL;
    DONE(tilework_create(&options, &manager));
    CHECK(manager != NULL);
    return manager;
}

static tilework_figures figures(tilework_manager *manager) {
    tilework_figures figures = {.size = sizeof figures};
    DONE(tilework_stats(manager, &figures));
    return figures;
}

static unsigned char *bytes_at(uint64_t address) {
    return (unsigned char *)(uintptr_t)address;
}

// Each block keeps the pattern it was filled with until it is freed.
static void *patterns(void *manager) {
    uint64_t blocks[BLOCKS] = {0}, sizes[BLOCKS];
    unsigned seed = (unsigned)(uintptr_t)&blocks;
    for (int round = 0; round < ROUNDS * BLOCKS; round++) {
        int at = rand_r(&seed) % BLOCKS;
        void *stream = (void *)(uintptr_t)(at % 3);
        if (blocks[at]) {
            unsigned char *p = bytes_at(blocks[at]);
            CHECK(p[0] == at && p[sizes[at] / 2] == at && p[sizes[at] - 1] == at);
            DONE(at % 2 ? tilework_free(manager, blocks[at]) : tilework_free_on(manager, blocks[at], stream));
            blocks[at] = 0;
        } else {
            sizes[at] = 1 + (unsigned)rand_r(&seed) % (at % 8 ? 50000 : 3000000);
            DONE(tilework_alloc(manager, sizes[at], stream, &blocks[at]));
            CHECK(blocks[at] % 512 == 0);
            memset(bytes_at(blocks[at]), at, sizes[at]);
        }
    }
    for (int at = 0; at < BLOCKS; at++)
        if (blocks[at]) DONE(tilework_free(manager, blocks[at]));
    return NULL;
}

static void threads_keep_their_patterns(void) {
    tilework_manager *manager = host(0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], NULL, patterns, manager));
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(threads[i], NULL));
    tilework_figures now = figures(manager);
    CHECK(now.live == 0 && now.blocks == 0 && now.allocations == now.frees && now.peak_live > 0);
    CHECK(now.peak_held >= now.peak_live);
    uint64_t released = 0;
    DONE(tilework_end_of_execution(manager));
    DONE(tilework_trim(manager, &released));
    CHECK(figures(manager).held == 0);
    DONE(tilework_reset_peaks(manager));
    // Memory that is not mapped by a driver needs nothing for it.
    DONE(tilework_add_peer(manager, 1));
    CHECK(figures(manager).peak_live == 0);
    DONE(tilework_destroy(manager));
}

// What a thread has of the library's is gone by then.
static void use_at_the_end(void *manager) {
    uint64_t address;
    DONE(tilework_alloc(manager, MIB, NULL, &address));
    DONE(tilework_free(manager, address));
    CHECK(tilework_free(manager, address) == TILEWORK_STATUS_UNKNOWN_ADDRESS);
    CHECK(figures(manager).blocks == 0);
}

static pthread_key_t at_the_end;

static void *ends(void *manager) {
    CHECK(!pthread_setspecific(at_the_end, manager));
    DONE(tilework_trim(manager, NULL));
    return NULL;
}

static void threads_that_end_are_served(void) {
    tilework_manager *manager = host(0);
    pthread_t thread;
    CHECK(!pthread_key_create(&at_the_end, use_at_the_end));
    CHECK(!pthread_create(&thread, NULL, ends, manager));
    CHECK(!pthread_join(thread, NULL));
    CHECK(figures(manager).allocations == 1);
    DONE(tilework_destroy(manager));
}

static void mistakes_are_errors(void) {
    tilework_manager *manager = host(0), *none = (tilework_manager *)0x1000;
    uint64_t address, start, bytes;
    tilework_options options = {.size = sizeof options, .device = "nowhere"};
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_INVALID_ARGUMENT, "nowhere");
    options.device = NULL;
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_INVALID_ARGUMENT, "no device");
    options = (tilework_options){.size = 8, .device = "host"};
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_INVALID_ARGUMENT, "size");
    options = (tilework_options){.size = sizeof options, .device = "host", .manager = "nobody"};
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_INVALID_ARGUMENT, "nobody");
    options.manager = "committed";
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_UNSUPPORTED, "committed");
    for (int named = 0; named < 2; named++) {
        tilework_manager *chosen = NULL;
        options.manager = named ? "tiled" : "auto";
        DONE(tilework_create(&options, &chosen));
        DONE(tilework_destroy(chosen));
    }
    REFUSED(tilework_create(&options, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "null");
    REFUSED(tilework_create(NULL, &none), TILEWORK_STATUS_INVALID_ARGUMENT, "null");
    CHECK(none == (tilework_manager *)0x1000);

    REFUSED(tilework_alloc(NULL, 1, NULL, &address), TILEWORK_STATUS_INVALID_ARGUMENT, "handle");
    REFUSED(tilework_alloc(none, 1, NULL, &address), TILEWORK_STATUS_INVALID_ARGUMENT, "handle");
    REFUSED(tilework_alloc(manager, 1, NULL, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "null");
    REFUSED(tilework_alloc(manager, 0, NULL, &address), TILEWORK_STATUS_INVALID_ARGUMENT, "zero");
    REFUSED(tilework_alloc(manager, UINT64_MAX, NULL, &address), TILEWORK_STATUS_INVALID_ARGUMENT, "exceeds");
    REFUSED(tilework_free(manager, 0), TILEWORK_STATUS_UNKNOWN_ADDRESS, "address");
    REFUSED(tilework_record_stream(manager, 0x1000, NULL), TILEWORK_STATUS_UNKNOWN_ADDRESS, "0x1000");
    REFUSED(tilework_stats(manager, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "size");
    REFUSED(tilework_record_start(manager, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "null");

    DONE(tilework_alloc(manager, 1000, NULL, &address));
    DONE(tilework_block_of(manager, address + 999, &start, &bytes));
    CHECK(start == address && bytes == 1000);
    DONE(tilework_free(manager, address));
    REFUSED(tilework_free(manager, address), TILEWORK_STATUS_UNKNOWN_ADDRESS, "address");
    REFUSED(tilework_block_of(manager, address, &start, NULL), TILEWORK_STATUS_UNKNOWN_ADDRESS, "no live block");

    // The program's own, another manager's, and one inside a block.
    tilework_manager *neighbour = host(0);
    uint64_t theirs;
    DONE(tilework_alloc(neighbour, 1000, NULL, &theirs));
    DONE(tilework_alloc(manager, 1000, NULL, &address));
    for (int n = 0; n < 4; n++) {
        uint64_t wrong[] = {(uint64_t)(uintptr_t)&address, theirs, address + 512, UINT64_MAX};
        REFUSED(tilework_free(manager, wrong[n]), TILEWORK_STATUS_UNKNOWN_ADDRESS, "address");
        REFUSED(tilework_free_on(manager, wrong[n], NULL), TILEWORK_STATUS_UNKNOWN_ADDRESS, "address");
    }
    CHECK(figures(manager).blocks == 1 && figures(neighbour).blocks == 1);
    DONE(tilework_free(manager, address));
    DONE(tilework_destroy(neighbour));

    // There is one GPU.
    options = (tilework_options){.size = sizeof options, .device = "cuda:1"};
    REFUSED(tilework_create(&options, &none), TILEWORK_STATUS_DEVICE_FAILED, "there is no GPU 1: the driver has 1");

    DONE(tilework_destroy(manager));
    REFUSED(tilework_destroy(manager), TILEWORK_STATUS_INVALID_ARGUMENT, "destroyed");
    REFUSED(tilework_trim(manager, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "destroyed");
}

static void a_limit_is_kept_and_can_be_raised(void) {
    tilework_manager *manager = host(8 * MIB);
    uint64_t first, second;
    DONE(tilework_alloc(manager, 6 * MIB, NULL, &first));
    REFUSED(tilework_alloc(manager, 6 * MIB, NULL, &second), TILEWORK_STATUS_OUT_OF_MEMORY, "out of memory");
    CHECK(figures(manager).ooms == 1);
    DONE(tilework_set_limit(manager, 0));
    DONE(tilework_alloc(manager, 6 * MIB, NULL, &second));
    DONE(tilework_destroy(manager));
}

static void who_serves_is_told(void) {
    tilework_manager *manager = host(0);
    const char *kind = NULL, *why = NULL;
    DONE(tilework_serving(manager, &kind, &why));
    CHECK(!strcmp(kind, "tiled") && strstr(why, "the device host maps tiles"));
    DONE(tilework_serving(manager, NULL, NULL));
    DONE(tilework_destroy(manager));
    REFUSED(tilework_serving(manager, &kind, NULL), TILEWORK_STATUS_INVALID_ARGUMENT, "destroyed");
    tilework_options chosen = {.size = sizeof chosen, .device = "host", .manager = "placed"};
    DONE(tilework_create(&chosen, &manager));
    DONE(tilework_serving(manager, &kind, &why));
    CHECK(!strcmp(kind, "placed") && !strcmp(why, "placed serves, since it was asked for"));
    uint32_t group;
    REFUSED(tilework_group(manager, "unet", &group), TILEWORK_STATUS_UNSUPPORTED, "group");
    DONE(tilework_destroy(manager));
    chosen.manager = "bucketized";
    REFUSED(tilework_create(&chosen, &manager), TILEWORK_STATUS_UNSUPPORTED, "auto, tiled and placed do");
    // A GPU of a driver that stands in for one, which does not map memory.
    tilework_options options = {.size = sizeof options, .device = "cuda:0"};
    DONE(tilework_create(&options, &manager));
    DONE(tilework_serving(manager, &kind, &why));
    CHECK(!strcmp(kind, "placed") && strstr(why, "cannot map tiles: the manager placed serves in place of tiled"));
    DONE(tilework_destroy(manager));
}

// Takes lines of the log until the log is off, and tells whether one was about `spilled`.
static void *take_lines(void *spilled) {
    for (;;) {
        tilework_level level;
        const char *topic, *text;
        DONE(tilework_take_log(60000, &level, &topic, &text));
        if (!text) return NULL;
        CHECK(level != TILEWORK_LEVEL_OFF && strstr(topic, "tilework") == topic);
        if (strstr(text, "spilled: ") == text) *(bool *)spilled = true;
    }
}

static void what_happens_under_a_limit_is_counted_and_logged(void) {
    REFUSED(tilework_set_log(17), TILEWORK_STATUS_INVALID_ARGUMENT, "level");
    const char *text = "";
    DONE(tilework_take_log(0, NULL, NULL, &text));
    CHECK(text == NULL);
    DONE(tilework_set_log(TILEWORK_LEVEL_DEBUG));
    tilework_manager *manager = host(8 * MIB);
    tilework_level level;
    const char *topic;
    DONE(tilework_take_log(0, &level, &topic, &text));
    CHECK(level == TILEWORK_LEVEL_INFO && !strcmp(topic, "tilework::serving"));
    CHECK(!strcmp(text, "tiled serves, since the device host maps tiles"));
    DONE(tilework_take_log(0, NULL, NULL, &text));
    CHECK(text == NULL);

    bool spilled = false;
    pthread_t taker;
    CHECK(!pthread_create(&taker, NULL, take_lines, &spilled));
    uint32_t group;
    uint64_t weights, block, copied;
    DONE(tilework_group(manager, "unet", &group));
    DONE(tilework_alloc_for(manager, group, 8 * MIB, NULL, &weights));
    DONE(tilework_set_constant(manager, group, true));
    memset(bytes_at(weights), 7, 8 * MIB);
    DONE(tilework_unpin(manager, group));
    DONE(tilework_set_spill(manager, true));
    DONE(tilework_alloc(manager, 12 * MIB, NULL, &block));
    memset(bytes_at(block), 9, 12 * MIB);
    tilework_figures now = figures(manager);
    CHECK(now.evictions == 1 && now.give_backs == 1 && now.spills > 0 && now.spilled > 0 && now.held <= 8 * MIB);
    DONE(tilework_free(manager, block));
    DONE(tilework_restore(manager, group, NULL, &copied));
    CHECK(copied >= 8 * MIB && bytes_at(weights)[0] == 7 && bytes_at(weights)[8 * MIB - 1] == 7);
    // What is constant is on the host yet.
    DONE(tilework_evict(manager, group, NULL));
    tilework_group_figures moves = {.size = sizeof moves};
    DONE(tilework_group_stats(manager, group, &moves));
    CHECK(moves.evictions == 2 && moves.bytes_out == copied);
    CHECK(figures(manager).evictions == 1);
    DONE(tilework_set_spill(manager, false));
    DONE(tilework_destroy(manager));
    DONE(tilework_set_log(TILEWORK_LEVEL_OFF));
    CHECK(!pthread_join(taker, NULL));
    CHECK(spilled);
}

// A program that was compiled with a header of before gets what that had.
static void structures_may_grow(void) {
    tilework_manager *manager = host(0);
    struct { tilework_figures figures; char beyond[64]; } longer;
    memset(&longer, 0x5a, sizeof longer);
    longer.figures.size = sizeof longer;
    DONE(tilework_stats(manager, &longer.figures));
    CHECK(longer.figures.size == sizeof longer.figures && longer.figures.spills == 0 && longer.beyond[0] == 0x5a);
    memset(&longer, 0x5a, sizeof longer);
    longer.figures.size = offsetof(tilework_figures, evictions);
    DONE(tilework_stats(manager, &longer.figures));
    CHECK(longer.figures.size == offsetof(tilework_figures, evictions));
    CHECK(longer.figures.spilled == 0 && longer.figures.evictions == 0x5a5a5a5a5a5a5a5a);
    longer.figures.size = offsetof(tilework_figures, spilled);
    REFUSED(tilework_stats(manager, &longer.figures), TILEWORK_STATUS_INVALID_ARGUMENT, "size");
    DONE(tilework_destroy(manager));
}

static bool only_stream_seven(void *stream, void *asked) {
    ++*(int *)asked;
    return stream == (void *)7;
}

static void pools_and_streams(const char *trace) {
    tilework_manager *manager = host(0);
    void *seven = (void *)7;
    int asked = 0;
    uint64_t inside, outside, other;
    DONE(tilework_record_start(manager, trace));
    DONE(tilework_begin_pool(manager, 1, 2, only_stream_seven, &asked));
    DONE(tilework_alloc(manager, MIB, seven, &inside));
    DONE(tilework_alloc(manager, MIB, NULL, &outside));
    CHECK(asked == 2);
    DONE(tilework_end_pool(manager, 1, 2));
    DONE(tilework_free(manager, inside));
    // The pool's memory waits for its graph and serves nobody else.
    DONE(tilework_alloc(manager, MIB, seven, &other));
    CHECK(asked == 2 && other != inside);
    DONE(tilework_release_pool(manager, 1, 2));
    DONE(tilework_record_stream(manager, outside, seven));
    DONE(tilework_free(manager, outside));
    DONE(tilework_free_on(manager, other, seven));
    DONE(tilework_forget_stream(manager, seven));
    DONE(tilework_record_stop(manager));
    DONE(tilework_trim(manager, NULL));
    DONE(tilework_destroy(manager));
}

static void a_group_goes_and_comes(void) {
    tilework_manager *manager = host(16 * MIB);
    void *seven = (void *)7;
    uint32_t group, other;
    uint64_t address, moved;
    DONE(tilework_set_hosting(manager, 64 * MIB, NULL));
    DONE(tilework_group(manager, "unet", &group));
    DONE(tilework_alloc_for(manager, group, 12 * MIB, NULL, &address));
    unsigned char *bytes = (unsigned char *)(uintptr_t)address;
    for (size_t i = 0; i < 12 * MIB; i++) bytes[i] = (unsigned char)(i % 251);
    DONE(tilework_group_used_on(manager, group, seven));
    REFUSED(tilework_evict(manager, group, NULL), TILEWORK_STATUS_IN_USE, "pinned");
    DONE(tilework_unpin(manager, group));
    DONE(tilework_evict(manager, group, &moved));
    CHECK(moved >= 12 * MIB);
    REFUSED(tilework_alloc_for(manager, group, 1, NULL, &moved), TILEWORK_STATUS_EVICTED, "restore it first");
    tilework_group_figures figures = {.size = sizeof figures};
    DONE(tilework_group_stats(manager, group, &figures));
    CHECK(figures.residence == TILEWORK_RESIDENCE_EVICTED && figures.held == 0);
    CHECK(figures.kept >= 12 * MIB && figures.live == 12 * MIB && figures.evictions == 1);
    // Another takes its place, and goes for it, since the limit holds one of them.
    DONE(tilework_group(manager, "vae", &other));
    DONE(tilework_alloc_for(manager, other, 12 * MIB, NULL, &moved));
    *(unsigned char *)(uintptr_t)moved = 7;
    REFUSED(tilework_restore(manager, group, NULL, NULL), TILEWORK_STATUS_OUT_OF_MEMORY, "out of memory");
    REFUSED(tilework_set_limit(manager, MIB), TILEWORK_STATUS_IN_USE, "pinned");
    DONE(tilework_unpin(manager, other));
    DONE(tilework_set_trap(manager, true));
    DONE(tilework_prefetch(manager, group));
    DONE(tilework_group_stats(manager, group, &figures));
    CHECK(figures.residence == TILEWORK_RESIDENCE_EVICTED);
    DONE(tilework_set_trap(manager, false));
    DONE(tilework_prefetch(manager, group));
    DONE(tilework_restore(manager, group, NULL, &moved));
    CHECK(moved >= 12 * MIB);
    for (size_t i = 0; i < 12 * MIB; i++) CHECK(bytes[i] == i % 251);
    DONE(tilework_discard(manager, group, NULL));
    DONE(tilework_free(manager, address));
    DONE(tilework_remove_group(manager, group));
    REFUSED(tilework_pin(manager, group), TILEWORK_STATUS_INVALID_ARGUMENT, "no group");
    DONE(tilework_destroy(manager));
}

static void children_are_refused(void) {
    tilework_manager *manager = host(0);
    uint64_t address;
    DONE(tilework_alloc(manager, MIB, NULL, &address));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        REFUSED(tilework_free(manager, address), TILEWORK_STATUS_FORKED, "fork");
        REFUSED(tilework_take_log(1000, NULL, NULL, NULL), TILEWORK_STATUS_FORKED, "fork");
        _exit(0);
    }
    int how;
    CHECK(waitpid(child, &how, 0) == child && WIFEXITED(how) && WEXITSTATUS(how) == 0);
    DONE(tilework_free(manager, address));
    DONE(tilework_destroy(manager));
}

// Blocks live, a group on its way back, and what has grown old being given back, by threads: a child and the end of the process come
// in the middle of it.
static void everything_is_left_as_it_is(void) {
    tilework_options options = {.size = sizeof options, .device = "host", .heap_bytes = 2 * MIB, .heap_age = 1};
    tilework_manager *manager = NULL;
    DONE(tilework_create(&options, &manager));
    uint64_t live, large[100];
    uint32_t group;
    DONE(tilework_alloc(manager, MIB, NULL, &live));
    DONE(tilework_group(manager, "unet", &group));
    DONE(tilework_alloc_for(manager, group, 64 * MIB, NULL, &live));
    DONE(tilework_unpin(manager, group));
    DONE(tilework_evict(manager, group, NULL));
    for (int n = 0; n < 100; n++) DONE(tilework_alloc(manager, 2 * MIB, NULL, &large[n]));
    for (int n = 0; n < 100; n++) DONE(tilework_free(manager, large[n]));
    DONE(tilework_end_of_execution(manager));
    DONE(tilework_prefetch(manager, group));
    DONE(tilework_end_of_execution(manager));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        REFUSED(tilework_alloc(manager, MIB, NULL, &live), TILEWORK_STATUS_FORKED, "fork");
        exit(0);
    }
    int how;
    CHECK(waitpid(child, &how, 0) == child && WIFEXITED(how) && WEXITSTATUS(how) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(tilework_version()[0] != 0);
    CHECK(tilework_last_error() == NULL);
    threads_keep_their_patterns();
    threads_that_end_are_served();
    mistakes_are_errors();
    a_limit_is_kept_and_can_be_raised();
    who_serves_is_told();
    what_happens_under_a_limit_is_counted_and_logged();
    structures_may_grow();
    pools_and_streams(argv[1]);
    a_group_goes_and_comes();
    children_are_refused();
    everything_is_left_as_it_is();
    return 0;
}
