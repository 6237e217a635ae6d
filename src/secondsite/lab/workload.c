/* The guest's workload and its checker, one static program.
 *
 *   workload run   DISK0 DISK1 SLOTS PAUSE_US PORT [FILE0 FILE1 [PAGES]]   append records for ever
 *   workload check DISK0 DISK1 SLOTS [FILE0 FILE1]                 print one line "CHECK {...}"
 *
 * Record n is written to DISK0, then to DISK1, each write durable before the next step (O_DIRECT|O_DSYNC), then
 * acknowledged to the host as "A n token". So at any instant the newest record of DISK0 is that of DISK1 or the
 * one after it, and every acknowledged record is on both. The host sends growing numbers, "T token", all the
 * time; each record carries the newest one seen before it was begun. Nothing is written before a first token has
 * come: a copy of this machine that boots where nobody sends tokens only checks.
 *
 * Records lie in a ring of SLOTS blocks of 4 KiB at the end of each disk, record n (from 1) in slot n % SLOTS:
 *
 *   offset  size  field (little endian)
 *        0     8  magic
 *        8     8  number
 *       16     8  token
 *       24     8  time of the guest in nanoseconds, for people
 *       32  4056  filler: the first half from the number (does not compress), the second half one byte
 *     4088     8  checksum of all before it
 *
 * FILE0 and FILE1 lie in the file systems of the two disks. Every EVERY records a line "number token checksum" is
 * appended to both and synced, then a random 4 KiB page of PAGES, a large file, is rewritten: life for the file
 * systems, and small changes all over the place for the change tracking.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 4096, EVERY = 8, CHUNK = 256, LINE_MAX_BYTES = 128 };
#define MAGIC 0x31434552444e4f32ull /* "2ONDREC1" */

static uint64_t mix(uint64_t x)
{ /* splitmix64's finisher: cheap under emulation, every input bit reaches every output bit */
    x ^= x >> 30; x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27; x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t checksum(const uint64_t *words, int count)
{
    uint64_t sum = MAGIC;
    for (int i = 0; i < count; i++) sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ull + (sum >> 29);
    return mix(sum);
}

static void fill(uint64_t *r, uint64_t number, uint64_t token)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    r[0] = MAGIC; r[1] = number; r[2] = token;
    r[3] = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    for (int i = 4; i < 256; i++) r[i] = mix(number * 512 + (uint64_t)i);
    memset(r + 256, (int)(number & 0x7f), (511 - 256) * 8);
    r[511] = checksum(r, 511);
}

static int open_disk(const char *path, int flags, uint64_t slots, uint64_t *start)
{
    uint64_t size = 0;
    struct stat status;
    int fd = open(path, flags | O_DIRECT | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &status) == 0) {
        size = (uint64_t)status.st_size; /* a file stands for a disk in tests */
        if (S_ISBLK(status.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0) size = 0;
    }
    if (size < slots * RECORD) {
        printf("WORKLOAD cannot use %s: %s\n", path, strerror(errno));
        exit(2);
    }
    *start = size - slots * RECORD;
    return fd;
}

/* ---- check ---------------------------------------------------------------------------------------------- */

struct found { uint64_t first, last, token, bad, gaps, misplaced, back; };

/* All records of one ring. A gap is a number between the first and the last whose slot holds something else; a
 * step back is a token smaller than that of the record before. */
static struct found scan(int fd, uint64_t start, uint64_t slots)
{
    struct found f = {0};
    uint64_t (*seen)[2] = calloc(slots, sizeof *seen);
    unsigned char *buffer;
    if (!seen || posix_memalign((void **)&buffer, RECORD, (size_t)CHUNK * RECORD)) exit(2);
    for (uint64_t slot = 0; slot < slots;) {
        size_t want = (size_t)(slots - slot < CHUNK ? slots - slot : CHUNK) * RECORD;
        ssize_t got = pread(fd, buffer, want, (off_t)(start + slot * RECORD));
        if (got <= 0 || got % RECORD) { printf("WORKLOAD read error: %s\n", strerror(errno)); exit(2); }
        for (ssize_t at = 0; at < got; at += RECORD, slot++) {
            uint64_t *r = (uint64_t *)(buffer + at);
            if (r[0] == 0 && r[1] == 0 && r[511] == 0) continue; /* never written */
            if (r[0] != MAGIC || r[511] != checksum(r, 511)) { f.bad++; continue; }
            if (r[1] % slots != slot) { f.misplaced++; continue; }
            seen[slot][0] = r[1]; seen[slot][1] = r[2];
            if (r[1] > f.last) { f.last = r[1]; f.token = r[2]; }
        }
    }
    if (f.last) {
        uint64_t oldest = f.last > slots ? f.last - slots + 1 : 1, before = 0;
        f.first = oldest;
        for (uint64_t n = oldest; n <= f.last; n++) {
            if (seen[n % slots][0] != n) { f.gaps++; continue; }
            if (seen[n % slots][1] < before) f.back++;
            before = seen[n % slots][1];
        }
    }
    free(seen); free(buffer);
    return f;
}

struct lines { uint64_t count, last, bad, gaps; off_t good_bytes; };

/* The file's lines. Only the last may be torn: the file was synced after every other. */
static struct lines scan_file(const char *path)
{
    struct lines l = {0};
    char line[LINE_MAX_BYTES];
    FILE *file = fopen(path, "r");
    if (!file) return l;
    while (fgets(line, sizeof line, file)) {
        uint64_t words[2], sum;
        int whole = sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNx64, words, words + 1, &sum) == 3
            && strchr(line, '\n') && sum == checksum(words, 2);
        if (!whole) { l.bad += !feof(file) && fgetc(file) != EOF; continue; }
        l.gaps += l.count && words[0] != l.last + EVERY;
        l.last = words[0];
        l.count++;
        l.good_bytes = ftello(file);
    }
    fclose(file);
    return l;
}

static int check(char **argv)
{
    uint64_t slots = strtoull(argv[4], NULL, 10), start[2];
    struct found f[2];
    struct lines l[2] = {{0}, {0}};
    for (int i = 0; i < 2; i++) {
        int fd = open_disk(argv[2 + i], O_RDONLY, slots, start + i);
        f[i] = scan(fd, start[i], slots);
        close(fd);
        if (argv[5]) l[i] = scan_file(argv[5 + i]);
    }
    uint64_t ahead = f[0].last - f[1].last; /* 0 or 1, or else wrong (also when it wraps) */
    int good = ahead <= 1;
    for (int i = 0; i < 2; i++) {
        good &= !f[i].bad && !f[i].gaps && !f[i].misplaced && !f[i].back && !l[i].bad && !l[i].gaps;
        good &= l[i].last <= f[1].last; /* a line follows its record */
        good &= !argv[5] || f[1].last <= l[i].last + EVERY;
    }
    printf("CHECK {\"good\": %s, \"first\": %" PRIu64 ", \"last\": %" PRIu64 ", \"token\": %" PRIu64 ", \"ahead\": %" PRId64,
           good ? "true" : "false", f[1].first, f[1].last, f[0].token, (int64_t)ahead);
    printf(", \"bad\": %" PRIu64 ", \"gaps\": %" PRIu64 ", \"misplaced\": %" PRIu64 ", \"tokens_back\": %" PRIu64,
           f[0].bad + f[1].bad, f[0].gaps + f[1].gaps, f[0].misplaced + f[1].misplaced, f[0].back + f[1].back);
    printf(", \"lines\": [%" PRIu64 ", %" PRIu64 "], \"lines_bad\": %" PRIu64 "}\n", l[0].last, l[1].last,
           l[0].bad + l[1].bad + l[0].gaps + l[1].gaps);
    return good ? 0 : 1;
}

/* ---- run ------------------------------------------------------------------------------------------------ */

static int port;
static uint64_t token;

/* Take in what the host has sent; the newest token counts. A line cut in two is put together again. */
static void listen_to_host(int wait_ms)
{
    static char pending[4096];
    static size_t held;
    struct pollfd p = {.fd = port, .events = POLLIN};
    while (poll(&p, 1, wait_ms) > 0 && (p.revents & POLLIN)) {
        ssize_t got = read(port, pending + held, sizeof pending - 1 - held);
        if (got <= 0) break;
        held += (size_t)got;
        pending[held] = 0;
        char *line = pending, *end;
        while ((end = strchr(line, '\n'))) {
            uint64_t value;
            if (sscanf(line, "T %" SCNu64, &value) == 1 && value > token) token = value;
            line = end + 1;
        }
        held -= (size_t)(line - pending);
        memmove(pending, line, held);
        if (held > 64) held = 0; /* not our language */
        wait_ms = 0;
    }
    if (p.revents & POLLHUP && wait_ms) usleep((useconds_t)wait_ms * 1000); /* nobody on the other side */
}

static void acknowledge(uint64_t number)
{ /* a host that does not listen loses acknowledgements, never records; a line goes whole or not at all */
    char line[64];
    int length = snprintf(line, sizeof line, "A %" PRIu64 " %" PRIu64 "\n", number, token);
    if (write(port, line, (size_t)length) < 0) return;
}

static void die(const char *what) { printf("WORKLOAD stopped: %s: %s\n", what, strerror(errno)); exit(3); }

static void append_line(int file, uint64_t number)
{
    char line[LINE_MAX_BYTES];
    uint64_t words[2] = {number, token};
    int length = snprintf(line, sizeof line, "%" PRIu64 " %" PRIu64 " %" PRIx64 "\n", number, token, checksum(words, 2));
    if (write(file, line, (size_t)length) != length || fdatasync(file)) die("file");
}

/* After a crash: drop a torn last line, and add the one line that may be missing behind the newest record. */
static int open_lines(const char *path, uint64_t number)
{
    struct lines l = scan_file(path);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0 || ftruncate(file, l.good_bytes)) die(path);
    if (number >= EVERY && l.last < number / EVERY * EVERY) append_line(file, number / EVERY * EVERY);
    return file;
}

static void touch_files(int file[2], int pages, uint64_t pages_bytes, uint64_t number)
{
    static uint64_t page[RECORD / 8];
    for (int i = 0; i < 2; i++) append_line(file[i], number);
    if (pages < 0 || pages_bytes < RECORD) return;
    for (int i = 0; i < RECORD / 8; i++) page[i] = i % 2 ? 0x2020202020202020ull : mix(number * 1024 + (uint64_t)i);
    uint64_t at = mix(number) % (pages_bytes / RECORD) * RECORD;
    if (pwrite(pages, page, RECORD, (off_t)at) != RECORD) die("pages");
}

static int run(char **argv)
{
    uint64_t slots = strtoull(argv[4], NULL, 10), start[2], number;
    useconds_t pause_us = (useconds_t)strtoul(argv[5], NULL, 10);
    int disk[2], file[2] = {-1, -1}, pages = -1;
    off_t pages_bytes = 0;
    uint64_t *record;
    if (posix_memalign((void **)&record, RECORD, RECORD)) exit(2);
    port = open(argv[6], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (port < 0) die(argv[6]);
    for (int i = 0; i < 2; i++) disk[i] = open_disk(argv[2 + i], O_RDWR | O_DSYNC, slots, start + i);
    number = scan(disk[1], start[1], slots).last;
    while (!token) listen_to_host(200);
    for (int i = 0; i < 2 && argv[7]; i++) file[i] = open_lines(argv[7 + i], number);
    if (argv[7] && argv[8] && argv[9]) {
        pages = open(argv[9], O_WRONLY | O_CLOEXEC);
        pages_bytes = lseek(pages, 0, SEEK_END);
    }
    printf("WORKLOAD writes from record %" PRIu64 "\n", number + 1);
    fflush(stdout);
    for (;;) {
        listen_to_host(0);
        number++;
        fill(record, number, token);
        for (int i = 0; i < 2; i++)
            if (pwrite(disk[i], record, RECORD, (off_t)(start[i] + number % slots * RECORD)) != RECORD) die("disk");
        acknowledge(number);
        if (argv[7] && number % EVERY == 0) touch_files(file, pages, (uint64_t)pages_bytes, number);
        if (pause_us) usleep(pause_us);
    }
}

int main(int argc, char **argv)
{
    if (argc >= 5 && !strcmp(argv[1], "check")) return check(argv);
    if (argc >= 7 && !strcmp(argv[1], "run")) return run(argv);
    fprintf(stderr, "usage: workload run|check DISK0 DISK1 SLOTS ...\n");
    return 2;
}
