// Segments an image with a 1-bit network: PPM in, PGM out with class indices as grey values.
//
//   segment NETWORK.onnx libbinarize_ort.so IMAGE.ppm MASK.pgm
//
// NETWORK.onnx comes from `binarize export FILE --runtime binarize`. Images are normalised with
// ImageNet statistics; the network runs at the image's size.
#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

static std::vector<unsigned char> read_ppm(const char* path, int64_t& width, int64_t& height) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int most = 0;
  file >> magic >> width >> height >> most;
  if (!file || magic != "P6" || most != 255 || width < 1 || height < 1) {
    throw std::runtime_error(std::string(path) + ": not a binary 8-bit PPM file");
  }
  file.get();
  std::vector<unsigned char> pixels(3 * width * height);
  file.read(reinterpret_cast<char*>(pixels.data()), (std::streamsize)pixels.size());
  if (!file) throw std::runtime_error(std::string(path) + ": file is truncated");
  return pixels;
}

int main(int argc, char** argv) try {
  if (argc != 5) throw std::runtime_error("usage: segment NETWORK LIBRARY IMAGE.ppm MASK.pgm");
  int64_t width, height;
  const std::vector<unsigned char> pixels = read_ppm(argv[3], width, height);

  const float mean[] = {0.485f, 0.456f, 0.406f}, deviation[] = {0.229f, 0.224f, 0.225f};
  const int64_t area = width * height;
  std::vector<float> input(3 * area);
  for (int64_t i = 0; i < area; ++i) {
    for (int c = 0; c < 3; ++c) {
      input[c * area + i] = (pixels[3 * i + c] / 255.0f - mean[c]) / deviation[c];
    }
  }

  Ort::Env env;
  Ort::SessionOptions options;
  // A path, as Windows has wide characters there.
  options.RegisterCustomOpsLibrary(std::filesystem::path(argv[2]).c_str());
  Ort::Session session(env, std::filesystem::path(argv[1]).c_str(), options);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto in = session.GetInputNameAllocated(0, allocator);
  const auto out = session.GetOutputNameAllocated(0, allocator);
  const char *in_name = in.get(), *out_name = out.get();
  const int64_t shape[] = {1, 3, height, width};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto x = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape, 4);
  const auto results = session.Run({}, &in_name, &x, 1, &out_name, 1);

  const auto size = results[0].GetTensorTypeAndShapeInfo().GetShape();  // (1, classes, H, W)
  const float* logits = results[0].GetTensorData<float>();
  const int64_t classes = size.at(1), places = size.at(2) * size.at(3);
  std::vector<unsigned char> mask(places);
  for (int64_t i = 0; i < places; ++i) {
    for (int64_t c = 1; c < classes; ++c) {
      if (logits[c * places + i] > logits[mask[i] * places + i]) mask[i] = (unsigned char)c;
    }
  }
  std::ofstream file(argv[4], std::ios::binary);
  file << "P5\n" << size[3] << ' ' << size[2] << "\n255\n";
  file.write(reinterpret_cast<const char*>(mask.data()), places);
  return file.flush() ? 0 : throw std::runtime_error(std::string(argv[4]) + ": cannot be written");
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
