/* An OpenAI-compatible server that costs nearly nothing, as the upstream of proxies to measure.
 * One thread, epoll, Linux only.
 *
 *     cc -O2 -std=gnu11 -o mock_upstream mock_upstream.c
 *     ./mock_upstream --port 9100 --coalesce 16
 *
 * GET  .../models            a list of one model, `mock`
 * GET  anything else         200, so that routers consider it healthy
 * POST .../chat/completions  a whole answer of 600 bytes, or a stream if the body has
 *                            "stream":true. Two fields that every gateway forwards select the
 *                            stream: `max_tokens` is its number of events, and `seed` the
 *                            microseconds between them.
 *
 * The first event is sent at once, and event number k is due k gaps later. Each event contains
 * "@" and the time of its creation (CLOCK_MONOTONIC in ns). With --coalesce K, up to K events of
 * a stream without gaps are one write, as of an engine that runs ahead of its clients.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>

#include "answers.h"
#include "requests.h"
#include "timers.h"

#define EVENTS_PER_WAIT 512
#define ACCEPTS_PER_TURN 256
#define BACKLOG 4096
#define RECEIVE_BYTES 16384
#define REQUEST_MAX_BYTES (64 << 20)
/* Events of a stream without gaps in one turn, so that streams share the thread. */
#define BURST_EVENTS 16
#define DEFAULT_EVENTS 128

static int port = 9100;
static int coalesced = 1;
static int epoll;
static connection *dead;

static void answer_requests(connection *c);

static void end_connection(connection *c) {
    if (!c->is_dead) {
        c->is_dead = 1;
        c->next_dead = dead;
        dead = c;
        heap_remove(c);
        close(c->fd);
    }
}

static void free_dead(void) {
    while (dead) {
        connection *c = dead;
        dead = c->next_dead;
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void wait_for_write(connection *c, int waits) {
    if (c->waits_for_write != waits) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (waits ? EPOLLOUT : 0),
                                    .data.ptr = c};
        c->waits_for_write = waits;
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
    }
}

/* Send bytes, and keep those that the socket does not take. Return 0 if the connection ended. */
static int write_bytes(connection *c, const char *bytes, size_t size) {
    if (!c->out_size) {
        ssize_t sent = send(c->fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            end_connection(c);
            return 0;
        }
        bytes += sent > 0 ? sent : 0;
        size -= sent > 0 ? sent : 0;
        if (!size) {
            return 1;
        }
    }
    size_t end = c->out_start + c->out_size;
    if (end + size > c->out_capacity) {
        c->out_capacity = (end + size) * 2;
        c->out = realloc(c->out, c->out_capacity);
    }
    memcpy(c->out + end, bytes, size);
    c->out_size += size;
    wait_for_write(c, 1);
    return 1;
}

/* Send the bytes that were kept. */
static void flush_bytes(connection *c) {
    ssize_t sent = send(c->fd, c->out + c->out_start, c->out_size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        end_connection(c);
        return;
    }
    c->out_start += sent > 0 ? sent : 0;
    c->out_size -= sent > 0 ? sent : 0;
    if (!c->out_size) {
        c->out_start = 0;
        wait_for_write(c, 0);
    }
}

/* An answer is complete: close the connection, or answer the next request. */
static void end_answer(connection *c) {
    c->is_streaming = 0;
    heap_remove(c);
    if (c->is_answering) {
        /* The caller continues. */
        return;
    }
    if (c->closes && !c->out_size) {
        end_connection(c);
    } else if (c->in_size) {
        answer_requests(c);
    }
}

/* Send the events of a stream that are due. */
static void send_events(connection *c, ns_t now) {
    static char burst[BURST_EVENTS * EVENT_MAX_BYTES];
    int written = 0;
    while (c->events_left && c->due <= now && written < BURST_EVENTS && !c->out_size) {
        char *end = burst;
        int together = c->gap ? 1 : coalesced;
        for (int i = 0; i < together && c->events_left; i++) {
            end = write_event(end, --c->events_left == 0);
            c->due += c->gap;
            written++;
        }
        if (!write_bytes(c, burst, end - burst)) {
            return;
        }
    }
    if (!c->events_left) {
        end_answer(c);
    } else if (c->out_size) {
        /* It continues when the socket takes bytes again. */
        heap_remove(c);
    } else {
        if (!c->gap) {
            /* All streams that wait have their turn first. */
            c->due = now + 1;
        }
        heap_update(c);
    }
}

static void start_answer(connection *c, const char *head, const char *body, size_t body_size) {
    size_t line_size = strcspn(head, "\r");
    if (*head == 'G' || *head == 'H') {
        answer *a = memmem(head, line_size, "/models", 7) ? &models : &fine;
        write_bytes(c, a->bytes, a->size);
    } else if (!json_number(body, body_size, "\"stream\"", 0)) {
        write_bytes(c, whole.bytes, whole.size);
    } else {
        c->events_left = json_number(body, body_size, "\"max_tokens\"", DEFAULT_EVENTS);
        c->gap = json_number(body, body_size, "\"seed\"", 0) * 1000;
        c->due = now_ns();
        c->is_streaming = 1;
        if (write_bytes(c, STREAM_HEAD, LENGTH(STREAM_HEAD)) && !c->out_size) {
            send_events(c, c->due);
        }
    }
}

/* Answer the first request if it is complete. Return the bytes that it occupied, or 0. */
static size_t answer_one(connection *c, char *head, size_t size) {
    char *blank = memmem(head, size, "\r\n\r\n", 4);
    if (!blank) {
        return 0;
    }
    size_t head_size = blank + 4 - head;
    char *body = head + head_size;
    size_t body_size = 0;
    size_t used = 0;
    const char *field = find_header(head, head_size, "transfer-encoding");
    if (field && !strncasecmp(field, "chunked", 7)) {
        used = decode_chunks(body, size - head_size, &body_size);
        if (!used) {
            return 0;
        }
    } else {
        field = find_header(head, head_size, "content-length");
        body_size = field ? strtoul(field, NULL, 10) : 0;
        used = body_size;
    }
    if (size < head_size + used) {
        if (size == head_size && find_header(head, head_size, "expect")) {
            write_bytes(c, CONTINUE, LENGTH(CONTINUE));
        }
        return 0;
    }
    field = find_header(head, head_size, "connection");
    c->closes = field && !strncasecmp(field, "close", 5);
    start_answer(c, head, body, body_size);
    return head_size + used;
}

static void answer_requests(connection *c) {
    size_t used = 0;
    c->is_answering = 1;
    while (!c->is_dead && !c->is_streaming && used < c->in_size) {
        size_t one = answer_one(c, c->in + used, c->in_size - used);
        used += one;
        if (!one) {
            break;
        }
    }
    c->is_answering = 0;
    if (c->is_dead) {
        return;
    }
    c->in_size -= used;
    memmove(c->in, c->in + used, c->in_size);
    if (c->closes && !c->is_streaming && !c->out_size) {
        end_connection(c);
    }
}

static void on_readable(connection *c) {
    for (;;) {
        if (c->in_capacity - c->in_size < RECEIVE_BYTES) {
            c->in_capacity = c->in_capacity * 2 + 2 * RECEIVE_BYTES;
            c->in = realloc(c->in, c->in_capacity);
        }
        /* One byte remains for a NUL, at which the functions for strings stop. */
        size_t room = c->in_capacity - c->in_size - 1;
        ssize_t size = recv(c->fd, c->in + c->in_size, room, 0);
        if (size < 0 && errno == EAGAIN) {
            break;
        }
        if (size <= 0 || c->in_size > REQUEST_MAX_BYTES) {
            end_connection(c);
            return;
        }
        c->in_size += size;
        c->in[c->in_size] = 0;
        if ((size_t)size < room) {
            break;
        }
    }
    if (!c->is_streaming) {
        answer_requests(c);
    }
}

static void on_writable(connection *c) {
    flush_bytes(c);
    if (c->is_dead || c->out_size) {
        return;
    }
    if (c->is_streaming) {
        send_events(c, now_ns());
    } else if (c->closes) {
        end_connection(c);
    }
}

static void accept_connections(int listener) {
    int on = 1;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->place = NOT_IN_HEAP;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = c};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

static void handle(connection *c, uint32_t ready) {
    if (!c->is_dead && ready & (EPOLLHUP | EPOLLERR)) {
        end_connection(c);
    }
    if (!c->is_dead && ready & (EPOLLIN | EPOLLRDHUP)) {
        on_readable(c);
    }
    if (!c->is_dead && ready & EPOLLOUT) {
        on_writable(c);
    }
}

/* Give one turn to every stream that is due now. */
static void send_due_events(void) {
    ns_t now = now_ns();
    int turns = heap_size;
    while (turns-- && heap_size && heap[0]->due <= now) {
        send_events(heap[0], now);
    }
}

static int listen_on_port(void) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, BACKLOG)) {
        perror("mock_upstream");
        exit(1);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    return listener;
}

static void read_options(int count, char **arguments) {
    static const struct option known[] = {{"port", required_argument, 0, 'p'},
                                          {"coalesce", required_argument, 0, 'k'},
                                          {0, 0, 0, 0}};
    int option;
    while ((option = getopt_long(count, arguments, "", known, NULL)) != -1) {
        switch (option) {
        case 'p':
            port = atoi(optarg);
            break;
        case 'k':
            coalesced = atoi(optarg);
            break;
        default:
            exit(2);
        }
    }
    if (coalesced < 1 || coalesced > BURST_EVENTS) {
        fprintf(stderr, "--coalesce must be between 1 and %d\n", BURST_EVENTS);
        exit(2);
    }
}

int main(int count, char **arguments) {
    static struct epoll_event ready[EVENTS_PER_WAIT];
    read_options(count, arguments);
    build_answers();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on_port();
    for (;;) {
        struct timespec wait;
        if (heap_size) {
            ns_t left = heap[0]->due - now_ns();
            left = left > 0 ? left : 0;
            wait = (struct timespec){left / NS_PER_SECOND, left % NS_PER_SECOND};
        }
        int found = epoll_wait_ns(epoll, ready, EVENTS_PER_WAIT, heap_size ? &wait : NULL);
        for (int i = 0; i < found; i++) {
            if (ready[i].data.ptr) {
                handle(ready[i].data.ptr, ready[i].events);
            } else {
                accept_connections(listener);
            }
        }
        send_due_events();
        free_dead();
    }
}
