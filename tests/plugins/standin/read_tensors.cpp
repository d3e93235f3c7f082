// Reads many tensor files as the runner reads one. For each: its shape and the sum of its elements, or why it is refused.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "runner/tensor_file.h"

int main(int, char** arguments) {
  using namespace fastervit::runner;
  std::ifstream list(arguments[1]);
  for (std::string path; std::getline(list, path);) {
    try {
      TensorFile file(path, {});
      std::vector<float> data(float_bytes(file.shape(), path) / sizeof(float));
      file.read(0, file.rows(), data.data());
      double sum = 0;
      for (const float element : data) sum += element;
      std::printf("%s %.17g\n", text_of(file.shape()).c_str(), sum);
    } catch (const Failure& error) {
      std::printf("refused: %s\n", error.what());
    }
  }
}
