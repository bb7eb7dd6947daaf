// The 1-bit unit as a custom operator of ONNX Runtime: BinaryConv in the domain `binarize`.
//
// Its attributes and tensors are those of the torch operator binarize::unit, but feature maps are
// channels-last, (N, *spatial, C), as the kernels read them. The exporter adds transpositions where
// a standard operator needs another order.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "binarize.h"
#include "ort_api.h"
#include "platform.h"

namespace {

enum Input {
  kWeight,
  kGain,
  kOffset,
  kThreshold,
  kMeanGain,
  kFlip,
  kExponent,
  kActShift,
  kActSlope,
  kActOutShift,
  kPadding,     // replaces the attribute if it depends on the size of the image
  kFirstSource  // sources, their means if there are any, residuals
};

constexpr int64_t kMaxSources = 64, kMaxResiduals = 64, kMaxThreads = 64;
// Floats; with less work than this, waking other threads does not pay.
constexpr int64_t kSerialWork = 1 << 17;

const OrtFunction* api;

template <class... Parameters>
auto slot(OrtSlot which) {
  return reinterpret_cast<OrtStatus* (*)(Parameters...)>(api[which]);
}

__attribute__((format(printf, 1, 2))) OrtStatus* refuse(const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof(text), format, values);
  va_end(values);
  return slot<int, const char*>(kCreateStatus)(kOrtInvalidArgument, text);
}

void forget(OrtStatus* status) {
  if (status) reinterpret_cast<void (*)(OrtStatus*)>(api[kReleaseStatus])(status);
}

// A kernel's scratch memory, one per thread that runs a session, as large as its largest unit
// needs.
struct Scratch {
  void* at = nullptr;
  int64_t bytes = 0;
  ~Scratch() { release(at); }
  void* take(int64_t need) {
    if (need > bytes) {
      release(at);
      bytes = (need + 4095) / 4096 * 4096;
      at = allocate(bytes);
      if (!at) bytes = 0;
    }
    return at;
  }
};
thread_local Scratch scratch;

// The call that this thread runs: a runner has no argument for it.
thread_local OrtContext* current;

struct Team {
  void (*body)(void*);
  void* data;
};

void run_on_pool(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team team = {body, data};
  auto one = [](void* given, size_t) {
    const Team* team = (const Team*)given;
    team->body(team->data);
  };
  void (*function)(void*, size_t) = one;
  // If the pool runs them one after the other, the first does all the work.
  OrtStatus* status = slot<const OrtContext*, void (*)(void*, size_t), size_t, size_t, void*>(
      kContextParallelFor)(current, function, threads, 0, &team);
  if (status) {
    forget(status);
    body(data);
  }
}

struct Tensor {
  void* data = nullptr;
  int64_t size[8];
  int64_t rank = 0, count = 0;
};

OrtStatus* read_shape(const OrtValue* value, Tensor& to) {
  OrtShape* shape;
  size_t rank;
  if (OrtStatus* s = slot<const OrtValue*, OrtShape**>(kGetTensorTypeAndShape)(value, &shape))
    return s;
  OrtStatus* s = slot<const OrtShape*, size_t*>(kGetDimensionsCount)(shape, &rank);
  if (!s && rank <= 8)
    s = slot<const OrtShape*, int64_t*, size_t>(kGetDimensions)(shape, to.size, rank);
  reinterpret_cast<void (*)(OrtShape*)>(api[kReleaseTensorTypeAndShape])(shape);
  if (s) return s;
  if (rank > 8)
    return refuse("input of %d dimensions: must have 8 at most; check the file", (int)rank);
  to.rank = (int64_t)rank;
  to.count = 1;
  for (size_t d = 0; d < rank; ++d) to.count *= to.size[d];
  return nullptr;
}

// A tensor of the call; without data if it was not given.
OrtStatus* read_input(OrtContext* context, size_t index, Tensor& to) {
  const OrtValue* value = nullptr;
  to = Tensor();
  if (OrtStatus* s =
          slot<const OrtContext*, size_t, const OrtValue**>(kContextInput)(context, index, &value))
    return s;
  if (!value) return nullptr;
  if (OrtStatus* s = read_shape(value, to)) return s;
  return slot<const OrtValue*, void**>(kGetTensorMutableData)(value, &to.data);
}

OrtStatus* make_output(OrtContext* context, size_t index, const int64_t* size, size_t rank,
                       void*& data) {
  OrtValue* value = nullptr;
  if (OrtStatus* s = slot<OrtContext*, size_t, const int64_t*, size_t, OrtValue**>(kContextOutput)(
          context, index, size, rank, &value))
    return s;
  return slot<OrtValue*, void**>(kGetTensorMutableData)(value, &data);
}

// One node of the graph.
struct Unit {
  int64_t dims = 0, sources = 0, groups = 1, transposed = 0, has_means = 0;
  int64_t padding_mode = 0, bypass = 0;
  int64_t kernel[3], stride[3], dilation[3], output_padding[3], bypass_offset[3], padding[6];
  int64_t upsample[kMaxSources];
  int32_t set = BINARIZE_SCALAR;
  int64_t threads = 1;
  // The weight in the fastest order for this set, made by the first call; null if it already has
  // that order, or if it is not a constant of the graph.
  bool constant_weight = false;
  int32_t lock = 0, prepared_state = 0;  // 0 not yet, 1 prepared, 2 not to be prepared
  void* prepared = nullptr;

  int64_t folded(int64_t in_channels, int64_t out_channels) const;
};

int64_t words(int64_t channels) { return (channels + 63) / 64; }

bool is_depthwise(const Unit& u, int64_t in, int64_t out) {
  return u.groups > 1 && in == u.groups && out == u.groups;
}

int64_t Unit::folded(int64_t in, int64_t out) const {
  const int64_t in_group = in / groups, row = kernel[2];
  return !is_depthwise(*this, in, out) && !transposed &&
         words(in_group * row) < words(in_group) * row;
}

OrtStatus* read_int(const OrtKernelInfo* info, const char* name, int64_t min, int64_t max,
                    int64_t& to) {
  if (OrtStatus* s =
          slot<const OrtKernelInfo*, const char*, int64_t*>(kKernelInfoInt)(info, name, &to)) {
    forget(s);
    return refuse("attribute %s: is missing; export the network again", name);
  }
  if (to < min || to > max)
    return refuse("attribute %s=%lld: must be %lld to %lld; export the network again", name,
                  (long long)to, (long long)min, (long long)max);
  return nullptr;
}

OrtStatus* read_ints(const OrtKernelInfo* info, const char* name, int64_t count, int64_t min,
                     int64_t* to) {
  size_t found = 0;
  const auto read = slot<const OrtKernelInfo*, const char*, int64_t*, size_t*>(kKernelInfoInts);
  forget(read(info, name, nullptr, &found));
  if ((int64_t)found != count)
    return refuse("attribute %s: holds %d numbers, must hold %lld; export the network again", name,
                  (int)found, (long long)count);
  if (OrtStatus* s = read(info, name, to, &found)) return s;
  for (int64_t i = 0; i < count; ++i) {
    if (to[i] < min || to[i] > INT32_MAX)
      return refuse("attribute %s: %lld is not allowed; export the network again", name,
                    (long long)to[i]);
  }
  return nullptr;
}

OrtStatus* read_word(const OrtKernelInfo* info, const char* name, const char* const* known,
                     int64_t count, int64_t& to) {
  char text[32] = {0};
  size_t size = sizeof(text) - 1;
  forget(slot<const OrtKernelInfo*, const char*, char*, size_t*>(kKernelInfoString)(info, name,
                                                                                    text, &size));
  for (to = 0; to < count; ++to) {
    if (!strcmp(text, known[to])) return nullptr;
  }
  return refuse("attribute %s='%s': is unknown; use a newer operator library", name, text);
}

int32_t best_set() {
  static const struct {
    const char* name;
    int32_t number;
  } sets[] = {{"avx512", BINARIZE_AVX512},
              {"avx512bw", BINARIZE_AVX512BW},
              {"avx2", BINARIZE_AVX2},
              {"neon", BINARIZE_NEON},
              {"scalar", BINARIZE_SCALAR}};
  const char* wanted = getenv("BINARIZE_KERNELS");
  for (const auto& set : sets) {
    if (wanted && *wanted && strcmp(wanted, set.name)) continue;
    if (binarize_available(set.number) == 2) return set.number;
  }
  return BINARIZE_SCALAR;
}

int64_t processors() {
  const int64_t found = processor_count();
  return found < 1 ? 1 : found > kMaxThreads ? kMaxThreads : found;
}

OrtStatus* read_unit(const OrtKernelInfo* info, Unit& u) {
  static const char* const modes[] = {"zeros", "reflect", "replicate", "circular"};
  static const char* const bypasses[] = {"none", "contiguous", "interleaved"};
  int64_t layout, sources;
  if (OrtStatus* s = read_int(info, "layout", 0, INT32_MAX, layout)) return s;
  if (layout != BINARIZE_LAYOUT)
    return refuse(
        "attribute layout=%lld: this operator library reads weights of layout %d; %s",
        (long long)layout, BINARIZE_LAYOUT,
        layout > BINARIZE_LAYOUT ? "use a newer operator library" : "export the network again");
  if (OrtStatus* s = read_int(info, "dims", 1, 3, u.dims)) return s;
  if (OrtStatus* s = read_int(info, "groups", 1, INT32_MAX, u.groups)) return s;
  if (OrtStatus* s = read_int(info, "transposed", 0, 1, u.transposed)) return s;
  if (OrtStatus* s = read_int(info, "has_means", 0, 1, u.has_means)) return s;
  if (OrtStatus* s = read_int(info, "sources", 1, kMaxSources, sources)) return s;
  u.sources = sources;
  const int64_t lead = 3 - u.dims;
  struct {
    const char* name;
    int64_t* to;
    int64_t min, fill;
  } per_dim[] = {{"kernel", u.kernel, 1, 1},
                 {"stride", u.stride, 1, 1},
                 {"dilation", u.dilation, 1, 1},
                 {"output_padding", u.output_padding, 0, 0},
                 {"bypass_offset", u.bypass_offset, INT32_MIN, 0}};
  for (auto& each : per_dim) {
    for (int64_t d = 0; d < lead; ++d) each.to[d] = each.fill;
    if (OrtStatus* s = read_ints(info, each.name, u.dims, each.min, each.to + lead)) return s;
  }
  for (int64_t d = 0; d < 2 * lead; ++d) u.padding[d] = 0;
  if (OrtStatus* s = read_ints(info, "padding", 2 * u.dims, 0, u.padding + 2 * lead)) return s;
  if (OrtStatus* s = read_ints(info, "upsample", u.sources, 1, u.upsample)) return s;
  if (OrtStatus* s = read_word(info, "padding_mode", modes, 4, u.padding_mode)) return s;
  if (OrtStatus* s = read_word(info, "bypass", bypasses, 3, u.bypass)) return s;
  int constant = 0;
  const OrtValue* weight = nullptr;
  forget(slot<const OrtKernelInfo*, size_t, int*, const OrtValue**>(kKernelInfoConstantInput)(
      info, kWeight, &constant, &weight));
  u.constant_weight = constant && weight;
  u.set = best_set();
  u.threads = processors();
  return nullptr;
}

OrtStatus* create(const OrtOperator*, const OrtFunction*, const OrtKernelInfo* info,
                  void** kernel) {
  Unit* u = (Unit*)malloc(sizeof(Unit));
  if (!u) return refuse("memory: none is left for a node");
  *u = Unit();
  OrtStatus* status = read_unit(info, *u);
  if (status) {
    free(u);
    return status;
  }
  *kernel = u;
  return nullptr;
}

// A call's geometry and the arrays that it points to.
struct Shapes {
  BinarizeGeometry g;
  int64_t out_size[3];  // of the feature map, also if the kernel sees it as one row
  int64_t source[6 * kMaxSources], residual[4 * kMaxResiduals];
};

// Strides of n, z, y, x of a dense channels-last feature map.
void dense_strides(const int64_t size[3], int64_t channels, int64_t* to) {
  to[3] = channels;
  to[2] = to[3] * size[2];
  to[1] = to[2] * size[1];
  to[0] = to[1] * size[0];
}

OrtStatus* measure(const Unit& u, const Tensor* sources, const Tensor* residuals,
                   int64_t residual_count, const int64_t padding[6], int64_t out_channels,
                   Shapes& to) {
  BinarizeGeometry& g = to.g;
  const int64_t lead = 3 - u.dims, rank = u.dims + 2;
  g = BinarizeGeometry();
  g.samples = sources[0].size[0];
  g.out_channels = out_channels;
  g.groups = u.groups;
  for (int64_t i = 0; i < u.sources; ++i) {
    const Tensor& x = sources[i];
    if (x.rank != rank)
      return refuse(
          "source %lld of %lld dimensions: must be (N, *spatial, C) of %lld; check the graph",
          (long long)i, (long long)x.rank, (long long)rank);
    int64_t size[3] = {1, 1, 1};
    for (int64_t d = 0; d < u.dims; ++d) {
      size[lead + d] = x.size[1 + d];
      const int64_t large = x.size[1 + d] * u.upsample[i];
      if (i == 0) g.in_size[lead + d] = large;
      if (large < 1 || large != g.in_size[lead + d])
        return refuse(
            "source %lld of size %lld in dimension %lld: must be %lld; give an image of a "
            "size that the network accepts",
            (long long)i, (long long)large, (long long)d, (long long)g.in_size[lead + d]);
    }
    if (x.size[0] != g.samples || x.size[rank - 1] < 1)
      return refuse("source %lld: holds %lld samples, the first one %lld; check the graph",
                    (long long)i, (long long)x.size[0], (long long)g.samples);
    int64_t* s = to.source + 6 * i;
    s[0] = x.size[rank - 1], s[1] = u.upsample[i];
    g.in_channels += s[0];
    dense_strides(size, s[0], s + 2);
    for (int64_t d = 0; d < lead; ++d) {
      g.in_size[d] = 1;
      s[3 + d] = 0;
    }
  }
  if (g.in_channels % u.groups || out_channels % u.groups)
    return refuse(
        "attribute groups=%lld: must divide %lld and %lld channels; export the network again",
        (long long)u.groups, (long long)g.in_channels, (long long)out_channels);
  bool pointwise = !u.transposed;
  for (int d = 0; d < 3; ++d) {
    g.kernel[d] = u.kernel[d], g.stride[d] = u.stride[d], g.dilation[d] = u.dilation[d];
    g.before[d] = padding[2 * d], g.bypass_offset[d] = u.bypass_offset[d];
    const int64_t extent = u.dilation[d] * (u.kernel[d] - 1) + 1;  // effective kernel
    const int64_t pads = padding[2 * d] + padding[2 * d + 1];
    const int64_t span = g.in_size[d] + pads - extent;
    g.out_size[d] = u.transposed
                        ? (g.in_size[d] - 1) * u.stride[d] - pads + extent + u.output_padding[d]
                    : span < 0 ? 0
                               : span / u.stride[d] + 1;
    if (g.out_size[d] < 1)
      return refuse(
          "input of size %lld: a kernel that spans %lld positions gives no output; give a larger "
          "image",
          (long long)g.in_size[d], (long long)extent);
    const int64_t widest =
        padding[2 * d] > padding[2 * d + 1] ? padding[2 * d] : padding[2 * d + 1];
    const int64_t short_by = u.padding_mode == BINARIZE_REFLECT ? 1 : 0;
    if ((u.padding_mode == BINARIZE_REFLECT || u.padding_mode == BINARIZE_CIRCULAR) &&
        widest > g.in_size[d] - short_by)
      return refuse(
          "input of size %lld: is too small for a padding of %lld by its own values; give a "
          "larger image",
          (long long)g.in_size[d], (long long)widest);
    pointwise = pointwise && u.kernel[d] == 1 && u.stride[d] == 1 && !pads && !u.bypass_offset[d];
  }
  for (int64_t i = 0; i < u.sources; ++i) pointwise = pointwise && u.upsample[i] == 1;
  for (int64_t i = 0; i < residual_count; ++i) {
    const Tensor& x = residuals[i];
    bool fits = x.rank == rank && x.size[0] == g.samples && x.size[rank - 1] == out_channels;
    for (int64_t d = 0; fits && d < u.dims; ++d) fits = x.size[1 + d] == g.out_size[lead + d];
    if (!fits)
      return refuse("residual %lld: does not have the size of the result; check the graph",
                    (long long)i);
    int64_t* s = to.residual + 4 * i;
    int64_t all[4];
    dense_strides(g.out_size, out_channels, all);
    for (int d = 0; d < 4; ++d) s[d] = all[d];
    for (int64_t d = 0; d < lead; ++d) s[1 + d] = 0;
  }
  memcpy(to.out_size, g.out_size, sizeof(to.out_size));
  if (pointwise) {
    // Contiguous positions form one row.
    const int64_t count = g.in_size[0] * g.in_size[1] * g.in_size[2];
    for (int d = 0; d < 3; ++d) g.in_size[d] = g.out_size[d] = d < 2 ? 1 : count;
    for (int64_t i = 0; i < u.sources; ++i) to.source[6 * i + 3] = to.source[6 * i + 4] = 0;
    for (int64_t i = 0; i < residual_count; ++i)
      to.residual[4 * i + 1] = to.residual[4 * i + 2] = 0;
  }
  g.padding_mode = u.padding_mode;
  g.transposed = u.transposed;
  g.bypass = u.bypass;
  g.folded = u.folded(g.in_channels, out_channels);
  g.depthwise = is_depthwise(u, g.in_channels, out_channels);
  g.sources = u.sources;
  g.residuals = residual_count;
  g.source = to.source;
  g.residual = to.residual;
  return nullptr;
}

// A call's approximate cost, in floats read or written; geometry.py estimates it the same way.
int64_t work_of(const BinarizeGeometry& g) {
  int64_t in = g.in_channels, out = g.out_channels, taps = g.in_channels / g.groups, phases = 1;
  for (int d = 0; d < 3; ++d) {
    in *= g.in_size[d], out *= g.out_size[d], taps *= g.kernel[d], phases *= g.stride[d];
  }
  taps *= out;
  if (g.transposed) taps /= phases;
  return g.samples * (2 * in + 2 * out + taps / 512);
}

// Weight of a call, prepared if that helps.
const void* counted_weight(Unit& u, BinarizeGeometry& g, const void* weight) {
  if (!u.constant_weight || __atomic_load_n(&u.prepared_state, __ATOMIC_ACQUIRE) == 2) {
    return weight;
  }
  while (__atomic_exchange_n(&u.lock, 1, __ATOMIC_ACQUIRE)) yield_thread();
  if (u.prepared_state == 0) {
    const int64_t bytes = binarize_prepared(u.set, &g);
    void* made = bytes > 0 ? allocate(bytes) : nullptr;
    const bool ok = made && binarize_prepare_weight(u.set, &g, weight, made) == BINARIZE_OK;
    if (!ok) release(made);
    u.prepared = ok ? made : nullptr;
    __atomic_store_n(&u.prepared_state, ok ? 1 : 2, __ATOMIC_RELEASE);
  }
  __atomic_store_n(&u.lock, 0, __ATOMIC_RELEASE);
  if (!u.prepared) return weight;
  g.prepared = 1 + u.set;
  return u.prepared;
}

OrtStatus* check_count(const Tensor& x, int64_t count, bool needed, const char* name) {
  if (!x.data && !needed) return nullptr;
  if (x.count == count && x.data) return nullptr;
  return refuse("input %s: holds %lld values, must hold %lld; export the network again", name,
                (long long)x.count, (long long)count);
}

OrtStatus* compute(void* kernel, OrtContext* context) {
  Unit& u = *(Unit*)kernel;
  Tensor fixed[kFirstSource], sources[kMaxSources], means[kMaxSources], residuals[kMaxResiduals];
  size_t inputs = 0, outputs = 0;
  if (OrtStatus* s = slot<const OrtContext*, size_t*>(kContextInputCount)(context, &inputs))
    return s;
  if (OrtStatus* s = slot<const OrtContext*, size_t*>(kContextOutputCount)(context, &outputs))
    return s;
  const int64_t residual_count = (int64_t)inputs - kFirstSource - u.sources * (u.has_means ? 2 : 1);
  if (residual_count < 0 || residual_count > kMaxResiduals)
    return refuse("inputs: there are %d, which does not fit %lld sources; check the graph",
                  (int)inputs, (long long)u.sources);
  size_t index = 0;
  for (int i = 0; i < kFirstSource; ++i) {
    if (OrtStatus* s = read_input(context, index++, fixed[i])) return s;
  }
  for (int64_t i = 0; i < u.sources; ++i) {
    if (OrtStatus* s = read_input(context, index++, sources[i])) return s;
  }
  for (int64_t i = 0; u.has_means && i < u.sources; ++i) {
    if (OrtStatus* s = read_input(context, index++, means[i])) return s;
    if (!means[i].count) means[i].data = nullptr;
  }
  for (int64_t i = 0; i < residual_count; ++i) {
    if (OrtStatus* s = read_input(context, index++, residuals[i])) return s;
  }
  int64_t padding[6];
  memcpy(padding, u.padding, sizeof(padding));
  if (fixed[kPadding].data) {
    if (OrtStatus* s = check_count(fixed[kPadding], 2 * u.dims, true, "padding")) return s;
    const int64_t* given = (const int64_t*)fixed[kPadding].data;
    for (int64_t i = 0; i < 2 * u.dims; ++i) {
      padding[6 - 2 * u.dims + i] = given[i];
      if (given[i] < 0 || given[i] > INT32_MAX)
        return refuse("input padding: %lld is not allowed; check the graph", (long long)given[i]);
    }
  }
  Shapes shapes;
  const int64_t out = fixed[kGain].count;
  if (OrtStatus* s = measure(u, sources, residuals, residual_count, padding, out, shapes)) return s;
  BinarizeGeometry& g = shapes.g;
  const int64_t in = g.in_channels;
  const struct {
    Input input;
    int64_t count;
    bool needed;
    const char* name;
  } checks[] = {{kWeight, binarize_weight_bytes(&g), true, "weight"},
                {kOffset, out, true, "offset"},
                {kThreshold, in, true, "threshold"},
                {kMeanGain, in, false, "mean_gain"},
                {kFlip, in, false, "flip"},
                {kExponent, 1, false, "exponent"},
                {kActShift, out, false, "act_shift"},
                {kActSlope, out, false, "act_slope"},
                {kActOutShift, out, false, "act_out_shift"}};
  for (const auto& each : checks) {
    if (OrtStatus* s = check_count(fixed[each.input], each.count, each.needed, each.name)) return s;
  }
  for (int64_t i = 0; i < u.sources; ++i) {
    const int64_t count = g.samples * g.source[6 * i];
    if (OrtStatus* s = check_count(means[i], count, false, "means")) return s;
  }

  int64_t size[5] = {g.samples};
  for (int64_t d = 0; d < u.dims; ++d) size[1 + d] = shapes.out_size[3 - u.dims + d];
  size[1 + u.dims] = out;
  void *y = nullptr, *y_means = nullptr;
  if (OrtStatus* s = make_output(context, 0, size, (size_t)u.dims + 2, y)) return s;
  if (outputs > 1) {
    const int64_t mean_size[2] = {g.samples, out};
    if (OrtStatus* s = make_output(context, 1, mean_size, 2, y_means)) return s;
  }
  if (g.samples == 0) return nullptr;

  const int64_t threads = work_of(g) < kSerialWork ? 1 : u.threads;
  const int64_t bytes = binarize_scratch(&g, threads);
  void* memory = bytes < 0 ? nullptr : scratch.take(bytes);
  if (!memory)
    return bytes < 0
               ? refuse("geometry: the kernels reject it; report this as a bug")
               : refuse(
                     "memory: %lld bytes of scratch memory are not available; use a smaller image",
                     (long long)bytes);
  void* table[BINARIZE_FIRST_SOURCE + 2 * kMaxSources + kMaxResiduals];
  table[BINARIZE_WEIGHT] = const_cast<void*>(counted_weight(u, g, fixed[kWeight].data));
  table[BINARIZE_GAIN] = fixed[kGain].data;
  table[BINARIZE_OFFSET] = fixed[kOffset].data;
  table[BINARIZE_MEAN_GAIN] = fixed[kMeanGain].data;
  table[BINARIZE_THRESHOLD] = fixed[kThreshold].data;
  table[BINARIZE_FLIP] = fixed[kFlip].data;
  table[BINARIZE_EXPONENT] = fixed[kExponent].data;
  table[BINARIZE_ACT_SHIFT] = fixed[kActShift].data;
  table[BINARIZE_ACT_SLOPE] = fixed[kActSlope].data;
  table[BINARIZE_ACT_OUT_SHIFT] = fixed[kActOutShift].data;
  table[BINARIZE_CODING] = nullptr;
  table[BINARIZE_RESULT] = y;
  table[BINARIZE_RESULT_MEANS] = y_means;
  table[BINARIZE_SCRATCH] = memory;
  void** next = table + BINARIZE_FIRST_SOURCE;
  for (int64_t i = 0; i < u.sources; ++i) *next++ = sources[i].data;
  for (int64_t i = 0; i < u.sources; ++i) *next++ = means[i].data;
  for (int64_t i = 0; i < residual_count; ++i) *next++ = residuals[i].data;
  current = context;
  const int32_t status = binarize_unit(u.set, &g, table, threads, run_on_pool);
  current = nullptr;
  if (status != BINARIZE_OK)
    return refuse("geometry: the kernels reject it with status %d; report this as a bug", status);
  return nullptr;
}

void* create_unchecked(const OrtOperator*, const OrtFunction*, const OrtKernelInfo*) {
  return nullptr;
}
void compute_unchecked(void*, OrtContext*) {}
void destroy(void* kernel) {
  release(((Unit*)kernel)->prepared);
  free(kernel);
}
const char* name(const OrtOperator*) { return "BinaryConv"; }
const char* provider(const OrtOperator*) { return "CPUExecutionProvider"; }
int input_type(const OrtOperator*, size_t i) {
  return i == kWeight ? kOrtUint8 : i == kFlip ? kOrtBool : i == kPadding ? kOrtInt64 : kOrtFloat;
}
size_t input_count(const OrtOperator*) { return kFirstSource + 1; }
int output_type(const OrtOperator*, size_t) { return kOrtFloat; }
size_t output_count(const OrtOperator*) { return 2; }
int input_characteristic(const OrtOperator*, size_t i) {
  return i == kFirstSource ? kOrtVariadic : i <= kThreshold ? kOrtRequired : kOrtOptional;
}
int output_characteristic(const OrtOperator*, size_t i) { return i ? kOrtOptional : kOrtRequired; }
int memory(const OrtOperator*, size_t) { return 0; }
int one(const OrtOperator*) { return 1; }
int newest(const OrtOperator*) { return INT32_MAX; }

const OrtOperator binary_conv = {kOrtApiVersion,
                                 create_unchecked,
                                 name,
                                 provider,
                                 input_type,
                                 input_count,
                                 output_type,
                                 output_count,
                                 compute_unchecked,
                                 destroy,
                                 input_characteristic,
                                 output_characteristic,
                                 memory,
                                 one,
                                 one,
                                 one,
                                 one,
                                 create,
                                 compute,
                                 nullptr,
                                 one,
                                 newest};

}  // namespace

extern "C" BINARIZE_API OrtStatus* RegisterCustomOps(void* options, const OrtApiBase* base) {
  api = base->get_api(kOrtApiVersion);
  if (!api) {
    // A status cannot be made without the table; use the oldest one.
    api = base->get_api(1);
    return api ? refuse(
                     "onnxruntime %s: is older than 1.17, which the operators need; use a newer "
                     "one",
                     base->version())
               : nullptr;
  }
  void* domain = nullptr;
  if (OrtStatus* s = slot<const char*, void**>(kCreateCustomOpDomain)("binarize", &domain))
    return s;
  if (OrtStatus* s = slot<void*, const OrtOperator*>(kCustomOpDomainAdd)(domain, &binary_conv))
    return s;
  return slot<void*, void*>(kAddCustomOpDomain)(options, domain);
}
