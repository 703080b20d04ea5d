// The sum of squares of a chunk, in the order of kernels/norm.py. Include after the header of a target.

#pragma once

#include "page.h"

namespace pagedopt {
namespace {

constexpr int kNormLanes = 2048;

template <class G>
double SumOfSquaresOf(const G* values, int64_t numel) {
  alignas(64) double sums[kNormLanes] = {};
  alignas(64) float row[kNormLanes];
  for (; numel > 0; numel -= kNormLanes, values += kNormLanes) {
    const int count = numel < kNormLanes ? static_cast<int>(numel) : kNormLanes;
    const int whole = count - count % Vec::kLanes;
    for (int i = 0; i < whole; i += Vec::kLanes) Vec::Store(row + i, Vec::Load(values + i));
    if (whole < count) {
      const Padded<G, Vec::kLanes> last(values + whole, count - whole);
      Vec::Store(row + whole, Vec::Load(last.values));
    }
    for (int i = 0; i < count; ++i) sums[i] += double(row[i]) * double(row[i]);
  }
  for (int size = kNormLanes / 2; size > 0; size /= 2) {
    for (int i = 0; i < size; ++i) sums[i] += sums[i + size];
  }
  return sums[0];
}

double SumOfSquares(const void* values, Dtype dtype, int64_t numel) {
  switch (dtype) {
    case Dtype::kFloat32:
      return SumOfSquaresOf(static_cast<const float*>(values), numel);
    case Dtype::kBfloat16:
      return SumOfSquaresOf(static_cast<const Bfloat16*>(values), numel);
    case Dtype::kFloat16:
      return SumOfSquaresOf(static_cast<const Float16*>(values), numel);
  }
  return 0;
}

}  // namespace
}  // namespace pagedopt
