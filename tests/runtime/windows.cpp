// Runs a network of binarize in ONNX Runtime for Windows, which .ci/windows.py does under wine:
//
//   windows.exe NETWORK.onnx INPUT OUTPUT THREADS N C H W
//
// INPUT holds float32; OUTPUT gets those of the first output. Only what is needed of ONNX Runtime's
// C API is declared, like in ort_api.h.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

enum {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kRegisterCustomOpsLibrary = 29,
  kCreateTensorWithData = 49,
  kGetTensorMutableData = 51,
  kGetTensorShapeElementCount = 64,
  kGetTensorTypeAndShape = 65,
  kCreateCpuMemoryInfo = 69
};
enum { kFloat = 1, kWarning = 2, kDeviceAllocator = 0, kDefaultMemory = 0 };

typedef void* Status;
typedef struct {
  void** (*get_api)(uint32_t version);
  const char* (*version)(void);
} Base;

static void** api;

// Calls a function of the table, and ends the program with the message of an error.
template <class... Arguments>
static void call(int slot, Arguments... arguments) {
  const Status status = ((Status (*)(Arguments...))api[slot])(arguments...);
  if (!status) return;
  fprintf(stderr, "%s\n", ((const char* (*)(Status))api[kGetErrorMessage])(status));
  exit(1);
}

int main(int argc, char** argv) {
  const HMODULE runtime = LoadLibraryA("onnxruntime.dll");
  if (argc != 9 || !runtime) return fprintf(stderr, "wrong arguments, or no onnxruntime.dll\n"), 2;
  const Base* base = ((const Base* (*)(void))(void*)GetProcAddress(runtime, "OrtGetApiBase"))();
  api = base->get_api(17);
  printf("ONNX Runtime %s\n", base->version());

  int64_t shape[4], count = 1;
  for (int i = 0; i < 4; ++i) count *= shape[i] = atoll(argv[5 + i]);
  float* input = (float*)malloc(4 * (size_t)count);
  FILE* file = fopen(argv[2], "rb");
  if (!file || fread(input, 4, (size_t)count, file) != (size_t)count) return 2;
  fclose(file);

  void *environment, *options, *library, *session, *memory, *x, *y = nullptr, *found;
  wchar_t path[1024];
  mbstowcs(path, argv[1], 1024);
  call(kCreateEnv, (int)kWarning, "binarize", &environment);
  call(kCreateSessionOptions, &options);
  call(kSetIntraOpNumThreads, options, atoi(argv[4]));
  call(kRegisterCustomOpsLibrary, options, "binarize_ort.dll", &library);
  call(kCreateSession, environment, (const wchar_t*)path, options, &session);
  call(kCreateCpuMemoryInfo, (int)kDeviceAllocator, (int)kDefaultMemory, &memory);
  call(kCreateTensorWithData, memory, (void*)input, 4 * (size_t)count, (const int64_t*)shape,
       (size_t)4, (int)kFloat, &x);
  const char *in_name = "input", *out_name = "output";
  for (int i = 0; i < 3; ++i) {  // the first call prepares weights
    y = nullptr;
    call(kRun, session, (void*)nullptr, &in_name, (void* const*)&x, (size_t)1, &out_name, (size_t)1,
         &y);
  }
  float* output;
  size_t outputs;
  call(kGetTensorMutableData, y, (void**)&output);
  call(kGetTensorTypeAndShape, y, &found);
  call(kGetTensorShapeElementCount, found, &outputs);
  file = fopen(argv[3], "wb");
  if (!file || fwrite(output, 4, outputs, file) != outputs) return 2;
  fclose(file);
  return 0;
}
