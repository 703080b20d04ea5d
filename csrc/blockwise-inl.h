// Codes of a block to floats and back. Include after the header of a target, which defines Vec.

#pragma once

#include <limits>

#include "codebook.h"
#include "page.h"

namespace pagedopt {
namespace {

using F = Vec::F;
using I = Vec::I;

// Values that codes are stored for at a time. Blocks are filled up to multiples of it.
constexpr int kGroup = 4 * Vec::kLanes;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Decoder {
  explicit Decoder(const Codebook& book) : bias(Vec::Set(book.bias)), step(book.step), base(book.base) {}

  F Value(const int8_t* p) const {
    const I code = Vec::LoadCodes(p);
    return Vec::NegateWhere(code, At(Vec::Add(Vec::ToFloat(Vec::AbsInt(code)), bias)));
  }

  F Value(const uint8_t* p) const { return At(Vec::CodesPlus(p, kUnsigned.bias)); }

  // The value at y = code + bias.
  F At(F y) const {
    const I exponent = Vec::Exponent(y);
    const F value = Vec::Fma(y, step[exponent], base[exponent]);
    if constexpr (Vec::kLookup == 16) return value;
    return Vec::OrZero(Vec::Less(bias, y), value);  // of 8 entries, codes 0 and 1 share one
  }

  F bias;
  Vec::Table step, base;
};

struct Encoder {
  Encoder(const Codebook& book, float absmax)
      : pieces(book), slope(book.slope), inverse(Vec::Set(absmax > 0 ? 1 / absmax : 0)) {}

  // The code (the unsigned one plus one) of the size of a value; zero for zero.
  I Size(F value) const { return Vec::OrZero(Vec::NotZero(value), SizeOfNonzero(value)); }

  I SizeOfNonzero(F value) const {
    const F x = Vec::MaxAbs(Vec::Mul(value, inverse), Vec::Set(kSmallest));
    const I shift = pieces.ShiftOf(x);
    const F position = Vec::Min(Vec::Add(Vec::Mul(x, slope[shift]), Vec::Set(kOffset)), Vec::Set(kBelowTwo));
    return Vec::Mantissa24(position, shift);
  }

  Vec::Pieces pieces;
  Vec::Table slope;
  F inverse;
};

// The largest |m| and root of a block.
struct Extent {
  float m, root;
};

inline Extent LargestOf(F m, F root) {
  Extent extent;
  Vec::Largest(m, root, extent.m, extent.root);
  return extent;
}

// Makes both moments of a block what 8 bits can keep, as codecs/blockwise.py `keepable` says.
inline Extent Settle(float* m, float* root, int64_t numel) {
  const F infinity = Vec::Set(kInfinity);
  F m_largest = Vec::Set(0), root_largest = Vec::Set(0);
  for (int64_t i = 0; i < numel; i += Vec::kLanes) {
    const F old_m = Vec::Load(m + i), old_root = Vec::Load(root + i);
    const Vec::M is_finite = Vec::Less(Vec::Abs(old_m), infinity);

    const F kept = Vec::OrZero(Vec::And(is_finite, Vec::Less(old_root, infinity)), old_m);
    F r = Vec::OrZero(Vec::AtMost(old_root, infinity), old_root);  // NaN becomes zero
    r = Vec::Select(Vec::NotZero(kept), Vec::Max(r, Vec::Set(kMinRoot)), r);
    r = Vec::OrZero(is_finite, Vec::Min(r, Vec::Set(kMaxRoot)));

    m_largest = Vec::MaxAbs(kept, m_largest);
    root_largest = Vec::Max(r, root_largest);
    Vec::Store(m + i, kept);
    Vec::Store(root + i, r);
  }
  return LargestOf(m_largest, root_largest);
}

}  // namespace
}  // namespace pagedopt
