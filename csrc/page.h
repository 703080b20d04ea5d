// The calling convention of kernels/args.py, in C++: what one call brings, and the runs of values it is cut into.

#pragma once

#include <cstdint>

namespace pagedopt {

constexpr int64_t kBlock = 256;  // values that share one absmax; at most, and of one row

enum class StateFormat : int64_t { kFloat32 = 0, kFloat32Amsgrad = 1, kBlockwise8 = 2, kTensorwise8 = 3 };

// A row of the segment table.
enum Column { kOperand, kStart, kNumel, kRowWidth, kFormat, kField0, kField1, kField2, kField3, kBase, kNumColumns };

// A row of the scalars.
enum Scalar {
  kBeta1,
  kOneMinusBeta1,
  kBeta2,
  kOneMinusBeta2,
  kEps,
  kDecay,
  kStepSize,
  kDenomScale,
  kGradScale,
  kUpdateLimit,
  kNumScalars
};

// A row of the address table: where an operand's tensors are. A gradient at 0 means: no update in this step.
enum Address { kParam, kGrad, kParamDtype, kGradDtype, kScalarRow, kNumAddresses };

enum class Dtype : int64_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

static constexpr int64_t SizeOf(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

struct Page {
  const int64_t* segments;  // [num_segments][kNumColumns]
  int64_t num_segments;
  uint8_t* frame;
  const int64_t* addresses;  // [num_operands][kNumAddresses]
  const float* scalars;      // [rows][kNumScalars]
  float* absmax;             // [num_operands][2]
};

// Consecutive values of one segment that begin at a block, with every address resolved.
struct Run {
  int64_t numel;
  int64_t column;     // of the first value in its row
  int64_t row_width;  // values
  StateFormat format;
  Dtype param_dtype;
  Dtype grad_dtype;
  void* param;
  const void* grad;
  void* field[4];        // where the run's part of each array begins; an absmax per segment is not advanced
  const float* scalars;  // kNumScalars
  float* absmax;         // of the operand: exp_avg, root of exp_avg_sq
};

// One instruction set: the same functions, compiled for it from the same source.
struct Target {
  const char* name;
  void (*update)(const Run& run);
  void (*measure)(const Run& run, float largest[2]);  // raises `largest` to the largest |m| and root of the run
  double (*sum_of_squares)(const void* values, Dtype dtype, int64_t numel);  // of one chunk
};

constexpr int64_t kChunk = 16 * 2048;  // values that `Target::sum_of_squares` takes at most

void Update(const Target& target, const Page& page, int num_threads);
void Measure(const Target& target, const Page& page, int num_threads);
double SumOfSquares(const Target& target, const void* values, Dtype dtype, int64_t numel, int num_threads);

}  // namespace pagedopt
