// Vectors of one value, in portable C++: what every other target must equal to the bit.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "codebook.h"
#include "numbers.h"

namespace pagedopt {
namespace {

struct Vec {
  static constexpr int kLanes = 1;
  static constexpr int kLookup = 16;
  using F = float;
  using I = int32_t;
  using M = bool;

  static F Set(float x) { return x; }
  static F Load(const float* p) { return *p; }
  static F Load(const Bfloat16* p) { return FloatOf(uint32_t{p->bits} << 16); }
  static F Load(const Float16* p) {
    const uint32_t sign = uint32_t{p->bits} >> 15 << 31, size = p->bits & 0x7fff;
    if (size >= 0x7c00) return FloatOf(sign | 0x7f800000 | (size & 0x3ff) << 13 | (size > 0x7c00 ? 0x400000 : 0));
    // As a float it is too small by 2^112, the difference of the two exponents' biases; subnormals come out right.
    return FloatOf(sign | BitsOf(FloatOf(size << 13) * 0x1p112f));
  }
  static void Store(float* p, F x) { *p = x; }
  static void Store(Bfloat16* p, F x) {
    const uint32_t bits = BitsOf(x);
    p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static void Store(Float16* p, F x) {
    const uint32_t bits = BitsOf(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
      p->bits = static_cast<uint16_t>(sign | 0x7e00);
    } else if (size >= 0x477ff000) {  // 65520, halfway to what would be 2^16
      p->bits = static_cast<uint16_t>(sign | 0x7c00);
    } else if (size < 0x38800000) {  // below 2^-14: adding 2^-1 leaves multiples of 2^-24 in the low bits
      p->bits = static_cast<uint16_t>(sign | (BitsOf(FloatOf(size) + 0.5f) - BitsOf(0.5f)));
    } else {
      p->bits = static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
    }
  }
  template <class T>
  static void StorePair(T* p, F a, F b) {
    Store(p, a);
    Store(p + kLanes, b);
  }

  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Sqrt(F a) { return std::sqrt(a); }
  // Rounded once, for float64 holds the sum of a codebook's step and base exactly.
  static F Fma(F a, F b, F c) { return static_cast<float>(double(a) * double(b) + double(c)); }
  static F Min(F a, F b) { return a < b ? a : b; }
  static F Max(F a, F b) { return a > b ? a : b; }
  static F MaxOrNan(F a, F b) { return a != a || a > b ? a : b; }
  static F Clamp(F x, F low, F high) { return x > high ? high : x < low ? low : x; }
  static F Abs(F a) { return std::fabs(a); }

  static F MinAbs(F x, F limit) { return Clamp(x, -limit, limit); }
  static F MaxAbs(F a, F b) { return Max(std::fabs(a), b); }
  static float Largest(F a) { return a; }
  static void Largest(F a, F b, float& of_a, float& of_b) {
    of_a = Largest(a);
    of_b = Largest(b);
  }

  static M Less(F a, F b) { return a < b; }
  static M AtMost(F a, F b) { return a <= b; }
  static M NotZero(F a) { return a != 0; }
  static M AndPositive(M m, F a) { return m && a > 0; }
  static M And(M a, M b) { return a && b; }
  static M Always() { return true; }
  static bool All(M m) { return m; }
  static F Select(M m, F yes, F no) { return m ? yes : no; }
  static F OrZero(M m, F a) { return m ? a : 0; }
  static I OrZero(M m, I a) { return m ? a : 0; }

  static I AsInt(F a) { return static_cast<I>(BitsOf(a)); }
  static F ToFloat(I a) { return static_cast<float>(a); }
  static I Exponent(F a) { return static_cast<I>(BitsOf(a) >> 23); }
  static I Mantissa24(F a, I shift) { return (AsInt(a) & 0xffffff) >> shift; }
  static I AbsInt(I a) { return a < 0 ? -a : a; }
  static F NegateWhere(I negative, F a) { return FloatOf(BitsOf(a) ^ (static_cast<uint32_t>(negative) & 0x80000000)); }

  struct Table {
    explicit Table(const float* entries) : entries_(entries) {}
    F operator[](I index) const { return entries_[index & 15]; }
    const float* entries_;
  };

  struct Pieces {
    explicit Pieces(const Codebook& book) : book_(book) {}
    I ShiftOf(F x) const {
      const I log = Exponent(x) * book_.log_factor >> 16;
      return book_.shift_at_log_0 - log - (x >= book_.next_threshold[log & 7]);
    }
    const Codebook& book_;
  };

  static I LoadCodes(const int8_t* p) { return *p; }
  static I LoadCodes(const uint8_t* p) { return *p; }
  static F CodesPlus(const uint8_t* p, float bias) { return Add(ToFloat(LoadCodes(p)), Set(bias)); }
  static void StoreCodes(int8_t* p, const I (&size)[4], const F (&value)[4]) {
    for (int i = 0; i < 4; ++i) {  // no branch: signs are random
      const I negative = -static_cast<I>(BitsOf(value[i]) >> 31), most = 128 + negative;
      const I limited = size[i] < most ? size[i] : most;
      p[i] = static_cast<int8_t>(static_cast<uint8_t>((limited ^ negative) - negative));
    }
  }
  static void StoreCodes(uint8_t* p, const I (&code_and_one)[4]) {
    for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(code_and_one[i] == 0 ? 0 : code_and_one[i] - 1);
  }
};

}  // namespace
}  // namespace pagedopt
