// The 8-bit dynamic codebooks: the constants of codecs/codebook.py, which says how they are used, laid out for lookups by
// the low bits of a float's exponent or by the shift that makes a mantissa a code.

#pragma once

#include <cstdint>
#include <limits>

namespace pagedopt {

constexpr int kNumDecades = 7;
constexpr int kNumPieces = kNumDecades + 1;
constexpr int kTable = 16;  // entries of a lookup; a target that looks up 8 uses the first 8

constexpr float kFloor = 0x1p-100f;             // the smallest absmax of a block that is not all zero
constexpr float kSmallest = 0x1p-22f;           // what is less is encoded as this, which has code 1
constexpr int kFirstExponent = 127 - 22;        // of kSmallest
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

  // The same shift from the exponent e of x and one comparison: of log = e * `log_factor` >> 16, `shift_at_log_0` - log, and
  // one less from `next_threshold`, by the low 3 bits of log, on.
  int32_t log_factor;
  int32_t shift_at_log_0;
  alignas(64) float next_threshold[8];

  // The same shift from the exponent of x, by its low 5 bits: the upper 9 bits of `binade_shift` less the bits of x. A
  // binade holds at most one threshold, and from there on the subtraction borrows one.
  alignas(64) uint32_t binade_shift[32];
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

// How many thresholds are at most the least float of an exponent.
constexpr int PieceAt(const Codebook& book, int exponent) {
  int piece = 0;
  while (piece < kNumPieces - 1 && book.threshold[piece] <= PowerOfTwo(exponent - 127)) ++piece;
  return piece;
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

  book.log_factor = is_signed ? 20680 : 20710;  // some 2^16 log10(2); HasLogs tells whether it serves
  book.shift_at_log_0 = book.first_shift - kNumDecades + (bias_exponent * book.log_factor >> 16);
  for (int exponent = kFirstExponent; exponent <= bias_exponent; ++exponent) {
    const int piece = PieceAt(book, exponent);
    const float next = piece == kNumDecades ? std::numeric_limits<float>::infinity() : book.threshold[piece];
    book.next_threshold[(exponent * book.log_factor >> 16) % 8] = next;
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
    book.binade_shift[exponent % 32] = (static_cast<uint32_t>(book.first_shift - piece + exponent) << 23) + mantissa - 1;
  }
  return book;
}

// Whether log counts the thresholds below each exponent.
constexpr bool HasLogs(const Codebook& book) {
  for (int exponent = kFirstExponent; exponent <= 127; ++exponent) {
    if (book.first_shift - PieceAt(book, exponent) != book.shift_at_log_0 - (exponent * book.log_factor >> 16)) return false;
  }
  return true;
}

inline constexpr Codebook kSigned = MakeCodebook(true);
inline constexpr Codebook kUnsigned = MakeCodebook(false);
static_assert(HasLogs(kSigned) && HasLogs(kUnsigned));

}  // namespace pagedopt
