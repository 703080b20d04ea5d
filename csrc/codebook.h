// The 8-bit dynamic codebooks: the constants of codecs/codebook.py, which says how they are used, laid out for lookups by
// the low bits of a float's exponent or by the shift that makes a mantissa a code.

#pragma once

#include <cstdint>

namespace pagedopt {

constexpr int kNumDecades = 7;
constexpr int kNumPieces = kNumDecades + 1;
constexpr int kTable = 16;  // entries of a lookup; a target that looks up 8 uses the first 8

constexpr float kFloor = 0x1p-100f;             // the smallest absmax of a block that is not all zero
constexpr float kSmallest = 0x1p-22f;           // what is less is encoded as this, which has code 1
constexpr float kOffset = 8.0 / 9.0;            // position = x * slope + kOffset
constexpr float kBelowTwo = 2.0 - 0x1p-23;      // positions are in [1, 2)
constexpr float kMinRoot = 0x1.6a09e6p-75f;     // 2^-74.5, what a root of zero is kept as beside an m that is not
constexpr float kMaxRoot = 2e19f;               // what an infinite root is kept as

static inline float Floored(float absmax) {
  if (!(absmax > 0)) return 0;
  return absmax < kFloor ? kFloor : absmax;
}

struct Codebook {
  // Decode: |value| = step[e] * y + base[e], rounded once, where y = code + bias and e is its exponent.
  float bias;
  alignas(64) float step[kTable];
  alignas(64) float base[kTable];

  // Encode: the piece of x is how many of `threshold` are at most x; its shift is `first_shift` - piece.
  float threshold[kNumPieces - 1];
  int32_t first_shift;
  alignas(64) float slope[kTable];  // by shift

  // The same shift from the exponent of x, by its low 5 bits: the upper 9 bits of `binade_shift` less the bits of x. A
  // binade holds at most one threshold, and from there on the subtraction borrows one.
  alignas(64) uint32_t binade_shift[32];

  // The same in two lookups of a few bytes: the shift at the start of the binade, and the threshold, by the low 3 bits of a
  // shift, from which on it is one less.
  alignas(64) uint8_t binade_start[32];
  alignas(64) float next_threshold[8];
};

constexpr float kSteps[2][kNumDecades] = {
    {4.5e-07f, 2.2499999e-06f, 1.125e-05f, 5.625e-05f, 0.00028125f, 0.00140625f, 0.00703125f},
    {8.999999e-07f, 4.4999997e-06f, 2.25e-05f, 0.0001125f, 0.00056250003f, 0.0028125f, 0.0140625f}};
constexpr float kBases[2][kNumDecades] = {
    {-6.4091796e-07f, -7.204589e-06f, -7.602295e-05f, -0.00078011473f, -0.007900573f, -0.07950287f, -0.7975143f},
    {-9.265624e-07f, -8.632812e-06f, -8.3164065e-05f, -0.0008158203f, -0.008079102f, -0.08039551f, -0.8019775f}};

constexpr double PowerOfTen(int exponent) {
  double power = 1;
  for (int i = 0; i < exponent; ++i) power *= 10;
  return power;
}

constexpr double PowerOfTwo(int exponent) {
  double power = 1;
  for (int i = 0; i < exponent; ++i) power *= 2;
  for (int i = 0; i > exponent; --i) power /= 2;
  return power;
}

// The value of a code (plus one if unsigned) in its decade.
constexpr float ValueOf(bool is_signed, int decade, double code) {
  const double bias = is_signed ? 41.0 / 64 : 75.0 / 512;
  return static_cast<float>(double(kSteps[is_signed][decade]) * (code + bias) + double(kBases[is_signed][decade]));
}

constexpr Codebook MakeCodebook(bool is_signed) {
  Codebook book{};
  const int log_first = is_signed ? 0 : 1;  // the first decade has 2^log_first values
  book.bias = is_signed ? 41.0f / 64 : 1 + 75.0f / 512;
  book.first_shift = 23 - log_first;

  const int bias_exponent = 127;
  for (int decade = 0; decade < kNumDecades; ++decade) {
    const int entry = (bias_exponent + log_first + decade) % kTable;
    book.step[entry] = book.step[entry % 8] = kSteps[is_signed][decade];
    book.base[entry] = book.base[entry % 8] = kBases[is_signed][decade];
  }
  // What has the code -128 is 1, hence -1 before its sign. Zero finds zeros, or in 8 entries what is then masked.
  book.base[(bias_exponent + log_first + kNumDecades) % kTable] = is_signed ? -1.0f : 1.0f;

  for (int piece = 0; piece < kNumPieces; ++piece) {
    const double slope = piece < kNumDecades ? 10 * PowerOfTen(6 - piece) / 9 : 0.1125;
    for (int high = 0; high < kTable; high += 8) {
      book.slope[high + (book.first_shift - piece) % 8] = static_cast<float>(slope);
    }
  }

  for (int piece = 1; piece < kNumPieces; ++piece) {  // midway from the last value of piece - 1 to the first of piece
    const double first = PowerOfTwo(log_first + piece);  // its code, plus one if unsigned
    const float low = ValueOf(is_signed, piece - 1, first - 1);
    const float high = piece == kNumDecades ? 1.0f : ValueOf(is_signed, piece, first);
    book.threshold[piece - 1] = static_cast<float>((double(low) + double(high)) / 2);
  }

  for (int piece = 0; piece < kNumPieces; ++piece) {
    const bool is_last = piece == kNumPieces - 1;
    book.next_threshold[(book.first_shift - piece) % 8] = is_last ? 2.0f : book.threshold[piece];
  }

  for (int exponent = bias_exponent - 31; exponent <= bias_exponent; ++exponent) {
    const double low = PowerOfTwo(exponent - bias_exponent);
    double inside = 2 * low;
    int piece = 0;
    for (int i = 0; i < kNumPieces - 1; ++i) {
      if (book.threshold[i] < low) piece = i + 1;
      if (book.threshold[i] >= low && book.threshold[i] < 2 * low) inside = book.threshold[i];
    }
    const uint32_t mantissa = static_cast<uint32_t>((inside / low - 1) * 0x1p23);  // 2^23 carries into the exponent
    book.binade_start[exponent % 32] = static_cast<uint8_t>(book.first_shift - piece);
    book.binade_shift[exponent % 32] = (static_cast<uint32_t>(book.first_shift - piece + exponent) << 23) + mantissa - 1;
  }
  book.binade_start[0] = 0;  // of 2^-31, which no position has: what three zero bytes beside an exponent find
  return book;
}

inline constexpr Codebook kSigned = MakeCodebook(true);
inline constexpr Codebook kUnsigned = MakeCodebook(false);

}  // namespace pagedopt
