/* The parts of requests that mock_upstream needs: header fields, chunked bodies, fields of JSON. */
#ifndef REQUESTS_H
#define REQUESTS_H

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Find the integer or the `true` that follows a key in a JSON text. */
static long json_number(const char *body, size_t size, const char *key, long otherwise) {
    const char *end = body + size;
    const char *p = memmem(body, size, key, strlen(key));
    if (!p) {
        return otherwise;
    }
    p += strlen(key);
    while (p < end && (isspace((unsigned char)*p) || *p == ':')) {
        p++;
    }
    if (p < end && *p == 't') {
        return 1;
    }
    return p < end && isdigit((unsigned char)*p) ? strtol(p, NULL, 10) : otherwise;
}

static const char *find_header(const char *head, size_t size, const char *name) {
    const char *end = head + size;
    size_t length = strlen(name);
    const char *line = head;
    while ((line = memchr(line, '\n', end - line))) {
        line++;
        if ((size_t)(end - line) > length && !strncasecmp(line, name, length) &&
            line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " ");
        }
    }
    return NULL;
}

/* Remove the framing of a chunked body in place. Return the bytes that it occupied, or 0 if it is
 * not complete yet. */
static size_t decode_chunks(char *body, size_t size, size_t *decoded) {
    char *end = body + size;
    char *p = body;
    char *line_end;
    *decoded = 0;
    /* Nothing is moved before the body is complete: it is decoded from its start each time. */
    for (int moves = 0; moves < 2; moves++) {
        p = body;
        *decoded = 0;
        while ((line_end = memchr(p, '\n', end - p))) {
            size_t chunk = strtoul(p, NULL, 16);
            char *data = line_end + 1;
            if ((size_t)(end - data) < chunk + 2) {
                return 0;
            }
            if (moves) {
                memmove(body + *decoded, data, chunk);
            }
            *decoded += chunk;
            p = data + chunk + 2;
            if (!chunk) {
                break;
            }
        }
        if (!line_end) {
            return 0;
        }
    }
    return p - body;
}

#endif
