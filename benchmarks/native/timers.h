/* A heap of streams, ordered by the time at which their next event is due. */
#ifndef TIMERS_H
#define TIMERS_H

#include <stdlib.h>

#include "common.h"

#define NOT_IN_HEAP (-1)

typedef struct connection {
    int fd;
    int waits_for_write;
    int closes;
    int is_dead;
    int is_answering;
    struct connection *next_dead;

    /* Received bytes of requests that are not answered yet. */
    char *in;
    size_t in_size;
    size_t in_capacity;
    /* Bytes that the socket did not take yet. */
    char *out;
    size_t out_start;
    size_t out_size;
    size_t out_capacity;

    /* The stream. */
    int is_streaming;
    int events_left;
    ns_t gap;
    ns_t due;
    int place;
} connection;

static connection **heap;
static int heap_size;
static int heap_capacity;

static void heap_put(int place, connection *c) {
    heap[place] = c;
    c->place = place;
}

static void heap_rise(int place) {
    connection *c = heap[place];
    while (place > 0) {
        int parent = (place - 1) / 2;
        if (heap[parent]->due <= c->due) {
            break;
        }
        heap_put(place, heap[parent]);
        place = parent;
    }
    heap_put(place, c);
}

static void heap_sink(int place) {
    connection *c = heap[place];
    for (;;) {
        int child = 2 * place + 1;
        if (child >= heap_size) {
            break;
        }
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) {
            child++;
        }
        if (heap[child]->due >= c->due) {
            break;
        }
        heap_put(place, heap[child]);
        place = child;
    }
    heap_put(place, c);
}

/* Put a stream at its place in the order, whether it is in the heap or not. */
static void heap_update(connection *c) {
    if (c->place == NOT_IN_HEAP) {
        if (heap_size == heap_capacity) {
            heap_capacity = heap_capacity ? heap_capacity * 2 : 1024;
            heap = realloc(heap, sizeof *heap * heap_capacity);
        }
        heap_put(heap_size++, c);
    }
    heap_rise(c->place);
    heap_sink(c->place);
}

static void heap_remove(connection *c) {
    int place = c->place;
    if (place == NOT_IN_HEAP) {
        return;
    }
    c->place = NOT_IN_HEAP;
    connection *last = heap[--heap_size];
    if (last != c) {
        heap_put(place, last);
        heap_update(last);
    }
}

#endif
