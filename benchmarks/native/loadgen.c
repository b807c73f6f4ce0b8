/* loadgen.c - a cheap HTTP/1.1 keep-alive load generator for OpenAI-style endpoints (plain JSON
 * and SSE streams).
 *
 * One thread, epoll, Linux only, C11, no dependencies.   gcc -O2 -Wall -Wextra -o loadgen
 * loadgen.c
 *
 * Closed loop by default: each of -c connections sends the next request when the last response is
 * complete. With --rate R it is an open loop: R requests/s are due at even intervals, taken by an
 * idle connection, and every latency counts from the instant the request was due (no coordinated
 * omission).
 *
 * Flags
 *   --host A (127.0.0.1) --port N (8000)   --path P (/v1/chat/completions)   --method M (POST;
 * GET without a body)
 *   --auth TOKEN        sends "Authorization: Bearer TOKEN"      --header 'K: V' (repeatable)
 *   --body FILE | --data STRING        request body; Content-Type: application/json unless a
 * --header gives one
 *   --vary              appends " #<n>" style uniqueness: replaces every "%N%" in the body by a
 * 10-digit request number -c, --concurrency N (1)    --ramp-ms N (0: connections start spread
 * over that time)    --rate R (0 = closed loop) -d, --duration S (5)  |  -n, --count N --warmup S
 * (0.5: excluded from every figure)
 *   --drain S (5: how long requests in flight at the end may finish; they are not counted)
 *   --timeout S (30: per request)       --stream (expect SSE: a response without "[DONE]" is an
 * error)
 *   --no-done           with --stream: do not require [DONE]      --no-keepalive (a connection
 * per request)
 *   --watch-pid P       (repeatable) report CPU seconds over the window and peak RSS of P and all
 * its descendants
 *   --label TEXT        copied into the result       --dump  print the first response to stderr
 * Output: one JSON object on stdout. Times are milliseconds. "window_s" is the measured time.
 *   ok/rps: complete 2xx responses in the window.   lat: request sent -> response complete.
 *   ttfb: request sent -> first body byte.          events/events_per_s: SSE "data:" lines
 * (without [DONE]). gap: time between successive events of one stream (events that arrive in one
 * read count as 0). transit: arrival minus the "@<CLOCK_MONOTONIC ns>" stamp that mock_upstream
 * puts in each event. errors by kind: connect, io (closed or reset early), status (non-2xx),
 * timeout, proto, short (stream without [DONE]). self_cpu_s: the generator's own CPU, so that a
 * saturated generator shows.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef int64_t ns_t;

static ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- log-linear histogram, 64 steps per power of two (<= 1.6 % error) ---- */
#define HB (64 * 44)

typedef struct {
    uint64_t n, b[HB];
    double sum;
    ns_t max, min;
} hist;

static void h_add(hist *h, ns_t v) {
    if (v < 0) {
        v = 0;
    }
    if (!h->n || v < h->min) {
        h->min = v;
    }
    if (v > h->max) {
        h->max = v;
    }
    h->n++;
    h->sum += v;
    int i;
    if (v < 64) {
        i = v;
    } else {
        int e = 63 - __builtin_clzll(v);
        i = (e - 5) * 64 + (int)((v >> (e - 6)) & 63);
    }
    if (i >= HB) {
        i = HB - 1;
    }
    h->b[i]++;
}

static double h_q(const hist *h, double q) {
    if (!h->n) {
        return 0;
    }
    uint64_t want = q * h->n, s = 0;
    if (want >= h->n) {
        want = h->n - 1;
    }
    for (int i = 0; i < HB; i++) {
        s += h->b[i];
        if (s > want) {
            if (i < 64) {
                return i;
            }
            int e = i / 64 + 5;
            double lo = (double)((64ULL + i % 64)) * (1ULL << (e - 6));
            double v = lo + (1ULL << (e - 6)) / 2.0;
            return v > h->max ? h->max : v;
        }
    }
    return h->max;
}

static void h_json(const char *name, const hist *h, int last) {
    printf("\"%s\":{\"n\":%llu,\"mean\":%.4f,\"min\":%.4f,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,"
           "\"p999\":%.4f,\"max\":%.4f}%s",
           name, (unsigned long long)h->n, h->n ? h->sum / h->n / 1e6 : 0, h->min / 1e6,
           h_q(h, .5) / 1e6, h_q(h, .9) / 1e6, h_q(h, .99) / 1e6, h_q(h, .999) / 1e6,
           h->max / 1e6, last ? "" : ",");
}

static hist H_lat, H_ttfb, H_gap, H_transit;

/* ---- options ---- */
static const char *o_host = "127.0.0.1", *o_path = "/v1/chat/completions", *o_method = NULL,
                  *o_auth, *o_label = "";
static int o_port = 8000, o_conc = 1, o_stream, o_nodone, o_nokeep, o_dump, o_vary;
static long o_count;
static double o_dur = 5, o_warm = .5, o_drain = 5, o_timeout = 30, o_rate, o_ramp_ms;
static const char *o_hdr[32];
static int n_hdr;
static int o_pid[16], n_pid;

/* ---- connections ---- */
enum { S_IDLE, S_CONNECT, S_SEND, S_HEAD, S_BODY };

enum { B_LEN, B_CHUNK, B_CLOSE };

enum { C_SIZE, C_DATA, C_CRLF, C_TRAIL };

typedef struct {
    int fd, state, body, cst, status, conn_close, out_on;
    uint64_t left;
    size_t out_off;
    char hdr[8192];
    int hdr_n;
    ns_t due, sent_at, first_at, last_ev;
    int counted;
    uint64_t reqno;
    int line; /* SSE: 0..5 = characters of "data:" matched at line start, 6 = in data line before
                 '@', 7 = digits, 8 = skip line, 9 = data line, just after "data:" */
    uint64_t stamp;
    int dn, done, trail_n;
    int sz_seen;
    int reused;
} conn;

static conn *cs;
static int ep;
static char *req;
static size_t req_n;
static uint64_t next_req;
static size_t vary_off[64];
static int n_vary;
static struct sockaddr_in addr;
static ns_t t_start, t_from, t_to;
static int closing;
static int in_flight;
static uint64_t ok, err_connect, err_io, err_status, err_timeout, err_proto, err_short, events,
    ev_done, bytes_in, started, all_done, last_bad;
static int bad_status;
static int *idle;
static int n_idle;
static double next_due;

static int in_window(ns_t t) {
    return t >= t_from && t < t_to;
}

static void ep_set(conn *c, int op, int out) {
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.u32 = c - cs};
    epoll_ctl(ep, op, c->fd, &e);
    c->out_on = out;
}

static void start_request(conn *c, ns_t due);

static void drop(conn *c) {
    if (c->fd >= 0) {
        close(c->fd);
        c->fd = -1;
    }
    c->reused = 0;
}

static void go_idle(conn *c) {
    c->state = S_IDLE;
    idle[n_idle++] = c - cs;
}

static int more_wanted(ns_t t) {
    if (closing) {
        return 0;
    }
    if (o_count) {
        return (long)started < o_count;
    }
    return t < t_to;
}

static void finished(conn *c, ns_t t) { /* a request ended, well or badly */
    in_flight--;
    all_done++;
    if (o_rate > 0 || !more_wanted(t)) {
        go_idle(c);
    } else {
        start_request(c, t);
    }
}

static void fail(conn *c, uint64_t *kind, ns_t t) {
    if (in_window(t) || o_count) {
        (*kind)++;
    } else {
        last_bad++;
    }
    drop(c);
    if (kind == &err_connect && o_rate <= 0) { /* do not spin on a dead port */
        struct timespec z = {0, 2000000};
        nanosleep(&z, NULL);
    }
    finished(c, t);
}

static void try_send(conn *c) {
    char *r = req;
    static char vbuf[1 << 20];
    if (n_vary) {
        r = vbuf;
        memcpy(vbuf, req, req_n);
        char d[16];
        snprintf(d, sizeof d, "%010llu", (unsigned long long)c->reqno);
        for (int i = 0; i < n_vary; i++) {
            memcpy(vbuf + vary_off[i], d, 10);
        }
    }
    while (c->out_off < req_n) {
        ssize_t w = send(c->fd, r + c->out_off, req_n - c->out_off, MSG_NOSIGNAL);
        if (w > 0) {
            c->out_off += w;
            continue;
        }
        if (w < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!c->out_on) {
                ep_set(c, EPOLL_CTL_MOD, 1);
            }
            return;
        }
        fail(c, &err_io, now_ns());
        return;
    }
    if (c->out_on) {
        ep_set(c, EPOLL_CTL_MOD, 0);
    }
    c->state = S_HEAD;
}

static void start_request(conn *c, ns_t due) {
    c->due = due;
    c->sent_at = o_rate > 0 ? due : now_ns();
    c->first_at = 0;
    c->last_ev = 0;
    c->hdr_n = 0;
    c->out_off = 0;
    c->line = 0;
    c->done = 0;
    c->conn_close = 0;
    c->reqno = next_req++;
    started++;
    in_flight++;
    if (c->fd < 0) {
        c->reused = 0;
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        int one = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(c->fd, (void *)&addr, sizeof addr) && errno != EINPROGRESS) {
            fail(c, &err_connect, now_ns());
            return;
        }
        c->state = S_CONNECT;
        ep_set(c, EPOLL_CTL_ADD, 1);
        return;
    }
    c->state = S_SEND;
    try_send(c);
}

static void complete(conn *c, ns_t t) {
    int good = c->status >= 200 && c->status < 300;
    if (in_window(t) || o_count) {
        if (!good) {
            err_status++;
            bad_status = c->status;
        } else if (o_stream && !o_nodone && !c->done) {
            err_short++;
        } else {
            ok++;
            h_add(&H_lat, t - c->sent_at);
            if (c->first_at) {
                h_add(&H_ttfb, c->first_at - c->sent_at);
            }
        }
    }
    if (c->conn_close || o_nokeep || c->body == B_CLOSE) {
        drop(c);
    } else {
        c->reused = 1;
    }
    finished(c, t);
}

static void sse_event(conn *c, ns_t t) {
    if (in_window(t) || o_count) {
        events++;
        if (c->last_ev) {
            h_add(&H_gap, t - c->last_ev);
        }
    }
    c->last_ev = t;
}

static void sse(conn *c, const char *p, size_t n, ns_t t) {
    static const char D[] = "data:";
    const char *e = p + n;
    while (p < e) {
        switch (c->line) {
        case 0:
        case 1:
        case 2:
        case 3:
        case 4:
            if (*p == D[c->line]) {
                c->line++;
                p++;
                if (c->line == 5) {
                    c->line = 9;
                }
            } else if (*p == '\n') {
                c->line = 0;
                p++;
            } else {
                c->line = 8;
            }
            break;
        case 9:
            if (*p == ' ') {
                p++;
                break;
            }
            if (*p == '[') {
                c->done = 1;
                ev_done++;
                c->line = 8;
            } else {
                sse_event(c, t);
                c->line = 6;
            }
            break;
        case 6: {
            const char *q = p;
            while (q < e && *q != '@' && *q != '\n') {
                q++;
            }
            if (q == e) {
                p = e;
                break;
            }
            p = q + 1;
            if (*q == '\n') {
                c->line = 0;
            } else {
                c->line = 7;
                c->stamp = 0;
                c->dn = 0;
            }
            break;
        }
        case 7:
            while (p < e && (unsigned)(*p - '0') < 10) {
                c->stamp = c->stamp * 10 + (*p - '0');
                c->dn++;
                p++;
            }
            if (p < e) {
                if (c->dn > 8 && (in_window(t) || o_count)) {
                    h_add(&H_transit, t - (ns_t)c->stamp);
                }
                c->line = 8;
            }
            break;
        default: {
            const char *q = memchr(p, '\n', e - p);
            if (!q) {
                return;
            }
            p = q + 1;
            c->line = 0;
        }
        }
    }
}

static void body_bytes(conn *c, const char *p, size_t n, ns_t t) {
    if (!n) {
        return;
    }
    if (!c->first_at) {
        c->first_at = t;
    }
    if (o_dump == 1) {
        fwrite(p, 1, n, stderr);
    }
    if (o_stream) {
        sse(c, p, n, t);
    }
}

static char *hfind(char *h, const char *name) {
    size_t n = strlen(name);
    for (char *p = h; (p = strchr(p, '\n'));) {
        p++;
        if (!strncasecmp(p, name, n) && p[n] == ':') {
            p += n + 1;
            while (*p == ' ') {
                p++;
            }
            return p;
        }
    }
    return NULL;
}

/* returns 1 when the response is complete, -1 on a protocol error */
static int feed(conn *c, const char *p, size_t n, ns_t t) {
    const char *e = p + n;
    if (c->state == S_HEAD) {
        size_t old = c->hdr_n, take = n;
        if (old + take > sizeof c->hdr - 1) {
            take = sizeof c->hdr - 1 - old;
        }
        memcpy(c->hdr + old, p, take);
        c->hdr[old + take] = 0;
        char *he = memmem(c->hdr, old + take, "\r\n\r\n", 4);
        if (!he) {
            c->hdr_n = old + take;
            return c->hdr_n >= (int)sizeof c->hdr - 1 ? -1 : 0;
        }
        size_t hn = he + 4 - c->hdr;
        p += hn - old;
        he[2] = 0;
        if (strncmp(c->hdr, "HTTP/1.", 7)) {
            return -1;
        }
        c->status = atoi(c->hdr + 9);
        if (c->status == 100) {
            c->hdr_n = 0;
            return p < e ? feed(c, p, e - p, t) : 0;
        }
        if (o_dump == 1) {
            fprintf(stderr, "%s\n", c->hdr);
        }
        char *v = hfind(c->hdr, "connection");
        c->conn_close = v && !strncasecmp(v, "close", 5);
        if (c->hdr[7] == '0' && !(v && !strncasecmp(v, "keep-alive", 10))) {
            c->conn_close = 1;
        }
        if ((v = hfind(c->hdr, "transfer-encoding")) && !strncasecmp(v, "chunked", 7)) {
            c->body = B_CHUNK;
            c->cst = C_SIZE;
            c->left = 0;
            c->sz_seen = 0;
        } else if ((v = hfind(c->hdr, "content-length"))) {
            c->body = B_LEN;
            c->left = strtoull(v, NULL, 10);
            if (!c->left) {
                return 1;
            }
        } else if (c->status == 204 || c->status == 304) {
            return 1;
        } else {
            c->body = B_CLOSE;
        }
        c->state = S_BODY;
    }
    if (c->body == B_LEN) {
        size_t k = e - p;
        if (k > c->left) {
            k = c->left;
        }
        body_bytes(c, p, k, t);
        c->left -= k;
        return c->left == 0;
    }
    if (c->body == B_CLOSE) {
        body_bytes(c, p, e - p, t);
        return 0;
    }
    while (p < e) {
        switch (c->cst) {
        case C_SIZE: {
            char ch = *p++;
            if (ch == '\n') {
                if (c->left) {
                    c->cst = C_DATA;
                } else {
                    c->cst = C_TRAIL;
                    c->trail_n = 0;
                }
            } else if (ch == ';' || ch == ' ') {
                c->sz_seen = 2;
            } else if (ch != '\r' && c->sz_seen != 2) {
                int d = ch >= '0' && ch <= '9'                 ? ch - '0'
                        : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10
                                                               : -1;
                if (d < 0) {
                    return -1;
                }
                c->left = c->left * 16 + d;
            }
            break;
        }
        case C_DATA: {
            size_t k = e - p;
            if (k > c->left) {
                k = c->left;
            }
            body_bytes(c, p, k, t);
            p += k;
            c->left -= k;
            if (!c->left) {
                c->cst = C_CRLF;
            }
            break;
        }
        case C_CRLF:
            if (*p++ == '\n') {
                c->cst = C_SIZE;
                c->left = 0;
                c->sz_seen = 0;
            }
            break;
        case C_TRAIL:
            if (*p == '\n') {
                p++;
                if (!c->trail_n) {
                    return 1;
                }
                c->trail_n = 0;
            } else {
                if (*p != '\r') {
                    c->trail_n++;
                }
                p++;
            }
            break;
        }
    }
    return 0;
}

static char rb[1 << 18];

static void on_in(conn *c) {
    for (int turn = 0; turn < 4; turn++) {
        ssize_t r = recv(c->fd, rb, sizeof rb, 0);
        if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return;
        }
        ns_t t = now_ns();
        if (r <= 0) {
            if (c->state == S_BODY && c->body == B_CLOSE && r == 0) {
                complete(c, t);
                return;
            }
            if (c->state == S_IDLE) {
                drop(c);
                return;
            }
            /* a kept-alive connection the server closed while idle: a fresh one is no error */
            if (c->state <= S_HEAD && c->reused && !c->hdr_n) {
                drop(c);
                in_flight--;
                started--;
                start_request(c, c->due);
                return;
            }
            fail(c, &err_io, t);
            return;
        }
        bytes_in += r;
        if (c->state == S_IDLE) {
            drop(c);
            return;
        }
        int k = feed(c, rb, r, t);
        if (k < 0) {
            fail(c, &err_proto, t);
            return;
        }
        if (k > 0) {
            if (o_dump == 1) {
                o_dump = 2;
                fputc('\n', stderr);
            }
            complete(c, t);
            return;
        }
        if (r < (ssize_t)sizeof rb) {
            return;
        }
    }
}

/* ---- watched processes ---- */
static int stat_of(int pid, int *ppid, double *cpu) {
    char p[64], b[1024];
    snprintf(p, sizeof p, "/proc/%d/stat", pid);
    FILE *f = fopen(p, "r");
    if (!f) {
        return 0;
    }
    size_t n = fread(b, 1, sizeof b - 1, f);
    fclose(f);
    b[n] = 0;
    char *q = strrchr(b, ')');
    if (!q) {
        return 0;
    }
    unsigned long u = 0, s = 0;
    char stc;
    if (sscanf(q + 2, "%c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &stc, ppid, &u, &s) <
        4) {
        return 0;
    }
    *cpu = (double)(u + s) / sysconf(_SC_CLK_TCK);
    return 1;
}

static long rss_of(int pid) {
    char p[64], b[64];
    snprintf(p, sizeof p, "/proc/%d/statm", pid);
    FILE *f = fopen(p, "r");
    if (!f) {
        return 0;
    }
    long a = 0, r = 0;
    if (fgets(b, sizeof b, f)) {
        sscanf(b, "%ld %ld", &a, &r);
    }
    fclose(f);
    return r * (sysconf(_SC_PAGESIZE) / 1024);
}

static int tree[4096], n_tree;

static void scan_tree(void) {
    static int pids[65536], par[65536];
    int n = 0;
    DIR *d = opendir("/proc");
    struct dirent *e;
    double cpu;
    while ((e = readdir(d)) && n < 65536) {
        if (isdigit((unsigned char)e->d_name[0])) {
            int p = atoi(e->d_name), pp;
            if (stat_of(p, &pp, &cpu)) {
                pids[n] = p;
                par[n++] = pp;
            }
        }
    }
    closedir(d);
    n_tree = 0;
    for (int i = 0; i < n_pid; i++) {
        tree[n_tree++] = o_pid[i];
    }
    for (int i = 0; i < n_tree; i++) {
        for (int k = 0; k < n && n_tree < 4096; k++) {
            if (par[k] == tree[i]) {
                int have = 0;
                for (int m = 0; m < n_tree; m++) {
                    have |= tree[m] == pids[k];
                }
                if (!have) {
                    tree[n_tree++] = pids[k];
                }
            }
        }
    }
}

static double tree_cpu(void) {
    double s = 0, c;
    int pp;
    for (int i = 0; i < n_tree; i++) {
        if (stat_of(tree[i], &pp, &c)) {
            s += c;
        }
    }
    return s;
}

static long tree_rss(void) {
    long s = 0;
    for (int i = 0; i < n_tree; i++) {
        s += rss_of(tree[i]);
    }
    return s;
}

static char *slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(2);
    }
    char *b = NULL;
    size_t cap = 0;
    *n = 0;
    for (;;) {
        if (cap - *n < 65536) {
            b = realloc(b, cap = cap * 2 + 131072);
        }
        size_t r = fread(b + *n, 1, cap - *n, f);
        if (!r) {
            break;
        }
        *n += r;
    }
    fclose(f);
    return b;
}

static volatile sig_atomic_t sigged;

static void on_sig(int s) {
    (void)s;
    sigged = 1;
}

int main(int argc, char **argv) {
    static struct option L[] = {
        {"host", 1, 0, 1},          {"port", 1, 0, 2},          {"path", 1, 0, 3},
        {"method", 1, 0, 4},        {"auth", 1, 0, 5},          {"header", 1, 0, 6},
        {"body", 1, 0, 7},          {"data", 1, 0, 8},          {"vary", 0, 0, 9},
        {"concurrency", 1, 0, 'c'}, {"ramp-ms", 1, 0, 10},      {"rate", 1, 0, 11},
        {"duration", 1, 0, 'd'},    {"count", 1, 0, 'n'},       {"warmup", 1, 0, 12},
        {"drain", 1, 0, 13},        {"timeout", 1, 0, 14},      {"stream", 0, 0, 15},
        {"no-done", 0, 0, 16},      {"no-keepalive", 0, 0, 17}, {"watch-pid", 1, 0, 18},
        {"label", 1, 0, 19},        {"dump", 0, 0, 20},         {0, 0, 0, 0}};
    char *body = NULL;
    size_t body_n = 0;
    int has_ct = 0;
    for (int o; (o = getopt_long(argc, argv, "c:d:n:", L, NULL)) != -1;) {
        switch (o) {
        case 1:
            o_host = optarg;
            break;
        case 2:
            o_port = atoi(optarg);
            break;
        case 3:
            o_path = optarg;
            break;
        case 4:
            o_method = optarg;
            break;
        case 5:
            o_auth = optarg;
            break;
        case 6:
            if (n_hdr < 32) {
                o_hdr[n_hdr++] = optarg;
                if (!strncasecmp(optarg, "content-type:", 13)) {
                    has_ct = 1;
                }
            }
            break;
        case 7:
            body = slurp(optarg, &body_n);
            break;
        case 8:
            body = optarg;
            body_n = strlen(optarg);
            break;
        case 9:
            o_vary = 1;
            break;
        case 'c':
            o_conc = atoi(optarg);
            break;
        case 10:
            o_ramp_ms = atof(optarg);
            break;
        case 11:
            o_rate = atof(optarg);
            break;
        case 'd':
            o_dur = atof(optarg);
            break;
        case 'n':
            o_count = atol(optarg);
            break;
        case 12:
            o_warm = atof(optarg);
            break;
        case 13:
            o_drain = atof(optarg);
            break;
        case 14:
            o_timeout = atof(optarg);
            break;
        case 15:
            o_stream = 1;
            break;
        case 16:
            o_nodone = 1;
            break;
        case 17:
            o_nokeep = 1;
            break;
        case 18:
            if (n_pid < 16) {
                o_pid[n_pid++] = atoi(optarg);
            }
            break;
        case 19:
            o_label = optarg;
            break;
        case 20:
            o_dump = 1;
            break;
        default:
            fprintf(stderr, "see the comment at the top of loadgen.c\n");
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_sig);
    signal(SIGTERM, on_sig);
    if (!o_method) {
        o_method = body ? "POST" : "GET";
    }
    char *rq = malloc(body_n + 65536);
    size_t n =
        sprintf(rq, "%s %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: loadgen\r\nAccept: */*\r\n",
                o_method, o_path, o_host, o_port);
    if (o_auth) {
        n += sprintf(rq + n, "Authorization: Bearer %s\r\n", o_auth);
    }
    for (int i = 0; i < n_hdr; i++) {
        n += sprintf(rq + n, "%s\r\n", o_hdr[i]);
    }
    if (o_nokeep) {
        n += sprintf(rq + n, "Connection: close\r\n");
    }
    if (body) {
        if (!has_ct) {
            n += sprintf(rq + n, "Content-Type: application/json\r\n");
        }
        if (o_vary) {
            size_t k = body_n;
            char *b2 = malloc(body_n * 4 + 64);
            size_t m = 0;
            size_t offs[64];
            for (size_t i = 0; i < k;) {
                if (k - i >= 3 && !memcmp(body + i, "%N%", 3) && n_vary < 64) {
                    offs[n_vary++] = m;
                    memset(b2 + m, '0', 10);
                    m += 10;
                    i += 3;
                } else {
                    b2[m++] = body[i++];
                }
            }
            body = b2;
            body_n = m;
            n += sprintf(rq + n, "Content-Length: %zu\r\n\r\n", body_n);
            for (int i = 0; i < n_vary; i++) {
                vary_off[i] = n + offs[i];
            }
            if (n + body_n > (1 << 20)) {
                fprintf(stderr, "body too large for --vary\n");
                return 2;
            }
        } else {
            n += sprintf(rq + n, "Content-Length: %zu\r\n\r\n", body_n);
        }
        rq = realloc(rq, n + body_n + 16);
        memcpy(rq + n, body, body_n);
        n += body_n;
    } else {
        n += sprintf(rq + n, "\r\n");
    }
    req = rq;
    req_n = n;
    addr.sin_family = AF_INET;
    addr.sin_port = htons(o_port);
    if (inet_pton(AF_INET, o_host, &addr.sin_addr) != 1) {
        fprintf(stderr, "--host wants an IPv4 address\n");
        return 2;
    }
    struct rlimit rl;
    getrlimit(RLIMIT_NOFILE, &rl);
    rl.rlim_cur = rl.rlim_max;
    setrlimit(RLIMIT_NOFILE, &rl);
    cs = calloc(o_conc, sizeof *cs);
    idle = calloc(o_conc + 1, sizeof *idle);
    for (int i = 0; i < o_conc; i++) {
        cs[i].fd = -1;
    }
    ep = epoll_create1(EPOLL_CLOEXEC);
    if (o_count) {
        o_warm = 0;
        o_dur = 1e6;
    }
    t_start = now_ns();
    t_from = t_start + (ns_t)((o_warm + (o_count ? 0 : o_ramp_ms / 1e3)) * 1e9);
    t_to = t_from + (ns_t)(o_dur * 1e9);
    int opened = 0;
    if (o_rate > 0) {
        for (int i = o_conc - 1; i >= 0; i--) {
            idle[n_idle++] = i;
        }
        opened = o_conc;
        next_due = t_start;
    }
    struct epoll_event ev[512];
    double cpu0 = 0, cpu1 = 0;
    long rss_max = 0;
    int at_from = 0;
    ns_t next_rss = 0, next_to = t_start + 200000000;
    struct rusage ru0;
    getrusage(RUSAGE_SELF, &ru0);
    ns_t end = 0;
    uint64_t bytes0 = 0;
    if (n_pid) {
        scan_tree();
    }
    for (;;) {
        ns_t t = now_ns();
        if (!at_from && t >= t_from) {
            at_from = 1;
            bytes0 = bytes_in;
            getrusage(RUSAGE_SELF, &ru0);
            if (n_pid) {
                scan_tree();
                cpu0 = tree_cpu();
            }
            t_from = now_ns();
            if (!o_count) {
                t_to = t_from + (ns_t)(o_dur * 1e9);
            }
        }
        if (n_pid && t >= next_rss) {
            long r = tree_rss();
            if (r > rss_max) {
                rss_max = r;
            }
            next_rss = t + 250000000;
        }
        while (opened < o_conc &&
               (o_ramp_ms <= 0 || t >= t_start + (ns_t)(o_ramp_ms * 1e6 * opened / o_conc))) {
            conn *c = &cs[opened++];
            if (more_wanted(t)) {
                start_request(c, t);
            } else {
                go_idle(c);
            }
        }
        if (o_rate > 0) {
            while (n_idle && next_due <= t && more_wanted(t)) {
                conn *c = &cs[idle[--n_idle]];
                start_request(c, (ns_t)next_due);
                next_due += 1e9 / o_rate;
            }
        }
        if (t >= next_to) {
            next_to = t + 200000000;
            for (int i = 0; i < opened; i++) {
                if (cs[i].state != S_IDLE && t - cs[i].sent_at > (ns_t)(o_timeout * 1e9)) {
                    fail(&cs[i], &err_timeout, t);
                }
            }
        }
        if (!closing && (sigged || (o_count ? (long)all_done >= o_count : t >= t_to))) {
            closing = 1;
            end = t;
            if (o_count || sigged) {
                t_to = t;
            }
            if (n_pid) {
                cpu1 = tree_cpu();
                long r = tree_rss();
                if (r > rss_max) {
                    rss_max = r;
                }
            }
            struct rusage r1;
            getrusage(RUSAGE_SELF, &r1);
            double a = r1.ru_utime.tv_sec - ru0.ru_utime.tv_sec + r1.ru_stime.tv_sec -
                       ru0.ru_stime.tv_sec +
                       (r1.ru_utime.tv_usec - ru0.ru_utime.tv_usec + r1.ru_stime.tv_usec -
                        ru0.ru_stime.tv_usec) /
                           1e6;
            double w = (t_to - t_from) / 1e9;
            if (w <= 0) {
                w = 1e-9;
            }
            printf("{\"label\":\"%s\",\"concurrency\":%d,\"stream\":%d,\"window_s\":%.4f,\"ok\":%"
                   "llu,\"rps\":%.2f,\"events\":%llu,\"events_per_s\":%.1f,\"bytes_in\":%llu,"
                   "\"in_flight_at_end\":%d,",
                   o_label, o_conc, o_stream, w, (unsigned long long)ok, ok / w,
                   (unsigned long long)events, events / w,
                   (unsigned long long)(bytes_in - bytes0), in_flight);
            h_json("lat", &H_lat, 0);
            h_json("ttfb", &H_ttfb, 0);
            h_json("gap", &H_gap, 0);
            h_json("transit", &H_transit, 0);
            printf("\"errors\":{\"connect\":%llu,\"io\":%llu,\"status\":%llu,\"last_status\":%d,"
                   "\"timeout\":%llu,\"proto\":%llu,\"short\":%llu},\"self_cpu_s\":%.4f,\"peer_"
                   "cpu_s\":%.3f,\"peer_rss_mb\":%.1f,\"peer_procs\":%d",
                   (unsigned long long)err_connect, (unsigned long long)err_io,
                   (unsigned long long)err_status, bad_status, (unsigned long long)err_timeout,
                   (unsigned long long)err_proto, (unsigned long long)err_short, a, cpu1 - cpu0,
                   rss_max / 1024.0, n_tree);
        }
        if (closing && (in_flight <= 0 || sigged || t > end + (ns_t)(o_drain * 1e9))) {
            break;
        }
        ns_t wait = 20000000;
        if (o_rate > 0 && n_idle && !closing) {
            ns_t d = (ns_t)next_due - now_ns();
            if (d < wait) {
                wait = d < 0 ? 0 : d;
            }
        }
        if (opened < o_conc && wait > 1000000) {
            wait = 1000000;
        }
        if (!closing && !o_count && t_to - t < wait) {
            wait = t_to > t ? t_to - t : 0;
        }
        struct timespec ts = {0, wait};
        int k = syscall(441 /* epoll_pwait2 */, ep, ev, 512, &ts, NULL, (size_t)8);
        for (int i = 0; i < k; i++) {
            conn *c = &cs[ev[i].data.u32];
            if (c->fd < 0) {
                continue;
            }
            if (c->state == S_CONNECT) {
                int er = 0;
                socklen_t l = sizeof er;
                getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &er, &l);
                if (er) {
                    fail(c, &err_connect, now_ns());
                    continue;
                }
                if (!(ev[i].events & EPOLLOUT)) {
                    continue;
                }
                c->state = S_SEND;
                try_send(c);
                continue;
            }
            if (ev[i].events & EPOLLOUT && c->state == S_SEND) {
                try_send(c);
                if (c->fd < 0 || c->state != S_HEAD) {
                    continue;
                }
            }
            if (ev[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                on_in(c);
            }
        }
    }
    printf(",\"drained\":%s,\"late_errors\":%llu}\n", in_flight > 0 ? "false" : "true",
           (unsigned long long)last_bad);
    return 0;
}
