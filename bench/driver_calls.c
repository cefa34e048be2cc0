/* Counts the calls of the CUDA driver that a program makes, whoever makes them, by CUPTI.
 *
 *   cc -O2 -shared -fPIC bench/driver_calls.c -o libdriver_calls.so -I$CUDA/include -L$CUDA/lib -lcupti
 *   CUDA_INJECTION64_PATH=$PWD/libdriver_calls.so python3 bench/driver_calls.py
 *
 * The driver loads the library when it is initialised, and CUPTI calls it at each call. `$CUDA` is where cupti.h and
 * libcupti.so are: the toolkit's extras/CUPTI, or nvidia/cu13 of Python's packages.
 */
#include <stdio.h>
#include <string.h>
#include <cupti.h>

enum { FUNCTIONS = 2048 };

static struct {
    const char *name;
    unsigned long long calls;
} functions[FUNCTIONS];

static void CUPTIAPI called(void *unused, CUpti_CallbackDomain domain, CUpti_CallbackId id, const void *data) {
    const CUpti_CallbackData *call = data;
    (void)unused, (void)domain;
    if (call->callbackSite != CUPTI_API_ENTER || id >= FUNCTIONS) return;
    functions[id].name = call->functionName;
    __atomic_fetch_add(&functions[id].calls, 1, __ATOMIC_RELAXED);
}

static void must(CUptiResult result, const char *what) {
    const char *why = "unknown";
    if (result == CUPTI_SUCCESS) return;
    cuptiGetResultString(result, &why);
    fprintf(stderr, "driver_calls: %s: %s\n", what, why);
}

/* What the driver calls once it has loaded the library. */
int InitializeInjection(void) {
    static CUpti_SubscriberHandle subscriber;
    must(cuptiSubscribe(&subscriber, (CUpti_CallbackFunc)called, NULL), "cuptiSubscribe");
    must(cuptiEnableDomain(1, subscriber, CUPTI_CB_DOMAIN_DRIVER_API), "cuptiEnableDomain");
    return 1;
}

/* Writes "name calls\n" for each function called since the last time, and forgets them. Returns how many there were;
 * what does not fit in `bytes` is left out. */
int driver_calls_take(char *out, size_t bytes) {
    int count = 0;
    size_t used = 0;
    if (bytes) *out = 0;
    for (int id = 0; id < FUNCTIONS; id++) {
        unsigned long long calls = __atomic_exchange_n(&functions[id].calls, 0, __ATOMIC_RELAXED);
        if (!calls) continue;
        count++;
        int wrote = snprintf(out + used, bytes - used, "%s %llu\n", functions[id].name, calls);
        used += wrote > 0 && (size_t)wrote < bytes - used ? (size_t)wrote : 0;
    }
    return count;
}
