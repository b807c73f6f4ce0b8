/* Time, as nanoseconds of CLOCK_MONOTONIC. */
#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000LL
#define NS_PER_MS 1000000LL

typedef int64_t ns_t;

static inline ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS_PER_SECOND + t.tv_nsec;
}

/* epoll_wait with a timeout in nanoseconds; NULL: wait without a limit. glibc 2.35 has a function
 * for this call, older ones do not. */
static inline int epoll_wait_ns(int epoll, struct epoll_event *events, int max,
                                const struct timespec *timeout) {
    enum { EPOLL_PWAIT2 = 441 };

    return syscall(EPOLL_PWAIT2, epoll, events, max, timeout, NULL, (size_t)8);
}

#endif
