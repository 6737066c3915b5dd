/*
 * Measures the designs of thread-local storage. Writes one line of JSON for
 * each case, with the samples of each design: nanoseconds per call, or bytes.
 * Samples with the same index were taken right after one another.
 *
 * Arguments: the file to write; how many samples to take of each case; how
 * long a sample must last, in nanoseconds; and, optionally, two libguacs, stock
 * and patched. Standard input may name the cases to measure, one a line, as
 * they are printed on standard error. If it is empty, all are measured.
 */

#define _GNU_SOURCE

#include "design.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LENGTH(array) ((int) (sizeof(array) / sizeof(*(array))))

/* Ends the program if something is wrong, as figures would mean nothing then */
#define CHECK(condition) ((condition) ? (void) 0 : give_up(#condition, __LINE__))

static void give_up(const char* condition, int line) {
    fprintf(stderr, "bench.c:%i: not true: %s (errno: %s)\n", line, condition, strerror(errno));
    exit(1);
}

enum { LOW, HIGH, FLOOR, MUTEX_ARRAY, TLS_RS, DESIGNS };

static const char* const names[DESIGNS] = {
    "pthread_low", "pthread_high", "thread", "mutex_array", "tls_rs"
};

/* The arrays behind a mutex have a fixed size: as large as necessary, no larger */
static const design* design_of(int which, int live) {
    switch (which) {
        case LOW: case HIGH: return &bench_pthread;
        case FLOOR: return &bench_thread;
        case MUTEX_ARRAY: return live <= 1000 ? &bench_mutex_array : &bench_mutex_array_large;
        default: return &bench_tls_rs;
    }
}

/* Samples of each case, and nanoseconds that each must last */
static int samples;
static double sample_ns;

/* The processors to run on */
static int processors[2], processor_count;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void find_processors(void) {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
    for (int i = 0; i < CPU_SETSIZE && processor_count < LENGTH(processors); i++)
        if (CPU_ISSET(i, &set))
            processors[processor_count++] = i;
    CHECK(processor_count > 0);
}

static void pin(int thread) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processors[thread % processor_count], &set);
    CHECK(pthread_setaffinity_np(pthread_self(), sizeof(set), &set) == 0);
}

/* ---- Which cases ---- */

typedef struct { char operation[32], keys[16]; int live, used, threads; } wanted_case;

static wanted_case wanted_cases[512];
static int wanted_count;

static void read_wanted(void) {
    wanted_case* next = wanted_cases;
    while (scanf("%31s %d of %d keys, %15s %d thread(s)\n", next->operation, &next->used, &next->live, next->keys, &next->threads) == 5)
        CHECK(++next < wanted_cases + LENGTH(wanted_cases));
    CHECK(feof(stdin));
    wanted_count = next - wanted_cases;
}

/* Whether to measure a case. NULL and 0 stand for any */
static int is_wanted(const char* operation, int live, int used, const char* keys, int threads) {
    for (int i = 0; i < wanted_count; i++) {
        const wanted_case* wanted = &wanted_cases[i];
        if ((operation == NULL || strcmp(operation, wanted->operation) == 0)
                && (live == 0 || live == wanted->live) && (used == 0 || used == wanted->used)
                && (keys == NULL || strcmp(keys, wanted->keys) == 0)
                && (threads == 0 || threads == wanted->threads))
            return 1;
    }
    return wanted_count == 0;
}

/* ---- Output ---- */

static FILE* output;
static int designs_written;

static void begin_case(const char* operation, int live, int used, const char* keys, int threads, const char* unit) {
    fprintf(stderr, "%s %i of %i keys, %s %i thread(s)\n", operation, used, live, keys, threads);
    fprintf(output, "{\"operation\":\"%s\",\"live\":%i,\"used\":%i,\"keys\":\"%s\",\"threads\":%i,\"unit\":\"%s\",\"samples\":{",
            operation, live, used, keys, threads, unit);
    designs_written = 0;
}

static void write_samples(const char* name, const double* values, int count) {
    fprintf(output, "%s\"%s\":[", designs_written++ ? "," : "", name);
    for (int i = 0; i < count; i++)
        fprintf(output, "%s%.3f", i ? "," : "", values[i]);
    fprintf(output, "]");
}

static void end_case(void) {
    fprintf(output, "}}\n");
}

/* ---- Which keys ---- */

#define MOST_LIVE 1000000
#define MOST_USED 16

/* The live keys of a design, in the order of their creation */
typedef struct { uintptr_t* keys; int count; } live_keys;
static live_keys live_of[DESIGNS];

/* The home that tls-rs gives a key, of 32, with the n-th shift that it tries */
#define SHIFTS (sizeof(uintptr_t) * 8 - 9)

static uintptr_t home_with(uintptr_t key, int n) {
    return key >> (sizeof(key) * 8 - 5 - n) & 31;
}

static uintptr_t home(uintptr_t key) {
    return home_with(key, 0);
}

/* How many pairs of these keys have the same home */
static int collisions(const uintptr_t* keys, int stride, int used) {
    int pairs = 0;
    for (int i = 0; i < used; i++)
        for (int j = 0; j < i; j++)
            pairs += home(keys[i * stride]) == home(keys[j * stride]);
    return pairs;
}

/* The stride with the most keys that share a home */
static int unlucky_stride(const live_keys* live, int used) {
    int worst = 1, most = 0;
    for (int stride = 1; stride * used <= live->count && stride <= 4096; stride++) {
        int pairs = collisions(live->keys, stride, used);
        if (pairs > most) {
            most = pairs;
            worst = stride;
        }
    }
    return worst;
}

/*
 * The choice of an adversary who knows the shifts: of many keys with the home
 * of the first one, always the key that leaves the fewest shifts without a
 * collision
 */
static void worst_keys(const live_keys* live, uintptr_t* keys, int used) {
    uint32_t taken[SHIFTS] = { 0 };
    keys[0] = live->keys[0];
    for (int found = 0; found < used; found++) {
        int candidates = 0, fewest = LENGTH(taken) + 1;
        for (int i = 0; found > 0 && i < live->count && candidates < 1000; i++) {
            uintptr_t key = live->keys[i];
            int left = 0, known = 0;
            for (int j = 0; j < found; j++)
                known |= keys[j] == key;
            if (known || (live->count > 1000 && home(key) != home(keys[0])))
                continue;
            candidates++;
            for (int n = 0; n < LENGTH(taken); n++)
                left += taken[n] != UINT32_MAX && !(taken[n] >> home_with(key, n) & 1);
            if (left < fewest) {
                fewest = left;
                keys[found] = key;
            }
        }
        for (int n = 0; n < LENGTH(taken); n++) {
            uint32_t bit = (uint32_t) 1 << home_with(keys[found], n);
            taken[n] = taken[n] & bit ? UINT32_MAX : taken[n] | bit;
        }
    }
}

/* The keys that the threads use */
static uintptr_t chosen[DESIGNS][MOST_USED];

static void choose(const char* choice, int used) {
    for (int which = 0; which < DESIGNS; which++) {
        const live_keys* live = &live_of[which];
        int count = live->count < used ? live->count : used, stride = 1;
        if (which == TLS_RS && strcmp(choice, "worst") == 0) {
            worst_keys(live, chosen[which], count);
            continue;
        }
        if (strcmp(choice, "strided") == 0)
            stride = live->count / count;
        if (which == TLS_RS && strcmp(choice, "unlucky") == 0)
            stride = unlucky_stride(live, count);
        for (int i = 0; i < count; i++)
            chosen[which][i] = live->keys[i * stride];
    }
}

/* Creates so many keys, or as many as the design can have */
static void create_keys(int which, int live) {
    const design* d = design_of(which, live);
    uintptr_t* keys = calloc(live, sizeof(*keys));
    int count = 0;
    CHECK(keys != NULL);
    if (which == HIGH) {
        /* Those below 32 are in use meanwhile */
        uintptr_t low[32];
        int taken = 0;
        for (uintptr_t key = 0; key < 31; low[taken++] = key)
            CHECK(d->create(&key, NULL) == 0);
        for (; count < (live < 900 ? live : 900); count++)
            CHECK(d->create(&keys[count], NULL) == 0);
        while (taken > 0)
            d->delete(low[--taken]);
    }
    else {
        int most = which == LOW ? (live < 16 ? live : 16) : which == FLOOR ? 1 : live;
        for (; count < most; count++)
            CHECK(d->create(&keys[count], NULL) == 0);
        CHECK(which != LOW || keys[count - 1] < 32);
    }
    live_of[which] = (live_keys) { keys, count };
}

static void delete_keys(int which, int live) {
    for (int i = 0; i < live_of[which].count; i++)
        CHECK(design_of(which, live)->delete(live_of[which].keys[i]) == 0);
    free(live_of[which].keys);
}

/* ---- Loops ---- */

typedef void (*loop)(const uintptr_t* keys, long turns);

static loop loop_of(const design* d, const char* operation) {
    return strcmp(operation, "get") == 0 || strcmp(operation, "get_during_churn") == 0 ? d->get_loop
        : strcmp(operation, "set") == 0 ? d->set_loop
        : strcmp(operation, "dependent_get") == 0 ? d->dependent_loop
        : strcmp(operation, "pair") == 0 ? d->pair_loop
        : d->create_loop;
}

/* Nanoseconds per call */
static double measure(loop loop, const uintptr_t* keys, long turns) {
    double begin = now();
    loop(keys, turns);
    return (now() - begin) / (turns * CALLS);
}

/* How many turns make a sample last long enough, from the quickest of a few tries */
static long calibrate(loop loop, const uintptr_t* keys) {
    double quickest = 1e9;
    for (int i = 0; i < 8; i++) {
        double ns = measure(loop, keys, 2);
        quickest = ns < quickest ? ns : quickest;
    }
    long turns = sample_ns / (quickest * CALLS);
    return turns > 0 ? turns : 1;
}

/* The keys of each design that a thread uses, repeated to fill a loop */
typedef struct { uintptr_t keys[DESIGNS][CALLS]; } schedule;

static void use_keys(schedule* schedule, int live, int used) {
    for (int which = 0; which < DESIGNS; which++) {
        uintptr_t* keys = schedule->keys[which];
        int own = which == FLOOR ? 1 : used;
        memcpy(keys, chosen[which], own * sizeof(*keys));
        for (int i = own; i < CALLS; i++)
            keys[i] = keys[i - own];
        for (int i = 0; i < own; i++)
            CHECK(design_of(which, live)->set(keys[i], &keys[(i + 1) % own]) == 0);
        for (int i = 0; i < CALLS; i++)
            CHECK(design_of(which, live)->get(keys[i]) == &keys[(i + 1) % own]);
    }
}

typedef struct {
    const char* choice;
    const char* const* operations;
    int live, used, threads;
} run;

/* Shared by two threads. Each waits for the other before each sample */
static atomic_int arrived;
static atomic_bool finished;

static void meet(int threads, int meeting) {
    atomic_fetch_add(&arrived, 1);
    for (int spins = 1; atomic_load(&arrived) < threads * meeting; spins++)
        if (spins % 4096 == 0)
            sched_yield();
}

static double results[2][DESIGNS + 1][10000];

static void* measure_thread(void* data, int thread) {
    const run* run = data;
    static schedule schedules[2];
    schedule* schedule = &schedules[thread];
    int meetings = 0;
    pin(thread);
    use_keys(schedule, run->live, run->used);
    for (const char* const* operation = run->operations; *operation != NULL; operation++) {
        if (!is_wanted(*operation, run->live, run->used, run->choice, run->threads))
            continue;
        loop loops[DESIGNS];
        long turns[DESIGNS];
        for (int which = 0; which < DESIGNS; which++) {
            loops[which] = loop_of(design_of(which, run->live), *operation);
            turns[which] = calibrate(loops[which], schedule->keys[which]);
            /* The loop for set has changed the values */
            use_keys(schedule, run->live, run->used);
        }
        for (int sample = 0; sample < samples; sample++)
            for (int i = 0; i < DESIGNS; i++) {
                int which = (sample + i) % DESIGNS;
                if (run->threads > 1)
                    meet(run->threads, ++meetings);
                measure(loops[which], schedule->keys[which], 2); /* Fills the caches again */
                results[thread][which][sample] = measure(loops[which], schedule->keys[which], turns[which]);
            }
        if (run->threads > 1)
            meet(run->threads, ++meetings);
        if (thread == 0) {
            begin_case(*operation, run->live, run->used, run->choice, run->threads, "ns");
            for (int which = 0; which < DESIGNS; which++) {
                for (int sample = 0; sample < samples && run->threads > 1; sample++)
                    results[0][which][sample] = (results[0][which][sample] + results[1][which][sample]) / 2;
                write_samples(names[which], results[0][which], samples);
            }
            end_case();
        }
        if (run->threads > 1)
            meet(run->threads, ++meetings);
    }
    return NULL;
}

static void* first_thread(void* data) {
    return measure_thread(data, 0);
}

static void* second_thread(void* data) {
    return measure_thread(data, 1);
}

static void measure_loops(run run) {
    pthread_t first, second;
    if (!is_wanted(NULL, run.live, run.used, run.choice, run.threads))
        return;
    atomic_store(&arrived, 0);
    CHECK(pthread_create(&first, NULL, first_thread, &run) == 0);
    if (run.threads > 1) {
        CHECK(pthread_create(&second, NULL, second_thread, &run) == 0);
        CHECK(pthread_join(second, NULL) == 0);
    }
    CHECK(pthread_join(first, NULL) == 0);
}

/* One thread reads while another creates and deletes a key after each 48 reads */

static atomic_int churned;
static schedule churner_schedule;

static void* churn(void* data) {
    const run* run = data;
    pin(1);
    use_keys(&churner_schedule, run->live, run->used);
    uintptr_t key = 0;
    atomic_store(&arrived, 1);
    while (!atomic_load(&finished)) {
        const design* d = design_of(atomic_load(&churned), run->live);
        d->get_loop(churner_schedule.keys[atomic_load(&churned)], 1);
        CHECK(d->create(&key, NULL) == 0);
        CHECK(d->delete(key) == 0);
    }
    return NULL;
}

static void* measure_during_churn(void* data) {
    const run* run = data;
    static schedule schedule;
    pin(0);
    use_keys(&schedule, run->live, run->used);
    while (!atomic_load(&arrived))
        sched_yield();
    long turns[DESIGNS];
    for (int which = 0; which < DESIGNS; which++)
        turns[which] = calibrate(design_of(which, run->live)->get_loop, schedule.keys[which]);
    for (int sample = 0; sample < samples; sample++)
        for (int i = 0; i < DESIGNS; i++) {
            int which = (sample + i) % DESIGNS;
            loop get = design_of(which, run->live)->get_loop;
            atomic_store(&churned, which);
            measure(get, schedule.keys[which], turns[which] / 4 + 1);
            results[0][which][sample] = measure(get, schedule.keys[which], turns[which]);
        }
    atomic_store(&finished, 1);
    begin_case("get_during_churn", run->live, run->used, run->choice, 2, "ns");
    for (int which = 0; which < DESIGNS; which++)
        write_samples(names[which], results[0][which], samples);
    end_case();
    return NULL;
}

static void measure_churn(run run) {
    pthread_t reader, churner;
    if (!is_wanted("get_during_churn", run.live, run.used, run.choice, run.threads))
        return;
    atomic_store(&arrived, 0);
    atomic_store(&finished, 0);
    CHECK(pthread_create(&churner, NULL, churn, &run) == 0);
    CHECK(pthread_create(&reader, NULL, measure_during_churn, &run) == 0);
    CHECK(pthread_join(reader, NULL) == 0);
    CHECK(pthread_join(churner, NULL) == 0);
}

/* ---- Threads ---- */

/*
 * A thread sets one value and returns. The time that this takes until libc has
 * called all destructors is measured in the thread itself, with a native key
 * whose destructor libc calls last. (Libc frees the memory of native keys from
 * 32 on later. That is not measured.)
 */

static pthread_key_t last;

typedef struct {
    const design* design;
    uintptr_t key;
    double begin, touched, returned, ended;
} life;

static void nothing(void* value) {
    (void) value;
}

static void note_end(void* data) {
    ((life*) data)->ended = now();
}

static void* live_shortly(void* data) {
    life* life = data;
    pin(0);
    CHECK(pthread_setspecific(last, data) == 0);
    now();
    life->begin = now();
    int error = life->design != NULL ? life->design->set(life->key, data) : 0;
    life->touched = now();
    CHECK(error == 0);
    life->returned = now();
    return NULL;
}

static int compare(const void* one, const void* other) {
    double a = *(const double*) one, b = *(const double*) other;
    return (a > b) - (a < b);
}

/* The mean of the middle half of some threads, as the clock may be coarse */
static double live_on_average(const design* design, uintptr_t key) {
    double lives[40], sum = 0;
    int count = LENGTH(lives);
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        life life = { design, key, 0, 0, 0, 0 };
        CHECK(pthread_create(&thread, NULL, live_shortly, &life) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        lives[i] = life.touched - life.begin + life.ended - life.returned;
    }
    qsort(lives, count, sizeof(*lives), compare);
    for (int i = count / 4; i < count - count / 4; i++)
        sum += lives[i];
    return sum / (count - count / 4 * 2);
}

static void measure_lives(const char* operation, void (*destructor)(void*)) {

    if (!is_wanted(operation, 1, 1, "contiguous", 1))
        return;

    /* Native keys from each block of 32, the last for the destructor that is called last */
    pthread_key_t native[64 + 1];
    int taken = 0, high = 0;
    do
        CHECK(pthread_key_create(&native[taken], native[taken - (taken > 0)] >= 63 - 1 ? note_end : destructor) == 0);
    while (native[taken++] < 64);
    last = native[taken - 1];
    while (native[high] < 32)
        high++;

    /* A slot for a lock has no destructor */
    const design* measured[DESIGNS + 1];
    uintptr_t keys[DESIGNS + 1] = { native[0], native[high] };
    int count = destructor == NULL ? DESIGNS + 1 : DESIGNS;
    for (int which = 0; which < count; which++) {
        measured[which] = which == DESIGNS ? &bench_slots16 : design_of(which, 1);
        CHECK(which < FLOOR || measured[which]->create(&keys[which], destructor) == 0);
    }

    for (int sample = 0; sample < samples; sample++)
        for (int i = 0; i < count; i++) {
            int which = (sample + i) % count;
            /* The time of a thread that sets no value is subtracted */
            results[0][which][sample] = live_on_average(measured[which], keys[which])
                - live_on_average(NULL, 0);
        }
    begin_case(operation, 1, 1, "contiguous", 1, "ns");
    for (int which = 0; which < count; which++)
        if (which != FLOOR)
            write_samples(which == DESIGNS ? "slots16" : names[which], results[0][which], samples);
    end_case();

    for (int which = FLOOR; which < count; which++)
        measured[which]->delete(keys[which]);
    while (taken > 0)
        pthread_key_delete(native[--taken]);

}

/* ---- Memory ---- */

typedef struct { int live, used, which; double bytes; } memory;

static double allocated(void) {
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static void* use_memory(void* data) {
    memory* memory = data;
    const uintptr_t* keys = chosen[memory->which];
    int used = memory->which == FLOOR ? 1 : memory->used;
    void* volatile first = malloc(1); /* So that malloc allocates its own data for a new thread */
    free(first);
    double before = allocated();
    for (int i = 0; i < used; i++)
        CHECK(design_of(memory->which, memory->live)->set(keys[i], memory) == 0);
    memory->bytes = allocated() - before;
    return NULL;
}

static void measure_memory(int live, int used, const char* choice) {
    if (!is_wanted("memory", live, used, choice, 1))
        return;
    begin_case("memory", live, used, choice, 1, "bytes");
    for (int which = 0; which < DESIGNS; which++) {
        pthread_t thread;
        memory memory = { live, used, which, 0 };
        CHECK(pthread_create(&thread, NULL, use_memory, &memory) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        write_samples(names[which], &memory.bytes, 1);
    }
    end_case();
}

/* ---- libguac ---- */

/* Each begins a cache line, so that none has a better address */
typedef struct { _Alignas(64) char bytes[512]; } rwlock;

typedef struct {
    void (*init)(rwlock*);
    int (*acquire_read)(rwlock*);
    int (*acquire_write)(rwlock*);
    int (*release)(rwlock*);
    int* (*error)(void);
    const char** (*error_message)(void);
    rwlock lock;
} libguac;

/* Stock, patched, and the locks with 16 slots per thread */
enum { STOCK, PATCHED, SLOTS16, LIBGUACS };

static const char* const libguac_names[LIBGUACS] = { "stock", "patched", "slots16" };

static void* symbol(void* library, const char* name) {
    void* address = dlsym(library, name);
    if (address == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return address;
}

static libguac open_libguac(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    libguac guac = {
        symbol(library, "guac_rwlock_init"),
        symbol(library, "guac_rwlock_acquire_read_lock"),
        symbol(library, "guac_rwlock_acquire_write_lock"),
        symbol(library, "guac_rwlock_release_lock"),
        symbol(library, "__guac_error"),
        symbol(library, "__guac_error_message"),
        { { 0 } }
    };
    return guac;
}

/* Locks as libguac's, without the rest of it */
static libguac slots16(void) {
    libguac guac = {
        symbol(RTLD_DEFAULT, "slots16_rwlock_init"),
        symbol(RTLD_DEFAULT, "slots16_rwlock_acquire_read_lock"),
        symbol(RTLD_DEFAULT, "slots16_rwlock_acquire_write_lock"),
        symbol(RTLD_DEFAULT, "slots16_rwlock_release_lock"),
        NULL, NULL,
        { { 0 } }
    };
    return guac;
}

/* Locks must have 16 slots per thread, and answer as those of libguac do */
static void check_slots16(const libguac* guac) {
    static rwlock locks[17];
    for (int i = 0; i < 17; i++)
        guac->init(&locks[i]);
    for (int i = 0; i < 16; i++)
        CHECK(guac->acquire_read(&locks[i]) == 0);
    CHECK(guac->acquire_read(&locks[16]) != 0);
    CHECK(guac->acquire_write(&locks[3]) == 0 && guac->acquire_read(&locks[3]) == 0);
    CHECK(guac->release(&locks[3]) == 0 && guac->release(&locks[3]) == 0);
    for (int i = 0; i < 16; i++)
        CHECK(guac->release(&locks[i]) == 0);
    CHECK(guac->release(&locks[0]) != 0);
    CHECK(guac->acquire_write(&locks[16]) == 0 && guac->release(&locks[16]) == 0);
}

/* Nanoseconds per turn */
static double measure_libguac(libguac* guac, const char* operation, long turns) {
    double begin = now();
    if (strcmp(operation, "rwlock_read") == 0)
        for (long turn = 0; turn < turns; turn++) {
            guac->acquire_read(&guac->lock);
            guac->release(&guac->lock);
        }
    else if (strcmp(operation, "rwlock_write") == 0)
        for (long turn = 0; turn < turns; turn++) {
            guac->acquire_write(&guac->lock);
            guac->release(&guac->lock);
        }
    else if (strcmp(operation, "rwlock_nested") == 0)
        for (long turn = 0; turn < turns; turn++) {
            guac->acquire_read(&guac->lock);
            guac->acquire_read(&guac->lock);
            guac->release(&guac->lock);
            guac->release(&guac->lock);
        }
    else
        for (long turn = 0; turn < turns; turn++) {
            *guac->error() = 0;
            *guac->error_message() = operation;
        }
    return (now() - begin) / turns;
}

static void measure_libguacs(const char* stock, const char* patched) {
    static const char* const operations[] = { "rwlock_read", "rwlock_write", "rwlock_nested", "guac_error" };
    libguac guacs[LIBGUACS] = { open_libguac(stock), open_libguac(patched), slots16() };
    pin(0);
    check_slots16(&guacs[SLOTS16]);
    for (int which = 0; which < LIBGUACS; which++) {
        guacs[which].init(&guacs[which].lock);
        CHECK(guacs[which].acquire_write(&guacs[which].lock) == 0);
        CHECK(guacs[which].release(&guacs[which].lock) == 0);
    }
    for (int operation = 0; operation < LENGTH(operations); operation++) {
        if (!is_wanted(operations[operation], 1, 1, "contiguous", 1))
            continue;
        int count = strcmp(operations[operation], "guac_error") == 0 ? SLOTS16 : LIBGUACS;
        long turns[LIBGUACS];
        for (int which = 0; which < count; which++) {
            double quickest = 1e9;
            for (int i = 0; i < 20; i++) {
                double ns = measure_libguac(&guacs[which], operations[operation], 100);
                quickest = ns < quickest ? ns : quickest;
            }
            turns[which] = sample_ns / quickest + 1;
        }
        for (int sample = 0; sample < samples; sample++)
            for (int i = 0; i < count; i++) {
                int which = (sample + i) % count;
                results[0][which][sample] = measure_libguac(&guacs[which], operations[operation], turns[which]);
            }
        begin_case(operations[operation], 1, 1, "contiguous", 1, "ns");
        for (int which = 0; which < count; which++)
            write_samples(libguac_names[which], results[0][which], samples);
        end_case();
    }
}

int main(int argc, char** argv) {

    static const int lives[] = { 1, 100, 10000, MOST_LIVE };
    static const int useds[] = { 1, 4, 12, MOST_USED };
    static const char* const choices[] = { "contiguous", "strided", "unlucky", "worst" };
    static const char* const loops[] = { "get", "dependent_get", "set", "pair", NULL };
    static const char* const get[] = { "get", NULL };
    static const char* const create[] = { "create_delete", NULL };

    CHECK(argc >= 4);
    output = fopen(argv[1], "w");
    CHECK(output != NULL);
    samples = atoi(argv[2]);
    sample_ns = atof(argv[3]);
    CHECK(samples > 0 && samples <= LENGTH(results[0][0]) && sample_ns > 0);
    find_processors();
    read_wanted();

    measure_lives("thread", NULL);
    measure_lives("thread_with_destructor", nothing);

    for (int i = 0; i < LENGTH(lives); i++) {
        int live = lives[i];
        if (!is_wanted(NULL, live, 0, NULL, 0))
            continue;
        for (int which = 0; which < DESIGNS; which++)
            create_keys(which, live);
        choose("contiguous", 1);
        for (int threads = 1; threads <= 2; threads++)
            measure_loops((run) { "contiguous", create, live, 1, threads });
        for (int j = 0; j < LENGTH(useds) && useds[j] <= live; j++)
            for (int k = 0; k < (useds[j] == 1 ? 1 : LENGTH(choices)); k++) {
                if (!is_wanted(NULL, live, useds[j], choices[k], 0))
                    continue;
                choose(choices[k], useds[j]);
                measure_memory(live, useds[j], choices[k]);
                measure_loops((run) { choices[k], loops, live, useds[j], 1 });
                measure_loops((run) { choices[k], get, live, useds[j], 2 });
            }
        for (int j = 0; j < LENGTH(useds) && useds[j] <= live; j++) {
            choose("contiguous", useds[j]);
            measure_churn((run) { "contiguous", get, live, useds[j], 2 });
        }
        for (int which = 0; which < DESIGNS; which++)
            delete_keys(which, live);
    }

    if (argc >= 6)
        measure_libguacs(argv[4], argv[5]);
    CHECK(fclose(output) == 0);
    return 0;

}
