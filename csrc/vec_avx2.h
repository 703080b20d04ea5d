// AVX2 with FMA and F16C: 8 floats.

#pragma once

#include <immintrin.h>

#include "codebook.h"
#include "numbers.h"

namespace pagedopt {
namespace {

struct Vec {
  static constexpr int kLanes = 8;
  static constexpr int kLookup = 8;
  using F = __m256;
  using I = __m256i;
  using M = __m256;

  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F Load(const Bfloat16* p) { return AsFloat(_mm256_slli_epi32(_mm256_cvtepu16_epi32(Load128(p)), 16)); }
  static F Load(const Float16* p) { return _mm256_cvtph_ps(Load128(p)); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void Store(Bfloat16* p, F x) {
    const I bits = AsInt(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const F number = _mm256_blendv_ps(AsFloat(rounded), AsFloat(_mm256_set1_epi32(0x7fc00000)), IsNan(x));
    const I high = _mm256_srli_epi32(AsInt(number), 16);
    Store128(p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }
  static void Store(Float16* p, F x) { Store128(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
  template <class T>
  static void StorePair(T* p, F a, F b) {
    Store(p, a);
    Store(p + kLanes, b);
  }

  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F MaxOrNan(F a, F b) { return _mm256_blendv_ps(Max(a, b), a, IsNan(a)); }
  // Of two operands of which one is NaN, both take the second.
  static F Clamp(F x, F low, F high) { return Min(high, Max(low, x)); }
  static F Abs(F a) { return _mm256_and_ps(a, AsFloat(_mm256_set1_epi32(0x7fffffff))); }

  static F MinAbs(F x, F limit) { return Clamp(x, Sub(_mm256_setzero_ps(), limit), limit); }
  static F MaxAbs(F a, F b) { return Max(Abs(a), b); }
  static float Largest(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_permute_ps(x, 0x4e));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_permute_ps(x, 0xb1)));
  }
  static void Largest(F a, F b, float& of_a, float& of_b) {
    of_a = Largest(a);
    of_b = Largest(b);
  }

  static M Less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static M AtMost(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  static M NotZero(F a) { return _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ); }
  static M AndPositive(M m, F a) { return And(m, _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ)); }
  static M And(M a, M b) { return _mm256_and_ps(a, b); }
  static M Always() { return AsFloat(_mm256_set1_epi32(-1)); }
  static bool All(M m) { return _mm256_movemask_ps(m) == 0xff; }
  static F Select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static F OrZero(M m, F a) { return _mm256_and_ps(m, a); }
  static I OrZero(M m, I a) { return _mm256_and_si256(AsInt(m), a); }

  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static I Exponent(F a) { return _mm256_srli_epi32(AsInt(a), 23); }
  static I Mantissa24(F a, I shift) {
    return _mm256_srlv_epi32(_mm256_and_si256(AsInt(a), _mm256_set1_epi32(0xffffff)), shift);
  }
  static I AbsInt(I a) { return _mm256_abs_epi32(a); }
  static F NegateWhere(I negative, F a) {
    return _mm256_xor_ps(a, AsFloat(_mm256_and_si256(negative, _mm256_set1_epi32(0x80000000))));
  }

  struct Table {
    explicit Table(const float* entries) : entries_(_mm256_load_ps(entries)) {}
    F operator[](I index) const { return _mm256_permutevar8x32_ps(entries_, index); }
    F entries_;
  };

  struct Pieces {
    explicit Pieces(const Codebook& book)
        : log_factor_(_mm256_set1_epi32(book.log_factor)),
          shift_at_log_0_(_mm256_set1_epi32(book.shift_at_log_0)),
          next_threshold_(book.next_threshold) {}
    I ShiftOf(F x) const {
      const I log = _mm256_mulhi_epu16(Exponent(x), log_factor_);
      return _mm256_add_epi32(_mm256_sub_epi32(shift_at_log_0_, log), AsInt(AtMost(next_threshold_[log], x)));
    }
    I log_factor_, shift_at_log_0_;
    Table next_threshold_;
  };

  static I LoadCodes(const int8_t* p) { return _mm256_cvtepi8_epi32(Load64(p)); }
  static I LoadCodes(const uint8_t* p) { return _mm256_cvtepu8_epi32(Load64(p)); }
  static F CodesPlus(const uint8_t* p, float bias) { return Add(ToFloat(LoadCodes(p)), Set(bias)); }
  static void StoreCodes(int8_t* p, const I (&size)[4], const F (&value)[4]) {
    const I low = _mm256_packs_epi32(AsInt(value[0]), AsInt(value[1]));
    const I high = _mm256_packs_epi32(AsInt(value[2]), AsInt(value[3]));
    const I negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), _mm256_packs_epi16(low, high));  // saturation keeps signs
    I code = _mm256_packus_epi16(_mm256_packus_epi32(size[0], size[1]), _mm256_packus_epi32(size[2], size[3]));
    code = _mm256_min_epu8(code, _mm256_add_epi8(_mm256_set1_epi8(-128), negative));  // 128, or 127 below zero
    code = _mm256_sub_epi8(_mm256_xor_si256(code, negative), negative);
    _mm256_storeu_si256(reinterpret_cast<I*>(p), InOrder(code));
  }
  static void StoreCodes(uint8_t* p, const I (&code_and_one)[4]) {
    const I one = _mm256_set1_epi16(1);
    const I low = _mm256_subs_epu16(_mm256_packus_epi32(code_and_one[0], code_and_one[1]), one);
    const I high = _mm256_subs_epu16(_mm256_packus_epi32(code_and_one[2], code_and_one[3]), one);
    _mm256_storeu_si256(reinterpret_cast<I*>(p), InOrder(_mm256_packus_epi16(low, high)));
  }

 private:
  static F AsFloat(I a) { return _mm256_castsi256_ps(a); }
  static I AsInt(F a) { return _mm256_castps_si256(a); }
  static M IsNan(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }

  template <class T>
  static __m128i Load128(const T* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  template <class T>
  static void Store128(T* p, __m128i x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x);
  }
  template <class T>
  static __m128i Load64(const T* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }
  // Undoes that packing interleaves 128-bit lanes.
  static I InOrder(I packed) {
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
};

}  // namespace
}  // namespace pagedopt
