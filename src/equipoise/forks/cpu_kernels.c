/* A fork's step on a CPU: the Gram matrix of the tasks' gradients, MultiBalance's weights, the weighted sum; of gradients
 * in float32 or bfloat16, in float32.
 *
 * cpu_kernels.py calls them, hatch_build.py builds them. Each pass over the gradients reads a number once, where it lies:
 * in blocks that stay in the cache while all pairs of rows are multiplied. Parts of the rows are shared out among the
 * threads of PyTorch's own OpenMP runtime, whose entry is an argument: a second runtime would fight with it for the
 * processors. Results do not depend on the number of threads: partial sums are added up in the order of the parts. */

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define TILE 4        /* rows by rows whose products are summed at a time, in registers */
#define BLOCK 1024    /* columns that are multiplied while they are in the cache */
#define PART 16384    /* columns of a part; so many products are summed in float32, parts in double */
#define MOST_SUMS 256 /* partial matrices in memory */
#define GROUP 8       /* rows that are added at a time */
#ifndef WIDEST
#define WIDEST 16     /* most numbers that a processor takes at a time; tests try the smaller ones too */
#endif

typedef void runner(void (*work)(void *), void *given, unsigned threads, unsigned flags); /* GOMP_parallel */

typedef unsigned short half; /* the bits of a bfloat16 */

struct pass {
    const void *const *rows;
    bool halves; /* rows and sum are of bfloat16 */
    long count, length;
    long parts, group, next; /* parts of the rows; how many share a partial matrix; the next one to be taken */
    double *totals;          /* partial matrices, of which the lower half is filled */
    const float *weights;
    void *sum;
    int out_of_memory;
};

static long least(long a, long b)
{
    return a < b ? a : b;
}

static long numbers_in_tiles(long count)
{
    const long across = (count + TILE - 1) / TILE;
    return across * (across + 1) / 2 * TILE * TILE;
}

static float widened(half given)
{
    const unsigned bits = (unsigned)given << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

static half narrowed(float given)
{
    unsigned bits;
    memcpy(&bits, &given, sizeof bits);
    return given != given ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

#define JOINED(name, width, kind) name##_##width##_##kind
#define JOINED_LATE(name, width, kind) JOINED(name, width, kind)
#define OF_KIND(name) JOINED_LATE(name, WIDTH, HALF)

#define HALF 0
#include "cpu_kernels_of_widths.h"
#undef HALF
#define HALF 1
#include "cpu_kernels_of_widths.h"
#undef HALF

typedef void multiplier(const struct pass *, long begin, long end, float *tiles, double *total);
typedef void adder(const struct pass *, long begin, long end);

/* Returns how many numbers this processor takes at a time. */
static int width(void)
{
#if defined(__x86_64__)
    if (WIDEST >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        return 16;
    if (WIDEST >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 8;
#endif
    return 4;
}

#if defined(__x86_64__)
#define FOR_THIS_PROCESSOR(name, half) \
    (width() == 16 ? name##_16_##half : width() == 8 ? name##_8_##half : name##_4_##half)
#else
#define FOR_THIS_PROCESSOR(name, half) name##_4_##half
#endif

/* One thread's share: takes group after group of parts until none is left. */
static void work(void *given)
{
    struct pass *pass = given;
    multiplier *multiply = pass->halves ? FOR_THIS_PROCESSOR(multiply, 1) : FOR_THIS_PROCESSOR(multiply, 0);
    adder *add = pass->halves ? FOR_THIS_PROCESSOR(add, 1) : FOR_THIS_PROCESSOR(add, 0);
    float *tiles = NULL;
    if (pass->totals) {
        tiles = malloc(numbers_in_tiles(pass->count) * width() * sizeof *tiles);
        if (!tiles) {
            __atomic_store_n(&pass->out_of_memory, 1, __ATOMIC_RELAXED);
            return;
        }
    }
    for (;;) {
        const long group = __atomic_fetch_add(&pass->next, 1, __ATOMIC_RELAXED);
        const long first = group * pass->group, last = least(first + pass->group, pass->parts);
        if (first >= pass->parts)
            break;
        for (long part = first; part < last; part++) {
            const long begin = part * PART, end = least(begin + PART, pass->length);
            if (pass->totals)
                multiply(pass, begin, end, tiles, pass->totals + group * pass->count * pass->count);
            else
                add(pass, begin, end);
        }
    }
    free(tiles);
}

static void share_out(struct pass *pass, int threads, runner *run)
{
    threads = least(threads, (pass->parts + pass->group - 1) / pass->group);
    if (threads > 1)
        run(work, pass, threads, 0);
    else
        work(pass);
}

/* Writes the inner products of the rows to found, shape [count, count]; returns other than 0 where memory is short. */
int equipoise_gram_matrix(const void *const *rows, bool halves, long count, long length, int threads, runner *run,
                          float *found)
{
    const long parts = (length + PART - 1) / PART, group = (parts + MOST_SUMS - 1) / MOST_SUMS;
    const long sums = group ? (parts + group - 1) / group : 0;
    double *totals = calloc(sums * count * count + 1, sizeof *totals);
    if (!totals)
        return 1;
    struct pass pass = {
        .rows = rows, .halves = halves, .count = count, .length = length, .parts = parts,
        .group = group ? group : 1, .totals = totals};
    share_out(&pass, threads, run);
    for (long row = 0; row < count; row++)
        for (long column = 0; column <= row; column++) {
            double total = 0;
            for (long sum = 0; sum < sums; sum++)
                total += totals[(sum * count + row) * count + column];
            found[row * count + column] = found[column * count + row] = total;
        }
    free(totals);
    return pass.out_of_memory;
}

/* Writes the sum of the rows, each times its weight, to sum, shape [length]. */
void equipoise_weighted_sum(const void *const *rows, bool halves, const float *weights, long count, long length,
                            int threads, runner *run, void *sum)
{
    struct pass pass = {.rows = rows, .halves = halves, .count = count, .length = length,
                        .parts = (length + PART - 1) / PART, .group = 1, .weights = weights, .sum = sum};
    share_out(&pass, threads, run);
}

/* Projects values, shape [count], onto the simplex of this total: see equipoise.solvers.simplex. */
static void project(float *values, long count, float total)
{
    float largest = -INFINITY, threshold = -INFINITY;
    for (long i = 0; i < count; i++)
        largest = fmaxf(largest, values[i]);
    for (long i = 0; i < count; i++)
        values[i] = fmaxf(values[i] - largest, -1 - total);
    for (long i = 0; i < count; i++) {
        float sum = -total, above = 0;
        for (long j = 0; j < count; j++) {
            sum += values[j] >= values[i] ? values[j] : 0;
            above += values[j] >= values[i];
        }
        threshold = fmaxf(threshold, sum / above);
    }
    for (long i = 0; i < count; i++)
        values[i] = fmaxf(values[i] - threshold, 0);
}

/* Does a step of MultiBalance; arguments as of balance_step in cpu_kernels.py, and room for 3 * count numbers. */
void equipoise_balance_step(long count, const float *gram, float *averages, float *balance, const float *preferences,
                            const float *known, float *last_gram, float *last_weights, bool *last_present,
                            float *weights, bool *present, float *room, float gamma, float pull, float beta,
                            float unit, bool cosine)
{
    float *corrections = averages + count, *ratios = room, *pulled = room + count, *moved = room + 2 * count;
    float lengths = 0, seen = 0, left = 1;
    long here = 0;
    for (long task = 0; task < count; task++) {
        const float square = gram[task * (count + 1)], length = sqrtf(square);
        present[task] = last_present[task] = square > 0 && square < INFINITY;
        if (present[task]) {
            averages[task] += gamma * (length - averages[task]);
            corrections[task] += gamma * (1 - corrections[task]);
            pulled[task] = (balance[task] + pull) / length;
        } else
            left -= balance[task];
        ratios[task] = corrections[task] > 0 ? averages[task] / corrections[task] : 0;
        lengths += ratios[task];
        seen += corrections[task] > 0;
    }
    for (long row = 0; row < count; row++)
        for (long column = 0; column < count; column++)
            last_gram[row * count + column] = present[row] && present[column] ? gram[row * count + column] : 0;
    if (cosine) {
        for (long task = 0; task < count; task++) {
            float slope = 0;
            if (!present[task])
                continue;
            for (long other = 0; other < count; other++)
                slope += present[other] ? gram[task * count + other] * pulled[other] : 0;
            moved[here++] = balance[task] - beta * slope / sqrtf(gram[task * (count + 1)]);
        }
        project(moved, here, left);
        for (long task = 0, place = 0; task < count; task++)
            if (present[task])
                balance[task] = moved[place++];
    }
    for (long task = 0; task < count; task++) {
        const float preference = preferences ? preferences[task] : 1, otherwise = known ? known[task] : 1;
        const float ratio = lengths / seen / ratios[task] * preference;
        weights[task] = last_weights[task] = present[task] ? balance[task] / unit * ratio : otherwise;
    }
}

/* Does the three above one after the other; room for count * (count + 3) numbers. Returns other than 0, and has changed
   nothing, where memory is short. */
int equipoise_balanced_sum(const void *const *rows, bool halves, long count, long length, int threads, runner *run,
                           float *averages, float *balance, const float *preferences, float *last_gram,
                           float *last_weights, bool *last_present, float *weights, bool *present, float *room,
                           void *sum, float gamma, float pull, float beta, float unit, bool cosine)
{
    if (equipoise_gram_matrix(rows, halves, count, length, threads, run, room))
        return 1;
    equipoise_balance_step(count, room, averages, balance, preferences, NULL, last_gram, last_weights, last_present,
                           weights, present, room + count * count, gamma, pull, beta, unit, cosine);
    equipoise_weighted_sum(rows, halves, weights, count, length, threads, run, sum);
    return 0;
}
