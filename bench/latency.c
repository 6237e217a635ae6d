/* How long a guest's durable writes take, as the guest sees it. Runs inside the guest.
 *
 *   latency DEVICE START LENGTH PER_SECOND SECONDS SEED
 *
 * Writes 4 KiB with O_DIRECT|O_DSYNC to random places of LENGTH bytes from START on, PER_SECOND times a second
 * by the clock: after a write that took longer than its turn the next ones follow at once, until none is due.
 * Samples are printed at the end only, so that nothing but the writes happens while they are taken:
 * first "CLOCK nanoseconds", the guest's time of day at the beginning, then a line for each write with the
 * microseconds from the beginning until it was due, until it began, and until it was durable.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096 };

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next(uint64_t *state)
{ /* xorshift64 */
    *state ^= *state << 13; *state ^= *state >> 7; *state ^= *state << 17;
    return *state;
}

int main(int argc, char **argv)
{
    if (argc != 7) { fprintf(stderr, "usage: latency DEVICE START LENGTH PER_SECOND SECONDS SEED\n"); return 2; }
    uint64_t start = strtoull(argv[2], NULL, 10), blocks = strtoull(argv[3], NULL, 10) / BLOCK;
    uint64_t period = 1000000000u / strtoull(argv[4], NULL, 10);
    uint64_t count = strtoull(argv[5], NULL, 10) * 1000000000u / period, state = strtoull(argv[6], NULL, 10) | 1;
    int fd = open(argv[1], O_WRONLY | O_DIRECT | O_DSYNC | O_CLOEXEC);
    uint64_t *buffer, (*samples)[3] = calloc(count, sizeof *samples);
    if (fd < 0 || !blocks || !samples || posix_memalign((void **)&buffer, BLOCK, BLOCK)) {
        fprintf(stderr, "latency: %s: %s\n", argv[1], strerror(errno));
        return 3;
    }
    /* does not compress, like the data beneath; one word of it differs from write to write */
    for (int i = 0; i < BLOCK / 8; i++) buffer[i] = next(&state);
    uint64_t day = now(CLOCK_REALTIME), zero = now(CLOCK_MONOTONIC);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t due = zero + i * period;
        struct timespec t = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
        uint64_t place = start + next(&state) % blocks * BLOCK;
        buffer[0] = state;
        uint64_t begun = now(CLOCK_MONOTONIC);
        if (pwrite(fd, buffer, BLOCK, (off_t)place) != BLOCK) {
            fprintf(stderr, "latency: write: %s\n", strerror(errno));
            return 4;
        }
        samples[i][0] = due - zero; samples[i][1] = begun - zero; samples[i][2] = now(CLOCK_MONOTONIC) - zero;
    }
    printf("CLOCK %" PRIu64 "\n", day);
    for (uint64_t i = 0; i < count; i++)
        printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", samples[i][0] / 1000, samples[i][1] / 1000, samples[i][2] / 1000);
    return 0;
}
