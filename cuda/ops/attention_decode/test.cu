// Tolerance: 6e-4 of the 2-norm. Rounding the result to a half costs 2e-4 (2^-11 / sqrt(12), times what a binade adds);
// rounding each weight to a half as much again, less where few tokens matter; scores in F32 are right to some 1e-5. A
// token too many or too few among 16,384 would be 8e-3, queries in plain F16 would be 1e-3 and more at the large scores
// below.
#include "paged_cache.h"
#include "reference.h"
#include "worker_cuda.h"

using namespace harness;

namespace {

constexpr uint32_t kPadding = 0xFFFFFFFFu;
constexpr double kTolerance = 6e-4;

// A batch: each row is the last token of a sequence, or fills up the batch.
class Batch {
  public:
    // A context of 0 is a row that fills up the batch.
    Batch(const Heads &heads, const std::vector<uint32_t> &contexts, float deviation, Random &random)
        : heads_(heads), contexts_(contexts), cache_(heads, of_sequences(contexts), random) {
        q_ = random.normals(contexts.size() * heads.n_heads * heads.d_head, deviation);
        uint32_t sequence = 0;
        for (uint32_t n : contexts) {
            positions_.push_back(n ? n - 1 : kPadding);
            table_start_.push_back(n ? cache_.sequences[sequence++].table_start : 0x7FFFFFFFu);
            longest_ = std::max(longest_, n);
        }
    }

    // The given rows, in this order, in one call.
    std::vector<float> run(const std::vector<uint32_t> &rows, uint32_t n_blocks, uint32_t reads_ahead = 0) {
        const uint32_t n = (uint32_t)rows.size(), width = heads_.n_heads * heads_.d_head, pitch = heads_.out_pitch();
        std::vector<float> q;
        std::vector<uint32_t> positions, table_start;
        for (uint32_t row : rows) {
            q.insert(q.end(), q_.begin() + (size_t)row * width, q_.begin() + (size_t)(row + 1) * width);
            positions.push_back(positions_[row]);
            table_start.push_back(table_start_[row]);
        }
        Guarded<float> d_q(q);
        Guarded<uint32_t> d_positions(positions), d_table_start(table_start);
        Guarded<float> partials(std::vector<float>(
            orcd_attention_decode_partials(n, longest_, heads_.n_heads, heads_.n_kv_heads, heads_.d_head_pad), 0));
        Guarded<__half> out((size_t)n * pitch);
        orcd_attention_decode_args a{};
        a.q = d_q.get();
        a.k_pool = cache_.k_pool();
        a.v_pool = cache_.v_pool();
        a.block_table = cache_.block_table();
        a.table_start = d_table_start.get();
        a.positions = d_positions.get();
        a.out = reinterpret_cast<orcd_f16 *>(out.get());
        a.partials = partials.get();
        a.n_partials = partials.size();
        a.out_pitch = pitch;
        a.n_tokens = n;
        a.n_heads = heads_.n_heads;
        a.n_kv_heads = heads_.n_kv_heads;
        a.d_head = heads_.d_head;
        a.d_head_pad = heads_.d_head_pad;
        a.n_blocks = n_blocks;
        a.reads_ahead = reads_ahead;
        CUDA(orcd_attention_decode(&a, nullptr));
        const std::vector<float> first = to_float(out.read());
        CUDA(orcd_attention_decode(&a, nullptr));  // on the scratch as the first call left it
        CHECK(same_bits(to_float(out.read()), first), "a second run has other bits");
        const std::vector<float> left = partials.read();
        CHECK(same_bits(left, std::vector<float>(left.size(), 0)), "a slot of scratch was not left empty");
        return first;
    }

    std::vector<float> run_all(uint32_t n_blocks) {
        std::vector<uint32_t> rows;
        for (uint32_t row = 0; row < contexts_.size(); row++) rows.push_back(row);
        return run(rows, n_blocks);
    }

    void check(const std::vector<float> &out) {
        const uint32_t width = heads_.n_heads * heads_.d_head, pitch = heads_.out_pitch();
        uint32_t sequence = 0;
        for (uint32_t row = 0; row < contexts_.size(); row++) {
            const std::vector<float> got(out.begin() + (size_t)row * pitch, out.begin() + (size_t)row * pitch + width);
            const uint32_t n = contexts_[row];
            std::vector<double> want(width, 0.0);
            if (n > 0) {
                const Sequence &s = cache_.sequences[sequence++];
                want = attention_reference(q_.data() + (size_t)row * width, s.k, s.v, n, heads_.n_heads,
                                           heads_.n_kv_heads, heads_.d_head);
            }
            const double error = relative_error(got, want);
            CHECK(error < kTolerance, "%u heads, %u KV heads of %u, row %u, context %u: off by %g", heads_.n_heads,
                  heads_.n_kv_heads, heads_.d_head, row, n, error);
            for (uint32_t i = width; i < pitch; i++)
                CHECK(out[(size_t)row * pitch + i] == 0, "column %u of row %u pads, and is not zero", i, row);
        }
    }

    std::vector<float> row_of(const std::vector<float> &out, uint32_t row) const {
        return {out.begin() + (size_t)row * heads_.out_pitch(), out.begin() + (size_t)(row + 1) * heads_.out_pitch()};
    }

  private:
    static std::vector<uint32_t> of_sequences(const std::vector<uint32_t> &contexts) {
        std::vector<uint32_t> lengths;
        for (uint32_t n : contexts)
            if (n > 0) lengths.push_back(n);
        return lengths;
    }
    Heads heads_;
    std::vector<uint32_t> contexts_;
    PagedCache cache_;
    std::vector<float> q_;
    std::vector<uint32_t> positions_, table_start_;
    uint32_t longest_ = 1;
};

}  // namespace

TEST(attention_decode_is_close_to_the_reference_for_all_shapes) {
    Random random(51);
    const Heads shapes[] = {{3, 1, 12, 16},  {4, 1, 16, 16},    {3, 3, 20, 32},   {14, 2, 64, 64},
                            {8, 2, 80, 128}, {16, 2, 128, 128}, {17, 1, 64, 64},  {34, 2, 12, 16},
                            {6, 2, 18, 64},  {7, 1, 200, 256},  {32, 1, 256, 256}};
    for (const Heads &heads : shapes) {
        for (float deviation : {1.0f, 8.0f}) {
            Batch batch(heads, {1, 15, 0, 16, 17, 255, 256, 257, 700, 0}, deviation, random);
            batch.check(batch.run_all(264));
        }
    }
}

TEST(attention_decode_is_close_to_the_reference_at_long_contexts) {
    Random random(52);
    for (const Heads &heads : {Heads{14, 2, 64, 64}, Heads{3, 1, 20, 32}, Heads{17, 1, 128, 128}}) {
        Batch batch(heads, {5000, 16384, 4096, 4097}, 2.0f, random);
        const std::vector<float> out = batch.run_all(264);
        batch.check(out);
        CHECK(same_bits(batch.run_all(5), out), "another grid gives other bits");
        CHECK(same_bits(batch.run({1}, 264), batch.row_of(out, 1)), "16,384 tokens alone have other bits");
    }
}

TEST(attention_decode_gives_a_row_the_same_bits_alone_and_among_others) {
    Random random(53);
    for (const Heads &heads : {Heads{14, 2, 64, 64}, Heads{4, 1, 12, 16}, Heads{20, 1, 80, 128}}) {
        for (uint32_t n_rows : {5u, 33u, 64u, 255u, 256u}) {
            if (few_cases() && n_rows > 33) continue;
            std::vector<uint32_t> contexts;
            for (uint32_t i = 0; i < n_rows; i++)
                contexts.push_back(i % 7 == 3 ? 0 : 1 + random.below(n_rows > 64 ? 300 : 900));
            Batch batch(heads, contexts, 2.0f, random);
            const std::vector<float> out = batch.run_all(264);
            if (n_rows <= 64) batch.check(out);
            for (uint32_t n_blocks : {1u, 7u, 1000u})
                CHECK(same_bits(batch.run_all(n_blocks), out), "%u blocks give other bits", n_blocks);
            for (uint32_t row : {0u, 3u, 4u, n_rows - 1}) {
                CHECK(same_bits(batch.run({row}, 264), batch.row_of(out, row)), "row %u of %u alone has other bits",
                      row, n_rows);
                CHECK(same_bits(batch.run({row}, 264, 1), batch.row_of(out, row)),
                      "reading ahead gives row %u other bits", row);
            }
        }
    }
}

TEST(attention_decode_refuses_what_it_cannot_do) {
    orcd_attention_decode_args a{};
    CHECK(orcd_attention_decode(&a, nullptr) == (int32_t)cudaErrorInvalidValue, "null pointers were taken");
    CHECK(orcd_attention_decode(nullptr, nullptr) == (int32_t)cudaErrorInvalidValue, "null arguments were taken");
    CHECK(orcd_attention_decode_partials(256, 32768, 14, 2, 64) == 256ull * 128 * 2 * 7 * 8 * 12,
          "the scratch has another size");
}
