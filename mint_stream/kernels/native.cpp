// What torch's CPU operators take several passes over memory for, in one: native.py says what each function computes.
//
// C++17 with GCC's vector extension and without torch's headers, so that it compiles in two seconds and for any width of the machine's
// vectors. Numbers are float or bfloat16, sums are float. A row's outcome depends on that row alone, whoever shares the call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using Index = std::int64_t;

constexpr Index FEW_NUMBERS = 32768;  // fewer than that are done before a second thread has begun
constexpr Index LANES = 16;
constexpr Index BLOCK_TOKENS = 256;
constexpr Index BLOCK_COLUMNS = 192;
constexpr Index MOST_WIDTH = 512;  // of a head

using Lanes = float __attribute__((vector_size(4 * LANES)));
using Doubles = double __attribute__((vector_size(8 * LANES)));
using Bits = std::uint32_t __attribute__((vector_size(4 * LANES)));
using Whole = std::int32_t __attribute__((vector_size(4 * LANES)));
using Halves = std::uint16_t __attribute__((vector_size(2 * LANES)));

struct BFloat16 {
  std::uint16_t bits;
};

inline Lanes read(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Bits widened(Halves bits) {
#ifdef __AVX512F__  // which GCC would do in two halves
  return (Bits)_mm512_cvtepu16_epi32((__m256i)bits);
#else
  return __builtin_convertvector(bits, Bits);
#endif
}

inline Lanes read(const BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Lanes)(widened(bits) << 16);
}

inline void write(float* to, Lanes x) { std::memcpy(to, &x, sizeof x); }

inline void write(BFloat16* to, Lanes x) {  // to the nearest, ties to even; what is no number stays none
  const Bits bits = (Bits)x;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Halves halves = __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0u, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// The last lanes of a row may be fewer: they are read as zeros, and not written.
template <class T>
inline Lanes read(const T* from, Index left) {
  if (left >= LANES) return read(from);
  T part[LANES] = {};
  std::memcpy(part, from, left * sizeof(T));
  return read(part);
}

template <class T>
inline void write(T* to, Lanes x, Index left) {
  if (left >= LANES) return write(to, x);
  T part[LANES];
  write(part, x);
  std::memcpy(to, part, left * sizeof(T));
}

inline float sum_of(Lanes x) {
  using Eight = float __attribute__((vector_size(32)));
  using Four = float __attribute__((vector_size(16)));
  Eight eights[2];
  std::memcpy(eights, &x, sizeof x);
  const Eight eight = eights[0] + eights[1];
  Four fours[2];
  std::memcpy(fours, &eight, sizeof eight);
  const Four four = fours[0] + fours[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// e^x to float's precision: 2^n · e^rest, held within float's normal range.
inline Lanes exponential(Lanes x) {
  x = x < -87.0f ? Lanes{} - 87.0f : x;
  x = x > 88.0f ? Lanes{} + 88.0f : x;
  const Lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  const Lanes rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  return sum * (Lanes)((__builtin_convertvector(n, Whole) + 127) << 23);
}

template <class T>
void rms_norm(const T* x, Index stride, const T* weight, T* out, Index rows, Index width, float epsilon) {
#pragma omp parallel for if (rows * width > FEW_NUMBERS)
  for (Index row = 0; row < rows; ++row) {
    const T* from = x + row * stride;
    Doubles squares = {};  // one number may be far larger than all others together
    for (Index at = 0; at < width; at += LANES) {
      const Doubles numbers = __builtin_convertvector(read(from + at, width - at), Doubles);
      squares += numbers * numbers;
    }
    double sum = 0;
    for (Index lane = 0; lane < LANES; ++lane) sum += squares[lane];
    const float scale = float(1.0 / std::sqrt(sum / double(width) + double(epsilon)));
    for (Index at = 0; at < width; at += LANES)
      write(out + row * width + at, read(from + at, width - at) * scale * read(weight + at, width - at), width - at);
  }
}

template <class T>
void gated(const T* x, Index stride, T* out, Index rows, Index width) {
#pragma omp parallel for if (rows * width > FEW_NUMBERS)
  for (Index row = 0; row < rows; ++row)
    for (Index at = 0; at < width; at += LANES) {
      const Lanes gate = read(x + row * stride + at, width - at), up = read(x + row * stride + width + at, width - at);
      write(out + row * width + at, gate / (exponential(-gate) + 1.0f) * up, width - at);
    }
}

template <class T>
void rotate(T* x, Index stride, const T* cos, const T* sin, Index rows, Index heads, Index width) {
  const Index half = width / 2;
#pragma omp parallel for if (rows * heads * width > FEW_NUMBERS)
  for (Index row = 0; row < rows; ++row)
    for (Index at = 0; at < half; at += LANES) {
      const Lanes c = read(cos + row * width + at, half - at), s = read(sin + row * width + at, half - at);
      for (T* head = x + row * stride + at; head < x + row * stride + heads * width; head += width) {
        const Lanes a = read(head, half - at), b = read(head + half, half - at);
        write(head, a * c - b * s, half - at);
        write(head + half, b * c + a * s, half - at);
      }
    }
}

template <class T>
struct Attention {
  const T* q;
  Index q_row, q_head;
  const T *k, *v;
  Index k_slot, k_head, k_token, v_slot, v_head, v_token;
  Index kv_heads, group, width, v_width, window;
  float scale, softcap;
  const float* sinks;
};

// Scores of tokens; W: the width where the compiler may know it, else 0.
template <int W, class T>
void score(const float* q, const T* k, Index step, Index count, Index given, float* scores) {
  const Index width = W ? W : given;
  Index token = 0;
  for (; token + 4 <= count; token += 4, k += 4 * step) {
    Lanes s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (Index at = 0; at < width; at += LANES) {
      const Lanes numbers = read(q + at);
      s0 += numbers * read(k + at, width - at);
      s1 += numbers * read(k + step + at, width - at);
      s2 += numbers * read(k + 2 * step + at, width - at);
      s3 += numbers * read(k + 3 * step + at, width - at);
    }
    scores[token] = sum_of(s0), scores[token + 1] = sum_of(s1), scores[token + 2] = sum_of(s2), scores[token + 3] = sum_of(s3);
  }
  for (; token < count; ++token, k += step) {
    Lanes sum = {};
    for (Index at = 0; at < width; at += LANES) sum += read(q + at) * read(k + at, width - at);
    scores[token] = sum_of(sum);
  }
}

template <int W, class T>
void add_values(const float* weights, const T* v, Index step, Index count, Index given, float* sums) {
  const Index width = W ? W : given;
  constexpr Index TOGETHER = W ? W / LANES : 1;
  for (Index at = 0; at < width; at += TOGETHER * LANES) {
    Lanes sum[TOGETHER];
    for (Index one = 0; one < TOGETHER; ++one) sum[one] = read(sums + at + one * LANES);
    for (Index token = 0; token < count; ++token)
      for (Index one = 0; one < TOGETHER; ++one)
        sum[one] += weights[token] * read(v + token * step + at + one * LANES, width - at - one * LANES);
    for (Index one = 0; one < TOGETHER; ++one) write(sums + at + one * LANES, sum[one]);
  }
}

// One query. The softmax is kept as (highest score, sum of weights, weighted values), rescaled when a block brings a higher score.
template <int W, class T>
void attend(const Attention<T>& on, const T* query, const T* k, const T* v, Index length, const float* sink, T* out) {
  alignas(64) float q[MOST_WIDTH] = {}, sums[MOST_WIDTH] = {}, scores[BLOCK_TOKENS];
  for (Index at = 0; at < on.width; at += LANES) write(q + at, read(query + at, on.width - at) * on.scale);
  float highest = sink ? *sink : -INFINITY, total = sink ? 1.0f : 0.0f;
  for (Index begin = 0; begin < length; begin += BLOCK_TOKENS) {
    const Index count = std::min(BLOCK_TOKENS, length - begin);
    score<W>(q, k + begin * on.k_token, on.k_token, count, on.width, scores);
    if (on.softcap > 0)
      for (Index token = 0; token < count; ++token) scores[token] = std::tanh(scores[token] / on.softcap) * on.softcap;
    std::fill(scores + count, scores + BLOCK_TOKENS, -INFINITY);
    const float before = highest;
    for (Index token = 0; token < count; ++token) highest = scores[token] > highest ? scores[token] : highest;
    const float kept = exponential(Lanes{} + (before - highest))[0];
    Lanes weights = {};
    for (Index token = 0; token < count; token += LANES) {
      const Lanes found = read(scores + token), weight = exponential(found - highest);
      write(scores + token, weight);
      weights += found == -INFINITY ? Lanes{} : weight;
    }
    total = total * kept + sum_of(weights);
    for (Index at = 0; at < on.v_width; ++at) sums[at] *= kept;
    add_values<W>(scores, v + begin * on.v_token, on.v_token, count, on.v_width, sums);
  }
  for (Index at = 0; at < on.v_width; at += LANES) write(out + at, read(sums + at) / total, on.v_width - at);
}

template <int W, class T>
void attend_all(const Attention<T>& on, const Index (*sequences)[3], Index count, T* out) {
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (Index one = 0; one < count; ++one)
    for (Index kv = 0; kv < on.kv_heads; ++kv) {
      const auto [row, slot, length] = sequences[one];
      const Index begin = on.window > 0 && on.window < length ? length - on.window : 0;
      const T* k = on.k + slot * on.k_slot + kv * on.k_head + begin * on.k_token;
      const T* v = on.v + slot * on.v_slot + kv * on.v_head + begin * on.v_token;
      for (Index head = kv * on.group; head < (kv + 1) * on.group; ++head)
        attend<W>(on, on.q + row * on.q_row + head * on.q_head, k, v, length - begin, on.sinks ? on.sinks + head : nullptr,
                  out + (row * on.kv_heads * on.group + head) * on.v_width);
    }
}

template <class T>
void attend_any(const Attention<T>& on, const Index (*sequences)[3], Index count, T* out) {
  if (on.width == 64 && on.v_width == 64) return attend_all<64>(on, sequences, count, out);
  if (on.width == 128 && on.v_width == 128) return attend_all<128>(on, sequences, count, out);
  attend_all<0>(on, sequences, count, out);
}

struct Slice {  // ranks from `begin` to `end` belong to an output y of its own
  Index bt, bt_slot, begin, end, width, y, y_row;
};

// h[row] = x[row] · a for ROWS rows: each reads a once.
template <int ROWS, class T>
void shrink(const T* x, Index x_row, const T* a, Index width, float* h, Index h_row) {
  Lanes sums[ROWS] = {};
  for (Index at = 0; at < width; at += LANES) {
    const Lanes numbers = read(a + at, width - at);
    for (Index row = 0; row < ROWS; ++row) sums[row] += numbers * read(x + row * x_row + at, width - at);
  }
  for (Index row = 0; row < ROWS; ++row) h[row * h_row] = sum_of(sums[row]);
}

// y[row] += h[row] · bt for ROWS rows, columns from `begin` to `end`: they read bt once.
template <int ROWS, class T>
void expand(const float* h, Index h_row, Index ranks, const T* bt, Index bt_row, T* y, Index y_row, Index begin, Index end) {
  for (Index at = begin; at < end; at += LANES) {
    Lanes sums[ROWS] = {};
    for (Index rank = 0; rank < ranks; ++rank) {
      const Lanes numbers = read(bt + rank * bt_row + at, end - at);
      for (Index row = 0; row < ROWS; ++row) sums[row] += numbers * h[row * h_row + rank];
    }
    for (Index row = 0; row < ROWS; ++row) write(y + row * y_row + at, read(y + row * y_row + at, end - at) + sums[row], end - at);
  }
}

template <class T>
void add_lora(const T* x, Index x_row, const T* a, Index a_slot, Index inputs, Index ranks, const Index (*segments)[3], Index count,
              const Slice* slices, Index outputs, float* h) {
#pragma omp parallel
  {
#pragma omp for collapse(2)
    for (Index one = 0; one < count; ++one)
      for (Index rank = 0; rank < ranks; ++rank) {
        const auto [start, end, slot] = segments[one];
        const T* from = a + slot * a_slot + rank * inputs;
        Index row = start;
        for (; row + 4 <= end; row += 4) shrink<4>(x + row * x_row, x_row, from, inputs, h + row * ranks + rank, ranks);
        for (; row < end; ++row) shrink<1>(x + row * x_row, x_row, from, inputs, h + row * ranks + rank, ranks);
      }
    for (Index output = 0; output < outputs; ++output) {
      const Slice& slice = slices[output];
      const Index blocks = (slice.width + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
#pragma omp for collapse(2) nowait
      for (Index one = 0; one < count; ++one)
        for (Index block = 0; block < blocks; ++block) {
          const auto [start, end, slot] = segments[one];
          const Index begin = block * BLOCK_COLUMNS, stop = std::min(slice.width, begin + BLOCK_COLUMNS), its = slice.end - slice.begin;
          const T* bt = reinterpret_cast<const T*>(slice.bt) + slot * slice.bt_slot;
          const float* from = h + slice.begin;
          T* y = reinterpret_cast<T*>(slice.y);
          Index row = start;
          for (; row + 4 <= end; row += 4)
            expand<4>(from + row * ranks, ranks, its, bt, slice.width, y + row * slice.y_row, slice.y_row, begin, stop);
          for (; row < end; ++row) expand<1>(from + row * ranks, ranks, its, bt, slice.width, y + row * slice.y_row, slice.y_row, begin, stop);
        }
    }
  }
}

}  // namespace

#define KERNELS(T, NAME)                                                                                                              \
  extern "C" void rms_norm_##NAME(const T* x, Index stride, const T* weight, T* out, Index rows, Index width, float epsilon) {        \
    rms_norm(x, stride, weight, out, rows, width, epsilon);                                                                           \
  }                                                                                                                                   \
  extern "C" void gated_##NAME(const T* x, Index stride, T* out, Index rows, Index width) { gated(x, stride, out, rows, width); }     \
  extern "C" void rotate_##NAME(T* x, Index stride, const T* cos, const T* sin, Index rows, Index heads, Index width) {               \
    rotate(x, stride, cos, sin, rows, heads, width);                                                                                  \
  }                                                                                                                                   \
  extern "C" void attend_##NAME(const Index* at, float scale, float softcap, const float* sinks, const Index* sequences, Index count, \
                                T* out) {                                                                                             \
    const auto pointer = [&](int one) { return reinterpret_cast<const T*>(at[one]); };                                                \
    attend_any<T>({pointer(0), at[1], at[2], pointer(3), pointer(4), at[5], at[6], at[7], at[8], at[9], at[10], at[11], at[12],       \
                   at[13], at[14], at[15], scale, softcap, sinks},                                                                    \
                  reinterpret_cast<const Index(*)[3]>(sequences), count, out);                                                        \
  }                                                                                                                                   \
  extern "C" void add_lora_##NAME(const T* x, Index x_row, const T* a, Index a_slot, Index inputs, Index ranks,                       \
                                  const Index* segments, Index count, const Slice* slices, Index outputs, float* h) {                 \
    add_lora(x, x_row, a, a_slot, inputs, ranks, reinterpret_cast<const Index(*)[3]>(segments), count, slices, outputs, h);           \
  }
KERNELS(float, float32)
KERNELS(BFloat16, bfloat16)
