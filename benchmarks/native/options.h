/* The options of loadgen, and the bytes of its request. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "processes.h"

#define HEADERS_MAX 32
#define COUNTERS_MAX 64
#define COUNTER_DIGITS 10
#define COUNTED_REQUEST_MAX (1 << 20)

static struct {
    const char *host;
    int port;
    const char *path;
    const char *method;
    const char *headers[HEADERS_MAX];
    int header_count;
    const char *body;
    int connections;
    double ramp_ms;
    double rate;
    double seconds;
    uint64_t count;
    double warm_up_seconds;
    double drain_seconds;
    double timeout_seconds;
    int is_stream;
    int dumps;
} options = {
    .host = "127.0.0.1",
    .port = 8000,
    .path = "/v1/chat/completions",
    .connections = 1,
    .seconds = 5,
    .warm_up_seconds = 0.5,
    .drain_seconds = 5,
    .timeout_seconds = 30,
};

static char *request;
static size_t request_bytes;
/* Places in the request where its number is written. */
static size_t counters[COUNTERS_MAX];
static int counter_count;
static struct sockaddr_in address;

static void give_up(const char *message) {
    fprintf(stderr, "loadgen: %s\n", message);
    exit(2);
}

static void add_header(const char *header) {
    if (options.header_count == HEADERS_MAX) {
        give_up("too many headers");
    }
    options.headers[options.header_count++] = header;
}

static void watch(int pid) {
    if (watched_count == WATCHED_MAX) {
        give_up("too many watched processes");
    }
    watched[watched_count++].root = pid;
}

static void read_options(int count, char **arguments) {
    static const struct option known[] = {{"host", required_argument, 0, 'H'},
                                          {"port", required_argument, 0, 'p'},
                                          {"path", required_argument, 0, 'P'},
                                          {"method", required_argument, 0, 'm'},
                                          {"header", required_argument, 0, 'h'},
                                          {"data", required_argument, 0, 'b'},
                                          {"concurrency", required_argument, 0, 'c'},
                                          {"ramp-ms", required_argument, 0, 'R'},
                                          {"rate", required_argument, 0, 'r'},
                                          {"duration", required_argument, 0, 'd'},
                                          {"warmup", required_argument, 0, 'w'},
                                          {"drain", required_argument, 0, 'D'},
                                          {"count", required_argument, 0, 'n'},
        {"timeout", required_argument, 0, 't'},
                                          {"stream", no_argument, 0, 's'},
                                          {"watch-pid", required_argument, 0, 'W'},
                                          {"dump", no_argument, 0, 'x'},
                                          {0, 0, 0, 0}};
    int option;
    while ((option = getopt_long(count, arguments, "c:d:n:", known, NULL)) != -1) {
        switch (option) {
        case 'H':
            options.host = optarg;
            break;
        case 'p':
            options.port = atoi(optarg);
            break;
        case 'P':
            options.path = optarg;
            break;
        case 'm':
            options.method = optarg;
            break;
        case 'h':
            add_header(optarg);
            break;
        case 'b':
            options.body = optarg;
            break;
        case 'c':
            options.connections = atoi(optarg);
            break;
        case 'R':
            options.ramp_ms = atof(optarg);
            break;
        case 'r':
            options.rate = atof(optarg);
            break;
        case 'd':
            options.seconds = atof(optarg);
            break;
        case 'n':
            options.count = strtoull(optarg, NULL, 10);
            break;
        case 'w':
            options.warm_up_seconds = atof(optarg);
            break;
        case 'D':
            options.drain_seconds = atof(optarg);
            break;
        case 't':
            options.timeout_seconds = atof(optarg);
            break;
        case 's':
            options.is_stream = 1;
            break;
        case 'W':
            watch(atoi(optarg));
            break;
        case 'x':
            options.dumps = 1;
            break;
        default:
            give_up("see the comment at the top of loadgen.c");
        }
    }
    if (!options.method) {
        options.method = options.body ? "POST" : "GET";
    }
    address.sin_family = AF_INET;
    address.sin_port = htons(options.port);
    if (inet_pton(AF_INET, options.host, &address.sin_addr) != 1) {
        give_up("--host must be an IPv4 address");
    }
}

/* Copy a body, with ten digits in place of each "%N%". Note their places relative to its start.
 */
static char *with_counters(const char *body, size_t *bytes) {
    char *copy = malloc(strlen(body) * 4 + 1);
    size_t size = 0;
    while (*body) {
        if (!strncmp(body, "%N%", 3) && counter_count < COUNTERS_MAX) {
            counters[counter_count++] = size;
            memset(copy + size, '0', COUNTER_DIGITS);
            size += COUNTER_DIGITS;
            body += 3;
        } else {
            copy[size++] = *body++;
        }
    }
    *bytes = size;
    return copy;
}

static void build_request(void) {
    size_t body_bytes = 0;
    char *body = options.body ? with_counters(options.body, &body_bytes) : NULL;
    size_t capacity = 4096 + strlen(options.path) + body_bytes;
    for (int i = 0; i < options.header_count; i++) {
        capacity += strlen(options.headers[i]) + 2;
    }
    request = malloc(capacity);
    size_t size = sprintf(request,
                          "%s %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: loadgen\r\n"
                          "Accept: */*\r\n",
                          options.method, options.path, options.host, options.port);
    for (int i = 0; i < options.header_count; i++) {
        size += sprintf(request + size, "%s\r\n", options.headers[i]);
    }
    if (body) {
        size += sprintf(request + size,
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n", body_bytes);
    }
    size += sprintf(request + size, "\r\n");
    for (int i = 0; i < counter_count; i++) {
        counters[i] += size;
    }
    if (body) {
        memcpy(request + size, body, body_bytes);
        free(body);
    }
    request_bytes = size + body_bytes;
    if (counter_count && request_bytes > COUNTED_REQUEST_MAX) {
        give_up("a body with %N% must be smaller than 1 MB");
    }
}

#endif
