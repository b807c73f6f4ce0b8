/* A load generator for OpenAI-compatible servers: plain responses and event streams, over
 * HTTP/1.1 with connections that are kept. One thread, epoll, Linux only.
 *     cc -O2 -std=gnu11 -o loadgen loadgen.c
 *     ./loadgen --port 8000 --data '{"model":"m","messages":[]}' -c 64 -d 3 --watch-pid 123
 *
 * Each connection sends the next request when its response is complete. With --rate, requests are
 * due at even intervals instead, an idle connection takes each one, and all times count from the
 * moment at which the request was due: a slow server cannot reduce the number of measurements.
 *
 *   --host A (127.0.0.1)   --port N (8000)   --path P (/v1/chat/completions)
 *   --method M (POST with a body, otherwise GET)
 *   --data TEXT            JSON body; each "%N%" in it is replaced by the request's number
 *   --header 'K: V'        repeatable
 *   -c, --concurrency N    connections (1)       --ramp-ms N  time in which they are opened (0)
 *   --rate R               requests per second (0: as many as the connections can)
 *   --warmup S (0.5)       excluded from all figures, as is the ramp
 *   -d, --duration S (5)   the measured time
 *   -n, --count N          end after N requests instead; ramp and warm-up are not excluded
 *   --drain S (5)          time for requests in flight at the end, which are not counted
 *   --timeout S (30)       of each request
 *   --stream               the response is an event stream, and must contain "[DONE]"
 *   --watch-pid P          report CPU time and memory of P and its descendants; repeatable
 *   --dump                 print the first response to stderr
 *
 * Prints one JSON object. Times are milliseconds, memory is in units of 1,000,000 bytes.
 *   ok, rps     complete responses with status 2xx
 *   lat, ttfb   from the request to the end, and to the first byte of the body
 *   gap         between successive events of a stream; events that arrive together have gap 0
 *   transit     from the creation of an event to its arrival, from the stamp "@<CLOCK_MONOTONIC
 *               ns>" in it
 *   errors      connect, io (closed early), status (not 2xx), timeout, proto, short (no "[DONE]")
 *   self_cpu_s  the generator's own CPU time, which shows if it was the bottleneck
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>

#include "response.h"
#include "results.h"

#define EVENTS_PER_WAIT 512
#define RECEIVE_BYTES (1 << 18)
#define RECEIVES_PER_TURN 4
#define MEMORY_INTERVAL (250 * NS_PER_MS)
#define TIMEOUT_INTERVAL (200 * NS_PER_MS)
#define MAX_WAIT (20 * NS_PER_MS)
#define RAMP_WAIT NS_PER_MS
/* Pause after a refused connection, so that a server that is not there causes no busy loop. */
#define REFUSED_PAUSE (2 * NS_PER_MS)

static connection *connections;
static int opened;
static int *idle;
static int idle_count;
static int epoll;
static ns_t started_at;
static int is_closing;
static double next_due;
static uint64_t next_number;
static volatile sig_atomic_t is_interrupted;

static void start_request(connection *c, ns_t due_at);

static void watch_socket(connection *c, int operation, int waits_for_write) {
    struct epoll_event event = {.events = EPOLLIN | (waits_for_write ? EPOLLOUT : 0),
                                .data.u32 = c - connections};
    epoll_ctl(epoll, operation, c->fd, &event);
    c->waits_for_write = waits_for_write;
}

static void disconnect(connection *c) {
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
    c->is_reused = 0;
}

static int is_enough(ns_t now) {
    return options.count ? next_number >= options.count : now >= window_end;
}

/* A request has ended, well or badly. */
static void end_request(connection *c, ns_t now) {
    in_flight--;
    ended++;
    if (options.rate > 0 || is_closing || is_enough(now)) {
        c->state = IDLE;
        idle[idle_count++] = c - connections;
    } else {
        start_request(c, now);
    }
}

static void fail(connection *c, uint64_t *kind, ns_t now) {
    if (counts(now)) {
        (*kind)++;
    }
    disconnect(c);
    if (kind == &errors.connect && options.rate <= 0) {
        struct timespec pause = {0, REFUSED_PAUSE};
        nanosleep(&pause, NULL);
    }
    end_request(c, now);
}

static void complete(connection *c, ns_t now) {
    if (counts(now)) {
        if (c->status / 100 != 2) {
            errors.status++;
            last_bad_status = c->status;
        } else if (options.is_stream && !c->is_done) {
            errors.incomplete++;
        } else {
            ok++;
            histogram_add(&latencies, now - c->sent_at);
            if (c->first_byte_at) {
                histogram_add(&first_bytes, c->first_byte_at - c->sent_at);
            }
        }
    }
    options.dumps = 0;
    c->is_reused = 1;
    if (c->closes || c->framing == UNTIL_CLOSE) {
        disconnect(c);
    }
    end_request(c, now);
}

/* Return the bytes of a request with its number in it. */
static const char *numbered(uint64_t number) {
    static char copy[COUNTED_REQUEST_MAX];
    char digits[COUNTER_DIGITS + 16];
    if (!counter_count) {
        return request;
    }
    memcpy(copy, request, request_bytes);
    snprintf(digits, sizeof digits, "%0*llu", COUNTER_DIGITS, (unsigned long long)number);
    for (int i = 0; i < counter_count; i++) {
        memcpy(copy + counters[i], digits, COUNTER_DIGITS);
    }
    return copy;
}

static void send_request(connection *c) {
    const char *bytes = numbered(c->number);
    while (c->sent_bytes < request_bytes) {
        ssize_t sent =
            send(c->fd, bytes + c->sent_bytes, request_bytes - c->sent_bytes, MSG_NOSIGNAL);
        if (sent >= 0) {
            c->sent_bytes += sent;
        } else if (errno == EAGAIN) {
            if (!c->waits_for_write) {
                watch_socket(c, EPOLL_CTL_MOD, 1);
            }
            return;
        } else {
            fail(c, &errors.io, now_ns());
            return;
        }
    }
    if (c->waits_for_write) {
        watch_socket(c, EPOLL_CTL_MOD, 0);
    }
    c->state = IN_HEAD;
}

static void start_request(connection *c, ns_t due_at) {
    c->due_at = due_at;
    c->sent_at = options.rate > 0 ? due_at : now_ns();
    c->first_byte_at = 0;
    c->last_event_at = 0;
    c->head_bytes = 0;
    c->sent_bytes = 0;
    c->line_state = LINE_START;
    c->is_done = 0;
    c->number = next_number++;
    in_flight++;
    if (c->fd >= 0) {
        c->state = SENDING;
        send_request(c);
        return;
    }
    int on = 1;
    c->is_reused = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        give_up("too many connections: the limit of open files is lower");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) {
        fail(c, &errors.connect, now_ns());
        return;
    }
    c->state = CONNECTING;
    watch_socket(c, EPOLL_CTL_ADD, 1);
}

static void finish_connecting(connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail(c, &errors.connect, now_ns());
        return;
    }
    c->state = SENDING;
    send_request(c);
}

static void on_closed(connection *c, int is_clean, ns_t now) {
    if (c->state == IDLE) {
        disconnect(c);
    } else if (is_clean && c->state == IN_BODY && c->framing == UNTIL_CLOSE) {
        complete(c, now);
    } else if (c->is_reused && c->state != IN_BODY && !c->head_bytes) {
        /* The server has closed a kept connection while it was idle, which is not an error. */
        disconnect(c);
        in_flight--;
        next_number--;
        start_request(c, c->due_at);
    } else {
        fail(c, &errors.io, now);
    }
}

static void on_readable(connection *c) {
    static char received[RECEIVE_BYTES];
    for (int turn = 0; turn < RECEIVES_PER_TURN; turn++) {
        ssize_t size = recv(c->fd, received, sizeof received, 0);
        if (size < 0 && errno == EAGAIN) {
            return;
        }
        ns_t now = now_ns();
        if (size <= 0) {
            on_closed(c, size == 0, now);
            return;
        }
        bytes_received += size;
        if (c->state == IDLE) {
            disconnect(c);
            return;
        }
        int result = parse_response(c, received, size, now);
        if (result > 0) {
            complete(c, now);
            return;
        }
        if (result < 0) {
            fail(c, &errors.proto, now);
            return;
        }
        if (size < (ssize_t)sizeof received) {
            return;
        }
    }
}

static void start_due_requests(ns_t now) {
    while (opened < options.connections && !is_enough(now)) {
        double due = started_at + options.ramp_ms * NS_PER_MS * opened / options.connections;
        if (now < due) {
            break;
        }
        start_request(&connections[opened++], now);
    }
    while (options.rate > 0 && idle_count && next_due <= now && !is_closing && !is_enough(now)) {
        start_request(&connections[idle[--idle_count]], (ns_t)next_due);
        next_due += NS_PER_SECOND / options.rate;
    }
}

static void fail_late_requests(ns_t now) {
    static ns_t next_check;
    if (now < next_check) {
        return;
    }
    next_check = now + TIMEOUT_INTERVAL;
    for (int i = 0; i < opened; i++) {
        connection *c = &connections[i];
        if (c->state != IDLE && now - c->sent_at > options.timeout_seconds * NS_PER_SECOND) {
            fail(c, &errors.timeout, now);
        }
    }
}

/* Begin and end the measured window, and note what the watched processes use in it. */
static void update_window(ns_t now) {
    static double cpu_at_start;
    static uint64_t bytes_at_start;
    static ns_t next_memory;
    if (!is_in_window && now >= window_start) {
        find_members();
        for (tree *t = watched; t < watched + watched_count; t++) {
            t->cpu_at_start = tree_cpu(t);
        }
        cpu_at_start = own_cpu();
        bytes_at_start = bytes_received;
        is_in_window = 1;
        window_start = now_ns();
        window_end = window_start + window_size();
    }
    int is_over = is_in_window && (options.count ? ended >= options.count : now >= window_end);
    if (is_in_window && !is_closing && (is_over || now >= next_memory)) {
        note_memory();
        next_memory = now + MEMORY_INTERVAL;
    }
    if (!is_closing && (is_over || is_interrupted)) {
        is_closing = 1;
        window_end = now;
        for (tree *t = watched; t < watched + watched_count; t++) {
            t->cpu_at_end = tree_cpu(t);
        }
        print_result(own_cpu() - cpu_at_start, bytes_received - bytes_at_start);
    }
}

static struct timespec time_to_wait(ns_t now) {
    ns_t wait = opened < options.connections ? RAMP_WAIT : MAX_WAIT;
    if (options.rate > 0 && idle_count && !is_closing && next_due - now < wait) {
        wait = next_due - now;
    }
    if (!is_closing && window_end - now < wait) {
        wait = window_end - now;
    }
    return (struct timespec){0, wait > 0 ? wait : 0};
}

static void wait_for_events(void) {
    static struct epoll_event ready[EVENTS_PER_WAIT];
    struct timespec wait = time_to_wait(now_ns());
    int count = epoll_wait_ns(epoll, ready, EVENTS_PER_WAIT, &wait);
    for (int i = 0; i < count; i++) {
        connection *c = &connections[ready[i].data.u32];
        if (c->fd < 0) {
            continue;
        }
        if (c->state == CONNECTING) {
            finish_connecting(c);
            continue;
        }
        if (ready[i].events & EPOLLOUT && c->state == SENDING) {
            send_request(c);
        }
        if (c->fd >= 0 && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
            on_readable(c);
        }
    }
}

static void on_signal(int number) {
    (void)number;
    is_interrupted = 1;
}

static void prepare(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    connections = calloc(options.connections, sizeof *connections);
    idle = calloc(options.connections, sizeof *idle);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    started_at = now_ns();
    double before = options.count ? 0 : options.warm_up_seconds + options.ramp_ms / 1000;
    window_start = started_at + (ns_t)(before * NS_PER_SECOND);
    window_end = window_start + window_size();
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
    }
    if (options.rate > 0) {
        while (opened < options.connections) {
            idle[idle_count++] = opened++;
        }
        next_due = started_at;
    }
}

int main(int count, char **arguments) {
    read_options(count, arguments);
    build_request();
    prepare();
    ns_t last = 0;
    while (!is_closing || (in_flight && !is_interrupted && now_ns() < last)) {
        ns_t now = now_ns();
        update_window(now);
        if (!is_closing) {
            start_due_requests(now);
            last = window_end + (ns_t)(options.drain_seconds * NS_PER_SECOND);
        }
        fail_late_requests(now);
        wait_for_events();
    }
    printf("\"drained\":%s}\n", in_flight ? "false" : "true");
    return 0;
}
