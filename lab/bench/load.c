// The load generator: a closed loop of keep-alive connections, each of which sends its next request after the complete
// response. It reads one job per line and writes one line of JSON per job (`load.py` has the fields of both).
//
// A job ends at the latest `grace` seconds after its window. Bytes after the window count in the totals (which belong
// to the CPU time), not in the rates. A stream that lost more than a tenth of its chunks counts as an error.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TAIL = 64, READ = 1 << 18, HEAD = 16384, EVENTS = 256 };
enum state { IN_HEAD, IN_LENGTH, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER };

struct samples { uint64_t *values; size_t count, room; };
struct client {
  int fd;
  bool busy, waits_to_write;
  enum state state;
  char head[HEAD], tail[TAIL];
  size_t head_size, tail_size, written;
  long left, seen;
  uint64_t sent_at, read_at, newest;
};

static struct { int port, connections, chunks, stamps; double seconds, grace, stagger; char path[512], marker[64]; } job;
static struct samples first_event, first_text, gaps, under_way, whole;
static long requests, requests_in_window, chunks, chunks_in_window, errors, running;
static uint64_t finish_at;
static char complaint[256], *request, received[READ], text[TAIL + READ];
static size_t request_size;
static int poller;

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void add(struct samples *to, uint64_t value) {
  if (to->count == to->room) {
    to->room = to->room ? 2 * to->room : 4096;
    if (!(to->values = realloc(to->values, to->room * sizeof *to->values))) abort();
  }
  to->values[to->count++] = value;
}

static void fail(const char *why, const char *more, size_t size) {
  if (errors++) return;
  size_t at = (size_t)snprintf(complaint, sizeof complaint, "%.*s: ", (int)strcspn(why, "\r"), why);
  for (size_t one = 0; one < size && at < sizeof complaint - 1; one++)
    complaint[at++] = more[one] < ' ' || more[one] == '"' || more[one] == '\\' ? ' ' : more[one];
  complaint[at] = 0;
}

static void done(struct client *it) {
  running -= it->busy;
  it->busy = false;
}

static void cut(struct client *it) {
  done(it);
  if (it->fd >= 0) close(it->fd);
  it->fd = -1;
}

static void want(struct client *it, bool to_write) {
  if (it->waits_to_write == to_write) return;
  it->waits_to_write = to_write;
  struct epoll_event event = {.events = EPOLLIN | (to_write ? EPOLLOUT : 0), .data.ptr = it};
  epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
}

static void write_on(struct client *it) {
  while (it->written < request_size) {
    ssize_t size = send(it->fd, request + it->written, request_size - it->written, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) break;
    if (size < 0) {
      fail("the connection was closed", "", 0);
      cut(it);
      return;
    }
    it->written += (size_t)size;
  }
  want(it, it->written < request_size);
}

static void begin(struct client *it) {
  if (now_ns() >= finish_at || it->fd < 0) {
    done(it);
    return;
  }
  it->state = IN_HEAD;
  it->head_size = it->tail_size = it->written = 0;
  it->seen = 0;
  it->read_at = it->newest = 0;
  running += !it->busy;
  it->busy = true;
  it->sent_at = now_ns();
  write_on(it);
}

// Count the markers and stamps in the text of one read. The tail of the previous read is already counted.
static void look(struct client *it, size_t size, uint64_t now) {
  if (!it->read_at) {
    if (!memmem(text, size, "data: ", 6)) return;
    add(&first_event, now - it->sent_at);
  } else if (job.stamps) {
    add(&gaps, now - it->read_at);
  }
  it->read_at = now;
  size_t length = strlen(job.marker);
  long count = 0;
  for (char *at = text; (at = memmem(at, size - (size_t)(at - text), job.marker, length)); at += length)
    count += (size_t)(at - text) + length > it->tail_size;
  if (count && !it->seen) add(&first_text, now - it->sent_at);
  it->seen += count;
  chunks += count;
  if (now < finish_at) chunks_in_window += count;
  for (char *at = text; job.stamps && (at = memchr(at, '@', size - (size_t)(at - text)));) {
    char digits[24] = "", *from = ++at;
    size_t place = (size_t)(from - text), most = size - place < 21 ? size - place : 21;
    memcpy(digits, from, most);
    char *end;
    uint64_t stamp = strtoull(digits, &end, 10);
    // The events at a stream's end repeat its whole text.
    if (end - digits < 6 || *end != '@' || stamp <= it->newest) continue;
    it->newest = stamp;
    add(&under_way, now - stamp);
    at += end - digits;
  }
}

static void finish(struct client *it, uint64_t now) {
  bool counts = now < finish_at;
  requests++;
  requests_in_window += counts;
  add(&whole, now - it->sent_at);
  long missed = job.chunks - it->seen, most = job.chunks / 10 > 1 ? job.chunks / 10 : 1;
  if (job.chunks && labs(missed) > most) {
    fail("chunks are missing; the end", it->tail, it->tail_size);
  } else if (job.chunks) {
    chunks += missed;
    chunks_in_window += counts ? missed : 0;
  }
  begin(it);
}

// Read a head up to its empty line, or the line of a chunk's size. Returns the byte after it, or NULL.
static const char *line(struct client *it, const char *at, const char *end, const char *stop) {
  size_t length = strlen(stop);
  while (at < end) {
    if (it->head_size == HEAD - 1) it->head_size = 0;
    it->head[it->head_size++] = *at++;
    if (it->head_size >= length && !memcmp(it->head + it->head_size - length, stop, length)) {
      it->head[it->head_size] = 0;
      it->head_size = 0;
      return at;
    }
  }
  return NULL;
}

static void data(struct client *it, const char *at, const char *end) {
  uint64_t now = now_ns();
  size_t size = it->tail_size;
  memcpy(text, it->tail, size);
  bool complete = false;
  while (at && at < end && !complete) {
    switch (it->state) {
      case IN_HEAD:
        if (!(at = line(it, at, end, "\r\n\r\n"))) break;
        if (strncmp(it->head, "HTTP/1.1 200", 12)) {
          // The body usually follows in the same read.
          fail(it->head + 9, at, (size_t)(end - at));
          cut(it);
          return;
        }
        char *length = strcasestr(it->head, "\r\ncontent-length:");
        it->left = length ? atol(length + 17) : 0;
        it->state = length ? IN_LENGTH : IN_SIZE;
        complete = length && !it->left;
        break;
      case IN_SIZE:
        if (!(at = line(it, at, end, "\r\n"))) break;
        it->left = strtol(it->head, NULL, 16);
        it->state = it->left ? IN_CHUNK : IN_TRAILER;
        break;
      case IN_LENGTH:
      case IN_CHUNK: {
        long part = end - at < it->left ? end - at : it->left;
        if (job.chunks) memcpy(text + size, at, (size_t)part);
        size += job.chunks ? (size_t)part : 0;
        at += part;
        it->left -= part;
        if (it->left) break;
        complete = it->state == IN_LENGTH;
        it->state = AFTER_CHUNK;
        break;
      }
      case AFTER_CHUNK:
        if ((at = line(it, at, end, "\r\n"))) it->state = IN_SIZE;
        break;
      case IN_TRAILER:
        at = line(it, at, end, "\r\n");
        complete = at != NULL;
        break;
    }
  }
  if (size > it->tail_size) {
    look(it, size, now);
    it->tail_size = size < TAIL ? size : TAIL;
    memcpy(it->tail, text + size - it->tail_size, it->tail_size);
  }
  if (complete) finish(it, now);
}

static int by_size(const void *one, const void *other) {
  uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
  return (a > b) - (a < b);
}

static void print_quantiles(const char *name, struct samples *of) {
  printf(", \"%s\": {\"n\": %zu", name, of->count);
  if (of->count) {
    qsort(of->values, of->count, sizeof *of->values, by_size);
    const char *names[] = {"p50", "p99", "p999", "max"};
    const double shares[] = {0.5, 0.99, 0.999, 1.0};
    for (int one = 0; one < 4; one++) {
      size_t at = (size_t)((double)(of->count - 1) * shares[one] + 0.5);
      printf(", \"%s\": %.3f", names[one], (double)of->values[at] / 1000);
    }
  }
  printf("}");
  of->count = 0;
}

static int connect_to(int port) {
  struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  if (fd < 0 || connect(fd, (struct sockaddr *)&place, sizeof place)) {
    perror("connect");
    exit(1);
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return fd;
}

static void run(void) {
  requests = requests_in_window = chunks = chunks_in_window = errors = running = 0;
  complaint[0] = 0;
  poller = epoll_create1(0);
  struct client *clients = calloc((size_t)job.connections, sizeof *clients);
  if (!clients) abort();
  for (int one = 0; one < job.connections; one++) {
    clients[one].fd = connect_to(job.port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[one]};
    epoll_ctl(poller, EPOLL_CTL_ADD, clients[one].fd, &event);
  }
  uint64_t began = now_ns(), now = began;
  finish_at = began + (uint64_t)(job.seconds * 1e9);
  uint64_t end_at = finish_at + (uint64_t)(job.grace * 1e9);
  int started = 0;
  while (now < end_at && (now < finish_at || running)) {
    while (started < job.connections && now >= began + (uint64_t)(job.stagger * 1e9 * started))
      begin(&clients[started++]);
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, started < job.connections ? 1 : 10);
    for (int one = 0; one < count; one++) {
      struct client *it = events[one].data.ptr;
      if (it->fd >= 0 && events[one].events & EPOLLOUT) write_on(it);
      if (it->fd < 0 || !(events[one].events & ~(uint32_t)EPOLLOUT)) continue;
      ssize_t size = recv(it->fd, received, READ, MSG_DONTWAIT);
      if (size < 0 && errno == EAGAIN) continue;
      if (size > 0 && it->busy) {
        data(it, received, received + size);
      } else {
        if (it->busy) fail("the connection was cut", "", 0);
        cut(it);
      }
    }
    now = now_ns();
  }
  long unfinished = running;
  for (int one = 0; one < job.connections; one++) cut(&clients[one]);
  close(poller);
  free(clients);
  usleep(50000);  // The server notices the disconnections before the next job.
  printf("{\"requests\": %ld, \"requests_per_second\": %.3f, \"chunks\": %ld, \"chunks_per_second\": %.3f", requests,
         (double)requests_in_window / job.seconds, chunks, (double)chunks_in_window / job.seconds);
  printf(", \"errors\": %ld, \"complaint\": \"%s\", \"unfinished\": %ld", errors, complaint, unfinished);
  print_quantiles("first_event_us", &first_event);
  print_quantiles("first_text_us", &first_text);
  print_quantiles("gap_us", &gaps);
  print_quantiles("under_way_us", &under_way);
  print_quantiles("whole_us", &whole);
  printf("}\n");
  fflush(stdout);
}

int main(void) {
  char *given = NULL;
  size_t room = 0;
  ssize_t size;
  while ((size = getline(&given, &room, stdin)) > 0) {
    int at = 0;
    if (sscanf(given, "%d %511s %d %lf %lf %d %d %lf %63s %n", &job.port, job.path, &job.connections, &job.seconds,
               &job.grace, &job.chunks, &job.stamps, &job.stagger, job.marker, &at) < 9)
      return 2;
    size_t body = (size_t)(size - at - 1);
    request = realloc(request, body + 1024);
    if (!request) abort();
    request_size = (size_t)sprintf(request,
                                   "POST %s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                                   "authorization: Bearer bench\r\ncontent-length: %zu\r\n\r\n",
                                   job.path, body);
    memcpy(request + request_size, given + at, body);
    request_size += body;
    run();
  }
  return 0;
}
