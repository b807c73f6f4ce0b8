/* The answers of mock_upstream: the texts that never change, and the events of a stream. */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <stdio.h>
#include <string.h>

#include "common.h"

#define WHOLE_BYTES 600
#define EVENT_MAX_BYTES 512

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char CONTINUE[] = "HTTP/1.1 100 Continue\r\n\r\n";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"mock\",\"max_model_len\":8192}]}";
static const char OK[] = "{\"status\":\"ok\"}";
static const char WHOLE_START[] =
    "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion\",\"created\":1700000000,"
    "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
    "\"content\":\"";
static const char WHOLE_END[] =
    "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":75,"
    "\"completion_tokens\":64,\"total_tokens\":139}}";
static const char FILLER[] = "lorem ipsum dolor sit amet ";
static const char EVENT_START[] =
    "data: {\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion.chunk\","
    "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{"
    "\"content\":\" tok @";
static const char EVENT_END[] = "\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char LAST_EVENT_END[] =
    "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
static const char LAST_CHUNK[] = "0\r\n\r\n";

typedef struct {
    char bytes[1024];
    size_t size;
} answer;

static answer whole;
static answer models;
static answer fine;

static void build_answer(answer *a, const char *body) {
    a->size = snprintf(a->bytes, sizeof a->bytes,
                       "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n%s",
                       strlen(body), body);
}

static void build_answers(void) {
    char body[WHOLE_BYTES + 1];
    size_t size = sprintf(body, "%s", WHOLE_START);
    size_t content_end = WHOLE_BYTES - strlen(WHOLE_END);
    for (int i = 0; size < content_end; i++) {
        body[size++] = FILLER[i % strlen(FILLER)];
    }
    strcpy(body + size, WHOLE_END);
    build_answer(&whole, body);
    build_answer(&models, MODELS);
    build_answer(&fine, OK);
}

static char *copied(char *to, const char *text, size_t size) {
    memcpy(to, text, size);
    return to + size;
}

/* The length of a literal, without its NUL. */
#define LENGTH(literal) (sizeof(literal) - 1)
#define COPIED(to, literal) copied(to, literal, LENGTH(literal))

static char *with_number(char *to, uint64_t value) {
    char digits[24];
    int count = 0;
    do {
        digits[count++] = '0' + value % 10;
        value /= 10;
    } while (value);
    while (count) {
        *to++ = digits[--count];
    }
    return to;
}

/* Write an event with the time of its creation, as one chunk, and return the end of its bytes. */
static char *write_event(char *to, int is_last) {
    static const char hexadecimal[] = "0123456789abcdef";
    /* The size of the chunk follows when it is known: three digits and a line break. */
    char *start = to + 5;
    char *end = COPIED(start, EVENT_START);
    end = with_number(end, now_ns());
    end = is_last ? COPIED(end, LAST_EVENT_END) : COPIED(end, EVENT_END);
    size_t size = end - start;
    to[0] = hexadecimal[size >> 8 & 15];
    to[1] = hexadecimal[size >> 4 & 15];
    to[2] = hexadecimal[size & 15];
    to[3] = '\r';
    to[4] = '\n';
    end = COPIED(end, "\r\n");
    return is_last ? COPIED(end, LAST_CHUNK) : end;
}

#endif
