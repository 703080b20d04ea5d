// The constants of the 8-bit dynamic codebooks, by the same quotients of whole numbers as codecs/codebook.py.
//
// Both directions are arithmetic. A value is the first edge of its decade plus a number of steps, and a code plus a half
// (signed) or three halves (unsigned), as a float, has its decade for exponent and its steps for mantissa. Tables are
// looked up by the low bits of that exponent, or by the shift that turns a mantissa into a code.

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
  // Decode: |value| = edge[e] + step[e] * (y - 2^e) where y = code + bias and e is its exponent.
  float bias;
  alignas(64) float edge[kTable];
  alignas(64) float step[kTable];

  // Encode: the piece of x is how many of `threshold` are at most x; its shift is `first_shift` - piece.
  float threshold[kNumPieces - 1];
  int32_t first_shift;
  alignas(64) float slope[kTable];  // by shift

  // The same piece from the exponent of x: a binade holds at most one threshold. By the low 5 bits of the exponent.
  alignas(64) float binade_threshold[32];
  alignas(64) int32_t binade_shift[32];
};

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

constexpr Codebook MakeCodebook(bool is_signed) {
  Codebook book{};
  const int log_first = is_signed ? 0 : 1;  // the first decade has 2^log_first values
  book.bias = is_signed ? 0.5f : 1.5f;
  book.first_shift = 23 - log_first;

  const int bias_exponent = 127;
  for (int decade = 0; decade < kNumDecades; ++decade) {
    const double n = PowerOfTwo(log_first + decade), power = PowerOfTen(6 - decade);
    const int entry = (bias_exponent + log_first + decade) % kTable;
    book.edge[entry] = book.edge[entry % 8] = static_cast<float>(1 / (10 * power));
    book.step[entry] = book.step[entry % 8] = static_cast<float>(9 / (10 * n * power));
  }
  // The code of 1 is 1/2 a step above its power of two; the signed one is -128, hence -1 before its sign. The signed
  // zero is no step above its own, so that it may share that entry. The unsigned zero has the zeros of entry 15.
  const int one = (bias_exponent + log_first + kNumDecades) % kTable;
  book.step[one] = is_signed ? -2.0f : 2.0f;

  for (int piece = 0; piece < kNumPieces; ++piece) {
    const double slope = piece < kNumDecades ? 10 * PowerOfTen(6 - piece) / 9 : 0.1125;
    for (int high = 0; high < kTable; high += 8) {
      book.slope[high + (book.first_shift - piece) % 8] = static_cast<float>(slope);
    }
  }

  for (int piece = 1; piece < kNumPieces; ++piece) {  // midway from the last value of piece - 1 to the first of piece
    const int below = (bias_exponent + log_first + piece - 1) % kTable, above = (below + 1) % kTable;
    const float n = static_cast<float>(PowerOfTwo(log_first + piece - 1));
    const float last = static_cast<float>(double(book.edge[below]) + (n - 0.5) * double(book.step[below]));
    const float first = piece == kNumDecades
                            ? 1.0f
                            : static_cast<float>(double(book.edge[above]) + 0.5 * double(book.step[above]));
    book.threshold[piece - 1] = static_cast<float>((double(last) + double(first)) / 2);
  }

  for (int exponent = bias_exponent - 31; exponent <= bias_exponent; ++exponent) {
    const double low = PowerOfTwo(exponent - bias_exponent);
    float inside = static_cast<float>(2 * low);
    int piece = 0;
    for (int i = 0; i < kNumPieces - 1; ++i) {
      if (book.threshold[i] < low) piece = i + 1;
      if (book.threshold[i] >= low && book.threshold[i] < 2 * low) inside = book.threshold[i];
    }
    book.binade_threshold[exponent % 32] = inside;
    book.binade_shift[exponent % 32] = book.first_shift - piece;
  }
  return book;
}

inline constexpr Codebook kSigned = MakeCodebook(true);
inline constexpr Codebook kUnsigned = MakeCodebook(false);

}  // namespace pagedopt
