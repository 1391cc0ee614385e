/* The passes over a part of the rows, WIDTH numbers at a time, of float or, with HALF, of bfloat16: cpu_kernels.c includes
 * this for each width and either. */

typedef float OF_KIND(numbers) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
#if HALF
/* A bfloat16 is the upper half of a float. */
typedef unsigned short OF_KIND(halves) __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef unsigned OF_KIND(bits) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
#define READ(row, place) \
    ((OF_KIND(numbers))(__builtin_convertvector(*(const OF_KIND(halves) *)((const half *)(row) + (place)), \
                                                OF_KIND(bits)) << 16))
#define READ_ONE(row, place) widened(((const half *)(row))[place])
#else
#define READ(row, place) (*(const OF_KIND(numbers) *)((const float *)(row) + (place)))
#define READ_ONE(row, place) (((const float *)(row))[place])
#endif

/* Adds the inner products of columns begin to end to total, below the diagonal and on it. */
TARGET static void OF_KIND(multiply)(const struct pass *pass, long begin, long end, float *tiles, double *total)
{
    const long count = pass->count, whole = begin + (end - begin) / WIDTH * WIDTH;
    memset(tiles, 0, numbers_in_tiles(count) * WIDTH * sizeof *tiles);
    for (long start = begin; start < whole; start += BLOCK) {
        const long stop = least(start + BLOCK, whole);
        OF_KIND(numbers) *tile = (OF_KIND(numbers) *)tiles;
        for (long row = 0; row < count; row += TILE)
            for (long column = 0; column <= row; column += TILE, tile += TILE * TILE) {
                /* A tile over the edge takes the last row again, and what it finds there is left. */
                const void *left[TILE], *right[TILE];
                for (int i = 0; i < TILE; i++) {
                    left[i] = pass->rows[least(row + i, count - 1)];
                    right[i] = pass->rows[least(column + i, count - 1)];
                }
                OF_KIND(numbers) sums[TILE * TILE];
#pragma GCC unroll 16
                for (int i = 0; i < TILE * TILE; i++)
                    sums[i] = tile[i];
                for (long place = start; place < stop; place += WIDTH) {
                    OF_KIND(numbers) of_right[TILE];
#pragma GCC unroll 4
                    for (int j = 0; j < TILE; j++)
                        of_right[j] = READ(right[j], place);
#pragma GCC unroll 4
                    for (int i = 0; i < TILE; i++) {
                        const OF_KIND(numbers) of_left = READ(left[i], place);
#pragma GCC unroll 4
                        for (int j = 0; j < TILE; j++)
                            sums[TILE * i + j] += of_left * of_right[j];
                    }
                }
#pragma GCC unroll 16
                for (int i = 0; i < TILE * TILE; i++)
                    tile[i] = sums[i];
            }
    }
    const OF_KIND(numbers) *tile = (const OF_KIND(numbers) *)tiles;
    for (long row = 0; row < count; row += TILE)
        for (long column = 0; column <= row; column += TILE, tile += TILE * TILE)
            for (int i = 0; i < TILE && row + i < count; i++)
                for (int j = 0; j < TILE && column + j < count; j++)
                    for (int lane = 0; lane < WIDTH; lane++)
                        total[(row + i) * count + column + j] += tile[TILE * i + j][lane];
    for (long place = whole; place < end; place++)
        for (long row = 0; row < count; row++)
            for (long column = 0; column <= row; column++)
                total[row * count + column] +=
                    (double)READ_ONE(pass->rows[row], place) * READ_ONE(pass->rows[column], place);
}

/* Writes columns begin to end of the weighted sum. */
TARGET static void OF_KIND(add)(const struct pass *pass, long begin, long end)
{
    const long count = pass->count, whole = begin + (end - begin) / WIDTH * WIDTH;
    for (long start = begin; start < whole; start += BLOCK) {
        const long stop = least(start + BLOCK, whole);
        OF_KIND(numbers) sums[BLOCK / WIDTH];
        for (long row = 0; row < count; row += GROUP) {
            const void *const *rows = pass->rows + row;
            const float *weights = pass->weights + row;
            const int here = least(GROUP, count - row);
            for (long place = start; place < stop; place += WIDTH) {
                OF_KIND(numbers) sum = weights[0] * READ(rows[0], place);
                if (row)
                    sum += sums[(place - start) / WIDTH];
                for (int i = 1; i < here; i++)
                    sum += weights[i] * READ(rows[i], place);
                sums[(place - start) / WIDTH] = sum;
            }
        }
        for (long place = start; place < stop; place += WIDTH) {
            const OF_KIND(numbers) sum = sums[(place - start) / WIDTH];
#if HALF
            const OF_KIND(bits) exact = (OF_KIND(bits))sum, nan = (OF_KIND(bits))(sum != sum);
            const OF_KIND(bits) nearest = (exact + 0x7fff + (exact >> 16 & 1)) >> 16; /* the even one of two */
            *(OF_KIND(halves) *)((half *)pass->sum + place) =
                __builtin_convertvector((nearest & ~nan) | ((exact >> 16 | 0x40) & nan), OF_KIND(halves));
#else
            *(OF_KIND(numbers) *)((float *)pass->sum + place) = sum;
#endif
        }
    }
    for (long place = whole; place < end; place++) {
        float sum = 0;
        for (long row = 0; row < count; row++)
            sum += pass->weights[row] * READ_ONE(pass->rows[row], place);
#if HALF
        ((half *)pass->sum)[place] = narrowed(sum);
#else
        ((float *)pass->sum)[place] = sum;
#endif
    }
}

#undef READ
#undef READ_ONE
