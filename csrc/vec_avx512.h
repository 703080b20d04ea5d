// AVX-512 (F, BW, DQ, VL): 16 floats.

#pragma once

#include <immintrin.h>

#include "codebook.h"
#include "numbers.h"

namespace pagedopt {
namespace {

struct Vec {
  static constexpr int kLanes = 16;
  static constexpr int kLookup = 16;
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;

  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F Load(const Bfloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Load16(p)), 16));
  }
  static F Load(const Float16* p) { return _mm512_cvtph_ps(Load16(p)); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void Store(Bfloat16* p, F x) {
    const I bits = _mm512_castps_si512(x);
    const M odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const I half = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fff), odd, _mm512_set1_epi32(0x8000));
    const M is_number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    const I rounded = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), is_number, bits, half);
    const I high_halves = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                           31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    Store16(p, _mm512_castsi512_si256(_mm512_permutexvar_epi16(high_halves, rounded)));
  }
  static void Store(Float16* p, F x) { Store16(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }

  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F MaxOrNan(F a, F b) { return _mm512_mask_mov_ps(Max(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a); }
  // Of two operands of which one is NaN, both take the second.
  static F Clamp(F x, F low, F high) { return Min(high, Max(low, x)); }
  static F Abs(F a) { return _mm512_abs_ps(a); }

  static F MaxAbs(F a, F b) { return _mm512_range_ps(a, b, 0xb); }
  static float Largest(F a) { return _mm512_reduce_max_ps(a); }

  static M Less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M AtMost(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M NotZero(F a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static M AndPositive(M m, F a) { return _mm512_mask_cmp_ps_mask(m, a, _mm512_setzero_ps(), _CMP_GT_OQ); }
  static M And(M a, M b) { return static_cast<M>(a & b); }
  static M Always() { return 0xffff; }
  static bool All(M m) { return m == 0xffff; }
  static F Select(M m, F yes, F no) { return _mm512_mask_mov_ps(no, m, yes); }
  static F OrZero(M m, F a) { return _mm512_maskz_mov_ps(m, a); }
  static I OrZero(M m, I a) { return _mm512_maskz_mov_epi32(m, a); }

  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static I Exponent(F a) { return _mm512_srli_epi32(_mm512_castps_si512(a), 23); }
  static I Mantissa24(F a, I shift) {
    return _mm512_srlv_epi32(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0xffffff)), shift);
  }
  static I AbsInt(I a) { return _mm512_abs_epi32(a); }
  static F NegateWhere(I negative, F a) {
    const I sign = _mm512_and_si512(negative, _mm512_set1_epi32(0x80000000));
    return _mm512_castsi512_ps(_mm512_xor_si512(sign, _mm512_castps_si512(a)));
  }
  static M NotZero(I a) { return _mm512_test_epi32_mask(a, a); }

  struct Table {
    explicit Table(const float* entries) : entries_(_mm512_load_ps(entries)) {}
    F operator[](I index) const { return _mm512_permutexvar_ps(index, entries_); }
    F entries_;
  };

  struct Pieces {
    explicit Pieces(const Codebook& book)
        : low_(_mm512_load_si512(book.binade_shift)), high_(_mm512_load_si512(book.binade_shift + 16)) {}
    I ShiftOf(F x) const {
      const I bits = _mm512_castps_si512(x);
      return _mm512_srli_epi32(_mm512_sub_epi32(_mm512_permutex2var_epi32(low_, Exponent(x), high_), bits), 23);
    }
    I low_, high_;
  };

  static I LoadCodes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static I LoadCodes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void StoreCodes(int8_t* p, const I (&size)[4], const F (&value)[4]) {
    const I low = _mm512_packs_epi32(_mm512_castps_si512(value[0]), _mm512_castps_si512(value[1]));
    const I high = _mm512_packs_epi32(_mm512_castps_si512(value[2]), _mm512_castps_si512(value[3]));
    const __mmask64 negative = _mm512_movepi8_mask(_mm512_packs_epi16(low, high));  // saturation keeps signs
    I code = _mm512_packus_epi16(_mm512_packus_epi32(size[0], size[1]), _mm512_packus_epi32(size[2], size[3]));
    code = _mm512_mask_min_epu8(code, negative, code, _mm512_set1_epi8(127));
    code = _mm512_mask_sub_epi8(code, negative, _mm512_setzero_si512(), code);
    _mm512_storeu_si512(p, InOrder(code));
  }
  static void StoreCodes(uint8_t* p, const I (&code_and_one)[4]) {
    const I one = _mm512_set1_epi16(1);
    const I low = _mm512_subs_epu16(_mm512_packus_epi32(code_and_one[0], code_and_one[1]), one);
    const I high = _mm512_subs_epu16(_mm512_packus_epi32(code_and_one[2], code_and_one[3]), one);
    _mm512_storeu_si512(p, InOrder(_mm512_packus_epi16(low, high)));
  }

 private:
  template <class T>
  static __m256i Load16(const T* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <class T>
  static void Store16(T* p, __m256i x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
  // Undoes that packing interleaves 128-bit lanes.
  static I InOrder(I packed) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
  }
};

}  // namespace
}  // namespace pagedopt
