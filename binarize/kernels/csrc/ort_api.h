/* What the operator library needs of ONNX Runtime's C API, declared here so that it builds without
   the run time's headers.

   The API is a table of function pointers that only grows at its end: a slot never moves. The
   numbers below are positions in that table, the struct is the description of a custom operator as
   of version 17, which every later version reads. */
#ifndef BINARIZE_ORT_API_H
#define BINARIZE_ORT_API_H

#include <stddef.h>
#include <stdint.h>

/* The oldest API version with all slots used here (ONNX Runtime 1.17). */
enum { kOrtApiVersion = 17 };

enum OrtSlot {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoInt = 86,
  kKernelInfoString = 87,
  kContextInputCount = 88,
  kContextOutputCount = 89,
  kContextInput = 90,
  kContextOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShape = 99,
  kKernelInfoInts = 163,
  kKernelInfoConstantInput = 249,
  kContextParallelFor = 274
};

enum OrtElement { kOrtFloat = 1, kOrtUint8 = 2, kOrtInt64 = 7, kOrtBool = 9 };
enum OrtCharacteristic { kOrtRequired = 0, kOrtOptional = 1, kOrtVariadic = 2 };
enum OrtError { kOrtFail = 1, kOrtInvalidArgument = 2 };

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtContext OrtContext;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef void (*OrtFunction)(void);

typedef struct {
  const OrtFunction* (*get_api)(uint32_t version);
  const char* (*version)(void);
} OrtApiBase;

typedef struct OrtOperator OrtOperator;
struct OrtOperator {
  uint32_t version;
  void* (*create)(const OrtOperator*, const OrtFunction*, const OrtKernelInfo*);
  const char* (*name)(const OrtOperator*);
  const char* (*provider)(const OrtOperator*);
  int (*input_type)(const OrtOperator*, size_t);
  size_t (*inputs)(const OrtOperator*);
  int (*output_type)(const OrtOperator*, size_t);
  size_t (*outputs)(const OrtOperator*);
  void (*compute)(void* kernel, OrtContext*);
  void (*destroy)(void* kernel);
  int (*input_characteristic)(const OrtOperator*, size_t);
  int (*output_characteristic)(const OrtOperator*, size_t);
  int (*input_memory)(const OrtOperator*, size_t);
  int (*variadic_input_least)(const OrtOperator*);
  int (*variadic_input_alike)(const OrtOperator*);
  int (*variadic_output_least)(const OrtOperator*);
  int (*variadic_output_alike)(const OrtOperator*);
  OrtStatus* (*create_checked)(const OrtOperator*, const OrtFunction*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*compute_checked)(void* kernel, OrtContext*);
  OrtStatus* (*infer_shape)(const OrtOperator*, void*);
  int (*since)(const OrtOperator*);
  int (*until)(const OrtOperator*);
};

#endif
