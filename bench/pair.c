/* Times a warm allocation and free from C, on one thread.
 *
 *   cargo build --release -p tilework-c
 *   cc -O2 -Icrates/tilework-c/include bench/pair.c -o pair -Ltarget/release -ltilework -Wl,-rpath,$PWD/target/release
 *   ./pair cuda:0
 *
 * Prints nanoseconds of tilework_alloc and tilework_free together, the best and the median of many batches, for each
 * size, with nothing else live and with 1000 blocks live.
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

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_pairs(tilework_manager *manager, uint64_t bytes, const char *among) {
    double took[BATCHES];
    for (int i = 0; i < BATCHES; i++) {
        double began = now();
        for (int j = 0; j < BATCH; j++) {
            uint64_t address;
            must(tilework_alloc(manager, bytes, NULL, &address));
            must(tilework_free(manager, address));
        }
        took[i] = (now() - began) / BATCH;
    }
    qsort(took, BATCHES, sizeof *took, by_time);
    printf("%9llu bytes%s: %6.1f ns, median %6.1f\n", (unsigned long long)bytes, among, took[0], took[BATCHES / 2]);
}

int main(int argc, char **argv) {
    tilework_options options = {.size = sizeof options, .device = argc > 1 ? argv[1] : "cuda:0"};
    tilework_manager *manager;
    must(tilework_create(&options, &manager));
    uint64_t sizes[] = {512, 1 << 20, 100 << 20}, others[OTHERS];
    for (int i = 0; i < 3; i++) time_pairs(manager, sizes[i], "");
    for (int i = 0; i < OTHERS; i++) must(tilework_alloc(manager, 512 + 4096 * (i % 100), NULL, &others[i]));
    for (int i = 0; i < 3; i++) time_pairs(manager, sizes[i], ", 1000 others live");
    for (int i = 0; i < OTHERS; i++) must(tilework_free(manager, others[i]));
    must(tilework_destroy(manager));
    return 0;
}
