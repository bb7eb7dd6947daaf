// Replays the cases that write_cases.py wrote through the C ABI, for every instruction set that
// the machine can run, with the weight as it comes and prepared for the set. Every buffer has
// exactly the size it needs, so that a sanitizer sees a step outside. Each case is also the second
// and third frame of a stream. The body is called three times, as if there were three threads; on
// Windows, given an OpenMP runtime, by three threads.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "binarize.h"
#include "platform.h"

static FILE* file;

static int64_t number() {
  int64_t value;
  if (fread(&value, sizeof(value), 1, file) != 1) {
    fprintf(stderr, "the file of cases ends too early\n");
    exit(2);
  }
  return value;
}

// Bytes of the next tensor, or null; the caller frees them.
static void* tensor(int64_t* bytes) {
  *bytes = number();
  if (*bytes < 0) return nullptr;
  void* data = malloc(*bytes ? (size_t)*bytes : 1);
  if (*bytes && fread(data, (size_t)*bytes, 1, file) != 1) exit(2);
  return data;
}

static void three_times(void (*body)(void*), void* data, unsigned threads, unsigned) {
  for (unsigned i = 0; i < threads; ++i) body(data);
}
static BinarizeRunner runner = three_times;

#if defined(_WIN32)
static int64_t inside, most;  // threads at once: now, and ever
static void (*counted)(void*);

static void count_thread(void* data) {
  const int64_t now = __atomic_add_fetch(&inside, 1, __ATOMIC_ACQ_REL);
  if (now > __atomic_load_n(&most, __ATOMIC_ACQUIRE))
    __atomic_store_n(&most, now, __ATOMIC_RELEASE);
  // Wait a little for the others.
  for (int turn = 0; turn < 1000 && __atomic_load_n(&most, __ATOMIC_ACQUIRE) < 3; ++turn) Sleep(0);
  counted(data);
  __atomic_sub_fetch(&inside, 1, __ATOMIC_ACQ_REL);
}
static void by_threads(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  counted = body;
  binarize_parallel(count_thread, data, threads, flags);
}
#endif

static bool close_enough(const float* got, const float* wanted, int64_t count, double tolerance) {
  for (int64_t i = 0; i < count; ++i) {
    if (got[i] == wanted[i] || (isnan(got[i]) && isnan(wanted[i]))) continue;
    if (!(fabs((double)got[i] - wanted[i]) <= tolerance * (1 + fabs((double)wanted[i])))) {
      fprintf(stderr, "entry %lld: %g instead of %g\n", (long long)i, got[i], wanted[i]);
      return false;
    }
  }
  return true;
}

// Depthwise convolutions on codes, whose results are exact. Returns how many there are, or -1.
static int64_t replay_depthwise() {
  const int64_t cases = number();
  for (int64_t i = 0; i < cases; ++i) {
    BinarizeInt8Depthwise g;
    int64_t* fields = (int64_t*)&g;
    for (size_t k = 0; k < offsetof(BinarizeInt8Depthwise, in_step) / 8; ++k) fields[k] = number();
    int64_t bytes;
    void* tensors[6];
    void* floats = tensor(&bytes);
    memcpy(&g.in_step, floats, (size_t)bytes);
    for (int k = 0; k < 4; ++k) tensors[k] = tensor(&bytes);
    void* wanted = tensor(&bytes);
    const int64_t room = binarize_int8_depthwise_scratch(&g, 3);
    if (room < 0) return -1;
    for (int32_t set = 0; set < 5; ++set) {
      if (binarize_available(set) != 2) continue;
      tensors[BINARIZE_DEPTH_RESULT] = malloc((size_t)bytes);
      tensors[BINARIZE_DEPTH_SCRATCH] = allocate(room);
      memset(tensors[BINARIZE_DEPTH_SCRATCH], 0xa5, (size_t)room);
      const int32_t status =
          binarize_int8_depthwise(set, &g, (const void* const*)tensors, 3, runner);
      // A zero may have another sign.
      const bool good =
          status == BINARIZE_OK &&
          (g.out_codes ? memcmp(tensors[BINARIZE_DEPTH_RESULT], wanted, (size_t)bytes) == 0
                       : close_enough((const float*)tensors[BINARIZE_DEPTH_RESULT],
                                      (const float*)wanted, bytes / 4, 0));
      release(tensors[BINARIZE_DEPTH_SCRATCH]);
      free(tensors[BINARIZE_DEPTH_RESULT]);
      if (!good) {
        fprintf(stderr, "depthwise case %lld, set %d: status %d\n", (long long)i, set, status);
        return -1;
      }
    }
    for (int k = 0; k < 4; ++k) free(tensors[k]);
    free(wanted);
    free(floats);
  }
  return cases;
}

struct Case {
  BinarizeGeometry g;
  void** tensors;
  const void* const* wanted;
  const int64_t* bytes;    // of every tensor
  const int64_t* results;  // bytes of the result and its means
  double tolerance;
};

// Changes the sign of every seventh number of the sources; twice, it changes nothing.
static void turn(const Case& c) {
  for (int64_t i = 0; i < c.g.sources; ++i) {
    float* x = (float*)c.tensors[BINARIZE_FIRST_SOURCE + i];
    for (int64_t k = 0; k < c.bytes[BINARIZE_FIRST_SOURCE + i] / 4; k += 7) x[k] = -x[k];
  }
}

static bool results_agree(const Case& c) {
  for (int k = 0; k < 2; ++k) {
    const int at = BINARIZE_RESULT + k;
    if (k == 0 && c.tensors[BINARIZE_CODING]) {
      if (memcmp(c.tensors[at], c.wanted[at], (size_t)c.results[k])) return false;
      continue;
    }
    if (c.results[k] > 0 && !close_enough((const float*)c.tensors[at], (const float*)c.wanted[at],
                                          c.results[k] / 4, c.tolerance))
      return false;
  }
  return true;
}

// As frames of a video: the case after another one, and once more.
static bool streams(Case& c, int32_t set) {
  const int64_t size = binarize_stream_bytes(set, &c.g);
  if (size < 0) return false;
  if (size == 0) return true;
  BinarizeStream stream = {};
  stream.memory = allocate(size);
  memset(stream.memory, 0xa5, (size_t)size);
  bool good = true;
  for (int frame = 0; frame < 3 && good; ++frame) {
    if (frame < 2) turn(c);
    const int32_t status =
        binarize_unit_stream(set, &c.g, (const void* const*)c.tensors, 3, runner, &stream);
    good = status == BINARIZE_OK && (frame == 0 || results_agree(c));
  }
  good = good && stream.work_done <= stream.work && stream.changed_bits <= stream.bits;
  release(stream.memory);
  return good;
}

int main(int argc, char** argv) {
#if defined(_WIN32)
  if (argc == 3 && LoadLibraryA(argv[2])) {
    runner = by_threads;
    --argc;
  }
#endif
  if (argc != 2 || !(file = fopen(argv[1], "rb"))) {
    fprintf(stderr, "usage: replay FILE [OPENMP_RUNTIME.dll]\n");
    return 2;
  }
  static const char* names[] = {"scalar", "avx2", "avx512", "neon", "avx512bw"};
  int64_t runs[5][2] = {};
  const int64_t cases = number();
  for (int64_t i = 0; i < cases; ++i) {
    const double tolerance = number() ? 0 : 1e-4;
    BinarizeGeometry g;
    int64_t* fields = (int64_t*)&g;
    for (size_t k = 0; k < offsetof(BinarizeGeometry, source) / 8; ++k) fields[k] = number();
    int64_t* source = (int64_t*)malloc(sizeof(int64_t) * (size_t)(6 * g.sources));
    int64_t* residual = (int64_t*)malloc(sizeof(int64_t) * (size_t)(4 * g.residuals + 1));
    for (int64_t k = 0; k < 6 * g.sources; ++k) source[k] = number();
    for (int64_t k = 0; k < 4 * g.residuals; ++k) residual[k] = number();
    g.source = source, g.residual = residual;
    const int64_t count = BINARIZE_FIRST_SOURCE + 2 * g.sources + g.residuals;
    void** wanted = (void**)calloc((size_t)count, sizeof(void*));
    void** tensors = (void**)calloc((size_t)count, sizeof(void*));
    int64_t* sizes = (int64_t*)calloc((size_t)count, sizeof(int64_t));
    for (int64_t k = 0; k < count; ++k) wanted[k] = tensors[k] = tensor(&sizes[k]);
    const int64_t bytes[2] = {sizes[BINARIZE_RESULT], sizes[BINARIZE_RESULT_MEANS]};
    for (int32_t run = 0; run < 10; ++run) {
      const int32_t set = run / 2;
      if (binarize_available(set) != 2) continue;
      g.prepared = 0;
      tensors[BINARIZE_WEIGHT] = wanted[BINARIZE_WEIGHT];
      if (run % 2) {
        const int64_t size = binarize_prepared(set, &g);
        if (size <= 0) continue;
        void* prepared = malloc((size_t)size);
        if (binarize_prepare_weight(set, &g, wanted[BINARIZE_WEIGHT], prepared)) return 2;
        tensors[BINARIZE_WEIGHT] = prepared;
        g.prepared = 1 + set;
      }
      const int64_t room = binarize_scratch(&g, 3);
      if (room < 0) return 2;
      tensors[BINARIZE_SCRATCH] = allocate(room);
      memset(tensors[BINARIZE_SCRATCH], 0xa5, (size_t)room);
      tensors[BINARIZE_RESULT] = malloc((size_t)bytes[0]);
      tensors[BINARIZE_RESULT_MEANS] = bytes[1] > 0 ? malloc((size_t)bytes[1]) : nullptr;
      const int32_t status = binarize_unit(set, &g, (const void* const*)tensors, 3, runner);
      Case c = {g, tensors, (const void* const*)wanted, sizes, bytes, tolerance};
      const bool good = status == BINARIZE_OK && results_agree(c) && streams(c, set);
      if (g.prepared) free(tensors[BINARIZE_WEIGHT]);
      release(tensors[BINARIZE_SCRATCH]);
      free(tensors[BINARIZE_RESULT]);
      free(tensors[BINARIZE_RESULT_MEANS]);
      if (!good) {
        fprintf(stderr, "case %lld, %s: status %d\n", (long long)i, names[set], status);
        return 1;
      }
      ++runs[set][run % 2];
    }
    for (int64_t k = 0; k < count; ++k) free(wanted[k]);
    free(wanted);
    free(sizes);
    free(tensors);
    free(source);
    free(residual);
  }
  for (int set = 0; set < 5; ++set) {
    if (runs[set][0])
      printf("%s: %lld cases agree, %lld with a prepared weight\n", names[set],
             (long long)runs[set][0], (long long)runs[set][1]);
  }
  const int64_t depthwise = replay_depthwise();
  if (depthwise < 0) return 1;
  printf("depthwise on codes: %lld cases agree\n", (long long)depthwise);
  fclose(file);
#if defined(_WIN32)
  if (runner == by_threads) {
    printf("at most %lld threads at once\n", (long long)most);
    if (most != 3) return 1;
  }
#endif
  return runs[BINARIZE_SCALAR][0] == cases ? 0 : 1;
}
