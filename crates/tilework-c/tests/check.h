// What the programs that use the library check by. It ends the program, and says on stderr what went wrong.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tilework.h"

#define CHECK(what) \
    do { \
        if (!(what)) { \
            const char *why = tilework_last_error(); \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, why ? why : "no error was kept"); \
            exit(1); \
        } \
    } while (0)
#define DONE(call) CHECK((call) == TILEWORK_STATUS_OK)
// The call must fail this way, and say so in words with these in them.
#define REFUSED(call, status, words) \
    do { \
        CHECK((call) == (status)); \
        CHECK(tilework_last_error() && strstr(tilework_last_error(), words)); \
    } while (0)
