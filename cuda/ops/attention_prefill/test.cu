// Tolerance: as for attention_decode, 6e-4 of the 2-norm of each row: two roundings to halves, of weights and of the
// result.
#include "../attention_decode/paged_cache.h"
#include "reference.h"
#include "worker_cuda.h"

using namespace harness;

namespace {

constexpr uint32_t kPadding = 0xFFFFFFFFu;
constexpr double kTolerance = 6e-4;

// Of a sequence: tokens that are in the cache already, and those that are read in now.
struct Part {
    uint32_t n_cached, n_rows;
};

class Prompts {
  public:
    Prompts(const Heads &heads, const std::vector<Part> &parts, float deviation, Random &random)
        : heads_(heads), parts_(parts), cache_(heads, lengths(parts), random) {
        for (size_t s = 0; s < parts.size(); s++) {
            for (uint32_t i = 0; i < parts[s].n_rows; i++) {
                positions_.push_back(parts[s].n_cached + i);
                table_start_.push_back(cache_.sequences[s].table_start);
                sequence_.push_back((uint32_t)s);
            }
        }
        q_ = random.normals(positions_.size() * width(), deviation);
    }

    uint32_t n_rows() const { return (uint32_t)positions_.size(); }

    // Tiles of at most `n` rows each, the last first.
    std::vector<orcd_attention_tile> tiles_of(uint32_t n) const {
        std::vector<orcd_attention_tile> tiles;
        for (uint32_t row = 0; row < n_rows();) {
            uint32_t end = row + 1;
            while (end < n_rows() && end - row < n && sequence_[end] == sequence_[row]) end++;
            tiles.insert(tiles.begin(), {row, end - row});
            row = end;
        }
        return tiles;
    }

    uint32_t most_rows() const { return orcd_attention_prefill_tile_rows(heads_.n_heads, heads_.n_kv_heads); }

    // All rows in one call; `n_padding` more rows follow them, in a tile of their own.
    std::vector<float> run(uint32_t rows_a_tile, uint32_t n_padding = 0) const {
        std::vector<orcd_attention_tile> tiles = tiles_of(rows_a_tile);
        std::vector<uint32_t> positions = positions_, table_start = table_start_;
        std::vector<float> q = q_;
        if (n_padding > 0) tiles.push_back({n_rows(), n_padding});
        positions.resize(positions.size() + n_padding, kPadding);
        table_start.resize(positions.size(), 0x7FFFFFFFu);
        q.resize(positions.size() * width(), NAN);
        return call(q, positions, table_start, tiles);
    }

    // The rows begin..end of one sequence as a call of their own.
    std::vector<float> run_chunk(uint32_t begin, uint32_t end) const {
        const std::vector<float> q(q_.begin() + (size_t)begin * width(), q_.begin() + (size_t)end * width());
        const std::vector<uint32_t> positions(positions_.begin() + begin, positions_.begin() + end);
        const std::vector<uint32_t> table_start(table_start_.begin() + begin, table_start_.begin() + end);
        std::vector<orcd_attention_tile> tiles;
        for (uint32_t row = 0; row < end - begin; row += most_rows())
            tiles.push_back({row, std::min(most_rows(), end - begin - row)});
        return call(q, positions, table_start, tiles);
    }

    void check(const std::vector<float> &out) const {
        const uint32_t pitch = heads_.out_pitch();
        for (uint32_t row = 0; row < n_rows(); row++) {
            const Sequence &s = cache_.sequences[sequence_[row]];
            const std::vector<double> want =
                attention_reference(q_.data() + (size_t)row * width(), s.k, s.v, positions_[row] + 1, heads_.n_heads,
                                    heads_.n_kv_heads, heads_.d_head);
            const std::vector<float> got(out.begin() + (size_t)row * pitch,
                                         out.begin() + (size_t)row * pitch + width());
            const double error = relative_error(got, want);
            CHECK(error < kTolerance, "%u heads, %u KV heads of %u, sequence %u, position %u: off by %g",
                  heads_.n_heads, heads_.n_kv_heads, heads_.d_head, sequence_[row], positions_[row], error);
        }
        for (size_t row = 0; row < out.size() / pitch; row++)
            for (uint32_t i = row < n_rows() ? width() : 0; i < pitch; i++)
                CHECK(out[row * pitch + i] == 0, "column %u of row %zu pads, and is not zero", i, row);
    }

    std::vector<float> rows_of(const std::vector<float> &out, uint32_t begin, uint32_t end) const {
        return {out.begin() + (size_t)begin * heads_.out_pitch(), out.begin() + (size_t)end * heads_.out_pitch()};
    }

  private:
    static std::vector<uint32_t> lengths(const std::vector<Part> &parts) {
        std::vector<uint32_t> out;
        for (const Part &part : parts) out.push_back(part.n_cached + part.n_rows);
        return out;
    }

    uint32_t width() const { return heads_.n_heads * heads_.d_head; }

    std::vector<float> call(const std::vector<float> &q, const std::vector<uint32_t> &positions,
                            const std::vector<uint32_t> &table_start,
                            const std::vector<orcd_attention_tile> &tiles) const {
        Guarded<float> d_q(q);
        Guarded<uint32_t> d_positions(positions), d_table_start(table_start);
        Guarded<orcd_attention_tile> d_tiles(tiles);
        Guarded<__half> out(positions.size() * heads_.out_pitch());
        orcd_attention_prefill_args a{};
        a.q = d_q.get();
        a.k_pool = cache_.k_pool();
        a.v_pool = cache_.v_pool();
        a.block_table = cache_.block_table();
        a.table_start = d_table_start.get();
        a.positions = d_positions.get();
        a.tiles = d_tiles.get();
        a.out = reinterpret_cast<orcd_f16 *>(out.get());
        a.out_pitch = heads_.out_pitch();
        a.n_tiles = (uint32_t)tiles.size();
        a.n_tokens = (uint32_t)positions.size();
        a.n_heads = heads_.n_heads;
        a.n_kv_heads = heads_.n_kv_heads;
        a.d_head = heads_.d_head;
        a.d_head_pad = heads_.d_head_pad;
        CUDA(orcd_attention_prefill(&a, nullptr));
        return to_float(out.read());
    }

    Heads heads_;
    std::vector<Part> parts_;
    PagedCache cache_;
    std::vector<float> q_;
    std::vector<uint32_t> positions_, table_start_, sequence_;
};

}  // namespace

TEST(attention_prefill_is_close_to_the_reference_for_all_shapes) {
    Random random(61);
    const Heads shapes[] = {{3, 1, 12, 16},  {4, 1, 16, 16},    {3, 3, 20, 32},   {14, 2, 64, 64},
                            {8, 2, 80, 128}, {16, 2, 128, 128}, {17, 1, 64, 64},  {34, 2, 12, 16},
                            {71, 1, 64, 64}, {6, 2, 18, 64},    {7, 1, 200, 256}, {32, 1, 256, 256}};
    for (const Heads &heads : shapes) {
        for (float deviation : {1.0f, 8.0f}) {
            const Prompts prompts(heads, {{0, 1}, {0, 15}, {0, 17}, {5, 70}, {16, 1}, {63, 2}, {255, 3}}, deviation,
                                  random);
            const std::vector<float> out = prompts.run(prompts.most_rows(), 1);
            prompts.check(out);
            const std::vector<float> real = prompts.rows_of(out, 0, prompts.n_rows());
            for (uint32_t n : {1u, 2u, 5u})
                if (n < prompts.most_rows())
                    CHECK(same_bits(prompts.run(n), real), "tiles of %u rows give other bits", n);
        }
    }
}

TEST(attention_prefill_is_close_to_the_reference_for_long_prompts) {
    Random random(62);
    for (const Heads &heads : {Heads{14, 2, 64, 64}, Heads{4, 1, 128, 128}, Heads{2, 2, 20, 32}}) {
        const Prompts prompts(heads, {{0, 700}, {257, 300}, {5000, 20}, {16384, 3}}, 2.0f, random);
        prompts.check(prompts.run(prompts.most_rows()));
    }
}

TEST(attention_prefill_gives_a_row_the_same_bits_whole_and_in_chunks) {
    Random random(63);
    for (const Heads &heads :
         {Heads{14, 2, 64, 64}, Heads{3, 3, 20, 32}, Heads{8, 1, 80, 128}, Heads{2, 1, 256, 256}}) {
        const Prompts prompts(heads, {{0, 330}, {40, 60}}, 3.0f, random);
        const std::vector<float> whole = prompts.run(prompts.most_rows());
        prompts.check(whole);
        CHECK(same_bits(prompts.run(prompts.most_rows()), whole), "a second run has other bits");
        for (const auto &chunk :
             {std::make_pair(0u, 1u), {0u, 64u}, {63u, 65u}, {64u, 65u}, {100u, 329u}, {329u, 330u}, {331u, 390u}}) {
            if (few_cases() && chunk.first % 3 != 1) continue;
            CHECK(same_bits(prompts.run_chunk(chunk.first, chunk.second),
                            prompts.rows_of(whole, chunk.first, chunk.second)),
                  "rows %u to %u in a chunk of their own have other bits", chunk.first, chunk.second);
        }
    }
}

TEST(attention_prefill_refuses_what_it_cannot_do) {
    orcd_attention_prefill_args a{};
    CHECK(orcd_attention_prefill(&a, nullptr) == (int32_t)cudaErrorInvalidValue, "null pointers were taken");
    CHECK(orcd_attention_prefill_tile_rows(14, 2) == 9, "seven query heads go nine times into 64");
    CHECK(orcd_attention_prefill_tile_rows(71, 1) == 1, "a row with more heads than a block has is a tile");
}
