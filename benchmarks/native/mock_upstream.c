/* mock_upstream.c - a very cheap OpenAI-compatible upstream for measuring proxies.
 *
 * One thread, epoll, no allocation on the hot path, Linux only, C11, no dependencies.
 *   gcc -O2 -Wall -Wextra -o mock_upstream mock_upstream.c
 *
 * Behaviour
 *   GET  anything             200, small JSON (/v1/models answers a model list, so routers see a
 * healthy worker) GET  /__stats             counters as JSON (requests, streams, open_streams,
 * chunks, aborted, cpu_s) POST .../chat/completions chat.completion, or chat.completion.chunk
 * events when the body has "stream":true POST .../completions      text_completion, or
 * text_completion events POST .../embeddings       one 8-float vector;   POST anything else: 200
 * {"ok":true} A request chooses its own stream through two plain OpenAI fields that every gateway
 * forwards: "max_tokens" (or "max_completion_tokens") = number of events, "seed" = microseconds
 * between events.
 *   --chunks / --delay-us are the defaults where a field is absent.
 * Every event's content holds "@<CLOCK_MONOTONIC ns>" taken when it was written, so a load
 * generator on the same machine can measure each event's transit time (--no-stamp turns that
 * off). The deadline of event k is start + ttft + k*delay (no drift).
 *
 * Flags: --port N (default 9100)  --host A (127.0.0.1)  --chunks N (128)  --delay-us N (0)
 * --ttft-us N (0)
 *        --reply-bytes N (600: size of the non-stream JSON body)  --reply-delay-us N (0)
 *        --coalesce K (1: events per write when there is no delay)  --model NAME (mock)
 * --no-stamp
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
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

static int o_port = 9100, o_chunks = 128, o_reply = 600, o_coalesce = 1, o_stamp = 1;
static long o_delay_us = 0, o_ttft_us = 0, o_reply_delay_us = 0;
static const char *o_host = "127.0.0.1", *o_model = "mock";

static struct {
    uint64_t requests, streams, chunks, aborted, conns;
    int64_t open_streams, open_conns;
} st;

enum { KIND_CHAT, KIND_TEXT };

typedef struct conn {
    int fd, in_epoll_out, http10, close_after, kind;
    char *in;
    size_t in_len, in_cap; /* request bytes not yet consumed */
    char *out;
    size_t out_off, out_len, out_cap; /* bytes the socket did not take yet */
    int active;                       /* 1: stream, 2: delayed plain reply */
    int total, sent;
    int64_t delay_ns, next_ns;
    int heap_pos; /* index in the timer heap, -1 if absent */
    int dead;
    struct conn *next_dead;
} conn;

static int ep;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- timer heap (min by next_ns) ---- */
static conn **heap;
static int heap_n, heap_cap;

static void heap_set(int i, conn *c) {
    heap[i] = c;
    c->heap_pos = i;
}

static void heap_up(int i) {
    conn *c = heap[i];
    while (i > 0) {
        int p = (i - 1) / 2;
        if (heap[p]->next_ns <= c->next_ns) {
            break;
        }
        heap_set(i, heap[p]);
        i = p;
    }
    heap_set(i, c);
}

static void heap_down(int i) {
    conn *c = heap[i];
    for (;;) {
        int k = 2 * i + 1;
        if (k >= heap_n) {
            break;
        }
        if (k + 1 < heap_n && heap[k + 1]->next_ns < heap[k]->next_ns) {
            k++;
        }
        if (heap[k]->next_ns >= c->next_ns) {
            break;
        }
        heap_set(i, heap[k]);
        i = k;
    }
    heap_set(i, c);
}

static void heap_add(conn *c) {
    if (heap_n == heap_cap) {
        heap_cap = heap_cap ? heap_cap * 2 : 1024;
        heap = realloc(heap, sizeof(*heap) * heap_cap);
    }
    heap_n++;
    heap_set(heap_n - 1, c);
    heap_up(heap_n - 1);
}

static void heap_del(conn *c) {
    int i = c->heap_pos;
    if (i < 0) {
        return;
    }
    conn *l = heap[--heap_n];
    c->heap_pos = -1;
    if (l != c) {
        heap_set(i, l);
        heap_up(i);
        heap_down(l->heap_pos);
    }
}

/* ---- prebuilt texts ---- */
#define MAXT 8192
static char ev_pre[2][MAXT], ev_role_pre[2][MAXT];
static int ev_pre_n[2], ev_role_pre_n[2];
static const char *EV_MID[2] = {"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                                "\",\"logprobs\":null,\"finish_reason\":null}]}\n\n"};
static const char *EV_END[2] = {"\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n",
                                "\",\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n"};
static int ev_mid_n[2], ev_end_n[2];
static char *plain[2];
static int plain_n[2];
static const char SSE_HEAD[] = "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: "
                               "text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n";

static void build_texts(void) {
    ev_pre_n[0] = snprintf(
        ev_pre[0], MAXT,
        "data: "
        "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion.chunk\",\"created\":"
        "1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tok",
        o_model);
    ev_role_pre_n[0] =
        snprintf(ev_role_pre[0], MAXT,
                 "data: "
                 "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion.chunk\","
                 "\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"delta\":{"
                 "\"role\":\"assistant\",\"content\":\" tok",
                 o_model);
    ev_pre_n[1] =
        snprintf(ev_pre[1], MAXT,
                 "data: "
                 "{\"id\":\"cmpl-mock0123456789\",\"object\":\"text_completion\",\"created\":"
                 "1700000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"text\":\" tok",
                 o_model);
    ev_role_pre_n[1] = ev_pre_n[1];
    memcpy(ev_role_pre[1], ev_pre[1], ev_pre_n[1]);
    for (int k = 0; k < 2; k++) {
        ev_mid_n[k] = strlen(EV_MID[k]);
        ev_end_n[k] = strlen(EV_END[k]);
    }
    for (int k = 0; k < 2; k++) {
        char head[1024], tail[512];
        int h = k == 0
                    ? snprintf(head, sizeof head,
                               "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat."
                               "completion\",\"created\":1700000000,\"model\":\"%s\",\"choices\":"
                               "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
                               o_model)
                    : snprintf(head, sizeof head,
                               "{\"id\":\"cmpl-mock0123456789\",\"object\":\"text_completion\","
                               "\"created\":1700000000,\"model\":\"%s\",\"choices\":[{\"index\":"
                               "0,\"text\":\"",
                               o_model);
        int t = snprintf(tail, sizeof tail,
                         "%s,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":75,"
                         "\"completion_tokens\":64,\"total_tokens\":139}}",
                         k == 0 ? "\"},\"logprobs\":null" : "\",\"logprobs\":null");
        int pad = o_reply - h - t;
        if (pad < 8) {
            pad = 8;
        }
        int body = h + pad + t;
        plain[k] = malloc(body + 512);
        int n = sprintf(plain[k],
                        "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: "
                        "application/json\r\nContent-Length: %d\r\n\r\n",
                        body);
        memcpy(plain[k] + n, head, h);
        n += h;
        for (int i = 0; i < pad; i++) {
            plain[k][n++] = "lorem ipsum dolor sit amet "[i % 27];
        }
        memcpy(plain[k] + n, tail, t);
        n += t;
        plain_n[k] = n;
    }
}

/* ---- output ---- */
static conn *dead_list;

static void conn_kill(conn *c) {
    if (c->dead) {
        return;
    }
    c->dead = 1;
    c->next_dead = dead_list;
    dead_list = c;
    heap_del(c);
    if (c->active) {
        st.aborted++;
        if (c->active == 1) {
            st.open_streams--;
        }
    }
    close(c->fd);
    st.open_conns--;
}

static void want_out(conn *c, int on) {
    if (c->in_epoll_out == on) {
        return;
    }
    c->in_epoll_out = on;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (on ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

/* returns 0 if everything went out, 1 if some waits, -1 if the connection died */
static int flush_out(conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t w = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (w > 0) {
            c->out_off += w;
            continue;
        }
        if (w < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            want_out(c, 1);
            return 1;
        }
        conn_kill(c);
        return -1;
    }
    c->out_off = c->out_len = 0;
    want_out(c, 0);
    return 0;
}

static int put(conn *c, const char *b, size_t n) {
    if (c->out_off == c->out_len) {
        ssize_t w = send(c->fd, b, n, MSG_NOSIGNAL);
        if (w == (ssize_t)n) {
            return 0;
        }
        if (w < 0) {
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                conn_kill(c);
                return -1;
            }
            w = 0;
        }
        b += w;
        n -= w;
    }
    if (c->out_off == c->out_len) {
        c->out_off = c->out_len = 0;
    }
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2 + 4096;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, b, n);
    c->out_len += n;
    want_out(c, 1);
    return 1;
}

static int put_u64(char *p, uint64_t v) {
    char t[24];
    int n = 0;
    do {
        t[n++] = '0' + v % 10;
        v /= 10;
    } while (v);
    for (int i = 0; i < n; i++) {
        p[i] = t[n - 1 - i];
    }
    return n;
}

/* writes one event (with its chunked framing) at p, returns its length */
static int make_event(conn *c, char *p, int idx, int64_t now) {
    int k = c->kind;
    char *body = p + (c->http10 ? 0 : 6);
    char *q = body; /* "xxxx\r\n" */
    if (idx == 0) {
        memcpy(q, ev_role_pre[k], ev_role_pre_n[k]);
        q += ev_role_pre_n[k];
    } else {
        memcpy(q, ev_pre[k], ev_pre_n[k]);
        q += ev_pre_n[k];
    }
    q += put_u64(q, idx);
    if (o_stamp) {
        *q++ = '@';
        q += put_u64(q, now);
    }
    if (idx == c->total - 1) {
        memcpy(q, EV_END[k], ev_end_n[k]);
        q += ev_end_n[k];
        memcpy(q, "data: [DONE]\n\n", 14);
        q += 14;
    } else {
        memcpy(q, EV_MID[k], ev_mid_n[k]);
        q += ev_mid_n[k];
    }
    if (c->http10) {
        return q - p;
    }
    int n = q - body;
    static const char hx[] = "0123456789abcdef";
    p[0] = hx[(n >> 12) & 15];
    p[1] = hx[(n >> 8) & 15];
    p[2] = hx[(n >> 4) & 15];
    p[3] = hx[n & 15];
    p[4] = '\r';
    p[5] = '\n';
    *q++ = '\r';
    *q++ = '\n';
    if (idx == c->total - 1) {
        memcpy(q, "0\r\n\r\n", 5);
        q += 5;
    }
    return q - p;
}

static void parse_requests(conn *c);

static void stream_done(conn *c) {
    c->active = 0;
    st.open_streams--;
    heap_del(c);
    if (c->close_after && c->out_off == c->out_len) {
        conn_kill(c);
        return;
    }
    if (c->in_len) {
        parse_requests(c);
    }
}

/* sends what is due; with no delay at most `BURST` events a turn, so that streams share the
 * thread */
#define BURST 16
static char evbuf[BURST * 2048];

static void stream_step(conn *c, int64_t now) {
    if (c->out_off < c->out_len) {
        heap_del(c);
        return;
    } /* blocked: EPOLLOUT resumes it */
    int budget = BURST;
    while (c->sent < c->total && budget > 0) {
        if (c->next_ns > now) {
            break;
        }
        int n = 0, k = 0, per = c->delay_ns ? 1 : o_coalesce;
        while (k < per && c->sent < c->total && budget > 0) {
            n += make_event(c, evbuf + n, c->sent, o_stamp ? now_ns() : now);
            c->sent++;
            k++;
            budget--;
        }
        st.chunks += k;
        c->next_ns += c->delay_ns * k;
        int r = put(c, evbuf, n);
        if (r < 0) {
            return;
        }
        if (r == 1) {
            heap_del(c);
            if (c->sent >= c->total) {
                stream_done(c);
            }
            return;
        }
    }
    if (c->sent >= c->total) {
        stream_done(c);
        return;
    }
    if (!c->delay_ns) {
        c->next_ns = now + 1; /* behind every stream that waits for its turn */
    }
    if (c->heap_pos < 0) {
        heap_add(c);
    } else {
        heap_down(c->heap_pos);
        heap_up(c->heap_pos);
    }
}

/* ---- input ---- */
static int json_long(const char *b, size_t n, const char *key, long *v) {
    size_t kn = strlen(key);
    const char *p = b, *e = b + n;
    while ((p = memmem(p, e - p, key, kn))) {
        const char *q = p + kn;
        if (p > b && p[-1] == '\\') {
            p = q;
            continue;
        }
        while (q < e && isspace((unsigned char)*q)) {
            q++;
        }
        if (q < e && *q == ':') {
            q++;
            while (q < e && isspace((unsigned char)*q)) {
                q++;
            }
            if (q < e && (isdigit((unsigned char)*q) || *q == '-')) {
                *v = strtol(q, NULL, 10);
                return 1;
            }
            if (e - q >= 4 && !memcmp(q, "true", 4)) {
                *v = 1;
                return 1;
            }
        }
        p = q;
    }
    return 0;
}

static const char *find_header(const char *h, size_t n, const char *name) {
    size_t nn = strlen(name);
    const char *p = h, *e = h + n;
    while ((p = memchr(p, '\n', e - p))) {
        p++;
        if ((size_t)(e - p) > nn && !strncasecmp(p, name, nn) && p[nn] == ':') {
            p += nn + 1;
            while (p < e && *p == ' ') {
                p++;
            }
            return p;
        }
    }
    return NULL;
}

static void reply_json(conn *c, const char *body) {
    char b[1024];
    int n = snprintf(b, sizeof b,
                     "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: "
                     "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     strlen(body), body);
    put(c, b, n);
}

static void handle(conn *c, const char *method, const char *path, size_t path_n, const char *body,
                   size_t body_n) {
    st.requests++;
    if (*method == 'G' || *method == 'H') {
        char b[768];
        if (path_n >= 8 && !memcmp(path, "/__stats", 8)) {
            struct rusage u;
            getrusage(RUSAGE_SELF, &u);
            snprintf(b, sizeof b,
                     "{\"requests\":%llu,\"streams\":%llu,\"open_streams\":%lld,\"open_conns\":%"
                     "lld,\"conns\":%llu,\"chunks\":%llu,\"aborted\":%llu,\"cpu_s\":%.3f}",
                     (unsigned long long)st.requests, (unsigned long long)st.streams,
                     (long long)st.open_streams, (long long)st.open_conns,
                     (unsigned long long)st.conns, (unsigned long long)st.chunks,
                     (unsigned long long)st.aborted,
                     u.ru_utime.tv_sec + u.ru_stime.tv_sec +
                         (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
        } else if (memmem(path, path_n, "/models", 7)) {
            snprintf(b, sizeof b,
                     "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\","
                     "\"created\":1700000000,\"owned_by\":\"mock\",\"max_model_len\":8192}]}",
                     o_model);
        } else {
            snprintf(b, sizeof b,
                     "{\"status\":\"ok\",\"model_path\":\"%s\",\"served_model_name\":\"%s\",\"is_"
                     "generation\":true}",
                     o_model, o_model);
        }
        reply_json(c, b);
        return;
    }
    int kind = memmem(path, path_n, "/chat/completions", 17) ? KIND_CHAT
               : memmem(path, path_n, "/completions", 12)    ? KIND_TEXT
                                                             : -1;
    if (kind < 0) {
        if (memmem(path, path_n, "/embeddings", 11)) {
            char b[512];
            snprintf(b, sizeof b,
                     "{\"object\":\"list\",\"model\":\"%s\",\"data\":[{\"object\":\"embedding\","
                     "\"index\":0,\"embedding\":[0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8]}],\"usage\":{"
                     "\"prompt_tokens\":8,\"total_tokens\":8}}",
                     o_model);
            reply_json(c, b);
        } else {
            reply_json(c, "{\"ok\":true}");
        }
        return;
    }
    c->kind = kind;
    long stream = 0;
    json_long(body, body_n, "\"stream\"", &stream);
    if (!stream) {
        if (o_reply_delay_us) {
            c->active = 2;
            c->next_ns = now_ns() + o_reply_delay_us * 1000;
            heap_add(c);
            return;
        }
        put(c, plain[kind], plain_n[kind]);
        return;
    }
    long n = o_chunks, d = o_delay_us;
    if (!json_long(body, body_n, "\"max_tokens\"", &n)) {
        json_long(body, body_n, "\"max_completion_tokens\"", &n);
    }
    json_long(body, body_n, "\"seed\"", &d);
    if (n < 1) {
        n = 1;
    }
    if (d < 0) {
        d = 0;
    }
    char h[512];
    int hn =
        snprintf(h, sizeof h, "%s%s", SSE_HEAD,
                 c->http10 ? "Connection: close\r\n\r\n" : "Transfer-Encoding: chunked\r\n\r\n");
    if (c->http10) {
        c->close_after = 1;
    }
    st.streams++;
    st.open_streams++;
    c->active = 1;
    c->total = n;
    c->sent = 0;
    c->delay_ns = d * 1000;
    c->next_ns = now_ns() + o_ttft_us * 1000;
    if (put(c, h, hn) < 0) {
        return;
    }
    if (c->out_off < c->out_len) {
        return;
    }
    stream_step(c, now_ns());
}

static void parse_requests(conn *c) {
    size_t used = 0;
    while (!c->dead && !c->active && used < c->in_len) {
        char *b = c->in + used;
        size_t n = c->in_len - used;
        char *he = memmem(b, n, "\r\n\r\n", 4);
        if (!he) {
            break;
        }
        size_t hn = he + 4 - b;
        const char *p;
        size_t body_n = 0, total;
        char *body = b + hn;
        if ((p = find_header(b, hn, "transfer-encoding")) && !strncasecmp(p, "chunked", 7)) {
            /* decode in place once the terminator is here; a partial body is simply scanned again
             * later */
            char *q = body, *e = b + n;
            size_t need = 0;
            int ok = 0;
            for (;;) {
                char *nl = memchr(q, '\n', e - q);
                if (!nl) {
                    break;
                }
                size_t sz = strtoul(q, NULL, 16);
                q = nl + 1;
                if (sz == 0) {
                    char *nl2 = memchr(q, '\n', e - q);
                    if (nl2) {
                        ok = 1;
                        q = nl2 + 1;
                    }
                    break;
                }
                if ((size_t)(e - q) < sz + 2) {
                    break;
                }
                need += sz;
                q += sz + 2;
            }
            if (!ok) {
                break;
            }
            total = q - b;
            char *w = body;
            q = body;
            size_t left = need;
            while (left) {
                char *nl = memchr(q, '\n', e - q);
                size_t sz = strtoul(q, NULL, 16);
                q = nl + 1;
                memmove(w, q, sz);
                w += sz;
                q += sz + 2;
                left -= sz;
            }
            body_n = need;
        } else {
            if ((p = find_header(b, hn, "content-length"))) {
                body_n = strtoul(p, NULL, 10);
            }
            total = hn + body_n;
            if (n < total) {
                if (n == hn && body_n && (p = find_header(b, hn, "expect"))) {
                    put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
                }
                break;
            }
        }
        char *sp = memchr(b, ' ', hn);
        if (!sp) {
            conn_kill(c);
            return;
        }
        char *path = sp + 1;
        char *pe = memchr(path, ' ', b + hn - path);
        if (!pe) {
            conn_kill(c);
            return;
        }
        c->http10 = !memcmp(pe + 1, "HTTP/1.0", 8);
        c->close_after = c->http10;
        if ((p = find_header(b, hn, "connection"))) {
            if (!strncasecmp(p, "close", 5)) {
                c->close_after = 1;
            } else if (c->http10 && !strncasecmp(p, "keep-alive", 10)) {
                c->close_after = 0;
            }
        }
        handle(c, b, path, pe - path, body, body_n);
        used += total;
        if (!c->dead && !c->active && c->close_after && c->out_off == c->out_len) {
            conn_kill(c);
            return;
        }
    }
    if (c->dead) {
        return;
    }
    if (used) {
        memmove(c->in, c->in + used, c->in_len - used);
        c->in_len -= used;
    }
}

static void on_read(conn *c) {
    for (;;) {
        if (c->in_cap - c->in_len < 16384) {
            c->in_cap = c->in_cap ? c->in_cap * 2 : 32768;
            if (c->in_cap > (64u << 20)) {
                conn_kill(c);
                return;
            }
            c->in = realloc(c->in, c->in_cap);
        }
        size_t room = c->in_cap - c->in_len;
        ssize_t r = recv(c->fd, c->in + c->in_len, room, 0);
        if (r > 0) {
            c->in_len += r;
            if ((size_t)r < room) {
                break;
            }
            continue;
        }
        if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            break;
        }
        conn_kill(c);
        return;
    }
    if (!c->active) {
        parse_requests(c);
    }
}

static volatile sig_atomic_t stop;

static void on_sig(int s) {
    (void)s;
    stop = 1;
}

int main(int argc, char **argv) {
    static struct option L[] = {{"port", 1, 0, 'p'},
                                {"host", 1, 0, 'h'},
                                {"chunks", 1, 0, 'c'},
                                {"delay-us", 1, 0, 'd'},
                                {"ttft-us", 1, 0, 't'},
                                {"reply-bytes", 1, 0, 'r'},
                                {"reply-delay-us", 1, 0, 'R'},
                                {"coalesce", 1, 0, 'k'},
                                {"model", 1, 0, 'm'},
                                {"no-stamp", 0, 0, 's'},
                                {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "p:h:c:d:t:r:R:k:m:s", L, NULL)) != -1;) {
        switch (o) {
        case 'p':
            o_port = atoi(optarg);
            break;
        case 'h':
            o_host = optarg;
            break;
        case 'c':
            o_chunks = atoi(optarg);
            break;
        case 'd':
            o_delay_us = atol(optarg);
            break;
        case 't':
            o_ttft_us = atol(optarg);
            break;
        case 'r':
            o_reply = atoi(optarg);
            break;
        case 'R':
            o_reply_delay_us = atol(optarg);
            break;
        case 'k':
            o_coalesce = atoi(optarg);
            if (o_coalesce < 1) {
                o_coalesce = 1;
            }
            if (o_coalesce > BURST) {
                o_coalesce = BURST;
            }
            break;
        case 'm':
            o_model = optarg;
            if (strlen(o_model) > 200) {
                return 2;
            }
            break;
        case 's':
            o_stamp = 0;
            break;
        default:
            fprintf(stderr, "see the comment at the top of mock_upstream.c\n");
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_sig);
    signal(SIGINT, on_sig);
    build_texts();
    int ls = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(ls, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(o_port)};
    inet_pton(AF_INET, o_host, &a.sin_addr);
    if (bind(ls, (void *)&a, sizeof a) || listen(ls, 4096)) {
        perror("bind");
        return 1;
    }
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(ep, EPOLL_CTL_ADD, ls, &e);
    fprintf(stderr, "mock_upstream on %s:%d\n", o_host, o_port);
    struct epoll_event ev[512];
    while (!stop) {
        struct timespec ts, *tp = NULL;
        int64_t now = now_ns();
        if (heap_n) {
            int64_t w = heap[0]->next_ns - now;
            if (w < 0) {
                w = 0;
            }
            ts.tv_sec = w / 1000000000;
            ts.tv_nsec = w % 1000000000;
            tp = &ts;
        }
        int n = syscall(441 /* epoll_pwait2 */, ep, ev, 512, tp, NULL, (size_t)8);
        if (n < 0 && errno == ENOSYS) {
            n = epoll_wait(ep, ev, 512,
                           tp ? (int)(ts.tv_sec * 1000 + (ts.tv_nsec + 999999) / 1000000) : -1);
        }
        for (int i = 0; i < n; i++) {
            conn *c = ev[i].data.ptr;
            if (!c) {
                for (int k = 0; k < 256; k++) {
                    int fd = accept4(ls, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                    if (fd < 0) {
                        break;
                    }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn *x = calloc(1, sizeof *x);
                    x->fd = fd;
                    x->heap_pos = -1;
                    st.conns++;
                    st.open_conns++;
                    struct epoll_event q = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = x};
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &q);
                }
                continue;
            }
            if (c->dead) {
                continue;
            }
            if (ev[i].events & (EPOLLHUP | EPOLLERR)) {
                conn_kill(c);
                continue;
            }
            if (ev[i].events & (EPOLLIN | EPOLLRDHUP)) {
                on_read(c);
                if (c->dead) {
                    continue;
                }
            }
            if (ev[i].events & EPOLLOUT) {
                int r = flush_out(c);
                if (r < 0) {
                    continue;
                }
                if (r == 0) {
                    if (c->active == 1) {
                        stream_step(c, now_ns());
                    } else if (c->close_after && !c->active) {
                        conn_kill(c);
                    }
                }
            }
        }
        /* timers: every stream due at this instant gets one turn (no-delay streams come round
         * again next loop) */
        now = now_ns();
        for (int k = 0, m = heap_n; k < m && heap_n && heap[0]->next_ns <= now; k++) {
            conn *c = heap[0];
            if (c->active == 2) {
                heap_del(c);
                c->active = 0;
                put(c, plain[c->kind], plain_n[c->kind]);
                if (!c->dead && c->close_after && c->out_off == c->out_len) {
                    conn_kill(c);
                } else if (!c->dead && c->in_len) {
                    parse_requests(c);
                }
            } else {
                stream_step(c, now);
            }
        }
        while (dead_list) {
            conn *c = dead_list;
            dead_list = c->next_dead;
            free(c->in);
            free(c->out);
            free(c);
        }
    }
    return 0;
}
