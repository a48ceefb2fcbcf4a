// A chat server that is too fast to influence the measurement. `upstream.py` has the answers, as `answers.h`, and the
// meaning of the models' names.
//
// One chunk is one write and one HTTP chunk, as in real chat servers. A client that does not read blocks its own stream,
// not the process. The server ends when its standard input ends.
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

#include "answers.h"

#define TEXT(of) (of), sizeof(of) - 1

enum { READ = 1 << 18, EVENTS = 256, CONNECTIONS = 65536 };

struct connection {
  int fd, active;  // `active` is the place in `streams`, or -1.
  char *in, *out;
  size_t in_size, in_room, needed, out_at, out_size;
  long left;
  uint64_t pace, due;
  const char *chunk, *after;
};

static struct connection *streams[CONNECTIONS];
static int stream_count, poller;

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void want(struct connection *it, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = it};
  epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
}

// Send, or keep what the socket does not accept. A broken connection is noticed when it is read.
static void put(struct connection *it, const char *data, size_t size) {
  if (!it->out_size) {
    ssize_t sent = send(it->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) return;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    data += taken;
    size -= taken;
    if (size) want(it, EPOLLIN | EPOLLOUT);
  }
  if (!size) return;
  it->out = realloc(it->out, it->out_at + it->out_size + size);
  if (!it->out) abort();
  memcpy(it->out + it->out_at + it->out_size, data, size);
  it->out_size += size;
}

static void put_rest(struct connection *it) {
  ssize_t sent = send(it->fd, it->out + it->out_at, it->out_size, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) return;
  it->out_at += (size_t)sent;
  it->out_size -= (size_t)sent;
  if (it->out_size) return;
  it->out_at = 0;
  want(it, EPOLLIN);
}

static void end_stream(struct connection *it) {
  if (it->active < 0) return;
  streams[it->active] = streams[--stream_count];
  streams[it->active]->active = it->active;
  it->active = -1;
}

// Send what is due in all streams. Returns the milliseconds until the next chunk is due, or -1.
static int step(void) {
  uint64_t now = now_ns(), next = UINT64_MAX;
  for (int one = stream_count - 1; one >= 0; one--) {
    struct connection *it = streams[one];
    if (it->out_size) continue;
    if (now >= it->due) {
      if (!it->left) {
        put(it, it->after, strlen(it->after));
        put(it, TEXT(END));
        end_stream(it);
        continue;
      }
      it->left--;
      if (it->pace) {
        char event[1024];
        int size = snprintf(event, sizeof event, "%s@%llu@%s", BEFORE, (unsigned long long)now_ns(), AFTER);
        char chunk[1100];
        put(it, chunk, (size_t)snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", size, event));
      } else {
        put(it, it->chunk, strlen(it->chunk));
      }
      it->due += it->pace;
    }
    if (it->due < next) next = it->due;
  }
  if (next == UINT64_MAX) return -1;
  return next <= now ? 0 : (int)((next - now + 999999) / 1000000);
}

static void answer(struct connection *it, const char *body, size_t size) {
  char model[64] = "json";
  const char *found = memmem(body, size, "\"model\"", 7);
  if (found) sscanf(found + 7, " : \"%63[^\"]", model);
  long number = 0, milliseconds = 0;
  if (sscanf(model, "paced-%ld-%ldms", &number, &milliseconds) == 2) {
    it->chunk = it->after = "";
    put(it, TEXT(STREAM_HEAD ROLE));
  } else if (sscanf(model, "burst-%ld", &number) == 1) {
    it->chunk = BURST, it->after = "";
    put(it, TEXT(STREAM_HEAD ROLE));
  } else if (sscanf(model, "reasoning-%ld", &number) == 1) {
    it->chunk = REASONING, it->after = "";
    put(it, TEXT(STREAM_HEAD ROLE));
  } else if (sscanf(model, "tools-%ld", &number) == 1) {
    it->chunk = TOOLS, it->after = TOOLS_AFTER;
    put(it, TEXT(STREAM_HEAD ROLE TOOLS_BEFORE));
  } else if (memmem(body, size, "\"stream\":true", 13) || memmem(body, size, "\"stream\": true", 14)) {
    // Some gateways request a stream from the upstream even if their client requested JSON.
    put(it, TEXT(SHORT_STREAM));
    return;
  } else {
    put(it, TEXT(JSON));
    return;
  }
  it->left = number;
  it->pace = (uint64_t)milliseconds * 1000000u;
  it->due = it->pace ? now_ns() : 0;
  if (it->active < 0 && stream_count < CONNECTIONS) {
    it->active = stream_count;
    streams[stream_count++] = it;
  }
}

// Answer when the request is complete. `needed` is the number of bytes below which it cannot be.
static void request(struct connection *it) {
  it->in[it->in_size] = 0;
  char *end = memmem(it->in, it->in_size, "\r\n\r\n", 4);
  if (!end) return;
  size_t head = (size_t)(end - it->in) + 4;
  if (!strncmp(it->in, "GET ", 4)) {
    put(it, TEXT(MODELS));
  } else {
    *end = 0;
    char *length = strcasestr(it->in, "\r\ncontent-length:");
    *end = '\r';
    it->needed = length ? head + (size_t)atol(length + 17) : 0;
    if (it->in_size < it->needed) return;
    if (!length && memcmp(it->in + it->in_size - 5, "0\r\n\r\n", 5)) return;
    answer(it, it->in + head, it->in_size - head);
  }
  it->in_size = it->needed = 0;
}

static void close_connection(struct connection *it) {
  end_stream(it);
  close(it->fd);
  free(it->in);
  free(it->out);
  free(it);
}

static void read_from(struct connection *it) {
  if (it->in_room < it->in_size + READ + 1) {
    it->in_room = 2 * it->in_room + READ + 1;
    if (!(it->in = realloc(it->in, it->in_room))) abort();
  }
  ssize_t size = recv(it->fd, it->in + it->in_size, READ, MSG_DONTWAIT);
  if (size == 0 || (size < 0 && errno != EAGAIN)) {
    close_connection(it);
  } else if (size > 0) {
    it->in_size += (size_t)size;
    if (it->in_size >= it->needed) request(it);
  }
}

static void watch(int fd, void *as) {
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = as};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

int main(void) {
  struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof place;
  int listening = socket(AF_INET, SOCK_STREAM, 0), yes = 1, wait = -1;
  if (bind(listening, (struct sockaddr *)&place, size) || listen(listening, 4096)) return 1;
  getsockname(listening, (struct sockaddr *)&place, &size);
  printf("ready: %d\n", ntohs(place.sin_port));
  fflush(stdout);
  poller = epoll_create1(0);
  watch(listening, &listening);
  watch(STDIN_FILENO, NULL);
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, wait);
    for (int one = 0; one < count; one++) {
      void *as = events[one].data.ptr;
      if (!as) {
        char end[16];
        if (read(STDIN_FILENO, end, sizeof end) <= 0) return 0;
      } else if (as == &listening) {
        struct connection *it = calloc(1, sizeof *it);
        if (!it) abort();
        it->fd = accept(listening, NULL, NULL);
        it->active = -1;
        setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        watch(it->fd, it);
      } else {
        struct connection *it = as;
        if (events[one].events & EPOLLOUT && it->out_size) put_rest(it);
        if (events[one].events & ~(uint32_t)EPOLLOUT) read_from(it);
      }
    }
    wait = step();
  }
}
