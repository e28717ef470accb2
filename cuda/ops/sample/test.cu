// Tolerances. F32 weights err by a few units in the last place times their exponent, at most 1e-5 each, at random; their
// sums, which decide about edges and draws, stay within 1e-6 of all (kMargin leaves twice that). Where the reference finds
// a filter's edge within such rounding, the weight in doubt is added. Log-probabilities: 1e-5, of which F32 output is most.
#include "../../test/harness.h"
#include "reference.h"
#include "worker_cuda.h"

using namespace harness;

namespace {

constexpr double kMargin = 2e-6;

orcd_sample_params plain(float temperature, uint64_t seed = 1, uint64_t position = 5) {
    orcd_sample_params p{};
    p.temperature = temperature;
    p.repetition_penalty = 1.0f;
    p.top_p = 1.0f;
    p.n_logprobs = ORCD_SAMPLE_NO_LOGPROBS;
    p.changes_start = ORCD_SAMPLE_NO_CHANGES;
    p.mask = ORCD_SAMPLE_NO_MASK;
    p.seed = seed;
    p.position = position;
    return p;
}

struct Rows {
    uint32_t n_vocab = 0;
    uint64_t pitch = 0;
    std::vector<float> logits;
    std::vector<orcd_sample_params> params;
    std::vector<uint32_t> changed, masks;
    std::vector<orcd_sample_change> changes;

    uint32_t n_rows() const { return (uint32_t)params.size(); }
    const float *row(uint32_t i) const { return logits.data() + i * pitch; }
    SampleLists lists() const { return SampleLists{changed.data(), changes.data(), masks.data()}; }
    uint32_t mask_words() const { return (n_vocab + 31) / 32; }
    void add(const std::vector<float> &row, const orcd_sample_params &p) {
        CHECK(n_vocab == 0 || n_vocab == row.size(), "rows of different lengths");
        n_vocab = (uint32_t)row.size();
        if (pitch == 0) pitch = n_vocab;
        logits.insert(logits.end(), row.begin(), row.end());
        logits.resize(logits.size() + pitch - n_vocab, 1e30f); // what lies between rows is not to be read
        params.push_back(p);
    }
    // Of the row added last; `ids` ascend.
    void penalize(float penalty, const std::vector<uint32_t> &ids) {
        params.back().repetition_penalty = penalty;
        params.back().changed_start = (uint32_t)changed.size();
        params.back().changed_len = (uint32_t)ids.size();
        changed.insert(changed.end(), ids.begin(), ids.end());
    }
    void change(const std::vector<uint32_t> &ids, const std::vector<orcd_sample_change> &what) {
        penalize(params.back().repetition_penalty, ids);
        params.back().changes_start = (uint32_t)changes.size();
        changes.insert(changes.end(), what.begin(), what.end());
    }
    // Bits beyond the vocabulary mean nothing: they are set.
    void allow(const std::vector<uint32_t> &ids) {
        params.back().mask = (uint32_t)(masks.size() / mask_words());
        masks.resize(masks.size() + mask_words());
        uint32_t *mask = masks.data() + masks.size() - mask_words();
        if (n_vocab % 32 != 0) mask[mask_words() - 1] = ~0u << n_vocab % 32;
        for (uint32_t id : ids) mask[id / 32] |= 1u << id % 32;
    }
};

// On the device; an empty one as an element that is not to be read.
template <class T> std::vector<T> or_poison(const std::vector<T> &values) {
    std::vector<T> poison(1);
    std::memset((void *)poison.data(), 0xFF, sizeof(T));
    return values.empty() ? poison : values;
}

std::vector<orcd_sample_choice> sample(const Rows &rows) {
    Guarded<float> logits(rows.logits);
    Guarded<orcd_sample_params> params(rows.params);
    Guarded<uint32_t> changed(or_poison(rows.changed)), masks(or_poison(rows.masks));
    Guarded<orcd_sample_change> changes(or_poison(rows.changes));
    Guarded<orcd_sample_choice> choices(rows.n_rows());
    Guarded<uint8_t> scratch(orcd_sample_scratch_bytes(rows.n_rows(), rows.n_vocab));
    orcd_sample_args a{};
    a.logits = logits.get();
    a.row_pitch = rows.pitch;
    a.params = params.get();
    a.changed = changed.get();
    a.changes = changes.get();
    a.masks = masks.get();
    a.choices = choices.get();
    a.scratch = scratch.get();
    a.n_rows = rows.n_rows();
    a.n_vocab = rows.n_vocab;
    CUDA(orcd_sample(&a, nullptr));
    const std::vector<float> after = logits.read();
    CHECK(same_bits(after, rows.logits), "the logits were changed");
    scratch.read();
    return choices.read();
}

// Checks a choice against the reference. Returns whether it is the reference's very id.
bool check(const Rows &rows, uint32_t row, const orcd_sample_choice &got, const char *what) {
    const orcd_sample_params &p = rows.params[row];
    const SampleReference want = sample_reference(rows.row(row), rows.n_vocab, p, rows.lists());
    CHECK(got.status == want.status, "%s: row %u: status %u", what, row, got.status);
    CHECK(std::memcmp(&got.maximum, &want.maximum, 4) == 0 || got.maximum == want.maximum, "%s: row %u: maximum %g, not %g",
          what, row, got.maximum, want.maximum);
    if (want.status != 0 || got.status != 0) {
        CHECK(got.id == 0xFFFFFFFFu && got.n_top == 0, "%s: row %u: a token of a row that has none", what, row);
        return true;
    }
    if (got.id != want.id) {
        const double distance = p.temperature == 0 ? INFINITY : distance_reference(want, got.id);
        CHECK(distance <= kMargin + want.edge_doubt, "%s: row %u of %u: id %u, not %u; off by %g (doubt %g)", what, row,
              rows.n_vocab, got.id, want.id, distance, want.edge_doubt);
    }
    if (p.n_logprobs != ORCD_SAMPLE_NO_LOGPROBS && got.id < rows.n_vocab) {
        const std::vector<double> logprobs = logprobs_reference(rows.row(row), rows.n_vocab);
        const std::vector<uint32_t> top = most_likely_reference(rows.row(row), rows.n_vocab, p.n_logprobs);
        auto near = [&](float logprob, uint32_t id) {
            return std::fabs(logprob - logprobs[id]) <= 1e-5 * std::max(1.0, -logprobs[id] / 16) && logprob <= 0;
        };
        CHECK(near(got.logprob, got.id), "%s: row %u: %g, not %g", what, row, got.logprob, logprobs[got.id]);
        CHECK(got.n_top == top.size(), "%s: row %u: %u of %zu most likely", what, row, got.n_top, top.size());
        for (uint32_t i = 0; i < top.size() && i < got.n_top; i++) {
            CHECK(got.top_ids[i] == top[i], "%s: row %u: rank %u is %u, not %u", what, row, i, got.top_ids[i], top[i]);
            CHECK(near(got.top_logprobs[i], top[i]), "%s: row %u: rank %u: %g", what, row, i, got.top_logprobs[i]);
        }
    } else {
        CHECK(got.logprob == 0 && got.n_top == 0, "%s: row %u: log-probabilities that nobody asked for", what, row);
    }
    return got.id == want.id;
}

void check_all(const Rows &rows, const char *what) {
    const std::vector<orcd_sample_choice> choices = sample(rows);
    uint32_t n_other = 0;
    for (uint32_t row = 0; row < rows.n_rows(); row++) n_other += check(rows, row, choices[row], what) ? 0 : 1;
    CHECK(n_other * 50 <= rows.n_rows() + 49, "%s: %u of %u rows differ from the reference", what, n_other, rows.n_rows());
}

std::vector<float> quarters(Random &random, uint32_t n) {
    std::vector<float> row(n);
    for (float &x : row) x = 0.25f * (float)random.below(65) - 8.0f;
    return row;
}

std::vector<uint32_t> some_ids(Random &random, uint32_t n_vocab, uint32_t n) {
    std::vector<uint32_t> ids;
    const uint32_t step = std::max(1u, n_vocab / std::max(1u, n));
    for (uint32_t id = random.below(step); id < n_vocab && ids.size() < n; id += step) ids.push_back(id);
    return ids;
}

// Counts and biases, of which some are none.
void change_some(Rows &rows, Random &random, uint32_t n) {
    const std::vector<uint32_t> ids = some_ids(random, rows.n_vocab, n);
    std::vector<orcd_sample_change> changes;
    for (size_t i = 0; i < ids.size(); i++)
        changes.push_back({random.below(3) == 0 ? 0 : random.below(20), random.below(2) == 0 ? 0.0f : random.normal(3.0f)});
    rows.params.back().presence_penalty = 0.25f * (float)random.below(17) - 2.0f;
    rows.params.back().frequency_penalty = 0.125f * (float)random.below(9) - 0.5f;
    rows.change(ids, changes);
}

// Sizes of vocabularies: around the borders of the slices, and Qwen2's.
std::vector<uint32_t> vocabs() {
    if (few_cases()) return {1, 97, 2049};
    return {1, 2, 61, 97, 2048, 2049, 5003, 151936};
}

} // namespace

TEST(sample_random_numbers_are_the_published_ones) {
    const uint32_t counter[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key[2] = {0xa4093822, 0x299f31d0};
    const uint32_t want[4] = {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
    uint32_t got[4];
    philox4x32_reference(counter, key, got);
    CHECK(std::memcmp(got, want, sizeof want) == 0, "philox: %08x", got[0]);
}

TEST(sample_greedy_takes_the_lowest_id_of_equals) {
    Random random(1);
    for (uint32_t n_vocab : vocabs()) {
        Rows rows;
        for (int i = 0; i < 4; i++) rows.add(quarters(random, n_vocab), plain(0));
        rows.add(random.normals(n_vocab, 3.0f), plain(0));
        rows.add(std::vector<float>(n_vocab, -7.5f), plain(0));
        // The two zeros are equal.
        std::vector<float> zeros(n_vocab, 0.0f);
        zeros[0] = -0.0f;
        rows.add(zeros, plain(0));
        std::vector<float> holes(n_vocab, NAN);
        holes[n_vocab - 1] = -3.0f;
        holes[n_vocab / 2] = -INFINITY;
        if (n_vocab / 2 == n_vocab - 1) holes[n_vocab - 1] = -3.0f;
        rows.add(holes, plain(0));
        check_all(rows, "greedy");
    }
}

TEST(sample_rows_without_a_finite_maximum_are_reported) {
    for (uint32_t n_vocab : {1u, 97u, 5003u}) {
        for (float temperature : {0.0f, 0.7f}) {
            Rows rows;
            orcd_sample_params p = plain(temperature);
            rows.add(std::vector<float>(n_vocab, NAN), p);
            rows.add(std::vector<float>(n_vocab, -INFINITY), p);
            std::vector<float> row(n_vocab, 1.0f);
            row[n_vocab - 1] = INFINITY;
            rows.add(row, p);
            p.top_p = 0.5f;
            rows.add(row, p);
            p.n_logprobs = 3;
            rows.add(row, p);
            // A penalty makes an infinite logit a great one; log-probabilities still fail.
            p.n_logprobs = ORCD_SAMPLE_NO_LOGPROBS;
            rows.add(row, p);
            rows.penalize(1.5f, {n_vocab - 1});
            p.n_logprobs = 3;
            const std::vector<orcd_sample_choice> choices = sample(rows);
            for (uint32_t i = 0; i < 6; i++) {
                CHECK(choices[i].status == (i == 5 ? 0 : 1), "row %u: status %u", i, choices[i].status);
                if (i < 5) CHECK(choices[i].maximum == (i < 2 ? -INFINITY : INFINITY), "row %u: %g", i, choices[i].maximum);
            }
            CHECK(choices[5].id == n_vocab - 1, "id %u", choices[5].id);
            rows.params[5].n_logprobs = 3;
            CHECK(sample(rows)[5].status == 1, "log-probabilities of an infinite logit");
        }
    }
}

TEST(sample_follows_the_reference_under_every_filter) {
    Random random(2);
    for (uint32_t n_vocab : vocabs()) {
        const bool large = n_vocab > 10000;
        for (float deviation : {0.5f, 4.0f}) {
            Rows rows;
            uint64_t seed = 0;
            for (float temperature : {0.3f, 1.0f, 2.5f}) {
                for (uint32_t top_k : {0u, 1u, 7u, 40u, 3000u}) {
                    for (float top_p : {0.0f, 0.35f, 0.95f, 1.0f}) {
                        for (float min_p : {0.0f, 0.05f, 1.0f}) {
                            if ((large || few_cases()) && random.below(6) != 0) continue;
                            seed++;
                            orcd_sample_params p = plain(temperature, seed * 0x9E3779B97F4A7C15ull, seed << 30 | seed);
                            p.top_k = top_k;
                            p.top_p = top_p;
                            p.min_p = min_p;
                            if (random.below(3) == 0) p.n_logprobs = random.below(21);
                            rows.add(random.below(4) == 0 ? quarters(random, n_vocab) : random.normals(n_vocab, deviation), p);
                            if (random.below(2) == 0) rows.penalize(1.3f, some_ids(random, n_vocab, 1 + random.below(300)));
                        }
                    }
                }
            }
            check_all(rows, "filters");
        }
    }
}

TEST(sample_follows_the_reference_without_filters) {
    Random random(3);
    for (uint32_t n_vocab : vocabs()) {
        Rows rows;
        rows.pitch = n_vocab + 5; // rows that are not aligned
        for (uint64_t i = 0; i < (n_vocab > 10000 ? 24 : 100); i++) {
            std::vector<float> row = random.normals(n_vocab, i % 3 == 0 ? 0.1f : 4.0f);
            for (uint32_t n = 0; n < n_vocab / 8; n++) row[random.below(n_vocab)] = n % 2 == 0 ? NAN : -INFINITY;
            row[random.below(n_vocab)] = 1.0f;
            rows.add(row, plain(i % 2 == 0 ? 1.0f : 0.4f, i, i * i));
            if (i % 4 == 1) rows.penalize(i % 8 == 1 ? 0.7f : 1.5f, some_ids(random, n_vocab, 1 + n_vocab / 3));
        }
        check_all(rows, "no filters");
    }
}

TEST(sample_penalty_divides_positive_and_multiplies_negative_logits) {
    Rows rows;
    rows.add({2.0f, 1.5f, -1.0f, -1.5f}, plain(0));
    rows.penalize(2.0f, {0});
    rows.add({-2.0f, -1.5f, -1.0f, -1.5f}, plain(0));
    rows.penalize(2.0f, {2});
    rows.add({2.0f, 1.5f, -1.0f, -1.5f}, plain(0));
    rows.penalize(0.5f, {1});
    rows.add({2.0f, 1.5f, -1.0f, -1.5f}, plain(0));
    rows.penalize(1.0f, {0});
    rows.add({2.0f, 1.5f, -1.0f, -1.5f}, plain(0));
    rows.penalize(FLT_MIN, {1});
    check_all(rows, "penalty");
    const std::vector<orcd_sample_choice> choices = sample(rows);
    const uint32_t want[] = {1, 1, 1, 0, 1};
    for (uint32_t i = 0; i < 5; i++) CHECK(choices[i].id == want[i], "row %u: id %u", i, choices[i].id);
}

TEST(sample_presence_is_subtracted_once_and_frequency_for_each_time) {
    Rows rows;
    const float penalties[][2] = {{0, 0}, {1, 0}, {1.5f, 0}, {0, 0.375f}, {0, 0.5f}, {-2, 1}};
    for (const float *penalty : penalties) {
        rows.add({2.0f, 3.0f, 1.75f}, plain(0));
        rows.params.back().presence_penalty = penalty[0];
        rows.params.back().frequency_penalty = penalty[1];
        rows.change({0, 1}, {{1, 0}, {3, 0}});
    }
    // The bias comes before the repetition penalty, and that before what is subtracted: (3 + 1) / 2 - 0.5 - 2 * 0.25 = 1.
    rows.add({3.0f, 1.0625f, 0.9375f}, plain(0));
    rows.params.back().repetition_penalty = 2.0f;
    rows.params.back().presence_penalty = 0.5f;
    rows.params.back().frequency_penalty = 0.25f;
    rows.change({0}, {{2, 1.0f}});
    check_all(rows, "presence and frequency");
    const std::vector<orcd_sample_choice> choices = sample(rows);
    const uint32_t want[] = {1, 1, 2, 1, 2, 0, 1};
    for (uint32_t i = 0; i < 7; i++) CHECK(choices[i].id == want[i], "row %u: id %u", i, choices[i].id);
}

TEST(sample_biases_masks_and_penalties_follow_the_reference) {
    Random random(8);
    for (uint32_t n_vocab : vocabs()) {
        Rows rows;
        if (n_vocab % 2 == 1) rows.pitch = n_vocab + 3;
        for (uint64_t i = 0; i < (n_vocab > 10000 ? 20 : 120); i++) {
            orcd_sample_params p = plain(0.5f * (float)(i % 4), i, i * 7);
            if (i % 3 == 1) p.top_k = 1 + random.below(60);
            if (i % 5 < 2) p.top_p = 0.9f;
            if (i % 7 == 1) p.min_p = 0.02f;
            if (i % 4 == 3) p.n_logprobs = random.below(21);
            if (i % 5 == 3) p.repetition_penalty = 1.4f;
            rows.add(i % 6 == 0 ? quarters(random, n_vocab) : random.normals(n_vocab, 3.0f), p);
            if (i % 2 == 0) change_some(rows, random, 1 + random.below(i % 8 == 0 ? n_vocab : 300));
            if (i % 3 == 0) rows.allow(some_ids(random, n_vocab, 1 + random.below(i % 9 == 0 ? 3 : n_vocab)));
        }
        check_all(rows, "adjusted");
    }
}

TEST(sample_a_mask_decides_against_every_logit) {
    Random random(9);
    for (uint32_t n_vocab : {1u, 33u, 2049u, 5003u}) {
        Rows rows;
        std::vector<uint32_t> only;
        for (uint32_t i = 0; i < 24; i++) {
            const uint32_t ids[] = {0, n_vocab - 1, n_vocab / 2, std::min(n_vocab - 1, 2047u), random.below(n_vocab)};
            only.push_back(ids[i % 5]);
            orcd_sample_params p = plain(i % 3 == 0 ? 0.0f : 0.7f, i);
            if (i % 4 == 1) p.top_k = 5;
            if (i % 4 == 2) p.top_p = 0.5f;
            std::vector<float> row = random.normals(n_vocab, 2.0f);
            row[only.back()] = -50.0f;
            // Even an infinite logit is only that of a token which may not be chosen.
            if (n_vocab > 1 && i % 6 == 0) row[only.back() == 0 ? 1 : 0] = INFINITY;
            rows.add(row, p);
            if (i % 2 == 1) rows.change({only.back()}, {{3, -100.0f}});
            rows.allow({only.back()});
        }
        rows.add(random.normals(n_vocab, 2.0f), plain(0.7f));
        rows.allow({});
        const std::vector<orcd_sample_choice> choices = sample(rows);
        for (uint32_t i = 0; i < only.size(); i++)
            CHECK(choices[i].status == 0 && choices[i].id == only[i], "row %u of %u: id %u, not %u", i, n_vocab, choices[i].id,
                  only[i]);
        CHECK(choices.back().status == 1 && choices.back().maximum == -INFINITY, "a mask that allows nothing");
    }
}

TEST(sample_what_changes_nothing_changes_no_bit) {
    Random random(10);
    const uint32_t n_vocab = 5003;
    Rows plain_rows, rows;
    std::vector<uint32_t> all(n_vocab);
    for (uint32_t id = 0; id < n_vocab; id++) all[id] = id;
    for (uint32_t i = 0; i < 60; i++) {
        orcd_sample_params p = plain(0.4f * (float)(i % 5), i);
        if (i % 3 == 1) p.top_k = 50;
        if (i % 4 == 1) p.top_p = 0.9f;
        if (i % 2 == 1) p.n_logprobs = 4;
        const std::vector<float> row = random.normals(n_vocab, 2.0f);
        const std::vector<uint32_t> ids = some_ids(random, n_vocab, 700);
        plain_rows.add(row, p);
        rows.add(row, p);
        if (i % 3 == 0) plain_rows.penalize(1.3f, ids), rows.penalize(1.3f, ids);
        // The same with counts, and with biases of 0 beside them.
        const std::vector<uint32_t> &listed = i % 3 == 0 ? ids : all;
        const orcd_sample_change nothing{i % 3 == 0 ? 2u : 0u, 0.0f};
        if (i % 2 == 0) rows.change(listed, std::vector<orcd_sample_change>(listed.size(), nothing));
        if (i % 5 < 3) rows.allow(all);
    }
    CHECK(same_bits(sample(plain_rows), sample(rows)), "a mask of all tokens, or changes of nothing");
}

TEST(sample_extreme_temperatures_stay_numbers) {
    Random random(4);
    for (uint32_t n_vocab : {97u, 5003u}) {
        Rows rows;
        for (float temperature : {FLT_MIN, 1e-40f, 1e-3f, 1e6f, FLT_MAX}) {
            for (uint32_t top_k : {0u, 3u}) {
                orcd_sample_params p = plain(temperature, 11, 12);
                p.top_k = top_k;
                // Weights that F32 cannot tell apart are ties: quarters make them so in the reference too.
                rows.add(quarters(random, n_vocab), p);
            }
        }
        const std::vector<orcd_sample_choice> choices = sample(rows);
        for (uint32_t row = 0; row < 6; row++) check(rows, row, choices[row], "cold");
        // All are equally likely, so top-k keeps the first ids.
        CHECK(choices[9].id < 3, "id %u", choices[9].id);
        CHECK(choices[6].id < n_vocab && choices[8].id < n_vocab, "ids %u, %u", choices[6].id, choices[8].id);
    }
}

TEST(sample_ties_at_an_edge_are_kept_by_id) {
    Rows rows;
    for (uint64_t seed = 0; seed < 40; seed++) {
        orcd_sample_params p = plain(1.0f, seed);
        p.top_k = 3;
        rows.add(std::vector<float>(9000, 0.5f), p);
        p = plain(1.0f, seed);
        p.top_p = 0.35f;
        rows.add(std::vector<float>(9000, 0.5f), p); // the first 3,150 and, 0.35f being a little more, one more
        p.top_k = 3;
        rows.add(std::vector<float>(9000, 0.5f), p); // 2 of 3
        p.top_k = 4;
        p.top_p = 0.5f;
        rows.add(std::vector<float>(9000, 0.5f), p); // exactly 2
    }
    check_all(rows, "ties");
    const std::vector<orcd_sample_choice> choices = sample(rows);
    for (uint32_t i = 0; i < choices.size(); i += 4) {
        CHECK(choices[i].id < 3 && choices[i + 1].id <= 3150 && choices[i + 2].id < 2 && choices[i + 3].id < 2,
              "ids %u, %u, %u, %u", choices[i].id, choices[i + 1].id, choices[i + 2].id, choices[i + 3].id);
    }
}

TEST(sample_most_likely_tokens_come_in_order) {
    Random random(5);
    for (uint32_t n_vocab : {1u, 5u, 97u, 4100u, 151936u}) {
        Rows rows;
        for (uint32_t n : {0u, 1u, 5u, 20u}) {
            for (float temperature : {0.0f, 0.8f}) {
                orcd_sample_params p = plain(temperature, n);
                p.n_logprobs = n;
                rows.add(quarters(random, n_vocab), p);
                rows.add(random.normals(n_vocab, 5.0f), p);
                rows.penalize(1.8f, some_ids(random, n_vocab, 50));
                std::vector<float> few(n_vocab, -INFINITY);
                few[n_vocab / 2] = 80.0f;
                few[n_vocab - 1] = 79.0f;
                rows.add(few, p);
                // All in one slice, best last.
                std::vector<float> rising(n_vocab);
                for (uint32_t id = 0; id < n_vocab; id++) rising[id] = 1e-3f * (float)id;
                rows.add(rising, p);
            }
        }
        check_all(rows, "most likely");
    }
}

TEST(sample_the_only_token_allowed_is_scored_by_the_models_own_softmax) {
    Random random(14);
    for (uint32_t n_vocab : vocabs()) {
        Rows rows;
        std::vector<uint32_t> only;
        for (uint32_t i = 0; i < 24; i++) {
            const uint32_t ids[] = {0, n_vocab - 1, n_vocab / 2, std::min(n_vocab - 1, 2047u), random.below(n_vocab)};
            only.push_back(ids[i % 5]);
            orcd_sample_params p = plain(0.0f);
            p.n_logprobs = i % 4 == 3 ? 20 : i % 4;
            std::vector<float> row = random.normals(n_vocab, 3.0f);
            // Seldom the most likely; at times all but impossible.
            if (i % 6 == 0) row[only.back()] = -200.0f;
            rows.add(row, p);
            rows.allow({only.back()});
        }
        check_all(rows, "given");
        const std::vector<orcd_sample_choice> choices = sample(rows);
        for (uint32_t i = 0; i < only.size(); i++)
            CHECK(choices[i].id == only[i], "row %u of %u: id %u, not %u", i, n_vocab, choices[i].id, only[i]);
    }
}

TEST(sample_a_row_has_the_same_bits_alone_and_among_others) {
    Random random(6);
    for (uint32_t n_rows : {64u, 256u}) {
        const uint32_t n_vocab = n_rows == 64 ? 151936 : 3001;
        Rows together;
        together.pitch = (n_vocab + 3) / 4 * 4; // the same alignment for all
        for (uint32_t i = 0; i < n_rows; i++) {
            orcd_sample_params p = plain(i % 5 == 0 ? 0.0f : 0.3f * (float)(i % 5), i, i);
            if (i % 3 == 1) p.top_k = 50;
            if (i % 4 == 1) p.top_p = 0.9f;
            if (i % 7 == 1) p.min_p = 0.02f;
            if (i % 2 == 1) p.n_logprobs = i % 21;
            if (i % 11 == 10) p.temperature = -1.0f;
            together.add(random.normals(n_vocab, i % 2 == 0 ? 2.0f : 0.2f), p);
            if (i % 3 == 0) together.penalize(1.2f, some_ids(random, n_vocab, 500));
            if (i % 13 == 5) change_some(together, random, 400);
            if (i % 17 == 3) together.allow(some_ids(random, n_vocab, n_vocab / 3));
        }
        const std::vector<orcd_sample_choice> choices = sample(together);
        CHECK(same_bits(choices, sample(together)), "two runs differ");
        for (uint32_t i = 0; i < n_rows; i += i < 24 ? 1 : 9) {
            Rows alone;
            alone.pitch = together.pitch;
            alone.add(std::vector<float>(together.row(i), together.row(i) + n_vocab), together.params[i]);
            alone.changed = together.changed, alone.changes = together.changes, alone.masks = together.masks;
            const std::vector<orcd_sample_choice> choice = sample(alone);
            CHECK(std::memcmp(&choice[0], &choices[i], sizeof choice[0]) == 0, "row %u of %u: id %u alone, %u among others", i,
                  n_rows, choice[0].id, choices[i].id);
            if (together.params[i].temperature < 0) {
                std::vector<uint8_t> untouched(sizeof choice[0], 0xFF);
                CHECK(std::memcmp(&choice[0], untouched.data(), sizeof choice[0]) == 0, "row %u: padding was written", i);
            } else {
                check(together, i, choices[i], "among others");
            }
        }
    }
}

TEST(sample_draws_are_as_frequent_as_they_are_likely) {
    // 20,000 draws: chi-square with 60 degrees of freedom stays below 112 in all but 1 of 20,000 right samplers; the
    // numbers are fixed, so a right one passes always or never.
    Random random(7);
    const uint32_t n_vocab = 61, n_rows = 250;
    const std::vector<float> row = random.normals(n_vocab, 1.0f);
    for (int filtered = 0; filtered < 2; filtered++) {
        std::vector<double> counts(n_vocab, 0.0);
        SampleReference reference;
        for (uint32_t batch = 0; batch < 20000 / n_rows; batch++) {
            Rows rows;
            for (uint32_t i = 0; i < n_rows; i++) {
                orcd_sample_params p = plain(0.9f, 77, batch * n_rows + i);
                if (filtered) p.min_p = 0.05f, p.top_k = 50;
                rows.add(row, p);
            }
            for (const orcd_sample_choice &choice : sample(rows))
                if (choice.id < n_vocab) counts[choice.id]++;
            if (batch == 0) reference = sample_reference(row.data(), n_vocab, rows.params[0], rows.lists());
        }
        double chi_square = 0;
        for (uint32_t id = 0; id < n_vocab; id++) {
            if (!reference.kept[id]) {
                CHECK(counts[id] == 0, "token %u is dropped and was drawn", id);
                continue;
            }
            const double expected = 20000 * reference.weights[id] / reference.total;
            chi_square += (counts[id] - expected) * (counts[id] - expected) / expected;
        }
        CHECK(chi_square < 112, "chi-square %g", chi_square);
    }
}

TEST(sample_refuses_what_it_cannot_do) {
    orcd_sample_args a{};
    a.n_rows = 1;
    a.n_vocab = 100;
    a.row_pitch = 99;
    CHECK(orcd_sample(&a, nullptr) == (int32_t)cudaErrorInvalidValue, "a pitch below n_vocab");
    a.row_pitch = 100;
    CHECK(orcd_sample(&a, nullptr) == (int32_t)cudaErrorInvalidValue, "no logits");
    a.n_vocab = ORCD_SAMPLE_MAX_VOCAB + 1;
    a.row_pitch = a.n_vocab;
    CHECK(orcd_sample(&a, nullptr) == (int32_t)cudaErrorInvalidValue, "too many tokens");
    CHECK(orcd_sample_scratch_bytes(1, a.n_vocab) == 0, "scratch for too many tokens");
}
