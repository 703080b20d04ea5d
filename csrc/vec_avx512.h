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

  template <class T>
  static void StorePair(T* p, F a, F b) {
    StoreEach(p, a, b);
  }
  static void StorePair(Bfloat16* p, F a, F b) {
#if defined(__AVX512BF16__)  // rounds alike, but for what is not a number, and takes subnormals for zero
    constexpr int kNanOrSubnormal = 0xa1;
    if (_mm512_fpclass_ps_mask(a, kNanOrSubnormal) | _mm512_fpclass_ps_mask(b, kNanOrSubnormal)) return StoreEach(p, a, b);
    _mm512_storeu_si512(p, (I)_mm512_cvtne2ps_pbh(b, a));
#else
    if (_mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q)) return StoreEach(p, a, b);
    const I low_halves = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,  //
                                          30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const I high_halves = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33,  //
                                           31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const I kept = _mm512_permutex2var_epi16(_mm512_castps_si512(a), high_halves, _mm512_castps_si512(b));
    const I lost = _mm512_permutex2var_epi16(_mm512_castps_si512(a), low_halves, _mm512_castps_si512(b));
    // What is lost counts as more than a half if it is one and what is kept is odd.
    const I weight = _mm512_ternarylogic_epi32(lost, kept, _mm512_set1_epi16(1), 0xf8);
    const __mmask32 up = _mm512_cmpgt_epu16_mask(weight, _mm512_set1_epi16(-0x8000));
    _mm512_storeu_si512(p, _mm512_mask_sub_epi16(kept, up, kept, _mm512_set1_epi16(-1)));
#endif
  }

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

  static F MinAbs(F x, F limit) { return _mm512_range_ps(x, limit, 0x2); }  // with the sign of x
  static F MaxAbs(F a, F b) { return _mm512_range_ps(a, b, 0xb); }
  // Of both at once: the halves of the one beside those of the other.
  static void Largest(F a, F b, float& of_a, float& of_b) {
    F x = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
    x = _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
    of_a = _mm512_cvtss_f32(x);
    of_b = _mm_cvtss_f32(_mm512_extractf32x4_ps(x, 2));
  }

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

  // A code in the second byte of a float of 2^15 adds itself; the bias takes 2^15 off again. Both are exact.
  static F CodesPlus(const uint8_t* p, float bias) {
    const I bytes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const I place = _mm512_set_epi32(15 << 8, 14 << 8, 13 << 8, 12 << 8, 11 << 8, 10 << 8, 9 << 8, 8 << 8,  //
                                     7 << 8, 6 << 8, 5 << 8, 4 << 8, 3 << 8, 2 << 8, 1 << 8, 0);
    const I floats = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x47000000), 0x2222222222222222, bytes, place);
    return Add(_mm512_castsi512_ps(floats), Set(bias - 0x1p15f));
  }
  static I LoadCodes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
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
  static void StoreEach(T* p, F a, F b) {
    Store(p, a);
    Store(p + kLanes, b);
  }
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
