// Attention of tree rows over a paged KV cache, moves of rows inside it, likeliest tokens.
//
// A step's trees are split into items (tree, KV head, range of tokens) that threads take one by
// one. An item's queries are all rows times all query heads of its KV head, so keys and values are
// read once. It goes through its tokens in tiles with an online softmax; items over parts of the
// same tokens are merged at the end. Only tiles that reach into the tree look at the mask.
//
// Two cache layouts, which are vLLM's. Per block of `s` slots and KV head of `d` elements:
//   plain  keys [d][s], values [s][d]
//   amx    keys [s / 16][d / 2][16][2], values [d / 16][s / 2][16][2]: what Intel's matrix units
//          take as a right operand, in pairs of neighbouring d (keys) or slots (values); bfloat16
//
// Names: m queries of an item, n tokens of a tile, d head size.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "matmul.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#include "matmul_amx.h"
#endif

namespace {

constexpr int64_t kRun = 32;         // slots of a block that are read at once
constexpr int64_t kMinSplit = 256;   // tokens that are worth an item of their own
constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Tree {
  int64_t first_row, num_rows, num_context, num_tokens;
  const int32_t* blocks;   // [blocks]
  const uint64_t* words;   // [rows, num_words]
  const int32_t* depths;   // [rows]
};

struct Shape {
  int64_t num_heads, num_kv_heads, size, block_size, num_words, window;
  int64_t block_stride, head_stride, query_stride, output_stride;
  float scale, softcap;
  int64_t groups() const { return num_heads / num_kv_heads; }
};

struct Item {
  int64_t tree, head, first_token, last_token;
};

// An item's unnormalised result, relative to the highest score of each query.
struct Partial {
  std::vector<float> output, highest, sum;  // [m, d], [m], [m]
};

// Memory that is not set to anything.
template <typename T>
std::unique_ptr<T[]> buffer(int64_t count) {
  return std::unique_ptr<T[]>(static_cast<T*>(::operator new[](count * sizeof(T))));
}

// To the nearest of the cache's numbers, without a branch for NaNs, so that loops vectorise.
template <typename T>
inline T rounded(float value) {
  if constexpr (std::is_same_v<T, at::BFloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    bits += 0x7fff + (bits >> 16 & 1);
    return T(static_cast<uint16_t>(bits >> 16), T::from_bits());
  } else {
    return static_cast<T>(value);
  }
}

// Hides the tokens of a tile that a row must not see. A selection, not a sum: what nobody wrote
// may be any number.
void hide(const Shape& s, const Tree& t, int64_t row, int64_t first_token, int64_t width,
          float* scores) {
  const int64_t end = std::min(width, t.num_tokens - first_token);
  if (s.window > 0) {
    const int64_t position = t.num_context + t.depths[row];
    for (int64_t i = 0; i < end; ++i) {
      const int64_t node = first_token + i - t.num_context;
      const int64_t at = node < 0 ? first_token + i : t.num_context + t.depths[node];
      if (position - at >= s.window) scores[i] = kNever;
    }
  }
  const uint64_t* words = t.words + row * s.num_words;
  for (int64_t i = std::max<int64_t>(t.num_context - first_token, 0); i < end; ++i) {
    const int64_t node = first_token + i - t.num_context;
    scores[i] = words[node / 64] >> (node % 64) & 1 ? scores[i] : kNever;
  }
  std::fill(scores + end, scores + width, kNever);
}

void cap(const Shape& s, int64_t width, float* scores) {
  for (int64_t i = 0; i < width; ++i) {
    scores[i] = s.softcap * std::tanh(scores[i] * s.scale / s.softcap);
  }
}

// Makes what was summed up for a query relative to a new highest score.
void raise_highest(const Shape& s, int64_t q, float highest, Partial& partial) {
  const float before = std::exchange(partial.highest[q], highest);
  if (before == kNever || before == highest) return;
  const float rescale = std::exp(before - highest);
  partial.sum[q] *= rescale;
  float* summed = partial.output.data() + q * s.size;
  for (int64_t d = 0; d < s.size; ++d) summed[d] *= rescale;
}

// Turns the first `width` of a tile's scores [m, kTile] into weights, in place.
void update_softmax(const Shape& s, const Tree& t, int64_t first_token, int64_t width,
                    float* scores, Partial& partial) {
  const bool all_seen = s.window <= 0 && first_token + width <= t.num_context;
  const float factor = s.softcap > 0 ? 1.0f : s.scale;
  for (int64_t q = 0; q < t.num_rows * s.groups(); ++q) {
    float* row = scores + q * kTile;
    if (s.softcap > 0) cap(s, width, row);
    if (!all_seen) hide(s, t, q / s.groups(), first_token, width, row);
    const float highest = std::max(partial.highest[q], maximum(row, width) * factor);
    if (highest == kNever) {
      std::fill_n(row, width, 0.0f);
      continue;
    }
    raise_highest(s, q, highest, partial);
    partial.sum[q] += exponentiate(row, width, factor, highest);
  }
}

inline int64_t query_at(const Shape& s, int64_t head, int64_t q) {
  return (head * s.groups() + q % s.groups()) * s.size;
}

template <typename T>
const T* block_of(const Shape& s, const Tree& t, const T* cache, int64_t head, int64_t token) {
  return cache + t.blocks[token / s.block_size] * s.block_stride + head * s.head_stride;
}

// Plain layout: a tile of keys, then of values, is widened to float and multiplied.
template <typename T>
void attend_plain(const Shape& s, const Tree& t, const Item& item, const T* query, const T* cache,
                  Partial& partial) {
  const int64_t m = t.num_rows * s.groups();
  const auto queries = buffer<float>(m * s.size), scores = buffer<float>(m * kTile);
  const auto tile = buffer<float>(kTile * s.size);
  for (int64_t q = 0; q < m; ++q) {
    const T* from = query + (t.first_row + q / s.groups()) * s.query_stride +
                    query_at(s, item.head, q);
    for (int64_t d = 0; d < s.size; ++d) {
      queries[q * s.size + d] = static_cast<float>(from[d]);
    }
  }
  for (int64_t token = item.first_token; token < item.last_token; token += kTile) {
    const int64_t count = std::min(kTile, t.num_tokens - token);
    for (int64_t run = 0; run < count; run += kRun) {
      const T* keys = block_of(s, t, cache, item.head, token + run) + (token + run) % s.block_size;
      for (int64_t d = 0; d < s.size; ++d) {
        for (int64_t i = 0; i < kRun; ++i) {
          tile[d * kTile + run + i] = static_cast<float>(keys[d * s.block_size + i]);
        }
      }
    }
    const int64_t width = (count + kRun - 1) / kRun * kRun;
    multiply<false>(queries.get(), s.size, tile.get(), kTile, scores.get(), kTile, m, width,
                    s.size);
    update_softmax(s, t, token, width, scores.get(), partial);
    for (int64_t run = 0; run < count; run += kRun) {
      const T* values = block_of(s, t, cache, item.head, token + run) +
                        s.block_size * s.size + (token + run) % s.block_size * s.size;
      const int64_t written = std::min(kRun, count - run);
      for (int64_t i = 0; i < written * s.size; ++i) {
        tile[run * s.size + i] = static_cast<float>(values[i]);
      }
    }
    multiply<true>(scores.get(), kTile, tile.get(), s.size, partial.output.data(), s.size, m,
                   s.size, count);
  }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
// AMX layout: the matrix units read keys and values where they are.
//
// Rounding is vLLM's own, to the bit: a row is computed as plain decoding computes it, in the same
// order of operations. What a tree changes is where a row's tokens lie. Scores are therefore drawn
// together before the softmax, and a row off the first path (its number is not its depth) gets its
// last values in a buffer of their own, one after another; in the common product it takes no part
// from there on, since adding nothing changes nothing.
bool is_off_first_path(const Tree& t, int64_t row) { return t.depths[row] != row; }

// Some of an item's tokens, whose scores and weights are [queries, stride].
struct Tile {
  int64_t first_token, width, stride;
  bool has_tree;
};

// Calls `act` with each node of the tree, the root included, that a row sees.
template <typename Act>
void for_each_seen(const Shape& s, const Tree& t, int64_t row, Act act) {
  const uint64_t* words = t.words + row * s.num_words;
  for (int64_t word = 0; word < s.num_words; ++word) {
    for (uint64_t bits = words[word]; bits != 0; bits &= bits - 1) {
      act(64 * word + __builtin_ctzll(bits));
    }
  }
}

// Moves the scores of the tree tokens that a row sees to where a chain has them; hides the rest.
void draw_together(const Shape& s, const Tree& t, int64_t row, const Tile& tile, float* scores) {
  float* of_tree = scores + t.num_context - tile.first_token;
  float* end = of_tree;
  for_each_seen(s, t, row, [&](int64_t node) { *end++ = of_tree[node]; });
  std::fill(end, scores + tile.width, kNever);
}

// Values of tokens, one after another, as a block of vLLM's has them.
class Values {
 public:
  Values(const Shape& s, int64_t num_slots)
      : shape_(s), num_slots_(num_slots), tokens_(num_slots, -1), values_(num_slots * s.size) {
    for (int64_t slot = 0; slot < num_slots; slot += kRun) runs_.push_back(&values_[slot * 16]);
  }

  // Puts a token's values into a slot, unless they are there.
  void put(int64_t slot, const Tree& t, int64_t head, int64_t token, const at::BFloat16* cache) {
    if (std::exchange(tokens_[slot], token) == token) return;
    const int64_t source = token % shape_.block_size;
    const at::BFloat16* from = block_of(shape_, t, cache, head, token) +
                               shape_.block_size * shape_.size + source / 2 * 32 + source % 2;
    at::BFloat16* to = &values_[slot / 2 * 32 + slot % 2];
    for (int64_t d = 0; d < shape_.size; d += 16) {
      for (int64_t i = 0; i < 32; i += 2) to[i] = from[i];
      from += 16 * shape_.block_size;
      to += 16 * num_slots_;
    }
  }

  const at::BFloat16* const* runs() const { return runs_.data(); }
  int64_t stride() const { return 16 * num_slots_; }

 private:
  const Shape& shape_;
  int64_t num_slots_;
  std::vector<int64_t> tokens_;
  std::vector<at::BFloat16> values_;
  std::vector<const at::BFloat16*> runs_;
};

// Adds the values from `first_token` on of each row off the first path.
//   weights: [m, width].
void add_own_values(const Shape& s, const Tree& t, const Item& item, int64_t first_token,
                    const at::BFloat16* cache, const at::BFloat16* weights, int64_t width,
                    Partial& partial) {
  const int64_t groups = s.groups(), first_slot = t.num_context - first_token;
  Values values(s, width);
  for (int64_t slot = 0; slot < first_slot; ++slot) {
    values.put(slot, t, item.head, first_token + slot, cache);
  }
  for (int64_t first = 0; first < groups; first += 16) {
    const MatrixUnits units(std::min<int64_t>(16, groups - first));
    for (int64_t row = 0; row < t.num_rows; ++row) {
      if (!is_off_first_path(t, row)) continue;
      int64_t slot = first_slot;
      for_each_seen(s, t, row, [&](int64_t node) {
        values.put(slot++, t, item.head, t.num_context + node, cache);
      });
      const int64_t q = row * groups + first;
      multiply_values_amx(weights + q * width, width, values.runs(), (slot + kRun - 1) / kRun,
                          values.stride(), partial.output.data() + q * s.size, s.size, false);
    }
  }
}

// Turns the scores of some queries into weights.
void update_softmax_amx(const Shape& s, const Tree& t, const Tile& tile, int64_t first_query,
                        int64_t last_query, float* scores, at::BFloat16* weights,
                        Partial& partial) {
  const float factor = s.softcap > 0 ? 1.0f : s.scale;
  for (int64_t q = first_query; q < last_query; ++q) {
    const int64_t row = q / s.groups();
    if (s.softcap > 0) cap(s, tile.width, scores);
    if (tile.has_tree) draw_together(s, t, row, tile, scores);
    if (s.window > 0) {
      const int64_t position = t.num_context + t.depths[row];
      const int64_t num_hidden = position - s.window + 1 - tile.first_token;
      std::fill_n(scores, std::clamp<int64_t>(num_hidden, 0, tile.width), kNever);
    }
    const float highest = std::max(partial.highest[q], scale_amx(scores, tile.width, factor));
    if (highest == kNever) {
      std::fill_n(weights, tile.width, at::BFloat16(0.0f));
    } else {
      raise_highest(s, q, highest, partial);
      partial.sum[q] += exponentiate_amx(scores, tile.width, highest, weights);
    }
    scores += tile.stride;
    weights += tile.stride;
  }
}

// Takes the weights from `tail` on of the rows off the first path out, into `own` [m, width].
void take_out(const Shape& s, const Tree& t, const Tile& tile, int64_t first_query,
              int64_t last_query, int64_t tail, at::BFloat16* weights, at::BFloat16* own,
              int64_t width) {
  for (int64_t q = first_query; q < last_query; ++q) {
    if (!is_off_first_path(t, q / s.groups())) continue;
    at::BFloat16* from = weights + (q - first_query) * tile.stride + tail - tile.first_token;
    std::copy_n(from, width, own + q * width);
    std::fill_n(from, width, at::BFloat16(0.0f));
  }
}

void attend_amx(const Shape& s, const Tree& t, const Item& item, const at::BFloat16* query,
                const at::BFloat16* cache, Partial& partial) {
  const int64_t m = t.num_rows * s.groups();
  const int64_t padded = (m + 15) / 16 * 16;
  const auto whole_runs = [](int64_t tokens) { return (tokens + kRun - 1) / kRun * kRun; };
  const bool reaches_tree = item.last_token == t.num_tokens;
  // From here on rows see different tokens. All of it is in the last tile.
  const int64_t tail = reaches_tree ? t.num_context / kRun * kRun : item.last_token;
  const int64_t tail_width = whole_runs(item.last_token - tail);
  const int64_t stride = std::min(kLongTile, whole_runs(tail - item.first_token)) + tail_width;
  const auto queries = buffer<at::BFloat16>(padded * s.size);
  const auto weights = buffer<at::BFloat16>(kQueries * stride);
  const auto own_weights = buffer<at::BFloat16>(m * tail_width);
  const auto scores = buffer<float>(kQueries * stride);
  const auto values = buffer<const at::BFloat16*>(stride / kRun);
  partial.output.resize(padded * s.size, 0.0f);
  for (int64_t q = 0; q < m; ++q) {
    std::copy_n(query + (t.first_row + q / s.groups()) * s.query_stride +
                    query_at(s, item.head, q),
                s.size, queries.get() + q * s.size);
  }
  {
    const MatrixUnits units(16);
    for (int64_t q = 0; q < m; q += kQueries) {
      const int64_t last = std::min(q + kQueries, m);
      const bool two = q + 16 < m;
      for (int64_t token = item.first_token, end; token < item.last_token; token = end) {
        end = token + kLongTile < tail ? token + kLongTile : item.last_token;
        const Tile tile{token, whole_runs(end - token), stride,
                        reaches_tree && end == item.last_token};
        for (int64_t at = 0; at < tile.width; at += kRun) {
          const int64_t slot = (token + at) % s.block_size;
          const at::BFloat16* block = block_of(s, t, cache, item.head, token + at);
          values[at / kRun] = block + s.block_size * s.size + slot * 16;
          multiply_keys_amx(queries.get() + q * s.size, block + slot * s.size, scores.get() + at,
                            stride, s.size, two);
        }
        update_softmax_amx(s, t, tile, q, last, scores.get(), weights.get(), partial);
        if (tile.has_tree) {
          take_out(s, t, tile, q, last, tail, weights.get(), own_weights.get(), tail_width);
        }
        multiply_values_amx(weights.get(), stride, values.get(), tile.width / kRun,
                            s.block_size * 16, partial.output.data() + q * s.size, s.size, two);
      }
    }
  }
  if (reaches_tree) {
    add_own_values(s, t, item, tail, cache, own_weights.get(), tail_width, partial);
  }
}
#endif

template <typename T>
void attend_item(const Shape& s, const Tree& t, const Item& item, const T* query, const T* cache,
                 Partial& partial, [[maybe_unused]] bool amx) {
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, at::BFloat16>) {
    if (amx) {
      attend_amx(s, t, item, query, cache, partial);
      return;
    }
  }
#endif
  attend_plain(s, t, item, query, cache, partial);
}

// Items of about equal work: parts of the tokens only where there are too few heads for all
// threads, or one would be left over.
std::vector<Item> plan(const Shape& s, const std::vector<Tree>& trees) {
  const int64_t threads = at::get_num_threads();
  const int64_t whole = static_cast<int64_t>(trees.size()) * s.num_kv_heads;
  const int64_t wanted = whole >= 4 * threads ? 1 : threads / std::gcd(whole, threads);
  std::vector<Item> items;
  for (size_t tree = 0; tree < trees.size(); ++tree) {
    const int64_t tokens = trees[tree].num_tokens;
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, tokens / kMinSplit));
    const int64_t length = ((tokens + parts - 1) / parts + kTile - 1) / kTile * kTile;
    for (int64_t head = 0; head < s.num_kv_heads; ++head) {
      for (int64_t first = 0, last; first < tokens; first = last) {
        // What rows see differently stays together.
        last = first + length > trees[tree].num_context ? tokens : first + length;
        items.push_back({static_cast<int64_t>(tree), head, first, last});
      }
    }
  }
  return items;
}

// Writes the result of one tree and head, whose parts are `partials[0:count]`.
template <typename T>
void write(const Shape& s, const Tree& t, int64_t head, const Partial* partials, size_t count,
           T* output) {
  const auto merged = buffer<float>(s.size);
  for (int64_t q = 0; q < t.num_rows * s.groups(); ++q) {
    float highest = kNever, sum = 0.0f;
    for (size_t p = 0; p < count; ++p) highest = std::max(highest, partials[p].highest[q]);
    std::fill_n(merged.get(), s.size, 0.0f);
    for (size_t p = 0; p < count; ++p) {
      if (partials[p].highest[q] == kNever) continue;
      const float factor = std::exp(partials[p].highest[q] - highest);
      const float* part = partials[p].output.data() + q * s.size;
      sum += factor * partials[p].sum[q];
      for (int64_t d = 0; d < s.size; ++d) merged[d] += factor * part[d];
    }
    // As vLLM's kernel does: in double precision, then rounded.
    const float share = static_cast<float>(1.0 / sum);
    T* to = output + (t.first_row + q / s.groups()) * s.output_stride + query_at(s, head, q);
    for (int64_t d = 0; d < s.size; ++d) to[d] = rounded<T>(merged[d] * share);
  }
}

template <typename T>
void attend(const Shape& s, const std::vector<Tree>& trees, const T* query, const T* cache,
            T* output, [[maybe_unused]] bool amx) {
  const std::vector<Item> items = plan(s, trees);
  const int64_t num_items = static_cast<int64_t>(items.size());
  const bool whole = num_items == static_cast<int64_t>(trees.size()) * s.num_kv_heads;
  std::vector<Partial> partials(items.size());
#pragma omp parallel for schedule(dynamic) num_threads(at::get_num_threads())
  for (int64_t i = 0; i < num_items; ++i) {
    const Item& item = items[i];
    const Tree& tree = trees[item.tree];
    const int64_t m = tree.num_rows * s.groups();
    partials[i] = {std::vector<float>(m * s.size, 0.0f), std::vector<float>(m, kNever),
                   std::vector<float>(m, 0.0f)};
    attend_item(s, tree, item, query, cache, partials[i], amx);
    if (whole) write(s, tree, item.head, &partials[i], 1, output);
  }
  for (size_t begin = 0, end; !whole && begin < items.size(); begin = end) {
    end = begin + 1;
    while (end < items.size() && items[end].tree == items[begin].tree &&
           items[end].head == items[begin].head) {
      ++end;
    }
    write(s, trees[items[begin].tree], items[begin].head, &partials[begin], end - begin, output);
  }
}

template <typename T>
void top_of_row(const T* logits, int64_t vocabulary, int64_t* tokens, int64_t k) {
  std::vector<float> scores(k, kNever);
  alignas(64) float some[kTile];
  int64_t found = 0;
  for (int64_t first = 0; first < vocabulary; first += kTile) {
    const int64_t count = std::min(kTile, vocabulary - first);
    for (int64_t i = 0; i < count; ++i) some[i] = static_cast<float>(logits[first + i]);
    std::fill(some + count, some + kTile, kNever);
    // Few tiles hold one of the best, so most are left after this.
    if (!(maximum(some, kTile) > scores[k - 1])) continue;
    for (int64_t i = 0; i < count; ++i) {
      if (!(some[i] > scores[k - 1])) continue;
      int64_t place = std::min(found, k - 1);
      for (; place > 0 && some[i] > scores[place - 1]; --place) {
        scores[place] = scores[place - 1];
        tokens[place] = tokens[place - 1];
      }
      scores[place] = some[i];
      tokens[place] = first + i;
      found = std::min(found + 1, k);
    }
  }
  if (found == 0) tokens[found++] = 0;
  std::fill(tokens + found, tokens + k, tokens[0]);
}

template <typename T>
void top_of_rows(const T* logits, int64_t rows, int64_t stride, int64_t vocabulary, int64_t* top,
                 int64_t k) {
#pragma omp parallel for num_threads(at::get_num_threads())
  for (int64_t row = 0; row < rows; ++row) {
    top_of_row(logits + row * stride, vocabulary, top + row * k, k);
  }
}

bool has_amx() {
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
  return MatrixUnits::permitted();
#else
  return false;
#endif
}

}  // namespace

// Writes the rows of a step's trees in `output`, and no others.
//   query, output: [tokens, heads, d]; cache: [blocks, KV heads, s, 2 d];
//   block_table: [requests, blocks] int32;
//   trees: [trees, 4] int64 (request, first row, rows, tokens of context);
//   words: [rows of all trees, words] int64 (the bits of an unsigned mask); depths: [rows] int32.
void tree_attention(const at::Tensor& query, const at::Tensor& cache,
                    const at::Tensor& block_table, const at::Tensor& trees,
                    const at::Tensor& words, const at::Tensor& depths,
                    const at::Tensor& output, double scale, double softcap, int64_t window,
                    bool amx) {
  for (const auto& rows : {query, output}) {
    TORCH_CHECK(rows.dim() == 3 && rows.stride(2) == 1 && rows.stride(1) == rows.size(2),
                "the heads of a row must be contiguous");
    TORCH_CHECK(rows.scalar_type() == cache.scalar_type());
  }
  for (const auto& plain : {trees, words, depths}) TORCH_CHECK(plain.is_contiguous());
  TORCH_CHECK(block_table.stride(1) == 1 && block_table.scalar_type() == at::kInt);
  TORCH_CHECK(cache.stride(3) == 1 && cache.stride(2) == cache.size(3));
  TORCH_CHECK(cache.size(2) % kRun == 0, "the block size must be a multiple of ", kRun);
  TORCH_CHECK(query.size(2) % (amx ? 32 : 16) == 0, "the head size is ", query.size(2));
  const Shape shape{query.size(1),   cache.size(1),   query.size(2),
                    cache.size(2),   words.size(1),   window,
                    cache.stride(0), cache.stride(1), query.stride(0),
                    output.stride(0), static_cast<float>(scale), static_cast<float>(softcap)};
  std::vector<Tree> found;
  const auto* word = reinterpret_cast<const uint64_t*>(words.data_ptr<int64_t>());
  const auto* depth = depths.data_ptr<int32_t>();
  for (int64_t i = 0; i < trees.size(0); ++i) {
    const int64_t* tree = trees.data_ptr<int64_t>() + 4 * i;
    found.push_back({tree[1], tree[2], tree[3], tree[3] + tree[2],
                     block_table.data_ptr<int32_t>() + tree[0] * block_table.stride(0), word,
                     depth});
    word += tree[2] * shape.num_words;
    depth += tree[2];
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, query.scalar_type(), "tree_attention", [&] {
        attend(shape, found, query.data_ptr<scalar_t>(), cache.data_ptr<scalar_t>(),
               output.data_ptr<scalar_t>(), amx);
      });
}

// Copies the keys and values of slots `from[i]` to `to[i]`, one after another, in every cache.
//   caches: [blocks, KV heads, s, 2 d] each; from, to: [moves] int64.
void move_rows(const std::vector<at::Tensor>& caches, const at::Tensor& from,
               const at::Tensor& to, bool amx) {
  TORCH_CHECK(from.is_contiguous() && to.is_contiguous() && from.sizes() == to.sizes());
  const int64_t* sources = from.data_ptr<int64_t>();
  const int64_t* targets = to.data_ptr<int64_t>();
  for (const at::Tensor& cache : caches) {
    const int64_t slots = cache.size(2), size = cache.size(3) / 2;
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kBFloat16, at::kHalf, cache.scalar_type(), "move_rows", [&] {
          const auto copy = [&](int64_t head, int64_t source, int64_t target) {
            scalar_t* base = cache.data_ptr<scalar_t>() + head * cache.stride(1);
            const scalar_t* a = base + source / slots * cache.stride(0);
            scalar_t* b = base + target / slots * cache.stride(0);
            const auto key = [&](int64_t slot, int64_t d) {
              return amx ? slot / 16 * 16 * size + d / 2 * 32 + slot % 16 * 2 + d % 2
                         : d * slots + slot;
            };
            const auto value = [&](int64_t slot, int64_t d) {
              return size * slots + (amx ? d / 16 * 16 * slots + slot / 2 * 32 + d % 16 * 2 +
                                               slot % 2
                                         : slot * size + d);
            };
            for (int64_t d = 0; d < size; ++d) {
              b[key(target % slots, d)] = a[key(source % slots, d)];
              b[value(target % slots, d)] = a[value(source % slots, d)];
            }
          };
          for (int64_t head = 0; head < cache.size(1); ++head) {
            for (int64_t i = 0; i < from.size(0); ++i) copy(head, sources[i], targets[i]);
          }
        });
  }
}

// The likeliest tokens of each row, best first; equally likely ones in the order of their numbers.
// Where fewer have a finite score, the best one is repeated.
//   logits: [rows, vocabulary]; top: written, [rows, k] int64.
void top_tokens(const at::Tensor& logits, const at::Tensor& top) {
  TORCH_CHECK(logits.stride(1) == 1 && top.is_contiguous());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kBFloat16, at::kHalf, logits.scalar_type(), "top_tokens", [&] {
        top_of_rows(logits.data_ptr<scalar_t>(), logits.size(0), logits.stride(0), logits.size(1),
                    top.data_ptr<int64_t>(), top.size(1));
      });
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using Released = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("tree_attention", &tree_attention, "Attention of a step's tree rows", Released());
  module.def("move_rows", &move_rows, "Moves rows inside KV caches", Released());
  module.def("top_tokens", &top_tokens, "The likeliest tokens of each row", Released());
  module.def("has_amx", &has_amx, "Whether it can read caches for Intel's matrix units");
}
