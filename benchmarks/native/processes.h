/* CPU time and memory of watched processes, each with all of its descendants, from /proc. */
#ifndef PROCESSES_H
#define PROCESSES_H

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WATCHED_MAX 16
#define TREE_MAX 4096
#define PROCESSES_MAX 65536

typedef struct {
    int root;
    int members[TREE_MAX];
    int size;
    double cpu_at_start;
    double cpu_at_end;
    long max_rss_kb;
} tree;

static tree watched[WATCHED_MAX];
static int watched_count;

/* Read the parent of a process. Return 0 if the process does not exist. */
static int read_parent(int pid, int *parent) {
    char path[64];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) {
        return 0;
    }
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    /* The name of the program is in parentheses, and may contain anything. */
    char *fields = strrchr(text, ')');
    return fields && sscanf(fields + 2, "%*c %d", parent) == 1;
}

/* Return the CPU seconds of all threads of a process; 0 if it does not exist. Its clock counts
 * nanoseconds, and /proc only ticks of 10 ms. */
static double cpu_seconds(int pid) {
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) {
        return 0;
    }
    return used.tv_sec + used.tv_nsec / 1e9;
}

static long rss_kb(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *file = fopen(path, "r");
    if (!file) {
        return 0;
    }
    long resident = 0;
    int found = fscanf(file, "%*d %ld", &resident);
    fclose(file);
    return found == 1 ? resident * (sysconf(_SC_PAGESIZE) / 1024) : 0;
}

static int is_member(const tree *t, int pid) {
    for (int i = 0; i < t->size; i++) {
        if (t->members[i] == pid) {
            return 1;
        }
    }
    return 0;
}

/* Find the descendants of all watched processes. */
static void find_members(void) {
    static int pids[PROCESSES_MAX];
    static int parents[PROCESSES_MAX];
    int count = 0;
    DIR *folder = opendir("/proc");
    struct dirent *entry;
    while ((entry = readdir(folder)) && count < PROCESSES_MAX) {
        if (isdigit((unsigned char)entry->d_name[0])) {
            pids[count] = atoi(entry->d_name);
            count += read_parent(pids[count], &parents[count]);
        }
    }
    closedir(folder);
    for (tree *t = watched; t < watched + watched_count; t++) {
        t->members[0] = t->root;
        t->size = 1;
        for (int i = 0; i < t->size; i++) {
            for (int k = 0; k < count && t->size < TREE_MAX; k++) {
                if (parents[k] == t->members[i] && !is_member(t, pids[k])) {
                    t->members[t->size++] = pids[k];
                }
            }
        }
    }
}

static double tree_cpu(const tree *t) {
    double sum = 0;
    for (int i = 0; i < t->size; i++) {
        sum += cpu_seconds(t->members[i]);
    }
    return sum;
}

static void note_memory(void) {
    for (tree *t = watched; t < watched + watched_count; t++) {
        long sum = 0;
        for (int i = 0; i < t->size; i++) {
            sum += rss_kb(t->members[i]);
        }
        if (sum > t->max_rss_kb) {
            t->max_rss_kb = sum;
        }
    }
}

/* Print the member `watched` of a JSON object: CPU seconds between start and end, highest memory
 * in units of 1,000,000 bytes. */
static void print_watched(void) {
    printf("\"watched\":[");
    for (tree *t = watched; t < watched + watched_count; t++) {
        printf("%s{\"pid\":%d,\"processes\":%d,\"cpu_s\":%.6f,\"rss_mb\":%.3f}",
               t == watched ? "" : ",", t->root, t->size, t->cpu_at_end - t->cpu_at_start,
               t->max_rss_kb * 1024 / 1e6);
    }
    printf("],");
}

#endif
