/* A histogram of durations with 64 steps for each power of two: its error is at most 1.6 %. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include <stdio.h>

#include "common.h"

#define STEPS 64
#define STEP_BITS 6
#define BUCKETS (STEPS * 44)

typedef struct {
    uint64_t count;
    uint64_t buckets[BUCKETS];
    double sum;
    ns_t max;
    ns_t min;
} histogram;

static int bucket_of(ns_t value) {
    if (value < STEPS) {
        return value;
    }
    int exponent = 63 - __builtin_clzll(value);
    int step = (value >> (exponent - STEP_BITS)) & (STEPS - 1);
    int bucket = (exponent - STEP_BITS + 1) * STEPS + step;
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* Return the middle of a bucket. */
static double value_of(int bucket) {
    if (bucket < STEPS) {
        return bucket;
    }
    int exponent = bucket / STEPS + STEP_BITS - 1;
    double width = 1ULL << (exponent - STEP_BITS);
    return (STEPS + bucket % STEPS) * width + width / 2;
}

static void histogram_add(histogram *h, ns_t value) {
    if (value < 0) {
        value = 0;
    }
    if (!h->count || value < h->min) {
        h->min = value;
    }
    if (value > h->max) {
        h->max = value;
    }
    h->count++;
    h->sum += value;
    h->buckets[bucket_of(value)]++;
}

static double histogram_quantile(const histogram *h, double quantile) {
    uint64_t wanted = quantile * h->count;
    uint64_t seen = 0;
    for (int i = 0; i < BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen > wanted) {
            double value = value_of(i);
            if (value < h->min) {
                return h->min;
            }
            return value > h->max ? h->max : value;
        }
    }
    return h->max;
}

/* Print a member of a JSON object, in milliseconds. */
static void histogram_print(const char *name, const histogram *h) {
    double mean = h->count ? h->sum / h->count : 0;
    printf("\"%s\":{\"n\":%llu,\"mean\":%.4f,\"min\":%.4f,\"p50\":%.4f,\"p90\":%.4f,"
           "\"p99\":%.4f,\"p999\":%.4f,\"max\":%.4f},",
           name, (unsigned long long)h->count, mean / NS_PER_MS, (double)h->min / NS_PER_MS,
           histogram_quantile(h, 0.5) / NS_PER_MS, histogram_quantile(h, 0.9) / NS_PER_MS,
           histogram_quantile(h, 0.99) / NS_PER_MS, histogram_quantile(h, 0.999) / NS_PER_MS,
           (double)h->max / NS_PER_MS);
}

#endif
