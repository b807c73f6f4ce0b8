/* The parser of responses: HTTP/1.1 heads, bodies of all three framings, and server-sent events.
 */
#ifndef RESPONSE_H
#define RESPONSE_H

#include <strings.h>

#include "common.h"
#include "options.h"

#define HEAD_MAX_BYTES 8192

enum connection_state { IDLE, CONNECTING, SENDING, IN_HEAD, IN_BODY };

enum framing { BY_LENGTH, CHUNKED, UNTIL_CLOSE };

enum chunk_state { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

/* What the parser expects next in a line of an event stream. LINE_START + n: n characters of
 * "data:" have matched. */
enum line_state { LINE_START, AFTER_FIELD = 5, BEFORE_STAMP, IN_STAMP, REST_OF_LINE };

typedef struct {
    int fd;
    enum connection_state state;
    int waits_for_write;
    size_t sent_bytes;
    uint64_t number;
    int is_reused;

    /* The response. */
    char head[HEAD_MAX_BYTES];
    size_t head_bytes;
    int status;
    int closes;
    enum framing framing;
    enum chunk_state chunk_state;
    int in_extension;
    size_t trailer_bytes;
    uint64_t bytes_left;

    /* The event stream. */
    int line_state;
    uint64_t stamp;
    int stamp_digits;
    int is_done;

    ns_t due_at;
    ns_t sent_at;
    ns_t first_byte_at;
    ns_t last_event_at;
} connection;

/* Called by the parser for each event, and for each event's time stamp. */
static void on_event(connection *c, ns_t now);
static void on_stamp(ns_t stamp, ns_t now);

#define STAMP_MIN_DIGITS 9

static const char *parse_event_line(connection *c, const char *p, const char *end, ns_t now) {
    switch (c->line_state) {
    case AFTER_FIELD:
        if (*p == ' ') {
            return p + 1;
        }
        if (*p == '[') {
            c->is_done = 1;
            c->line_state = REST_OF_LINE;
        } else {
            on_event(c, now);
            c->line_state = BEFORE_STAMP;
        }
        return p;
    case BEFORE_STAMP:
        while (p < end && *p != '@' && *p != '\n') {
            p++;
        }
        if (p == end) {
            return p;
        }
        c->line_state = *p == '@' ? IN_STAMP : LINE_START;
        c->stamp = 0;
        c->stamp_digits = 0;
        return p + 1;
    case IN_STAMP:
        while (p < end && isdigit((unsigned char)*p)) {
            c->stamp = c->stamp * 10 + (*p++ - '0');
            c->stamp_digits++;
        }
        if (p < end) {
            if (c->stamp_digits >= STAMP_MIN_DIGITS) {
                on_stamp(c->stamp, now);
            }
            c->line_state = REST_OF_LINE;
        }
        return p;
    case REST_OF_LINE:
        p = memchr(p, '\n', end - p);
        if (!p) {
            return end;
        }
        c->line_state = LINE_START;
        return p + 1;
    default:
        if (*p == "data:"[c->line_state]) {
            c->line_state++;
            return p + 1;
        }
        c->line_state = *p == '\n' ? LINE_START : REST_OF_LINE;
        return *p == '\n' ? p + 1 : p;
    }
}

static void parse_body(connection *c, const char *p, size_t size, ns_t now) {
    if (!size) {
        return;
    }
    if (!c->first_byte_at) {
        c->first_byte_at = now;
    }
    if (options.dumps) {
        fwrite(p, 1, size, stderr);
    }
    const char *end = p + size;
    while (options.is_stream && p < end) {
        p = parse_event_line(c, p, end, now);
    }
}

static const char *find_header(const char *head, const char *name) {
    size_t size = strlen(name);
    const char *line = head;
    while ((line = strchr(line, '\n'))) {
        line++;
        if (!strncasecmp(line, name, size) && line[size] == ':') {
            line += size + 1;
            return line + strspn(line, " ");
        }
    }
    return NULL;
}

static int has_value(const char *field, const char *value) {
    return field && !strncasecmp(field, value, strlen(value));
}

/* Interpret a complete head. Return 1 if the response has no body, 0 if one follows, and -1 if it
 * is malformed. */
static int parse_head(connection *c) {
    if (strncmp(c->head, "HTTP/1.", 7)) {
        return -1;
    }
    c->status = atoi(c->head + 9);
    if (options.dumps) {
        fprintf(stderr, "%s\n", c->head);
    }
    const char *field = find_header(c->head, "connection");
    int is_old = c->head[7] == '0';
    c->closes = has_value(field, "close") || (is_old && !has_value(field, "keep-alive"));
    c->bytes_left = 0;
    if (has_value(find_header(c->head, "transfer-encoding"), "chunked")) {
        c->framing = CHUNKED;
        c->chunk_state = CHUNK_SIZE;
        c->in_extension = 0;
    } else if ((field = find_header(c->head, "content-length"))) {
        c->framing = BY_LENGTH;
        c->bytes_left = strtoull(field, NULL, 10);
        return !c->bytes_left;
    } else if (c->status == 204 || c->status == 304) {
        c->framing = BY_LENGTH;
        return 1;
    } else {
        c->framing = UNTIL_CLOSE;
    }
    return 0;
}

static int hex_digit(char c) {
    if (isdigit((unsigned char)c)) {
        return c - '0';
    }
    return isxdigit((unsigned char)c) ? (c | 32) - 'a' + 10 : -1;
}

static size_t take_data(connection *c, const char *p, const char *end, ns_t now) {
    size_t size = end - p;
    if (size > c->bytes_left) {
        size = c->bytes_left;
    }
    parse_body(c, p, size, now);
    c->bytes_left -= size;
    return size;
}

/* Parse a part of a chunked body. Return 1 if it is complete, and -1 if it is malformed. */
static int parse_chunks(connection *c, const char *p, const char *end, ns_t now) {
    while (p < end) {
        switch (c->chunk_state) {
        case CHUNK_SIZE:
            if (*p == '\n') {
                c->chunk_state = c->bytes_left ? CHUNK_DATA : TRAILER;
                c->trailer_bytes = 0;
            } else if (*p == ';' || *p == ' ') {
                c->in_extension = 1;
            } else if (*p != '\r' && !c->in_extension) {
                int digit = hex_digit(*p);
                if (digit < 0) {
                    return -1;
                }
                c->bytes_left = c->bytes_left * 16 + digit;
            }
            p++;
            break;
        case CHUNK_DATA:
            p += take_data(c, p, end, now);
            if (!c->bytes_left) {
                c->chunk_state = CHUNK_END;
            }
            break;
        case CHUNK_END:
            if (*p++ == '\n') {
                c->chunk_state = CHUNK_SIZE;
                c->in_extension = 0;
            }
            break;
        case TRAILER:
            if (*p == '\n') {
                if (!c->trailer_bytes) {
                    return 1;
                }
                c->trailer_bytes = 0;
            } else if (*p != '\r') {
                c->trailer_bytes++;
            }
            p++;
            break;
        }
    }
    return 0;
}

/* Parse received bytes. Return 1 if the response is complete, -1 if it is malformed, else 0. */
static int parse_response(connection *c, const char *p, size_t size, ns_t now) {
    const char *end = p + size;
    while (c->state == IN_HEAD) {
        size_t room = sizeof c->head - 1 - c->head_bytes;
        size_t copied = (size_t)(end - p) < room ? (size_t)(end - p) : room;
        memcpy(c->head + c->head_bytes, p, copied);
        size_t filled = c->head_bytes + copied;
        c->head[filled] = 0;
        char *blank = strstr(c->head, "\r\n\r\n");
        if (!blank) {
            c->head_bytes = filled;
            return filled == sizeof c->head - 1 ? -1 : 0;
        }
        p += blank + 4 - c->head - c->head_bytes;
        blank[2] = 0;
        c->head_bytes = 0;
        int result = parse_head(c);
        if (result < 0) {
            return -1;
        }
        /* Another head follows an informational one. */
        if (c->status / 100 != 1) {
            c->state = IN_BODY;
            if (result) {
                return 1;
            }
        }
    }
    if (c->framing == CHUNKED) {
        return parse_chunks(c, p, end, now);
    }
    if (c->framing == BY_LENGTH) {
        take_data(c, p, end, now);
        return !c->bytes_left;
    }
    parse_body(c, p, end - p, now);
    return 0;
}

#endif
