/* C ABI of the 1-bit kernels: raw pointers, 64-bit sizes, a status code.

   Nothing here throws, allocates or keeps state: the caller gives scratch memory, and calls from
   several threads at once are independent of each other. Shapes are written (n, z, y, x, channel);
   convolutions in one or two dimensions have leading dimensions of size 1. */
#ifndef BINARIZE_H
#define BINARIZE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define BINARIZE_API __declspec(dllexport)
#else
#define BINARIZE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { BINARIZE_ABI = 5 };

/* Counts up when the order of bits in a packed weight changes (layout.py). */
enum { BINARIZE_LAYOUT = 1 };

enum BinarizeInstructionSet {
  BINARIZE_SCALAR = 0,
  BINARIZE_AVX2 = 1,
  BINARIZE_AVX512 = 2,
  BINARIZE_NEON = 3,
  BINARIZE_AVX512BW = 4
};

enum BinarizeStatus { BINARIZE_OK = 0, BINARIZE_BAD_GEOMETRY = 1, BINARIZE_NOT_AVAILABLE = 2 };

enum BinarizePadding {
  BINARIZE_ZEROS = 0,
  BINARIZE_REFLECT = 1,
  BINARIZE_REPLICATE = 2,
  BINARIZE_CIRCULAR = 3
};

enum BinarizeBypass { BINARIZE_NONE = 0, BINARIZE_CONTIGUOUS = 1, BINARIZE_INTERLEAVED = 2 };

/* Everything about a unit except its tensors. Read-only; threads may share it. */
typedef struct {
  int64_t samples, in_channels, out_channels, groups;
  int64_t in_size[3], out_size[3];
  int64_t kernel[3], stride[3], before[3], dilation[3], bypass_offset[3];
  int64_t padding_mode, transposed, bypass, folded, depthwise;
  int64_t sources, residuals;
  /* Per source: channels, upsampling factor, strides of n, z, y, x in elements. */
  const int64_t* source;
  /* Per residual: strides of n, z, y, x in elements. */
  const int64_t* residual;
  /* 0 if the call's weight is in the portable layout, 1 + the instruction set that
     binarize_prepare_weight prepared it for; any set reads either. */
  int64_t prepared;
} BinarizeGeometry;

/* The tensors of one call, in this order; those that may be null are marked. After them come
   `sources` feature maps, `sources` means (null if not given), `residuals` feature maps. */
enum BinarizeTensor {
  BINARIZE_WEIGHT,
  BINARIZE_GAIN,
  BINARIZE_OFFSET,
  BINARIZE_MEAN_GAIN, /* null: thresholds do not depend on the mean */
  BINARIZE_THRESHOLD,
  BINARIZE_FLIP,          /* or null */
  BINARIZE_EXPONENT,      /* or null */
  BINARIZE_ACT_SHIFT,     /* or null */
  BINARIZE_ACT_SLOPE,     /* or null */
  BINARIZE_ACT_OUT_SHIFT, /* or null */
  /* Two numbers, the inverse of the step and the code of zero, with which the result is written as
     codes of an 8-bit layer (uint8); or null. */
  BINARIZE_CODING,
  BINARIZE_RESULT,
  BINARIZE_RESULT_MEANS, /* or null */
  BINARIZE_SCRATCH,
  BINARIZE_FIRST_SOURCE
};

/* What a unit keeps from one frame of a video to the next. */
typedef struct {
  void* memory;  /* binarize_stream_bytes of them, aligned to 64; only the library reads them */
  int64_t valid; /* 0 before the first frame; the library sets it */
  /* A pixel (of a group) keeps its old bits while at most this share of them has changed; 0 is
     exact. */
  double tolerance;
  /* The library adds to these: bits compared, and those that differ; windows in all, corrected, and
     counted again; what counting all of them takes, and what was done. */
  int64_t bits, changed_bits, windows, corrected, recounted, work, work_done;
} BinarizeStream;

/* Runs `body(data)` on `threads` threads and waits: the signature of GOMP_parallel. */
typedef void (*BinarizeRunner)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

#if defined(_WIN32)
/* A runner for Windows, where OpenMP runtimes do not have GOMP_parallel: uses the threads of
   libiomp5md.dll, if the process has loaded it, else the calling thread. */
BINARIZE_API void binarize_parallel(void (*body)(void*), void* data, unsigned threads,
                                    unsigned flags);
#endif

BINARIZE_API int32_t binarize_abi(void);
/* 1 if the library has it, 2 if this machine can also run it, else 0. */
BINARIZE_API int32_t binarize_available(int32_t instruction_set);
/* Bytes of a weight that is prepared for an instruction set, 0 if its portable layout is the
   fastest there, -1 if the geometry is refused. Sizes of feature maps, samples and sources do not
   matter. */
BINARIZE_API int64_t binarize_prepared(int32_t instruction_set, const BinarizeGeometry* geometry);
/* Prepares a weight once for all calls that give it with `geometry->prepared` set; `prepared` and
   `weight` are aligned to 8 bytes. */
BINARIZE_API int32_t binarize_prepare_weight(int32_t instruction_set,
                                             const BinarizeGeometry* geometry, const void* weight,
                                             void* prepared);
/* Bytes of scratch memory that a call needs, or -1 if the geometry is rejected. */
BINARIZE_API int64_t binarize_scratch(const BinarizeGeometry* geometry, int64_t threads);
/* Bytes of the packed weight, or -1 if the geometry is rejected; ignores sizes and sources. */
BINARIZE_API int64_t binarize_weight_bytes(const BinarizeGeometry* geometry);
/* Runs the unit; `runner` may be null. */
BINARIZE_API int32_t binarize_unit(int32_t instruction_set, const BinarizeGeometry* geometry,
                                   const void* const* tensors, int64_t threads,
                                   BinarizeRunner runner);
/* Bytes of memory of a stream, 0 if the unit cannot keep one, -1 if the geometry is rejected. */
BINARIZE_API int64_t binarize_stream_bytes(int32_t instruction_set,
                                           const BinarizeGeometry* geometry);
/* Runs the unit on the next frame: all calls with a stream have the same weight, and the same
   geometry but for strides. The result is that of binarize_unit. */
BINARIZE_API int32_t binarize_unit_stream(int32_t instruction_set, const BinarizeGeometry* geometry,
                                          const void* const* tensors, int64_t threads,
                                          BinarizeRunner runner, BinarizeStream* stream);
/* Codes for 8-bit layers: clip(round(x * inverse) + zero, 0, 255), ties to even. */
BINARIZE_API int32_t binarize_codes(int32_t instruction_set, const float* x, int64_t count,
                                    float inverse, int32_t zero, uint8_t* codes);

/* A depthwise convolution on 8-bit codes, of float32 feature maps or of codes (uint8), whose
   channels are contiguous: y = clip(gain * in_step * sum((code - in_zero) * weight) + bias, least,
   most). Sizes are (y, x); the result is contiguous. */
typedef struct {
  int64_t samples, channels;
  int64_t in_size[2], out_size[2], kernel[2], stride[2], before[2], dilation[2];
  int64_t in_stride[3]; /* of n, y, x in elements */
  int64_t in_codes, out_codes, in_zero, out_zero;
  float in_step, in_inverse, out_inverse, least, most;
} BinarizeInt8Depthwise;

enum BinarizeDepthTensor {
  BINARIZE_DEPTH_INPUT,
  BINARIZE_DEPTH_WEIGHT, /* int8 (channel, y, x) */
  BINARIZE_DEPTH_GAIN,
  BINARIZE_DEPTH_BIAS, /* or null */
  BINARIZE_DEPTH_RESULT,
  BINARIZE_DEPTH_SCRATCH
};

/* The largest kernel: sums of more taps might not be exact. */
enum { BINARIZE_DEPTH_MAX_ROWS = 32, BINARIZE_DEPTH_MAX_TAPS = 513 };

/* Bytes of scratch memory that a call needs, or -1 if the geometry is refused. */
BINARIZE_API int64_t binarize_int8_depthwise_scratch(const BinarizeInt8Depthwise* geometry,
                                                     int64_t threads);
/* Runs it; `runner` may be null. */
BINARIZE_API int32_t binarize_int8_depthwise(int32_t instruction_set,
                                             const BinarizeInt8Depthwise* geometry,
                                             const void* const* tensors, int64_t threads,
                                             BinarizeRunner runner);

#ifdef __cplusplus
}
#endif

#endif
