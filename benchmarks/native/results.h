/* The figures of loadgen: what counts, and how it is printed. */
#ifndef RESULTS_H
#define RESULTS_H

#include <sys/resource.h>

#include "histogram.h"
#include "response.h"

/* The measured time. */
static ns_t window_start;
static ns_t window_end;
static int is_in_window;

static int in_flight;
static uint64_t ended;
static histogram latencies;
static histogram first_bytes;
static histogram gaps;
static histogram transits;
static uint64_t ok;
static uint64_t events;
static uint64_t bytes_received;
static int last_bad_status;

static struct {
    uint64_t connect;
    uint64_t io;
    uint64_t status;
    uint64_t timeout;
    uint64_t proto;
    uint64_t incomplete;
} errors;

static ns_t window_size(void) {
    /* A count ends it earlier. */
    return options.count ? INT64_MAX / 4 : (ns_t)(options.seconds * NS_PER_SECOND);
}

static int counts(ns_t t) {
    return is_in_window && t >= window_start && t < window_end;
}

static void on_event(connection *c, ns_t now) {
    if (counts(now)) {
        events++;
        if (c->last_event_at) {
            histogram_add(&gaps, now - c->last_event_at);
        }
    }
    c->last_event_at = now;
}

static void on_stamp(ns_t stamp, ns_t now) {
    if (counts(now)) {
        histogram_add(&transits, now - stamp);
    }
}

static double own_cpu(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec +
           (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

static void print_result(double cpu_seconds, uint64_t bytes) {
    double seconds = (double)(window_end - window_start) / NS_PER_SECOND;
    printf("{\"concurrency\":%d,\"stream\":%d,\"window_s\":%.4f,\"ok\":%llu,\"rps\":%.2f,"
           "\"events\":%llu,\"events_per_s\":%.1f,\"bytes_in\":%llu,\"in_flight_at_end\":%d,",
           options.connections, options.is_stream, seconds, (unsigned long long)ok, ok / seconds,
           (unsigned long long)events, events / seconds, (unsigned long long)bytes, in_flight);
    histogram_print("lat", &latencies);
    histogram_print("ttfb", &first_bytes);
    histogram_print("gap", &gaps);
    histogram_print("transit", &transits);
    print_watched();
    printf("\"errors\":{\"connect\":%llu,\"io\":%llu,\"status\":%llu,\"last_status\":%d,"
           "\"timeout\":%llu,\"proto\":%llu,\"short\":%llu},\"self_cpu_s\":%.4f,",
           (unsigned long long)errors.connect, (unsigned long long)errors.io,
           (unsigned long long)errors.status, last_bad_status, (unsigned long long)errors.timeout,
           (unsigned long long)errors.proto, (unsigned long long)errors.incomplete, cpu_seconds);
}

#endif
