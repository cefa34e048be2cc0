/* Times a warm allocation and free from C, on one thread.
 *
 *   cargo build --release -p tilework-c
 *   cc -O2 -Icrates/tilework-c/include bench/pair.c -o pair -Ltarget/release -ltilework -Wl,-rpath,$PWD/target/release
 *   ./pair cuda:0
 *
 * Prints nanoseconds of tilework_alloc and tilework_free together, the best of many batches, for each size, with
 * nothing else live and with 1000 blocks live.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <tilework.h>

enum { BATCH = 10000, BATCHES = 100, OTHERS = 1000 };

static void must(tilework_status status) {
    if (status == TILEWORK_STATUS_OK) return;
    fprintf(stderr, "error: %s\n", tilework_last_error());
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static double best(tilework_manager *manager, uint64_t bytes) {
    double least = 1e18;
    for (int i = 0; i < BATCHES; i++) {
        double began = now();
        for (int j = 0; j < BATCH; j++) {
            uint64_t address;
            must(tilework_alloc(manager, bytes, NULL, &address));
            must(tilework_free(manager, address));
        }
        double took = (now() - began) / BATCH;
        if (took < least) least = took;
    }
    return least;
}

int main(int argc, char **argv) {
    tilework_options options = {.size = sizeof options, .device = argc > 1 ? argv[1] : "cuda:0"};
    tilework_manager *manager;
    must(tilework_create(&options, &manager));
    uint64_t sizes[] = {512, 1 << 20, 100 << 20}, others[OTHERS];
    for (int i = 0; i < 3; i++) printf("%s %9llu bytes: %6.1f ns\n", options.device, (unsigned long long)sizes[i], best(manager, sizes[i]));
    for (int i = 0; i < OTHERS; i++) must(tilework_alloc(manager, 512 + 4096 * (i % 100), NULL, &others[i]));
    for (int i = 0; i < 3; i++)
        printf("%s %9llu bytes, %d others live: %6.1f ns\n", options.device, (unsigned long long)sizes[i], OTHERS, best(manager, sizes[i]));
    for (int i = 0; i < OTHERS; i++) must(tilework_free(manager, others[i]));
    must(tilework_destroy(manager));
    return 0;
}
