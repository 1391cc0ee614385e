/* The passes over a part of the rows, WIDTH numbers at a time: cpu_kernels.c includes this for each width. */

typedef float OF_WIDTH(numbers) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

/* Adds the inner products of columns begin to end to total, below the diagonal and on it. */
TARGET static void OF_WIDTH(multiply)(const struct pass *pass, long begin, long end, float *tiles, double *total)
{
    const long count = pass->count, whole = begin + (end - begin) / WIDTH * WIDTH;
    memset(tiles, 0, numbers_in_tiles(count) * WIDTH * sizeof *tiles);
    for (long start = begin; start < whole; start += BLOCK) {
        const long stop = least(start + BLOCK, whole);
        OF_WIDTH(numbers) *tile = (OF_WIDTH(numbers) *)tiles;
        for (long row = 0; row < count; row += TILE)
            for (long column = 0; column <= row; column += TILE, tile += TILE * TILE) {
                /* A tile over the edge takes the last row again, and what it finds there is left. */
                const float *left[TILE], *right[TILE];
                for (int i = 0; i < TILE; i++) {
                    left[i] = pass->rows[least(row + i, count - 1)];
                    right[i] = pass->rows[least(column + i, count - 1)];
                }
                OF_WIDTH(numbers) sums[TILE * TILE];
#pragma GCC unroll 16
                for (int i = 0; i < TILE * TILE; i++)
                    sums[i] = tile[i];
                for (long place = start; place < stop; place += WIDTH) {
                    OF_WIDTH(numbers) of_right[TILE];
#pragma GCC unroll 4
                    for (int j = 0; j < TILE; j++)
                        of_right[j] = *(const OF_WIDTH(numbers) *)(right[j] + place);
#pragma GCC unroll 4
                    for (int i = 0; i < TILE; i++) {
                        const OF_WIDTH(numbers) of_left = *(const OF_WIDTH(numbers) *)(left[i] + place);
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
    const OF_WIDTH(numbers) *tile = (const OF_WIDTH(numbers) *)tiles;
    for (long row = 0; row < count; row += TILE)
        for (long column = 0; column <= row; column += TILE, tile += TILE * TILE)
            for (int i = 0; i < TILE && row + i < count; i++)
                for (int j = 0; j < TILE && column + j < count; j++)
                    for (int lane = 0; lane < WIDTH; lane++)
                        total[(row + i) * count + column + j] += tile[TILE * i + j][lane];
    for (long place = whole; place < end; place++)
        for (long row = 0; row < count; row++)
            for (long column = 0; column <= row; column++)
                total[row * count + column] += (double)pass->rows[row][place] * pass->rows[column][place];
}

/* Writes columns begin to end of the weighted sum. */
TARGET static void OF_WIDTH(add)(const struct pass *pass, long begin, long end)
{
    const long count = pass->count, whole = begin + (end - begin) / WIDTH * WIDTH;
    for (long start = begin; start < whole; start += BLOCK) {
        const long stop = least(start + BLOCK, whole);
        for (long row = 0; row < count; row += GROUP) {
            const float *const *rows = pass->rows + row, *weights = pass->weights + row;
            const int here = least(GROUP, count - row);
            for (long place = start; place < stop; place += WIDTH) {
                OF_WIDTH(numbers) sum = weights[0] * *(const OF_WIDTH(numbers) *)(rows[0] + place);
                if (row)
                    sum += *(const OF_WIDTH(numbers) *)(pass->sum + place);
                for (int i = 1; i < here; i++)
                    sum += weights[i] * *(const OF_WIDTH(numbers) *)(rows[i] + place);
                *(OF_WIDTH(numbers) *)(pass->sum + place) = sum;
            }
        }
    }
    for (long place = whole; place < end; place++) {
        float sum = 0;
        for (long row = 0; row < count; row++)
            sum += pass->weights[row] * pass->rows[row][place];
        pass->sum[place] = sum;
    }
}
